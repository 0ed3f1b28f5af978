"""A split as flat arrays: the output of every reader and the input of training and evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.skips import Skip

SCORE_RANGE = (0.3, 0.6)  # of detector-made labels: uncertain below, certain above
OF_BOXES = ("boxes", "labels", "difficult", "crowd", "areas", "box_refs", "scores")  # arrays with one row per box
ARRAYS = ("path_bytes", "path_offsets", "image_ids", "sizes", "offsets", *OF_BOXES)


@dataclass(frozen=True)
class _Mapped:
    path: str


@dataclass(frozen=True)
class DatasetIndex:
    """One split of a data set, without a Python object per image or box, so that loader workers share its memory.

    Image i owns the boxes `offsets[i]:offsets[i + 1]`, which is `boxes_of(i)`.

    Args:
        name: name in messages, e.g. `VOC2007 train`.
        class_names: the classes, in the order of `labels`.
        path_bytes: (P,) uint8, all image paths one after another, as the operating system's bytes.
        path_offsets: (I + 1,) int64 into `path_bytes`.
        image_ids: (I,) str or int64 array, unique: the VOC id (with its year if years are joined), the COCO image id.
        sizes: (I, 2) int32 (height, width) from the annotation, 0 if not stated.
        offsets: (I + 1,) int64 into the box arrays.
        boxes: (M, 4) float64 xyxy, 0-based continuous pixels of the upright image.
        labels: (M,) int32, index into `class_names`.
        difficult: (M,) bool: VOC objects that evaluation ignores.
        crowd: (M,) bool: COCO regions that stand for many objects (ignored in training, matched freely in evaluation).
        skips: what was left out while reading.
        category_ids: (C,) COCO category id of each class; None for other formats (then class index + 1).
        source: the reader's arguments, and additional facts for conversion (plain types).
        areas: (M,) float64 pixels, COCO's area of each object (of its mask, not of its box); None for other formats.
        scores: (M,) float64 detector confidence of each label, 1 for human labels; None: all are human labels.
        box_refs: (M,) int64 location of each box: the line of its annotation file (VOC, YOLO) or its annotation id.
    """

    name: str
    class_names: tuple[str, ...]
    path_bytes: np.ndarray
    path_offsets: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    skips: tuple[Skip, ...] = ()
    category_ids: tuple[int, ...] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    areas: np.ndarray | None = None
    box_refs: np.ndarray | None = None
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_boxes(self) -> int:
        return len(self.boxes)

    @property
    def image_of_box(self) -> np.ndarray:
        """(M,) int64 image that owns each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def boxes_of(self, i: int) -> slice:
        """The part of the box arrays that belongs to image i."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def path(self, i: int) -> Path:
        """The file of image i."""
        return Path(os.fsdecode(self.path_bytes[self.path_offsets[i] : self.path_offsets[i + 1]].tobytes()))

    def paths(self) -> list[Path]:
        """The files of all images."""
        return [self.path(i) for i in range(len(self))]

    def target(self, i: int) -> dict[str, Any]:
        """The `Target` of image i, in its own pixels (fresh arrays; the caller may change them)."""
        part = self.boxes_of(i)
        return {
            "boxes": self.boxes[part].astype(np.float32),
            "labels": self.labels[part].astype(np.int64),
            "difficult": self.difficult[part].copy(),
            "crowd": self.crowd[part].copy(),
            "image_id": self.image_ids[i].item(),
        }

    def spread(self, count: int) -> list[int]:
        """Positions of at most `count` images, evenly spread over the split."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)).tolist()

    def subset(self, indices: Sequence[int] | np.ndarray) -> DatasetIndex:
        """The same data with only the images of `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            path_bytes=self.path_bytes[_ranges(self.path_offsets, indices)],
            path_offsets=_new_offsets(self.path_offsets, indices),
            image_ids=self.image_ids[indices],
            sizes=self.sizes[indices],
            offsets=_new_offsets(self.offsets, indices),
            **self._chosen_boxes(_ranges(self.offsets, indices)),
        )

    def keep_boxes(self, keep: np.ndarray) -> DatasetIndex:
        """The same images with only the boxes of the (M,) bool mask."""
        before = np.concatenate([[0], np.cumsum(keep)])
        return replace(self, offsets=before[self.offsets].astype(np.int64), **self._chosen_boxes(keep))

    def _chosen_boxes(self, chosen: np.ndarray) -> dict[str, Any]:
        return {name: array[chosen] for name in OF_BOXES if (array := getattr(self, name)) is not None}

    def __getstate__(self) -> dict[str, Any]:
        """Arrays mapped from the cache are sent to spawned workers as file names."""
        return {name: _mapped_from(value) or value for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, map_array(value.path) if isinstance(value, _Mapped) else value)

    @classmethod
    def build(
        cls,
        name: str,
        class_names: Sequence[str],
        paths: Sequence[str | Path],
        image_ids: Sequence[str] | Sequence[int],
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[np.ndarray],
        labels: Sequence[Sequence[int] | np.ndarray],
        difficult: Sequence[Sequence[bool] | np.ndarray] | None = None,
        crowd: Sequence[Sequence[bool] | np.ndarray] | None = None,
        **others: Any,
    ) -> DatasetIndex:
        """Build an index from one entry per image; for small data sets, readers and tests."""
        encoded = [os.fsencode(path) for path in paths]
        counts = [len(each) for each in labels]
        total = sum(counts)

        def flat(parts: Sequence[Any] | None, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
            if parts is None or not total:
                return np.zeros(shape, dtype)
            return np.concatenate([np.asarray(part, dtype).reshape(-1, *shape[1:]) for part in parts])

        ids = np.asarray(image_ids) if len(image_ids) else np.zeros(0, np.int64)
        return cls(
            name=name,
            class_names=tuple(class_names),
            path_bytes=np.frombuffer(b"".join(encoded), np.uint8),
            path_offsets=np.concatenate([[0], np.cumsum([len(path) for path in encoded])]).astype(np.int64),
            image_ids=ids,
            sizes=np.asarray(sizes, np.int32).reshape(-1, 2),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=flat(boxes, np.float64, (total, 4)),
            labels=flat(labels, np.int32, (total,)),
            difficult=flat(difficult, bool, (total,)),
            crowd=flat(crowd, bool, (total,)),
            **others,
        )


def classes_found(index: DatasetIndex, shown: int = 20) -> str:
    """All classes that the annotations name, selected or not, with their counts, the most frequent first."""
    found: dict[str, int] = index.source.get("found_classes", {})
    ordered = sorted(found.items(), key=lambda each: -each[1])
    return ", ".join(f"{name} ({count})" for name, count in ordered[:shown]) or "no objects"


def join_indices(parts: Sequence[DatasetIndex]) -> DatasetIndex:
    """Join several splits with the same classes; an image in two of them is used once, from the first."""
    first = parts[0]
    seen: set[str] = set()
    kept = []
    for part in parts:
        own = [i for i in range(len(part)) if (path := str(part.path(i))) not in seen and not seen.add(path)]  # type: ignore[func-returns-value]
        kept.append(part.subset(own))
    ids = [identity for part in kept for identity in part.image_ids.tolist()]
    if len(set(ids)) < len(ids):
        ids = list(range(1, len(ids) + 1)) if all(isinstance(each, int) for each in ids) else [
            f"{number}/{identity}" for number, part in enumerate(kept) for identity in part.image_ids.tolist()
        ]  # fmt: skip
    counts = np.concatenate([np.diff(part.offsets) for part in kept])
    lengths = np.concatenate([np.diff(part.path_offsets) for part in kept])
    source = dict(first.source)
    for key in ("files", "folders"):
        merged = sorted({each for part in parts for each in part.source["dependencies"][key]})
        source["dependencies"] = source["dependencies"] | {key: merged}
    for key in ("found_classes", "facts", "label_files"):
        if key in source:
            source[key] = _merged([part.source.get(key, {}) for part in parts])
    has = {name: all(getattr(part, name) is not None for part in kept) for name in ("areas", "box_refs")}
    arrays = ("path_bytes", "sizes", "boxes", "labels", "difficult", "crowd", *(name for name in has if has[name]))
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in kept]) for name in arrays}
    return replace(
        first,
        **(joined | {name: None for name in has if not has[name]}),
        image_ids=np.asarray(ids) if ids else np.zeros(0, np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        path_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        skips=tuple(dict.fromkeys(skip for part in parts for skip in part.skips)),
        source=source,
    )


def _merged(tables: Sequence[dict]) -> dict:
    """Merge dictionaries: counts are added, other values are those of the first dictionary that has them."""
    merged: dict = {}
    for table in tables:
        for key, value in table.items():
            merged[key] = merged[key] + value if isinstance(value, int) and key in merged else merged.get(key, value)
    return merged


def map_array(path: str) -> np.ndarray:
    """The array of a .npy file, mapped from it (read-only): processes that map the same file share its memory."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _mapped_from(array: Any) -> _Mapped | None:
    """The .npy file that an array is mapped from as a whole, or None."""
    base = getattr(array, "base", None)
    if not isinstance(base, np.memmap) or base.filename is None:
        return None
    return _Mapped(os.fspath(base.filename)) if (base.shape, base.dtype) == (array.shape, array.dtype) else None


def _ranges(offsets: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """All positions of the chosen ranges, one after another."""
    starts, counts = offsets[indices], offsets[indices + 1] - offsets[indices]
    if not counts.sum():
        return np.zeros(0, np.int64)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def _new_offsets(offsets: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(offsets[indices + 1] - offsets[indices])]).astype(np.int64)
