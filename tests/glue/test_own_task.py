"""A task of the user's own from a YAML file: formats, kinds of labels, training, and refused mistakes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics import f1_score
from tokenizers.processors import TemplateProcessing

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.examples import encode_words, layout_for
from bert_convolutions.glue.models import load_pretrained
from bert_convolutions.glue.predict import METRICS, by_sentence, predict_logits
from bert_convolutions.glue.reading import Examples, read_examples
from bert_convolutions.glue.run import run_glue
from bert_convolutions.glue.tasks import Task, find_task, parse_tasks
from tests.glue.conftest import WORDS, make_tokenizer
from tests.glue.helpers import arguments, options

TAGS = ["O", "B-PER", "I-PER"]
SENTENCES = [[WORDS[(3 * i + j) % 40] for j in range(1 + i % 5)] for i in range(12)]
WORD_TAGS = [[TAGS[(i + j) % 3] for j in range(len(sentence))] for i, sentence in enumerate(SENTENCES)]
TEXTS = [" ".join(sentence) for sentence in SENTENCES]
CLASSES = ["no", "yes"]


def write_task(folder: Path, name: str, suffix: str, columns: str, rest: str) -> Path:
    """Write the YAML file of the task."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f"files: {{train: train{suffix}, dev: dev{suffix}, test: test{suffix}}}\ncolumns: {{{columns}}}\n{rest}\n"
    )
    return path


def classes(folder: Path, suffix: str) -> Path:
    rows = [{"id": i, "a": text, "b": f"{text} w1", "y": CLASSES[i % 2]} for i, text in enumerate(TEXTS)]
    for split in ("train", "dev", "test"):
        kept = [{key: row[key] for key in row if key != "y" or split != "test"} for row in rows]
        path = folder / f"{split}{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        elif suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist(kept), path)
        else:
            comma = "," if suffix == ".csv" else "\t"
            path.write_text("".join(comma.join(map(str, row)) + "\n" for row in [kept[0], *(r.values() for r in kept)]))
    return write_task(folder, "mine", suffix, "text: [a, b], label: y", "labels: [no, yes]\nmetric: matthews")


