"""Data with about four hundred faults: only invalid items are skipped, reported and counted, or a one-line error.

Each case runs the steps of train.py that precede the first training step and checks the outcome. The data is never
modified.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_makers import CAT, DOG, HEIGHT, WIDTH, make_coco, make_voc, make_yolo, picture, voc_xml_text, write_coco

from data.class_names import read_class_names
from data.index import DatasetIndex
from data.open import default_splits, open_dataset
from data.quick_check import quick_check
from data.tools.findings import CODES
from imaging.image_io import read_image, write_image
from utils.errors import UserError

MAX_SECONDS = 5.0  # CPU; what the longest of all may take
Counts = tuple[int, int, int]  # images used, images skipped, boxes dropped
SAME: Counts = (6, 0, 0)
IMAGE_LOST: Counts = (5, 1, 0)
BOX_LOST: Counts = (6, 0, 1)
MAKERS = {"voc": make_voc, "coco": make_coco, "yolo": make_yolo}


@pytest.fixture(scope="session")
def whole_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid data set of each format with six training and two validation images. Tests corrupt copies of it."""
    root = tmp_path_factory.mktemp("whole")
    for name, make in MAKERS.items():
        make(root / name, train=6, val=2)
    return root


@pytest.fixture
def voc(whole_sets: Path, tmp_path: Path) -> Path:
    """The year folder of a devkit."""
    return shutil.copytree(whole_sets / "voc", tmp_path / "set") / "VOC2007"


@pytest.fixture
def coco(whole_sets: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_sets / "coco", tmp_path / "set")


@pytest.fixture
def yolo(whole_sets: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_sets / "yolo", tmp_path / "set")


# --- the rule --------------------------------------------------------------------------------------------------------


def prepare(data: Path, classes: Path | None = None) -> DatasetIndex:
    """The training split after all steps of train.py that precede building the network."""
    names = read_class_names(classes) if classes else None
    split, val_split = default_splits(data)
    train = open_dataset(data, split, names, use_cache=False)
    val = open_dataset(data, val_split, names or train.class_names, use_cache=False)
    quick_check(train, val)
    return train


def hold(data: Path, expected: Counts | str, classes: Path | None = None) -> DatasetIndex | None:
    """Prepare a training on `data`: images and boxes are counted as expected, or the error is as expected."""
    before, began = tree(data), time.process_time()
    if isinstance(expected, str):
        with pytest.raises(UserError) as caught:
            prepare(data, classes)
        line = str(caught.value)
        assert re.search(expected, line) and "\n" not in line, line
        assert re.fullmatch(r".+: .+; .+", line) and caught.value.exit_code == 2, line
        train = None
    else:
        train = prepare(data, classes)
        assert counts(train) == expected, [str(skip) for skip in train.skips]
        for skip in train.skips:
            assert skip.code in CODES and skip.what and "\n" not in str(skip)
            assert skip.where.startswith(str(data)), skip.where
    assert time.process_time() - began < MAX_SECONDS
    assert tree(data) == before, "something was written into the data"
    return train


def counts(index: DatasetIndex) -> Counts:
    by_kind: Counter[str] = Counter()
    for skip in index.skips:
        by_kind[skip.kind] += skip.count
    return len(index), by_kind["image"], by_kind["box"]


def tree(folder: Path) -> dict[bytes, tuple[int, int, int]]:
    """Mode, size and time of all files in a folder."""
    found = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            status = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


# --- pictures --------------------------------------------------------------------------------------------------------

RGB = picture(500)


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def encoded_by_opencv(suffix: str, bgr: np.ndarray) -> bytes:
    return cv2.imencode(suffix, bgr)[1].tobytes()


JPEG, PNG = encoded("JPEG", quality=90), encoded("PNG")
FRAME = JPEG.index(b"\xff\xc0")


