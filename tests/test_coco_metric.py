"""COCO metrics: equal to pycocotools and to published values, and defined for empty data."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_makers import COCOMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.metrics.coco import FIGURES, check_evaluator
from imaging.detections import Detections
from utils.errors import MissingExtra, run_command, wrap_errors


def scene(seed: int, images: int = 6, classes: int = 3) -> tuple[list[Detections], list[dict]]:
    """Random images with objects of all sizes, including crowds, and detections near them."""
    rng = np.random.default_rng(seed)
    detections, targets = [], []
    for i in range(images):
        objects, found = rng.integers(0, 6), rng.integers(0, 12)
        corner = rng.uniform(0, 200, (objects, 2))
        boxes = np.concatenate([corner, corner + rng.choice([10, 50, 150], (objects, 1)) * rng.uniform(1, 2)], axis=1)
        targets.append(
            {
                "boxes": boxes.astype(np.float32),
                "labels": rng.integers(0, classes, objects),
                "difficult": np.zeros(objects, bool),
                "crowd": rng.random(objects) < 0.15,
                "image_id": i,
            }
        )
        near = boxes[rng.integers(0, objects, found)] if objects else np.full((found, 4), [2.0, 1, 11, 12])
        moved = near + rng.normal(0, 4, (found, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        detections.append(Detections(moved, rng.integers(1, 20, found) / 20, rng.integers(0, classes, found)))
    return detections, targets


def compute(detections: list, targets: list[dict], classes: int = 3, evaluator: str = "pycocotools") -> dict:
    metric = COCOMetric([f"class {c}" for c in range(classes)], evaluator)
    for found, target in zip(detections, targets, strict=True):
        metric.update(found, target)
    return metric.compute()


def pycocotools_stats(detections: list[Detections], targets: list[dict], classes: int) -> np.ndarray:
    """The same through pycocotools' own `loadRes`."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        annotations = [
            {
                "image_id": i,
                "category_id": int(label),
                "bbox": [*map(float, box[:2]), *map(float, box[2:].astype(float) - box[:2])],
                "area": float(np.prod(box[2:].astype(float) - box[:2])),
                "iscrowd": int(crowd),
            }
            for i, target in enumerate(targets)
            for box, label, crowd in zip(target["boxes"], target["labels"], target["crowd"], strict=True)
        ]
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(targets))],
            "categories": [{"id": c} for c in range(classes)],
            "annotations": [{"id": k + 1, **row} for k, row in enumerate(annotations)],
        }
        truth.createIndex()
        rows = [
            {
                "image_id": i,
                "category_id": int(label),
                "bbox": [*map(float, box[:2]), *map(float, box[2:].astype(float) - box[:2])],
                "score": float(score),
            }
            for i, found in enumerate(detections)
            for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
        ]
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_detections_score_as_pycocotools_scores_them(seed: int) -> None:
    detections, targets = scene(seed)
    if not sum(len(found) for found in detections) or not any((~t["crowd"]).any() for t in targets):
        return
    ours = compute(detections, targets)
    for name, value in zip(FIGURES, pycocotools_stats(detections, targets, 3), strict=True):
        assert (ours[f"coco_{name}"] is None and value == -1) or ours[f"coco_{name}"] == pytest.approx(value, abs=1e-12)


def test_the_faster_evaluator_gives_the_same_figures() -> None:
    pytest.importorskip("faster_coco_eval")
    detections, targets = scene(5, images=20)
    slow, fast = compute(detections, targets), compute(detections, targets, evaluator="faster")
    for name in FIGURES:
        assert fast[f"coco_{name}"] == pytest.approx(slow[f"coco_{name}"], abs=1e-6)
    for name, figures in slow["per_class"].items():
        assert fast["per_class"][name] == pytest.approx(figures, abs=1e-6)


def test_the_faster_evaluator_says_how_to_install_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[faster\]'"):
        compute(*scene(1), evaluator="faster")


