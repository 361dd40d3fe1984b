"""``--config FILE.yaml``: reads the flags of a sub-command from a file."""

import argparse
import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from bert_convolutions import files
from bert_convolutions.cli.flags import CONFIG_FLAG, nearest
from bert_convolutions.errors import UsageError, brief
from bert_convolutions.flags import as_argv
from bert_convolutions.parsing import YamlLoader

_SCALARS = (str, int, float, bool)
_MAX_NODES = 10_000
"""Maximum number of values in a configuration file; with aliases, ten lines of YAML can hold billions."""


class _Loader(YamlLoader):
    """Also reads ``1e-4``, which is text in YAML 1.1, as a number; in a mapping, as JSON does on the command line."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile("-?[0-9]+[eE][-+]?[0-9]+$"), [*"-0123456789"])


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The keys and values of a configuration file."""

    path: Path = Path()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values by key, with underscores for dashes."""
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    """The line of each key, counted from 1."""

    def part(self, names: Collection[str], *, inside: bool) -> "ConfigFile":
        """The keys that are (``inside``) or are not among ``names``."""
        return dataclasses.replace(
            self, values={key: value for key, value in self.values.items() if (key in names) == inside}
        )

    def argv(self, parser: argparse.ArgumentParser, *, mappings: bool = False) -> list[str]:
        """The values as flags of ``parser``; with ``mappings``, mappings are allowed and passed as JSON.

        Raises:
            UsageError: a flag does not accept its value; names the file, the line and the key.
        """
        for key, value in self.values.items():
            if not _has_flag_form(value, mappings):
                raise UsageError(f"{self._where(key)}: {key} takes text, a number, true or false, not {brief(value)}")
            try:
                _, left_over = parser.parse_known_args(as_argv({key: value}))
            except UsageError as error:
                raise UsageError(f"{self._where(key)}: {error}") from error
            if left_over:
                raise UsageError(f"{self._where(key)}: {key} takes one value, not the list {brief(value)}")
        return as_argv(self.values)

    def refuse(self, valid_names: Collection[str]) -> None:
        """Raise for the first key, if any, as a key that no flag has.

        Raises:
            UsageError: names the file, the line, the key and the closest valid name.
        """
        for key in self.values:
            hint = nearest(key, valid_names)
            suggestion = f", did you mean {hint!r}?" if hint else "; the keys are the names of the flags."
            raise UsageError(f"{self._where(key)}: unknown key {key!r}{suggestion}")

    def _where(self, key: str) -> str:
        return f"{self.path}, line {self.lines[key]}"


def _has_flag_form(value: Any, mappings: bool) -> bool:
    """Whether ``value`` can be written on a command line."""
    if isinstance(value, dict) and mappings:
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return False
        return True
    if isinstance(value, list):
        return all(isinstance(item, _SCALARS) for item in value)
    return value is None or isinstance(value, _SCALARS)


def read_config_file(path: Path) -> ConfigFile:
    """Read a YAML mapping of flag names to values.

    Raises:
        UsageError: the file cannot be read, is not YAML (names the line), is not a mapping of names to values, or
            repeats a key.
    """
    try:
        loader = _Loader(files.read_small(path).decode("utf-8"))
        document = loader.get_single_node()
        if document is not None and _count_nodes(document, {}) > _MAX_NODES:
            raise UsageError(f"{CONFIG_FLAG} {path} has more than {_MAX_NODES:,} values, its *aliases written out")
        pairs = document.value if isinstance(document, yaml.MappingNode) else []
        items = [(key, _as_typed(value) or loader.construct_object(value, deep=True)) for key, value in pairs]
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{CONFIG_FLAG} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{CONFIG_FLAG} {path} is not UTF-8 text") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the value of a !!tag
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UsageError(f"{path}{place}: not valid YAML: {problem}") from error
    if document is not None and not isinstance(document, yaml.MappingNode):
        raise UsageError(f"{path}: a configuration file has one 'flag: value' per line, without dashes before the flag")
    config = ConfigFile(path)
    for node, value in items:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            raise UsageError(f"{path}, line {line}: a key is the name of a flag, not a list or a mapping")
        key = node.value.replace("-", "_")
        if key in config.lines:
            raise UsageError(f"{path}, line {line}: key {key!r} is given twice, first in line {config.lines[key]}")
        if key == CONFIG_FLAG.lstrip("-"):
            raise UsageError(f"{path}, line {line}: a configuration file cannot name another one")
        config.values[key], config.lines[key] = value, line
    return config


def _as_typed(node: yaml.Node) -> str | None:
    """The text of a finite real number, which a name such as ``1.10`` needs, as its value is 1.1; else None."""
    is_real = isinstance(node, yaml.ScalarNode) and node.tag.endswith(":float")
    return str(node.value) if is_real and node.value[-1:].isdigit() else None


def _count_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of scalars, lists and mappings in a node with its aliases expanded."""
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1  # for an alias to itself
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = [child for pair in children for child in pair] if isinstance(node, yaml.MappingNode) else children
        known[id(node)] = 1 + sum(_count_nodes(child, known) for child in pairs)
    return known[id(node)]
