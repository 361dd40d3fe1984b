"""Every private name of transformers, accelerate and torch that training, glue and model use exists, and is listed.

An upgrade of one of these libraries fails here rather than in a user's run.
"""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Trainer

import bert_convolutions
from bert_convolutions.training.resumable import OVERRIDDEN

ROOT = Path(bert_convolutions.__file__).parent
FOLDERS = ("training", "glue", "model")
STANDARD_LIBRARY = {"_exit", "_fields", "_asdict", "_replace"}
SET_IN_THE_CONSTRUCTOR = {"transformers.TrainingArguments._n_gpu", "accelerate.Accelerator._models"} | {
    *("torch.optim.lr_scheduler.LambdaLR._last_lr", "torch.nn.Module._forward_pre_hooks")
}
USED = {
    "transformers.Trainer._wrap_model": "evaluation without training",
    "transformers.Trainer._prepare_inputs": "evaluation",
    "transformers.Trainer._load_from_checkpoint": "the weights of a finished run",
    "transformers.TrainingArguments._n_gpu": "set to one device a process",
    "transformers.PreTrainedModel._from_config": "a model with random weights and a chosen backend",
    "transformers.PreTrainedModel._supports_sdpa": "declared: the model's classes may take any backend",
    "transformers.PreTrainedModel._supports_attention_backend": "declared: as above",
    "transformers.PreTrainedModel._no_split_modules": "declared: a layer stays on one device",
    "transformers.PreTrainedModel._tied_weights_keys": "declared: the decoder is the word embeddings",
    "transformers.PreTrainedModel._init_weights": "overridden: what the original draws",
    "transformers.PreTrainedModel._can_set_attn_implementation": "overridden: so can the code saved beside a model",
    "transformers.PretrainedConfig._attn_implementation": "the backend chosen",
    "accelerate.state.AcceleratorState._reset_state": "runs of several precisions in one process",
    "accelerate.Accelerator._models": "whether autocast is set up yet",
    "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown_workers": "workers at exit",
    "torch.optim.lr_scheduler.LambdaLR._last_lr": "the rate that is logged",
    "torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model": "untied embeddings",
    "torch.nn.Module._forward_pre_hooks": "pruning and spectral norm, which make a weight before each forward pass",
    "torch._inductor": "the modes of torch.compile, for --torch_compile_mode",
    "torch._dynamo": "which sizes change, before a model is compiled for those of its first batch",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "whether this CPU multiplies bf16",
}
"""Other private names of these libraries that ``training``, ``glue`` and ``model`` use."""
LISTED = set(OVERRIDDEN) | {path.rpartition(".")[2] for path in USED}


def sources() -> list[tuple[Path, ast.Module]]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "cpu.py"]
    return [(path, ast.parse(path.read_text())) for path in paths]


def own_names() -> set[str]:
    """All names that our files define or assign themselves."""
    names = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_that_are_used_are_listed() -> None:
    mine = own_names() - {path.rpartition(".")[2] for path in USED}
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                if node.attr not in mine and node.attr not in STANDARD_LIBRARY:
                    assert node.attr in LISTED, f"{path}:{node.lineno} uses {ast.unparse(node)}"
                if isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()":
                    assert node.attr in LISTED, f"{path}:{node.lineno} calls {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("bert_convolutions"):
                assert not any(is_private(alias.name) for alias in node.names), f"{path}:{node.lineno}"


def our_classes() -> list[type]:
    found = []
    for folder in FOLDERS:
        package = importlib.import_module(f"bert_convolutions.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            members = vars(importlib.import_module(module.name)).values()
            found += [item for item in members if inspect.isclass(item) and item.__module__ == module.name]
    return found


def foreign_bases(kind: type) -> list[type]:
    return [
        base for base in kind.__mro__ if base.__module__.partition(".")[0] in ("transformers", "torch", "accelerate")
    ]


def test_members_that_are_overridden_are_listed() -> None:
    """Private members of any class of these libraries, and all members of the Trainer."""
    mine = own_names()  # torch's metaclasses add some of their own
    for kind in our_classes():
        for name in [*vars(kind), *inspect.get_annotations(kind)]:
            bases = [base for base in foreign_bases(kind) if name in vars(base)]
            if bases and name in mine and (is_private(name) or (Trainer in bases and not name.startswith("__"))):
                assert name in LISTED, f"{kind.__name__}.{name} overrides {bases[0].__name__}'s"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_the_trainer_has_the_members_that_are_overridden(name: str) -> None:
    constructor = inspect.getsource(Trainer.__init__)
    assert hasattr(Trainer, name) or f"self.{name}" in constructor or name in inspect.getsource(Trainer)


@pytest.mark.parametrize("path", USED)
def test_the_libraries_have_the_private_names_that_are_used(path: str) -> None:
    owner, _, name = path.rpartition(".")
    found: Any = pkgutil.resolve_name(owner)
    if path in SET_IN_THE_CONSTRUCTOR:
        assert any(f"self.{name}" in inspect.getsource(base) for base in found.__mro__[:-1])
    else:
        assert hasattr(found, name)


def test_the_trainers_methods_have_the_parameters_that_overrides_read() -> None:
    assert "epoch" in inspect.signature(Trainer._run_epoch).parameters
    assert list(inspect.signature(Trainer._save_checkpoint).parameters) == ["self", "model", "trial"]
    assert list(inspect.signature(Trainer._init_training_state).parameters)[1] == "max_steps"
    assert "model" in inspect.signature(Trainer.get_optimizer_cls_and_kwargs).parameters
    assert hasattr(transformers.TrainerState, "compute_steps") and torch.optim.lr_scheduler.LambdaLR.get_last_lr
