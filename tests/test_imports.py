"""The direction of imports: each package imports only those before it, in the order of CONTRIBUTING.md."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bert_convolutions"
FOUNDATIONS = (
    *("errors", "flags", "environment", "cpu", "terminal", "signals"),
    *("files", "parsing", "schemas", "self_contained", "hub"),
)
"""Modules that every package but ``attention`` may use; each imports only those before it."""
PACKAGES = (
    *("attention", "data", "model", "training", "glue", "probes", "convert", "sweep", "report", "export"),
    *("demo", "bench", "cli"),
)
"""In the order in which data passes through them."""
HEAVY = {"torch", "transformers", "accelerate", "datasets", "scipy", "sklearn", "matplotlib"}
LIGHT = ("errors.py", "flags.py", "terminal.py", "attention/spec.py", "attention/terms.py", "cli/*.py", "*/options.py")
"""Files that ``--help`` imports, which has to be immediate."""


def imports(path: Path, *, at_module_level: bool = False) -> Iterator[str]:
    """The dotted names that a file imports, anywhere or at module level, without those for type checkers only."""
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            nodes += ast.iter_child_nodes(node)


def ours(path: Path) -> set[str]:
    """The packages and foundations that a file imports, without its own."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("bert_convolutions.")}
    return {name for name in names if name in (*PACKAGES, *FOUNDATIONS)} - {package_of(path)}


def package_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_package_and_foundation_is_in_the_order() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert packages == set(PACKAGES)
    assert modules == set(FOUNDATIONS)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_before_it(package: str) -> None:
    allowed = set() if package == "attention" else {*FOUNDATIONS, *PACKAGES[: PACKAGES.index(package)]}
    if package == "data":
        allowed.remove("attention")
    for path in (PACKAGE / package).rglob("*.py"):
        assert ours(path) <= allowed, f"{path.relative_to(PACKAGE)} imports {sorted(ours(path) - allowed)}"


@pytest.mark.parametrize("name", FOUNDATIONS)
def test_a_foundation_imports_only_those_before_it(name: str) -> None:
    assert ours(PACKAGE / f"{name}.py") <= set(FOUNDATIONS[: FOUNDATIONS.index(name)])


def test_the_equation_imports_no_engine() -> None:
    """So the paper's equation can be read, and works, without the code that only makes it faster."""
    engines = {path.name for path in (PACKAGE / "attention").iterdir() if (path / "__init__.py").exists()}
    for path in (PACKAGE / "attention").glob("*.py"):
        used = {name.split(".")[2] for name in imports(path) if name.startswith("bert_convolutions.attention.")}
        assert not used & engines, path.name


@pytest.mark.parametrize("path", sorted({path for pattern in LIGHT for path in PACKAGE.glob(pattern)}), ids=str)
def test_help_imports_no_heavy_library(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path, at_module_level=True)} & HEAVY


def test_modules_can_be_imported_on_windows() -> None:
    """There, models and tokenizers are used and saved, and examples are read and collated."""
    for path in files():
        assert not set(imports(path, at_module_level=True)) & {"fcntl", "resource", "termios"}, path.name
    code = """if True:
        import os, signal, sys
        del signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, os.pread, os.sched_getaffinity
        import bert_convolutions.environment, bert_convolutions.self_contained, bert_convolutions.data.store_ids
        from bert_convolutions.signals import SIGNALS, ignore_signals
        ignore_signals()
        print(*(number.name for number in SIGNALS))
    """
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout == "SIGTERM SIGINT\n", run.stderr


def test_contributing_shows_every_package_in_order() -> None:
    map_of_packages = re.search(r"^## Where things are$(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.S | re.M)
    assert map_of_packages is not None
    shown = re.findall(r"^    (?!  )([a-z]+)/", map_of_packages[1], flags=re.MULTILINE)
    assert tuple(shown) == PACKAGES
    for path in re.findall(r"^    +([a-z_/]+(?:/|\.py)) ", map_of_packages[1], flags=re.MULTILINE):
        assert list(PACKAGE.glob(path)) or list(PACKAGE.glob(f"*/{path}")), f"{path} is on the map and not there"
