"""The loss compared with a simple implementation, per prediction, for every term, weight, limit and assignment rule."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from nets.assigner import Batch, Matches, _pair_iou, _simota_cost, assign, gather, prediction_index
from nets.loss_config import LossConfig
from nets.losses import YOLOLoss, _not_empty
from nets.model_config import STRIDES, ModelConfig

CONFIG = ModelConfig(class_names=("cat", "dog", "owl"), scale_xy=(2.0, 1.8, 1.5))
HEIGHT, WIDTH = 96, 128
BOX_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
TARGETS: dict[str, Tensor] = {
    "boxes": torch.tensor(
        [
            *([10.0, 12, 50, 60], [60, 30, 120, 90], [0, 0, 12, 14], [20, 20, 60, 64], [90, 5, 96, 60]),
            *([100, 2, 104, 92], [70.25, 70, 71, 70.5]),  # that no anchor fits: too narrow, below a pixel
        ]
    ),
    "labels": torch.tensor([0, 2, 1, 1, 2, 1, 0]),
    "image_index": torch.tensor([0, 0, 1, 1, 1, 0, 1]),
}


def maps(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, HEIGHT // s, WIDTH // s, 8, generator=generator) for s in STRIDES]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def entropy(logit: float, target: float, gamma: float) -> float:
    p = sigmoid(logit)
    loss = -(target * math.log(p) + (1 - target) * math.log(1 - p))
    return loss * abs(p - target) ** gamma if gamma else loss


def decoded(raw: Tensor, level: int, anchor: int, row: int, column: int) -> Tensor:
    """xyxy of one prediction (YOLOv4: centre = cell + s * sigmoid(t) - (s - 1) / 2, side = anchor * exp(t))."""
    scale, stride, (width, height) = CONFIG.scale_xy[level], STRIDES[level], CONFIG.anchors[level][anchor]
    x = (column + scale * sigmoid(raw[0]) - (scale - 1) / 2) * stride
    y = (row + scale * sigmoid(raw[1]) - (scale - 1) / 2) * stride
    w, h = width * math.exp(raw[2]), height * math.exp(raw[3])
    return torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def batch_of(predictions: list[Tensor]) -> Batch:
    boxes = TARGETS["boxes"]
    cxcywh = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    grids = [(m.shape[2], m.shape[3]) for m in predictions]
    return Batch(cxcywh, TARGETS["labels"], TARGETS["image_index"], torch.ones(len(boxes)), grids, predictions, CONFIG)


def plain_matches(rule: str, predictions: list[Tensor], targets: dict[str, Tensor] = TARGETS) -> set[tuple[int, ...]]:
    """(level, image, anchor, row, column, target) by loops over objects and anchors."""
    found: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for target, (x1, y1, x2, y2) in enumerate(targets["boxes"].tolist()):
        width, height, x, y = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
        image, shape = int(targets["image_index"][target]), {}
        for level in range(3):
            for anchor, (aw, ah) in enumerate(CONFIG.anchors[level]):
                inter = min(width, aw) * min(height, ah)
                iou = inter / (width * height + aw * ah - inter)
                ratio = max(width / aw, aw / width, height / ah, ah / height)
                shape[level, anchor] = (iou, ratio)
        best, least = max(i for i, _ in shape.values()), min(r for _, r in shape.values())
        for (level, anchor), (iou, ratio) in shape.items():
            rows, columns = predictions[level].shape[2:4]
            column, row = int(x / STRIDES[level]), int(y / STRIDES[level])
            cells = [(row, column)]
            if rule in ("ratio", "simota"):
                taken = ratio < 4 or ratio == least
                left, up = x / STRIDES[level] % 1 < 0.5, y / STRIDES[level] % 1 < 0.5
                cells += [(row, column - 1 if left else column + 1), (row - 1 if up else row + 1, column)]
            else:
                taken = iou == best or (rule == "iou" and iou >= 0.213)
            for r, c in cells if taken else []:
                if 0 <= r < rows and 0 <= c < columns:
                    found[target].append((level, image, anchor, r, c, target))
    if rule != "simota":
        return {each for matches in found.values() for each in matches}
    cheapest: dict[tuple[int, ...], tuple[float, int]] = {}
    for target, matches in found.items():
        costs, ious = [], []
        for level, image, anchor, row, column, _ in matches:
            raw = predictions[level][image, anchor, row, column]
            iou = float(box_iou(decoded(raw, level, anchor, row, column)[None], targets["boxes"][target][None]))
            cost = 3 * -math.log(iou + 1e-8)
            for label in range(3):
                p = math.sqrt(sigmoid(raw[4]) * sigmoid(raw[5 + label]))
                cost -= math.log(p if label == targets["labels"][target] else 1 - p)
            costs.append(cost)
            ious.append(iou)
        count = max(int(sum(sorted(ious, reverse=True)[:10])), 1)
        for cost, match in sorted(zip(costs, matches, strict=True))[:count]:
            if match[:5] not in cheapest or cost < cheapest[match[:5]][0]:
                cheapest[match[:5]] = (cost, target)
    return {(*place, target) for place, (_, target) in cheapest.items()}


def close_maps() -> list[Tensor]:
    """Predictions with boxes near the anchors, so that IoUs sum to several matches per object."""
    predictions = maps(3)
    for raw in predictions:
        raw[..., :4] *= 0.3
    return predictions


@pytest.mark.parametrize("rule", ["best", "iou", "ratio", "simota"])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_rule_gives_the_matches_of_its_plain_form(rule: str, seed: int) -> None:
    predictions = maps(seed) if seed else close_maps()
    found = assign(batch_of(predictions), rule)
    names = ("level", "image", "anchor", "row", "column", "target")
    rows = list(zip(*(getattr(found, name).tolist() for name in names), strict=True))
    assert len(rows) == len(set(rows)) and set(rows) == plain_matches(rule, predictions)
    if rule == "simota" and not seed:
        assert len(rows) > len(TARGETS["boxes"])  # more than one match an object


def plain_losses(
    predictions: list[Tensor],
    settings: LossConfig,
    weights: tuple[float, ...],
    targets: dict[str, Tensor] = TARGETS,
) -> dict[str, float]:
    matches = plain_matches(settings.assigner, predictions, targets)
    count = max(len(matches), 1)
    box = classes = objectness = 0.0
    quality: dict[tuple[int, ...], float] = {}
    for *place, target in matches:
        level, image, anchor, row, column = place
        raw = predictions[level][image, anchor, row, column]
        own = decoded(raw, level, anchor, row, column)
        loss = float(BOX_LOSSES[settings.box_loss](own[None], targets["boxes"][target][None]))
        box += loss
        iou = min(max(1 - loss, 0.0), 1.0)
        goal = settings.objectness_target * iou + (1 - settings.objectness_target)
        quality[tuple(place)] = max(quality.get(tuple(place), 0.0), goal)
        for label in range(3):
            eps = settings.label_smoothing
            truth = (label == targets["labels"][target]) * (1 - eps) + eps / 3
            each = entropy(float(raw[5 + label]), float(truth), settings.focal_gamma)
            classes += each * (weights[targets["labels"][target]] if weights else 1)
    for level, raw in enumerate(predictions):
        for image, anchor, row, column in torch.cartesian_prod(*map(torch.arange, raw.shape[:4])).tolist():
            goal = quality.get((level, image, anchor, row, column), 0.0)
            if not goal and settings.ignore_iou < 1:
                own = decoded(raw[image, anchor, row, column], level, anchor, row, column)
                others = targets["boxes"][targets["image_index"] == image]
                if float(box_iou(own[None], others).max()) > settings.ignore_iou:
                    continue
            value = entropy(float(raw[image, anchor, row, column, 4]), goal, settings.focal_gamma)
            objectness += settings.level_weights[level] * value
    return {
        "box": settings.box_weight * box / count,
        "objectness": settings.objectness_weight * objectness / count,
        "class": settings.class_weight * classes / count,
    }


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, ()),
        ({"box_loss": "giou", "box_weight": 1.5, "objectness_weight": 0.7, "class_weight": 2.0}, ()),
        ({"box_loss": "diou", "level_weights": (0.5, 2.0, 3.0), "objectness_target": 0.3}, ()),
        ({"assigner": "best", "ignore_iou": 0.3, "objectness_target": 0.0}, ()),
        ({"assigner": "iou", "label_smoothing": 0.2, "focal_gamma": 1.5}, (0.5, 2.0, 1.5)),
        ({"assigner": "simota", "ignore_iou": 0.5, "focal_gamma": 0.5}, ()),
    ],
)
def test_every_term_is_that_of_the_plain_form(settings: dict[str, Any], weights: tuple[float, ...]) -> None:
    predictions, config = close_maps(), LossConfig(**settings)
    ours = YOLOLoss(CONFIG, config, class_weights=weights)(predictions, TARGETS)
    expected = plain_losses(predictions, config, weights)
    for name, value in expected.items():
        assert ours[name].item() == pytest.approx(value, rel=2e-4), name


def test_matches_are_counted_over_all_processes_and_gradients_averaged() -> None:
    alone = YOLOLoss(CONFIG)(close_maps(), TARGETS)
    shared = YOLOLoss(CONFIG, total=lambda value: value * 4, world_size=2)(close_maps(), TARGETS)
    for name in alone:
        assert shared[name].item() == pytest.approx(alone[name].item() * 2 / 4)


def test_a_single_doubtful_label_is_not_scaled_up_and_an_empty_box_counts_for_nothing() -> None:
    predictions, config = close_maps(), LossConfig(assigner="best")
    one = {name: value[:1] for name, value in TARGETS.items()}
    whole = YOLOLoss(CONFIG, config)(predictions, one)
    part = YOLOLoss(CONFIG, config)(predictions, one | {"weights": torch.tensor([0.25])})
    for name in ("box", "class"):
        assert part[name].item() == pytest.approx(whole[name].item() / 4), name
    twice = {
        name: torch.cat([value, value]) for name, value in one.items()
    }  # at one prediction: the certain one counts
    for name, value in plain_losses(predictions, config, (), one).items():  # one match is the least that divides
        assert whole[name].item() == pytest.approx(value, rel=2e-4), name
    both = YOLOLoss(CONFIG, config)(predictions, twice | {"weights": torch.tensor([0.0, 1.0])})
    assert both["objectness"].item() == pytest.approx(whole["objectness"].item())
    empty = torch.tensor([[5.0, 5, 5, 9], [5, 5, 9, 5]])
    more = {"boxes": torch.cat([one["boxes"], empty]), "labels": torch.tensor([0, 1, 1])}
    more["image_index"] = torch.zeros(3, dtype=torch.long)
    assert YOLOLoss(CONFIG, config)(predictions, more) == whole


def test_the_prediction_of_a_label_of_no_weight_is_neither_object_nor_background() -> None:
    predictions, loss = close_maps(), YOLOLoss(CONFIG, LossConfig(assigner="best", ignore_iou=1))
    one = {name: value[:1] for name, value in TARGETS.items()}
    nothing = loss(predictions, {name: value[:0] for name, value in TARGETS.items()})
    ((level, image, anchor, row, column, _),) = plain_matches("best", predictions, one)
    left_out = entropy(float(predictions[level][image, anchor, row, column, 4]), 0.0, 0.0)
    ours = loss(predictions, one | {"weights": torch.tensor([0.0])})
    assert ours["box"] == ours["class"] == 0
    difference = nothing["objectness"].item() - ours["objectness"].item()
    assert difference == pytest.approx(loss.settings.objectness_weight * left_out, rel=1e-3)


def test_costs_of_simota_by_hand() -> None:
    raw = torch.zeros(4, 7, dtype=torch.float64)
    raw[1, 4:] = torch.tensor([60.0, 60, -60])  # certain, and right
    raw[2, 4:] = torch.tensor([60.0, 60, -60])  # certain, and wrong: the probabilities end at 1e-6 and 1 - 1e-6
    cost = _simota_cost(raw, torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, 1, 1, 0], dtype=torch.float64))
    half, least = math.log(2), math.log(1e-6)
    expected = [2 * half + 3 * half, -2 * math.log(1 - 1e-6), -2 * least, 2 * half - 3 * math.log(1e-8)]
    assert cost.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_iou_of_boxes_below_a_pixel() -> None:
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 3e-5, 3e-5], [0, 0, 0, 0]])
    assert _pair_iou(boxes, boxes).tolist() == pytest.approx([1, 0.9, 0])  # a union counts as 1e-9 at least
    assert _pair_iou(boxes[:1], torch.tensor([[0.25, 0, 0.5, 1]])).tolist() == pytest.approx([0.125 / 0.375])


def test_an_iou_at_the_limit_is_not_ignored() -> None:
    predictions = [torch.zeros(1, 3, 96 // s, 128 // s, 8) for s in STRIDES]
    x1, y1, x2, y2 = decoded(predictions[0][0, 0, 3, 5], 0, 0, 3, 5).tolist()
    targets = {"boxes": torch.tensor([[x1, y1, (x1 + x2) / 2, y2]]), "labels": torch.tensor([0])}
    targets["image_index"] = torch.tensor([0])
    for limit, is_ignored in ((0.499, True), (0.5, False)):
        loss = YOLOLoss(CONFIG, LossConfig(ignore_iou=limit))
        ignored = loss._overlapping(loss._batch(predictions, targets), 0)
        assert bool(ignored[0, 0, 3, 5]) is is_ignored and not ignored[0, 0, 8, 12]


def test_a_vanishing_box_keeps_its_gradient() -> None:
    boxes = torch.tensor([[5.0, 6, 0.001, 3], [1, 2, 0.01, 0.0]], requires_grad=True)
    kept = _not_empty(boxes)
    assert torch.equal(kept, torch.tensor([[5, 6, 0.01, 3], [1, 2, 0.01, 0.01]]))
    kept.sum().backward()
    assert boxes.grad is not None and (boxes.grad == 1).all()


def all_places(predictions: list[Tensor]) -> Matches:
    """A match for every prediction of the batch, in random order."""
    rows = [
        torch.cartesian_prod(torch.tensor([level]), *map(torch.arange, raw.shape[:4]))
        for level, raw in enumerate(predictions)
    ]
    places = torch.cat(rows)
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))]
    return Matches(*places.T, target=torch.zeros(len(places), dtype=torch.long))


@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_are_gathered_from_either_order_of_memory(channels_last: bool) -> None:
    predictions = maps()
    found = all_places(predictions)
    if channels_last:  # as the head makes them: (B, A * (5 + C), H, W) in channels-last order, seen as five dimensions
        flat = [
            raw.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous(memory_format=torch.channels_last)
            for raw in predictions
        ]
        predictions = [raw.unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2) for raw in flat]
        assert not any(raw.is_contiguous() for raw in predictions)
    rows = gather(predictions, found)
    for number, (level, image, anchor, row, column) in enumerate(
        zip(*(getattr(found, n).tolist() for n in ("level", "image", "anchor", "row", "column")), strict=True)
    ):
        assert torch.equal(rows[number], predictions[level][image, anchor, row, column])


def test_every_prediction_has_an_index_of_its_own() -> None:
    predictions = maps()
    found = all_places(predictions)
    places = prediction_index(batch_of(predictions), found)
    assert sorted(places.tolist()) == list(range(len(found)))
    confidences = torch.cat([raw[..., 4].flatten() for raw in predictions])
    assert torch.equal(confidences[places], gather(predictions, found)[:, 4])
