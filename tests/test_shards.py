"""Tar shards: each image once per epoch, from a folder and over HTTP, and resuming within an epoch."""

from __future__ import annotations

import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from data import shards as shards_module
from data.augment import AugmentConfig
from data.index import DatasetIndex
from data.loader import TrainLoader
from data.open import open_dataset
from data.shards import build_shard_loader, open_shards, write_shards
from data.tools.demo import write_demo
from utils.errors import MissingExtra, RunError, UserError

SIDE = (32, 32)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    folder = write_demo(tmp_path_factory.mktemp("data"), 14, sides=(48, 64))
    names = sorted(path.stem for path in (folder / "JPEGImages").iterdir())
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names[:13]) + "\n")
    return open_dataset(folder, "train")


@pytest.fixture(scope="module")
def folder(index: DatasetIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(index, tmp_path_factory.mktemp("shards") / "out", images_per_shard=4)


@pytest.fixture
def cutting() -> set[str]:
    """Names of files for which the server at `address` breaks the connection once."""
    return set()


@pytest.fixture
def address(folder: Path, cutting: set[str]) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:  # type: ignore[override]
            name = self.path.rpartition("/")[2]
            if name not in cutting:
                return super().copyfile(source, outputfile)
            cutting.discard(name)
            outputfile.write(source.read((folder / name).stat().st_size // 2))

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _loader(
    location: str | Path, rank: int = 0, world_size: int = 1, workers: int = 0, batch_size: int = 3
) -> TrainLoader:
    places = {"rank": rank, "world_size": world_size, "workers": workers, "batch_size": batch_size}
    return build_shard_loader(open_shards(location), SIDE, AugmentConfig(), seed=5, shuffled=4, **places)


def _ids(loader: TrainLoader) -> list[list[str]]:
    return [targets["image_ids"] for _, targets in loader]


def test_a_shard_contains_each_unchanged_file_and_its_boxes_under_one_key(index: DatasetIndex, folder: Path) -> None:
    where = {image_id: i for i, image_id in enumerate(index.image_ids.tolist())}
    files = sorted(folder.glob("*.tar"))
    assert len(files) == 4
    seen = []
    for path in files:
        with tarfile.open(path) as tar:
            names = tar.getnames()
            for name in names[::2]:
                key = name.partition(".")[0]
                facts = json.loads(tar.extractfile(f"{key}.json").read())  # type: ignore[union-attr]
                i = where[facts["image_id"]]
                seen.append(facts["image_id"])
                assert tar.extractfile(name).read() == index.path(i).read_bytes()  # type: ignore[union-attr]
                boxes = np.reshape(facts["boxes_xyxy"], (-1, 4))
                np.testing.assert_allclose(boxes, index.target(i)["boxes"], atol=1e-3)
    assert sorted(seen) == sorted(where)
    assert seen != sorted(seen)  # each shard is a sample of the whole


def test_the_annotations_of_opened_shards_are_those_of_the_data(index: DatasetIndex, folder: Path) -> None:
    opened = open_shards(folder).index
    assert opened.class_names == index.class_names
    assert sorted(opened.image_ids.tolist()) == sorted(index.image_ids.tolist())
    assert opened.num_boxes == index.num_boxes


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (3, 0)])
def test_an_epoch_gives_each_image_once_in_as_many_batches_everywhere(
    index: DatasetIndex, folder: Path, world_size: int, workers: int
) -> None:
    loaders = [_loader(folder, rank, world_size, workers) for rank in range(world_size)]
    orders = []
    for epoch in (0, 1):
        for loader in loaders:
            loader.set_epoch(epoch)
        batches = [_ids(loader) for loader in loaders]
        assert {len(each) for each in batches} == {len(loaders[0])}
        found = [name for each in batches for batch in each for name in batch]
        assert Counter(found) == Counter(index.image_ids.tolist())
        orders.append(found)
    assert orders[0] != orders[1]
    for loader in loaders:
        loader.close()


def test_no_process_is_a_batch_short_though_images_do_not_divide(folder: Path) -> None:
    batches = [_ids(_loader(folder, rank, 2, batch_size=1)) for rank in range(2)]
    assert [len(each) for each in batches] == [7, 7]
    assert all(len(batch) == 1 for each in batches for batch in each)
    assert len({name for each in batches for batch in each for name in batch}) == 13


@pytest.mark.parametrize(("workers", "over_http"), [(0, False), (2, False), (0, True)])
def test_an_epoch_is_resumed_in_the_middle_with_the_same_images(
    folder: Path, address: str, workers: int, over_http: bool
) -> None:
    whole, rest = _loader(folder, workers=workers), _loader(address if over_http else folder, workers=workers)
    whole.set_epoch(1)
    rest.set_epoch(1, first_batch=3)
    for (one, one_targets), (two, two_targets) in zip(list(whole)[3:], list(rest), strict=True):
        assert one_targets["image_ids"] == two_targets["image_ids"]
        assert torch.equal(one, two)
        assert torch.equal(one_targets["boxes"], two_targets["boxes"])
    whole.close()
    rest.close()


def test_resuming_an_epoch_does_not_download_earlier_shards() -> None:
    order = list(range(1000, 1300))
    asked: list[int] = []

    def stream_from(place: int) -> Iterator[tuple[int, bytes]]:
        asked.append(place)
        return ((i, str(i).encode()) for i in order[place:])

    whole, rest = (shards_module._Window(order, stream_from, 8) for _ in range(2))
    whole.open()
    first, second = (np.random.default_rng(3) for _ in range(2))
    for number in range(300):
        if number == 250:
            rest.open()
        assert whole.next(first) == rest.next(second)
        if number >= 250:
            assert whole.data == rest.data
            assert all(data == str(i).encode() for i, data in rest.data.items())
            assert set(rest.data) == {*rest.waiting, *rest.used}
    assert asked[0] == 0
    assert asked[1] > 150


def test_shards_are_read_through_fsspec(folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs the extra `shards`")
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/set/", recursive=True)
    for (one, _), (two, _) in zip(_loader(folder), _loader("memory://set"), strict=True):
        assert torch.equal(one, two)


def test_webdataset_reads_the_shards(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="only this test needs it")
    theirs = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    read = [json.loads(sample["json"])["image_id"] for sample in theirs]
    assert read == open_shards(folder).index.image_ids.tolist()


def test_http_gives_what_the_folder_gives(folder: Path, address: str) -> None:
    here, there = _loader(folder), _loader(address + "/")
    for (one, _), (two, _) in zip(here, there, strict=True):
        assert torch.equal(one, two)


def test_a_server_that_breaks_off_is_asked_again(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch, cutting: set[str]
) -> None:
    monkeypatch.setattr(shards_module, "FIRST_WAIT", 0)
    cutting.update(path.name for path in folder.glob("*.tar"))
    assert _ids(_loader(address)) == _ids(_loader(folder))
    assert not cutting


def test_a_broken_connection_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _ids(_loader(folder))
    breaks = iter([2, 1])
    real = shards_module._samples

    def breaking(stream: object, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        left = next(breaks, 99)
        for number, item in enumerate(real(stream, first, end)):  # type: ignore[arg-type]
            if number == left:
                raise ConnectionResetError("reset by peer")
            yield item

    monkeypatch.setattr(shards_module, "_samples", breaking)
    monkeypatch.setattr(shards_module, "FIRST_WAIT", 0)
    assert _ids(_loader(folder)) == expected


def test_a_permanently_broken_shard_ends_the_run_with_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "FIRST_WAIT", 0)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    cut = tmp_path / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[:1500])
    with pytest.raises(RunError, match=r"shard-000002\.tar: cannot be read"):
        list(_loader(tmp_path))


def test_an_image_that_cannot_be_decoded_is_named_and_replaced(index: DatasetIndex, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    data = index.path(2).read_bytes()
    bad.write_bytes(data[: len(data) // 3])
    paths = [str(index.path(i)) if i != 2 else str(bad) for i in range(len(index))]
    raw = [np.frombuffer(path.encode(), np.uint8) for path in paths]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in raw])])
    spoilt = shards_module.DatasetIndex(
        **{f: getattr(index, f) for f in ("name", "class_names", *shards_module._ARRAYS)}
        | {"path_bytes": np.concatenate(raw), "path_offsets": offsets}
    )
    loader = _loader(write_shards(spoilt, tmp_path / "out", 5))
    assert sum(len(batch) for batch in _ids(loader)) == 13
    assert [Path(skip.where).name for skip in loader.skips] == ["bad.jpg"]


