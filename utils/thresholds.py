"""Detection thresholds, shared by the Python API, the commands, the service and the evaluation."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError

MAX_DETECTIONS = 100_000
# Names in other tools (Ultralytics, torchvision, supervision, MMDetection) and the names here.
OTHER_NAMES = {
    **dict.fromkeys(("conf", "conf_thres", "confidence", "threshold", "score", "score_thr"), "score_threshold"),
    **dict.fromkeys(("iou", "iou_thres", "nms", "nms_thresh", "overlap"), "iou_threshold"),
    **dict.fromkeys(("max_det", "limit"), "max_detections"),
    **dict.fromkeys(("imgsz", "img_size", "size"), "input_size"),
    **dict.fromkeys(("class_filter", "names"), "classes"),
    **dict.fromkeys(("bgr", "colour"), "color"),
    "batch": "batch_size",
}


class UnknownArgumentError(UserError, TypeError):
    """A keyword argument that a function does not have."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for detections. None means the model's value.

    Args:
        score_threshold: minimum objectness x class probability, 0 to 1.
        iou_threshold: NMS removes boxes of a class whose IoU with a better box exceeds this, 0 to 1.
        max_detections: maximum number of detections per image.
        multi_label: whether a box may have several classes.
        suppress: an alternative to greedy NMS within each class (see `nets.nms`).

    Raises:
        UserError (a ValueError): for a value out of its range.
    """

    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    multi_label: bool | None = None
    suppress: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name, high in (("score_threshold", 1), ("iou_threshold", 1), ("max_detections", MAX_DETECTIONS)):
            value, low = getattr(self, name), int(name == "max_detections")
            if value is None:
                continue
            try:
                fits = not isinstance(value, (bool, str)) and low <= value <= high and (not low or value == int(value))
            except (TypeError, ValueError):
                fits = False
            if not fits:
                kind = "an integer" if low else "a number"
                raise UserError(name, f"{value!r} is out of range", f"give {kind} from {low} to {high}")

    def resolved(self, config: Any) -> Thresholds:
        """A copy with the values of `config` (a `ModelConfig`) instead of None."""
        names = ("score_threshold", "iou_threshold", "max_detections", "multi_label")
        return dataclasses.replace(self, **{n: getattr(config, n) for n in names if getattr(self, n) is None})


OWN_THRESHOLDS = Thresholds()  # the model's own


def unknown_argument(name: str, known: Iterable[str], where: str) -> UnknownArgumentError:
    """The error for an unknown keyword argument of `where`, with a suggestion."""
    known = list(known)
    named = OTHER_NAMES.get(name, name if name in OTHER_NAMES.values() else "")
    near = [named] if named else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near and near[0] not in known:
        owner = "load_detector and of detector.set_input_size" if named == "input_size" else "detector(...)"
        todo = f"{named} is an argument of {owner}"
    else:
        todo = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return UnknownArgumentError(where, f"has no argument {name!r}", todo)
