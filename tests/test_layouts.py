"""Layouts of data sets: recognition, reading, splitting and conversion; ambiguous layouts are reported."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import DOG, HEIGHT, WIDTH, make_coco, make_voc, make_yolo, picture, voc_xml_text
from layout_makers import (
    CAT_BOX,
    CLASSES,
    DOG_BOX,
    LAYOUTS,
    NAMES,
    coco_content,
    put,
    put_pictures,
    put_xml,
    put_yolo,
    yolo_text,
)

import dataset
from data.index import DatasetIndex
from data.open import default_splits, list_splits, open_dataset, recognise
from data.quick_check import quick_check
from data.tools.check import check_dataset
from data.tools.check import main as check_main
from data.tools.convert import convert_dataset
from data.tools.findings import Finding
from data.tools.split import split_dataset
from imaging.image_io import write_image
from utils.errors import RunError, UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path_factory.mktemp("cache")))


def codes(index: DatasetIndex) -> set[str]:
    return {skip.code for skip in index.skips}


def boxes_by_class(index: DatasetIndex, image: int) -> dict[str, list[float]]:
    target = index.target(image)
    pairs = zip(target["labels"], target["boxes"].tolist(), strict=True)
    return {index.class_names[label]: [round(v, 3) for v in box] for label, box in pairs}


def everything(data: Path) -> DatasetIndex:
    return open_dataset(data, "all", use_cache=False)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    make, kind, splits = LAYOUTS[name]
    root = tmp_path / "my pets v1.2"
    make(root)
    found = recognise(root)
    assert found.format.name == kind and found.why
    assert tuple(list_splits(root)) == splits
    index = everything(root)
    assert set(index.class_names) == {"dog", "cat"} and len(index) == 8 and index.num_boxes == 16
    for i in range(8):
        assert boxes_by_class(index, i) == {"dog": list(DOG_BOX), "cat": list(CAT_BOX)}
    assert not [str(skip) for skip in index.skips if skip.kind != "note"]
    train, val = (open_dataset(root, split, index.class_names) for split in default_splits(root))
    assert len(train) >= 5 and len(val) >= 1
    assert not {train.path(i) for i in range(len(train))} & {val.path(i) for i in range(len(val))}


def test_a_folder_in_a_folder_is_unpacked(tmp_path: Path) -> None:
    make_yolo(tmp_path / "archive/pets")
    put(tmp_path / "archive/README.txt", "by me")
    assert recognise(tmp_path).place == tmp_path / "archive/pets"
    assert len(open_dataset(tmp_path, "train")) == 4


def test_images_annotated_in_another_format_are_reported(tmp_path: Path) -> None:
    put_pictures(tmp_path / "xml")
    put_xml(tmp_path / "xml", NAMES[:5])
    put_yolo(tmp_path / "xml", NAMES[5:])
    put_pictures(tmp_path / "yolo")
    put_yolo(tmp_path / "yolo", NAMES[:5])
    put(tmp_path / "yolo" / f"{NAMES[7]}.json", '{"shapes": []}')
    for folder, count in (("xml", 3), ("yolo", 1)):
        put(tmp_path / folder / "classes.txt", CLASSES)
        notes = [skip.what for skip in everything(tmp_path / folder).skips if skip.code == "unread_labels"]
        assert len(notes) == 1 and notes[0].startswith(f"{count} image") and NAMES[7] in notes[0]


def test_an_image_that_is_named_by_several_rows_is_counted_once(tmp_path: Path) -> None:
    LAYOUTS["kaggle_csv"][0](tmp_path)
    notes = [skip.what for skip in everything(tmp_path).skips if skip.code == "found_by_name"]
    assert len(notes) == 1 and notes[0].startswith("8 of 8 images")


def test_text_files_of_names_may_mark_difficult_objects_and_are_no_detections(tmp_path: Path) -> None:
    put_pictures(tmp_path, NAMES[:1])
    put(tmp_path / f"{NAMES[0]}.txt", "traffic light 1 2 30 40\ndog 10 20 60 80 difficult\n\ndog 0.9 10 20 60 80\n")
    index = everything(tmp_path)
    assert index.source["format"] == "name_rows" and index.class_names == ("dog", "traffic light")
    assert index.difficult.tolist() == [False, True] and codes(index) == {"bad_columns"}
    put(tmp_path / f"{NAMES[0]}.txt", "dog 0.9 10 20 60 80\n")  # a score
    with pytest.raises(UserError, match="is not a data set"):
        recognise(tmp_path)


def test_wider_face_is_read_without_its_invalid_faces(tmp_path: Path) -> None:
    put_pictures(tmp_path / "WIDER_train/images/0--Parade", NAMES[:2])
    lists = f"0--Parade/{NAMES[0]}.jpg\n2\n10 20 50 60 0 0 0 0 0 0 \n1 2 9 9 0 0 0 1 0 0 \n"
    put(tmp_path / "wider_face_split/wider_face_train_bbx_gt.txt", f"{lists}0--Parade/{NAMES[1]}.jpg\n0\n{'0 ' * 10}\n")
    index = open_dataset(tmp_path, "train", use_cache=False)
    assert index.source["format"] == "wider_face" and index.class_names == ("face",) and len(index) == 2
    assert index.boxes.tolist() == [[10, 20, 60, 80]] and codes(index) == {"found_by_name"}


def test_lists_of_numbers_drop_and_report_only_their_bad_lines(tmp_path: Path) -> None:
    put_pictures(tmp_path / "images", NAMES[:1])
    put(tmp_path / f"annotations/{NAMES[0]}.txt", "10,20,50,60,1,4,0,0\n\n1,2,3\n1,2,9,9,1,12,0,0\n1,2,9,9,1,0,0,0\n")
    index = everything(tmp_path)
    assert index.class_names == ("car",) and codes(index) == {"bad_columns", "unknown_class", "ignored_regions"}
    put(tmp_path / "photos.jsonl", '{"file_name": "x.jpg", "objects": {"bbox": [[1, 2, 3]], "categories": [3]}}\n{\n')
    (tmp_path / f"annotations/{NAMES[0]}.txt").unlink()
    with pytest.raises(UserError, match=r"no class names \(looked for"):
        everything(tmp_path)
    put(tmp_path / "classes.txt", "dog\n")
    with pytest.raises(UserError, match=r"no image 'x\.jpg'"):
        everything(tmp_path)


def test_a_large_file_of_datumaro_is_not_coco(tmp_path: Path) -> None:
    LAYOUTS["datumaro"][0](tmp_path)
    path = tmp_path / "annotations/default.json"
    content = json.loads(path.read_text())
    content["items"][0]["attr"] = {"text": "A" * 3_000_000}
    put(path, json.dumps(content))
    assert recognise(tmp_path).format.name == "datumaro" and everything(tmp_path).num_boxes == 16


def test_an_archive_is_not_a_data_set_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(b'PK\3\4 "images" "annotations" "categories"')
    with pytest.raises(UserError, match=r"set\.zip: is a \.zip file, not a data set.*unpack it"):
        recognise(path)


# --- key points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "points"),
    [((4, 2), "0.2 0.3 0.4 0.3 0.4 0.7 0.2 0.7"), ((2, 3), "0.2 0.3 2 0.4 0.7 1"), ((2, 2), "0.2 0.3 0.4 0.7")],
)
def test_rows_with_key_points_are_boxes_where_the_yaml_says_so_and_an_error_elsewhere(
    tmp_path: Path, shape: tuple[int, int], points: str
) -> None:
    data = make_yolo(tmp_path)
    for path in (tmp_path / "labels").rglob("*.txt"):
        path.write_text(f"0 0.3 0.5 0.25 0.5 {points}\n")
    with pytest.raises(UserError, match=rf"kpt_shape: \[{shape[0]}, {shape[1]}\].*task: segment"):
        open_dataset(tmp_path, "train")
    text = data.read_text()
    data.write_text(f"{text}kpt_shape: [{shape[0]}, {shape[1]}]\n")
    assert open_dataset(tmp_path, "train").target(0)["boxes"].round(3).tolist() == [[28, 30, 68, 90]]
    data.write_text(f"{text}task: segment\n")
    assert open_dataset(tmp_path, "train").target(0)["boxes"].round(3).tolist() != [[28, 30, 68, 90]]


def test_polygons_of_different_lengths_are_polygons(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    (tmp_path / "labels/train/p0.txt").write_text("0 0.3 0.5 0.25 0.5 0.3 0.4\n0 0.25 0.25 0.5 0.25 0.5 0.75 0.3 0.5\n")
    index = open_dataset(tmp_path, "train")
    assert index.target(0)["boxes"][1].tolist() == [40, 30, 80, 90] and "polygons" in codes(index)


# --- class names and numbers -----------------------------------------------------------------------------------------


def test_a_devkit_named_after_a_year_has_the_classes_that_are_labelled(tmp_path: Path) -> None:
    make_voc(tmp_path, year="VOC2012")
    assert open_dataset(tmp_path, "train").class_names == ("cat", "dog")


def test_a_classes_txt_that_contradicts_the_yaml_is_an_error_with_both_orders(tmp_path: Path) -> None:
    data = make_yolo(tmp_path)
    put(tmp_path / "labels/train/classes.txt", "cat\ndog\n")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path, "train")
    text = str(caught.value)
    assert str(data) in text and "labels/train/classes.txt" in text and "dog, cat" in text and "cat, dog" in text
    put(tmp_path / "labels/train/classes.txt", "dog\ncat\nbird\n")
    (tmp_path / "labels/train/p0.txt").write_text("2 0.5 0.5 0.2 0.2\n")
    index = open_dataset(tmp_path, "train")
    assert codes(index) == {"more_names", "unknown_class"}
    assert any("calls it 'bird'" in skip.what for skip in index.skips)


def test_class_numbers_that_start_at_one_are_recognised_over_all_splits(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for path in (tmp_path / "labels").rglob("*.txt"):
        path.write_text("1 0.25 0.5 0.25 0.5\n2 0.75 0.5 0.25 0.25\n")
    (tmp_path / "labels/val/p100.txt").write_text("1 0.25 0.5 0.25 0.5\n")
    for split in ("train", "val"):
        index = open_dataset(tmp_path, split)
        assert "ids_from_one" in codes(index) and boxes_by_class(index, 0)["dog"] == [20, 30, 60, 90]
    (tmp_path / "labels/val/p101.txt").write_text("0 0.25 0.5 0.25 0.5\n")
    index = open_dataset(tmp_path, "train")
    assert codes(index) == {"unknown_class"} and set(boxes_by_class(index, 0)) == {"cat"}


def test_labels_without_class_names_are_an_error_that_asks_for_them(tmp_path: Path) -> None:
    put_pictures(tmp_path / "images")
    put_yolo(tmp_path / "labels")
    with pytest.raises(UserError, match=r"no class names .*classes\.txt.*--classes"):
        everything(tmp_path)
    assert open_dataset(tmp_path, "all", ["dog", "cat"]).num_boxes == 16


def test_names_that_no_box_uses_are_omitted_from_a_tools_list(tmp_path: Path) -> None:
    LAYOUTS["labelimg_yolo"][0](tmp_path)
    index = everything(tmp_path)
    assert index.class_names == ("dog", "cat") and "names_without_boxes" in codes(index)
    assert open_dataset(tmp_path, "all", ["person", "car", "dog", "cat", "bird"]).num_boxes == 16


def test_a_root_category_is_no_class_unless_it_has_boxes(tmp_path: Path) -> None:
    LAYOUTS["roboflow_coco"][0](tmp_path)
    index = open_dataset(tmp_path, "train")
    assert index.class_names == ("dog", "cat") and codes(index) == {"root_category"}
    path = tmp_path / "valid/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"].append({"id": 900, "image_id": 0, "category_id": 0, "bbox": [1, 1, 20, 20]})
    path.write_text(json.dumps(content))
    assert open_dataset(tmp_path, "train").class_names == ("pets", "dog", "cat")


# --- links, names ----------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_inside_the_data_set_and_named_outside(tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_yolo(root)
    put_pictures(root / "store", NAMES[:2])
    put_yolo(root / "labels/train/day1", NAMES[:2])
    (root / "images/train/day1").symlink_to(root / "store")
    (root / "images/train/loop").symlink_to(root / "images")
    assert len(open_dataset(root, "train")) == 4 + 2 + 2  # through the loop, val's two are below train as well
    (root / "images/train/loop").unlink()
    put_pictures(tmp_path / "elsewhere", NAMES[2:4])
    (root / "images/train/day2").symlink_to(tmp_path / "elsewhere")
    index = open_dataset(root, "train")
    assert len(index) == 6 and [skip.where for skip in index.skips] == [str(root / "images/train/day2")]
    assert codes(index) == {"leads_outside"}


@pytest.mark.parametrize(("on_disk", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_either_unicode_form_are_found(tmp_path: Path, on_disk: str, listed: str) -> None:
    name = "Gänseblümchen"
    disk, text = (unicodedata.normalize(form, name) for form in (on_disk, listed))  # type: ignore[arg-type]
    coco, yolo = tmp_path / "coco", tmp_path / "yolo"
    (coco / "images").mkdir(parents=True)
    write_image(coco / "images" / f"{disk}.jpg", picture(1))
    put(coco / "annotations/instances_train.json", json.dumps(coco_content([f"{text}.jpg"])))
    assert len(open_dataset(coco, "train")) == 1
    for split in ("train", "val"):
        (yolo / "images" / split).mkdir(parents=True)
        write_image(yolo / "images" / split / f"{disk}.jpg", picture(1))
        put(yolo / "labels" / split / f"{text}.txt", yolo_text())
    put(yolo / "data.yaml", "train: images/train\nval: list.txt\nnames: [dog, cat]\n")
    put(yolo / "list.txt", f"images/val/{text}.jpg\n")
    assert [open_dataset(yolo, split).num_boxes for split in ("train", "val")] == [2, 2]


def test_images_are_matched_by_a_base_name_that_is_the_only_one(tmp_path: Path) -> None:
    LAYOUTS["label_studio_coco"][0](tmp_path)
    index = everything(tmp_path)
    assert "found_by_name" in codes(index) and "8 of 8 images" in index.skips[0].what
    (tmp_path / "images").rename(tmp_path / "some")
    put_pictures(tmp_path / "other", NAMES[:1])
    index = everything(tmp_path)
    assert "ambiguous_image" in codes(index) and len(index) == 7


def test_an_image_folder_may_be_named(tmp_path: Path) -> None:
    put(tmp_path / "set/result.json", json.dumps(coco_content([f"{name}.jpg" for name in NAMES])))
    put_pictures(tmp_path / "pictures")
    with pytest.raises(UserError, match="no image that can be used"):
        open_dataset(tmp_path / "set", "all")
    assert len(open_dataset(tmp_path / "set", "all", image_folder=tmp_path / "pictures")) == 8


def test_annotations_without_images_say_so_when_trained_on(tmp_path: Path) -> None:
    put_xml(tmp_path)
    with pytest.raises(UserError, match=r"8 were skipped, the first because .*there is no image 'IMG_2380'"):
        open_dataset(tmp_path, "auto-train")


@pytest.mark.parametrize("name", ["labelimg_voc", "tensorflow_csv", "labelme", "via_json", "cvat_xml", "box_list",
                                  "coco_with_text_ids"])  # fmt: skip
def test_images_of_any_annotations_may_lie_elsewhere(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path / "set")
    near = everything(tmp_path / "set")
    for path in list((tmp_path / "set").rglob("*.jpg")):
        (tmp_path / "test-pictures/day1").mkdir(parents=True, exist_ok=True)  # not the name of a split
        path.rename(tmp_path / "test-pictures/day1" / path.name)
    folder = str(tmp_path / "test-pictures")
    far = open_dataset(tmp_path / "set", "all", image_folder=folder)
    assert far.num_boxes == near.num_boxes and np.array_equal(far.boxes, near.boxes)
    assert list_splits(tmp_path / "set", folder) == list(LAYOUTS[name][2])
    data = [str(tmp_path / "set"), "--image-folder", folder]
    assert dataset.main(["check", *data, "--fix", str(tmp_path / "fixed")]) == 0
    dataset.main(["stats", *data])
    dataset.main(["anchors", *data])
    dataset.main(["split", *data, "--output", str(tmp_path / "split"), "--train", "0.5", "--val", "0.5", "--test", "0"])
    dataset.main(["convert", *data, str(tmp_path / "yolo"), "--to", "yolo"])
    dataset.main(["shard", *data, str(tmp_path / "shards")])
    assert sum(len(open_dataset(tmp_path / "split", split)) for split in ("train", "val")) == 8
    for copy in ("fixed", "yolo"):
        assert open_dataset(tmp_path / copy, "all").num_boxes == 16


@pytest.mark.parametrize("make", [make_voc, make_yolo])
def test_an_image_folder_is_rejected_where_images_have_fixed_places(make, tmp_path: Path) -> None:
    make(tmp_path)
    for command in ("check", "stats", "split"):
        with pytest.raises(UserError, match="--image-folder: is not for"):
            dataset.main([command, str(tmp_path), "--image-folder", str(tmp_path)])


def test_a_path_of_another_machine_is_reported(tmp_path: Path) -> None:
    LAYOUTS["yolo_of_another_machine"][0](tmp_path)
    assert codes(open_dataset(tmp_path, "train")) == {"moved_path"}


def test_two_annotations_of_an_image_and_images_of_one_name_are_reported(tmp_path: Path) -> None:
    put_pictures(tmp_path / "a", NAMES[:2])
    put_xml(tmp_path / "a", NAMES[:2])
    put_xml(tmp_path / "copy", NAMES[:1])
    index = everything(tmp_path)
    assert codes(index) == {"two_annotations"} and index.num_boxes == 4
    put_pictures(tmp_path / "b", NAMES[:1])
    put_xml(tmp_path / "c", [NAMES[1]])
    assert "ambiguous_image" in codes(everything(tmp_path))


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_without_width_is_dropped_counted_and_reported(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    (folder / "Annotations/a0.xml").write_text(voc_xml_text("a0", [DOG, ("dog", 5, 5, 5, 60), ("cat", 7, 9, 40, 9)]))
    index = open_dataset(tmp_path, "train")
    drops = [skip for skip in index.skips if skip.code == "zero_box"]
    assert len(drops) == 2 and index.num_boxes == 7 and "(5, 5, 5, 60) has no area" in drops[0].what


def test_zero_based_boxes_stay_within_the_image(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    (folder / "Annotations/a0.xml").write_text(voc_xml_text("a0", [("dog", 0, 0, WIDTH, HEIGHT)]))
    index = open_dataset(tmp_path, "train")
    assert not index.skips and index.target(0)["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_sizes_where_corners_are_expected_are_found_by_the_borders_of_the_images(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    rows = [f"{name}.jpg,80,60,40,30,dog" for name in NAMES] + [f"{name}.jpg,90,70,50,40,cat" for name in NAMES]
    put(tmp_path / "boxes.csv", "\n".join(["file,xmin,ymin,xmax,ymax,class", *rows]))
    report, _, _ = check_dataset(tmp_path, ["all"], images=False, use_cache=False)
    found = [each for each in report.findings if each.code == "looks_like_sizes"]
    assert (
        len(found) == 1
        and "16 of 16 boxes do not fit" in found[0].what
        and "as x, y, width, height, 0 do not" in found[0].what
    )


# --- rotated boxes ---------------------------------------------------------------------------------------------------

TURNED = {30: [37.679, 31.34, 82.321, 68.66], 90: [50.0, 30.0, 70.0, 70.0]}  # 40 x 20 around (60, 50), by degrees


def corners(degrees: float) -> list[tuple[float, float]]:
    """Upper left, upper right, lower right and lower left corner of that box after the rotation."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(60 + x * cos - y * sin, 50 + x * sin + y * cos) for x, y in ((-20, -10), (20, -10), (20, 10), (-20, 10))]


