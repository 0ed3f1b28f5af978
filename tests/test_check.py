"""`dataset.py check` on about eighty faulty data sets: each fault is reported by its code, valid data has none."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data_makers import CAT, DOG, HEIGHT, WIDTH, make_coco, make_voc, make_yolo, picture, voc_xml_text, write_coco
from defusedxml.ElementTree import fromstring
from layout_makers import LAYOUTS
from PIL import Image

import dataset
from data.formats.voc import read_voc
from data.formats.yolo_txt import read_data_yaml
from data.open import open_dataset
from data.quick_check import quick_check
from data.skips import skips_summary, warn_skips, write_skips_csv
from data.tools.check import check_dataset, main
from data.tools.decoding import decode_and_hash
from data.tools.findings import CODES, CheckReport
from data.tools.new_folder import check_new_folder
from imaging.image_io import decode_image, write_image
from utils.errors import UserError

CLASSES = ("dog", "cat")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))


def check(data: Path, **options: Any) -> CheckReport:
    return check_dataset(data, workers=1, use_cache=False, **options)[0]


def codes(report: CheckReport) -> set[str]:
    return {each.code for each in report.findings}


@pytest.mark.parametrize("make", [make_voc, make_coco, make_yolo])
def test_valid_data_has_no_findings(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "set")
    report = check(tmp_path / "set", class_names=CLASSES)
    assert [str(each) for each in report.findings if each.code not in ("few_boxes", "small_split")] == []
    assert report.is_clean and [facts["images"] for facts in report.splits.values()] == [4, 2]


# --- VOC: one function a fault; each gets the year folder ------------------------------------------------------------


def xml(folder: Path, *objects: tuple, name: str = "a0", **size: int) -> None:
    (folder / f"Annotations/{name}.xml").write_text(voc_xml_text(name, objects, **size))


def raw_xml(folder: Path, text: str) -> None:
    (folder / "Annotations/a0.xml").write_text(text)


def edit_xml(folder: Path, old: str, new: str) -> None:
    raw_xml(folder, voc_xml_text("a0", [DOG, CAT]).replace(old, new, 1))


def jpeg(folder: Path, data: bytes) -> None:
    (folder / "JPEGImages/a0.jpg").write_bytes(data)


def whole(folder: Path) -> bytes:
    return (folder / "JPEGImages/a0.jpg").read_bytes()


def add_line(folder: Path, line: str, split: str = "train") -> None:
    with open(folder / f"ImageSets/Main/{split}.txt", "a") as file:
        file.write(line + "\n")


def no_image_file(folder: Path) -> Path:
    path = folder / "JPEGImages/a0.jpg"
    path.unlink()
    return path


def damaged(folder: Path) -> None:
    data = bytearray(whole(folder))
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(range(1, 101)) * 3
    jpeg(folder, bytes(data))


def claims_much(folder: Path) -> None:
    data = whole(folder)
    start = data.index(b"\xff\xc0") + 5
    jpeg(folder, data[:start] + b"\x75\x30\x75\x30" + data[start + 4 :])


def lying(folder: Path) -> None:
    image = Image.open(folder / "JPEGImages/a0.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "JPEGImages/a0.jpg", exif=exif)


def recompressed(folder: Path) -> None:
    image = cv2.resize(decode_image(whole(folder)), (WIDTH * 3 // 4, HEIGHT * 3 // 4), interpolation=cv2.INTER_AREA)
    write_image(folder / "JPEGImages/b0.jpg", image, quality=60)
    xml(folder, DOG, name="b0", height=HEIGHT * 3 // 4, width=WIDTH * 3 // 4)


def linked_outside(folder: Path) -> None:
    path = no_image_file(folder)
    write_image(folder.parents[2] / "secret.jpg", picture(77))
    path.symlink_to(folder.parents[2] / "secret.jpg")


def many_dogs(folder: Path) -> None:
    boxes = [("dog", 1 + x, 1 + y, 30 + x, 30 + y) for x in range(0, 110, 4) for y in range(0, 80, 8)]
    xml(folder, *boxes)
    for name in ("a1", "a2", "a3"):
        xml(folder, CAT if name == "a1" else DOG, name=name)


def decimal_everywhere(folder: Path) -> None:
    xml(folder, ("dog", 10.5, 20.25, 60, 80))


def empty_split(folder: Path) -> None:
    (folder / "ImageSets/Main/val.txt").write_text("\n")


def copied(folder: Path, name: str) -> None:
    shutil.copy(folder / "JPEGImages/a0.jpg", folder / f"JPEGImages/{name}.jpg")


def other_classes(folder: Path) -> None:
    for path in (folder / "Annotations").glob("b*.xml"):
        xml(folder, ("Hund", 1, 1, 50, 50), name=path.stem)


VOC_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: jpeg(f, whole(f)[:900]), "truncated_image"),
    "empty": (lambda f: jpeg(f, b""), "empty_file"),
    "web page": (lambda f: jpeg(f, b"<!doctype html><html></html>"), "not_an_image"),
    "lfs": (lambda f: jpeg(f, b"version https://git-lfs.github.com/spec/v1\n"), "not_an_image"),
    "zeros": (lambda f: jpeg(f, bytes(5000)), "not_an_image"),
    "damaged in the middle": (damaged, "damaged_image"),
    "cut and closed": (lambda f: jpeg(f, whole(f)[:2000] + b"\xff\xd9"), "damaged_image"),
    "huge claim": (claims_much, "image_too_big"),
    "a folder": (lambda f: no_image_file(f).mkdir(), "missing_image"),
    "a pipe": (lambda f: os.mkfifo(no_image_file(f)), "not_a_file"),
    "a broken link": (lambda f: no_image_file(f).symlink_to("gone"), "missing_image"),
    "a link outside": (linked_outside, "leads_outside"),
    "no picture": (no_image_file, "missing_image"),
    "an annotation too many": (lambda f: xml(f, DOG, name="zz"), "annotation_without_image"),
    "a picture too many": (lambda f: write_image(f / "JPEGImages/zz.jpg", picture(55)), "image_without_annotation"),
    "in no split": (
        lambda f: (write_image(f / "JPEGImages/zz.jpg", picture(55)), xml(f, DOG, name="zz")),
        "not_in_a_split",
    ),
    "no annotation": (lambda f: (f / "Annotations/a0.xml").unlink(), "missing_annotation"),
    "two pictures": (lambda f: write_image(f / "JPEGImages/a0.png", picture(55)), "several_images"),
    "line twice": (lambda f: add_line(f, "a0"), "duplicate_id"),
    "line upwards": (lambda f: add_line(f, "../../x"), "leads_outside"),
    "line absolute": (lambda f: add_line(f, "/etc/passwd"), "leads_outside"),
    "line nowhere": (lambda f: add_line(f, "zz"), "missing_image"),
    "xml empty": (lambda f: raw_xml(f, ""), "bad_xml"),
    "xml cut": (lambda f: raw_xml(f, voc_xml_text("a0", [DOG])[:99]), "bad_xml"),
    "xml no xml": (lambda f: raw_xml(f, "dog 1 2 3 4"), "bad_xml"),
    "xml html": (lambda f: raw_xml(f, "<html></html>"), "bad_xml"),
    "xml doctype": (lambda f: raw_xml(f, "<!DOCTYPE a []>" + voc_xml_text("a0", [DOG])), "bad_xml"),
    "other size": (lambda f: xml(f, DOG, height=HEIGHT * 2, width=WIDTH * 2), "size_mismatch"),
    "size 0": (lambda f: xml(f, DOG, height=0, width=0), "bad_size"),
    "other name": (lambda f: edit_xml(f, "a0.jpg", "b9.jpg"), "wrong_filename"),
    "annotated lying": (lying, "exif_rotated_boxes"),
    "no name": (lambda f: edit_xml(f, "<name>dog</name>", ""), "no_name"),
    "no box": (
        lambda f: raw_xml(f, voc_xml_text("a0", [DOG]).replace("bndbox", "polygon")),
        "no_box",
    ),
    "word for number": (lambda f: edit_xml(f, "<xmin>11<", "<xmin>left<"), "bad_number"),
    "edge missing": (lambda f: edit_xml(f, "<xmin>11</xmin>", ""), "bad_number"),
    "not finite": (lambda f: edit_xml(f, "<xmin>11<", "<xmin>nan<"), "nan_box"),
    "absurd": (lambda f: edit_xml(f, "<xmax>60<", "<xmax>123456789<"), "huge_box"),
    "reversed": (lambda f: xml(f, ("dog", 60, 21, 11, 80)), "reversed_box"),
    "no area": (lambda f: xml(f, ("dog", 61, 21, 60, 80)), "zero_box"),
    "outside": (lambda f: xml(f, ("dog", 300, 21, 360, 80)), "outside_box"),
    "reaches out": (lambda f: xml(f, ("dog", 100, 21, 360, 80)), "clipped_box"),
    "twice": (lambda f: xml(f, DOG, DOG, CAT), "duplicate_box"),
    "two classes": (lambda f: xml(f, DOG, ("cat", *DOG[1:])), "conflicting_box"),
    "tiny": (lambda f: xml(f, ("dog", 50, 50, 50.4, 80)), "tiny_box"),
    "a click": (lambda f: xml(f, ("dog", 50, 50, 50, 80)), "zero_box"),
    "decimals": (decimal_everywhere, "decimal_box"),
    "from 0": (lambda f: xml(f, ("dog", 0, 0, 60, 80)), "zero_based_box"),
    "fractions": (
        lambda f: [xml(f, ("dog", 0.1, 0.2, 0.5, 0.6), ("cat", 0.3, 0.3, 1, 1), name=f"a{i}") for i in range(4)],
        "looks_normalised",
    ),
    "unspecified": (lambda f: edit_xml(f, "<difficult>0<", "<difficult>Unspecified<"), "bad_difficult"),
    "unknown class": (lambda f: xml(f, ("zebra", 1, 1, 50, 50)), "unknown_class"),
    "wrong case": (lambda f: xml(f, ("Dog", 1, 1, 50, 50)), "unknown_class"),
    "class absent": (lambda f: [xml(f, DOG, name=f"a{i}") for i in range(4)], "class_without_boxes"),
    "imbalance": (many_dogs, "class_imbalance"),
    "few": (lambda f: None, "few_boxes"),
    "empty split": (empty_split, "empty_split"),
    "no box of any class": (other_classes, "no_boxes"),
    "one line in two splits": (lambda f: add_line(f, "a0", "val"), "same_image"),
    "one picture in two splits": (lambda f: copied(f, "b0"), "same_image"),
    "one photograph in two splits": (recompressed, "near_duplicate"),
    "one picture twice": (lambda f: copied(f, "a1"), "duplicate_image"),
}


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_every_fault_of_a_voc_set_is_found(fault: str, tmp_path: Path) -> None:
    spoil, code = VOC_FAULTS[fault]
    folder = make_voc(tmp_path / "set" / "VOCdevkit")
    spoil(folder)
    report = check(tmp_path / "set", class_names=CLASSES)
    found = [each for each in report.findings if each.code == code]
    assert found, codes(report)
    assert all(each.severity == CODES[code][0] and each.what and "\n" not in str(each) for each in found)
    assert all(each.where.startswith(str(tmp_path)) for each in found), [each.where for each in found]


def test_two_spellings_of_a_class_are_found(tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "set")
    xml(folder, ("Traffic Light", 1, 1, 50, 50), ("traffic_light", 60, 60, 90, 90))
    assert "similar_classes" in codes(check(tmp_path / "set"))


# --- COCO ------------------------------------------------------------------------------------------------------------


def set_first(kind: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[kind][0].update(values)

    return change


def as_corners(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        row["bbox"] = [x, y, x + width, y + height]


def as_fractions(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        row["bbox"] = [0.1, 0.1, 0.5, 0.5]


COCO_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "key missing": (lambda c: c.pop("categories"), "unreadable_split"),
    "wrong type": (lambda c: c.update(images={}), "unreadable_split"),
    "category twice": (lambda c: c["categories"].append({"id": 3, "name": "x"}), "unreadable_split"),
    "category without name": (lambda c: c["categories"].append({"id": 4}), "unreadable_split"),
    "image without name": (set_first("images", file_name=None), "bad_image_entry"),
    "image twice": (set_first("images", id=2), "duplicate_id"),
    "annotation id twice": (set_first("annotations", id=17), "duplicate_id"),
    "picture missing": (set_first("images", file_name="gone.jpg"), "missing_image"),
    "picture outside": (set_first("images", file_name="../../secret.jpg"), "leads_outside"),
    "size missing": (set_first("images", height=None), "bad_size"),
    "size wrong": (set_first("images", height=7), "size_mismatch"),
    "no image": (set_first("annotations", image_id=77), "unknown_image"),
    "no category": (set_first("annotations", category_id=77), "unknown_class"),
    "no id": (set_first("annotations", category_id=True), "bad_reference"),
    "no bbox": (set_first("annotations", bbox=None), "no_box"),
    "short bbox": (set_first("annotations", bbox=[1, 2, 3]), "bad_number"),
    "negative bbox": (set_first("annotations", bbox=[1, 2, -3, 4]), "reversed_box"),
    "zero bbox": (set_first("annotations", bbox=[1, 2, 0, 4]), "zero_box"),
    "no object": (lambda c: c["annotations"].append("x"), "bad_annotation"),
    "corners": (as_corners, "looks_like_corners"),
    "fractions": (as_fractions, "looks_normalised"),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_every_fault_of_a_coco_set_is_found(fault: str, tmp_path: Path) -> None:
    spoil, code = COCO_FAULTS[fault]
    content = make_coco(tmp_path / "set", train=6)["train2017"]
    spoil(content)
    write_coco(tmp_path / "set", "train2017", content)
    assert code in codes(check(tmp_path / "set"))


def test_a_truncated_json_and_an_unlisted_image_are_found(tmp_path: Path) -> None:
    make_coco(tmp_path / "set")
    path = tmp_path / "set/annotations/instances_train2017.json"
    write_image(tmp_path / "set/val2017/spare.jpg", picture(50))
    path.write_text(path.read_text()[:500])
    report = check(tmp_path / "set")
    assert {"unreadable_split", "image_without_annotation"} <= codes(report)
    assert next(each for each in report.findings if each.code == "unreadable_split").where == f"{path}:1"


# --- YOLO ------------------------------------------------------------------------------------------------------------

YOLO_FAULTS = {
    "four columns": ("0 0.5 0.5 0.2\n", "bad_columns"),
    "no number": ("0 0.5 left 0.2 0.2\n", "bad_number"),
    "pixels": ("0 80 60 40 30\n", "not_normalised"),
    "class beyond the list": ("9 0.5 0.5 0.2 0.2\n", "unknown_class"),
    "not finite": ("0 0.5 nan 0.2 0.2\n", "nan_box"),
    "no area": ("0 0.5 0.5 0 0.2\n", "zero_box"),
    "reaches out": ("0 0.95 0.5 0.3 0.2\n", "clipped_box"),
    "score": ("0 0.5 0.5 0.2 0.2 0.87\n", "scores"),
    "twice": ("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n", "duplicate_box"),
    "not text": (b"\xff\xff\x00", "bad_labels"),
}


@pytest.mark.parametrize("fault", YOLO_FAULTS)
def test_every_fault_of_a_yolo_set_is_found(fault: str, tmp_path: Path) -> None:
    text, code = YOLO_FAULTS[fault]
    make_yolo(tmp_path / "set")
    path = tmp_path / "set/labels/train/p0.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = [each for each in check(tmp_path / "set").findings if each.code == code]
    assert found and found[0].where.startswith(str(path))


def test_labels_without_image_and_images_without_label_are_found(tmp_path: Path) -> None:
    make_yolo(tmp_path / "set")
    (tmp_path / "set/labels/train/p0.txt").rename(tmp_path / "set/labels/train/zz.txt")
    assert {"annotation_without_image", "no_label_file"} <= codes(check(tmp_path / "set"))


def test_the_faults_of_this_file_cover_all_finding_codes() -> None:
    tried = {code for table in (VOC_FAULTS, COCO_FAULTS, YOLO_FAULTS) for _, code in table.values()}
    assert len(VOC_FAULTS) + len(COCO_FAULTS) + len(YOLO_FAULTS) >= 40
    elsewhere = {"similar_classes", "no_label_file", "corrupt_image", "file_too_big", "unreadable_file"}
    layouts = (Path(__file__).parent / "test_layouts.py").read_text()
    assert {code for code in CODES.keys() - tried if f'"{code}"' not in layouts} == elsewhere - {"similar_classes"}


# --- duplicates, real data -------------------------------------------------------------------------------------------


def test_images_of_one_colour_are_not_taken_for_each_other(tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "set")
    for name, grey in (("a0", 20), ("a1", 90), ("b0", 200)):
        write_image(folder / f"JPEGImages/{name}.jpg", np.full((HEIGHT, WIDTH, 3), grey, np.uint8))
    assert not codes(check(tmp_path / "set")) & {"near_duplicate", "same_image", "duplicate_image"}


def test_the_decoders_messages_are_captured_and_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = make_voc(tmp_path / "set")
    damaged(folder)
    facts = decode_and_hash(str(folder / "JPEGImages/a0.jpg"))
    assert facts.code == "damaged_image" and "JPEG" in facts.what
    assert capfd.readouterr().err == ""


def test_several_processes_see_the_same_as_one(tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "set", train=260)
    jpeg(folder, b"")
    copied(folder, "b1")
    jpeg(folder, whole(folder))
    reports = [check_dataset(tmp_path / "set", use_cache=False, workers=workers)[0] for workers in (1, 2)]
    assert reports[0].findings == reports[1].findings


@pytest.mark.parametrize("name", ["voc07_dev", "coco_dev"])
def test_real_sets_have_no_error(name: str, shared: Path) -> None:
    if not (shared / "data" / name).is_dir():
        pytest.skip(f"{shared}/data/{name} does not exist")
    report = check(shared / "data" / name, images=name == "coco_dev")
    assert report.is_clean
    assert codes(report) <= {"tiny_box", "few_boxes", "class_without_boxes", "class_imbalance"}


# --- the command, the fix, the quick part ----------------------------------------------------------------------------


def run(*arguments: object) -> int:
    return dataset.main(["check", *map(str, arguments), "--workers", "1"]) or 0


def test_the_command_exits_with_0_or_1_and_writes_json_but_not_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = make_voc(tmp_path / "set")
    assert run(tmp_path / "set") == 0
    xml(folder, ("dog", 60, 21, 11, 80))
    assert run(tmp_path / "set", "--json", tmp_path / "report.json") == 1
    assert (
        f"{folder}/Annotations/a0.xml:4: the box (60, 21, 11, 80) has its corners reversed" in capsys.readouterr().out
    )
    report = json.loads((tmp_path / "report.json").read_text())
    finding = next(each for each in report["findings"] if each["code"] == "reversed_box")
    assert finding["where"] == f"{folder}/Annotations/a0.xml:4" and report["counts"]["error"] == 1
    with pytest.raises(UserError, match="exists"):
        run(tmp_path / "set", "--json", tmp_path / "report.json")
    assert run(tmp_path / "set", "--json", tmp_path / "report.json", "--overwrite", "--split", "val") == 0


@pytest.mark.parametrize(
    "arguments", [("nowhere",), ("set", "--split", "nope"), ("set", "--input-size", "0"), ("set", "--x")]
)
def test_wrong_usage_is_a_one_line_error(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: Any) -> None:
    make_voc(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        run(*arguments)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoilt_voc(root: Path) -> Path:
    folder = make_voc(root)
    faulty = [DOG, DOG, ("dog", 60, 21, 11, 80), ("cat", 100, 21, 360, 80)]
    xml(folder, *faulty)
    edit = (
        (folder / "Annotations/a0.xml")
        .read_text()
        .replace("<difficult>0<", "<pose>Left</pose><difficult>Unspecified<", 1)
    )
    raw_xml(folder, edit)
    (folder / "JPEGImages/a1.jpg").write_bytes(whole(folder)[:900])
    shutil.copy(folder / "JPEGImages/a2.jpg", folder / "JPEGImages/b1.jpg")
    add_line(folder, "../../etc")
    return folder


def spoilt_coco(root: Path) -> None:
    content = make_coco(root)["train2017"]
    content["annotations"][0]["bbox"] = [100, 20, 90, 60]
    content["annotations"][1] |= {"id": 0, "difficult": 1}
    content["annotations"][2]["bbox"] = [1, 2, -3, 4]
    content["annotations"].append(dict(content["annotations"][3]))
    content["images"][3]["file_name"] = "gone.jpg"
    write_coco(root, "train2017", content)


def spoilt_yolo(root: Path) -> None:
    make_yolo(root)
    (root / "labels/train/p0.txt").write_text(
        "0 0.95 0.5 0.3 0.2\n0 0.5 0.5 0.2\n1 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n"
    )
    (root / "images/train/p1.jpg").write_bytes(b"")


@pytest.mark.parametrize("spoil", [spoilt_voc, spoilt_coco, spoilt_yolo])
def test_fix_writes_a_copy_without_errors_and_leaves_the_original_alone(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    spoil(tmp_path / "set")
    before = tree(tmp_path / "set")
    assert run(tmp_path / "set", "--fix", tmp_path / "fixed") == 1
    assert tree(tmp_path / "set") == before
    report = check(tmp_path / "fixed")
    assert report.is_clean and not codes(report) - {"few_boxes", "class_without_boxes", "small_split"}
    assert {path.name for path in tmp_path.iterdir()} == {"set", "fixed", "cache"}
    with open(tmp_path / "fixed/fixed.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) >= 3
    for split in ("train", "val"):  # what was right is as it was
        old, new = (open_dataset(tmp_path / name, split, CLASSES) for name in ("set", "fixed"))
        places = {Path(new.path(i)).name: i for i in range(len(new))}
        for i in range(len(old)):
            if split == "val" and old.path(i).name in places:
                now = new.target(places[old.path(i).name])
                np.testing.assert_allclose(now["boxes"], old.target(i)["boxes"], atol=1e-4)
                assert now["labels"].tolist() == old.target(i)["labels"].tolist()


def test_fix_keeps_other_fields_of_an_object(tmp_path: Path) -> None:
    spoilt_voc(tmp_path / "set")
    run(tmp_path / "set", "--fix", tmp_path / "fixed")
    index = read_voc(tmp_path / "fixed", "train")
    assert index.image_ids.tolist() == ["a0", "a3"] and index.target(0)["boxes"].tolist() == [
        [10, 20, 60, 80],
        [99, 20, 160, 80],
    ]
    assert "<pose>Left</pose>" in (tmp_path / "fixed/VOC2007/Annotations/a0.xml").read_text()


def test_fix_keeps_years_folders_and_the_fields_of_objects_on_one_line(tmp_path: Path) -> None:
    for year, seed in (("VOC2007", 500), ("VOC2012", 600)):
        folder = make_voc(tmp_path / "set", year=year)
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            for path in list((folder / name).iterdir()):  # a0 becomes 2007/a0
                if name == "ImageSets/Main":
                    path.write_text("".join(f"{year}/{line}\n" for line in path.read_text().split()))
                else:
                    (folder / name / year).mkdir(exist_ok=True)
                    path.rename(folder / name / year / path.name)
        for number, path in enumerate((folder / "JPEGImages").rglob("*.jpg")):
            write_image(path, picture(seed + number))
    xml_file = tmp_path / "set/VOC2012/Annotations/VOC2012/a0.xml"
    text = xml_file.read_text().replace("\n", "").replace("<name>dog", "<pose>Left</pose><colour>red</colour><name>dog")
    xml_file.write_text(text.replace("cat</name><difficult>0", "cat</name><difficult>1"))
    before = set(tree(tmp_path / "set"))
    run(tmp_path / "set", "--fix", tmp_path / "fixed")
    assert set(tree(tmp_path / "fixed")) == before | {"classes.txt", "fixed.csv"}
    dog, cat = fromstring((tmp_path / "fixed" / xml_file.relative_to(tmp_path / "set")).read_text()).findall("object")
    assert [dog.findtext(key) for key in ("pose", "colour", "difficult")] == ["Left", "red", "0"]
    assert [cat.findtext(key) for key in ("pose", "colour", "difficult")] == ["Unspecified", None, "1"]


def test_fix_keeps_outlines_and_key_points_of_yolo_and_coco(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_yolo(tmp_path / "pose")
    with open(tmp_path / "pose/data.yaml", "a") as file:
        file.write("kpt_shape: [2, 3]\n")
    rows = "0 0.25 0.5 0.25 0.5 0.2 0.4 2 0.3 0.6 0\n1 0.95 0.5 0.2 0.25 0.9 0.5 1 0.9 0.5 1\n"
    (tmp_path / "pose/labels/train/p0.txt").write_text(rows)
    run(tmp_path / "pose", "--fix", tmp_path / "fixed_pose")
    first, second = (tmp_path / "fixed_pose/labels/train/p0.txt").read_text().splitlines()
    assert first == rows.splitlines()[0] and len(second.split()) == 5
    assert "1 x polygon or keypoints" in capsys.readouterr().out
    assert read_data_yaml(tmp_path / "fixed_pose").key_points == (2, 3)

    content = make_coco(tmp_path / "coco")["train2017"]
    extras = {"segmentation": [[1, 2, 30, 2, 30, 40]], "attributes": {"night": True}}
    content["annotations"][0] |= extras
    content["images"][0]["coco_url"] = "http://x"
    content["categories"][0]["supercategory"] = "animal"
    write_coco(tmp_path / "coco", "train2017", content)
    run(tmp_path / "coco", "--fix", tmp_path / "fixed_coco")
    fixed = json.loads((tmp_path / "fixed_coco/annotations/instances_train2017.json").read_text())
    assert {key: fixed["annotations"][0][key] for key in extras} == extras
    assert fixed["images"][0]["coco_url"] == "http://x" and "animal" in {
        each.get("supercategory") for each in fixed["categories"]
    }
    assert "cannot be stored" not in capsys.readouterr().out


@pytest.mark.parametrize("name", LAYOUTS)
def test_fix_keeps_boxes_and_flags_of_every_layout(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path / "set")
    if name == "dota":  # of the layouts without a writer, the one with a flag in each row
        for path in (tmp_path / "set").rglob("*.txt"):
            path.write_text(path.read_text().replace("cat 0", "cat 1"))
    run(tmp_path / "set", "--fix", tmp_path / "fixed")
    old, new = (open_dataset(tmp_path / each, "all", use_cache=False) for each in ("set", "fixed"))
    places = {new.path(i).name: i for i in range(len(new))}
    for i in range(len(old)):
        one, two = old.target(i), new.target(places[old.path(i).name])
        assert [old.class_names[k] for k in one["labels"]] == [new.class_names[k] for k in two["labels"]]
        np.testing.assert_allclose(one["boxes"], two["boxes"], atol=1e-3)
        assert one["difficult"].tolist() == two["difficult"].tolist()
    assert old.difficult.sum() == (8 if name == "dota" else 0)


def test_fix_never_overwrites_a_file_or_folder(tmp_path: Path) -> None:
    make_voc(tmp_path / "set")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    (tmp_path / "new").mkdir()
    for target in ("full", "full/file", "set", "set/new"):
        with pytest.raises(UserError, match="--fix"):
            check_new_folder("--fix", tmp_path / target, tmp_path / "set")
    file = tmp_path / "one.json"  # a file of a folder that also holds other things
    file.write_text("{}")
    check_new_folder("DST", tmp_path / "new", file)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="inside the data set"):
        check_new_folder("DST", tmp_path / "images/new", file)
    check_new_folder("--fix", tmp_path / "new", tmp_path / "set")
    check_new_folder("--fix", tmp_path / "newer", tmp_path / "set")


def test_the_quick_check_rejects_what_cannot_work_and_names_the_classes_that_are_there(tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "set")
    train, val = (read_voc(folder, split, ["Hund", "Katze"]) for split in ("train", "val"))
    with pytest.raises(UserError, match=r"no box of its classes \(Hund, Katze\); found dog \(4\), cat \(4\)"):
        quick_check(train, val)
    with pytest.raises(UserError, match="no usable image, 0 were skipped"):
        quick_check(train.subset([]))
    add_line(folder, "a0", "val")
    findings = quick_check(*(read_voc(folder, split, CLASSES) for split in ("train", "val")))
    assert {each.code for each in findings} == {"few_boxes", "same_image", "small_split"}


def test_skipped_items_are_summarised_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = spoilt_voc(tmp_path / "set")
    (folder / "JPEGImages/a1.jpg").write_bytes(b"")
    index = read_voc(folder, "train", CLASSES)
    assert skips_summary(index, "train") == "train: 3 images used, 2 skipped, 1 box dropped, 2 notes"
    warn_skips(index, shown=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("warning: ") for line in lines)
    write_skips_csv(tmp_path / "skipped.csv", index.skips)
    with open(tmp_path / "skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["code"] for row in rows} == {skip.code for skip in index.skips} and len(rows) == 5


def test_the_command_without_a_subcommand_shows_what_there_is(capsys: pytest.CaptureFixture) -> None:
    assert dataset.main([]) == 2 and dataset.main(["--help"]) == 0
    assert "check" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown subcommand"):
        dataset.main(["chekc"])
    with pytest.raises(SystemExit):
        main(["--help"])
