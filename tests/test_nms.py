"""Suppression on boxes one can draw."""

from __future__ import annotations

import math

import pytest
import torch

from nets.nms import SUPPRESSIONS, agnostic_nms, diou_nms, merge_cut_boxes, soft_nms, weighted_box_fusion

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [100, 100, 120, 120], [0, 0, 10, 10]])
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])
LABELS = torch.tensor([0, 0, 1, 2])


@pytest.mark.parametrize("name", [name for name, function in SUPPRESSIONS.items() if function is not None])
def test_every_kind_takes_no_boxes_and_gives_the_best_first(name: str) -> None:
    function = SUPPRESSIONS[name]
    assert function is not None
    boxes, scores, labels = function(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5)
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
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert len(diou_nms(boxes, scores, labels, 0.40)[0]) == 2
    assert len(diou_nms(boxes, scores, labels, 0.37)[0]) == 1
    assert len(diou_nms(boxes, scores, torch.tensor([0, 1]), 0.37)[0]) == 2


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
    boxes = torch.tensor([[0.0, 0, 40, 20], [0, 0, 20, 20], [15, 0, 40, 20]])
    scores, labels = torch.tensor([0.5, 0.9, 0.8]), torch.zeros(3, dtype=torch.long)
    cut = torch.tensor([False, True, True])
    merged, best, _ = merge_cut_boxes(boxes, scores, labels, cut, 0.5)
    assert merged.tolist() == [[0, 0, 40, 20]]
    assert best.tolist() == pytest.approx([0.9])


def test_a_small_object_before_a_large_one_of_its_class_is_not_merged_unless_a_tile_cut_it() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [40, 40, 60, 60]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.long)
    assert len(merge_cut_boxes(boxes, scores, labels, torch.tensor([False, False]), 0.5)[0]) == 2
    assert len(merge_cut_boxes(boxes, scores, labels, torch.tensor([False, True]), 0.5)[0]) == 1
    assert len(merge_cut_boxes(boxes, scores, torch.tensor([0, 1]), torch.tensor([False, True]), 0.5)[0]) == 2
