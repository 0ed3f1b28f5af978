"""Boxes, scores and labels of one image: what every detector gives and every metric takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Detections:
    """The objects found in one image.

    Args:
        boxes: (N, 4) float32, xyxy, pixels of the image (0-based, continuous: x2 - x1 is the width).
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64, index into the model's class names.
        track_ids: (N,) int64 or None, the identity of each object over the frames of a video.

    Raises:
        ValueError: if the shapes do not agree.

    `detections[mask_or_index]` keeps a part; `len()` is N; `Detections.empty()` is the image without objects.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    track_ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        scores = np.asarray(self.scores, dtype=np.float32).reshape(-1)
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError(f"detections: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels differ")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "labels", labels)
        if self.track_ids is not None:
            track_ids = np.asarray(self.track_ids, dtype=np.int64).reshape(-1)
            if len(track_ids) != len(boxes):
                raise ValueError(f"detections: {len(boxes)} boxes and {len(track_ids)} track ids differ")
            object.__setattr__(self, "track_ids", track_ids)

    @classmethod
    def empty(cls) -> Detections:
        """The image in which nothing was found."""
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros(0))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Detections:
        index = np.atleast_1d(np.asarray(index)) if not isinstance(index, slice) else index
        track_ids = None if self.track_ids is None else self.track_ids[index]
        return Detections(self.boxes[index], self.scores[index], self.labels[index], track_ids)

    def to_dicts(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One plain dict an object: class_id, class_name, score, box_xyxy (image pixels), and track_id if known."""
        rows: list[dict[str, Any]] = []
        for number, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            row: dict[str, Any] = {
                "class_id": int(label),
                "class_name": class_names[int(label)],
                "score": round(float(score), 6),
                "box_xyxy": [round(float(v), 3) for v in box],
            }
            if self.track_ids is not None:
                row["track_id"] = int(self.track_ids[number])
            rows.append(row)
        return rows
