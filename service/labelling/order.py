"""In which order pictures are labelled: by name, by what the detector is least sure of, or as a file lists them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from service.labelling.store import Store
from utils.errors import UserError
from utils.json_file import read_json

SIDE = 8  # pixels a side of the small copy of a picture that says what it looks like
FIRST = 200  # pictures that are chosen one by one; those after them follow by uncertainty alone
SURE_OF_NOTHING = 0.3  # uncertainty of a picture on which the detector finds nothing
COUNTED = 3  # the most doubtful detections of a picture that count
_QUEUE = "a file written by dataset.py audit or eval.py --export"


def uncertainty(scores: np.ndarray) -> float:
    """How little the detector is sure of a picture, 0 to 1, from the (N,) scores of its detections.

    The mean of 4 p (1 - p), which is 1 at p = 0.5, over the most doubtful three: a picture with many sure objects and
    some doubtful ones is as worth labelling as one with only those.
    """
    if not len(scores):
        return SURE_OF_NOTHING
    doubt = np.sort(4 * scores * (1 - scores))[::-1]
    return float(doubt[:COUNTED].mean())


def appearance(image: np.ndarray) -> np.ndarray:
    """(3 * SIDE * SIDE,) float32 of length 1: the picture's colours by place, without its mean brightness."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def diverse_order(doubt: np.ndarray, looks: np.ndarray, known: np.ndarray, first: int = FIRST) -> np.ndarray:
    """(N,) positions, the most useful picture first.

    One after another the picture is taken whose doubt, times its distance from what it looks most like among those
    that are labelled or taken already, is largest.

    Args:
        doubt: (N,) uncertainty of each picture.
        looks: (N, D) `appearance` of each.
        known: (K, D) those of pictures that are labelled.
        first: how many to take so; the rest follows by doubt.

    Source: the greedy core-set of Sener and Savarese, ICLR 2018, https://arxiv.org/abs/1708.00489, weighted by doubt.
    """
    count = len(doubt)
    distance = np.ones(count, np.float32)
    for start in range(0, len(known), 256):
        nearest = (looks @ known[start : start + 256].T).max(axis=1)
        distance = np.minimum(distance, 1 - nearest)
    free = np.ones(count, bool)
    chosen: list[int] = []
    for _ in range(min(first, count)):
        value = np.where(free, doubt * np.maximum(distance, 0) + 1e-6 * doubt, -1.0)
        best = int(value.argmax())
        chosen.append(best)
        free[best] = False
        distance = np.minimum(distance, 1 - looks @ looks[best])
    rest = np.flatnonzero(free)
    return np.concatenate([np.array(chosen, np.int64), rest[np.argsort(-doubt[rest], kind="stable")]])


@dataclass
class Queue:
    """A list of pictures to look at, with what is to be looked at on each.

    Args:
        source: the file.
        numbers: of the pictures, in order.
        findings: of each picture, what the file says of it (plain types; see evaluation/audit).
    """

    source: str
    numbers: list[int] = field(default_factory=list)
    findings: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


def read_queue(path: Path, store: Store) -> Queue:
    """The queue of a file of `dataset.py audit`.

    Raises:
        UserError: if it is no such file, or none of its pictures is in the store.
    """
    content = read_json(path, _QUEUE)
    rows = content.get("findings") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("image"), str) for r in rows):
        raise UserError(path, "holds no list `findings` of pictures", f"give {_QUEUE}")
    queue = Queue(path.name)
    by_name = {store.name(number): number for number in range(len(store.paths))}
    lost = 0
    for row in rows:
        number = store.number_of(Path(row["image"]))
        if number is None:
            number = store.number_of(path.parent / row["image"])
        if number is None:
            number = by_name.get(row["image"])
        if number is None:
            lost += 1
            continue
        if number not in queue.findings:
            queue.numbers.append(number)
            queue.findings[number] = []
        queue.findings[number].append(row)
    if rows and not queue.numbers:
        raise UserError(path, f"none of its {lost} pictures is in {store.root}", "give the queue of this data set")
    return queue


def step(
    numbers: Sequence[int], after: int | None, direction: int, skipped: Collection[int], from_start: bool = False
) -> int | None:
    """The picture to show next in a list.

    Args:
        numbers: the list.
        after: the present picture; None for the first.
        direction: 1 for the next, -1 for the one before.
        skipped: pictures to pass over (labelled ones, or those that somebody else is on).
        from_start: take the first that is not skipped, wherever `after` is (the list changes as labels come in).

    Returns:
        None if there is none. The list does not wrap round, except that nothing is left after its end: then the
        first that was passed over comes.
    """
    place = -1
    if after is not None and not from_start:
        try:
            place = numbers.index(after)
        except ValueError:
            place = -1
    if direction < 0:
        ahead = numbers[:place][::-1] if place > 0 else []
        return next((number for number in ahead if number not in skipped), None)
    ahead = [*numbers[place + 1 :], *numbers[: place + 1]]
    return next((number for number in ahead if number not in skipped and number != after), None)
