"""Loss curves, kernels and tables from the files of runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from safetensors.numpy import save_file
from torch import Tensor

from bert_convolutions.attention.terms import TERMS, Term
from bert_convolutions.errors import UsageError
from bert_convolutions.report.kernels import plot_kernels, read_kernels
from bert_convolutions.report.runs import comparison_table, plot_loss_curves, read_losses
from bert_convolutions.report.style import line_colors, name_lines

REACH, HEADS, HEAD_SIZE = 3, 2, 4


def write_state(folder: Path, last_loss: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = [
        {"step": 5, "loss": 7.5, "learning_rate": 1e-3},
        {"step": 10, "loss": last_loss},
        {"step": 10, "eval_loss": 6.0, "eval_runtime": 1.0},
        {"step": 10, "train_runtime": 3.0, "train_loss": 7.0},
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return folder


def write_model(folder: Path, layers: int = 2, terms: tuple[str, ...] = ("convfixed", "convq", "convk")) -> Path:
    shapes = {
        "convfixed": (1, HEADS, 1, 2 * REACH + 1),
        "convq": (HEAD_SIZE, 2 * REACH + 1),
        "convk": (HEAD_SIZE, 2 * REACH + 1),
    }
    tensors = {"bert.embeddings.word_embeddings.weight": np.zeros((2, 2), np.float32)}
    for layer in range(layers):
        for term in terms:
            values = np.full(shapes[term], layer, np.float32)
            tensors[f"bert.encoder.layer.{layer}.attention.self.{term}_param"] = values
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"attention_kernel": "qk_convfixed_convq_convk 3"}))
    return folder


def assert_png(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert path.stat().st_size > 5000
    assert not list(path.parent.glob("*.tmp"))


def test_losses_of_a_finished_run_are_read(tmp_path: Path) -> None:
    assert read_losses(write_state(tmp_path / "run", 6.5)) == ([(5, 7.5), (10, 6.5)], [(10, 6.0)])


def test_losses_of_an_unfinished_run_are_those_of_its_newest_checkpoint(tmp_path: Path) -> None:
    write_state(tmp_path / "checkpoint-9", 6.5)
    write_state(tmp_path / "checkpoint-10", 5.5)
    (tmp_path / "checkpoint-11").mkdir()
    assert read_losses(tmp_path)[0][-1] == (10, 5.5)


def test_losses_of_a_folder_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the output folder of a training run"):
        read_losses(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_hist')
    with pytest.raises(UsageError, match=r"trainer_state\.json is not a trainer state"):
        read_losses(tmp_path)


def test_loss_curves_are_drawn(tmp_path: Path) -> None:
    runs = {name: write_state(tmp_path / name, loss) for name, loss in (("one", 6.5), ("two", 5.5))}
    plot_loss_curves(runs, tmp_path / "plots" / "curves.png")
    assert_png(tmp_path / "plots" / "curves.png")


@pytest.mark.parametrize("lines", [7, 8, 40])
def test_a_long_legend_leaves_the_axes_their_height(lines: int) -> None:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for number in range(lines):
        axes.plot([0, 1], [number, 0], label=f"variant {number}")
    name_lines(figure)
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    assert 2 * figure.dpi < box.height < 3 * figure.dpi
    (legend,) = [*figure.legends, axes.get_legend()][:1]
    found = legend.get_window_extent()
    assert found.y0 > 0 and found.y1 < (box.y1 if lines == 7 else box.y0)


def test_kernels_are_read_by_layer(tmp_path: Path) -> None:
    kernels = read_kernels(write_model(tmp_path / "model", layers=11))["convq"]
    assert list(kernels) == list(range(11))
    assert all((kernel == layer).all() and kernel.shape == (HEAD_SIZE, 7) for layer, kernel in kernels.items())


@pytest.mark.parametrize(
    "terms", [("convfixed", "convq", "convk"), ("convfixed",), ("convq",), ("convk",), ("convfixed", "convk")]
)
def test_kernels_are_drawn(tmp_path: Path, terms: tuple[str, ...]) -> None:
    assert plot_kernels(write_model(tmp_path / "model", layers=5, terms=terms), tmp_path / "kernels.png", "a $model$")
    assert_png(tmp_path / "kernels.png")


def test_a_new_term_is_drawn_by_its_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(heads: int, head_size: int, width: int) -> tuple[int, ...]:
        return 1, heads, 1, width // 2 + 1

    def mirror(parameter: Tensor) -> Tensor:
        return torch.cat([parameter.flip(-1), 1 + parameter[..., 1:]], dim=-1)

    monkeypatch.setitem(TERMS, "mirrored", Term("key", dynamic=False, shape=shape, initial="zeros", kernel=mirror))
    tensors = {"bert.encoder.layer.0.attention.self.mirrored_param": np.arange(8, dtype=np.float32).reshape(1, 2, 1, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    kernel = read_kernels(tmp_path)["mirrored"][0]
    assert kernel.tolist() == [[4, 3, 2, 0, 1, 2, 3], [8, 7, 6, 4, 5, 6, 7]], "over key minus query"
    assert plot_kernels(tmp_path, tmp_path / "kernels.png", "a $model$")
    assert_png(tmp_path / "kernels.png")


def test_a_model_without_kernels_has_no_plot(tmp_path: Path) -> None:
    assert not plot_kernels(write_model(tmp_path / "model", terms=()), tmp_path / "kernels.png", "a $model$")
    assert not (tmp_path / "kernels.png").exists()


def test_kernels_of_a_folder_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the output folder of a finished run"):
        plot_kernels(tmp_path, tmp_path / "kernels.png", "a $model$")
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(UsageError, match="can't be read"):
        plot_kernels(tmp_path, tmp_path / "kernels.png", "a $model$")


def test_colors_are_distinct() -> None:
    for count in (1, 7, 12):
        assert len(set(line_colors(count))) == count


def test_the_table_compares_finished_runs(tmp_path: Path) -> None:
    runs = {}
    for name, loss in (("one", 6.5), ("two", 5.5)):
        runs[name] = tmp_path / name
        runs[name].mkdir()
        figures = {"eval_loss": loss, "eval_perplexity": 99.5, "eval_masked_accuracy": 0.125}
        (runs[name] / "eval_results.json").write_text(json.dumps(figures))
        (runs[name] / "train_results.json").write_text(json.dumps({"steps": 7, "real_tokens_per_second": 1234.5}))
    console = Console(width=120)
    with console.capture() as printed:
        console.print(comparison_table(runs, "Losses"))
    assert [line.split() for line in printed.get().splitlines()[2:]] == [
        ["one", "7", "6.500", "99.5", "12.5%", "1,234"],
        ["two", "7", "5.500", "99.5", "12.5%", "1,234"],
    ]
    (runs["two"] / "eval_results.json").unlink()
    with pytest.raises(UsageError, match="to the end"):
        comparison_table(runs, "Losses")
