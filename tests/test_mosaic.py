"""Mosaic: each image and its boxes are in its quarter."""

from __future__ import annotations

import numpy as np
import pytest

from data.augment import AugmentConfig, Photo, Sample, sample_affine
from data.mosaic import compose_mosaic, copy_paste_object, draw_centre, mixup
from imaging.letterbox import Letterbox

COLOURS = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)])


def photo_of(colour: np.ndarray, height: int, width: int, box: tuple[int, int, int, int]) -> Photo:
    image = np.full((height, width, 3), 60, np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = colour
    return Photo(image, height, width, 1.0, 1.0)


def coloured_box(image: np.ndarray, colour: np.ndarray) -> np.ndarray | None:
    rows, columns = np.nonzero(np.abs(image.astype(int) - colour).max(-1) < 100)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else None


@pytest.mark.parametrize("turn", [0.0, 15.0])
def test_boxes_stay_tight_around_their_pixels_in_every_tile(turn: float) -> None:
    config = AugmentConfig(rotate=turn, min_visible=0.2)
    sizes = [(200, 300), (300, 200), (90, 120), (640, 480)]
    seen = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        parts = []
        for label, (height, width) in enumerate(sizes):
            box = (width // 4, height // 3, width // 4 * 3, height // 4 * 3)
            geometry = sample_affine(rng, config, config.mosaic_scale)
            photo = photo_of(COLOURS[label], height, width, box)
            parts.append((photo, np.array([box], float), np.array([label]), np.ones(1), geometry))
        sample = compose_mosaic(parts, draw_centre(rng, (256, 320)), Letterbox((256, 320)), config)
        for box, label in zip(sample.boxes, sample.labels, strict=True):
            found = coloured_box(sample.image, COLOURS[label])
            assert found is not None
            # The enclosing box of a turned and cut rectangle is the cut box of the whole, so it may be looser.
            assert (box - found)[:2].max() <= 2 and (found - box)[2:].max() <= 2
            if not turn:
                assert np.abs(box - found).max() <= 2
            seen += 1
    assert seen > 60


def test_no_grey_shows_where_every_tile_is_larger_than_its_quarter() -> None:
    config = AugmentConfig(mosaic_scale=(1.5, 1.5), aspect=0)
    rng = np.random.default_rng(0)
    photo = Photo(np.zeros((100, 100, 3), np.uint8), 100, 100, 1.0, 1.0)
    nothing = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)
    parts = [(photo, *nothing, sample_affine(rng, config, config.mosaic_scale)) for _ in range(4)]
    sample = compose_mosaic(parts, draw_centre(rng, (128, 128)), Letterbox((128, 128)), config)
    assert (sample.image == 0).all() and sample.boxes.shape == (0, 4)


def test_mixup_blends_pixels_and_keeps_all_objects() -> None:
    dark = Sample(np.zeros((8, 8, 3), np.uint8), np.array([[0, 0, 4, 4.0]]), np.array([1]), np.ones(1))
    light = Sample(np.full((8, 8, 3), 200, np.uint8), np.array([[2, 2, 6, 6.0]]), np.array([0]), np.ones(1))
    mixed = mixup(dark, light, np.random.default_rng(0))
    assert 50 < mixed.image.mean() < 150
    assert mixed.labels.tolist() == [1, 0] and len(mixed.boxes) == 2


def test_a_pasted_object_lies_where_its_box_says_and_hides_no_other() -> None:
    source = photo_of(COLOURS[0], 200, 200, (50, 50, 110, 120))
    for seed in range(20):
        grey = np.full((200, 200, 3), 114, np.uint8)
        canvas = Sample(grey, np.array([[20, 20, 90, 90.0]]), np.array([2]), np.ones(1))
        rng = np.random.default_rng(seed)
        result = copy_paste_object(canvas, source, np.array([50, 50, 110, 120.0]), 0, Letterbox((200, 200)), rng)
        if len(result.boxes) == 2:
            assert np.abs(result.boxes[1] - coloured_box(result.image, COLOURS[0])).max() <= 1
            sides = np.minimum(result.boxes[0, 2:], result.boxes[1, 2:]) - np.maximum(
                result.boxes[0, :2], result.boxes[1, :2]
            )
            assert np.maximum(sides, 0).prod() <= 0.3 * 70 * 70 + 1