def png(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG whose header claims this size, with almost no pixel data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    return JPEG[: FRAME + 5] + struct.pack(">HH", height, width) + JPEG[FRAME + 9 :]


def tiff_of_size(side: int) -> bytes:
    data = bytearray(encoded("TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, start)[0]):
        place = start + 2 + 12 * entry
        if struct.unpack_from("<H", data, place)[0] in (256, 257):
            struct.pack_into("<HII", data, place + 2, 4, 1, side)
    return bytes(data)


def jpeg_2000_of_size(side: int) -> bytes:
    data = bytearray(encoded("JPEG2000"))
    struct.pack_into(">II", data, data.index(b"ihdr") + 4, side, side)
    struct.pack_into(">II", data, data.index(b"\xff\x4f\xff\x51") + 8, side, side)
    return bytes(data)


NO_PICTURES = {
    "empty": b"",
    "one byte": b"\xff",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "zeros": bytes(4000),
    "text": b"hello world\n" * 20,
    "jpeg's first bytes": b"\xff\xd8\xff\xe0",
    "png's first bytes": b"\x89PNG\r\n\x1a\n",
    "gif's first bytes": b"GIF89a",
    "bmp's first bytes": b"BM",
    "webp's first bytes": b"RIFF\x10\0\0\0WEBPVP8 ",
    "tiff's first bytes": b"II*\0\x08\0\0\0",
    "pdf": b"%PDF-1.4\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    "mp4": b"\0\0\0\x18ftypmp42" + bytes(200),
    "heic": b"\0\0\0\x18ftypheic" + bytes(200),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "psd": b"8BPS\0\1" + bytes(100),
    "dicom": bytes(128) + b"DICM",
    "png of 30000 x 30000": png(30000, 30000),
    "png of 30000 x 30000, 16 bit": png(30000, 30000, 16),
    "png of 2^31 x 2^31": png(2**31 - 1, 2**31 - 1),
    "png of 0 x 10": png(0, 10),
    "png with too few pixels": png(400, 400),
    "jpeg of 30000 x 30000": jpeg_of_size(30000, 30000),
    "jpeg of 0 x 0": jpeg_of_size(0, 0),
    "tiff of 40000 x 40000": tiff_of_size(40000),
    "jpeg 2000 of 40000 x 40000": jpeg_2000_of_size(40000),
    "gif of 60000 x 60000": b"GIF89a\x60\xea\x60\xea\x80"
    + bytes(8)
    + b",\0\0\0\0\x60\xea\x60\xea\0\x02\x02\x44\x01\0;",
    "bmp of 40000 x 40000": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 40000, 40000, 1, 24, *[0] * 6),
    "ppm of 40000 x 40000": b"P6 40000 40000 255\n" + bytes(100),
    "hdr of 40000 x 40000": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 40000 +X 40000\n" + bytes(100),
    "ppm of -5 x 10": b"P6 -5 10 255\n" + bytes(100),
    "png with a wrong checksum": PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:],
    "png without an end": PNG[:-12],
    "jpeg without an end": JPEG[:-2],
    **{
        f"{kind} cut at {share}": (data := encoded(kind))[: int(len(data) * share)]
        for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
        for share in (0.1, 0.5, 0.98)
    },
    "progressive jpeg cut": (data := encoded("JPEG", progressive=True))[: len(data) * 6 // 10],
}


@pytest.mark.parametrize("fault", NO_PICTURES)
def test_a_truncated_image_file_is_skipped(fault: str, voc: Path) -> None:
    path = voc / "JPEGImages/a0.jpg"
    path.write_bytes(NO_PICTURES[fault])
    with pytest.raises(UserError):
        read_image(path)
    hold(voc.parent, SAME if fault in LATE else IMAGE_LOST)


LATE = {  # in the middle of a file, which no look at its two ends shows: the decoder finds it, the loader replaces it
    "png with a wrong checksum",
    "png with too few pixels",
    *(f"TIFF cut at {share}" for share in (0.1, 0.5, 0.98)),
    "AVIF cut at 0.98",
}


def a_socket(path: Path) -> None:
    home = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(home)


def a_link_outside(path: Path) -> None:
    outside = path.parents[3] / f"outside{path.suffix}"
    if path.suffix == ".xml":
        outside.write_text(voc_xml_text("a0", [DOG]))
    else:
        write_image(outside, picture(9))
    path.symlink_to(outside)


def three_gigabytes(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(JPEG)
        file.truncate(3 << 30)


IN_PLACE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "named pipe": os.mkfifo,
    "socket": a_socket,
    "folder": lambda path: path.mkdir(),
    "broken link": lambda path: path.symlink_to("gone"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to(path.parent),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link outside": a_link_outside,
    "three gigabytes": three_gigabytes,
}
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs pipes, sockets and links")


@posix_only
@pytest.mark.parametrize("thing", IN_PLACE)
@pytest.mark.parametrize("place", ["JPEGImages/a0.jpg", "Annotations/a0.xml"])
def test_a_folder_or_pipe_instead_of_a_file_skips_its_image(place: str, thing: str, voc: Path) -> None:
    (voc / place).unlink()
    IN_PLACE[thing](voc / place)
    hold(voc.parent, IMAGE_LOST)


@posix_only
@pytest.mark.parametrize("thing", [name for name in IN_PLACE if name not in ("link outside", "nothing")])
@pytest.mark.parametrize("place", ["VOC2007/ImageSets/Main/train.txt", "VOC2007/ImageSets/Main/val.txt"])
def test_a_folder_or_pipe_instead_of_a_split_is_an_error(place: str, thing: str, voc: Path) -> None:
    (voc.parent / place).unlink()
    IN_PLACE[thing](voc.parent / place)
    hold(voc.parent, "train|val")


RGB16 = RGB[..., ::-1].astype(np.uint16) * 257
ODD_PICTURES = {
    **{
        f"{kind} {mode}": encoded(kind, mode)
        for kind, modes in {
            "JPEG": ("RGB", "L", "CMYK"),
            "PNG": ("RGB", "L", "P", "RGBA", "LA"),
            "GIF": ("L", "P"),
            "BMP": ("RGB", "L", "P"),
            "TIFF": ("RGB", "L", "P", "RGBA", "CMYK", "LAB", "YCbCr"),
            "WEBP": ("RGB", "RGBA"),
            "PPM": ("RGB", "L"),
            "JPEG2000": ("RGB", "L", "RGBA"),
            "AVIF": ("RGB", "RGBA"),
        }.items()
        for mode in modes
    },
    "png of 16 bits": encoded_by_opencv(".png", RGB16),
    "png of 16 bits with alpha": encoded_by_opencv(
        ".png", np.dstack([RGB16, np.full(RGB.shape[:2], 65535, np.uint16)])
    ),
    "tiff of 16 bits": encoded_by_opencv(".tiff", RGB16),
    "ppm of 16 bits": encoded_by_opencv(".ppm", RGB16),
    "radiance": encoded_by_opencv(".hdr", RGB[..., ::-1].astype(np.float32) / 255),
    "progressive jpeg": encoded("JPEG", progressive=True, quality=90),
    "jpeg with a tail": JPEG + b"junk" * 100,
    "two jpegs": JPEG + JPEG,
    "tiff lzw": encoded("TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded("TIFF", compression="jpeg"),
    "tiff deflate": encoded("TIFF", compression="tiff_deflate"),
    "transparent palette": encoded("PNG", "P", transparency=3),
    "lossless webp": encoded("WEBP", "RGBA", lossless=True),
    "animated png": encoded("PNG", save_all=True, append_images=[Image.fromarray(picture(3))]),
    "animated webp": encoded("WEBP", save_all=True, append_images=[Image.fromarray(picture(3))]),
}


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_odd_images_are_used_and_have_their_colours(kind: str, voc: Path) -> None:
    path = voc / "JPEGImages/a0.jpg"
    path.write_bytes(ODD_PICTURES[kind])
    hold(voc.parent, SAME)
    seen, truth = read_image(path).astype(int), RGB.astype(int)
    if (seen == seen[..., :1]).all():
        truth = np.asarray(Image.fromarray(RGB).convert("L")).astype(int)[..., None]
    exact = "P" in kind.split() or "palette" in kind or "radiance" in kind
    assert np.abs(seen - truth).mean() < (24 if exact else 8), np.abs(seen - truth).mean()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_boxes_of_a_rotated_image_are_rotated(orientation: int, voc: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (voc / "JPEGImages/a0.jpg").write_bytes(encoded("JPEG", exif=exif))
    turned = orientation > 4
    xml = voc_xml_text("a0", [("dog", 1, 1, 50, 50)], WIDTH if turned else HEIGHT, HEIGHT if turned else WIDTH)
    (voc / "Annotations/a0.xml").write_text(xml)
    train = hold(voc.parent, SAME)
    assert train is not None and train.sizes[0].tolist() == ([WIDTH, HEIGHT] if turned else [HEIGHT, WIDTH])


@pytest.mark.parametrize("exif", [b"\xff" * 24, b"II*\0" + bytes(20), b"MM\0*\0\0\0\x08\xff\xff" + bytes(14)])
def test_invalid_exif_orientation_is_ignored(exif: bytes, voc: Path) -> None:
    segment = b"Exif\0\0" + exif
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]
    (voc / "JPEGImages/a0.jpg").write_bytes(data)
    hold(voc.parent, SAME)


NAMES = [
    *("my photo", "a.b.c", "Käse", "猫", "🐱", "a\tb", "x" * 200, "a'b\"c", "100%", "#1", "-x", "a\\b", ".hidden"),
    *("Ka\u0308se", "שלום", "a;b", "x 1", "a:b", "a*b", "a[1]", "{id}", "~x", "$HOME", "a\x01b", "a\x0bb", "a\x85b"),
    *("a\u2028b", "a\x1cb", os.fsdecode(b"\xff\xfe"), "deep/er", "0", "-1"),
]


@pytest.mark.parametrize("suffix", [".jpg", ".PNG"])
@pytest.mark.parametrize("name", NAMES)
def test_images_may_have_any_name(name: str, suffix: str, voc: Path) -> None:
    text = voc_xml_text("", [DOG]).replace("<filename>.jpg</filename>", "")
    try:
        for folder, ending, data in (("JPEGImages", suffix, JPEG), ("Annotations", ".xml", text.encode())):
            path = voc / folder / f"{name}{ending}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    except OSError:
        pytest.skip("this file system refuses the name")
    (voc / "ImageSets/Main/train.txt").write_bytes(b"a1\n" + os.fsencode(name) + b"\na2\n")
    hold(voc.parent, (3, 0, 0))


# --- XML -------------------------------------------------------------------------------------------------------------

XML = voc_xml_text("a0", [DOG, CAT])
LAUGHS = "".join(f'<!ENTITY l{n} "{(f"&l{n - 1};" if n else "lol") * 10}">' for n in range(9))
BOMB = f"<!DOCTYPE lolz [{LAUGHS}]><annotation><object><name>&l8;</name></object></annotation>"
NO_XML: dict[str, str | bytes] = {
    "empty": "",
    "blank": "\n \n",
    "text": "hello",
    "html": "<html></html>",
    "json": '{"annotation": {}}',
    "a picture": JPEG,
    "zeros": bytes(500),
    "cut in a number": XML[:120],
    "cut at the end": XML[:-15],
    "cut utf-16": XML.encode("utf-16")[:101],
    "utf-32": XML.encode("utf-32"),
    "not utf-8": XML.encode().replace(b"dog", b"d\xffg"),
    "bomb": BOMB,
    "bomb in utf-16": BOMB.encode("utf-16"),
    "quadratic bomb": f'<!DOCTYPE x [<!ENTITY a "{"a" * 99999}">]><annotation><object><name>{"&a;" * 999}',
    "external entity": f'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>{XML.replace("dog", "&e;")}',
    "doctype": f"<!DOCTYPE annotation>{XML}",
    "doctype from afar": f'<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/x.dtd">{XML}',
    "undefined entity": XML.replace("dog", "&foo;"),
    "control character": XML.replace("dog", "d\x01g"),
    "two roots": XML + XML,
    "tag not closed": XML.replace("</object>", "", 1),
    "another root": f"<annotations>{XML}</annotations>",
    "11 MB": f"<annotation>{' ' * (11 << 20)}</annotation>",
    "deep": "<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>",
    **{
        f"encoding {name}": f'<?xml version="1.0" encoding="{name}"?>{XML}'
        for name in ("klingon", "rot13", "hex", "zlib", "punycode", "undefined", "utf-16")
    },
}
ODD_XML: dict[str, str | bytes] = {
    "utf-16": XML.encode("utf-16"),
    "utf-16 big-endian": ("\ufeff" + XML).encode("utf-16-be"),
    "byte order mark": XML.encode("utf-8-sig"),
    "crlf": XML.replace("\n", "\r\n"),
    "comment": XML.replace("<size>", "<!-- x -->\n<size>"),
    "cdata": XML.replace("dog", "<![CDATA[dog]]>", 1),
    "attributes": XML.replace("<object>", '<object id="1">'),
    "instruction": "<?xml-stylesheet href='a'?>" + XML,
    "leading blanks": "\n\n" + XML,
    "trailing comment": XML + "\n<!-- end -->\n",
    **{
        f"encoding {name}": f'<?xml version="1.0" encoding="{name}"?>{XML}'.encode(name)
        for name in ("gbk", "iso-8859-1", "windows-1252", "Shift_JIS", "euc-kr", "big5", "ascii")
    },
}


@pytest.mark.parametrize("fault", NO_XML)
def test_an_annotation_that_is_not_xml_skips_its_image(fault: str, voc: Path) -> None:
    write(voc / "Annotations/a0.xml", NO_XML[fault])
    hold(voc.parent, IMAGE_LOST)


@pytest.mark.parametrize("kind", ODD_XML)
def test_odd_xml_is_read(kind: str, voc: Path) -> None:
    write(voc / "Annotations/a0.xml", ODD_XML[kind])
    train = hold(voc.parent, SAME)
    assert train is not None and train.target(0)["boxes"].tolist() == [[10, 20, 60, 80], [70, 30, 140, 110]]


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


BOXES: dict[str, tuple[tuple[Any, Any, Any, Any], int]] = {  # xmin, ymin, xmax, ymax, and how many are dropped
    "reversed in x": ((60, 21, 11, 80), 1),
    "reversed in y": ((11, 80, 60, 21), 1),
    "no width": ((11, 21, 10, 80), 1),
    "nan": (("nan", 21, 60, 80), 1),
    "infinite": ((11, 21, "inf", 80), 1),
    "beyond floats": ((11, 21, "1e999", 80), 1),
    "huge": ((11, 21, 99999999999, 80), 1),
    "400 digits": (("1" * 400, 21, 60, 80), 1),
    "right of the picture": ((900, 21, 950, 80), 1),
    "left of the picture": ((-90, 21, -20, 80), 1),
    "empty": (("", 21, 60, 80), 1),
    "word": (("left", 21, 60, 80), 1),
    "hexadecimal": (("0x10", 21, 60, 80), 1),
    "decimal comma": (("10,5", 21, 60, 80), 1),
    "underscore": (("1_1", 21, 60, 80), 1),
    "percent": (("10%", 21, 60, 80), 1),
    "unit": (("11px", 21, 60, 80), 1),
    "decimals": ((45.70000076293945, 21.5, 60.25, 80), 0),
    "exponent": (("1e1", "2.1e1", 60, 80), 0),
    "blanks around": ((" 11 ", "\n21", 60, 80), 0),
    "reaches out": ((100, 21, 900, 80), 0),
    "begins below 0": ((-5, -5, 60, 80), 0),
    "begins at 0": ((0, 0, 60, 80), 0),
    "one pixel": ((50, 50, 50, 50), 1),
    "the whole picture": ((1, 1, WIDTH, HEIGHT), 0),
}


@pytest.mark.parametrize("fault", BOXES)
def test_a_bad_box_is_dropped_alone(fault: str, voc: Path) -> None:
    edges, dropped = BOXES[fault]
    write(voc / "Annotations/a0.xml", voc_xml_text("a0", [("dog", *edges), CAT]))
    train = hold(voc.parent, (6, 0, dropped))
    assert train is not None and train.target(0)["boxes"][-1].tolist() == [70, 30, 140, 110]


SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
OBJECTS: dict[str, tuple[str, str, int]] = {  # what is replaced by what, and how many boxes are dropped
    "no name": ("<name>dog</name>", "", 1),
    "blank name": ("<name>dog</name>", "<name>  </name>", 1),
    "name of 10,000 letters": ("<name>dog<", f"<name>{'x' * 10_000}<", 1),
    "no box": ("bndbox", "polygon", 2),
    "no xmin": ("<xmin>11</xmin>", "", 1),
    "nested number": ("<xmin>11</xmin>", "<xmin><v>11</v></xmin>", 1),
    "empty object": ("</annotation>", "<object/></annotation>", 1),
    "two boxes": ("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>", 0),
    "two names": ("<name>dog</name>", "<name>dog</name><name>cat</name>", 0),
    "blanks around the name": ("<name>dog<", "<name> dog\n<", 0),
    "parts": ("<bndbox>", f"{PART}<bndbox>", 0),
    "difficult is a word": ("<difficult>0<", "<difficult>Unspecified<", 0),
    "difficult is 2": ("<difficult>0<", "<difficult>2<", 0),
    "no difficult": ("<difficult>0</difficult>", "", 0),
    "no size": (SIZE, "", 0),
    "size 0": (f"<width>{WIDTH}<", "<width>0<", 0),
    "wrong size": (f"<width>{WIDTH}<", "<width>999<", 0),
    "size nan": (f"<width>{WIDTH}<", "<width>nan<", 0),
    "size below 0": (f"<width>{WIDTH}<", "<width>-160<", 0),
    "huge size": (f"<width>{WIDTH}<", "<width>99999999999999999999<", 0),
    "size is a word": (f"<width>{WIDTH}<", "<width>wide<", 0),
    "another file name": ("a0.jpg", "b7.jpg", 0),
    "file name with a path": ("a0.jpg", "C:\\Users\\me\\a0.jpg", 0),
    "file name leads outside": ("a0.jpg", "../../../etc/passwd", 0),
    "no file name": ("<filename>a0.jpg</filename>", "", 0),
}


@pytest.mark.parametrize("fault", OBJECTS)
def test_a_bad_object_is_dropped_alone(fault: str, voc: Path) -> None:
    old, new, dropped = OBJECTS[fault]
    assert old in XML
    write(voc / "Annotations/a0.xml", XML.replace(old, new, -1 if old in ("bndbox", "<bndbox>", "</bndbox>") else 1))
    hold(voc.parent, (6, 0, dropped))


def test_ten_thousand_boxes_and_as_many_unknown_classes_take_no_time(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n" + "".join(f"class{n}\n" for n in range(2000)))
    boxes = [(f"name{n}" if n % 2 else "dog", 1, 1, 30, 30) for n in range(10_000)]
    write(voc / "Annotations/a0.xml", voc_xml_text("a0", boxes))
    hold(voc.parent, (6, 0, 5000), tmp_path / "classes.txt")


# --- ids, splits, class files ----------------------------------------------------------------------------------------

IDS: dict[str, tuple[bytes, Counts]] = {
    "crlf": (b"a0\r\na1\r\n", (2, 0, 0)),
    "cr": (b"a0\ra1\r", (2, 0, 0)),
    "byte order mark": (b"\xef\xbb\xbfa0\na1", (2, 0, 0)),
    "utf-16": ("a0\na1\n".encode("utf-16"), (2, 0, 0)),
    "suffix": (b"a0.jpg\na1.JPG\n", (2, 0, 0)),
    "twice": (b"a0\na1\na0\n", (2, 0, 0)),
    "columns": (b"a0 1\na1 -1\na2  0\n", (3, 0, 0)),
    "blank lines": (b"\n\na0\n\n\na1\n\n", (2, 0, 0)),
    "blanks": (b"  a0  \n\ta1\n", (2, 0, 0)),
    "leads up": (b"a0\na1\n../../../etc/passwd\n", (2, 1, 0)),
    "leads up and back": (b"a0\na1\n../JPEGImages/a2\n", (2, 1, 0)),
    "absolute": (b"a0\na1\n/etc/passwd\n", (2, 1, 0)),
    "drive": (b"a0\na1\nC:\\x\n", (2, 1, 0)),
    "unknown": (b"a0\na1\nnowhere\n", (2, 1, 0)),
    "comment": (b"# mine\na0\na1\n", (2, 1, 0)),
    "zero byte": (b"a0\na1\nx\0y\n", (2, 1, 0)),
    "not utf-8": (b"a0\n\xff\xfe\xfd\na1\n", (2, 1, 0)),
    "a line of 100,000 letters": (b"a0\na1\n" + b"x" * 100_000 + b"\n", (2, 1, 0)),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_are_found_or_named(kind: str, voc: Path) -> None:
    text, expected = IDS[kind]
    (voc / "ImageSets/Main/train.txt").write_bytes(text)
    hold(voc.parent, expected)


def each(voc: Path, pattern: str, change: Callable[[Path], object]) -> None:
    for path in sorted(voc.glob(pattern)):
        change(path)


def as_bad_png(path: Path) -> None:
    path.with_suffix(".png").write_bytes(NO_PICTURES["png with a wrong checksum"])
    path.unlink()


SPLITS: dict[str, tuple[Callable[[Path], object], Counts | str]] = {
    "empty": (
        lambda y: (y / "ImageSets/Main/train.txt").write_text(""),
        "no image that can be used: its list is empty",
    ),
    "blank": (lambda y: (y / "ImageSets/Main/train.txt").write_text("\n \n\r\n"), "no image that can be used"),
    "binary": (lambda y: (y / "ImageSets/Main/train.txt").write_bytes(bytes(range(256))), "no image that can be used"),
    "empty val": (lambda y: (y / "ImageSets/Main/val.txt").write_text(""), r"\(val\): has no image"),
    "no val": (
        lambda y: (y / "ImageSets/Main/val.txt").unlink(),
        (5, 0, 0),  # train alone is divided
    ),
    "no lists": (lambda y: each(y, "ImageSets/Main/*", Path.unlink), SAME),  # divided by seed: 6 and 2
    "no ImageSets": (lambda y: shutil.rmtree(y / "ImageSets"), SAME),
    "no pictures": (lambda y: shutil.rmtree(y / "JPEGImages"), "no image that can be used: 6 skipped"),
    "no annotations": (lambda y: shutil.rmtree(y / "Annotations"), "no image that can be used: 6 skipped"),
    "overlap": (lambda y: (y / "ImageSets/Main/val.txt").write_text("b0\na0\n"), SAME),
    "one image": (lambda y: (y / "ImageSets/Main/train.txt").write_text("a0\n"), (1, 0, 0)),
    "all broken": (
        lambda y: each(y, "JPEGImages/*", lambda p: p.write_bytes(b"x")),
        r"no image that can be used: 6 skipped.*found dog \(6\), cat \(6\)",
    ),
    "all cut": (
        lambda y: each(y, "JPEGImages/*", lambda p: p.write_bytes(p.read_bytes()[:600])),
        r"truncated.*found dog \(6\), cat \(6\)",
    ),
    "all corrupt": (
        lambda y: each(y, "JPEGImages/*", as_bad_png),
        r"none of 6 images can be decoded.*found dog \(6\), cat \(6\)",
    ),
    "all xml broken": (lambda y: each(y, "Annotations/*", lambda p: p.write_text("x")), "no image that can be used"),
    "no object": (
        lambda y: each(y, "Annotations/*", lambda p: p.write_text(voc_xml_text(p.stem, []))),
        "no box of its classes .*no objects",
    ),
    "all boxes broken": (
        lambda y: each(y, "Annotations/*", lambda p: p.write_text(voc_xml_text(p.stem, [("dog", 50, 50, 10, 10)]))),
        r"no box of its classes \(dog\); 6 were dropped.*corners reversed",
    ),
    "some negatives": (
        lambda y: each(y, "Annotations/a[0-2].xml", lambda p: p.write_text(voc_xml_text(p.stem, []))),
        SAME,
    ),
}


@pytest.mark.parametrize("fault", SPLITS)
def test_splits_are_used_or_rejected(fault: str, voc: Path) -> None:
    spoil, expected = SPLITS[fault]
    spoil(voc)
    hold(voc.parent, expected)


CLASS_FILES: dict[str, tuple[bytes, Counts | str]] = {
    "empty": (b"", "contains no class name"),
    "blank": (b"\n\n", "contains no class name"),
    "blank between": (b"dog\n\ncat\n", "classes.txt:2: blank line"),
    "blank first": (b"\n\ndog\ncat\n", "classes.txt:1: blank line"),
    "blanks at the end": (b"dog\ncat\n\n\n", SAME),
    "byte order mark": (b"\xef\xbb\xbfdog\ncat\n", SAME),
    "crlf": (b"dog\r\ncat\r\n", SAME),
    "utf-16": ("dog\ncat\n".encode("utf-16"), SAME),
    "blanks around": (b" dog \n\tcat\n", SAME),
    "twice": (b"dog\ncat\ndog\n", "classes.txt:3: class 'dog' is already on line 1"),
    "binary": (bytes(range(256)), "is not UTF-8 text"),
    "zero byte": (b"dog\0\ncat\n", "not a text file"),
    "2 MB": (b"x\n" * (1 << 20), "the limit is 1 MB"),
    "one long line": (b"x" * 1000, "has 1000 characters"),
    "a list of json": (b'["dog", "cat"]', r"no box of its classes.*found (dog|cat) \(6\)"),
    "with commas": (b"dog,cat\n", r"no box of its classes.*found (dog|cat) \(6\)"),
    "other classes": (b"car\nbus\n", r"no box of its classes \(car, bus\); found (dog|cat) \(6\)"),
    "5000 classes": (b"dog\ncat\n" + b"".join(b"n%d\n" % n for n in range(5000)), SAME),
}


@pytest.mark.parametrize("fault", CLASS_FILES)
def test_class_files_are_used_or_rejected(fault: str, voc: Path, tmp_path: Path) -> None:
    content, expected = CLASS_FILES[fault]
    (tmp_path / "classes.txt").write_bytes(content)
    hold(voc.parent, expected, tmp_path / "classes.txt")


def test_a_class_in_the_wrong_case_is_named(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    write(voc / "Annotations/a0.xml", XML.replace("dog", "Dog"))
    train = hold(voc.parent, BOX_LOST, tmp_path / "classes.txt")
    assert train is not None and train.skips[0].todo == "did you mean 'dog'?"


# --- COCO ------------------------------------------------------------------------------------------------------------

Content = dict[str, Any]


def first(kind: str, **values: Any) -> Callable[[Content], object]:
    return lambda content: content[kind][0].update(values)


def without(kind: str, key: str) -> Callable[[Content], object]:
    return lambda content: content[kind][0].pop(key)


def also(kind: str, item: Any) -> Callable[[Content], object]:
    return lambda content: content[kind].append(item)


def renumbered(number: int) -> Callable[[Content], object]:
    def change(content: Content) -> None:
        content["images"][0]["id"] = number
        for row in content["annotations"]:
            row["image_id"] = number if row["image_id"] == 1 else row["image_id"]

    return change


LISTS = ("images", "annotations", "categories")
BAD_BOXES = (None, [1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], {"x": 1}, [10, 20, -5, 6], [10, 20, 0, 6], "1 2 3 4", [])
MORE_BAD_BOXES = ([10, 20, 1e12, 6], [900, 900, 5, 5], [True, 2, 3, 4], [[1], 2, 3, 4], [10**400, 1, 2, 3])
NOT_FINITE = ([float("nan"), 2, 3, 4], [float("inf"), 2, 3, 4], [1, 2, float("inf"), 4])
COCO_FAULTS: dict[str, tuple[Callable[[Content], object], Counts | str]] = {
    **{f"no {key}": (lambda c, key=key: c.pop(key), f"has no list '{key}'") for key in LISTS},
    **{f"{key} null": (lambda c, key=key: c.update({key: None}), f"'{key}' is not a list") for key in LISTS},
    **{f"{key} of numbers": (lambda c, key=key: c.update({key: [1, 2]}), "set") for key in LISTS},
    **{f"no {key} in the list": (lambda c, key=key: c.update({key: []}), "set") for key in LISTS},
    **{
        f"bbox {str(box)[:20]}": (first("annotations", bbox=box), BOX_LOST)
        for box in (*BAD_BOXES, *MORE_BAD_BOXES, *NOT_FINITE)
    },
    **{f"annotation is {item}": (also("annotations", item), BOX_LOST) for item in (None, "x", 3, [], {})},
    **{
        f"{key} is {str(value)[:9]}": (first("annotations", **{key: value}), BOX_LOST)
        for key in ("category_id", "image_id")
        for value in ("x", None, 77, [3], -3, 10**30, 3.5)
    },
    **{f"no {key}": (without("annotations", key), BOX_LOST) for key in ("bbox", "category_id", "image_id")},
    **{
        f"annotation id {value}": (first("annotations", id=value), SAME)
        for value in (0, 17, "x", -5, None, 1.5, 10**25)
    },
    **{
        f"area {value}": (first("annotations", area=value), SAME) for value in (None, "x", -3, 0, float("nan"), 10**400)
    },
    **{f"iscrowd {value}": (first("annotations", iscrowd=value), SAME) for value in (1, "1", None, 2, [1], True)},
    "no annotation id": (without("annotations", "id"), SAME),
    "no area": (without("annotations", "area"), SAME),
    "no iscrowd": (without("annotations", "iscrowd"), SAME),
    "bad outline": (first("annotations", segmentation="zzz"), SAME),
    "ids that are text": (first("annotations", category_id="3", image_id="1"), SAME),
    "outline of a crowd": (first("annotations", iscrowd=1, segmentation={"counts": "abc", "size": [3, 4]}), SAME),
    "reaches out": (first("annotations", bbox=[100, 20, 500, 50]), SAME),
    **{
        f"file_name {str(name)[:20]!r}": (first("images", file_name=name), IMAGE_LOST)
        for name in ("gone.jpg", "../../secret.jpg", "/etc/passwd", "..\\x.jpg", "a\0b", None, 5, "", ".")
    },
    "file_name of 5000 letters": (first("images", file_name="x" * 5000), IMAGE_LOST),
    "file_name is half a letter": (first("images", file_name="\ud83d.jpg"), IMAGE_LOST),
    "no file_name": (without("images", "file_name"), IMAGE_LOST),
    "no image id": (without("images", "id"), IMAGE_LOST),
    **{f"image id {str(v)[:9]!r}": (first("images", id=v), IMAGE_LOST) for v in ("", None, True, 10**30, 1.5)},
    "image id twice": (first("images", id=2), IMAGE_LOST),
    "image id 0": (renumbered(0), SAME),
    "image id -1": (renumbered(-1), SAME),
    **{
        f"height {str(value)[:9]}": (first("images", height=value), SAME)
        for value in (None, 0, "120", 7, -1, float("nan"), 10**30, 120.0)
    },
    "no height": (without("images", "height"), SAME),
    **{f"image is {item}": (also("images", item), (6, 1, 0)) for item in (None, "x", 3, [])},
    **{
        f"category {item}": (also("categories", item), "categories|category|class")
        for item in (
            {"id": 3, "name": "x"},
            {"id": 9, "name": "dog"},
            {"id": 9},
            {"name": "x"},
            {"id": "", "name": "x"},
        )
    },
    **{f"category is {item}": (also("categories", item), "categories") for item in ("dog", None, 7)},
    **{f"category id {number}": (also("categories", {"id": number, "name": "more"}), SAME) for number in (0, -4, 900)},
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_coco_json_loses_only_what_is_broken(fault: str, coco: Path) -> None:
    spoil, expected = COCO_FAULTS[fault]
    content = json.loads((coco / "annotations/instances_train2017.json").read_text())
    spoil(content)
    write_coco(coco, "train2017", content)
    train = prepare(coco) if not isinstance(expected, str) else None
    if train is not None and expected == IMAGE_LOST:  # the boxes of a lost image are told, too
        assert counts(train)[:2] == IMAGE_LOST[:2]
    else:
        hold(coco, expected)


COCO_TEXTS: dict[str, tuple[Callable[[str], str | bytes], Counts | str]] = {
    "cut": (lambda text: text[:700], "is not JSON"),
    "empty": (lambda text: "", "is not JSON"),
    "a list": (lambda text: "[]", "the top level is not an object"),
    "a number": (lambda text: "3", "the top level is not an object"),
    "html": (lambda text: "<html>", "is not JSON"),
    "deep lists": (lambda text: "[" * 200_000, "is not JSON"),
    "deep objects": (lambda text: '{"a":' * 200_000, "is not JSON"),
    "binary": (lambda text: bytes(range(256)) * 10, "is not JSON"),
    "5000 digits": (lambda text: text.replace('"id": 1,', f'"id": {"9" * 5000},', 1), "is not JSON"),
    "comma at the end": (lambda text: text[:-1] + ",}", "is not JSON"),
    "comment": (lambda text: "// x\n" + text, "is not JSON"),
    "zero byte": (lambda text: text + "\0", "is not JSON"),
    "twice": (lambda text: text + text, "is not JSON"),
    "byte order mark": (lambda text: text.encode("utf-8-sig"), SAME),
    "utf-16": (lambda text: text.encode("utf-16"), SAME),
}


@pytest.mark.parametrize("fault", COCO_TEXTS)
def test_a_coco_file_that_is_not_json_is_an_error(fault: str, coco: Path) -> None:
    spoil, expected = COCO_TEXTS[fault]
    path = coco / "annotations/instances_train2017.json"
    write(path, spoil(path.read_text()))
    hold(coco, expected)


@posix_only
@pytest.mark.parametrize("thing", [name for name in IN_PLACE if name != "link outside"])
def test_a_folder_or_pipe_instead_of_coco_files_is_reported(thing: str, coco: Path) -> None:
    picture_file, json_file = coco / "train2017/000000000001.jpg", coco / "annotations/instances_train2017.json"
    picture_file.unlink()
    IN_PLACE[thing](picture_file)
    train = prepare(coco)
    assert counts(train)[:2] == (5, 1)
    json_file.unlink()
    IN_PLACE[thing](json_file)
    if thing == "three gigabytes":
        hold(coco, "set|train")
    else:
        assert counts(prepare(coco)) == (1, 0, 0)  # val alone is divided


# --- YOLO ------------------------------------------------------------------------------------------------------------

LINES: dict[str, tuple[str, int]] = {
    "4 columns": ("0 0.5 0.5 0.2", 1),
    "a score": ("0 0.5 0.5 0.2 0.2 0.9", 0),
    "6 columns": ("0 0.5 0.5 0.2 0.2 9", 1),
    "class name": ("dog 0.5 0.5 0.2 0.2", 0),
    "word": ("zebra 0.5 0.5 0.2 0.2", 1),
    "class 9": ("9 0.5 0.5 0.2 0.2", 1),
    "class -1": ("-1 0.5 0.5 0.2 0.2", 1),
    "class 0.5": ("0.5 0.5 0.5 0.2 0.2", 1),
    "class nan": ("nan 0.5 0.5 0.2 0.2", 1),
    "class inf": ("inf 0.5 0.5 0.2 0.2", 1),
    "class 1e300": ("1e300 0.5 0.5 0.2 0.2", 1),
    "pixels": ("0 80 60 40 30", 1),
    "nan": ("0 nan 0.5 0.2 0.2", 1),
    "inf": ("0 inf 0.5 0.2 0.2", 1),
    "no width": ("0 0.5 0.5 0 0.2", 1),
    "width below 0": ("0 0.5 0.5 -0.2 0.2", 1),
    "outside": ("0 1.5 1.5 0.2 0.2", 1),
    "commas": ("0,0.5,0.5,0.2,0.2", 1),
    "decimal commas": ("0 0,5 0,5 0,2 0,2", 1),
    "comment": ("# x", 1),
    "polygon with one number missing": ("0 0.1 0.1 0.3 0.1 0.3 0.3 0.1", 1),
    "polygon": ("0 0.1 0.1 0.3 0.1 0.3 0.4", 0),
    "reaches out": ("0 0.95 0.5 0.3 0.2", 0),
    "rounded": ("0 0.5 0.5 1.0001 1.0001", 0),
    "tabs": ("0\t0.5\t0.5\t0.2\t0.2", 0),
    "class 1e0": ("1e0 0.5 0.5 0.2 0.2", 0),
}


@pytest.mark.parametrize("fault", LINES)
def test_a_bad_line_is_dropped_alone(fault: str, yolo: Path) -> None:
    line, dropped = LINES[fault]
    write(yolo / "labels/train/p0.txt", f"1 0.75 0.5 0.25 0.25\n{line}\n")
    hold(yolo, (6, 0, dropped))


LABEL_FILES: dict[str, tuple[bytes, Counts]] = {
    "empty": (b"", SAME),
    "blank": (b"\n\n\n", SAME),
    "byte order mark": (b"\xef\xbb\xbf0 0.5 0.5 0.2 0.2\n", SAME),
    "crlf": (b"0 0.5 0.5 0.2 0.2\r\n", SAME),
    "cr": (b"0 0.5 0.5 0.2 0.2\r1 0.5 0.5 0.2 0.2", SAME),
    "utf-16": ("0 0.5 0.5 0.2 0.2\n".encode("utf-16"), SAME),
    "binary": (b"\xff\xff\0", IMAGE_LOST),
    "zero byte": (b"0 0.5\0 0.5 0.2 0.2\n", IMAGE_LOST),
    "a picture": (JPEG, IMAGE_LOST),
    "11 MB": (b" " * (11 << 20), IMAGE_LOST),
}


@pytest.mark.parametrize("fault", LABEL_FILES)
def test_label_files_are_read_or_skip_their_image(fault: str, yolo: Path) -> None:
    content, expected = LABEL_FILES[fault]
    (yolo / "labels/train/p0.txt").write_bytes(content)
    hold(yolo, expected)


@posix_only
@pytest.mark.parametrize("thing", [name for name in IN_PLACE if name not in ("link outside", "link to itself")])
def test_a_folder_or_pipe_instead_of_yolo_files_is_reported(thing: str, yolo: Path) -> None:
    label = yolo / "labels/train/p0.txt"
    label.unlink()
    IN_PLACE[thing](label)
    hold(yolo, SAME if thing in ("nothing", "broken link") else IMAGE_LOST)
    (yolo / "data.yaml").unlink()
    IN_PLACE[thing](yolo / "data.yaml")
    hold(yolo, "set")


REST = "train: images/train\nval: images/val\n"
LEVELS = "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8))
YAML_BOMB = f"a: &a [x,x,x,x,x,x,x,x,x]\n{LEVELS}"
YAMLS: dict[str, tuple[str | bytes, Counts | str]] = {
    "empty": ("", "contains no settings"),
    "a list": ("- a", "contains no settings"),
    "cut": ("names: [a", "is not YAML"),
    "no names": (REST, "has no names"),
    "no splits": ("names: [dog, cat]\n", "has no train"),
    "no train": ("val: images/val\nnames: [dog, cat]\n", (1, 0, 0)),
    "name twice": (f"{REST}names: [a, a]\n", "appears twice"),
    "blank name": (f"{REST}names: [a, '']\n", "class 1"),
    "names with a hole": (f"{REST}names: {{0: dog, 1: cat, 3: bird}}\n", SAME),
    "names by words": (f"{REST}names: {{zero: dog, one: cat}}\n", "number the classes from 0"),
    "names is a number": (f"{REST}names: 3\n", "has no names"),
    "names nested": (f"{REST}names: [[a], [b]]\n", "class 0"),
    "wrong nc": (f"{REST}nc: 7\nnames: [dog, cat]\n", "nc is 7"),
    "train is a number": ("train: 5\nval: images/val\nnames: [dog, cat]\n", "train is 5"),
    "train is nothing": ("train:\nval: images/val\nnames: [dog, cat]\n", (1, 0, 0)),
    "train is nowhere": ("train: nowhere\nval: images/val\nnames: [dog, cat]\n", "does not exist"),
    "train is a picture": ("train: images/train/p0.jpg\nval: images/val\nnames: [dog, cat]\n", "no image"),
    "path is a list": (f"path: [1]\n{REST}names: [dog, cat]\n", "path is"),
    "python": (f"x: !!python/object/apply:os.system ['true']\n{REST}names: [dog, cat]\n", "is not YAML"),
    "bomb in train": (f"{YAML_BOMB}train: *i\nnames: [dog, cat]\n", "train is"),
    "bomb in names": (f"{YAML_BOMB}{REST}names: *i\n", "class 0 is"),
    "bomb in nc": (f"{YAML_BOMB}{REST}nc: *i\nnames: [dog, cat]\n", "nc is"),
    "circle": ("a: &a [*a]\ntrain: *a\nnames: [dog, cat]\n", "train is"),
    "2 MB": ("# " + "x" * (2 << 20), "the limit is"),
    "deep": ("a: " + "[" * 5000, "is not YAML"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "two documents": (f"{REST}---\nnames: [a]\n", "is not YAML"),
    "no date": (f"x: 2001-13-45\n{REST}names: [dog, cat]\n", "is not YAML"),
    "byte order mark": (f"\ufeff{REST}names: [dog, cat]\n", SAME),
    "crlf": (f"{REST}names: [dog, cat]\n".replace("\n", "\r\n"), SAME),
    "utf-16": (f"{REST}names: [dog, cat]\n".encode("utf-16"), SAME),
    "wrong path": (f"path: /nowhere/at/all\n{REST}names: [dog, cat]\n", SAME),
    "a command to download": (f"download: 'touch /tmp/never'\n{REST}names: [dog, cat]\n", SAME),
    "list of folders": ("train: [images/train]\nval: images/val\nnames: [dog, cat]\n", SAME),
}


@pytest.mark.parametrize("fault", YAMLS)
def test_a_data_yaml_is_used_or_rejected(fault: str, yolo: Path) -> None:
    content, expected = YAMLS[fault]
    write(yolo / "data.yaml", content)
    hold(yolo, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"images/train/p0.jpg\n../secret.jpg\n/etc/passwd\n", (1, 2, 0)),
        (b"\xef\xbb\xbfimages/train/p0.jpg\r\nimages/train/p1.jpg\r\n", (2, 0, 0)),
        ("images/train/p0.jpg\nimages/train/p1.jpg\n".encode("utf-16"), (2, 0, 0)),
        (b"images/train/p0.jpg\nimages/train/gone.jpg\n", (1, 1, 0)),
        (b"images/train/p0.jpg\nimages/train/p0.jpg\n", (1, 0, 0)),
        (b"", "its list is empty"),
        (b"\n\n", "its list is empty"),
    ],
)
def test_a_list_of_images_is_read_line_by_line(text: bytes, expected: Counts | str, yolo: Path) -> None:
    write_image(yolo.parent / "secret.jpg", picture(7))
    (yolo / "list.txt").write_bytes(text)
    (yolo / "data.yaml").write_text("train: list.txt\nval: images/val\nnames: [dog, cat]\n")
    hold(yolo, expected)


@posix_only
def test_links_in_circles_end(yolo: Path) -> None:
    (yolo / "images/train/again").symlink_to(".")
    hold(yolo, SAME)


# --- what is no data set at all --------------------------------------------------------------------------------------


def a_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).write_bytes(content)
        return root / name

    return make


def a_thing(name: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
    return lambda root: (make(root / name), root / name)[1]


def a_folder_with(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "folder").mkdir()
        (root / "folder" / name).write_bytes(content)
        return root / "folder"

    return make


NO_DATA: dict[str, Callable[[Path], Path]] = {
    "nothing": lambda root: root / "gone",
    "empty folder": a_thing("folder", Path.mkdir),
    "picture": a_file("x.jpg", JPEG),
    "empty json": a_file("x.json", b""),
    "folder of pictures": a_folder_with("a.jpg", JPEG),
    "another json": a_folder_with("package.json", b'{"name": "x"}'),
    "pipe": a_thing("x", lambda path: os.mkfifo(path)),
    "pipe named json": a_thing("x.json", lambda path: os.mkfifo(path)),
    "pipe named yaml": a_thing("x.yaml", lambda path: os.mkfifo(path)),
    "broken link": a_thing("x", lambda path: path.symlink_to("gone")),
    "link to itself": a_thing("x", lambda path: path.symlink_to("x")),
    "device": lambda root: Path("/dev/null"),
}


@posix_only
@pytest.mark.parametrize("thing", NO_DATA)
def test_a_path_that_is_not_a_data_set_is_rejected(thing: str, tmp_path: Path) -> None:
    data = NO_DATA[thing](tmp_path)
    with pytest.raises(UserError) as caught:
        prepare(data)
    assert re.fullmatch(r".+: .+; .+", str(caught.value)), str(caught.value)


@pytest.mark.parametrize("name", ["my\ndata set", "données 猫", os.fsdecode(b"\xff\xfe data")])
def test_the_folder_itself_may_have_any_name(name: str, whole_sets: Path, tmp_path: Path) -> None:
    try:
        data = shutil.copytree(whole_sets / "voc", tmp_path / name)
    except OSError:
        pytest.skip("this file system refuses the name")
    assert counts(prepare(data)) == SAME


def test_the_number_of_cases_is_large_enough() -> None:
    tables: list[Any] = [NO_PICTURES, ODD_PICTURES, IN_PLACE, NAMES, NO_XML, ODD_XML, BOXES, OBJECTS, IDS, SPLITS]
    tables += [CLASS_FILES, COCO_FAULTS, COCO_TEXTS, LINES, LABEL_FILES, YAMLS, NO_DATA]
    assert sum(map(len, tables)) > 400
