"""The network and its parts: backbones, neck, head, losses, weight files, exports, the detector."""

from importlib import import_module
from pathlib import Path
from typing import Any

import utils

# A program with its own `utils` package would fail later, with an error about one of our functions.
_UTILS = Path(getattr(utils, "__file__", None) or next(iter(getattr(utils, "__path__", [""]))))
if Path(__file__).resolve().parents[1] not in _UTILS.resolve().parents:
    raise ImportError(
        f"{_UTILS} hides the package `utils` of YOLOv4-MobileNet; rename yours, or start from another folder"
    )

__all__ = ["Detections", "Detector", "Thresholds", "load_detector"]


def __getattr__(name: str) -> Any:
    """Load the public names lazily: the Python API is in `prediction`, which no module of `nets` imports."""
    if name in __all__:
        return getattr(import_module("prediction"), name)
    raise AttributeError(f"module 'nets' has no attribute {name!r}")
