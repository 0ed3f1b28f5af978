"""Area averaging: OpenCV's INTER_AREA with the same values, in less than half its time for fractional factors."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import cv2
import numpy as np

from utils.allocator import keep_freed_memory

# The import of scipy.sparse takes as long as about 200 images gain by it, so the first images are resized by OpenCV.
FIRST_CALLS = 200
MAX_PIXELS = 1 << 20  # the gain falls with the factor, and larger images have large factors
STRIP_ROWS = 128  # rows that are converted to float32 at once, so that they stay in the cache
_calls = itertools.count()


def shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink (H, W, 3) uint8 to (height, width, 3) uint8 by the average of the source area under each pixel.

    OpenCV has vector instructions for integer factors only. Any other factor is a multiplication by a sparse matrix for
    the rows and one for the columns, in float32 as in OpenCV.
    """
    rows, columns = image.shape[:2]
    is_integer = rows % height == 0 and columns % width == 0
    grows = rows < height or columns < width
    if is_integer or grows or rows * columns > MAX_PIXELS or next(_calls) < FIRST_CALLS or not _keeps_memory():
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    strips = [
        matrix @ image[lines].reshape(-1, 3 * columns).astype(np.float32)
        for lines, matrix in _averages(rows, height, -(-rows // STRIP_ROWS))
    ]
    turned = cv2.transpose(np.concatenate(strips).reshape(height, columns, 3)).reshape(columns, 3 * height)
    ((_, matrix),) = _averages(columns, width)
    smaller = cv2.transpose((matrix @ turned).reshape(width, height, 3))
    return cv2.convertScaleAbs(smaller)  # rounds half to even, as INTER_AREA does


@functools.cache
def _keeps_memory() -> bool:
    """Whether freed memory is reused. If each array were mapped again, this would be slower than OpenCV."""
    return keep_freed_memory(only_small=True)


@functools.lru_cache(1024)
def _averages(length: int, new_length: int, strips: int = 1) -> list[tuple[slice, Any]]:
    """Matrices that average lines of pixels, for each strip of the result, and the source lines that they multiply.

    A line counts by its part that lies in the averaged interval.
    """
    from scipy.sparse import csr_array  # imported here: see FIRST_CALLS

    scale, parts = length / new_length, []
    for rows in np.array_split(np.arange(new_length)[:, None], min(strips, new_length)):
        lines = np.floor(rows * scale) + np.arange(int(np.ceil(scale)) + 1)
        weights = np.minimum(lines + 1, (rows + 1) * scale) - np.maximum(lines, rows * scale)
        used = (weights > 1e-6) & (lines < length)
        weights = np.where(used, weights, 0) / np.where(used, weights, 0).sum(axis=1, keepdims=True)
        first, last = int(lines[used].min()), int(lines[used].max()) + 1
        ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
        values, places = weights[used].astype(np.float32), (lines[used] - first).astype(np.int32)
        parts.append((slice(first, last), csr_array((values, places, ends), shape=(len(rows), last - first))))
    return parts
