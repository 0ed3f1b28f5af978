"""Pseudo-labels of a teacher: labels that are added, uncertain labels, and their effect on the loss."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dataset
from data.formats.voc import read_voc
from data.index import DatasetIndex
from data.loader import TrainDataset, label_weights
from nets.losses import LossConfig, YOLOLoss
from nets.model_config import ModelConfig
from training.teacher import add_teacher
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

ANCHORS = (((12, 12),) * 3, ((36, 36),) * 3, ((80, 80),) * 3)
CONFIG = ModelConfig(class_names=("a", "b"), input_size=(96, 96), anchors=ANCHORS)


def make_index(boxes: list[list[list[float]]], labels: list[list[int]]) -> DatasetIndex:
    count = len(boxes)
    return DatasetIndex.build(
        "toy",
        ("a", "b"),
        [f"/x/{i}.jpg" for i in range(count)],
        [str(i) for i in range(count)],
        [(96, 96)] * count,
        [np.array(each, float).reshape(-1, 4) for each in boxes],
        labels,
    )


def write(path: Path, found: dict[str, list[tuple[str, float, list[float]]]]) -> Path:
    rows = [
        {"image": image, "detections": [{"class_name": n, "score": s, "box_xyxy": b} for n, s, b in each]}
        for image, each in found.items()
    ]
    path.write_text(json.dumps(rows))
    return path


def test_labels_of_people_go_first_and_unlabelled_images_get_the_detections(tmp_path: Path) -> None:
    index = make_index([[[10, 10, 50, 50]], [], []], [[0], [], []])
    file = write(
        tmp_path / "found.json",
        {
            "0.jpg": [("a", 0.9, [11, 11, 51, 51]), ("b", 0.8, [10, 10, 50, 50]), ("a", 0.7, [60, 60, 90, 90])],
            "2.jpg": [("b", 0.45, [1, 2, 30, 40])],
        },
    )
    joined = add_teacher(index, [file])
    assert np.diff(joined.offsets).tolist() == [3, 0, 1]
    assert joined.labels.tolist() == [0, 1, 0, 1] and joined.boxes[3].tolist() == [1, 2, 30, 40]
    assert joined.scores is not None and joined.scores.tolist() == [1, 0, 0, 0.45]
    _, labels, weights = TrainDataset(joined, (96, 96)).targets(2)
    assert labels.tolist() == [1] and weights == pytest.approx([0.5])
    assert joined.subset([2]).scores == pytest.approx([0.45])


def test_the_weight_of_a_label_rises_between_the_two_scores() -> None:
    assert label_weights(np.array([0.0, 0.3, 0.45, 0.6, 1.0]), (0.3, 0.6)) == pytest.approx([0, 0, 0.5, 1, 1])


def targets(weights: list[float]) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[20.0, 20, 56, 56], [50, 10, 86, 46]])
    return {
        "boxes": boxes,
        "labels": torch.tensor([0, 1]),
        "image_index": torch.tensor([0, 0]),
        "weights": torch.tensor(weights),
    }


def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, 96 // s, 96 // s, 7, generator=generator).requires_grad_() for s in (8, 16, 32)]


def test_labels_of_weight_one_are_labels_without_weights() -> None:
    loss, weighted = YOLOLoss(CONFIG), targets([1, 1])
    plain = {name: value for name, value in weighted.items() if name != "weights"}
    assert loss(maps(), weighted) == loss(maps(), plain)


def test_an_uncertain_label_is_neither_object_nor_background() -> None:
    loss = YOLOLoss(CONFIG, LossConfig(objectness_target=0))
    doubt, alone = maps(), maps()
    values = loss(doubt, targets([1, 0]))
    torch.stack(list(values.values())).sum().backward()
    one = {name: value[:1] for name, value in targets([1, 0]).items()}
    torch.stack(list(loss(alone, one).values())).sum().backward()
    differs = [(a.grad != b.grad).any(-1) for a, b in zip(doubt, alone, strict=True)]  # type: ignore[union-attr]
    assert sum(int(each.sum()) for each in differs) > 0
    for each, a in zip(differs, doubt, strict=True):
        assert a.grad is not None and not a.grad[each].any()  # where they differ, nothing is learnt


def test_a_label_with_score_one_half_has_an_objectness_target_of_one_half() -> None:
    loss = YOLOLoss(CONFIG, LossConfig(objectness_target=0, box_weight=0, class_weight=0))
    for weight in (0.25, 0.5, 1.0):
        raw = maps()
        loss(raw, targets([weight, 1]))["objectness"].backward()
        level = raw[1]
        cell = level[0, :, 2, 2, 4]  # the centre (38, 38) lies in cell 2, 2 of stride 16
        assert level.grad is not None
        sign = (cell.sigmoid() - weight).sign()
        assert torch.equal(level.grad[0, :, 2, 2, 4].sign(), sign)


def make_voc(folder: Path) -> Path:
    """One image with a cat, detected with a score of 0.4, and a dog."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / "VOC2007" / name).mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    cv2.imwrite(str(folder / "VOC2007/JPEGImages/1.jpg"), image)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    cat, dog = f"<name>cat</name><confidence>0.4</confidence>{box}", f"<name>dog</name>{box}"
    objects = f"<object>{cat}</object><object>{dog}</object>"
    (folder / "VOC2007/Annotations/1.xml").write_text(
        f"<annotation><size><width>60</width><height>60</height></size>{objects}</annotation>"
    )
    (folder / "VOC2007/ImageSets/Main/train.txt").write_text("1\n")
    return folder


def test_scores_of_xml_labels_reach_the_index(tmp_path: Path) -> None:
    index = read_voc(make_voc(tmp_path), "train")
    assert index.scores is not None and index.scores.tolist() == [0.4, 1.0]


def test_pseudo_label_writes_what_teacher_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_voc(tmp_path / "set")
    out = tmp_path / "pseudo.json"
    checkpoint = ROOT / "model_data" / "nano.pth"
    classes = ROOT / "model_data" / "voc_classes.txt"
    command = ["pseudo-label", str(data), "--output", str(out), "--checkpoint", str(checkpoint)]
    command += ["--threshold", "0.0001", "--classes", str(classes)]
    dataset.main(command)
    assert "of 1 image" in capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert [row["image"] for row in rows] == ["1"] and rows[0]["detections"]
    index = read_voc(data, "train", class_names=classes.read_text().split())
    by_file, by_model = add_teacher(index, [out]), add_teacher(index, [checkpoint])
    assert by_file.num_boxes == len(rows[0]["detections"]) + 2 - dropped(index, rows[0]["detections"])
    assert by_model.num_boxes >= index.num_boxes
    with pytest.raises(UserError, match="exists"):
        dataset.main(command)


def dropped(index: DatasetIndex, found: list[dict]) -> int:
    """Detections that coincide with a labelled object."""
    count = 0
    for each in found:
        x1, y1, x2, y2 = each["box_xyxy"]
        for box, label in zip(index.boxes, index.labels, strict=True):
            width, height = min(x2, box[2]) - max(x1, box[0]), min(y2, box[3]) - max(y1, box[1])
            inter = max(width, 0) * max(height, 0)
            union = (x2 - x1) * (y2 - y1) + (box[2] - box[0]) * (box[3] - box[1]) - inter
            if index.class_names[label] == each["class_name"] and inter > 0.5 * union:
                count += 1
                break
    return count
