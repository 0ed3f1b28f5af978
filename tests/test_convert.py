"""`dataset.py convert`: round trips between formats are lossless, and unsupported information is reported."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from defusedxml.ElementTree import parse

from data.formats.writers import coco_number, voc_number, voc_xml, write_lines, yolo_number, yolo_txt
from data.index import DatasetIndex
from data.open import open_dataset
from data.tools.convert import ConversionReport, convert_dataset, main
from data.tools.demo import DEMO_YEAR, write_demo
from data.tools.new_folder import new_folder
from imaging.scenes import SCENE_CLASSES
from utils.errors import RunError, UserError

OBJECT_TAGS = ("name", "pose", "truncated", "occluded", "difficult")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_demo(root, 24, 0, (96, 128))
    return root


def convert(source: Path, target: Path, to: str, **options: object) -> ConversionReport:
    return convert_dataset(source, target, to, progress=False, **options)  # type: ignore[arg-type]


def load(data: Path, split: str) -> DatasetIndex:
    return open_dataset(data, split, SCENE_CLASSES, use_cache=False)


def assert_same(first: DatasetIndex, second: DatasetIndex, flags: bool = True) -> None:
    """The same images in the same order, with the same boxes, classes and (if the format has them) flags."""
    assert [first.path(i).name for i in range(len(first))] == [second.path(i).name for i in range(len(second))]
    assert all(first.path(i).read_bytes() == second.path(i).read_bytes() for i in range(len(first)))
    assert np.array_equal(first.offsets, second.offsets)
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.sizes, second.sizes)
    assert np.abs(first.boxes - second.boxes).max(initial=0) < 1e-9
    assert np.array_equal(first.boxes.astype(np.float32), second.boxes.astype(np.float32))
    if flags:
        assert np.array_equal(first.difficult, second.difficult)
        assert np.array_equal(first.crowd, second.crowd)


def voc_objects(folder: Path) -> dict[str, list[tuple[str | None, ...]]]:
    found = {}
    for path in sorted((folder / "Annotations").iterdir()):
        tags = [*OBJECT_TAGS, *(f"bndbox/{edge}" for edge in ("xmin", "ymin", "xmax", "ymax"))]
        found[path.name] = [tuple(each.findtext(tag) for tag in tags) for each in parse(path).iter("object")]
    return found


def make_coco(root: Path, demo: Path) -> Path:
    """A COCO data set with gaps in its ids, decimals, a crowd, an image without objects and a polygon."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    images, annotations = [], []
    for n in range(5):
        name = f"0000000{n + 7:05d}.jpg"
        shutil.copy(demo / DEMO_YEAR / "JPEGImages" / f"{n:06d}.jpg", root / "val2017" / name)
        size = parse(demo / DEMO_YEAR / "Annotations" / f"{n:06d}.xml").find("size")
        images.append({"id": n + 7, "file_name": name, **{k: int(size.findtext(k)) for k in ("height", "width")}})
    for n, (image, box, crowd) in enumerate(
        [
            (7, [1.13, 2.07, 33.33, 44.49], 0),
            (8, [0, 0, 50.5, 60], 1),
            (9, [10.01, 0.3, 20.7, 30.2], 0),
            (9, [5, 6, 7, 8], 0),
        ]
    ):
        entry = {"id": 1000 - n, "image_id": image, "category_id": (3, 7, 90)[n % 3], "bbox": box, "iscrowd": crowd}
        annotations.append(entry | {"area": 12.25, "segmentation": [[1, 1, 2, 2, 3, 1]]})
    names = [{"id": 3, "name": "zebra"}, {"id": 7, "name": "apple"}, {"id": 90, "name": "hair drier"}]
    content = {"images": images, "annotations": annotations, "categories": names}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", list(itertools.product(("voc", "coco", "yolo"), repeat=2)), ids="-".join)
