"""The evaluator: metrics are independent of batch size and number of processes; unreadable images are counted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from metric_makers import COCOMetric, VOCMetric

from benchmarks import scoreboard
from data.index import DatasetIndex
from evaluation.evaluator import EVAL_THRESHOLDS, FoundDetections, evaluate, match_classes, score
from evaluation.metrics.calibration import calibrate
from evaluation.metrics.compare import compare_rows, score_interval
from evaluation.metrics.confusion import confusion_matrix
from evaluation.metrics.errors import ERROR_TYPES, analyse_errors
from imaging.detections import Detections
from utils.errors import UserError

NAMES = ("cat", "dog", "bird")


def make_index(images: int = 12, seed: int = 0, names: tuple[str, ...] = NAMES) -> DatasetIndex:
    """Images whose path contains their number; half of the objects are of the first class."""
    rng = np.random.default_rng(seed)
    boxes, labels, difficult = [], [], []
    for _ in range(images):
        count = int(rng.integers(0, 5))
        corner = rng.integers(0, 100, (count, 2))
        boxes.append(np.concatenate([corner, corner + rng.integers(10, 80, (count, 2))], axis=1).astype(float))
        labels.append(rng.integers(0, len(names), count))
        difficult.append(rng.random(count) < 0.2)
    paths = [f"/pictures/{i:06d}.jpg" for i in range(images)]
    ids = [f"{i:06d}" for i in range(images)]
    return DatasetIndex.build("made up", names, paths, ids, [(200, 200)] * images, boxes, labels, difficult)


def read_number(path: Path) -> np.ndarray:
    """An image whose pixels are the number in its name."""
    return np.full((200, 200, 3), int(path.stem), np.uint8)


class FakeDetector:
    """Returns the given detections of an image, identified by the number in its pixels."""

    def __init__(self, index: DatasetIndex, seed: int = 1, names: tuple[str, ...] = NAMES) -> None:
        rng = np.random.default_rng(seed)
        self.config = SimpleNamespace(class_names=names, input_size=(64, 64), iou_threshold=0.5, max_detections=100)
        self.timings = {"preprocess": 0.0, "network": 0.0, "postprocess": 0.0}
        self.batches: list[int] = []
        self.found = []
        for i in range(len(index)):
            target = index.target(i)
            near = target["boxes"].repeat(2, axis=0) + rng.normal(0, 6, (2 * len(target["boxes"]), 4))
            wild = rng.uniform(0, 90, (2, 4)) + np.array([0, 0, 100, 100])
            labels = np.concatenate([target["labels"].repeat(2), rng.integers(0, len(names), 2)])
            scores = rng.integers(1, 20, len(labels)) / 20
            boxes = np.concatenate([near, wild])
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            self.found.append(Detections(boxes, scores, labels))

    def detect_batch(self, images: Any, thresholds: Any) -> list[Detections]:
        assert thresholds == EVAL_THRESHOLDS
        self.batches.append(len(images))
        self.timings["network"] += 0.5
        return [self.found[int(image[0, 0, 0])] for image in images]


def run(index: DatasetIndex, detector: FakeDetector, **options: Any) -> Any:
    return evaluate(detector, index, progress=False, read=options.pop("read", read_number), **options)


def test_the_figures_are_those_of_the_metrics() -> None:
    index = make_index()
    detector = FakeDetector(index)
    voc, coco = VOCMetric(NAMES), COCOMetric(NAMES)
    for i, found in enumerate(detector.found):
        voc.update(found, index.target(i))
        coco.update(found, index.target(i))
    values = run(index, detector, batch_size=5).to_json()
    for name, figure in (voc.compute() | coco.compute()).items():
        if name != "per_class":
            assert values[name] == pytest.approx(figure)
    assert values["per_class"]["dog"]["voc10_AP50"] == voc.compute()["per_class"]["dog"]["voc10_AP50"]
    assert values["per_class"]["dog"]["coco_AP"] == pytest.approx(coco.compute()["per_class"]["dog"]["coco_AP"])
    assert values["num_images"] == 12
    assert detector.batches == [5, 5, 2]


def test_json_holds_the_promised_keys_and_only_plain_values() -> None:

    index = make_index()
    values = json.loads(json.dumps(run(index, FakeDetector(index)).to_json(per_image=True), allow_nan=False))
    keys = {"voc07_mAP50", "voc10_mAP50", "coco_AP", "coco_AP50", "coco_AP75", "per_class", "num_images", "protocol"}
    assert keys <= set(values)
    assert set(values["per_class"]) == set(NAMES)
    assert {"voc07_AP50", "voc10_AP50", "coco_AP", "num_gt", "num_detections", "precision", "recall", "f1"} <= set(
        values["per_class"]["cat"]
    )
    assert sum(sum(row["objects"].values()) for row in values["per_image"]) == values["num_objects"]
    assert 0 < values["best_f1_threshold"] < 1
    assert set(values["timing"]) == {"decode", "preprocess", "network", "postprocess"}


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_does_not_change_the_figures(batch_size: int) -> None:
    index = make_index()
    detector = FakeDetector(index)
    assert run(index, detector, batch_size=batch_size).figures == run(index, detector, batch_size=4).figures


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_several_processes_give_exactly_the_figures_of_one(world_size: int) -> None:
    index = make_index()
    detector = FakeDetector(index)
    parts: list[FoundDetections] = []
    for rank in range(world_size):  # each process hands in its part; only the last sees all of them
        result = run(
            index,
            detector,
            rank=rank,
            world_size=world_size,
            gather=lambda part: (parts.append(part), parts if len(parts) == world_size else None)[1],
        )
        assert (result is None) == (rank < world_size - 1)
    single = run(index, detector)
    assert result.figures == single.figures
    assert np.array_equal(result.record.det_boxes, single.record.det_boxes)
    assert result.per_image() == single.per_image()


def test_an_image_that_cannot_be_read_is_skipped_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    index = make_index()

    def read(path: Path) -> np.ndarray:
        if path.stem == "000003":
            raise UserError(path, "is cut off")
        return read_number(path)

    detector = FakeDetector(index)
    result = run(index, detector, read=read)
    assert result.num_images == 11
    assert len(result.skips) == 1
    assert "000003.jpg: is cut off" in capsys.readouterr().err
    rest = index.subset([i for i in range(12) if i != 3])
    assert result.figures == run(rest, detector).figures


def test_a_set_without_images_or_objects_has_no_metrics() -> None:
    index = make_index().subset([])
    values = run(index, FakeDetector(make_index())).to_json()
    assert values["voc10_mAP50"] is None
    assert values["coco_AP"] is None
    assert values["num_images"] == 0


def test_nothing_found_scores_zero_and_has_no_best_threshold() -> None:
    index = make_index()
    detector = FakeDetector(index)
    detector.found = [Detections.empty()] * 12
    result = run(index, detector)
    assert result.figures["voc10_mAP50"] == 0.0
    assert result.best_f1_threshold is None
    assert result.per_image()[0]["missed"] == int((~index.target(0)["difficult"]).sum())


def test_classes_are_matched_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert match_classes(["dog", "cat"], ["cat", "dog"], "set").tolist() == [1, 0]
    assert match_classes(["dining table", "TV"], ["tvmonitor", "diningtable"], "set").tolist() == [1, 0]
    assert capsys.readouterr().err == ""
    assert match_classes(["dog", "cow"], ["cat", "dog"], "set").tolist() == [-1, 0]
    err = capsys.readouterr().err
    assert "does not have: cat" in err
    assert "does not have: cow" in err


def test_no_class_in_common_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'person' for 'persona'"):
        match_classes(["person", "car"], ["persona"], "set")


def test_the_order_of_the_classes_does_not_change_the_figures() -> None:
    index = make_index()
    turned = make_index(names=("bird", "dog", "cat"))
    turned = DatasetIndex(**{**turned.__dict__, "labels": 2 - index.labels, "boxes": index.boxes})
    detector = FakeDetector(index)
    assert run(index, detector).per_class() == run(turned, detector).per_class()


def test_objects_of_unknown_classes_are_not_scored_but_counted() -> None:
    index = make_index()
    detector = FakeDetector(index)
    cats_only = FakeDetector(index, names=("cat",))
    cats_only.found = [found[found.labels == 0] for found in detector.found]
    result = run(index, cats_only)
    assert result.num_not_scored == int((index.labels != 0).sum())
    assert result.figures["voc10_mAP50"] == run(index, detector).per_class()["cat"]["voc10_AP50"]


def made_up(objects: list, labels: list[int], boxes: list, scores: list[float], answers: list[int]) -> Any:
    """The evaluation of one image."""
    index = DatasetIndex.build("one", NAMES, ["/a.jpg"], ["a"], [(400, 400)], [np.array(objects, float)], [labels])
    found = FoundDetections.from_list([0], [Detections(np.array(boxes, float), scores, answers)])
    return score(index, NAMES, np.arange(3), found, None)


OBJECTS = [[0, 0, 20, 20], [100, 100, 200, 200], [300, 300, 320, 320]]


@pytest.mark.parametrize(
    ("name", "box", "label"),
    [
        ("classification", [100, 100, 200, 200], 1),
        ("localisation", [100, 100, 150, 170], 0),
        ("both", [100, 100, 150, 170], 1),
        ("duplicate", [0, 0, 20, 20], 0),
        ("background", [50, 50, 60, 60], 0),
    ],
)
def test_each_mistake_has_its_type(name: str, box: list[float], label: int) -> None:
    result = made_up(OBJECTS, [0, 0, 0], [OBJECTS[0], box], [0.9, 0.8], [0, label])
    errors = analyse_errors(result.record, result.outcome)
    kind = ERROR_TYPES.index(name)
    assert errors.det_type.tolist() == [-1, kind]
    assert errors.counts[kind].sum() == 1
    mended = name in ("classification", "localisation")
    assert errors.missed.tolist() == [False, not mended, True]


def test_the_gain_of_correcting_errors_equals_the_difference_in_ap() -> None:
    """One of three found, a second found with the wrong class: correcting the class raises AP from 1/3 to 2/3."""
    result = made_up(OBJECTS, [0, 0, 0], [OBJECTS[0], OBJECTS[1]], [0.9, 0.8], [0, 1])
    errors = analyse_errors(result.record, result.outcome)
    assert errors.average_precision == pytest.approx(1 / 3)
    assert errors.gain[ERROR_TYPES.index("classification")] == pytest.approx(1 / 3)
    assert errors.gain[ERROR_TYPES.index("missed")] == pytest.approx(1 / 2 - 1 / 3)
    assert errors.gain_by_size[ERROR_TYPES.index("missed")] == pytest.approx([1 / 2 - 1 / 3, 0, 0])
    assert errors.gain_by_size[ERROR_TYPES.index("classification")] == pytest.approx([0, 0, 1 / 3])


def test_the_confusion_matrix_counts_every_object_and_every_detection_once() -> None:
    result = made_up(
        OBJECTS, [0, 1, 2], [OBJECTS[0], OBJECTS[1], [50, 50, 60, 60], OBJECTS[2]], [0.9, 0.8, 0.7, 0.1], [0, 2, 1, 2]
    )
    assert confusion_matrix(result.record, 0.5).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_calibration_compares_scores_with_how_often_they_are_right() -> None:
    calibration = calibrate(np.array([0.95, 0.95, 0.55, 0.55, 0.01]), np.array([1, 1, 1, 0, 0]))
    assert calibration.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert calibration.error == pytest.approx(0.05)


def test_a_model_is_no_better_than_itself_and_better_than_one_that_finds_half() -> None:
    index = make_index(images=60)
    detector = FakeDetector(index)
    rows = run(index, detector, coco=None).to_json(per_image=True)
    same = compare_rows(rows, rows)
    assert same.difference == 0
    assert same.low == same.high == 0
    assert "no difference" in same.verdict
    detector.found = [found if i % 2 else Detections.empty() for i, found in enumerate(detector.found)]
    worse = compare_rows(rows, run(index, detector, coco=None).to_json(per_image=True))
    assert worse.high < 0
    assert "A is significantly better" in worse.verdict


def test_the_bootstrap_interval_holds_the_difference_and_its_ends_are_reproducible() -> None:
    index = make_index(images=40)
    a = run(index, FakeDetector(index, seed=1), coco=None).to_json(per_image=True)
    b = run(index, FakeDetector(index, seed=2), coco=None).to_json(per_image=True)
    first, second = compare_rows(a, b), compare_rows(a, b)
    assert first == second
    assert first.low <= first.difference <= first.high
    assert "significant" in first.verdict
    assert first.difference == pytest.approx(b["voc10_mAP50"] - a["voc10_mAP50"], abs=1e-6)


def test_a_score_alone_has_an_interval_over_images_and_a_line_in_the_scoreboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = make_index(images=40)
    path = tmp_path / "a.json"
    values = run(index, FakeDetector(index, seed=1)).to_json(per_image=True)
    path.write_text(json.dumps(values))
    score, low, high = score_interval(path, repetitions=100)
    assert low < score < high and score == pytest.approx(values["voc10_mAP50"], abs=1e-6)
    scoreboard.main([f"ours={path}", "--repetitions", "100"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"| ours | 40 | {score:.3f} ({low:.3f} to {high:.3f}) | {values['coco_AP']:.3f} |"


def test_comparing_files_of_different_images_is_an_error() -> None:
    index = make_index(images=10)
    detector = FakeDetector(index)
    first = run(index.subset(range(5)), detector, coco=None).to_json(per_image=True)
    second = run(index.subset(range(5, 10)), detector, coco=None).to_json(per_image=True)
    with pytest.raises(UserError, match="no image in common"):
        compare_rows(first, second)
