"""Fuzz annotations, lists, class files and images: each must be read, or rejected in one line.

python -m tests.long.fuzz_inputs                       # 20,000 inputs, about a minute of one core
python -m tests.long.fuzz_inputs --first 4711 --count 1 --keep corrupt   # repeat one input and keep its file
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.class_names import read_class_names
from data.formats.coco import read_coco
from data.formats.voc import read_voc
from data.formats.yolo_txt import read_yolo
from data.index import DatasetIndex
from imaging.image_io import read_header, read_image
from utils.config import option, parse_options
from utils.errors import RunError, UserError, run_command
from utils.files import write_file

SLOW = 5.0  # CPU seconds of one small input that count as a failure
MEGAPIXELS = 1.0  # larger images are rejected, as those of more than 100 megapixels are by default
READ, REJECTED, FAILED, CRASHED = "read", "rejected", "failed", "crashed"
HEIGHT, WIDTH = 24, 32


@dataclass(frozen=True)
class FuzzOptions:
    """Options of the input fuzzer."""

    count: int = option(20_000, "number of inputs", low=1)
    first: int = option(0, "number of the first input; an input depends only on the seed and its number", low=0)
    seed: int = option(0, "seed of the inputs", low=0)
    kinds: tuple[str, ...] = option((), "only these kinds of input (default: all)", metavar="KIND")
    keep: str | None = option(None, "folder for failed inputs, or for the input if --count is 1", metavar="DIR")
    json: str | None = option(None, "write the counts to this file", metavar="FILE")


# --- what is whole ---------------------------------------------------------------------------------------------------

XML = """<annotation>
\t<filename>a.jpg</filename>
\t<size><width>32</width><height>24</height><depth>3</depth></size>
\t<object><name>dog</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
\t\t<bndbox><xmin>2</xmin><ymin>3.5</ymin><xmax>20</xmax><ymax>21</ymax></bndbox></object>
\t<object><name>cat</name><difficult>1</difficult>
\t\t<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>32</xmax><ymax>24</ymax></bndbox></object>
</annotation>
"""
COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
    "categories": [{"id": 3, "name": "dog"}, {"id": 90, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2.5, 18, 19], "area": 300, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 90, "bbox": [0, 0, 32, 24], "iscrowd": 1,
         "segmentation": {"counts": [1, 2, 3], "size": [24, 32]}},
    ],
}  # fmt: skip
YAML = "path: .\ntrain: images\nval: images\nnc: 2\nnames:\n  0: dog\n  1: cat\n"
LABELS = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.5 0.125\n0 0.1 0.1 0.4 0.1 0.4 0.7\n"
CLASSES = "dog\ncat\ntraffic light\nKäse\n"
IDS = "a\nb 1\nc -1\n"

PICTURES = {
    "jpeg": ("JPEG", "RGB"), "jpeg grey": ("JPEG", "L"), "jpeg cmyk": ("JPEG", "CMYK"), "png": ("PNG", "RGB"),
    "png palette": ("PNG", "P"), "png alpha": ("PNG", "RGBA"), "gif": ("GIF", "P"), "bmp": ("BMP", "RGB"),
    "tiff": ("TIFF", "RGB"), "webp": ("WEBP", "RGB"), "ppm": ("PPM", "RGB"), "jpeg 2000": ("JPEG2000", "RGB"),
    "avif": ("AVIF", "RGB"),
}  # fmt: skip
TEXTS = {
    "voc xml": XML,
    "coco json": json.dumps(COCO),
    "class file": CLASSES,
    "voc ids": IDS,
    "yolo labels": LABELS,
    "data.yaml": YAML,
}
KINDS = (*TEXTS, *PICTURES)
SHARES = np.array([4, 4, 2, 1, 1, 1, *([1] * len(PICTURES))], np.float64)

NUMBERS = [b"nan", b"inf", b"-1", b"0", b"1e999", b"99999999999", b"0.5", b"1_0", b"'7'", b"null", b"9" * 500, b"-0"]
TOKENS = [
    b"<", b">", b"</object>", b"<object>", b"<annotation>", b"<!DOCTYPE a>", b"<![CDATA[", b"&lt;", b"&x;", b"<!--",
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"\\u0000", b"\\ud800", b"*a", b"&a ", b"- ", b"\t",
    b"!!python/tuple ", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"../", b"/etc/passwd",
]  # fmt: skip


# --- spoiling --------------------------------------------------------------------------------------------------------


def spoil(data: bytes, rng: np.random.Generator, is_text: bool) -> bytes:
    """`data` with one to six random changes."""
    changed = bytearray(data)
    for _ in range(min(int(rng.geometric(0.6)), 6)):
        change = _CHANGES[int(rng.integers(len(_CHANGES) if is_text else _BINARY_CHANGES))]
        change(changed, rng)
    return bytes(changed)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(len(data) + 1))


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    if data:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def _overwrite(data: bytearray, rng: np.random.Generator) -> None:
    place, length = _place(data, rng), int(rng.integers(1, 9))
    data[place : place + length] = rng.bytes(length)


def _delete(data: bytearray, rng: np.random.Generator) -> None:
    place = _place(data, rng)
    del data[place : place + int(rng.integers(1, 30))]


def _repeat(data: bytearray, rng: np.random.Generator) -> None:
    place = _place(data, rng)
    part = data[place : place + int(rng.integers(1, 60))]
    data[place:place] = part * int(rng.integers(1, 20))


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        del data[_place(data, rng) :]


def _extreme(data: bytearray, rng: np.random.Generator) -> None:
    place, length = _place(data, rng), int(rng.choice([1, 2, 4]))
    data[place : place + length] = (b"\xff", b"\0", b"\x7f")[int(rng.integers(3))] * length


def _token(data: bytearray, rng: np.random.Generator) -> None:
    place = _place(data, rng)
    data[place:place] = TOKENS[int(rng.integers(len(TOKENS)))]


def _number(data: bytearray, rng: np.random.Generator) -> None:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if numbers:
        chosen = numbers[int(rng.integers(len(numbers)))]
        data[chosen.start() : chosen.end()] = NUMBERS[int(rng.integers(len(NUMBERS)))]


def _swap(data: bytearray, rng: np.random.Generator) -> None:
    first, second = sorted((_place(data, rng), _place(data, rng)))
    data[:] = data[:first] + data[second:] + data[first:second]


_CHANGES: list[Callable[[bytearray, np.random.Generator], None]] = [
    _flip, _overwrite, _delete, _repeat, _cut, _extreme, _token, _number, _swap
]  # fmt: skip
_BINARY_CHANGES = 6


# --- holding each to the rule ----------------------------------------------------------------------------------------


class Place:
    """A folder with a valid data set of each format, in which one file at a time is corrupted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        image = cv2.resize(
            np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=1
        )
        self.whole = {name: text.encode() for name, text in TEXTS.items()}
        for name, (kind, mode) in PICTURES.items():
            self.whole[name] = _encoded(image, kind, mode)
        for folder in ("VOC2007/JPEGImages", "VOC2007/Annotations", "VOC2007/ImageSets/Main", "images", "labels"):
            (root / folder).mkdir(parents=True)
        for name in "abc":
            (root / f"VOC2007/JPEGImages/{name}.jpg").write_bytes(self.whole["jpeg"])
            (root / f"VOC2007/Annotations/{name}.xml").write_bytes(self.whole["voc xml"])
        (root / "images/a.jpg").write_bytes(self.whole["jpeg"])
        (root / "VOC2007/ImageSets/Main/train.txt").write_text("a\n")
        self.files = {
            "voc xml": root / "VOC2007/Annotations/a.xml",
            "coco json": root / "images/instances_train.json",
            "class file": root / "classes.txt",
            "voc ids": root / "VOC2007/ImageSets/Main/val.txt",
            "yolo labels": root / "labels/a.txt",
            "data.yaml": root / "data.yaml",
        }
        for name, file in self.files.items():
            file.write_bytes(self.whole[name])

    def make(self, number: int, options: FuzzOptions) -> tuple[str, bytes]:
        """Kind and content of an input, determined by the seed and the number."""
        rng = np.random.default_rng([options.seed, number])
        shares = np.array(
            [s * (not options.kinds or kind in options.kinds) for kind, s in zip(KINDS, SHARES, strict=True)]
        )
        kind = KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))]
        return kind, spoil(self.whole[kind], rng, kind in TEXTS)

    def judge(self, kind: str, data: bytes) -> tuple[str, str]:
        """Result of an input: `read`, `rejected` or `failed`, with the message."""
        file = self.files.get(kind, self.root / "picture")
        file.write_bytes(data)
        began = time.process_time()
        try:
            self._read(kind, file)
            outcome, words = READ, ""
        except UserError as error:
            outcome, words = REJECTED, str(error)
        except Exception as error:  # what this looks for
            outcome, words = FAILED, f"{type(error).__name__}: {error}"
        took = time.process_time() - began
        if took > SLOW:
            return FAILED, f"took {took:.1f} s"
        if outcome == REJECTED and ("\n" in words or not re.match(r".+: .+", words) or len(words) > 2000):
            return FAILED, f"the error is not one line: {words[:200]!r}"
        if kind in self.files:
            file.write_bytes(self.whole[kind])
        return outcome, words

    def _read(self, kind: str, file: Path) -> None:
        if kind == "voc xml":
            _check_index(read_voc(self.root, "train"))
        elif kind == "voc ids":
            _check_index(read_voc(self.root, "val"))
        elif kind == "coco json":
            _check_index(read_coco(file))
        elif kind == "class file":
            assert all(name == name.strip() != "" for name in read_class_names(file))
        elif kind in TEXTS:
            _check_index(read_yolo(self.files["data.yaml"], "train", max_megapixels=MEGAPIXELS))
        else:
            size = read_header(file, MEGAPIXELS).size
            image = read_image(file, MEGAPIXELS)
            assert image.dtype == np.uint8 and image.shape == (*size, 3), (image.dtype, image.shape, size)


