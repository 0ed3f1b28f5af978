"""`open_dataset`: any format, the same index for the same images, and a transparent cache."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_makers import CAT, DOG, make_coco, make_voc, make_yolo, picture, voc_xml_text, write_coco
from layout_makers import LAYOUTS

from data import index_cache as cache
from data.class_names import nearest_name, read_class_names
from data.index import DatasetIndex
from data.open import default_splits, list_splits, match_split, open_dataset, recognise_format
from imaging.image_io import write_image
from utils.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(one: DatasetIndex, other: DatasetIndex) -> bool:
    arrays = ("path_bytes", "path_offsets", "image_ids", "sizes", "offsets", "boxes", "labels", "difficult", "crowd")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return equal and (one.name, one.class_names, one.skips) == (other.name, other.class_names, other.skips)


def test_every_format_is_recognised_by_its_files(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc/VOCdevkit")
    make_coco(tmp_path / "coco")
    make_yolo(tmp_path / "yolo")
    assert recognise_format(tmp_path / "voc") == recognise_format(tmp_path / "voc/VOCdevkit/VOC2007") == "voc"
    assert recognise_format(tmp_path / "coco") == "coco"
    assert recognise_format(tmp_path / "coco/annotations/instances_val2017.json") == "coco"
    assert recognise_format(tmp_path / "yolo") == recognise_format(tmp_path / "yolo/data.yaml") == "yolo"
    for name, splits in (("voc", ("train", "val")), ("coco", ("train2017", "val2017")), ("yolo", ("train", "val"))):
        assert default_splits(tmp_path / name) == splits == tuple(list_splits(tmp_path / name))
        assert len(open_dataset(tmp_path / name, "train")) == 4 and len(open_dataset(tmp_path / name, "val")) == 2
        assert match_split(tmp_path / name, "val") == splits[1]


def test_the_same_boxes_in_three_formats_are_the_same_index(tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "voc", train=1, val=0)
    content = make_coco(tmp_path / "coco", train=1, val=0)
    yaml = make_yolo(tmp_path / "yolo", train=1, val=0)
    (folder / "Annotations/a0.xml").write_text(voc_xml_text("a0", [("dog", 21, 31, 60, 90), ("cat", 101, 46, 140, 75)]))
    for row, box in zip(content["train2017"]["annotations"], ([20, 30, 40, 60], [100, 45, 40, 30]), strict=True):
        row["bbox"] = box
    write_coco(tmp_path / "coco", "train2017", content["train2017"])
    targets = [open_dataset(d, "train", ["dog", "cat"]).target(0) for d in (folder, tmp_path / "coco", yaml)]
    for target in targets:
        assert target["boxes"].tolist() == [[20, 30, 60, 90], [100, 45, 140, 75]] and target["labels"].tolist() == [
            0,
            1,
        ]


@pytest.mark.parametrize("name", ["nowhere", "empty", "file.txt", "pipe", "photos"])
def test_the_error_for_other_paths_describes_the_supported_layouts(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"give a data set: images with VOC XML") as caught:
        open_dataset(tmp_path / name, "train")
    assert str(caught.value).startswith(str(tmp_path / name))


def test_an_unknown_split_is_an_error_with_the_known_ones(tmp_path: Path) -> None:
    make_coco(tmp_path)
    with pytest.raises(UserError, match="choose from train2017, val2017"):
        open_dataset(tmp_path, "test")


def test_a_set_without_a_split_is_divided_by_seed(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    for name in ("val", "train"):
        (folder / f"ImageSets/Main/{name}.txt").unlink()
        assert default_splits(tmp_path) == ("auto-train", "auto-val")
        train, val = (open_dataset(tmp_path, split) for split in ("auto-train", "auto-val"))
        count = 4 if name == "val" else 6  # the pictures of the list that is left, or all that are annotated
        assert (len(train), len(val)) == (count - 1, 1)
        assert not {train.path(i) for i in range(len(train))} & {val.path(0)}
        assert same(val, open_dataset(tmp_path, "val", use_cache=False))
    assert list_splits(tmp_path) == ["all"] and len(open_dataset(tmp_path, "all")) == 6


def test_a_split_of_which_nothing_can_be_used_is_an_error_unless_one_asks_for_it(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, train=2)
    for path in (folder / "JPEGImages").glob("a*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no image that can be used: 2 skipped, the first because .*a0\.jpg: is empty"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", allow_empty=True)) == 0


@pytest.mark.parametrize("make", [make_voc, make_coco, make_yolo])
def test_a_second_start_takes_the_index_from_the_cache(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "data")
    first = open_dataset(tmp_path / "data", "train")
    for module in ("voc", "coco", "yolo_txt"):
        monkeypatch.setattr(f"data.formats.{module}.build_index", lambda *_: pytest.fail("read again"))
    second = open_dataset(tmp_path / "data", "train")
    assert same(first, second) and second.source == first.source
    assert second.target(0)["boxes"].flags.writeable and not second.boxes.flags.writeable
    assert not any(path.name.startswith(".") for path in (tmp_path / "cache").rglob("*"))


def test_nothing_is_ever_written_into_the_data_folder(tmp_path: Path) -> None:
    make_voc(tmp_path / "data")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "data").rglob("*"))
    open_dataset(tmp_path / "data", "train")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "data").rglob("*"))


def change_xml(folder: Path) -> None:
    (folder / "Annotations/a0.xml").write_text(voc_xml_text("a0", [DOG]))


def change_list(folder: Path) -> None:
    (folder / "ImageSets/Main/train.txt").write_text("a1\n")


def change_picture(folder: Path) -> None:
    write_image(folder / "JPEGImages/a0.jpg", picture(5, 100, 100))


def remove_picture(folder: Path) -> None:
    (folder / "JPEGImages/a0.jpg").unlink()


def same_size_other_time(folder: Path) -> None:
    path = folder / "Annotations/a0.xml"
    path.write_text(voc_xml_text("a0", [CAT, DOG]))


@pytest.mark.parametrize("change", [change_xml, change_list, change_picture, remove_picture, same_size_other_time])
def test_a_changed_file_invalidates_the_cache(change, tmp_path: Path) -> None:
    folder = make_voc(tmp_path / "data")
    first = open_dataset(tmp_path / "data", "train")
    change(folder)
    second = open_dataset(tmp_path / "data", "train")
    assert not same(first, second)
    assert same(second, open_dataset(tmp_path / "data", "train", use_cache=False))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def path_appears(root: Path) -> None:
    shutil.copytree(root / "images/train", root / "elsewhere/images/train")


def folder_appears(root: Path) -> None:
    (root / "images/train/day2").mkdir()
    write_image(root / "images/train/day2/new.jpg", picture(77))


def contradiction_appears(root: Path) -> None:
    put(root / "classes.txt", "cat\ndog\n")


def names_change(root: Path) -> None:
    put(root / "pets.names", "Hund\nKatze\n")


@pytest.mark.parametrize("change", [path_appears, folder_appears, contradiction_appears, names_change])
def test_a_new_folder_invalidates_the_cache_of_a_yolo_data_set(change, tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path / "data")
    root = yaml.parent
    for path in list((root / "images/train").iterdir()):  # in a subfolder, so that no image lies beside a new one
        for file in (path, root / "labels/train" / f"{path.stem}.txt"):
            (file.parent / "day1").mkdir(exist_ok=True)
            file.rename(file.parent / "day1" / file.name)
    put(root / "pets.names", "dog\ncat\n")
    yaml.write_text("path: elsewhere\ntrain: images/train\nval: images/val\nnames: pets.names\n")

    def answer(use_cache: bool) -> object:
        try:
            index = open_dataset(root, "train", use_cache=use_cache)
        except UserError as error:
            return str(error)
        return index.class_names, len(index), str(index.path(0))

    first = answer(True)
    assert answer(True) == first
    change(root)
    assert answer(True) == answer(False) != first


def test_class_names_next_to_a_data_set_without_yaml_invalidate_its_cache(tmp_path: Path) -> None:
    LAYOUTS["yolo_without_yaml"][0](tmp_path / "data")
    assert set(open_dataset(tmp_path / "data", "all").class_names) == {"dog", "cat"}
    put(tmp_path / "data/classes.txt", "fox\nhen\n")
    assert open_dataset(tmp_path / "data", "all").class_names == ("fox", "hen")


def test_other_classes_or_limits_have_their_own_cache(tmp_path: Path) -> None:
    make_voc(tmp_path / "data")
    assert open_dataset(tmp_path / "data", "train").num_boxes == 8
    assert open_dataset(tmp_path / "data", "train", ["dog"]).num_boxes == 4
    assert len(open_dataset(tmp_path / "data", "train", max_megapixels=0.001, allow_empty=True)) == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "facts", "pointer", "folder"])
def test_a_damaged_cache_is_rebuilt_silently(damage: str, tmp_path: Path, own_cache: Path) -> None:
    make_voc(tmp_path / "data")
    first = open_dataset(tmp_path / "data", "train")
    boxes, facts = next(own_cache.rglob("boxes.npy")), next(own_cache.rglob("facts.json"))
    pointer = next((own_cache / "index").glob("*.json"))
    content = bytearray(boxes.read_bytes())
    if damage == "flip":
        content[-5] ^= 4
        boxes.write_bytes(content)
    elif damage == "cut":
        boxes.write_bytes(content[:-9])
    elif damage == "remove":
        boxes.unlink()
    elif damage == "facts":
        facts.write_text("{")
    elif damage == "pointer":
        pointer.write_text("[3]")
    else:
        pointer.unlink()
        pointer.mkdir()
    assert same(first, open_dataset(tmp_path / "data", "train"))


def test_a_cache_that_cannot_be_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_voc(tmp_path / "data")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "file"))
    assert len(open_dataset(tmp_path / "data", "train")) == 4


def test_the_cache_lies_where_the_platform_has_its_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MOBILENET_YOLO_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "mobilenet_yolo"


def test_a_cached_index_is_pickled_as_the_names_of_its_files(tmp_path: Path) -> None:
    make_voc(tmp_path / "data", train=30)
    open_dataset(tmp_path / "data", "train")
    index = open_dataset(tmp_path / "data", "train")
    arrived = pickle.loads(pickle.dumps(index))
    assert same(index, arrived) and len(pickle.dumps(index)) < len(pickle.dumps(index.subset(range(30))))
    part = index.subset([3, 1])
    assert same(part, pickle.loads(pickle.dumps(part))) and part.image_ids.tolist() == ["a3", "a1"]
    mask = np.zeros(index.num_boxes, bool)
    mask[2:5] = True
    assert np.diff(index.keep_boxes(mask).offsets).tolist()[:4] == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"dog\n\ncat\n", ":2"),
        (b"dog\ncat\ndog\n", ":3"),
        (b"dog\n dog \n", ":2"),
        (b"d\xffg\n", ""),
        (b"a\0b\n", ""),
    ],
)
def test_a_bad_class_file_is_an_error_with_its_line(data: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_class_names(tmp_path / "classes.txt")
    assert str(caught.value).startswith(f"{tmp_path}/classes.txt{line}: ")


@pytest.mark.parametrize("data", [b"dog\ncat", b"\xef\xbb\xbfdog\r\ncat\r\n\r\n", "dog\ncat\n".encode("utf-16")])
def test_a_class_file_may_have_any_line_ends_and_byte_order_mark(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(data)
    assert read_class_names(tmp_path / "classes.txt") == ("dog", "cat")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Dog", "dog"),
        ("TV monitor", "tvmonitor"),
        ("aeroplan", "aeroplane"),
        ("dgo", "dog"),
        ("zebra", None),
        ("", None),
    ],
)
def test_the_similar_name_is_suggested(name: str, near: str | None) -> None:
    assert nearest_name(name, ["dog", "tvmonitor", "aeroplane", "cat"]) == near


# ---- nothing that is cached depends on the working folder or on what stood at a path before


def test_two_projects_that_call_their_set_data_do_not_share_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, sets in (("a", "dog"), ("b", "cat")):
        make_voc(tmp_path / name / "data", train=4 if sets == "dog" else 6)
    monkeypatch.chdir(tmp_path / "a")
    first = open_dataset("data", "train")
    assert all(first.path(i).is_absolute() and first.path(i).is_file() for i in range(len(first)))
    monkeypatch.chdir(tmp_path / "b")
    second = open_dataset("data", "train")
    assert (len(first), len(second)) == (4, 6) and second.path(0).is_relative_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    for again, before in ((open_dataset("a/data", "train"), first), (open_dataset("b/data", "train"), second)):
        assert same(again, before) and all(again.path(i).is_file() for i in range(len(again)))


def test_another_set_of_the_same_sizes_and_times_at_the_same_path_is_read_anew(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_voc(tmp_path / name)
    xml = tmp_path / "two/VOC2007/Annotations/a0.xml"
    text = xml.read_text()
    xml.write_text(text.replace("dog", "cow"))
    for path in sorted((tmp_path / "one").rglob("*")):
        os.utime(path, ns=(10**18, 10**18))
        os.utime(tmp_path / "two" / path.relative_to(tmp_path / "one"), ns=(10**18, 10**18))
    (tmp_path / "one").rename(tmp_path / "data")
    assert "cow" not in open_dataset(tmp_path / "data", "train").class_names
    (tmp_path / "data").rename(tmp_path / "away")
    (tmp_path / "two").rename(tmp_path / "data")
    assert "cow" in open_dataset(tmp_path / "data", "train").class_names
