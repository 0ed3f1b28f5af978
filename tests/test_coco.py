"""The COCO reader: COCO files as flat arrays; invalid entries are reported and skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import DOG, HEIGHT, WIDTH, make_coco, picture, write_coco
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats.coco import find_coco_files, read_coco
from data.index import DatasetIndex
from imaging.image_io import write_image
from utils.errors import UserError


class Coco:
    """A small data set whose training JSON a test corrupts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.json = make_coco(root)["train2017"]

    @property
    def annotations(self) -> list[Any]:
        return self.json["annotations"]

    def read(self, **options: Any) -> DatasetIndex:
        write_coco(self.root, "train2017", self.json)
        return read_coco(self.root, "train2017", **options)


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    return Coco(tmp_path)


def codes(index: DatasetIndex) -> list[str]:
    return [skip.code for skip in index.skips]


def test_categories_with_holes_become_labels_without_and_keep_their_ids(coco: Coco) -> None:
    index = coco.read()
    assert (index.class_names, index.category_ids) == (("dog", "cat"), (3, 7))
    assert (len(index), index.num_boxes, index.skips) == (4, 8, ())
    assert index.target(0)["boxes"].tolist() == [[10, 20, 60, 80], [70.5, 30.25, 140.5, 110.25]]
    assert index.labels[:2].tolist() == [0, 1] and index.target(0)["image_id"] == 1
    assert index.areas is not None and index.areas[:2].tolist() == [1500, 2800]
    assert index.box_refs is not None and index.box_refs[:2].tolist() == [13, 17]


def test_given_classes_are_matched_by_name_and_the_rest_is_counted(coco: Coco) -> None:
    index = coco.read(class_names=["bird", "cat"])
    assert index.labels.tolist() == [1] * 4 and index.category_ids == (8, 7)
    assert [(skip.code, skip.count) for skip in index.skips] == [("unknown_class", 4)]
    assert len(index) == 4


def test_crowds_negatives_and_ignored_objects_are_kept_as_what_they_are(coco: Coco) -> None:
    coco.annotations[0] |= {"iscrowd": 1, "segmentation": {"counts": [1, 2], "size": [3, 4]}}
    coco.annotations[1]["ignore"] = 1
    coco.json["annotations"] = coco.annotations[:2]
    index = coco.read()
    assert index.crowd.tolist() == [True, False] and index.difficult.tolist() == [False, True]
    assert np.diff(index.offsets).tolist() == [2, 0, 0, 0]


def test_annotation_id_0_is_an_annotation_like_any_other(coco: Coco) -> None:
    coco.annotations[0]["id"] = 0
    index = coco.read()
    assert index.num_boxes == 8 and not index.skips


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bbox": [10, 20, -5, 60]}, "reversed_box"),
        ({"bbox": [10, 20, 0, 60]}, "zero_box"),
        ({"bbox": [10, 20, float("nan"), 60]}, "nan_box"),
        ({"bbox": [10, 20, float("inf"), 60]}, "nan_box"),
        ({"bbox": [10, 20, 10**400, 60]}, "nan_box"),
        ({"bbox": [10, 20, 1e9, 60]}, "huge_box"),
        ({"bbox": [900, 20, 5, 60]}, "outside_box"),
        ({"bbox": [10, 20, 5]}, "bad_number"),
        ({"bbox": ["10", 20, 5, 6]}, "bad_number"),
        ({"bbox": {"x": 1}}, "bad_number"),
        ({"bbox": None}, "no_box"),
        ({"category_id": True}, "bad_reference"),
        ({"category_id": None}, "bad_reference"),
        ({"image_id": [1]}, "bad_reference"),
        ({"image_id": 10**30}, "bad_reference"),
        ({"category_id": 5}, "unknown_class"),
        ({"image_id": 999}, "unknown_image"),
    ],
)
def test_only_the_bad_annotation_is_dropped(coco: Coco, change: dict[str, Any], code: str) -> None:
    coco.annotations[0] |= change
    index = coco.read()
    assert codes(index) == [code] and index.skips[0].kind == "box"
    assert (len(index), index.num_boxes) == (4, 7)


