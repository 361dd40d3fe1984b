"""Jobs of models: training steps, encoder passes, data loading, and exported models."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.plan import CONTESTANTS, ELECTRA, ONNX_INT8, PYTORCH, Job
from bert_convolutions.bench.worker import Turns, Work
from bert_convolutions.cpu import fast_float32_products
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.export import graphs
from bert_convolutions.model import CompositeBertConfig
from bert_convolutions.model.flops import count_flops
from bert_convolutions.signals import SignalWatch
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.options import PretrainOptions
from bert_convolutions.training.sampling import StepPlan
from bert_convolutions.training.setup import Corpus, choose_tokenizer, make_config, make_model, make_trainer

_MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
_SPECIAL_TOKENS = 3
"""[CLS] and two [SEP] of a sentence pair, which are never masked."""
_SHAPE = (
    *("vocab_size", "pad_token_id", "max_position_embeddings"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "embedding_size", "intermediate_size"),
)
_MODERNBERT_TOKENS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def training_arguments(job: Job, setup: Setup) -> dict[str, Any]:
    """The Trainer's flags of all contestants: those of the README's command, without logging and saving."""
    return {
        "output_dir": str(Path(setup.options.output_dir) / "trainer"),
        "per_device_train_batch_size": job.batch_size,
        "max_steps": 1_000_000,
        "warmup_steps": 10_000,
        "learning_rate": 1e-4,
        "adam_epsilon": 1e-6,
        "weight_decay": 0.01,
        "bf16": job.precision == "bf16",
        "torch_compile": setup.options.torch_compile,
        "dataloader_num_workers": setup.options.dataloader_num_workers,
        "seed": setup.options.seed,
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def pretrain_options(job: Job, setup: Setup) -> PretrainOptions:
    """The flags of ``bertconv pretrain`` for a job; for a peer, without architecture flags, they give its shape."""
    flags = CONTESTANTS[job.contestant].flags or {}
    return PretrainOptions(
        tokenizer_name=setup.tokenizer,
        config_name=setup.configs[job.length],
        block_size=job.length,
        attn_implementation=job.backend,
        **flags,
    )


def _make_config(job: Job, setup: Setup) -> tuple[PretrainOptions, PreTrainedTokenizerBase, CompositeBertConfig]:
    """The flags, the tokenizer and the configuration of a job's model."""
    options = pretrain_options(job, setup)
    tokenizer = choose_tokenizer(options)
    config = make_config(options, tokenizer)
    config.vocab_size = setup.vocabulary
    return options, tokenizer, config


def _make_peer(name: str, config: CompositeBertConfig) -> PreTrainedModel:
    """A model of ``transformers`` with our shape."""
    fields = {field: getattr(config, field) for field in _SHAPE}
    if name == "modernbert":  # its gated feed-forward layer has 3/2 of the width, as in ModernBERT-base
        del fields["embedding_size"]
        fields |= {"intermediate_size": config.hidden_size * 3 // 2}
        fields |= dict.fromkeys(_MODERNBERT_TOKENS)  # the defaults are beyond the vocabulary
    attention = None if name == "convbert" else "sdpa"
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **fields), attn_implementation=attention)


