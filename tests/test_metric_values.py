"""Exact values of parts of the metrics, computed by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_makers import RecordBuilder

from data.index import DatasetIndex
from evaluation import evaluator
from evaluation.evaluator import FoundDetections, evaluate, match_classes, run_detector, score
from evaluation.metrics import matching
from evaluation.metrics.coco import coco_figures
from evaluation.metrics.curves import ScoreCurve, score_curves
from evaluation.metrics.matching import best_matches, outcomes, pair_iou
from evaluation.metrics.record import EvalRecord
from evaluation.metrics.voc import average_precision_07, average_precision_10, class_curves, mean_or_none
from imaging.detections import Detections
from nets.model_config import ModelConfig
from utils.errors import UserError
from utils.thresholds import Thresholds


def record_of(
    *images: tuple[list[list[float]], list[list[float]]], classes: tuple[str, ...] = ("a", "b")
) -> EvalRecord:
    """Images as ([x1, y1, x2, y2, score, label], ...) and ([x1, y1, x2, y2, label, difficult], ...)."""
    builder = RecordBuilder(classes)
    for found, objects in images:
        rows, truth = np.array(found, float).reshape(-1, 6), np.array(objects, float).reshape(-1, 6)
        detections = Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(int))
        builder.update(detections, {"boxes": truth[:, :4], "labels": truth[:, 4], "difficult": truth[:, 5]})
    return builder.build()


def test_iou_of_pairs() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5], [1, 2, 5, 10]], float)
    b = np.array([[5, 0, 15, 10], [10, 0, 20, 10], [20, 20, 30, 31], [2, 3, 6, 8], [5, 5, 5, 5], [3, 4, 9, 7]], float)
    assert pair_iou(a, b).tolist() == pytest.approx([50 / 150, 0, 0, 0.2, 0, 6 / (32 + 18 - 6)])
    small, beside = np.array([[0, 0, 0.5, 0.25]]), np.array([[0.25, 0, 0.75, 0.25]])  # as in relative coordinates
    assert pair_iou(small, small).tolist() == [1] and pair_iou(small, beside).tolist() == pytest.approx([1 / 3])


BOX, NEAR, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 8], [50.0, 50, 60, 60]


@pytest.mark.parametrize("at_once", [1, 3, 4_000_000])
def test_each_detection_is_matched_to_its_best_object_in_parts_of_any_size(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", at_once)
    record = record_of(
        ([[*NEAR, 0.9, 0], [*BOX, 0.8, 0], [*FAR, 0.7, 0], [*BOX, 0.6, 1]], [[*BOX, 0, 0], [*NEAR, 0, 0]]),
        ([[*BOX, 0.5, 1]], [[*FAR, 1, 0], [*NEAR, 1, 1], [*NEAR, 1, 1]]),
        ([[*BOX, 0.4, 0]], []),
    )
    matches = best_matches(record)
    assert matches.gt.tolist() == [1, 0, 0, -1, 3, -1] and matches.iou.tolist() == [1, 1, 0, 0, 0.8, 0]
    assert outcomes(record, matches, 0.8).tolist() == [1, 1, 0, 0, -1, 0]
    assert outcomes(record, matches, 0.81).tolist() == [1, 1, 0, 0, 0, 0]
    others = best_matches(record, same_class=False, gt_mask=np.array([False, True, True, True, False]))
    assert others.gt.tolist() == [1, 1, 1, 1, 3, -1] and others.iou.tolist() == [1, 0.8, 0, 0.8, 0.8, 0]


def test_the_second_detection_of_an_object_is_false_and_does_not_take_another() -> None:
    record = record_of(([[*BOX, 0.5, 0], [*BOX, 0.9, 0], [*BOX, 0.9, 0]], [[*BOX, 0, 0], [*NEAR, 0, 0]]))
    assert outcomes(record, best_matches(record), 0.5).tolist() == [0, 1, 0]


def test_average_precision_of_three_detections() -> None:
    # true, false, true of four objects
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1, 1 / 2, 2 / 3])
    assert average_precision_10(recall, precision) == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert average_precision_07(recall, precision) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert average_precision_07(np.array([1.0]), np.array([0.5])) == pytest.approx(0.5)
    assert average_precision_07(np.array([0.5, 1]), np.array([1, 0.5])) == pytest.approx((6 * 1 + 5 * 0.5) / 11)
    assert average_precision_07(np.zeros(0), np.zeros(0)) == average_precision_10(np.zeros(0), np.zeros(0)) == 0
    assert mean_or_none(np.array([np.nan, 1, 2])) == 1.5 and mean_or_none(np.array([np.nan])) is None


def test_curves_of_a_record() -> None:
    record = record_of(
        ([[*BOX, 0.875, 0], [*FAR, 0.875, 0], [*BOX, 0.3, 1]], [[*BOX, 0, 0], [0, 0, 9, 9, 1, 1]]),
        ([[*BOX, 0.625, 0], [*FAR, 0.75, 1]], [[*BOX, 0, 0], [*BOX, 0, 0], [*FAR, 1, 0]]),
    )
    outcome = outcomes(record, best_matches(record), 0.5)
    assert outcome.tolist() == [1, 0, -1, 1, 1]
    (scores, recall, precision), (of_b, recall_b, precision_b) = class_curves(record, outcome)
    assert scores.tolist() == [0.875, 0.875, 0.625] and of_b.tolist() == [0.75]
    assert recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3]) and precision.tolist() == pytest.approx(
        [1, 1 / 2, 2 / 3]
    )
    assert recall_b.tolist() == precision_b.tolist() == [1]
    assert class_curves(record, outcome, np.array([10, 0]))[0][1].tolist() == pytest.approx([0.1, 0.1, 0.2])

    curves = score_curves(record, outcome)
    first, second = curves.per_class
    assert first.scores.tolist() == [0.875, 0.625] and first.true_positives.tolist() == [1, 2]
    assert first.false_positives.tolist() == [1, 1] and first.num_gt == 3 and second.num_gt == 1
    assert first.precision.tolist() == pytest.approx([1 / 2, 2 / 3]) and first.recall.tolist() == pytest.approx(
        [1 / 3, 2 / 3]
    )
    assert first.f1.tolist() == pytest.approx([2 / 5, 4 / 6])
    assert first.at(0.625) == pytest.approx((2 / 3, 2 / 3, 2 / 3)) and first.at(0.63) == pytest.approx(
        (0.5, 1 / 3, 0.4)
    )
    assert first.counts(0.875) == (1, 1) and first.counts(0.0) == (2, 1)
    assert first.counts(0.88) == (0, 0) and first.at(0.88) == (0, 0, 0)
    assert first.at(0.875) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert second.precision.tolist() == second.recall.tolist() == second.f1.tolist() == [1]
    assert first.best == (0.625, pytest.approx(4 / 6))
    assert curves.overall.scores.tolist() == [0.875, 0.75, 0.625] and curves.overall.true_positives.tolist() == [
        1,
        2,
        3,
    ]
    assert curves.overall.num_gt == 4 and curves.best_f1 == pytest.approx(6 / 8)


def test_the_best_threshold_lies_midway_to_the_next_score() -> None:
    counts = np.array([1, 3, 3]), np.array([0, 0, 2])
    curve = ScoreCurve(np.array([0.9, 0.8, 0.4]), *counts, num_gt=3)
    assert curve.best == (pytest.approx(0.6), 1.0)
    assert ScoreCurve(np.array([0.9, 0.8, 0.4]), *counts, num_gt=0).best == (None, None)
    late = ScoreCurve(np.array([0.9, 0.4]), np.array([0, 1]), np.array([1, 1]), 1)  # the first one is wrong
    assert late.best == (0.4, pytest.approx(2 / 3))
    nothing = ScoreCurve(np.zeros(0), np.zeros(0, int), np.zeros(0, int), num_gt=0)
    assert nothing.best == (None, None) and nothing.at(0.5) == (0, 0, 0)
    assert ScoreCurve(np.array([0.5]), np.array([0]), np.array([0]), 0).precision.tolist() == [0]
    assert ScoreCurve(np.array([0.5]), np.array([0]), np.array([1]), 2).best == (None, None)


def test_coco_figures_of_a_detection_of_iou_eight_tenths() -> None:
    record = record_of(
        ([[*NEAR, 0.9, 0], [*FAR, 0.8, 1]], [[*BOX, 0, 0], [20, 20, 30, 30, 1, 1], [*FAR, 1, 1]]), ([], [[*BOX, 0, 0]])
    )
    figures = coco_figures(record, "pycocotools")
    half = 51 / 101  # recall 0.5 reaches 51 of the 101 points
    assert figures["per_class"]["a"]["coco_AP50"] == figures["per_class"]["a"]["coco_AP75"] == pytest.approx(half)
    assert figures["per_class"]["a"]["coco_AP"] == pytest.approx(0.7 * half)  # at IoU 0.50 to 0.80
    assert figures["coco_AP"] == pytest.approx(0.7 * half)
    assert figures["coco_AR_100"] == pytest.approx(0.35) and figures["coco_AP_large"] is None
    assert figures["per_class"]["b"]["coco_AP"] is None  # both of its objects are difficult


def test_coco_figures_of_a_class_at_75_of_all_sizes_and_a_hundred_detections() -> None:
    close = [0.0, 0, 10, 7.8]  # IoU 0.78, so not at 0.80
    values = coco_figures(record_of(([[*close, 0.9, 0]], [[*BOX, 0, 0]])), "pycocotools")["per_class"]["a"]
    assert (values["coco_AP75"], values["coco_AP"]) == (pytest.approx(1), pytest.approx(0.6))
    half = coco_figures(record_of(([[0, 0, 10, 5.2, 0.9, 0]], [[*BOX, 0, 0]])), "pycocotools")["per_class"]["a"]
    assert (half["coco_AP50"], half["coco_AP"]) == (pytest.approx(1), pytest.approx(0.1))  # IoU 0.52
    large, wrong = [0.0, 0, 200, 200], [[300.0 + 20 * k, 0, 310 + 20 * k, 10, 0.9, 0] for k in range(11)]
    values = coco_figures(record_of(([*wrong, [*large, 0.5, 0]], [[*large, 0, 0]])), "pycocotools")["per_class"]["a"]
    assert values["coco_AP"] == pytest.approx(1 / 12)


# ---- the evaluator


class Fixed:
    """Returns the same detections for every image."""

    config = ModelConfig(("a", "b"), input_size=(64, 64))

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.timings: dict[str, float] = {}

    def detect_batch(self, images: list[np.ndarray], thresholds: object) -> list[Detections]:
        self.batches.append(len(images))
        self.timings["network"] = self.timings.get("network", 0.0) + 2.0
        return [Detections(np.array([BOX]), np.array([0.5]), np.array([0])) for _ in images]


def test_batches_are_told_with_the_sizes_of_their_images(tmp_path: Path) -> None:
    sizes, paths = [(20, 30), (40, 50), (60, 70)], [tmp_path / f"{name}.png" for name in "abc"]
    boxes, labels = [np.array([BOX]), np.array([BOX, BOX]), np.array([BOX])], [[0], [0, 2], [2]]
    index = DatasetIndex.build("three", ("a", "b", "cow"), paths, list("abc"), sizes, boxes, labels)
    told: list[tuple[list[int], list[tuple[int, int]]]] = []
    detector = Fixed()
    result = evaluate(
        detector,
        index,
        batch_size=2,
        coco=None,
        progress=False,
        read=lambda path: np.zeros((*sizes["abc".index(path.stem)], 3), np.uint8),
        after_batch=lambda positions, seen: told.append((list(positions), list(seen))),
    )
    assert detector.batches == [2, 1] and told == [([0, 1], sizes[:2]), ([2], sizes[2:])]
    assert result is not None and result.num_not_scored == 2 and result.num_images == 3
    assert result.figures["voc10_mAP50"] == 1.0 and result.best_f1_threshold == 0.5
    assert result.images_per_second == pytest.approx(3 / result.seconds["wall"])
    assert "COCO" not in result.protocol and "mean over 1 class with objects" in result.protocol


def index_of(count: int) -> DatasetIndex:
    places, nothing = [f"/{number}.jpg" for number in range(count)], [np.zeros((0, 4))] * count
    return DatasetIndex.build(
        "few", ("a",), places, list(map(str, range(count))), [(20, 30)] * count, nothing, [[]] * count
    )


def test_times_are_summed_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(5.0)  # one second between two looks at the clock
    monkeypatch.setattr(evaluator.time, "perf_counter", lambda: next(ticks))
    detector = Fixed()
    found = run_detector(detector, index_of(3), range(3), progress=False, workers=1, read=lambda _: np.zeros((9, 9, 3)))
    assert detector.batches == [1, 1, 1]  # without a runtime that names another batch
    assert found.seconds == {"decode": 3.0, "network": 6.0, "wall": 7.0}
    again = run_detector(detector, index_of(1), range(1), progress=False, workers=1, read=lambda _: np.zeros((9, 9, 3)))
    assert again.seconds["network"] == 2.0
    merged = FoundDetections.merged([found, dataclasses.replace(again, seconds={"wall": 8.0, "decode": 1.0})])
    assert merged.seconds == {"decode": 4.0, "network": 6.0, "wall": 8.0}


@pytest.mark.parametrize(("batch", "workers", "ahead"), [(5, 2, 10), (1, 3, 6)])
def test_images_are_decoded_ahead_for_two_batches(
    batch: int, workers: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []  # the last one: bytes of an image that does not exist

    def parallel_map(function: Any, items: Any, ahead: int, workers: int, cost: Any) -> Any:
        asked.append((ahead, workers, cost(0)))
        return map(function, items)

    monkeypatch.setattr(evaluator, "parallel_map", parallel_map)
    monkeypatch.setattr(evaluator.contextlib, "closing", contextlib.nullcontext)
    run_detector(Fixed(), index_of(1), [0], batch, progress=False, workers=workers, read=lambda _: np.zeros((9, 9, 3)))
    assert asked == [(ahead, workers, 0)]


def test_skips_name_the_reason_and_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    def read(path: Path) -> np.ndarray:
        raise UserError("here", "is damaged", "look") if path.stem == "0" else OSError("unplugged")

    found = run_detector(Fixed(), index_of(2), range(2), progress=True, workers=1, read=read)
    assert [(skip.where, skip.what) for skip in found.skips] == [("here", "is damaged"), ("/1.jpg", "unplugged")]
    assert "evaluating" in capsys.readouterr().err
    run_detector(Fixed(), index_of(2), range(2), progress=False, workers=1, read=read)
    assert "evaluating" not in capsys.readouterr().err


def test_only_images_that_the_evaluator_reads_are_decoded_at_reduced_size() -> None:
    detector = Fixed()
    detector.decoded_size = (64, 64)  # type: ignore[attr-defined]
    run_detector(detector, index_of(1), [0], progress=False, workers=1, read=lambda _: np.zeros((9, 9, 3)))
    assert detector.batches == [1]  # and no sizes were given, which this detector does not take


@pytest.mark.parametrize(("progress", "rank", "shown"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_only_the_first_process_shows_its_progress(
    progress: bool, rank: int, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    original = evaluator.run_detector
    monkeypatch.setattr(evaluator, "run_detector", lambda *a: seen.append(a[5]) or original(*a[:5], False, *a[6:]))
    options = {"progress": progress, "rank": rank, "world_size": 2, "coco": None}
    evaluate(Fixed(), index_of(2), read=lambda _: np.zeros((9, 9, 3), np.uint8), **options)  # type: ignore[arg-type]
    assert seen == [shown]


def test_the_rows_of_a_result() -> None:
    names, boxes = ("a", "b"), [np.array([BOX, FAR]), np.array([BOX])]
    index = DatasetIndex.build("two", names, ["/x.jpg", "/y.jpg"], ["x", "y"], [(99, 99)] * 2, boxes, [[0, 1], [0]])
    boxes_found = np.array([NEAR, FAR, [5.0, 5, 5, 9], [70.0, 70, 90, 90]])
    first = Detections(boxes_found, np.array([0.123456789, 0.9, 0.8, 0.7]), np.array([0, 0, 0, 0]))
    found = FoundDetections.from_list([0, 1], [first, Detections.empty()])
    result = score(index, names, np.array([0, 1]), found, None)
    assert len(result.record.det_scores) == 3  # the box without width is left out
    assert result.protocol == (
        "two; VOC2007 11-point and VOC2010 all-point AP at IoU 0.5, difficult objects ignored; "
        "boxes in original pixels; mean over 2 classes with objects"
    )
    described = score(index, names, np.array([0, 1]), found, None, "by hand")
    assert described.protocol == result.protocol + "; by hand"
    assert result.images_per_second is None and result.timing == {}
    timed = dataclasses.replace(result, seconds={"decode": 1.0, "network": 3.0, "wall": 4.0})
    assert timed.timing == {"decode": 0.25, "network": 0.75} and timed.images_per_second == 0.5
    row = {"image_id": "x", "image": "x.jpg", "objects": {"a": 1, "b": 1}, "missed": 1}
    row |= {"true_positives": 1, "false_positives": 2, "detections": [[0, 0.1234568, 1], [0, 0.9, 0], [0, 0.7, 0]]}
    other = {"image_id": "y", "image": "y.jpg", "objects": {"a": 1}, "true_positives": 0, "false_positives": 0}
    assert result.per_image() == [row, other | {"missed": 1, "detections": []}]
    values = result.per_class()
    assert {key: values["a"][key] for key in ("precision", "recall", "f1")} == {
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),
    }
    assert values["a"]["threshold"] == pytest.approx(0.123456789) and values["b"]["threshold"] is None


def test_thresholds_as_text() -> None:
    one = Thresholds(0.25, 0.45, 100, multi_label=False)
    said = "score >= 0.25, NMS at IoU 0.45 within a class, at most 100 detections per image, the best class of each box"
    assert evaluator.describe(one) == said
    several = evaluator.describe(dataclasses.replace(one, multi_label=True))
    assert several == said.replace("the best class of each box", "several classes per box")


def test_classes_are_matched_by_exact_name_first_and_named_where_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert match_classes(("Dog", "dog", "couch"), ("dog", "DOG", "sofa"), "set").tolist() == [1, 0, 2]
    assert match_classes(("dog",), ("cat", "dog"), "set").tolist() == [-1, 0]
    assert "does not have: cat" in capsys.readouterr().err
    assert match_classes(("dog",), (), "set").tolist() == [] and not capsys.readouterr().err
    match_classes(("z", *"abcdefgh"), ("z",), "set")
    assert "does not have: a, b, c, d, e, f, g, h; they are" in capsys.readouterr().err
    with pytest.raises(UserError, match="did you mean 'horse' for 'hors'") as caught:
        match_classes(("horse", *"abcdefgh"), ("hors",), "set")
    assert "model: horse, a, b, c, d, e, f, g and 1 more" in str(caught.value)
