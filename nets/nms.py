"""Non-maximum suppression (NMS) and its variants in NumPy.

Each function takes boxes (N, 4) xyxy float32, scores (N,) and labels (N,), best first, and an IoU threshold, and
returns the remaining boxes, scores and labels, best first. It can be the `suppress` of `nets.postprocess.postprocess`,
where N is at most 1000. With NumPy, exported files run without PyTorch; the tests compare with torchvision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
Suppress = Callable[[np.ndarray, np.ndarray, np.ndarray, float], Found]

BLOCK = 128  # boxes that are compared with the kept ones, and with each other, at once


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) IoU of boxes (N, 4) and (M, 4), xyxy; NaN if both areas are 0, as in torchvision."""
    intersection, union = _intersection_and_union(a, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return intersection / union


def _intersection_and_union(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x1, y1, x2, y2 = np.ascontiguousarray(a.T)[:, :, None]
    left, top, right, bottom = np.ascontiguousarray(b.T)
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.maximum(np.minimum(x2, right) - np.maximum(x1, left), 0)
        intersection = width * np.maximum(np.minimum(y2, bottom) - np.maximum(y1, top), 0)
        return intersection, (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - intersection


def nms(boxes: np.ndarray, labels: np.ndarray | None, iou_threshold: float, limit: int | None = None) -> np.ndarray:
    """Greedy NMS: indices of the boxes whose IoU with every better kept box is at most `iou_threshold`.

    Args:
        boxes: (N, 4) xyxy, best first.
        labels: (N,) only boxes of the same class suppress each other; None compares all.
        iou_threshold: 0 to 1.
        limit: stop after this many boxes; in greedy NMS, lower-scoring boxes do not affect better ones.
    """
    threshold = np.float64(iou_threshold)  # torchvision compares a float32 IoU with a double

    def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        table = box_iou(boxes[a], boxes[b]) > threshold
        return table if labels is None else table & (labels[a, None] == labels[b])

    kept = np.empty(0, np.int64)
    for start in range(0, len(boxes), BLOCK):
        if limit is not None and len(kept) >= limit:
            break
        block = np.arange(start, min(start + BLOCK, len(boxes)))
        block = block[~overlaps(kept, block).any(axis=0)]
        kept = np.concatenate([kept, block[_greedy(overlaps(block, block))]])
    return kept[:limit]


def _greedy(overlaps: np.ndarray) -> list[int]:
    """Rows of a square boolean table that no earlier kept row overlaps; each row is held as an integer bit mask."""
    rows = np.packbits(overlaps, axis=1, bitorder="little")
    kept, suppressed = [], 0
    for i, row in enumerate(rows):
        if not suppressed >> i & 1:
            kept.append(i)
            suppressed |= int.from_bytes(row.tobytes(), "little")
    return kept


def agnostic_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float) -> Found:
    """Greedy NMS over all classes together (class-agnostic)."""
    keep = nms(boxes, None, iou_threshold)
    return boxes[keep], scores[keep], labels[keep]


def diou_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float) -> Found:
    """Greedy NMS within a class by DIoU (IoU minus the normalised centre distance), which keeps overlapping neighbours.

    Source: Zheng et al. 2020, section 3.4, https://arxiv.org/abs/1911.08287
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    hull = np.maximum(high, boxes[:, 2:]) - np.minimum(low, boxes[:, :2])
    distance = ((low + high) - (boxes[:, :2] + boxes[:, 2:])) / 2
    diou = box_iou(boxes, boxes) - (distance**2).sum(-1) / ((hull**2).sum(-1) + 1e-7)
    keep = _greedy((diou > iou_threshold) & (labels[:, None] == labels))
    return boxes[keep], scores[keep], labels[keep]


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> Found:
    """Soft-NMS: multiply the score of a box by exp(-IoU^2 / sigma) for each better box of its class.

    Args:
        iou_threshold: not used by the Gaussian form; present so that all functions have the same signature.
        sigma: smaller values give a stronger decay.
        score_threshold: boxes below it are dropped.

    Source: Bodla et al. 2017, section 3, https://arxiv.org/abs/1704.04503
    """
    overlaps = np.nan_to_num(box_iou(boxes, boxes)) * (labels[:, None] == labels)
    decay = np.exp(-(overlaps**2) / sigma)
    scores = scores.copy()
    waiting = np.ones(len(scores), bool)
    kept: list[int] = []
    while waiting.any():
        best = int(np.where(waiting, scores, -1.0).argmax())
        if scores[best] < score_threshold:
            break
        kept.append(best)
        waiting[best] = False
        scores[waiting] *= decay[best, waiting]
    return boxes[kept], scores[kept], labels[kept]


def weighted_box_fusion(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float = 0.55, views: int = 1
) -> Found:
    """Average the boxes of a cluster, weighted by their scores.

    Args:
        iou_threshold: a box joins the cluster of its class whose average it overlaps most, if by more than this.
        views: number of predictions of the image (models, or test-time augmentations). With more than one, a cluster's
            score is its mean, reduced if it has fewer than `views` boxes, as in the paper. The candidates of a single
            network are not independent, so with one view the best score is kept.

    Source: Solovyev et al. 2021, section 3, https://arxiv.org/abs/1910.13302
    """
    fused, classes = np.empty_like(boxes), np.empty_like(labels)
    weights, best, counts = np.zeros_like(scores), np.zeros_like(scores), np.zeros_like(scores)
    clusters = 0
    for i in np.argsort(-scores, kind="stable"):
        overlap = np.nan_to_num(box_iou(boxes[i : i + 1], fused[:clusters])[0]) * (classes[:clusters] == labels[i])
        place = int(overlap.argmax()) if clusters else 0
        if not clusters or overlap[place] <= iou_threshold:
            place, clusters = clusters, clusters + 1
            fused[place], classes[place], best[place] = boxes[i], labels[i], scores[i]
        total = weights[place] + scores[i]
        fused[place] += (boxes[i] - fused[place]) * (scores[i] / max(total, 1e-12))
        weights[place] = total
        counts[place] += 1
    fused, weights, best, counts, classes = (each[:clusters] for each in (fused, weights, best, counts, classes))
    confidence = best if views == 1 else weights / counts * counts.clip(max=views) / views
    order = np.argsort(-confidence, kind="stable")
    return fused[order], confidence[order], classes[order]


def merge_cut_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    cut: np.ndarray,
    iou_threshold: float,
    share_threshold: float = 0.5,
) -> Found:
    """Merge the boxes that several tiles give for one object.

    Two boxes of a class are one object if their IoU is above `iou_threshold`. If a tile's edge cut one of them, they
    are also one object if more than `share_threshold` of the smaller box lies in the other, because half an object and
    the whole object have a low IoU. The result is the box that encloses both, with the best score.

    Args:
        boxes, scores, labels: (N, 4) xyxy, (N,), (N,).
        cut: (N,) bool, whether the box ends at the edge of its tile.

    Source: after the greedy non-maximum merging of SAHI, https://arxiv.org/abs/2202.06934, which also joins a small
    object with a large one of its class behind it; requiring a cut box avoids this.
    """
    waiting = np.ones(len(boxes), bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    merged = boxes.copy()
    for i in np.argsort(-scores, kind="stable"):
        if not waiting[i]:
            continue
        kept.append(int(i))
        waiting[i] = False
        is_cut = bool(cut[i])
        while True:  # the enclosing box may overlap boxes that neither of the two did
            intersection, union = (each[0] for each in _intersection_and_union(merged[i : i + 1], boxes))
            area = (merged[i, 2] - merged[i, 0]) * (merged[i, 3] - merged[i, 1])
            same = labels == labels[i]
            double = (intersection > iou_threshold * union) & same
            part = (cut | is_cut) & (intersection > share_threshold * np.minimum(areas, area)) & waiting & same
            waiting &= ~double & ~part
            if not part.any():
                break
            is_cut = is_cut and bool(cut[part].all())  # a box merged with an uncut one counts as uncut
            merged[i, :2] = np.minimum(merged[i, :2], boxes[part, :2].min(axis=0))
            merged[i, 2:] = np.maximum(merged[i, 2:], boxes[part, 2:].max(axis=0))
    return merged[kept], scores[kept], labels[kept]


# --nms NAME; None is greedy NMS within each class
SUPPRESSIONS: dict[str, Suppress | None] = {
    "default": None,
    "agnostic": agnostic_nms,
    "soft": soft_nms,
    "diou": diou_nms,
    "wbf": weighted_box_fusion,
}
