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
from utils.thresholds import OWN_THRESHOLDS, Thresholds

# The most candidates of one image that suppression looks at, best first: bounds its cost whatever the scores are.
MAX_CANDIDATES = 1000
FIRST_LOOK = 3  # times the detections wanted: how many candidates suppression looks at before it looks at all

# (boxes (N, 4) xyxy, scores (N,), labels (N,), iou_threshold) -> the same three, of what is kept, best first
Suppress = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def postprocess(
    predictions: Sequence[Tensor], config: ModelConfig, thresholds: Thresholds = OWN_THRESHOLDS
) -> list[Detections]:
    """Read the network's answer.

    Args:
        predictions: three raw tensors (B, A, H, W, 5 + C), strides 8, 16, 32.
        config: anchors, grid sensitivity, and the default thresholds.
        thresholds: which detections are kept.

    Returns:
        Detections of each image, best first, in input pixels.
    """
    rules = thresholds.resolved(config)
    return [_read_maps([raw[image] for raw in predictions], config, rules) for image in range(len(predictions[0]))]


def postprocess_decoded(
    boxes: Tensor, scores: Tensor, config: ModelConfig, thresholds: Thresholds = OWN_THRESHOLDS
) -> list[Detections]:
    """The same for a network that decodes by itself (an exported file).

    Args:
        boxes: (B, N, 4) xyxy, input pixels.
        scores: (B, N, C) objectness x class probability.
        config, thresholds: as in `postprocess`.
    """
    rules = thresholds.resolved(config)
    results = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        places, best, labels = _best_candidates(image_scores, rules)
        results.append(_suppress(image_boxes[places].float(), best.float(), labels, rules))
    return results


def _read_maps(maps: Sequence[Tensor], config: ModelConfig, rules: Thresholds) -> Detections:
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


def _best_candidates(scores: Tensor, rules: Thresholds) -> tuple[Tensor, Tensor, Tensor]:
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


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, rules: Thresholds) -> Detections:
    finite = boxes.isfinite().all(dim=1)
    if not finite.all():
        boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    candidates = boxes, scores, labels
    few, suppress = FIRST_LOOK * rules.max_detections, rules.suppress or suppress_by_class
    if suppress is suppress_by_class and len(boxes) > few:
        # what greedy suppression keeps of the best does not depend on the rest: often they are enough
        candidates = boxes[:few], scores[:few], labels[:few]
    kept = suppress(*candidates, rules.iou_threshold)
    if len(candidates[0]) < len(boxes) and len(kept[0]) < rules.max_detections:
        kept = suppress(boxes, scores, labels, rules.iou_threshold)
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
