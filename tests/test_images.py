"""Image reading: upright RGB from bytes, or a one-line error."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_makers import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imaging.image_io import (
    ImageError,
    decode_image,
    read_header,
    read_image,
    read_image_and_size,
    read_image_size,
    turn_boxes,
    write_image,
)
from utils.errors import UserError

RGB = picture(1, 60, 90)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG = encoded(Image.fromarray(RGB), "JPEG", quality=90)
PNG = encoded(Image.fromarray(RGB), "PNG")


def code_of(data: bytes, **options: float) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, "x.jpg", **options)
    assert str(caught.value).startswith("x.jpg: ") and "\n" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
def test_every_kind_of_pixel_has_the_colours_that_pillow_gives_it(kind: str, mode: str) -> None:
    try:
        data = encoded(Image.fromarray(RGB).convert(mode), kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} does not hold {mode}")
    truth = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    image = decode_image(data)
    assert image.dtype == np.uint8 and image.shape == truth.shape and image.flags["C_CONTIGUOUS"]
    assert np.abs(image - truth).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_eight_without_overflow(kind: str) -> None:
    grey = np.asarray(Image.fromarray(RGB).convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), kind)
    assert (decode_image(data) == grey[..., None]).all()


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
def test_the_values_of_a_tiff_of_32_bits_tell_their_range(scale: float) -> None:
    grey = np.asarray(Image.fromarray(RGB).convert("L"), np.float64) * scale
    for kind in (np.float32, np.int32)[: 1 if scale < 1 else 2]:
        image = decode_image(encoded(Image.fromarray(grey.astype(kind)), "TIFF"))
        assert (image == np.rint(grey / scale)[..., None]).all()


def test_alpha_is_dropped_and_the_colour_beneath_is_kept() -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 128, np.uint8)])
    assert (decode_image(encoded(Image.fromarray(rgba), "PNG")) == RGB).all()


def test_the_first_frame_of_an_animated_gif_is_read() -> None:
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (200, 50)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).shape == (20, 30, 3) and (decode_image(data) == 200).all()


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PNG)
    (tmp_path / "b.txt").write_bytes(JPEG)
    assert (read_image(tmp_path / "a.jpg") == RGB).all()
    assert read_image(tmp_path / "b.txt").shape == RGB.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_size_and_boxes_follow_the_exif_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    lying = np.zeros((60, 90, 3), np.uint8)
    lying[8:24, 16:48] = 255
    image = Image.fromarray(lying)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "x.bin"
    path.write_bytes(encoded(image, kind, exif=exif))
    upright = read_image(path)
    assert (np.abs(upright - np.asarray(ImageOps.exif_transpose(Image.open(path))).astype(int)) <= 2).all()
    assert read_image_size(path) == upright.shape[:2] == ((90, 60) if orientation >= 5 else (60, 90))
    ys, xs = np.nonzero(upright[..., 0] > 128)
    box = turn_boxes(np.array([[16, 8, 48, 24]]), orientation, 60, 90)[0]
    assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_a_large_jpeg_is_decoded_at_a_reduced_size_that_is_large_enough(tmp_path: Path) -> None:
    write_image(tmp_path / "big.jpg", picture(3, 600, 801))
    image, size = read_image_and_size(tmp_path / "big.jpg", min_size=(150, 200))
    assert size == (600, 801) and image.shape == (150, 201, 3)
    assert read_image(tmp_path / "big.jpg", min_size=(151, 200)).shape == (300, 401, 3)
    assert read_image(tmp_path / "big.jpg", min_size=(600, 801)).shape == (600, 801, 3)
    data = (tmp_path / "big.jpg").read_bytes()
    assert [decode_image(data, reduce=r).shape[0] for r in (1, 2, 4, 8)] == [600, 300, 150, 75]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_truncated_image_is_rejected_even_if_most_of_it_can_be_decoded(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(RGB), kind)
    assert code_of(data[: int(len(data) * share)]) in ("truncated_image", "corrupt_image")


def test_a_jpeg_truncated_after_its_thumbnail_is_rejected_despite_the_thumbnails_end_marker() -> None:
    thumbnail = encoded(Image.fromarray(RGB).resize((30, 20)), "JPEG")
    segment = b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    whole = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]
    assert decode_image(whole).shape == RGB.shape
    assert code_of(whole[: len(whole) // 2 + len(segment) // 2]) == "truncated_image"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"<!DOCTYPE html><html>404</html>", "not_an_image"),
        (b"\n <html><body>", "not_an_image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not_an_image"),
        (b"hello", "not_an_image"),
        (bytes(1000), "not_an_image"),
        (JPEG[:2], "not_an_image"),
        (PNG[:20], "truncated_image"),
        (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "corrupt_image"),
    ],
)
def test_a_file_that_is_not_an_image_is_rejected_with_the_reason(data: bytes, code: str) -> None:
    assert code_of(data) == code


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def test_an_image_that_claims_too_much_is_rejected_before_it_is_decoded() -> None:
    assert code_of(png_that_claims(30000, 30000)) == "image_too_big"
    assert code_of(png_that_claims(0, 30)) == "corrupt_image"
    start = JPEG.index(b"\xff\xc0") + 5
    assert code_of(JPEG[:start] + struct.pack(">HH", 30000, 30000) + JPEG[start + 4 :]) == "image_too_big"
    for kind in ("BMP", "GIF", "WEBP", "TIFF"):
        assert code_of(encoded(Image.fromarray(RGB), kind), max_megapixels=0.005) == "image_too_big"
    assert decode_image(JPEG, max_megapixels=0.0054).shape == RGB.shape


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    codes = {}
    for name in ("pipe.jpg", "folder.jpg", "broken.jpg", "loop.jpg", "absent.jpg", "nul\0.jpg"):
        for read in (read_image, read_header):
            with pytest.raises(ImageError) as caught:
                read(tmp_path / name)
            codes[name] = caught.value.code
    assert list(codes.values()) == ["not_a_file"] * 2 + ["missing_file"] * 3 + ["unreadable_file"]


def test_a_socket_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
        with pytest.raises(ImageError) as caught:
            read_image("s.jpg")
    assert caught.value.code == "not_a_file"


@pytest.mark.parametrize(
    "name", ["a b.jpg", "Käse 猫.jpg", "new\nline.jpg", "🐱.PNG", os.fsdecode(b"\xff\xfe.jpg"), "a.1.jpg"]
)
def test_any_file_name_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    try:
        write_image(tmp_path / name, RGB)
    except OSError:
        pytest.skip("this file system refuses the name")
    assert read_image(tmp_path / name).shape == RGB.shape
    assert len(list(tmp_path.iterdir())) == 1


def test_a_png_is_read_as_it_was_written_and_an_unknown_suffix_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", RGB)
    assert (read_image(tmp_path / "a.png") == RGB).all()
    for name in ("a", "a.xyz", "a.jpg.exe"):
        with pytest.raises(UserError, match="suffix"):
            write_image(tmp_path / name, RGB)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_image_error_can_be_sent_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(ImageError("empty_file", "a.jpg", "is empty", "copy it")))
    assert (error.code, str(error)) == ("empty_file", "a.jpg: is empty; copy it")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]), st.data())
def test_mutated_bytes_give_an_image_or_an_image_error(kind: str, data: st.DataObject) -> None:
    original = bytearray(encoded(Image.fromarray(RGB[:24, :24]), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(original), max_megapixels=1)
    except ImageError:
        return
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
