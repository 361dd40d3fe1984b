"""GLUE from a data set in the layout of nyu-mll/glue: the same examples and results as from the TSV files."""

import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.examples import GlueData
from bert_convolutions.glue.reading import read_examples
from bert_convolutions.glue.run import run_glue
from bert_convolutions.glue.tasks import TASKS, Task, find_task, from_dataset
from tests.glue.helpers import arguments, options
from tests.helpers import same_weights

HUB_ORDER = {"MNLI": ["entailment", "neutral", "contradiction"]}
COLUMNS = {  # as nyu-mll/glue names them
    "mnli": ["premise", "hypothesis"],
    "ax": ["premise", "hypothesis"],
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "qqp": ["question1", "question2"],
    "qnli": ["question", "sentence"],
}


def write_split(folder: Path, configuration: str, split: str, examples, task: Task) -> None:
    columns = dict(zip(COLUMNS.get(configuration, ["sentence1", "sentence2"]), examples.texts, strict=True))
    labels = examples.labels or [-1] * len(examples)
    if examples.labels and task.labels:
        labels = [HUB_ORDER.get(task.name, list(task.labels)).index(task.labels[label]) for label in labels]
    table = pa.table({**columns, "label": labels, "idx": list(range(len(examples)))})
    (folder / configuration).mkdir(exist_ok=True)
    parquet.write_table(table, folder / configuration / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def hub_dir(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for task in TASKS:
        name = task.name.lower().replace("-", "")
        write_split(folder, name, "train", read_examples(glue_dir / task.train, task), task)
        for dev in task.dev:
            split = Path(dev.path).stem.replace("dev", "validation")
            write_split(folder, name, split, read_examples(glue_dir / dev.path, task), task)
        for test in task.tests:
            place = ("ax", "test") if test.name == "diagnostic" else (name, Path(test.path).stem)
            write_split(folder, *place, read_examples(glue_dir / test.path, task, test), task)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_data_set_has_the_examples_of_the_files(glue_dir: Path, hub_dir: Path, tokenizer, task: Task):
    of_files, of_hub = GlueData(glue_dir, 32), GlueData(None, 32)
    loaded = from_dataset(task, str(hub_dir))

    def content(encoded) -> tuple:
        return [encoded[i] for i in range(len(encoded))]

    train = of_hub.encoded(tokenizer, loaded, loaded.train)
    assert content(train) == content(of_files.encoded(tokenizer, task, task.train))
    for theirs, ours in zip(
        of_hub.dev(tokenizer, loaded).values(), of_files.dev(tokenizer, task).values(), strict=True
    ):
        assert content(theirs) == content(ours)
    for theirs, ours in zip(loaded.tests, task.tests, strict=True):
        found = of_hub.encoded(tokenizer, loaded, theirs.path, theirs)
        expected = of_files.encoded(tokenizer, task, ours.path, ours)
        assert (content(found), found.indices) == (content(expected), expected.indices)


def test_a_run_equals_one_on_files_and_is_refused_after_the_data_changed(
    tmp_path: Path, glue_dir: Path, hub_dir: Path, model_dir: Path, capsys
):
    flags = {"do_train": True, "do_eval": True, "do_predict": True}
    chosen = options(glue_dir, model_dir, data_dir=None, dataset=str(hub_dir))
    run_glue(options(glue_dir, model_dir), arguments(tmp_path / "files", **flags))
    run_glue(chosen, arguments(tmp_path / "hub", **flags))
    assert same_weights(tmp_path / "files", tmp_path / "hub")
    for name in ("eval_results_rte.txt", "test_results_rte.txt"):
        assert (tmp_path / "hub" / name).read_text() == (tmp_path / "files" / name).read_text()
    run_glue(chosen, arguments(tmp_path / "hub", **flags))
    assert "RTE: done before" in capsys.readouterr().out
    wnli = find_task("WNLI")
    write_split(hub_dir, "rte", "train", read_examples(glue_dir / wnli.train, wnli), wnli)
    with pytest.raises(UsageError, match="another training file"):
        run_glue(chosen, arguments(tmp_path / "hub", **flags))


def test_missing_data_are_named(tmp_path: Path, glue_dir: Path, hub_dir: Path, model_dir: Path, monkeypatch):
    def run(**changes) -> None:
        given = {"data_dir": None, "task_name": "RTE", **changes}
        run_glue(options(glue_dir, model_dir, **given), arguments(tmp_path / "out", do_train=True))

    with pytest.raises(UsageError, match=r"RTE needs --data_dir, the folder with its files, or --dataset nyu-mll/glue"):
        run()
    with pytest.raises(UsageError, match="both say where the data are"):
        run(data_dir=str(glue_dir), dataset=str(hub_dir))
    with pytest.raises(UsageError, match="--dataset has only GLUE's tasks, not WiC"):
        run(task_name="WiC", dataset=str(hub_dir))
    with pytest.raises(UsageError, match=r"--dataset nyu-mll/glue: rte/train can't be read"):
        run(dataset="nyu-mll/glue")  # offline
    (odd := tmp_path / "glue [1]").mkdir()
    with pytest.raises(UsageError, match=r"glue \[1\]: the package datasets can't read"):
        run(dataset=str(odd))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="datasets"):  # which the command rewrites
        run(dataset=str(hub_dir))
