"""Measure how fast one core prepares training batches, by step and compared with the reference's loader.

python -m benchmarks.loader --data VOCdevkit
python -m benchmarks.loader --data VOCdevkit --enlarge 640 480   # image size of the reference's figures
python -m benchmarks.loader --data VOCdevkit --workers 2 --epochs 3   # throughput and memory with worker processes
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.harness import cpu_in_turns
from data import loader as loader_module
from data.augment import AugmentConfig
from data.image_cache import build_image_cache
from data.index import DatasetIndex
from data.loader import TrainLoader, build_train_loader
from data.open import default_splits, open_dataset
from imaging.image_io import read_image, write_image
from utils.config import option, parse_options
from utils.errors import run_command
from utils.text import counted

REFERENCE_BATCH_MS = (157, 176)  # the reference on another machine: one thread, 8 images of 640x480, mosaic at 416


@dataclass(frozen=True)
class LoaderBenchmarkOptions:
    """Options of `python -m benchmarks.loader`."""

    data: str = option("VOCdevkit", "path of the data set")
    split: str = option("", "split of the data set (default: its training split)")
    input_size: int = option(416, "input size in pixels (square)", low=32, high=4096)
    batch_size: int = option(8, "images per batch", low=1)
    num_images: int = option(256, "number of images to use", low=4)
    batches: int = option(30, "batches to measure per loader", low=1)
    enlarge: tuple[int, ...] = option(
        (), "resize the images to WIDTH HEIGHT first and save them as JPEG files", nargs=2
    )
    workers: int = option(0, "also measure this many worker processes and their memory", low=0)
    epochs: int = option(2, "epochs to measure with --workers", low=1)
    json: str = option("", "write the figures to this file")


class ReferenceLoading:
    """The reference's mosaic loader, reimplemented for timing.

    Pillow opens, flips and resizes each tile (bicubic) and pastes it on a grey image of full size. Four tiles are
    combined, changed in HSV and converted to float.
    """

    def __init__(self, index: DatasetIndex, side: int, seed: int = 0) -> None:
        self.index, self.side, self.rng = index, side, np.random.default_rng(seed)

    def batch(self, images: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A batch of mosaics: (B, 3, H, W) float in [0, 1], and per image (N, 5) normalized cxcywh boxes with class."""
        made = [self._sample(int(i)) for i in images]
        pixels = torch.from_numpy(np.array([image for image, _ in made])).float()
        return pixels, [torch.from_numpy(boxes).float() for _, boxes in made]

    def _sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        cut = (self.rng.uniform(0.3, 0.7, 2) * self.side).astype(int)
        tiles = [self._tile(int(j), n, cut) for n, j in enumerate([i, *self.rng.integers(len(self.index), size=3)])]
        x, y = cut
        whole = np.zeros((self.side, self.side, 3))
        whole[:y, :x], whole[y:, :x] = tiles[0][0][:y, :x], tiles[1][0][y:, :x]
        whole[y:, x:], whole[:y, x:] = tiles[2][0][y:, x:], tiles[3][0][:y, x:]
        image = self._colour(whole.astype(np.uint8))
        boxes = np.concatenate([self._cut(boxes, n, cut) for n, (_, boxes) in enumerate(tiles)]).astype(np.float32)
        boxes[:, :4] /= self.side
        boxes[:, 2:4] -= boxes[:, :2]
        boxes[:, :2] += boxes[:, 2:4] / 2
        return np.transpose(np.array(image, np.float32) / 255.0, (2, 0, 1)), boxes

    def _tile(self, i: int, number: int, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image = Image.open(self.index.path(i)).convert("RGB")
        target = self.index.target(i)
        boxes = np.column_stack([target["boxes"], target["labels"]])
        width, height = image.size
        if self.rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        ratio = width / height * self.rng.uniform(0.7, 1.3) / self.rng.uniform(0.7, 1.3)
        size = self.rng.uniform(0.4, 1)
        new_height = int(size * self.side) if ratio < 1 else int(size * self.side / ratio)
        new_width = int(new_height * ratio) if ratio < 1 else int(size * self.side)
        image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        left = cut[0] - new_width if number < 2 else cut[0]
        top = cut[1] - new_height if number in (0, 3) else cut[1]
        canvas = Image.new("RGB", (self.side, self.side), (128, 128, 128))
        canvas.paste(image, (int(left), int(top)))
        scale = np.array([new_width / width, new_height / height] * 2)
        boxes[:, :4] = np.clip(boxes[:, :4] * scale + [left, top, left, top], 0, self.side)
        return np.array(canvas), boxes[(boxes[:, 2] - boxes[:, 0] > 1) & (boxes[:, 3] - boxes[:, 1] > 1)]

    def _colour(self, image: np.ndarray) -> np.ndarray:
        gains = self.rng.uniform(-1, 1, 3) * [0.1, 0.7, 0.4] + 1
        levels = np.arange(256, dtype=gains.dtype)
        tables = [(levels * gains[0]) % 180, *(np.clip(levels * gain, 0, 255) for gain in gains[1:])]
        channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
        merged = cv2.merge([cv2.LUT(c, t.astype(np.uint8)) for c, t in zip(channels, tables, strict=True)])
        return cv2.cvtColor(merged, cv2.COLOR_HSV2RGB)

    def _cut(self, boxes: np.ndarray, number: int, cut: np.ndarray) -> np.ndarray:
        low = [0 if number < 2 else cut[0], 0 if number in (0, 3) else cut[1]]
        high = [cut[0] if number < 2 else self.side, cut[1] if number in (0, 3) else self.side]
        boxes[:, :4] = np.clip(boxes[:, :4], low * 2, high * 2)
        return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Measure the CPU seconds spent in each step of the loader within a `with` block."""
    spent: dict[str, float] = defaultdict(float)
    steps = {
        "decode": [(loader_module, "read_image_and_size")],
        "geometry": [
            (loader_module, "compose_mosaic"),
            (loader_module, "place_single"),
            (loader_module, "random_flip"),
        ],
        "colour": [(loader_module, "jitter_hsv")],
        "collate": [(loader_module, "collate")],
    }

    def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[step] += time.thread_time() - began

        return call

    originals = [(module, name, getattr(module, name)) for places in steps.values() for module, name in places]
    for step, places in steps.items():
        for module, name in places:
            setattr(module, name, timed(step, getattr(module, name)))
    try:
        yield spent
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def endless(loader: TrainLoader, mosaic: bool) -> Callable[[], Any]:
    """A function that returns the next full batch of a loader without workers, for any number of epochs."""

    def batches() -> Iterator[Any]:
        for epoch in range(10**9):
            loader.set_epoch(epoch, mosaic)
            yield from (batch for batch in loader if len(batch[0]) == loader.sampler.batch_size)

    iterator = batches()
    return lambda: next(iterator)


def enlarged(index: DatasetIndex, size: tuple[int, ...], folder: Path) -> DatasetIndex:
    """The data set with all images resized to one size (JPEG, quality 90) and the boxes scaled accordingly."""
    width, height = size
    paths, boxes = [], []
    for i in range(len(index)):
        image = read_image(index.path(i))
        scale = np.array([width / image.shape[1], height / image.shape[0]] * 2)
        paths.append(folder / f"{i:06}.jpg")
        write_image(paths[-1], cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), 90)
        boxes.append(index.target(i)["boxes"] * scale)
    labels = [index.target(i)["labels"] for i in range(len(index))]
    sizes = [(height, width)] * len(index)
    return DatasetIndex.build(index.name, index.class_names, paths, list(range(len(index))), sizes, boxes, labels)


def compare(index: DatasetIndex, options: LoaderBenchmarkOptions) -> dict[str, Any]:
    """CPU milliseconds per batch of the reference's loader and of this one, and of each step of this one."""
    side, batch = options.input_size, options.batch_size
    # Use the reference's augmentation (hue range, mosaic for every image), so that both do the same work.
    config = AugmentConfig(mosaic=1.0, hue=0.1)

    def ours(augment: AugmentConfig, mosaic: bool = True, cache: Any = None) -> Callable[[], Any]:
        made = build_train_loader(index, (side, side), augment, batch_size=batch, workers=0, image_cache=cache)
        return endless(made, mosaic)

    reference, rng = ReferenceLoading(index, side), np.random.default_rng(0)
    result: dict[str, Any] = {"num_images": len(index), "batch_size": batch, "input_size": side}
    cache = build_image_cache(index, (side, side), "ram")
    filled = ours(replace(config, mosaic=0.0), cache=cache)
    for _ in range(len(index) // batch + 1):
        filled()
    calls = {
        "reference_mosaic": lambda: reference.batch(rng.integers(len(index), size=batch)),
        "ours_mosaic": ours(config),
        "ours_single": ours(config, mosaic=False),
        "ours_mosaic_cached": ours(config, cache=cache),
    }
    times = cpu_in_turns(calls, options.batches)
    result |= {f"{name}_ms": 1e3 * sample.median for name, sample in times.items()}
    result["ratio"] = result["reference_mosaic_ms"] / result["ours_mosaic_ms"]
    with stopwatch() as spent:
        make_batch = ours(config)
        make_batch()
        spent.clear()
        whole = cpu_in_turns({"batch": make_batch}, options.batches, warm_up=0)["batch"]
    result["steps_ms"] = {step: 1e3 * seconds / options.batches for step, seconds in spent.items()}
    result["steps_ms"]["rest"] = 1e3 * float(whole.seconds.mean()) - sum(result["steps_ms"].values())
    return result


def with_workers(index: DatasetIndex, options: LoaderBenchmarkOptions) -> list[dict[str, float]]:
    """Images per second with workers, and the memory in MB of this process and the workers after each epoch."""
    side = options.input_size
    config = AugmentConfig(mosaic=1.0)
    loader = build_train_loader(index, (side, side), config, batch_size=options.batch_size, workers=options.workers)
    rows = []
    for epoch in range(options.epochs):
        loader.set_epoch(epoch)
        began = time.perf_counter()
        images = sum(len(batch) for batch, _ in loader)
        seconds = time.perf_counter() - began
        workers = [worker.pid for worker in getattr(loader._loader._iterator, "_workers", [])]
        memory = {"main_mb": _proportional_mb("self"), "workers_mb": sum(_proportional_mb(pid) for pid in workers)}
        rows.append({"epoch": epoch, "images_per_second": images / seconds, **memory})
    loader.close()
    return rows


def _proportional_mb(process: int | str) -> float:
    """Proportional set size (PSS) of a process in MB: shared pages are divided among the processes that use them.

    0 on systems without /proc.
    """
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def report(result: dict[str, Any]) -> None:
    """Print the figures."""
    batch = result["batch_size"]
    images = counted(result["num_images"], "image")
    print(f"batches of {batch} at {result['input_size']}, {images}, one thread, median CPU time")
    names = {
        "reference_mosaic_ms": "reference's loader, mosaic",
        "ours_mosaic_ms": "ours, mosaic",
        "ours_mosaic_cached_ms": "ours, mosaic, images cached in RAM",
        "ours_single_ms": "ours, without mosaic",
    }
    for key, name in names.items():
        print(f"  {name:36} {result[key]:8.1f} ms per batch {1e3 * batch / result[key]:8.0f} images/s per core")
    print(f"ours is {result['ratio']:.1f} times as fast as the reference's loader")
    print("ours, mosaic, by step:")
    whole = sum(result["steps_ms"].values())
    for step, milliseconds in result["steps_ms"].items():
        print(f"  {step:36} {milliseconds:8.1f} ms per batch {100 * milliseconds / whole:7.0f} %")
    for row in result.get("workers", []):
        memory = f"memory {row['main_mb']:.0f} MB in the main process, {row['workers_mb']:.0f} MB in the workers"
        print(f"epoch {row['epoch']}: {row['images_per_second']:.0f} images/s, {memory}")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(LoaderBenchmarkOptions, argv, description=__doc__.splitlines()[0])
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    index = open_dataset(options.data, options.split or default_splits(options.data)[0])
    index = index.subset(np.arange(min(options.num_images, len(index))))
    with tempfile.TemporaryDirectory() as folder:
        if options.enlarge:
            index = enlarged(index, options.enlarge, Path(folder))
        result = compare(index, options)
        if options.workers:
            result["workers"] = with_workers(index, options)
    report(result)
    if options.enlarge:
        low, high = REFERENCE_BATCH_MS
        print(f"(the reference itself took {low} to {high} ms for a batch of 8 of 640x480 on another machine)")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
