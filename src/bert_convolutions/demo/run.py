"""``bertconv demo``: the whole pipeline on public-domain speeches, with the functions of the other sub-commands.

``_steps`` lists the steps, each of which skips what an earlier run has finished.
"""

import dataclasses
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from bert_convolutions import files
from bert_convolutions.data.build.pipeline import build_dataset
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.options import BuildDatasetOptions, TrainTokenizerOptions
from bert_convolutions.data.pieces import MODEL_FILE
from bert_convolutions.demo.corpus import Speech, Split, load_speeches, split_speeches, write_text
from bert_convolutions.demo.glue_data import write_glue_data
from bert_convolutions.demo.options import BLOCK_SIZE, FULL, GLUE_LEARNING_RATE, QUICK, DemoOptions
from bert_convolutions.errors import RunInterrupted, UsageError
from bert_convolutions.glue.options import CompileGlueOptions, GlueOptions
from bert_convolutions.glue.run import run_glue
from bert_convolutions.glue.submit import compile_submission, read_score
from bert_convolutions.glue.tasks import find_task
from bert_convolutions.parsing import read_model
from bert_convolutions.report.kernels import plot_kernels
from bert_convolutions.report.runs import comparison_table, plot_loss_curves
from bert_convolutions.schemas import DemoSettings
from bert_convolutions.terminal import duration, make_console, make_table
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.options import PretrainOptions
from bert_convolutions.training.pretrain import run_pretraining

COMPOSITE, NEITHER, POSITIONS = "composite", "neither", "positions"
MODELS = {
    COMPOSITE: "composite attention, no position embeddings",
    NEITHER: "neither convolutions nor positions",
    POSITIONS: "absolute position embeddings",
}
"""Descriptions of the pre-trained models by folder."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    COMPOSITE: {"attention_kernel": "qk_convfixed_convq_convk 8", "remove_position_embeddings": True},
    NEITHER: {"attention_kernel": "dot_product", "remove_position_embeddings": True},
    POSITIONS: {"attention_kernel": "dot_product"},
}
"""Architecture flags of each model; all share the rest of the configuration."""
ORDER_SCORES = {"CoLA": ("Matthews x 100", "eval_mcc"), "QQP": ("accuracy, %", "eval_acc")}
"""Tasks that depend only on word order: the metric that is at chance without it, and its entry in the results."""
RECORD = "demo.json"
"""File in the output folder with the settings of the demo."""


class DemoPaths:
    """The paths in the output folder ``root``.

    ``pretrained`` and ``finetuned`` hold a folder per model, in ``finetuned`` with a folder per task.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train_text, self.held_out_text = root / "text" / "train.txt", root / "text" / "held-out.txt"
        self.tokenizer = root / "tokenizer"
        self.train_pairs, self.held_out_pairs = root / "pairs" / "train", root / "pairs" / "held-out"
        self.model_config, self.hyperparameters = root / "model.json", root / "glue.yaml"
        self.pretrained, self.finetuned = root / "pretrained", root / "glue"
        self.glue_data, self.submission = root / "glue-data", root / "submission"
        self.curves, self.kernels = root / "loss_curves.png", root / "kernels.png"

    def named(self) -> dict[str, Path]:
        """All outputs of a demo by name."""
        return {name: path for name, path in vars(self).items() if name != "root"}

    def check(self, options: DemoOptions) -> None:
        """Create the folder, or check that it holds a demo with the same settings or may be overwritten.

        Raises:
            UsageError: The folder holds other files, or a demo with other settings.
        """
        files.make_folder(self.root, "--output_dir")
        record = self.root / RECORD
        if record.exists():
            try:
                before = read_model(DemoSettings, record)
            except UsageError as error:
                raise UsageError(f"{error}: damaged; delete {self.root} or use another folder") from error
            settings = _settings(options)
            if before != settings and not options.overwrite_output_dir:
                raise UsageError(
                    f"--output_dir {self.root} holds a demo with {_flags(before)}, not {_flags(settings)}; use another "
                    "folder, or start anew with --overwrite_output_dir"
                )
        elif any(path.name != files.LOCK_NAME for path in self.root.iterdir()):
            raise UsageError(f"--output_dir {self.root} is not empty and holds no demo; use another folder")

    def claim(self, options: DemoOptions) -> None:
        """``check`` and write the settings; an overwrite deletes the files of an earlier demo."""
        self.check(options)
        if options.overwrite_output_dir:
            for path in self.named().values():
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        files.write_json(self.root / RECORD, _settings(options).model_dump())


def _settings(options: DemoOptions) -> DemoSettings:
    return DemoSettings(seed=options.seed, quick=options.quick)


def _flags(settings: DemoSettings) -> str:
    """The flags for these settings."""
    return f"--seed {settings.seed} --quick {str(settings.quick).lower()}"


