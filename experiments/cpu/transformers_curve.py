"""The held-out loss by step of a masked language model of ``transformers``, with its own Trainer, on the same pairs.

    python experiments/cpu/transformers_curve.py --model_type electra --like positions/absolute/seed1/pretrain \
        --pairs sample/pairs --heldout sample/heldout --output_dir electra

It uses the shape, batches and schedule of the runs of ``positions.yaml``: 64 pairs per step in the same order, bf16,
AdamW with a learning rate that peaks at 1e-3 after 50 steps and decays to 0 at step 500. Each batch is padded to its
longest pair and masked by ``DataCollatorForLanguageModeling``. Prints the step, the real tokens seen and the held-out
loss, and writes them to ``curve.csv``.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.model import CompositeBertConfig
from bert_convolutions.training.sampling import StepPlan

SHAPE = (
    *("vocab_size", "pad_token_id", "max_position_embeddings", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "embedding_size", "intermediate_size"),
)
BATCH, BLOCK, STEPS = 64, 128, 500


class Stop(TrainerCallback):
    """End training after a step, without changing the schedule."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop training at the given step."""
        control.should_training_stop = state.global_step >= self.step


def main() -> None:
    """Train, evaluate, and write the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_type", default="electra", help="model type of transformers, such as electra or bert")
    parser.add_argument("--like", required=True, help="a model of bertconv pretrain, whose shape and tokenizer to use")
    parser.add_argument("--pairs", required=True, type=Path)
    parser.add_argument("--heldout", required=True, type=Path)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--stop_after", type=int, default=STEPS, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    tokenizer, config = load_tokenizer(options.like), CompositeBertConfig.from_pretrained(options.like)
    special = np.array(tokenizer.all_special_ids)

    def example(ids: np.ndarray) -> dict[str, list[int]]:
        return {"input_ids": ids.tolist(), "special_tokens_mask": np.isin(ids, special).astype(int).tolist()}

    pairs, heldout = ArrowStore(options.pairs), ArrowStore(options.heldout)
    plan = StepPlan(len(pairs), options.seed, micro_batch_size=BATCH, micro_batches=1, processes=1)
    samples = [sample for step in range(options.stop_after) for sample in plan.samples_of_step(step)]
    train = [example(pairs[sample][:BLOCK]) for sample in samples]
    tokens = np.cumsum([len(each["input_ids"]) for each in train])

    set_seed(options.seed)
    fields = {field: getattr(config, field) for field in SHAPE}
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(options.model_type, **fields))
    arguments = TrainingArguments(
        output_dir=str(options.output_dir),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        max_steps=STEPS,
        warmup_steps=50,
        learning_rate=1e-3,
        adam_epsilon=1e-6,
        weight_decay=0.01,
        bf16=True,
        eval_strategy="steps",
        eval_steps=50,
        logging_steps=50,
        save_strategy="no",
        seed=options.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        train_dataset=train,
        eval_dataset=[example(heldout[index][:BLOCK]) for index in range(len(heldout))],
        callbacks=[Stop(options.stop_after)],
    )
    trainer.train()
    rows = [
        [log["step"], int(tokens[log["step"] * BATCH - 1]), round(log["eval_loss"], 4)]
        for log in trainer.state.log_history
        if "eval_loss" in log
    ]
    with (options.output_dir / "curve.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["step", "real_tokens", "held_out_loss"], *rows])
    for step, seen, loss in rows:
        print(f"step {step}: {seen:,} tokens, held-out loss {loss}")


if __name__ == "__main__":
    main()
