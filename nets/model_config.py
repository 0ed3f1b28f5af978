"""The model's configuration: network, preprocessing and thresholds, as plain types saved with the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imaging.letterbox import INTERPOLATIONS, PAD_VALUE, RESIZE_MODES, Letterbox
from utils.errors import UserError, brief

FORMAT = "mobilenet-yolov4"  # the format name in our checkpoints and exported files
STRIDES = (8, 16, 32)
ANCHORS_PER_LEVEL = 3
# Raw sizes are clamped here before exp(): e^8 = 2981 anchor widths is wider than any image, and areas fit in float32.
# (The reference does not clamp; the boxes of its test outputs reach e^6.2.)
MAX_LOG_SIZE = 8.0
NECK_CONVS = ("separable", "standard")
NECKS = ("panet", "slim")
PADDINGS = ("symmetric", "tf_same")
SE_ORDERS = ("after", "before")
# allowed values of the fields of ModelConfig
_CHOICES = {
    "neck": NECKS,
    "neck_conv": NECK_CONVS,
    "padding": PADDINGS,
    "se_order": SE_ORDERS,
    "resize_mode": RESIZE_MODES,
    "interpolation": INTERPOLATIONS,
}
_RANGES = {
    "alpha": (0.05, 4.0),
    "bn_eps": (0.0, 1.0),
    "neck_width": (0.05, 4.0),
    "score_threshold": (0.0, 1.0),
    "iou_threshold": (0.0, 1.0),
    "max_detections": (1, 100_000),
    "pad_value": (0, 255),
}

Anchors = tuple[tuple[tuple[float, float], ...], ...]

# YOLOv4's anchors, from k-means on COCO at input size 416, as in the reference. (width, height) in pixels of a 416
# input, for the strides 8, 16, 32. https://arxiv.org/abs/2004.10934
YOLOV4_ANCHORS: Anchors = (
    ((12.0, 16.0), (19.0, 36.0), (40.0, 28.0)),
    ((36.0, 75.0), (76.0, 55.0), (72.0, 146.0)),
    ((142.0, 110.0), (192.0, 243.0), (459.0, 401.0)),
)


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a network, preprocess its images and decode its outputs.

    Args:
        class_names: the classes, in the order of the head's outputs.
        backbone: a name of the backbone table, or `timm:NAME`.
        alpha: width multiplier of the backbone (MobileNetV1, section 3.3).
        se_order: squeeze-and-excitation `after` the activation (torchvision) or `before` it (the reference).
        padding: `symmetric`, or `tf_same`: stride-2 convolutions pad right and bottom only, as TensorFlow does.
        bn_eps: epsilon of the backbone's batch norms; None uses the architecture's default.
        neck: `panet` (the reference's), or `slim`, which has a third of its convolutions (`nets.neck`).
        neck_conv: `separable` or `standard` 3x3 convolutions in neck and head.
        neck_width: width multiplier of neck and head.
        anchors: 3 levels x 3 anchors x (width, height), input pixels, strides ascending.
        scale_xy: grid sensitivity of each level (YOLOv4, section 3.4): centre = cell + s * sigmoid(t) - (s - 1) / 2.
        input_size: (height, width), multiples of 32.
        resize_mode, interpolation, pad_value: see `imaging.letterbox.Letterbox`.
        mean, std: input normalisation of each RGB channel, on the [0, 1] scale.
        score_threshold, iou_threshold, max_detections: defaults for prediction.
        score_threshold_source: how the threshold was chosen, shown to the user.
        multi_label: a box may have several classes (each above the threshold) instead of only the best one.

    Raises:
        ValueError: for an invalid value.
    """

    class_names: tuple[str, ...]
    backbone: str = "mobilenet_v2"
    alpha: float = 1.0
    se_order: str = "after"
    padding: str = "symmetric"
    bn_eps: float | None = None
    neck: str = "panet"
    neck_conv: str = "separable"
    neck_width: float = 1.0
    anchors: Anchors = YOLOV4_ANCHORS
    scale_xy: tuple[float, float, float] = (2.0, 2.0, 2.0)
    input_size: tuple[int, int] = (416, 416)
    resize_mode: str = "letterbox"
    interpolation: str = "bilinear"
    pad_value: int = PAD_VALUE
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    score_threshold: float = 0.25
    score_threshold_source: str = "default"
    iou_threshold: float = 0.5
    max_detections: int = 100
    multi_label: bool = False

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if isinstance(self.class_names, str) or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("class_names: must be a list of names")
        set_(self, "class_names", tuple(self.class_names))
        for name, kind in (("backbone", str), ("score_threshold_source", str), ("multi_label", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}: {brief(getattr(self, name))} is not a {kind.__name__}")
        set_(self, "anchors", _anchors(self.anchors))
        for name in ("scale_xy", "mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name}: {brief(values)} must be 3 finite numbers")
            set_(self, name, values)
        set_(self, "input_size", check_input_size(self.input_size))
        if not self.class_names:
            raise ValueError("class_names: there must be at least one class")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names: a name appears twice")
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}: {brief(value)} is not one of {', '.join(allowed)}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (is_number and low <= value <= high) and (name, value) != ("bn_eps", None):
                raise ValueError(f"{name}: {brief(value)} must be between {low} and {high}")
        if any(s < 1.0 or s > 4.0 for s in self.scale_xy):
            raise ValueError(f"scale_xy: {self.scale_xy} must be between 1 and 4")
        if any(s <= 0 for s in self.std):
            raise ValueError(f"std: {self.std} must be above 0")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def letterbox(self) -> Letterbox:
        return Letterbox(self.input_size, self.resize_mode, self.interpolation, self.pad_value)

    @property
    def size_words(self) -> str:
        """The input size for tables and names: `320`, or `256x288` (height x width)."""
        return "x".join(map(str, dict.fromkeys(self.input_size)))

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, as stored in JSON and checkpoints."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ValueError for a missing or unknown field."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown field {brief(unknown[0])}: written by a newer version?")
        if "class_names" not in values:
            raise ValueError("class_names: missing")
        try:
            return cls(**dict(values))
        except TypeError as error:
            raise ValueError(f"a field has a value of the wrong type: {error}") from error


