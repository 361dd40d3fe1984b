"""The tokenizer as a fast one: offsets, words and overflowing parts, with the ids of plain encoding."""

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
import sentencepiece
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizerFast

from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.pieces import PieceTokenizer, normalize, normalize_aligned
from bert_convolutions.data.tokenizer import CompositeBertTokenizer

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "tokenizer"
SHARP = "abAB 01,,9'`\"’ΣσςİıﬁÉ½ｆ한\u00a0\u2003\t𝚺漢☃é\u0301.-ǅ\u200b\u00ad\u0345\ufeff㈱"
TEXTS = st.text() | st.text(st.sampled_from(SHARP)) | st.text(st.sampled_from("ao-. 1,0[MASK]"), max_size=40)


@pytest.fixture(scope="module")
def reference(tokenizer: CompositeBertTokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of ``tokenizers`` with the same pieces, which encodes text alike that none of our rules concerns."""
    pieces = tokenizer.pieces.processor
    scored = [(pieces.id_to_piece(n), pieces.get_score(n)) for n in range(len(pieces))]
    model = Tokenizer(models.Unigram(scored, unk_id=tokenizer.unk_token_id))
    model.normalizer, model.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Metaspace()
    special = tokenizer.pieces.special_ids
    model.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    model.post_processor = processors.BertProcessing(("[SEP]", special["[SEP]"]), ("[CLS]", special["[CLS]"]))
    names = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("cls", "sep", "pad", "mask", "unk")}
    inputs = tokenizer.model_input_names
    return PreTrainedTokenizerFast(tokenizer_object=model, model_input_names=inputs, **names)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_offsets_change_no_id(tokenizer: CompositeBertTokenizer, first: str, second: str) -> None:
    for text in ((first,), (first, second)):
        plain, aligned = tokenizer(*text), tokenizer(*text, return_offsets_mapping=True)
        assert aligned.pop("offset_mapping") is not None
        assert dict(aligned) == dict(plain)
        assert plain.encodings[0].ids == plain["input_ids"]
        assert plain.tokens() == aligned.tokens()
    offsets = [place for place in tokenizer(first, return_offsets_mapping=True)["offset_mapping"][1:-1]]
    assert all(0 <= begin <= end <= len(first) for begin, end in offsets)
    assert [begin for begin, _ in offsets] == sorted(begin for begin, _ in offsets)
    assert not any(first[begin:end] != first[begin:end].strip() for begin, end in offsets)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_normalising_with_offsets_gives_the_same_text(text: str) -> None:
    normalized, origins = normalize_aligned(text)
    assert normalized == normalize(text)
    assert len(origins) == len(normalized)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden files are not part of the repository")
def test_golden_ids_with_offsets() -> None:
    tokenizer = CompositeBertTokenizer(GOLDEN / "spm.model")
    golden = json.loads((GOLDEN / "golden.json").read_text())
    for example in golden["single"]:
        encoded = tokenizer(example["text"], return_offsets_mapping=True)
        assert encoded["input_ids"] == encoded.encodings[0].ids == example["input_ids"]
    options = {"truncation": True, "max_length": 48, "padding": "max_length", "return_offsets_mapping": True}
    for example in golden["pairs_max_length_48"]:
        pair = tokenizer(example["a"], example["b"], **options)
        assert {name: pair[name] for name in example if name not in "ab"} == {
            n: example[n] for n in example if n not in "ab"
        }


def test_offsets_are_those_of_the_text(tokenizer: CompositeBertTokenizer) -> None:
    text = "  The ''Union''  of ½ ﬁne 1,000, [MASK] États"
    encoded = tokenizer(text, return_offsets_mapping=True)
    said = [
        (token, text[begin:end])
        for token, (begin, end) in zip(encoded.tokens(), encoded["offset_mapping"], strict=True)
    ]
    assert said[:2] == [("[CLS]", ""), ("▁the", "The")]
    assert ('"', "''") in said
    assert ("⁄", "½") in said
    assert ("[MASK]", "[MASK]") in said
    assert said[[token for token, _ in said].index("[MASK]") - 1] == (",", ",")
    words: dict[int, str] = {}
    for word, (begin, end) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
        if word is not None:
            words[word] = words.get(word, "") + text[begin:end]
    assert [words[n] for n in sorted(words)][:1] == ["The"]
    assert "États" in words.values()
    start = text.index("États")
    assert encoded.tokens()[encoded.char_to_token(start)].startswith("▁")
    assert encoded.token_to_chars(encoded.char_to_token(start)).start == start


def test_byte_pieces_have_the_offsets_of_their_character(tmp_path: Path) -> None:
    """In models with byte fallback, several tokens stand for one character."""
    (tmp_path / "text.txt").write_text("the cat sees the dog\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=280,
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    tokenizer = CompositeBertTokenizer(tmp_path / "spm.model")
    text = "the ☃漢 cat"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"] == tokenizer(text)["input_ids"]
    of_bytes = [
        text[slice(*place)]
        for token, place in zip(encoded.tokens(), encoded["offset_mapping"], strict=True)
        if "<0x" in token
    ]
    assert of_bytes == ["☃"] * 3 + ["漢"] * 3


A = [
    "the union of the states",
    "a message from the president of the united states",
    "",
    "war and peace and war and war",
]
B = ["is a long thing that goes on", "short", "the end", "no"]
WORDS = [["the", "union", "unbelievable"], ["war", "and", "peace"]]


@pytest.mark.parametrize(
    "padding", [{}, {"padding": True}, {"padding": "max_length"}, {"padding": True, "padding_side": "left"}]
)
@pytest.mark.parametrize(
    ("texts", "options"),
    [
        ((A,), {}),
        ((A, B), {}),
        ((list(zip(A, B, strict=True)),), {}),
        ((A[0],), {}),
        ((A[0], B[0]), {}),
        ((A, B), {"add_special_tokens": False}),
        ((WORDS,), {"is_split_into_words": True}),
        ((WORDS[0],), {"is_split_into_words": True}),
        ((WORDS, WORDS[::-1]), {"is_split_into_words": True}),
        (([],), {"is_split_into_words": True}),
        ((A,), {"return_length": True}),
        ((A[0], B[0]), {"return_length": True}),
        ((A,), {"truncation": True, "max_length": 7, "stride": 2, "return_overflowing_tokens": True}),
        ((A[3],), {"truncation": True, "max_length": 6, "return_overflowing_tokens": True}),
        (
            (A[1:2] * 2, B[:1] * 2),
            {"truncation": "only_second", "max_length": 20, "stride": 1, "return_overflowing_tokens": True},
        ),
        (
            (A[1:2] * 2, B[:1] * 2),
            {"truncation": "only_first", "max_length": 20, "stride": 3, "return_overflowing_tokens": True},
        ),
    ],
)
def test_encodings_equal_those_of_tokenizers(
    tokenizer: CompositeBertTokenizer,
    reference: PreTrainedTokenizerFast,
    texts: Any,
    options: dict[str, Any],
    padding: dict[str, Any],
) -> None:
    """All but the beginnings of offsets: ``tokenizers`` includes the white space before a word."""
    options = {"max_length": 64, **options, **padding, "return_special_tokens_mask": True}
    for more in ({}, {"return_offsets_mapping": True}):
        theirs, ours = reference(*texts, **options, **more), tokenizer(*texts, **options, **more)
        assert isinstance(ours, BatchEncoding)
        offsets, expected = ours.pop("offset_mapping", None), theirs.pop("offset_mapping", None)
        assert (offsets is None) == (expected is None)
        assert dict(ours) == dict(theirs)
        assert ours.n_sequences == theirs.n_sequences
        for one, other in zip(ours.encodings, theirs.encodings, strict=True):
            for name in (
                "ids",
                "tokens",
                "word_ids",
                "sequence_ids",
                "type_ids",
                "attention_mask",
                "special_tokens_mask",
            ):
                assert getattr(one, name) == getattr(other, name), name
            assert [end for _, end in one.offsets] == [end for _, end in other.offsets]


def test_added_tokens_are_found_in_upper_and_lower_case(tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.add_tokens(
        ["<new>", AddedToken("lone", single_word=True), AddedToken("<newer>", lstrip=True, rstrip=True)]
    )
    text = "the <new>union <newer> alone lone states"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"][1:-1] == tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    assert [
        text[slice(*encoded["offset_mapping"][n])] for n, i in enumerate(encoded["input_ids"]) if i >= 1004 and n
    ] == ["<new>", "<newer>", "lone"]
    found = tokenizer.tokenize("the <NEW>Alone LONE [mask]")  # the text is lower-cased, so case makes no difference
    assert [token for token in found if token in tokenizer.get_added_vocab()] == ["<new>", "lone"]
    assert tokenizer.decode(encoded["input_ids"][1:-1]) == "the <new> union <newer> alone lone states"
    assert tokenizer("[MASK]", split_special_tokens=True)["input_ids"] != tokenizer("[MASK]")["input_ids"]
    assert tokenizer([[3, 4], [5]])["input_ids"] == [
        [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id] for ids in ([3, 4], [5])
    ]


def test_tokenize_takes_the_arguments_of_a_call(
    tokenizer: CompositeBertTokenizer, reference: PreTrainedTokenizerFast
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = [
        ((A[0],), {}),
        ((A[0],), {"add_special_tokens": True}),
        ((A[0], B[0]), {"add_special_tokens": True}),
        ((A[0],), {"pair": B[0]}),
        ((WORDS[0],), {"is_split_into_words": True}),
    ]
    for texts, options in calls:
        assert tokenizer.tokenize(*texts, **options) == reference.tokenize(*texts, **options)


def test_an_empty_batch_has_no_rows_and_a_text_takes_no_list_of_pairs(tokenizer: CompositeBertTokenizer) -> None:
    for options in ({}, {"return_offsets_mapping": True}, {"padding": True}):
        assert tokenizer([], **options)["input_ids"] == []
    with pytest.raises(ValueError, match="two strings, or two lists"):
        tokenizer(A[0], B)


@pytest.mark.parametrize("more", [{}, {"return_offsets_mapping": True}])
def test_a_text_too_short_to_be_truncated_is_refused(tokenizer: CompositeBertTokenizer, more: dict[str, Any]) -> None:
    """As by ``tokenizers``: a sequence that is longer than requested would fail in the model."""
    with pytest.raises(ValueError, match="'only_second': the text has 2 tokens"):
        tokenizer(A[1], "the the", truncation="only_second", max_length=8, **more)


def test_the_tokenizer_can_be_sent_to_other_processes_and_keeps_its_fingerprint(
    tokenizer: CompositeBertTokenizer,
) -> None:
    encoded = tokenizer(A)
    again = pickle.loads(pickle.dumps(encoded))
    assert again.word_ids(1) == encoded.word_ids(1)
    rows = datasets.Dataset.from_dict({"text": A})
    fingerprint = Hasher.hash(tokenizer)
    mapped = rows.map(lambda row: tokenizer(row["text"], return_offsets_mapping=True), batched=True, num_proc=2)
    assert mapped["input_ids"] == encoded["input_ids"]
    tokenizer(A, padding=True, truncation=True, max_length=5)
    assert (
        tokenizer.pieces.hash and Hasher.hash(tokenizer) == fingerprint
    )  # so a second map finds the rows of the first in the cache


def test_arguments_of_loading_are_not_saved(tokenizer: CompositeBertTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "one")
    CompositeBertTokenizer.from_pretrained(tmp_path / "one", local_files_only=True).save_pretrained(tmp_path / "two")
    load_tokenizer(tmp_path / "two").save_pretrained(tmp_path / "three")
    one, two, three = ((tmp_path / name / "tokenizer_config.json").read_text() for name in ("one", "two", "three"))
    assert "local_files_only" not in two + three
    assert one == two == three


def test_aligned_pieces_are_those_of_encoding(encoder: PieceTokenizer) -> None:
    for text in ("1,000,000, and 1,", "10,", ", ,1 ,", "в 1,5,"):
        assert [aligned.piece for aligned in encoder.align(text)] == encoder.tokenize(text)
