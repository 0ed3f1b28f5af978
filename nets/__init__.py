"""The network: backbones, neck, head, boxes, losses, checkpoints, exports, the detector."""

from importlib import import_module
from pathlib import Path
from typing import Any

import utils

# A program with a `utils` of its own would fail later, with an error that names some function of ours.
_UTILS = Path(getattr(utils, "__file__", None) or next(iter(getattr(utils, "__path__", [""]))))
if Path(__file__).resolve().parents[1] not in _UTILS.resolve().parents:
    raise ImportError(
        f"{_UTILS} hides the package `utils` of YOLOv4-MobileNet; rename yours, or start from another folder"
    )

__all__ = ["Detections", "Detector", "Thresholds", "load_detector"]


def __getattr__(name: str) -> Any:
    """What users import, resolved on demand: no module of `nets` knows `prediction`, where the Python API is."""
    if name in __all__:
        return getattr(import_module("prediction"), name)
    raise AttributeError(f"module 'nets' has no attribute {name!r}")
