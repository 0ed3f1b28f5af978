"""Letterbox: resize images to the network's input size, and map boxes between image and input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

RESIZE_MODES = ("letterbox", "stretch")
INTERPOLATIONS = ("bilinear", "bicubic")
PAD_VALUE = 114  # grey value of the padding, as in YOLOv5; close to the mean of natural images
# An image is decoded at this multiple of the input size or more. The decoder averages blocks of pixels. Resizing then
# averages again, which hides the block borders. With a multiple of 1, mAP50 fell by 0.4 points (docs/SPEED.md).
SPARE_PIXELS = 2


@dataclass(frozen=True)
class Letterbox:
    """Resize (and pad) images to one size; the inverse for boxes.

    Args:
        input_size: (height, width) of the result, pixels.
        mode: `letterbox` keeps the aspect ratio and pads both sides; `stretch` does not keep it.
        interpolation: `bilinear` (OpenCV; area averaging when shrinking) or `bicubic` (Pillow's, with antialiasing when
            shrinking, as in the training of the reference's weights).
        pad_value: grey level of the padding, 0 to 255.
    """

    input_size: tuple[int, int]
    mode: str = "letterbox"
    interpolation: str = "bilinear"
    pad_value: int = PAD_VALUE

    def __post_init__(self) -> None:
        if self.mode not in RESIZE_MODES:
            raise ValueError(f"resize mode {self.mode!r}: choose from {', '.join(RESIZE_MODES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r}: choose from {', '.join(INTERPOLATIONS)}")

    def geometry(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(new_height, new_width, top, left) of an image of (height, width) in the input, pixels."""
        input_height, input_width = self.input_size
        if self.mode == "stretch":
            return input_height, input_width, 0, 0
        scale = min(input_height / height, input_width / width)
        new_height = min(max(round(height * scale), 1), input_height)
        new_width = min(max(round(width * scale), 1), input_width)
        return new_height, new_width, (input_height - new_height) // 2, (input_width - new_width) // 2

    def trimmed(self, sizes: Sequence[tuple[int, int]], multiple: int, share: float = 1.0) -> Letterbox:
        """The letterbox without rows and columns that would be padding in images of these (height, width).

        Args:
            sizes: of the images, which keep their scale.
            multiple: the sides of the smaller input are multiples of it.
            share: fraction of the images, for each side, that need not be scaled down further.
        """
        filled = np.sort([self.geometry(*size)[:2] for size in sizes], axis=0)[math.ceil(share * len(sizes)) - 1]
        height, width = (-(-filled // multiple) * multiple).tolist()
        return replace(self, input_size=(height, width))

    def decoded_size(self, height: int, width: int) -> tuple[int, int]:
        """Minimum (height, width) at which an image of this size should be decoded, so that `apply` loses nothing.

        For `min_size` of `imaging.image_io.read_image`. Bicubic resampling needs every pixel, as in the reference.
        """
        if self.interpolation != "bilinear":
            return height, width
        new_height, new_width = self.geometry(height, width)[:2]
        return SPARE_PIXELS * new_height, SPARE_PIXELS * new_width

    def apply(
        self, image: np.ndarray, out: np.ndarray | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Resize an (H, W, 3) uint8 image to (input_height, input_width, 3) uint8, into `out` if given.

        `size` is the (height, width) of the full-size image, if `image` was decoded at a reduced size.
        """
        new_height, new_width, top, left = self.geometry(*(size or image.shape[:2]))
        resized = resize(image, new_height, new_width, self.interpolation)
        if out is None:
            if (new_height, new_width) == tuple(self.input_size):
                return resized
            out = np.empty((*self.input_size, 3), dtype=np.uint8)
        if (new_height, new_width) != tuple(self.input_size):
            out[:] = self.pad_value
        out[top : top + new_height, left : left + new_width] = resized
        return out

    def boxes_to_input(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Convert (N, 4) xyxy boxes of an image of (height, width) to input pixels."""
        new_height, new_width, top, left = self.geometry(height, width)
        scale = np.array([new_width / width, new_height / height] * 2, dtype=np.float64)
        return (boxes * scale + np.array([left, top] * 2)).astype(np.float32)

    def boxes_to_image(self, boxes: np.ndarray, height: int, width: int, clip: bool = True) -> np.ndarray:
        """The inverse of `boxes_to_input`: (N, 4) xyxy in the image's own pixels, clipped to the image."""
        new_height, new_width, top, left = self.geometry(height, width)
        scale = np.array([width / new_width, height / new_height] * 2, dtype=np.float64)
        boxes = (boxes - np.array([left, top] * 2)) * scale
        if clip:
            boxes = np.clip(boxes, 0, np.array([width, height] * 2))
        return boxes.astype(np.float32)


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width, 3) uint8."""
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "bicubic":
        from PIL import Image  # the resampling of the reference; OpenCV's bicubic has no antialiasing

        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    import cv2  # imported here: options and configurations do not need it

    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
