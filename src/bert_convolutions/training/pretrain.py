"""``bertconv pretrain``: check the flags, set up, train, save and evaluate."""

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from bert_convolutions import files
from bert_convolutions.errors import CommandError, RunInterrupted, UsageError, first_line
from bert_convolutions.hub import local_folder
from bert_convolutions.signals import SignalWatch, resume_command
from bert_convolutions.terminal import duration, say
from bert_convolutions.training import checkpoints, output_folder, setup
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.collectives import Collectives, lost_process_explained
from bert_convolutions.training.options import PretrainOptions
from bert_convolutions.training.output_folder import Start
from bert_convolutions.training.progress import checkpoint_name
from bert_convolutions.training.resumable import EvaluationAbandonedError
from bert_convolutions.training.trainer import PretrainingTrainer

MakeTrainer = Callable[[BertTrainingArguments], PretrainingTrainer]
_WARM_UP_STEPS, _MEASURED_STEPS = 3, 10
_MEASURED_SHARE = 0.05
"""Maximum fraction of ``--train_minutes`` that is spent on measuring."""


def run_pretraining(options: PretrainOptions, arguments: BertTrainingArguments) -> None:
    """Train and evaluate as the flags say; nothing is written before all of them have been checked.

    Raises:
        UsageError: bad input, or the output folder can't be used.
        RunInterrupted: a signal was received; the run was saved, or had not started.
        TrainingDiverged: the loss was NaN or infinite.
    """
    setup.check_flags(options, arguments)
    collectives = Collectives(arguments.world_size)
    folder = Path(arguments.output_dir or "")
    resume = output_folder.parse_resume_flag(arguments.resume_from_checkpoint)
    watch = SignalWatch()
    nothing_yet = "nothing had been trained yet: run the same command again"
    with watch.interrupt_on_signal(nothing_yet), lost_process_explained():
        if options.model_name_or_path:
            model_folder = str(local_folder(options.model_name_or_path))
            options = dataclasses.replace(options, model_name_or_path=model_folder)
            if options.overwrite_output_dir and arguments.do_train:  # a Hub name's folder is known only now
                files.refuse_overlap(folder, "--output_dir", {"--model_name_or_path": model_folder})
        tokenizer = setup.choose_tokenizer(options)
        config = setup.make_config(options, tokenizer)
        if arguments.do_train:
            collectives.on_first(lambda: output_folder.refuse_if_in_use(folder, resume, options.overwrite_output_dir))
        else:
            collectives.on_first(lambda: output_folder.refuse_other_model(folder, str(options.model_name_or_path)))
        opened: list[setup.Corpus] = []  # by the first process, which builds the examples while the others wait
        collectives.on_first(lambda: opened.append(setup.open_corpus(options, arguments, tokenizer)))
        corpus = opened[0] if opened else setup.open_corpus(options, arguments, tokenizer)
        model = setup.make_model(options, config, arguments.seed)

        def trial(changed: BertTrainingArguments) -> PretrainingTrainer:
            return setup.make_trainer(options, changed, copy.deepcopy(model), tokenizer, corpus, SignalWatch())

        with ExitStack() as stack:
            collectives.on_first(lambda: stack.enter_context(output_folder.locked_folder(folder)))
            start, minutes = Start(), options.train_minutes
            if arguments.do_train:
                start = collectives.on_first(lambda: output_folder.find_start(folder, resume))
            if minutes is not None and arguments.do_train:
                arguments.max_steps = _planned_steps(start) or count_steps_in(minutes, arguments, trial)
            trainer = setup.make_trainer(options, arguments, model, tokenizer, corpus, watch)
            if arguments.do_train:
                facts, last_step = trainer.run_facts, trainer.last_step()
                collectives.on_first(lambda: output_folder.refuse_other_run(folder, start, facts, last_step))
            with watch.finish_step_on_signal(), _explain_errors(folder, watch), lost_process_explained():
                if arguments.do_train:
                    overwrites = options.overwrite_output_dir and resume is None and trainer.is_world_process_zero()
                    with output_folder.set_earlier_run_aside(folder) if overwrites else nullcontext():
                        _train(trainer, start, folder, options)
                if arguments.do_eval:
                    _evaluate(trainer, folder)
    if dist.is_initialized():
        dist.destroy_process_group()


def _planned_steps(start: Start) -> int | None:
    """The number of steps that the resumed run chose for ``--train_minutes``; None if no run is resumed."""
    if start.run and "train_steps" not in start.run:
        raise UsageError(
            "--train_minutes: the run to resume was started with a number of steps; give --max_steps or "
            "--num_train_epochs"
        )
    return start.run.get("train_steps")


