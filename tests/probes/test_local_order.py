"""``bertconv local-order``: its pairs, and that a model without positions can't tell them apart."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import set_seed

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.cli.main import main
from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import read_model
from bert_convolutions.probes.options import LocalOrderOptions
from bert_convolutions.probes.pairs import make_moved_word_pairs
from bert_convolutions.probes.run import run_local_order
from bert_convolutions.schemas import ProbeResults
from tests.helpers import NO_DROPOUT, TINY, trained_tokenizer

WORDS = ["bat", "cow", "dog", "eel", "fox", "gnu", "hen", "jay", "kid", "owl", "pig", "rat"]


def sentences(count: int, seed: int) -> list[str]:
    """Sections of a circle of words, in which a word is determined by its neighbours."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(len(WORDS), size=count)
    lengths = generator.integers(8, 16, size=count)
    return [
        " ".join(WORDS[(start + step) % len(WORDS)] for step in range(length))
        for start, length in zip(starts, lengths, strict=True)
    ]


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_one_word_is_moved_by_k_and_first_and_last_stay(distance: int) -> None:
    texts = sentences(60, seed=0)
    (paradigm,) = make_moved_word_pairs(texts, [distance], pairs=40, seed=0)
    assert paradigm.name == f"moved_by_{distance}"
    assert len(paradigm.pairs) == 40
    to_the_right = 0
    for good, bad in paradigm.pairs:
        before, after = good.split(), bad.split()
        assert good in texts
        assert (before[0], before[-1]) == (after[0], after[-1])
        changed = [place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        first, last = changed[0], changed[-1]
        assert last - first == distance
        right = [*before[first + 1 : last + 1], before[first]]
        left = [before[last], *before[first:last]]
        assert after[first : last + 1] in (right, left)
        to_the_right += after[first : last + 1] == right
    assert distance == 1 or 5 < to_the_right < 35
    assert make_moved_word_pairs(texts, [distance], pairs=40, seed=0) == [paradigm]
    assert make_moved_word_pairs(texts, [distance], pairs=40, seed=1) != [paradigm]


@pytest.mark.parametrize("line", ["a b c d e f", " ".join(map(str, range(25)))])
def test_text_with_too_short_sentences_or_with_paragraphs_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match=r"no line of 7 to 24 words, which --distances 4 needs: one sentence each"):
        make_moved_word_pairs([line], [4], pairs=10, seed=0)


def train(tokenizer: CompositeBertTokenizer, folder: Path, kernel: str, steps: int) -> None:
    """Train a tiny model without positions on masked words, and save it."""
    set_seed(0)
    config = CompositeBertConfig(
        vocab_size=len(tokenizer),
        embedding_size=32,
        **TINY | {"hidden_size": 32, "intermediate_size": 64},
        **NO_DROPOUT,
        attention_kernel=kernel,
        remove_position_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CompositeBertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = tokenizer(sentences(32, seed=step + 100), padding=True, return_tensors="pt")
        ids = batch["input_ids"]
        chosen = (torch.rand(ids.shape) < 0.2) & (ids < tokenizer.vocab_size)
        labels = ids.masked_fill(~chosen, -100)
        masked = ids.masked_fill(chosen, tokenizer.mask_token_id)
        loss = model(input_ids=masked, attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_word_order_is_at_chance_without_positions_and_learnt_by_composite_attention(tmp_path: Path) -> None:
    text = tmp_path / "heldout.txt"
    text.write_text("\n".join(sentences(100, seed=2)))
    folder = trained_tokenizer(tmp_path, "\n".join(sentences(400, seed=1)), vocab_size=36)
    tokenizer = CompositeBertTokenizer(folder / "spm.model")
    results = {}
    for name, kernel, steps in (("none", "dot_product", 20), ("composite", "qk_convfixed_convq_convk 3", 120)):
        train(tokenizer, tmp_path / name, kernel, steps)
        flags = ["--model_name_or_path", str(tmp_path / name), "--text", str(text), "--pairs", "40"]
        output = tmp_path / f"{name}-order"
        assert main(["local-order", *flags, "--output_dir", str(output), "--distances", "1", "3", "6"]) == 0
        results[name] = read_model(ProbeResults, output / "local_order.json").paradigms
    assert list(results["none"]) == ["moved_by_1", "moved_by_3", "moved_by_6"]
    for result in results["none"].values():
        assert result.accuracy == result.accuracy_within_word == 0.5  # both have the same words, so all pairs are ties
    for result in results["composite"].values():
        assert result.interval[0] > 0.8


def test_line_endings_byte_order_mark_and_compression_change_no_result(model_dir: Path, tmp_path: Path) -> None:
    texts = sentences(20, seed=3)
    (tmp_path / "unix.txt").write_bytes("\n".join(texts).encode())
    (tmp_path / "windows.txt").write_bytes("\r\n".join(["\ufeff" + texts[0], *texts[1:], ""]).encode())
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress((tmp_path / "unix.txt").read_bytes()))
    found = []
    for name in ("unix.txt", "windows.txt", "packed.txt.gz"):
        places = {"text": tmp_path / name, "output_dir": tmp_path / f"out-{name}"}
        options = LocalOrderOptions(model_name_or_path=str(model_dir), pairs=5, distances=[2], **places)
        found.append(run_local_order(options))
    assert found[0] == found[1] == found[2]


def test_bad_text_and_flags_are_refused(model_dir: Path, tmp_path: Path) -> None:
    def options(text: Path, **others: object) -> LocalOrderOptions:
        return LocalOrderOptions(
            model_name_or_path=str(model_dir),
            text=text,
            output_dir=tmp_path / "out",
            **others,  # type: ignore[arg-type]
        )

    with pytest.raises(UsageError, match="can't be read"):
        run_local_order(options(tmp_path / "missing.txt"))
    with pytest.raises(UsageError, match="--distances"):
        options(tmp_path / "text.txt", distances=[1, 0])
    with pytest.raises(UsageError, match="--seed -1"):
        options(tmp_path / "text.txt", seed=-1)
    assert not (tmp_path / "out").exists()
