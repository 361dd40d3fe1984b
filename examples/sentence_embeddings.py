"""Sentence embeddings from an encoder of this package: the mean of the last hidden states, without padding.

python examples/sentence_embeddings.py --model bert-experiments/bert "A cat sat." "A dog ran." "Taxes rose."
"""

import argparse

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import bert_convolutions  # noqa: F401  registers the model and the tokenizer


@torch.inference_mode()
def embed(folder: str, sentences: list[str]) -> Tensor:
    """Embeddings (number of sentences, D) of norm 1."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    hidden = model(**batch).last_hidden_state  # (B, S, D)
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def main() -> Tensor:
    """Print and return the cosine similarities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("sentences", nargs="+")
    given = parser.parse_args()
    embeddings = embed(given.model, given.sentences)
    similarities = embeddings @ embeddings.T
    for sentence, row in zip(given.sentences, similarities.tolist(), strict=True):
        print(" ".join(f"{value:5.2f}" for value in row), sentence)
    return similarities


if __name__ == "__main__":
    main()
