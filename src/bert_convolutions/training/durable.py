"""Files that are either there whole or not there: written beside their place, synced, renamed."""

import json
import os
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Have the kernel put a file, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """``sync`` for everything under ``folder`` and for ``folder`` itself."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of a text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` so that a crash leaves the old file or the new one, never a part."""
    scratch = path.with_name(f".{path.name}.writing")
    try:
        scratch.write_bytes(content)
        sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of a JSON value, indented, keys in their order."""
    write_text(path, json.dumps(value, indent=2) + "\n")
