"""Pseudo-label the images of a data set with a detector, for `train.py --teacher`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.data_options import DataOptions
from data.index import DatasetIndex
from evaluation.evaluator import EVAL_THRESHOLDS, FoundDetections, match_classes, run_detector
from nets.detector import Detector
from utils.config import option, parse_options
from utils.files import write_file
from utils.output_rules import check_output_file
from utils.text import counted

THRESHOLD = 0.1  # lower scores carry no information


@dataclass(frozen=True)
class PseudoLabelOptions(DataOptions):
    """The options of `dataset.py pseudo-label`."""

    output: str = option("pseudo.json", "output file of the detections")
    checkpoint: str | None = option(None, "checkpoint of the detector (default: the bundled one)")
    input_size: tuple[int, ...] | None = option(None, "height [width] of the detector's input, multiples of 32")
    threshold: float = option(THRESHOLD, "minimum score", low=0, high=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:N")
    overwrite: bool = option(False, "replace the output file if it exists")


def find_labels(detector: Detector, index: DatasetIndex, threshold: float = THRESHOLD) -> FoundDetections:
    """Detections of all images of a split, with the class indices of the data; other classes are omitted."""
    thresholds = replace(EVAL_THRESHOLDS, score_threshold=threshold, multi_label=False)
    found = run_detector(detector, index, np.arange(len(index)), batch_size=1, thresholds=thresholds)
    of_data = match_classes(detector.config.class_names, index.class_names, index.name)
    to_data = np.full(len(detector.config.class_names), -1)
    to_data[of_data[of_data >= 0]] = np.flatnonzero(of_data >= 0)
    mapped = to_data[found.labels]
    known = mapped >= 0
    return FoundDetections(
        found.image[known], found.boxes[known], found.scores[known], mapped[known], found.images, skips=found.skips
    )


def main(argv: list[str] | None = None) -> None:
    """`dataset.py pseudo-label DATA`."""
    options = parse_options(PseudoLabelOptions, argv, prog="dataset.py pseudo-label", description=__doc__ or "")
    path = check_output_file("--output", options.output, options.overwrite, [options.data])
    index = options.open()
    detector = Detector.open(options.checkpoint, options.device)
    if options.input_size:
        detector.set_input_size(options.input_size)
    found = find_labels(detector, index, options.threshold)
    write_file(path, json.dumps(_rows(found, index)).encode())
    print(
        f"{path}: {counted(len(found.image), 'detection')} of {counted(len(found.images), 'image')}; "
        f"use them with: train.py --teacher {path}"
    )


def _rows(found: FoundDetections, index: DatasetIndex) -> list[dict[str, Any]]:
    """Rows in the format of predict.py's JSON, one per image."""
    bounds = np.searchsorted(found.image, np.arange(len(index) + 1))
    rows = []
    for i in found.images.tolist():
        part = slice(bounds[i], bounds[i + 1])
        columns = (found.labels[part].tolist(), found.scores[part].tolist(), found.boxes[part].round(2).tolist())
        detections = [
            {"class_name": index.class_names[label], "score": round(score, 4), "box_xyxy": box}
            for label, score, box in zip(*columns, strict=True)
        ]
        rows.append({"image": index.image_ids[i].item(), "detections": detections})
    return rows
