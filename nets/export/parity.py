"""Compare an exported file with the network on photographs: outputs and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image

from imaging.detections import Detections
from imaging.image_io import read_image
from imaging.scenes import draw_scene
from nets.anchors import decode_level
from nets.model_config import STRIDES, ModelConfig
from nets.runtime import Runtime
from utils.errors import UserError, warn
from utils.text import counted
from utils.thresholds import Thresholds

BEST_BOXES = 100  # number of best boxes per image whose coordinates are compared
MIN_DETECTIONS = 5  # minimum number of detections per image; with fewer, a lower score threshold is used
SAME_IOU = 0.9
SAME_PIXELS = 0.5  # largest coordinate difference of equal boxes


@dataclass(frozen=True)
class Tolerance:
    """Maximum differences between an export and the network.

    Args:
        score: largest difference of a score.
        box: largest difference of a coordinate of the best boxes, input pixels.
        changed: fraction of the detections that may change.
        margin: detections whose score is within this margin of the threshold may appear or disappear.
    """

    score: float
    box: float
    changed: float
    margin: float


# int8 is evaluated by mAP if data is given; these limits only detect broken files. bf16, with eight bits of precision,
# gave score differences of up to 0.16 on real photographs on which no detection changed.
TOLERANCES = {
    "fp32": Tolerance(0.001, 0.5, 0.02, 0.001),
    "fp16": Tolerance(0.05, 32.0, 0.1, 0.02),
    "bf16": Tolerance(0.25, 64.0, 0.25, 0.05),
    "int8": Tolerance(0.6, 512.0, 0.5, 0.05),
}


@dataclass(frozen=True)
class Parity:
    """Result of a comparison.

    Args:
        images: number of images.
        score_difference: largest difference of any score; None for a file with NMS.
        box_difference: largest difference of a coordinate of the best 100 boxes of an image, clipped to the image,
            input pixels; None for a file with NMS.
        threshold: score threshold of the detections.
        detections: number of the network's detections, over all images.
        changed: number of detections without a match (same class, IoU 0.9) in the other model.
    """

    images: int
    score_difference: float | None
    box_difference: float | None
    threshold: float
    detections: int
    changed: int

    def fits(self, tolerance: Tolerance) -> bool:
        """Whether all differences are within a tolerance."""
        return (
            (self.score_difference is None or self.score_difference <= tolerance.score)
            and (self.box_difference is None or self.box_difference <= tolerance.box)
            and self.changed <= tolerance.changed * max(self.detections, 1)
        )

    def __str__(self) -> str:
        found = f"of {self.detections} detections (score >= {self.threshold:.3g}), {self.changed} changed"
        if self.score_difference is None or self.box_difference is None:
            return f"{found}, on {counted(self.images, 'image')}"
        largest = f"{self.box_difference:.2g} pixels, {self.score_difference:.2g} score"
        return f"largest difference on {counted(self.images, 'image')}: {largest}; {found}"


def compare(
    network: Runtime, exported: Runtime, photos: Sequence[np.ndarray], has_nms: bool = False, margin: float = 0.0
) -> Parity:
    """Run two runtimes on the same images, one at a time, and compare their outputs.

    Args:
        network: the original network.
        exported: the exported file.
        photos: RGB images (H, W, 3) uint8 of any size.
        has_nms: the file has NMS in its graph, with its own threshold.
        margin: detections whose score is within this margin of the threshold may appear or disappear.
    """
    config = network.config
    batches = [config.letterbox.apply(photo)[None] for photo in photos]
    answers = [network.run(batch) for batch in batches]
    threshold = config.score_threshold if has_nms else _threshold(answers, config)
    scores, boxes, detections, changed = [0.0], [0.0], 0, 0
    for batch, answer in zip(batches, answers, strict=True):
        other = exported.run(batch)
        if not has_nms:
            score, box = _differences(_dense(answer, config), _dense(other, config), config)
            scores.append(score)
            boxes.append(box)
        found = network.read(answer, Thresholds(threshold))[0]
        detections += len(found)
        there = exported.read(other, Thresholds(threshold))[0]
        least = max(threshold, *(_cut(each, config) for each in (found, there))) + margin
        changed += count_changed(_clipped(found, config), _clipped(there, config), least)
    largest = (None, None) if has_nms else (max(scores), max(boxes))
    return Parity(len(photos), *largest, threshold, detections, changed)


def count_changed(a: Detections, b: Detections, threshold: float) -> int:
    """Number of detections above `threshold` in one without a match (same class, IoU 0.9, one to one) in the other."""
    if not len(a) or not len(b):
        return int((a.scores >= threshold).sum() + (b.scores >= threshold).sum())
    boxes_a, boxes_b = torch.from_numpy(a.boxes), torch.from_numpy(b.boxes)
    same = torch.cdist(boxes_a, boxes_b, p=torch.inf) < SAME_PIXELS  # boxes without area have no IoU
    overlaps = torch.where(same, 1.0, box_iou(boxes_a, boxes_b).nan_to_num(0.0)).numpy()
    overlaps = np.where(a.labels[:, None] == b.labels[None], overlaps, 0.0)
    free_a, free_b = np.ones(len(a), bool), np.ones(len(b), bool)
    for flat in np.argsort(-overlaps, axis=None):
        i, j = np.unravel_index(flat, overlaps.shape)
        if overlaps[i, j] < SAME_IOU:
            break
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
    lost, new = (free_a & (a.scores >= threshold)).sum(), (free_b & (b.scores >= threshold)).sum()
    return int(max(lost, new))


def _threshold(answers: Sequence[Sequence[np.ndarray]], config: ModelConfig) -> float:
    """The model's threshold, or a lower one that gives `MIN_DETECTIONS` boxes per image (barely trained networks)."""
    best = torch.cat([_dense(answer, config)[1].amax(-1).flatten() for answer in answers])
    count = min(MIN_DETECTIONS * len(answers) * 4 + 1, len(best))  # NMS keeps about a quarter
    # Between two scores: at a score itself, rounding would decide whether that box is detected.
    return min(config.score_threshold, float(best.topk(count).values[-2:].mean()))


