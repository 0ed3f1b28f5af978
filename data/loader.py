"""Training data loader: batches from a DatasetIndex, identical for any number of workers."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import (
    AffineParams,
    AugmentConfig,
    Photo,
    Sample,
    apply_albumentations,
    clip_boxes,
    jitter_hsv,
    letterbox_scale,
    place_single,
    random_flip,
    sample_affine,
    transform_boxes,
)
from data.index import SCORE_RANGE, DatasetIndex
from data.mosaic import compose_mosaic, copy_paste_object, draw_centre, mixup
from data.skips import Skip
from imaging.image_io import read_image_and_size
from imaging.letterbox import Letterbox
from utils.errors import RunError, UserError, warn
from utils.text import counted

Size = tuple[int, int]
SMALLEST = (32, 32)  # one cell of the coarsest map; batch norm needs more than one value per channel
PREFETCH = 2  # batches that each worker prepares ahead
SHM_SHARE = 0.8  # maximum fraction of the free shared memory for batches in transit
OPEN_FILES = 512  # enough for workers that pass tensors as file descriptors
OTHER_FILES, FILES_PER_WORKER = 32, 8  # with tensors in named files
MAX_REPLACEMENTS = 20  # consecutive unreadable images before the run stops


class SampleKey(NamedTuple):
    """Identifies a training image; with the seed it determines all random numbers of the image.

    Args:
        epoch: number of the epoch.
        image: position in the DatasetIndex.
        mosaic: whether mosaic, mixup and copy-paste are on (they are off in the last epochs).
        repeat: distinguishes several uses of the image in one epoch, so that each has other random numbers: 0, 1, 2
            and so on for those of class balancing; 1000 and more for those that fill the last step (`EpochSampler`).
        size: (height, width) of this batch in multi-scale training; None for the dataset's size.
    """

    epoch: int
    image: int
    mosaic: bool = True
    repeat: int = 0
    size: Size | None = None


class PhotoReader:
    """Read images of an index, from the cache if there is one, and JPEGs at reduced size if possible.

    Args:
        index: the images.
        image_cache: see `data.image_cache`.
        weights: (I,) relative frequency of each image as a partner; None is uniform.
    """

    def __init__(self, index: DatasetIndex, image_cache: Any = None, weights: np.ndarray | None = None) -> None:
        self.index, self.image_cache = index, image_cache
        self._cumulative = None if weights is None else np.cumsum(weights) / np.sum(weights)

    def partner(self, rng: np.random.Generator) -> int:
        """Draw an image for a mosaic, for mixup, or to replace one that cannot be read."""
        if self._cumulative is None:
            return int(rng.integers(len(self.index)))
        found = np.searchsorted(self._cumulative, rng.random(), side="right")
        return min(int(found), len(self.index) - 1)

    def read(self, i: int, min_size: Size | None = None) -> Photo:
        """Read image i, at least `min_size` (height, width) large if the file is; None reads it at full size.

        Raises:
            ImageError, OSError: if the image cannot be read.
        """
        if self.image_cache is not None:
            return self.image_cache.read(i, self._decode)
        return self._decode(i, min_size)

    def _decode(self, i: int, min_size: Size | None = None) -> Photo:
        image, (height, width) = read_image_and_size(self.index.path(i), min_size=min_size)
        return Photo.decoded(image, height, width)


class TrainDataset(Dataset):
    """Augmented training images; each depends only on (seed, key).

    Args:
        index: images and boxes. Crowd boxes are left out; VOC's difficult objects are used, as treating them as
            background is worse.
        input_size: (height, width) pixels.
        augment: augmentation options.
        seed: of the whole run.
        letterbox: resize mode and padding; its own input size is not used. None uses the defaults.
        image_cache: see `data.image_cache`.
        score_range: see `label_weights`.
        image_weights: (I,) relative frequency of each image as a mosaic partner; None is uniform.
    """

    def __init__(
        self,
        index: DatasetIndex,
        input_size: Size,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        letterbox: Letterbox | None = None,
        image_cache: Any = None,
        score_range: tuple[float, float] = SCORE_RANGE,
        image_weights: np.ndarray | None = None,
    ) -> None:
        self.index, self.seed = index, seed
        self.augment = augment or AugmentConfig()
        self.letterbox = replace(letterbox or Letterbox(input_size), input_size=input_size)
        self.reader = PhotoReader(index, image_cache, image_weights)
        self._weights = None if index.scores is None else label_weights(index.scores, score_range)
        self._rare = _rare_images(index) if self.augment.copy_paste else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[Any, ...]) -> dict[str, Any]:
        """Make one training image.

        Args:
            key: a `SampleKey`, or its first fields.

        Returns:
            `image` (H, W, 3) uint8 RGB array, `boxes` (N, 4) float32 xyxy input pixels, `labels` (N,) int64, `weights`
            (N,) float32 (see `targets`), `image_id`, and `skipped`, a list of (path, reason) of images that could not
            be read and were replaced.
        """
        return _SampleMaker(self, SampleKey(*key)).make()

    def targets(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (N, 4) in image i's own pixels, labels (N,) and weights (N,): 1 certain, 0 uncertain (see YOLOLoss)."""
        part = self.index.boxes_of(i)
        keep = ~self.index.crowd[part]
        weights = np.ones(keep.sum(), np.float32) if self._weights is None else self._weights[part][keep]
        return self.index.boxes[part][keep], self.index.labels[part][keep].astype(np.int64), weights


