"""Other libraries work with our models: pipelines, collators, sentence-transformers, peft."""

from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    pipeline,
)

LONG = "the cat sleeps " * 40
"""More tokens than the models have positions."""


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("fill-mask", {}),
        ("text-classification", {"truncation": True}),
        ("feature-extraction", {"truncation": True}),
        ("token-classification", {"aggregation_strategy": "simple"}),
        ("zero-shot-classification", {"candidate_labels": ["a cat", "a dog"]}),
    ],
)
def test_pipelines_load_and_run_the_models(folders: dict[str, Path], task: str, more: dict[str, Any]) -> None:
    text = {"fill-mask": "the [MASK] sleeps", "token-classification": "The cat sleeps."}.get(task, LONG)
    found = pipeline(task, model=str(folders["composite"]))(text, **more)
    assert len(found)
    if task == "token-classification":
        assert "".join(text[group["start"] : group["end"]] for group in found).replace(" ", "") == text.replace(" ", "")


def test_the_collator_of_transformers_masks_whole_words(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["composite"])
    options = {"whole_word_mask": True, "mlm_probability": 0.5, "random_replace_prob": 0}
    collate = DataCollatorForLanguageModeling(tokenizer, **options)
    encoded = tokenizer(
        "unbelievable neighbours barked loudly", return_offsets_mapping=True, return_special_tokens_mask=True
    )
    words = encoded.word_ids()
    masked = collate([dict(encoded) for _ in range(8)])["labels"] != -100
    assert masked.any()
    for row in masked.tolist():
        for word in range(4):
            assert len({row[n] for n, of in enumerate(words) if of == word}) == 1


def test_sentence_embeddings_are_trained_and_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    model = SentenceTransformer(str(folders["composite"]), device="cpu")
    before = model.encode(["the cat"])
    pairs = datasets.Dataset.from_dict({"one": ["a cat", "a dog"] * 2, "other": ["the cats", "the dogs"] * 2})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=2,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(model, arguments, pairs, loss=MultipleNegativesRankingLoss(model)).train()
    after = model.encode(["the cat"])
    assert before.shape == (1, 32) and abs(before - after).max() > 1e-4
    model.save_pretrained(str(tmp_path / "saved"))
    assert abs(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(["the cat"]) - after).max() < 1e-6


@pytest.mark.parametrize("modules", [["query", "value"], "all-linear"])
@pytest.mark.parametrize("shape", ["composite", "convolved"])
def test_lora_is_trained_saved_and_merged(folders: dict[str, Path], tmp_path: Path, modules: Any, shape: str) -> None:
    if shape == "convolved" and modules != "all-linear":
        modules = ["query_linear", "value_pointwise"]  # peft merges no convolution of several groups

    def fresh() -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(folders[shape], num_labels=2)

    inputs = AutoTokenizer.from_pretrained(folders[shape])(
        ["a cat", "the dogs barked"], padding=True, return_tensors="pt"
    )
    saved = ["pooler", "classifier"]  # a masked language model has no pooler: it is drawn anew, so it has to be saved
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=modules, modules_to_save=saved)
    model = peft.get_peft_model(fresh(), config)
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5)
    for _ in range(2):
        model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all((value != before[name]).any() for name, value in model.named_parameters() if "lora_B" in name)
    trained = model.eval()(**inputs).logits
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(fresh(), str(tmp_path / "adapter")).eval()
    assert torch.allclose(loaded(**inputs).logits, trained, atol=1e-5)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(merged(**inputs).logits, trained, atol=1e-5)


def test_a_prompt_is_trained(folders: dict[str, Path]) -> None:
    """``peft`` takes a token for as wide as the hidden states."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["composite"])
    sizes = {"num_virtual_tokens": 3, "token_dim": model.config.embedding_size}
    prompted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", **sizes))
    inputs = AutoTokenizer.from_pretrained(folders["composite"])(
        ["a cat", "the dogs"], padding=True, return_tensors="pt"
    )
    prompted(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    assert prompted.prompt_encoder.default.embedding.weight.grad.abs().sum() > 0
