"""Augmentation: images and boxes are transformed together, and other properties of the boxes are unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from data.augment import (
    ALBUMENTATIONS,
    AffineParams,
    AugmentConfig,
    Photo,
    apply_albumentations,
    clip_boxes,
    jitter_hsv,
    place_single,
    random_flip,
    resize_into,
    sample_affine,
    transform_boxes,
)
from imaging.letterbox import Letterbox

BLUE, RED = (20, 20, 200), (250, 10, 10)
BOX = np.array([[60.0, 40.0, 180.0, 150.0]])


def rectangle_photo(height: int = 240, width: int = 320, decoded: int = 1) -> Photo:
    """A red rectangle (`BOX`) on blue, decoded at 1 / `decoded` of its size."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = BLUE
    x1, y1, x2, y2 = BOX[0].astype(int)
    image[y1:y2, x1:x2] = RED
    small = np.empty((height // decoded, width // decoded, 3), np.uint8)
    resize_into(image, small)
    return Photo(small, height, width, 1 / decoded, 1 / decoded)


def red_box(image: np.ndarray) -> np.ndarray:
    """The tight xyxy box around the red pixels of an (H, W, 3) image."""
    rows, columns = np.nonzero((image[..., 0] > 128) & (image[..., 1] < 80) & (image[..., 2] < 100))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
@pytest.mark.parametrize("decoded", [1, 2])
def test_a_box_stays_tight_around_its_pixels_wherever_the_image_is_placed(mode: str, decoded: int) -> None:
    config = AugmentConfig(scale=(0.4, 1.8), aspect=0.5, translate=0.2)
    letterbox = Letterbox((192, 256), mode)
    seen = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        canvas = np.full((192, 256, 3), 114, np.uint8)
        matrix = place_single(
            rectangle_photo(decoded=decoded), canvas, letterbox, sample_affine(rng, config, config.scale)
        )
        boxes, keep = clip_boxes(transform_boxes(BOX, matrix), (0, 0, 256, 192), config)
        image, boxes = random_flip(canvas, boxes, rng, AugmentConfig(flip=0.5, flip_vertical=0.5))
        if keep[0]:
            assert np.abs(boxes[0] - red_box(image)).max() <= 1.5
            seen += 1
    assert seen > 40


def test_a_turned_image_keeps_its_rectangle_inside_an_enclosing_box() -> None:
    config = AugmentConfig(scale=(0.4, 1.0), rotate=30, shear=10, translate=0.0)
    for seed in range(20):
        canvas = np.full((256, 256, 3), 114, np.uint8)
        geometry = sample_affine(np.random.default_rng(seed), config, config.scale)
        matrix = place_single(rectangle_photo(), canvas, Letterbox((256, 256)), geometry)
        boxes, _ = clip_boxes(transform_boxes(BOX, matrix), (0, 0, 256, 256), config)
        assert np.abs(boxes[0] - red_box(canvas)).max() <= 2


def test_without_augmentation_the_image_is_the_letterboxed_one() -> None:
    letterbox, config = Letterbox((224, 320)), AugmentConfig.none()
    photo = rectangle_photo(200, 400)
    canvas = np.full((224, 320, 3), letterbox.pad_value, np.uint8)
    matrix = place_single(photo, canvas, letterbox, sample_affine(np.random.default_rng(0), config, config.scale))
    assert np.abs(transform_boxes(BOX, matrix) - letterbox.boxes_to_input(BOX, 200, 400)).max() < 0.01
    assert np.abs(canvas.astype(int) - letterbox.apply(photo.image).astype(int)).mean() < 1


def test_the_padding_keeps_its_grey_and_an_image_outside_the_canvas_draws_nothing() -> None:
    canvas = np.full((64, 64, 3), 114, np.uint8)
    matrix = place_single(rectangle_photo(), canvas, Letterbox((64, 64)), AffineParams(1, 1, 0.5, 0.5, extra_x=5.0))
    assert (canvas == 114).all()
    assert not clip_boxes(transform_boxes(BOX, matrix), (0, 0, 64, 64), AugmentConfig())[1].any()


def test_a_box_that_is_cut_too_far_or_too_small_is_dropped() -> None:
    config = AugmentConfig(min_visible=0.25, min_box_size=4)
    boxes = np.array(
        [[-30, 10, 10, 20], [-31, 10, 10, 20], [50, 50, 53, 80], [-50, -50, -10, -10], [5, 5, 5, 9]], float
    )
    clipped, keep = clip_boxes(boxes, (0, 0, 100, 100), config)
    assert keep.tolist() == [True, False, False, False, False]
    assert clipped[0].tolist() == [0, 10, 10, 20]


def test_an_image_without_boxes_passes_through_every_step() -> None:
    none = np.zeros((0, 4))
    matrix = np.array([[1, 0.1, 0], [0, 1, 3.0]])
    clipped, keep = clip_boxes(transform_boxes(none, matrix), (0, 0, 9, 9), AugmentConfig())
    _, boxes = random_flip(
        np.zeros((9, 9, 3), np.uint8), clipped[keep], np.random.default_rng(0), AugmentConfig(flip=1)
    )
    assert boxes.shape == (0, 4)


def test_colour_changes_colours_and_gains_of_zero_change_nothing() -> None:
    image = rectangle_photo().image
    rng = np.random.default_rng(1)
    assert (jitter_hsv(image, rng, AugmentConfig.none()) == image).all()
    changed = jitter_hsv(image, rng, AugmentConfig(hue=0.1, saturation=0.7, value=0.4))
    assert changed.shape == image.shape and changed.dtype == np.uint8 and (changed != image).any()


def test_colour_keeps_grey_grey_and_lightness_when_only_hue_and_saturation_change() -> None:
    grey = np.full((4, 4, 3), 114, np.uint8)
    image = np.random.default_rng(0).integers(60, 180, (50, 50, 3), np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    for seed in range(10):
        changed = jitter_hsv(grey, np.random.default_rng(seed), AugmentConfig(hue=0.1, saturation=0.7, value=0.4))
        assert np.ptp(changed.astype(int)) <= 1 and 0.59 * 114 <= changed[0, 0, 0] <= 1.41 * 114
        turned = jitter_hsv(image, np.random.default_rng(seed), AugmentConfig(hue=0.1, saturation=0.3, value=0.0))
        assert np.abs(turned @ luma - image @ luma).mean() < 1


def test_albumentations_steps_all_run_repeat_by_seed_and_keep_shape() -> None:
    pytest.importorskip("albumentations")
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    config = AugmentConfig(albumentations=1.0)
    results = [
        apply_albumentations(image, np.random.default_rng(seed), config) for seed in range(4 * len(ALBUMENTATIONS))
    ]
    again = [
        apply_albumentations(image, np.random.default_rng(seed), config) for seed in range(4 * len(ALBUMENTATIONS))
    ]
    assert all((a == b).all() for a, b in zip(results, again, strict=True))
    assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
    assert sum((r != image).any() for r in results) == len(results)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mosaic", 1.5), ("flip", -1), ("scale", (2, 1)), ("rotate", 400), ("hue", "a"), ("mixup", True)],
)
def test_a_wrong_value_is_rejected_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        AugmentConfig(**{name: value})


def test_a_config_survives_conversion_to_plain_types() -> None:
    config = AugmentConfig(mosaic=0.3, scale=(0.7, 1.2))
    assert AugmentConfig(**config.to_dict()) == config
