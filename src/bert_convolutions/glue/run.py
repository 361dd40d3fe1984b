"""``bertconv glue``: fine-tune, score and predict every (task, round) that is not done yet."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import PartialState
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from bert_convolutions.data.tokenizer import load_tokenizer
from bert_convolutions.errors import RunInterrupted, UsageError
from bert_convolutions.files import run_lock, write_text
from bert_convolutions.glue.data import GlueData, evaluates_in_training
from bert_convolutions.glue.finetune import GlueTrainer, finetune, global_batch_size
from bert_convolutions.glue.models import check_fit, load_config, load_finetuned, load_pretrained
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.glue.plan import Job, changed_settings, describe_training, plan_jobs, planned_steps
from bert_convolutions.glue.predict import evaluate, format_predictions, predict_logits
from bert_convolutions.glue.progress import Progress, score_table
from bert_convolutions.glue.state import (
    TaskState,
    clear_folder,
    delete_checkpoints,
    format_results,
    read_state,
    write_state,
)
from bert_convolutions.glue.submit import collect_scores
from bert_convolutions.terminal import duration, make_console
from bert_convolutions.training import checkpoints
from bert_convolutions.training.collectives import Collectives
from bert_convolutions.training.signals import SIGNALS, resume_command


def run_glue(options: GlueOptions, arguments: TrainingArguments) -> None:
    """Run ``bertconv glue``.

    Args:
        options: tasks, model, data.
        arguments: the Trainer's; each task gets its own copy with its folder, seed and hyper-parameters.

    Raises:
        UsageError: bad input, or nothing could be predicted.
        RunInterrupted: a signal came; the same command goes on.
        TrainingDiverged: a loss became NaN or infinite.
    """
    output_dir = Path(str(arguments.output_dir))
    _ = arguments.device  # joins the other processes, on the device that the flags ask for
    processes = PartialState()
    jobs = plan_jobs(options, arguments)
    processes.wait_for_everyone()  # all have planned from the same folders before one writes to them
    run = GlueRun(options, jobs, processes)
    with stopped_by_signals():
        run.check_data()
        if processes.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            with run_lock(output_dir):
                run.run()
        else:
            run.run()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Outside of training, where there is nothing to save, SIGTERM and SIGINT end the run at once.

    Raises:
        RunInterrupted: a signal came.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise interrupted(signal.Signals(number))

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(number: signal.Signals) -> RunInterrupted:
    """Return the error that ends a run between two stages, all of which are safe on the disk."""
    return RunInterrupted(f"stopped by {number.name}; what is done is kept; go on with: {resume_command(sys.argv)}")


@dataclass
class Finetuned:
    """A fine-tuned model in memory, with the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def collator(self) -> DataCollatorWithPadding:
        """Pads examples to the longest of them."""
        return DataCollatorWithPadding(self.tokenizer)


