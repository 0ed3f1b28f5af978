"""Measure the data set index at the size of COCO train2017: time and memory without and with the cache.

Makes 118,287 small pictures and a JSON of 860,001 boxes with outlines in a folder that it removes again:

    python -m benchmarks.index
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import command_cost
from imaging.image_io import write_image
from utils.config import option, parse_options
from utils.errors import run_command
from utils.text import counted

LINKS = 20_000  # hard links per image file: file systems limit their number
OUTLINE = 20  # points per segmentation outline, for about the size of the official file (450 MB)


@dataclass(frozen=True)
class Options:
    """The options of this script."""

    images: int = option(118_287, "number of images", low=1)
    boxes: int = option(860_001, "number of boxes", low=1)
    folder: str | None = option(None, "folder for the generated data (default: a temporary folder)", metavar="DIR")


def main(argv: list[str] | None = None) -> int:
    """Generate the data, open it twice in new processes, and print time and memory."""
    options = parse_options(Options, argv, description=__doc__ or "")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder) / "coco"
        start = time.perf_counter()
        size = make_data(root, options.images, options.boxes)
        print(
            f"made {counted(options.images, 'image')}, {counted(options.boxes, 'box')}, {size / 1e6:.0f} MB of JSON",
            end=" ",
        )
        print(f"in {time.perf_counter() - start:.0f} s", flush=True)
        cache = {"MOBILENET_YOLO_CACHE": str(Path(folder) / "cache")}
        reader = "from data.open import open_dataset"
        statements = {
            "imports alone": reader,
            "first start": f"{reader}\nprint(open_dataset({str(root)!r}, 'train').boxes.sum())",
        }
        statements["second start"] = statements["first start"]
        for words, statement in statements.items():
            cost = command_cost([sys.executable, "-c", statement], **cache)
            print(
                f"{words:13}: {cost.wall:.2f} s ({cost.cpu:.2f} s of CPU), {cost.memory / 1e6:.0f} MB peak memory",
                flush=True,
            )
    return 0


def make_data(root: Path, images: int, boxes: int) -> int:
    """Write the data set. Returns the size of its JSON file in bytes."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    rng = np.random.default_rng(0)
    original = ""
    for i in range(images):
        path = root / "train2017" / f"{i + 1:012d}.jpg"
        if i % LINKS == 0:
            write_image(path, rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            original = str(path)
        else:
            os.link(original, path)
    owners, places = rng.integers(0, images, boxes), rng.uniform(0, 30, (boxes, 2)).round(2)
    sizes, labels = rng.uniform(1, 18, (boxes, 2)).round(2), rng.integers(1, 81, boxes)
    path = root / "annotations" / "instances_train2017.json"
    outline = [round(float(value), 2) for value in rng.uniform(0, 48, 2 * OUTLINE)]
    with open(path, "w") as file:
        entries = (
            json.dumps({"id": i + 1, "file_name": f"{i + 1:012d}.jpg", "height": 48, "width": 64})
            for i in range(images)
        )
        file.write('{"images": [' + ",".join(entries) + '], "annotations": [')
        for m in range(boxes):
            box = [*places[m].tolist(), *sizes[m].tolist()]
            row = {"id": m + 1, "image_id": int(owners[m]) + 1, "category_id": int(labels[m]), "bbox": box}
            row |= {"area": box[2] * box[3] / 2, "iscrowd": 0, "segmentation": [outline]}
            file.write(("," if m else "") + json.dumps(row))
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
        file.write('], "categories": ' + json.dumps(categories) + "}")
    return path.stat().st_size


if __name__ == "__main__":
    run_command(main)
