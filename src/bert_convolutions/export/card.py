"""Writes the model card in the Hub's format from the files in a model's folder."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bert_convolutions import __version__
from bert_convolutions.errors import install_command
from bert_convolutions.glue.submit import read_score
from bert_convolutions.glue.tasks import all_dev_sets
from bert_convolutions.model.configuration import AUTO_CLASSES
from bert_convolutions.model.loading import load_config
from bert_convolutions.parsing import read_json, read_model
from bert_convolutions.schemas import StoredTrainerState, TrainResults
from bert_convolutions.terminal import say
from bert_convolutions.training.checkpoints import TRAINER_STATE_NAME

_KERNEL_IMAGE = "kernels.png"
_PIPELINES = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForPreTraining": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
}
"""The Hub's pipeline tag by Auto class; ``feature-extraction`` for the others."""
_RUN_FACTS = {
    "num_examples": "training examples",
    "global_batch_size": "batch size",
    "block_size": "maximum sequence length (tokens)",
    "mlm_probability": "fraction of masked tokens",
    "seed": "seed",
    "fingerprint": "fingerprint of the data",
}
_TEXT = """\
# {name}

{what} of BERT with *composite attention*: self-attention and convolutions in one score (Chang, Xu, Xu and Tu,
[Convolutions and Self-Attention: Re-interpreting Relative Positions in Pre-trained Language
Models](https://arxiv.org/abs/2106.05505), ACL-IJCNLP 2021). Its attention kernel is `{kernel}`.

## Use

The code is in this folder, generated from the sources of `bert_convolutions` {version}; read it before you trust it.
It needs `torch`, `transformers`, `pydantic` and `sentencepiece`.

```python
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = {auto}.from_pretrained("{name}", trust_remote_code=True)
```

If `bert_convolutions` is installed, `import bert_convolutions` replaces `trust_remote_code=True`.

Intended use: research on language models, and fine-tuning on tasks in the language of the training text. The model
predicts what is likely in its training text, including its biases and errors; it is not a source of facts, and its
scores may not hold for texts unlike those that it was evaluated on.

## Model

{model}

## Training

{training}

## Scores

{scores}
{picture}
## Licence

Weights: {license}. Code: Apache-2.0.

## Citation

```bibtex
@inproceedings{{chang-etal-2021-convolutions,
  title = {{Convolutions and Self-Attention: Re-interpreting Relative Positions in Pre-trained Language Models}},
  author = {{Chang, Tyler and Xu, Yifan and Xu, Weijian and Tu, Zhuowen}},
  booktitle = {{Proceedings of ACL-IJCNLP 2021}},
  year = {{2021}},
  url = {{https://arxiv.org/abs/2106.05505}}
}}
```
"""


def write_card(source: Path, folder: Path, license_name: str, name: str) -> None:
    """Write ``README.md`` and, if the model has kernels, an image of them to an exported folder.

    The facts about training and evaluation are read from the model's own folder, ``source``.

    Raises:
        UsageError: a results file is damaged.
    """
    config: Any = load_config(folder)
    auto = next(auto for auto, name in AUTO_CLASSES.items() if name == config.architectures[0])
    pipeline = _PIPELINES.get(auto, "feature-extraction")
    results = _results(source)
    drawn = _draw_kernels(folder, name)
    text = _TEXT.format(
        name=name,
        what={"fill-mask": "A masked language model", "feature-extraction": "An encoder"}.get(
            pipeline, f"A model for {pipeline.replace('-', ' ')}"
        ),
        kernel=config.attention_kernel,
        version=__version__,
        auto=auto,
        model=_table("", _model_facts(config.to_dict())),
        training=_table("", _training_facts(source)) or "The exported folder has no records of its training.",
        scores=_table(
            "score",
            [(f"{result.dataset_name}, {result.metric_name}", f"{result.metric_value:.4g}") for result in results],
        )
        or "None are recorded in the exported folder.",
        picture=f"\n## What its convolutions have learned\n\n![Learned kernels]({_KERNEL_IMAGE})\n" if drawn else "",
        license=license_name,
    )
    data = ModelCardData(
        license=license_name,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["bert", "convolution", "relative-positions", "custom_code"],
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def _draw_kernels(folder: Path, name: str) -> bool:
    """Draw the model's kernels, if it has any and matplotlib is installed; return whether it was done."""
    if find_spec("matplotlib") is None:
        say(f"the model card has no image of the kernels, which needs matplotlib: {install_command('matplotlib')}")
        return False
    from bert_convolutions.report.kernels import plot_kernels

    return plot_kernels(folder, folder / _KERNEL_IMAGE, name)


def _model_facts(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "embedding_size")
    facts = [(name.replace("_", " "), config[name]) for name in (*names, "vocab_size")]
    positions = "none, any length" if config["remove_position_embeddings"] else config["max_position_embeddings"]
    return [
        *facts,
        ("absolute positions", positions),
        ("queries and keys", config["qk"]),
        ("values", config["value_forward"]),
    ]


def _training_facts(source: Path) -> list[tuple[str, Any]]:
    path = source / "train_results.json"
    if not path.is_file():
        return []
    results, state = read_model(TrainResults, path), source / TRAINER_STATE_NAME
    start = results.model_name_or_path or ""
    start = Path(start).name if Path(start).is_absolute() else start  # a published file holds no path of the machine
    facts = [*([("start", f"the weights of {start}")] if start else []), ("steps", f"{results.steps:,}")]
    facts += [(text, results.run[name]) for name, text in _RUN_FACTS.items() if name in results.run]
    log = read_model(StoredTrainerState, state).log_history if state.is_file() else []
    losses = [entry["loss"] for entry in log if "loss" in entry]  # train_loss in the results is a mean over all steps
    return [*facts, *(("last logged training loss", f"{loss:.4f}") for loss in losses[-1:])]


def _results(source: Path) -> list[EvalResult]:
    """The scores in a folder: on held-out text and GLUE's development sets."""
    path = source / "eval_results.json"
    values = read_json(path) if path.is_file() else {}
    found: list[tuple[str, str, str, float | None]] = [
        ("text-classification", f"GLUE {dev.title}", dev.score.removeprefix("eval_"), read_score(source, dev))
        for _, dev in all_dev_sets()
    ]
    if isinstance(values, dict) and isinstance(values.get("eval_perplexity"), float):
        found.insert(0, ("fill-mask", "held-out text", "perplexity", values["eval_perplexity"]))
    return [
        EvalResult(task, name.lower().replace(" ", "_"), name, metric, value, metric_name=metric)
        for task, name, metric, value in found
        if value is not None
    ]


def _table(title: str, rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) if rows else ""
