"""The order in which images are labelled: by name, by uncertainty of the detector, or from a file."""

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
from utils.text import counted

SIDE = 8  # side of the thumbnail that describes an image's appearance, pixels
FIRST = 200  # images chosen for diversity; the others follow by uncertainty alone
SURE_OF_NOTHING = 0.3  # uncertainty of an image without detections
COUNTED = 3  # number of most uncertain detections of an image that count
_QUEUE = "a file written by dataset.py audit or eval.py --export"


def uncertainty(scores: np.ndarray) -> float:
    """Uncertainty of the detector about an image, 0 to 1, from the (N,) scores of its detections.

    The mean of 4 p (1 - p), which is 1 at p = 0.5, over the three most uncertain detections. Certain detections in the
    same image therefore do not lower it.
    """
    if not len(scores):
        return SURE_OF_NOTHING
    doubt = np.sort(4 * scores * (1 - scores))[::-1]
    return float(doubt[:COUNTED].mean())


def appearance(image: np.ndarray) -> np.ndarray:
    """(3 * SIDE * SIDE,) float32 of norm 1: a thumbnail of the image without its mean brightness."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def diverse_order(doubt: np.ndarray, looks: np.ndarray, known: np.ndarray, first: int = FIRST) -> np.ndarray:
    """(N,) positions, the most useful image first.

    Greedy selection: the next image is the one with the largest product of its uncertainty and its distance to the
    most similar image that is labelled or already selected.

    Args:
        doubt: (N,) uncertainty of each image.
        looks: (N, D) `appearance` of each image.
        known: (K, D) `appearance` of the labelled images.
        first: number of images selected in this way; the others follow by uncertainty.

    Source: the greedy core-set of Sener and Savarese, ICLR 2018, https://arxiv.org/abs/1708.00489, weighted by
    uncertainty.
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
    """A list of images to check, with the findings on each.

    Args:
        source: the file.
        numbers: numbers of the images, in order.
        findings: findings of each image, plain types; see evaluation/audit.
    """

    source: str
    numbers: list[int] = field(default_factory=list)
    findings: dict[int, list[dict[str, Any]]] = field(default_factory=dict)


def read_queue(path: Path, store: Store) -> Queue:
    """Read the queue from a file of `dataset.py audit`.

    Raises:
        UserError: if the file is invalid, or none of its images is in the store.
    """
    content = read_json(path, _QUEUE)
    rows = content.get("findings") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("image"), str) for r in rows):
        raise UserError(path, "contains no list `findings` of images", f"give {_QUEUE}")
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
        raise UserError(path, f"{counted(lost, 'image')}, none in {store.root}", "give the queue of this data set")
    return queue


def step(
    numbers: Sequence[int], after: int | None, direction: int, skipped: Collection[int], from_start: bool = False
) -> int | None:
    """The next image of a list.

    Args:
        numbers: the list.
        after: the current image; None for the first.
        direction: 1 for the next, -1 for the previous image.
        skipped: images to skip (labelled, or open in another tab).
        from_start: return the first image that is not skipped, regardless of `after` (new labels change the list).

    Returns:
        The number of the image, or None if there is none. At the end of the list, the first image that was passed over
        is returned.
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