def test_voc_comes_back_the_same_by_every_way(demo: Path, tmp_path: Path, way: tuple[str, str]) -> None:
    convert(demo, tmp_path / "a", way[0])
    convert(tmp_path / "a", tmp_path / "b", way[1], class_names=SCENE_CLASSES)
    convert(tmp_path / "b", tmp_path / "c", "voc", class_names=SCENE_CLASSES)
    for split in ("train", "val", "trainval", "test"):
        assert_same(load(demo, split), load(tmp_path / "c", split), flags="yolo" not in way)


def test_pose_truncated_occluded_and_difficult_survive_coco(demo: Path, tmp_path: Path) -> None:
    convert(demo, tmp_path / "coco", "coco")
    report = convert(tmp_path / "coco", tmp_path / "voc", "voc", year=DEMO_YEAR)
    assert voc_objects(demo / DEMO_YEAR) == voc_objects(tmp_path / "voc" / DEMO_YEAR)
    assert not report.lost


@pytest.mark.parametrize("middle", ["voc", "yolo"])
def test_coco_boxes_and_ids_come_back_to_the_last_decimal(demo: Path, tmp_path: Path, middle: str) -> None:
    source = make_coco(tmp_path / "source", demo)
    report = convert(source, tmp_path / "middle", middle)
    names = ["zebra", "apple", "hair drier"]
    convert(tmp_path / "middle", tmp_path / "back", "coco", class_names=names)
    before = json.loads((source / "annotations" / "instances_val2017.json").read_text())
    after = json.loads(next((tmp_path / "back" / "annotations").iterdir()).read_text())
    keys = ("id", "file_name", "width", "height")
    assert [{k: each[k] for k in keys} for each in after["images"]] == [
        {k: each[k] for k in keys} for each in before["images"]
    ]
    kept = [each for each in before["annotations"] if middle == "voc" or not each["iscrowd"]]
    assert [(each["image_id"], each["bbox"]) for each in after["annotations"]] == [
        (each["image_id"], each["bbox"]) for each in kept
    ]
    assert [each["name"] for each in after["categories"]] == names
    lost = " ".join(report.lost)
    assert "crowd" in lost and "category id" in lost and "segmentation" in lost and "outline" in lost
    assert report.category_ids == [3, 7, 90]


