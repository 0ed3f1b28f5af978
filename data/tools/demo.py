"""Draw a small synthetic VOC-format data set: landscapes, coasts and seabeds with six kinds of objects."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.formats.writers import voc_xml, write_lines
from imaging.image_io import write_image
from imaging.scenes import SCENE_CLASSES, SIDES, draw_scene
from utils.config import option, parse_options
from utils.errors import UserError
from utils.text import counted, quoted

DEMO_YEAR = "VOC2026"
DEMO_VERSION = 1  # increase it if the images change, so that folders of older versions are not reused
TRAIN_SHARE, VAL_SHARE = 0.70, 0.10  # the rest is the test split


def split_demo(num_images: int, seed: int) -> dict[str, list[int]]:
    """Image numbers of train, val, trainval and test; from 3 images on, none is empty."""
    order = np.random.default_rng([seed, 2**31]).permutation(num_images)
    num_val = max(round(num_images * VAL_SHARE), 1) if num_images > 2 else 0
    num_test = max(round(num_images * (1 - TRAIN_SHARE - VAL_SHARE)), 1) if num_images > 1 else 0
    test, val, train = np.split(order, [num_test, num_test + num_val])
    parts = {"train": train, "val": val, "trainval": np.concatenate([train, val]), "test": test}
    return {name: sorted(int(n) for n in part) for name, part in parts.items()}


def write_demo(
    root: str | Path, num_images: int = 400, seed: int = 0, sides: tuple[int, int] = SIDES, overwrite: bool = False
) -> Path:
    """Write a VOC-format set of drawn images to `root/VOC2026`; the same arguments give the same bytes.

    Args:
        root: the VOCdevkit folder.
        num_images: number of images, split 70 / 10 / 20 into train, val and test.
        seed, sides: as in `draw_scene`.
        overwrite: replace a demo set made with other arguments; one made with the same is kept.

    Raises:
        UserError: if the folder has other content.
    """
    if num_images < 1:
        raise UserError("--num-images", f"{num_images} is out of range", "give 1 or more")
    if seed < 0:
        raise UserError("--seed", f"{seed} is negative", "give 0 or more")
    folder = Path(root) / DEMO_YEAR
    facts = {"version": DEMO_VERSION, "num_images": num_images, "seed": seed, "sides": list(sides)}
    if folder.exists():
        written = _written_facts(folder)
        if written == facts and not overwrite:
            return folder
        if written is None:  # not a demo set: --overwrite must not delete other images
            raise UserError(folder, "exists and is not a demo set", "choose another folder")
        if not overwrite:
            raise UserError(folder, "contains another demo set", "choose another folder, or give --overwrite")
    partial = folder.with_name(f".{DEMO_YEAR}.partial")  # so that an interrupted run leaves no incomplete set
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("JPEGImages", "Annotations"):
        (partial / name).mkdir(parents=True)
    for number in tqdm(range(num_images), desc="drawing", unit="picture", leave=False, disable=None):
        _write_one(partial, seed, number, sides)
    for split, numbers in split_demo(num_images, seed).items():
        write_lines(partial / "ImageSets" / "Main" / f"{split}.txt", (f"{n:06d}" for n in numbers))
    (partial / "demo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return folder


def _write_one(folder: Path, seed: int, number: int, sides: tuple[int, int]) -> None:
    image, objects = draw_scene(seed, number, sides)
    name = f"{number:06d}"
    write_image(folder / "JPEGImages" / f"{name}.jpg", image, quality=92)
    boxes = np.array([each.box for each in objects], float).reshape(-1, 4)
    flags = ("truncated", "occluded")
    fields = [{flag: str(int(getattr(each, flag))) for flag in flags} for each in objects]
    difficult = [each.difficult for each in objects]
    names = [each.name for each in objects]
    text = voc_xml(f"{name}.jpg", image.shape[:2], boxes, names, difficult, fields, DEMO_YEAR)
    (folder / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")


def _written_facts(folder: Path) -> object:
    try:
        return json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class DemoOptions:
    """Options of `dataset.py demo`."""

    output: str = option("", "output folder, a VOCdevkit", positional=True, metavar="DIR")
    num_images: int = option(400, "number of images: 70 % train, 10 % val, 20 % test", low=1, high=100_000)
    seed: int = option(0, "random seed of the images", low=0)
    overwrite: bool = option(False, "replace an existing demo set")


def main(argv: list[str] | None = None) -> None:
    """`dataset.py demo DIR`."""
    options = parse_options(DemoOptions, argv, prog="dataset.py demo", description=__doc__.splitlines()[0])
    folder = write_demo(options.output, options.num_images, options.seed, overwrite=options.overwrite)
    parts = split_demo(options.num_images, options.seed)
    counts = ", ".join(f"{name} {len(parts[name])}" for name in ("train", "val", "test"))
    print(f"{folder}: {counted(options.num_images, 'image')} ({counts}) of {', '.join(SCENE_CLASSES)}")
    print(f"train on it with: python train.py --data {quoted(options.output)}")
