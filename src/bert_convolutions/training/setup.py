"""Set-up of ``bertconv pretrain``: check the flags, then make tokenizer, configuration, model and trainer, once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from bert_convolutions import files
from bert_convolutions.data.build.examples import open_examples
from bert_convolutions.data.collate import PretrainingCollator
from bert_convolutions.data.loading import NOTED_CUT, load_tokenizer, tokenizer_hash
from bert_convolutions.data.masking import Masking
from bert_convolutions.data.store import ExampleStore
from bert_convolutions.errors import UsageError, with_flag_names
from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertForPreTraining
from bert_convolutions.model.loading import load_strictly, set_max_length
from bert_convolutions.model.presets import PRESETS, load_config, read_config
from bert_convolutions.parsing import read_json
from bert_convolutions.signals import SignalWatch
from bert_convolutions.terminal import say
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.options import ARCHITECTURE_FLAGS, PretrainOptions
from bert_convolutions.training.progress import WordCounter, parse_words, word_starts
from bert_convolutions.training.sampling import StepPlan, data_seed
from bert_convolutions.training.trainer import MASKED_METRICS, ORDER_METRICS, PretrainingTrainer

EVALUATION_SEED = 0
"""Seed of the masks of the evaluation data, independent of ``--seed`` so that losses of different runs compare."""

HELD_OUT_SEED = 0
"""Seed that selects the documents of ``--eval_fraction``, independent of ``--seed`` so that runs compare."""
_SNIFFED_BYTES = 4096
_INSPECTED_EXAMPLES, _NOTED_UNKNOWN = 1000, 0.02
"""Of the lost text: the number of examples to judge by, and the share of unknown tokens to report."""

WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Values of ``--torch_compile_mode`` that record a CUDA graph for each number of rows and of masked positions."""

_NON_MODEL_KEYS = ("transformers_version", "_name_or_path", "dtype", "architectures")


def check_flags(options: PretrainOptions, arguments: TrainingArguments) -> None:
    """Check that no flag is missing, out of range or in contradiction with another.

    Raises:
        UsageError: for the first such flag; names it and says what to do.
    """
    for fault in chain(_task_faults(options, arguments), _data_faults(options, arguments), _range_faults(options)):
        raise UsageError(fault)
    for text in options.save_at_words:
        parse_words(text)
    for path in (*options.train_data_file, *options.eval_data_file):
        if not Path(path).exists():
            raise UsageError(f"{path} does not exist; --train_data_file and --eval_data_file take files or folders")
    if options.overwrite_output_dir and arguments.do_train:
        inputs: dict[str, files.Inputs] = {
            "--tokenizer_name": options.tokenizer_name,
            "--config_name": None if options.config_name in PRESETS else options.config_name,
            "--train_data_file": options.train_data_file,
            "--eval_data_file": options.eval_data_file,
        }
        files.refuse_overlap(str(arguments.output_dir), "--output_dir", inputs)


def _task_faults(options: PretrainOptions, arguments: TrainingArguments) -> Iterator[str]:
    if not arguments.do_train and not arguments.do_eval:
        yield "nothing to do: give --do_train, --do_eval or both"
    if not options.mlm:
        yield "--mlm false: masked language modeling is the only objective; leave the flag out"
    if options.config_name and options.model_name_or_path:
        yield "--config_name and --model_name_or_path contradict: a saved model has its own config; leave one out"
    if not options.config_name and not options.model_name_or_path:
        yield "give --config_name (bert_small, bert_base or a config.json), or --model_name_or_path to start from one"
    if arguments.do_eval and not arguments.do_train and not options.model_name_or_path:
        yield "--do_eval without --do_train evaluates a trained model: give --model_name_or_path, not --config_name"
    if options.use_sop_head and arguments.label_smoothing_factor:
        yield "--label_smoothing_factor does not apply to the sentence-order loss; leave it or --use_sop_head out"
    if not options.tokenizer_name and not options.model_name_or_path:
        yield "--tokenizer_name is required: the path of an spm.model or of a tokenizer directory"
    if arguments.include_num_input_tokens_seen != "no":  # would be added to our count
        yield "--include_num_input_tokens_seen is not needed: non-padding tokens are always counted; leave it out"
    metric = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    metrics = [*MASKED_METRICS, *(ORDER_METRICS if options.use_sop_head else ())]
    if metric not in metrics:
        yield f"--metric_for_best_model {metric} is not measured; known are {', '.join(metrics)}"
    for name in ("max_steps", "num_train_epochs"):
        if options.train_minutes is not None and getattr(arguments, name) != getattr(TrainingArguments, name):
            yield f"--train_minutes and --{name} contradict: each says how long to train; leave one out"


