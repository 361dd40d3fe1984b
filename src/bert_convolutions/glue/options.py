"""Flags of ``bertconv glue`` and ``bertconv compile-glue``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field

from bert_convolutions.flags import Options, flag


@dataclass
class GlueOptions(Options):
    """The tasks, the model and the rounds of fine-tuning; the Trainer's own flags are added to these."""

    task_name: str = field(
        metadata={
            "help": "a GLUE task, one of SuperGLUE's BoolQ, CB and WiC, the .yaml file of your own task, a list "
            "such as RTE,MRPC, or ALL (of GLUE). One task runs once, directly in --output_dir; several run --rounds "
            "times in <output_dir>/<TASK><round>"
        }
    )
    data_dir: str | None = flag(
        None,
        "folder with CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI and diagnostic as GLUE's TSV files, "
        "or SuperGLUE's folders with JSONL; your own task's .yaml file names its files",
    )
    dataset: str | None = flag(
        None,
        "instead of --data_dir: nyu-mll/glue of the Hugging Face Hub, or a folder in its layout "
        "(cola/train-00000-of-00001.parquet); needs the package datasets",
    )
    model_name_or_path: str | None = flag(
        None,
        "the pre-trained model, ours or another encoder of transformers: a folder, or a name on the Hub; "
        "needed for --do_train, otherwise not opened",
    )
    tokenizer_name: str | None = flag(None, "an spm.model or a tokenizer folder; default: the model's folder")
    max_seq_length: int = flag(128, "maximum tokens of an example, special tokens included; longer ones are truncated")
    hyperparams: str | None = flag(
        None,
        "electra, electra_base, stable, or a YAML file of task: {learning_rate, batch_size, steps}. Sets "
        "the learning rate, warm-up (a tenth of the steps), steps (at most --max_steps, if given) and global "
        "batch size (at most --per_device_train_batch_size per device, if given). flags: use the Trainer's flags. "
        "Default: electra for several tasks or rounds, flags for one task run once",
    )
    rounds: int | None = flag(
        None,
        "how often each task runs, at most 10, each time with another seed; default: 10, or 1 for one task; without "
        "--do_train those that are there",
    )
    save_every_minutes: float | None = flag(
        None, "save a checkpoint to resume from when this much time has passed since the last one"
    )
    overwrite_output_dir: bool = flag(
        False, "run finished tasks again, with other settings if given, and write into foreign folders"
    )
    model_type: str | None = flag(None, "accepted for the original's commands but ignored: config.json states the type")


@dataclass
class CompileGlueOptions(Options):
    """The folders of the fine-tuned tasks and of the submission."""

    input: str = field(metadata={"help": "the --output_dir of bertconv glue, with <TASK><round> folders"})
    test_dir: str = field(metadata={"help": "folder for the eleven files, submission.zip and dev_scores.json"})
