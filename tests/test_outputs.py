"""Output files of predict.py: valid for their readers, complete after each image, never overwritten."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from imaging.detections import Detections
from imaging.image_io import read_image
from prediction.outputs import (
    WRITERS,
    OutputFolder,
    Result,
    count_text,
    new_output_folder,
    planned_files,
)
from utils.errors import UserError

NAMES = ("person", "dog & cat", "猫/x")


def result(name: str = "in/000042.jpg", frame: int | None = None, boxes: bool = True) -> Result:
    found = Detections(
        np.array([[10.4, 20.2, 50.6, 60.8], [-5, 0, 100, 80], [90, 70, 90, 70]]),
        np.array([0.9, 0.8, 0.3]),
        np.array([0, 2, 1]),
    )
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:61, 10:51] = (200, 0, 0)
    key = Path(name).stem
    return Result(
        name, key, found if boxes else Detections.empty(), (80, 100), image, frame, None if frame is None else 0.5
    )


def folder(path: Path, **options: bool) -> OutputFolder:
    return OutputFolder(path / "out", **options)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_every_writer_takes_images_frames_and_nothing_and_claims_what_it_planned(tmp_path: Path, kind: str) -> None:
    writer = WRITERS[kind](folder(tmp_path), NAMES)
    for each in (result(), result("b.jpg", boxes=False), result("v.mp4", frame=3)):
        writer.add(each)
    writer.close()
    for name in planned_files(kind, ["000042", "b"]):
        assert (tmp_path / "out" / name).is_file()


def test_json_is_a_list_of_one_object_an_image_and_valid_after_each(tmp_path: Path) -> None:
    writer = WRITERS["json"](folder(tmp_path), NAMES)
    path = tmp_path / "out" / "detections.json"
    assert json.loads(path.read_text()) == []
    for count, each in enumerate((result(boxes=False), result(), result("v.mp4", frame=7)), start=1):
        writer.add(each)
        rows = json.loads(path.read_text(encoding="utf-8"))
        assert len(rows) == count
    writer.close()
    assert rows[0] == {"image": "in/000042.jpg", "width": 100, "height": 80, "detections": []}
    assert rows[1]["detections"][0] == {
        "class_id": 0,
        "class_name": "person",
        "score": 0.9,
        "box_xyxy": [10.4, 20.2, 50.6, 60.8],
    }
    assert rows[2]["frame"] == 7 and rows[2]["time"] == 0.5


def test_json_lines_are_one_object_a_line(tmp_path: Path) -> None:
    writer = WRITERS["jsonl"](folder(tmp_path), NAMES)
    writer.add(result())
    writer.add(result("b\n.jpg", boxes=False))
    writer.close()
    lines = (tmp_path / "out" / "detections.jsonl").read_text(encoding="utf-8").splitlines()
    assert [len(json.loads(line)["detections"]) for line in lines] == [3, 0]


def test_csv_is_one_line_an_object(tmp_path: Path) -> None:
    writer = WRITERS["csv"](folder(tmp_path), NAMES)
    writer.add(result("v.mp4", frame=2))
    writer.close()
    with open(tmp_path / "out" / "detections.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 3 and rows[1]["class_name"] == "猫/x" and float(rows[0]["x2"]) == 50.6 and rows[0]["frame"] == "2"
    )


def test_coco_results_have_the_number_of_the_file_and_xywh(tmp_path: Path) -> None:
    writer = WRITERS["coco"](folder(tmp_path), NAMES)
    writer.add(result())
    writer.add(result("name.jpg"))
    writer.close()
    rows = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert rows[0]["image_id"] == 42 and rows[0]["category_id"] == 1
    assert rows[0]["bbox"] == pytest.approx([10.4, 20.2, 40.2, 40.6], abs=2e-3)
    assert rows[3]["image_id"] == "name" and rows[1]["category_id"] == 3


def test_coco_results_of_our_own_are_read_by_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    writer = WRITERS["coco"](folder(tmp_path), NAMES)
    writer.add(result())
    writer.close()
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 42}], "categories": [{"id": i} for i in (1, 2, 3)], "annotations": []}
    truth.createIndex()
    assert len(truth.loadRes(str(tmp_path / "out" / "coco_results.json")).anns) == 3


def test_voc_xml_is_one_based_inside_the_image_and_escapes_names(tmp_path: Path) -> None:
    writer = WRITERS["voc"](folder(tmp_path), NAMES)
    writer.add(result())
    root = ElementTree.parse(tmp_path / "out" / "voc" / "000042.xml").getroot()
    assert root.findtext("filename") == "000042.jpg" and root.findtext("size/width") == "100"
    objects = root.findall("object")
    assert [each.findtext("name") for each in objects] == ["person", "猫/x", "dog & cat"]
    boxes = [
        [int(each.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax")] for each in objects
    ]
    assert boxes[0] == [11, 21, 51, 61] and boxes[1] == [1, 1, 100, 80]
    assert all(x1 <= x2 <= 100 and y1 <= y2 <= 80 for x1, y1, x2, y2 in boxes)


def test_yolo_text_is_centre_and_size_as_shares(tmp_path: Path) -> None:
    writer = WRITERS["yolo"](folder(tmp_path), NAMES)
    writer.add(result())
    writer.add(result("empty.jpg", boxes=False))
    rows = np.loadtxt(tmp_path / "out" / "yolo" / "000042.txt")
    assert rows[0] == pytest.approx([0, 0.305, 0.50625, 0.402, 0.5075, 0.9], abs=1e-5)
    assert (rows[:, 1:5] >= 0).all() and (rows[:, 1:5] <= 1).all()
    assert (tmp_path / "out" / "yolo" / "empty.txt").read_text() == ""
    assert (tmp_path / "out" / "yolo" / "classes.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)


def test_crops_are_the_objects_in_folders_of_their_classes(tmp_path: Path) -> None:
    writer = WRITERS["crops"](folder(tmp_path), NAMES)
    writer.add(result())
    crop = read_image(tmp_path / "out" / "crops" / "person" / "000042_000.jpg")
    assert crop.shape == (41, 41, 3) and crop[20, 20, 0] > 150
    assert (tmp_path / "out" / "crops" / "猫_x" / "000042_001.jpg").is_file()
    assert len(list((tmp_path / "out" / "crops").rglob("*.jpg"))) == 2  # the third has no pixel


def test_counts_end_with_their_total(tmp_path: Path) -> None:
    writer = WRITERS["counts"](folder(tmp_path), NAMES)
    writer.add(result())
    writer.add(result("b.jpg", boxes=False))
    writer.close()
    rows = list(csv.reader((tmp_path / "out" / "counts.csv").open(encoding="utf-8", newline="")))
    assert rows[1][2:] == ["1", "1", "1"] and rows[2][2:] == ["0", "0", "0"] and rows[3] == ["total", "", "1", "1", "1"]


def test_existing_output_is_not_overwritten_without_the_option(tmp_path: Path) -> None:
    outputs = folder(tmp_path)
    outputs.claim("a.jpg").write_text("old")
    assert outputs.claim("a.jpg").read_text() == "old"  # its own
    with pytest.raises(UserError, match="exists and would be overwritten"):
        folder(tmp_path).claim("a.jpg")
    folder(tmp_path, overwrite=True).claim("a.jpg").write_text("new")


def test_a_source_is_never_overwritten_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    source = tmp_path / "out" / "a.jpg"
    source.write_text("picture")
    outputs = OutputFolder(tmp_path / "out", overwrite=True, sources=[source])
    with pytest.raises(UserError, match="one of the input images"):
        outputs.claim("a.jpg")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "b.jpg").symlink_to(tmp_path / "precious")
    outputs.claim("b.jpg").write_text("new")
    assert (tmp_path / "precious").read_text() == "precious"


def test_an_output_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        folder(tmp_path)


def test_a_new_run_folder_gets_the_next_number(tmp_path: Path) -> None:
    assert new_output_folder(tmp_path).name == "predict-1"
    (tmp_path / "predict-7").mkdir()
    (tmp_path / "predict-x").mkdir()
    assert new_output_folder(tmp_path).name == "predict-8"


def test_counts_as_text_begin_with_the_most_frequent() -> None:
    assert count_text(np.array([1, 0, 1]), NAMES) == "2 dog & cat, 1 person"
    assert count_text(np.zeros(0, int), NAMES) == "nothing"


def test_detections_become_a_pandas_table() -> None:
    pytest.importorskip("pandas")
    table = replace(result().detections, names=NAMES).to_dataframe()
    assert list(table.columns) == ["class_id", "class_name", "score", "x1", "y1", "x2", "y2"]
    assert table.class_name.tolist() == ["person", "猫/x", "dog & cat"] and table.x2[0] == pytest.approx(50.6)
    assert len(Detections.empty().to_dataframe()) == 0


def test_detections_become_those_of_supervision() -> None:
    pytest.importorskip("supervision")
    converted = replace(result().detections, names=NAMES).to_supervision()
    assert len(converted) == 3 and converted.class_id.tolist() == [0, 2, 1]
    assert len(Detections.empty().to_supervision()) == 0


def test_names_that_are_not_utf8_can_be_written_everywhere(tmp_path: Path) -> None:
    for kind, make in WRITERS.items():
        writer = make(OutputFolder(tmp_path / kind), NAMES)
        writer.add(Result("\udcff.jpg", "x", result().detections, (80, 100), result().image))
        writer.close()
    assert json.loads((tmp_path / "json" / "detections.json").read_text(encoding="utf-8"))[0]["image"] == "\\udcff.jpg"