class _SampleMaker:
    """State of making one sample: its random numbers and the skipped images."""

    def __init__(self, dataset: TrainDataset, key: SampleKey) -> None:
        self.dataset, self.key, self.config = dataset, key, dataset.augment
        self.letterbox = replace(dataset.letterbox, input_size=key.size) if key.size else dataset.letterbox
        entropy = np.random.SeedSequence([dataset.seed, key.epoch, key.image, key.repeat])
        self.rng = np.random.Generator(np.random.Philox(entropy))
        self.skipped: list[tuple[str, str]] = []

    def make(self) -> dict[str, Any]:
        rng, config = self.rng, self.config
        many = self.key.mosaic
        if many and rng.random() < config.mosaic:
            sample = self._mosaic(self.key.image)
            if config.mixup and rng.random() < config.mixup:
                sample = mixup(sample, self._mosaic(self._partner()), rng)
        else:
            sample = self._alone(self.key.image)
        if many and self.dataset._rare is not None and rng.random() < config.copy_paste:
            sample = self._paste(sample)
        image, boxes = random_flip(sample.image, sample.boxes, rng, config)
        image = apply_albumentations(jitter_hsv(image, rng, config), rng, config)
        return {
            "image": image,
            "boxes": boxes.astype(np.float32),
            "labels": sample.labels,
            "weights": sample.weights,
            "image_id": self.dataset.index.image_ids[self.key.image].item(),
            "skipped": self.skipped,
        }

    def _alone(self, index: int) -> Sample:
        geometry = sample_affine(self.rng, self.config, self.config.scale)
        photo, index = self._read(index, geometry)
        canvas = np.full((*self.letterbox.input_size, 3), self.letterbox.pad_value, np.uint8)
        matrix = place_single(photo, canvas, self.letterbox, geometry)
        boxes, labels, weights = self.dataset.targets(index)
        clipped, keep = clip_boxes(transform_boxes(boxes, matrix), (0, 0, *canvas.shape[1::-1]), self.config)
        return Sample(canvas, clipped[keep], labels[keep], weights[keep])

    def _mosaic(self, index: int) -> Sample:
        centre = draw_centre(self.rng, self.letterbox.input_size)
        indices = [index, *(self._partner() for _ in range(3))]
        self.rng.shuffle(indices)
        parts = []
        for each in indices:
            geometry = sample_affine(self.rng, self.config, self.config.mosaic_scale)
            photo, used = self._read(each, geometry)
            parts.append((photo, *self.dataset.targets(used), geometry))
        return compose_mosaic(parts, centre, self.letterbox, self.config)

    def _paste(self, sample: Sample) -> Sample:
        assert self.dataset._rare is not None
        images, boxes, cumulative = self.dataset._rare
        for _ in range(self.rng.integers(1, 4)):
            choice = int(np.searchsorted(cumulative, self.rng.random(), side="right"))
            choice = min(choice, len(images) - 1)
            photo, used = self._read(int(images[choice]), AffineParams(1, 1, 0, 0))
            if used == images[choice]:
                box, label = self.dataset.index.boxes[boxes[choice]], int(self.dataset.index.labels[boxes[choice]])
                sample = copy_paste_object(sample, photo, box, label, self.letterbox, self.rng)
        return sample

    def _partner(self) -> int:
        return self.dataset.reader.partner(self.rng)

    def _read(self, index: int, geometry: AffineParams) -> tuple[Photo, int]:
        """Read an image, and return its position; an unreadable image is replaced by another."""
        for _ in range(MAX_REPLACEMENTS):
            try:
                return self.dataset.reader.read(index, self._min_size(index, geometry)), index
            except (OSError, ValueError, cv2.error, MemoryError) as error:
                self.skipped.append((str(self.dataset.index.path(index)), _reason(error)))
                index = self._partner()
        path, reason = self.skipped[-1]
        raise RunError(path, f"{reason}; and {MAX_REPLACEMENTS} consecutive images cannot be read", "check the data")

    def _min_size(self, index: int, geometry: AffineParams) -> Size:
        """(height, width) below which the decoded image would have to be enlarged."""
        input_height, input_width = self.letterbox.input_size
        height, width = self.dataset.index.sizes[index].tolist()
        if height > 0 and width > 0:
            fit = letterbox_scale(self.letterbox, height, width)
            input_height, input_width = height * fit[1], width * fit[0]
        return math.ceil(input_height * geometry.scale_y), math.ceil(input_width * geometry.scale_x)


