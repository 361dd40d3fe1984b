"""Memory that a training step gives back is what the next one asks for: keep it."""

import ctypes
import ctypes.util
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Have malloc keep large freed blocks, instead of returning them to the system and asking for them again.

    PyTorch on a CPU takes its tensors from malloc. glibc returns blocks of some megabytes at once, and each new one is
    then faulted in page by page: about 5 % of a training step of ``bert_small``. The peak of memory stays as it is.

    Returns:
        Whether this system's malloc took the setting; nothing changes elsewhere than with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no such function
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
