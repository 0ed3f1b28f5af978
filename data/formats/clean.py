"""Validate the boxes of all readers: reorder corners, clip to the image, drop invalid ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from data.index import DatasetIndex
from data.pools import stopping_at_once
from data.skips import Skip
from imaging.image_io import ImageError, ImageHeader, read_header, turn_boxes

HUGE = 1e6  # pixels; larger than any image within the megapixel limit
TOLERANCE = 1.0  # pixels; rounding and 0- or 1-based counting exceed the image by this much: clipped without a note
_EPSILON = 1e-6


@dataclass
class RawSplit:
    """A split as described by its files, before any image is opened.

    Args:
        name: name in messages.
        class_names: the classes, in the order of `labels`.
        paths: the file of each image (I).
        image_ids: unique, str or int (I).
        declared: (I, 2) (height, width) from the annotation, 0 if not stated.
        box_image: (M,) index of the image that owns each box, ascending or not.
        boxes: (M, 4) xyxy, 0-based pixels, or fractions of the upright image if `normalised`.
        labels: (M,) index into `class_names`; a box with -1 is left out, and the reader has reported it.
        difficult, crowd: (M,) bool; None for none.
        box_where: returns the location of box m for messages: `file:line`.
        normalised: whether the boxes are fractions of the image's width and height.
        numbers: how the file states a box: `corners`, `xywh` or `centre`; None if the form is not ambiguous.
        areas: (M,) COCO's areas, or None.
        box_refs: (M,) the line or annotation id of each box, or None.
        scores: (M,) detector confidence of each label, or None.
        skips: skips of the reader.
    """

    name: str
    class_names: Sequence[str]
    paths: Sequence[str]
    image_ids: Sequence[Any]
    declared: np.ndarray
    box_image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    box_where: Callable[[int], str]
    difficult: np.ndarray | None = None
    crowd: np.ndarray | None = None
    normalised: bool = False
    numbers: str | None = None
    areas: np.ndarray | None = None
    box_refs: np.ndarray | None = None
    scores: np.ndarray | None = None
    category_ids: tuple[int, ...] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)


def build_index(raw: RawSplit, max_megapixels: float, need_pictures: bool = True) -> DatasetIndex:
    """Build the index of a split: drop images without a readable header and degenerate boxes, clip boxes to the image.

    Args:
        raw: the split.
        max_megapixels: leave out images whose header states more.
        need_pictures: if false and no image file exists, use the sizes that the annotations state.
    """
    skips = list(raw.skips)
    headers = _read_headers(raw, skips, max_megapixels)
    good = np.array([header is not None for header in headers], bool)
    stored = np.array([(h.height, h.width) if h else (1, 1) for h in headers], np.float64).reshape(-1, 2)
    if not need_pictures and not raw.normalised and not any(map(os.path.lexists, raw.paths)):
        skips, good = list(raw.skips), np.ones(len(headers), bool)
        stored = np.where(raw.declared > 0, raw.declared, HUGE)
    orientation = np.array([h.orientation if h else 1 for h in headers], np.int64)
    sizes = np.where((orientation >= 5)[:, None], stored[:, ::-1], stored)

    order = np.argsort(raw.box_image, kind="stable")
    order = order[good[raw.box_image[order]] & (raw.labels[order] >= 0)]
    owner, boxes = raw.box_image[order], raw.boxes[order].astype(np.float64).reshape(-1, 4)
    if raw.normalised:
        boxes = boxes * sizes[owner][:, [1, 0, 1, 0]]
    else:
        _turn_where_annotated_lying(raw, boxes, owner, stored, orientation, skips)
        _note_sizes(raw, sizes, good, skips)
    _compare_readings(raw, boxes, sizes[owner])
    boxes, keep = _clean(raw, boxes, order, sizes[owner], skips)
    order, owner = order[keep], owner[keep]

    paths = [path for path, is_good in zip(raw.paths, good, strict=True) if is_good]
    ids = [identity for identity, is_good in zip(raw.image_ids, good, strict=True) if is_good]
    counts = np.bincount(owner, minlength=len(good))[good]
    sizes = np.where(sizes == HUGE, 0, sizes)
    index = DatasetIndex.build(raw.name, raw.class_names, paths, ids, sizes[good].astype(np.int32), [], [])

    def chosen(values: np.ndarray | None, kind: type, empty: np.ndarray | None = None) -> Any:
        return empty if values is None else values[order].astype(kind)

    return replace(
        index,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[keep],
        labels=raw.labels[order].astype(np.int32),
        difficult=chosen(raw.difficult, bool, np.zeros(len(order), bool)),
        crowd=chosen(raw.crowd, bool, np.zeros(len(order), bool)),
        skips=tuple(skips),
        category_ids=raw.category_ids,
        source=raw.source,
        areas=chosen(raw.areas, np.float64),
        scores=chosen(raw.scores, np.float64),
        box_refs=chosen(raw.box_refs, np.int64),
    )


def _read_headers(raw: RawSplit, skips: list[Skip], max_megapixels: float) -> list[ImageHeader | None]:
    def read(path: str) -> ImageHeader | ImageError:
        try:
            return read_header(path, max_megapixels)
        except ImageError as error:
            return error

    bar = tqdm(total=len(raw.paths), desc=f"{raw.name}: headers", delay=2, leave=False)
    headers: list[ImageHeader | None] = []
    with bar, stopping_at_once(ThreadPoolExecutor(4)) as pool:  # a cold disk serves several requests in parallel
        for answer in pool.map(read, raw.paths, chunksize=64):
            bar.update()
            if isinstance(answer, ImageError):
                code = "missing_image" if answer.code == "missing_file" else answer.code
                skips.append(Skip("image", code, answer.where, answer.what, answer.todo))
            headers.append(None if isinstance(answer, ImageError) else answer)
    return headers


def _turn_where_annotated_lying(
    raw: RawSplit, boxes: np.ndarray, owner: np.ndarray, stored: np.ndarray, orientation: np.ndarray, skips: list[Skip]
) -> None:
    """Rotate boxes to the upright image if the annotation states the stored size of the image."""
    lying = (orientation >= 5) & (raw.declared == stored).all(1) & (stored[:, 0] != stored[:, 1])
    for i in np.flatnonzero(lying).tolist():
        own = owner == i
        boxes[own] = turn_boxes(boxes[own], int(orientation[i]), *stored[i])
        what = "was annotated without its EXIF rotation; the boxes are rotated"
        skips.append(Skip("note", "exif_rotated_boxes", str(raw.paths[i]), what))
    raw.declared[lying] = raw.declared[lying][:, ::-1]


def _note_sizes(raw: RawSplit, sizes: np.ndarray, good: np.ndarray, skips: list[Skip]) -> None:
    for i in np.flatnonzero(good & (raw.declared != sizes).any(1)).tolist():
        (height, width), (real_height, real_width) = raw.declared[i].astype(int), sizes[i].astype(int)
        if height > 0 and width > 0:
            what = f"is {real_width}x{real_height}, its annotation says {width}x{height}; the image's size is used"
            skips.append(Skip("note", "size_mismatch", str(raw.paths[i]), what, "check that both belong together"))


def _compare_readings(raw: RawSplit, boxes: np.ndarray, sizes: np.ndarray) -> None:
    """Count the boxes that do not fit into their images as read, and in the other common box forms.

    The counts are stored in the index for `dataset.py check`; the form of a file is never guessed.
    """
    facts = raw.source.setdefault("facts", {})
    limit = sizes[:, ::-1]

    def misfits(first: np.ndarray, second: np.ndarray) -> int:
        with np.errstate(invalid="ignore"):
            fits = (first >= -TOLERANCE - _EPSILON) & (second <= limit + TOLERANCE + _EPSILON) & (second > first)
        return int((~fits.all(1)).sum())

    if raw.numbers is not None and len(boxes) and (outside := misfits(boxes[:, :2], boxes[:, 2:])):
        first, second = boxes[:, :2], boxes[:, 2:]
        with np.errstate(all="ignore"):
            if raw.numbers != "corners":  # as in the file: two numbers, then two numbers
                first, second = first if raw.numbers == "xywh" else (first + second) / 2, second - first
            others = {
                "corners": misfits(first, second),
                "xywh": misfits(first, first + second),
                "centre": misfits(first - second / 2, first + second / 2),
            }
        del others[raw.numbers]
        facts |= {"misfits": outside, "misfits_otherwise": others, "numbers": raw.numbers}
    if raw.source.get("format") in ("voc", "xml") and len(boxes):
        facts["begin_at_0"] = int((boxes[:, :2] == -1).any(1).sum())
        facts["begin_at_1"] = int((boxes[:, :2] == 0).any(1).sum())
        facts["end_at_size"] = int((boxes[:, 2:] == limit).any(1).sum())


def _clean(
    raw: RawSplit, boxes: np.ndarray, order: np.ndarray, sizes: np.ndarray, skips: list[Skip]
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes; returns them and a mask of those to keep. Every dropped or clipped box is reported."""
    limit = sizes[:, [1, 0, 1, 0]]
    with np.errstate(invalid="ignore"):
        clipped = np.clip(boxes, 0, limit)
        wide, inside = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
        faults = [  # in this order: the first match is the reason
            ("nan_box", ~np.isfinite(boxes).all(1), "is not finite"),
            ("huge_box", (np.abs(boxes) > HUGE).any(1), "has implausibly large coordinates"),
            ("reversed_box", (wide < 0).any(1), "has its corners reversed"),
            ("zero_box", (wide == 0).any(1), "has no area"),
            ("outside_box", (inside <= 0).any(1), "is outside the image"),
        ]
        strays = (np.abs(clipped - boxes) > TOLERANCE + _EPSILON).any(1)
    keep = np.ones(len(boxes), bool)
    for code, mask, what in faults:
        for m in np.flatnonzero(mask & keep):
            skips.append(Skip("box", code, raw.box_where(int(order[m])), f"{_box(boxes[m], raw)} {what}; box dropped"))
        keep &= ~mask
    for m in np.flatnonzero(strays & keep):
        height, width = sizes[m].astype(int)
        what = f"{_box(boxes[m], raw)} exceeds the {width}x{height} image; clipped"
        skips.append(Skip("note", "clipped_box", raw.box_where(int(order[m])), what))
    return clipped, keep


def _box(box: np.ndarray, raw: RawSplit) -> str:
    one_based = raw.source.get("format") in ("voc", "xml")  # report the numbers as in the file
    values = box + np.array([1, 1, 0, 0]) if one_based else box
    return "the box (" + ", ".join(f"{value:g}" for value in values) + ")"
