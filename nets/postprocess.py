"""From predictions to Detections: threshold, decode what survives, suppress what overlaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert, nms

from nets.anchors import decode
from nets.model_config import STRIDES, ModelConfig
from utils.detections import Detections

# The most candidates of one image that suppression looks at, best first: bounds its cost whatever the scores are.
MAX_CANDIDATES = 1000
FIRST_LOOK = 3  # times the detections wanted: how many candidates suppression looks at before it looks at all

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
        suppress: another suppression than greedy NMS within each class (see `nets.nms`).

    Returns:
        Detections of each image, best first, in input pixels.
    """
    rules = _Rules.of(config, score_threshold, iou_threshold, max_detections, multi_label, suppress)
    return [_read_maps([raw[image] for raw in predictions], config, rules) for image in range(len(predictions[0]))]


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
    rules = _Rules.of(config, score_threshold, iou_threshold, max_detections, multi_label, suppress)
    results = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        places, best, labels = _best_candidates(image_scores, rules)
        results.append(_suppress(image_boxes[places].float(), best.float(), labels, rules))
    return results


@dataclass(frozen=True)
class _Rules:
    """What counts, and how boxes of one object become one; see `postprocess`."""

    score_threshold: float
    iou_threshold: float
    max_detections: int
    multi_label: bool
    suppress: Suppress

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        score_threshold: float | None,
        iou_threshold: float | None,
        max_detections: int | None,
        multi_label: bool | None,
        suppress: Suppress | None,
    ) -> _Rules:
        return cls(
            config.score_threshold if score_threshold is None else score_threshold,
            config.iou_threshold if iou_threshold is None else iou_threshold,
            config.max_detections if max_detections is None else max_detections,
            config.multi_label if multi_label is None else multi_label,
            suppress or suppress_by_class,
        )


def _read_maps(maps: Sequence[Tensor], config: ModelConfig, rules: _Rules) -> Detections:
    """Detections of one image from its three maps (A, H, W, 5 + C)."""
    threshold = rules.score_threshold
    # a score is at most its objectness, so that most places are dismissed by one comparison of logits
    least = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else (-math.inf if threshold <= 0 else math.inf)
    found = [(raw[..., 4] >= least).nonzero(as_tuple=True) for raw in maps]
    rows = torch.cat([raw[place] for raw, place in zip(maps, found, strict=True)]).float()
    places, scores, labels = _best_candidates(rows[:, 4:5].sigmoid() * rows[:, 5:].sigmoid(), rules)
    # only what is left is decoded
    anchor, row, column = (torch.cat(index)[places] for index in zip(*found, strict=True))
    level = torch.repeat_interleave(torch.tensor([len(place[0]) for place in found], device=rows.device))[places]
    anchors = torch.tensor(config.anchors, device=rows.device)[level, anchor]
    strides, scales = (torch.tensor(v, device=rows.device)[level][:, None] for v in (STRIDES, config.scale_xy))
    boxes = decode(rows[places, :4], anchors, torch.stack([column, row], dim=-1).float(), strides, scales)
    return _suppress(box_convert(boxes, "cxcywh", "xyxy"), scores, labels, rules)


def _best_candidates(scores: Tensor, rules: _Rules) -> tuple[Tensor, Tensor, Tensor]:
    """The (box, class) pairs that reach the threshold, best first, as many as suppression looks at.

    Args:
        scores: (K, C).

    Returns:
        places (N,) in K, scores (N,), labels (N,).
    """
    classes = scores.shape[1]
    best, labels = scores.max(dim=1)
    limit = max(MAX_CANDIDATES, rules.max_detections)
    least = torch.as_tensor(rules.score_threshold, device=scores.device)
    if len(best) > limit:  # the best of `limit` boxes are as many pairs: no pair below the least of them is wanted
        least = torch.maximum(least, best.nan_to_num(-1.0).topk(limit, sorted=False).values.min())
    several = rules.multi_label and classes > 1
    pairs = scores.flatten() if several else best
    kept = (pairs >= least).nonzero().squeeze(1)
    kept = kept[pairs[kept].argsort(descending=True, stable=True)[:limit]]
    if several:
        return torch.div(kept, classes, rounding_mode="floor"), pairs[kept], kept % classes
    return kept, best[kept], labels[kept]


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, rules: _Rules) -> Detections:
    finite = boxes.isfinite().all(dim=1)
    if not finite.all():
        boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    candidates = boxes, scores, labels
    few = FIRST_LOOK * rules.max_detections
    if rules.suppress is suppress_by_class and len(boxes) > few:
        # what greedy suppression keeps of the best does not depend on the rest: often they are enough
        candidates = boxes[:few], scores[:few], labels[:few]
    kept = rules.suppress(*candidates, rules.iou_threshold)
    if len(candidates[0]) < len(boxes) and len(kept[0]) < rules.max_detections:
        kept = rules.suppress(boxes, scores, labels, rules.iou_threshold)
    return Detections(*(each[: rules.max_detections].cpu().numpy() for each in kept))


def suppress_by_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy NMS within each class; `boxes` (N, 4) xyxy come best first."""
    order = labels.argsort(stable=True)
    parts = order.split(torch.bincount(labels).tolist())
    kept = [part[nms(boxes[part], scores[part], iou_threshold)] if len(part) > 1 else part for part in parts]
    keep = torch.cat(kept).sort().values if kept else order
    return boxes[keep], scores[keep], labels[keep]