def test_an_unknown_evaluator_is_rejected() -> None:
    with pytest.raises(ValueError, match="pycocotools, faster"):
        compute(*scene(1), evaluator="slow")


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster"])
def test_a_perfect_detector_scores_one_and_the_first_object_counts(evaluator: str) -> None:
    if evaluator == "faster":
        pytest.importorskip("faster_coco_eval")
    target = {"boxes": np.array([[0.0, 0, 40, 40]]), "labels": np.array([0])}
    result = compute([Detections(target["boxes"], [0.9], [0])], [target], evaluator=evaluator)
    assert result["coco_AP"] == pytest.approx(1.0)
    assert result["coco_AP_small"] is None
    assert result["per_class"]["class 0"]["coco_AP"] == pytest.approx(1.0)
    assert result["per_class"]["class 1"]["coco_AP"] is None


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster"])
def test_difficult_objects_are_ignored_by_the_metrics(evaluator: str) -> None:
    if evaluator == "faster":
        pytest.importorskip("faster_coco_eval")
    boxes = np.array([[0.0, 0, 40, 40], [100, 100, 180, 180]])
    target = {"boxes": boxes, "labels": np.zeros(2, int), "difficult": np.array([True, False])}
    found = Detections(boxes, [0.9, 0.8], [0, 0])
    assert compute([found], [target], evaluator=evaluator)["coco_AP"] == pytest.approx(1.0)
    only_difficult = {**target, "difficult": np.array([True, True])}
    assert compute([found], [only_difficult], evaluator=evaluator)["coco_AP"] is None


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster"])
def test_metrics_without_objects_are_null_and_without_detections_zero(evaluator: str) -> None:
    if evaluator == "faster":
        pytest.importorskip("faster_coco_eval")
    assert compute([], [], evaluator=evaluator)["coco_AP"] is None
    found = Detections([[0, 0, 9, 9]], [0.5], [1])
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
    assert compute([found], [nothing], evaluator=evaluator)["coco_AP"] is None
    missed = {"boxes": np.array([[0.0, 0, 40, 40]]), "labels": np.array([0])}
    assert compute([Detections.empty()], [missed], evaluator=evaluator)["coco_AP"] == 0.0


def test_pycocotools_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    compute(*scene(2))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster"])
def test_published_figures_of_a_hundred_images_are_met(shared: Path, evaluator: str) -> None:
    if evaluator == "faster":
        pytest.importorskip("faster_coco_eval")
    folder = shared / "data/eval_cases"
    expected = json.loads((folder / "expected.json").read_text())["coco_100"]
    truth = json.loads((folder / "coco_100/ground_truth.json").read_text())
    results = json.loads((folder / "coco_100/detections.json").read_text())["annotations"]
    classes = {category["id"]: i for i, category in enumerate(truth["categories"])}
    metric = COCOMetric([category["name"] for category in truth["categories"]], evaluator)
    for image in sorted(truth["images"], key=lambda each: each["id"]):
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        found = [a for a in results if a["image_id"] == image["id"]]
        metric.update(
            SimpleNamespace(
                boxes=_xyxy(found),
                scores=np.array([a["score"] for a in found]),
                labels=np.array([classes[a["category_id"]] for a in found], int),
            ),
            {
                "boxes": _xyxy(objects),
                "labels": np.array([classes[a["category_id"]] for a in objects], int),
                "crowd": np.array([a["iscrowd"] for a in objects], bool),
                "areas": np.array([a["area"] for a in objects]),
            },
        )
    figures = metric.compute()
    for name in FIGURES:
        assert figures[f"coco_{name}"] == pytest.approx(expected[name], abs=expected["tolerance"])


def _xyxy(rows: list[dict]) -> np.ndarray:
    boxes = np.array([row["bbox"] for row in rows], float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def test_a_run_without_an_evaluator_stops_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression test: without pycocotools, 26 epochs were trained before the first evaluation failed."""
    for name in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval", "faster_coco_eval"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pycocotools, which is not installed; run: pip install pycocotools"):
        check_evaluator()


def test_a_missing_requirement_of_an_installed_package_is_named_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression test: the evaluator was said to be missing, and installing it again would not have helped."""
    (tmp_path / "faster_coco_eval.py").write_text("import requirement_of_the_evaluator")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "faster_coco_eval"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda _: compute(*scene(1), evaluator="faster") and None)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: requirement_of_the_evaluator: ") and "faster" not in error


def test_a_package_without_its_system_library_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        with wrap_errors("a.onnx", "cannot be read", "export it again"):
            raise ImportError("libGL.so.1: cannot open shared object file", name="cv2")

    with pytest.raises(SystemExit) as stop:
        run_command(main)  # type: ignore[arg-type]
    assert stop.value.code == 1
    expected = "error: cv2: cannot be imported: libGL.so.1: cannot open shared object file; install it again"
    assert capsys.readouterr().err.startswith(expected)


def test_a_missing_required_package_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        import package_that_is_not_installed  # noqa: F401

    with pytest.raises(SystemExit) as stop:
        run_command(main)  # type: ignore[arg-type]
    assert stop.value.code == 1
    expected = "error: package_that_is_not_installed: this Python package is not installed"
    assert capsys.readouterr().err.startswith(expected)
