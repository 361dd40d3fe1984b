"""Adds convolution terms to an existing BERT: they change nothing at first, and are then trained with the model.

python examples/retrofit.py --model models/bert --output_dir models/bert-composite
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel

import bert_convolutions  # noqa: F401  registers the converted model
from bert_convolutions.convert.original import convert_checkpoint


def main() -> float:
    """Convert, compare and train one step; return the largest change of the outputs by the conversion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a BERT or ELECTRA model of transformers")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--kernel", default="qk_convfixed_convq_convk 8")
    given = parser.parse_args()

    convert_checkpoint(given.model, given.output_dir, add={"attention_kernel": given.kernel})
    before = AutoModel.from_pretrained(given.model, local_files_only=True).eval()
    after = AutoModel.from_pretrained(given.output_dir).eval()
    tokens = torch.randint(before.config.vocab_size, (4, 20))
    expected = before(tokens).last_hidden_state
    change = (after(tokens).last_hidden_state - expected).abs().max().item()
    print(f"{type(before).__name__} -> {type(after).__name__} with {given.kernel}: outputs change by {change:.1e}")

    terms = {name: weight for name, weight in after.named_parameters() if name.endswith("_param")}
    optimizer = torch.optim.AdamW(after.parameters(), lr=1e-4)
    (after(tokens).last_hidden_state - expected.detach().roll(1, 1)).square().mean().backward()  # an arbitrary task
    optimizer.step()
    moved = sum(bool(weight.detach().any()) for weight in terms.values())
    print(f"after one step {moved} of {len(terms)} terms differ from zero; next: bertconv pretrain or bertconv glue")
    return change


if __name__ == "__main__":
    main()
