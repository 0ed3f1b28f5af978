"""JPEG files with thousands of scans, which are slow to decode, are rejected before they are decoded."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from imaging.image_io import ImageError, decode_image, read_header, read_image, read_image_size
from prediction.sources import list_sources
from tests.long.bombs import scan_bomb

SECONDS = 1.0  # maximum CPU time until the file is rejected


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def several(data: bytes, count: int) -> bytes:
    """The last scan of a JPEG repeated."""
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:last] + data[last:end] * count + data[end:]


def sequential(count: int) -> bytes:
    """A baseline JPEG with one component per scan, whose last scan is repeated."""
    data = jpeg(quality=50)
    at = data.find(b"\xff\xda")
    scan = b"\xff\xda" + bytes([0, 8, 1, 1, 0, 0, 63, 0]) + b"\x00" * 40
    return data[:at] + scan * count + b"\xff\xd9"


def hidden(data: bytes) -> bytes:
    """With FF 00 and a length before the frame. This is not a segment: a parser that skips it misses the frame."""
    return data[:2] + b"\xff\x00\xff\xf0" + data[2:]


BOMBS = {
    "174 kB at 49 megapixels": lambda: scan_bomb(7000, 7000, 1500),
    "few pixels, many scans": lambda: several(jpeg(progressive=True), 3000),
    "100 megapixels, 30 scans": lambda: scan_bomb(10_000, 10_000, 30),
    "a sequential one": lambda: sequential(500),
    "behind a segment that is none": lambda: hidden(several(jpeg(progressive=True), 3000)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_jpeg_of_too_many_scans_is_rejected_before_it_is_decoded(kind: str, tmp_path: Path) -> None:
    data, path = BOMBS[kind](), tmp_path / "a.jpg"
    path.write_bytes(data)
    started = time.process_time()
    for read in (read_image, read_header, read_image_size, lambda _: decode_image(data)):
        with pytest.raises(ImageError, match=r"has more than \d+ scans") as caught:
            read(path)
        assert caught.value.code == "image_too_big"
    (source,), _ = list_sources([str(path)])
    with pytest.raises(ImageError):
        source.read_image()
    assert time.process_time() - started < SECONDS


def test_the_output_of_common_encoders_is_read() -> None:
    for options in ({}, {"progressive": True}, {"progressive": True, "subsampling": 0, "quality": 95}):
        assert decode_image(jpeg(**options)).shape == (60, 80, 3)
    assert decode_image(several(jpeg(progressive=True), 50)).shape == (60, 80, 3)


def test_scans_after_a_complete_one_are_not_decoded() -> None:
    data = several(jpeg(), 5000)
    started = time.process_time()
    assert np.array_equal(decode_image(data), decode_image(jpeg()))
    assert time.process_time() - started < SECONDS


def test_scans_of_thumbnails_and_of_later_images_do_not_count() -> None:
    thumbnail = several(jpeg(progressive=True, quality=5), 30)[:60_000]
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = jpeg(progressive=True)
    assert decode_image(data[:2] + segment * 10 + data[2:]).shape == (60, 80, 3)
    assert decode_image(data + several(data, 300)).shape == (60, 80, 3), "a second picture, as MPO files have"


def test_the_service_rejects_it_with_413() -> None:
    pytest.importorskip("fastapi")
    from service_makers import Painted, encoded, running, scene

    from service.app import build_app

    with running(build_app(Painted())) as service:
        started = time.process_time()  # the service runs in this process
        reply = service.ask("POST", "/detect", scan_bomb(7000, 7000, 1500))
        assert (reply.status, reply.json["code"]) == (413, "image_too_big")
        assert time.process_time() - started < 10
        assert service.ask("POST", "/detect", encoded(scene())).status == 200
