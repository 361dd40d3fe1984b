"""``bertconv glue``: fine-tunes, scores and predicts every unfinished (task, round)."""

import contextlib
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from bert_convolutions.data.loading import NOTED_CUT, load_tokenizer, tokenizer_hash
from bert_convolutions.errors import FolderInUse, RunInterrupted, TrainingDiverged, UsageError
from bert_convolutions.files import ASIDE_NAME, discard_aside, make_folder, refuse_overlap, run_lock, write_text
from bert_convolutions.glue import models, state
from bert_convolutions.glue.examples import GlueData, layout_for
from bert_convolutions.glue.finetune import GlueTrainer, finetune
from bert_convolutions.glue.hyperparameters import DEFAULT, FLAG, TRAINER_FLAGS
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.glue.plan import (
    Job,
    check_flags,
    describe_training,
    plan_again,
    plan_jobs,
    refuse_other_settings,
)
from bert_convolutions.glue.predict import evaluate, format_predictions, predict_logits
from bert_convolutions.glue.progress import Progress
from bert_convolutions.glue.submit import (
    METRICS_FILE,
    collect_scores,
    different_models,
    mixed_rounds,
    score_table,
    write_metrics,
)
from bert_convolutions.glue.tasks import TASKS
from bert_convolutions.schemas import TaskState
from bert_convolutions.signals import SignalWatch, resume_command
from bert_convolutions.terminal import make_console
from bert_convolutions.training import checkpoints
from bert_convolutions.training.collectives import Collectives, lost_process_explained

Finetuned = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A fine-tuned model and the tokenizer it was trained with."""
_NEEDS = ("pad_token",)
"""Of the special tokens, the one without which there are no batches; a tokenizer puts the others where it has them."""


def run_glue(options: GlueOptions, arguments: TrainingArguments) -> None:
    """Run ``bertconv glue``; each task has its own copy of the arguments with its folder, seed and hyper-parameters.

    Raises:
        UsageError: bad input, earlier results with other settings, or nothing could be predicted.
        RunInterrupted: a signal was received; the same command continues.
        TrainingDiverged: a loss became NaN or infinite.
    """
    output_dir = Path(str(arguments.output_dir))
    _ = arguments.device  # joins the other processes on the requested device
    processes = PartialState()
    check_flags(options, arguments)
    watch = SignalWatch()  # except in training, where there is something to save
    with watch.interrupt_on_signal(_advice()), lost_process_explained():
        if processes.is_main_process:
            _settle_killed_overwrites(output_dir)
        processes.wait_for_everyone()
        jobs = plan_jobs(options, arguments)
        processes.wait_for_everyone()  # all plan before one writes to the folders
        run = _GlueRun(options, jobs, processes)
        refuse_overlap(output_dir, "--output_dir", {"--model_name_or_path": run.model_folder})  # a Hub name's folder
        if processes.is_main_process:
            make_folder(output_dir, "--output_dir")
            if options.overwrite_output_dir:  # another process would take old results for new ones, or lose its own
                for folder in {job.folder for job in jobs if job.folder.is_dir()}:
                    with run_lock(folder):
                        pass
        run.run()


def _advice() -> str:
    return f"finished work is kept; resume with: {resume_command()}"


def _settle_killed_overwrites(output_dir: Path) -> None:
    """Complete or undo overwrites that were killed, in the output folder and its tasks' folders."""
    for folder in (output_dir, *output_dir.glob("*")):
        if (folder / ASIDE_NAME).is_dir():
            with contextlib.suppress(FolderInUse), run_lock(folder):
                state.settle_overwrite(folder)


