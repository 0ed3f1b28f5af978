"""Augmentation options; imports no OpenCV, so that `train.py --help` is fast."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from utils.config import check_fields, option


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation options of training. Each field is an option of train.py.

    Mosaic, mixup and copy-paste are off in the last epochs; this is set by the sample's key, not here.

    Raises:
        ValueError: for a value outside its range; the message names it.
    """

    mosaic: float = option(0.5, "probability of a mosaic of four images (YOLOv4)", low=0, high=1)
    mixup: float = option(0.0, "probability of blending a mosaic with another one (YOLOX)", low=0, high=1)
    copy_paste: float = option(0.0, "probability of pasting objects, rare classes more often", low=0, high=1)
    flip: float = option(0.5, "probability of a horizontal flip", low=0, high=1)
    flip_vertical: float = option(
        0.0, "probability of a vertical flip; for aerial images, not for ordinary photographs", low=0, high=1
    )
    scale: tuple[float, ...] = option(
        (0.5, 1.5), "range of the random scale of an image that is not in a mosaic", low=0.05, high=10, nargs=2
    )
    mosaic_scale: tuple[float, ...] = option(
        (0.4, 1.6), "range of the random scale of each image in a mosaic", low=0.05, high=10, nargs=2
    )
    aspect: float = option(0.2, "maximum change of the aspect ratio: a factor of 1 + this", low=0, high=4)
    translate: float = option(
        0.1, "maximum shift beyond the image's free margin, as a share of the input size; 0 = centred", low=0, high=1
    )
    rotate: float = option(0.0, "maximum rotation in degrees; boxes of rotated objects are looser", low=0, high=180)
    shear: float = option(0.0, "maximum shear in degrees; the boxes around sheared objects are looser", low=0, high=60)
    hue: float = option(0.015, "maximum shift of the hue, as a share of the colour circle", low=0, high=1)
    saturation: float = option(0.7, "maximum relative change of the saturation", low=0, high=1)
    value: float = option(0.4, "maximum relative change of the brightness", low=0, high=1)
    albumentations: float = option(
        0.0, "probability of blur, median blur, CLAHE, grey or JPEG artefacts (package albumentations)", low=0, high=1
    )
    min_visible: float = option(0.1, "drop a box if less than this share of its area is visible", low=0, high=1)
    min_box_size: float = option(2.0, "drop a box with a side below this many input pixels", low=0, high=1e4)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("scale", "mosaic_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low:g} {high:g} must be two numbers, low <= high")

    @classmethod
    def none(cls) -> AugmentConfig:
        """Only the letterbox, as in evaluation."""
        zeros = dict.fromkeys(("mosaic", "flip", "aspect", "translate", "hue", "saturation", "value"), 0.0)
        return cls(**zeros, scale=(1.0, 1.0), mosaic_scale=(1.0, 1.0), min_visible=0.0, min_box_size=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain types, for a run's configuration."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
