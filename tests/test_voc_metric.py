"""VOC average precision compared with an implementation of the devkit, values computed by hand and published values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_makers import RecordBuilder, VOCMetric

from evaluation.metrics.curves import score_curves
from evaluation.metrics.matching import best_matches, outcomes
from imaging.detections import Detections


def devkit_ap(detections: list[Detections], targets: list[dict], label: int, threshold: float) -> tuple[float, float]:
    """VOCevaldet.m and VOCap.m line by line (slow), with continuous instead of inclusive boxes. NaN without objects."""
    rows = [
        (float(score), i, box.astype(float))
        for i, found in enumerate(detections)
        for box, score, its_label in zip(found.boxes, found.scores, found.labels, strict=True)
        if its_label == label
    ]
    rows.sort(key=lambda row: -row[0])  # Python's sort is stable, as MATLAB's is
    objects = []
    for target in targets:
        mine = target["labels"] == label
        ignored = (target["difficult"] | target["crowd"])[mine]
        objects.append(
            {"boxes": target["boxes"][mine].astype(float), "ignored": ignored, "found": [False] * mine.sum()}
        )
    count = sum(int((~each["ignored"]).sum()) for each in objects)
    if count == 0:
        return np.nan, np.nan
    true, false = np.zeros(len(rows)), np.zeros(len(rows))
    for d, (_, i, box) in enumerate(rows):
        largest, best = -np.inf, -1
        for j, gt in enumerate(objects[i]["boxes"]):
            width = min(box[2], gt[2]) - max(box[0], gt[0])
            height = min(box[3], gt[3]) - max(box[1], gt[1])
            if width > 0 and height > 0:
                union = (box[2] - box[0]) * (box[3] - box[1]) + (gt[2] - gt[0]) * (gt[3] - gt[1]) - width * height
                if width * height / union > largest:
                    largest, best = width * height / union, j
        if largest >= threshold:
            if not objects[i]["ignored"][best]:
                if not objects[i]["found"][best]:
                    true[d] = 1
                    objects[i]["found"][best] = True
                else:
                    false[d] = 1
        else:
            false[d] = 1
    true, false = np.cumsum(true), np.cumsum(false)
    recall = true / count
    precision = true / np.maximum(true + false, np.finfo(float).eps)
    eleven = 0.0
    for t in np.arange(0.0, 1.1, 0.1):
        above = precision[recall >= t]
        eleven += (above.max() if len(above) else 0.0) / 11.0
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return eleven, float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


def scene(rng: np.random.Generator, images: int, classes: int) -> tuple[list[Detections], list[dict]]:
    """Random images on a coarse grid, so that equal IoUs, IoUs of exactly 0.5 and equal scores occur."""
    detections, targets = [], []
    for i in range(images):
        objects, found = rng.integers(0, 5), rng.integers(0, 9)
        corner = rng.integers(0, 6, (objects, 2)) * 4.0
        boxes = np.concatenate([corner, corner + rng.integers(1, 4, (objects, 2)) * 4.0], axis=1)
        targets.append(
            {
                "boxes": boxes.astype(np.float32),
                "labels": rng.integers(0, classes, objects),
                "difficult": rng.random(objects) < 0.25,
                "crowd": rng.random(objects) < 0.05,
                "image_id": i,
            }
        )
        near = boxes[rng.integers(0, objects, found)] if objects else np.full((found, 4), [0.0, 0, 8, 8])
        moved = near + rng.integers(-1, 2, (found, 4)) * rng.choice([0.0, 2.0, 4.0], (found, 1))
        detections.append(Detections(moved, rng.integers(1, 8, found) / 8, rng.integers(0, classes, found)))
    return detections, targets


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 3), st.sampled_from([0.1, 0.3, 0.5, 0.75]))
def test_voc_ap_equals_the_devkit(seed: int, images: int, classes: int, threshold: float) -> None:
    detections, targets = scene(np.random.default_rng(seed), images, classes)
    metric = VOCMetric([str(c) for c in range(classes)], (threshold,))
    for found, target in zip(detections, targets, strict=True):
        metric.update(found, target)
    result = metric.compute()
    suffix = f"{100 * threshold:g}"
    expected = np.array([devkit_ap(detections, targets, c, threshold) for c in range(classes)])
    for c in range(classes):
        for protocol, value in zip(("voc07", "voc10"), expected[c], strict=True):
            ours = result["per_class"][str(c)][f"{protocol}_AP{suffix}"]
            assert (ours is None and np.isnan(value)) or ours == pytest.approx(value, abs=1e-12)
    if not np.isnan(expected).all():
        assert result[f"voc10_mAP{suffix}"] == pytest.approx(np.nanmean(expected[:, 1]), abs=1e-12)


def test_the_order_of_images_matters_only_for_equal_scores() -> None:
    rng = np.random.default_rng(3)
    detections, targets = scene(rng, 20, 3)
    detections = [Detections(d.boxes, rng.random(len(d)), d.labels) for d in detections]

    def score(order: np.ndarray) -> dict:
        metric = VOCMetric(["a", "b", "c"])
        for i in order:
            metric.update(detections[i], targets[i])
        return metric.compute()

    assert score(np.arange(20))["voc10_mAP50"] == pytest.approx(score(rng.permutation(20))["voc10_mAP50"], abs=1e-12)


def one_image(boxes: list, scores: list, objects: list, difficult: list | None = None) -> dict:
    metric = VOCMetric(["thing"])
    metric.update(
        Detections(np.array(boxes, float).reshape(-1, 4), np.array(scores), np.zeros(len(scores))),
        {
            "boxes": np.array(objects, np.float32).reshape(-1, 4),
            "labels": np.zeros(len(objects), np.int64),
            "difficult": np.array(difficult or [False] * len(objects), bool),
            "crowd": np.zeros(len(objects), bool),
        },
    )
    return metric.compute()


def test_perfect_detections_score_one() -> None:
    result = one_image([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.8], [[0, 0, 10, 10], [20, 20, 30, 30]])
    assert result["voc07_mAP50"] == pytest.approx(1.0)
    assert result["voc10_mAP50"] == 1.0


def test_ap_worked_by_hand() -> None:
    """Two objects; right at 0.9, wrong at 0.8, right at 0.7: precision 1 to recall 0.5, then 2/3."""
    result = one_image(
        [[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]], [0.9, 0.8, 0.7], [[0, 0, 10, 10], [20, 20, 30, 30]]
    )
    assert result["voc10_mAP50"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert result["voc07_mAP50"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_a_second_detection_of_an_object_is_a_false_positive() -> None:
    result = one_image(
        [[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.8, 0.7], [[0, 0, 10, 10], [20, 20, 30, 30]]
    )
    assert result["voc10_mAP50"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_difficult_objects_are_ignored_by_the_metrics() -> None:
    boxes, objects = [[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 10], [20, 20, 30, 30]]
    result = one_image(boxes, [0.9, 0.8, 0.7], objects, [True, False])
    assert result["voc10_mAP50"] == 1.0
    assert result["per_class"]["thing"]["num_gt"] == 1


def test_metrics_without_objects_are_empty_and_with_misses_only_zero() -> None:
    assert VOCMetric(["thing"]).compute()["voc10_mAP50"] is None
    assert one_image([[0, 0, 1, 1]], [0.5], [])["voc10_mAP50"] is None
    assert one_image([], [], [[0, 0, 1, 1]])["voc10_mAP50"] == 0.0
    assert one_image([], [], [])["per_class"]["thing"]["voc07_AP50"] is None


def test_reset_forgets_the_images() -> None:
    metric = VOCMetric(["thing"])
    metric.update(Detections.empty(), {"boxes": np.zeros((1, 4)), "labels": np.zeros(1)})
    metric.reset()
    assert metric.compute()["voc10_mAP50"] is None


def test_the_best_f1_threshold_keeps_what_is_right() -> None:
    """Three right above 0.6, then two wrong: any threshold between 0.6 and 0.5 is best, with recall 3/4."""
    builder = RecordBuilder(["thing"])
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(6)], float)
    builder.update(
        Detections(boxes[[0, 1, 2, 4, 5]], [0.9, 0.7, 0.6, 0.5, 0.1], np.zeros(5)),
        {"boxes": boxes[:4], "labels": np.zeros(4)},
    )
    record = builder.build()
    curves = score_curves(record, outcomes(record, best_matches(record), 0.5))
    assert 0.5 < curves.best_threshold < 0.6
    assert curves.best_f1 == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert curves.overall.at(0.65) == pytest.approx((1.0, 0.5, 2 / 3))


@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.5", "0.75"])
def test_published_figures_of_seven_images_are_met(shared: Path, threshold: str) -> None:
    """They take `x y width height` as the inclusive corners x .. x + width, so a box is width + 1 pixels wide."""
    folder = shared / "data/eval_cases"
    expected = json.loads((folder / "expected.json").read_text())["voc_7"]
    metric = VOCMetric(["object"], (float(threshold),))
    for file in sorted((folder / "voc_7/ground_truth").glob("*.txt")):
        objects = _rows(file)
        found = _rows(folder / "voc_7/detections" / file.name)
        metric.update(
            Detections(_inclusive(found[:, -4:]), found[:, 0], np.zeros(len(found))),
            {"boxes": _inclusive(objects), "labels": np.zeros(len(objects), np.int64)},
        )
    result = metric.compute()
    suffix = f"{100 * float(threshold):g}"
    assert result[f"voc07_mAP{suffix}"] == pytest.approx(expected["AP_11_point"][threshold], abs=expected["tolerance"])
    assert result[f"voc10_mAP{suffix}"] == pytest.approx(expected["AP_all_point"][threshold], abs=expected["tolerance"])


def _rows(file: Path) -> np.ndarray:
    rows = [[float(v) for v in line.split()[1:]] for line in file.read_text().splitlines() if line.strip()]
    return np.array(rows).reshape(len(rows), -1)


def _inclusive(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:] + 1], axis=1)
