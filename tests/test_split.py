"""Splits: stratified by class, near-duplicates kept together; image hashes recognise near-duplicates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.open import open_dataset
from data.tools.demo import DEMO_YEAR, write_demo
from data.tools.hashing import file_hashes, near_duplicate_groups, picture_hash, similar_pairs
from data.tools.split import check_shares, main, split_dataset, stratified_split
from imaging.scenes import draw_scene
from utils.errors import UserError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_demo(root, 30, 0, (96, 128))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- hashes ----------------------------------------------------------------------------------------------------------


def test_the_same_image_smaller_or_recompressed_has_nearly_the_same_hash(tmp_path: Path) -> None:
    image = draw_scene(0, 3)[0]
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    cv2.imwrite(str(tmp_path / "b.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 50])
    cv2.imwrite(str(tmp_path / "c.png"), cv2.resize(bgr, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(tmp_path / "other.png"), cv2.cvtColor(draw_scene(0, 4)[0], cv2.COLOR_RGB2BGR))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    names = ["a.png", "b.jpg", "c.png", "other.png", "broken.jpg", "missing.jpg"]
    hashes = file_hashes([tmp_path / name for name in names], workers=1)
    groups = near_duplicate_groups(hashes)
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups[2:].tolist())) == 4  # what cannot be read is like no other
    assert not hashes[4:].any()


def test_images_of_one_colour_are_not_near_duplicates() -> None:
    assert not picture_hash(np.full((50, 60, 3), 200, np.uint8)).any()
    assert len(set(near_duplicate_groups(np.zeros((3, 2), np.uint64)).tolist())) == 3


def test_pairs_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(1, 2**63, (40, 2)).astype(np.uint64)
    near = base.copy()
    for row in near:  # a few bits of each are turned
        for bit in rng.choice(64, int(rng.integers(0, 12)), replace=False):
            row[int(rng.integers(2))] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.concatenate([base, near, base[:5]])
    for distance in (0, 3, 8):
        groups = near_duplicate_groups(hashes, distance)
        table = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2) <= distance
        for first, second in zip(*np.nonzero(table), strict=True):
            assert groups[first] == groups[second]
        found = set(zip(*(part.tolist() for part in similar_pairs(hashes, distance)), strict=True))
        assert all(table[i, j] and i < j for i, j in found)


def test_nothing_has_no_groups() -> None:
    assert len(near_duplicate_groups(np.zeros((0, 2), np.uint64))) == 0
    assert file_hashes([]).shape == (0, 2)


# --- who goes where --------------------------------------------------------------------------------------------------


def test_every_image_is_dealt_once_and_every_class_by_the_shares() -> None:
    rng = np.random.default_rng(1)
    counts = (rng.random((1000, 12)) < np.geomspace(0.5, 0.01, 12)).astype(int) * rng.integers(1, 5, (1000, 12))
    parts = stratified_split(counts, np.arange(1000), SHARES)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1000))
    for name, share in SHARES.items():
        assert abs(len(parts[name]) - 1000 * share) <= 2
        wanted = share * (counts > 0).sum(axis=0)
        assert np.abs((counts[parts[name]] > 0).sum(axis=0) - wanted).max() < 3


def test_a_group_is_never_split() -> None:
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 60, 300)
    parts = stratified_split(rng.integers(0, 2, (300, 3)), groups, SHARES)
    sides = [set(groups[part].tolist()) for part in parts.values()]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_a_seed_gives_the_same_division_and_another_one_another() -> None:
    counts = np.random.default_rng(3).integers(0, 2, (200, 4))
    first, same, other = (stratified_split(counts, np.arange(200), SHARES, seed)["train"] for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_few_images_fill_as_many_splits_as_they_can(number: int) -> None:
    parts = stratified_split(np.ones((number, 1), int), np.arange(number), SHARES)
    assert sum(len(part) > 0 for part in parts.values()) == min(number, 3)


def test_images_without_objects_are_dealt_by_the_shares_too() -> None:
    parts = stratified_split(np.zeros((100, 2), int), np.arange(100), SHARES)
    assert [len(parts[name]) for name in SHARES] == [70, 10, 20]


def test_split_fractions_must_sum_to_one() -> None:
    assert check_shares({"train": 1.0, "val": 0.0}) == {"train": 1.0}
    for wrong in ({"train": 0.5, "val": 0.1}, {"train": 1.5, "val": -0.5}):
        with pytest.raises(UserError, match="add up to 1"):
            check_shares(wrong)


# --- the files -------------------------------------------------------------------------------------------------------


def test_voc_lists_are_a_data_set_of_their_own_and_the_source_is_untouched(demo: Path, tmp_path: Path) -> None:
    before = contents(demo)
    report = split_dataset(demo, SHARES, tmp_path / "out", seed=5)
    assert contents(demo) == before
    ids: list[str] = []
    for name in SHARES:
        index = open_dataset(tmp_path / "out", name, use_cache=False)
        assert len(index) == report.images[name]
        ids += index.image_ids.tolist()
    assert sorted(ids) == [f"{n:06d}" for n in range(30)]
    both = open_dataset(tmp_path / "out", "trainval", use_cache=False)
    assert len(both) == report.images["train"] + report.images["val"]
    with pytest.raises(UserError, match="--overwrite"):
        split_dataset(demo, SHARES, tmp_path / "out", seed=6)
    split_dataset(demo, SHARES, tmp_path / "out", seed=6, overwrite=True)


def test_in_place_must_be_given_explicitly(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--in-place"):
        split_dataset(demo, SHARES, tmp_path / "out", in_place=True)
    own = tmp_path / "own"
    shutil.copytree(demo, own)
    with pytest.raises(UserError, match="--overwrite"):
        split_dataset(own, SHARES, in_place=True)
    shutil.rmtree(own / DEMO_YEAR / "ImageSets")
    split_dataset(own, SHARES, in_place=True)
    assert len((own / DEMO_YEAR / "ImageSets" / "Main" / "val.txt").read_text().split()) == 3


def test_copies_of_a_photograph_stay_on_one_side(demo: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(demo, own)
    year = own / DEMO_YEAR
    for n in range(12):
        image = cv2.imread(str(year / "JPEGImages" / f"{n:06d}.jpg"))
        cv2.imwrite(str(year / "JPEGImages" / f"copy{n}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 80])
        shutil.copy(year / "Annotations" / f"{n:06d}.xml", year / "Annotations" / f"copy{n}.xml")
    report = split_dataset(own, SHARES, tmp_path / "out")
    side = {
        line: name
        for name in SHARES
        for line in (tmp_path / "out" / DEMO_YEAR / "ImageSets" / "Main" / f"{name}.txt").read_text().split()
    }
    assert report.groups_of_duplicates >= 10
    assert sum(side[f"{n:06d}"] == side[f"copy{n}"] for n in range(12)) >= 11


def test_coco_keeps_all_information_of_the_original(demo: Path, tmp_path: Path) -> None:
    source = tmp_path / "coco"
    (source / "annotations").mkdir(parents=True)
    (source / "train2017").mkdir()
    images, annotations = [], []
    for n in range(12):
        shutil.copy(demo / DEMO_YEAR / "JPEGImages" / f"{n:06d}.jpg", source / "train2017" / f"{n}.jpg")
        images.append({"id": 100 + n, "file_name": f"{n}.jpg", "height": 90, "width": 90, "flickr_url": f"u{n}"})
        box = {"id": 7 * n + 1, "image_id": 100 + n, "category_id": 3 if n % 2 else 90, "bbox": [1.5, 2, 30, 40.25]}
        annotations.append(box | {"area": 11.5, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6]]})
    categories = [{"id": 3, "name": "odd", "supercategory": "s"}, {"id": 90, "name": "even"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (source / "annotations" / "instances_train2017.json").write_text(text)
    split_dataset(source, {"train": 0.5, "val": 0.5}, tmp_path / "out")
    seen = []
    for name in ("train", "val"):
        index = open_dataset(tmp_path / "out", name, use_cache=False)
        assert len(index) == 6 and index.num_boxes == 6 and index.category_ids == (3, 90)
        written = json.loads((tmp_path / "out" / "annotations" / f"instances_{name}.json").read_text())
        assert all("flickr_url" in each for each in written["images"])
        seen += written["annotations"]
    assert sorted(seen, key=lambda each: each["id"]) == annotations


def test_yolo_gets_lists_and_a_yaml(demo: Path, tmp_path: Path) -> None:
    source = tmp_path / "yolo"
    for folder in ("images", "labels"):
        (source / folder / "train").mkdir(parents=True)
    for n in range(10):
        shutil.copy(demo / DEMO_YEAR / "JPEGImages" / f"{n:06d}.jpg", source / "images" / "train" / f"ü {n}.jpg")
        (source / "labels" / "train" / f"ü {n}.txt").write_text(f"{n % 2} 0.5 0.5 0.25 0.5\n")
    (source / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [b, a]\n")
    split_dataset(source, {"train": 0.8, "val": 0.2}, tmp_path / "out")
    index = open_dataset(tmp_path / "out", "train", use_cache=False)
    assert index.class_names == ("b", "a")
    assert np.bincount(index.labels).tolist() == [4, 4]
    assert len(open_dataset(tmp_path / "out", "val", use_cache=False)) == 2
    with pytest.raises(UserError, match="only for VOC"):
        split_dataset(source, {"train": 1.0}, in_place=True, overwrite=True)


def test_the_command_prints_a_table(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(demo), "--output", str(tmp_path / "out"), "--train", "0.5", "--val", "0.5", "--test", "0"])
    text = capsys.readouterr().out
    assert "balloon" in text and "val.txt" in text and "test" not in text.split("wrote")[0]
