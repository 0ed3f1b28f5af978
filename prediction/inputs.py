"""Convert paths, bytes, PIL images, arrays and tensors to (H, W, 3) uint8 RGB images."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imaging.image_io import IMAGE_SUFFIXES, decode_image, read_image, rgb_of_pillow
from prediction.video import is_video
from utils.errors import MissingFileError, UserError
from utils.files import FileError

COLORS = ("rgb", "bgr")
CHANNELS = (1, 3, 4)
RULE = "give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
TENSOR_RULE = "give a tensor (C, H, W) or (B, C, H, W) with C = 1, 3 or 4"


def is_single(images: Any) -> bool:
    """Whether `images` is one image rather than several."""
    kinds = (str, bytes, bytearray, memoryview, int, os.PathLike, Mapping, Image.Image)
    if images is None or isinstance(images, kinds) or hasattr(images, "read"):
        return True
    if _is_tensor(images) or isinstance(images, np.ndarray):
        is_text = isinstance(images, np.ndarray) and images.dtype.kind == "U"  # paths
        return images.ndim != 4 and not (is_text and images.ndim == 1)
    return not hasattr(images, "__iter__")


def each_image(images: Any, color: str = "rgb") -> Iterator[tuple[np.ndarray, Any]]:
    """The images, (H, W, 3) uint8 RGB, each with the source that `Detections` keeps: its path or array."""
    color = str(color).lower()
    if color not in COLORS:
        raise UserError("color", f"{color!r} is not known", "give 'rgb', or 'bgr' for arrays of OpenCV")
    for number, image in enumerate([images] if is_single(images) else images):
        where = "images" if is_single(images) else f"images[{number}]"
        array = as_image(image, color, where)
        yield array, os.fspath(image) if isinstance(image, (str, os.PathLike)) else array


def as_image(image: Any, color: str = "rgb", where: str = "images") -> np.ndarray:
    """One image as (H, W, 3) uint8 RGB; see `prediction.detector.Detector.__call__` for the accepted types.

    Raises:
        UserError (a ValueError): for anything else, naming the whole shape. MissingFileError (a FileNotFoundError).
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(os.fsdecode(image), where)
    if isinstance(image, Image.Image):
        return rgb_of_pillow(image, where)
    if _is_tensor(image):
        return _from_tensor(image, color, where)
    if image is None:
        raise UserError(
            where, "is None (cv2.imread returns None for a file that it cannot read)", "give the path instead"
        )
    if isinstance(image, int):
        raise UserError(where, f"{image} is a webcam's number, not an image", f"use detector.stream({image})")
    if hasattr(image, "read"):  # an open file
        try:
            image = image.read()
        except UnicodeDecodeError:
            raise UserError(where, "the file is open as text", 'open it with mode "rb", or give its path') from None
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_image(bytes(image), where)
    array = _as_array(image, where)
    return _from_array(array, color, where, array.shape, RULE)


def _read(path: str, where: str) -> np.ndarray:
    if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE):
        raise UserError(where, f"{path!r} is an address", f"use detector.stream({path!r})")
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        mode = 0
    what = ""
    if stat.S_ISDIR(mode):
        what = "a folder"
    elif not mode and glob.has_magic(path):
        what = "a pattern of names"
    elif mode and Path(path).suffix.lower() not in IMAGE_SUFFIXES and is_video(path):
        what = "a video"
    if what:
        raise UserError(where, f"{path} is {what}, not an image", f"use detector.stream({path!r})")
    try:
        return read_image(path)
    except FileError as error:
        if error.code == "missing_file":
            raise MissingFileError(error.where, error.what, error.todo) from None
        raise


def _as_array(image: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(image)
    except (TypeError, ValueError, RuntimeError):
        array = np.zeros(0, object)
    if array.dtype.kind not in "buif":
        kind = type(image).__name__
        raise UserError(where, f"a {kind} is not an image", "give a path, a PIL image, a NumPy array or a torch tensor")
    return array


def _from_tensor(image: Any, color: str, where: str) -> np.ndarray:
    shape = tuple(image.shape)
    if image.ndim != 3 or shape[0] not in CHANNELS:
        hint = (
            " (a tensor is channels first: tensor.permute(2, 0, 1))" if image.ndim == 3 and shape[2] in CHANNELS else ""
        )
        raise UserError(where, f"a tensor of shape {shape}", TENSOR_RULE + hint)
    image = image.detach().cpu()
    array = (image.float() if image.is_floating_point() else image).permute(1, 2, 0).numpy()
    return _from_array(array, color, where, shape, TENSOR_RULE)


def _from_array(array: np.ndarray, color: str, where: str, shape: tuple[int, ...], rule: str) -> np.ndarray:
    """Convert (H, W) or (H, W, C) of any numeric type; `shape` is the shape that the user passed."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        hint = ""
        if array.ndim == 3 and shape[0] in CHANNELS:
            hint = "; an array is channels last: array.transpose(1, 2, 0)"
        raise UserError(where, f"an array of shape {shape}", rule + hint)
    if not array.size:
        raise UserError(where, f"shape {shape} has no pixels", rule)
    array = _as_bytes(array, where, shape)
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    array = array[..., :3]  # drop the alpha channel
    return np.ascontiguousarray(array[..., ::-1] if color == "bgr" else array)


def _as_bytes(array: np.ndarray, where: str, shape: tuple[int, ...]) -> np.ndarray:
    """Convert to uint8; floating-point values from 0 to 1 are scaled to 0 to 255."""
    if array.dtype == np.uint8:
        return array
    what = f"values of type {array.dtype}, shape {shape},"
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if low >= 0 and high <= 1:  # also false for NaN
            return np.rint(array * 255).astype(np.uint8)
        raise UserError(where, f"{what} from {low:g} to {high:g}", "give uint8 from 0 to 255, or floats from 0 to 1")
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    raise UserError(where, f"{what} from {array.min()} to {array.max()}", "give uint8 from 0 to 255")


def _is_tensor(image: Any) -> bool:
    """Whether it is a torch tensor, without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(image).__mro__)