def _encoded(image: np.ndarray, kind: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _check_index(index: DatasetIndex) -> None:
    """Check that the result of reading a file is valid for training."""
    owner = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    assert np.isfinite(index.boxes).all() and (index.boxes >= 0).all()
    assert (index.boxes[:, 2:] > index.boxes[:, :2]).all()
    assert (index.boxes[:, [3, 2]] <= index.sizes[owner]).all()
    assert ((index.labels >= 0) & (index.labels < len(index.class_names))).all()
    assert len(set(index.image_ids.tolist())) == len(index)
    assert all("\n" not in str(skip) for skip in index.skips)


# --- in a process of its own, which a decoder may crash --------------------------------------------------------------


def _work(options: FuzzOptions, first: int, pipe: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg says there what it thinks of each
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for number in range(first, options.first + options.count):
            kind, data = place.make(number, options)
            pipe.send((number, kind, None, ""))
            pipe.send((number, kind, *place.judge(kind, data)))


def fuzz(options: FuzzOptions) -> tuple[dict[str, Counter[str]], list[tuple[int, str, str]]]:
    """Count inputs read, rejected, failed and crashed, by kind; and list number, kind and message of failures."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    failures: list[tuple[int, str, str]] = []
    number, end = options.first, options.first + options.count
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    while number < end:
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(options, number, there), daemon=True)
        worker.start()
        there.close()
        kind, outcome = "", None
        try:
            while number < end:
                number, kind, outcome, words = here.recv()
                if outcome is not None:
                    counts[kind][outcome] += 1
                    if outcome == FAILED:
                        failures.append((number, kind, words))
                    number += 1
        except EOFError:  # the worker is gone
            worker.join()
            if not kind:
                raise RunError("fuzz", f"the worker ended with {worker.exitcode} before its first input") from None
            counts[kind][CRASHED] += 1
            failures.append((number, kind, f"the process ended with {worker.exitcode}"))
            number += 1
        worker.join()
    return counts, failures


def keep_inputs(options: FuzzOptions, failures: list[tuple[int, str, str]]) -> None:
    """Write the failed inputs, or the requested one, to the output folder."""
    numbers = [options.first] if options.count == 1 else [number for number, _, _ in failures]
    folder = Path(options.keep or "")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch))
        for number in numbers:
            kind, data = place.make(number, options)
            write_file(folder / f"{number}-{kind.replace(' ', '-')}", data)


def main(argv: list[str] | None = None) -> int:
    """Print a table. Returns 1 if an input failed."""
    options = parse_options(FuzzOptions, argv, description=__doc__.splitlines()[0])
    unknown = set(options.kinds) - set(KINDS)
    if unknown:
        raise UserError("--kinds", f"{sorted(unknown)[0]!r} is not known", f"choose from {', '.join(KINDS)}")
    began = time.perf_counter()
    counts, failures = fuzz(options)
    print(f"{'kind':14}{'inputs':>8}{READ:>8}{REJECTED:>9}{FAILED:>8}{CRASHED:>9}")
    total: Counter[str] = sum(counts.values(), Counter())
    for kind, of_kind in [*counts.items(), ("all", total)]:
        numbers = "".join(f"{of_kind[name]:>{w}}" for name, w in ((READ, 8), (REJECTED, 9), (FAILED, 8), (CRASHED, 9)))
        if of_kind:
            print(f"{kind:14}{of_kind.total():>8}{numbers}")
    for number, kind, words in failures[:20]:
        print(f"number {number}, {kind}: {words[:200]}")
    print(f"seed {options.seed}: {total.total()} inputs, {len(failures)} failures, {time.perf_counter() - began:.0f} s")
    if options.json:
        write_file(options.json, json.dumps({kind: dict(of_kind) for kind, of_kind in counts.items()}).encode())
    if options.keep:
        keep_inputs(options, failures)
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
