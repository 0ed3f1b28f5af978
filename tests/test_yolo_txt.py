"""The YOLO txt reader: labels as flat arrays; invalid entries are reported and skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_makers import HEIGHT, WIDTH, make_yolo, picture

from data.formats.yolo_txt import label_path, list_yolo_splits, read_data_yaml, read_yolo
from data.index import DatasetIndex
from imaging.image_io import write_image
from utils.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_yolo(tmp_path)


def label(data: Path, text: str | bytes, name: str = "p0") -> Path:
    path = data.parent / "labels/train" / f"{name}.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def codes(index: DatasetIndex) -> list[str]:
    return [skip.code for skip in index.skips]


def test_fractions_become_pixels(data: Path) -> None:
    index = read_yolo(data, "train")
    assert (len(index), index.num_boxes, index.skips, index.class_names) == (4, 8, (), ("dog", "cat"))
    assert index.target(0)["boxes"].tolist() == [[20, 30, 60, 90], [100, 45, 140, 75]]
    assert index.image_ids[0] == "images/train/p0" and index.sizes[0].tolist() == [HEIGHT, WIDTH]
    assert read_yolo(data.parent, "val").num_boxes == 4 and list_yolo_splits(data) == ["train", "val"]


def test_a_polygon_becomes_the_box_around_it(data: Path) -> None:
    label(data, "1 0.25 0.25 0.5 0.25 0.5 0.75 0.3 0.5\n")
    index = read_yolo(data, "train")
    assert index.target(0)["boxes"].tolist() == [[40, 30, 80, 90]] and index.labels[0] == 1


@pytest.mark.parametrize(
    ("line", "code", "left"),
    [
        ("0 0.5 0.5 0.2", "bad_columns", 1),
        ("0 0.5 0.5 0.2 0.2 90", "bad_columns", 1),
        ("0 0.5 left 0.2 0.2", "bad_number", 1),
        ("dog 0.5 0.5 0.2 0.2 -1.2", "bad_columns", 1),
        ("2 0.5 0.5 0.2 0.2", "unknown_class", 1),
        ("-1 0.5 0.5 0.2 0.2", "unknown_class", 1),
        ("0.5 0.5 0.5 0.2 0.2", "unknown_class", 1),
        ("nan 0.5 0.5 0.2 0.2", "unknown_class", 1),
        ("0 80 60 40 30", "not_normalised", 1),
        ("0 nan 0.5 0.2 0.2", "nan_box", 1),
        ("0 0.5 0.5 0 0.2", "zero_box", 1),
        ("0 0.5 0.5 -0.2 0.2", "reversed_box", 1),
        ("0 1.5 0.5 0.2 0.2", "outside_box", 1),
        ("0 0.95 0.5 0.2 0.2", "clipped_box", 2),
    ],
)
def test_only_the_bad_line_is_dropped_and_its_number_is_reported(data: Path, line: str, code: str, left: int) -> None:
    path = label(data, f"1 0.75 0.5 0.25 0.25\r\n\n{line}\n")
    index = read_yolo(data, "train")
    assert codes(index) == [code] and index.skips[0].where == f"{path}:3"
    assert len(index) == 4 and len(index.target(0)["boxes"]) == left


def test_rounding_in_the_file_is_not_reported(data: Path) -> None:
    label(data, "0 0.5 0.5 1.000001 1.000001\n")
    index = read_yolo(data, "train")
    assert index.target(0)["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT]] and not index.skips


def test_an_image_without_label_file_or_with_an_empty_one_has_no_objects(data: Path) -> None:
    label(data, "")
    (data.parent / "labels/train/p1.txt").unlink()
    index = read_yolo(data, "train")
    assert len(index) == 4 and index.num_boxes == 4 and codes(index) == ["no_label_file"]
    assert index.skips[0].what.endswith("without objects: p1.jpg")


def test_unreadable_label_files_skip_their_image(data: Path) -> None:
    label(data, b"\xff\xfe\x00", "p0")
    label(data, b"0 0.5 0.5 \xff 0.2", "p1")
    (data.parent / "labels/train/p2.txt").unlink()
    os.mkfifo(data.parent / "labels/train/p2.txt")
    index = read_yolo(data, "train")
    assert codes(index) == ["bad_labels"] * 3 and len(index) == 1 and index.num_boxes == 2


def test_classes_are_matched_by_name(data: Path) -> None:
    index = read_yolo(data, "train", class_names=["cat", "bird"])
    assert index.labels.tolist() == [0] * 4
    assert [(skip.code, skip.count) for skip in index.skips] == [("unknown_class", 4)]


@pytest.mark.parametrize("prefix", ["", "./", "images/train/", "{root}/images/train/"])
def test_a_split_may_be_a_list_of_paths(data: Path, prefix: str) -> None:
    folder = data.parent if prefix.startswith(("i", "{")) else data.parent / "images/train"
    lines = [prefix.format(root=data.parent) + f"p{i}.jpg" for i in (0, 1, 1)]
    (folder / "list.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    data.write_text(f"train: {folder.relative_to(data.parent) / 'list.txt'}\nnames: [dog, cat]\n")
    index = read_yolo(data, "train")
    assert len(index) == 2 and index.num_boxes == 4 and codes(index) == ["duplicate_id"]


def test_a_list_cannot_refer_to_files_outside_of_the_data_set(tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "set")
    write_image(tmp_path / "secret.jpg", picture(1))
    (data.parent / "images/train/link.jpg").symlink_to(tmp_path / "secret.jpg")
    assert codes(read_yolo(data, "train")) == ["leads_outside"]
    (data.parent / "list.txt").write_text(f"images/train/p0.jpg\n../secret.jpg\n{tmp_path}/secret.jpg\n")
    data.write_text("train: list.txt\nnames: [dog, cat]\n")
    index = read_yolo(data, "train")
    assert len(index) == 1 and codes(index) == ["leads_outside"] * 2
    assert index.skips[0].where == f"{data.parent}/list.txt:2"


def test_roboflows_paths_are_understood(tmp_path: Path) -> None:
    data = make_yolo(tmp_path)
    (tmp_path / "images").rename(tmp_path / "kept")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / "kept" / split).rename(tmp_path / split / "images")
        (tmp_path / "labels" / split).rename(tmp_path / split / "labels")
    data.write_text("train: ../train/images\nval: ../val/images\nnc: 2\nnames: ['dog', 'cat']\n")
    assert read_yolo(data, "train").num_boxes == 8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "names: [a",
        "train: images/train",
        "names: [a, b]",
        "train: images/train\nnames: [a, a]",
        "train: images/train\nnames: [a, '']",
        "train: images/train\nnames: {0: a, two: b}",
        "train: images/train\nnames: {0: a, 10000: b}",
        "train: images/train\nnc: 4\nnames: {0: a, 2: b}",
        "train: images/train\nnames: 3",
        "train: images/train\nnames: []",
        "train: images/train\nnc: 3\nnames: [a, b]",
        "train: 5\nnames: [a, b]",
        "train: nowhere\nnames: [a, b]",
        "train: images/train\nnames: [a, b]\npath: [1]",
        "train: !!python/object/apply:os.system ['true']\nnames: [a]",
        "train: images/train\nnames: [a]\n" + "# " + "x" * (1 << 20),
        "a: &a [x,x]\nb: &b [*a,*a]\ntrain: [*b,*b]\nnames: [a]",
    ],
)
def test_a_yaml_that_does_not_say_what_is_needed_is_one_error(data: Path, text: str) -> None:
    data.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yolo(data, "train")
    assert str(caught.value).startswith(str(data)) and "\n" not in str(caught.value)


def test_names_may_be_numbered_and_numbers_may_be_names(data: Path) -> None:
    data.write_text("path: nowhere\ntrain: images/train\nnames: {1: 7, 0: dog}\n")
    assert read_data_yaml(data).class_names == ("dog", "7") and len(read_yolo(data, "train")) == 4


def test_numbers_without_a_name_are_no_classes(data: Path) -> None:
    data.write_text("train: images/train\nnc: 2\nnames: {1: dog, 4: cat}\n")
    path = label(data, "4 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
    for name in ("p1", "p2", "p3"):
        label(data, "", name)
    index = read_yolo(data, "train")
    assert index.class_names == ("dog", "cat") and index.labels.tolist() == [1, 0]
    assert [str(skip).partition(";")[0] for skip in index.skips] == [f"{path}:2: class 2 is not one of 1, 4"]


def test_rows_of_a_detector_are_read_without_their_scores(data: Path) -> None:
    label(data, "1 0.25 0.5 0.25 0.5 0.912345\ndog 0.5 0.5 0.2 0.2 1\n")
    index = read_yolo(data, "train")
    assert index.target(0)["boxes"][0].tolist() == [20, 30, 60, 90] and index.target(0)["labels"].tolist() == [1, 0]
    assert codes(index) == ["scores"] and "2 rows" in str(index.skips[0])


def test_a_row_may_begin_with_a_class_name(data: Path) -> None:
    data.write_text("train: images/train\nnames: [traffic light, cat, class 1]\n")
    good = "traffic light 0.25 0.5 0.25 0.5\n1 0.5 0.5 0.2 0.2\ncat 0.1 0.1 0.3 0.1 0.3 0.3\nclass 1 .5 .5 .2 .2\n"
    label(data, f"{good}ca 0.5 0.5 0.2 0.2\ncat_1 0.5 0.5 0.2\ncat 0.5 0.5 0.2 a\n")
    index = read_yolo(data, "train")
    target = index.target(0)
    assert target["labels"].tolist() == [0, 1, 1, 2] and target["boxes"][0].tolist() == [20, 30, 60, 90]
    assert codes(index) == ["bad_number", "bad_number", "polygons", "unknown_class"]
    assert "did you mean 'cat'" in str(index.skips[3])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("/d/images/train/a.b.jpg", "/d/labels/train/a.b.txt"),
        ("/images/images/a.jpg", "/images/labels/a.txt"),
        ("/d/a.jpg", "/d/a.txt"),
    ],
)
def test_a_label_has_the_position_of_its_format(image: str, expected: str) -> None:
    assert label_path(image.replace("/", os.sep)) == expected.replace("/", os.sep)
