"""Flags of ``bertconv glue`` and ``bertconv compile-glue``. Imports neither torch nor transformers."""

from dataclasses import dataclass, field

from bert_convolutions.flags import flag


@dataclass
class GlueOptions:
    """What to fine-tune on, from which model, and how often. The Trainer's own flags stand beside these."""

    task_name: str = field(
        metadata={
            "help": "a task of GLUE, one of SuperGLUE's BoolQ, CB and WiC, the .yaml file of one's own, a list such as "
            "RTE,MRPC, or ALL (of GLUE). One task runs once, straight into --output_dir; several run --rounds times "
            "into <output_dir>/<TASK><round>"
        }
    )
    data_dir: str | None = flag(
        None,
        "folder with CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI and diagnostic in GLUE's TSVs, "
        "or SuperGLUE's folders with JSONL; one's own files stand in their .yaml file",
    )
    dataset: str | None = flag(
        None,
        "instead of --data_dir: nyu-mll/glue of the Hugging Face hub, or a folder in its layout "
        "(cola/train-00000-of-00001.parquet); needs the package datasets",
    )
    model_name_or_path: str | None = flag(
        None,
        "the pre-trained model, ours or another encoder of transformers: a folder, or a name on the Hub; "
        "needed by --do_train, otherwise not opened",
    )
    tokenizer_name: str | None = flag(None, "an spm.model or a tokenizer folder; default: the folder of the model")
    max_seq_length: int = flag(128, "longest example in tokens, special tokens included; longer ones are cut")
    hyperparams: str | None = flag(
        None,
        "electra, electra_base, stable, or a YAML file of task: {learning_rate, batch_size, steps}. Sets "
        "the learning rate, warm-up (a tenth of the steps), steps (at most --max_steps where that is given) and "
        "global batch (never above --per_device_train_batch_size a device, if given). flags: the Trainer's flags. "
        "Default: electra for several tasks or rounds, flags for one task run once",
    )
    rounds: int | None = flag(
        None, "how often each task runs, each time with another seed, at most 10; default: 10, one task: once"
    )
    save_every_minutes: float | None = flag(
        None, "save a checkpoint to go on from when this long has passed since the last"
    )
    overwrite_output_dir: bool = flag(
        False, "run finished tasks again, also with other settings, and write into folders of something else"
    )
    model_type: str | None = flag(None, "accepted as in the original's commands and not used: config.json says it")


@dataclass
class CompileGlueOptions:
    """Where the fine-tuned tasks are and where the submission goes."""

    input: str = field(metadata={"help": "the --output_dir of bertconv glue, with <TASK><round> folders"})
    test_dir: str = field(metadata={"help": "folder for the eleven files, submission.zip and dev_scores.json"})