class EpochSampler(Sampler[list[SampleKey]]):
    """Sampler of the batches of an epoch for one process; processes of a run get disjoint images.

    An epoch is one seeded permutation, cut into steps of `batch_size * world_size` images; each step is cut into equal
    runs, one per process, so that two processes of batch 4 do the same as one of batch 8. The last step may be smaller,
    also per process. Nothing is dropped. Images are repeated only if the last step has fewer images than
    processes: it is then filled with the first images of the epoch, as a process without a batch blocks the others.

    Args:
        num_images: size of the dataset.
        batch_size: images per step and process.
        repeat_factors: (I,) average number of uses of each image in an epoch; see `repeat_factors`.
        sizes: input sizes of multi-scale training; each step draws one, the same in all processes.

    `set_epoch` must be called before each epoch. No other state is kept, so an epoch can start at any batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeat_factors: np.ndarray | None = None,
        sizes: Sequence[Size] = (),
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch size {batch_size}, rank {rank} of {world_size}: must be positive, and rank below")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.sizes = [tuple(size) for size in sizes]
        self.epoch, self.mosaic, self.first_batch = 0, True, 0
        self._wanted = None
        self.epoch_images = num_images
        if repeat_factors is not None:
            self.epoch_images = round(float(np.sum(repeat_factors)))
            self._wanted = np.asarray(repeat_factors, np.float64) * self.epoch_images / np.sum(repeat_factors)

    def set_epoch(
        self, epoch: int, mosaic: bool = True, first_batch: int = 0, sizes: Sequence[Size] | None = None
    ) -> None:
        """Set the next epoch, whether mosaics are on, and the first batch.

        `sizes` replaces the sizes of multi-scale training from this epoch on.
        """
        self.epoch, self.mosaic, self.first_batch = epoch, mosaic, first_batch
        if sizes is not None:
            self.sizes = [tuple(size) for size in sizes]

    def __len__(self) -> int:
        return math.ceil(self.epoch_images / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.epoch, 2**31])))
        images, repeats = self._epoch_order(rng)
        step = self.batch_size * self.world_size
        drawn = rng.integers(len(self.sizes), size=len(self)) if self.sizes else None
        for number in range(self.first_batch, len(self)):
            part = np.arange(number * step, min((number + 1) * step, len(images)))
            size = self.sizes[drawn[number]] if drawn is not None else None
            padding = max(self.world_size - len(part), 0)
            part = np.concatenate([part, np.arange(padding) % len(images)])
            mine = np.array_split(np.arange(len(part)), self.world_size)[self.rank]
            yield [
                SampleKey(
                    self.epoch,
                    int(images[part[j]]),
                    self.mosaic,
                    int(repeats[part[j]]) + (1000 + int(j) if j >= len(part) - padding else 0),  # drawn anew
                    size,
                )
                for j in mine
            ]

    def _epoch_order(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Images of the epoch in order, and the repeat number of each."""
        if self._wanted is None:
            images = np.arange(self.num_images)
        else:  # systematic sampling: floor or ceil of each image's factor, with the same sum in every epoch
            edges = np.floor(np.concatenate([[0], np.cumsum(self._wanted)]) + rng.random() * (1 - 1e-9) + 1e-9)
            images = np.repeat(np.arange(self.num_images), np.diff(edges).astype(np.int64))
        first = np.searchsorted(images, images, side="left")
        repeats = np.arange(len(images)) - first
        order = rng.permutation(len(images))
        return images[order], repeats[order]


