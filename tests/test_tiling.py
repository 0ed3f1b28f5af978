"""Tiled detection: tiles cover the image, and objects cut by tiles are merged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from data.tiles import tile_windows
from imaging.detections import Detections
from nets.model_config import ModelConfig
from nets.nms import agnostic_nms
from nets.tiling import TiledDetector
from utils.errors import UserError
from utils.thresholds import OWN_THRESHOLDS, Thresholds


class Painted:
    """Finds red and blue blobs of at least 3 pixels at the input size."""

    def __init__(self) -> None:
        self.config = ModelConfig(class_names=("red", "blue"), input_size=(96, 96))
        self.calls: list[int] = []

    def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds = OWN_THRESHOLDS) -> list[Detections]:
        self.calls.append(len(images))
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> Detections:
        scale = min(1.0, 96 / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        boxes, labels = [], []
        for label, channel in enumerate((0, 2)):
            mask = ((small[..., channel] > 200) & (small.sum(axis=-1) < 400)).astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
            for x, y, w, h, area in stats[1:]:
                if area >= 9:
                    boxes.append(np.array([x, y, x + w, y + h]) / scale)
                    labels.append(label)
        return Detections(np.array(boxes), np.linspace(0.9, 0.5, len(boxes)), np.array(labels))


@pytest.mark.parametrize("size", [(96, 96), (100, 400), (301, 77), (1000, 96), (50, 50)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
def test_tiles_have_their_size_cover_every_pixel_and_overlap_as_asked(size: tuple[int, int], overlap: float) -> None:
    covered = np.zeros(size, int)
    windows = tile_windows(*size, 96, 96, overlap)
    for left, top, right, bottom in windows:
        assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
        assert right - left == min(96, size[1]) and bottom - top == min(96, size[0])
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    lefts = sorted({window[0] for window in windows})
    assert all(b - a <= max(1, 96 * (1 - overlap)) + 1 for a, b in itertools.pairwise(lefts))


def test_small_objects_are_found_by_tiles_that_the_whole_image_hides() -> None:
    image = np.full((960, 960, 3), 90, np.uint8)
    for x, y in ((100, 100), (500, 700), (900, 40)):
        image[y : y + 8, x : x + 8] = (255, 0, 0)
    detector = Painted()
    assert len(detector.detect_batch([image])[0]) == 0
    found = TiledDetector(detector).detect_batch([image], Thresholds(iou_threshold=0.5))[0]
    assert sorted(found.boxes.tolist()) == [[100, 100, 108, 108], [500, 700, 508, 708], [900, 40, 908, 48]]


def test_objects_larger_than_a_tile_are_one_box() -> None:
    image = np.full((400, 400, 3), 90, np.uint8)
    image[60:340, 40:360] = (0, 0, 255)
    found = TiledDetector(Painted()).detect_batch([image], Thresholds(iou_threshold=0.5))[0]
    assert len(found) == 1 and found.labels.tolist() == [1]
    assert np.abs(found.boxes[0] - [40, 60, 360, 340]).max() < 6


def test_an_object_that_crosses_tiles_is_one_box_even_without_the_whole_image() -> None:
    image = np.full((96, 300, 3), 90, np.uint8)
    image[30:60, 60:140] = (255, 0, 0)
    found = TiledDetector(Painted(), overlap=0.5, whole=False).detect_batch([image], Thresholds(iou_threshold=0.5))[0]
    assert found.boxes.tolist() == [[60, 30, 140, 60]]


def test_an_image_no_larger_than_a_tile_is_processed_once() -> None:
    detector = Painted()
    TiledDetector(detector).detect_batch([np.zeros((90, 96, 3), np.uint8)])
    assert detector.calls == [1]


def test_tiles_below_32_pixels_are_refused_and_more_than_1000_of_an_image_warned_of_once(capsys: Any) -> None:
    for small in (-1, 0, 7, 31):
        with pytest.raises(UserError, match=f"{small} is less than 32 pixels"):
            TiledDetector(Painted(), tile=small)
    detector = TiledDetector(Painted(), tile=32, overlap=0, batch_size=1000)
    detector.detect_batch([np.zeros((32 * 31, 32 * 31, 3), np.uint8)])
    assert capsys.readouterr().err == ""
    detector.detect_batch([np.zeros((32 * 32, 32 * 32, 3), np.uint8)] * 2)
    assert capsys.readouterr().err.count("an image of 1024 x 1024 is 1024 tiles of 32 x 32") == 1


def test_tiles_run_in_batches_and_the_limit_holds() -> None:
    image = np.full((400, 400, 3), 90, np.uint8)
    image[::20, ::20] = (255, 0, 0)
    image[1::20, ::20] = image[2::20, ::20] = image[::20, ::20]
    for shift in (1, 2):
        image[:, shift::20] = image[:, ::20]
    detector = Painted()
    found = TiledDetector(detector, batch_size=4).detect_batch(
        [image], Thresholds(max_detections=7, iou_threshold=0.5)
    )[0]
    assert len(found) == 7 and max(detector.calls) == 4


def test_one_place_holds_one_object_also_across_tiles_where_that_was_asked() -> None:
    class Doubtful(Painted):
        """Assigns another class to objects in the full image than to objects in a tile."""

        def _detect(self, image: np.ndarray) -> Detections:
            found = super()._detect(image)
            return Detections(found.boxes, found.scores, found.labels + (image.shape[1] > 96))

    image = np.full((96, 180, 3), 90, np.uint8)
    image[30:60, 20:60] = (255, 0, 0)
    detector = TiledDetector(Doubtful(), overlap=0.1)
    assert len(detector.detect_batch([image], Thresholds(iou_threshold=0.5))[0]) == 2
    assert len(detector.detect_batch([image], Thresholds(iou_threshold=0.5, suppress=agnostic_nms))[0]) == 1
