"""The jobs of a command, with their seeds and hyper-parameters."""

from pathlib import Path

import pytest

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.glue.hyperparameters import HYPERPARAMETERS
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.glue.plan import Job, describe_training, plan_jobs
from bert_convolutions.training.arguments import BertTrainingArguments


def plan(folder: Path, task_name: str, rounds: int | None = None, hyperparams: str | None = None, **changes):
    given = {"do_train": True, "use_cpu": True, "per_device_train_batch_size": 99999}
    arguments = BertTrainingArguments(output_dir=str(folder), **{**given, **changes})
    options = GlueOptions(task_name, "data", model_name_or_path="model", rounds=rounds, hyperparams=hyperparams)
    return plan_jobs(options, arguments)


def test_all_is_ninety_jobs_round_by_round(tmp_path: Path):
    jobs = plan(tmp_path, "ALL", hyperparams="electra")
    assert len(jobs) == 90
    assert [job.name for job in jobs[:3]] == ["MNLI0", "CoLA0", "SST-20"]
    assert (jobs[9].name, jobs[9].folder, jobs[9].arguments.seed) == ("MNLI1", tmp_path / "MNLI1", 97)
    assert jobs[89].arguments.seed == 57
    assert {job.name for job in jobs if job.mnli_encoder and job.round_number == 3} == {"MRPC3", "STS-B3", "RTE3"}


def test_the_seed_of_the_command_is_added(tmp_path: Path):
    assert [job.arguments.seed for job in plan(tmp_path, "RTE,CoLA", 2, seed=1000)] == [1042, 1042, 1097, 1097]
    assert plan(tmp_path, "RTE", seed=1000)[0].arguments.seed == 1000


def test_hyperparameters_set_the_trainers_arguments(tmp_path: Path):
    mnli, _, _, mrpc, *_ = plan(tmp_path, "ALL", 1, "electra")
    for job, batch, steps, warmup in ((mnli, 128, 12121, 1212), (mrpc, 32, 343, 34)):
        arguments = job.arguments
        assert arguments.learning_rate == 3e-4
        assert (arguments.per_device_train_batch_size, arguments.max_steps) == (batch, steps)
        assert arguments.get_warmup_steps(arguments.max_steps) == warmup
    rte = plan(tmp_path, "RTE", hyperparams="stable")[0].arguments
    assert rte.get_warmup_steps(rte.max_steps) == 2 * 155


def test_flags_limit_the_hyperparameters(tmp_path: Path):
    job = plan(tmp_path, "RTE", hyperparams="stable", max_steps=50, per_device_train_batch_size=4)[0]
    assert (job.arguments.max_steps, job.arguments.per_device_train_batch_size) == (50, 4)
    assert job.arguments.get_warmup_steps(50) == 5
    cut = "50 steps of 4 examples (--hyperparams has 16)"
    assert cut in describe_training(job, 9)
    job = plan(tmp_path, "RTE", hyperparams="stable", per_device_train_batch_size=4, gradient_accumulation_steps=2)[0]
    assert job.settings()["batch_size"] == 8


def test_the_trainers_default_of_8_examples_is_no_limit(tmp_path: Path):
    job = plan(tmp_path, "RTE", hyperparams="electra", per_device_train_batch_size=None)[0]
    assert job.arguments.per_device_train_batch_size == 32
    assert "(" not in describe_training(job, 9)
    assert plan(tmp_path, "RTE", per_device_train_batch_size=None)[0].arguments.per_device_train_batch_size == 8


def test_one_task_runs_once_unless_rounds_are_given(tmp_path: Path):
    assert [(job.round_number, job.folder) for job in plan(tmp_path, "rte")] == [(None, tmp_path)]
    assert [job.folder.name for job in plan(tmp_path, "rte", 3)] == ["RTE0", "RTE1", "RTE2"]


