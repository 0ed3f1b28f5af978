"""Assignment and losses: properties of all rules, and of each rule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nets import loss_config
from nets.anchors import encode
from nets.assigner import ASSIGNERS, Batch, Matches, assign, decode_matches, prediction_index
from nets.loss_config import LossConfig
from nets.losses import BOX_LOSSES, YOLOLoss, _CrossEntropy
from nets.model_config import STRIDES, ModelConfig

CONFIG = ModelConfig(class_names=("cat", "dog", "owl"))
SIZE = 128


def random_maps(batch: int = 2, classes: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, SIZE // s, SIZE // s, 5 + classes, generator=generator) for s in STRIDES]


def targets_of(boxes: list[list[float]], labels: list[int], images: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "image_index": torch.tensor(images, dtype=torch.long),
    }


SOME = targets_of([[10, 12, 50, 60], [60, 60, 120, 124], [0, 0, 12, 14]], [0, 2, 1], [0, 0, 1])


def match(rule: str, targets: dict[str, Tensor] = SOME, maps: list[Tensor] | None = None) -> tuple[Batch, Matches]:
    maps = maps or random_maps()
    boxes = targets["boxes"]
    cxcywh = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    grids = [(m.shape[2], m.shape[3]) for m in maps]
    batch = Batch(cxcywh, targets["labels"], targets["image_index"], torch.ones(len(boxes)), grids, maps, CONFIG)
    return batch, assign(batch, rule)


@pytest.mark.parametrize("rule", ASSIGNERS)
def test_every_object_is_assigned_in_its_own_image_and_within_the_grid(rule: str) -> None:
    batch, found = match(rule)
    assert set(found.target.tolist()) == {0, 1, 2}
    assert torch.equal(found.image, batch.images[found.target])
    sizes = torch.tensor(batch.grids)[found.level]
    assert (found.row >= 0).all() and (found.row < sizes[:, 0]).all()
    assert (found.column >= 0).all() and (found.column < sizes[:, 1]).all()


@pytest.mark.parametrize("rule", ASSIGNERS)
def test_an_image_of_odd_proportions_and_boxes_at_its_edge_stay_within_the_grid(rule: str) -> None:
    maps = [torch.randn(1, 3, 64 // s, 160 // s, 8) for s in STRIDES]
    _, found = match(rule, targets_of([[0, 0, 30, 30], [130, 34, 160, 64]], [0, 1], [0, 0]), maps)
    assert (found.column < torch.tensor([20, 10, 5])[found.level]).all()
    assert (found.row < torch.tensor([8, 4, 2])[found.level]).all()


@pytest.mark.parametrize("rule", ASSIGNERS)
def test_batches_are_assigned_image_by_image(rule: str) -> None:
    """The vectorised result equals that of single images."""
    _, together = match(rule)
    for image in (0, 1):
        own = SOME["image_index"] == image
        alone = {
            "boxes": SOME["boxes"][own],
            "labels": SOME["labels"][own],
            "image_index": torch.zeros(int(own.sum())).long(),
        }
        _, found = match(rule, alone, [m[image : image + 1] for m in random_maps()])
        part = together[together.image == image]
        key = lambda m: sorted(zip(m.level.tolist(), m.anchor.tolist(), m.row.tolist(), m.column.tolist(), strict=True))  # noqa: E731
        assert key(found) == key(part)


def test_best_gives_one_anchor_an_object_and_iou_gives_at_least_that_one() -> None:
    _, best = match("best")
    _, several = match("iou")
    assert len(best) == 3
    places = lambda m: set(zip(m.level.tolist(), m.anchor.tolist(), m.target.tolist(), strict=True))  # noqa: E731
    assert places(best) <= places(several)


def test_simota_gives_a_prediction_to_one_object_at_most() -> None:
    crowd = targets_of([[20, 20, 60, 60], [22, 22, 62, 62], [24, 20, 64, 60]], [0, 1, 2], [0, 0, 0])
    _, found = match("simota", crowd)
    places = list(
        zip(found.level.tolist(), found.anchor.tolist(), found.row.tolist(), found.column.tolist(), strict=True)
    )
    assert len(places) == len(set(places))


def test_simota_prefers_the_prediction_that_is_already_right() -> None:
    maps = random_maps()
    _, candidates = match("ratio", maps=maps)
    target_boxes = int((candidates.target == 1).nonzero()[0, 0])
    one = candidates[torch.tensor([target_boxes])]
    stride = STRIDES[int(one.level)]
    anchor = torch.tensor(CONFIG.anchors[int(one.level)][int(one.anchor)])
    cell = torch.tensor([float(one.column), float(one.row)])
    place = maps[int(one.level)][0, int(one.anchor), int(one.row), int(one.column)]
    place[:4] = encode(torch.tensor([90.0, 92.0, 60.0, 64.0]), anchor, cell, stride, 2.0)
    place[4:] = torch.tensor([8.0, -8.0, -8.0, 8.0])
    batch, found = match("simota", maps=maps)
    chosen = found[found.target == 1]
    boxes = decode_matches(torch.stack([place[:4]]), one, CONFIG)
    assert torch.allclose(boxes, batch.boxes[1:2], atol=1e-3)
    hit = (
        (chosen.level == one.level)
        & (chosen.anchor == one.anchor)
        & (chosen.row == one.row)
        & (chosen.column == one.column)
    )
    assert hit.any()


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_identical_boxes_lose_nothing_and_apart_ones_lose_at_least_one(name: str) -> None:
    box, far = torch.tensor([[10.0, 10, 30, 40]]), torch.tensor([[50.0, 60, 70, 80]])
    assert BOX_LOSSES[name](box, box).item() == pytest.approx(0, abs=1e-5)
    assert BOX_LOSSES[name](box, far).item() >= 1


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_a_quarter_size_box_in_the_middle_of_another_loses_three_quarters_or_more(name: str) -> None:
    outer, inner = torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([[10.0, 10, 30, 30]])
    assert BOX_LOSSES[name](inner, outer).item() == pytest.approx(0.75, abs=1e-5)


@pytest.mark.parametrize("rule", ASSIGNERS)
@pytest.mark.parametrize("settings", [{}, {"ignore_iou": 0.5}, {"focal_gamma": 2.0, "label_smoothing": 0.1}])
def test_losses_are_finite_and_reach_every_map(rule: str, settings: dict) -> None:
    maps = [m.requires_grad_() for m in random_maps()]
    losses = YOLOLoss(CONFIG, LossConfig(assigner=rule, **settings))(maps, SOME)
    assert set(losses) == {"box", "objectness", "class"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(m.grad).all() and m.grad.abs().sum() > 0 for m in maps)


@pytest.mark.parametrize("rule", ASSIGNERS)
def test_a_batch_without_objects_has_box_loss_zero_and_still_a_gradient(rule: str) -> None:
    maps = [m.requires_grad_() for m in random_maps()]
    losses = YOLOLoss(CONFIG, LossConfig(assigner=rule, ignore_iou=0.5))(maps, targets_of([], [], []))
    assert losses["box"].item() == 0 and losses["class"].item() == 0
    sum(losses.values()).backward()
    assert all(m.grad is not None and m.grad[..., 4].abs().sum() > 0 for m in maps)


def test_boxes_without_area_are_omitted() -> None:
    flat = targets_of([[10, 10, 10, 30], [10, 12, 50, 60]], [1, 0], [0, 0])
    alone = targets_of([[10, 12, 50, 60]], [0], [0])
    loss = YOLOLoss(CONFIG)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loss(random_maps(), flat).values(), loss(random_maps(), alone).values(), strict=True)
    )


def test_perfect_predictions_have_almost_no_loss() -> None:
    maps = [torch.full((1, 3, SIZE // s, SIZE // s, 8), -12.0) for s in STRIDES]
    one = targets_of([[10, 12, 50, 60]], [0], [0])
    _, found = match("ratio", one, maps)
    for i in range(len(found)):
        m = found[torch.tensor([i])]
        anchor = torch.tensor(CONFIG.anchors[int(m.level)][int(m.anchor)])
        cell = torch.tensor([float(m.column), float(m.row)])
        place = maps[int(m.level)][0, int(m.anchor), int(m.row), int(m.column)]
        place[:4] = encode(torch.tensor([30.0, 36.0, 40.0, 48.0]), anchor, cell, STRIDES[int(m.level)], 2.0)
        place[4:] = torch.tensor([12.0, 12.0, -12.0, -12.0])
    losses = YOLOLoss(CONFIG)(maps, one)
    assert sum(losses.values()).item() < 0.02


def test_class_weights_scale_the_class_loss_of_their_objects() -> None:
    plain = YOLOLoss(CONFIG)(random_maps(), SOME)["class"]
    doubled = YOLOLoss(CONFIG, class_weights=(2.0, 2.0, 2.0))(random_maps(), SOME)["class"]
    assert doubled.item() == pytest.approx(2 * plain.item())


def test_two_halves_of_a_batch_that_share_their_count_average_to_the_whole() -> None:
    """Required for distributed training: each process divides by the total number of matches."""
    maps = random_maps()
    whole = YOLOLoss(CONFIG)(maps, SOME)
    counts = [float(len(match("ratio", _part(i), [m[i : i + 1] for m in maps])[1])) for i in (0, 1)]
    both = [
        YOLOLoss(CONFIG, total=lambda _: torch.tensor(sum(counts)), world_size=2)(
            [m[i : i + 1] for m in maps], _part(i)
        )
        for i in (0, 1)
    ]
    for name, value in whole.items():
        assert (both[0][name] + both[1][name]).item() / 2 == pytest.approx(value.item(), rel=1e-5)


def _part(image: int) -> dict[str, Tensor]:
    own = SOME["image_index"] == image
    return {
        "boxes": SOME["boxes"][own],
        "labels": SOME["labels"][own],
        "image_index": torch.zeros(int(own.sum())).long(),
    }


@pytest.mark.parametrize("settings", [{"assigner": "nearest"}, {"box_loss": "l2"}, {"box_weight": -1.0}])
def test_an_unknown_setting_is_reported(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"choose from|must be at least 0"):
        LossConfig(**settings)
    with pytest.raises(ValueError, match="num_classes: 3"):
        YOLOLoss(CONFIG, class_weights=(1.0,))


def test_every_rule_and_loss_can_be_chosen() -> None:
    assert set(ASSIGNERS) == set(loss_config.ASSIGNERS) and set(BOX_LOSSES) == set(loss_config.BOX_LOSSES)


def test_cross_entropy_is_pytorchs_in_value_and_gradient() -> None:
    logits = torch.tensor([-90.0, -20.0, -3.0, -1e-3, 0.0, 1e-3, 0.7, 5.0, 20.0, 90.0]).repeat(3).requires_grad_()
    target = torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(10)
    weights = torch.linspace(0.1, 2, 30)
    ours = _CrossEntropy.apply(logits, target)
    theirs = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    gradients = (torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


def test_places_of_matches_are_those_of_the_maps_laid_end_to_end() -> None:
    config = ModelConfig(class_names=("a",), input_size=(64, 96))
    maps = [torch.zeros(2, 3, 64 // s, 96 // s, 6) for s in (8, 16, 32)]
    boxes = torch.tensor([[30.0, 20.0, 12.0, 9.0], [90.0, 60.0, 60.0, 40.0], [5.0, 5.0, 30.0, 70.0]])
    grids = [(m.shape[2], m.shape[3]) for m in maps]
    batch = Batch(boxes, torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 1]), torch.ones(3), grids, maps, config)
    matches = assign(batch, "ratio")
    marked = torch.zeros(sum(m[..., 4].numel() for m in maps))
    marked[prediction_index(batch, matches)] = 1
    for m, level in zip(maps, matches.level.new_tensor([0, 1, 2]), strict=True):
        own = matches[matches.level == level]
        m[own.image, own.anchor, own.row, own.column, 4] = 1
    assert torch.equal(marked, torch.cat([m[..., 4].flatten() for m in maps])) and marked.sum() > 3


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_a_predicted_box_without_size_has_a_finite_loss_and_gradient(box_loss: str) -> None:
    raw = [torch.zeros_like(each) for each in random_maps()]
    for each in raw:
        each[..., 3] = -60  # exp gives a height of 1e-25 pixels
        each.requires_grad_()
    losses = YOLOLoss(CONFIG, LossConfig(box_loss=box_loss))(raw, SOME)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite() and losses["box"] > 0
    assert all(each.grad is None or each.grad.isfinite().all() for each in raw)