def _dense(outputs: Sequence[np.ndarray], config: ModelConfig) -> tuple[Tensor, Tensor]:
    """All boxes (N, 4) xyxy and scores (N, C) of one image, in the same order for raw maps and decoded outputs."""
    tensors = [torch.from_numpy(output).float() for output in outputs]
    if len(tensors) == 2:
        return tensors[0][0], tensors[1][0]
    boxes, scores = [], []
    for raw, anchors, stride, scale in zip(tensors, config.anchors, STRIDES, config.scale_xy, strict=True):
        decoded = decode_level(raw, torch.tensor(anchors), stride, scale).flatten(0, 3)
        boxes.append(box_convert(decoded, "cxcywh", "xyxy"))
        scores.append((raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()).flatten(0, 3))
    return torch.cat(boxes), torch.cat(scores)


def _differences(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], config: ModelConfig) -> tuple[float, float]:
    best = a[1].amax(-1).topk(min(BEST_BOXES, len(a[1]))).indices
    boxes = [clip_boxes_to_image(each[0][best], config.input_size) for each in (a, b)]
    differences = (a[1] - b[1]).abs().max(), (boxes[0] - boxes[1]).abs().max()
    return tuple(float(d.nan_to_num(torch.inf)) for d in differences)  # type: ignore[return-value]


def _cut(found: Detections, config: ModelConfig) -> float:
    """The lowest score kept if there were more than `max_detections` detections, else 0."""
    return float(found.scores[-1]) if len(found) >= config.max_detections else 0.0


def _clipped(found: Detections, config: ModelConfig) -> Detections:
    """Clip boxes to the image: parts outside do not matter."""
    boxes = clip_boxes_to_image(torch.from_numpy(found.boxes), config.input_size)
    return Detections(boxes.numpy(), found.scores, found.labels)


def read_photos(paths: Sequence[Path]) -> list[np.ndarray]:
    """RGB images (H, W, 3) uint8; unreadable images are skipped with a warning."""
    photos = []
    for path in paths:
        try:
            photos.append(read_image(path))
        except UserError as error:
            warn(error.where, error.what, "it is skipped")
    return photos


def drawn_photos(config: ModelConfig, count: int) -> list[np.ndarray]:
    """Synthetic images for use without photographs, with smooth areas, edges and textures."""
    return [draw_scene(0, number)[0] for number in range(count)]
