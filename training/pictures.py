"""Draw images of a run: first batches with boxes, and detections next to the ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data.index import DatasetIndex
from imaging.draw import contact_sheet, draw_boxes, draw_detections, draw_targets
from imaging.image_io import read_image, write_image
from nets.detector import Detector
from utils.errors import UserError

PREVIEW_BATCHES = 2
PREVIEW_IMAGES = 8

Batch = tuple[Tensor, dict[str, Any]]


def draw_first_batches(batches: Iterable[Batch], class_names: tuple[str, ...], folder: Path) -> Iterator[Batch]:
    """Yield batches; the first ones are drawn with their boxes, as train_batchN.jpg."""
    for number, (images, targets) in enumerate(batches):
        if number < PREVIEW_BATCHES:
            pictures = []
            for i in range(min(len(images), 2 * PREVIEW_IMAGES)):
                own = (targets["image_index"] == i) & (targets["weights"] > 0)
                image = np.ascontiguousarray(images[i].permute(1, 2, 0).numpy())
                boxes, labels = targets["boxes"][own].numpy(), targets["labels"][own].numpy()
                pictures.append(draw_boxes(image, boxes, labels, class_names))
            write_image(folder / f"train_batch{number}.jpg", contact_sheet(pictures))
        yield images, targets


def draw_validation(detector: Detector, index: DatasetIndex, path: Path) -> None:
    """Draw detections next to the ground truth, for the first images of a split."""
    pictures = []
    for i in range(min(len(index), PREVIEW_IMAGES)):
        try:
            image = read_image(index.path(i))
        except (UserError, OSError):
            continue  # already reported by the evaluation
        pictures.append(draw_targets(image, index.target(i), index.class_names))
        pictures.append(draw_detections(image, detector.detect_batch([image])[0], detector.config.class_names))
    if pictures:
        captions = ["ground truth", "detections"] * (len(pictures) // 2)
        write_image(path, contact_sheet(pictures, captions=captions))
