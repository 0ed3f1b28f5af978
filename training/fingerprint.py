"""Digests of the training data, independent of paths, to check that a resumed run uses the same data."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from data.index import DatasetIndex
from nets.weights.checkpoint import Checkpoint
from utils.errors import UserError, warn
from utils.text import counted

CONTENT_BYTES = 256 * 2**20  # image bytes per split that are read for the content digest


def describe_data(train: DatasetIndex, val: DatasetIndex) -> dict[str, Any]:
    """Describe the training and validation data, for `Checkpoint.info`."""
    return {
        "train": train.name,
        "val": val.name,
        "num_train_images": len(train),
        "data": {"train": fingerprint(train), "val": fingerprint(val)},
    }


def fingerprint(index: DatasetIndex) -> dict[str, str]:
    """Digests of the images' names, their boxes and scores, and their files' sizes, times and content; never of a path.

    `content` covers whole files, evenly spread over the split, up to 256 MB.
    """
    names = "\n".join(map(str, index.image_ids)).encode("utf-8", "surrogatepass")
    boxes = (index.offsets, index.boxes, index.labels, index.difficult, index.crowd)
    sizes, times = _file_states(index)
    return {
        "images": hashlib.sha256(names).hexdigest(),
        "boxes": hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in boxes)).hexdigest(),
        "scores": "" if index.scores is None else hashlib.sha256(np.float64(index.scores).tobytes()).hexdigest(),
        "sizes": hashlib.sha256(sizes.tobytes()).hexdigest(),
        "times": hashlib.sha256(times.tobytes()).hexdigest(),
        "content": _content(index, sizes),
    }


def check_data(checkpoint: Checkpoint, train: DatasetIndex, val: DatasetIndex) -> None:
    """Check that a resumed run uses the same data as before; its location does not matter.

    Raises:
        UserError: if the data differ, listing the differences.
    """
    differences = []
    if train.class_names != checkpoint.config.class_names:
        differences.append(f"classes {train.class_names} (the run: {checkpoint.config.class_names})")
    then = checkpoint.info.get("num_train_images")
    if then != len(train):
        differences.append(f"{counted(len(train), 'training image')} (the run: {then})")
    for index, split in ((train, "train"), (val, "val")):
        now, before = fingerprint(index), checkpoint.info.get("data", {}).get(split, {})
        changed = {what for what in now if before.get(what, now[what]) != now[what]}
        differences += [f"other {what} in {split}" for what in ("images", "boxes", "scores") if what in changed]
        if changed & {"sizes", "content"} and "images" not in changed:
            differences.append(f"other pixels in {split}: the content of the image files differs")
        elif "times" in changed and _is_large(index):
            part = f"{CONTENT_BYTES / 2**20:.0f} MB"
            what = f"the image files of {split} have other modification times; {part} of them were compared: identical"
            warn("--resume", what, "if images were edited, start a new run")
    if differences:
        raise UserError("--resume", "the data has changed: " + "; ".join(differences), "restore it, or start a new run")


def _file_states(index: DatasetIndex) -> tuple[np.ndarray, np.ndarray]:
    """(I,) sizes in bytes and times in nanoseconds; -1 for images that are not files (tar shards)."""
    states = np.full((2, len(index)), -1, np.int64)
    for i in range(len(index)):
        try:
            status = os.stat(index.path(i))
        except (OSError, ValueError):
            continue
        states[:, i] = status.st_size, status.st_mtime_ns
    return states[0], states[1]


def _content(index: DatasetIndex, sizes: np.ndarray) -> str:
    total = int(np.maximum(sizes, 0).sum())
    step = max(-(-total // CONTENT_BYTES), 1)
    digest = hashlib.blake2b(digest_size=16)
    for i in range(0, len(index), step):
        if sizes[i] < 0:
            continue
        try:
            with open(index.path(i), "rb") as file:
                digest.update(file.read())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def _is_large(index: DatasetIndex) -> bool:
    return int(np.maximum(_file_states(index)[0], 0).sum()) > CONTENT_BYTES
