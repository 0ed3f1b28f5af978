"""Resolve the sources of the command line to lists of images, videos and streams, and of errors."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.skips import Skip
from data.walk import walk_files
from imaging.image_io import (
    IMAGE_SUFFIXES,
    MinSize,
    decode_image_and_size,
    decoded_bytes,
    read_header_bytes,
    read_image_and_size,
    read_start,
)
from prediction.video import VIDEO_SUFFIXES, LiveReader, VideoReader, is_video, is_video_content
from utils.download import BrokenOffError, SlowError, TooLargeError, open_url, read_chunks
from utils.errors import UserError, printable
from utils.files import naming_errors
from utils.output_rules import shortened_name

LIST_SUFFIXES = (".txt", ".lst")
LIST_BYTES = 64 << 20  # more than a list of a million paths needs
DOWNLOAD_BYTES = 4 << 30
IMAGE_BYTES = 400 << 20
IMAGE_SECONDS = 120.0  # time limit to download an image
HEAD_BYTES = 16
NAME_BYTES = 150  # of an output name; suffixes add up to about 20 bytes; file systems allow 255
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "mms")
STREAM_TYPES = ("multipart/x-mixed-replace", "application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl")
_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One image, video or stream.

    Args:
        kind: `image`, `video` or `stream`.
        name: the path or address given by the user.
        path: the file; None for an image in memory and for streams.
        data: the encoded bytes of an image that is not a file.
        address: address of a stream, or the number of a webcam.
    """

    kind: str
    name: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    address: int | str | None = None

    @property
    def file_name(self) -> str:
        """The last part of its name, as a valid file name."""
        if self.kind == "stream" and isinstance(self.address, int):
            return f"webcam{self.address}"
        text = urllib.parse.urlsplit(self.name).path if _ADDRESS.match(self.name) else self.name
        text = os.path.basename(text.rstrip("/\\")) or urllib.parse.urlsplit(self.name).netloc or "source"
        text = printable(text).encode("utf-8", "backslashreplace").decode()
        text = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", text).lstrip(".")
        return shortened_name(text, NAME_BYTES) or "source"

    def read_image(self) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB. Raises `ImageError` (a UserError)."""
        return self.read_image_and_size()[0]

    def read_image_and_size(self, min_size: MinSize | None = None) -> tuple[np.ndarray, tuple[int, int]]:
        """The image and its full (height, width); see `imaging.image_io.read_image_and_size`."""
        if self.data is not None:
            return decode_image_and_size(self.data, self.name, min_size=min_size)
        assert self.path is not None
        return read_image_and_size(self.path, min_size=min_size)

    def decoded_bytes(self, min_size: MinSize | None = None) -> int:
        """Memory of the decoded image in bytes; 0 if its header cannot be read (`read_image` then raises the error)."""
        try:
            header = read_header_bytes(self.data) if self.data is not None else read_start(self.path or "")
        except UserError:
            return 0
        return decoded_bytes(header, min_size)

    def open_video(self, every: int = 1) -> VideoReader | LiveReader:
        """Open a video or stream; of a file only every N-th frame is read. Raises UserError."""
        if self.kind == "stream":
            assert self.address is not None
            return LiveReader(self.address)
        assert self.path is not None
        return VideoReader(self.path, every)


def list_sources(
    names: Sequence[str],
    recursive: bool = False,
    stdin: BinaryIO | None = None,
    download_folder: Path | None = None,
) -> tuple[list[Source], list[Skip]]:
    """Resolve names to sources, in order, and to errors for those that were not found or not fetched.

    Args:
        names: files, folders, globs, .txt lists of names, `-`, http(s) addresses, webcam numbers, stream addresses.
        recursive: search subfolders too.
        stdin: the input of `-`: the bytes of one image, or a list of names.
        download_folder: folder for videos downloaded over http(s); a temporary folder if None.
    """
    finder = _Finder(recursive, stdin or sys.stdin.buffer, download_folder)
    for name in names:
        finder.find(name)
    return finder.sources, finder.skips


class _Finder:
    def __init__(self, recursive: bool, stdin: BinaryIO, download_folder: Path | None) -> None:
        self.recursive, self.stdin, self.download_folder = recursive, stdin, download_folder
        self.sources: list[Source] = []
        self.skips: list[Skip] = []

    def find(self, name: str, base: Path | None = None) -> None:
        """Add the sources of `name`; `base` is the folder of the list that contains it."""
        scheme = _ADDRESS.match(name)
        if name == "-" and base is None:
            self._stdin()
        elif scheme and scheme[1].lower() in ("http", "https"):
            self._address(name)
        elif scheme and scheme[1].lower() in STREAM_SCHEMES:
            self.sources.append(Source("stream", name, address=name))
        elif scheme and scheme[1].lower() == "file":
            self.find(urllib.request.url2pathname(urllib.parse.urlsplit(name).path))
        elif re.fullmatch(r"[0-9]{1,2}", name) and not os.path.lexists(name):
            self.sources.append(Source("stream", f"webcam {name}", address=int(name)))
        else:
            self._path(name, base)

    def _path(self, name: str, base: Path | None) -> None:
        path = Path(name).expanduser() if name.startswith("~") else Path(name)
        if base is not None and not path.is_absolute() and not os.path.lexists(path):
            path = base / path
        if "\0" in name:
            self._skip("missing_file", name, "contains a zero byte", "check the list")
        elif os.path.lexists(path):
            self._existing(path, listed=base is not None)
        elif glob.has_magic(name):
            found = sorted(glob.glob(str(path), recursive=True))
            for each in found:
                self._existing(Path(each), listed=True, quiet=not Path(each).suffix)
            if not found:
                self._skip("missing_file", name, "matches no file", "check the pattern, and quote it")
        else:
            self._skip("missing_file", path, "does not exist", "check the name")

    def _existing(self, path: Path, listed: bool = False, quiet: bool = False) -> None:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            what = "is a broken link" if path.is_symlink() else error.strerror or str(error)
            return self._skip("missing_file", path, what, "check the name")
        if stat.S_ISDIR(mode):
            if not (listed and quiet):
                self._folder(path)
        elif stat.S_ISCHR(mode) and re.fullmatch(r"/dev/video\d+", str(path)):
            self.sources.append(Source("stream", str(path), address=int(re.findall(r"\d+$", str(path))[0])))
        elif not stat.S_ISREG(mode):
            self._skip("not_a_file", path, "is not a regular file or folder", "give an image, video or folder")
        elif path.suffix.lower() in LIST_SUFFIXES and not listed:
            self._list(path)
        else:
            kind = "video" if path.suffix.lower() not in IMAGE_SUFFIXES and is_video(path) else "image"
            self.sources.append(Source(kind, str(path), path))

    def _folder(self, folder: Path) -> None:
        paths = list_media(folder, self.recursive, self._unreadable)
        for path in paths:
            self._existing(path, listed=True)
        with contextlib.suppress(OSError):  # already reported
            for path in [] if self.recursive else sorted(folder.iterdir()):
                if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and path.is_dir():
                    self._skip(
                        "not_a_file", path, "is a folder, not an image", "give it as a source, or add --recursive"
                    )
        if not paths:
            todo = "add --recursive to search its subfolders" if not self.recursive else "check the folder"
            self._skip("no_pictures", folder, "contains no images or videos", todo)

    def _unreadable(self, error: OSError) -> None:
        self._skip("unreadable_folder", error.filename, error.strerror or str(error), "check its permissions")

    def _list(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                data = file.read(LIST_BYTES + 1)
        except OSError as error:
            return self._skip("unreadable_file", path, error.strerror or str(error), "check its permissions")
        self._lines(data, path, path.parent)

    def _lines(self, data: bytes, where: object, base: Path) -> None:
        if len(data) > LIST_BYTES or b"\0" in data:
            return self._skip("bad_list", where, "is not a list of names, one per line", "give a text file")
        names = [os.fsdecode(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").splitlines()]
        names = [name for name in names if name and not name.startswith("#")]
        for name in names:
            self.find(name, base)
        if not names:
            self._skip("bad_list", where, "lists no image or video", "write one name per line")

    def _stdin(self) -> None:
        data = self.stdin.read(IMAGE_BYTES + 1)
        if not data.strip():
            self._skip("empty_file", "stdin", "is empty", "pipe an image, or a list of names, into it")
        elif len(data) <= IMAGE_BYTES and _is_binary(data):
            self.sources.append(Source("image", "stdin", data=data))
        else:
            self._lines(data, "stdin", Path())

    def _address(self, address: str) -> None:
        try:
            with open_url(address) as response:
                content = response.headers.get_content_type()
                path = urllib.parse.urlsplit(address).path
                if content in STREAM_TYPES or path.lower().endswith((".m3u8", ".mpd")):
                    self.sources.append(Source("stream", address, address=address))
                    return
                head, chunks = b"", read_chunks(response, DOWNLOAD_BYTES)
                while len(head) < HEAD_BYTES and (chunk := next(chunks, b"")):
                    head += chunk
                if content.startswith("video/") or is_video_content(head[:HEAD_BYTES]):
                    self._fetch_video(address, itertools.chain([head], chunks))
                    return
                deadline = time.monotonic() + IMAGE_SECONDS
                parts, size = [head], len(head)
                for chunk in chunks:
                    parts.append(chunk)
                    size += len(chunk)
                    if size > IMAGE_BYTES or time.monotonic() > deadline:
                        limit = f"larger than {IMAGE_BYTES >> 20} MB, or slower than {IMAGE_SECONDS:g} s"
                        raise UserError(address, f"is {limit}", "download it manually")
                self.sources.append(Source("image", address, data=b"".join(parts)))
        except UserError as error:
            self._skip("download", error.where, error.what, error.todo)
        except urllib.error.HTTPError as error:
            self._skip("download", address, f"the server answered {error.code} {error.reason}", "check the address")
        except BrokenOffError as error:
            self._skip("download", address, str(error), "try again")
        except (SlowError, TooLargeError) as error:
            self._skip("download", address, str(error), "download it manually")
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            self._skip("download", address, f"cannot be downloaded ({reason})", "check the address and the network")

    def _fetch_video(self, address: str, chunks: Iterator[bytes]) -> None:
        if self.download_folder is None:
            self.download_folder = Path(tempfile.mkdtemp(prefix="predict-"))
        suffix = Path(urllib.parse.urlsplit(address).path).suffix.lower()
        suffix = suffix if suffix in VIDEO_SUFFIXES else ".mp4"
        path = self.download_folder / f"download-{len(self.sources)}{suffix}"
        with open(path, "wb", buffering=0) as file:
            for chunk in chunks:
                with naming_errors(path):
                    file.write(chunk)
        self.sources.append(Source("video", address, path))

    def _skip(self, code: str, where: object, what: str, todo: str) -> None:
        self.skips.append(Skip("image", code, str(where), what, todo))


def check_cameras(names: Sequence[str]) -> None:
    """Check that the webcams exist, before the model is loaded. Raises UserError.

    Only Linux reports this without opening the camera.
    """
    if sys.platform != "linux":
        return
    for name in names:
        if re.fullmatch(r"[0-9]{1,2}", name) and not os.path.lexists(name) and not os.path.exists(f"/dev/video{name}"):
            there = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"
            raise UserError(
                f"webcam {name}", f"there is no /dev/video{name} (cameras: {there})", "connect it, or give a file"
            )


def list_media(folder: Path, recursive: bool = False, on_error: Callable[[OSError], None] | None = None) -> list[Path]:
    """Images and videos in a folder, by suffix, sorted by name; hidden files are skipped.

    Symbolic links to folders are followed; each folder is visited once.
    """
    files, _ = walk_files(folder, on_error=on_error, recursive=recursive)
    return [Path(path) for path in files if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]


def unique_names(sources: Sequence[Source], suffix_of: Callable[[Source], str]) -> Iterator[tuple[str, str]]:
    """A unique output name for each source, and the name of its drawn image or video.

    `a.jpg` gives `a`; `a.png` beside it `a.png`; an `a.jpg` from another folder `a-2`. Case is ignored.

    Args:
        sources: the sources, in order.
        suffix_of: returns the suffix of the drawn image or video of a source.
    """
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    for source in sources:
        suffix = suffix_of(source)
        name = source.file_name
        stem = name if source.kind == "stream" else os.path.splitext(name)[0] or name
        counter = numbers.setdefault(stem.lower(), itertools.count(2))  # continues after the last number of this name
        for key in itertools.chain((stem, name), (f"{stem}-{number}" for number in counter)):
            drawn = key if key.lower().endswith(suffix) else key + suffix
            if not {key.lower(), drawn.lower()} & taken:
                break
        taken |= {key.lower(), drawn.lower()}
        yield key, drawn


def _is_binary(data: bytes) -> bool:
    """Whether bytes are an image rather than a list of names."""
    head = data[:1024]
    return b"\0" in head or head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"P5", b"P6"))
