"""GLUE's files are read as rows written by hand, and bad files are refused."""

import gzip
import logging
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.reading import read_examples
from bert_convolutions.glue.tasks import TASKS, all_test_sets, find_task

RTE, COLA, STSB, QQP, MRPC = (find_task(name) for name in ("RTE", "CoLA", "STS-B", "QQP", "MRPC"))
RTE_HEADER = "index\tsentence1\tsentence2\tlabel\n"
QQP_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def write(folder: Path, path: str, content: str | bytes) -> Path:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    return target


def test_all_files_of_the_layout_are_read(glue_dir: Path):
    for task in TASKS:
        assert len(read_examples(glue_dir / task.train, task)) == 24
        assert [len(read_examples(glue_dir / dev.path, task)) for dev in task.dev] == [10] * len(task.dev)
    for task, test in all_test_sets():
        assert read_examples(glue_dir / test.path, task, test).indices == list(range(7))


def test_cola_has_no_header_and_its_test_file_has(tmp_path: Path):
    write(tmp_path, "CoLA/train.tsv", "gj04\t1\t\tA b.\ngj04\t0\t*\tB a.\n")
    examples = read_examples(tmp_path / COLA.train, COLA)
    assert (examples.texts, examples.labels) == ((["A b.", "B a."],), [1, 0])
    write(tmp_path, "CoLA/test.tsv", "index\tsentence\n0\tC d.\n")
    assert read_examples(tmp_path / COLA.tests[0].path, COLA, COLA.tests[0]).texts == (["C d."],)


def test_byte_order_mark_and_carriage_returns_are_removed_and_quotes_kept(tmp_path: Path):
    rows = (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\t"He said\t" \'x\' "\r\n0\t9\t10\ta\u2028b\tc\r\n'
    )
    write(tmp_path, "MRPC/train.tsv", rows)
    examples = read_examples(tmp_path / MRPC.train, MRPC)
    assert examples.texts == (['"He said', "a\u2028b"], ["\" 'x' \"", "c"])
    assert examples.labels == [1, 0]


def test_the_last_column_of_mnli_is_the_label(glue_dir: Path):
    examples = read_examples(glue_dir / "MNLI/train.tsv", find_task("MNLI"))
    assert examples.labels[:4] == [0, 1, 2, 0]  # contradiction, entailment, neutral; its column label1 is all neutral


def test_scores_of_stsb_are_read_as_numbers(glue_dir: Path):
    assert read_examples(glue_dir / STSB.train, STSB).labels[:4] == [0.0, 1.25, 3.8, 5.0]


def test_the_index_of_a_test_file_is_kept(tmp_path: Path):
    write(tmp_path, "RTE/test.tsv", "index\tsentence1\tsentence2\n5\ta\tb\n3\tc\td\n")
    assert read_examples(tmp_path / RTE.tests[0].path, RTE, RTE.tests[0]).indices == [5, 3]


