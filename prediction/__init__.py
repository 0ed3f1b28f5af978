"""Running a detector on images, videos and streams, and writing what it detects."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Detections": "imaging.detections",
    "Detector": "prediction.detector",
    "Thresholds": "utils.thresholds",
    "load_detector": "prediction.detector",
}
__all__ = list(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import public names on demand; modules of the package import from the defining module."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'prediction' has no attribute {name!r}")
