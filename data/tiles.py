"""Cut large images into overlapping tiles for training, as in tiled prediction."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.index import DatasetIndex
from data.index_cache import cache_folder, fingerprint
from utils.errors import UserError, warn
from utils.files import write_atomically

VERSION = 1  # increase when tiles change
WHOLE_SHARE = 0.4  # minimum visible fraction of an object for its part in a tile to be a label
SEEN_SHARE = 0.1  # below WHOLE_SHARE and above this, a part is neither an object nor background
QUALITY = 95
DONE = "tiles.json"


def tile_windows(
    height: int, width: int, tile_height: int, tile_width: int, overlap: float
) -> list[tuple[int, int, int, int]]:
    """Tiles (left, top, right, bottom) that cover an image evenly, each as large as the tile or the image."""
    rows, columns = _starts(height, tile_height, overlap), _starts(width, tile_width, overlap)
    return [
        (left, top, min(left + tile_width, width), min(top + tile_height, height)) for top in rows for left in columns
    ]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    step = max(1.0, tile * (1 - overlap))
    count = int(np.ceil((length - tile) / step)) + 1
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def boxes_in_tile(boxes: np.ndarray, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) boxes of an image in a tile's pixel coordinates, and (N,) the visible fraction of each.

    An object cut by the border is labelled by its visible part; prediction joins such parts again.
    """
    left, top, right, bottom = window
    offset = np.array([left, top, left, top], np.float64)
    limit = np.array([right - left, bottom - top] * 2, np.float64)
    inside = np.clip(boxes - offset, 0, limit)
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)
    return inside, (inside[:, 2:] - inside[:, :2]).prod(axis=1) / area


def tile_dataset(
    index: DatasetIndex, tile: tuple[int, int], overlap: float, folder: Path | None = None
) -> DatasetIndex:
    """The images of a split, and the tiles of images larger than a tile. Tiles are files in the cache folder.

    Args:
        index: the split.
        tile: (height, width), pixels.
        overlap: overlap of neighbouring tiles, as a fraction of a tile.
        folder: folder of the tiles; None for the user's cache folder, where later runs find them.
    """
    if folder is None:
        dependencies = fingerprint(index.source["dependencies"]) if "dependencies" in index.source else ""
        key = [
            VERSION,
            index.name,
            str(index.source.get("root")),
            list(index.class_names),
            dependencies,
            *tile,
            overlap,
        ]
        digest = hashlib.blake2b(json.dumps([*key, len(index), index.num_boxes]).encode(), digest_size=12)
        folder = cache_folder() / "tiles" / digest.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    is_done = (folder / DONE).is_file()
    parts = _Parts(index)
    for i in tqdm(range(len(index)), desc="tiles", unit="img", delay=2, leave=False, disable=is_done):
        height, width = (int(side) for side in index.sizes[i])
        windows = tile_windows(height, width, *tile, overlap)
        parts.add_whole(i)
        if len(windows) > 1:
            _add_tiles(parts, i, windows, folder, is_done)
    write_atomically(folder / DONE, json.dumps({"tiles": len(parts.paths) - len(index)}).encode())
    return parts.build(tile)


def _add_tiles(parts: _Parts, i: int, windows: list[tuple[int, int, int, int]], folder: Path, is_done: bool) -> None:
    paths = [folder / f"{i}_{left}_{top}.jpg" for left, top, _, _ in windows]
    if not (is_done and all(path.is_file() for path in paths)):
        from imaging.image_io import read_image, write_image  # imported here: OpenCV is slow to import

        try:
            image = read_image(parts.index.path(i))
        except UserError as error:
            warn(error.where, error.what, "it is not divided into tiles")
            return
        for path, (left, top, right, bottom) in zip(paths, windows, strict=True):
            write_image(path, np.ascontiguousarray(image[top:bottom, left:right]), QUALITY)
    for path, window in zip(paths, windows, strict=True):
        parts.add_tile(i, path, window)


class _Parts:
    """Images and tiles as they are gathered."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self.paths: list[str] = []
        self.ids: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.boxes: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.difficult: list[np.ndarray] = []
        self.crowd: list[np.ndarray] = []

    def add_whole(self, i: int) -> None:
        index, part = self.index, slice(self.index.offsets[i], self.index.offsets[i + 1])
        size = (int(index.sizes[i][0]), int(index.sizes[i][1]))
        kept = np.ones(part.stop - part.start, bool)
        self._add(index.path(i), f"{index.image_ids[i]}", size, index.boxes[part], part, kept, index.crowd[part])

    def add_tile(self, i: int, path: Path, window: tuple[int, int, int, int]) -> None:
        index, part = self.index, slice(self.index.offsets[i], self.index.offsets[i + 1])
        left, top, right, bottom = window
        boxes, share = boxes_in_tile(index.boxes[part], window)
        kept = share > SEEN_SHARE
        crowd = index.crowd[part] | (share < WHOLE_SHARE)  # a part below this fraction is ignored, not background
        self._add(path, f"{index.image_ids[i]}@{left},{top}", (bottom - top, right - left), boxes, part, kept, crowd)

    def _add(
        self,
        path: Path,
        identity: str,
        size: tuple[int, int],
        boxes: np.ndarray,
        part: slice,
        kept: np.ndarray,
        crowd: np.ndarray,
    ) -> None:
        self.paths.append(os.fspath(path))
        self.ids.append(identity)
        self.sizes.append(size)
        self.boxes.append(boxes[kept])
        self.labels.append(self.index.labels[part][kept])
        self.difficult.append(self.index.difficult[part][kept])
        self.crowd.append(crowd[kept])

    def build(self, tile: tuple[int, int]) -> DatasetIndex:
        index = self.index
        return DatasetIndex.build(
            f"{index.name} and tiles of {tile[1]}x{tile[0]}",
            index.class_names,
            self.paths,
            self.ids,
            self.sizes,
            self.boxes,
            self.labels,
            self.difficult,
            self.crowd,
            skips=index.skips,
            source=index.source | {"tile": list(tile)},
        )
