"""Test-time augmentation: views are mapped back and merged by the requested method."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imaging.detections import Detections
from nets.nms import agnostic_nms, weighted_box_fusion
from prediction.tta import AugmentedDetector
from utils.thresholds import Thresholds

PICTURE = np.zeros((50, 100, 3), np.uint8)


class MirrorDetector:
    """Returns one box per call, at the given positions and with the given classes, independent of the image."""

    def __init__(self, boxes: list[list[float]], labels: list[int], scores: list[float]) -> None:
        self.config = SimpleNamespace(input_size=(64, 64), iou_threshold=0.5, max_detections=100)
        self.sizes: list[tuple[int, int]] = []
        self.answers = list(zip(boxes, scores, labels, strict=True))

    def set_input_size(self, size: tuple[int, int]) -> None:
        self.config.input_size = size

    def detect_batch(self, images: Any, thresholds: Thresholds) -> list[Detections]:
        box, score, label = self.answers[len(self.sizes) % len(self.answers)]
        self.sizes.append(self.config.input_size)
        return [Detections([box], [score], [label]) for _ in images]


def test_boxes_are_turned_back_and_the_size_is_restored() -> None:
    inner = MirrorDetector([[10, 10, 30, 30]], [1], [0.5])
    detector = AugmentedDetector(inner, flip=True, scales=(1.0, 1.5))
    found = detector.detect_batch([PICTURE])[0]
    assert sorted(found.boxes[:, 0].tolist()) == [10.0, 70.0]
    assert inner.sizes == [(64, 64), (64, 64), (96, 96), (96, 96)]
    assert inner.config.input_size == (64, 64)


def test_views_that_disagree_on_the_class_are_one_object_where_that_was_asked() -> None:
    # the second view is mirrored: both boxes are at the same place
    inner = MirrorDetector([[10, 10, 30, 30], [70, 10, 90, 30]], [1, 0], [0.5, 0.7])
    detector = AugmentedDetector(inner, scales=(1.0,))
    assert detector.detect_batch([PICTURE])[0].labels.tolist() == [0, 1]
    assert detector.detect_batch([PICTURE], Thresholds(suppress=agnostic_nms))[0].labels.tolist() == [0]


def test_fusion_averages_the_views_and_lowers_what_one_alone_saw() -> None:
    inner = MirrorDetector([[10, 10, 30, 30], [70, 10, 90, 30]], [1, 1], [0.5, 0.7])
    detector = AugmentedDetector(inner, scales=(1.0,))
    assert detector.detect_batch([PICTURE], Thresholds(suppress=weighted_box_fusion))[
        0
    ].scores.tolist() == pytest.approx([0.6])
    inner.answers[1] = ([0.0, 10.0, 20.0, 30.0], 0.7, 1)
    assert detector.detect_batch([PICTURE], Thresholds(suppress=weighted_box_fusion))[
        0
    ].scores.tolist() == pytest.approx([0.35, 0.25])


def test_the_iou_threshold_holds_between_views_and_may_be_0() -> None:
    inner = MirrorDetector([[10, 10, 30, 30], [55, 10, 75, 30]], [1, 1], [0.5, 0.7])  # turned back: 25 to 45
    detector = AugmentedDetector(inner, scales=(1.0,))
    assert len(detector.detect_batch([PICTURE])[0]) == 2
    assert len(detector.detect_batch([PICTURE], Thresholds(iou_threshold=0.0))[0]) == 1
