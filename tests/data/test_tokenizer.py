import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
from transformers import AddedToken, AutoTokenizer, BertTokenizer, PreTrainedTokenizer

from bert_convolutions.data.build.sentences import as_text_tokenizer, open_text_tokenizer
from bert_convolutions.data.loading import load_tokenizer, tokenizer_hash
from bert_convolutions.data.pieces import PieceTokenizer
from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from bert_convolutions.errors import UsageError

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "tokenizer"
TEXTS = ["", "In 1900, it was [MASK].", "1,000 [SEP] ☃ Σ", "A longer sentence than the others, about the Union."]


def test_pairs_have_special_tokens_types_and_masks(tokenizer: CompositeBertTokenizer, encoder: PieceTokenizer) -> None:
    first, second = encoder.encode(["The Union", "of states"])
    batch = tokenizer("The Union", "of states", return_special_tokens_mask=True)
    assert batch["input_ids"] == [encoder.cls_id, *first, encoder.sep_id, *second, encoder.sep_id]
    assert batch["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert batch["special_tokens_mask"] == [1, *[0] * len(first), 1, *[0] * len(second), 1]
    assert batch["attention_mask"] == [1] * len(batch["input_ids"])


def test_batches_equal_single_calls_and_the_base_class(tokenizer: CompositeBertTokenizer) -> None:
    batch = tokenizer(TEXTS, TEXTS[::-1], truncation=True, max_length=12)
    for position, text in enumerate(TEXTS):
        single = tokenizer(text, TEXTS[::-1][position], truncation=True, max_length=12)
        assert {key: values[position] for key, values in batch.items()} == dict(single)
    slow = [tokenizer.convert_tokens_to_ids(PreTrainedTokenizer.tokenize(tokenizer, text)) for text in TEXTS]
    assert [ids[1:-1] for ids in tokenizer(TEXTS)["input_ids"]] == slow


def test_a_batch_that_takes_the_slow_road_equals_single_calls(tokenizer: CompositeBertTokenizer) -> None:
    texts = ["a [MASK] of the union", "states"]
    literal = tokenizer(texts, split_special_tokens=True)["input_ids"]
    assert literal == [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]
    assert tokenizer.mask_token_id in tokenizer(texts)["input_ids"][0] and tokenizer.mask_token_id not in literal[0]
    mixed = tokenizer([("a", "of the union"), "states"])["input_ids"]
    assert mixed == [tokenizer("a", "of the union")["input_ids"], tokenizer("states")["input_ids"]]


def test_batches_are_padded_to_tensors(tokenizer: CompositeBertTokenizer) -> None:
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt", pad_to_multiple_of=8)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % 8 == 0
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize(("lengths", "limit", "kept"), [((6, 2), 8, (3, 2)), ((4, 4), 8, (3, 2)), ((2, 9), 9, (2, 4))])
def test_truncation_is_longest_first(
    tokenizer: CompositeBertTokenizer, lengths: tuple[int, int], limit: int, kept: tuple[int, int]
) -> None:
    first, second, _ = tokenizer.truncate_sequences(
        list(range(lengths[0])), list(range(lengths[1])), num_tokens_to_remove=sum(lengths) + 3 - limit
    )
    assert second is not None
    assert (first, second) == (list(range(kept[0])), list(range(kept[1])))
    left = copy.deepcopy(tokenizer)
    left.truncation_side = "left"
    texts = [list(range(length)) for length in lengths]
    cut = left.truncate_sequences(*texts, num_tokens_to_remove=sum(lengths) + 3 - limit)
    assert list(cut[:2]) == [text[len(text) - count :] for text, count in zip(texts, kept, strict=True)]


def test_words_split_by_the_caller_and_added_tokens_are_encoded(tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    split = tokenizer(["the", "union"], is_split_into_words=True)["input_ids"]
    assert split == tokenizer("the union")["input_ids"]
    tokenizer.add_tokens(["<new>"])
    assert len(tokenizer) == 1005
    assert 1004 in tokenizer("the <new> union")["input_ids"]


def test_saved_tokenizers_load_by_their_class_name(tokenizer: CompositeBertTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    for loaded in (
        AutoTokenizer.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert isinstance(loaded, CompositeBertTokenizer)
        assert len(loaded) == 1004
        assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
        assert loaded.get_vocab() == tokenizer.get_vocab() == tokenizer.vocab


def test_added_tokens_survive_saving_pickling_and_copying(tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.add_tokens(["NewTok", AddedToken("lone", single_word=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e>"]})
    tokenizer.save_pretrained(tmp_path)
    text = "the newtok alone lone <e>union"
    expected = tokenizer(text)["input_ids"]
    assert {1004, 1005, 1006} < set(expected)
    copies = (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer)))
    for loaded in (*copies, copy.deepcopy(tokenizer)):
        assert loaded(text)["input_ids"] == expected
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.all_special_tokens == tokenizer.all_special_tokens
        assert loaded.decode(expected, skip_special_tokens=True) == "the NewTok alone lone union"


def test_added_tokens_are_encoded_on_every_road_to_a_dataset(tokenizer_dir: Path, tmp_path: Path) -> None:
    """A dataset built from the folder must have the ids of the tokenizer that pre-training loads from it."""
    plain, tokenizer = load_tokenizer(tokenizer_dir), load_tokenizer(tokenizer_dir)
    tokenizer.add_tokens(["[E1]"])
    tokenizer.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path / "plain")
    assert isinstance(open_text_tokenizer(tmp_path / "plain"), PieceTokenizer)
    for opened in (open_text_tokenizer(tmp_path), as_text_tokenizer(load_tokenizer(tmp_path))):
        assert len(opened) == 1005
        assert opened.encode_flat(["the [E1] union"])[0].tolist() == tokenizer.encode("the [E1] union")[1:-1]
        assert opened.hash == tokenizer_hash(tokenizer) != tokenizer_hash(plain)
    (tmp_path / "added_tokens.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"added_tokens\.json"):
        open_text_tokenizer(tmp_path)


def test_ids_are_decoded_to_text(tokenizer: CompositeBertTokenizer) -> None:
    ids = tokenizer("The Union, in 1,000 [MASK] years")["input_ids"]
    assert tokenizer.decode(ids) == "[CLS] the union, in 1,000 [MASK] years [SEP]"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the union, in 1,000 years"
    assert (
        tokenizer.decode([ids[1], len(tokenizer)]) == "the <unk>"
    )  # an id of a model with more embeddings than tokens


def test_the_hash_depends_on_vocabulary_and_rules_and_not_on_the_path(
    tokenizer: CompositeBertTokenizer, tokenizer_dir: Path
) -> None:
    loaded = [load_tokenizer(path) for path in (tokenizer_dir, tokenizer_dir / "spm.model")]
    assert len({tokenizer_hash(each) for each in (tokenizer, *loaded)}) == 1


def test_a_folder_of_another_tokenizer_can_be_loaded(tmp_path: Path, tokenizer: CompositeBertTokenizer) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "union"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded("The Union")["input_ids"] == [2, 5, 6, 3]
    before = tokenizer_hash(loaded)
    loaded(["the", "the union"], padding=True, truncation=True, max_length=8)
    assert tokenizer_hash(loaded) == before == tokenizer_hash(load_tokenizer(tmp_path)) != tokenizer_hash(tokenizer)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bert-base-uncased: no such tokenizer on this machine"):
        load_tokenizer("bert-base-uncased")
    with pytest.raises(UsageError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{broken", encoding="utf-8")
    with pytest.raises(UsageError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden files are not part of the repository")
def test_golden_pairs() -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(GOLDEN / "spm.model")
    for row in golden["pairs_max_length_48"]:
        encoded = tokenizer(row["a"], row["b"], truncation=True, max_length=48, padding="max_length")
        assert {key: encoded[key] for key in encoded} == {key: row[key] for key in encoded}


@pytest.mark.parametrize(
    "marked_by",
    [("config.json", "model_type", "deberta-v2"), ("tokenizer_config.json", "tokenizer_class", "DebertaV2Tokenizer")],
)
def test_debertas_file_of_the_same_name_is_not_taken_for_ours(
    tokenizer_dir: Path, tmp_path: Path, marked_by: tuple[str, str, str]
) -> None:
    shutil.copy(tokenizer_dir / "spm.model", tmp_path)
    assert isinstance(load_tokenizer(tmp_path), CompositeBertTokenizer)
    name, key, value = marked_by
    (tmp_path / name).write_text(json.dumps({key: value}))
    loaded = load_tokenizer(tmp_path)
    assert "Deberta" in type(loaded).__name__
    assert loaded("The Union")["input_ids"][0] == loaded.cls_token_id
