"""The versions that ``pyproject.toml`` allows are tested: each lower bound is in ``constraints-oldest.txt``."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
NOT_IMPORTED_BY_TESTS = {
    *("build", "mkdocs", "mkdocs-material", "mkdocstrings", "mypy", "pre-commit", "ruff", "setuptools", "types-pyyaml"),
}
"""Tools, whose lowest version is not tested."""


def requirements() -> dict[str, Requirement]:
    """The requirements of the package, its extras and the tests, by name in lower case."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = "dependencies|demo|dev|docs|gpu|onnx|report|slurm|tensorboard"
    lists = re.findall(rf"^(?:{names}) = (\[.*?\])$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(lists) == len(names.split("|"))
    found = [Requirement(item) for part in lists for item in re.findall(r'"([^"]+)"', part)]
    return {
        item.name.lower(): item for item in found if item.name != "bert_convolutions"
    }  # which refers to its own extras


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {package.lower(): Version(version) for package, version in found}


def test_lower_bounds_are_the_versions_tested() -> None:
    oldest = pins("constraints-oldest.txt")
    for name, requirement in requirements().items():
        if name in NOT_IMPORTED_BY_TESTS:
            continue
        bounds = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        assert bounds == [oldest[name]], f"{requirement} in pyproject.toml, {oldest[name]} in constraints-oldest.txt"
    assert not set(oldest) - set(requirements())


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_the_next_major_version_is_not_allowed(name: str) -> None:
    specifier = requirements()[name].specifier
    tested = pins("constraints.txt")[name]
    assert tested in specifier
    assert f"{tested.major + 1}.0" not in specifier


def test_the_tested_versions_are_allowed() -> None:
    tested = pins("constraints.txt")
    for name, requirement in requirements().items():
        assert name not in tested or tested[name] in requirement.specifier, name
