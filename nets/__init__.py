"""The network: backbones, neck, head, boxes, losses, checkpoints, exports, the detector."""

from importlib import import_module
from typing import Any

__all__ = ["Detections", "Detector", "Thresholds", "load_detector"]


def __getattr__(name: str) -> Any:
    """What users import, resolved on demand: no module of `nets` knows `prediction`, where the Python API is."""
    if name in __all__:
        return getattr(import_module("prediction"), name)
    raise AttributeError(f"module 'nets' has no attribute {name!r}")
