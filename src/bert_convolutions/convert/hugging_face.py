"""Converts encoders of ``transformers`` to composite attention, and adds convolution terms initialised with zeros.

- BERT and ELECTRA: the only term is ``qk``; the parameters have the same names as BERT's.
- Relative position embeddings (Shaw et al. 2018, arXiv 1803.02155; Huang et al. 2020, arXiv 2009.13658): dynamic terms
  whose reach is the maximum distance.
- MPNet: a bias per bucket of distances as in T5 (Raffel et al. 2020, arXiv 1910.10683): a fixed term that reaches to
  the last bucket.
- ConvBERT: span-based dynamic convolution (Jiang et al. 2020, arXiv 2008.02496) is ``convspan``. Grouped linear layers
  become block-diagonal ones, whose zeros further training may change.
- DeBERTa, all versions: disentangled attention (He et al. 2021, arXiv 2006.03654) becomes a dynamic term from the
  query, the key or both, with a kernel per head: the distance embeddings as projected in each layer.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    BertConfig,
    ConvBertConfig,
    DebertaConfig,
    DebertaV2Config,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import load_state_dict
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

import bert_convolutions
from bert_convolutions.attention.terms import TERMS
from bert_convolutions.errors import UsageError, first_line
from bert_convolutions.model import CompositeBertConfig, CompositeBertModel
from bert_convolutions.model.configuration import AUTO_CLASSES
from bert_convolutions.model.loading import load_config
from bert_convolutions.model.presets import read_config
from bert_convolutions.parsing import read_json
from bert_convolutions.terminal import say

Weights = dict[str, Tensor]
_UNPOOLED_HEADS = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")
_HEADS = {
    "bert": (),
    "mpnet": (),
    "electra": _UNPOOLED_HEADS,
    "convbert": _UNPOOLED_HEADS,
    "deberta": _UNPOOLED_HEADS,
    "deberta-v2": _UNPOOLED_HEADS,
}
"""Supported model types, and those of their heads that equal BERT's; an empty tuple means all."""
_WITH_GELU = ("electra", "convbert", "mpnet")
"""Types whose masked-language-model head always uses GELU."""
_NAMES = (  # (regular expression for their name, ours)
    (r"^(electra|mpnet|convbert|deberta)\.", "bert."),
    (r"^lm_predictions\.", ""),
    (r"^lm_head\.LayerNorm\.", "lm_head.layer_norm."),
    (r"^(generator_predictions|lm_head)\.dense\.", "cls.predictions.transform.dense."),
    (r"^(generator_predictions\.LayerNorm|lm_head\.layer_norm)\.", "cls.predictions.transform.LayerNorm."),
    (r"^(generator_lm_head|lm_head\.decoder)\.weight", "cls.predictions.decoder.weight"),
    (r"^(generator_lm_head|lm_head\.decoder|lm_head)\.bias", "cls.predictions.bias"),
    (r"\.attention\.attn\.q\.", ".attention.self.query."),
    (r"\.attention\.attn\.k\.", ".attention.self.key."),
    (r"\.attention\.attn\.v\.", ".attention.self.value."),
    (r"\.attention\.attn\.o\.", ".attention.output.dense."),
    (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
    (r"\.self\.(query|key|value)_proj\.", r".self.\1."),
    (r"\.key_conv_attn_layer\.depthwise\.", ".span.key_conv."),
    (r"\.key_conv_attn_layer\.(pointwise\.)?", ".span.key_pointwise."),
    (r"\.conv_kernel_layer\.", ".span.kernel."),
    (r"\.conv_out_layer\.", ".span.value."),
    (r"^classifier\.dense\.", "bert.pooler.dense."),
    (r"^classifier\.out_proj\.", "classifier."),
)
_MPNET_DISTANCE, _MPNET_FIRST_POSITION = 128, 2
"""The distance from which on all are in the last bucket; the first row of its position embeddings that is used."""
_REFUSED = {
    "roberta": "its positions start at the padding index + 1, unlike this model's",
    "ltgbert": "its feed-forward layers are gated and its normalisation layers placed differently from this model's",
}
_DEBERTA_TERMS = {"c2p": "convqhead", "p2c": "convkhead"}
"""Term for each ``pos_att_type``."""
_DEBERTA_ONLY = re.compile(r"encoder\.(rel_embeddings|LayerNorm)\.|\.self\.(pos_(\w+_)?proj|in_proj|[qv]_bias)")
"""Weights without a counterpart, which are converted: distance embeddings, and version 1's projections."""
_RELATIVE = {"absolute": "", "relative_key": "qk_convq", "relative_key_query": "qk_convq_convk"}
"""Terms for each ``position_embedding_type``; current versions of transformers support only the first."""
_DISTANCE_EMBEDDING = "distance_embedding.weight"
_LONG_REACH = 128
"""Reach from which on its cost is reported, as measured with the shape of deberta-v3-base."""


def convert_model(source: Path, add: Mapping[str, str]) -> PreTrainedModel:
    """Convert a model of ``transformers`` in a local folder; its outputs stay the same.

    Args:
        source: folder with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``.
        add: ``attention_kernel`` with ``qk`` and added terms and their reach, if the source has no relative positions.

    Raises:
        UsageError: the model's type or a feature is not supported, or the terms can't be added.
    """
    kind = str(read_json(source / "config.json").get("model_type"))
    if kind not in _HEADS:
        reason = _REFUSED.get(kind, f"only {', '.join(_HEADS)} have the same layers")
        raise UsageError(f"{source} holds a {kind} model, which can't be converted: {reason}")
    config = load_config(source)
    _refuse_unsupported(config, source)
    architecture, encoder = (config.architectures or [""])[0], type(config).__name__.replace("Config", "Model")
    head = _matching_head(source, config, architecture)
    fields = _convert_config(config, add, source)
    if architecture not in ("", encoder) and not head:
        say(f"{source}: the head of {architecture} has no counterpart here, so the encoder is converted without it")
    if isinstance(config, DebertaConfig | DebertaV2Config) and fields.kernel.reach > _LONG_REACH:
        say(
            f"{source}: its distances reach {fields.kernel.reach} tokens; a training step on a CPU core then takes 1.1 "
            "times that with a reach of 8 for texts of 128 tokens, 1.7 times for 512"
        )
    loader: Any = getattr(transformers, architecture if head else encoder)
    try:
        theirs, found = loader.from_pretrained(
            source, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise UsageError(f"{source}: the model can't be loaded ({first_line(error)})") from error
    weights = {_rename(name): value for name, value in theirs.state_dict().items()}
    if "cls.predictions.bias" in weights:  # with untied embeddings, ours has the decoder's apart, as BERT's has
        weights.setdefault("cls.predictions.decoder.bias", weights["cls.predictions.bias"])
    prefix = "bert." if head else ""
    if isinstance(config, MPNetConfig):
        weights = _mpnet_weights(weights, theirs.base_model, fields, prefix)
    elif isinstance(config, ConvBertConfig):
        weights = {name: _convbert_weight(name, value) for name, value in weights.items()}
    elif isinstance(config, DebertaConfig | DebertaV2Config):
        weights = _deberta_weights(weights, theirs.base_model, fields, prefix)
    elif fields.remove_position_embeddings:
        weights = {name: value for name, value in weights.items() if "position_embeddings." not in name}
        weights |= _relative_terms(source, fields, prefix)
    missing = sorted(name for name in found["missing_keys"] if head or not name.startswith("pooler."))
    if missing:
        raise UsageError(f"{source} lacks {missing[0]}; its weights are not those of its config.json")
    if head:
        ours: PreTrainedModel = getattr(bert_convolutions, f"CompositeBert{head}")(fields)
    else:
        pooled = "pooler.dense.weight" in weights.keys() - found["missing_keys"]
        ours = CompositeBertModel(fields, add_pooling_layer=pooled)
        weights = {name: value for name, value in weights.items() if pooled or not name.startswith("pooler.")}
    load_weights(ours, _zero_terms(ours, TERMS) | weights, source)
    return ours


def extend_model(source: Path, add: Mapping[str, str]) -> PreTrainedModel:
    """Add terms with zero parameters to a model of ours; its outputs stay the same.

    Args:
        source: folder of the model, with any head.
        add: ``attention_kernel`` with all existing terms, their reach, and the added terms.

    Raises:
        UsageError: there is nothing to add, or the outputs would change.
    """
    config = read_config(source / "config.json")
    before = f'"{config.attention_kernel}"'
    if not add:
        raise UsageError(f"{source} is already converted: give it to --model_name_or_path, or name terms to --add")
    _check_addable(add)
    extended = CompositeBertConfig(**config.to_dict() | dict(add))
    old, new = config.kernel, extended.kernel
    added = set(new.score_terms) - set(old.score_terms)
    if not added or set(old.score_terms) - set(new.score_terms) or not added <= set(TERMS):
        raise UsageError(f"--add: {source} has {before}; name all of its terms and more of {', '.join(TERMS)}")
    convolves = bool(old.convolution_terms or old.convolution)
    if new.convolution != old.convolution or (convolves and new.reach != old.reach):
        raise UsageError(f"--add: {source} has {before}; its reach and its convolution of values can't be changed")
    architecture = (read_json(source / "config.json").get("architectures") or ["CompositeBertModel"])[0]
    if architecture not in AUTO_CLASSES.values():
        raise UsageError(f"{source / 'config.json'}: architectures: {architecture} is not a model of ours")
    model_class: Any = getattr(bert_convolutions, architecture)
    weights = _stored_weights(source)
    unpooled = model_class is CompositeBertModel and "pooler.dense.weight" not in weights
    ours: PreTrainedModel = model_class(extended, **({"add_pooling_layer": False} if unpooled else {}))
    load_weights(ours, _zero_terms(ours, added) | weights, source)
    return ours


def _check_addable(add: Mapping[str, str]) -> None:
    """Refuse fields that can't be added without changing the outputs."""
    for field in sorted(set(add) - {"attention_kernel"}):
        raise UsageError(f"--add {field}: only attention_kernel can be added without changing the model")


def _zero_terms(model: PreTrainedModel, terms: Iterable[str]) -> Weights:
    """Zeros for the parameters of ``terms`` in a model of ours."""
    suffixes = tuple(f".{term}_param" for term in terms)
    return {name: torch.zeros_like(value) for name, value in model.state_dict().items() if name.endswith(suffixes)}


def _refuse_unsupported(config: Any, source: Path) -> None:
    """Refuse features without a counterpart and a different order of operations."""
    checks: list[tuple[str, tuple[Any, ...], str]] = [
        ("position_embedding_type", tuple(_RELATIVE), f"only {', '.join(_RELATIVE)} are supported"),
        ("is_decoder", (False,), "only encoders are"),
    ]
    if isinstance(config, DebertaConfig | DebertaV2Config):
        checks += [
            ("conv_kernel_size", (0,), "there is no convolution between layers here"),
            ("talking_head", (False,), "heads don't mix their scores here"),
            ("embedding_size", (config.hidden_size,), "embeddings are normalised here before they are projected"),
        ]
        unknown = sorted(set(config.pos_att_type or ()) - set(_DEBERTA_TERMS))
        if unknown:
            terms = " and ".join(_DEBERTA_TERMS)
            raise UsageError(f"{source}: pos_att_type has {unknown[0]}; only {terms} are terms here")
    for name, possible, reason in checks:
        if getattr(config, name, possible[0]) not in possible:
            raise UsageError(f"{source}: {name} is {getattr(config, name)}, which can't be converted: {reason}")


def _matching_head(source: Path, config: PreTrainedConfig, architecture: str) -> str:
    """The name of the equivalent head; empty if only the encoder can be converted."""
    head = architecture.removeprefix(type(config).__name__.removesuffix("Config"))
    if head == "Model" or not hasattr(bert_convolutions, f"CompositeBert{head}"):
        return ""
    heads = _HEADS[config.model_type]
    if head == "ForMaskedLM" and config.model_type in _WITH_GELU and config.hidden_act != "gelu":
        raise UsageError(f"{source}: hidden_act is {config.hidden_act}, but its head for masked tokens uses gelu")
    return head if head in heads or not heads else ""


def _convert_config(config: PreTrainedConfig, add: Mapping[str, str], source: Path) -> CompositeBertConfig:
    _check_addable(add)
    shared = {name: value for name, value in config.to_dict().items() if name in BertConfig().to_dict()}
    for name in ("model_type", "architectures", "transformers_version"):
        shared.pop(name, None)
    fields: dict[str, Any] = {"embedding_size": getattr(config, "embedding_size", config.hidden_size), **shared}
    relative = _RELATIVE[getattr(config, "position_embedding_type", None) or "absolute"]
    if isinstance(config, MPNetConfig):
        fields["attention_kernel"] = f"qk_convfixed {_MPNET_DISTANCE}"
        fields["max_position_embeddings"] -= _MPNET_FIRST_POSITION
    elif isinstance(config, ConvBertConfig):
        heads = max(config.num_attention_heads // config.head_ratio, 1)
        fields |= {"num_attention_heads": heads, "attention_head_size": config.hidden_size // heads // 2}
        fields["attention_kernel"] = f"qk_convspan {(config.conv_kernel_size - 1) // 2}"
    elif isinstance(config, DebertaConfig | DebertaV2Config):
        terms = [term for kind, term in _DEBERTA_TERMS.items() if kind in (config.pos_att_type or ())]
        if config.relative_attention and terms:
            fields["attention_kernel"] = f"{'_'.join(['qk', *terms])} {_deberta_reach(config)}"
        fields["remove_position_embeddings"] = not config.position_biased_input
        fields["type_vocab_size"] = config.type_vocab_size or BertConfig().type_vocab_size
    elif relative:
        kernel = f"{relative} {config.max_position_embeddings - 1}"
        fields |= {"attention_kernel": kernel, "remove_position_embeddings": True}
    if add and "attention_kernel" in fields:
        kernel = fields["attention_kernel"]
        raise UsageError(f'--add: {source} becomes "{kernel}", to which nothing can be added')
    ours = CompositeBertConfig(**fields | dict(add))
    if add and ("qk" not in ours.kernel.score_terms or ours.kernel.convolution):
        raise UsageError(
            f'--add attention_kernel="{ours.attention_kernel}": {source} has a dot product and no convolution of the '
            f"values; name qk and any of {', '.join(TERMS)}"
        )
    return ours


def _rename(name: str) -> str:
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name


def _convbert_weight(name: str, value: Tensor) -> Tensor:
    """A linear layer's weight from that of a pointwise convolution or a grouped layer (groups, in, out)."""
    if "span.key_pointwise." in name:
        return value.squeeze(-1)
    return torch.block_diag(*value.mT) if value.dim() == 3 and name.endswith("dense.weight") else value


def _mpnet_weights(weights: Weights, encoder: Any, config: CompositeBertConfig, prefix: str) -> Weights:
    """MPNet's weights: shared distance biases as each layer's fixed term, zero token types, positions from row 2 on."""
    distances = weights.pop(f"{prefix}encoder.relative_attention_bias.weight")  # (buckets, H)
    buckets = encoder.encoder.relative_position_bucket(torch.arange(-_MPNET_DISTANCE, _MPNET_DISTANCE + 1))
    for layer in range(config.num_hidden_layers):
        weights[f"{prefix}encoder.layer.{layer}.attention.self.convfixed_param"] = distances[buckets].T[None, :, None]
    positions, types = (f"{prefix}embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type"))
    weights[positions] = weights[positions][_MPNET_FIRST_POSITION:]
    weights[types] = torch.zeros(config.type_vocab_size, config.embedding_size)
    return weights


def _deberta_rows(config: Any, distances: Tensor) -> Tensor:
    """The rows of DeBERTa's distance embeddings for distances i - j of a query i and a key j."""
    longest, buckets = config.max_relative_positions, getattr(config, "position_buckets", -1)
    longest = longest if longest > 0 else config.max_position_embeddings
    if buckets > 0:
        distances = make_log_bucket_position(distances, buckets, longest).long()
    size = buckets if buckets > 0 else longest
    return (distances + size).clamp(0, 2 * size - 1)


def _deberta_reach(config: Any) -> int:
    """The distance from which on all have the first, or the last, row."""
    longest = max(config.max_relative_positions, config.max_position_embeddings)
    return int((_deberta_rows(config, -torch.arange(2 * longest)) > 0).sum())


def _deberta_weights(weights: Weights, encoder: Any, config: CompositeBertConfig, prefix: str) -> Weights:
    """DeBERTa's weights. It divides scores by sqrt(d (1 + terms)), we by sqrt(d); the rest is moved to the weights."""
    weights = {name: value for name, value in weights.items() if not _DEBERTA_ONLY.search(name)}
    types = f"{prefix}embeddings.token_type_embeddings.weight"
    weights.setdefault(types, torch.zeros(config.type_vocab_size, config.embedding_size))
    scale = (1 + len(encoder.config.pos_att_type or ())) ** -0.5
    rows = _deberta_rows(encoder.config, torch.arange(-config.kernel.reach, config.kernel.reach + 1))
    table = encoder.encoder.get_rel_embedding()
    for number, layer in enumerate(encoder.encoder.layer):
        name, theirs = f"{prefix}encoder.layer.{number}.attention.self.", layer.attention.self
        if hasattr(theirs, "in_proj"):  # version 1: one matrix, ordered by head; no key bias
            parts = theirs.in_proj.weight.unflatten(0, (config.num_attention_heads, 3, -1)).unbind(1)
            biases = (theirs.q_bias, torch.zeros_like(theirs.q_bias), theirs.v_bias)
            for part, weight, bias in zip(("query", "key", "value"), parts, biases, strict=True):
                weights[f"{name}{part}.weight"], weights[f"{name}{part}.bias"] = weight.flatten(0, 1), bias
        for kind in ("weight", "bias"):
            weights[f"{name}query.{kind}"] = weights[f"{name}query.{kind}"] * scale
        for term in config.kernel.convolution_terms:
            kernel = _deberta_projection(theirs, term)(table[rows])  # (2n+1, H*d)
            kernel = kernel.flip(0) if term == "convqhead" else kernel * scale  # by j - i, or i - j
            weights[f"{name}{term}_param"] = kernel.unflatten(-1, (config.num_attention_heads, -1)).permute(1, 2, 0)
    return weights


def _deberta_projection(attention: Any, term: str) -> Any:
    """The layer that projects distance embeddings to keys (for ``convqhead``) or to queries."""
    if getattr(attention, "share_att_key", False):
        return attention.key_proj if term == "convqhead" else attention.query_proj
    names = ("pos_proj", "pos_key_proj") if term == "convqhead" else ("pos_q_proj", "pos_query_proj")
    return next(getattr(attention, name) for name in names if hasattr(attention, name))


def _relative_terms(source: Path, config: CompositeBertConfig, prefix: str) -> Weights:
    """The terms' parameters from embeddings (2n+1, d) of the distance i - j, which transformers no longer loads."""
    terms = {}
    for stored, value in _stored_weights(source).items():
        name = _rename(stored)
        if name.endswith(_DISTANCE_EMBEDDING):
            layer = prefix + name.removeprefix("bert.").removesuffix(_DISTANCE_EMBEDDING)
            terms[f"{layer}convq_param"] = value.flip(0).T
            if "convk" in config.kernel.convolution_terms:
                terms[f"{layer}convk_param"] = value.T
    if len(terms) < config.num_hidden_layers * len(config.kernel.convolution_terms):
        raise UsageError(
            f"{source}: its config.json asks for relative positions, but a layer's {_DISTANCE_EMBEDDING} is missing"
        )
    return terms


def _stored_weights(source: Path) -> Weights:
    """The weights of a folder in float32, by their names in the files.

    Raises:
        UsageError: a file can't be read as plain weights.
    """
    files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    try:
        return {name: value.float() for file in files for name, value in load_state_dict(file).items()}
    except Exception as error:  # PyTorch, safetensors and transformers raise different errors
        raise UsageError(f"{source}: its weights can't be read ({first_line(error)})") from error


def load_weights(model: PreTrainedModel, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights whose names and shapes must be the model's; tied ones may be missing.

    Raises:
        UsageError: names the first weight that is unknown, missing or has another shape.
    """
    expected = model.state_dict()
    for name, value in weights.items():
        if name not in expected:
            raise UsageError(f"{source} holds {name}, which a model with this config.json doesn't have")
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, config.json says {tuple(expected[name].shape)}"
            raise UsageError(f"{source}: {name} is {shapes}")
    missing = sorted(expected.keys() - weights.keys() - model.all_tied_weights_keys.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(f"{source} lacks {missing[0]}{more}")
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
