"""``bertconv pretrain``: check, compose, train, save, evaluate; one function for each, called in this order."""

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

from bert_convolutions import files
from bert_convolutions.data.collate import PretrainingCollator
from bert_convolutions.data.masking import Masking
from bert_convolutions.errors import CommandError, RunInterrupted, TrainingDiverged, UsageError
from bert_convolutions.files import run_lock
from bert_convolutions.terminal import say
from bert_convolutions.training import checkpoints
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.checks import check_flags
from bert_convolutions.training.collectives import Collectives
from bert_convolutions.training.corpus import Corpus, open_corpus
from bert_convolutions.training.evaluation import write_results
from bert_convolutions.training.interrupt import SignalWatch
from bert_convolutions.training.options import ARCHITECTURE_FLAGS, PretrainOptions
from bert_convolutions.training.output_folder import (
    TRAIN_RESULTS_NAME,
    clear,
    find_checkpoint,
    install,
    refuse_if_in_use,
    refuse_other_run,
    resume_wish,
)
from bert_convolutions.training.resumable import EvaluationAbandonedError, resume_command
from bert_convolutions.training.setup import choose_tokenizer, compose_config, compose_model
from bert_convolutions.training.trainer import PretrainingTrainer

EVALUATION_SEED = 0
"""Masks of the evaluation data are drawn from this one, whatever ``--seed`` is: losses of different runs compare."""

COMPILED_ROW_BUCKET = 4
"""Rows of a batch are filled up to a multiple of this for a compiled model, which is compiled anew for each shape."""

Result = TypeVar("Result")


def run_pretraining(options: PretrainOptions, arguments: BertTrainingArguments) -> None:
    """Train and evaluate as the flags say; nothing is written before they have all been checked.

    Raises:
        UsageError: bad input, or the folder is not to be used.
        RunInterrupted: a signal came; the run was saved.
        TrainingDiverged: the loss was NaN or infinite.
    """
    check_flags(options, arguments)
    collectives = Collectives(arguments.world_size)
    folder = Path(arguments.output_dir or "")
    wish = resume_wish(arguments.resume_from_checkpoint)
    tokenizer = choose_tokenizer(options)
    config = compose_config(options, tokenizer)
    if arguments.do_train:
        _on_first(collectives, lambda: refuse_if_in_use(folder, wish, options.overwrite_output_dir))
    if options.overwrite_output_dir and options.model_name_or_path:
        _refuse_to_empty_source(folder, Path(options.model_name_or_path))
    corpus = _open_data(collectives, options, arguments, tokenizer)
    model = compose_model(options, config, arguments.seed)

    with SignalWatch().installed() as watch:
        try:
            with _lost_process(arguments.world_size), _folder_held(collectives, folder):
                trainer = make_trainer(options, arguments, model, tokenizer, corpus, watch)
                if arguments.do_train:
                    checkpoint = _on_first(
                        collectives, lambda: _prepare_folder(folder, wish, options, trainer.run_facts)
                    )
                    _train(trainer, checkpoint, folder)
                if arguments.do_eval:
                    _evaluate(trainer, folder)
        except (RunInterrupted, TrainingDiverged):
            _let_messages_through()
            raise
        except Exception as error:
            if watch.received is None or isinstance(error, CommandError):
                raise
            _let_messages_through()
            raise _interrupted_hard(watch, folder, error) from error  # a compiler or a peer that the signal hit too
    if dist.is_initialized():
        dist.destroy_process_group()


