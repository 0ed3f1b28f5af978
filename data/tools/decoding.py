"""Decode every image once, in parallel, and keep the facts that checks need."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
from tqdm import tqdm

from data.pools import stopping_at_once
from data.tools.hashing import HASHED_SIZE, picture_hash
from imaging.image_io import MAX_MEGAPIXELS, decode_held, decode_image, read_header_bytes
from utils.errors import RunError
from utils.files import FileError, read_file

THUMBNAIL = 16  # side of a thumbnail, pixels
_MANY = 256  # minimum number of images for which processes are started


@dataclass(frozen=True)
class DecodedImage:
    """Result of decoding an image.

    Args:
        code: code of the fault, empty if there is none.
        what: the fault as text; `todo`: the remedy.
        digest: of the file's bytes; empty if it could not be read.
        hash: 128 bits of a perceptual hash, 0 if it could not be decoded.
        thumbnail: 16x16 grey values.
    """

    code: str = ""
    what: str = ""
    todo: str = ""
    digest: bytes = b""
    hash: tuple[int, int] = (0, 0)
    thumbnail: bytes = bytes(THUMBNAIL * THUMBNAIL)


def decode_and_hash(path: str, max_megapixels: float = MAX_MEGAPIXELS) -> DecodedImage:
    """Decode one image."""
    digest = b""
    try:
        held = [read_file(path, int(max_megapixels * 4e6))]
        digest = hashlib.blake2b(held[0], digest_size=16).digest()
        with captured_decoder_errors():  # as in `image_hashes`, so that both find the same duplicates
            is_jpeg = read_header_bytes(held[0], path, max_megapixels).kind == "jpeg"
            small = decode_image(held[0], path, max_megapixels, min_size=HASHED_SIZE) if is_jpeg else None
        with captured_decoder_errors() as complaints:
            image = decode_held(held, path, max_megapixels)
    except FileError as error:
        code = "missing_image" if error.code == "missing_file" else error.code  # removed since the index was read
        return DecodedImage(code, error.what, error.todo, digest)
    first, second = (int(part) for part in picture_hash(image if small is None else small))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).tobytes()
    facts = DecodedImage(digest=digest, hash=(first, second), thumbnail=thumbnail)
    if not complaints:
        return facts
    what = f"the decoder reports: {complaints[0]}"
    return replace(facts, code="damaged_image", what=what, todo="check the image, and copy it again")


def decode_images(
    paths: Sequence[str], max_megapixels: float = MAX_MEGAPIXELS, workers: int | None = None, words: str = "pictures"
) -> list[DecodedImage]:
    """Decode all images with a progress bar, in processes if there are many.

    `workers` is their number; None for one per core, at most 8.

    Raises:
        RunError: if an image makes the decoder crash.
    """
    count = min(os.cpu_count() or 1, 8) if workers is None else workers
    with tqdm(total=len(paths), desc=words, unit="img", delay=1) as bar:
        if count <= 1 or len(paths) < _MANY:
            decoded = []
            for path in paths:
                decoded.append(decode_and_hash(path, max_megapixels))
                bar.update()
            return decoded
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        with stopping_at_once(ProcessPoolExecutor(count, context, _start_worker)) as pool:
            try:
                decoded = []
                for facts in pool.map(decode_and_hash, paths, [max_megapixels] * len(paths), chunksize=16):
                    decoded.append(facts)
                    bar.update()
                return decoded
            except BrokenProcessPool:
                where = paths[len(decoded)]
                raise RunError(where, "this image, or one of the next, crashes the decoder", "remove it") from None


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent process


@contextmanager
def captured_decoder_errors() -> Iterator[list[str]]:
    """Capture stderr of C libraries: libjpeg decodes damaged data and reports it only there."""
    lines: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            if os.fstat(file.fileno()).st_size:
                file.seek(0)
                lines += file.read(2000).decode("utf-8", "replace").splitlines()
