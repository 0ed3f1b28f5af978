"""Postprocessing: turn predictions into Detections by score threshold, box decoding and NMS.

It uses only NumPy: exported files run without PyTorch, and the arrays of one image are too small for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imaging.detections import Detections
from nets.model_config import MAX_LOG_SIZE, STRIDES, ModelConfig
from nets.nms import nms
from utils.thresholds import OWN_THRESHOLDS, Thresholds

# The maximum number of candidates per image for NMS, best first. It bounds the cost for any scores.
MAX_CANDIDATES = 1000


def postprocess(
    predictions: Sequence[Any], config: ModelConfig, thresholds: Thresholds = OWN_THRESHOLDS
) -> list[Detections]:
    """Turn raw predictions into detections.

    Args:
        predictions: three raw maps (B, A, H, W, 5 + C), strides 8, 16, 32; arrays, or tensors in CPU memory.
        config: anchors, grid sensitivity, and the default thresholds.
        thresholds: which detections are kept.

    Returns:
        Detections of each image, best first, in input pixels.
    """
    rules = thresholds.resolved(config)
    maps = [np.asarray(raw) for raw in predictions]
    return [_read_maps([raw[image] for raw in maps], config, rules) for image in range(len(maps[0]))]


def postprocess_decoded(
    boxes: Any, scores: Any, config: ModelConfig, thresholds: Thresholds = OWN_THRESHOLDS
) -> list[Detections]:
    """As `postprocess`, for a network that decodes its boxes itself (an exported file).

    Args:
        boxes: (B, N, 4) xyxy, input pixels.
        scores: (B, N, C) objectness x class probability.
        config, thresholds: as in `postprocess`.
    """
    rules = thresholds.resolved(config)
    results = []
    for image_boxes, image_scores in zip(np.asarray(boxes), np.asarray(scores), strict=True):
        places, best, labels = _best_candidates(image_scores, rules)
        results.append(_suppress(image_boxes[places], best, labels, rules))
    return results


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), float32; 0 and 1 beyond the range of exp."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x.astype(np.float32, copy=False)))


def _read_maps(maps: Sequence[np.ndarray], config: ModelConfig, rules: Thresholds) -> Detections:
    """Detections of one image from its three maps (A, H, W, 5 + C)."""
    threshold = rules.score_threshold
    assert threshold is not None  # `Thresholds.resolved` has filled in the model's value
    # A score is at most its objectness, so one comparison of logits rejects most predictions before any sigmoid.
    with np.errstate(divide="ignore"):  # -inf for 0, inf for 1
        lowest = np.log(threshold) - np.log1p(-threshold)
    found = [np.nonzero(raw[..., 4] >= lowest) for raw in maps]
    rows = np.concatenate([raw[place] for raw, place in zip(maps, found, strict=True)]).astype(np.float32, copy=False)
    level = np.repeat(np.arange(len(maps)), [len(place[0]) for place in found])
    anchor, row, column = (np.concatenate(index) for index in zip(*found, strict=True))
    # score = objectness x class probability (YOLOv1, section 2)
    places, scores, labels = _best_candidates(sigmoid(rows[:, 4:5]) * sigmoid(rows[:, 5:]), rules)
    # decode only the remaining predictions
    level, anchor, row, column = level[places], anchor[places], row[places], column[places]
    anchors = np.array(config.anchors, np.float32)[level, anchor]
    strides, scales = (np.array(values, np.float32)[level][:, None] for values in (STRIDES, config.scale_xy))
    cells = np.stack([column, row], axis=1).astype(np.float32)
    return _suppress(decode_boxes(rows[places], anchors, cells, strides, scales), scores, labels, rules)


def decode_boxes(
    offsets: np.ndarray, anchors: np.ndarray, cells: np.ndarray, strides: np.ndarray, scale_xy: np.ndarray
) -> np.ndarray:
    """Boxes (N, 4) xyxy, input pixels, from raw offsets (N, 4 or more): `nets.anchors.decode` with NumPy arguments."""
    with np.errstate(invalid="ignore"):
        centres = (sigmoid(offsets[:, :2]) * scale_xy - (scale_xy - 1) / 2 + cells) * strides
        half = np.exp(np.minimum(offsets[:, 2:4], MAX_LOG_SIZE)) * anchors / 2
        return np.concatenate([centres - half, centres + half], axis=1)


def _best_candidates(scores: np.ndarray, rules: Thresholds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The (box, class) pairs whose score reaches the threshold, best first, at most the number that NMS accepts.

    Args:
        scores: (K, C).

    Returns:
        places (N,): indices into K; scores (N,); labels (N,).
    """
    scores = scores.astype(np.float32, copy=False)
    classes = scores.shape[1]
    labels = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), labels]
    assert rules.max_detections is not None  # as in `_read_maps`
    limit = max(MAX_CANDIDATES, rules.max_detections)
    lowest = np.float32(rules.score_threshold)
    if len(best) > limit:  # the `limit` best boxes give at least as many pairs: pairs with lower scores are not needed
        lowest = max(lowest, _lowest_of_best(best, limit))
    pairs = scores.ravel() if rules.multi_label else best
    kept = np.flatnonzero(pairs >= lowest)
    kept = kept[np.argsort(-pairs[kept], kind="stable")[:limit]]
    if rules.multi_label:
        return kept // classes, pairs[kept], kept % classes
    return kept, best[kept], labels[kept]


def _lowest_of_best(scores: np.ndarray, count: int) -> np.float32:
    """The lowest of the `count` highest scores; NaN counts as the lowest."""
    return np.partition(np.nan_to_num(scores, nan=-np.inf), len(scores) - count)[len(scores) - count]


def _suppress(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, rules: Thresholds) -> Detections:
    boxes = boxes.astype(np.float32, copy=False)
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    if rules.suppress is None:
        assert rules.iou_threshold is not None
        keep = nms(boxes, labels, rules.iou_threshold, rules.max_detections)
        return Detections(boxes[keep], scores[keep], labels[keep])
    found = rules.suppress(boxes, scores, labels, rules.iou_threshold)
    boxes, scores, labels = (each[: rules.max_detections] for each in found)
    return Detections(boxes, scores, labels)