class _GlueRun:
    """Runs the jobs of one command one after the other, except those that another command is working on.

    All files and the tokenizer are read, and earlier results are compared, before anything is written.

    Raises:
        UsageError: bad input, or earlier results or checkpoints with other settings.
    """

    def __init__(self, options: GlueOptions, jobs: list[Job], processes: PartialState) -> None:
        self.options, self.jobs, self.processes = options, jobs, processes
        self.arguments, self.collectives = jobs[0].arguments, Collectives(processes.num_processes)
        self.data = GlueData(Path(options.data_dir) if options.data_dir else None, options.max_seq_length)
        self.skipped: list[str] = []
        self.damaged: list[str] = []
        self._fingerprints: dict[Path, str] = {}
        unfinished = [job for job in jobs if not job.finished]
        counts = self.data.check(unfinished)
        work = {job.name: job.steps(counts[job.task.name]) * job.batch_size for job in unfinished if job.train}
        self.progress = Progress(make_console(quiet=not processes.is_main_process), work, len(unfinished))
        trains = self.arguments.do_train
        self.model_folder = models.locate_model(str(options.model_name_or_path)) if trains else None
        tokenizer_path = options.tokenizer_name or self.model_folder
        self.tokenizer = (
            load_tokenizer(tokenizer_path, self.model_folder, _NEEDS) if tokenizer_path is not None else None
        )
        self.encoding: dict[str, Any] = {"max_seq_length": options.max_seq_length}
        if self.tokenizer is not None:
            self.encoding["tokenizer"] = tokenizer_hash(self.tokenizer)
        to_be_trained = {job.folder for job in jobs if job.train}
        for job in jobs:
            self._refuse_other_settings(job, to_be_trained)

    def run(self) -> None:
        """Run every unfinished job and print the dev table."""
        several = self.jobs[0].round_number is not None
        if several and self.options.hyperparams is None and any(job.train and not job.task.is_own for job in self.jobs):
            self.progress.say(
                f"{FLAG} {DEFAULT}: the default for several tasks or rounds ({FLAG} {TRAINER_FLAGS}: the Trainer's)"
            )
        waiting, left = self.jobs, len(self.jobs) + 1
        while len(waiting) < left:  # others may have become free meanwhile
            left = len(waiting)
            waiting = [job for job in waiting if not self._run(job)]
        if several:
            self._print_scores()
        if self.skipped:
            self.progress.say(f"Left out: {', '.join(self.skipped)}")
        if waiting:
            self.progress.say(f"Left to other processes: {', '.join(job.name for job in waiting)}")
        if self.damaged:
            raise UsageError(f"{'; '.join(self.damaged)}: fine-tune it again, or restore the files")
        if self.arguments.do_predict and not waiting and not self._has_predictions():
            raise UsageError(
                f"nothing could be predicted: {', '.join(self.skipped)}; fine-tune first (--do_train), and check "
                "--output_dir and --data_dir"
            )

    def _has_predictions(self) -> bool:
        return any(found.predicted for job in self.jobs if (found := state.read_state(job.folder)))

    def _run(self, planned: Job) -> bool:
        """Run a job, if it isn't finished; return False if another process is working on it or its MNLI encoder."""
        if planned.finished:
            self.progress.say(f"{planned.name}: done before")
            return True
        with self._claim(planned) as job:
            if job is None:
                return False
            if job.finished:
                self.progress.say(f"{job.name}: done by another process")
                self.progress.drop(job.name)
                return True
            finetuned = self._train(job) if job.train else self._load(job)
            if finetuned is not None:
                self._evaluate(job, *finetuned)
                self._predict(job, *finetuned)
        return True

    @contextlib.contextmanager
    def _claim(self, job: Job) -> Iterator[Job | None]:
        """Lock a job's folder; yield the job with what other processes have left to do, or None if it isn't free."""
        with contextlib.ExitStack() as stack:
            is_free = not self.processes.is_main_process or self._lock(job, stack)
            if not self.collectives.from_first(is_free):
                yield None
                return
            now = plan_again(job, self.options)
            self._refuse_other_settings(now, set())
            self.processes.wait_for_everyone()  # all have read the folder before one writes to it
            yield now

    def _lock(self, job: Job, stack: contextlib.ExitStack) -> bool:
        """Lock a job's folder until ``stack`` is closed; return False if it, or its MNLI encoder, is another's."""
        encoder = job.mnli_encoder
        if job.train and encoder is not None and encoder.parent in {other.folder for other in self.jobs}:
            mnli = state.read_state(encoder.parent)
            if mnli is None or not mnli.trained:
                return False
        if job.train:
            make_folder(job.folder, "--output_dir")
        try:
            if job.folder.is_dir():
                stack.enter_context(run_lock(job.folder))
        except FolderInUse:
            if job.round_number is None:
                raise
            return False
        return True

    def _refuse_other_settings(self, job: Job, to_be_trained: Collection[Path]) -> None:
        """Refuse what an earlier run, or another process, has left with other settings."""
        before = job.state
        is_begun = before is not None and (before.trained or checkpoints.newest_complete(job.folder))
        if self.options.overwrite_output_dir or not is_begun:
            return
        if not self.arguments.do_train:  # a score or prediction at another length is not that of the model
            refuse_other_settings(job, {} if job.finished else self.encoding)
            return
        encoder = job.mnli_encoder
        is_pending = encoder is not None and encoder.parent in to_be_trained
        start = encoder if encoder is not None and is_pending else self._start_folder(job)
        refuse_other_settings(job, self._settings(job, start, is_pending))

    def _settings(self, job: Job, start: Path, is_pending: bool = False) -> dict[str, Any]:
        """JSON values that a job's result depends on; ``is_pending`` if the model in ``start`` is not yet trained."""
        if not is_pending and start not in self._fingerprints:
            self._fingerprints[start] = models.fingerprint(start)
        settings = {
            **job.settings(),
            **self.encoding,
            "train_data": self.data.train_hash(job.task),
            "weights": "not yet trained" if is_pending else self._fingerprints[start],
            "model": str(self.options.model_name_or_path) if start == self.model_folder else str(start),
        }
        as_json: dict[str, Any] = json.loads(json.dumps(settings))
        return as_json

    def _start_folder(self, job: Job) -> Path:
        """The folder of the model that a job starts from."""
        encoder = job.mnli_encoder
        mnli = state.read_state(encoder.parent) if encoder else None
        if encoder and mnli and mnli.trained and encoder.is_dir():
            return encoder
        assert self.model_folder is not None  # --do_train needs it
        return self.model_folder

    def _train(self, job: Job) -> Finetuned:
        """Fine-tune and save, then set the folder's state to trained."""
        tokenizer = self.tokenizer
        assert tokenizer is not None  # loaded with the model
        start = self._start_folder(job)
        settings = self._settings(job, start)
        train = self.data.encoded(tokenizer, job.task, job.task.train)
        dev = self.data.dev(tokenizer, job.task) if job.reads_dev else {}
        self.progress.start(job.name, f"{describe_training(job, len(train))}, from {settings['model']}")
        longest = self.options.max_seq_length
        cut = float((train.lengths == longest).mean())
        if cut > NOTED_CUT and not job.task.per_token:  # where the rest of a sentence is another example
            self.progress.say(f"{job.name}: {cut:.0%} of the examples are cut off at --max_seq_length {longest}")
        if job.mnli_encoder not in (None, start):
            self.progress.say(
                f"{job.name}: no encoder fine-tuned on MNLI in this round ({job.mnli_encoder} is not there): starts "
                f"from {start}; scores of the paper start from MNLI's (put MNLI into --task_name)"
            )
        set_seed(job.arguments.seed)
        model = models.load_pretrained(start, job.task)
        own = self.options.tokenizer_name in (None, self.options.model_name_or_path)
        models.check_fit(model, tokenizer, own, self.options.max_seq_length)
        trainer = GlueTrainer(
            job.task,
            train,
            dev,
            layout_for(model, tokenizer, job.task.per_token),
            model=model,
            args=job.arguments,
            processing_class=tokenizer,
            save_every_minutes=self.options.save_every_minutes,
        )
        try:
            trained, saved = finetune(trainer, tokenizer, self._prepare_folder(job, settings))
            self._update_state(job, settings=settings, trained=True, saved=saved)
        except BaseException:
            if self.processes.is_main_process:
                with contextlib.suppress(OSError):  # a full disk must not hide the error
                    state.settle_overwrite(job.folder)
            raise
        if self.processes.is_main_process:
            discard_aside(job.folder)
            state.delete_checkpoints(job.folder)
        self.progress.say(f"{job.name}: trained in {self.progress.end_training(job.name)}")
        if trainer.watch.received is not None:  # received after the last step
            raise RunInterrupted(f"stopped by {trainer.watch.cause}; {_advice()}")
        return trained, tokenizer

    def _prepare_folder(self, job: Job, settings: dict[str, Any]) -> Path | None:
        """The checkpoint of an interrupted run with the same settings; otherwise None, after starting anew."""
        checkpoint = None
        if self.processes.is_main_process:
            if job.state is not None:
                checkpoints.clean_up(job.folder)
                checkpoint, skipped = checkpoints.newest_valid(job.folder)
                for path, fault in skipped:
                    self.progress.say(f"{job.name}: skipped {path}: {fault}")
            if checkpoint is None:
                state.start_anew(job.folder, TaskState(task=job.task.name, settings=settings))
            else:
                refuse_other_settings(job, settings)
                checkpoints.refuse_unsafe_files(checkpoint)
                self.progress.say(f"{job.name}: resuming from {checkpoint}")
        found: Path | None = self.collectives.from_first(checkpoint)
        return found

    def _load(self, job: Job) -> Finetuned | None:
        """Load a fine-tuned model; report it and return None if that fails."""
        stages = [name for name, wanted in (("score", job.evaluate), ("predict", job.predict)) if wanted]
        self.progress.start(job.name, " and ".join(stages))
        try:
            if job.state is not None and not job.state.trained:
                raise UsageError(f"{job.folder} was not trained to the end: run it again with --do_train")
            fault = state.fault_in(job.folder, job.state) if job.state else ""
            if fault:
                self.damaged.append(fault)
                raise UsageError(fault)
            model = models.load_finetuned(job.folder, job.task)
            named = self.tokenizer if self.options.tokenizer_name else None
            tokenizer = named or load_tokenizer(job.folder, needs=_NEEDS)
        except UsageError as error:
            self.skipped.append(job.name)
            self.progress.say(f"{job.name}: left out: {error}")
            return None
        models.check_fit(model, tokenizer, named is None, self.options.max_seq_length)
        return model, tokenizer

    def _evaluate(self, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Score the development sets, if requested, and write ``eval_results_<task>.txt``."""
        if not job.evaluate:
            return
        layout = layout_for(model, tokenizer, job.task.per_token)
        results = evaluate(model, job.task, self.data.dev(tokenizer, job.task), layout, job.arguments)
        for name, scores in results.items():
            if not all(math.isfinite(value) for value in scores.values()):
                raise TrainingDiverged(f"{job.name}: its scores on {name} are not finite: {scores}; run it again")
        if self.processes.is_main_process:
            for dev_set in job.task.dev:
                lines = "".join(f"{score} = {value}\n" for score, value in results[dev_set.name].items())
                write_text(job.folder / dev_set.results, lines)
        self._update_state(job, dev=results)
        for scores in results.values():
            self.progress.say(f"{job.name}: " + ", ".join(f"{name} = {value:.4f}" for name, value in scores.items()))

    def _predict(self, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write ``test_results_<task>.txt`` of each test set that exists."""
        layout = layout_for(model, tokenizer, job.task.per_token)
        before = state.read_state(job.folder)
        predicted = dict(before.predicted) if before else {}
        for test in job.predict:
            if not self.data.has_test(job.task, test):
                self.skipped.append(f"{job.name} ({test.path})")
                self.progress.say(f"{job.name}: no test file {self.data.root(job.task) / test.path}: not predicted")
                continue
            examples = self.data.encoded(tokenizer, job.task, test.path, test)
            logits = predict_logits(model, examples, layout, job.arguments)
            path = job.folder / test.results
            if self.processes.is_main_process:
                write_text(path, format_predictions(logits, examples, model, job.task))
            predicted[test.name] = len(examples.indices or ())
            self._update_state(job, predicted=dict(predicted))
            self.progress.say(f"{job.name}: {predicted[test.name]} predictions in {path}")

    def _update_state(self, job: Job, **changes: Any) -> None:
        """Change fields of the state in a job's folder; all processes wait for it.

        A trained model that was copied there has no state.
        """
        if self.processes.is_main_process:
            before = state.read_state(job.folder) or TaskState(task=job.task.name, settings={}, trained=True)
            data = before.data | self.data.hashes(job.task)
            state.write_state(job.folder, before.model_copy(update={"data": data, **changes}))
        self.processes.wait_for_everyone()

    def _print_scores(self) -> None:
        """Print the dev table of all tasks and rounds in the output folder, and write all metrics."""
        folder = self.jobs[0].folder.parent
        tasks = (*TASKS, *{job.task.name: job.task for job in self.jobs if job.task.is_own}.values())
        scores = {title: column for title, column in collect_scores(folder, tasks).items() if column}
        if scores:
            self.progress.console.print(score_table(scores, f"Dev scores of {folder}, times 100"))
            if self.processes.is_main_process:
                write_metrics(folder)
            self.progress.say(f"All metrics: {folder / METRICS_FILE}")
        if several := different_models(folder):
            self.progress.say(several, style="bold red")
        if mixed := mixed_rounds(folder, tasks):
            self.progress.say(f"These scores don't belong together: {mixed}", style="bold red")
