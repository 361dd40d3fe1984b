"""Convolution terms for a model that is ours already, which change nothing before they are trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import bert_convolutions
from bert_convolutions.attention.terms import TERMS
from bert_convolutions.convert.hugging_face import check_addable, load_weights, stored_weights, zero_terms
from bert_convolutions.errors import UsageError
from bert_convolutions.model import CompositeBertConfig, CompositeBertModel
from bert_convolutions.model.configuration import AUTO_CLASSES
from bert_convolutions.model.presets import read_config
from bert_convolutions.parsing import read_json


def extend_model(source: Path, add: Mapping[str, str]) -> PreTrainedModel:
    """The model in a folder with more terms in its scores, whose parameters are zeros: its outputs are as before.

    Args:
        source: folder of a model of ours, with any head.
        add: ``attention_kernel`` as it is to be: all terms there are, with their reach, and some more.

    Raises:
        UsageError: there is nothing to add, or it would change what the model computes.
    """
    config = read_config(source / "config.json")
    before = f'"{config.attention_kernel}"'
    if not add:
        raise UsageError(f"{source} is converted already: give it to --model_name_or_path, or name terms to --add")
    check_addable(add)
    extended = CompositeBertConfig(**config.to_dict() | dict(add))
    old, new = config.kernel, extended.kernel
    added = set(new.score_terms) - set(old.score_terms)
    if not added or set(old.score_terms) - set(new.score_terms) or not added <= set(TERMS):
        raise UsageError(f"--add: {source} has {before}; name all of its terms and some of {', '.join(TERMS)} more")
    convolves = bool(old.convolution_terms or old.convolution)
    if new.convolution != old.convolution or (convolves and new.reach != old.reach):
        raise UsageError(f"--add: {source} has {before}; its reach and what convolves its values stay as they are")
    architecture = (read_json(source / "config.json").get("architectures") or ["CompositeBertModel"])[0]
    if architecture not in AUTO_CLASSES.values():
        raise UsageError(f"{source / 'config.json'}: architectures: {architecture} is no model of ours")
    model_class: Any = getattr(bert_convolutions, architecture)
    weights = stored_weights(source)
    unpooled = model_class is CompositeBertModel and "pooler.dense.weight" not in weights
    ours: PreTrainedModel = model_class(extended, **({"add_pooling_layer": False} if unpooled else {}))
    load_weights(ours, zero_terms(ours, added) | weights, source)
    return ours