def words(folder: Path, suffix: str) -> Path:
    for split in ("train", "dev", "test"):
        path = folder / f"{split}{suffix}"
        rows = [{"tokens": s, "tags": t} for s, t in zip(SENTENCES, WORD_TAGS, strict=True)]
        if suffix in (".conll", ".tsv"):  # columns without names
            blocks = ["\n".join(f"{w} x\t{t}" for w, t in zip(*row.values(), strict=True)) for row in rows]
            path.write_text("-DOCSTART- -X- O\n\n" + "\n\n".join(blocks) + "\n")
        elif suffix == ".parquet":  # as on the Hub, with numbers for labels
            numbered = [{"tokens": row["tokens"], "tags": [TAGS.index(t) for t in row["tags"]]} for row in rows]
            parquet.write_table(pa.Table.from_pylist(numbered), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "tokens: 0, label: -1" if suffix in (".conll", ".tsv") else "tokens: tokens, label: tags"
    return write_task(folder, "names", suffix, columns, f"labels: {json.dumps(TAGS)}\nmetric: entity_f1")


def read(task: Task, split: str = "train") -> Examples:
    if split == "test":
        return read_examples(task.root / task.tests[0].path, task, task.tests[0])
    return read_examples(task.root / task.train, task)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_pairs_are_read_from_every_format(tmp_path: Path, suffix: str):
    task = find_task(str(classes(tmp_path, suffix)))
    examples = read(task)
    assert examples.texts == (TEXTS, [f"{text} w1" for text in TEXTS])
    assert examples.labels == [i % 2 for i in range(12)]
    assert (read(task, "test").labels, read(task, "test").indices) == (None, list(range(12)))


def test_the_development_file_can_be_the_test_file_too(tmp_path: Path, model_dir: Path):
    path = classes(tmp_path, ".csv")
    path.write_text(path.read_text().replace("test: test", "test: dev"))
    flags = {"do_train": True, "do_eval": True, "do_predict": True}
    run_glue(options(tmp_path, model_dir, str(path), data_dir=None), arguments(tmp_path / "out", **flags))
    assert len((tmp_path / "out" / "test_results_mine.txt").read_text().splitlines()) == 1 + len(TEXTS)


def test_other_files_that_the_task_names_later_are_scored_and_predicted(tmp_path: Path, model_dir: Path):
    path, out = classes(tmp_path, ".csv"), tmp_path / "out"
    (tmp_path / "new.csv").write_text("a,b,y\nw1,w2,no\n")
    first = options(tmp_path, model_dir, str(path), data_dir=None)
    run_glue(first, arguments(out, do_train=True, do_eval=True, do_predict=True))
    scores = (out / "eval_results_mine.txt").read_text()
    yaml = path.read_text().replace("dev: dev", "dev: new")
    for test, rows in (("new", 1), ("dev", len(TEXTS)), ("new", 1), ("test", len(TEXTS))):
        path.write_text(yaml.replace("test: test", f"test: {test}"))
        run_glue(first, arguments(out, do_eval=True, do_predict=True))
        assert len((out / "test_results_mine.txt").read_text().splitlines()) == 1 + rows
    assert (out / "eval_results_mine.txt").read_text() != scores


@pytest.mark.parametrize("suffix", [".conll", ".tsv", ".jsonl", ".parquet"])
def test_words_are_read_from_every_format(tmp_path: Path, suffix: str):
    examples = read(find_task(str(words(tmp_path, suffix))))
    assert examples.texts == (SENTENCES,)
    assert examples.labels == [[TAGS.index(tag) for tag in tags] for tags in WORD_TAGS]


def test_comments_ranges_and_empty_nodes_of_conllu_are_no_words(tmp_path: Path):
    (tmp_path / "train.conllu").write_text("# text = a b\n1-2\tab\t_\n1\ta c\tDET\n2\tb\tNOUN\n2.1\te\tX\n")
    task = find_task(
        str(write_task(tmp_path, "pos", ".conllu", "tokens: 1, label: 2", "labels: [DET, NOUN]\nmetric: accuracy"))
    )
    assert (read(task).texts, read(task).labels) == (([["a c", "b"]],), [[0, 1]])


def test_quotes_and_line_breaks_are_read_in_csv_and_kept_in_tsv(tmp_path: Path):
    (tmp_path / "train.csv").write_bytes(b'\xef\xbb\xbftext,y\r\n"one, ""two""\nthree",yes\r\nplain,no\r\n')
    (tmp_path / "train.tsv").write_text('text\ty\n"one\tyes\n')
    for suffix, texts in ((".csv", ['one, "two"\nthree', "plain"]), (".tsv", ['"one'])):
        rest = "labels: ['no', 'yes']\nmetric: accuracy"
        assert read(find_task(str(write_task(tmp_path, "q", suffix, "text: text, label: y", rest)))).texts == (texts,)


SUPERGLUE = {
    "BoolQ": (
        {"question": "is it w1", "passage": "w1 w2 -- w3", "idx": 0, "label": True},
        (["is it w1"], ["w1 w2 -- w3"]),
        1,
    ),
    "CB": ({"premise": "w1 w2", "hypothesis": "w3", "label": "neutral", "idx": 0}, (["w1 w2"], ["w3"]), 2),
    "WiC": (
        {"word": "w1", "sentence1": "a w1", "sentence2": "w1 b", "idx": 0, "label": False}
        | {"start1": 2, "start2": 0, "end1": 4, "end2": 2, "version": 1.1},
        (["w1 a w1"], ["w1 b"]),
        0,
    ),
}


@pytest.mark.parametrize("name", SUPERGLUE)
def test_superglue_is_read_from_its_own_files(tmp_path: Path, name: str, model_dir: Path):
    row, texts, label = SUPERGLUE[name]
    data = tmp_path / "data"
    (data / name).mkdir(parents=True)
    for split in ("train", "val", "test"):
        kept = {key: value for key, value in row.items() if split != "test" or key != "label"}
        (data / name / f"{split}.jsonl").write_text(3 * (json.dumps(kept) + "\n"))
    task = find_task(name.lower())
    examples = read_examples(data / task.train, task)
    assert (tuple(column[:1] for column in examples.texts), examples.labels) == (texts, [label] * 3)
    flags = {"do_train": True, "do_eval": True, "do_predict": True}
    run_glue(options(data, model_dir, name), arguments(tmp_path / "out", max_steps=1, **flags))
    assert task.dev[0].score in (tmp_path / "out" / f"eval_results_{name}.txt").read_text()
    predicted = (tmp_path / "out" / f"test_results_{name}.txt").read_text().splitlines()[1]
    assert predicted.split("\t")[1] in task.labels


def test_cb_is_scored_by_accuracy_and_macro_f1():
    labels, predictions = np.array([0, 0, 1, 2, 1]), np.array([0, 1, 1, 2, 1])
    f1 = f1_score(labels, predictions, average="macro")
    scores = METRICS["accuracy_and_macro_f1"](predictions, labels)
    assert scores["acc_and_f1"] == pytest.approx((0.8 + f1) / 2)


def test_entities_are_scored_whole():
    pytest.importorskip("seqeval")
    right = [["B-PER", "I-PER", "O"], ["B-PER"]]
    scores = METRICS["entity_f1"]([["B-PER", "O", "O"], ["B-PER"]], right)
    assert scores == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "acc": 0.75}


