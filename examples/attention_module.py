"""Composite attention in a custom model that tells, without position embeddings, whether token 1 precedes token 2.

python examples/attention_module.py [--kernel "qk_convfixed_convq_convk 4"] [--steps 200]
"""

import argparse

import torch
from torch import Tensor, nn

from bert_convolutions import CompositeAttention


class Reader(nn.Module):
    """Embeddings without positions, one layer of attention, and a classifier averaged over the tokens."""

    def __init__(self, kernel: str, size: int = 32) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(20, size)
        self.attention = CompositeAttention(size, num_heads=4, kernel=kernel)
        self.classifier = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) -> logits (B, 2)."""
        hidden = self.embeddings(tokens)
        mixed, _ = self.attention(hidden)
        return self.classifier((hidden + mixed).tanh()).mean(1)


def draw(rows: int, length: int = 8) -> tuple[Tensor, Tensor]:
    """Draw random tokens with one 1 and one 2, and labels that tell whether the 1 comes first."""
    tokens = torch.randint(3, 20, (rows, length))
    positions_of_both = torch.rand(rows, length).argsort(1)[:, :2]
    tokens.scatter_(1, positions_of_both, torch.tensor([[1, 2]]).expand(rows, -1))
    return tokens, (positions_of_both[:, 0] < positions_of_both[:, 1]).long()


def train(kernel: str, steps: int) -> tuple[Reader, float]:
    """Train a model; return it and its accuracy on new examples."""
    torch.manual_seed(0)
    model = Reader(kernel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        tokens, labels = draw(64)
        loss = nn.functional.cross_entropy(model(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, labels = draw(1000)
    return model, (model.eval()(tokens).argmax(1) == labels).float().mean().item()


def main() -> float:
    """Train, print and return the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kernel", default="qk_convfixed_convq_convk 4", help="dot_product can't do better than chance"
    )
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    accuracy = train(arguments.kernel, arguments.steps)[1]
    print(f"{arguments.kernel}: {100 * accuracy:.1f} % right, chance is 50 %")
    return accuracy


if __name__ == "__main__":
    main()
