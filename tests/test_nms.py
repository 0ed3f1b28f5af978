"""Non-maximum suppression on simple boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision

from nets.nms import (
    SUPPRESSIONS,
    agnostic_nms,
    box_iou,
    diou_nms,
    merge_cut_boxes,
    nms,
    soft_nms,
    weighted_box_fusion,
)

BOXES = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [100, 100, 120, 120], [0, 0, 10, 10]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
LABELS = np.array([0, 0, 1, 2])


@pytest.mark.parametrize("name", [name for name, function in SUPPRESSIONS.items() if function is not None])
def test_every_kind_accepts_empty_input_and_sorts_by_score(name: str) -> None:
    function = SUPPRESSIONS[name]
    assert function is not None
    boxes, scores, labels = function(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), 0.5)
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)
    boxes, scores, labels = function(BOXES, SCORES, LABELS, 0.5)
    assert len(boxes) == len(scores) == len(labels) >= 2
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert scores[0] == SCORES[0] and labels[0] == 0


def test_agnostic_nms_keeps_one_object_in_a_place_whatever_its_class() -> None:
    _, scores, labels = agnostic_nms(BOXES, SCORES, LABELS, 0.5)
    assert scores.tolist() == pytest.approx([0.9, 0.7]) and labels.tolist() == [0, 1]


def test_diou_nms_keeps_a_neighbour_that_plain_nms_takes_for_a_double() -> None:
    # IoU 6 / 14 = 0.43; the centres are 4 apart in a hull with diagonal sqrt(14^2 + 10^2): DIoU = 0.43 - 16 / 296
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10]], np.float32)
    scores, labels = np.array([0.9, 0.8]), np.array([0, 0])
    assert len(diou_nms(boxes, scores, labels, 0.40)[0]) == 2
    assert len(diou_nms(boxes, scores, labels, 0.37)[0]) == 1
    assert len(diou_nms(boxes, scores, np.array([0, 1]), 0.37)[0]) == 2


def test_soft_nms_lowers_scores_by_the_papers_gaussian() -> None:
    boxes, scores, _ = soft_nms(BOXES[:2], SCORES[:2], LABELS[:2], sigma=0.5)
    iou = 9 / 11
    assert scores.tolist() == pytest.approx([0.9, 0.8 * math.exp(-(iou**2) / 0.5)], rel=1e-5)
    assert boxes[1].tolist() == BOXES[1].tolist()
    assert len(soft_nms(BOXES[:2], SCORES[:2], LABELS[:2], score_threshold=0.5)[0]) == 1
    assert soft_nms(BOXES, SCORES, LABELS)[1].max() == SCORES.max()


def test_weighted_box_fusion_averages_a_cluster_by_its_scores() -> None:
    boxes, scores, labels = weighted_box_fusion(BOXES, SCORES, LABELS, 0.5)
    assert labels.tolist() == [0, 1, 2]
    assert boxes[0].tolist() == pytest.approx([0.8 / 1.7, 0, 10 + 0.8 / 1.7, 10], rel=1e-5)
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_weighted_box_fusion_of_several_views_trusts_what_they_agree_on() -> None:
    _, scores, _ = weighted_box_fusion(BOXES, SCORES, LABELS, 0.5, views=2)
    assert scores.tolist() == pytest.approx([0.85, 0.35, 0.3])


def test_the_two_halves_of_a_cut_object_and_the_whole_become_one() -> None:
    boxes = np.array([[0.0, 0, 40, 20], [0, 0, 20, 20], [15, 0, 40, 20]], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.8]), np.zeros(3, np.int64)
    cut = np.array([False, True, True])
    merged, best, _ = merge_cut_boxes(boxes, scores, labels, cut, 0.5)
    assert merged.tolist() == [[0, 0, 40, 20]]
    assert best.tolist() == pytest.approx([0.9])


def test_a_small_object_before_a_large_one_of_its_class_is_not_merged_unless_a_tile_cut_it() -> None:
    boxes = np.array([[0.0, 0, 100, 100], [40, 40, 60, 60]], np.float32)
    scores, labels = np.array([0.9, 0.8]), np.zeros(2, np.int64)
    assert len(merge_cut_boxes(boxes, scores, labels, np.array([False, False]), 0.5)[0]) == 2
    assert len(merge_cut_boxes(boxes, scores, labels, np.array([False, True]), 0.5)[0]) == 1
    assert len(merge_cut_boxes(boxes, scores, np.array([0, 1]), np.array([False, True]), 0.5)[0]) == 2


def boxes_and_labels(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Difficult boxes for suppression, sorted by score, with labels."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 700))
    corner, size = rng.uniform(-50, 300, (count, 2)), rng.uniform(0, 120, (count, 2))
    if kind == "whole numbers":  # many boxes and overlaps are equal
        corner, size = corner.round(-1), size.round(-1)
    if kind == "degenerate":  # without area, inverted, huge
        size[rng.random(count) < 0.3] = 0
        size[rng.random(count) < 0.1] *= -1
        size[rng.random(count) < 0.05] = 1e19
    if kind == "one place":
        corner[:], size[:] = 10, 20
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    return boxes, rng.integers(0, 1 if kind == "one class" else 5, count)


@pytest.mark.parametrize("kind", ["random", "whole numbers", "degenerate", "one place", "one class"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1 / 3, 0.99, 1.0])
def test_nms_keeps_what_torchvision_keeps(kind: str, threshold: float) -> None:
    for seed in range(4):
        boxes, labels = boxes_and_labels(kind, seed)
        scores = torch.linspace(1, 0, len(boxes)) if seed % 2 else torch.full((len(boxes),), 0.5)
        plain = torchvision.ops.nms(torch.from_numpy(boxes), scores, threshold).numpy()
        assert np.array_equal(nms(boxes, None, threshold), plain)
        assert np.array_equal(nms(boxes, None, threshold, limit=7), plain[:7])
        each = [np.flatnonzero(labels == c) for c in range(5)]
        kept = [
            part[torchvision.ops.nms(torch.from_numpy(boxes[part]), scores[part], threshold).numpy()] for part in each
        ]
        assert np.array_equal(nms(boxes, labels, threshold), np.sort(np.concatenate(kept)))


def test_overlaps_are_torchvisions() -> None:
    boxes, _ = boxes_and_labels("degenerate", 1)
    ours = box_iou(boxes[:50], boxes)
    theirs = torchvision.ops.box_iou(torch.from_numpy(boxes[:50]), torch.from_numpy(boxes)).numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
