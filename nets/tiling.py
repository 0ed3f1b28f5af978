"""Tiled detection for small objects in large images: detect in overlapping tiles and merge the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.tiles import MIN_TILE, tile_windows
from imaging.detections import Detections
from nets.nms import Suppress, agnostic_nms, merge_cut_boxes
from utils.errors import UserError, warn
from utils.thresholds import OWN_THRESHOLDS, Thresholds

EDGE = 0.01  # a box that ends within this share of a tile's side was probably cut there
MANY_TILES = 1000  # of one image; warn above it


class DetectorWrapper:
    """A detector that runs another one, `detector`, several times for each image."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector

    @property
    def config(self) -> Any:
        return self.detector.config

    @property
    def timings(self) -> dict[str, float]:
        return getattr(self.detector, "timings", {})


class TiledDetector(DetectorWrapper):
    """A detector that runs on tiles of each image, and on the whole image for objects larger than a tile.

    Args:
        detector: a detector with `config` and `detect_batch`.
        tile: side of a tile in image pixels, at least 32; None: the model's input size, so tiles are not resized.
        overlap: overlap of neighbouring tiles as a share of a tile, 0 to 0.9; at least the size of the small objects.
        whole: also run on the whole image.
        batch_size: number of tiles per batch.

    Raises:
        UserError: if the tile is too small.

    Source: SAHI, https://arxiv.org/abs/2202.06934
    """

    def __init__(
        self, detector: Any, tile: int | None = None, overlap: float = 0.25, whole: bool = True, batch_size: int = 8
    ) -> None:
        super().__init__(detector)
        if tile is not None and tile < MIN_TILE:
            raise UserError("tile", f"{tile} is less than {MIN_TILE} pixels", "give a larger tile")
        self._has_warned = False
        self.tile, self.overlap, self.whole, self.batch_size = tile, overlap, whole, batch_size

    def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds = OWN_THRESHOLDS) -> list[Detections]:
        """As `Detector.detect_batch`."""
        return [self._detect(image, thresholds) for image in images]

    def _detect(self, image: np.ndarray, thresholds: Thresholds) -> Detections:
        height, width = image.shape[:2]
        tile_height, tile_width = (self.tile, self.tile) if self.tile else self.config.input_size
        windows = tile_windows(height, width, tile_height, tile_width, self.overlap)
        if len(windows) == 1:
            return self.detector.detect_batch([image], thresholds)[0]
        if len(windows) > MANY_TILES and not self._has_warned:
            self._has_warned = True
            what = f"an image of {width} x {height} is {len(windows)} tiles of {tile_width} x {tile_height}"
            warn("tiles", what, "each takes as long as an image; a larger tile or less overlap is faster")
        found: list[Detections] = []
        cut: list[np.ndarray] = []
        for start in range(0, len(windows), self.batch_size):
            part = windows[start : start + self.batch_size]
            crops = [np.ascontiguousarray(image[top:bottom, left:right]) for left, top, right, bottom in part]
            for window, seen in zip(part, self.detector.detect_batch(crops, thresholds), strict=True):
                found.append(_moved(seen, window))
                cut.append(cut_by_window(found[-1].boxes, window, height, width))
        if self.whole:
            found += self.detector.detect_batch([image], thresholds)
            cut.append(np.zeros(len(found[-1]), bool))
        iou_threshold = self.config.iou_threshold if thresholds.iou_threshold is None else thresholds.iou_threshold
        limit = thresholds.max_detections or self.config.max_detections
        suppress = agnostic_nms if thresholds.suppress is agnostic_nms else None
        return join_views(found, cut, iou_threshold, limit, suppress)


def cut_by_window(boxes: np.ndarray, window: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Which of (N, 4) boxes, image pixels, end at an edge of the tile that is not an edge of the image: (N,) bool."""
    left, top, right, bottom = window
    near_x, near_y = EDGE * (right - left), EDGE * (bottom - top)
    x1, y1, x2, y2 = boxes.T
    return (
        ((x1 < left + near_x) & (left > 0))
        | ((y1 < top + near_y) & (top > 0))
        | ((x2 > right - near_x) & (right < width))
        | ((y2 > bottom - near_y) & (bottom < height))
    )


def join_views(
    views: Sequence[Detections],
    cut: Sequence[np.ndarray],
    iou_threshold: float,
    max_detections: int,
    suppress: Suppress | None = None,
) -> Detections:
    """Merge the detections of all tiles, in image pixels, best first: cut objects are joined, duplicates dropped.

    Merging works within a class. `suppress` then removes duplicates of different classes.
    """
    boxes, scores, labels = (
        np.concatenate([getattr(view, name) for view in views]) for name in ("boxes", "scores", "labels")
    )
    found = merge_cut_boxes(boxes, scores, labels, np.concatenate(cut), iou_threshold)
    if suppress is not None:
        found = suppress(*found, iou_threshold)
    return Detections(*found)[:max_detections]


def _moved(found: Detections, window: tuple[int, int, int, int]) -> Detections:
    left, top = window[:2]
    return Detections(found.boxes + np.array([left, top, left, top], np.float32), found.scores, found.labels)