def test_faulty_shards_are_reported(folder: Path, tmp_path: Path, index: DatasetIndex) -> None:
    with pytest.raises(UserError, match="contains no shards"):
        open_shards(tmp_path)
    with pytest.raises(UserError, match="exists and is not empty"):
        write_shards(index, folder)
    with pytest.raises(UserError, match="--copy-paste"):
        build_shard_loader(open_shards(folder), SIDE, AugmentConfig(copy_paste=0.5))
    with pytest.raises(UserError, match="fewer than the workers"):
        build_shard_loader(open_shards(folder), SIDE, workers=2, world_size=8)
    (tmp_path / "shards.json").write_text(
        '{"class_names": ["a"], "name": "x", "shards": [{"file": "../a", "images": 13}]}'
    )
    (tmp_path / "index.npz").write_bytes((folder / "index.npz").read_bytes())
    with pytest.raises(UserError, match="do not match"):
        open_shards(tmp_path)


@pytest.mark.parametrize("package", ["fsspec", "s3fs"])
def test_other_addresses_need_a_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtra, match=f"pip install {package}"):
        shards_module.open_stream("s3://bucket/shard-000000.tar")
    with pytest.raises(MissingExtra, match=f"pip install {package}"):
        open_shards("s3://bucket")


def test_an_unknown_url_is_an_error() -> None:
    with pytest.raises(UserError, match="contains no shards: Protocol not known: nope"):
        open_shards("nope://bucket")


def test_the_command_writes_the_split_to_train_on(
    index: DatasetIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards_module.main(
        [str(index.path(0).parent.parent), str(tmp_path / "out"), "--split", "train", "--images-per-shard", "8"]
    )
    assert "13 images" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
