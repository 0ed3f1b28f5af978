"""Mosaic, mixup and copy-paste augmentation, drawn directly at the final size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from data.augment import (
    AffineParams,
    AugmentConfig,
    Photo,
    Sample,
    Window,
    clip_boxes,
    drawn_scale,
    letterbox_scale,
    place,
    transform_boxes,
)
from imaging.letterbox import Letterbox

CENTRE_RANGE = (0.25, 0.75)  # where the four tiles meet, as a fraction of the input size
MIXUP_BETA = 32.0  # YOLOv5: both images stay visible at nearly equal strength
PASTE_COVER = 0.3  # maximum fraction of an object that a pasted box may cover


def draw_centre(rng: np.random.Generator, input_size: tuple[int, int]) -> tuple[int, int]:
    """Draw the (x, y) pixel where the four tiles of a mosaic meet."""
    y, x = (round(side * rng.uniform(*CENTRE_RANGE)) for side in input_size)
    return x, y


def compose_mosaic(
    parts: Sequence[tuple[Photo, np.ndarray, np.ndarray, np.ndarray, AffineParams]],
    centre: tuple[int, int],
    letterbox: Letterbox,
    config: AugmentConfig,
) -> Sample:
    """Mosaic: combine four images around one point, each resized directly into its quarter.

    An image larger than its quarter is cropped at random; a smaller one touches the point where the tiles meet.

    Args:
        parts: four times (photo, boxes (N, 4) xyxy in the photo's own pixels, labels (N,), weights (N,), geometry).
        centre: (x, y), see `draw_centre`.
        letterbox: gives the input size, the padding and the scale 1.
        config: sets which cut boxes are kept.

    Source: YOLOv4, section 3.3, https://arxiv.org/abs/2004.10934
    """
    height, width = letterbox.input_size
    canvas = np.full((height, width, 3), letterbox.pad_value, np.uint8)
    all_boxes, all_labels, all_weights = [], [], []
    for number, (photo, boxes, labels, weights, geometry) in enumerate(parts):
        right, below = number % 2 == 1, number >= 2
        window: Window = (
            centre[0] if right else 0,
            centre[1] if below else 0,
            width if right else centre[0],
            height if below else centre[1],
        )
        scale = drawn_scale(photo, letterbox, geometry)
        left = _tile_origin(window[0], window[2], photo.width * scale[0], geometry.shift_x, at_low=right)
        top = _tile_origin(window[1], window[3], photo.height * scale[1], geometry.shift_y, at_low=below)
        matrix = place(photo, canvas, window, (left, top), scale, geometry)
        clipped, keep = clip_boxes(transform_boxes(boxes, matrix), window, config)
        all_boxes.append(clipped[keep])
        all_labels.append(labels[keep])
        all_weights.append(weights[keep])
    return Sample(canvas, *(np.concatenate(each) for each in (all_boxes, all_labels, all_weights)))


def mixup(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Mixup of two images of one size; the objects of both keep their full weight (https://arxiv.org/abs/1902.04103)."""
    weight = rng.beta(MIXUP_BETA, MIXUP_BETA)
    image = cv2.addWeighted(first.image, weight, second.image, 1 - weight, 0)
    return Sample(image, *(np.concatenate(pair) for pair in zip(first[1:], second[1:], strict=True)))


def copy_paste_object(
    sample: Sample, photo: Photo, box: np.ndarray, label: int, letterbox: Letterbox, rng: np.random.Generator
) -> Sample:
    """Copy-paste: paste the crop of an object where it hides no other object; unchanged if there is no such place.

    Args:
        sample: the image to paste into, modified in place.
        photo: the image to cut from.
        box: (4,) xyxy in the photo's own pixels, of class `label`.
        letterbox: gives the scale 1.
    """
    height, width = sample.image.shape[:2]
    pixels = np.array([photo.scale_x, photo.scale_y] * 2)
    bounds = np.array([photo.image.shape[1], photo.image.shape[0]] * 2)
    x1, y1, x2, y2 = np.clip(np.round(box * pixels), 0, bounds).astype(int)
    fit_x, fit_y = letterbox_scale(letterbox, photo.height, photo.width)
    size = rng.uniform(0.6, 1.4)
    new_width = round((x2 - x1) / photo.scale_x * fit_x * size)
    new_height = round((y2 - y1) / photo.scale_y * fit_y * size)
    mirrored = rng.random() < 0.5
    places = rng.random((10, 2))
    if not (4 <= new_width <= width * 0.7 and 4 <= new_height <= height * 0.7):
        return sample
    for x, y in places:
        left, top = round(x * (width - new_width)), round(y * (height - new_height))
        pasted = np.array([left, top, left + new_width, top + new_height], np.float64)
        if _covered(sample.boxes, pasted) <= PASTE_COVER:
            part = cv2.resize(photo.image[y1:y2, x1:x2], (new_width, new_height), interpolation=cv2.INTER_AREA)
            part = cv2.flip(part, 1) if mirrored else part
            sample.image[top : top + new_height, left : left + new_width] = part
            boxes, labels = np.vstack([sample.boxes, pasted]), np.append(sample.labels, label)
            return Sample(sample.image, boxes, labels, np.append(sample.weights, np.float32(1)))
    return sample


def _tile_origin(low: int, high: int, length: float, shift: float, at_low: bool) -> float:
    """Where a tile of `length` starts in its window [low, high): a random crop, or aligned to the middle."""
    free = (high - low) - length
    if free < 0:
        return low + free * shift
    return low if at_low else low + free


def _covered(boxes: np.ndarray, pasted: np.ndarray) -> float:
    """The largest fraction of any box that `pasted` hides."""
    if not len(boxes):
        return 0.0
    sides = np.minimum(boxes[:, 2:], pasted[2:]) - np.maximum(boxes[:, :2], pasted[:2])
    hidden = np.maximum(sides, 0).prod(1)
    return float((hidden / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-9)).max())
