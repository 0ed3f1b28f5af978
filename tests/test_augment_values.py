"""Exact values of augmentation with fixed random numbers, compared with values computed by hand or in plain NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest

import data.augment
from data.augment import (
    ALBUMENTATIONS,
    AffineParams,
    AugmentConfig,
    Photo,
    Sample,
    apply_albumentations,
    clip_boxes,
    jitter_hsv,
    letterbox_scale,
    place,
    place_single,
    random_flip,
    resize_into,
    sample_affine,
    transform_boxes,
)
from data.mosaic import _covered, _tile_origin, compose_mosaic, copy_paste_object, draw_centre, mixup
from imaging.letterbox import Letterbox

NO_MOVE = AffineParams(1, 1, 0, 0)


class Numbers:
    """A generator that returns the given numbers in [0, 1] and records the requested ranges."""

    def __init__(self, *values: float) -> None:
        self.values, self.asked = list(values), []

    def random(self, size: Any = None) -> Any:
        self.asked.append(size)
        if size is None:
            return self.values.pop(0)
        count = int(np.prod(size))
        taken = [self.values.pop(0) for _ in range(min(count, len(self.values)))]
        return np.array(taken + [0.0] * (count - len(taken))).reshape(size)

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        return low + (high - low) * self.random(size)

    def beta(self, *parameters: float) -> float:
        self.asked.append(parameters)
        return self.values.pop(0)

    def integers(self, high: int) -> int:
        self.asked.append(high)
        return int(self.values.pop(0))


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth_image(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [100 + 60 * np.sin(x / 7) + 60 * np.cos(y / 5), 40 + 150 * x / width, 40 + 150 * y / height]
    return np.stack(waves, axis=-1).astype(np.uint8)


# ---- one image


def test_the_geometry_is_drawn_from_eight_numbers() -> None:
    config = AugmentConfig(aspect=0.21, translate=0.2, rotate=30, shear=10)
    drawn = sample_affine(Numbers(0.25, 1.0, 0.3, 0.6, 0.75, 0.1, 0.9, 0.25), config, (0.5, 1.5))
    expected = (0.75 * 1.1, 0.75 / 1.1, 0.3, 0.6, 0.1, -0.16, math.radians(24), math.radians(-5))
    assert drawn == pytest.approx(expected)
    still = sample_affine(Numbers(*[0.8] * 8), AugmentConfig(aspect=0, translate=0), (2.0, 2.0))
    assert still == pytest.approx((2, 2, 0.5, 0.5, 0, 0, 0, 0))


def test_the_fitted_scale_is_the_smaller_one_or_both() -> None:
    assert letterbox_scale(Letterbox((100, 300)), 50, 100) == (2, 2)
    assert letterbox_scale(Letterbox((100, 300), "stretch"), 50, 100) == (3, 2)


def test_an_image_has_the_position_of_its_geometry() -> None:
    # 150 x 100 pixels of a canvas of 300 x 100: a quarter of the free 150 and a tenth of 300; 20 above the canvas
    image, canvas = random_image(50, 100), np.full((100, 300, 3), 114, np.uint8)
    geometry = AffineParams(0.5, 1.0, 0.25, 0.5, 0.1, -0.2)
    matrix = place_single(Photo(image, 50, 100, 1, 1), canvas, Letterbox((100, 300), "stretch"), geometry)
    assert matrix.tolist() == [[1.5, 0, 68], [0, 2, -20]]
    expected = np.full_like(canvas, 114)
    expected[0:80, 68:218] = cv2.resize(image[10:50], (150, 80), interpolation=cv2.INTER_LINEAR)
    assert (canvas == expected).all()


def test_an_image_decoded_at_reduced_size_has_the_same_position() -> None:
    image, canvas = random_image(10, 10), np.zeros((30, 30, 3), np.uint8)
    matrix = place(Photo(image, 40, 20, 0.5, 0.25), canvas, (0, 0, 30, 30), (1, 2), (1, 0.5), NO_MOVE)
    assert matrix.tolist() == [[1, 0, 1], [0, 0.5, 2]]
    expected = np.zeros_like(canvas)
    expected[2:22, 1:21] = cv2.resize(image, (20, 20), interpolation=cv2.INTER_LINEAR)
    assert (canvas == expected).all()


def test_an_image_outside_its_window_keeps_the_matrix_that_was_asked_for() -> None:
    canvas = np.zeros((100, 100, 3), np.uint8)
    photo = Photo(random_image(10, 10), 40, 20, 0.5, 0.25)
    whole = (0, 0, 100, 100)
    assert place(photo, canvas, whole, (100.3, 2), (1.5, 2), NO_MOVE).tolist() == [[1.5, 0, 100.3], [0, 2, 2]]
    assert place(photo, canvas, whole, (2, 100.3), (2, 1.5), NO_MOVE).tolist() == [[2, 0, 2], [0, 1.5, 100.3]]
    assert not canvas.any()


@pytest.mark.parametrize(
    ("start", "step", "length", "low", "high", "span"),
    [
        (67.5, 1.5, 100, 0, 300, (68, 218, 0, 100)),
        (-20, 2, 50, 0, 100, (0, 80, 10, 50)),
        (10, 0.5, 100, 20, 50, (20, 50, 20, 80)),
        (99, 1, 10, 0, 100, (99, 100, 0, 1)),
        (100, 1, 10, 0, 100, None),
        (-10, 1, 10, 0, 100, None),
        (-18.4, 4, 5, 0, 100, (0, 2, 4, 5)),  # not beyond the last source pixel
        (10.4, 0.5, 20, 0, 100, (10, 20, 0, 19)),  # not before the first
        (0, 4, 5, 9, 10, (9, 10, 2, 3)),  # at least one
        (-4.4, 0.5, 10, 0, 100, (0, 1, 9, 10)),  # at most all
    ],
)
def test_whole_pixels_of_the_canvas_show_whole_pixels_of_the_image(
    start: float, step: float, length: int, low: int, high: int, span: tuple[int, ...] | None
) -> None:
    assert data.augment._span(start, step, length, low, high) == span


def test_the_matrix_is_that_of_the_whole_pixels() -> None:
    assert data.augment._line(None, 3.0, 2.0) == (2, 3)
    assert data.augment._line((10, 20, 5, 25), 3.0, 0.4) == (0.5, 7.5)


@pytest.mark.parametrize(
    ("source", "size", "interpolation"),
    [
        ((20, 20), (10, 20), cv2.INTER_LINEAR),  # half is still sampled
        ((20, 20), (20, 10), cv2.INTER_LINEAR),
        ((21, 20), (10, 20), cv2.INTER_AREA),
        ((20, 21), (20, 10), cv2.INTER_AREA),
        ((20, 20), (30, 25), cv2.INTER_LINEAR),
    ],
)
def test_an_image_is_averaged_only_where_pixels_would_be_skipped(
    source: tuple[int, int], size: tuple[int, int], interpolation: int
) -> None:
    image, out = random_image(*source), np.zeros((*size, 3), np.uint8)
    resize_into(image, out)
    assert (out == cv2.resize(image, size[::-1], interpolation=interpolation)).all()


# ---- boxes


@pytest.mark.parametrize(
    ("matrix", "box", "mapped"),
    [
        ([[2, 0, 5], [0, 3, -1]], [1, 2, 3, 4], [7, 5, 11, 11]),
        ([[0, -1, 10], [1, 0, 0]], [1, 2, 3, 5], [5, 1, 8, 3]),  # a quarter turn
        ([[1, 0.5, 0], [0, 1, 1]], [0, 0, 2, 4], [0, 1, 4, 5]),  # sheared across
        ([[1, 0, 1], [0.5, 1, 0]], [0, 0, 2, 4], [1, 0, 3, 5]),  # and down
        ([[0.6, -0.8, 0], [0.8, 0.6, 0]], [1, 2, 5, 7], [-5, 2, 1.4, 8.2]),  # turned: each corner is an extreme
        ([[0.6, 0.8, 0], [-0.8, 0.6, 0]], [1, 2, 5, 7], [2.2, -2.8, 8.6, 3.4]),
    ],
)
def test_a_box_is_mapped_to_the_upright_box_around_it(matrix: Any, box: Any, mapped: Any) -> None:
    assert transform_boxes(np.array([box]), np.array(matrix, float))[0].tolist() == pytest.approx(mapped)


def test_a_box_is_kept_down_to_the_least_share_and_size() -> None:
    boxes = np.array([[-30, 10, 10, 20], [-31, 10, 10, 20], [0, 0, 4, 9], [0, 0, 3.9, 9], [0, 0, 9, 3.9]])
    clipped, keep = clip_boxes(boxes, (0, 5, 100, 50), AugmentConfig(min_visible=0.25, min_box_size=4))
    assert keep.tolist() == [True, False, True, False, False]
    assert clipped.tolist() == [[0, 10, 10, 20], [0, 10, 10, 20], [0, 5, 4, 9], [0, 5, 3.9, 9], [0, 5, 9, 5]]
    anything = AugmentConfig(min_visible=0, min_box_size=0)
    thin = np.array([[0, 0, 10, 0.05], [0, 0, 10, 0], [90, 40, 120, 70], [101, 0, 110, 9]])
    clipped, keep = clip_boxes(thin, (0, 0, 100, 50), anything)
    assert keep.tolist() == [True, False, True, False] and clipped[2].tolist() == [90, 40, 100, 50]
    assert clip_boxes(np.array([[-60.0, -60, 10, 10]]), (0, 0, 100, 100), anything)[1].tolist() == [True]


@pytest.mark.parametrize(("across", "down"), itertools.product((0.49, 0.5), (0.19, 0.2)))
def test_image_and_boxes_are_mirrored_together(across: float, down: float) -> None:
    image, box = random_image(10, 20), [1, 2, 5, 7]
    flipped, boxes = random_flip(
        image, np.array([box]), Numbers(across, down), AugmentConfig(flip=0.5, flip_vertical=0.2)
    )
    if across < 0.5:
        image, box = image[:, ::-1], [20 - box[2], box[1], 20 - box[0], box[3]]
    if down < 0.2:
        image, box = image[::-1], [box[0], 10 - box[3], box[2], 10 - box[1]]
    assert (flipped == image).all() and boxes.tolist() == [box]


# ---- colour


@pytest.mark.parametrize(
    ("gains", "drawn"),
    [
        ({"hue": 0.1, "saturation": 0.3, "value": 0.2}, (0.75, 0.1, 0.9)),
        ({"hue": 0.25, "saturation": 0, "value": 0}, (1.0, 0.3, 0.3)),
        ({"hue": 0, "saturation": 0.5, "value": 0}, (0.3, 0.0, 0.3)),
        ({"hue": 0, "saturation": 0, "value": 0.4}, (0.3, 0.3, 1.0)),
    ],
)
def test_hue_turns_chroma_saturation_stretches_it_and_value_scales_all(
    gains: dict[str, float], drawn: tuple[float, ...]
) -> None:
    image = np.random.default_rng(0).integers(70, 130, (30, 30, 3), np.uint8)
    hue, saturation, value = (gain * (2 * number - 1) for gain, number in zip(gains.values(), drawn, strict=True))
    ntsc = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    y, i, q = np.moveaxis(image @ ntsc.T, -1, 0)
    chroma = (i + 1j * q) * (1 + saturation) * np.exp(2j * np.pi * hue)
    expected = (1 + value) * np.stack([y, chroma.real, chroma.imag], axis=-1) @ np.linalg.inv(ntsc).T
    changed = jitter_hsv(image, Numbers(*drawn), AugmentConfig(**gains))
    assert np.abs(changed - expected.clip(0, 255)).max() <= 1  # OpenCV's fixed point


class Transform:
    def __init__(self, name: str, used: list[Any]) -> None:
        self.name, self.used = name, used

    def set_random_seed(self, seed: int) -> None:
        self.used.append((self.name, seed))

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image[:, ::-1]}


def test_one_of_the_albumentations_is_used_with_the_given_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(data.augment, "_albumentations", lambda: {n: Transform(n, used) for n in ALBUMENTATIONS})
    image, config = random_image(4, 6), AugmentConfig(albumentations=0.3)
    assert apply_albumentations(image, Numbers(0.3), config) is image and not used
    assert apply_albumentations(image, Numbers(), AugmentConfig(albumentations=0)) is image
    numbers = Numbers(0.29, 3, 77)
    assert (apply_albumentations(image, numbers, config) == image[:, ::-1]).all()
    assert used == [(ALBUMENTATIONS[3], 77)] and numbers.asked == [None, len(ALBUMENTATIONS), 2**31]


def test_the_albumentations_have_their_limits_and_always_act() -> None:
    pytest.importorskip("albumentations")
    steps = {name: compose.transforms[0] for name, compose in data.augment._albumentations().items()}
    assert set(steps) == set(ALBUMENTATIONS) and all(step.p == 1 for step in steps.values())
    assert tuple(steps["blur"].blur_limit) == tuple(steps["median_blur"].blur_limit) == (3, 5)
    assert tuple(steps["jpeg"].quality_range) == (40, 90)


# ---- rotation and shear


def sampled(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: Sequence[int]) -> np.ndarray:
    """Bilinear sampling at pixel centres, pixel by pixel. `matrix` maps image pixels to canvas pixels."""
    out = np.empty((*size, 3))
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    for row, column in itertools.product(*map(range, size)):
        x, y, _ = back @ (column + 0.5, row + 0.5, 1) - 0.5
        value = np.zeros(3)
        for i, j in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            is_in = 0 <= i < image.shape[0] and 0 <= j < image.shape[1]
            value += (1 - abs(y - i)) * (1 - abs(x - j)) * (image[i, j] if is_in else np.asarray(border))
        out[row, column] = value
    return out


def test_a_quarter_turn_moves_every_pixel_to_its_place() -> None:
    image, canvas = random_image(8, 8), np.zeros((8, 8, 3), np.uint8)
    geometry = NO_MOVE._replace(rotate=math.pi / 2)
    matrix = place(Photo(image, 8, 8, 1, 1), canvas, (0, 0, 8, 8), (0, 0), (1, 1), geometry)
    assert (canvas == np.rot90(image, -1)).all()
    assert np.abs(matrix - [[0, -1, 8], [1, 0, 0]]).max() < 1e-9


@pytest.mark.parametrize(
    ("decoded", "scale"),
    [
        ((1.0, 1.0), (1.2, 0.8)),
        ((0.5, 0.25), (0.8, 0.9)),
        ((1.0, 1.0), (0.5, 0.9)),
        ((1.0, 1.0), (0.45, 0.3)),
        ((1.0, 1.0), (0.3, 0.9)),
    ],
)
def test_a_turned_and_sheared_image_is_sampled_about_its_centre(
    decoded: tuple[float, float], scale: tuple[float, float]
) -> None:
    image = smooth_image(round(40 * decoded[1]), round(60 * decoded[0]))
    photo, window, origin = Photo(image, 40, 60, *decoded), (6, 4, 56, 46), (3.25, 9.5)
    canvas = np.full((50, 60, 3), 114, np.uint8)
    border = canvas[4, 6] = (10, 200, 30)  # the padding is read from the window's first pixel
    geometry = NO_MOVE._replace(rotate=0.4, shear=0.2)
    matrix = place(photo, canvas, window, origin, scale, geometry)

    turn = np.array([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    linear = turn @ [[1, math.tan(0.2)], [0, 1]]
    centre = np.array(origin) + np.array([60, 40]) * scale / 2
    for point in ([0, 0], [60, 0], [13, 31]):
        expected = centre + linear @ (np.array(origin) + np.array(point) * scale - centre)
        assert np.abs(matrix @ [*point, 1] - expected).max() < 1e-9
    shrink = min(scale[0] / decoded[0], scale[1] / decoded[1])
    if shrink < 0.5:  # averaged to one and a half of the size first
        size = [round(side * shrink * 1.5) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pixels = matrix * [[60 / image.shape[1], 40 / image.shape[0], 1]]
    whole = sampled(image, pixels, (50, 60), border)
    assert np.abs(canvas[4:46, 6:56] - whole[4:46, 6:56]).max() < 8  # OpenCV counts in 1 / 32 of a pixel
    outside = np.ones((50, 60), bool)
    outside[4:46, 6:56] = False
    assert (canvas[outside] == 114).all()


def test_a_turned_image_of_one_line_does_not_vanish() -> None:
    canvas = np.zeros((20, 40, 3), np.uint8)
    image = np.full((1, 100, 3), 200, np.uint8)
    matrix = place(
        Photo(image, 1, 100, 1, 1), canvas, (0, 0, 40, 20), (5, 10), (0.3, 0.3), NO_MOVE._replace(rotate=0.1)
    )
    averaged = sampled(image[:, :45], matrix * [[100 / 45, 1, 1]], (20, 40), (0, 0, 0))
    assert canvas.any() and np.abs(canvas - averaged).max() < 8


# ---- mosaic, mixup and copy-paste


def test_the_centre_of_a_mosaic_is_drawn_from_the_middle_half() -> None:
    assert draw_centre(Numbers(0.0, 1.0), (100, 200)) == (150, 25)
    assert draw_centre(Numbers(1.0, 0.0), (100, 200)) == (50, 75)
    centres = [draw_centre(np.random.default_rng(seed), (100, 200)) for seed in range(200)]
    assert len(set(centres)) > 150


def test_a_tile_is_cropped_by_its_shift_or_touches_the_middle() -> None:
    assert _tile_origin(10, 50, 60, 0.25, at_low=False) == _tile_origin(10, 50, 60, 0.25, at_low=True) == 5
    for length in (30, 39.5, 40):  # also where almost nothing is free
        assert _tile_origin(10, 50, length, 0.3, at_low=True) == 10
        assert _tile_origin(10, 50, length, 0.3, at_low=False) == 50 - length


def test_four_images_fill_their_quarters_pixel_by_pixel() -> None:
    images = [random_image(40, 60, seed) for seed in range(4)]
    geometry = AffineParams(1, 1, 0.25, 0.5)
    boxes, weights = np.array([[12, 17, 28, 23.0], [0, 0, 1, 1]]), np.array([0.5, 1])
    parts = [(Photo(each, 40, 60, 1, 1), boxes, np.array([k, 9]), weights, geometry) for k, each in enumerate(images)]
    sample = compose_mosaic(parts, (20, 10), Letterbox((40, 60)), AugmentConfig(min_visible=0.1, min_box_size=2))
    first, second, third, fourth = images
    # each quarter's free length is negative: a quarter of it across, a half of it down
    assert (sample.image[:10, :20] == first[15:25, 10:30]).all()
    assert (sample.image[:10, 20:] == second[15:25, 5:45]).all()
    assert (sample.image[10:, :20] == third[5:35, 10:30]).all()
    assert (sample.image[10:, 20:] == fourth[5:35, 5:45]).all()
    assert sample.boxes.tolist() == [[2, 2, 18, 8], [27, 2, 43, 8], [2, 22, 18, 28], [27, 22, 43, 28]]
    assert sample.labels.tolist() == [0, 1, 2, 3] and sample.weights.tolist() == [0.5] * 4


def test_four_small_images_meet_in_the_middle() -> None:
    letterbox = Letterbox((40, 60), "stretch")  # 1.5 x 2 input pixels a pixel, times the geometry: 18 x 6 pixels
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    photos = [Photo(np.full((20, 40, 3), colour, np.uint8), 20, 40, 1, 1) for colour in colours]
    box = np.array([[0, 0, 20, 10.0]])
    parts = [(photo, box, np.zeros(1, int), np.ones(1), AffineParams(0.3, 0.15, 0.5, 0.5)) for photo in photos]
    sample = compose_mosaic(parts, (24, 16), letterbox, AugmentConfig())
    expected = np.full((40, 60, 3), letterbox.pad_value, np.uint8)
    for (x, y), colour in zip([(6, 10), (24, 10), (6, 16), (24, 16)], colours, strict=True):
        expected[y : y + 6, x : x + 18] = colour
    assert (sample.image == expected).all()
    assert sample.boxes.tolist() == [[6, 10, 15, 13], [24, 10, 33, 13], [6, 16, 15, 19], [24, 16, 33, 19]]


def test_mixup_weighs_two_images_and_joins_their_objects() -> None:
    dark = Sample(np.full((4, 4, 3), 40, np.uint8), np.array([[0, 0, 4, 4.0]]), np.array([1]), np.array([0.25]))
    light = Sample(np.full((4, 4, 3), 200, np.uint8), np.array([[2, 2, 3, 3.0]]), np.array([0]), np.ones(1))
    numbers = Numbers(0.75)
    mixed = mixup(dark, light, numbers)
    assert (mixed.image == 80).all() and numbers.asked == [(32.0, 32.0)]
    assert mixed.boxes.tolist() == [[0, 0, 4, 4], [2, 2, 3, 3]]
    assert mixed.labels.tolist() == [1, 0] and mixed.weights.tolist() == [0.25, 1]


SOURCE = random_image(50, 200, 5)  # of an image of 400 x 200, decoded to a half across and a quarter down
CUT = np.array([100.0, 40, 180, 120])  # its pixels 50 to 90, 10 to 30


def paste(numbers: Numbers, box: np.ndarray = CUT, boxes: Any = ((0, 0, 1, 1),)) -> Sample:
    empty = np.full((100, 200, 3), 114, np.uint8)
    sample = Sample(empty, np.array(boxes, float), np.zeros(len(boxes), int), np.full(len(boxes), 0.5, np.float32))
    return copy_paste_object(sample, Photo(SOURCE, 200, 400, 0.5, 0.25), box, 7, Letterbox((100, 200)), numbers)


@pytest.mark.parametrize("mirrored", [0.49, 0.5])
def test_a_pasted_object_is_scaled_mirrored_and_placed_as_drawn(mirrored: float) -> None:
    numbers = Numbers(0.25, mirrored, 0.5, 0.25)  # size 0.8: 80 original pixels, halved by the letterbox, make 32
    sample = paste(numbers)
    part = cv2.resize(SOURCE[10:30, 50:90], (32, 32), interpolation=cv2.INTER_AREA)
    expected = np.full((100, 200, 3), 114, np.uint8)
    expected[17:49, 84:116] = part[:, ::-1] if mirrored < 0.5 else part
    assert (sample.image == expected).all() and numbers.asked == [None, None, (10, 2)]
    assert sample.boxes.tolist() == [[0, 0, 1, 1], [84, 17, 116, 49]]
    assert sample.labels.tolist() == [0, 7] and sample.weights.tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("width", "height", "is_pasted"),
    [(8, 8, True), (6, 8, False), (8, 4, False), (280, 140, True), (284, 100, False), (100, 144, False)],
)
def test_an_object_is_pasted_between_four_pixels_and_seven_tenths(width: int, height: int, is_pasted: bool) -> None:
    sample = paste(Numbers(0.5, 0.9, 0.0, 0.0), np.array([0, 0, width, height]), ((150, 90, 200, 100),))
    assert (len(sample.boxes) == 2) is is_pasted
    if is_pasted:
        assert sample.boxes[1].tolist() == [0, 0, width / 2, height / 2]


def test_a_pasted_object_is_cut_at_the_images_border() -> None:
    sample = paste(Numbers(0.5, 0.9, 0.0, 0.0), np.array([-30, -20, 40, 60]), ((150, 90, 200, 100),))
    assert sample.boxes[1].tolist() == [0, 0, 20, 30]  # 40 x 60 of the original are left of it
    sample = paste(Numbers(0.5, 0.9, 0.0, 0.0), np.array([340, 100, 430, 260]), ((150, 90, 200, 100),))
    assert sample.boxes[1].tolist() == [0, 0, 30, 50]


def test_an_object_is_pasted_at_the_first_place_that_hides_little() -> None:
    # at the left edge it hides 12 of 40 columns of the first box (0.3) or 13 (more)
    places = (0.0, 0.0, 1.0, 1.0)
    assert paste(Numbers(0.5, 0.9, *places), boxes=((28, 0, 68, 40),)).boxes[1].tolist() == [0, 0, 40, 40]
    assert paste(Numbers(0.5, 0.9, *places), boxes=((27, 0, 67, 40),)).boxes[1].tolist() == [160, 60, 200, 100]
    assert len(paste(Numbers(0.5, 0.9), boxes=((0, 0, 40, 40),)).boxes) == 1


def test_the_share_of_a_box_that_is_hidden() -> None:
    boxes = np.array([[0, 0, 10, 20.0], [5, 5, 15, 15], [90, 90, 99, 99], [3, 3, 3, 9]])
    assert _covered(boxes, np.array([5.0, 0, 10, 10])) == 0.25
    assert _covered(boxes[:1], np.array([5.0, 0, 50, 10])) == 0.25
    assert _covered(boxes[:1], np.array([0.0, 0, 5, 20])) == 0.5
    assert _covered(boxes[2:3], np.array([0.0, 0, 50, 10])) == 0 == _covered(np.zeros((0, 4)), boxes[0])
    assert _covered(boxes[3:], np.array([0.0, 0, 9, 9])) == 0
    for side, share in ((0.5, 1.0), (3e-5, 0.9)):  # an area counts as 1e-9 at least
        assert _covered(np.array([[0, 0, side, side]]), np.array([0.0, 0, 9, 9])) == pytest.approx(share)


def test_a_reduced_jpeg_has_the_exact_scale_of_its_reduction() -> None:
    reduced = Photo.decoded(np.zeros((51, 50, 3), np.uint8), 101, 200)  # half of 101 is rounded up; a quarter of 200
    assert (reduced.height, reduced.width, reduced.scale_y, reduced.scale_x) == (101, 200, 1 / 2, 1 / 4)
    resized = Photo.decoded(np.zeros((30, 40, 3), np.uint8), 100, 100)
    assert (resized.scale_y, resized.scale_x) == (0.3, 0.4)
