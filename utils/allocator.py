"""Keep the memory that a training step frees for the next one, where the C library can be told to."""

from __future__ import annotations

import ctypes
import sys

# mallopt's names, glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc serve large blocks from its heap and never give the heap back. Returns whether it does.

    Otherwise each large tensor of a step is mapped anew and the kernel fills it with zeros, page by page: 5 of 40 CPU
    milliseconds an image in the training of `small` (docs/EXPERIMENTS.md, section 8). Elsewhere than on glibc: nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return sum(mallopt(name, value) for name, value in settings) == len(settings)