def _data_faults(options: PretrainOptions, arguments: TrainingArguments) -> Iterator[str]:
    held_out = bool(options.eval_data_file) or options.eval_fraction > 0
    if arguments.do_train and not options.train_data_file:
        yield "--do_train needs --train_data_file"
    if arguments.do_eval and not held_out:
        yield "--do_eval needs --eval_data_file, or --eval_fraction to hold out some of the training data"
    if arguments.eval_on_start and not arguments.do_eval:
        yield "--eval_on_start needs --do_eval"
    if options.eval_data_file and options.eval_fraction > 0:
        yield "--eval_data_file and --eval_fraction contradict: leave one out"
    if options.eval_fraction > 0 and not options.train_data_file:
        yield "--eval_fraction needs --train_data_file, from which it holds out a part"


def _range_faults(options: PretrainOptions) -> Iterator[str]:
    if not 0 < options.mlm_probability <= 1:
        yield f"--mlm_probability {options.mlm_probability} is not between 0 and 1"
    if not 0 <= options.eval_fraction < 1:
        yield f"--eval_fraction {options.eval_fraction} is not between 0 and 1"
    if options.block_size < 5:
        yield f"--block_size {options.block_size} leaves no room for a pair: [CLS] a [SEP] b [SEP] needs 5"
    if options.save_every_minutes is not None and not options.save_every_minutes > 0:
        yield f"--save_every_minutes {options.save_every_minutes} is not positive"
    if options.train_minutes is not None and not 0 < options.train_minutes < math.inf:
        yield f"--train_minutes {options.train_minutes} is not a positive number of minutes"
    if options.num_proc is not None and options.num_proc < 1:
        yield f"--num_proc {options.num_proc} is less than one process"


