"""A model as a graph for programs that know nothing of it: ONNX, or ``torch.export``; any batch, any length.

The graph takes ``input_ids``, ``attention_mask`` (zeros and ones: one example a row) and ``token_type_ids``, int64,
each (B, S), of multiple choice (B, C, S); its outputs have the names that the model gives them. What is written is run
at other sizes than it was made with, and compared with the model.

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
"""Of each output, absolute, and relative where it is larger than 1."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TIMED_ROWS, _TIMED_LENGTH = 16, 128

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Inputs by name to outputs by name."""


class _Graph(nn.Module):
    """What is exported of a model: its outputs by name, without a loss."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> dict[str, Tensor]:
        """Each input (B, S) or (B, C, S); a boolean mask says that a row is one example."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask.bool(), token_type_ids=token_type_ids, return_dict=True
        )
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def write_torch(options: ExportOptions, folder: Path) -> None:
    """Write ``model.pt2``, which ``torch.export.load(path).module()`` runs, and what belongs to it.

    Raises:
        UsageError: the model can't be read.
        CommandError: the graph computes something else.
    """
    model = _prepare(options, folder)
    torch.export.save(export(model), folder / TORCH_FILE)
    check(model, torch_run(folder / TORCH_FILE), TORCH_FILE)


def write_onnx(options: ExportOptions, folder: Path) -> None:
    """Write ``model.onnx`` and, with ``--quantize``, ``model_int8.onnx``; print what that loses and gains.

    Raises:
        UsageError: the model or the text can't be read.
        CommandError: the graph computes something else.
    """
    import onnxruntime  # noqa: F401  asked for before the work
    import onnxscript  # noqa: F401

    model = _prepare(options, folder)
    batch = _batch(model, options)  # whose text may be missing, so before the work
    save_onnx(model, export(model), folder / ONNX_FILE)
    check(model, onnx_run(folder / ONNX_FILE), ONNX_FILE)
    if options.quantize:
        save_int8(folder / ONNX_FILE, folder / INT8_FILE)
        _say_what_int8_does(model, folder, batch)


def save_onnx(model: PreTrainedModel, program: torch.export.ExportedProgram, path: Path) -> None:
    """Write what ``export`` made of a model as ONNX; weights above 2 GB lie in a file beside it."""
    names = list(torch_outputs(model, example_inputs(model, 2, 5)))
    with _without_advice():
        converted = torch.onnx.export(program, verbose=False, output_names=names, dynamic_shapes=_sizes(model))
    assert converted is not None
    converted.save(path)


def save_int8(source: Path, path: Path) -> None:
    """Write an ONNX file again with the weights of its matrix products in int8."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    del graph.graph.value_info[:]  # shapes between the inputs and the outputs, some of which int8 turns around
    with _without_advice():
        quantize_dynamic(graph, path, weight_type=QuantType.QInt8)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep off the terminal what exporters say of their own ways: a missing torchvision, a name that is given twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _prepare(options: ExportOptions, folder: Path) -> PreTrainedModel:
    """The model in float32, for inference; its configuration and its tokenizer are written beside what it becomes."""
    model = load_model(options.model_name_or_path).eval().float()  # of fewer bits, a graph rounds otherwise
    model.config.save_pretrained(folder)
    copy_tokenizer(options.model_name_or_path, folder)
    return model


def export(model: PreTrainedModel) -> torch.export.ExportedProgram:
    """The graph of a model, for any batch and any length that the model takes."""
    given = example_inputs(model, 3, 7)
    with torch.no_grad():
        return torch.export.export(_Graph(model), (), given, dynamic_shapes=_sizes(model), strict=False)


def _sizes(model: PreTrainedModel) -> dict[str, dict[int, Any]]:
    """Which dimensions of the inputs are free: all."""
    longest = None if model.config.remove_position_embeddings else model.config.max_position_embeddings
    free = torch.export.Dim
    length, batch, choices = free("length", max=longest), free("batch"), free("choices")
    sizes = (batch, choices, length) if _chooses(model) else (batch, length)
    return {name: dict(enumerate(sizes)) for name in _INPUTS}


def _chooses(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith("ForMultipleChoice")


def example_inputs(model: PreTrainedModel, rows: int, length: int) -> dict[str, Tensor]:
    """Random tokens in rows of different lengths, the first of them whole; of multiple choice, two choices each.

    Returns:
        ``input_ids``, ``attention_mask`` and ``token_type_ids``, each (B, S) or (B, 2, S).
    """
    config = model.config
    choices = 2 if _chooses(model) else 1
    random = torch.Generator().manual_seed(rows * 1000 + length)
    ids = torch.randint(config.vocab_size, (rows * choices, length), generator=random)
    real = torch.randint(1, length + 1, (rows * choices, 1), generator=random)
    real[0] = length
    mask = (torch.arange(length) < real).long()
    types = (torch.arange(length) >= real // 2).long() * mask * (config.type_vocab_size > 1)
    shape = (rows, choices, length) if _chooses(model) else (rows, length)
    return {name: value.reshape(shape) for name, value in zip(_INPUTS, (ids, mask, types), strict=True)}


def check(model: PreTrainedModel, run: Run, name: str) -> None:
    """Compare with the model at sizes that the graph was not made with: one token, one row, the longest.

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
                    f"error: {name}: {output} is {off:.2g} from the model's for {rows} rows of {length} tokens, so "
                    "nothing is kept; try other versions of torch and onnx: bertconv doctor"
                )


@torch.no_grad()
def torch_outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model itself gives for inputs by name."""
    return _Graph(model)(**batch)


def torch_run(path: Path) -> Run:
    """A file of ``torch.export``, run by PyTorch."""
    module = torch.export.load(path).module()
    return lambda batch: module(**batch)


def onnx_run(path: Path) -> Run:
    """An ONNX file under onnxruntime, on as many threads as PyTorch has."""
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
    """What int8 is measured on: the first lines of ``--text``, or random tokens."""
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


def _say_what_int8_does(model: PreTrainedModel, folder: Path, batch: dict[str, Tensor]) -> None:
    """Print size and speed of the three, and how far int8's first output is from the model's."""
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
    """Median of the runs of about a second."""
    timer = Timer("run(batch)", globals={"run": run, "batch": batch}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=1).median


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], batch: Mapping[str, Any]) -> str:
    """One sentence on how far the first output is from what is expected, padding left out."""
    name, exact = next(iter(expected.items()))
    inexact, mask = found[name], batch["attention_mask"].bool()
    if name == "start_logits":  # over the tokens, of which padding is none
        exact, inexact = (value.masked_fill(~mask, float("-inf")) for value in (exact, inexact))
    best, same_best = exact.argmax(-1), exact.argmax(-1) == inexact.argmax(-1)
    if best.shape == mask.shape:  # an output for each token
        exact, inexact, same_best = exact[mask], inexact[mask], same_best[mask]
    real = exact.isfinite()
    off = (inexact - exact)[real].abs()
    spread = exact[real].std()
    text = f"int8: {name} differ by {off.mean():.4f} on average, {off.max():.4f} at most (deviation {spread:.4f})"
    if "logits" in name and exact.shape[-1] > 1:
        text += f"; the likeliest is the same in {100 * same_best.float().mean():.1f} %"
    return text
