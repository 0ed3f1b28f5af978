"""From predictions to Detections: threshold, decode what survives, suppress what overlaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, nms

from nets.anchors import decode
from nets.model_config import STRIDES, ModelConfig
from utils.detections import Detections

# The most candidates of one image that suppression looks at, best first: bounds its cost whatever the scores are.
MAX_CANDIDATES = 1000

# (boxes (N, 4) xyxy, scores (N,), labels (N,), iou_threshold) -> the same three, of what is kept, best first
Suppress = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def postprocess(
    predictions: Sequence[Tensor],
    config: ModelConfig,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
    multi_label: bool | None = None,
    suppress: Suppress | None = None,
) -> list[Detections]:
    """Read the network's answer.

    Args:
        predictions: three raw tensors (B, A, H, W, 5 + C), strides 8, 16, 32.
        config: anchors, grid sensitivity, and the defaults of what follows.
        score_threshold: the least objectness x class probability, 0 to 1.
        iou_threshold: boxes of one class that overlap more than this are one object.
        max_detections: the most objects of one image.
        multi_label: whether a box may answer for several classes.
        suppress: another suppression than greedy NMS within each class (see `utils.nms`).

    Returns:
        Detections of each image, best first, in input pixels.
    """
    score_threshold = config.score_threshold if score_threshold is None else score_threshold
    multi_label = config.multi_label if multi_label is None else multi_label
    images, boxes, logits = _candidates(predictions, config, score_threshold)
    scores = logits[:, :1].sigmoid() * logits[:, 1:].sigmoid()
    boxes, scores, labels, images = _score(boxes, scores, images, score_threshold, multi_label)
    counts = torch.bincount(images, minlength=len(predictions[0])).tolist()
    return [
        _suppress_one(b, s, l, config, iou_threshold, max_detections, suppress)
        for b, s, l in zip(boxes.split(counts), scores.split(counts), labels.split(counts), strict=True)
    ]


def postprocess_decoded(
    boxes: Tensor,
    scores: Tensor,
    config: ModelConfig,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
    multi_label: bool | None = None,
    suppress: Suppress | None = None,
) -> list[Detections]:
    """The same for a network that decodes by itself (an exported file).

    Args:
        boxes: (B, N, 4) xyxy, input pixels.
        scores: (B, N, C) objectness x class probability.
        others: as in `postprocess`.
    """
    score_threshold = config.score_threshold if score_threshold is None else score_threshold
    multi_label = config.multi_label if multi_label is None else multi_label
    images, places = (scores.amax(-1) >= score_threshold).nonzero(as_tuple=True)
    kept, scores, labels, images = _score(
        boxes[images, places].float(), scores[images, places].float(), images, score_threshold, multi_label
    )
    counts = torch.bincount(images, minlength=len(boxes)).tolist()
    return [
        _suppress_one(b, s, l, config, iou_threshold, max_detections, suppress)
        for b, s, l in zip(kept.split(counts), scores.split(counts), labels.split(counts), strict=True)
    ]


def _candidates(predictions: Sequence[Tensor], config: ModelConfig, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """What can reach the threshold: image index (K,), boxes (K, 4) xyxy, logits (K, 1 + C), images ascending."""
    # a score is at most its objectness, so that most places are dismissed by one comparison of logits
    least = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else (-math.inf if threshold <= 0 else math.inf)
    images, boxes, logits = [], [], []
    for raw, anchors, stride, scale in zip(predictions, config.anchors, STRIDES, config.scale_xy, strict=True):
        image, anchor, row, column = (raw[..., 4] >= least).nonzero(as_tuple=True)
        rows = raw[image, anchor, row, column].float()
        sizes = torch.tensor(anchors, device=raw.device)[anchor]
        cells = torch.stack([column, row], dim=-1).float()
        boxes.append(box_convert(decode(rows[:, :4], sizes, cells, stride, scale), "cxcywh", "xyxy"))
        logits.append(rows[:, 4:])
        images.append(image)
    order = torch.cat(images).argsort(stable=True)
    return torch.cat(images)[order], torch.cat(boxes)[order], torch.cat(logits)[order]


def _score(
    boxes: Tensor, scores: Tensor, images: Tensor, threshold: float, multi_label: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One row for each (box, class) that counts: boxes, scores, labels, images."""
    if multi_label and scores.shape[1] > 1:
        places, labels = (scores >= threshold).nonzero(as_tuple=True)
        return boxes[places], scores[places, labels], labels, images[places]
    best, labels = scores.max(dim=1)
    keep = best >= threshold
    return boxes[keep], best[keep], labels[keep], images[keep]


def _suppress_one(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    config: ModelConfig,
    iou_threshold: float | None,
    max_detections: int | None,
    suppress: Suppress | None,
) -> Detections:
    iou_threshold = config.iou_threshold if iou_threshold is None else iou_threshold
    max_detections = config.max_detections if max_detections is None else max_detections
    finite = scores.isfinite() & boxes.isfinite().all(dim=1)
    if not finite.all():
        boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    order = scores.argsort(descending=True, stable=True)[: max(MAX_CANDIDATES, max_detections)]
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    boxes, scores, labels = (suppress or suppress_by_class)(boxes, scores, labels, iou_threshold)
    kept = slice(0, max_detections)
    return Detections(boxes[kept].cpu().numpy(), scores[kept].cpu().numpy(), labels[kept].cpu().numpy())


def suppress_by_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy NMS within each class; `boxes` (N, 4) xyxy come best first."""
    if not len(boxes):
        return boxes, scores, labels
    # Boxes of different classes are moved apart, so that one call serves all classes; in float64, because an
    # untrained network's boxes are so large that the distance would cost the coordinates float32's precision.
    exact = boxes.double()
    low = exact.min()
    apart = exact + (labels.to(exact) * (exact.max() - low + 1))[:, None]
    keep = nms(apart, scores.double(), iou_threshold)
    return boxes[keep], scores[keep], labels[keep]
