"""Anchor clustering: anchors fit the boxes of the data, and are accepted only if they fit better than the old ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dataset
from data.index import DatasetIndex
from data.tools.anchors import (
    box_sizes,
    cluster_anchors,
    measure_anchors,
    propose_anchors,
    scaled_anchors,
    shape_iou,
)
from data.tools.demo import write_demo
from imaging.letterbox import Letterbox
from nets.model_config import YOLOV4_ANCHORS, ModelConfig

SQUARE = Letterbox((416, 416))


def index_of(sizes: np.ndarray, image: tuple[int, int] = (416, 416), crowd: bool = False) -> DatasetIndex:
    """One image with boxes of these (width, height), all at the corner."""
    boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    flags = [np.full(len(sizes), crowd)]
    return DatasetIndex.build(
        "test", ["a"], ["x.jpg"], ["x"], [image], [boxes], [np.zeros(len(sizes), int)], crowd=flags
    )


def nine_heaps(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    centres = np.array(
        [[10, 12], [20, 60], [50, 20], [60, 60], [100, 50], [50, 130], [130, 130], [300, 120], [300, 350]]
    )
    return centres, (centres[:, None] * rng.uniform(0.97, 1.03, (9, 40, 2))).reshape(-1, 2)


def test_iou_of_shapes_is_that_of_boxes_on_one_centre() -> None:
    iou = shape_iou(np.array([[10.0, 10.0], [20.0, 10.0]]), np.array([[10.0, 10.0], [5.0, 5.0]]))
    assert np.allclose(iou, [[1, 0.25], [0.5, 0.125]])


def test_nine_clusters_are_found_and_sorted_by_area() -> None:
    centres, sizes = nine_heaps(np.random.default_rng(0))
    found = cluster_anchors(sizes, 9, seed=1)
    assert np.all(np.diff(found.prod(axis=1)) > 0)
    order = np.argsort(centres.prod(axis=1))
    assert np.allclose(found, centres[order], rtol=0.03)


def test_a_seed_gives_the_same_anchors() -> None:
    sizes = np.random.default_rng(2).uniform(5, 300, (500, 2))
    assert np.array_equal(cluster_anchors(sizes, 9, 3), cluster_anchors(sizes, 9, 3))


def test_recall_is_the_share_of_boxes_within_a_ratio_of_four() -> None:
    sizes = np.array([[10.0, 10.0], [39.0, 10.0], [41.0, 10.0], [10.0, 2.4]])
    assert measure_anchors(sizes, np.array([[10.0, 10.0]]))[0] == 0.5
    assert measure_anchors(np.zeros((0, 2)), YOLOV4_ANCHORS) == (0.0, 0.0)


def test_sizes_are_those_that_the_network_sees_and_crowds_do_not_count() -> None:
    sizes = np.array([[100.0, 50.0]])
    assert np.allclose(box_sizes(index_of(sizes, (832, 416)), SQUARE), [[50, 25]])
    assert np.allclose(box_sizes(index_of(sizes, (832, 416)), Letterbox((416, 416), "stretch")), [[100, 25]])
    assert len(box_sizes(index_of(sizes, crowd=True), SQUARE)) == 0


def test_better_anchors_are_accepted_and_fit_a_config() -> None:
    _, sizes = nine_heaps(np.random.default_rng(0))
    report = propose_anchors(index_of(sizes), SQUARE, YOLOV4_ANCHORS)
    assert report.accepted and report.anchors == report.new_anchors
    assert report.new_iou > 0.95 > report.old_iou
    assert (report.new_recall, report.new_iou) == measure_anchors(sizes, report.anchors)
    config = ModelConfig(class_names=("a",)).replace(anchors=report.anchors)
    assert config.anchors == report.anchors


def test_anchors_that_already_fit_are_kept() -> None:
    _, sizes = nine_heaps(np.random.default_rng(0))
    report = propose_anchors(index_of(sizes), SQUARE, YOLOV4_ANCHORS)
    again = propose_anchors(index_of(sizes), SQUARE, report.anchors)
    assert not again.accepted and again.anchors == report.anchors
    assert "keep the old anchors" in str(again)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_few_boxes_keep_the_old_anchors_and_say_why(count: int) -> None:
    sizes = np.arange(1, count + 1)[:, None] * np.array([[10.0, 20.0]])
    report = propose_anchors(index_of(sizes.reshape(-1, 2)), SQUARE, YOLOV4_ANCHORS)
    assert not report.accepted and "fewer than 9" in report.reason


def test_many_equal_boxes_beside_nine_sizes_still_give_nine_anchors() -> None:
    sizes = np.concatenate([np.full((5000, 2), 30.0), np.arange(1, 9)[:, None] * np.array([[31.0, 17.0]])])
    report = propose_anchors(index_of(sizes), SQUARE, YOLOV4_ANCHORS)
    assert len({pair for level in report.new_anchors for pair in level}) == 9


def test_anchors_grow_with_the_input() -> None:
    assert scaled_anchors(YOLOV4_ANCHORS, (208, 416))[0][0] == (6.0, 8.0)
    assert scaled_anchors(YOLOV4_ANCHORS, (416, 416)) == YOLOV4_ANCHORS


def test_the_command_reports_old_and_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path, 8, 0, (96, 128))
    dataset.main(["anchors", str(tmp_path), "--input-size", "128", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert np.shape(report["new_anchors"]) == (3, 3, 2)
    assert report["accepted"] == ((report["new_recall"], report["new_iou"]) > (report["old_recall"], report["old_iou"]))
    dataset.main(["anchors", str(tmp_path)])
    assert "use the new anchors" in capsys.readouterr().out or not report["accepted"]
