"""Output for the terminal or a log file: messages, tables, durations. Imports no PyTorch."""

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bert_convolutions.environment import is_first_process

if TYPE_CHECKING:
    from tqdm import tqdm


def say(message: str) -> None:
    """Print a message that is not a result to standard error, in the first of several processes."""
    if is_first_process():
        print(f"bertconv: {message}", file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Whether to draw a progress bar: on a terminal and in a notebook, but not in a log file, which it would fill."""
    return "ipykernel" in sys.modules or bool(getattr(sys.stderr, "isatty", bool)())


def make_bar(name: str | None, total: int | None, unit: str, shown: bool = True) -> "tqdm[Any]":
    """A progress bar on standard error, drawn anew every second; in a log file every minute, from the first on."""
    from tqdm import tqdm

    seconds, delay = (1.0, 0.0) if shows_bars() else (60.0, 60.0)
    return tqdm(
        total=total,
        desc=name,
        unit=unit,
        unit_scale=unit == "B",
        mininterval=seconds,
        maxinterval=max(seconds, 10.0),
        delay=delay,
        smoothing=0.05,
        disable=not shown,
    )


def make_console(quiet: bool = False) -> Console:
    """A console on standard output without markup; a quiet one, for the other processes of a run, prints nothing."""
    console = Console(quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # tables in a log file must not be truncated
    return console


def make_table(title: str, first: str, *columns: str) -> Table:
    """A table without lines: a column of names headed ``first``, then right-aligned ``columns``."""
    table = Table(first, title=title, title_justify="left", box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="right")
    return table


def duration(seconds: float) -> str:
    """A readable duration: ``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    rounded = max(round(seconds), 0)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if rounded >= size:
            return f"{rounded // size} {unit} {rounded % size // smaller} {below}"
    return f"{rounded} s"
