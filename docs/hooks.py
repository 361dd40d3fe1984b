"""What MkDocs asks while it builds the site: the sub-commands' flags, and links into the repository as file names."""

import re
from pathlib import Path
from typing import Any

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.cli.flags import options_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in ``<!-- commands -->``; a link to a file outside the site becomes the file's name.

    Raises:
        ValueError: there is no such file.
    """
    here = (DOCS / page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        target = (here / match[2]).resolve()
        if target.is_relative_to(DOCS):
            return match[0]
        if not target.exists():
            raise ValueError(f"{page.file.src_uri}: {match[2]} is not there")
        return (
            f"`{target.relative_to(ROOT)}`"
            if match[1].startswith("`")
            else f"{match[1]} (`{target.relative_to(ROOT)}`)"
        )

    return _LINK.sub(outside, markdown).replace("<!-- commands -->", "\n".join(map(_command, COMMANDS)))


def _command(name: str) -> str:
    """A sub-command's section: its purpose and a table of its flags."""
    command = COMMANDS[name]
    lines = [f"## {name}", "", command.purpose, "", "| flag | values | default | meaning |", "|---|---|---|---|"]
    for action in options_parser(name, command.options_class)._actions:
        values = ", ".join(map(str, action.choices)) if action.choices else str(action.metavar or "")
        default = action.default if action.default not in (None, [], "==SUPPRESS==") else ""
        default = str(default).lower() if isinstance(default, bool) else default
        cells = (f"`{action.option_strings[0]}`", values, default, (action.help or "").replace("%%", "%"))
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    if command.trainer:
        lines += ["", f"And those of `transformers.TrainingArguments`: `bertconv {name} --help-all`."]
    return "\n".join([*lines, ""])
