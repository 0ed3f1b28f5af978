"""Decompression bombs: each is read in a separate process, whose memory and time are printed.

python -m tests.long.bombs     fails if one takes a gigabyte or 10 s, or is neither read nor rejected properly
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import torch
from PIL import Image

from data.class_names import read_class_names
from data.formats.coco import read_coco
from data.formats.voc import parse_voc_xml
from data.formats.yolo_txt import read_data_yaml
from imaging.image_io import read_image
from nets.export.load import load_runtime
from nets.weights.checkpoint import load_checkpoint
from nets.weights.pretrained import read_weights_file
from nets.weights.torch_file import seal
from utils.config import option, parse_options, read_config
from utils.errors import UserError, run_command
from utils.files import read_file

LIMIT = 1000  # megabytes that no bomb may cost
SECONDS = 10.0  # maximum CPU time for each file
SPARSE = 3 << 30  # bytes of a file that is nothing but a hole
MAX_XML = 10 << 20
CHUNK = 1 << 20


@dataclass(frozen=True)
class BombOptions:
    """Options of the script."""

    only: str | None = option(None, "only bombs with this word in their name")


def main(argv: list[str] | None = None) -> int:
    """Read all bombs."""
    options = parse_options(BombOptions, argv, description=__doc__ or "", prog="bombs.py")
    if not hasattr(os, "fork"):
        raise UserError("bombs", "needs a system that forks", "run it on Linux or macOS")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    failed = 0
    worst = longest = 0.0
    with tempfile.TemporaryDirectory(prefix="bombs-") as name:
        for title, (make, file_name, read) in BOMBS.items():
            if options.only is not None and options.only not in title:
                continue
            path = Path(name, file_name)
            make(path)
            size = path.stat().st_size
            memory, seconds, answer, is_ours = set_off(read, path)
            path.unlink()
            bad = memory > LIMIT or seconds > SECONDS or not is_ours
            failed += bad
            worst, longest = max(worst, memory), max(longest, seconds)
            cost = f"took {memory:.0f} MB and {seconds:.2f} s"
            print(f"{'FAILED ' if bad else ''}{title}: {size / 1e6:.2f} MB, {cost}: {answer}", flush=True)
    print(f"worst: {worst:.0f} MB, longest: {longest:.2f} s of CPU time, failed: {failed}")
    return 1 if failed else 0


def set_off(read: Callable[[Path], object], path: Path) -> tuple[float, float, str, bool]:
    """(memory in MB, CPU seconds, result, whether the result is an error of this project)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        answer, is_ours = "read", True
        try:
            read(path)
        except UserError as error:
            answer = str(error).replace(str(path), path.name)
        except BaseException as error:
            answer, is_ours = f"{type(error).__name__}: {error}", False
        unit = 1 if sys.platform == "darwin" else 1024
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 1e6
        seconds = time.process_time() - started
        os.write(writer, json.dumps([memory, seconds, answer[:150], is_ours]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return 0.0, 0.0, f"it ended the process ({os.waitstatus_to_exitcode(status)})", False
    memory, seconds, answer, is_ours = json.loads(text)
    return memory, seconds, answer, is_ours


# ---- how to make them


def _write(data: bytes) -> Callable[[Path], None]:
    return lambda path: _put(path, data)


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _hole(beginning: bytes = b"") -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(beginning)
            file.truncate(SPARSE)

    return make


def _archive(data_pkl: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", data_pkl)
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def _compressed(path: Path) -> None:
    """Two gigabytes of zeros compressed to two megabytes, with the entry names of torch.save."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        with file.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(2048):
                entry.write(bytes(CHUNK))


def _wide_tensor(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"format": "mobilenet-yolov4", "weights": {"a": torch.zeros(1).expand(10**10)}}, buffer)
    path.write_bytes(seal(buffer.getvalue()))


def _png(width: int, height: int, rows: int) -> Callable[[Path], None]:
    """A PNG whose header claims a size, with a given number of rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make(path: Path) -> None:
        packer, parts = zlib.compressobj(6), []
        for _ in range(rows):
            parts.append(packer.compress(bytes(1 + 3 * width)))
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        body = b"".join([*parts, packer.flush()])
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))

    return make


def _picture(form: str, side: int, mode: str = "RGB", **settings: object) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        Image.new(mode, (side, side)).save(path, form, **settings)

    return make


def scan_bomb(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG with many scans, each of which makes a decoder process all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:last] + data[last:end] * scans + data[end:]


def _scans(side: int, scans: int) -> Callable[[Path], None]:
    return lambda path: _put(path, scan_bomb(side, side, scans))


def two_directories(good: bytes, evil: bytes) -> bytes:
    """An archive in which PyTorch finds the entries of `evil`, and zipfile those of `good`.

    Both are archives written by zipfile. `evil` has the longer list. zipfile reads the list before the end record and
    adds the number of bytes that it assumes to be prepended to the offsets.
    """
    lists = []
    for data in (good, evil):
        lists.append(data[data.find(b"PK\x01\x02") : data.rfind(b"PK\x05\x06")])
    own, theirs = bytearray(lists[0]), lists[1]
    num_entries, position = good.count(b"PK\x01\x02"), 0
    body, start = evil[: evil.rfind(b"PK\x05\x06")], evil.find(b"PK\x01\x02")
    entries = good[: good.find(b"PK\x01\x02")]
    prepended = len(body) + len(entries) - start
    while own[position : position + 4] == b"PK\x01\x02":
        offset = struct.unpack_from("<L", own, position + 42)[0]
        struct.pack_into("<L", own, position + 42, (offset + len(body) - prepended) % 2**32)
        position += 46 + sum(struct.unpack_from("<HHH", own, position + 28))
    own += bytes(len(theirs) - len(own))
    record = struct.pack("<HHHHLLH", 0, 0, num_entries, num_entries, len(theirs), start, 0)
    return body + entries + bytes(own) + b"PK\x05\x06" + record


def _two_directories(path: Path) -> None:
    """A file that zipfile reads as a checkpoint and PyTorch reads as two gigabytes of compressed zeros."""
    _compressed(path)
    path.write_bytes(two_directories(_archive(b"\x80\x02}."), path.read_bytes()))


def shared_lists(levels: int) -> object:
    """A list of two references to a list of two references...: 2 ** levels values when it is written out."""
    value: object = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


def _nested(field: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        config = {"class_names": ["a"], field: shared_lists(23)}
        buffer = io.BytesIO()
        content = {"format": "mobilenet-yolov4", "format_version": 1, "config": config, "weights": {}}
        torch.save(content, buffer)
        path.write_bytes(seal(buffer.getvalue()))

    return make


def _png_text(path: Path) -> None:
    """An image of one pixel with half a gigabyte of compressed text."""
    data = b"Comment\0\0" + zlib.compress(bytes(1 << 29), 6)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    whole = buffer.getvalue()
    path.write_bytes(whole[:33] + chunk + whole[33:])


def _laughs() -> bytes:
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    return f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "ha">{entities}]><annotation>&l11;</annotation>'.encode()


def _yaml_laughs() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return ("\n".join(lines) + "\ntrain: *a9\nval: *a9\nnames: *a9\nnc: *a9\npath: *a9\n").encode()


def _read_xml(path: Path) -> object:
    return parse_voc_xml(read_file(path, MAX_XML), path)


_CONFIG = b'{"__metadata__": {}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'

# name -> how it is made, the name of its file, who reads it
BOMBS: dict[str, tuple[Callable[[Path], None], str, Callable[[Path], object]]] = {
    "model, 2 GB compressed": (_compressed, "a.pth", load_checkpoint),
    "model, 10 GB of one number": (_wide_tensor, "a.pth", load_checkpoint),
    "model, bytearray of 10 GB": (
        _write(_archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R.")),
        "a.pth",
        load_checkpoint,
    ),
    "model, memo of four billion": (_write(_archive(b"\x80\x02Nr\xff\xff\xff\xff.")), "a.pth", load_checkpoint),
    "model, a hundred million lists": (
        _write(_archive(b"\x80\x02(" + b"]" * (4 << 20) + b"l.")),
        "a.pth",
        load_checkpoint,
    ),
    "model, 3 GB hole": (_hole(b"PK\x03\x04"), "a.pth", load_checkpoint),
    "model, two central directories": (_two_directories, "a.pth", load_checkpoint),
    "model, shared lists in its input size": (_nested("input_size"), "a.pth", load_checkpoint),
    "model, shared lists in its backbone": (_nested("backbone"), "a.pth", load_checkpoint),
    "old model, 3 GB hole": (_hole(pickle.dumps(0x1950A86A20F9469CFC6C, 2)), "a.pth", read_weights_file),
    "safetensors, header of 3 GB": (_hole(struct.pack("<Q", SPARSE - 8)), "a.safetensors", load_checkpoint),
    "safetensors, 3 GB hole": (_hole(struct.pack("<Q", len(_CONFIG)) + _CONFIG), "a.safetensors", load_checkpoint),
    "ONNX, 3 GB hole": (_hole(b"\x08\x08"), "a.onnx", load_runtime),
    "OpenVINO, 3 GB hole": (_hole(b"<?xml version='1.0'?><net>"), "a.xml", load_runtime),
    "PNG, claims 30000 x 30000": (_png(30_000, 30_000, 300), "a.png", read_image),
    "PNG, 100 megapixels": (_png(10_000, 10_000, 10_000), "a.png", read_image),
    "PNG, half a gigabyte of text": (_png_text, "a.png", read_image),
    "JPEG, 100 megapixels": (_picture("JPEG", 10_000), "a.jpg", read_image),
    "JPEG, 5000 scans of 49 megapixels": (_scans(7000, 5000), "a.jpg", read_image),
    "JPEG, 20 scans of 100 megapixels": (_scans(10_000, 12), "a.jpg", read_image),
    "JPEG in CMYK, 100 megapixels": (_picture("JPEG", 10_000, "CMYK"), "a.jpg", read_image),
    "GIF, 100 megapixels": (_picture("GIF", 10_000, "P"), "a.gif", read_image),
    "WebP, 100 megapixels": (_picture("WEBP", 10_000, method=0), "a.webp", read_image),
    "TIFF, 100 megapixels": (_picture("TIFF", 10_000, compression="tiff_deflate"), "a.tif", read_image),
    "BMP, 3 GB hole": (_hole(b"BM"), "a.bmp", read_image),
    "XML, entities": (_write(_laughs()), "a.xml", _read_xml),
    "XML, 3 GB hole": (_hole(b"<annotation>"), "a.xml", _read_xml),
    "XML, 10 MB of elements": (
        _write(b"<annotation>" + b"<object/>" * (MAX_XML // 9 - 10) + b"</annotation>"),
        "a.xml",
        _read_xml,
    ),
    "JSON, ten million brackets": (_write(b"[" * 10_000_000), "instances_train.json", read_coco),
    "YAML, aliases": (_write(_yaml_laughs()), "data.yaml", read_data_yaml),
    "YAML, 3 GB hole": (_hole(b"train: a\n"), "data.yaml", read_data_yaml),
    "class file, 3 GB hole": (_hole(b"car\n"), "classes.txt", read_class_names),
    "configuration, 3 GB hole": (_hole(b"{}"), "config.json", read_config),
    "configuration, a million brackets": (_write(b"[" * 1_000_000), "config.json", read_config),
}


if __name__ == "__main__":
    run_command(main)
