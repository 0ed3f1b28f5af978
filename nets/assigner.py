"""Label assignment: match anchors to ground-truth boxes, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert

from nets.anchors import decode
from nets.model_config import STRIDES, ModelConfig

# YOLOv5's `anchor_t`: an anchor matches a box if their widths and heights differ by a factor of at most 4.
RATIO_LIMIT = 4.0
# YOLOv4's `iou_thresh`: an anchor matches a box if the IoU of their shapes (same centre) is at least this.
SHAPE_IOU_LIMIT = 0.213
# SimOTA (YOLOX, section 2.1): the sum of a box's highest 10 IoUs gives the number of predictions matched to it.
SIMOTA_TOP = 10
SIMOTA_IOU_WEIGHT = 3.0


@dataclass(frozen=True)
class Matches:
    """P pairs of a prediction and the ground-truth box assigned to it, over the whole batch.

    Attributes:
        level, image, anchor, row, column: (P,) int64, indices of the prediction.
        target: (P,) int64, index of the ground-truth box.
    """

    level: Tensor
    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: Tensor) -> Matches:
        return Matches(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Batch:
    """The input of an assigner: the batch's ground-truth boxes, the grid sizes of the levels, and the predictions."""

    boxes: Tensor  # (M, 4) cxcywh, input pixels
    labels: Tensor  # (M,)
    images: Tensor  # (M,) position in the batch
    weights: Tensor  # (M,) in [0, 1]
    grids: list[tuple[int, int]]  # (rows, columns) of each level
    predictions: Sequence[Tensor]
    config: ModelConfig


def assign(batch: Batch, rule: str) -> Matches:
    """Match the predictions of a batch with its objects by `rule`, a key of ASSIGNERS."""
    return ASSIGNERS[rule](batch)


def anchor_table(config: ModelConfig, device: torch.device) -> Tensor:
    """(L * A, 2) anchors of all levels, input pixels."""
    return torch.tensor(config.anchors, device=device).reshape(-1, 2)


def _shape_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """(M, 2) and (K, 2) widths and heights to (M, K) IoU of boxes with the same centre."""
    inter = torch.minimum(sizes[:, None], anchors[None]).prod(-1)
    return inter / (sizes.prod(1)[:, None] + anchors.prod(1)[None] - inter)


def _at_centre(batch: Batch, chosen: Tensor) -> Matches:
    """The chosen (box, anchor) pairs as matches in the cell of the box's centre. chosen: (M, L * A) bool."""
    target, place = chosen.nonzero(as_tuple=True)
    per_level = chosen.shape[1] // len(STRIDES)
    level = place // per_level
    strides, limits = _level_tables(batch)
    cell = (batch.boxes[target, :2] / strides[level][:, None]).long()
    cell = torch.minimum(cell.clamp(min=0), limits[level])
    return Matches(level, batch.images[target], place % per_level, cell[:, 1], cell[:, 0], target)


def _level_tables(batch: Batch) -> tuple[Tensor, Tensor]:
    """(L,) strides and (L, 2) last column and row of each level."""
    device = batch.boxes.device
    limits = torch.tensor([(columns - 1, rows - 1) for rows, columns in batch.grids], device=device)
    return torch.tensor(STRIDES, device=device), limits


def assign_best(batch: Batch) -> Matches:
    """The anchor with the highest shape IoU of all levels, in the cell of the box's centre (YOLOv3, the reference)."""
    iou = _shape_iou(batch.boxes[:, 2:], anchor_table(batch.config, batch.boxes.device))
    chosen = torch.zeros_like(iou, dtype=torch.bool)
    chosen[torch.arange(len(iou), device=iou.device), iou.argmax(dim=1)] = True
    return _at_centre(batch, chosen)


def assign_iou(batch: Batch) -> Matches:
    """Every anchor with a shape IoU of at least 0.213, and the best one, in the cell of the box's centre (YOLOv4)."""
    iou = _shape_iou(batch.boxes[:, 2:], anchor_table(batch.config, batch.boxes.device))
    return _at_centre(batch, (iou >= SHAPE_IOU_LIMIT) | (iou >= iou.amax(dim=1, keepdim=True)))


def assign_ratio(batch: Batch) -> Matches:
    """Every anchor within a factor of 4 in both sides, in the cell of the box's centre and its two nearest neighbours.

    A box that fits no anchor is matched to the anchor with the most similar shape, so that every object is matched.
    Three cells per anchor give three times the positive examples. A neighbouring cell can reach the centre only with a
    grid sensitivity of 2.

    Source: YOLOv5's documentation, "target assignment".
    """
    anchors = anchor_table(batch.config, batch.boxes.device)
    ratio = batch.boxes[:, None, 2:] / anchors[None]
    worst = torch.maximum(ratio, 1 / ratio).amax(-1)
    own = _at_centre(batch, (worst < RATIO_LIMIT) | (worst <= worst.amin(dim=1, keepdim=True)))
    strides, limits = _level_tables(batch)
    centre = batch.boxes[own.target, :2] / strides[own.level][:, None]
    step_x, step_y = torch.where(centre.frac() < 0.5, -1, 1).unbind(1)  # towards the nearer neighbour
    beside_x, beside_y = own.column + step_x, own.row + step_y
    limit = limits[own.level]
    in_x = (beside_x >= 0) & (beside_x <= limit[:, 0])
    in_y = (beside_y >= 0) & (beside_y <= limit[:, 1])
    parts = [
        (own, own.row, own.column),
        (own[in_x], own.row[in_x], beside_x[in_x]),
        (own[in_y], beside_y[in_y], own.column[in_y]),
    ]
    joined = {
        name: torch.cat([getattr(m, name) for m, _, _ in parts]) for name in ("level", "image", "anchor", "target")
    }
    return Matches(**joined, row=torch.cat([row for _, row, _ in parts]), column=torch.cat([c for _, _, c in parts]))


