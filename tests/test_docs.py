"""The documentation builds without warnings, loads nothing from other sites, has no dead link, and its code runs."""

import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.cli.main import main

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


class Page(HTMLParser):
    """The links of a page, the files that it loads, and its anchors."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if "src" in values or (tag == "link" and "stylesheet" in values.get("rel", "")):
            self.loads.add(values.get("src") or values["href"])
        elif "href" in values:
            self.links.add(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages of the site by the path of their HTML files."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=DOCS.parent,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "BERT_CONVOLUTIONS_LAZY": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_nothing_is_loaded_from_other_sites_and_no_link_is_dead(site: dict[Path, Page]) -> None:
    assert len(site) >= 10
    for path, page in site.items():
        assert not [load for load in page.loads if urlsplit(load).netloc], path
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in site[target].anchors, f"{path}: {link}"


def test_every_sub_command_and_the_main_classes_are_in_the_reference(site: dict[Path, Page]) -> None:
    pages = {"/".join(path.parts[-2:]): page for path, page in site.items()}
    assert set(COMMANDS) <= pages["reference/commands.html"].anchors
    assert "bert_convolutions.model.modeling.CompositeBertForMaskedLM.forward" in pages["reference/python.html"].anchors


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """Reads also the tags that MkDocs adds to YAML."""

    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", yaml.dump(yaml.load(text, Loader)["nav"])))
    assert named == {path.relative_to(DOCS).as_posix() for path in PAGES if "results" not in path.parts} | {
        "results/README.md"
    }


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python\n" in page.read_text()], ids=lambda page: page.stem
)
def test_the_python_in_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    exec(compile("\n".join(blocks), str(page), "exec"), {})
    if page.stem == "own-language":  # pairs can be built with its tokenizer
        (tmp_path / "korpus.txt").write_text("Der Fluß trägt Schnee.\nFällt Schnee?\n", encoding="utf-8")
        argv = ["--train_data_file", "korpus.txt", "--tokenizer_name", "tokenizer-de", "--output_dir", "pairs"]
        assert main(["build-dataset", *argv]) == 0


def test_the_figures_can_be_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(DOCS / "figures.py"))
    script["draw_terms"](tmp_path / "terms.png")
    script["draw_clip"](tmp_path / "clip.png")
    script["draw_learned"](tmp_path / "learned.png", steps=2)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(script["FIGURES"]) == {path.name for path in (DOCS / "figures").iterdir()}
