"""Cluster anchors for a data set by k-means with distance 1 - IoU, and measure how well anchors fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.data_options import DataOptions
from data.index import DatasetIndex
from imaging.letterbox import RESIZE_MODES, Letterbox
from utils.config import option, parse_options
from utils.errors import UserError
from utils.text import counted, text_table

RATIO_LIMIT = 4.0  # YOLOv5's `anchor_t`: a side may be up to 4 times an anchor's, or a quarter of it
RESTARTS = 4  # k-means finds a local optimum; the best of these runs is used
MAX_ROUNDS = 100
MAX_BOXES = 50_000  # maximum boxes to cluster; a random sample of more moves the anchors by less than their rounding
MIN_SIDE = 1.0  # input pixels; smaller boxes vanish at that size and would only shrink the anchors

Anchors = tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True)
class AnchorReport:
    """Old and new anchors of a data set, and their fit.

    Args:
        num_boxes: boxes they were measured on.
        old_anchors, new_anchors: levels x anchors x (width, height), input pixels, ascending.
        old_recall, new_recall: best possible recall: the fraction of boxes that some anchor can match.
        old_iou, new_iou: mean over boxes of the best anchor's IoU, both centred.
        accepted: whether the new ones are better: higher recall, or equal recall and higher IoU.
        reason: the reason, as text.
    """

    num_boxes: int
    old_anchors: Anchors
    new_anchors: Anchors
    old_recall: float
    new_recall: float
    old_iou: float
    new_iou: float
    accepted: bool
    reason: str

    @property
    def anchors(self) -> Anchors:
        """The anchors to use."""
        return self.new_anchors if self.accepted else self.old_anchors

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        both = (("old", self.old_recall, self.old_iou), ("new", self.new_recall, self.new_iou))
        numbers = text_table([("", "recall", "mean IoU"), *((name, f"{r:.4f}", f"{i:.4f}") for name, r, i in both)])
        texts = [
            " | ".join(" ".join(f"{w:.4g},{h:.4g}" for w, h in level) for level in anchors)
            for anchors in (self.old_anchors, self.new_anchors)
        ]
        heads = ["anchors (width,height; strides 8, 16, 32)", *texts]
        rows = [f"{line}  {text}" for line, text in zip(numbers, heads, strict=True)]
        verdict = f"{'use the new anchors' if self.accepted else 'keep the old anchors'}: {self.reason}"
        return "\n".join([counted(self.num_boxes, "box"), *rows, verdict])


def box_sizes(index: DatasetIndex, letterbox: Letterbox) -> np.ndarray:
    """(M, 2) float64 width and height of the boxes as the network sees them, input pixels; crowds are left out."""
    scales = np.ones((len(index), 2))
    shapes, which = np.unique(index.sizes, axis=0, return_inverse=True)
    for number, (height, width) in enumerate(shapes):
        if height > 0 and width > 0:
            new_height, new_width, _, _ = letterbox.geometry(int(height), int(width))
            scales[which.reshape(-1) == number] = new_width / width, new_height / height
    owner = index.image_of_box
    known = (index.sizes[owner] > 0).all(axis=1) & ~index.crowd
    return ((index.boxes[:, 2:] - index.boxes[:, :2]) * scales[owner])[known]


def shape_iou(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(M, K) IoU of (M, 2) and (K, 2) widths and heights, with the same centre."""
    common = np.minimum(sizes[:, None], anchors).prod(axis=2)
    return common / (sizes.prod(axis=1)[:, None] + anchors.prod(axis=1) - common)


