"""Perceptual hashes, to find duplicate and near-duplicate images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from data.index import DatasetIndex
from data.pools import stopping_at_once
from imaging.image_io import ImageError, read_image

HASH_SIDE = 8  # a hash compares 8 x 8 neighbours, once to the right and once down: 128 bits
MAX_DISTANCE = 8  # of 128 bits; rescaling and recompression change fewer, other photographs more (see tests)
HASHED_SIZE = (64, 64)  # sufficient size in pixels; a JPEG is decoded at the smallest sufficient size


def image_hashes(index: DatasetIndex, workers: int | None = None) -> np.ndarray:
    """(I, 2) uint64 difference hashes of all images of a split, in its order.

    An image that cannot be read, or has a single colour, has the hash 0 and matches no other.
    """
    return file_hashes(index.paths(), workers)


def file_hashes(paths: Sequence[str | Path], workers: int | None = None) -> np.ndarray:
    """(N, 2) uint64 hashes of image files; see `image_hashes`."""
    if not len(paths):
        return np.zeros((0, 2), np.uint64)
    executor = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))  # OpenCV decodes outside the GIL
    with stopping_at_once(executor) as pool:
        return np.stack(list(pool.map(_file_hash, paths)))


def picture_hash(image: np.ndarray) -> np.ndarray:
    """(2,) uint64 dHash of an (H, W) or (H, W, 3) uint8 image: which cells are brighter than their neighbours.

    Source: N. Krawetz, "Kind of Like That", 2013, https://www.hackerfactor.com/blog/index.php?/archives/529
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    side = HASH_SIDE
    across = cv2.resize(grey, (side + 1, side), interpolation=cv2.INTER_AREA)
    down = cv2.resize(grey, (side, side + 1), interpolation=cv2.INTER_AREA)
    bits = np.stack([across[:, :-1] > across[:, 1:], down[:-1] > down[1:]]).reshape(2, -1)
    return np.packbits(bits, axis=1).view(">u8").reshape(2).astype(np.uint64)


def _file_hash(path: str | Path) -> np.ndarray:
    try:
        return picture_hash(read_image(path, min_size=HASHED_SIZE))
    except ImageError:
        return np.zeros(2, np.uint64)


def near_duplicate_groups(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """(N,) int64 group numbers: images whose hashes differ in at most `max_distance` bits share one.

    Grouping is transitive: two images that are both near to a third are in one group.

    Args:
        hashes: (N,) or (N, K) uint64. An all-zero hash matches no other.
        max_distance: bits.

    Hashes within d bits agree exactly in at least one of d + 1 slices, so only those that share a slice are compared
    (multi-index hashing, Norouzi et al., CVPR 2012). No table of all pairs is built, even for COCO's 118k images.
    """
    return linked_groups(len(hashes), *similar_pairs(hashes, max_distance))


def linked_groups(count: int, first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray) -> np.ndarray:
    """(count,) int64 group numbers of items that are linked by the pairs (first[k], second[k])."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


def similar_pairs(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> tuple[np.ndarray, np.ndarray]:
    """Two (P,) int64 arrays: the pairs (i < j) of hashes that differ in at most `max_distance` bits."""
    hashes = np.ascontiguousarray(hashes, np.uint64)
    hashes = hashes[:, None] if hashes.ndim == 1 else hashes
    known = np.flatnonzero((hashes != 0).any(axis=1))
    if not len(known):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    unique, where = np.unique(hashes[known], axis=0, return_inverse=True)
    pairs = [_chains(known, where.reshape(-1))]
    bits = np.unpackbits(unique.view(np.uint8).reshape(len(unique), -1), axis=1)
    representative = np.full(len(unique), -1, np.int64)
    representative[where.reshape(-1)[::-1]] = known[::-1]
    for columns in np.array_split(np.arange(bits.shape[1]), min(max_distance + 1, bits.shape[1])):
        keys = np.packbits(bits[:, columns], axis=1)
        _, slot = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(slot.reshape(-1), kind="stable")
        starts = np.flatnonzero(np.diff(slot.reshape(-1)[order], prepend=-1))
        for members in np.split(order, starts[1:]) if len(order) else ():
            pairs.extend(_within(unique, members, representative, max_distance))
    joined = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return joined[:, 0], joined[:, 1]


def _chains(known: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(P, 2) pairs that link equal hashes one to the next, so that a thousand copies are not a million pairs."""
    order = np.argsort(where, kind="stable")
    same = where[order][1:] == where[order][:-1]
    return np.stack([known[order][:-1][same], known[order][1:][same]], axis=1).astype(np.int64)


def _within(unique: np.ndarray, members: np.ndarray, names: np.ndarray, max_distance: int) -> list[np.ndarray]:
    """The (P, 2) similar pairs among hashes that share a slice, a row of the comparison at a time."""
    found = []
    for position, i in enumerate(members[:-1]):
        others = members[position + 1 :]
        near = others[np.bitwise_count(unique[i] ^ unique[others]).sum(axis=1) <= max_distance]
        if len(near):
            found.append(np.stack([np.full(len(near), names[i]), names[near]], axis=1))
    return found
