"""Make the C library keep freed memory for the next image or training step, where it supports this."""

from __future__ import annotations

import ctypes
import sys

# mallopt's names, glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_TOP_PAD_BYTES = 64 * 2**20
SMALL_BLOCK = 4 * 2**20  # an image of the network's size and its outputs; a large photograph is returned to the system
_keeps_all = False


def keep_freed_memory(only_small: bool = False) -> bool:
    """Make glibc allocate blocks on its heap and not shrink the heap. Returns whether it does so.

    Otherwise each large array is mapped again, and the kernel fills its pages with zeros: 5 of 40 CPU milliseconds
    per image in the training of `small` (docs/EXPERIMENTS.md, section 8). Without glibc it does nothing.

    Args:
        only_small: keep blocks of up to `SMALL_BLOCK`, and at most four times as many bytes at the end of the heap.
            It has no effect after a call without it.
    """
    global _keeps_all
    if only_small and _keeps_all:
        return True
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    if only_small:
        settings = [(_M_MMAP_THRESHOLD, SMALL_BLOCK), (_M_TRIM_THRESHOLD, 4 * SMALL_BLOCK), (_M_TOP_PAD, SMALL_BLOCK)]
    else:
        settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _TOP_PAD_BYTES)]
        _keeps_all = True
    return sum(mallopt(name, value) for name, value in settings) == len(settings)
