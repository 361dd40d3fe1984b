import json
import pickle
import re
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_convolutions.data.pieces import PieceTokenizer, normalize
from bert_convolutions.errors import UsageError

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "tokenizer"
SPECIAL = {"[CLS]": 0, "[SEP]": 1, "<pad>": 2, "[MASK]": 3}


def encode_piece_by_piece(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """The rules of the original's tokenizer, applied to one piece at a time."""
    size = processor.get_piece_size()
    ids = []
    for part in re.split(r"(\[CLS\]|\[SEP\]|<pad>|\[MASK\]|<unk>)", text):
        if part in SPECIAL:
            ids.append(size + SPECIAL[part])
        elif part == "<unk>":
            ids.append(0)
        else:
            ids += [processor.piece_to_id(piece) for piece in pieces_of(processor, part)]
    return ids


def pieces_of(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[str]:
    text = "".join(character.lower() for character in text)
    text = " ".join(text.split()).replace("``", '"').replace("''", '"')
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()
    result = []
    for piece in processor.encode(text, out_type=str):
        if len(piece) > 1 and piece.endswith(",") and piece[-2].isdigit():
            again = processor.encode(piece[:-1].replace("▁", ""), out_type=str)
            if not piece.startswith("▁") and again[0].startswith("▁"):
                again = again[1:] if again[0] == "▁" else [again[0][1:], *again[1:]]
            result += [*again, ","]
        else:
            result.append(piece)
    return result


fragments = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["[MASK]", "[CLS]", "[SEP]", "<pad>", "<unk>", "[mask]", "1,000", "5,", " 10,", "1900,", "``", "''"]
    ),
    st.sampled_from(
        ["Ünïted", "Σίσυφος", "ΟΔΟΣ", "ﬁ", "İ", "℡", "\t", "\u2028", "\u3000", "😀", "٣,", "½", " ", "The "]
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(fragments, max_size=8).map("".join))
def test_batches_are_encoded_by_the_rules_of_the_original(encoder: PieceTokenizer, text: str) -> None:
    expected = encode_piece_by_piece(encoder.processor, text)
    assert encoder.encode([text]) == [expected]
    assert encoder.encode(["Before [SEP] it", text]) == [*encoder.encode(["Before [SEP] it"]), expected]
    ids, lengths = encoder.encode_flat(["5, 1900,", text, "", "10, 20"])
    parts = [encode_piece_by_piece(encoder.processor, part) for part in ("5, 1900,", text, "", "10, 20")]
    assert ids.tolist() == [token for part in parts for token in part]
    assert lengths.tolist() == [len(part) for part in parts]


def test_no_encoded_piece_ends_in_a_digit_and_a_comma(encoder: PieceTokenizer) -> None:
    pieces = encoder.processor.encode("in 1900, it was 1,000, 10, and 5,", out_type=str)
    assert any(re.search(r"\d,$", piece) for piece in pieces), "the fixture's vocabulary joins no digit and comma"
    encoded = [
        encoder.processor.id_to_piece(token) for token in encoder.encode(["in 1900, it was 1,000, 10, and 5,"])[0]
    ]
    assert not any(re.search(r"\d,$", piece) for piece in encoded)


def test_a_vocabulary_without_a_comma_is_used_by_the_same_rules(tmp_path: Path) -> None:
    model = tmp_path / "no-comma"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"a few words without it {word}" for word in ("one", "two", "three", "four")] * 20),
        model_prefix=str(model),
        vocab_size=24,
        minloglevel=2,
    )
    encoder = PieceTokenizer(model.with_suffix(".model"))
    for text in ("a ٣, word", "a few, words 5,", "三3,三"):
        assert encoder.encode([text]) == [encode_piece_by_piece(encoder.processor, text)]


def test_special_ids_follow_those_of_the_pieces(encoder: PieceTokenizer) -> None:
    assert (encoder.cls_id, encoder.sep_id, encoder.pad_id, encoder.mask_id) == (1000, 1001, 1002, 1003)
    assert (encoder.unk_id, len(encoder)) == (0, 1004)
    assert encoder.encode(["", " \t", "[MASK]"]) == [[], [], [1003]]


def test_pickled_encoders_encode_the_same(encoder: PieceTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy.encode(["In 1,000 years"]) == encoder.encode(["In 1,000 years"])
    assert copy.hash == encoder.hash


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 200, "text, text\n".encode("utf-16")])
def test_a_file_that_is_no_sentencepiece_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spm.model"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"spm\.model: not a SentencePiece model"):
        PieceTokenizer(path)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden files are not part of the repository")
def test_golden_ids() -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    encoder = PieceTokenizer(GOLDEN / "spm.model")
    encoded = encoder.encode([row["text"] for row in golden["single"]])
    for row, ids in zip(golden["single"], encoded, strict=True):
        assert [encoder.cls_id, *ids, encoder.sep_id] == row["input_ids"], row["text"]
    assert len(encoder) == golden["length"]


def test_text_is_normalised_as_in_the_original() -> None:
    assert normalize("  The\tUNITED \u3000 States ``so'' \n") == 'the united states "so"'
    assert normalize("Café Ÿ Ångström ﬁn №5") == "cafe y angstrom fin no5"
    assert normalize("ΟΔΟΣ") == "οδοσ", "letter by letter: no final sigma"
    assert normalize("") == normalize(" \u2003\t") == ""


@given(st.text())
def test_normalised_text_has_no_capitals_and_no_accents(text: str) -> None:
    normalized = normalize(text)
    assert normalized == normalized.lower()
    assert not any(unicodedata.combining(character) for character in normalized)
    assert "``" not in normalized


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_is_normalised_as_other_text(text: str) -> None:
    assert normalize(text) == normalize(text + " é")[:-1].rstrip(" ") or "`" in text or "'" in text
