"""The table of sub-commands: names, flags and functions, which are imported when a command is run."""

import argparse
import pkgutil
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from bert_convolutions.cli.config_file import ConfigFile, read_config_file
from bert_convolutions.cli.flags import make_options, options_parser, refuse_left_over, with_underscores
from bert_convolutions.cli.trainer_flags import COMMON_TRAINER_FLAGS, TrainerFlags, trainer_parser
from bert_convolutions.errors import UsageError, with_flag_names
from bert_convolutions.flags import Options
from bert_convolutions.signals import SignalWatch


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        name: name on the command line.
        purpose: one sentence for the list of sub-commands and its help.
        options: ``module:class`` of the dataclass of its own flags; the module must be fast to import.
        work: ``module:function`` that is called with these options and, with ``trainer``, the Trainer's arguments.
        trainer: whether it also accepts the Trainer's flags.
        result: label with which the path that ``work`` returns is printed; nothing if empty.
    """

    name: str
    purpose: str
    options: str
    work: str
    trainer: bool = False
    result: str = ""

    @property
    def options_class(self) -> Any:
        """The dataclass of its own flags."""
        return _locate(self.options)

    @property
    def bare(self) -> list[str]:
        """Its own flags whose value may be given without the flag (``metadata["bare"]``)."""
        return [option.name for option in fields(self.options_class) if option.metadata.get("bare")]

    def run(self, argv: Sequence[str]) -> None:
        """Print the requested help, or parse the flags and call ``work``.

        Raises:
            UsageError: a flag, a value or a key of the configuration file is wrong.
        """
        if {"--help-all", "--help_all"} & set(argv):
            print(self._help(all_flags=True))
        elif {"-h", "--help"} & set(argv):
            print(self._help(all_flags=False))
        else:
            options, trainer_flags = self.read(argv)
            try:
                self._run_work(options, trainer_flags)
            except ValueError as error:
                if isinstance(error, UsageError) or not _is_argument_error(error):
                    raise
                raise UsageError(with_flag_names(str(error), trainer_flags.own_names)) from error

    def _run_work(self, options: Any, trainer_flags: TrainerFlags) -> None:
        arguments = []
        if self.trainer:
            from bert_convolutions.training.arguments import BertTrainingArguments

            arguments = [trainer_flags.parse(BertTrainingArguments)]
        work = _locate(self.work)
        with SignalWatch().interrupt_on_signal("run the same command again"):
            result = work(options, *arguments)
        if self.result:
            print(f"{self.result}: {result}")

    def read(self, argv: Sequence[str]) -> tuple[Any, TrainerFlags]:
        """The sub-command's options, and the remaining arguments for the Trainer.

        Raises:
            UsageError: a flag, a value or a key of the configuration file is wrong.
        """
        options_class = self.options_class
        parser = options_parser(self.name, options_class)
        own_names = tuple(option.name for option in fields(options_class))
        argv = with_underscores(argv)
        config_path = parser.parse_known_args(argv)[0].config
        config = ConfigFile() if config_path is None else read_config_file(Path(config_path))
        # A flag must follow a list from the file, or the list would include the command line's first word.
        argv = [*config.part(own_names, inside=True).argv(parser), "--config=", *argv]
        others = config.part(own_names, inside=False)
        parsed, left_over = parser.parse_known_args(argv)
        self._assign_bare_values(parser, parsed, left_over)
        if not self.trainer:
            others.refuse(own_names)
            refuse_left_over(self.name, left_over, own_names, all_flags="--help")
        options: Any = make_options(self.name, options_class, parsed)
        return options, TrainerFlags(self.name, own_names, tuple(left_over), others)

    def _assign_bare_values(
        self, parser: argparse.ArgumentParser, parsed: argparse.Namespace, left_over: list[str]
    ) -> None:
        """Assign words without a flag to the ``bare`` fields that have no value."""
        for name in self.bare:
            words = [word for word in left_over if not word.startswith("-")]
            if words and not hasattr(parsed, name):
                left_over.remove(words[0])
                parser.parse_known_args([f"--{name}={words[0]}"], parsed)

    def _help(self, *, all_flags: bool) -> str:
        parser = options_parser(self.name, self.options_class)
        parser.description = self.purpose
        parser.usage = " ".join(["bertconv", self.name, *map(str.upper, self.bare), "[--flag value ...]"])
        group = parser.add_argument_group("help")
        group.add_argument("-h", "--help", action="store_true", default=None, help="show this help and exit")
        if not self.trainer:
            return parser.format_help()
        group.add_argument("--help-all", action="store_true", default=None, help="show the Trainer's flags too")
        if not all_flags:
            group = parser.add_argument_group("common flags of transformers.Trainer (--help-all shows all)")
            for flag in COMMON_TRAINER_FLAGS:
                nargs = argparse.OPTIONAL if flag.kind == "true|false" else None
                group.add_argument(
                    f"--{flag.name}", metavar=flag.kind, default=flag.default, help=flag.help, nargs=nargs
                )
            return parser.format_help()
        from bert_convolutions.training.arguments import BertTrainingArguments

        trainer = trainer_parser(self.name, BertTrainingArguments)
        return f"{parser.format_help()}\nflags of transformers.Trainer\n{trainer.format_help()}"


def _locate(name: str) -> Any:
    """The object ``module:name``; a module that starts with a dot is in this package."""
    return pkgutil.resolve_name(f"bert_convolutions{name}" if name.startswith(".") else name)


def _is_argument_error(error: ValueError) -> bool:
    """Whether an error was raised in a package whose messages name Python arguments instead of flags."""
    innermost = list(traceback.walk_tb(error.__traceback__))[-1][0]
    module = str(innermost.f_globals.get("__name__"))
    return module.startswith(("bert_convolutions.attention", "bert_convolutions.model"))


@dataclass
class CompletionOptions(Options):
    """The shell for which to print the completion of sub-commands, flags and values."""

    shell: Literal["bash", "zsh", "fish"] = field(
        metadata={
            "help": 'bash: eval "$(bertconv completion bash)" in ~/.bashrc; zsh likewise in ~/.zshrc, after compinit; '
            "fish: bertconv completion fish > ~/.config/fish/completions/bertconv.fish; --shell may be omitted",
            "bare": True,
        }
    )


def print_completion(options: CompletionOptions) -> None:
    """Print a completion script that does not start Python.

    It is generated from one parser of all sub-commands; ``Command.run`` only builds the parser of its own.
    """
    import shtab

    from bert_convolutions.training.arguments import BertTrainingArguments

    root = argparse.ArgumentParser("bertconv")
    sub_commands = root.add_subparsers()
    for command in COMMANDS.values():
        parents: list[Any] = [options_parser(command.name, command.options_class)]
        if command.trainer:
            parents.append(trainer_parser(command.name, BertTrainingArguments))
        parser = sub_commands.add_parser(
            command.name, help=command.purpose, parents=parents, conflict_handler="resolve"
        )
        for name in command.bare:
            values = parser._option_string_actions[f"--{name}"].choices
            parser.add_argument(f"bare_{name}", choices=values, metavar=name, type=Path)
        for action in parser._actions:
            if action.choices is None and action.type in (str, Path):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(root, options.shell))


# fmt: off
COMMANDS = {command.name: command for command in (
    Command("train-tokenizer", "Train a SentencePiece tokenizer on plain text.",
            ".data.options:TrainTokenizerOptions", ".data.build.train_tokenizer:train_tokenizer", result="tokenizer"),
    Command("build-dataset", "Turn plain text into shuffled, tokenized sentence pairs on disk.",
            ".data.options:BuildDatasetOptions", ".data.build.pipeline:build_dataset", result="sentence pairs"),
    Command("pretrain", "Pre-train a composite-attention BERT encoder on masked-word prediction.",
            ".training.options:PretrainOptions", ".training.pretrain:run_pretraining", trainer=True),
    Command("glue", "Fine-tune a pre-trained encoder on the GLUE tasks, and predict their test sets.",
            ".glue.options:GlueOptions", ".glue.run:run_glue", trainer=True),
    Command("compile-glue", "Tabulate the dev scores and write the GLUE submission of the best rounds.",
            ".glue.options:CompileGlueOptions", ".glue.submit:compile_glue"),
    Command("minimal-pairs",
            "Ask a masked language model which of two sentences is acceptable: BLiMP, Zorro, or your own pairs.",
            ".probes.options:MinimalPairsOptions", ".probes.run:run_minimal_pairs"),
    Command("local-order",
            "Ask a masked language model which of two sentences has a misplaced word, by how far it was moved.",
            ".probes.options:LocalOrderOptions", ".probes.run:run_local_order"),
    Command("sweep",
            "Run the missing commands of an experiment, one for each variant, seed and evaluation.",
            ".sweep.options:SweepOptions", ".sweep.run:run_sweep"),
    Command("report",
            "Report a sweep's results: one HTML file with figures, tables and intervals, and their PNG and CSV files.",
            ".report.options:ReportOptions", ".report.sweep:write_report", result="report"),
    Command("plot-kernels", "Draw the convolution kernels that a model's attention has learned.",
            ".report.options:PlotKernelsOptions", ".report.kernels:run_plot_kernels", result="kernels"),
    Command("convert",
            "Convert the original's checkpoints, or BERT, ELECTRA and similar models, optionally with added terms.",
            ".convert.options:ConvertOptions", ".convert.original:run_convert", result="converted checkpoint"),
    Command("export", "Write a model as a folder that works without this package, for the Hugging Face Hub.",
            ".export.options:ExportOptions", ".export.run:run_export", result="exported model"),
    Command("doctor", "Show versions, devices and what runs fast on them, and missing packages by sub-command.",
            ".cli.doctor:DoctorOptions", ".cli.doctor:run_doctor"),
    Command("completion", "Print the shell completion of bertconv's sub-commands and flags.",
            ".cli.commands:CompletionOptions", ".cli.commands:print_completion"),
    Command("bench", "Measure speed and memory against Hugging Face's models on the same text.",
            ".bench.options:BenchOptions", ".bench.run:run_bench"),
    Command("demo", "Run the whole path on public-domain speeches in under ten minutes.",
            ".demo.options:DemoOptions", ".demo.run:run_demo"),
)}
# fmt: on
