"""Training tiles equal prediction's windows; the worst images are exported as a data set for labelling."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_makers import make_voc, picture
from train_makers import demo_data, run_train

import eval as eval_script
import predict
from data.index import DatasetIndex
from data.open import open_dataset
from data.tiles import boxes_in_tile, tile_dataset, tile_windows
from evaluation.evaluator import FoundDetections, score
from evaluation.worst import export_worst, find_mistakes
from imaging.image_io import read_image, write_image
from prediction.options import PredictOptions
from service.labelling.order import read_queue
from service.labelling.store import open_store
from training.options import TrainOptions
from utils.config import parse_options
from utils.errors import UserError


def test_a_cut_box_keeps_its_visible_part() -> None:
    boxes = np.array([[10.0, 10, 30, 30], [90, 10, 130, 30], [200, 10, 220, 30]])
    inside, share = boxes_in_tile(boxes, (0, 0, 100, 100))
    assert inside[0].tolist() == [10, 10, 30, 30] and share[0] == 1
    assert inside[1].tolist() == [90, 10, 100, 30] and share[1] == 0.25
    assert share[2] == 0


def large_image(folder: Path) -> DatasetIndex:
    path = folder / "large.png"
    write_image(path, picture(1, 200, 300))
    boxes = np.array([[10.0, 10, 40, 40], [180, 20, 240, 60], [95, 150, 105, 160]])
    return DatasetIndex.build("set", ["dog"], [path], ["large"], [(200, 300)], [boxes], [[0, 0, 0]])


def test_tiles_are_prediction_s_windows_with_their_own_boxes(tmp_path: Path) -> None:
    index = large_image(tmp_path)
    windows = tile_windows(200, 300, 128, 128, 0.25)
    tiled = tile_dataset(index, (128, 128), 0.25, tmp_path / "tiles")
    assert len(tiled) == 1 + len(windows)
    assert tiled.path(0) == index.path(0) and tiled.target(0)["boxes"].tolist() == index.target(0)["boxes"].tolist()
    whole = read_image(index.path(0)).astype(int)
    for i, (left, top, right, bottom) in enumerate(windows, 1):
        assert tiled.sizes[i].tolist() == [bottom - top, right - left]
        difference = np.abs(read_image(tiled.path(i)).astype(int) - whole[top:bottom, left:right])
        assert difference.mean() < 3
        inside, share = boxes_in_tile(index.boxes, (left, top, right, bottom))
        target = tiled.target(i)
        assert target["boxes"].tolist() == inside[share > 0.1].astype(np.float32).tolist()
        assert target["crowd"].tolist() == (share[share > 0.1] < 0.4).tolist()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiles").glob("*.jpg")}
    again = tile_dataset(index, (128, 128), 0.25, tmp_path / "tiles")
    assert len(again) == len(tiled)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiles").glob("*.jpg")} == before


def test_very_many_tiles_are_warned_of_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data.tiles.MANY_FILES", 11)
    index = large_image(tmp_path)
    for side, count in ((128, 6), (96, 12)):
        tiled = tile_dataset(index, (side, side), 0.25, tmp_path / f"tiles{side}")
        assert len(tiled) == 1 + count
    assert capsys.readouterr().err.splitlines() == [
        f"warning: tiles: 12 files are written to {tmp_path}/tiles96; larger tiles or less overlap give fewer"
    ]


@pytest.mark.parametrize("options", [PredictOptions, eval_script.EvalOptions, TrainOptions])
def test_a_tile_is_0_or_at_least_32_pixels(options: type) -> None:
    for value in ("0", "32", "1000"):
        assert leaf_value(options, value) == int(value)
    for value in ("-1", "7", "31"):
        with pytest.raises(UserError, match=f"--tile: {value} is out of range; it must be 0 or at least 32"):
            leaf_value(options, value)


def leaf_value(options: type, value: str) -> int | None:
    parsed = parse_options(options, ["--tile", value], prog="test", description="")
    return parsed.tile if hasattr(parsed, "tile") else parsed.dataset.tile


def test_small_images_are_not_cut(tmp_path: Path) -> None:
    index = large_image(tmp_path)
    assert len(tile_dataset(index, (416, 416), 0.25, tmp_path / "tiles")) == 1


def test_training_eval_and_predict_score_alike_with_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))
    run = run_train(tmp_path / "run", "--tile", "64", epochs=1)
    assert "tiles of 64x64" in capsys.readouterr().out
    figures = tmp_path / "figures.json"
    arguments = ["--checkpoint", str(run / "best.pth"), "--data", str(demo_data()), "--tile", "64", "--no-progress"]
    eval_script.main([*arguments, "--json", str(figures), "--batch-size", "4", "--device", "cpu"])
    rows = (run / "metrics.csv").read_text().splitlines()
    trained = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    scored = json.loads(figures.read_text())
    assert float(trained["voc10_mAP50"]) == pytest.approx(scored["voc10_mAP50"] or 0.0, abs=1e-6)

    # predict.py gives each box its best class only
    saved = tmp_path / "eval.json"
    best_class = ["--no-multi-label", "--save-detections", str(saved), "--json", str(figures), "--overwrite"]
    assert not eval_script.main([*arguments, *best_class, "--device", "cpu"])
    index = open_dataset(demo_data(), "val", use_cache=False)
    images = [str(index.path(i)) for i in range(len(index))]
    same = ["--tile", "64", "--score-threshold", "0.001", "--iou-threshold", "0.5", "--max-detections", "100"]
    output = ["--output", str(tmp_path / "out"), "--json", "--device", "cpu"]
    assert predict.main([*images, "--checkpoint", str(run / "best.pth"), *same, *output]) == 0
    predicted = tmp_path / "out" / "detections.json"
    mine, theirs = (detections_of(path) for path in (predicted, saved))
    assert [row[0] for row in mine] == [row[0] for row in theirs] and mine
    assert np.array([row[1] for row in mine]) == pytest.approx(np.array([row[1] for row in theirs]), abs=1e-3)
    data = ["--data", str(demo_data()), "--no-progress", "--json", str(tmp_path / "again.json")]
    assert not eval_script.main([*data, "--detections", str(predicted)])
    one, other = (json.loads(path.read_text()) for path in (figures, tmp_path / "again.json"))
    figures_of = [{name: row[name] or 0.0 for name in one if "_mAP" in name or "_AP" in name} for row in (one, other)]
    assert figures_of[0] == pytest.approx(figures_of[1], abs=1e-3) and "voc10_mAP50" in figures_of[0]


def detections_of(path: Path) -> list[tuple[tuple[str, str], list[float]]]:
    """Image and class, and score and box, of each detection."""
    return [
        ((Path(row["image"]).name, each["class_name"]), [each["score"], *each["box_xyxy"]])
        for row in json.loads(path.read_text())
        for each in row["detections"]
    ]


def evaluated(tmp_path: Path) -> tuple[DatasetIndex, object]:
    """All objects are found in a0, none in a1, and a2 has a false detection."""
    make_voc(tmp_path / "devkit", 4, 1)
    index = open_dataset(tmp_path / "devkit", "train", use_cache=False)
    rows = [(0, index.boxes[0], 0), (0, index.boxes[1], 1), (2, index.boxes[4], 0), (2, index.boxes[5], 1)]
    rows += [(2, np.array([0.0, 0, 8, 8]), 0), (3, index.boxes[6], 0), (3, index.boxes[7], 1)]
    labels = [index.labels[0], index.labels[1], index.labels[4], index.labels[5], 0, index.labels[6], index.labels[7]]
    found = FoundDetections(
        np.array([row[0] for row in rows]),
        np.stack([row[1] for row in rows]),
        np.array([0.9, 0.9, 0.9, 0.9, 0.95, 0.9, 0.9]),
        np.array(labels, np.int64),
        np.arange(4),
    )
    return index, score(index, index.class_names, np.arange(len(index.class_names)), found, None)


def test_the_worst_images_become_a_set_to_label(tmp_path: Path) -> None:
    index, result = evaluated(tmp_path)
    mistakes = find_mistakes(result, 0.5)  # type: ignore[arg-type]
    assert mistakes.worst_first.tolist() == [1, 2] and mistakes.counts[:, 1].tolist() == [0, 0, 2]
    folder = tmp_path / "worst"
    assert export_worst(result, folder, 50) == 2  # type: ignore[arg-type]
    exported = open_dataset(folder, "worst", use_cache=False)
    assert [path.stem for path in (exported.path(i) for i in range(2))] == ["a1", "a2"]
    assert exported.boxes.tolist() == index.subset([1, 2]).boxes.tolist()
    folder = folder.rename(tmp_path / "moved")  # its parts name each other from the folder
    store = open_store(folder)
    queue = read_queue(folder / "queue.json", store)
    assert [store.paths[number].stem for number in queue.numbers] == ["a1", "a2"]
    assert [each["kind"] for each in queue.findings[queue.numbers[1]]] == ["missing"]
    rows = json.loads((folder / "detections.json").read_text())
    assert rows[1]["image"] == "a2.jpg" and len(rows[1]["detections"]) == 3
    with pytest.raises(UserError, match="not empty"):
        export_worst(result, folder, 1)  # type: ignore[arg-type]


def test_without_errors_nothing_is_exported(tmp_path: Path) -> None:
    index, _ = evaluated(tmp_path)
    found = FoundDetections(index.image_of_box, index.boxes, np.ones(len(index.boxes)), index.labels, np.arange(4))
    result = score(index, index.class_names, np.arange(len(index.class_names)), found, None)
    assert export_worst(result, tmp_path / "worst", 50) == 0
    assert not (tmp_path / "worst").exists()


def test_eval_exports_the_worst_and_says_when_objects_are_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    year = make_voc(tmp_path / "devkit", 2, 4)
    rows = [{"image": str(path), "detections": []} for path in sorted((year / "JPEGImages").glob("b*.jpg"))]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    arguments = ["--data", str(tmp_path / "devkit"), "--split", "val", "--detections", str(tmp_path / "found.json")]
    eval_script.main([*arguments, "--worst", "3", "--export", str(tmp_path / "worst")])
    text = capsys.readouterr().out
    assert "3 images with the most errors" in text and "--label" in text
    assert "fewer than 300 objects" in text and "--folds" in text
    assert len(list((tmp_path / "worst" / "VOC2012" / "JPEGImages").iterdir())) == 3
    with pytest.raises(UserError, match="is not empty"):
        eval_script.main([*arguments, "--export", str(tmp_path / "worst")])
    assert "mAP" not in capsys.readouterr().out  # refused before the evaluation
