"""The label store: labels keep the format of their data set; other content and other programs' changes are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import HEIGHT, WIDTH, make_coco, make_voc, make_yolo, picture
from PIL import Image

from data.formats.voc import read_voc
from data.formats.yolo_txt import read_data_yaml, read_yolo
from data.open import open_dataset
from imaging.image_io import write_image
from service.labelling.documents import Box
from service.labelling.store import NO_FILE, Conflict, Store, add_yaml_name, natural_key, open_store
from utils.errors import RunError, UserError


def folder_of(kind: str, tmp_path: Path) -> Path:
    if kind == "voc":
        make_voc(tmp_path)
    elif kind == "coco":
        make_coco(tmp_path)
    elif kind == "yolo":
        make_yolo(tmp_path)
    else:
        for number in range(3):
            write_image(tmp_path / f"p{number}.jpg", picture(number))
    return tmp_path


FORMATS = ("voc", "coco", "yolo")


def number_named(store: Store, part: str) -> int:
    return next(number for number in range(len(store.paths)) if part in store.name(number))


@pytest.mark.parametrize("kind", FORMATS)
def test_labels_are_read_as_the_readers_of_training_read_them(kind: str, tmp_path: Path) -> None:
    store = open_store(folder_of(kind, tmp_path))
    split = {"coco": "train2017"}.get(kind, "train")
    index = open_dataset(tmp_path, split, use_cache=False)
    for i in range(len(index)):
        labels = store.read(store.number_of(index.path(i))).labels  # type: ignore[arg-type]
        mine = sorted((box.class_name, *box.box) for box in labels.boxes)
        names = [index.class_names[label] for label in index.target(i)["labels"]]
        theirs = sorted((name, *box) for name, box in zip(names, index.target(i)["boxes"].tolist(), strict=True))
        assert [each[0] for each in mine] == [each[0] for each in theirs]
        np.testing.assert_allclose([m[1:] for m in mine], [t[1:] for t in theirs], atol=1e-3)


@pytest.mark.parametrize("kind", [*FORMATS, "plain"])
def test_a_box_can_be_added_moved_renamed_and_deleted(kind: str, tmp_path: Path) -> None:
    store = open_store(folder_of(kind, tmp_path))
    stored = store.read(0)
    stored = store.write(0, stored.version, [*stored.labels.boxes, Box("horse", (5, 6, 50, 60))])
    horse = stored.labels.boxes[-1]
    assert (horse.class_name, horse.box) == ("horse", pytest.approx((5, 6, 50, 60), abs=1e-3))
    assert "horse" in store.class_names
    moved = Box("sheep", (15, 16, 55, 66), ref=horse.ref)
    stored = store.write(0, stored.version, [moved])
    assert len(stored.labels.boxes) == 1
    again = open_store(tmp_path).read(0)  # what is on disk, read by another process
    assert again.version == stored.version
    assert again.labels.boxes[0].class_name == "sheep"
    assert again.labels.boxes[0].box == pytest.approx((15, 16, 55, 66), abs=1e-3)
    empty = store.write(0, stored.version, [])
    assert empty.is_labelled and not empty.labels.boxes
    assert open_store(tmp_path).read(0).is_labelled


@pytest.mark.parametrize("kind", FORMATS)
def test_the_output_of_the_tool_can_be_trained_on(kind: str, tmp_path: Path) -> None:
    store = open_store(folder_of(kind, tmp_path))
    number = number_named(store, {"voc": "a0", "coco": "000001", "yolo": "p0"}[kind])
    stored = store.read(number)
    store.write(number, stored.version, [*stored.labels.boxes, Box("horse", (5, 6, 50, 60))])
    index = open_dataset(tmp_path, {"coco": "train2017"}.get(kind, "train"), use_cache=False)
    assert "horse" in index.class_names and not [skip for skip in index.skips if skip.kind != "note"]
    assert index.num_boxes == 9


@pytest.mark.parametrize("kind", FORMATS)
def test_labels_changed_by_another_program_are_not_overwritten(kind: str, tmp_path: Path) -> None:
    store, other = open_store(folder_of(kind, tmp_path)), open_store(tmp_path)
    mine, theirs = store.read(0), other.read(0)
    saved = other.write(0, theirs.version, [*theirs.labels.boxes, Box("dog", (1, 1, 9, 9))])
    with pytest.raises(Conflict) as caught:
        store.write(0, mine.version, [Box("cat", (2, 2, 8, 8))])
    assert caught.value.current.version == saved.version
    assert len(caught.value.current.labels.boxes) == 3
    assert open_store(tmp_path).read(0).version == saved.version
    kept = store.write(0, saved.version, [Box("cat", (2, 2, 8, 8))])  # told what is there, the person decides
    assert [box.class_name for box in kept.labels.boxes] == ["cat"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_change_just_before_the_rename_is_noticed(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    import service.labelling.store as module

    store, other = open_store(folder_of(kind, tmp_path)), open_store(tmp_path)
    stored = store.read(0)
    write = module.write_atomically

    def write_late(path: Path, data: bytes, check: object) -> None:
        monkeypatch.setattr(module, "write_atomically", write)
        monkeypatch.setattr(module, "_folder_lock", lambda _: __import__("contextlib").nullcontext())
        other.write(0, other.read(0).version, [Box("dog", (1, 1, 9, 9))])
        write(path, data, check)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_folder_lock", lambda _: __import__("contextlib").nullcontext())
    monkeypatch.setattr(module, "write_atomically", write_late)
    with pytest.raises(Conflict):
        store.write(0, stored.version, [])
    assert [box.box for box in other.read(0).labels.boxes] == [pytest.approx((1, 1, 9, 9), abs=1e-3)]


def test_changes_of_another_image_in_the_same_coco_file_are_both_kept(tmp_path: Path) -> None:
    store, other = open_store(folder_of("coco", tmp_path)), open_store(tmp_path)
    one, two = store.read(0), other.read(1)
    other.write(1, two.version, [])
    store.write(0, one.version, [Box("dog", (1, 1, 9, 9))])
    fresh = open_store(tmp_path)
    assert len(fresh.read(0).labels.boxes) == 1 and fresh.read(1).labels.boxes == ()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_leaves_the_old_labels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(folder_of(kind, tmp_path))
    stored = store.read(0)
    opened = open

    def full(path: object, mode: str = "r", *rest: object, **named: object) -> object:
        if "w" in mode and str(path).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return opened(path, mode, *rest, **named)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        with pytest.raises(RunError, match="No space left"):
            store.write(0, stored.version, [])
    assert store.read(0).version == stored.version == open_store(tmp_path).read(0).version
    assert not list(tmp_path.rglob("*.tmp"))
    assert store.write(0, stored.version, []).labels.boxes == ()


def test_voc_keeps_what_it_does_not_edit(tmp_path: Path) -> None:
    year = make_voc(tmp_path)
    path = year / "Annotations" / "a0.xml"
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotation verified="yes">\n\t<!-- by hand -->\n'
        "\t<filename>a0.jpg</filename>\n\t<source><database>mine</database></source>\n"
        f"\t<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>\n"
        "\t<object>\n\t\t<name>dog</name>\n\t\t<pose>Left</pose>\n\t\t<occluded>1</occluded>\n"
        "\t\t<bndbox><xmin>11.5</xmin><ymin>21</ymin><xmax>60</xmax><ymax>80</ymax></bndbox>\n"
        "\t\t<part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>\n"
        "\t</object>\n\t<object>\n\t\t<name>cat</name>\n\t</object>\n</annotation>\n"
    )
    store = open_store(tmp_path)
    number = number_named(store, "a0")
    stored = store.read(number)
    assert stored.labels.hidden == 1  # the cat has no box
    before = path.read_text()
    same = store.write(number, stored.version, stored.labels.boxes)
    assert path.read_text() == before and same.version == stored.version
    dog = stored.labels.boxes[0]
    store.write(number, stored.version, [Box("horse", dog.box, ref=dog.ref), Box("dog", (1, 2, 30, 40))])
    text = path.read_text()
    as_before = text.replace("<name>horse</name>", "<name>dog</name>", 1)
    assert as_before.startswith(before.split("</annotation>")[0].rstrip())
    for part in ("by hand", 'verified="yes"', "mine", "Left", "occluded", "<part>", "11.5", "<name>cat</name>"):
        assert part in text
    assert "<xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>40</ymax>" in text


def test_yolo_keeps_other_lines_to_the_byte_and_moves_outlines(tmp_path: Path) -> None:
    yaml_file = make_yolo(tmp_path)
    path = tmp_path / "labels" / "train" / "p0.txt"
    rows = [b"0 0.250000 0.500000 0.25 0.5", b"1 0.5 0.5 0.75 0.5 0.75 0.75 0.5 0.75", b"7 0.1 0.1 0.1 0.1", b"words"]
    path.write_bytes(b"".join(row + b"\r\n" for row in rows))
    store = open_store(yaml_file)
    number = number_named(store, "p0")
    stored = store.read(number)
    assert stored.labels.hidden == 2  # class 7 and the words
    dog, outline = stored.labels.boxes
    half = (WIDTH * 0.25, HEIGHT * 0.25, WIDTH * 0.5, HEIGHT * 0.5)
    store.write(number, stored.version, [dog, Box(outline.class_name, half, ref=outline.ref)])
    lines = path.read_bytes().split(b"\r\n")
    assert lines[0] == b"0 0.250000 0.500000 0.25 0.5" and lines[2:] == [b"7 0.1 0.1 0.1 0.1", b"words", b""]
    assert lines[1] == b"1 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5"


def test_coco_keeps_unknown_keys_and_stretches_the_outline(tmp_path: Path) -> None:
    make_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["info"] = {"by": "us"}
    content["annotations"][0] |= {"note": "ä", "segmentation": [[10, 20, 60, 20, 60, 80, 10, 80]], "area": 3000}
    path.write_text(json.dumps(content))
    store = open_store(path)
    number = number_named(store, "000001")
    stored = store.read(number)
    dog, cat = stored.labels.boxes
    store.write(number, stored.version, [Box("dog", (10, 20, 110, 80), ref=dog.ref), cat])
    after = json.loads(path.read_text())
    entry = after["annotations"][0]
    assert entry["bbox"] == [10, 20, 100, 60] and entry["area"] == 6000 and entry["note"] == "ä"
    assert entry["segmentation"] == [[10, 20, 110, 20, 110, 80, 10, 80]]
    assert after["info"] == {"by": "us"} and after["annotations"][1:] == content["annotations"][1:]
    assert after["images"][1:] == content["images"][1:]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("declares_stored", [True, False])
def test_boxes_are_of_the_upright_image(orientation: int, declares_stored: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(1)).save(tmp_path / "p.jpg", exif=exif)  # stored lying: WIDTH x HEIGHT
    width, height = (WIDTH, HEIGHT) if declares_stored else (HEIGHT, WIDTH)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    (tmp_path / "p.xml").write_text(f"<annotation><filename>p.jpg</filename>{size}</annotation>")
    store = open_store(tmp_path)
    box = Box("dog", (10, 20, 60, 130))
    stored = store.write(0, store.read(0).version, [box])
    assert stored.labels.boxes[0].box == box.box
    year = tmp_path / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    (tmp_path / "p.jpg").rename(year / "JPEGImages/p.jpg")
    (tmp_path / "p.xml").rename(year / "Annotations/p.xml")
    (year / "ImageSets/Main/train.txt").write_text("p\n")
    assert read_voc(tmp_path, "train").boxes.tolist() == [list(box.box)]


@pytest.mark.parametrize(
    "names",
    [
        "names: [dog, cat]  # two\n",
        "names:\n  0: dog  # first\n  1: cat\n",
        "names:\n- dog\n- cat\n",
        "names:\n  - dog\n  - cat",
        "names: {0: dog, 1: cat}\n",
        "nc: 2\nnames: ['dog', \"cat\"]\n",
    ],
)
def test_a_class_is_added_to_a_yaml_without_touching_the_rest(names: str, tmp_path: Path) -> None:
    text = f"# ours\npath: .\n{names}\ntrain: images  # here\nval: images\n"
    text = add_yaml_name(text, 'big "dog": 2', "data.yaml")
    assert "# ours" in text and "# here" in text
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text(text)
    assert read_data_yaml(tmp_path).class_names == ("dog", "cat", 'big "dog": 2')


def test_labels_without_a_yaml_use_classes_txt(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", picture(1))
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("dog")
    store = open_store(tmp_path)
    assert store.format == "yolo"
    stored = store.read(0)
    store.write(0, stored.version, [*stored.labels.boxes, Box("cat", (0, 0, WIDTH, HEIGHT))])
    assert (tmp_path / "classes.txt").read_text() == "dog\ncat\n"
    assert (tmp_path / "a.txt").read_text() == "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 1 1\n"


def test_a_folder_without_labels_gets_xml_beside_the_images(tmp_path: Path) -> None:
    store = open_store(folder_of("plain", tmp_path))
    assert store.format == "voc" and store.class_names == () and not store.labelled
    assert store.read(1).version == NO_FILE
    store.write(1, NO_FILE, [Box("dog", (5, 5, 20, 20))])
    assert (tmp_path / "p1.xml").is_file() and store.labelled == {1}
    store.add_class("cat")
    assert open_store(tmp_path).class_names == ("dog", "cat")


def test_xml_in_a_folder_beside_the_images_stays_there(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_image(tmp_path / "images" / f"p{number}.jpg", picture(number))
    (tmp_path / "annots").mkdir()
    (tmp_path / "annots" / "p0.xml").write_text("<annotation></annotation>")
    store = open_store(tmp_path)
    assert store.labelled == {number_named(store, "p0")}
    store.write(number_named(store, "p1"), NO_FILE, [])
    assert (tmp_path / "annots" / "p1.xml").is_file()


def test_a_broken_file_is_shown_and_never_overwritten(tmp_path: Path) -> None:
    store = open_store(folder_of("plain", tmp_path))
    (tmp_path / "p0.xml").write_text("<annotation><object>")
    stored = store.read(0)
    assert "not valid XML" in stored.problem
    with pytest.raises(UserError, match="cannot be edited"):
        store.write(0, stored.version, [])
    assert (tmp_path / "p0.xml").read_text() == "<annotation><object>"


@pytest.mark.parametrize("box", [(5, 5, 5, 20), (500, 5, 600, 20), (float("nan"), 1, 2, 3), (20, 20, 5, 5)])
def test_an_invalid_box_is_rejected(box: tuple[float, ...], tmp_path: Path) -> None:
    store = open_store(folder_of("plain", tmp_path))
    with pytest.raises(UserError, match="no area"):
        store.write(0, NO_FILE, [Box("dog", box)])  # type: ignore[arg-type]
    assert not store.read(0).is_labelled


def test_images_and_labels_that_come_later_are_found(tmp_path: Path) -> None:
    store = open_store(folder_of("plain", tmp_path))
    write_image(tmp_path / "a.jpg", picture(9))
    (tmp_path / "p0.xml").write_text("<annotation></annotation>")
    store.rescan()
    assert len(store.paths) == 4 and store.name(store.by_name()[0]) == "a.jpg"
    assert store.labelled == {number_named(store, "p0")}


def test_images_of_one_name_have_their_own_labels(tmp_path: Path) -> None:
    names = ["a/x.jpg", "b/x.jpg", "b/x.png", "c/x.jpg"]
    for place, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name, picture(place))
    (tmp_path / "annotations" / "c").mkdir(parents=True)
    (tmp_path / "annotations" / "c" / "x.xml").write_text("<annotation></annotation>")
    for place, name in enumerate(names):
        store = open_store(tmp_path)  # the server was started again
        number = number_named(store, name)
        assert not store.read(number).labels.boxes
        store.write(number, store.read(number).version, [Box(f"class {place}", (1, 2, 30, 40))])
    store = open_store(tmp_path)
    labels = [store.read(number_named(store, name)).labels.boxes for name in names]
    assert [[box.class_name for box in boxes] for boxes in labels] == [[f"class {place}"] for place in range(4)]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.xml")) == [
        "a/x.xml", "annotations/c/x.xml", "b/x.png.xml", "b/x.xml",
    ]  # fmt: skip
    index = open_dataset(tmp_path, "all", use_cache=False)
    assert len(index) == 4
    assert all(store.number_of(index.path(i)) is not None for i in range(4))
    for i in range(4):
        (box,) = store.read(store.number_of(index.path(i))).labels.boxes  # type: ignore[arg-type]
        assert [index.class_names[label] for label in index.target(i)["labels"]] == [box.class_name]


def test_images_whose_format_gives_them_one_label_file_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_yolo(tmp_path)
    image = next((tmp_path / "images").rglob("*.jpg"))
    write_image(image.with_suffix(".png"), picture(1))
    open_store(tmp_path).rescan()
    text = capsys.readouterr().err
    assert text.count("has the same file of labels as") == 1 and "another name" in text


@pytest.mark.parametrize(("row", "words"), [("2 0.5 0.5 0.1 0.1\n", "start at 1"), ("dog 0.5 0.5 0.1 0.1\n", "names")])
def test_yolo_classes_that_are_not_numbers_from_0_are_not_edited(row: str, words: str, tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for path in (tmp_path / "labels").rglob("*.txt"):
        path.write_text(row)
    with pytest.raises(UserError, match=f"{words}, which the labelling page cannot edit; convert it: .* --to yolo"):
        open_store(tmp_path)


def test_numbers_in_names_sort_by_value() -> None:
    assert sorted(["img10", "img2", "Img1"], key=natural_key) == ["Img1", "img2", "img10"]


def test_yolo_reader_agrees_on_what_was_added(tmp_path: Path) -> None:
    yaml_file = make_yolo(tmp_path)
    store = open_store(tmp_path)
    number = number_named(store, "p1")
    stored = store.read(number)
    store.write(number, stored.version, [Box("bird", (3, 4, 33, 44))])
    index = read_yolo(yaml_file, "train")
    boxes = index.boxes[index.labels == index.class_names.index("bird")]
    np.testing.assert_allclose(boxes, [[3, 4, 33, 44]], atol=1e-3)