def measure_anchors(sizes: np.ndarray, anchors: Anchors | np.ndarray) -> tuple[float, float]:
    """(best possible recall, mean best IoU) of anchors for (M, 2) box sizes; (0, 0) where there is no box.

    A box can be matched if max(w / wa, wa / w, h / ha, ha / h) < 4 for some anchor.

    Source: the measure of YOLOv5's utils/autoanchor.py, `check_anchors`, https://github.com/ultralytics/yolov5
    """
    if not len(sizes):
        return 0.0, 0.0
    flat = np.asarray(anchors, np.float64).reshape(-1, 2)
    answered, iou = 0, 0.0
    for part in np.array_split(sizes, max(len(sizes) // MAX_BOXES, 1)):  # COCO's at once: 100s of MB
        ratio = part[:, None] / flat
        answered += int((np.maximum(ratio, 1 / ratio).max(axis=2).min(axis=1) < RATIO_LIMIT).sum())
        iou += float(shape_iou(part, flat).max(axis=1).sum())
    return answered / len(sizes), iou / len(sizes)


def cluster_anchors(sizes: np.ndarray, count: int = 9, seed: int = 0) -> np.ndarray:
    """(count, 2) cluster centres of box widths and heights, by area; input pixels.

    Args:
        sizes: (M, 2) width, height, all above 0, at least `count` different ones.
        count: number of clusters.
        seed: random seed of the initialisation (k-means++) and of the sample of boxes.

    Source: YOLOv2, section 2, "Dimension Clusters", https://arxiv.org/abs/1612.08242; initialisation: k-means++, Arthur
    and Vassilvitskii, SODA 2007. A cluster's centre is its median, which is robust to very long boxes.
    """
    rng = np.random.default_rng(seed)
    if len(sizes) > MAX_BOXES:
        sizes = sizes[rng.choice(len(sizes), MAX_BOXES, replace=False)]
    best, best_iou = sizes[:count], -1.0
    for _ in range(RESTARTS):
        centres = _lloyd(sizes, _spread(sizes, count, rng))
        iou = float(shape_iou(sizes, centres).max(axis=1).mean())
        if iou > best_iou:
            best, best_iou = centres, iou
    return best[np.argsort(best.prod(axis=1), kind="stable")]


def _spread(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: draw each next centre with probability proportional to its squared distance to the nearest centre."""
    chosen = [int(rng.integers(len(sizes)))]
    distance = 1 - shape_iou(sizes, sizes[chosen])[:, 0]
    while len(chosen) < count:
        weight = np.maximum(distance, 0) ** 2
        chance = weight / weight.sum() if weight.sum() > 0 else None  # None: every size is already a centre
        chosen.append(int(rng.choice(len(sizes), p=chance)))
        distance = np.minimum(distance, 1 - shape_iou(sizes, sizes[chosen[-1:]])[:, 0])
    return sizes[chosen].copy()


def _lloyd(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Assign each box to its nearest centre and move the centres, until nothing changes."""
    nearest = np.full(len(sizes), -1)
    for _ in range(MAX_ROUNDS):
        new = shape_iou(sizes, centres).argmax(axis=1)
        if (new == nearest).all():
            break
        nearest = new
        for k in range(len(centres)):
            members = sizes[nearest == k]
            if len(members):
                centres[k] = np.median(members, axis=0)
    return centres


def propose_anchors(
    index: DatasetIndex, letterbox: Letterbox, current_anchors: Sequence[Any], seed: int = 0
) -> AnchorReport:
    """New anchors for a data set, accepted only if they fit better than the current ones.

    Args:
        index: the training split.
        letterbox: resizing to the network input (`ModelConfig.letterbox`).
        current_anchors: levels x anchors x (width, height), input pixels (`ModelConfig.anchors`).
        seed: random seed of the clustering.
    """
    old: Anchors = tuple(tuple((float(w), float(h)) for w, h in level) for level in current_anchors)
    sizes = box_sizes(index, letterbox)
    sizes = sizes[(sizes >= MIN_SIDE).all(axis=1)]
    levels, each = len(old), len(old[0])
    old_recall, old_iou = measure_anchors(sizes, old)
    if len(np.unique(sizes, axis=0)) < levels * each:
        reason = (
            f"fewer than {levels * each} different sizes in {counted(len(sizes), 'box')} of at least {MIN_SIDE:g} pixel"
        )
        return AnchorReport(len(sizes), old, old, old_recall, old_recall, old_iou, old_iou, False, reason)
    flat = np.round(cluster_anchors(sizes, levels * each, seed), 1)
    flat = flat[np.argsort(flat.prod(axis=1), kind="stable")].reshape(levels, each, 2)
    new: Anchors = tuple(tuple((float(w), float(h)) for w, h in level) for level in flat)
    recall, iou = measure_anchors(sizes, new)
    if abs(recall - old_recall) < 1e-9:
        accepted, reason = iou > old_iou, f"recall is the same, mean IoU {old_iou:.4f} -> {iou:.4f}"
    else:
        accepted, reason = recall > old_recall, f"recall {old_recall:.4f} -> {recall:.4f}"
    return AnchorReport(len(sizes), old, new, old_recall, recall, old_iou, iou, accepted, reason)


def scaled_anchors(anchors: Sequence[Any], input_size: tuple[int, int], reference: int = 416) -> Anchors:
    """Anchors of a square input of `reference` pixels for another input size, as in training."""
    factor = min(input_size) / reference
    return tuple(tuple((float(w) * factor, float(h) * factor) for w, h in level) for level in anchors)


@dataclass(frozen=True)
class AnchorOptions(DataOptions):
    """Options of `dataset.py anchors`."""

    input_size: tuple[int, ...] = option((416,), "height [width] of the network's input, pixels", nargs="+")
    resize_mode: str = option("letterbox", "how images are resized to the input size", choices=RESIZE_MODES)
    seed: int = option(0, "random seed of the clustering", low=0)
    json: bool = option(False, "print JSON")


def main(argv: list[str] | None = None, anchors: Sequence[Any] = ()) -> None:
    """`dataset.py anchors DATA`; `anchors` are the current ones, of a 416 input."""
    options = parse_options(AnchorOptions, argv, prog="dataset.py anchors", description=__doc__.splitlines()[0])
    index = options.open()
    letterbox = Letterbox(two_sides(options.input_size), options.resize_mode)
    report = propose_anchors(index, letterbox, scaled_anchors(anchors, letterbox.input_size), options.seed)
    print(json.dumps({"data": index.name, **report.to_dict()}, indent=2) if options.json else f"{index.name}: {report}")


def two_sides(sizes: Sequence[int]) -> tuple[int, int]:
    """(height, width) of `--input-size`. Raises UserError unless it is one or two multiples of 32."""
    if len(sizes) not in (1, 2) or any(size < 32 or size % 32 for size in sizes):
        text = " ".join(str(size) for size in sizes)
        raise UserError("--input-size", f"{text} is not valid", "give one or two multiples of 32")
    return sizes[0], sizes[-1]