@pytest.mark.parametrize("kind, architecture", [("words", "composite_dir"), ("numbers", "model_dir")])
def test_a_task_is_trained_in_rounds_scored_and_predicted(
    tmp_path: Path, request, kind: str, architecture: str, capsys
):
    """A second run has nothing to do, and a changed task is refused."""
    if kind == "words":
        pytest.importorskip("seqeval")
        path, score, cells = words(tmp_path, ".conll"), "eval_f1", TAGS
    else:
        for split in ("train", "dev", "test"):
            lines = [json.dumps({"t": text, "y": 100.5 * i}) for i, text in enumerate(TEXTS)]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        path = write_task(tmp_path, "points", ".jsonl", "text: t, label: y", "metric: correlation")
        score, cells = "eval_corr", None
    chosen = options(tmp_path, request.getfixturevalue(architecture), str(path), rounds=2, data_dir=None)
    flags = {"do_train": True, "do_eval": True, "do_predict": True, "gradient_accumulation_steps": 2}
    run_glue(chosen, arguments(tmp_path / "out", **flags))
    printed = capsys.readouterr().out
    assert "mean" in printed and "electra" not in printed
    folder = tmp_path / "out" / f"{path.stem}1"
    assert score in (folder / f"eval_results_{path.stem}.txt").read_text()
    _, *rows = (folder / f"test_results_{path.stem}.txt").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == [str(i) for i in range(12)]
    if cells:
        predicted = [row.split("\t")[1].split(" ") for row in rows]
        assert [len(sentence) for sentence in predicted] == [len(sentence) for sentence in SENTENCES]
        assert {word for sentence in predicted for word in sentence} <= set(cells)
    run_glue(chosen, arguments(tmp_path / "out", **flags))
    assert f"{path.stem}1: done before" in capsys.readouterr().out
    path.write_text(path.read_text().replace("O", "X").replace("label: y", "label: z"))
    with pytest.raises(UsageError, match=r"was fine-tuned with (labels|columns)"):
        run_glue(chosen, arguments(tmp_path / "out", **flags))


def test_the_first_piece_of_a_word_has_its_label(tokenizer, glue_dir: Path):
    """A sentence that is too long continues in another example; a word without pieces becomes unknown."""
    examples = Examples(Path(), ([["w1-w2", "w3"], ["w4", " ", "w5"]],), [[1, 2], [0, 1, 2]], None)
    encoded = encode_words(tokenizer, examples, max_seq_length=5)
    tokens = [tokenizer.convert_ids_to_tokens(encoded[i]["input_ids"]) for i in range(len(encoded))]
    assert tokens == [
        ["[CLS]", "w1", "[UNK]", "w2", "[SEP]"],
        ["[CLS]", "w3", "[SEP]"],
        ["[CLS]", "w4", "[UNK]", "w5", "[SEP]"],
    ]
    assert [encoded[i]["labels"] for i in range(3)] == [
        [-100, 1, -100, -100, -100],
        [-100, 2, -100],
        [-100, 0, 1, 2, -100],
    ]
    assert encoded.targets.tolist() == [1, 2, 0, 1, 2]
    assert by_sentence(list("abcde"), encoded.sentence_lengths) == [["a", "b"], ["c", "d", "e"]]