def repeat_factors(index: DatasetIndex, threshold: float) -> np.ndarray:
    """(I,) repeat factors: images with classes in fewer than `threshold` of the images are used more often.

    max over its classes of max(1, sqrt(threshold / f(class))), where f is the fraction of images with the class.

    Source: LVIS, appendix B.2, https://arxiv.org/abs/1908.03195
    """
    owner = index.image_of_box
    pairs = np.unique(np.stack([owner, index.labels.astype(np.int64)], axis=1), axis=0)
    frequency = np.bincount(pairs[:, 1], minlength=len(index.class_names)) / max(len(index), 1)
    by_class = np.maximum(1, np.sqrt(threshold / np.maximum(frequency, 1e-12)))
    factors = np.ones(len(index))
    np.maximum.at(factors, pairs[:, 0], by_class[pairs[:, 1]])
    return factors


def collate(samples: Sequence[dict[str, Any]]) -> tuple[Tensor, dict[str, Any]]:
    """Collate samples of one size into a batch.

    Returns:
        images (B, 3, H, W) uint8 in channels_last order, and targets: `boxes` (M, 4) float32 xyxy input pixels,
        `labels` (M,) int64, `weights` (M,) float32, `image_index` (M,) int64 position in the batch, `image_ids` and
        `skipped` lists, `num_images`.
    """
    images = torch.empty((len(samples), *samples[0]["image"].shape), dtype=torch.uint8)
    for row, sample in zip(images.numpy(), samples, strict=True):
        row[:] = sample["image"]
    counts = [len(sample["labels"]) for sample in samples]
    targets: dict[str, Any] = {
        name: torch.from_numpy(np.concatenate([sample[name] for sample in samples]))
        for name in ("boxes", "labels", "weights")
    }
    targets |= {
        "image_index": torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        "image_ids": [sample["image_id"] for sample in samples],
        "num_images": len(samples),
        "skipped": [skip for sample in samples for skip in sample["skipped"]],
    }
    return images.permute(0, 3, 1, 2), targets


