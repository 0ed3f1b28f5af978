"""Stream training images from tar shards (webdataset layout) on disk or http, for sets larger than the disk."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tarfile
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from data.augment import AugmentConfig, Photo
from data.data_options import DataOptions
from data.index import ARRAYS, DatasetIndex
from data.loader import SampleKey, Size, TrainDataset, TrainLoader, collate
from data.open import default_splits
from data.tools.new_folder import check_new_folder, new_folder
from imaging.image_io import MAX_MEGAPIXELS, decode_image, read_header_bytes
from imaging.letterbox import Letterbox
from utils.config import option, parse_options
from utils.errors import MissingExtra, RunError, UserError, require_packages, warn
from utils.files import StrPath, read_file, write_atomically
from utils.text import counted

MANIFEST, INDEX = "shards.json", "index.npz"
LAYOUT_VERSION = 1
IMAGES_PER_SHARD = 1000  # about 160 MB for COCO: few requests to an object store, and small enough to shuffle
SHUFFLED_IMAGES = 512  # compressed images in a worker's shuffle buffer: about 80 MB for COCO
MAX_IMAGE_BYTES = 256 << 20
MAX_INDEX_BYTES = 4 << 30
SHARD_SECONDS = 300.0  # without a batch, after which the workers are considered hung
HTTP_SECONDS = 60  # timeout without data
ATTEMPTS = 4  # attempts per shard, each resuming where the last failed
FIRST_WAIT = 1.0  # seconds before the second attempt, doubled each time
_ARRAYS = [name for name in ARRAYS if name not in ("areas", "box_refs", "scores")]


# ---- writing


def write_shards(index: DatasetIndex, folder: StrPath, images_per_shard: int = IMAGES_PER_SHARD, seed: int = 0) -> Path:
    """Write a split as tar shards: `00000012.jpg`, the unchanged file, and `00000012.json`, its boxes.

    The images are shuffled once here, so that every shard is a random sample. `index.npz` holds all annotations
    again, as they fit into memory, and `shards.json` gives the number of images in each shard. Unreadable images are
    skipped, with a warning.

    Raises:
        UserError: if `folder` is not empty, or no image can be read.
    """
    folder = Path(folder)
    check_new_folder("OUT", folder)
    with new_folder(folder) as partial_folder:
        _write_shards(index, partial_folder, images_per_shard, seed)
    return folder


def _write_shards(index: DatasetIndex, folder: Path, images_per_shard: int, seed: int) -> None:
    kept: list[int] = []
    shards: list[dict[str, Any]] = []
    images = _readable(index, np.random.default_rng(seed).permutation(len(index)))
    while chunk := list(itertools.islice(images, images_per_shard)):
        name = f"shard-{len(shards):06d}.tar"
        with tarfile.open(folder / name, "w") as tar:
            for i, data in chunk:
                _add_sample(tar, f"{len(kept):08d}", index, i, data)
                kept.append(i)
        shards.append({"file": name, "images": len(chunk)})
    if not kept:
        raise UserError(index.name, "has no image that can be read", "see the warnings")
    part = index.subset(np.array(kept))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: getattr(part, name) for name in _ARRAYS})
    write_atomically(folder / INDEX, buffer.getvalue())
    facts = {"version": LAYOUT_VERSION, "name": index.name, "class_names": list(index.class_names), "shards": shards}
    write_atomically(folder / MANIFEST, (json.dumps(facts, indent=1) + "\n").encode())


def _readable(index: DatasetIndex, order: Sequence[int] | np.ndarray) -> Iterator[tuple[int, bytes]]:
    for i in order:
        path = index.path(int(i))
        try:
            data = read_file(path, MAX_IMAGE_BYTES)
            read_header_bytes(data, path)
        except (UserError, OSError) as error:
            warn(path, getattr(error, "what", str(error)), "it is skipped")
            continue
        yield int(i), data


def _add_sample(tar: tarfile.TarFile, key: str, index: DatasetIndex, i: int, data: bytes) -> None:
    target = index.target(i)
    facts = {
        "image_id": target["image_id"],
        "boxes_xyxy": target["boxes"].round(3).tolist(),
        "classes": [index.class_names[label] for label in target["labels"]],
        "difficult": target["difficult"].tolist(),
        "crowd": target["crowd"].tolist(),
    }
    suffix = index.path(i).suffix.lower() or ".jpg"
    for name, content in ((key + suffix, data), (key + ".json", json.dumps(facts).encode())):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


# ---- reading


@dataclass(frozen=True)
class ShardSet:
    """Shards, their location and content.

    Args:
        location: folder or URL of `shards.json`.
        index: all annotations; image i is the i-th of the shards, one after another.
        files: names of the shards.
        counts: number of images in each.
    """

    location: str
    index: DatasetIndex
    files: tuple[str, ...]
    counts: tuple[int, ...]

    def parts(self, seed: int, epoch: int, share: int, shares: int) -> list[tuple[int, int, int]]:
        """The images of one of `shares` equal parts of an epoch, as (shard, first, end) in the epoch's order of shards.

        Parts differ by one image at most; together they have each image once. A shard may be cut between two parts.
        """
        order = np.random.default_rng([seed, epoch, 7]).permutation(len(self.files))
        total = sum(self.counts)
        begin, end = share * total // shares, (share + 1) * total // shares
        found, at = [], 0
        for shard in order.tolist():
            first, last = max(begin - at, 0), min(end - at, self.counts[shard])
            if first < last:
                found.append((shard, first, last))
            at += self.counts[shard]
        return found

    def images(self, parts: Sequence[tuple[int, int, int]]) -> list[int]:
        """Positions in the index of the images of `parts`, in their order."""
        starts = np.cumsum([0, *self.counts]).tolist()
        return [i for shard, first, end in parts for i in range(starts[shard] + first, starts[shard] + end)]

    def read_from(self, parts: Sequence[tuple[int, int, int]], place: int) -> Iterator[tuple[int, bytes]]:
        """`read` all of `parts` but their first `place` images."""
        for shard, first, end in parts:
            left_out = min(place, end - first)
            place -= left_out
            if first + left_out < end:
                yield from self.read(shard, first + left_out, end)

    def read(self, shard: int, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """(position in the index, the image's file) of images `first` to `end` of a shard, streamed.

        Raises:
            RunError: if it cannot be read in several attempts, each resuming where the last failed.
        """
        address = f"{self.location}/{self.files[shard]}"
        start = sum(self.counts[:shard])
        wait = FIRST_WAIT
        for attempt in range(ATTEMPTS):
            try:
                with open_stream(address) as stream:
                    for i, data in _samples(stream, start + first, start + end):
                        first = i - start + 1
                        yield i, data
                if first < end:
                    raise tarfile.ReadError(f"ends after {first} of {self.counts[shard]} images")
                return
            except (OSError, HTTPException, tarfile.TarError, EOFError) as error:
                if attempt == ATTEMPTS - 1:
                    what = f"cannot be read: {getattr(error, 'reason', None) or error}"
                    raise RunError(address, what, "check the shard and the network; continue with --resume") from error
                time.sleep(wait)
                wait *= 2


def open_shards(location: StrPath) -> ShardSet:
    """The shards in a folder or below an http(s) address, their annotations read.

    Raises:
        UserError: if there are none, or they were not written by `write_shards`.
    """
    place = os.fspath(location).rstrip("/").removesuffix("/" + MANIFEST)
    try:
        facts = json.loads(_fetch(f"{place}/{MANIFEST}"))
        with np.load(io.BytesIO(_fetch(f"{place}/{INDEX}")), allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in _ARRAYS}
        index = DatasetIndex(f"{facts['name']} (shards)", tuple(map(str, facts["class_names"])), **values)
        files = tuple(str(shard["file"]) for shard in facts["shards"])
        counts = tuple(int(shard["images"]) for shard in facts["shards"])
        if sum(counts) != len(index) or any(os.path.basename(name) != name for name in files):
            raise ValueError(f"{MANIFEST} and {INDEX} do not match")
    except MissingExtra:
        raise
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        what = f"contains no shards: {getattr(error, 'reason', None) or error}"
        raise UserError(place, what, "write them: python dataset.py shard DATA FOLDER") from error
    return ShardSet(place, index, files, counts)


def open_stream(address: str) -> IO[bytes]:
    """Open a file, an http(s) URL, or any other address that the library fsspec knows (s3:, gs:, sftp:, memory:).

    Raises:
        OSError: if it cannot be opened.
        MissingExtra: if fsspec, or the package that it needs for this address, is not installed.
    """
    scheme = address.partition("://")[0] if "://" in address else ""
    if not scheme:
        return open(address, "rb")
    if scheme in ("http", "https"):  # fsspec would need another package for these
        return urllib.request.urlopen(address, timeout=HTTP_SECONDS)  # noqa: S310 -- the scheme is checked
    require_packages(f"{scheme}: addresses", ["fsspec"])
    import fsspec

    try:
        return fsspec.open(address, "rb").open()
    except ImportError as error:
        if package := re.match(r"Install (\w+)", str(error)):
            raise MissingExtra(f"{scheme}: addresses", package[1]) from error
        raise


def _fetch(address: str) -> bytes:
    with open_stream(address) as stream:
        data = stream.read(MAX_INDEX_BYTES + 1)
    if len(data) > MAX_INDEX_BYTES:
        raise ValueError(f"{address} is larger than {MAX_INDEX_BYTES >> 30} GiB")
    return data


def _samples(stream: IO[bytes], first: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Images of an open tar whose keys are `first` to `end`; nothing is unpacked to disk, names are keys only."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            if not member.isfile() or suffix == "json" or not key.isdecimal() or not first <= int(key) < end:
                continue
            if member.size > MAX_IMAGE_BYTES:
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            content = tar.extractfile(member)
            data = content.read() if content is not None else b""
            if len(data) < member.size:
                raise tarfile.ReadError(f"is truncated in {member.name}")
            yield int(key), data
            if int(key) == end - 1:
                return


# ---- training


class _Window:
    """Shuffle buffer of a worker, used in place of `PhotoReader`.

    Args:
        order: the images in the order of the stream.
        stream_from: returns the images' files from a position in that order on.
        size: number of images to draw from; as many that have been drawn are kept for mosaics.

    Before `open`, images are drawn without their files, so that an epoch can be resumed in the middle without
    downloading the images before it.
    """

    def __init__(
        self, order: Sequence[int], stream_from: Callable[[int], Iterator[tuple[int, bytes]]], size: int
    ) -> None:
        self.order, self.stream_from, self.size = order, stream_from, size
        self.taken = 0
        self.stream: Iterator[tuple[int, bytes]] | None = None
        self.data: dict[int, bytes] = {}
        self.waiting: list[int] = []
        self.used: deque[int] = deque()

    def open(self) -> None:
        """Read the current images, and from here on each drawn image; once."""
        if self.stream is not None:
            return
        kept = {*self.waiting, *self.used}
        first = next((place for place in range(self.taken) if self.order[place] in kept), self.taken)
        self.stream = self.stream_from(first)
        for place in range(first, self.taken):
            data = self._fetch(self.order[place])
            if self.order[place] in kept:
                self.data[self.order[place]] = data

    def _fetch(self, i: int) -> bytes:
        assert self.stream is not None
        found, data = next(self.stream)
        assert found == i, f"image {found} instead of {i}"
        return data

    def next(self, rng: np.random.Generator) -> int:
        """An image that has not been drawn before."""
        while len(self.waiting) < self.size and self.taken < len(self.order):
            i = self.order[self.taken]
            if self.stream is not None:
                self.data[i] = self._fetch(i)
            self.taken += 1
            self.waiting.append(i)
        slot = int(rng.integers(len(self.waiting)))
        self.waiting[slot], self.waiting[-1] = self.waiting[-1], self.waiting[slot]
        chosen = self.waiting.pop()
        self.used.append(chosen)
        if len(self.used) > self.size:
            self.data.pop(self.used.popleft(), None)
        return chosen

    def partner(self, rng: np.random.Generator) -> int:
        """Any buffered image, for a mosaic."""
        i = int(rng.integers(len(self.waiting) + len(self.used)))
        return self.waiting[i] if i < len(self.waiting) else self.used[i - len(self.waiting)]

    def read(self, i: int, min_size: Size | None = None) -> Photo:
        header = read_header_bytes(self.data[i], f"image {i}", MAX_MEGAPIXELS)
        image = decode_image(self.data[i], f"image {i}", min_size=min_size)
        height, width = header.size
        return Photo.decoded(image, height, width)


class ShardStream(IterableDataset):
    """Batches of augmented images, each of the process's shards once an epoch.

    The epoch's images are cut into equal parts, one for each process and worker, so none is lost or repeated; each
    worker shuffles within a window. Batches depend on seed, epoch, and the numbers of processes and workers.
    """

    def __init__(
        self,
        shards: ShardSet,
        make: partial[TrainDataset],
        batch_size: int,
        workers: int,
        rank: int,
        world_size: int,
        shuffled: int = SHUFFLED_IMAGES,
    ) -> None:
        self.shards, self.make, self.batch_size = shards, make, batch_size
        self.workers, self.rank, self.world_size, self.shuffled = max(workers, 1), rank, world_size, shuffled
        self.seed = int(make.keywords["seed"])
        # Epoch, whether mosaics are on, and first batch: in shared memory, because workers outlive an epoch.
        self.state = torch.zeros(3, dtype=torch.int64).share_memory_()

    def set_epoch(
        self, epoch: int, mosaic: bool = True, first_batch: int = 0, sizes: Sequence[Size] | None = None
    ) -> None:
        """See `EpochSampler.set_epoch`; shards support one size only. The loader goes on within an epoch, too."""
        self.state.copy_(torch.tensor([epoch, int(mosaic), first_batch]))

    def __len__(self) -> int:
        largest = -(-len(self.shards.index) // (self.world_size * self.workers))
        return -(-largest // self.batch_size) * self.workers

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        info = torch.utils.data.get_worker_info()
        epoch, mosaic, first_batch = self.state.tolist()
        # the loader reads from its workers in turn, from 0
        line = (first_batch + (info.id if info else 0)) % self.workers
        lines = range(self.workers) if info is None else [line]
        streams = {each: self._line(each, epoch, bool(mosaic), first_batch) for each in lines}
        for number in range(first_batch, len(self)):
            if number % self.workers in streams:
                yield next(streams[number % self.workers])

    def _line(self, line: int, epoch: int, mosaic: bool, first_batch: int) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield batches number line, line + workers, ..., from `first_batch` on; earlier ones are drawn and dropped."""
        share = self.rank * self.workers + line
        parts = self.shards.parts(self.seed, epoch, share, self.world_size * self.workers)
        rng = np.random.default_rng([self.seed, epoch, share, 11])
        dataset = self.make(self.shards.index)
        order = self.shards.images(parts)
        window = _Window(order, lambda place: self.shards.read_from(parts, place), self.shuffled)
        dataset.reader = window  # type: ignore[assignment]
        batches = len(self) // self.workers
        for number, part in enumerate(np.array_split(np.arange(len(order)), batches)):
            is_wanted = number * self.workers + line >= first_batch
            if is_wanted:
                window.open()
            chosen = []
            for is_new in [True] * len(part) or [False]:  # all processes must have the same number of batches
                i = window.next(rng) if is_new else window.partner(rng)
                if is_wanted:
                    chosen.append(dataset[SampleKey(epoch, i, mosaic)])
            if chosen:
                yield collate(chosen)


def build_shard_loader(
    shards: ShardSet,
    input_size: Size,
    augment: AugmentConfig | None = None,
    letterbox: Letterbox | None = None,
    batch_size: int = 16,
    workers: int = 2,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    shuffled: int = SHUFFLED_IMAGES,
) -> TrainLoader:
    """Like `build_train_loader`; each worker buffers `shuffled` compressed images to draw from.

    Raises:
        UserError: for copy-paste, which needs random access to images, or if there are fewer images than batches.
    """
    if augment is not None and augment.copy_paste:
        raise UserError("--copy-paste", "cannot be combined with --shards", "leave out one of them")
    if len(shards.index) < world_size * max(workers, 1):
        what = f"{counted(len(shards.index), 'image is', 'images are')} fewer than the workers"
        raise UserError(shards.location, what, "use fewer --workers")
    make = partial(TrainDataset, input_size=input_size, augment=augment, seed=seed, letterbox=letterbox)
    stream = ShardStream(shards, make, batch_size, workers, rank, world_size, shuffled)
    cv2.setNumThreads(0)
    return TrainLoader(stream, stream, workers, timeout=SHARD_SECONDS)


# ---- dataset.py shard


@dataclass(frozen=True)
class ShardOptions(DataOptions):
    """Options of `dataset.py shard`."""

    output: str = option("", "folder for the shards", positional=True, metavar="OUT")
    images_per_shard: int = option(IMAGES_PER_SHARD, "number of images per tar file", low=1)
    seed: int = option(0, "random seed of the order of the images", low=0)


def main(argv: list[str] | None = None) -> None:
    """`dataset.py shard DATA OUT`."""
    options = parse_options(ShardOptions, argv, prog="dataset.py shard", description="Write a split as tar shards.")
    index = options.open(options.split or default_splits(options.data, options.image_folder)[0])
    folder = write_shards(index, options.output, options.images_per_shard, options.seed)
    shards = open_shards(folder)
    print(
        f"{folder}: {counted(len(shards.index), 'image')}, {counted(shards.index.num_boxes, 'box')} "
        f"in {counted(len(shards.files), 'shard')}"
    )
