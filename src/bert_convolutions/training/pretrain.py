"""``bertconv pretrain``: check, set up, train, save, evaluate; one function for each, called in this order."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from bert_convolutions import files
from bert_convolutions.errors import CommandError, RunInterrupted, UsageError
from bert_convolutions.terminal import say
from bert_convolutions.training import checkpoints
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.budgets import steps_in
from bert_convolutions.training.collectives import Collectives
from bert_convolutions.training.corpus import Corpus, open_corpus
from bert_convolutions.training.options import PretrainOptions
from bert_convolutions.training.output_folder import (
    TRAIN_RESULTS_NAME,
    Start,
    earlier_facts,
    find_start,
    held,
    install,
    refuse_if_in_use,
    replacing,
    resume_wish,
    write_evaluation,
)
from bert_convolutions.training.resumable import EvaluationAbandonedError
from bert_convolutions.training.setup import check_flags, choose_tokenizer, compose_config, compose_model, make_trainer
from bert_convolutions.training.signals import SignalWatch, resume_command
from bert_convolutions.training.trainer import PretrainingTrainer


def run_pretraining(options: PretrainOptions, arguments: BertTrainingArguments) -> None:
    """Train and evaluate as the flags say; nothing is written before they have all been checked.

    Raises:
        UsageError: bad input, or the folder is not to be used.
        RunInterrupted: a signal came; the run was saved, or had not begun.
        TrainingDiverged: the loss was NaN or infinite.
    """
    check_flags(options, arguments)
    collectives = Collectives(arguments.world_size)
    folder = Path(arguments.output_dir or "")
    wish = resume_wish(arguments.resume_from_checkpoint)
    watch = SignalWatch()
    with watch.ending_at_once("nothing had been trained yet: run the same command again"):
        tokenizer = choose_tokenizer(options)
        config = compose_config(options, tokenizer)
        if arguments.do_train:
            collectives.on_first(lambda: refuse_if_in_use(folder, wish, options.overwrite_output_dir))
        corpus = _open_data(collectives, options, arguments, tokenizer)
        model = compose_model(options, config, arguments.seed)
        with _lost_process(arguments.world_size), _folder_held(collectives, folder):
            if options.train_minutes is not None and arguments.do_train:

                def trial(changed: BertTrainingArguments) -> PretrainingTrainer:
                    return make_trainer(options, changed, copy.deepcopy(model), tokenizer, corpus, SignalWatch())

                earlier = collectives.on_first(lambda: earlier_facts(folder, wish))
                arguments.max_steps = _fixed_steps(options.train_minutes, arguments, earlier, trial)
            trainer = make_trainer(options, arguments, model, tokenizer, corpus, watch)
            start = Start(None, False)
            if arguments.do_train:
                start = collectives.on_first(lambda: find_start(folder, wish, trainer.run_facts, trainer.last_step()))
            with watch.installed(), _hard_end_explained(watch, folder), _lost_process(arguments.world_size):
                if arguments.do_train:
                    overwrites = options.overwrite_output_dir and wish is None and trainer.is_world_process_zero()
                    with replacing(folder, overwrites):
                        _train(trainer, start, folder)
                if arguments.do_eval:
                    _evaluate(trainer, folder)
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
        collectives.on_first(lambda: open_data() and None)
    return open_data()


def _fixed_steps(
    minutes: float,
    arguments: BertTrainingArguments,
    earlier: Mapping[str, Any] | None,
    trial: Callable[[BertTrainingArguments], PretrainingTrainer],
) -> int:
    """The steps of ``--train_minutes``: those of the run that is gone on with, or measured.

    Raises:
        UsageError: that run was begun with another limit.
    """
    if not earlier:
        return steps_in(minutes, arguments, trial)
    if "train_steps" not in earlier:
        raise UsageError(
            "--train_minutes: the run to go on with was begun with a number of steps; give --max_steps or "
            "--num_train_epochs"
        )
    return int(earlier["train_steps"])


def _train(trainer: PretrainingTrainer, start: Start, folder: Path) -> None:
    """Train to the last step and leave the model, its tokenizer and the results in ``folder``."""
    last_step = trainer.last_step()
    if start.step >= last_step:
        trainer.load_finished(str(start.source))
        if start.is_finished:
            say(f"{folder}: the run is finished, {start.step} of {last_step} steps")
            return
        metrics = {}
    else:
        metrics = trainer.train(resume_from_checkpoint=str(start.source) if start.source else None).metrics
    trainer.check_before_saving()
    metrics |= trainer.figures()
    staged = folder / checkpoints.STAGING_NAME
    trainer.save_model(str(staged))
    if trainer.args.should_save:
        trainer.state.save_to_json(str(staged / "trainer_state.json"))
        results = {"steps": trainer.state.global_step, **metrics, "run": trainer.run_facts}
        files.write_json(staged / TRAIN_RESULTS_NAME, results)
        install(staged, folder)
        rate = metrics["real_tokens_per_second"]
        say(f"trained {trainer.state.global_step} steps, {rate:,.0f} real tokens/s; the model is in {folder}")


def _evaluate(trainer: PretrainingTrainer, folder: Path) -> None:
    """Evaluate, print the figures and leave them in ``folder``."""
    try:
        metrics = trainer.evaluate()
    except EvaluationAbandonedError:
        raise RunInterrupted(
            f"stopped during the evaluation, the model is saved; evaluate with: {resume_command()}"
        ) from None
    if trainer.is_world_process_zero():
        write_evaluation(folder, metrics)
        say(f"evaluation loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}")


@contextmanager
def _folder_held(collectives: Collectives, folder: Path) -> Iterator[None]:
    """The output folder, which the first process holds for all of them."""
    with ExitStack() as stack:
        collectives.on_first(lambda: stack.enter_context(held(folder)))
        yield


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
            f"on with: {resume_command()} ({_brief(error)})"
        ) from error


@contextmanager
def _hard_end_explained(watch: SignalWatch, folder: Path) -> Iterator[None]:
    """Say where a run stands whose step in hand could not be finished after a signal: a compiler that it hit too."""
    try:
        yield
    except Exception as error:
        if watch.received is None or isinstance(error, CommandError):
            raise
        last = checkpoints.newest_complete(folder)
        way = f"go on with: {resume_command()}" if last else "run the same command again"
        raise RunInterrupted(
            f"stopped by {watch.cause} in a step that could not be finished ({_brief(error)}); the last checkpoint is "
            f"{last or 'none'}; {way}"
        ) from error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:200].partition(chr(10))[0]}"