def _open_data(
    collectives: Collectives,
    options: PretrainOptions,
    arguments: BertTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> Corpus:
    """The examples; where they have to be built first, the first process does so and the others wait."""

    def open_data() -> Corpus:
        return open_corpus(options, tokenizer, arguments.do_train, arguments.do_eval)

    if arguments.world_size > 1:
        _on_first(collectives, lambda: open_data() and None)
    return open_data()


def make_trainer(
    options: PretrainOptions,
    arguments: BertTrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    watch: SignalWatch,
) -> PretrainingTrainer:
    """The Trainer of a run, ready to train; ``bertconv bench`` measures this one too."""
    data_seed = arguments.seed if arguments.data_seed is None else arguments.data_seed

    def collator(seed: int) -> PretrainingCollator:
        return PretrainingCollator(
            masking=Masking.of_tokenizer(tokenizer, seed, options.mlm_probability),
            cls_id=tokenizer.cls_token_id,
            sep_id=tokenizer.sep_token_id,
            pad_id=tokenizer.pad_token_id,
            block_size=options.block_size,
            pack=options.pack,
            sentence_order=options.use_sop_head,
            row_bucket=COMPILED_ROW_BUCKET if arguments.torch_compile else 1,
        )

    trainer = PretrainingTrainer(
        model=model,
        args=arguments,
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collator(data_seed),
        eval_collator=collator(EVALUATION_SEED),
        processing_class=tokenizer,
        save_every_minutes=options.save_every_minutes,
        watch=watch,
    )
    if arguments.do_train:
        trainer.run_facts = _run_facts(options, arguments, model, trainer, data_seed)
    return trainer


def _run_facts(
    options: PretrainOptions,
    arguments: BertTrainingArguments,
    model: PreTrainedModel,
    trainer: PretrainingTrainer,
    data_seed: int,
) -> dict[str, Any]:
    """What must be the same when a run is resumed, or else it would not be the same run."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "embedding_size", "max_position_embeddings")
    plan = trainer.train_plan()
    return {
        "seed": arguments.seed,
        "data_seed": data_seed,
        "num_examples": plan.num_examples,
        "global_batch_size": plan.global_batch_size,
        "block_size": options.block_size,
        "mlm_probability": options.mlm_probability,
        "use_sop_head": options.use_sop_head,
        "data": _fingerprint(trainer.train_dataset),
        "model": {name: getattr(model.config, name) for name in (*ARCHITECTURE_FLAGS, *sizes)},
    }


def _fingerprint(examples: Any) -> str:
    """Tells one set of examples from another by a few of them."""
    digest = hashlib.sha256()
    for index in sorted({0, len(examples) // 2, len(examples) - 1}):
        digest.update(np.asarray(examples[index], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def _prepare_folder(folder: Path, wish: str | None, options: PretrainOptions, facts: dict[str, Any]) -> Path | None:
    """With the lock held: sweep up after killed runs, find the checkpoint to go on from, or clear for a new run."""
    checkpoints.sweep(folder)
    checkpoint = find_checkpoint(folder, wish)
    if checkpoint:
        refuse_other_run(checkpoint, facts)
    elif wish is None and options.overwrite_output_dir:
        clear(folder)
    return checkpoint


def _train(trainer: PretrainingTrainer, checkpoint: Path | None, folder: Path) -> None:
    """Train to the last step and leave the model, its tokenizer and the results in ``folder``."""
    arguments = trainer.args
    if checkpoint and _steps_done(checkpoint) >= trainer.last_step():
        if (folder / TRAIN_RESULTS_NAME).is_file():
            say(f"{folder}: the run is finished, {_steps_done(checkpoint)} of {trainer.last_step()} steps")
        trainer.load_finished(str(checkpoint))
        if (folder / TRAIN_RESULTS_NAME).is_file():
            return
        metrics = trainer.throughput.figures()
    else:
        metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
        metrics |= trainer.throughput.figures()
    trainer.check_before_saving()
    staged = folder / checkpoints.STAGING_NAME
    trainer.save_model(str(staged))
    if arguments.should_save:
        trainer.state.save_to_json(str(staged / "trainer_state.json"))
        install(staged, folder)
        files.write_json(folder / TRAIN_RESULTS_NAME, {"steps": trainer.state.global_step, **metrics})
        rate = metrics["real_tokens_per_second"]
        say(f"trained {trainer.state.global_step} steps, {rate:,.0f} real tokens/s; the model is in {folder}")


def _steps_done(checkpoint: Path) -> int:
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step


def _evaluate(trainer: PretrainingTrainer, folder: Path) -> None:
    """Evaluate, print the figures and leave them in ``folder``."""
    try:
        metrics = trainer.evaluate()
    except EvaluationAbandonedError:
        raise RunInterrupted(
            f"stopped during the evaluation, the model is saved; evaluate with: {resume_command(sys.argv)}"
        ) from None
    if trainer.is_world_process_zero():
        write_results(folder, metrics)
        say(f"evaluation loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}")


def _refuse_to_empty_source(folder: Path, source: Path) -> None:
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise UsageError(
            f"--overwrite_output_dir would delete --model_name_or_path {source} in --output_dir {folder}; "
            f"give another output folder"
        )


@contextmanager
def _folder_held(collectives: Collectives, folder: Path) -> Iterator[None]:
    """The lock of the output folder, which the first process takes for all of them."""
    with ExitStack() as stack:

        def take() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run_lock(folder))

        _on_first(collectives, take)
        yield


def _on_first(collectives: Collectives, function: Callable[[], Result]) -> Result:
    """Call ``function`` on the first process only; its value, or its complaint, reaches all of them."""
    value: Any = None
    complaint: CommandError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            value = function()
        except CommandError as error:
            complaint = error
    value, complaint = collectives.from_first((value, complaint))
    if complaint:
        raise complaint
    return value


@contextmanager
def _lost_process(world_size: int) -> Iterator[None]:
    """Say what a broken connection between processes means."""
    try:
        yield
    except RuntimeError as error:
        if world_size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise CommandError(
            "another process of this run has ended, so this one stops too; look for that one's message above, and go "
            f"on with: {resume_command(sys.argv)} ({_brief(error)})"
        ) from error


def _interrupted_hard(watch: SignalWatch, folder: Path, error: Exception) -> RunInterrupted:
    """The end of a run whose step in hand could not be finished after a signal."""
    last = checkpoints.newest_complete(folder)
    return RunInterrupted(
        f"stopped by {getattr(watch.received, 'name', '')} in a step that could not be finished "
        f"({_brief(error)}); the last checkpoint is {last or 'none'}; "
        f"go on with: {resume_command(sys.argv)}"
    )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:200].partition(chr(10))[0]}"


def _let_messages_through() -> None:
    """Once a process has ended, torchrun ends the others by SIGTERM, which must not cut the message off."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