def rotated_yolo(root: Path, degrees: float) -> None:
    put_yolo(root / "labels/train", [])
    text = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners(degrees))
    put(root / "labels/train" / f"{NAMES[0]}.txt", f"0 {text}\n")
    put(root / "data.yaml", "train: images/train\nnames: [dog]\n")
    put_pictures(root / "images/train", NAMES[:1])


def rotated_labelme(root: Path, degrees: float) -> None:
    shape = {"label": "dog", "shape_type": "rotation", "points": corners(degrees), "direction": 0.5}
    put(root / f"{NAMES[0]}.json", json.dumps({"shapes": [shape], "imagePath": f"{NAMES[0]}.jpg"}))


def rotated_dota(root: Path, degrees: float) -> None:
    put(root / f"{NAMES[0]}.txt", " ".join(f"{v:.3f}" for point in corners(degrees) for v in point) + " dog 1\n")


def rotated_cvat(root: Path, degrees: float) -> None:
    box = f'<box label="dog" xtl="40" ytl="40" xbr="80" ybr="60" rotation="{degrees}"/><tag label="indoor"/>'
    put(root / "a.xml", f'<annotations><image name="{NAMES[0]}.jpg">{box}</image></annotations>')


def rotated_label_studio(root: Path, degrees: float) -> None:
    x, y = corners(degrees)[0]
    value = {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 4000 / WIDTH, "height": 2000 / HEIGHT}
    value |= {"rotation": degrees, "rectanglelabels": ["dog"]}
    result = {"value": value, "original_width": WIDTH, "original_height": HEIGHT}
    cancelled = {"was_cancelled": True, "result": [result, result]}
    task = {"data": {"image": f"{NAMES[0]}.jpg"}, "annotations": [{"result": [result]}, cancelled]}
    put(root / "tasks.json", json.dumps([task]))