def _peer_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[np.ndarray], arguments: dict[str, Any]
) -> Trainer:
    """The Trainer as set up by Hugging Face's masked-language-model script for text line by line.

    Each batch is padded to its longest example and masked by the collator. Only the order of the examples is ours.
    """
    special = np.array(tokenizer.all_special_ids)
    dataset = [
        {"input_ids": ids.tolist(), "special_tokens_mask": np.isin(ids, special).astype(int).tolist()}
        for ids in examples
    ]
    training_arguments = TrainingArguments(
        **arguments,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
    )
    training_arguments._n_gpu = min(training_arguments.n_gpu, 1)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    trainer = Trainer(model, training_arguments, collator, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    return trainer


class PairsRun:
    """The Trainer of a job's contestant, set up by the code of its command, and the work of each step."""

    def __init__(self, job: Job, setup: Setup) -> None:
        self.job = job
        self.store = ArrowStore(setup.pairs[job.length])
        seed = setup.options.seed
        self.plan = StepPlan(len(self.store), seed, micro_batch_size=job.batch_size, micro_batches=1, processes=1)
        options, tokenizer, config = _make_config(job, setup)
        arguments = training_arguments(job, setup)
        if CONTESTANTS[job.contestant].is_ours:
            model, ours = make_model(options, config, seed), BertTrainingArguments(**arguments)
            corpus = Corpus(self.store, None)
            self.trainer: Trainer = make_trainer(options, ours, model, tokenizer, corpus, SignalWatch())
        else:
            set_seed(seed)
            samples = [sample for step in range(setup.steps) for sample in self.plan.samples_of_step(step)]
            examples = [self.store[sample][: job.length] for sample in samples]
            self.trainer = _peer_trainer(_make_peer(job.contestant, config), tokenizer, examples, arguments)
        counted = CONTESTANTS[job.contestant].is_ours or job.contestant == ELECTRA
        self._flops = count_flops(self.trainer.model) if counted else None  # type: ignore[arg-type]

    def work(self, step: int, *, training: bool = True) -> Work:
        """The work of a step (0-based) of training or of the encoder, assuming that 15 % of the tokens are masked."""
        samples = self.plan.samples_of_step(step)
        lengths = np.minimum([len(self.store[sample]) for sample in samples], self.job.length)
        flops = None
        if self._flops is not None:
            masked = 0.15 * float((lengths - _SPECIAL_TOKENS).sum())
            flops = self._flops.training(lengths, masked) if training else self._flops.forward(lengths)
        return Work(len(lengths), int(lengths.sum()), flops)


class StepClock(TrainerCallback):
    """Makes a Trainer take turns: it waits between two turns."""

    def __init__(self, turns: Turns, work: Callable[[int], Work]) -> None:
        self.turns, self.work = turns, work
        self.begun = self.num_steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the first turn."""
        self.begun, self.num_steps = state.global_step, self.turns.next()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At the end of a turn, report it and wait for the next one."""
        if state.global_step == self.begun + self.num_steps:
            work = sum((self.work(step) for step in range(self.begun, state.global_step)), Work())
            self.turns.report(self.num_steps, work)
            self.on_train_begin(args, state, control)


def run_training_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Train in turns."""
    run = PairsRun(job, setup)
    run.trainer.add_callback(StepClock(turns, run.work))
    run.trainer.train()


def run_inference_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Pass the batches of training through the encoder in turns, without gradients."""
    run = PairsRun(job, setup)
    device, steps, batches = run.trainer.args.device, itertools.count(), _repeat_batches(run.trainer)
    encoder: Any = run.trainer.model.base_model.eval()  # type: ignore[union-attr]
    if setup.options.torch_compile:
        encoder = torch.compile(encoder)

    def step() -> Work:
        batch = next(batches)
        encoder(**{name: batch[name].to(device) for name in _MODEL_INPUTS if name in batch})
        return run.work(next(steps), training=False)

    ours = fast_float32_products() if CONTESTANTS[job.contestant].is_ours else nullcontext()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bf16"), ours:
        turns.take(step)


def run_loading_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Load and collate batches in turns, without using them."""
    batches = _repeat_batches(PairsRun(job, setup).trainer)

    def step() -> Work:
        batch = next(batches)
        return Work(len(batch["sample_ids"]), int(batch["num_real_tokens"]), None)

    turns.take(step)


def _repeat_batches(trainer: Trainer) -> Iterator[Any]:
    while True:
        yield from trainer.get_train_dataloader()


def run_onnx_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Compute a masked language model's logits of one padded batch, by PyTorch or onnxruntime."""
    options, _, config = _make_config(replace(job, backend=None), setup)
    model = make_model(options, config, setup.options.seed).eval()
    batch = graphs.example_inputs(model, job.batch_size, job.length)
    work = Work(job.batch_size, int(batch["attention_mask"].sum()), None)
    run: graphs.Run = partial(graphs.torch_outputs, model)
    if job.backend != PYTORCH:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, graphs.ONNX_FILE)
            graphs.save_onnx(model, graphs.export(model), path)
            if job.backend == ONNX_INT8:
                graphs.save_int8(path, path)
            run = graphs.onnx_run(path)

    def step() -> Work:
        run(batch)
        return work

    turns.take(step)