def choose_tokenizer(options: PretrainOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of ``--tokenizer_name``, by default the one saved with the model."""
    return load_tokenizer(options.tokenizer_name or options.model_name_or_path or "", options.model_name_or_path)


@dataclass(frozen=True)
class Corpus:
    """The example stores of a run; None if it doesn't need one."""

    train: ExampleStore | None
    evaluation: ExampleStore | None


def open_corpus(options: PretrainOptions, arguments: TrainingArguments, tokenizer: Any) -> Corpus:
    """Open the data that training and evaluation need; examples of plain text are built once and cached.

    Raises:
        UsageError: a file is missing, damaged, made with another tokenizer, or too small to be split.
    """

    def opened(paths: list[str], train_iterable: bool) -> ExampleStore:
        return open_examples(
            paths,
            tokenizer=tokenizer,
            line_by_line=options.line_by_line and not train_iterable,  # takes precedence, as in the original
            train_iterable=train_iterable,
            cache_dir=options.data_cache_dir,
            num_proc=options.num_proc,
            split_sentences=options.split_sentences,
            pair_within_documents=options.pair_within_documents,
            language=options.language,
        )

    train: ExampleStore | None = None
    evaluation: ExampleStore | None = None
    if arguments.do_train or options.eval_fraction > 0:
        train = opened(options.train_data_file, options.train_iterable)
    if options.eval_fraction > 0 and train is not None:
        train, evaluation = train.split_by_document(options.eval_fraction, HELD_OUT_SEED)
    elif arguments.do_eval:
        evaluation = opened(options.eval_data_file, _evaluates_on_ids(options))
    return Corpus(train if arguments.do_train else None, evaluation if arguments.do_eval else None)


def report_lost_text(examples: ExampleStore, tokenizer: Any, block_size: int) -> None:
    """Say if much of the text is cut off by ``block_size``, or unknown to the tokenizer, judged by the first examples.

    Their order is random, unless an ids file was made elsewhere.
    """
    tokens = cut = unknown = 0
    for number in range(min(len(examples), _INSPECTED_EXAMPLES)):
        ids = examples[number]
        tokens, cut = tokens + len(ids), cut + max(len(ids) - block_size, 0)
        unknown += int((ids == tokenizer.unk_token_id).sum())
    if cut > NOTED_CUT * tokens:
        say(
            f"--block_size {block_size} cuts off {cut / tokens:.0%} of the tokens of --train_data_file, which are "
            "never seen: an example is a pair of lines; shorten the lines (--split_sentences, or cut them), or raise it"
        )
    if unknown > _NOTED_UNKNOWN * tokens:
        say(
            f"{unknown / tokens:.0%} of the tokens of --train_data_file are {tokenizer.unk_token}: the tokenizer does "
            "not know their characters; train one on this text"
        )


def _evaluates_on_ids(options: PretrainOptions) -> bool:
    """Whether the evaluation file holds ids; with --train_iterable it may be text too, which its first bytes tell."""
    path = Path(options.eval_data_file[0])
    if not options.train_iterable or not path.is_file():
        return False
    if not options.line_by_line:
        return True
    with path.open("rb") as file:
        return not file.read(_SNIFFED_BYTES).translate(None, b"0123456789 \r\n")


def make_config(options: PretrainOptions, tokenizer: PreTrainedTokenizerBase) -> CompositeBertConfig:
    """The configuration of the model.

    Raises:
        UsageError: the tokenizer's size is not the model's, ``--block_size`` exceeds the model's number of positions,
            or an architecture flag contradicts the model of ``--model_name_or_path``.
    """
    if options.model_name_or_path:
        config = _config_of_model(options)
        stated: int | None = config.vocab_size
    else:
        config = _with_architecture_flags(load_config(options.config_name or ""), options)
        stated = _vocab_size_in_file(options.config_name or "")
    source = options.model_name_or_path or options.config_name
    if stated is not None and stated != len(tokenizer):
        tokenizer_path = options.tokenizer_name or options.model_name_or_path
        change = "resize it by resize_token_embeddings" if options.model_name_or_path else "set vocab_size there"
        raise UsageError(
            f"{source} has a vocabulary of {stated} and the tokenizer {tokenizer_path} one of {len(tokenizer)}; "
            f"give the tokenizer that belongs to it, or {change} to {len(tokenizer)}"
        )
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    if not options.model_name_or_path and options.config_name in PRESETS:  # presets grow as needed
        config.max_position_embeddings = max(config.max_position_embeddings, options.block_size)
    if not config.remove_position_embeddings and options.block_size > config.max_position_embeddings:
        more = ", raise max_position_embeddings there, or give --remove_position_embeddings"
        raise UsageError(
            f"--block_size {options.block_size} is more than {source} has positions, "
            f"{config.max_position_embeddings}; lower it" + ("" if options.model_name_or_path else more)
        )
    return config


def make_model(options: PretrainOptions, config: CompositeBertConfig, seed: int) -> PreTrainedModel:
    """The model with its heads, with random weights from ``seed`` or those of ``--model_name_or_path``."""
    model_class = CompositeBertForPreTraining if options.use_sop_head else CompositeBertForMaskedLM
    name = options.attn_implementation
    backend: dict[str, Any] = {"attn_implementation": name} if name else {}
    set_seed(seed)
    if options.model_name_or_path:
        path = options.model_name_or_path
        model: Any = load_strictly(model_class, path, config, new_head=True, dtype=torch.float32, **backend)
    else:
        try:
            model = model_class._from_config(config, **backend)
        except ValueError as error:  # only the backend's name is unchecked so far
            raise UsageError(f"--attn_implementation {name}: {error}") from error
    if not config.tie_word_embeddings:  # the decoder then has another bias, and processes would wait for this one's
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["cls.predictions.bias"])
    return model


def _config_of_model(options: PretrainOptions) -> CompositeBertConfig:
    path = options.model_name_or_path or ""
    if not (Path(path) / "config.json").is_file():
        raise UsageError(f"--model_name_or_path {path} holds no config.json; give the directory of a saved model")
    values = read_json(Path(path) / "config.json")
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type != CompositeBertConfig.model_type:
        raise UsageError(f"{path} holds a {model_type} model; run bertconv convert if it is one of the original's")
    config = read_config(Path(path) / "config.json")
    changed = _with_architecture_flags(config, options)
    for name in ARCHITECTURE_FLAGS:
        if getattr(changed, name) != getattr(config, name):
            raise UsageError(
                f"--{name} {getattr(options, name)} contradicts --model_name_or_path: the model in {path} has "
                f"{getattr(config, name)}; leave the flag out"
            )
    return config