STSB_ROW = "0\t" + "n\t" * 6
BAD_TRAIN = {
    "too few columns": (RTE, RTE_HEADER + "0\ta\tb\tentailment\n1\ta\tb\n", r"train.tsv, line 3: 3 .* at least 4"),
    "unknown label": (RTE, RTE_HEADER + "0\ta\tb\tmaybe\n", r"line 2: unknown label 'maybe'; RTE has entailment, not"),
    "header in cola": (COLA, "src\tlabel\tx\tsentence\n", "line 1: unknown label 'label'; CoLA has 0, 1"),
    "no header": (RTE, "0\ta\tb\tentailment\n1\ta\tb\tentailment\n", "line 1 must be a header"),
    "no header of scores": (STSB, STSB_ROW + "a\tb\t2.5\n", "line 1 must be a header"),
    "no number": (
        STSB,
        "h\t" * 9 + "score\n" + STSB_ROW + "a\tb\tfive\n",
        "line 2: 'five' is not a number from 0 to 5",
    ),
    "not a score": (STSB, "h\t" * 9 + "score\n" + STSB_ROW + "a\tb\t5.5\n", "line 2: '5.5' is not"),
    "nan": (STSB, "h\t" * 9 + "score\n" + STSB_ROW + "a\tb\tnan\n", "line 2: 'nan' is not"),
    "empty": (RTE, "", "the file is empty"),
    "header only": (RTE, RTE_HEADER + "\n\n", "no examples"),
    "blank line between": (RTE, RTE_HEADER + "\n0\ta\tb\tentailment\n", "line 2: 1 tab-separated"),
    "not utf-8": (RTE, RTE_HEADER.encode() + b"0\ta\xff\tb\tentailment\n", "line 2: not UTF-8"),
    "compressed": (RTE, gzip.compress(RTE_HEADER.encode()), "is compressed; unpack it"),
    "another format": (RTE, "index,sentence1,sentence2,label\n0,a,b,entailment\n", "line 1: 1 tab-separated"),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, case: str):
    task, content, message = BAD_TRAIN[case]
    path = write(tmp_path, task.train, content)
    with pytest.raises(UsageError, match=message) as caught:
        read_examples(tmp_path / task.train, task)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [("0\ta", "2 tab-separated"), ("x\ta\tb", "'x', not a whole number"), ("0\ta\tb\n0\tc\td", "already on line 2")],
)
def test_a_bad_test_file_is_refused(tmp_path: Path, row: str, message: str):
    write(tmp_path, "RTE/test.tsv", f"index\tsentence1\tsentence2\n{row}\n")
    with pytest.raises(UsageError, match=message):
        read_examples(tmp_path / RTE.tests[0].path, RTE, RTE.tests[0])


def test_a_test_file_without_a_header_does_not_lose_its_first_example(tmp_path: Path):
    write(tmp_path, "RTE/test.tsv", "0\ta\tb\n1\tc\td\n")
    with pytest.raises(UsageError, match=r"test.tsv: line 1 must be a header, but its index column holds '0'"):
        read_examples(tmp_path / RTE.tests[0].path, RTE, RTE.tests[0])


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UsageError, match=r"RTE/train\.tsv: no such file; --data_dir"):
        read_examples(tmp_path / RTE.train, RTE)
    boolq = find_task("BoolQ")
    with pytest.raises(UsageError, match=r"BoolQ/train\.jsonl: no such file; --data_dir must hold SuperGLUE's folders"):
        read_examples(tmp_path / boolq.train, boolq)


def test_a_few_short_lines_of_qqp_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    good = [f"{number}\t1\t2\ta\tb\t1\n" for number in range(2000)]
    write(tmp_path, "QQP/train.tsv", "".join([QQP_HEADER, *good[:9], "broken\tline\n", *good[9:]]))
    with caplog.at_level(logging.WARNING):
        assert len(read_examples(tmp_path / QQP.train, QQP)) == 2000
    assert "skipped 1 lines with too few columns (first: line 11)" in caplog.text


def test_many_short_lines_of_qqp_are_refused(tmp_path: Path):
    write(tmp_path, "QQP/train.tsv", QQP_HEADER + "0\t1\t2\ta\tb\t1\n1\t2\n")
    with pytest.raises(UsageError, match="line 3: 2 tab-separated"):
        read_examples(tmp_path / QQP.train, QQP)


@given(st.binary(max_size=200) | st.text('0123ab\t\n\r-."\u2028', max_size=80).map(str.encode))
@example(b"\xef\xbb\xbf")
@example(b"h\th\th\n" + b"9" * 5000 + b"\ta\tb\n")
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    for task in (RTE, COLA, STSB):
        for path, test in ((task.train, None), (task.tests[0].path, task.tests[0])):
            write(folder, path, content)
            try:
                examples = read_examples(folder / path, task, test)
            except UsageError as error:
                assert path in str(error)
            else:
                assert len(examples) > 0
