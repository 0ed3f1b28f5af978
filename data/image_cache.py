"""Cache of decoded, resized images in shared memory or one file, shared by all loader workers."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import sys
import weakref
import zlib
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.augment import Photo
from data.index import DatasetIndex
from utils import cgroup
from utils.errors import UserError

MODES = ("none", "ram", "disk")
KEEP_FREE = 1 << 30  # bytes of memory or disk that the cache leaves free
_VERSION = 1
_STAMP = 4  # bytes per image before the image data: 0, or a checksum of the cached image


class _Block(shared_memory.SharedMemory):
    """Shared memory that closes without error while an array still uses it; the system frees it with the process."""

    def __del__(self) -> None:
        with contextlib.suppress(BufferError):
            super().__del__()


class ImageCache:
    """A slot for every image of an index, filled when any worker first reads the image.

    An image is stored no larger than `long_side`, and always used as stored, so that all epochs see the same pixels.
    An image without a stated size, or whose file has another size, is not kept, but read each time.

    Args:
        index: the images.
        long_side: pixels of the longer side of a kept image, at most: the input's size, or larger for large scales.
        mode: `ram` (shared memory, freed when the process ends; each process of a distributed run has its own), `disk`
            (a file that the next run finds again, one for all processes of a machine).
        folder: folder of the file of `disk`; never a folder of data.

    Raises:
        UserError: if it does not fit; states the required and available size.
    """

    def __init__(self, index: DatasetIndex, long_side: int, mode: str = "ram", folder: Path | None = None) -> None:
        if mode not in MODES[1:]:
            raise ValueError(f"cache mode {mode!r}: choose from {', '.join(MODES)}")
        self.long_side, self.mode = long_side, mode
        self.sizes = kept_sizes(index.sizes, long_side)
        self.originals = index.sizes.astype(np.int64)
        self.starts = _STAMP * len(index) + np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])
        self.num_bytes = max(int(self.starts[-1]), 1)
        self._block: Any = None
        self._where: Any = None  # the block while it is being made, then its name; or the file
        if mode == "ram":
            self._where = _create_memory(self.num_bytes)
        else:
            if folder is None:
                raise ValueError("a cache on disk needs a folder")
            self._where = _create_file(Path(folder), f"{_fingerprint(index, long_side)}.images", self.num_bytes)
        self._attach()

    def read(self, i: int, decode: Callable[[int, tuple[int, int] | None], Photo]) -> Photo:
        """Image i as stored; `decode(i, min_size)` reads its file if it is not cached yet."""
        height, width = self.sizes[i].tolist()
        if not height:
            return decode(i, (self.long_side, self.long_side))
        kept = self._view(i, height, width)
        if not self._is_whole(i, kept):
            photo = decode(i, (height, width))
            if [photo.height, photo.width] != self.originals[i].tolist():
                return photo
            image = photo.image
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            kept[:] = image
            self._stamps[i] = _checksum(image)  # last: a stamp means a complete image; two writers write the same
        original_height, original_width = self.originals[i].tolist()
        return Photo(kept, original_height, original_width, width / original_width, height / original_height)

    def close(self) -> None:
        """Free the memory (`ram`) or leave the file for the next run (`disk`)."""
        self._bytes = self._stamps = np.zeros(0, np.uint8)
        if self.mode == "ram" and self._block is not None:
            self._finalizer()

    def __getstate__(self) -> dict[str, Any]:
        """State sent to a spawned worker: the block's name, not its bytes."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_bytes", "_stamps", "_block", "_finalizer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach(owner=False)

    def _attach(self, owner: bool = True) -> None:
        if self.mode == "disk":
            self._bytes = np.memmap(self._where, np.uint8, "r+", shape=(self.num_bytes,))
        else:
            self._block = self._where if owner else _Block(self._where)
            self._bytes = np.frombuffer(self._block.buf, np.uint8, self.num_bytes)
            if owner:
                self._where = self._block.name
                self._finalizer = weakref.finalize(self, _free, self._block, os.getpid())
        self._stamps = self._bytes[: _STAMP * len(self.sizes)].view(np.uint32)

    def _is_whole(self, i: int, kept: np.ndarray) -> bool:
        """Whether an image is cached; on disk, a power failure can leave the stamp without the pixels."""
        stamp = int(self._stamps[i])
        return stamp != 0 and (self.mode == "ram" or stamp == _checksum(kept))

    def _view(self, i: int, height: int, width: int) -> np.ndarray:
        start = self.starts[i]
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)


