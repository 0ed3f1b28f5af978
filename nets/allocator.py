"""Make the C library keep freed memory for the next training step, where it supports this."""

from __future__ import annotations

import ctypes
import sys

# mallopt's names, glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Make glibc allocate large blocks on its heap and never shrink the heap. Returns whether this succeeded.

    Otherwise each large tensor of a step is mapped again, and the kernel fills its pages with zeros: 5 of 40 CPU
    milliseconds per image in the training of `small` (docs/EXPERIMENTS.md, section 8). Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return sum(mallopt(name, value) for name, value in settings) == len(settings)
