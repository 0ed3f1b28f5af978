"""Small data sets of every format, made afresh for a test: textured pictures, one or two boxes each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from imaging.image_io import write_image

HEIGHT, WIDTH = 120, 160
Object = tuple[str, float, float, float, float]  # name and VOC's own xmin, ymin, xmax, ymax
DOG: Object = ("dog", 11, 21, 60, 80)
CAT: Object = ("cat", 71, 31, 140, 110)


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, 3) uint8: smooth random colours, which JPEG preserves and which differ between images."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def voc_xml_text(name: str, objects: Sequence[Object], height: int = HEIGHT, width: int = WIDTH) -> str:
    """A VOC annotation. Each object begins on a new line."""
    boxes = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for label, x1, y1, x2, y2 in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{name}.jpg</filename>\n{size}\n{boxes}</annotation>\n"


def make_voc(root: Path, train: int = 4, val: int = 2, year: str = "VOC2007") -> Path:
    """A devkit with ids a0, a1, ... in train and b0, ... in val; each image has a dog and a cat."""
    folder = root / year
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    splits = {"train": [f"a{i}" for i in range(train)], "val": [f"b{i}" for i in range(val)]}
    for split, names in splits.items():
        for number, name in enumerate(names):
            write_image(folder / "JPEGImages" / f"{name}.jpg", picture(number + 100 * (split == "val")))
            (folder / "Annotations" / f"{name}.xml").write_text(voc_xml_text(name, [DOG, CAT]))
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def make_coco(root: Path, train: int = 4, val: int = 2) -> dict[str, dict]:
    """annotations/instances_{train,val}2017.json with category ids 3 (dog) and 7 (cat); returns their contents."""
    (root / "annotations").mkdir(parents=True)
    contents = {}
    for split, count, first in (("train2017", train, 1), ("val2017", val, 101)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(first, first + count):
            write_image(root / split / f"{i:012d}.jpg", picture(i))
            images.append({"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH})
            for category, box in ((3, [10, 20, 50, 60]), (7, [70.5, 30.25, 70, 80])):
                row = {"id": 10 * i + category, "image_id": i, "category_id": category, "bbox": box, "iscrowd": 0}
                annotations.append(row | {"area": box[2] * box[3] / 2, "segmentation": [[1, 2, 3, 4, 5, 6]]})
        categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        contents[split] = {"images": images, "annotations": annotations, "categories": categories}
        write_coco(root, split, contents[split])
    return contents


def write_coco(root: Path, split: str, content: object) -> None:
    """Rewrite one annotation file of a data set of `make_coco`."""
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def make_yolo(root: Path, train: int = 4, val: int = 2) -> Path:
    """data.yaml, images/{train,val}/, labels/{train,val}/; returns the yaml's path."""
    for split, count, first in (("train", train, 0), ("val", val, 100)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i in range(count):
            write_image(root / "images" / split / f"p{first + i}.jpg", picture(first + i))
            (root / "labels" / split / f"p{first + i}.txt").write_text("0 0.25 0.5 0.25 0.5\n1 0.75 0.5 0.25 0.25\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: dog\n  1: cat\n")
    return root / "data.yaml"