def check_input_size(size: Sequence[int] | int) -> tuple[int, int]:
    """(height, width) from one number or two. Raises ValueError unless both are multiples of 32 from 32 to 8192."""
    if isinstance(size, int):
        size = (size, size)
    sizes = tuple(size)
    if len(sizes) == 1:
        sizes = sizes * 2
    if len(sizes) != 2 or any(not isinstance(s, int) or s % STRIDES[-1] or not 32 <= s <= 8192 for s in sizes):
        text = " ".join(brief(s) for s in sizes[:4])
        raise ValueError(f"input size {text}: height and width must be multiples of {STRIDES[-1]}, from 32 to 8192")
    return sizes


def input_size_option(size: Sequence[int] | int, option: str = "--input-size") -> tuple[int, int]:
    """`check_input_size` for a command-line value. Raises UserError."""
    try:
        return check_input_size(size)
    except ValueError as error:
        what = str(error).removeprefix("input size ")
        raise UserError(option, what, "give multiples of 32, such as 416") from error


def scale_anchors(anchors: Anchors, factor: float) -> Anchors:
    """Anchors whose widths and heights are multiplied by a factor."""
    return tuple(tuple((w * factor, h * factor) for w, h in level) for level in anchors)


def _anchors(value: Any) -> Anchors:
    try:
        anchors = tuple(tuple((float(w), float(h)) for w, h in level) for level in value)
    except (TypeError, ValueError) as error:
        raise ValueError("anchors: must be 3 levels of 3 pairs (width, height)") from error
    if len(anchors) != len(STRIDES) or any(len(level) != ANCHORS_PER_LEVEL for level in anchors):
        raise ValueError("anchors: must be 3 levels of 3 pairs (width, height)")
    if any(not 0 < v < math.inf for level in anchors for pair in level for v in pair):
        raise ValueError("anchors: widths and heights must be above 0")
    return anchors


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
