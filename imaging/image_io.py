"""Read images of all common formats as upright RGB, with one-line errors, and write images.

Decoders only get bytes that have been checked. OpenCV itself ends the process for a name that is not UTF-8, waits
forever on a pipe, decodes a truncated JPEG without an error, and accepts a header of 30000x30000 pixels.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, features

from utils.errors import UserError
from utils.files import FileError, StrPath, page_or_pointer, read_ends, read_file, write_file

MAX_MEGAPIXELS = 100.0
_JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
_OTHER_SUFFIXES = "avif bmp dib gif hdr heic heif hif jp2 mpo pbm pgm png pnm ppm ras sr tif tiff webp"
IMAGE_SUFFIXES = _JPEG_SUFFIXES | {f".{name}" for name in _OTHER_SUFFIXES.split()}
_PILLOW_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "SUN", "TIFF", "WEBP")
_ENCODED_AS = {".jfif": ".jpg", ".mpo": ".jpg"}  # suffixes that OpenCV does not know
_HEADER_BYTES = 1 << 16
_END_BYTES = 64
_BYTES_PER_PIXEL = 4  # maximum file size per pixel of the largest allowed image
_STRIP_PIXELS = 1 << 20
# Fraction of the limit for decoders that need more than 10 bytes per pixel, to stay below 1 GB of memory. Measured:
# JPEG 2000 19, animated WebP 16, progressive CMYK 12, AVIF 11 bytes (docs/RELIABILITY.md).
_SHARE = {"jpeg2000": 0.5, "animation": 0.5, "progressive": 0.75, "avif": 0.8, "heif": 0.8}
# A progressive JPEG is decoded completely for each of its scans; 174 kB can contain thousands. Encoders write about 10.
MAX_SCANS = 100
MAX_SCANNED_MEGAPIXELS = 2000.0  # pixels x scans: about a second of decoding above that of the pixels
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {  # OpenCV's flags for reduced decoding, in RGB instead of BGR
    1: _RGB,
    **{n: _RGB | (getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") & ~cv2.IMREAD_COLOR) for n in (2, 4, 8)},
}

# minimum (height, width) that a caller needs, or a function that returns it for an image of (height, width)
MinSize = tuple[int, int] | Callable[[int, int], tuple[int, int]]

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before any decoding, and is adjustable


class ImageError(FileError):
    """An image that cannot be read; `code` is one of `docs` of `dataset.py check`, e.g. `truncated_image`."""


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image, read before decoding.

    Args:
        height: rows as stored, pixels.
        width: columns as stored, pixels.
        orientation: EXIF orientation, 1 to 8; from 5 on the upright image has rows and columns exchanged.
        kind: `jpeg` and `webp` (OpenCV decodes them like Pillow, but faster), `hdr` (only OpenCV reads it), else
            Pillow's name of the format in lower case, or `other`.
        frame: offset of the frame of a JPEG, after all thumbnails; bytes.
    """

    height: int
    width: int
    orientation: int = 1
    kind: str = "other"
    frame: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_image(path: StrPath, max_megapixels: float = MAX_MEGAPIXELS, min_size: MinSize | None = None) -> np.ndarray:
    """Read an image: (H, W, 3) uint8, RGB, upright.

    Args:
        path: the file; its format is determined by its content, not by its suffix.
        max_megapixels: reject an image with more pixels in its header, before decoding it.
        min_size: minimum (height, width) that the caller needs, or a function that returns it for the image's size
            (`Letterbox.decoded_size`). A JPEG 2, 4 or 8 times larger on both sides is decoded at that fraction, which
            is faster and takes less memory; None decodes every pixel.

    Raises:
        ImageError: with the reason in `code` and in words.
    """
    return read_image_and_size(path, max_megapixels, min_size)[0]