def rotated_supervisely(root: Path, degrees: float) -> None:
    shape = {"classTitle": "dog", "geometryType": "oriented_bbox", "angle": math.radians(degrees)}
    shape["points"] = {"exterior": [[40, 40], [80, 60]], "interior": []}
    put(root / "ann" / f"{NAMES[0]}.jpg.json", json.dumps({"objects": [shape]}))


def rotated_xml(root: Path, degrees: float) -> None:
    box = f"<cx>60</cx><cy>50</cy><w>40</w><h>20</h><angle>{math.radians(degrees)}</angle>"
    content = f"<object><type>robndbox</type><name>dog</name><robndbox>{box}</robndbox></object>"
    put(root / f"{NAMES[0]}.xml", f"<annotation><filename>{NAMES[0]}.jpg</filename>{content}</annotation>")


@pytest.mark.parametrize("degrees", TURNED)
@pytest.mark.parametrize(
    "make",
    [
        rotated_yolo,
        rotated_labelme,
        rotated_dota,
        rotated_cvat,
        rotated_label_studio,
        rotated_supervisely,
        rotated_xml,
    ],
)
def test_a_rotated_box_is_read_as_the_upright_box_around_it_which_is_reported(
    make, degrees: int, tmp_path: Path
) -> None:
    make(tmp_path, degrees)
    if make is not rotated_yolo:
        put_pictures(tmp_path / "img" if make is rotated_supervisely else tmp_path, NAMES[:1])
    index = everything(tmp_path)
    assert index.num_boxes == 1 and index.class_names == ("dog",)
    assert index.boxes[0].round(3).tolist() == pytest.approx(TURNED[degrees], abs=0.002)
    assert bool(index.difficult[0]) == (make is rotated_dota)
    (note,) = [skip for skip in index.skips if skip.code == "rotated_box"]
    assert note.what.startswith("1 rotated box,") and not [skip for skip in index.skips if skip.kind == "box"]


