"""The speeches as plain text."""

from pathlib import Path

import pytest

from bert_convolutions.demo.corpus import Speech, split_sentences, split_speeches, write_text


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("One thing. Another thing!  A third?", ["One thing.", "Another thing!", "A third?"]),
        ("Mr. Speaker, Gen. Grant is here.", ["Mr. Speaker, Gen. Grant is here."]),
        ("The U.S. Congress met. J. Q. Adams spoke.", ["The U.S. Congress met.", "J. Q. Adams spoke."]),
        ('He said "Go on." Then he left.', ['He said "Go on."', "Then he left."]),
        ("It cost $3.50 a head. $4 was asked.", ["It cost $3.50 a head.", "$4 was asked."]),
        ("  spaces\tand\nlines  ", ["spaces and lines"]),
        ("", []),
        (" \n", []),
    ],
)
def test_paragraphs_are_split_into_sentences(paragraph: str, sentences: list[str]) -> None:
    assert split_sentences(paragraph) == sentences


def test_speeches_are_whole_and_in_order(speeches: list[Speech]) -> None:
    assert len(speeches) > 230
    assert speeches[0].sentences[0].startswith("Fellow-Citizens of the Senate")
    assert [speech.year for speech in speeches] == sorted(speech.year for speech in speeches)
    for speech in speeches:
        assert speech.sentences
        assert all(s == " ".join(s.split()) and s for s in speech.sentences)


def test_parts_are_disjoint_and_span_the_years(speeches: list[Speech]) -> None:
    parts = split_speeches(speeches)
    names = [speech.name for part in parts.values() for speech in part]
    assert sorted(names) == sorted(speech.name for speech in speeches)
    assert len(set(names)) == len(names)
    for part in parts.values():
        assert part[0].year < 1800 and part[-1].year > 2010


def test_the_text_has_a_sentence_per_line_and_a_blank_line_between_speeches(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text.txt"
    write_text([Speech("a", 1, ("One.", "Two.")), Speech("b", 2, ("Drei – ü.",))], path)
    assert path.read_bytes() == "One.\nTwo.\n\nDrei – ü.\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["text.txt"]
