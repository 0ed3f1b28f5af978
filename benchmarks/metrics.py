"""Time the metrics on a set of any size: VOC AP, COCO by both evaluators, the error analysis."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics.coco import coco_figures
from evaluation.metrics.errors import analyse_errors
from evaluation.metrics.matching import best_matches, outcomes
from evaluation.metrics.record import EvalRecord, box_areas
from evaluation.metrics.voc import IOU_THRESHOLD, voc_figures
from utils.config import option, parse_options
from utils.errors import run_command


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to time."""

    images: int = option(5000, "images", low=1)
    classes: int = option(20, "classes", low=1)
    detections: int = option(100, "detections of an image", low=0)
    objects: int = option(8, "objects of an image", low=1)
    coco: bool = option(False, "also time pycocotools and faster-coco-eval, and compare their figures")
    seed: int = option(0, "of the random boxes")
    json: bool = option(False, "print JSON")


def main(argv: list[str] | None = None) -> None:
    """Print seconds of CPU time and of the clock."""
    options = parse_options(BenchmarkOptions, argv, description=__doc__ or "")
    record = make_record(options)
    rows: dict[str, dict[str, Any]] = {}
    figures = timed(rows, "VOC AP", lambda: voc_figures(record, (IOU_THRESHOLD,)))
    outcome = outcomes(record, best_matches(record), IOU_THRESHOLD)
    timed(rows, "error analysis", lambda: analyse_errors(record, outcome))
    if options.coco:
        slow = timed(rows, "COCO, pycocotools", lambda: coco_figures(record, "pycocotools"))
        fast = timed(rows, "COCO, faster-coco-eval", lambda: coco_figures(record, "faster"))
        keys = [key for key in slow if key != "per_class" and slow[key] is not None]
        rows["COCO, faster-coco-eval"]["largest_difference"] = max(abs(slow[key] - fast[key]) for key in keys)
    report = {
        "images": options.images,
        "classes": options.classes,
        "detections": options.images * options.detections,
        "objects": len(record.gt_image),
        "voc10_mAP50": figures["voc10_mAP50"],
        "seconds": rows,
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{options.images} images, {report['detections']} detections, {report['objects']} objects, ", end="")
    print(f"{options.classes} classes; VOC10 mAP50 {figures['voc10_mAP50']:.4f}")
    for name, row in rows.items():
        extra = f"  largest difference {row['largest_difference']:.1e}" if "largest_difference" in row else ""
        print(f"{name:<32} {row['cpu']:7.2f} s of CPU {row['wall']:7.2f} s of the clock{extra}")


def make_record(options: BenchmarkOptions) -> EvalRecord:
    """Random objects, and detections of which about a third lie near one of them."""
    rng = np.random.default_rng(options.seed)
    shape = (options.images, options.objects)
    corner = rng.uniform(0, 400, (*shape, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 200, (*shape, 2))], axis=2)
    labels = rng.integers(0, options.classes, shape)
    source = rng.integers(0, options.objects, (options.images, options.detections))
    spread = np.where(rng.random(source.shape) < 0.35, 8.0, 120.0)[..., None]
    moved = np.take_along_axis(boxes, source[..., None], 1) + rng.normal(0, 1, (*source.shape, 4)) * spread
    moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
    position = np.arange(options.images)
    objects = boxes.reshape(-1, 4)
    return EvalRecord(
        class_names=tuple(f"class {c}" for c in range(options.classes)),
        image_ids=position,
        det_image=np.repeat(position, options.detections),
        det_boxes=moved.reshape(-1, 4),
        det_scores=rng.random(source.size),
        det_labels=np.take_along_axis(labels, source, 1).ravel(),
        gt_image=np.repeat(position, options.objects),
        gt_boxes=objects,
        gt_labels=labels.ravel(),
        gt_difficult=rng.random(labels.size) < 0.1,
        gt_crowd=np.zeros(labels.size, bool),
        gt_areas=box_areas(objects),
    )


def timed(rows: dict[str, dict[str, Any]], name: str, function: Callable[[], Any]) -> Any:
    """Run once and note the time."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    rows[name] = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return result


if __name__ == "__main__":
    run_command(main)  # type: ignore[arg-type]
