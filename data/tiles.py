"""Cut large images into overlapping tiles for training, as in tiled prediction."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.index import DatasetIndex
from data.index_cache import cache_folder, fingerprint
from utils.errors import UserError, warn
from utils.files import write_atomically
from utils.text import counted

MANY_FILES = 50_000  # warn above it
VERSION = 1  # increase when tiles change
MIN_TILE = 32  # pixels; the stride of the network, so a smaller tile is one cell of its coarsest map
WHOLE_SHARE = 0.4  # minimum visible fraction of an object for its part in a tile to be a label
SEEN_SHARE = 0.1  # below WHOLE_SHARE and above this, a part is neither an object nor background
QUALITY = 95
DONE = "tiles.json"


def tile_windows(
    height: int, width: int, tile_height: int, tile_width: int, overlap: float
) -> list[tuple[int, int, int, int]]:
    """Tiles (left, top, right, bottom) that cover an image evenly, each as large as the tile or the image."""
    rows, columns = _starts(height, tile_height, overlap), _starts(width, tile_width, overlap)
    corners = [(left, top) for top in rows for left in columns]
    return [(left, top, min(left + tile_width, width), min(top + tile_height, height)) for left, top in corners]


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
        root, names = str(index.source.get("root")), list(index.class_names)
        key = [VERSION, index.name, root, names, dependencies, *tile, overlap]
        digest = hashlib.blake2b(json.dumps([*key, len(index), index.num_boxes]).encode(), digest_size=12)
        folder = cache_folder() / "tiles" / digest.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    is_done = (folder / DONE).is_file()
    all_windows = [tile_windows(int(height), int(width), *tile, overlap) for height, width in index.sizes]
    count = sum(len(each) for each in all_windows if len(each) > 1)
    if count > MANY_FILES and not is_done:
        what = f"{counted(f'{count:,}', 'file is', 'files are')} written to {folder}"
        warn("tiles", what, "larger tiles or less overlap give fewer")
    rows: list[_Row] = []
    for i in tqdm(range(len(index)), desc="tiles", unit="img", delay=2, leave=False, disable=is_done):
        height, width = (int(side) for side in index.sizes[i])
        boxes = index.boxes[index.boxes_of(i)]
        rows.append(_row(index, i, index.path(i), "", (height, width), boxes, np.ones(len(boxes))))
        if len(all_windows[i]) > 1:
            rows += _tiles(index, i, all_windows[i], folder, is_done)
    write_atomically(folder / DONE, json.dumps({"tiles": len(rows) - len(index)}).encode())
    name = f"{index.name} and tiles of {tile[1]}x{tile[0]}"
    columns: Any = list(zip(*rows, strict=True)) or [()] * 7
    source = index.source | {"tile": list(tile)}
    return DatasetIndex.build(name, index.class_names, *columns, skips=index.skips, source=source)


def _tiles(
    index: DatasetIndex, i: int, windows: list[tuple[int, int, int, int]], folder: Path, is_done: bool
) -> list[_Row]:
    """The tiles of an image, written as files unless they were before."""
    paths = [folder / f"{i}_{left}_{top}.jpg" for left, top, _, _ in windows]
    if not (is_done and all(path.is_file() for path in paths)):
        from imaging.image_io import read_image, write_image  # imported here: OpenCV is slow to import

        try:
            image = read_image(index.path(i))
        except UserError as error:
            warn(error.where, error.what, "it is not divided into tiles")
            return []
        for path, (left, top, right, bottom) in zip(paths, windows, strict=True):
            write_image(path, np.ascontiguousarray(image[top:bottom, left:right]), QUALITY)
    rows = []
    for path, window in zip(paths, windows, strict=True):
        left, top, right, bottom = window
        boxes, share = boxes_in_tile(index.boxes[index.boxes_of(i)], window)
        rows.append(_row(index, i, path, f"@{left},{top}", (bottom - top, right - left), boxes, share))
    return rows


# of an image or tile: path, id, (height, width), boxes, labels, difficult, crowd, as `DatasetIndex.build` takes them
_Row = tuple[str, str, tuple[int, int], np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _row(
    index: DatasetIndex, i: int, path: Path, suffix: str, size: tuple[int, int], boxes: np.ndarray, share: np.ndarray
) -> _Row:
    """One image of the new index; `share` is the visible fraction of each box of image i."""
    part, kept = index.boxes_of(i), share > SEEN_SHARE
    crowd = index.crowd[part] | (share < WHOLE_SHARE)  # a part below this fraction is ignored, not background
    arrays = (boxes, index.labels[part], index.difficult[part], crowd)
    return os.fspath(path), f"{index.image_ids[i]}{suffix}", size, *(each[kept] for each in arrays)  # type: ignore[return-value]