class TrainLoader:
    """Training batches; call `set_epoch`, then iterate, for each epoch.

    `skips` holds one `Skip` for each image that could not be read; each is reported when it occurs.

    Args:
        dataset: yields samples by the keys of `sampler`, or is the sampler and yields batches itself.
        sampler: decides the order of an epoch; it has `set_epoch`, a length, a batch size and a seed.
        workers: number of worker processes; 0 loads in this process.
        timeout: seconds without a batch after which the workers are considered hung.
        start_method: `fork`, `spawn` or `forkserver`; None uses the system default.
    """

    def __init__(
        self, dataset: Dataset, sampler: Any, workers: int, timeout: float = 120.0, start_method: str | None = None
    ) -> None:
        self.dataset, self.sampler, self.workers = dataset, sampler, workers
        self.timeout = timeout if workers else 0.0
        self.skips: list[Skip] = []
        self._named: set[str] = set()
        batching: dict[str, Any] = {"batch_sampler": sampler, "collate_fn": collate}
        processes: dict[str, Any] = {"prefetch_factor": PREFETCH, "multiprocessing_context": start_method}
        # A separate generator, so that the loader does not change the global random state.
        self._loader = DataLoader(
            dataset,
            num_workers=workers,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=self.timeout,
            generator=torch.Generator().manual_seed(sampler.seed),
            **({"batch_size": None} if dataset is sampler else batching),
            **(processes if workers else {}),
        )

    @property
    def batch_size(self) -> int:
        """Number of images in this process's batches."""
        return self.sampler.batch_size

    def set_epoch(
        self, epoch: int, mosaic: bool = True, first_batch: int = 0, sizes: Sequence[Size] | None = None
    ) -> None:
        """See `EpochSampler.set_epoch`."""
        self.sampler.set_epoch(epoch, mosaic, first_batch, sizes)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield batches as returned by `collate`.

        Raises:
            RunError: if a worker died, or returned nothing for `timeout` seconds.
        """
        try:
            for images, targets in self._loader:
                self._name(targets["skipped"])
                yield images, targets
        except RuntimeError as error:
            failure = worker_failure(error)
            if failure is None:
                raise
            self.kill()
            raise failure from error

    def close(self) -> None:
        """Stop the workers."""
        iterator, self._loader._iterator = self._loader._iterator, None
        end = getattr(iterator, "_shutdown_workers", None)
        if end is not None:
            end()

    def restore_skips(self, skips: Sequence[Skip]) -> None:
        """Add the skips of an interrupted run or of all its processes, each once; they are not reported again."""
        first: dict[str, Skip] = {}
        for skip in skips:
            first.setdefault(skip.where, skip)
        self.skips, self._named = list(first.values()), set(first)

    def _name(self, skipped: Sequence[tuple[str, str]]) -> None:
        for path, reason in skipped:
            if path not in self._named:
                self._named.add(path)
                self.skips.append(Skip("image", "unreadable_image", path, reason, "another image is used instead"))
                warn(path, reason, "another image is used instead")

    def kill(self) -> None:
        """Kill the workers: one that hangs does not answer a request."""
        with _ignoring_killed_workers():
            for worker in getattr(self._loader._iterator, "_workers", []):
                worker.kill()
                worker.join(1)
            self.close()


@contextlib.contextmanager
def _ignoring_killed_workers() -> Iterator[None]:
    """Keep torch's SIGCHLD handler from raising in unrelated code when a worker is killed on purpose."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def build_train_loader(
    index: DatasetIndex,
    input_size: Size,
    augment: AugmentConfig | None = None,
    letterbox: Letterbox | None = None,
    batch_size: int = 16,
    workers: int = 2,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    image_cache: Any = None,
    score_range: tuple[float, float] = SCORE_RANGE,
    balance: float = 0.0,
    sizes: Sequence[Size] = (),
    start_method: str | None = None,
) -> TrainLoader:
    """Build the training loader of an index.

    Args:
        batch_size: images per step for this process; a smaller last batch is kept.
        balance: threshold of `repeat_factors`; 0 uses each image once per epoch.

    The other arguments are those of `TrainDataset`, `EpochSampler` and `TrainLoader`.
    """
    factors = repeat_factors(index, balance) if balance > 0 else None
    dataset = TrainDataset(index, input_size, augment, seed, letterbox, image_cache, score_range, factors)
    sampler = EpochSampler(len(index), batch_size, seed, rank, world_size, factors, sizes)
    return TrainLoader(dataset, sampler, workers, start_method=start_method)


