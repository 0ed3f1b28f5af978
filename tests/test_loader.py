"""The loader: identical batches for any number of workers and processes; unreadable images and failed workers."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.augment import AugmentConfig, Photo
from data.image_cache import ImageCache, available_memory, build_image_cache
from data.index import DatasetIndex
from data.loader import (
    EpochSampler,
    SampleKey,
    TrainDataset,
    TrainLoader,
    build_train_loader,
    collate,
    repeat_factors,
)
from utils.errors import RunError, UserError

FULL = AugmentConfig(mosaic=0.6, mixup=0.3, copy_paste=0.3, rotate=5)


def make_index(folder: Path, num_images: int = 8, broken: tuple[int, ...] = ()) -> DatasetIndex:
    """Images of several sizes with one to three coloured boxes each; image i + 1 also has a crowd box."""
    rng = np.random.default_rng(0)
    paths, sizes, boxes, labels, crowd, difficult = [], [], [], [], [], []
    for i in range(num_images):
        height, width = 60 + 20 * (i % 4), 100 - 10 * (i % 3)
        image = rng.integers(0, 120, (height, width, 3), np.uint8)
        paths.append(folder / f"image {i}.{'jpg' if i % 2 else 'png'}")
        ok, data = cv2.imencode(paths[-1].suffix, image)
        assert ok
        paths[-1].write_bytes(b"<html>no picture</html>" if i in broken else data.tobytes())
        count = i % 3 + 1
        corner = rng.uniform(0, 30, (count, 2))
        sizes.append((height, width))
        boxes.append(np.hstack([corner, corner + 25]))
        labels.append(np.arange(count))
        crowd.append(np.arange(count) == 2)
        difficult.append(np.arange(count) == 1)
    return DatasetIndex.build(
        "made", ("a", "b", "c"), paths, list(range(num_images)), sizes, boxes, labels, difficult, crowd
    )


@pytest.fixture
def index(tmp_path: Path) -> DatasetIndex:
    return make_index(tmp_path)


def epoch(loader: TrainLoader, number: int, mosaic: bool = True) -> list[tuple[torch.Tensor, dict]]:
    loader.set_epoch(number, mosaic)
    return list(loader)


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0])
        and all(torch.equal(a[1][k], b[1][k]) for k in ("boxes", "labels", "image_index"))
        and a[1]["image_ids"] == b[1]["image_ids"]
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_has_the_promised_form(index: DatasetIndex) -> None:
    loader = build_train_loader(index, (64, 96), FULL, batch_size=3, workers=0)
    batches = epoch(loader, 0)
    assert [len(images) for images, _ in batches] == [3, 3, 2] and len(loader) == 3
    for images, targets in batches:
        assert images.shape[1:] == (3, 64, 96) and images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        boxes, count = targets["boxes"], len(targets["labels"])
        assert boxes.shape == (count, 4) and boxes.dtype == torch.float32
        assert targets["labels"].dtype == targets["image_index"].dtype == torch.int64
        assert targets["num_images"] == len(images) == len(targets["image_ids"])
        assert (boxes[:, 2:] - boxes[:, :2] >= 2).all() and (boxes >= 0).all()
        assert (boxes <= torch.tensor([96, 64, 96, 64])).all()
    assert sorted(i for _, t in batches for i in t["image_ids"]) == list(range(8))


def test_eight_images_and_a_batch_of_sixteen_give_one_batch_of_eight(index: DatasetIndex) -> None:
    batches = epoch(build_train_loader(index, (64, 64), FULL, batch_size=16, workers=0), 0)
    assert [len(images) for images, _ in batches] == [8]


def test_workers_epochs_and_restarts_change_nothing(index: DatasetIndex) -> None:
    alone = build_train_loader(index, (64, 64), FULL, batch_size=3, workers=0, seed=7)
    shared = build_train_loader(index, (64, 64), FULL, batch_size=3, workers=2, seed=7)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    epochs = [epoch(alone, 0), epoch(alone, 1)]
    assert same(epochs[0], epoch(shared, 0)) and same(epochs[1], epoch(shared, 1))
    shared.close()
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()
    restarted = build_train_loader(index, (64, 64), FULL, batch_size=3, workers=0, seed=7)
    assert same(epochs[1], epoch(restarted, 1))
    restarted.set_epoch(1, first_batch=2)
    assert same(epochs[1][2:], list(restarted))
    other_seed = build_train_loader(index, (64, 64), FULL, batch_size=3, workers=0, seed=8)
    assert not same(epochs[0], epochs[1]) and not same(epochs[0], epoch(other_seed, 0))


def test_a_spawned_worker_gives_the_same_batches(index: DatasetIndex) -> None:
    alone = build_train_loader(index, (64, 64), FULL, batch_size=4, workers=0)
    spawned = build_train_loader(index, (64, 64), FULL, batch_size=4, workers=1, start_method="spawn")
    assert same(epoch(alone, 2), epoch(spawned, 2))
    spawned.close()


def test_an_image_differs_between_epochs_and_repeats(index: DatasetIndex) -> None:
    dataset = TrainDataset(index, (64, 64), FULL, seed=1)
    made = [dataset[key]["image"] for key in (SampleKey(0, 3), SampleKey(1, 3), SampleKey(0, 3, repeat=1))]
    assert (made[0] == dataset[(0, 3, True)]["image"]).all()
    assert (made[0] != made[1]).any() and (made[0] != made[2]).any() and (made[1] != made[2]).any()


def test_without_mosaic_each_image_stands_alone(index: DatasetIndex) -> None:
    dataset = TrainDataset(index, (64, 64), AugmentConfig(mosaic=1.0, mixup=1.0, copy_paste=1.0), seed=1)
    assert all(len(dataset[(0, i, False)]["labels"]) <= 2 for i in range(8))


def test_crowds_are_not_learnt_but_difficult_objects_are(index: DatasetIndex) -> None:
    every = [TrainDataset(index, (64, 64)).targets(i)[1].tolist() for i in range(3)]
    assert every == [[0], [0, 1], [0, 1]]


def test_unreadable_images_are_replaced_named_once_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = make_index(tmp_path, broken=(2, 5))
    loader = build_train_loader(index, (64, 64), FULL, batch_size=3, workers=0)
    batches = epoch(loader, 0) + epoch(loader, 1)
    assert [len(images) for images, _ in batches] == [3, 3, 2] * 2
    assert {Path(skip.where).name for skip in loader.skips} == {"image 2.png", "image 5.jpg"}
    error = capsys.readouterr().err
    assert error.count("image 2.png") == 1 and error.count("image 5.jpg") == 1


def test_a_set_of_unreadable_images_ends_in_one_line(tmp_path: Path) -> None:
    index = make_index(tmp_path, 3, broken=(0, 1, 2))
    for workers in (0, 1):
        loader = build_train_loader(index, (64, 64), FULL, batch_size=3, workers=workers)
        with pytest.raises(RunError, match="consecutive images cannot be read") as caught:
            epoch(loader, 0)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


class _SlowDataset(TrainDataset):
    def __getitem__(self, key: tuple) -> dict:
        time.sleep(600)
        return super().__getitem__(key)


class _DyingDataset(TrainDataset):
    def __getitem__(self, key: tuple) -> dict:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


@pytest.mark.parametrize(
    ("kind", "timeout", "words"),
    [(_SlowDataset, 1.0, "timed out after 1"), (_DyingDataset, 250.0, "killed by signal")],  # a start may take seconds
)
def test_a_worker_that_hangs_or_dies_is_an_error_in_time(
    index: DatasetIndex, kind: type, timeout: float, words: str
) -> None:
    loader = TrainLoader(kind(index, (64, 64)), EpochSampler(8, 4), workers=1, timeout=timeout)
    began = time.monotonic()
    with pytest.raises(RunError, match=words):
        epoch(loader, 0)
    loader.close()
    assert time.monotonic() - began < 300


@pytest.mark.skipif(not hasattr(os, "setpgid"), reason="process groups are POSIX")
def test_workers_are_out_of_reach_of_signals_to_the_group_and_end_when_closed(index: DatasetIndex) -> None:
    loader = build_train_loader(index, (64, 64), FULL, batch_size=4, workers=1)
    epoch(loader, 0)
    (worker,) = loader._loader._iterator._workers
    assert os.getpgid(worker.pid) != os.getpgrp()
    loader.close()
    assert worker.exitcode == 0


def keys_of(sampler: EpochSampler, number: int) -> list[list[SampleKey]]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize(("num_images", "world_size", "batch_size"), [(17, 2, 4), (16, 4, 2), (10, 3, 2), (5, 4, 1)])
def test_processes_divide_an_epoch_completely_and_like_one_process(
    num_images: int, world_size: int, batch_size: int
) -> None:
    ranks = [keys_of(EpochSampler(num_images, batch_size, 3, rank, world_size), 5) for rank in range(world_size)]
    whole = keys_of(EpochSampler(num_images, batch_size * world_size, 3), 5)
    assert len({len(batches) for batches in ranks}) == 1 and len(ranks[0]) == len(whole)
    assert all(batch for batches in ranks for batch in batches)
    for step, batch in enumerate(whole):
        together = [key for batches in ranks for key in batches[step]]
        padding = max(world_size - len(batch), 0)
        assert together[: len(batch)] == batch and len(together) == len(batch) + padding
    used = [key for batches in ranks for batch in batches for key in batch]
    assert {key.image for key in used} == set(range(num_images)) and len(set(used)) == len(used)


def test_each_epoch_has_its_own_order_and_steps_share_one_size() -> None:
    sampler = EpochSampler(50, 8, seed=1, sizes=[(64, 64), (96, 96), (128, 128)])
    first, second = keys_of(sampler, 0), keys_of(sampler, 1)
    assert [key.image for batch in first for key in batch] != [key.image for batch in second for key in batch]
    assert all(len({key.size for key in batch}) == 1 for batch in first)
    assert len({batch[0].size for batch in first + second}) == 3


def test_multi_scale_batches_have_the_sizes_that_were_drawn(index: DatasetIndex) -> None:
    loader = build_train_loader(index, (64, 64), FULL, batch_size=4, workers=0, sizes=[(32, 32), (64, 96)])
    shapes = {tuple(images.shape[2:]) for number in range(4) for images, _ in epoch(loader, number)}
    assert shapes == {(32, 32), (64, 96)}


def test_rare_classes_are_repeated_by_their_factor() -> None:
    labels = [[0]] * 96 + [[1]] * 4
    index = DatasetIndex.build(
        "made", ("a", "b"), ["x"] * 100, list(range(100)), [(9, 9)] * 100, [np.ones((1, 4))] * 100, labels
    )
    factors = repeat_factors(index, 0.16)
    assert factors[:96] == pytest.approx(1) and factors[96:] == pytest.approx(2)
    sampler = EpochSampler(100, 10, repeat_factors=factors)
    counts = np.zeros(100)
    for number in range(5):
        keys = [key for batch in keys_of(sampler, number) for key in batch]
        assert len(keys) == 104 and len(set(keys)) == 104 and len(sampler) == 11
        counts += np.bincount([key.image for key in keys], minlength=100)
    assert counts[:96].min() == counts[:96].max() == 5 and counts[96:].tolist() == [10] * 4


def test_images_without_boxes_make_a_batch(tmp_path: Path) -> None:
    part = make_index(tmp_path, 1)
    none = [np.zeros((0, 4))] * 2
    index = DatasetIndex.build("made", ("a",), [part.path(0)] * 2, [0, 1], [(60, 100)] * 2, none, [[], []])
    dataset = TrainDataset(index, (64, 64), FULL)
    images, targets = collate([dataset[(0, 0, True)], dataset[(0, 1, False)]])
    assert images.shape == (2, 3, 64, 64) and targets["boxes"].shape == (0, 4) and targets["labels"].shape == (0,)


def test_the_dataset_can_be_sent_to_a_process(index: DatasetIndex) -> None:
    dataset = TrainDataset(index, (64, 64), FULL)
    copy = pickle.loads(pickle.dumps(dataset))
    assert (copy[(0, 1, True)]["image"] == dataset[(0, 1, True)]["image"]).all()


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_a_cache_gives_the_same_batches_to_all_workers_and_reads_no_file_twice(
    index: DatasetIndex, tmp_path: Path, mode: str
) -> None:
    cache = build_image_cache(index, (64, 64), mode, tmp_path / "cache")
    assert cache is not None
    shared = build_train_loader(index, (64, 64), FULL, batch_size=4, workers=2, image_cache=cache)
    first, second = epoch(shared, 0), epoch(shared, 1)
    for i in range(len(index)):
        index.path(i).unlink()
    alone = build_train_loader(index, (64, 64), FULL, batch_size=4, workers=0, image_cache=cache)
    assert same(first, epoch(alone, 0)) and same(second, epoch(alone, 1))
    shared.close()
    cache.close()


def test_cached_boxes_and_pixels_are_those_of_the_file(index: DatasetIndex) -> None:
    cache = ImageCache(index, 1000)
    plain = build_train_loader(index, (64, 64), AugmentConfig.none(), batch_size=8, workers=0)
    cached = build_train_loader(index, (64, 64), AugmentConfig.none(), batch_size=8, workers=0, image_cache=cache)
    assert same(epoch(plain, 0), epoch(cached, 0)) and same(epoch(plain, 1), epoch(cached, 1))
    cache.close()


def test_a_cache_on_disk_is_reused_until_a_file_changes(index: DatasetIndex, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    decoded: list[int] = []

    def count(cache: ImageCache) -> int:
        loader = build_train_loader(index, (64, 64), AugmentConfig.none(), batch_size=8, workers=0)
        decoded.clear()

        def decode(i: int, size: tuple[int, int] | None) -> Photo:
            decoded.append(i)
            return loader.dataset.reader.read(i, size)

        for i in range(len(index)):
            cache.read(i, decode)
        return len(decoded)

    assert count(ImageCache(index, 64, "disk", folder)) == 8
    assert count(ImageCache(index, 64, "disk", folder)) == 0
    (file,) = folder.iterdir()
    with open(file, "r+b") as stream:  # pixels that never reached the disk
        stream.seek(8 * 4 + 10)
        stream.write(b"\0" * 100)
    assert count(ImageCache(index, 64, "disk", folder)) == 1
    os.utime(index.path(3), (1, 1))
    assert count(ImageCache(index, 64, "disk", folder)) == 8


def test_an_image_of_another_size_than_stated_is_used_but_not_kept(index: DatasetIndex) -> None:
    index.sizes[2] = (11, 12)
    index.sizes[3] = (0, 0)
    cache = ImageCache(index, 64)
    loader = build_train_loader(index, (64, 64), AugmentConfig.none(), batch_size=8, workers=0, image_cache=cache)
    plain = build_train_loader(
        make_index(index.path(0).parent), (64, 64), AugmentConfig.none(), batch_size=8, workers=0
    )
    for _ in range(2):
        both = epoch(loader, 0)[0][1], epoch(plain, 0)[0][1]
        assert torch.allclose(both[0]["boxes"], both[1]["boxes"], atol=1.0)
    cache.close()


def test_a_cache_that_does_not_fit_is_rejected_with_both_figures(tmp_path: Path) -> None:
    index = make_index(tmp_path, 1)
    side = int((available_memory() / 3) ** 0.5) + 1
    if side > 1_000_000:
        pytest.skip("this system does not say how much memory is free")
    index.sizes[:] = side
    with pytest.raises(UserError, match=r"ram needs .* GB .* are free"):
        ImageCache(index, side)
    index.sizes[:] = 10_000_000
    with pytest.raises(UserError, match="disk needs"):
        ImageCache(index, 10_000_000, "disk", tmp_path / "cache")
    assert build_image_cache(index, (64, 64), "none") is None