def count_steps_in(minutes: float, arguments: BertTrainingArguments, make_trainer: MakeTrainer) -> int:
    """Time some steps of a copy of the model; return how many fit in the rest of ``minutes``.

    Evaluation and saving are not included. The caller must seed the random generators again.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trial = copy.copy(arguments)
        trial.output_dir, trial.max_steps, trial.report_to = folder, _WARM_UP_STEPS + _MEASURED_STEPS, []
        trial.save_strategy = trial.eval_strategy = trial.logging_strategy = "no"
        trial.load_best_model_at_end = trial.eval_on_start = False
        trial.disable_tqdm = True
        trainer = make_trainer(trial)
        clock = _Stopwatch(trainer, minutes * 60 * _MEASURED_SHARE)
        trainer.add_callback(clock)
        trainer.train()
    spent = time.monotonic() - begun
    steps = max(int((minutes * 60 - spent) / clock.seconds_a_step), 1)
    steps = trainer.collectives.from_first(steps)
    took = f"{clock.seconds_a_step:.3g} s a step, {duration(spent)} of measuring"
    say(f"--train_minutes {minutes:g}: {steps:,} steps ({took})")
    return steps


class _Stopwatch(TrainerCallback):
    """Times steps until there are enough of them or ``enough`` seconds have passed."""

    def __init__(self, trainer: PretrainingTrainer, enough: float) -> None:
        self.trainer, self.enough = trainer, enough
        self.ends: list[float] = []

    @property
    def seconds_a_step(self) -> float:
        """Mean over the steps after the warm-up, or over all but the first if there are too few."""
        ends = self.ends[min(_WARM_UP_STEPS, len(self.ends) - 2) :]
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic())
        enough = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > self.enough
        control.should_training_stop = self.trainer.collectives.from_first(enough)


def _train(trainer: PretrainingTrainer, start: Start, folder: Path, options: PretrainOptions) -> None:
    """Train to the last step and write the model, its tokenizer and the results to ``folder``."""
    last_step = trainer.last_step()
    if start.finished >= last_step:
        trainer.load_finished(folder)
        say(f"{folder}: the run is finished, {start.finished} of {last_step} steps")
        return
    if start.step >= last_step:
        trainer.load_finished(Path(str(start.source)))
        trainer.finish()
        metrics = {}
    else:
        if trainer.is_world_process_zero():
            setup.report_lost_text(trainer.train_dataset, trainer.processing_class, trainer.data_collator.block_size)
        metrics = trainer.train(resume_from_checkpoint=str(start.source) if start.source else None).metrics
    trainer.check_before_saving()
    metrics |= trainer.throughput_metrics()
    staged = folder / checkpoints.STAGING_NAME
    trainer.save_model(str(staged))
    if trainer.args.should_save:
        trainer.state.save_to_json(str(staged / checkpoints.TRAINER_STATE_NAME))
        inputs = {name: getattr(options, name) for name in ("model_name_or_path", "train_data_file")}
        results = {"steps": trainer.state.global_step, **metrics, **inputs, "run": trainer.run_facts}
        files.write_json(staged / output_folder.TRAIN_RESULTS_NAME, results)
        output_folder.install(staged, folder)
        rate = metrics["real_tokens_per_second"]
        say(f"trained {trainer.state.global_step} steps, {rate:,.0f} real tokens/s; the model is in {folder}")
        if trainer.words.targets:
            missed = ", ".join(map(checkpoint_name, trainer.words.targets))
            say(f"--save_at_words: training has ended after {trainer.words.seen:,} words, before {missed}")


def _evaluate(trainer: PretrainingTrainer, folder: Path) -> None:
    """Evaluate, print the metrics and write them to ``folder``."""
    try:
        metrics = trainer.evaluate()
    except EvaluationAbandonedError:
        raise RunInterrupted(
            f"stopped during the evaluation; the model is saved; evaluate with: {resume_command()}"
        ) from None
    if trainer.is_world_process_zero():
        output_folder.write_evaluation(folder, metrics)
        say(f"evaluation loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}")


@contextmanager
def _explain_errors(folder: Path, watch: SignalWatch) -> Iterator[None]:
    """Explain an error in a step that a signal interrupted."""
    try:
        yield
    except Exception as error:
        if watch.received is None or isinstance(error, CommandError):
            raise
        brief = f"{type(error).__name__}: {first_line(error)[:200]}"
        last = checkpoints.newest_complete(folder)
        advice = f"resume with: {resume_command()}" if last else "run the same command again"
        raise RunInterrupted(
            f"stopped by {watch.cause} in a step that could not be finished ({brief}); the last checkpoint is "
            f"{last or 'none'}; {advice}"
        ) from error
