"""Exports a model as a graph for other programs, ONNX or ``torch.export``, for any batch size and length.

The graph's inputs are ``input_ids``, ``attention_mask`` (zeros and ones: one example per row) and ``token_type_ids``,
int64 (B, S), or (B, C, S) for multiple choice; its outputs have the model's names. The written graph is run at other
sizes than those it was traced with, and compared with the model.

Legend: B rows, S sequence, C choices.
"""

import contextlib
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from bert_convolutions.data.build.sources import find_sources, text_lines
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.errors import CommandError, UsageError
from bert_convolutions.export.hub import copy_tokenizer, load_model
from bert_convolutions.export.options import ExportOptions
from bert_convolutions.terminal import make_console, make_table

ONNX_FILE, INT8_FILE, TORCH_FILE = "model.onnx", "model_int8.onnx", "model.pt2"
TOLERANCE = 1e-4
"""Absolute and relative tolerance for each output."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TIMED_ROWS, _TIMED_LENGTH = 16, 128

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Maps inputs by name to outputs by name."""


class _Graph(nn.Module):
    """Wraps a model to return its outputs by name, without a loss."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> dict[str, Tensor]:
        """Run the model on inputs (B, S) or (B, C, S); the mask is boolean, as a row is one example."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask.bool(), token_type_ids=token_type_ids, return_dict=True
        )
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def write_torch(options: ExportOptions, folder: Path) -> None:
    """Write ``model.pt2``, for ``torch.export.load(path).module()``, with configuration and tokenizer.

    Raises:
        UsageError: the model can't be read.
        CommandError: the graph's outputs differ from the model's.
    """
    model = _prepare(options, folder)
    torch.export.save(export(model), folder / TORCH_FILE)
    check(model, torch_run(folder / TORCH_FILE), TORCH_FILE)


def write_onnx(options: ExportOptions, folder: Path) -> None:
    """Write ``model.onnx`` and, with ``--quantize``, ``model_int8.onnx``; print the latter's error, size and speed.

    Raises:
        UsageError: the model or the text can't be read.
        CommandError: the graph's outputs differ from the model's.
    """
    import onnxruntime  # noqa: F401  fail before the work if it is missing
    import onnxscript  # noqa: F401

    model = _prepare(options, folder)
    batch = _batch(model, options)  # early, as the text may be missing
    save_onnx(model, export(model), folder / ONNX_FILE)
    check(model, onnx_run(folder / ONNX_FILE), ONNX_FILE)
    if options.quantize:
        save_int8(folder / ONNX_FILE, folder / INT8_FILE)
        _report_int8(model, folder, batch)


def save_onnx(model: PreTrainedModel, program: torch.export.ExportedProgram, path: Path) -> None:
    """Write the result of ``export`` as ONNX; weights above 2 GB go to a separate file."""
    names = list(torch_outputs(model, example_inputs(model, 2, 5)))
    with _quiet_exporters():
        converted = torch.onnx.export(program, verbose=False, output_names=names, dynamic_shapes=_dynamic_shapes(model))
    assert converted is not None
    converted.save(path)


def save_int8(source: Path, path: Path) -> None:
    """Write a copy of an ONNX file with int8 weights in matrix products."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    del graph.graph.value_info[:]  # int8 transposes some intermediate shapes
    with _quiet_exporters():
        quantize_dynamic(graph, path, weight_type=QuantType.QInt8)


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Suppress irrelevant warnings of the exporters, such as a missing torchvision or a repeated name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _prepare(options: ExportOptions, folder: Path) -> PreTrainedModel:
    """The model in float32 for inference; also write its configuration and tokenizer to ``folder``."""
    model = load_model(options.model_name_or_path).eval().float()  # lower precisions are rounded differently
    model.config.save_pretrained(folder)
    copy_tokenizer(options.model_name_or_path, folder)
    return model


def export(model: PreTrainedModel) -> torch.export.ExportedProgram:
    """The graph of a model, for any batch size and any length that the model supports."""
    inputs = example_inputs(model, 3, 7)
    with torch.no_grad():
        program = torch.export.export(_Graph(model), (), inputs, dynamic_shapes=_dynamic_shapes(model), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, with the user's name, which both formats would keep
    return program


def _dynamic_shapes(model: PreTrainedModel) -> dict[str, dict[int, Any]]:
    """The dynamic dimensions of the inputs, which are all of them."""
    longest = None if model.config.remove_position_embeddings else model.config.max_position_embeddings
    free = torch.export.Dim
    length, batch, choices = free("length", max=longest), free("batch"), free("choices")
    sizes = (batch, choices, length) if _is_multiple_choice(model) else (batch, length)
    return {name: dict(enumerate(sizes)) for name in _INPUTS}


def _is_multiple_choice(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith("ForMultipleChoice")


def example_inputs(model: PreTrainedModel, rows: int, length: int) -> dict[str, Tensor]:
    """Random tokens in rows of different lengths, the first without padding; two choices for multiple choice.

    Returns:
        ``input_ids``, ``attention_mask`` and ``token_type_ids``, each (B, S) or (B, 2, S).
    """
    config = model.config
    choices = 2 if _is_multiple_choice(model) else 1
    random = torch.Generator().manual_seed(rows * 1000 + length)
    ids = torch.randint(config.vocab_size, (rows * choices, length), generator=random)
    real = torch.randint(1, length + 1, (rows * choices, 1), generator=random)
    real[0] = length
    mask = (torch.arange(length) < real).long()
    types = (torch.arange(length) >= real // 2).long() * mask * (config.type_vocab_size > 1)
    shape = (rows, choices, length) if _is_multiple_choice(model) else (rows, length)
    return {name: value.reshape(shape) for name, value in zip(_INPUTS, (ids, mask, types), strict=True)}


def check(model: PreTrainedModel, run: Run, name: str) -> None:
    """Compare with the model at sizes that the graph was not traced with, such as one token, one row, the maximum.

    Raises:
        CommandError: an output differs by more than ``TOLERANCE``.
    """
    longest = 150 if model.config.remove_position_embeddings else model.config.max_position_embeddings
    for rows, length in ((1, 1), (1, 12), (5, 4), (2, min(longest, 150))):
        batch = example_inputs(model, rows, min(length, longest))
        expected, found = torch_outputs(model, batch), run(batch)
        for output, value in expected.items():
            if not torch.allclose(found[output], value, atol=TOLERANCE, rtol=TOLERANCE):
                off = (found[output] - value).abs().max().item()
                raise CommandError(
                    f"error: {name}: {output} differs from the model's by {off:.2g} in {rows} rows of {length} tokens; "
                    "nothing was written; try other versions of torch and onnx: bertconv doctor"
                )


@torch.no_grad()
def torch_outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own outputs for inputs by name."""
    return _Graph(model)(**batch)


