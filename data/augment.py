"""Random augmentation of an image and its boxes: translation, crop, scale, rotation, flip, colour."""

from __future__ import annotations

import math
import os
import warnings
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np

from data.augment_config import AugmentConfig
from imaging.letterbox import Letterbox
from utils.errors import require_packages

Window = tuple[int, int, int, int]  # left, top, right, bottom of a part of the canvas, pixels
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
ALBUMENTATIONS = ("blur", "median_blur", "clahe", "to_gray", "jpeg")


class Photo(NamedTuple):
    """A decoded image, possibly smaller than its file's image.

    `scale_x` and `scale_y` are decoded pixels per pixel of the upright original, whose size is (`height`, `width`).
    """

    image: np.ndarray
    height: float
    width: float
    scale_x: float
    scale_y: float

    @classmethod
    def decoded(cls, image: np.ndarray, height: int, width: int) -> Photo:
        """An image that was decoded from one of `height` x `width` pixels, if JPEG, at 1 / 2, 1 / 4 or 1 / 8."""
        return cls(image, height, width, _reduction(image.shape[1], width), _reduction(image.shape[0], height))


def _reduction(decoded: int, original: int) -> float:
    """Decoded pixels per original pixel; a reduced JPEG's size is rounded up, so this is 1 / 2, 1 / 4 or 1 / 8."""
    divisor = round(original / decoded)
    return 1 / divisor if -(-original // divisor) == decoded else decoded / original


class Sample(NamedTuple):
    """One training image: (H, W, 3) uint8 RGB; boxes (N, 4) float32 xyxy input pixels, labels (N,) int64, weights (N,)
    float32.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class AffineParams(NamedTuple):
    """Parameters of the random affine transform of one image; its matrix depends on the size of the image.

    `scale_x`, `scale_y` are relative to the letterboxed size; `shift_x`, `shift_y` in [0, 1] are the position in the
    free or cropped margin; `extra_x`, `extra_y` the shift beyond it, a fraction of the window; angles are in radians.
    """

    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float
    extra_x: float = 0.0
    extra_y: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0


def sample_affine(rng: np.random.Generator, config: AugmentConfig, scale: tuple[float, ...]) -> AffineParams:
    """Sample scale, aspect, translation, rotation and shear; the scale is uniform in `scale` (low, high)."""
    size, stretch, shift_x, shift_y, extra_x, extra_y, turn, slant = rng.random(8).tolist()  # one call is faster
    size = scale[0] + (scale[1] - scale[0]) * size
    stretch = (1 + config.aspect) ** (stretch - 0.5)
    if not config.translate:
        shift_x = shift_y = 0.5
    return AffineParams(
        size * stretch,
        size / stretch,
        shift_x,
        shift_y,
        config.translate * (2 * extra_x - 1),
        config.translate * (2 * extra_y - 1),
        math.radians(config.rotate * (2 * turn - 1)),
        math.radians(config.shear * (2 * slant - 1)),
    )


def letterbox_scale(letterbox: Letterbox, height: float, width: float) -> tuple[float, float]:
    """(x, y) input pixels per image pixel in the letterbox, before rounding to whole pixels."""
    scale_y, scale_x = letterbox.input_size[0] / height, letterbox.input_size[1] / width
    return (scale_x, scale_y) if letterbox.mode == "stretch" else (min(scale_x, scale_y),) * 2


def place_single(photo: Photo, canvas: np.ndarray, letterbox: Letterbox, geometry: AffineParams) -> np.ndarray:
    """Draw an image by itself into `canvas`; returns the (2, 3) matrix from its own pixels to the canvas's."""
    height, width = canvas.shape[:2]
    scale = drawn_scale(photo, letterbox, geometry)
    left = geometry.shift_x * (width - photo.width * scale[0]) + geometry.extra_x * width
    top = geometry.shift_y * (height - photo.height * scale[1]) + geometry.extra_y * height
    return place(photo, canvas, (0, 0, width, height), (left, top), scale, geometry)


def place(
    photo: Photo,
    canvas: np.ndarray,
    window: Window,
    origin: tuple[float, float],
    scale: tuple[float, float],
    geometry: AffineParams,
) -> np.ndarray:
    """Draw an image into a window of the canvas, every pixel resampled once.

    Args:
        photo: the image.
        canvas: (H, W, 3) uint8, written to.
        window: the part of the canvas that may be written.
        origin: (x, y) canvas pixels of the image's upper left corner, which may be outside.
        scale: (x, y) canvas pixels per pixel of the original.
        geometry: gives the rotation and shear, about the placed image's centre.

    Returns:
        (2, 3) matrix from the original's pixels to the canvas's, exact for what was drawn.
    """
    if geometry.rotate or geometry.shear:
        matrix = _rotation(photo, origin, scale, geometry)
        part = canvas[window[1] : window[3], window[0] : window[2]]
        _warp(photo, part, matrix - [[0, 0, window[0]], [0, 0, window[1]]], scale)
        return matrix
    height, width = photo.image.shape[:2]
    across = _span(origin[0], scale[0] / photo.scale_x, width, window[0], window[2])
    down = _span(origin[1], scale[1] / photo.scale_y, height, window[1], window[3])
    if across is not None and down is not None:
        part = photo.image[down[2] : down[3], across[2] : across[3]]
        resize_into(part, canvas[down[0] : down[1], across[0] : across[1]])
    step_x, start_x = _line(across, origin[0], scale[0] / photo.scale_x)
    step_y, start_y = _line(down, origin[1], scale[1] / photo.scale_y)
    return np.array([[step_x * photo.scale_x, 0, start_x], [0, step_y * photo.scale_y, start_y]])


def resize_into(image: np.ndarray, out: np.ndarray) -> None:
    """Resize into `out`, with area averaging (much slower) only where bilinear sampling would skip pixels."""
    height, width = out.shape[:2]
    if image.shape == out.shape:
        out[:] = image
        return
    skips = image.shape[0] > 2 * height or image.shape[1] > 2 * width
    cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_AREA if skips else cv2.INTER_LINEAR)


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy boxes under a (2, 3) matrix: the upright boxes around the mapped ones, float64."""
    corners = boxes.astype(np.float64)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def clip_boxes(boxes: np.ndarray, window: Window, config: AugmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to a window. Returns the clipped boxes and a mask of those that keep enough of their area."""
    clipped = np.clip(boxes, window[:2] * 2, window[2:] * 2)
    sides, whole = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    area = sides[:, 0] * sides[:, 1]
    enough = (area >= config.min_visible * whole[:, 0] * whole[:, 1]) & (area > 0)
    return clipped, enough & (sides.min(1, initial=math.inf) >= config.min_box_size)