def test_coco_to_coco_keeps_ids_crowds_and_areas(demo: Path, tmp_path: Path) -> None:
    source = make_coco(tmp_path / "source", demo)
    convert(source, tmp_path / "out", "coco")
    first = open_dataset(source, "val2017", use_cache=False)
    second = open_dataset(tmp_path / "out", "val2017", use_cache=False)
    assert_same(first, second)
    for name in ("image_ids", "box_refs", "areas"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert first.category_ids == second.category_ids == (3, 7, 90)


def test_yolo_fractions_come_back_digit_for_digit(demo: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("images", "labels"):
        (source / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(6):
        shutil.copy(demo / DEMO_YEAR / "JPEGImages" / f"{n:06d}.jpg", source / "images" / f"pic {n}.jpg")
        rows = [[rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), *rng.uniform(0.05, 0.7, 2)] for _ in range(n)]
        text = "".join(f"{n % 2} " + " ".join(f"{v:.6f}".rstrip("0") for v in row) + "\n" for row in rows)
        (source / "labels" / f"pic {n}.txt").write_text(text)
    (source / "data.yaml").write_text("train: images\nval: images\nnames: {0: b, 1: a}\n")
    for middle in ("voc", "coco"):
        convert(source, tmp_path / middle, middle)
        convert(tmp_path / middle, tmp_path / f"{middle}-back", "yolo", class_names=["b", "a"])
        for n in range(6):
            back = tmp_path / f"{middle}-back" / "labels" / f"pic {n}.txt"
            assert back.read_text() == (source / "labels" / f"pic {n}.txt").read_text()


# --- what cannot be held ---------------------------------------------------------------------------------------------


def test_information_not_supported_by_yolo_is_counted(demo: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(demo, own)
    xml = own / DEMO_YEAR / "Annotations" / "special.xml"
    shutil.copy(own / DEMO_YEAR / "JPEGImages" / "000000.jpg", own / DEMO_YEAR / "JPEGImages" / "special.jpg")
    fields = [{"pose": "Left", "truncated": "1"}, {"occluded": "1"}]
    boxes = np.array([[0, 0, 10, 10], [2, 3, 30, 40.0]])
    xml.write_text(voc_xml("special.jpg", (90, 120), boxes, ["car", "tree"], [True, False], fields))
    (own / DEMO_YEAR / "ImageSets" / "Main" / "special.txt").write_text("special\n")
    report = convert(own, tmp_path / "yolo", "yolo", split="special")
    counts = {key.split()[0]: count for key, count in report.lost.items()}
    assert (counts["flag"], counts["truncated"], counts["occluded"], counts["pose"]) == (1, 1, 1, 1)
    assert counts["split"] == 1  # data.yaml knows no `special`
    written = json.loads((tmp_path / "yolo" / "conversion_report.json").read_text())
    assert written["lost"] == report.lost and written["splits"] == {"special": {"images": 1, "boxes": 2}}


def test_images_without_objects_stay(demo: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(demo, own)
    name = (own / DEMO_YEAR / "ImageSets" / "Main" / "train.txt").read_text().split()[0]
    path = own / DEMO_YEAR / "Annotations" / f"{name}.xml"
    path.write_text(voc_xml(f"{name}.jpg", (96, 128), np.zeros((0, 4)), []))
    for to in ("voc", "coco", "yolo"):
        convert(own, tmp_path / to, to, split="trainval")
    convert(tmp_path / "yolo", tmp_path / "back", "voc")
    empty = (np.diff(load(own, "trainval").offsets) == 0).sum()
    assert empty
    for folder, split in (("voc", "trainval"), ("coco", "trainval"), ("yolo", "trainval"), ("back", "trainval")):
        assert (np.diff(load(tmp_path / folder, split).offsets) == 0).sum() == empty


def test_two_images_of_one_name_both_arrive(demo: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for part in ("train", "val"):
        (source / "images" / part).mkdir(parents=True)
        (source / "labels" / part).mkdir(parents=True)
    for n, part in enumerate(("train", "val")):
        shutil.copy(demo / DEMO_YEAR / "JPEGImages" / f"{n:06d}.jpg", source / "images" / part / "a.b c.JPG")
        (source / "labels" / part / "a.b c.txt").write_text(f"{n} 0.5 0.5 0.5 0.5\n")
    (source / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [x, y]\n")
    report = convert(source, tmp_path / "voc", "voc")
    assert list(report.renamed.values()) == ["val_a.b c.JPG"]
    for n, part in enumerate(("train", "val")):
        index = open_dataset(tmp_path / "voc", part, ["x", "y"], use_cache=False)
        assert index.labels.tolist() == [n]
        assert index.path(0).read_bytes() == (source / "images" / part / "a.b c.JPG").read_bytes()


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_source_is_only_read_and_the_target_only_new(demo: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in demo.rglob("*") if path.is_file()}
    convert(demo, tmp_path / "out", "coco")
    assert {path: path.read_bytes() for path in demo.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="not empty"):
        convert(demo, tmp_path / "out", "yolo")
    for nested in (demo, demo / "new", demo.parent):
        with pytest.raises(UserError, match=r"not empty|inside the data set"):
            convert(demo, nested, "yolo")
    with pytest.raises(UserError, match="choose from voc, coco, yolo"):
        convert(demo, tmp_path / "x", "tfrecord")


def test_a_list_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.txt"
    write_lines(path, ["a", "b"])

    def full(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"train\.txt: cannot be written: No space left"):
        write_lines(path, ["c"])
    with pytest.raises(RunError, match=r"new: the disk is full"), new_folder(tmp_path / "new") as folder:
        write_lines(folder / "train.txt", ["c"])
    assert path.read_text() == "a\nb\n" and [each.name for each in tmp_path.iterdir()] == ["train.txt"]


def test_a_conversion_that_fails_leaves_no_target(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.formats.dataset_writer.shutil.copyfile", full)
    with pytest.raises(RunError, match=r"out: the disk is full"):
        convert(demo, tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    convert(demo, tmp_path / "out", "yolo")


def test_links_share_the_images_bytes(demo: Path, tmp_path: Path) -> None:
    convert(demo, tmp_path / "out", "coco", link=True)
    first, second = (os.stat(path) for path in (demo / DEMO_YEAR / "JPEGImages" / "000000.jpg",
                                                tmp_path / "out" / "images" / "000000.jpg"))  # fmt: skip
    if first.st_dev != second.st_dev:
        pytest.skip("the temporary folder spans two disks, which hard links cannot")
    assert first.st_ino == second.st_ino


def test_the_command_prints_what_was_lost(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(demo, tmp_path / "data")
    for file in data.rglob("*.xml"):
        file.write_text(file.read_text().replace("<filename>", "<source><database>x</database></source><filename>"))
    main([str(data), str(tmp_path / "out"), "--to", "coco", "--split", "val"])
    assert "<source> of a VOC image" in capsys.readouterr().out
    with pytest.raises(UserError, match="--to"):
        main([str(demo), str(tmp_path / "other")])


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_are_written_as_each_format_has_them() -> None:
    assert [voc_number(v) for v in (12.0, 12.0000001, 12.5, 1e-5)] == ["12", "12", "12.5", "0"]
    assert [coco_number(v) for v in (12.0, 12.340000000001, 1 / 3)] == [12, 12.34, 0.3333333333]
    assert [yolo_number(v) for v in (0.5, 0.1234560000000001, 1e-6, 1 / 3)] == [
        "0.5", "0.123456", "0.000001", "0.3333333333333333"]  # fmt: skip


def test_a_yolo_line_is_class_centre_and_size() -> None:
    assert yolo_txt(np.array([[10, 20, 30, 60.0]]), [4], (100, 200)) == "4 0.1 0.4 0.1 0.4\n"
    assert yolo_txt(np.zeros((0, 4)), [], (100, 200)) == ""


def test_names_of_any_letters_are_whole_xml(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_text(voc_xml("a & <b>\x01.jpg", (10, 20), np.array([[0, 0, 5, 5.0]]), ["ü<&>"]), encoding="utf-8")
    root = parse(path).getroot()
    assert root.findtext("object/name") == "ü<&>"
    assert [root.findtext(f"object/bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")] == ["1", "1", "5", "5"]


def test_real_photographs_come_back_the_same(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "voc07_dev" / "VOCdevkit"
    if not source.is_dir():
        pytest.skip(f"{source} does not exist")
    first = open_dataset(source, "val")
    for to in ("coco", "yolo"):
        convert(source, tmp_path / to, to, split="val", link=True)
        convert(tmp_path / to, tmp_path / f"{to}-back", "voc", link=True)
        second = open_dataset(tmp_path / f"{to}-back", "val", use_cache=False)
        assert first.class_names == second.class_names
        assert np.array_equal(first.boxes, second.boxes)
        assert np.array_equal(first.labels, second.labels)
        assert first.image_ids.tolist() == second.image_ids.tolist()
        assert to == "yolo" or np.array_equal(first.difficult, second.difficult)


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_real_coco_photographs_come_back_the_same(to: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "coco_dev"
    if not source.is_dir():
        pytest.skip(f"{source} does not exist")
    first = open_dataset(source, "train2017", use_cache=False)
    names = first.class_names
    convert(source, tmp_path / "there", to)
    convert(tmp_path / "there", tmp_path / "back", "coco", class_names=names)
    split = "train" if to == "yolo" else "train2017"  # data.yaml has the name for what is trained on
    second = open_dataset(tmp_path / "back", split, names, use_cache=False)
    kept = ~first.crowd if to == "yolo" else np.ones(first.num_boxes, bool)
    assert first.num_boxes == 787 and kept.sum() == (779 if to == "yolo" else 787)
    assert [first.path(i).name for i in range(len(first))] == [second.path(i).name for i in range(len(second))]
    assert np.array_equal(first.image_ids, second.image_ids)
    assert np.array_equal(first.boxes[kept], second.boxes)
    assert np.array_equal(first.labels[kept], second.labels)