def build_image_cache(
    index: DatasetIndex, input_size: tuple[int, int], mode: str, folder: Path | None = None, scale: float = 1.0
) -> ImageCache | None:
    """Build the cache for `none`, `ram` or `disk`; cached images are at most `scale` times the input's longer side."""
    return None if mode == "none" else ImageCache(index, math.ceil(max(input_size) * scale), mode, folder)


def kept_sizes(sizes: np.ndarray, long_side: int) -> np.ndarray:
    """(I, 2) (height, width) of the kept images: never enlarged; 0 where the size is not known."""
    sizes = sizes.astype(np.float64)
    longest = sizes.max(1, initial=0)
    factor = np.minimum(long_side / np.maximum(longest, 1), 1)[:, None]
    kept = np.maximum(np.round(sizes * factor), 1).astype(np.int64)
    kept[(sizes <= 0).any(1)] = 0
    return kept


def cache_bytes(index: DatasetIndex, input_size: tuple[int, int], scale: float = 1.0) -> int:
    """Size of the cache of `build_image_cache`."""
    return int(kept_sizes(index.sizes, math.ceil(max(input_size) * scale)).prod(1).sum() * 3 + _STAMP * len(index))


def free_memory(shm: str = "/dev/shm") -> int:
    """Bytes that a cache in shared memory may take: of the machine, of the container, and of /dev/shm."""
    free = available_memory()
    if os.path.isdir(shm):  # a container's is often 64 MB, and writing beyond it kills the process
        free = min(free, shutil.disk_usage(shm).free)
    return free


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory available without swapping, of the machine and the container; a very large number if unknown."""
    free = cgroup.free_memory(root)
    free = sys.maxsize if free is None else free
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = min(free, 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    return free


def _create_memory(num_bytes: int) -> shared_memory.SharedMemory:
    todo = "use --cache disk, a smaller input, or a container with more --shm-size"
    _check_fits("ram", num_bytes, free_memory(), todo)
    try:
        return _Block(create=True, size=num_bytes)
    except OSError as error:  # a read-only /dev/shm
        raise UserError("--cache ram", f"shared memory cannot be used: {error.strerror}", "use --cache disk") from error


def _create_file(folder: Path, name: str, num_bytes: int) -> str:
    """Create the file of this fingerprint with all its space reserved: a full disk under a mapping kills processes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.exists() and path.stat().st_size == num_bytes:
        return str(path)
    _check_fits("disk", num_bytes, shutil.disk_usage(folder).free, "free some space or use another folder")
    beside = path.with_name(f"{name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            file.truncate(num_bytes)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return str(path)


def _check_fits(mode: str, needed: int, free: int, todo: str) -> None:
    if needed + KEEP_FREE > free:
        what = f"{mode} needs {needed / 1e9:.2f} GB and {KEEP_FREE / 1e9:.2f} GB reserve; {free / 1e9:.2f} GB are free"
        raise UserError("--cache", what, todo)


def _free(block: shared_memory.SharedMemory, owner: int) -> None:
    """Unlink the block; forked workers inherit this call, but must not unlink it."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(FileNotFoundError):
        block.unlink()
    with contextlib.suppress(BufferError):
        block.close()


def _checksum(image: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data) or 1


def _fingerprint(index: DatasetIndex, long_side: int) -> str:
    """Changes with any path, size or time of the image files, and with the stored sizes."""
    digest = hashlib.sha256(f"{_VERSION} {long_side} {len(index)}".encode())
    digest.update(index.path_bytes.tobytes())
    digest.update(index.path_offsets.tobytes())
    digest.update(index.sizes.tobytes())
    for i in range(len(index)):
        with contextlib.suppress(OSError):
            state = os.stat(index.path(i))
            digest.update(f"{state.st_size} {state.st_mtime_ns};".encode())
    return digest.hexdigest()[:24]