def random_flip(
    image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, config: AugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Random horizontal and vertical flip of an image and its boxes."""
    height, width = image.shape[:2]
    across, down = rng.random() < config.flip, rng.random() < config.flip_vertical
    if across:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if down:
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    if across or down:
        image = cv2.flip(image, -1 if across and down else int(across))
    return image, boxes


def jitter_hsv(image: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """HSV jitter: random hue, saturation and value, by one 3x3 matrix on RGB.

    Equivalent to gains in HSV (darknet, YOLOv5) in a tenth of the time: lightness is kept when saturation changes,
    and nothing wraps around.

    Source: P. Haeberli, Matrix Operations for Image Processing, 1993, in the YIQ space of NTSC.
    """
    if not (config.hue or config.saturation or config.value):
        return image
    hue, saturation, value = rng.uniform(-1, 1, 3) * (config.hue, config.saturation, config.value)
    turn = 2 * math.pi * hue
    cos, sin = (1 + saturation) * math.cos(turn), (1 + saturation) * math.sin(turn)
    chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return cv2.transform(image, (1 + value) * _YIQ_TO_RGB @ chroma @ _RGB_TO_YIQ)


def apply_albumentations(image: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """Apply at random one of albumentations' blur, median blur, CLAHE, grey and JPEG artefacts; boxes do not change."""
    if not config.albumentations or rng.random() >= config.albumentations:
        return image
    transform = _albumentations()[ALBUMENTATIONS[rng.integers(len(ALBUMENTATIONS))]]
    transform.set_random_seed(int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.ascontiguousarray(transform(image=image)["image"])


@cache
def _albumentations() -> dict[str, Any]:
    require_packages("albumentations > 0", ["albumentations"], "augment")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import accesses the network otherwise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import albumentations
    steps = {
        "blur": albumentations.Blur(blur_limit=(3, 5), p=1),
        "median_blur": albumentations.MedianBlur(blur_limit=(3, 5), p=1),
        "clahe": albumentations.CLAHE(p=1),
        "to_gray": albumentations.ToGray(p=1),
        "jpeg": albumentations.ImageCompression(quality_range=(40, 90), p=1),
    }
    return {name: albumentations.Compose([step]) for name, step in steps.items()}


def drawn_scale(photo: Photo, letterbox: Letterbox, geometry: AffineParams) -> tuple[float, float]:
    """(x, y) canvas pixels per pixel of the original."""
    fit_x, fit_y = letterbox_scale(letterbox, photo.height, photo.width)
    return fit_x * geometry.scale_x, fit_y * geometry.scale_y


def _span(start: float, step: float, length: int, low: int, high: int) -> tuple[int, int, int, int] | None:
    """Canvas pixels [d0, d1) and the source pixels [s0, s1) that they show, along one axis; None if empty."""
    d0, d1 = round(max(start, low)), round(min(start + length * step, high))
    if d1 <= d0:
        return None
    s0 = min(max(round((d0 - start) / step), 0), length - 1)
    s1 = min(max(round((d1 - start) / step), s0 + 1), length)
    return d0, d1, s0, s1


def _line(span: tuple[int, int, int, int] | None, start: float, step: float) -> tuple[float, float]:
    """(step, start) after rounding to integer pixels."""
    if span is None:
        return step, start
    exact = (span[1] - span[0]) / (span[3] - span[2])
    return exact, span[0] - span[2] * exact


def _rotation(
    photo: Photo, origin: tuple[float, float], scale: tuple[float, float], geometry: AffineParams
) -> np.ndarray:
    """(2, 3) matrix from the original's pixels to the canvas's: rotation and shear about the placed image's centre."""
    centre = np.array([origin[0] + photo.width * scale[0] / 2, origin[1] + photo.height * scale[1] / 2])
    cos, sin, tangent = math.cos(geometry.rotate), math.sin(geometry.rotate), math.tan(geometry.shear)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, tangent], [0, 1]])
    matrix = np.empty((2, 3))
    matrix[:, :2] = linear * scale
    matrix[:, 2] = centre + linear @ (np.array(origin) - centre)
    return matrix


def _warp(photo: Photo, part: np.ndarray, matrix: np.ndarray, scale: tuple[float, float]) -> None:
    """Draw an image into `part` of the canvas by a (2, 3) matrix from the original's pixels to those of `part`."""
    image, scale_x, scale_y = photo.image, photo.scale_x, photo.scale_y
    shrink = min(scale[0] / scale_x, scale[1] / scale_y)
    if shrink < 0.5:  # warpAffine samples only four neighbours: average first, so that it does not skip pixels
        height, width = (max(round(side * shrink * 1.5), 1) for side in image.shape[:2])
        scale_x, scale_y = scale_x * width / image.shape[1], scale_y * height / image.shape[0]
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    pixels = matrix[:, :2] / (scale_x, scale_y)
    shift = matrix[:, 2] + pixels.sum(1) / 2 - 0.5  # OpenCV's coordinates are of pixel centres, ours of pixel edges
    part[:] = cv2.warpAffine(
        image,
        np.column_stack([pixels, shift]),
        (part.shape[1], part.shape[0]),
        flags=cv2.INTER_LINEAR,
        borderValue=tuple(int(v) for v in part[0, 0]),  # the padding: nothing has been drawn yet
    )
