"""Other ways than greedy NMS within a class to make one box of many that show the same object.

Each function takes boxes (N, 4) xyxy, scores (N,), labels (N,), best first, and an IoU threshold, and gives the same
three of what remains, best first: it fits `suppress` of `nets.postprocess.postprocess`. N is at most a thousand there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, distance_box_iou, nms

Found = tuple[Tensor, Tensor, Tensor]
Suppress = Callable[[Tensor, Tensor, Tensor, float], Found]


def agnostic_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Found:
    """Greedy NMS over all classes together: one place holds one object."""
    keep = nms(boxes, scores, iou_threshold)
    return boxes[keep], scores[keep], labels[keep]


def diou_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Found:
    """Greedy NMS within a class by IoU less the distance of the centres: neighbours that overlap are kept apart.

    Source: Zheng et al. 2020, section 3.4, https://arxiv.org/abs/1911.08287
    """
    near = (distance_box_iou(boxes, boxes) > iou_threshold) & (labels[:, None] == labels[None])
    near = near.cpu()
    kept: list[int] = []
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in scores.argsort(descending=True, stable=True).tolist():
        if alive[i]:
            kept.append(i)
            alive &= ~near[i]
    keep = torch.tensor(kept, dtype=torch.long, device=boxes.device)
    return boxes[keep], scores[keep], labels[keep]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> Found:
    """Lower the score of what overlaps a better box of its class, by exp(-IoU^2 / sigma), instead of dropping it.

    Args:
        iou_threshold: not used by the Gaussian form; here so that all functions are called alike.
        sigma: the smaller, the harder the decay.
        score_threshold: what falls below is dropped.

    Source: Bodla et al. 2017, section 3, https://arxiv.org/abs/1704.04503
    """
    overlaps = box_iou(boxes, boxes) * (labels[:, None] == labels[None])
    decay = torch.exp(-(overlaps**2) / sigma)
    scores = scores.clone()
    waiting = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    kept: list[int] = []
    while waiting.any():
        best = int(torch.where(waiting, scores, -1.0).argmax())
        if scores[best] < score_threshold:
            break
        kept.append(best)
        waiting[best] = False
        scores = torch.where(waiting, scores * decay[best], scores)
    keep = torch.tensor(kept, dtype=torch.long, device=boxes.device)
    return boxes[keep], scores[keep], labels[keep]


def weighted_box_fusion(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float = 0.55, views: int = 1
) -> Found:
    """Average the boxes of a cluster, weighted by their scores.

    Args:
        iou_threshold: a box joins the cluster of its class whose average it overlaps most, if by more than this.
        views: how often the image was looked at (models, or test-time views). With more than one, a cluster's score
            is its mean, less where fewer than `views` boxes agree, as in the paper. One network's own candidates for
            an object are not independent votes: with one view the best score stays.

    Source: Solovyev et al. 2021, section 3, https://arxiv.org/abs/1910.13302
    """
    fused = torch.empty_like(boxes)
    weights, best, counts = torch.zeros_like(scores), torch.zeros_like(scores), torch.zeros_like(scores)
    classes = torch.empty_like(labels)
    clusters = 0
    for i in scores.argsort(descending=True, stable=True).tolist():
        overlap = box_iou(boxes[i : i + 1], fused[:clusters])[0] * (classes[:clusters] == labels[i])
        place = int(overlap.argmax()) if clusters else 0
        if not clusters or overlap[place] <= iou_threshold:
            place, clusters = clusters, clusters + 1
            fused[place], classes[place], best[place] = boxes[i], labels[i], scores[i]
        total = weights[place] + scores[i]
        fused[place] += (boxes[i] - fused[place]) * (scores[i] / total.clamp(min=1e-12))
        weights[place] = total
        counts[place] += 1
    fused, weights, best, counts, classes = (t[:clusters] for t in (fused, weights, best, counts, classes))
    confidence = best if views == 1 else weights / counts * counts.clamp(max=views) / views
    order = confidence.argsort(descending=True, stable=True)
    return fused[order], confidence[order], classes[order]


def merge_cut_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, cut: Tensor, iou_threshold: float, share_threshold: float = 0.5
) -> Found:
    """Join what several tiles saw of one object.

    Two boxes of a class are one object if their IoU is above `iou_threshold`; or, where the edge of a tile cut one of
    them, if more than `share_threshold` of the smaller lies in the other: half an object lies inside the whole one with
    a low IoU. Then the result is the box around both; the best score stays.

    Args:
        boxes, scores, labels: (N, 4) xyxy, (N,), (N,).
        cut: (N,) bool, whether the box ends at the edge of its tile.

    Source: after the greedy non-maximum merging of SAHI, https://arxiv.org/abs/2202.06934, which also joins a small
    object with a large one of its class behind it; asking for a cut box spares those.
    """
    waiting = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    areas = box_area(boxes)
    kept: list[int] = []
    merged = boxes.clone()
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not waiting[i]:
            continue
        kept.append(i)
        waiting[i] = False
        is_cut = bool(cut[i])
        while True:  # the box around both may hold parts that neither held
            box = merged[i]
            sides = torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])
            intersection, area = sides.clamp(min=0).prod(dim=-1), (box[2:] - box[:2]).prod()
            double = intersection > iou_threshold * (areas + area - intersection)
            part = (cut | is_cut) & (intersection > share_threshold * torch.minimum(areas, area))
            part &= waiting & (labels == labels[i])
            waiting &= ~(double & (labels == labels[i])) & ~part
            if not part.any():
                break
            low, high = boxes[part, :2].amin(dim=0), boxes[part, 2:].amax(dim=0)
            is_cut = is_cut and bool(cut[part].all())  # together with a whole one it is whole
            merged[i] = torch.cat([torch.minimum(box[:2], low), torch.maximum(box[2:], high)])
    keep = torch.tensor(kept, dtype=torch.long, device=boxes.device)
    return merged[keep], scores[keep], labels[keep]


# --nms NAME; None is the detector's own greedy NMS within each class
SUPPRESSIONS: dict[str, Suppress | None] = {
    "default": None,
    "agnostic": agnostic_nms,
    "soft": soft_nms,
    "diou": diou_nms,
    "wbf": weighted_box_fusion,
}
