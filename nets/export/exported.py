"""Base class of the runtimes of exported files."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imaging.detections import Detections
from nets.export.form import read_metadata
from nets.model_config import ANCHORS_PER_LEVEL
from nets.runtime import Runtime
from utils.errors import RunError, UserError, reason_of, warn
from utils.text import counted
from utils.thresholds import OWN_THRESHOLDS, Thresholds


class ExportedRuntime(Runtime):
    """Runs a file written by `export.py` on the library for its format.

    Args:
        path: the file, for messages.
        texts: its metadata (see `read_metadata`).
        device: where it shall run.

    A subclass loads the file and implements `call`. `supports_gpu` is whether it runs on other devices than the CPU.

    Raises:
        UserError: for metadata of another program, or another device than the CPU without `supports_gpu`.
    """

    supports_gpu = False

    def __init__(self, path: Path, texts: Mapping[str, str], device: str = "cpu") -> None:
        if not self.supports_gpu and not device.startswith("cpu"):
            raise UserError("--device", f"{self.name} files run on the CPU here, not on {device}", "use --device cpu")
        self.path = path
        self.config, self.form = read_metadata(path, texts)
        self.decodes = self.form.decodes
        self.fixed_size = not self.form.dynamic
        self.fixed_batch = None if self.form.dynamic else 1
        self._warned = self._checked = False
        self._last = threading.local()

    @abstractmethod
    def call(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Run the file on `images`, which have the layout and type of its input."""

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """See `Runtime.run`; raw maps are views (B, A, H, W, 5 + C)."""
        self._last.batch = len(images)
        try:
            outputs = self.call(images if self.form.uint8_input else as_float(images))
        except (RuntimeError, ValueError) as error:
            what = f"cannot be run by {self.name}: {reason_of(error)}"
            raise RunError(self.path, what, "export it again") from error
        arrays = [np.asarray(output) for output in outputs]
        if not self._checked:
            self._check(arrays)
        return arrays if self.decodes else [_split(raw) for raw in arrays]

    def _check(self, outputs: Sequence[np.ndarray]) -> None:
        """Compare the shapes of the first outputs with the metadata, and reject NaN. Raises RunError."""
        classes = self.config.num_classes
        if self.form.nms:
            fits = len(outputs) == 4
        elif self.form.decodes:
            fits = len(outputs) == 2 and all(o.ndim == 3 for o in outputs) and outputs[1].shape[-1] == classes
        else:
            channels = ANCHORS_PER_LEVEL * (5 + classes)
            fits = len(outputs) == 3 and all(o.ndim == 4 and o.shape[1] == channels for o in outputs)
        if not fits:
            shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
            raise RunError(
                self.path,
                f"returns outputs of shape {shapes}, which do not fit {counted(classes, 'class')}",
                "export it again",
            )
        if any(output.dtype.kind == "f" and np.isnan(output).any() for output in outputs):
            raise RunError(self.path, "returns NaN: its weights are damaged", "export it again, or use another copy")
        self._checked = True

    def read(self, outputs: Sequence[np.ndarray], thresholds: Thresholds = OWN_THRESHOLDS) -> list[Detections]:
        """See `Runtime.read`. Thresholds have no effect on a file with NMS in its graph."""
        if not self.form.nms:
            return super().read(outputs, thresholds)
        config, asked = self.config, thresholds.resolved(self.config)
        if not self._warned and (
            asked.score_threshold < config.score_threshold
            or any(getattr(asked, n) != getattr(config, n) for n in ("iou_threshold", "multi_label"))
        ):
            self._warned = True
            what = f"NMS is part of the file: score {config.score_threshold:g}, IoU {config.iou_threshold:g}"
            warn(self.path, f"{what}; other thresholds have no effect", "export it without --nms to evaluate it")
        boxes, scores, labels, images = outputs
        # The batch size of this thread's last run, which the outputs of NMS do not contain.
        keep = scores >= asked.score_threshold
        parts = [
            np.flatnonzero(keep & (images == number))[: asked.max_detections] for number in range(self._last.batch)
        ]
        return [Detections(boxes[part], scores[part], labels[part]) for part in parts]


def as_float(images: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [0, 1]."""
    return np.divide(images.transpose(0, 3, 1, 2), 255, dtype=np.float32, order="C")


def _split(raw: np.ndarray) -> np.ndarray:
    """(B, A * (5 + C), H, W) to a view (B, A, H, W, 5 + C)."""
    batch, _, height, width = raw.shape
    return raw.reshape(batch, ANCHORS_PER_LEVEL, -1, height, width).transpose(0, 1, 3, 4, 2)
