"""The direction of imports: each room knows only those before it, as CONTRIBUTING.md draws them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bert_convolutions"
FOUNDATIONS = (
    *("errors", "flags", "terminal", "signals", "files", "environment", "parsing", "schemas", "self_contained", "hub"),
)
"""Modules of the package itself that any room but ``attention`` may use; each knows only those before it."""
ROOMS = (
    *("attention", "data", "model", "training", "glue", "probes", "convert", "sweep", "report", "export"),
    *("demo", "bench", "cli"),
)
"""Packages, in the order in which data walks through them."""
HEAVY = {"torch", "transformers", "accelerate", "datasets", "scipy", "sklearn", "matplotlib"}
LIGHT = ("errors.py", "flags.py", "terminal.py", "attention/spec.py", "attention/terms.py", "cli/*.py", "*/options.py")
"""Read for ``--help``, which is immediate."""


def imports(path: Path, *, at_head: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, those for type checkers alone left out; at its head, or anywhere."""
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
        elif not (at_head and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            nodes += ast.iter_child_nodes(node)


def ours(path: Path) -> set[str]:
    """The rooms and foundations that a file imports, its own left out."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("bert_convolutions.")}
    return {name for name in names if name in (*ROOMS, *FOUNDATIONS)} - {room_of(path)}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_room_is_in_the_order() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert packages == set(ROOMS)
    assert modules == set(FOUNDATIONS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_those_before_it(room: str) -> None:
    allowed = set() if room == "attention" else {*FOUNDATIONS, *ROOMS[: ROOMS.index(room)]}
    if room == "data":
        allowed.remove("attention")
    for path in (PACKAGE / room).rglob("*.py"):
        assert ours(path) <= allowed, f"{path.relative_to(PACKAGE)} imports {sorted(ours(path) - allowed)}"


@pytest.mark.parametrize("name", FOUNDATIONS)
def test_foundations_stand_on_those_before_them(name: str) -> None:
    assert ours(PACKAGE / f"{name}.py") <= set(FOUNDATIONS[: FOUNDATIONS.index(name)])


def test_an_engine_is_not_needed_by_the_equation() -> None:
    """What the paper says can be read, and works, without the code that only makes it faster."""
    engines = {path.name for path in (PACKAGE / "attention").iterdir() if (path / "__init__.py").exists()}
    for path in (PACKAGE / "attention").glob("*.py"):
        used = {name.split(".")[2] for name in imports(path) if name.startswith("bert_convolutions.attention.")}
        assert not used & engines, path.name


@pytest.mark.parametrize("path", sorted({path for pattern in LIGHT for path in PACKAGE.glob(pattern)}), ids=str)
def test_what_help_reads_is_light(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path, at_head=True)} & HEAVY


def test_the_map_shows_every_room_in_order() -> None:
    map_of_rooms = re.search(r"^## Where things are$(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.S | re.M)
    assert map_of_rooms is not None
    shown = re.findall(r"^    (?!  )([a-z]+)/", map_of_rooms[1], flags=re.MULTILINE)
    assert tuple(shown) == ROOMS
    for path in re.findall(r"^    +([a-z_/]+(?:/|\.py)) ", map_of_rooms[1], flags=re.MULTILINE):
        assert list(PACKAGE.glob(path)) or list(PACKAGE.glob(f"*/{path}")), f"{path} is on the map and not there"