def torch_run(path: Path) -> Run:
    """Load a file of ``torch.export`` for PyTorch."""
    module = torch.export.load(path).module()
    return lambda batch: module(**batch)


def onnx_run(path: Path) -> Run:
    """Load an ONNX file for onnxruntime, with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = session.run(names, {name: value.numpy() for name, value in batch.items()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def _batch(model: PreTrainedModel, options: ExportOptions) -> dict[str, Tensor]:
    """The batch for measuring int8: the first lines of ``--text``, or random tokens."""
    longest = _TIMED_LENGTH
    if not model.config.remove_position_embeddings:
        longest = min(longest, model.config.max_position_embeddings)
    batch = example_inputs(model, _TIMED_ROWS, longest)
    if options.text is None or batch["input_ids"].dim() > 2:
        return batch
    lines = list(itertools.islice(text_lines(find_sources([str(options.text)])), _TIMED_ROWS))
    if not lines:
        raise UsageError(f"--text {options.text} has no line of text")
    encoded = load_tokenizer(options.model_name_or_path)(
        lines, truncation=True, max_length=longest, padding=True, return_tensors="pt"
    )
    return {name: encoded.get(name, torch.zeros_like(encoded["input_ids"])) for name in _INPUTS}


def _report_int8(model: PreTrainedModel, folder: Path, batch: dict[str, Tensor]) -> None:
    """Print size and speed of the three formats, and the error of int8's first output."""
    runs: dict[str, tuple[Path | None, Run]] = {
        "PyTorch": (None, lambda inputs: torch_outputs(model, inputs)),
        "onnxruntime": (folder / ONNX_FILE, onnx_run(folder / ONNX_FILE)),
        "onnxruntime, int8": (folder / INT8_FILE, onnx_run(folder / INT8_FILE)),
    }
    rows, length = batch["input_ids"].shape[0], batch["input_ids"].shape[-1]
    table = make_table(f"{rows} rows of {length} tokens, threads: {torch.get_num_threads()}", "", "MB", "ms", "speed")
    times = {name: _milliseconds(run, batch) for name, (_, run) in runs.items()}
    for name, (path, _) in runs.items():
        size = "" if path is None else f"{path.stat().st_size / 1e6:,.1f}"
        table.add_row(name, size, f"{times[name]:,.1f}", f"{times['PyTorch'] / times[name]:.2f} x")
    console = make_console()
    console.print(table)
    console.print(Text(difference(runs["PyTorch"][1](batch), runs["onnxruntime, int8"][1](batch), batch)))


def _milliseconds(run: Run, batch: Mapping[str, Tensor]) -> float:
    """Median time over about a second of runs."""
    timer = Timer("run(batch)", globals={"run": run, "batch": batch}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=1).median


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], batch: Mapping[str, Any]) -> str:
    """One sentence on the error of the first output, without padding."""
    name, exact = next(iter(expected.items()))
    inexact, mask = found[name], batch["attention_mask"].bool()
    if name == "start_logits":  # over tokens without padding
        exact, inexact = (value.masked_fill(~mask, float("-inf")) for value in (exact, inexact))
    best, same_best = exact.argmax(-1), exact.argmax(-1) == inexact.argmax(-1)
    if best.shape == mask.shape:  # an output per token
        exact, inexact, same_best = exact[mask], inexact[mask], same_best[mask]
    real = exact.isfinite()
    off = (inexact - exact)[real].abs()
    spread = exact[real].std()
    text = f"int8: {name} differ by {off.mean():.4f} on average, {off.max():.4f} at most (deviation {spread:.4f})"
    if "logits" in name and exact.shape[-1] > 1:
        text += f"; the most probable is the same in {100 * same_best.float().mean():.1f} %"
    return text
