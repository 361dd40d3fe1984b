"""Plans the jobs (task, round) of a run: their folders, arguments and unfinished stages."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy, TrainingArguments

from bert_convolutions.errors import UsageError
from bert_convolutions.files import refuse_overlap, refuse_pattern, sha256
from bert_convolutions.glue.hyperparameters import (
    DEFAULT,
    FLAG,
    TRAINER_FLAGS,
    WARMUP_DIVISOR,
    device_batch_size,
    is_file_name,
    load_hyperparameters,
)
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.glue.state import ENCODER_FOLDER, read_state, refuse_foreign_folder
from bert_convolutions.glue.tasks import MNLI, ROUND_SEEDS, DevSet, Task, TestSet, parse_tasks, round_seed
from bert_convolutions.schemas import Hyperparameters, TaskState
from bert_convolutions.training.sampling import StepPlan, last_step

SCORE = "score"
"""The value of ``--metric_for_best_model`` for the score of each task, by which its rounds are compared too."""
_SETTINGS = (
    *("seed", "data_seed", "learning_rate", "max_steps", "num_train_epochs", "warmup_steps", "warmup_ratio"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha"),
    *("load_best_model_at_end", "metric_for_best_model"),
)
"""The Trainer's flags that affect results, except the batch size."""


@dataclass(frozen=True)
class Job:
    """One task in one round.

    Attributes:
        task: the task.
        round_number: number of the round, from 0; None for a task that runs once.
        arguments: the Trainer's arguments with the folder, seed and hyper-parameters of the job.
        state: the state that an earlier run left in the folder.
        train: whether to fine-tune.
        evaluate: whether to score the development sets.
        predict: the test sets to predict.
        wanted_batch_size: the global batch size of ``--hyperparams``, which flags and devices may reduce.
    """

    task: Task
    round_number: int | None
    arguments: TrainingArguments
    state: TaskState | None
    train: bool
    evaluate: bool
    predict: tuple[TestSet, ...]
    wanted_batch_size: int | None

    @property
    def folder(self) -> Path:
        """The folder of its model and results."""
        return Path(str(self.arguments.output_dir))

    @property
    def name(self) -> str:
        """The folder's name in a run of several rounds, such as ``RTE3``; otherwise the task's name."""
        return self.task.name if self.round_number is None else self.folder.name

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step over all devices."""
        return StepPlan.of_training(self.arguments, num_examples=1).global_batch_size

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.train or self.evaluate or self.predict)

    @property
    def reads_dev(self) -> bool:
        """Whether it needs its development sets, during or after training."""
        return self.evaluate or (self.train and self.arguments.eval_strategy != IntervalStrategy.NO)

    @property
    def mnli_encoder(self) -> Path | None:
        """The encoder fine-tuned on MNLI in the same round, for tasks that start from it; otherwise None."""
        if self.round_number is None or not self.task.starts_from_mnli:
            return None
        return self.folder.parent / f"{MNLI.name}{self.round_number}" / ENCODER_FOLDER

    def steps(self, num_examples: int) -> int:
        """The number of optimizer steps of its training on ``num_examples``."""
        return last_step(self.arguments, num_examples)

    def settings(self) -> dict[str, Any]:
        """The flags that affect the result, which are stored with it and compared by a later run."""
        flags = self.arguments.to_dict()
        settings = {name: flags[name] for name in _SETTINGS if name in flags}
        if settings["max_steps"] > 0:
            settings["num_train_epochs"] = None
        if self.task.named:
            task = self.task
            columns = f"{' + '.join('/'.join(map(str, text)) for text in task.texts)} -> {task.label_column}"
            settings |= {"columns": columns, "labels": list(task.labels), "metric": task.metric}
        return {**settings, "batch_size": self.batch_size}


def plan_jobs(options: GlueOptions, arguments: TrainingArguments) -> list[Job]:
    """The jobs in the order in which they run: all tasks of round 0, then of round 1, and so on.

    The flags must have passed ``check_flags``.

    Raises:
        UsageError: unknown tasks, rounds or hyper-parameters, or an output folder that can't be used.
    """
    tasks = parse_tasks(options.task_name, options.dataset)
    for task in tasks:
        for path in (task.train, *(dev.path for dev in task.dev), *(test.path for test in task.tests)):
            if task.root is not None and task.dataset is None:
                refuse_overlap(str(arguments.output_dir), "--output_dir", {f"{task.name}: files:": task.root / path})
    if arguments.do_predict and not any(task.tests for task in tasks):
        raise UsageError(f"--do_predict: the .yaml file of {tasks[0].name} names no test file; add test: to its files")
    rounds = _rounds(options, arguments, tasks)
    chosen = options.hyperparams or (TRAINER_FLAGS if rounds == [None] else DEFAULT)
    hyperparameters = load_hyperparameters(chosen, tasks)
    uncovered = [task.name for task in tasks if task.name not in hyperparameters]
    if options.hyperparams not in (None, TRAINER_FLAGS) and uncovered:
        raise UsageError(
            f"{FLAG} {chosen} lacks {', '.join(uncovered)}: give {TRAINER_FLAGS}, or a .yaml file with a default"
        )
    digest = functools.cache(sha256)  # all rounds of a task have the same files
    return [
        _plan_job(
            options,
            task,
            round_number,
            _task_arguments(arguments, task, round_number, hyperparameters.get(task.name)),
            hyperparameters[task.name].batch_size if task.name in hyperparameters else None,
            digest,
        )
        for round_number in rounds
        for task in tasks
    ]


def check_flags(options: GlueOptions, arguments: TrainingArguments) -> None:
    """Check that no flag is missing or out of range and that the output overlaps no input.

    Raises:
        UsageError: for the first such flag; names it and says what to do.
    """
    if not (arguments.do_train or arguments.do_eval or arguments.do_predict):
        raise UsageError("nothing to do: give --do_train, --do_eval or --do_predict")
    if arguments.do_train and options.model_name_or_path is None:
        raise UsageError("--do_train needs --model_name_or_path, the folder of the pre-trained model")
    if options.max_seq_length < 5:
        raise UsageError(
            f"--max_seq_length {options.max_seq_length} leaves no room for a pair: [CLS] a [SEP] b [SEP] needs 5"
        )
    if options.save_every_minutes is not None and not options.save_every_minutes > 0:
        raise UsageError(f"--save_every_minutes {options.save_every_minutes} is not above 0")
    if str(arguments.resume_from_checkpoint).lower() not in ("none", "true", "false"):
        raise UsageError(
            "--resume_from_checkpoint takes no folder here: an unfinished task resumes from its own newest checkpoint"
        )
    if options.data_dir is not None and options.dataset is not None:
        raise UsageError("--data_dir and --dataset both say where the data are: give one")
    if options.dataset is not None:
        refuse_pattern(options.dataset, "--dataset")
    inputs: dict[str, str | None] = {"--data_dir": options.data_dir, "--dataset": options.dataset}
    if arguments.do_train:  # otherwise they are not opened, or may lie in the output folder
        inputs |= {"--model_name_or_path": options.model_name_or_path, "--tokenizer_name": options.tokenizer_name}
        inputs[FLAG] = options.hyperparams if is_file_name(options.hyperparams or "") else None
    refuse_overlap(str(arguments.output_dir), "--output_dir", inputs)


def _rounds(
    options: GlueOptions, arguments: TrainingArguments, tasks: Sequence[Task]
) -> Sequence[int] | Sequence[None]:
    """The numbers of the rounds, or ``[None]`` for a task that runs once, directly in the output folder.

    To score or predict, the default is the rounds that are there.
    """
    output, several = Path(str(arguments.output_dir)), len(tasks) > 1
    rounds = options.rounds if options.rounds is not None else (len(ROUND_SEEDS) if several else 1)
    if not 1 <= rounds <= len(ROUND_SEEDS):
        raise UsageError(f"--rounds must be from 1 to {len(ROUND_SEEDS)} (each round has its own seed), not {rounds}")
    if options.rounds is None and not arguments.do_train and (several or not (output / "config.json").is_file()):
        numbers = range(len(ROUND_SEEDS))
        found = [n for n in numbers if any((output / f"{task.name}{n}").is_dir() for task in tasks)]
        if found:
            return found
    return range(rounds) if several or rounds > 1 else [None]


def plan_again(job: Job, options: GlueOptions) -> Job:
    """The job with the stages that are unfinished now."""
    return _plan_job(options, job.task, job.round_number, job.arguments, job.wanted_batch_size, sha256)


def _plan_job(
    options: GlueOptions,
    task: Task,
    round_number: int | None,
    arguments: TrainingArguments,
    wanted_batch_size: int | None,
    digest: Callable[[Path], str],
) -> Job:
    """A job with its own ``arguments``."""
    folder = Path(str(arguments.output_dir))
    again = options.overwrite_output_dir
    state = None if again and arguments.do_train else read_state(folder)
    if state is not None and state.task != task.name:
        raise UsageError(f"{folder} holds a run of {state.task}: use another --output_dir, or --overwrite_output_dir")
    if arguments.do_train:
        refuse_foreign_folder(folder, again, "finished tasks" if round_number is None else "all finished tasks")
    train = arguments.do_train and (state is None or not state.trained)
    done = None if train or again else state

    def is_done(part: DevSet | TestSet) -> bool:
        """Whether the results of ``part`` are there, and of the data that are there now, as far as is known."""
        if done is None:
            return False
        if isinstance(part, DevSet):
            is_listed = part.score in done.dev.get(part.name, {})
        else:
            is_listed = part.name in done.predicted
        if not is_listed or not (folder / part.results).is_file():
            return False
        data = Path(task.root or options.data_dir or "") / part.path
        before = done.data.get(part.results, done.data.get(part.path))  # earlier versions noted the path
        return not done.data or not data.is_file() or before == digest(data)

    return Job(
        task,
        round_number,
        arguments,
        state,
        train,
        evaluate=arguments.do_eval and not all(map(is_done, task.dev)),
        predict=tuple(test for test in task.tests if arguments.do_predict and not is_done(test)),
        wanted_batch_size=wanted_batch_size,
    )


def _task_arguments(
    arguments: TrainingArguments, task: Task, round_number: int | None, hyperparameters: Hyperparameters | None
) -> TrainingArguments:
    """The Trainer's arguments for one task and round.

    ``hyperparameters`` replace learning rate, batch size, steps (limited by ``--max_steps``) and warm-up; the
    task's score, for MNLI that of the matched set, replaces ``SCORE``.
    """
    changes: dict[str, Any] = {}
    if arguments.metric_for_best_model == SCORE:
        changes["metric_for_best_model"] = task.dev[0].score
    if round_number is not None:
        changes["output_dir"] = str(Path(str(arguments.output_dir)) / f"{task.name}{round_number}")
        changes["seed"] = round_seed(round_number, arguments.seed)
        if arguments.run_name is not None:  # some trackers would go on in a run of the same name
            changes["run_name"] = f"{arguments.run_name}-{task.name}{round_number}"
    if hyperparameters is not None:
        steps = hyperparameters.steps
        steps = min(steps, arguments.max_steps) if arguments.max_steps > 0 else steps
        changes |= {
            "learning_rate": hyperparameters.learning_rate,
            "max_steps": steps,
            "warmup_steps": steps // WARMUP_DIVISOR,
            "per_device_train_batch_size": device_batch_size(
                hyperparameters.batch_size,
                arguments.per_device_train_batch_size if getattr(arguments, "batch_size_is_given", True) else None,
                arguments.world_size * max(1, arguments.n_gpu),
                arguments.gradient_accumulation_steps,
            ),
        }
    return dataclasses.replace(arguments, **changes)


def refuse_other_settings(job: Job, settings: dict[str, Any]) -> None:
    """Refuse results or a checkpoint of an earlier run with other flags, data or weights.

    Paths are not compared, nor are settings that were not recorded.

    Raises:
        UsageError: names all settings that differ, with both values.
    """
    before = job.state.settings if job.state else {}
    other = [key for key, value in settings.items() if key != "model" and before.get(key, value) != value]
    if not other:
        return
    shown = ", ".join(_difference(key, before, settings) for key in other)
    done = "was fine-tuned" if job.state and job.state.trained else "is in the middle of a run"
    again = "" if job.round_number is None else f" (all tasks; deleting {job.folder} runs this one)"
    others = f", use another --output_dir, or run it again with --overwrite_output_dir{again}"
    advice = f"give the same as before{others if job.arguments.do_train else ''}"
    raise UsageError(f"{job.name} in {job.folder} {done} with {shown}: {advice}")


def _difference(key: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    if key == "weights":
        return f"the weights of {before.get('model')} (now other ones, those of {now['model']})"
    if key in ("train_data", "tokenizer"):
        return f"another {'training file' if key == 'train_data' else key}"
    return f"{key} {before[key]} (now {now[key]})"


def describe_training(job: Job, num_examples: int) -> str:
    """A description of a job's training for the user."""
    size, wanted = job.batch_size, job.wanted_batch_size
    cut = f" ({FLAG} has {wanted})" if wanted and size != wanted else ""  # limited by a flag, or by the devices
    rate, seed = job.arguments.learning_rate, job.arguments.seed
    return f"{job.steps(num_examples)} steps of {size} examples{cut}, learning rate {rate:g}, seed {seed}"
