"""Divide images into splits: seeded, stratified by class, with near-duplicates kept together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.formats.writers import write_lines
from data.index import DatasetIndex
from data.tools.hashing import image_hashes, near_duplicate_groups
from utils.errors import UserError
from utils.text import counted

EVEN_ROUNDS = 5
AUTO_SHARES = {"train": 0.8, "val": 0.2}
AUTO_SEED = 0
_known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # both parts of a division are requested separately


def auto_division(index: DatasetIndex) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and validation images, for a data set without splits.

    The same images and boxes always give the same division.

    Raises:
        UserError: if there are fewer than two images.
    """
    if len(index) < 2:
        what = f"has {counted(len(index), 'usable image')}, which cannot be divided into train and val"
        reasons = [skip for skip in index.skips if skip.kind == "image"]
        what += f"; {len(reasons)} were skipped, the first because {reasons[0]}" if reasons else ""
        raise UserError(index.source.get("root", index.name), what, "add images, or give --train-split and --val-split")
    digest = hashlib.blake2b(digest_size=16)
    for array in (index.path_bytes, index.path_offsets, index.offsets, index.labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    key = digest.digest()
    if key not in _known:
        groups = near_duplicate_groups(image_hashes(index))
        parts = stratified_split(class_counts(index), groups, AUTO_SHARES, AUTO_SEED)
        _known.clear()
        _known[key] = parts["train"], parts["val"]
    return _known[key]


def write_division(folder: Path, train: DatasetIndex, val: DatasetIndex) -> None:
    """Write the image paths of both parts of a division, one per line, to `train.txt` and `val.txt`."""
    for name, index in (("train", train), ("val", val)):
        write_lines(folder / f"{name}.txt", map(os.path.abspath, index.paths()))


def class_counts(index: DatasetIndex) -> np.ndarray:
    """(I, C) boxes of each class in each image."""
    owner = index.image_of_box
    counts = np.zeros((len(index), len(index.class_names)), np.int32)
    np.add.at(counts, (owner, index.labels), 1)
    return counts


def check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares above 0. Raises UserError unless all are in [0, 1] and sum to 1."""
    if any(not 0 <= share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-3:
        text = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise UserError("shares", f"{text} do not add up to 1", "for example --train 0.8 --val 0.1 --test 0.1")
    return {name: share for name, share in shares.items() if share > 0}


def stratified_split(
    counts: np.ndarray, groups: np.ndarray, shares: Mapping[str, float], seed: int = 0
) -> dict[str, np.ndarray]:
    """Indices of the images of each split, ascending; each class is divided by the shares as far as groups allow.

    Args:
        counts: (I, C) boxes of each class in each image; images without any are a class of their own.
        groups: (I,) group of each image; images of one group stay together.
        shares: share of each split, by name.
        seed: of the order and of tie-breaking.

    Source: iterative stratification, Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data",
    ECML PKDD 2011: the rarest class is assigned first, each time to the split that lacks most of it.
    """
    rng = np.random.default_rng(seed)
    _, unit_of = np.unique(groups, return_inverse=True)
    units = int(unit_of.max(initial=-1)) + 1
    empty = ~(counts > 0).any(axis=1, keepdims=True)
    has = np.concatenate([counts > 0, empty], axis=1).astype(np.float64)
    table = np.zeros((units, has.shape[1] + 1))  # images of each class, and of all, in each unit
    np.add.at(table, unit_of.reshape(-1), np.concatenate([has, np.ones((len(has), 1))], axis=1))
    names = list(shares)
    lacking = np.array([[shares[name]] for name in names]) * table.sum(axis=0)
    chosen = np.full(units, -1)
    tie = rng.random(units)
    while (chosen < 0).any():
        left = table[chosen < 0, :-1]
        occurring = (left > 0).sum(axis=0).astype(np.float64)
        label = int(np.where(occurring > 0, occurring, np.inf).argmin())
        members = np.flatnonzero((chosen < 0) & (table[:, label] > 0))
        # Large groups first, while the splits have room for them.
        for unit in members[np.lexsort((tie[members], -table[members, -1]))]:
            want = np.lexsort((rng.random(len(names)), lacking[:, -1], lacking[:, label]))
            chosen[unit] = want[-1]
            lacking[want[-1]] -= table[unit]
    _even_out(chosen, table, -lacking, rng)
    _fill_empty(chosen, table[:, -1], len(names))
    return {name: np.flatnonzero(chosen[unit_of.reshape(-1)] == k) for k, name in enumerate(names)}


def _even_out(chosen: np.ndarray, table: np.ndarray, excess: np.ndarray, rng: np.random.Generator) -> None:
    """Move single groups to improve the shares after the greedy assignment.

    Args:
        chosen: (U,) split of each unit; modified in place.
        table: (U, K) images of each class, and of all (last), in each unit.
        excess: (S, K) surplus of each split; modified in place.
        rng: of the order.
    """
    weight = 1 / np.maximum(table.sum(axis=0), 1)
    weight[-1] *= table.shape[1]  # the sizes of the splits matter as much as all classes together
    for _ in range(EVEN_ROUNDS):
        moved = False
        for unit in rng.permutation(len(table)):
            row, now = table[unit], chosen[unit]
            gain = ((2 * excess[now] - row) * row * weight).sum() - ((2 * excess + row) * row * weight).sum(axis=1)
            gain[now] = 0.0
            best = int(gain.argmax())
            if gain[best] > 1e-9:
                chosen[unit] = best
                excess[now] -= row
                excess[best] += row
                moved = True
        if not moved:
            return


def _fill_empty(chosen: np.ndarray, sizes: np.ndarray, number: int) -> None:
    """Give every split at least one group, if there are enough groups."""
    for k in range(number):
        units = np.bincount(chosen, minlength=number)
        if units[k] == 0 and units.max() > 1:
            members = np.flatnonzero(chosen == units.argmax())
            chosen[members[sizes[members].argmin()]] = k