def test_a_rotated_region_without_its_images_size_is_dropped_and_reported(tmp_path: Path) -> None:
    put_pictures(tmp_path, NAMES[:1])
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 30, "rectanglelabels": ["dog"]}
    upright = value | {"rotation": 0}
    put(tmp_path / "a.json", json.dumps([{"image": f"{NAMES[0]}.jpg", "label": [value, upright]}]))
    index = everything(tmp_path)
    (skip,) = [skip for skip in index.skips if skip.kind == "box"]
    assert index.num_boxes == 1 and "original_width" in skip.what


OWN = {"yolo": "centre", "coco": "xywh", "csv": "corners"}
FORMS = ("corners", "xywh", "centre")


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind in OWN for form in FORMS if form != OWN[kind]])
def test_numbers_of_another_form_are_found_by_the_borders_of_the_images(kind: str, form: str, tmp_path: Path) -> None:
    put_pictures(tmp_path)
    names = {"corners": "looks_like_corners", "xywh": "looks_like_sizes", "centre": "looks_like_centres"}
    rows = []
    for name in NAMES:
        for x1, y1, x2, y2 in ((90, 62, 158, 118), (60, 70, 150, 119), (2, 3, 30, 40)):
            width, height = x2 - x1, y2 - y1
            forms = {"corners": (x1, y1, x2, y2), "xywh": (x1, y1, width, height),
                     "centre": (x1 + width / 2, y1 + height / 2, width, height)}  # fmt: skip
            rows.append((name, forms[form]))
    if kind == "csv":
        text = "".join(f"{name}.jpg,{','.join(map(str, numbers))},dog\n" for name, numbers in rows)
        put(tmp_path / "a.csv", "filename,xmin,ymin,xmax,ymax,class\n" + text)
    elif kind == "coco":
        content = coco_content([f"{name}.jpg" for name in NAMES])
        content["annotations"] = [
            {"id": k, "image_id": NAMES.index(name), "category_id": 1, "bbox": numbers, "iscrowd": 0}
            for k, (name, numbers) in enumerate(rows, 1)
        ]
        put(tmp_path / "a.json", json.dumps(content))
    else:
        put(tmp_path / "classes.txt", "dog\n")
        for name in NAMES:
            lines = [f"0 {a / WIDTH} {b / HEIGHT} {c / WIDTH} {d / HEIGHT}" for n, (a, b, c, d) in rows if n == name]
            put(tmp_path / f"{name}.txt", "\n".join(lines))
    report, _, _ = check_dataset(tmp_path, images=False, use_cache=False)
    assert {each.code for each in report.findings if each.code.startswith("looks")} == {names[form]}
    index = everything(tmp_path)
    if index.num_boxes:  # training warns as well
        assert names[form] in {each.code for each in quick_check(index)}
    else:
        with pytest.raises(UserError, match=r"were dropped, the first because .* has its corners reversed"):
            quick_check(index)


