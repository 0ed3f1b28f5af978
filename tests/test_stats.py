"""Statistics of a small data set compared with values counted by hand, and their plot."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import dataset
from data.index import DatasetIndex
from data.tools.demo import write_demo
from data.tools.stats import centre_map, dataset_stats, draw_stats, format_stats
from imaging.letterbox import Letterbox
from nets.model_config import YOLOV4_ANCHORS
from utils.errors import UserError

LETTERBOX = Letterbox((416, 416))


@pytest.fixture
def index() -> DatasetIndex:
    """Three images: two dogs and a crowd of cats; one difficult dog; no object."""
    first = np.array([[0, 0, 10, 10], [10, 10, 60, 60], [0, 0, 400, 200.0]])
    return DatasetIndex.build(
        "hand-made",
        ["cat", "dog $x$", "never"],
        ["a.jpg", "b.jpg", "c.jpg"],
        [1, 2, 3],
        [(208, 416), (416, 208), (100, 100)],
        [first, np.array([[104, 208, 208, 416.0]]), np.zeros((0, 4))],
        [[1, 1, 0], [1], []],
        [[False] * 3, [True], []],
        [[False, False, True], [False], []],
    )


def test_every_count_equals_the_manual_count(index: DatasetIndex) -> None:
    stats = dataset_stats(index, LETTERBOX, YOLOV4_ANCHORS)
    assert (stats["num_images"], stats["num_empty_images"], stats["num_boxes"]) == (3, 1, 4)
    assert (stats["num_difficult"], stats["num_crowd"], stats["imbalance"]) == (1, 1, 3)
    assert stats["classes"][1] == {"name": "dog $x$", "boxes": 3, "images": 2, "difficult": 1, "crowd": 0}
    assert stats["classes"][2]["boxes"] == 0
    assert stats["objects_per_image"] == {"mean": round(4 / 3, 6), "max": 3, "histogram": [1, 1, 0, 1]}
    assert [stats["box_sizes"][k] for k in ("small", "medium", "large")] == [1, 1, 2]
    assert sum(row["best_for"] for row in stats["anchors"]["rows"]) == pytest.approx(1, abs=1e-5)
    assert stats["image_sizes"]["largest"] == [416, 416]
    json.dumps(stats)


def test_centres_fall_into_their_cells(index: DatasetIndex) -> None:
    cells = centre_map(index, 4)
    assert cells.sum() == 4
    assert cells[3, 3] == 1  # three quarters right and down
    assert cells[0, 0] == 2 and cells[1, 1] == 1


def test_the_text_names_every_class(index: DatasetIndex) -> None:
    text = format_stats(dataset_stats(index, LETTERBOX, YOLOV4_ANCHORS))
    assert "dog $x$" in text and "never" in text and "best possible recall" in text


def test_an_image_is_drawn(index: DatasetIndex, tmp_path: Path) -> None:
    stats = dataset_stats(index, LETTERBOX, YOLOV4_ANCHORS)
    draw_stats(index, stats, LETTERBOX, YOLOV4_ANCHORS, tmp_path / "deep" / "stats.png")
    assert cv2.imread(str(tmp_path / "deep" / "stats.png")).std() > 10


def test_the_command_prints_json_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "demo", 6, 0, (96, 128))
    picture = tmp_path / "stats.png"
    dataset.main(["stats", str(tmp_path / "demo"), "--input-size", "96", "128", "--json", "--output", str(picture)])
    stats = json.loads(capsys.readouterr().out)
    assert stats["num_images"] == 4 and stats["input_size"] == [96, 128]
    assert picture.exists()
    drawn = picture.read_bytes()
    with pytest.raises(UserError, match="would be overwritten"):
        dataset.main(["stats", str(tmp_path / "demo"), "--output", str(picture)])
    assert picture.read_bytes() == drawn
    with pytest.raises(UserError, match="multiples of 32"):
        dataset.main(["stats", str(tmp_path / "demo"), "--input-size", "100"])
    with pytest.raises(UserError, match=r"\.png"):
        dataset.main(["stats", str(tmp_path / "demo"), "--output", "stats"])


def test_nothing_at_all_has_stats_too(index: DatasetIndex, tmp_path: Path) -> None:
    for indices in ([], [2]):
        nothing = index.subset(indices)
        stats = dataset_stats(nothing, LETTERBOX, YOLOV4_ANCHORS)
        assert stats["num_boxes"] == 0
        assert "boxes" in format_stats(stats)
    draw_stats(nothing, stats, LETTERBOX, YOLOV4_ANCHORS, tmp_path / "stats.png")
