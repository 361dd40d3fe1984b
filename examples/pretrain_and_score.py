"""From text to a masked language model and its scores of sentences, in Python; each step is also a sub-command.

python examples/pretrain_and_score.py --text data/training_text.txt --output_dir bert --max_steps 10000
"""

import argparse
from pathlib import Path

from transformers import AutoModelForMaskedLM, AutoTokenizer

import bert_convolutions  # noqa: F401  registers the model and the tokenizer
from bert_convolutions.data.build.pipeline import build_dataset
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.options import BuildDatasetOptions, TrainTokenizerOptions
from bert_convolutions.probes.scoring import PseudoLikelihood
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.options import PretrainOptions
from bert_convolutions.training.pretrain import run_pretraining


def main() -> list[float]:
    """Train a tokenizer and a model; print and return the scores of two sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="one sentence per line; a blank line ends a document")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--config_name", default="bert_small")
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--max_steps", type=int, default=10_000)
    given = parser.parse_args()
    tokenizer, pairs, model = (str(given.output_dir / name) for name in ("tokenizer", "pairs", "model"))

    train_tokenizer(TrainTokenizerOptions(input=[given.text], output_dir=tokenizer, vocab_size=given.vocab_size))
    build_dataset(BuildDatasetOptions(train_data_file=[given.text], tokenizer_name=tokenizer, output_dir=pairs))
    run_pretraining(
        PretrainOptions(
            tokenizer_name=tokenizer,
            config_name=given.config_name,
            train_data_file=[pairs],
            attention_kernel="qk_convfixed_convq_convk 8",
            remove_position_embeddings=True,
        ),
        BertTrainingArguments(
            output_dir=model, do_train=True, max_steps=given.max_steps, warmup_steps=0.1, learning_rate=5e-4
        ),
    )
    score = PseudoLikelihood(AutoModelForMaskedLM.from_pretrained(model), AutoTokenizer.from_pretrained(model))
    sentences = ["The cats sit on the mat.", "The cats sits on the mat."]
    scores = [found.whole for found in score(sentences)]
    for sentence, value in zip(sentences, scores, strict=True):
        print(f"{value:9.2f} nats  {sentence}")
    return scores


if __name__ == "__main__":
    main()