def label_weights(scores: np.ndarray, score_range: tuple[float, float]) -> np.ndarray:
    """(M,) float32 weights of detector-made labels: 0 below `score_range`, 1 above, linear in between."""
    low, high = score_range
    return np.clip((scores - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)


def fitting_workers(
    workers: int, batch_size: int, input_size: Size, taken: int = 0, shm: str = "/dev/shm"
) -> tuple[int, str]:
    """Limit the number of workers to shared memory and open files, and give the reason if reduced.

    Args:
        input_size: the largest of the run.
        taken: bytes of shared memory that will be used for other things.

    Batches come from workers through /dev/shm, of which a container has 64 MB by default: a batch that does not fit
    stalls the loader. Warns with the remedy if the number is reduced; raises the limit of open files if permitted.
    """
    if not workers:
        return 0, ""
    wanted, workers = workers, _open_files_for(workers)
    reason = "" if workers == wanted else "ulimit -n allows no more"
    if not workers or not os.path.isdir(shm):
        return workers, reason
    if not os.access(shm, os.W_OK) or os.statvfs(shm).f_flag & os.ST_RDONLY:
        warn(shm, "is not writable, which workers need to pass images", "images are loaded without workers")
        return 0, f"{shm} is not writable"
    free = max(shutil.disk_usage(shm).free - taken, 0)
    batch = batch_size * input_size[0] * input_size[1] * 3
    fit = int(SHM_SHARE * free // (batch * (PREFETCH + 1)))  # the waiting batches, and the one being made
    if fit >= workers:
        return workers, reason
    what = (
        f"{free / 2**20:.0f} MB are not enough for {counted(workers, 'worker')} with batches of {batch / 2**20:.3g} MB"
    )
    warn(shm, what, f"{counted(fit, 'worker is', 'workers are')} used; start the container with --shm-size 1g")
    return fit, f"{free / 2**20:.0f} MB of {shm} are not enough for more"


def _open_files_for(workers: int) -> int:
    """Ensure a file descriptor for each tensor in transit; otherwise tensors are sent through named files.

    Returns the number of workers that can start; warns if it is reduced.
    """
    try:
        import resource
    except ImportError:  # Windows
        return workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return workers
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    if soft >= OPEN_FILES:
        return workers
    what = f"{counted(soft, 'open file is', 'open files are')} too few for workers"
    fit = min(workers, max(soft - OTHER_FILES, 0) // FILES_PER_WORKER)
    todo = "" if fit == workers else f"; {counted(fit, 'worker is', 'workers are')} used, raise it with ulimit -n 1024"
    warn("ulimit -n", what, f"tensors are passed through named files instead{todo}")
    torch.multiprocessing.set_sharing_strategy("file_system")
    return fit


def multi_scale_sizes(input_size: tuple[int, int], part: float) -> list[tuple[int, int]]:
    """The sizes within the fraction `part` of `input_size`, in steps of 32; empty for none."""
    if not part:
        return []
    low, high = round(min(input_size) * (1 - part) / 32), round(min(input_size) * (1 + part) / 32)
    scales = [32 * n / min(input_size) for n in range(max(low, 1), high + 1)]
    sizes = [tuple(max(round(side * s / 32) * 32, 32) for side in input_size) for s in scales]
    return [size for size in sizes if size != SMALLEST]  # type: ignore[misc]


def _rare_images(index: DatasetIndex) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Boxes suitable for pasting: (their images, their rows, their cumulative probability), classes equally likely."""
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    usable = np.flatnonzero(~index.crowd & ~index.difficult & (sides > 8).all(1))
    if not len(usable):
        return None
    labels = index.labels[usable]
    chance = 1 / np.bincount(labels, minlength=len(index.class_names))[labels]
    owner = index.image_of_box
    return owner[usable], usable, np.cumsum(chance) / chance.sum()


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return error.what
    return getattr(error, "strerror", None) or str(error).strip().splitlines()[-1] if str(error) else repr(error)


def _start_worker(_worker_id: int) -> None:
    """Disable OpenMP in workers, and ignore group signals: the main process saves first, then stops them.

    Torch's own handlers stay: they stop a worker when the main process asks or has exited.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # not on Windows
        os.setpgid(0, 0)


def worker_failure(error: BaseException) -> RunError | None:
    """The message for the user if `error` is torch's error for a worker that died, hung or failed; else None.

    Torch reports a dead worker by a signal, so its error may be raised at any line of the training loop. A loop
    that converts errors should pass every RuntimeError to this function.
    """
    if not isinstance(error, RuntimeError) or "DataLoader" not in str(error):
        return None
    if "worker" not in str(error) and "timed out" not in str(error):
        return None
    cause = error.__cause__ or error.__context__
    text = str(cause) if isinstance(cause, RuntimeError) and "DataLoader worker" in str(cause) else str(error)
    last = text.strip().splitlines()[-1].strip().rstrip(".")
    kind, _, message = last.partition(": ")
    if kind.rsplit(".")[-1] in ("RunError", "MissingExtra"):  # our own error, raised in the worker
        where, _, what = message.partition(": ")
        what, _, todo = what.partition("; ")
        return RunError(where, what, todo or "see the messages above")
    return RunError("loader", last, "see the messages above, or use fewer --workers")
