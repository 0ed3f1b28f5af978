"""The VOC reader: VOC folders as flat arrays; invalid entries are reported and skipped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data_makers import CAT, DOG, HEIGHT, WIDTH, make_voc, picture, voc_xml_text
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.class_names import read_class_names
from data.formats.voc import annotation_path, find_voc_years, list_voc_splits, parse_voc_xml, read_voc
from data.index import DatasetIndex
from data.skips import Skip
from imaging.image_io import write_image
from utils.errors import UserError
from utils.files import FileError


@pytest.fixture
def year(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOCdevkit")


def read(year: Path, split: str = "train", **options: object) -> DatasetIndex:
    return read_voc(year.parent, split, **options)


def only_skip(index: DatasetIndex) -> Skip:
    assert len(index.skips) == 1, [str(skip) for skip in index.skips]
    return index.skips[0]


def write_xml(year: Path, name: str, text: str | bytes) -> Path:
    path = year / "Annotations" / f"{name}.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_one_based_inclusive_pixels_become_continuous_ones(year: Path) -> None:
    index = read(year)
    assert (len(index), index.num_boxes, index.skips) == (4, 8, ())
    target = index.target(0)
    assert target["boxes"].tolist() == [[10, 20, 60, 80], [70, 30, 140, 110]]
    assert index.class_names[target["labels"][0]] == "dog" and target["image_id"] == "a0"
    assert index.sizes[0].tolist() == [HEIGHT, WIDTH] and index.path(0) == year / "JPEGImages" / "a0.jpg"
    assert annotation_path(index.path(0)) == year / "Annotations" / "a0.xml"
    assert (
        Path(f"{year}/Annotations/a0.xml")
        .read_text()
        .splitlines()[index.box_refs[1] - 1]
        .startswith("<object><name>cat")
    )


def test_classes_are_those_that_are_labelled_in_alphabetical_order(year: Path) -> None:
    assert read(year).class_names == ("cat", "dog")
    assert len(read(year, class_names=read_class_names("voc")).class_names) == 20
    write_xml(year, "a1", voc_xml_text("a1", [("zebra", 1, 1, 9, 9)]))
    assert read(year).class_names == ("cat", "dog", "zebra")
    assert read(year, class_names=["dog", "zebra", "cat"]).class_names == ("dog", "zebra", "cat")


@pytest.mark.parametrize("part", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_parent_of_the_devkit_or_one_year_is_accepted(year: Path, part: str, tmp_path: Path) -> None:
    assert len(read_voc(tmp_path / part, "train")) == 4
    assert find_voc_years(tmp_path / part) and find_voc_years(tmp_path / "nowhere") == {}


def test_several_years_are_joined_and_their_ids_stay_apart(year: Path) -> None:
    make_voc(year.parent, train=2, val=1, year="VOC2012")
    index = read(year, "VOC2007:train+2012:val")
    assert index.image_ids.tolist() == [f"VOC2007/a{i}" for i in range(4)] + ["VOC2012/b0"]
    assert len(read(year, "train")) == 6
    assert list_voc_splits(year.parent) == {"VOC2007": ["train", "val"], "VOC2012": ["train", "val"]}


@pytest.mark.parametrize("split", ["nope", "VOC1999:train", "train+nope", "", "../../train"])
def test_an_unknown_split_is_an_error_that_names_the_known_ones(year: Path, split: str) -> None:
    with pytest.raises(UserError, match=r"train, val|VOC2007"):
        read(year, split)


@pytest.mark.parametrize(
    "text",
    [
        b"a0\r\na1\r\n",
        b"\xef\xbb\xbfa0\na1",
        b"a0.jpg\na1.JPG\n",
        b"a0 1\na1 -1\n",
        b"  a0\t\n\na1\n\n",
        "a0\na1".encode("utf-16"),
    ],
)
def test_ids_are_found_in_whatever_way_the_list_was_saved(year: Path, text: bytes) -> None:
    (year / "ImageSets/Main/train.txt").write_bytes(text)
    assert read(year).image_ids.tolist() == ["a0", "a1"]


@pytest.mark.parametrize("name", ["my photo 1", "a.b.c", "Käse 猫", "x 1", "x:1", os.fsdecode(b"caf\xe9"), "deep/er"])
@pytest.mark.parametrize("suffix", [".jpg", ".PNG"])
def test_names_may_be_anything(year: Path, name: str, suffix: str) -> None:
    for folder in ("JPEGImages", "Annotations"):
        (year / folder / name).parent.mkdir(exist_ok=True)
    write_image(year / "JPEGImages" / f"{name}{suffix}", picture(9))
    write_xml(year, name, voc_xml_text("", [DOG]).replace("<filename>.jpg</filename>", ""))
    (year / "ImageSets/Main/train.txt").write_bytes(os.fsencode(name) + b"\n")
    index = read(year)
    assert index.image_ids.tolist() == [name] and index.num_boxes == 1 and not index.skips


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("../VOC2007/JPEGImages/a1", "leads_outside"),
        ("/etc/passwd", "leads_outside"),
        ("C:\\b9", "leads_outside"),
        ("linked", "leads_outside"),
        ("nowhere", "missing_image"),
        ("lonely", "missing_annotation"),
    ],
)
def test_a_line_without_an_existing_image_is_skipped_with_its_number(
    year: Path, line: str, code: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "secret.jpg", picture(1))
    (year / "JPEGImages/linked.jpg").symlink_to(tmp_path / "secret.jpg")
    write_xml(year, "linked", voc_xml_text("linked", [DOG]))
    write_image(year / "JPEGImages/lonely.jpg", picture(2))
    (year / "ImageSets/Main/train.txt").write_text(f"a0\n{line}\n")
    index = read_voc(tmp_path / "VOCdevkit", "train")
    skip = only_skip(index)
    assert len(index) == 1 and (skip.kind, skip.code) == ("image", code) and skip.where.endswith("train.txt:2")


def test_a_repeated_line_counts_once(year: Path) -> None:
    (year / "ImageSets/Main/train.txt").write_text("a0\na1\na0\n")
    index = read(year)
    assert len(index) == 2 and only_skip(index).code == "duplicate_id"


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
BOMB = ENTITIES + "<annotation><object><name>&b;</name></object></annotation>"
EXTERNAL = '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation></annotation>'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "hello",
        "<html></html>",
        voc_xml_text("a0", [DOG])[:90],
        BOMB,
        EXTERNAL,
        BOMB.encode("utf-16"),
        b"\x00\x01\x02",
        "<annotation>" + "<a>" * 1000 + "</a>" * 1000 + "</annotation>",
        b"<annotation>" + b" " * (10 << 20) + b"</annotation>",
        '<?xml version="1.0" encoding="no-such"?><annotation></annotation>',
    ],
    ids=["empty", "blank", "text", "html", "cut", "bomb", "external", "bomb16", "bytes", "deep", "big", "encoding"],
)
def test_a_file_that_is_not_voc_xml_skips_only_its_image(year: Path, text: str | bytes) -> None:
    path = write_xml(year, "a0", text)
    index = read(year)
    skip = only_skip(index)
    assert len(index) == 3 and (skip.kind, skip.code) == ("image", "bad_xml") and skip.where.startswith(str(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk", "latin-1"])
def test_xml_in_other_encodings_is_read(encoding: str) -> None:
    name = "cäfe" if encoding == "latin-1" else "猫"
    declared = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding in ("gbk", "latin-1") else ""
    text = declared + voc_xml_text("a", [(name, 1, 2, 3, 4)])
    assert parse_voc_xml(text.encode(encoding), "a.xml").objects[0].fields["name"] == name


@pytest.mark.parametrize(
    ("edges", "code"),
    [
        ((60, 21, 11, 80), "reversed_box"),
        ((11, 80, 60, 21), "reversed_box"),
        ((11, 21, 10, 80), "zero_box"),
        (("nan", 21, 60, 80), "nan_box"),
        (("inf", 21, 60, 80), "nan_box"),
        (("1e999", 21, 60, 80), "nan_box"),
        ((11, 21, 99999999, 80), "huge_box"),
        ((500, 21, 600, 80), "outside_box"),
        ((-90, 21, -20, 80), "outside_box"),
        (("", 21, 60, 80), "bad_number"),
        (("left", 21, 60, 80), "bad_number"),
    ],
)
def test_only_the_invalid_box_is_dropped_and_its_line_is_reported(year: Path, edges: tuple, code: str) -> None:
    path = write_xml(year, "a0", voc_xml_text("a0", [CAT, ("dog", *edges)]))
    index = read(year)
    skip = only_skip(index)
    assert (skip.kind, skip.code, skip.where) == ("box", code, f"{path}:5")
    assert len(index) == 4 and index.target(0)["boxes"].tolist() == [[70, 30, 140, 110]]


def test_a_box_outside_of_the_image_is_clipped_and_noted(year: Path) -> None:
    write_xml(year, "a0", voc_xml_text("a0", [("dog", -5, 1, 400, 60)]))
    index = read(year)
    assert index.target(0)["boxes"].tolist() == [[0, 0, WIDTH, 60]]
    assert (
        only_skip(index).code == "clipped_box"
        and only_skip(index).kind == "note"
        and "(-5, 1, 400, 60)" in str(only_skip(index))
    )


def test_decimal_coordinates_are_kept(year: Path) -> None:
    write_xml(year, "a0", voc_xml_text("a0", [("dog", 45.70000076293945, 2.5, 60.5, 80)]))
    assert read(year).boxes[0] == pytest.approx([44.70000076293945, 1.5, 60.5, 80])


@pytest.mark.parametrize(
    ("text", "difficult", "notes"), [("1", True, 0), ("0", False, 0), ("Unspecified", False, 1), ("", False, 1)]
)
def test_difficult_is_read_leniently(year: Path, text: str, difficult: bool, notes: int) -> None:
    xml = voc_xml_text("a0", [DOG]).replace("<difficult>0<", f"<difficult>{text}<")
    write_xml(year, "a0", xml)
    index = read(year)
    assert index.difficult[0] == difficult and [skip.code for skip in index.skips] == ["bad_difficult"] * notes


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("<name>dog</name>", "", "no_name"),
        ("<name>dog</name>", "<name> </name>", "no_name"),
        ("<bndbox>", "<polygon>", "no_box"),
    ],
)
def test_an_object_without_name_or_box_is_dropped(year: Path, old: str, new: str, code: str) -> None:
    text = voc_xml_text("a0", [DOG]).replace(old, new).replace(old.replace("<", "</"), new.replace("<", "</"))
    write_xml(year, "a0", text)
    index = read(year)
    assert only_skip(index).code == code and len(index.target(0)["boxes"]) == 0 and len(index) == 4


def test_a_class_in_the_wrong_case_is_dropped_and_the_right_one_is_named(year: Path) -> None:
    write_xml(year, "a0", voc_xml_text("a0", [("Dog", 1, 1, 50, 50), CAT]))
    index = read(year, class_names=["dog", "cat"])
    assert only_skip(index).code == "unknown_class" and only_skip(index).todo == "did you mean 'dog'?"
    assert index.source["found_classes"]["Dog"] == 1 and index.num_boxes == 7


def test_the_boxes_of_a_part_are_not_those_of_its_object(year: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    write_xml(year, "a0", voc_xml_text("a0", [DOG]).replace("<bndbox>", part + "<bndbox>", 1))
    assert read(year).target(0)["boxes"].tolist() == [[10, 20, 60, 80]]


def test_an_image_without_objects_stays_as_a_negative(year: Path) -> None:
    write_xml(year, "a0", voc_xml_text("a0", []))
    index = read(year)
    assert len(index) == 4 and len(index.target(0)["boxes"]) == 0 and not index.skips


def test_the_images_own_size_counts(year: Path) -> None:
    write_xml(year, "a0", voc_xml_text("a0", [DOG], 0, 0))
    write_xml(year, "a1", voc_xml_text("a1", [DOG], 99, 77))
    index = read(year)
    assert [skip.code for skip in index.skips] == ["bad_size", "size_mismatch"]
    assert (index.sizes == [HEIGHT, WIDTH]).all()


@pytest.mark.parametrize("stated_lying", [True, False])
def test_boxes_are_rotated_with_an_image_that_was_annotated_without_exif_orientation(
    year: Path, stated_lying: bool
) -> None:
    path = year / "JPEGImages/a0.jpg"
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    size = (HEIGHT, WIDTH) if stated_lying else (WIDTH, HEIGHT)
    write_xml(year, "a0", voc_xml_text("a0", [DOG], *size))
    index = read(year)
    assert index.sizes[0].tolist() == [WIDTH, HEIGHT]
    if stated_lying:  # turned by 90 degrees clockwise: (x, y) goes to (height - y, x)
        assert index.boxes[0].tolist() == [HEIGHT - 80, 10, HEIGHT - 20, 60]
        assert only_skip(index).code == "exif_rotated_boxes"
    else:
        assert index.boxes[0].tolist() == [10, 20, 60, 80] and not index.skips


def test_unreadable_images_are_skipped_by_their_header(year: Path) -> None:
    (year / "JPEGImages/a0.jpg").write_bytes(b"")
    (year / "JPEGImages/a1.jpg").unlink()
    os.mkfifo(year / "JPEGImages/a1.jpg")
    (year / "JPEGImages/a2.jpg").unlink()
    (year / "JPEGImages/a2.jpg").symlink_to("gone.jpg")
    index = read(year)
    assert index.image_ids.tolist() == ["a3"]
    assert [skip.code for skip in index.skips] == ["empty_file", "not_a_file", "missing_image"]


def test_a_file_that_ends_in_the_middle_names_the_line() -> None:
    with pytest.raises(FileError, match=r"a.xml:3: is not valid XML"):
        parse_voc_xml(b"<annotation>\n<size>\n<width", "a.xml")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_xml_is_read_or_rejected_and_nothing_else(data: st.DataObject) -> None:
    text = bytearray(voc_xml_text("a", [DOG, CAT]).encode())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        parse_voc_xml(bytes(text), "a.xml")
    except FileError as error:
        assert error.code == "bad_xml"


def test_the_real_photographs_are_read_whole_and_without_a_word(shared: Path) -> None:
    root = shared / "data/voc07_dev"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    index = read_voc(root, "val")
    assert (len(index), index.num_boxes, index.skips) == (500, 1489, ())
    assert (index.boxes[:, 2:] > index.boxes[:, :2]).all() and (index.boxes >= 0).all()
    owner = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    assert (index.boxes[:, [3, 2]] <= index.sizes[owner]).all()
