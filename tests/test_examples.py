"""The scripts in ``examples`` run, and show what they say they do."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run_example(name: str, *argv: object) -> Any:
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        return runpy.run_path(str(EXAMPLES / name))["main"]()

    return run_example


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *("attention_module.py", "pretrain_and_score.py", "retrofit.py", "sentence_embeddings.py")
    }


def test_the_attention_module_learns_what_a_dot_product_does_not(run: Any) -> None:
    assert run("attention_module.py", "--steps", 100) > 0.9
    assert run("attention_module.py", "--steps", 100, "--kernel", "dot_product") < 0.6


def test_pretraining_scoring_and_embeddings(run: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "composite_bert", "embedding_size": 8, **TINY}))
    sentences = [f"The {thing} sits on the mat number {number}.\n" for number in range(30) for thing in ("cat", "dog")]
    (tmp_path / "text.txt").write_text("".join(sentences))
    sizes = ("--config_name", tmp_path / "config.json", "--vocab_size", 30, "--max_steps", 2)
    places = ("--text", tmp_path / "text.txt", "--output_dir", tmp_path / "run")
    scores = run("pretrain_and_score.py", *places, *sizes)
    assert len(scores) == 2
    assert all(score < 0 for score in scores)

    texts = ("A cat sat.", "A cat sat.", "The dog runs after the cat.")
    similarities = run("sentence_embeddings.py", "--model", tmp_path / "run" / "model", *texts)
    assert torch.allclose(similarities[0], torch.tensor([1.0, 1.0, similarities[0, 2]]), atol=1e-5)
    assert similarities[0, 2] < 0.9999


def test_a_retrofitted_bert_computes_the_same_and_its_terms_learn(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BertModel(BertConfig(vocab_size=50, max_position_embeddings=32, **TINY)).save_pretrained(tmp_path / "bert")
    assert run("retrofit.py", "--model", tmp_path / "bert", "--output_dir", tmp_path / "ours") < 1e-5
    assert "after one step 3 of 3 terms differ from zero" in capsys.readouterr().out
