"""Settings of every test: offline, one thread (the tests run in parallel processes), the same seeds each time."""

import gc
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

for number in (signal.SIGHUP, signal.SIGINT):  # ignored under nohup and in the background, which children would inherit
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
torch.set_num_threads(1)
if not torch.cuda.is_available():  # runs Triton's kernels on the CPU; read when they are first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """Take what the imports made out of garbage collection: each training collects, which took most of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles for the Triton kernels: faster in its interpreter, and many even in a short sequence."""
    launch = pytest.importorskip("bert_convolutions.attention.triton.launch")
    tile = launch.Tile(queries=32, keys=32, warps=4, stages=2)
    monkeypatch.setattr(launch, "TILES", dict.fromkeys(launch.TILES, (tile,) * 3))
    from triton import language
    from triton.runtime import interpreter

    def patch_once(kernel: Any) -> Any:
        seen = [module for module in (language, language.core) if module in kernel.__globals__.values()]
        done = not any(language.core.is_builtin(module.load) for module in seen)
        return interpreter._LangPatchScope() if done else patch(kernel)

    patch = interpreter._patch_lang  # which each call of a function within a kernel repeats, a third of the time
    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)


class _NoDeviceRead(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def no_device_read() -> TorchDispatchMode:
    """A context that fails where Python reads a value of a tensor, which would wait for a GPU."""
    return _NoDeviceRead()
