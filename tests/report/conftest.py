"""A finished sweep with the files that its commands write, and the report on it."""

import json
from pathlib import Path

import pytest
import sentencepiece

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.cli.main import main
from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from bert_convolutions.schemas import Experiment
from tests.helpers import TINY

TEXT = """the cat sees a dog and the dog sees a cat
a man and the cat sit near the old tree
the old dog sits and a man sees the tree
"""
SENTENCE = "the old cat sees a tree"
KERNEL = "qk_convfixed_convq_convk 2"
ACCURACY = {"interval": [0.4, 0.9], "accuracy_within_word": 0.5, "interval_within_word": [0.4, 0.9], "pairs": 10}


def write_run(
    folder: Path, tokenizer: CompositeBertTokenizer, config: CompositeBertConfig, losses: list[float], accuracy: float
) -> None:
    """Write what ``pretrain``, the probes and ``glue`` write for one seed; 1,000 tokens per step."""
    model = folder / "pretrain"
    CompositeBertForMaskedLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    (model / "training_args.json").write_text(json.dumps({"learning_rate": 1e-3}))
    log = [
        {"step": 10 * number, "eval_loss": loss, "eval_masked_accuracy": 1 / loss}
        for number, loss in enumerate([9.0, *losses])  # the first is that of --eval_on_start
    ]
    steps = 10 * len(losses)
    state = {"global_step": steps, "num_input_tokens_seen": 1000 * steps, "log_history": log}
    (model / "trainer_state.json").write_text(json.dumps(state))
    (model / "eval_results.json").write_text(json.dumps({"eval_loss": losses[-1], "eval_masked_accuracy": accuracy}))
    (model / "train_results.json").write_text(json.dumps({"real_tokens_per_second": 500.0}))
    for name, command, paradigms in (("zorro", "minimal_pairs", ["a", "b"]), ("local_order", "local_order", ["by_1"])):
        figures = {"accuracy": accuracy, **ACCURACY}
        results = {
            "model": "m",
            "model_sha256": "0",
            "paradigms": {p: {**figures, "phenomenon": "p", "field": "", "sha256": "0"} for p in paradigms},
            "phenomena": {"p": figures} if command == "minimal_pairs" else {},
            "fields": {},
            "all": figures,
        }
        (folder / name).mkdir()
        (folder / name / f"{command}.json").write_text(json.dumps(results))
        (folder / name / f"{command}.csv").write_text("")
    metrics_of = {"CoLA": {"mcc": accuracy - 0.5, "eval_loss": 0.6}, "STS-B": {"pearson": accuracy}}
    for dev_set, metrics in metrics_of.items():
        task = folder / "glue" / dev_set
        task.mkdir(parents=True)
        (task / "glue_state.json").write_text(json.dumps({"task": dev_set, "settings": {}, "dev": {dev_set: metrics}}))


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep in which the loss falls by 0.5 in ten steps, with composite attention by 1.0; three seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_prefix=str(folder / "spm"), vocab_size=26, minloglevel=2
    )
    tokenizer = CompositeBertTokenizer(folder / "spm.model")
    experiment = Experiment.model_validate(
        {
            "question": "Which <positions>?",
            "base": {"max_steps": 40, "config_name": "bert_small", "per_device_train_batch_size": 4},
            "baseline": "absolute",
            "variants": {"absolute": {}, "composite": {"attention_kernel": KERNEL}, "unfinished": {"remove_qk": True}},
            "seeds": [1, 2, 3],
            "evaluate": {"minimal_pairs": {"zorro": {"data_dir": "z"}}, "local_order": {"text": "t"}, "glue": {}},
        }
    )
    (folder / "experiment.json").write_text(experiment.model_dump_json())
    for variant, kernel, fall in (("absolute", "dot_product", 0.5), ("composite", KERNEL, 1.0)):
        sizes = {"embedding_size": 8, "max_position_embeddings": 16, **TINY}  # fewer positions than tokens of the text
        config = CompositeBertConfig(vocab_size=len(tokenizer), attention_kernel=kernel, **sizes)
        for seed in (1, 2, 3):
            losses = [8 + seed / 100 - fall * number for number in range(4)]
            write_run(folder / variant / f"seed{seed}", tokenizer, config, losses, 0.5 + fall / 4 + seed / 100)
    return folder


@pytest.fixture(scope="session")
def report(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report on that sweep, with a sentence."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text(TEXT + " ".join(TEXT.split()) + "\ncat\n")
    flags = ["--output_dir", str(folder), "--text", str(folder / "text.txt"), "--sentence", SENTENCE]
    assert main(["report", str(sweep), *flags]) == 0
    return folder