def test_a_table_without_classes_and_with_fractions_says_what_was_taken(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    rows = [f"{name}.jpg,0.1,0.2,0.5,0.75" for name in NAMES]
    put(tmp_path / "boxes.csv", "\n".join(["file,x1,y1,x2,y2", *rows]))
    index = everything(tmp_path)
    assert codes(index) == {"one_class", "fractions"} and index.class_names == ("object",)
    assert np.allclose(index.target(0)["boxes"], [[0.1 * WIDTH, 0.2 * HEIGHT, 0.5 * WIDTH, 0.75 * HEIGHT]])


def test_regions_to_ignore_are_counted(tmp_path: Path) -> None:
    LAYOUTS["kitti"][0](tmp_path)
    assert [skip.what for skip in everything(tmp_path).skips if skip.code == "ignored_regions"] == [
        "8 regions DontCare are skipped"
    ]


def test_a_broken_annotation_file_skips_only_its_image(tmp_path: Path) -> None:
    LAYOUTS["labelme"][0](tmp_path)
    put(tmp_path / "json" / f"{NAMES[0]}.json", '{"shapes": [')
    index = everything(tmp_path)
    assert len(index) == 7 and codes(index) >= {"bad_annotation_file"}


# --- the check -------------------------------------------------------------------------------------------------------


def found(data: Path, **options: Any) -> dict[str, list[Finding]]:
    report, _, _ = check_dataset(data, workers=1, use_cache=False, **options)
    by_code: dict[str, list[Finding]] = {}
    for each in report.findings:
        by_code.setdefault(each.code, []).append(each)
    return by_code


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_valid_layout_has_no_error_and_no_serious_warning(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path / "set")
    quiet = {"small_split", "few_boxes", "found_by_name", "names_without_boxes", "root_category", "ignored_regions",
             "rotated_box", "polygons", "decimal_box", "moved_path", "fractions", "missing_test"}  # fmt: skip
    assert found(tmp_path / "set").keys() <= quiet


def test_a_typing_error_in_a_class_name_is_one_warning_over_all_splits(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    many = [("dog", 1 + x, 1 + y, 30 + x, 30 + y) for x in range(0, 110, 10) for y in range(0, 80, 8)]
    for name in ("a0", "b0"):
        (folder / f"Annotations/{name}.xml").write_text(voc_xml_text(name, [*many, ("dgo", 1, 1, 90, 90)]))
    (folder / "Annotations/b1.xml").write_text(voc_xml_text("b1", [("Cat", 1, 1, 90, 90)]))
    classes = ["cat", "Cat", "dog", "dgo"]
    words = [str(each) for each in found(tmp_path, class_names=classes, images=False)["similar_classes"]]
    assert len(words) == 2
    assert any("replace 'dgo' by 'dog'" in each for each in words) and any(
        "replace 'Cat' by 'cat'" in each for each in words
    )


def test_small_and_unlabelled_splits_are_warnings(tmp_path: Path) -> None:
    LAYOUTS["yolo_without_yaml"][0](tmp_path)
    for name in NAMES[1:]:
        (tmp_path / "labels" / f"{name}.txt").unlink()
    codes_found = found(tmp_path)
    assert "8 images and 2 boxes" in codes_found["small_split"][0].what
    what = codes_found["mostly_without_boxes"][0].what
    assert what == "7 of 8 images of all without a box, 7 of them without a label file"


def test_images_without_an_annotation_are_named(tmp_path: Path) -> None:
    LAYOUTS["labelimg_voc"][0](tmp_path)
    (tmp_path / f"{NAMES[3]}.xml").unlink()
    what = found(tmp_path)["image_without_annotation"][0].what
    assert what == f"1 of 8 images without annotation: {NAMES[3]}.jpg"


def test_xml_files_beside_images_are_not_images(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    for path in list((folder / "Annotations").iterdir()):
        (folder / "JPEGImages" / path.name).write_bytes(path.read_bytes())
    assert "several_images" not in found(tmp_path)


def test_val_that_is_train_is_one_finding(tmp_path: Path) -> None:
    data = make_yolo(tmp_path)
    data.write_text("train: images/train\nval: images/train\nnames: [dog, cat]\n")
    same = found(tmp_path)["same_image"]
    assert len(same) == 1 and same[0].what.startswith("all 4 images of val are in train")


def test_near_duplicates_are_counted_as_groups_and_none_remain_after_a_split(tmp_path: Path) -> None:
    """Twelve photographs, each three times at different quality, in random order."""
    data = tmp_path / "set"
    for k in range(12):
        image = picture(k, 240, 320)
        for copy, quality in enumerate((95, 60, 30)):
            split = ("train", "train", "val")[copy]
            (data / "images" / split).mkdir(parents=True, exist_ok=True)
            write_image(data / "images" / split / f"p{k}_{copy}.jpg", image, quality)
            put(data / "labels" / split / f"p{k}_{copy}.txt", yolo_text())
    put(data / "data.yaml", "train: images/train\nval: images/val\nnames: [dog, cat]\n")
    near = found(data)["near_duplicate"]
    assert len(near) == 12 and all(len(each.pictures) == 3 for each in near)
    split_dataset(data, {"train": 0.5, "val": 0.5}, tmp_path / "divided")
    assert "near_duplicate" not in found(tmp_path / "divided")
    train, val = (open_dataset(data, split) for split in ("train", "val"))
    assert len(train) + len(val) == 36


def test_the_page_shows_the_images_that_it_is_about(tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "set")
    (folder / "Annotations/a0.xml").write_text(voc_xml_text("a0", [DOG, DOG, ("cat", 9, 9, 9, 60)]))
    page = tmp_path / "check.html"
    check_main([str(tmp_path / "set"), "--report", str(page), "--json", str(tmp_path / "check.json"), "--show", "1"])
    text = page.read_text()
    assert text.count("<img ") >= 2 and "duplicate" not in text.split("<h2")[0]
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert "the same box of the same class appears twice (1)" in text and "a box has no area (1)" in text
    codes_in_json = {each["code"] for each in json.loads((tmp_path / "check.json").read_text())["findings"]}
    assert {"duplicate_box", "zero_box", "small_split"} <= codes_in_json


def test_a_tiny_box_is_reported_with_the_required_input_size(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    (folder / "Annotations/a0.xml").write_text(voc_xml_text("a0", [("dog", 50, 50, 50.4, 80)]))
    assert found(tmp_path, images=False)["tiny_box"][0].todo == "it has 4 at --input-size 480"


@pytest.mark.parametrize("name", ["labelimg_voc", "tensorflow_csv", "labelme", "coco_with_text_ids", "cvat_yolo"])
def test_any_layout_can_be_split_and_converted_both_ways(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path / "set")
    report = split_dataset(tmp_path / "set", {"train": 0.75, "val": 0.25})
    assert report.data == str(tmp_path / "set-split")
    divided = {split: open_dataset(report.data, split) for split in ("train", "val")}
    assert {split: len(index) for split, index in divided.items()} == {"train": 6, "val": 2}
    source = tmp_path / "set"
    for number, to in enumerate(("voc", "coco", "yolo", "voc")):
        target = tmp_path / f"step{number}"
        convert_dataset(source, target, to, progress=False)
        source = target
    index = everything(source)
    assert len(index) == 8
    for i in range(8):
        assert boxes_by_class(index, i) == {"dog": list(DOG_BOX), "cat": list(CAT_BOX)}


def test_a_full_disk_ends_a_conversion_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["labelimg_voc"][0](tmp_path / "set")

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(RunError, match=r"/out: the disk is full .*nothing was written"):
        convert_dataset(tmp_path / "set", tmp_path / "out", "yolo", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["set"]


@pytest.mark.parametrize(("kind", "words"), [("heic", "HEIC image.*pip install pi-heif"), ("12-bit", "12-bit JPEG")])
def test_the_format_of_undecodable_images_is_reported(
    tmp_path: Path, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imaging.image_io._register_heif", lambda: False)
    make_yolo(tmp_path)
    path = tmp_path / "images/train/p0.jpg"
    data = path.read_bytes()
    frame = data.index(b"\xff\xc0") + 4
    changed = {
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + data,
        "12-bit": data[:frame] + b"\x0c" + data[frame + 1 :],
    }
    path.write_bytes(changed[kind])
    index = open_dataset(tmp_path, "train")
    assert len(index) == 3 and codes(index) == {"unsupported_image"}
    assert re.search(words, str(index.skips[0]))


# --- what is no data set ---------------------------------------------------------------------------------------------


def test_a_json_with_categories_alone_is_not_coco(tmp_path: Path) -> None:
    put(tmp_path / "notes.json", json.dumps({"categories": [{"id": 0, "name": "dog"}], "info": {}}))
    with pytest.raises(UserError, match=r"is not a data set: it contains 1 \.json"):
        recognise(tmp_path)


def test_the_error_for_an_unknown_layout_lists_the_found_files(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    with pytest.raises(UserError, match=r"it contains 8 \.jpg, and no annotations; label the images"):
        recognise(tmp_path)
    for name in NAMES:
        put(tmp_path / f"{name}.txt", "a dog\n")
    with pytest.raises(
        UserError,
        match=r"8 \.jpg, 8 \.txt; IMG_2380.txt begins with 'a dog'; give labels of rows `class cx cy width height`",
    ):
        recognise(tmp_path)


@pytest.mark.parametrize("make", [make_voc, make_coco, make_yolo])
def test_an_empty_list_of_a_known_format_is_no_other_format(make, tmp_path: Path) -> None:
    make(tmp_path / "set")
    assert recognise(tmp_path / "set").format.name in ("voc", "coco", "yolo")
    assert os.listdir(tmp_path) == ["set"]


def test_classes_of_a_list_may_be_anywhere_in_the_folder(tmp_path: Path) -> None:
    LAYOUTS["box_list"][0](tmp_path)
    (tmp_path / "voc_classes.txt").unlink()
    with pytest.raises(UserError, match="no class names"):
        everything(tmp_path)
    assert default_splits(tmp_path) == ("auto-train", "auto-val")
    put(tmp_path / "model_data/pet_classes.txt", CLASSES)
    assert everything(tmp_path).num_boxes == 16