@pytest.mark.parametrize("item", [None, 3, "x", [], {}, {"id": 5}])
def test_entries_that_are_not_annotations_are_dropped(coco: Coco, item: object) -> None:
    coco.annotations.append(item)
    index = coco.read()
    assert codes(index) == ["bad_annotation"] and index.num_boxes == 8


@pytest.mark.parametrize(
    ("change", "code", "images"),
    [
        ({"file_name": "../../secret.jpg"}, "leads_outside", 3),
        ({"file_name": "/etc/passwd"}, "leads_outside", 3),
        ({"file_name": "gone.jpg"}, "missing_image", 3),
        ({"file_name": None}, "bad_image_entry", 3),
        ({"id": 1.5}, "bad_image_entry", 3),
        ({"id": 2}, "duplicate_id", 3),
        ({"height": None}, "bad_size", 4),
        ({"height": 1, "width": 1}, "size_mismatch", 4),
    ],
)
def test_a_bad_image_entry_skips_at_most_its_image(coco: Coco, change: dict[str, Any], code: str, images: int) -> None:
    coco.json["images"][0] |= change
    index = coco.read()
    assert code in codes(index) and len(index) == images
    assert (index.sizes == [HEIGHT, WIDTH]).all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"images": []}',
        '{"images": {}, "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
        '{"images": [], "annotations": [], "categories": ["dog"]}',
        "[" * 100_000,
        '{"images": ' + "9" * 5000 + "}",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_a_file_that_is_not_coco_is_one_error_with_its_name(coco: Coco, text: str) -> None:
    path = coco.root / "annotations/instances_train2017.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_coco(coco.root, "train2017")
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("json_name", "folder", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train2017"),
        ("annotations/instances_train.json", "images/train", "train"),
        ("annotations/train.json", "images", "train"),
        ("train.json", "train", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("instances_mine.json", ".", "mine"),
    ],
)
def test_the_usual_layouts_are_found(tmp_path: Path, json_name: str, folder: str, split: str) -> None:
    for place in (tmp_path / folder, (tmp_path / json_name).parent):
        place.mkdir(parents=True, exist_ok=True)
    write_image(tmp_path / folder / "one.jpg", picture(1))
    images = [{"id": 5, "file_name": "one.jpg", "height": HEIGHT, "width": WIDTH}]
    annotations = [{"id": 1, "image_id": 5, "category_id": 2, "bbox": [1, 2, 30, 40]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 2, "name": DOG[0]}]}
    (tmp_path / json_name).write_text(json.dumps(content))
    assert list(find_coco_files(tmp_path)) == [split]
    for data in (tmp_path, tmp_path / json_name):
        index = read_coco(data)
        assert (len(index), index.num_boxes, index.skips) == (1, 1, ())


def test_images_may_lie_anywhere_if_one_says_where(coco: Coco, tmp_path: Path) -> None:
    (tmp_path / "train2017").rename(tmp_path / "elsewhere")
    assert len(coco.read(image_folder=tmp_path / "elsewhere")) == 4
    index = coco.read()
    assert len(index) == 4 and codes(index) == ["found_by_name"] and "4 of 4 images" in index.skips[0].what


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutated_file_is_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.getbasetemp() / "mutated"
    if not root.exists():
        make_coco(root, train=1, val=0)
    path = root / "annotations/instances_train2017.json"
    original = path.with_suffix(".original")
    if not original.exists():
        original.write_bytes(path.read_bytes())
    text = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=5))
    path.write_bytes(bytes(text))
    try:
        assert len(read_coco(root, "train2017")) <= 1
    except UserError:
        return


def test_the_real_file_is_read_whole_and_agrees_with_its_json(shared: Path) -> None:
    root = shared / "data/coco_dev"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    index = read_coco(root)
    truth = json.loads((root / "annotations/instances_train2017.json").read_text())
    assert (len(index), index.num_boxes, index.skips) == (90, 787, ())
    assert int(index.crowd.sum()) == sum(each["iscrowd"] for each in truth["annotations"])
    assert index.boxes is not None and index.areas is not None
    assert index.areas.sum() == pytest.approx(sum(each["area"] for each in truth["annotations"]))