class GlueRun:
    """The jobs of one command, one after the other."""

    def __init__(self, options: GlueOptions, jobs: list[Job], processes: PartialState) -> None:
        self.options = options
        self.jobs = jobs
        self.processes = processes
        self.data = GlueData(Path(options.data_dir), options.max_seq_length)
        self.console = make_console(quiet=not processes.is_main_process)
        self.progress = Progress(self.console, {}, 0)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.not_predicted: list[str] = []
        self.num_predicted = sum(len(job.state.predicted) for job in jobs if job.state and not job.predict)

    def check_data(self) -> None:
        """Read all files and the tokenizer before anything is written."""
        open_jobs = [job for job in self.jobs if not job.finished]
        counts = self.data.check(open_jobs)
        work = {
            job.name: planned_steps(job, counts[job.task.name]) * global_batch_size(job.arguments)
            for job in open_jobs
            if job.train
        }
        self.progress = Progress(self.console, work, len(open_jobs))
        if work:
            load_config(str(self.options.model_name_or_path))
        tokenizer_path = self.options.tokenizer_name or (self.options.model_name_or_path if work else None)
        if tokenizer_path is not None:
            self.tokenizer = load_tokenizer(tokenizer_path)

    def run(self) -> None:
        """Run every job that is not finished, and print the dev table."""
        for job in self.jobs:
            if job.finished:
                self._report_finished(job)
                continue
            finetuned = self._train(job) if job.train else self._load(job)
            if finetuned is None:
                continue
            if job.evaluate:
                self._evaluate(job, finetuned)
            self._predict(job, finetuned)
        self._summarise()

    def _report_finished(self, job: Job) -> None:
        changed = changed_settings(job, self.options.max_seq_length)
        note = f", with {changed}; --overwrite_output_dir runs it again" if changed else ""
        self.progress.say(f"{job.name}: done before{note}")

    def _train(self, job: Job) -> Finetuned:
        """Fine-tune and save; only then is the folder's state set to trained."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise RuntimeError("a job is trained with a tokenizer")
        start = self._start(job)
        arguments = job.arguments
        train = self.data.train(tokenizer, job.task)
        dev = self.data.dev(tokenizer, job.task) if job.evaluate or evaluates_in_training(job) else {}
        self.progress.start(job.name, f"{describe_training(job, len(train))}, from {start}")
        set_seed(arguments.seed)
        model = load_pretrained(start, job.task)
        own = self.options.tokenizer_name in (None, self.options.model_name_or_path)
        check_fit(model, tokenizer, own, self.options.max_seq_length)
        settings = {**job.settings(self.options.max_seq_length), "model": start}
        checkpoint = self._prepare_folder(job, settings)
        trainer = GlueTrainer(
            job.task,
            train,
            dev,
            model=model,
            args=arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            save_every_minutes=self.options.save_every_minutes,
        )
        trained = finetune(trainer, tokenizer, checkpoint)
        self._update(job, TaskState(job.task.name, settings, trained=True))
        if self.processes.is_main_process:
            delete_checkpoints(job.folder)
        self.progress.say(f"{job.name}: trained in {duration(self.progress.trained(job.name))}")
        if trainer.watch.received is not None:  # too late to stop a step
            raise interrupted(trainer.watch.received)
        return Finetuned(trained, tokenizer)

    def _prepare_folder(self, job: Job, settings: dict[str, Any]) -> Path | None:
        """Return the checkpoint that a half-finished run of the same settings left; clear the folder otherwise."""
        checkpoint = None
        if self.processes.is_main_process:
            job.folder.mkdir(parents=True, exist_ok=True)
            before = None if self.options.overwrite_output_dir else read_state(job.folder)
            if before is not None and not before.trained and before.settings == settings:
                checkpoints.sweep(job.folder)
                checkpoint, skipped = checkpoints.newest_valid(job.folder)
                for path, fault in skipped:
                    self.progress.say(f"{job.name}: skipped {path}: {fault}")
            if checkpoint is None:
                clear_folder(job.folder)
                write_state(job.folder, TaskState(job.task.name, settings))
            else:
                checkpoints.refuse_unsafe_files(checkpoint)
                self.progress.say(f"{job.name}: going on from {checkpoint}")
        found: Path | None = Collectives(self.processes.num_processes).from_first(checkpoint)
        return found

    def _start(self, job: Job) -> str:
        """Return the folder of the model that a job starts from."""
        encoder = job.mnli_encoder
        model = str(self.options.model_name_or_path)
        if encoder is None:
            return model
        mnli = read_state(encoder.parent)
        if mnli is not None and mnli.trained and encoder.is_dir():
            return str(encoder)
        self.progress.say(
            f"{job.name}: no encoder fine-tuned on MNLI in this round ({encoder} is not there): starts from {model}; "
            "scores of the paper start from MNLI's (put MNLI into --task_name)"
        )
        return model

    def _load(self, job: Job) -> Finetuned | None:
        """Load a model fine-tuned before; report one that is not there."""
        self.progress.start(job.name, "score and predict" if job.evaluate else "predict")
        try:
            if job.state is not None and not job.state.trained:
                raise UsageError(f"{job.folder} was not trained to the end: run it again with --do_train")
            model = load_finetuned(job.folder, job.task)
            tokenizer = self.tokenizer if self.options.tokenizer_name else load_tokenizer(str(job.folder))
        except UsageError as error:
            self.not_predicted.append(job.name)
            self.progress.say(f"{job.name}: left out: {error}")
            return None
        if tokenizer is None:
            raise RuntimeError("--tokenizer_name was given and loaded")
        check_fit(model, tokenizer, self.options.tokenizer_name is None, self.options.max_seq_length)
        return Finetuned(model, tokenizer)

    def _evaluate(self, job: Job, finetuned: Finetuned) -> None:
        """Score the development sets and write ``eval_results_<task>.txt``."""
        dev = self.data.dev(finetuned.tokenizer, job.task)
        results = evaluate(finetuned.model, job.task, dev, finetuned.collator, job.arguments)
        if self.processes.is_main_process:
            for name, scores in results.items():
                write_text(job.folder / f"eval_results_{name}.txt", format_results(scores))
        state = self._state(job)
        state.dev = results
        self._update(job, state)
        for scores in results.values():
            line = ", ".join(f"{name} = {value:.4f}" for name, value in scores.items())
            self.progress.say(f"{job.name}: {line}")

    def _predict(self, job: Job, finetuned: Finetuned) -> None:
        """Write ``test_results_<task>.txt`` of each test set that is there."""
        for test in job.predict:
            if not self.data.has_test(test):
                self.not_predicted.append(f"{job.name} ({test.path})")
                self.progress.say(f"{job.name}: no test file {self.data.data_dir / test.path}: not predicted")
                continue
            examples, indices = self.data.test(finetuned.tokenizer, test)
            logits = predict_logits(finetuned.model, examples, finetuned.collator, job.arguments)
            path = job.folder / f"test_results_{test.name}.txt"
            if self.processes.is_main_process:
                write_text(path, format_predictions(logits, indices, finetuned.model, job.task))
            state = self._state(job)
            state.predicted[test.name] = len(indices)
            self._update(job, state)
            self.num_predicted += 1
            self.progress.say(f"{job.name}: {len(indices)} predictions in {path}")

    def _state(self, job: Job) -> TaskState:
        return read_state(job.folder) or TaskState(job.task.name, settings={}, trained=True)

    def _update(self, job: Job, state: TaskState) -> None:
        if self.processes.is_main_process:
            write_state(job.folder, state)
        self.processes.wait_for_everyone()

    def _summarise(self) -> None:
        """Print the dev table of a run of several rounds, and what could not be predicted."""
        arguments = self.jobs[0].arguments
        if self.jobs[0].round_number is not None:
            folder = self.jobs[0].folder.parent
            scores = {title: column for title, column in collect_scores(folder).items() if column}
            if scores:
                self.console.print(score_table(scores, f"Dev scores of {folder}, times 100"))
        if self.not_predicted:
            self.progress.say(f"Left out: {', '.join(self.not_predicted)}")
        if arguments.do_predict and not self.num_predicted:
            raise UsageError(
                f"nothing could be predicted: {', '.join(self.not_predicted)}; fine-tune first (--do_train), and see "
                "that --output_dir and --data_dir are the right ones"
            )