def test_words_are_placed_where_the_tokenizer_places_a_text():
    """For example before all special tokens, as by XLNet's."""
    tokenizer = make_tokenizer()
    names = [("[SEP]", 3), ("[CLS]", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A [SEP] [CLS]", None, names)
    encoded = encode_words(tokenizer, Examples(Path(), ([["w1", "w2"]],), [[1, 2]], None), max_seq_length=8)
    assert encoded[0]["input_ids"] == tokenizer("w1 w2")["input_ids"]
    assert encoded[0]["labels"] == [1, 2, -100, -100]


@pytest.mark.parametrize("architecture", ["model_dir", "composite_dir"])
def test_logits_of_words_are_in_the_order_of_the_file(tmp_path: Path, request, tokenizer, architecture: str):
    task = find_task(str(words(tmp_path, ".jsonl")))
    model = load_pretrained(request.getfixturevalue(architecture), task).eval()
    encoded = encode_words(tokenizer, read(task), max_seq_length=32)
    layout = layout_for(model, tokenizer, per_token=True)
    logits = predict_logits(model, encoded, layout, arguments(tmp_path, per_device_eval_batch_size=2))
    expected = []
    for sentence in SENTENCES:
        inputs = tokenizer(" ".join(sentence), return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**inputs).logits[0, 1:-1].numpy())
    np.testing.assert_allclose(logits, np.concatenate(expected), atol=1e-6)


YAML = "files: {train: t.jsonl, dev: t.jsonl}\ncolumns: {text: a, label: y}\nlabels: [x, z]\nmetric: accuracy\n"
BAD_YAML = {
    "no file": (None, "can't be read: No such file"),
    "no yaml": ("files: [", "is not YAML"),
    "a list": ("- 1", "valid dictionary"),
    "unknown key": (YAML + "lables: [a]\n", "lables: Extra inputs are not permitted"),
    "no dev": (YAML.replace(", dev: t.jsonl", ""), "files.dev: Field required"),
    "no label": (YAML.replace(", label: y", ""), "columns.label: Field required"),
    "metric": (YAML.replace("accuracy", "acuracy"), "metric: Input should be 'accuracy'"),
    "truth values": (YAML.replace("x, z", "true, false"), "labels.0: YAML reads it as a truth value, here True"),
    "twice": (YAML.replace("x, z", "x, x"), "labels: a label occurs twice"),
    "one label": (YAML.replace("x, z", "x"), "labels: give at least two"),
    "neither": (YAML.replace("text: a, ", ""), "columns: give text or tokens"),
    "both": (YAML.replace("text: a", "text: a, tokens: b"), "columns: give text or tokens"),
    "three texts": (YAML.replace("text: a", "text: [a, b, c]"), "columns.text: .* at most 2"),
    "numbers": (YAML.replace("labels: [x, z]\n", ""), "metric: numbers .a task without labels. need correlation"),
    "entities": (YAML.replace("accuracy", "entity_f1"), "metric: entity_f1 is for tokens"),
    "f1": (
        YAML.replace("accuracy", "accuracy_and_f1").replace("x, z", "x, y, z"),
        "metric: accuracy_and_f1 is for",
    ),
    "a name of GLUE's": (YAML + "name: rte\n", "name: rte is the name of another task"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_a_mistake_in_the_yaml_file_is_refused_with_its_key(tmp_path: Path, case: str):
    content, message = BAD_YAML[case]
    if content is not None:
        (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UsageError, match=rf"--task_name .*mine\.yaml.*{message}"):
        find_task(str(tmp_path / "mine.yaml"))


BAD_ROWS = {
    "json": ('{"a": "w1", "y": "x"}\n{', r"t\.jsonl, line 2: not valid JSON"),
    "no object": ("[1]", r"t\.jsonl, line 1: \[1\] is not an object"),
    "no column": ('{"b": "w1", "y": "x"}', r"t\.jsonl, line 1: there is no column 'a'; there are b, y"),
    "no text": ('{"a": 3, "y": "x"}', r"t\.jsonl, line 1: column 'a' has 3, which is not text"),
    "label": ('{"a": "w1", "y": "q"}', r"t\.jsonl, line 1: unknown label 'q'; mine has x, z"),
    "number": ('{"a": "w1", "y": 2}', r"t\.jsonl, line 1: unknown label '2'"),
    "half a character": (r'{"a": "w1 \ud83d", "y": "x"}', r"t\.jsonl, line 1: not valid JSON .*surrogates"),
    "nothing": ("\n", r"t\.jsonl: the file has no examples"),
}


@pytest.mark.parametrize(
    ("labels", "value", "word"), [([1, 2, 3], 0, "0"), ([-1, 0, 1], 2, "2"), (["None", "x"], None, "")]
)
def test_numbers_outside_labels_that_are_numbers_are_refused(
    tmp_path: Path, labels: list[object], value: object, word: str
):
    """Otherwise 0, 1, 2 would be read as 1, 1, 2 where the labels are 1, 2, 3."""
    path = write_task(tmp_path, "q", ".jsonl", "text: a, label: y", f"labels: {json.dumps(labels)}\nmetric: accuracy")
    (tmp_path / "train.jsonl").write_text(json.dumps({"a": "w1", "y": value}))
    with pytest.raises(UsageError, match=f"line 1: unknown label {word!r}"):
        read(find_task(str(path)))


@pytest.mark.parametrize("words", [False, True])
def test_numbers_of_classes_are_read_by_the_names_noted_in_parquet(tmp_path: Path, words: bool):
    label = {"names": ["yes", "no"], "_type": "ClassLabel"}
    feature = {"feature": label, "_type": "List"} if words else label
    rows = {"a": [["w1"], ["w2"]], "y": [[0], [1]]} if words else {"a": ["w1", "w2"], "y": [0, 1]}
    noted = {"huggingface": json.dumps({"info": {"features": {"y": feature}}})}
    parquet.write_table(pa.table(rows).replace_schema_metadata(noted), tmp_path / "train.parquet")
    columns = f"{'tokens' if words else 'text'}: a, label: y"
    path = write_task(tmp_path, "q", ".parquet", columns, "labels: ['no', 'yes']\nmetric: accuracy")
    assert read(find_task(str(path))).labels == ([[1], [0]] if words else [1, 0])


def test_a_damaged_parquet_file_and_a_column_given_twice_are_refused(tmp_path: Path):
    table = pa.table({"text": pa.array([b"caf\xe9"]).view(pa.string()), "y": ["no"]})
    parquet.write_table(table, tmp_path / "train.parquet")
    (tmp_path / "train.csv").write_text("text,text,y\na,b,no\n")
    for suffix, message in ((".parquet", "not a whole parquet file"), (".csv", "a name twice: text, text, y")):
        rest = "labels: ['no', 'yes']\nmetric: accuracy"
        with pytest.raises(UsageError, match=message):
            read(find_task(str(write_task(tmp_path, "q", suffix, "text: text, label: y", rest))))


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_mistake_in_a_row_is_refused_with_its_line(tmp_path: Path, model_dir: Path, case: str):
    content, message = BAD_ROWS[case]
    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "t.jsonl").write_text(content)
    chosen = options(tmp_path, model_dir, str(tmp_path / "mine.yaml"), data_dir=None)
    with pytest.raises(UsageError, match=message):
        run_glue(chosen, arguments(tmp_path / "out", do_train=True))
    assert not (tmp_path / "out" / "glue_state.json").exists()


def test_overlapping_outputs_and_missing_hyperparameters_and_test_files_are_refused(tmp_path: Path, model_dir: Path):
    path = str(classes(tmp_path, ".csv"))
    with pytest.raises(UsageError, match=r"--output_dir .* holds the input mine: files:"):
        run_glue(options(tmp_path, model_dir, path, data_dir=None), arguments(tmp_path, do_train=True))
    chosen = options(tmp_path, model_dir, path, data_dir=None, hyperparams="electra")
    with pytest.raises(UsageError, match="--hyperparams electra lacks mine"):
        run_glue(chosen, arguments(tmp_path / "out", do_train=True))
    (tmp_path / "untested.yaml").write_text(Path(path).read_text().replace(", test: test.csv", ""))
    chosen = options(tmp_path, model_dir, str(tmp_path / "untested.yaml"), data_dir=None)
    with pytest.raises(UsageError, match=r"--do_predict: the \.yaml file of untested names no test file"):
        run_glue(chosen, arguments(tmp_path / "out", do_train=True, do_predict=True))
    (tmp_path / "hyper.yaml").write_text("mine: {learning_rate: 1e-3, batch_size: 4, steps: 1}")
    chosen = options(tmp_path, model_dir, path, data_dir=None, hyperparams=str(tmp_path / "hyper.yaml"))
    run_glue(chosen, arguments(tmp_path / "out", do_train=True))


def test_tasks_of_files_follow_those_of_glue_and_must_have_different_names(tmp_path: Path):
    path = classes(tmp_path, ".csv")
    assert [task.name for task in parse_tasks(f"{path},WiC,RTE,CoLA")] == ["CoLA", "RTE", "mine", "WiC"]
    (tmp_path / "b.yaml").write_text(path.read_text() + "name: mine\n")
    (tmp_path / "b.yaml").write_text((tmp_path / "b.yaml").read_text().replace("text: [a, b]", "text: a"))
    with pytest.raises(UsageError, match="two tasks are called mine"):
        parse_tasks(f"{path},{tmp_path / 'b.yaml'}")
    (tmp_path / "b.yaml").write_text(path.read_text() + "name: MINE\n")  # the same folder on disks that ignore case
    with pytest.raises(UsageError, match="two tasks are called MINE"):
        parse_tasks(f"{path},{tmp_path / 'b.yaml'}")