def test_the_best_step_can_be_that_of_each_tasks_score(tmp_path: Path):
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    jobs = plan(tmp_path, "MNLI,CoLA,MRPC", 1, metric_for_best_model="score", **best)
    chosen = [(job.arguments.metric_for_best_model, job.arguments.greater_is_better) for job in jobs]
    assert chosen == [("eval_mnli/acc", True), ("eval_mcc", True), ("eval_acc_and_f1", True)]
    assert plan(tmp_path, "RTE", **best)[0].arguments.metric_for_best_model == "loss"


def test_the_rounds_that_are_there_are_predicted(tmp_path: Path):
    for name in ("RTE0", "RTE2", "CoLA0"):
        (tmp_path / name).mkdir()
    flags = {"do_train": False, "do_predict": True}
    assert [job.name for job in plan(tmp_path, "RTE,CoLA", **flags)] == ["CoLA0", "RTE0", "CoLA2", "RTE2"]
    assert [job.name for job in plan(tmp_path, "RTE", **flags)] == ["RTE0", "RTE2"]
    assert [job.name for job in plan(tmp_path, "RTE,CoLA", 1, **flags)] == ["CoLA0", "RTE0"]
    (tmp_path / "config.json").touch()  # a task that ran once
    assert [job.name for job in plan(tmp_path, "RTE", **flags)] == ["RTE"]


SEVERAL = {
    "all": ["--task_name", "ALL"],
    "a list": ["--task_name=CoLA,RTE"],
    "rounds": ["--task_name=RTE", "--rounds", "3"],
    "a list of one round": ["--task_name=CoLA,RTE", "--rounds", "1"],
}


def planned(tmp_path: Path, argv: list[str], as_file: bool) -> list[Job]:
    """The jobs of a command whose flags are on the command line or in a configuration file."""
    flags = {"data_dir": "data", "model_name_or_path": "model", "output_dir": str(tmp_path / "out")}
    flags |= {"do_train": "true", "use_cpu": "true", "per_device_train_batch_size": "99999"}
    words = " ".join(argv).replace("=", " ").split()
    flags |= dict(zip((word.lstrip("-") for word in words[::2]), words[1::2], strict=True))
    argv = [word for name, value in flags.items() for word in (f"--{name}", value)]
    if as_file:
        path = tmp_path / "config.yaml"
        path.write_text("".join(f"{name}: {value}\n" for name, value in flags.items()))
        argv = ["--config", str(path)]
    options, trainer_flags = COMMANDS["glue"].read(argv)
    return plan_jobs(options, trainer_flags.parse(BertTrainingArguments))


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("case", SEVERAL)
def test_several_tasks_or_rounds_take_electras_hyperparameters(tmp_path: Path, case: str, as_file: bool):
    for job in planned(tmp_path, SEVERAL[case], as_file):
        expected = HYPERPARAMETERS["electra"][job.task.name]
        arguments = job.arguments
        assert (arguments.learning_rate, arguments.max_steps) == (expected.learning_rate, expected.steps)
        assert arguments.per_device_train_batch_size == expected.batch_size
    for name in ("stable", "electra_base"):
        for job in planned(tmp_path, [*SEVERAL[case], "--hyperparams", name], as_file):
            assert job.arguments.max_steps == HYPERPARAMETERS[name][job.task.name].steps


@pytest.mark.parametrize("as_file", [False, True])
def test_one_task_takes_the_flags_of_the_trainer_and_so_do_several_on_request(tmp_path: Path, as_file: bool):
    flags = ["--learning_rate", "0.5", "--max_steps", "7"]
    for which in (["--task_name=RTE"], ["--task_name=RTE,rte"], ["--task_name=ALL", "--hyperparams=flags"]):
        for job in planned(tmp_path, [*which, *flags], as_file):
            assert (job.arguments.learning_rate, job.arguments.max_steps) == (0.5, 7)
            assert job.arguments.per_device_train_batch_size == 99999
