"""Metrics are the same from a model and from its saved detections, also on data sets with faults."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from data_makers import CAT, voc_xml_text, write_coco
from test_data_faults import (
    BOXES,
    COCO_FAULTS,
    IDS,
    LABEL_FILES,
    LINES,
    NO_XML,
    OBJECTS,
    XML,
    coco,  # noqa: F401 -- fixtures
    voc,  # noqa: F401
    whole_sets,  # noqa: F401
    write,
    yolo,  # noqa: F401
)

from data.open import open_dataset
from evaluation.detections_file import detection_lists, read_detections
from evaluation.evaluator import evaluate, score
from imaging.detections import Detections
from utils.errors import UserError


class SomeBoxes:
    """A detector whose detections depend on the image only."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.config = SimpleNamespace(class_names=class_names)

    def detect_batch(self, images: Sequence[np.ndarray], *_: Any, **__: Any) -> list[Detections]:
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> Detections:
        rng = np.random.default_rng(int(image.sum()))
        near = np.array([[10, 20, 60, 80], [70, 30, 140, 110]], np.float32) + rng.normal(0, 4, (2, 4)).astype(
            np.float32
        )
        first = rng.uniform(0, 60, (4, 2)).astype(np.float32)
        wild = np.concatenate([first, first + rng.uniform(5, 60, (4, 2)).astype(np.float32)], axis=1)
        labels = np.array([0, 1 % len(self.config.class_names), *([0] * 4)], np.int64)
        return Detections(np.concatenate([near, wild]), rng.uniform(0.1, 1, 6).astype(np.float32), labels)


def hold_both_ways(data: Path, split: str, tmp_path: Path) -> None:
    """Evaluate a detector and the file of its detections on the same split: the results must be equal."""
    try:
        index = open_dataset(data, split, use_cache=False)
    except UserError as error:
        with pytest.raises(UserError, match=r".") as caught:
            open_dataset(data, split, use_cache=False, need_pictures=False)
        assert str(caught.value) == str(error)
        return
    if not index.num_boxes:
        return
    result = evaluate(SomeBoxes(index.class_names), index, progress=False, coco=None)
    assert result is not None
    file = tmp_path / "saved.json"
    file.write_text(json.dumps(detection_lists(result)))
    truth = open_dataset(data, split, use_cache=False, need_pictures=False)
    read = read_detections(file, truth, missing="skip")
    again = score(truth, truth.class_names, np.arange(len(truth.class_names)), read.found, None)
    one, other = result.to_json(per_image=True), again.to_json(per_image=True)
    for key in ("voc07_mAP50", "voc10_mAP50", "num_objects", "num_images", "best_f1", "per_image", "per_class"):
        assert one[key] == other[key], key


Case = tuple[str, str, Callable[[Path], object]]


def voc_case(name: str, text: str | bytes) -> Case:
    return f"voc {name}", "voc", lambda folder: write(folder / "Annotations/a0.xml", text)


def coco_case(name: str, spoil: Callable[[Any], object]) -> Case:
    def change(folder: Path) -> None:
        content = json.loads((folder / "annotations/instances_train2017.json").read_text())
        spoil(content)
        write_coco(folder, "train2017", content)

    return f"coco {name}", "coco", change


CASES: list[Case] = [
    *(voc_case(f"box {name}", voc_xml_text("a0", [("dog", *edges), CAT])) for name, (edges, _) in BOXES.items()),
    *(voc_case(f"object {name}", XML.replace(old, new, 1)) for name, (old, new, _) in OBJECTS.items()),
    *(voc_case(f"xml {name}", text) for name, text in NO_XML.items()),
    *((f"voc ids {name}", "voc", lambda f, t=text: write(f / "ImageSets/Main/train.txt", t))
      for name, (text, _) in IDS.items()),
    ("voc picture cut", "voc", lambda f: write(f / "JPEGImages/a0.jpg", (f / "JPEGImages/a0.jpg").read_bytes()[:900])),
    ("voc picture gone", "voc", lambda f: (f / "JPEGImages/a0.jpg").unlink()),
    *(coco_case(name, spoil) for name, (spoil, _) in COCO_FAULTS.items()),
    *((f"yolo line {name}", "yolo", lambda f, t=line: write(f / "labels/train/p0.txt", f"1 0.75 0.5 0.25 0.25\n{t}\n"))
      for name, (line, _) in LINES.items()),
    *((f"yolo file {name}", "yolo", lambda f, t=text: write(f / "labels/train/p0.txt", t))
      for name, (text, _) in LABEL_FILES.items() if len(text) < 1 << 20),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_faulty_data_set_scores_the_same_from_a_model_and_from_its_file(
    case: Case, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, kind, spoil = case
    folder = request.getfixturevalue(kind)
    spoil(folder)
    data, split = (folder.parent, "train") if kind == "voc" else (folder, "train2017" if kind == "coco" else "train")
    hold_both_ways(data, split, tmp_path)


def test_the_number_of_cases_is_large_enough() -> None:
    assert len(CASES) > 150