def _with_architecture_flags(config: CompositeBertConfig, options: PretrainOptions) -> CompositeBertConfig:
    """A config with the architecture flags applied, except those left out (None or False)."""
    flags = {name: getattr(options, name) for name in ARCHITECTURE_FLAGS}
    flags = {name: value for name, value in flags.items() if value is not None and value is not False}
    try:
        return CompositeBertConfig(**{**config.to_dict(), **flags}) if flags else config
    except ValueError as error:  # it names a field
        raise UsageError(with_flag_names(str(error), ARCHITECTURE_FLAGS)) from error


def _vocab_size_in_file(config_name: str) -> int | None:
    """``vocab_size`` in a config file; None for a preset, which takes the tokenizer's size."""
    if config_name in PRESETS:
        return None
    path = Path(config_name)
    return read_json(path / "config.json" if path.is_dir() else path).get("vocab_size")


def make_trainer(
    options: PretrainOptions,
    arguments: BertTrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    watch: SignalWatch,
) -> PretrainingTrainer:
    """The Trainer of a run, ready to train; ``bertconv bench`` measures the same one."""

    def collator(seed: int) -> PretrainingCollator:
        return PretrainingCollator(
            masking=Masking.of_tokenizer(tokenizer, seed, options.mlm_probability),
            cls_id=tokenizer.cls_token_id,
            sep_id=tokenizer.sep_token_id,
            pad_id=tokenizer.pad_token_id,
            block_size=options.block_size,
            pack=options.pack,
            sentence_order=options.use_sop_head,
            **(cuda_graph_buckets(options, arguments) if arguments.torch_compile_mode in WITH_CUDA_GRAPHS else {}),
        )

    facts = run_facts(options, arguments, model, tokenizer, corpus.train) if arguments.do_train else {}
    targets = [parse_words(text) for text in options.save_at_words]
    return PretrainingTrainer(
        model=model,
        args=arguments,
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collator(data_seed(arguments)),
        eval_collator=collator(EVALUATION_SEED),
        processing_class=set_max_length(model.config, tokenizer),
        mlm_probability=options.mlm_probability,
        words=WordCounter(word_starts(tokenizer), targets, Path(arguments.output_dir or ".")),
        save_every_minutes=options.save_every_minutes,
        run_facts=facts,
        watch=watch,
    )


def cuda_graph_buckets(options: PretrainOptions, arguments: TrainingArguments) -> dict[str, int]:
    """Bucket sizes for rows and masked positions; their numbers vary by about the square root of the batch size."""
    root = math.isqrt(arguments.per_device_train_batch_size)
    return {"row_bucket": root, "position_bucket": max(root * options.block_size // 8, 64)}


def run_facts(
    options: PretrainOptions,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Any,
) -> dict[str, Any]:
    """The JSON values that must be equal when a run is resumed.

    All other flags may change: learning rate, weight decay, betas, epsilon, warm-up and length are applied.
    """
    plan = StepPlan.of_training(arguments, len(examples))
    schedule = SchedulerType(arguments.lr_scheduler_type)
    by_loss = schedule in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
    minutes, metric = options.train_minutes, (arguments.metric_for_best_model or "").removeprefix("eval_")
    best = {"metric_for_best_model": metric, "greater_is_better": arguments.greater_is_better}
    return {
        **(best if metric else {}),
        **({} if minutes is None else {"train_minutes": minutes, "train_steps": arguments.max_steps}),
        "seed": arguments.seed,
        "data_seed": data_seed(arguments),
        "num_examples": plan.num_examples,
        "global_batch_size": plan.global_batch_size,
        "block_size": options.block_size,
        "mlm_probability": options.mlm_probability,
        "use_sop_head": options.use_sop_head,
        "fingerprint": examples.fingerprint,
        "tokenizer": tokenizer_hash(tokenizer),
        "optimizer": [OptimizerNames(arguments.optim).value.removesuffix("_fused"), arguments.optim_args],
        "schedule": schedule.value if by_loss else "by step",
        "lr_scheduler_kwargs": arguments.lr_scheduler_kwargs if by_loss else None,
        "model": {name: value for name, value in model.config.to_dict().items() if name not in _NON_MODEL_KEYS},
    }
