"""What a CPU computes fast, and settings of PyTorch's libraries that make training on it faster."""

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def cpu_has_bf16() -> bool:
    """Whether bf16 is about as fast as float32 (AVX-512) or faster (bf16 instructions), not many times slower."""
    # PyTorch's own check has no public name; on macOS, it is built without that library.
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_freed_memory() -> None:
    """Make glibc's malloc, which allocates PyTorch's CPU tensors, keep large freed blocks.

    Page faults on blocks returned to the system cost about 5 % of a training step of ``bert_small``. Peak memory does
    not change with rows of one length, as in training here; it grows where every step has another length.
    """
    with contextlib.suppress(AttributeError):  # only glibc has this function
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD in malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


@contextlib.contextmanager
def fast_float32_products() -> Iterator[None]:
    """Multiply float32 matrices on the CPU by oneDNN instead of MKL where that is faster; also a decorator.

    MKL uses AVX2 on all CPUs of AMD. On those whose AVX-512 units have the full width (Zen 5), oneDNN is over twice as
    fast: 250 GFLOP/s on a core of an EPYC instead of 110. PyTorch calls it for float32 only if it may round the factors
    to bfloat16. Without Intel's AMX, it doesn't round them, which is checked. A precision that the user has set stays.
    """
    unset = torch.backends.mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]
    with _products_of_onednn() if unset and _onednn_is_faster() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _products_of_onednn() -> Iterator[None]:
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = "none"


@functools.cache
def _onednn_is_faster() -> bool:
    return _is_zen5_with_mkl() and _keeps_float32()


def _is_zen5_with_mkl() -> bool:
    """Whether this is a CPU of AMD from Zen 5 on, and PyTorch uses MKL."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    facts = _CPU_INFO.read_text(encoding="utf-8", errors="replace") if _CPU_INFO.exists() else ""
    family = re.search(r"^vendor_id\s*: AuthenticAMD\ncpu family\s*: (\d+)$", facts, re.MULTILINE)
    return family is not None and int(family[1]) >= 26


@torch.autocast("cpu", enabled=False)  # the first call may be under autocast, which rounds the product
def _keeps_float32() -> bool:
    """Whether oneDNN keeps the digits that bfloat16 lacks in a product of float32 matrices."""
    size, element = 64, 1 + 2**-12
    factor = torch.full((size, size), element, dtype=torch.float32, device="cpu")
    with _products_of_onednn():
        product = torch.mm(factor, factor)
    return bool((product / (size * element**2) - 1).abs().max() < 1e-6)