def run_demo(options: DemoOptions) -> None:
    """Run or continue the demo.

    Raises:
        UsageError: The output folder can't be used.
        RunInterrupted: A signal was received; the same command continues.
        TrainingDiverged: A loss became NaN or infinite.
    """
    paths = DemoPaths(Path(options.output_dir))
    paths.check(options)  # before a lock file is written to a foreign folder
    with files.run_lock(paths.root):
        paths.claim(options)
        try:
            Demo(options, paths).run()
        except RunInterrupted as error:
            again = command_line("demo", dataclasses.replace(options, overwrite_output_dir=False))
            raise RunInterrupted(f"the demo was stopped; finished work is kept; resume with: {again}") from error


class Demo:
    """Runs the steps in one output folder."""

    def __init__(self, options: DemoOptions, paths: DemoPaths) -> None:
        self.options = options
        self.scale = QUICK if options.quick else FULL
        self.paths = paths
        self.console = make_console()

    def run(self) -> None:
        """Run every step; announce its number, title, the elapsed time and its expected duration."""
        begun = time.monotonic()
        steps = self._steps()
        if not self.options.quick:
            total = duration(sum(seconds for _, seconds, _ in steps))
            self.say(f"The demo takes about {total} on two cores; run again, it continues where it was.")
        for number, (title, seconds, step) in enumerate(steps, start=1):
            expected = "" if self.options.quick else f", takes about {duration(seconds)}"
            spent = duration(time.monotonic() - begun)
            self.say(f"\n[{number}/{len(steps)}] {title} ({spent} since the start{expected})", style="bold cyan")
            step()
        self._summarise(time.monotonic() - begun)

    def _steps(self) -> list[tuple[str, int, Callable[[], None]]]:
        """The title, the duration in seconds on two cores and the function of each step."""
        order_title = "Fine-tune the model without word order on the two tasks that depend only on it"
        return [
            ("Write the speeches as plain text, one sentence per line", 4, self._write_text),
            ("Train a tokenizer", 15, self._train_tokenizer),
            ("Build sentence pairs", 10, self._build_pairs),
            *(
                (f"Pre-train a small model: {description}", 60, partial(self._pretrain, name))
                for name, description in MODELS.items()
            ),
            ("Compare the models on held-out speeches", 2, self._compare),
            ("Make a small GLUE from the speeches", 4, self._write_glue_data),
            ("Fine-tune, score and predict all nine tasks", 90, partial(self._finetune, COMPOSITE, "ALL")),
            (order_title, 25, partial(self._finetune, NEITHER, ",".join(ORDER_SCORES))),
            ("Compile the submission", 1, self._compile),
            ("Draw the learned kernels", 2, self._draw_kernels),
        ]

    def say(self, line: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(line, style=style)

    def show(self, name: str, options: Any, arguments: dict[str, Any] | None = None) -> None:
        """Print the command that is equivalent to the next library call."""
        self.say(f"$ {command_line(name, options, arguments)}", style="dim")

    def _arguments(self, folder: Path, **more: Any) -> dict[str, Any]:
        """The Trainer's flags of pre-training and fine-tuning."""
        return {
            "do_train": True,
            "do_eval": True,
            "per_device_train_batch_size": self.scale.batch_size,
            "per_device_eval_batch_size": 4 * self.scale.batch_size,
            **more,
            "seed": self.options.seed,
            "output_dir": str(folder),
        }

    @cached_property
    def parts(self) -> dict[Split, list[Speech]]:
        """The speeches by part."""
        return split_speeches(load_speeches()[:: self.scale.every])

    def _write_text(self) -> None:
        held_out = self.parts["dev"][: self.scale.eval_speeches * 3 : 3]
        for path, speeches in ((self.paths.train_text, self.parts["train"]), (self.paths.held_out_text, held_out)):
            if not path.exists():
                write_text(speeches, path)
            size = path.stat().st_size / 1e6
            self.say(f"{path}: {len(speeches)} speeches, {size:.1f} MB")

    def _train_tokenizer(self) -> None:
        options = TrainTokenizerOptions(
            input=[str(self.paths.train_text)],
            output_dir=str(self.paths.tokenizer),
            vocab_size=self.scale.vocab_size,
            seed=self.options.seed,
        )
        self.show("train-tokenizer", options)
        if (self.paths.tokenizer / MODEL_FILE).exists():
            self.say("done before")
        else:
            train_tokenizer(options)

    def _build_pairs(self) -> None:
        for text, pairs in (
            (self.paths.train_text, self.paths.train_pairs),
            (self.paths.held_out_text, self.paths.held_out_pairs),
        ):
            options = BuildDatasetOptions(
                train_data_file=[str(text)],
                tokenizer_name=str(self.paths.tokenizer),
                output_dir=str(pairs),
                seed=self.options.seed,
                pair_within_documents=True,
            )
            self.show("build-dataset", options)
            build_dataset(options)

    def _pretrain(self, name: str) -> None:
        scale, folder = self.scale, self.paths.pretrained / name
        files.write_json(self.paths.model_config, {"model_type": "composite_bert", **scale.model})
        options = PretrainOptions(
            tokenizer_name=str(self.paths.tokenizer),
            config_name=str(self.paths.model_config),
            train_data_file=[str(self.paths.train_pairs)],
            eval_data_file=[str(self.paths.held_out_pairs)],
            block_size=BLOCK_SIZE,
            **ARCHITECTURES[name],
        )
        arguments = self._arguments(
            folder,
            max_steps=scale.steps,
            learning_rate=scale.learning_rate,
            warmup_steps=scale.steps // 10,
            weight_decay=0.01,
            adam_epsilon=1e-6,
            logging_steps=max(1, scale.steps // 20),
            eval_strategy="steps",
            eval_steps=max(1, scale.steps // 5),
            save_steps=max(1, scale.steps // 3),
            save_total_limit=1,
        )
        self.show("pretrain", options, arguments)
        if (folder / "eval_results.json").exists():
            self.say("done before")
            return
        begun = folder.exists() and any(folder.iterdir())
        run_pretraining(options, BertTrainingArguments(**arguments, resume_from_checkpoint="true" if begun else None))

    def _compare(self) -> None:
        runs = {description: self.paths.pretrained / name for name, description in MODELS.items()}
        self.console.print(comparison_table(runs, "Held-out speeches, the same masks for all models"))
        plot_loss_curves(runs, self.paths.curves)
        self.say(f"Loss curves: {self.paths.curves}")

    def _write_glue_data(self) -> None:
        if not self.paths.glue_data.exists():
            seed, num_train, num_eval = self.options.seed, self.scale.glue_train, self.scale.glue_eval
            write_glue_data(self.parts, self.paths.glue_data, seed=seed, num_train=num_train, num_eval=num_eval)
        self.say(f"{self.paths.glue_data}: nine tasks and the diagnostic set, in GLUE's own layout")

    def _finetune(self, name: str, tasks: str) -> None:
        scale = self.scale
        common = {"learning_rate": GLUE_LEARNING_RATE, "batch_size": scale.batch_size}
        hyperparameters = {task: {**common, "steps": steps} for task, steps in scale.glue_steps.items()}
        files.write_text(self.paths.hyperparameters, yaml.safe_dump(hyperparameters, sort_keys=False))
        options = GlueOptions(
            data_dir=str(self.paths.glue_data),
            task_name=tasks,
            model_name_or_path=str(self.paths.pretrained / name),
            max_seq_length=BLOCK_SIZE,
            hyperparams=str(self.paths.hyperparameters),
            rounds=1,
        )
        predict = {"do_predict": True} if name == COMPOSITE else {}
        arguments = self._arguments(self.paths.finetuned / name, save_strategy="no", **predict)
        self.show("glue", options, arguments)
        run_glue(options, BertTrainingArguments(**arguments))

    def _compile(self) -> None:
        options = CompileGlueOptions(input=str(self.paths.finetuned / COMPOSITE), test_dir=str(self.paths.submission))
        self.show("compile-glue", options)
        compile_submission(options)
        self.say(f"Submission: {self.paths.submission / 'submission.zip'}")

    def _draw_kernels(self) -> None:
        plot_kernels(self.paths.pretrained / COMPOSITE, self.paths.kernels, COMPOSITE)
        self.say(f"Learned kernels: {self.paths.kernels}")

    def _order_table(self) -> Table:
        """The scores of the models with and without word order on the tasks that depend only on it."""
        headings = [f"{task} ({measure})" for task, (measure, _) in ORDER_SCORES.items()]
        table = make_table("\nTwo tasks that depend only on word order", "fine-tuned from", *headings)
        table.add_row("chance", "0.0", "50.0")
        for name in (NEITHER, COMPOSITE):
            folder = self.paths.finetuned / name
            scores = [
                read_score(folder / f"{task}0", dataclasses.replace(find_task(task).dev[0], score=entry))
                for task, (_, entry) in ORDER_SCORES.items()
            ]
            table.add_row(MODELS[name], *("-" if score is None else f"{100 * score:.1f}" for score in scores))
        return table

    def _summarise(self, seconds: float) -> None:
        """Print the scores and the paths of all outputs."""
        self.console.print(self._order_table())
        self.say(f"\nDone in {duration(seconds)}. Everything is in {self.paths.root}:", style="bold")
        for what, path in self.paths.named().items():
            self.say(f"  {what.replace('_', ' '):<20}{path}")


def command_line(name: str, options: Any, arguments: Mapping[str, Any] | None = None) -> str:
    """The command for these options, without defaults, and arguments of the Trainer."""
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != _default(field)
    }
    words = ["bertconv", name]
    for flag, value in {**given, **(arguments or {})}.items():
        words.append(f"--{flag}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append("false" if value is False else str(value))
    return shlex.join(words)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
