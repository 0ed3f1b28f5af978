"""Everything that knows YOLO: backbones, neck, head, boxes, losses, checkpoints, the detector."""

from typing import Any

__all__ = ["Detector", "load_detector"]


def __getattr__(name: str) -> Any:  # the inside imports from defining modules; this is the door for users
    if name in __all__:
        from nets import detector

        return getattr(detector, name)
    raise AttributeError(f"module 'nets' has no attribute {name!r}")
