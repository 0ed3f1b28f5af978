"""COCO's twelve metrics, by pycocotools or faster-coco-eval."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from typing import Any

import numpy as np

from evaluation.metrics.record import EvalRecord
from evaluation.metrics.voc import none_if_nan
from utils.errors import require_packages

EVALUATORS = ("auto", "pycocotools", "faster")
TOOLS = {"pycocotools": "pycocotools", "faster": "faster-coco-eval"}
FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
# Outside every area range (the widest ends at 1e10): pycocotools ignores such an object but uses the
# ordinary IoU. The `ignore` key does not work: `_prepare` overwrites it with `iscrowd`.
_IGNORED_AREA = 1e11


def choose_evaluator(evaluator: str) -> str:
    """Resolve `auto` to `faster` if faster-coco-eval is installed (same metrics to 1e-6), else `pycocotools`."""
    if evaluator != "auto":
        return evaluator
    return "faster" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"


def check_evaluator() -> None:
    """Import the evaluator. A training run calls this at its start, hours before the first evaluation needs it.

    Raises:
        MissingExtra: if neither faster-coco-eval nor pycocotools is installed.
    """
    _tools(choose_evaluator("auto"))


def coco_figures(record: EvalRecord, evaluator: str = "auto") -> dict[str, Any]:
    """The twelve COCO metrics of a record, and AP of each class; identical to pycocotools.

    Crowd regions match any number of detections and do not count; VOC's `difficult` objects do not count. At most 100
    detections per class and image are scored. The size of an object is its annotation's `area` if given.

    Raises:
        MissingExtra: if the evaluator's package is not installed.
    """
    coco_class, eval_class = _tools(choose_evaluator(evaluator))
    figures: dict[str, Any] = {f"coco_{name}": None for name in FIGURES}
    unknown = dict.fromkeys(("coco_AP", "coco_AP50", "coco_AP75"))
    figures["per_class"] = {name: dict(unknown) for name in record.class_names}
    if not record.num_gt.any():
        return figures
    with contextlib.redirect_stdout(io.StringIO()):  # suppress pycocotools' output
        evaluation = eval_class(_coco(coco_class, record, False), _coco(coco_class, record, True), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    for name, value in zip(FIGURES, evaluation.stats, strict=False):
        figures[f"coco_{name}"] = float(value) if value > -1 else None
    precision = evaluation.eval["precision"][..., 0, -1]  # IoU x recall x class, all areas, 100 detections
    for c, name in enumerate(record.class_names):
        values = np.where(precision[:, :, c] > -1, precision[:, :, c], np.nan)
        if not np.isnan(values).all():
            ap = values.mean(axis=1)
            each = {"coco_AP": ap.mean(), "coco_AP50": ap[0], "coco_AP75": ap[5]}
            figures["per_class"][name] = {key: none_if_nan(value) for key, value in each.items()}
    return figures


def _tools(evaluator: str) -> tuple[Any, Any]:
    """(COCO, COCOeval) classes of the evaluator."""
    if evaluator == "faster":
        require_packages("--evaluator faster", ["faster_coco_eval"], "faster")
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    if evaluator != "pycocotools":
        raise ValueError(f"evaluator: {evaluator!r} is not one of {', '.join(EVALUATORS)}")
    require_packages("COCO AP", ["pycocotools"])
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _coco(coco_class: Any, record: EvalRecord, detections: bool) -> Any:
    """Build the evaluator's ground-truth or detection object in memory.

    Ids start at 1: pycocotools counts an annotation with id 0 as missed even if it is found.
    """
    if detections:
        image, labels, boxes = record.det_image, record.det_labels, record.det_boxes
    else:
        image, labels, boxes = record.gt_image, record.gt_labels, record.gt_boxes
    if np.issubdtype(record.image_ids.dtype, np.integer):  # equal scores are ranked in id order
        image = np.argsort(np.argsort(record.image_ids, kind="stable"))[image]
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    areas = xywh[:, 2] * xywh[:, 3] if detections else record.gt_areas
    columns = zip(image.tolist(), labels.tolist(), xywh.tolist(), areas.tolist(), strict=True)
    rows = [
        {"id": i, "image_id": im + 1, "category_id": c + 1, "bbox": box, "area": area, "iscrowd": 0}
        for i, (im, c, box, area) in enumerate(columns, start=1)
    ]
    if detections:
        for row, score in zip(rows, record.det_scores.tolist(), strict=True):
            row["score"] = score
    else:
        for i in np.flatnonzero(record.gt_crowd):
            rows[i]["iscrowd"] = 1
        for i in np.flatnonzero(record.gt_difficult & ~record.gt_crowd):
            rows[i]["area"] = _IGNORED_AREA
    coco = coco_class()
    coco.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(record.num_images)],
        "categories": [{"id": c + 1, "name": name} for c, name in enumerate(record.class_names)],
        "annotations": rows,
    }
    coco.createIndex()
    return coco