@torch.no_grad()
def assign_simota(batch: Batch) -> Matches:
    """The candidates of `assign_ratio` with the lowest cost, as many for each box as the sum of its best IoUs.

    Cost = class cross-entropy + 3 * -log IoU. A prediction matched to two boxes is kept for the one with lower cost.
    Source: YOLOX, section 2.1, SimOTA, https://arxiv.org/abs/2107.08430; with these candidates: YOLOv7, section 4.2,
    https://arxiv.org/abs/2207.02696
    """
    found = assign_ratio(batch)
    if not len(found):
        return found
    rows = gather(batch.predictions, found).float()
    boxes = box_convert(decode_matches(rows, found, batch.config), "cxcywh", "xyxy")
    target_boxes = box_convert(batch.boxes, "cxcywh", "xyxy")[found.target]
    iou = _pair_iou(boxes, target_boxes)
    cost = _simota_cost(rows, batch.labels[found.target], iou)
    count = len(batch.boxes)
    by_iou = _rank_within(found.target, -iou, count)
    top = torch.zeros(count, device=iou.device).index_add_(0, found.target, torch.where(by_iou < SIMOTA_TOP, iou, 0))
    dynamic_k = top.long().clamp(min=1)  # at least one prediction for each box
    chosen = _rank_within(found.target, cost, count) < dynamic_k[found.target]
    found, cost = found[chosen], cost[chosen]
    return found[_first_of_each(prediction_index(batch, found), cost)]


def _simota_cost(rows: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
    """(P,) costs of P matches: raw predictions (P, 5 + C), labels (P,) and IoU (P,) with the matched boxes."""
    # the square root of objectness x class probability, as in YOLOX's code: their product would be small early on
    probability = (rows[:, 4:5].sigmoid() * rows[:, 5:].sigmoid()).sqrt().clamp(1e-6, 1 - 1e-6)
    own = probability.gather(1, labels[:, None])[:, 0]
    # binary cross-entropy over all classes: sum of -log(1 - p), with -log(p) in place of it for the object's class
    return -(1 - probability).log().sum(1) + (1 - own).log() - own.log() - SIMOTA_IOU_WEIGHT * (iou + 1e-8).log()


def _rank_within(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """Position of each value among those of its group, ascending."""
    order = values.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups, minlength=count)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(groups), device=groups.device) - starts[groups[order]]
    return rank


def _first_of_each(keys: Tensor, cost: Tensor) -> Tensor:
    """Indices of the entry with the lowest cost for each key."""
    order = cost.argsort(stable=True)
    order = order[keys[order].argsort(stable=True)]
    ordered = keys[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def prediction_index(batch: Batch, matches: Matches) -> Tensor:
    """(P,) index of each match's prediction among those of all levels: (B, A, H, W) flattened, level after level."""
    grids = torch.tensor(batch.grids, device=matches.level.device)
    anchors = batch.predictions[0].shape[1]
    sizes = len(batch.predictions[0]) * anchors * grids.prod(1)
    height, width = grids[matches.level].unbind(1)
    own = ((matches.image * anchors + matches.anchor) * height + matches.row) * width + matches.column
    return (sizes.cumsum(0) - sizes)[matches.level] + own


def _pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """(P, 4) and (P, 4) xyxy to (P,) IoU, pair by pair."""
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return inter / (areas - inter).clamp(min=1e-9)


def gather(predictions: Sequence[Tensor], matches: Matches) -> Tensor:
    """(P, 5 + C) raw predictions of the matches, in their order (levels need not be in order)."""
    order, rows = [], []
    for level, raw in enumerate(predictions):
        where = (matches.level == level).nonzero()[:, 0]
        image, anchor = matches.image[where], matches.anchor[where]
        row, column = matches.row[where], matches.column[where]
        _, anchors, height, width, outputs = raw.shape
        # Index whole rows of a flat view: the backward adds rows, which is several times faster than single elements.
        if raw.is_contiguous():
            place = ((image * anchors + anchor) * height + row) * width + column
        else:  # in channels-last format a cell's anchors are adjacent in memory
            raw = raw.permute(0, 2, 3, 1, 4)
            place = ((image * height + row) * width + column) * anchors + anchor
        rows.append(raw.reshape(-1, outputs).index_select(0, place))
        order.append(where)
    back = torch.cat(order)
    return torch.cat(rows).index_select(0, back.argsort())


def decode_matches(rows: Tensor, matches: Matches, config: ModelConfig) -> Tensor:
    """(P, 4 or more) raw predictions of the matches to (P, 4) boxes, cxcywh, input pixels."""
    device = rows.device
    strides = torch.tensor(STRIDES, device=device)[matches.level][:, None]
    scales = torch.tensor(config.scale_xy, device=device)[matches.level][:, None]
    anchors = torch.tensor(config.anchors, device=device)[matches.level, matches.anchor]
    cells = torch.stack([matches.column, matches.row], dim=1).to(rows)
    return decode(rows, anchors, cells, strides, scales)


ASSIGNERS: dict[str, Callable[[Batch], Matches]] = {
    "best": assign_best,
    "iou": assign_iou,
    "ratio": assign_ratio,
    "simota": assign_simota,
}