def read_image_and_size(
    path: StrPath, max_megapixels: float = MAX_MEGAPIXELS, min_size: MinSize | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Like `read_image`, but also returns the (height, width) of the full-size image, for boxes."""
    held, where = [_read(path, max_megapixels)], os.fsdecode(path)
    header = read_header_bytes(held[0], where, max_megapixels)
    return _decode(held, header, where, _reduction(header, min_size)), header.size


def decode_image(
    data: bytes,
    where: object = "image",
    max_megapixels: float = MAX_MEGAPIXELS,
    reduce: int = 1,
    min_size: MinSize | None = None,
) -> np.ndarray:
    """Decode the bytes of an image: (H, W, 3) uint8, RGB, upright; see `read_image`.

    Args:
        data: the file's content.
        where: name of the image in errors.
        reduce: 1, 2, 4 or 8: a JPEG is decoded at 1 / reduce of its size (rounded up), other formats at full size. With
            1, `min_size` is used.
    """
    header = read_header_bytes(data, where, max_megapixels)
    return _decode([data], header, where, reduce if reduce != 1 else _reduction(header, min_size))


def decode_image_and_size(
    data: bytes, where: object = "image", max_megapixels: float = MAX_MEGAPIXELS, min_size: MinSize | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Like `decode_image`, but also returns the (height, width) of the full-size image."""
    header = read_header_bytes(data, where, max_megapixels)
    return _decode([data], header, where, _reduction(header, min_size)), header.size


def decode_held(held: list[bytes], where: object = "image", max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Like `decode_image`, for the only element of `held`, which may be removed during decoding.

    A raw TIFF is as large as its decoded image. Without other references, its bytes are freed early.
    """
    return _decode(held, read_header_bytes(held[0], where, max_megapixels), where, 1)


def rgb_of_pillow(image: Image.Image, where: object = "image") -> np.ndarray:
    """Convert a Pillow image to (H, W, 3) uint8 RGB, upright by its EXIF orientation, like `read_image` of its file.

    Raises:
        ImageError: if it has no pixels, or its file cannot be decoded.
    """
    if not all(image.size):
        raise ImageError("not_an_image", where, f"a PIL image of size {image.size} has no pixels", "give another image")
    try:
        with _without_warnings():
            image.load()
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError) as error:
        what = f"the PIL image cannot be decoded ({str(error)[:80]})"
        raise ImageError("corrupt_image", where, what, "use another copy") from None
    return _turn(_to_rgb(image), orientation if orientation in range(1, 9) else 1)


def read_image_size(path: StrPath, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone."""
    return read_header(path, max_megapixels).size


def read_header(path: StrPath, max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """Read the header of an image, from the beginning and the end of the file if that is enough.

    Raises:
        ImageError: if it is not an image, is truncated, or has more than `max_megapixels`.
    """
    where, header = os.fsdecode(path), None
    with _image_errors():
        start, end, size = read_ends(path, int(max_megapixels * 1e6 * _BYTES_PER_PIXEL), _HEADER_BYTES, _END_BYTES)
    if start[:3] == _JPEG_MAGIC and size > len(start):
        header = _jpeg_header(start)  # for nearly all files, the first bytes contain all of it
        if header is not None and not _has_one_scan(start, header.frame):
            header = None
    held = [start if header is not None or size <= len(start) else _read(path, max_megapixels)]
    header = _checked(header or read_header_bytes(held[0], where, max_megapixels), where, max_megapixels)
    if not _looks_whole(header, start, end, size):
        held = held if len(held[0]) == size else [_read(path, max_megapixels)]
        if header.kind not in ("jpeg", "progressive") or not _has_end(held[0], header):
            _decode(held, header, where, 1)  # raises if it is truncated
    return header


def read_start(path: StrPath, max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """`read_header` without a check of the end of the file: enough to plan memory, but not to validate the file."""
    start = read_ends(path, int(max_megapixels * 1e6 * _BYTES_PER_PIXEL), _HEADER_BYTES, 0)[0]
    if start[:3] == _JPEG_MAGIC and (header := _jpeg_header(start)) is not None:
        return _checked(header, os.fsdecode(path), max_megapixels)
    return read_header_bytes(start, os.fsdecode(path), max_megapixels)


def decoded_bytes(header: ImageHeader, min_size: MinSize | None = None) -> int:
    """Memory of the decoded image, (H, W, 3) uint8."""
    return 3 * header.height * header.width // _reduction(header, min_size) ** 2


def read_header_bytes(data: bytes, where: object = "image", max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """The header of an image in memory; see `read_header`."""
    if not data:
        raise ImageError("empty_file", where, "is empty", "copy or download it again")
    header = None
    if data[:3] == _JPEG_MAGIC:
        header = _jpeg_header(data)
    elif data[:8] == _PNG_MAGIC:
        header = _png_header(data, where)
    elif data[:2] == b"#?":
        header = _hdr_header(data)
    header = _checked(header or _pillow_header(data, where), where, max_megapixels)
    if data[:3] == _JPEG_MAGIC:
        _check_scans(data, header, where)
    return header


def write_image(path: StrPath, image: np.ndarray, quality: int = 95) -> None:
    """Write an RGB (H, W, 3) or grey (H, W) uint8 image in the format of the path's suffix, atomically.

    Raises:
        UserError: for an unsupported suffix.
        OSError: if the folder does not exist or the disk is full.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    try:
        data = encode_image(image, suffix, quality)
    except ValueError:
        what = f"images cannot be written with the suffix {suffix!r}"
        raise UserError(path, what, "use .jpg or .png") from None
    write_file(path, data)


def encode_image(image: np.ndarray, suffix: str = ".jpg", quality: int = 95) -> bytes:
    """The bytes of an image file of that suffix; see `write_image`. Raises ValueError for another suffix."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in _JPEG_SUFFIXES else []
    options = [cv2.IMWRITE_WEBP_QUALITY, quality] if suffix == ".webp" else options
    try:
        done, encoded = cv2.imencode(_ENCODED_AS.get(suffix, suffix), bgr, options)
    except cv2.error:
        done = False
    if not done or suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"images cannot be written as {suffix!r}")
    return encoded.tobytes()


# --- headers ---------------------------------------------------------------------------------------------------------

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 0x0112
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE, _PROGRESSIVE = 0xDA, 0xD9, 0xC2
_WITHOUT_LENGTH = frozenset([0x00, 0x01, *range(0xD0, 0xD9)])  # FF 00 is not a marker; it is skipped, as in libjpeg


def _jpeg_header(data: bytes) -> ImageHeader | None:
    """Size, orientation and kind of a JPEG; None if its markers do not lead to a frame."""
    orientation, position = 1, 2
    while 0 <= position < len(data) - 9:
        if data[position] != 0xFF:
            position = data.find(b"\xff", position)
            continue
        marker = data[position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        length = data[position + 2] << 8 | data[position + 3]
        if marker in _START_OF_FRAME:
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if precision != 8:
                return ImageHeader(height, width, orientation, f"{precision}-bit JPEG", position)
            kind = "jpeg" if components in (1, 3) else "other"
            kind = "progressive" if kind == "other" and marker == _PROGRESSIVE else kind
            return ImageHeader(height, width, orientation, kind, position)
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return None
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    return None


# the next marker between two segments, and in entropy-coded data, where FF is followed by 00 or a restart marker
_MARKER, _MARKER_IN_SCAN = re.compile(rb"\xff+([^\x00\xff])"), re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)


def _scans(data: bytes, frame: int) -> Iterator[int]:
    """Yield the start of each scan of a JPEG, after its marker, from the frame on."""
    position, pattern = frame, _MARKER
    while match := pattern.search(data, position):
        marker, position, pattern = match[1][0], match.end(), _MARKER
        if marker == _START_OF_SCAN:
            yield position
            pattern = _MARKER_IN_SCAN
        if marker == _END_OF_IMAGE:
            return
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")


def _has_one_scan(data: bytes, frame: int) -> bool:
    """Whether the first scan of a JPEG, if it is in `data`, contains all components."""
    first = next(_scans(data, frame), None)
    return (
        first is not None
        and data[frame + 1] in _SEQUENTIAL
        and data[first + 2 : first + 3] == data[frame + 9 : frame + 10]
    )


def _check_scans(data: bytes, header: ImageHeader, where: object) -> None:
    """Raises ImageError for a JPEG of more scans than `MAX_SCANS`, or that are too many for its number of pixels."""
    limit = int(min(MAX_SCANS, MAX_SCANNED_MEGAPIXELS * 1e6 / (header.height * header.width)))
    start = header.frame or len(_JPEG_MAGIC) - 1
    if header.frame and _has_one_scan(data, header.frame):
        return  # decoders stop after a scan that contains all components
    if data.count(b"\xff\xda", start) <= limit:  # scans of thumbnails are counted, too
        return
    if sum(1 for _ in itertools.islice(_scans(data, start), limit + 1)) <= limit:
        return
    what = f"has more than {limit} scans, the limit for {header.width}x{header.height} pixels"
    raise ImageError("image_too_big", where, what, "save it again as a baseline JPEG")


def _png_header(data: bytes, where: object) -> ImageHeader:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _truncated(data, where)
    width, height = struct.unpack_from(">II", data, 16)
    orientation, position = 1, 8
    while position + 12 <= len(data):  # eXIf may come after the pixels
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    return ImageHeader(height, width, orientation, "png")


def _hdr_header(data: bytes) -> ImageHeader | None:
    """The header of a Radiance image, which only OpenCV reads. It ends with `-Y height +X width`."""
    words = data[:4096].partition(b"\n\n")[2].split(b"\n", 1)[0].split()
    if len(words) == 4 and words[0] == b"-Y" and words[2] == b"+X" and words[1].isdigit() and words[3].isdigit():
        return ImageHeader(int(words[1][:9]), int(words[3][:9]), 1, "hdr")
    return None


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _heif_brand(data: bytes) -> str:
    """`HEIC` or `AVIF`, by the brands in the file's first box; empty for other files (ISO 23008-12)."""
    if data[4:8] != b"ftyp":
        return ""
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "HEIC" if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1")) else ""


def _formats(data: bytes) -> tuple[str, ...]:
    """The formats that Pillow may use for a file."""
    return ("HEIF",) if _heif_brand(data) == "HEIC" else _PILLOW_FORMATS


@functools.cache
def _register_heif() -> bool:
    """Register a HEIC reader in Pillow, if one of the two packages for it is installed."""
    for name in ("pi_heif", "pillow_heif"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name).register_heif_opener()
            return True
    return False


def _check_heif(data: bytes, where: object) -> None:
    """Raise ImageError for a HEIC or AVIF image that cannot be decoded here, with the package to install."""
    brand = _heif_brand(data)
    if brand == "HEIC" and not _register_heif():
        what = "is a HEIC image (Apple's format), which needs another package"
        raise ImageError("unsupported_image", where, what, "pip install pi-heif (or pillow-heif), or export it as JPEG")
    if brand == "AVIF" and not features.check("avif"):
        what = "is an AVIF image, which this version of Pillow cannot decode"
        raise ImageError("unsupported_image", where, what, "pip install 'pillow>=11.3', or convert it to JPEG")


def _pillow_header(data: bytes, where: object) -> ImageHeader:
    _check_heif(data, where)
    try:
        with _without_warnings(), Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            width, height = image.size
            # Pillow rotates a TIFF itself, and its size is that of the result
            orientation = 1 if image.format in ("TIFF", "PNG") else image.getexif().get(_ORIENTATION_TAG, 1)
            kind = (image.format or "other").lower()
            if kind == "webp" and getattr(image, "is_animated", False):
                kind = "animation"
            return ImageHeader(height, width, orientation if orientation in range(1, 9) else 1, kind)
    except Exception as error:  # on damaged files, decoders raise any exception, such as struct.error and KeyError
        raise _not_an_image(data, where, error) from None


def _exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory of an EXIF block, 1 if there is none (TIFF 6.0, section 2)."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    directory = struct.unpack_from(order + "I", exif, 4)[0]
    if directory + 2 > len(exif):
        return 1
    for entry in range(struct.unpack_from(order + "H", exif, directory)[0]):
        position = directory + 2 + 12 * entry
        if position + 12 > len(exif):
            return 1
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, position)
        if tag == _ORIENTATION_TAG:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


def _checked(header: ImageHeader, where: object, max_megapixels: float) -> ImageHeader:
    if header.height < 1 or header.width < 1:
        what = f"has {header.width}x{header.height} pixels in its header"
        raise ImageError("corrupt_image", where, what, "use another copy")
    if header.kind.endswith("-bit JPEG"):
        what = f"is a {header.kind} (from medical or scientific cameras), which cannot be decoded here"
        raise ImageError("unsupported_image", where, what, "convert it to 8 bits or to PNG")
    limit = max_megapixels * _SHARE.get(header.kind, 1.0)
    if header.height * header.width > limit * 1e6:
        what = f"has {header.width}x{header.height} pixels; the limit is {limit:g} megapixels"
        what += f" ({header.kind} needs much memory)" if header.kind in _SHARE else ""
        raise ImageError("image_too_big", where, what, "shrink it, or raise the limit if you trust it")
    return header


# --- pixels ----------------------------------------------------------------------------------------------------------


def _read(path: StrPath, max_megapixels: float) -> bytes:
    with _image_errors():
        return read_file(path, int(max_megapixels * 1e6 * _BYTES_PER_PIXEL))


@contextlib.contextmanager
def _image_errors() -> Iterator[None]:
    """Convert errors of reading a file."""
    try:
        yield
    except FileError as error:
        raise ImageError(error.code, error.where, error.what, error.todo) from None


def _reduction(header: ImageHeader, min_size: MinSize | None) -> int:
    if min_size is None or header.kind != "jpeg":
        return 1
    least = min_size(*header.size) if callable(min_size) else min_size
    times = min(header.size[0] / least[0], header.size[1] / least[1])
    return next((reduce for reduce in (8, 4, 2) if times >= reduce), 1)


def _decode(held: list[bytes], header: ImageHeader, where: object, reduce: int) -> np.ndarray:
    """Decode the bytes in `held`, which is emptied as soon as they are no longer needed."""
    data = held[0]
    if data[:8] == _PNG_MAGIC:
        _check_png(data, where)
    if not (header.kind in ("hdr", "webp", "jpeg") and _has_end(data, header)):
        # Pillow detects whether a JPEG without an end marker is complete, supports rare pixel formats, and raises
        # exceptions. OpenCV prints errors of a PNG to the terminal.
        del data
        return _turn(_decode_with_pillow(held, where), header.orientation)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce if header.kind == "jpeg" else 1])
    except cv2.error:
        image = None
    if image is None:
        raise ImageError("corrupt_image", where, "the pixels cannot be decoded", "copy or download it again")
    return _turn(image, header.orientation)


def _has_end(data: bytes, header: ImageHeader) -> bool:
    """Whether the file has the end marker of its format; always true for formats without one."""
    if header.kind in ("jpeg", "progressive"):
        return data.rfind(b"\xff\xd9") > header.frame
    return header.kind not in ("webp", "animation") or len(data) >= 8 + int.from_bytes(data[4:8], "little")


def _looks_whole(header: ImageHeader, start: bytes, end: bytes, size: int) -> bool:
    """Whether a file seems complete, by its first and last bytes; if not, it must be decoded to check it."""
    if start[:3] == _JPEG_MAGIC:
        return end.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
    if start[:8] == _PNG_MAGIC:
        return end[-8:-4] == b"IEND"
    if header.kind == "gif":
        return end.rstrip(b"\0").endswith(b";")
    if header.kind == "bmp":
        return size >= int.from_bytes(start[2:6], "little")
    if header.kind == "ppm":
        return start[:2] in (b"P5", b"P6") and size > header.height * header.width * (3 if start[:2] == b"P6" else 1)
    return header.kind not in ("webp", "animation") or size >= 8 + int.from_bytes(start[4:8], "little")


def _check_png(data: bytes, where: object) -> None:
    """Check that every chunk of a PNG is complete, with the right checksum, up to the end chunk."""
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError("corrupt_image", where, f"the checksum at byte {position} is wrong", "copy it again")
        if data[position + 4 : position + 8] == b"IEND":
            return
        position = end + 4
    raise _truncated(data, where)


def _decode_with_pillow(held: list[bytes], where: object) -> np.ndarray:
    buffer = io.BytesIO(held[0])  # shares the bytes
    try:
        with _without_warnings(), Image.open(buffer, formats=_formats(held[0])) as image:
            image.load()
            held.clear()
            buffer.close()
            return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # on damaged files, decoders raise any exception
        if held and _is_cut(held[0], error):
            raise _truncated(held[0], where) from None
        what = f"the pixels cannot be decoded ({type(error).__name__}: {str(error)[:80]})"
        raise ImageError("corrupt_image", where, what, "convert it to JPEG or PNG") from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a loaded image to (H, W, 3) uint8, without alpha, 16 bits scaled to 8; in strips, to save memory."""
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    has_32_bits = image.mode == "F" or (image.mode == "I" and image.format != "PNG")  # a PNG has at most 16
    high = image.getextrema()[1] if has_32_bits else 65535
    rows = max(_STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if image.mode.startswith("I") or image.mode == "F":
            out[top : top + rows] = _to_8_bits(np.asarray(strip), high)[..., None]
        else:
            strip = strip.convert("RGBA") if image.mode in ("RGBa", "PA", "La") else strip
            out[top : top + rows] = np.asarray(strip.convert("RGB"))
    return out


def _to_8_bits(grey: np.ndarray, high: Any) -> np.ndarray:
    """Grey values as uint8. The largest value of the image tells their range: 0 to 1 (floats), to 255 or to 65535."""
    if grey.dtype.kind != "f" and high > 255:
        return ((np.clip(grey, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
    scale = 255 if high <= 1 and grey.dtype.kind == "f" else 1 if high <= 255 else 1 / 257
    return np.clip(np.rint(np.nan_to_num(grey) * scale), 0, 255).astype(np.uint8)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate an image upright (EXIF 2.32, tag 274)."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def turn_boxes(boxes: np.ndarray, orientation: int, height: int, width: int) -> np.ndarray:
    """Convert (N, 4) xyxy boxes from pixels of the stored image of `height` x `width` to the upright image.

    `orientation` is EXIF's, 1 to 8.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    if orientation >= 5:
        x1, y1, x2, y2, height, width = y1, x1, y2, x2, width, height
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    return np.stack([x1, y1, x2, y2], axis=1)


# --- words -----------------------------------------------------------------------------------------------------------


def _truncated(data: bytes, where: object) -> ImageError:
    return ImageError("truncated_image", where, f"is truncated after {len(data)} bytes", "copy or download it again")


def _is_cut(data: bytes, error: Exception) -> bool:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return True
    message = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in message or "bytes not processed" in message


def _not_an_image(data: bytes, where: object, error: Exception) -> ImageError:
    kind = page_or_pointer(data[:512])
    if kind is not None:
        todo = "download the image itself" if kind == "web page" else "run: git lfs pull"
        return ImageError("not_an_image", where, f"is a {kind}, not an image", todo)
    if _is_cut(data, error):
        return _truncated(data, where)
    if not isinstance(error, Image.UnidentifiedImageError):
        what = f"its header cannot be read ({type(error).__name__}: {str(error)[:80]})"
        return ImageError("corrupt_image", where, what, "copy or download it again")
    if data[:3] == _JPEG_MAGIC or data[:6] in (b"GIF87a", b"GIF89a"):
        return _truncated(data, where)
    return ImageError("not_an_image", where, "is not an image in a known format", "convert it to JPEG or PNG")
