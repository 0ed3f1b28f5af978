"""The demo data set: complete, deterministic and varied; existing files are not overwritten."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from data.tools.demo import DEMO_YEAR, main, split_demo, write_demo
from imaging.scenes import SCENE_CLASSES, draw_scene
from utils.errors import UserError

SMALL = (96, 128)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, second, other = (
        contents(write_demo(tmp_path / name, 4, seed, SMALL)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second
    assert first["JPEGImages/000000.jpg"] != other["JPEGImages/000000.jpg"]


def test_the_folder_is_a_whole_voc_year(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, 8, 3, SMALL)
    assert folder == tmp_path / DEMO_YEAR
    assert [path.name for path in tmp_path.iterdir()] == [DEMO_YEAR]  # nothing half-written is left
    splits = {path.stem: path.read_text().split() for path in (folder / "ImageSets" / "Main").iterdir()}
    assert sorted(splits) == ["test", "train", "trainval", "val"]
    assert sorted(splits["train"] + splits["val"] + splits["test"]) == [f"{n:06d}" for n in range(8)]
    assert sorted(splits["train"] + splits["val"]) == splits["trainval"]
    for number in range(8):
        image = cv2.imread(str(folder / "JPEGImages" / f"{number:06d}.jpg"))
        root = ElementTree.parse(folder / "Annotations" / f"{number:06d}.xml").getroot()
        height, width = image.shape[:2]
        assert (int(root.findtext("size/height", "0")), int(root.findtext("size/width", "0"))) == (height, width)
        assert min(height, width) >= 96 and max(height, width) <= 128
        for each in root.iter("object"):
            assert each.findtext("name") in SCENE_CLASSES
            x1, y1, x2, y2 = (int(each.findtext(f"bndbox/{k}", "0")) for k in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= x1 < x2 <= width and 1 <= y1 < y2 <= height


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path: Path) -> None:
    few, many = (
        contents(write_demo(tmp_path / "few", 2, 0, SMALL)),
        contents(write_demo(tmp_path / "many", 3, 0, SMALL)),
    )
    assert few["JPEGImages/000001.jpg"] == many["JPEGImages/000001.jpg"]


def test_every_class_and_difficulty_occurs_and_some_images_are_empty() -> None:
    scenes = [draw_scene(0, number, (160, 208))[1] for number in range(60)]
    names = Counter(each.name for objects in scenes for each in objects)
    assert set(names) == set(SCENE_CLASSES)
    assert any(not objects for objects in scenes)
    every = [each for objects in scenes for each in objects]
    assert any(each.occluded for each in every) and any(each.truncated for each in every)
    areas = np.sqrt([(e.box[2] - e.box[0]) * (e.box[3] - e.box[1]) for e in every])
    assert areas.max() > 4 * areas.min()


def test_existing_files_are_kept_unless_overwrite_is_given(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, 2, 0, SMALL)
    before = (folder / "demo.json").stat().st_mtime_ns
    assert write_demo(tmp_path, 2, 0, SMALL) == folder
    assert (folder / "demo.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="--overwrite"):
        write_demo(tmp_path, 3, 0, SMALL)
    write_demo(tmp_path, 3, 0, SMALL, overwrite=True)
    assert len(list((folder / "JPEGImages").iterdir())) == 3
    (folder / "demo.json").unlink()
    with pytest.raises(UserError, match="not a demo set"):
        write_demo(tmp_path, 3, 0, SMALL, overwrite=True)


@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"seed": -1}])
def test_wrong_numbers_are_named(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match="--"):
        write_demo(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_images", [1, 2, 3, 8, 400])
def test_splits_are_disjoint_and_complete(num_images: int) -> None:
    parts = split_demo(num_images, 0)
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == list(range(num_images))
    assert parts["trainval"] == sorted(parts["train"] + parts["val"])
    if num_images > 2:
        assert all(parts.values())


def test_the_command_reports_its_output_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--num-images", "3", "--seed", "2"])
    text = capsys.readouterr().out
    assert "3 images (train 1, val 1, test 1)" in text and f"--data {tmp_path}" in text
