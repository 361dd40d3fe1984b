"""Which (task, round) there are, where each goes, and which of its stages are still to be done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.finetune import global_batch_size, task_arguments
from bert_convolutions.glue.hyperparameters import Hyperparameters, load_hyperparameters
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.glue.state import ENCODER_FOLDER, TaskState, is_foreign, read_state
from bert_convolutions.glue.tasks import MNLI, ROUND_SEEDS, Task, TestSet, parse_tasks, round_seed

SHORTEST_PAIR = 5
"""Tokens of ``[CLS] a [SEP] b [SEP]`` with texts of one token."""


@dataclass(frozen=True)
class Job:
    """One task in one round.

    Attributes:
        task: the task.
        round_number: from 0; None for a task that runs once.
        folder: where its model and results go.
        arguments: the Trainer's, with the folder, the seed and the task's hyper-parameters.
        state: what a former run left there.
        train: whether it is to be fine-tuned.
        evaluate: whether it is to be scored on its development sets.
        predict: its test sets that are to be predicted.
        wanted_batch_size: the global batch of ``--hyperparams``, which the flags and the devices may cut.
    """

    task: Task
    round_number: int | None
    folder: Path
    arguments: TrainingArguments
    state: TaskState | None
    train: bool
    evaluate: bool
    predict: tuple[TestSet, ...]
    wanted_batch_size: int | None

    @property
    def name(self) -> str:
        """Name of the folder in a run of several rounds, such as ``RTE3``; the task's name otherwise."""
        return self.task.name if self.round_number is None else f"{self.task.name}{self.round_number}"

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be done."""
        return not (self.train or self.evaluate or self.predict)

    @property
    def mnli_encoder(self) -> Path | None:
        """Where the encoder fine-tuned on MNLI in the same round is, for the tasks that start from it."""
        if self.round_number is None or not self.task.starts_from_mnli:
            return None
        return self.folder.parent / f"{MNLI.name}{self.round_number}" / ENCODER_FOLDER

    def settings(self, max_seq_length: int) -> dict[str, Any]:
        """Return what the result depends on, to be kept beside it and compared by a later run."""
        arguments = self.arguments
        return {
            "seed": arguments.seed,
            "learning_rate": arguments.learning_rate,
            "batch_size": global_batch_size(arguments),
            "max_steps": arguments.max_steps,
            "num_train_epochs": arguments.num_train_epochs if arguments.max_steps <= 0 else None,
            "max_seq_length": max_seq_length,
        }


def plan_jobs(options: GlueOptions, arguments: TrainingArguments) -> list[Job]:
    """Return the jobs in the order in which they run: all tasks of round 0, then of round 1, and so on.

    Raises:
        UsageError: an unknown task or preset, a wrong number of rounds, nothing to do, or a folder in the way.
    """
    if not (arguments.do_train or arguments.do_eval or arguments.do_predict):
        raise UsageError("nothing to do: give --do_train, --do_eval or --do_predict")
    if arguments.do_train and options.model_name_or_path is None:
        raise UsageError("--do_train needs --model_name_or_path, the folder of the pre-trained model")
    if options.max_seq_length < SHORTEST_PAIR:
        raise UsageError(
            f"--max_seq_length {options.max_seq_length} leaves no room for a pair: [CLS] a [SEP] b [SEP] needs "
            f"{SHORTEST_PAIR}"
        )
    if str(arguments.resume_from_checkpoint).lower() not in ("none", "true", "false"):
        raise UsageError(
            "--resume_from_checkpoint takes no folder here: a half-finished task goes on from its own newest checkpoint"
        )
    tasks = parse_tasks(options.task_name)
    presets = load_hyperparameters(options.hyperparams, tasks) if options.hyperparams is not None else {}
    output_dir = Path(str(arguments.output_dir))
    rounds = _rounds(options, several=len(tasks) > 1)
    jobs = []
    for round_number in rounds:
        for task in tasks:
            name = task.name if round_number is None else f"{task.name}{round_number}"
            folder = output_dir if round_number is None else output_dir / name
            seed = arguments.seed if round_number is None else round_seed(round_number, arguments.seed)
            preset = presets.get(task.name)
            own = task_arguments(arguments, folder, seed, preset)
            jobs.append(_plan_job(options, task, round_number, own, preset))
    return jobs


def _rounds(options: GlueOptions, several: bool) -> list[int] | list[None]:
    """Return the rounds' numbers, or one None for a task that runs once, straight into the output folder."""
    rounds = options.rounds if options.rounds is not None else (len(ROUND_SEEDS) if several else 1)
    if not 1 <= rounds <= len(ROUND_SEEDS):
        raise UsageError(f"--rounds must be from 1 to {len(ROUND_SEEDS)} (each round has its own seed), not {rounds}")
    return list(range(rounds)) if several or rounds > 1 else [None]


def _plan_job(
    options: GlueOptions,
    task: Task,
    round_number: int | None,
    arguments: TrainingArguments,
    preset: Hyperparameters | None,
) -> Job:
    folder = Path(str(arguments.output_dir))
    overwrite = options.overwrite_output_dir
    state = read_state(folder)
    if state is not None and state.task != task.name and not overwrite:
        raise UsageError(f"{folder} holds a run of {state.task}: use another --output_dir, or --overwrite_output_dir")
    if arguments.do_train and is_foreign(folder) and not overwrite:
        raise UsageError(
            f"{folder} is not empty and was not made by bertconv glue: use another --output_dir, or "
            "--overwrite_output_dir to write into it"
        )
    train = arguments.do_train and (overwrite or state is None or not state.trained)
    known = TaskState(task.name, {}) if train or overwrite or state is None else state
    evaluate = arguments.do_eval and any(dev.name not in known.dev for dev in task.dev)
    predict = tuple(test for test in task.tests if test.name not in known.predicted)
    return Job(
        task,
        round_number,
        folder,
        arguments,
        state,
        train,
        evaluate,
        predict if arguments.do_predict else (),
        preset.batch_size if preset else None,
    )


def changed_settings(job: Job, max_seq_length: int) -> str:
    """Return how a finished job's settings differ from those asked for now; empty if they do not."""
    if job.state is None or not job.state.settings:
        return ""
    then, now = job.state.settings, job.settings(max_seq_length)
    return ", ".join(f"{key} {then.get(key)} (now {now[key]})" for key in now if then.get(key) != now[key])


def describe_training(job: Job, num_examples: int) -> str:
    """Return what a job's training is going to do, for the user."""
    size = global_batch_size(job.arguments)
    wanted = job.wanted_batch_size
    cut = f" (the preset's {wanted} cut by --per_device_train_batch_size)" if wanted and size < wanted else ""
    rate, seed = job.arguments.learning_rate, job.arguments.seed
    return f"{planned_steps(job, num_examples)} steps of {size} examples{cut}, learning rate {rate:g}, seed {seed}"


def planned_steps(job: Job, num_examples: int) -> int:
    """Return the optimizer steps that a job's training takes on so many examples."""
    if job.arguments.max_steps > 0:
        return job.arguments.max_steps
    per_epoch = max(1, -(-num_examples // global_batch_size(job.arguments)))
    return round(per_epoch * job.arguments.num_train_epochs)
