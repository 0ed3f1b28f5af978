"""Import of the reference's weights: feature maps and detections equal those of the reference."""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nets.model_config import STRIDES
from nets.postprocess import postprocess
from nets.weights.checkpoint import Checkpoint, load_checkpoint
from nets.weights.import_reference import import_reference, main, read_anchors, read_class_names
from nets.yolov4 import YOLOv4
from utils.errors import UserError
from utils.thresholds import Thresholds

NAMES = {1: "mobilenet_v1", 2: "mobilenet_v2", 3: "mobilenet_v3_large"}


def fill(key: str, shape: list[int]) -> Tensor:
    """The initialisation rule of ../shared/reference/README.md."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * random.standard_normal(shape)
    elif len(shape) == 1:
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


@functools.cache
def _filled(shared: Path, version: int) -> dict[str, Tensor]:
    keys = json.loads((shared / "reference" / f"mobilenetv{version}_keys.json").read_text())
    return {key: fill(key, shape) for key, shape in keys.items()}


def reference_weights(shared: Path, version: int) -> dict[str, Tensor]:
    return dict(_filled(shared, version))


@dataclass(frozen=True)
class Imported:
    """The reference's outputs for its input, and this project's."""

    checkpoint: Checkpoint
    backbone: str
    answers: dict[str, np.ndarray]
    predictions: list[Tensor]
    exact: list[Tensor]  # the same in float64

    def reference_predictions(self) -> list[Tensor]:
        maps = [torch.from_numpy(self.answers[f"raw_416x416_stride{stride}"]) for stride in STRIDES]
        return [x.view(1, 3, 25, *x.shape[2:]).permute(0, 1, 3, 4, 2) for x in maps]


@pytest.fixture(scope="module", params=[1, 2, 3])
def imported(request: pytest.FixtureRequest, shared: Path) -> Imported:
    checkpoint = import_reference(reference_weights(shared, request.param))
    model = YOLOv4(checkpoint.config).eval()
    model.load_state_dict(checkpoint.weights)
    images = torch.from_numpy(np.random.RandomState(7).uniform(0, 1, (1, 3, 416, 416)).astype(np.float32))
    with torch.inference_mode():
        predictions, exact = model(images), model.double()(images.double())
    answers = dict(np.load(shared / "reference" / f"mobilenetv{request.param}_416.npz"))
    return Imported(checkpoint, NAMES[request.param], answers, predictions, exact)


def detections_of(imported: Imported, predictions: list[Tensor]) -> np.ndarray:
    """(N, 6) x1, y1, x2, y2, score, class in pixels of the 500 x 375 image, sorted."""
    config = imported.checkpoint.config
    found = postprocess(predictions, config, Thresholds(score_threshold=0.3))[0]
    boxes = config.letterbox.boxes_to_image(found.boxes, 375, 500, clip=False)
    return in_order(np.column_stack((boxes, found.scores, found.labels)))


def expected_detections(imported: Imported) -> np.ndarray:
    rows = imported.answers["detections_416x416"]
    return in_order(np.column_stack((rows[:, [1, 0, 3, 2]], rows[:, 4] * rows[:, 5], rows[:, 6])))


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort((rows[:, 0], -rows[:, 4], rows[:, 5]))]


def test_backbone_and_classes_are_recognised(imported: Imported) -> None:
    assert imported.checkpoint.config.backbone == imported.backbone
    assert imported.checkpoint.config.class_names[14] == "person"


def test_maps_are_the_references_up_to_float32_rounding(imported: Imported) -> None:
    # The answers are float32. Filled at random, V2 and above all V3 amplify rounding (V3's squeeze-and-excitation sees
    # values of thousands), so that 1e-4 is exceeded by any change in the order of a sum. What must hold is that the
    # reference is as near to the exact answer as our own float32 answer is.
    for ours, exact, theirs in zip(imported.predictions, imported.exact, imported.reference_predictions(), strict=True):
        rounding = float((ours - exact).abs().max())
        np.testing.assert_allclose(theirs.numpy(), exact.numpy(), rtol=0, atol=max(1e-4, 3 * rounding))
        if imported.backbone != "mobilenet_v3_large":
            assert float((ours - theirs).abs().median()) < 1e-4
            assert rounding < 2e-3


def test_its_maps_are_read_as_the_reference_reads_them_one_for_one(imported: Imported) -> None:
    found, expected = detections_of(imported, imported.reference_predictions()), expected_detections(imported)
    assert len(found) == len(expected)
    np.testing.assert_array_equal(found[:, 5], expected[:, 5])
    np.testing.assert_allclose(found[:, 4], expected[:, 4], atol=1e-6)
    np.testing.assert_allclose(found[:, :4], expected[:, :4], rtol=1e-4, atol=1e-3)


def test_detections_are_the_references(imported: Imported) -> None:
    found, expected = detections_of(imported, imported.predictions), expected_detections(imported)
    is_v3 = imported.backbone == "mobilenet_v3_large"  # its rounding moves some boxes over a threshold
    matched = sum(
        bool(np.isclose(expected, row, rtol=0.05 if is_v3 else 1e-3, atol=0.02).all(axis=1).any()) for row in found
    )
    least = 0.9 if is_v3 else 0.995
    assert matched >= least * len(expected)
    assert len(found) <= len(expected) / least


def test_the_command_writes_a_checkpoint_that_loads(shared: Path, tmp_path: Path, capsys) -> None:
    weights = {f"module.{name}": tensor for name, tensor in reference_weights(shared, 2).items()}
    torch.save(weights, tmp_path / "in.pth", _use_new_zipfile_serialization=False)  # as torch 1.2 wrote them
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    checkpoint = load_checkpoint(tmp_path / "out.pth")
    assert "mobilenet_v2, 20 classes" in capsys.readouterr().out
    assert (checkpoint.config.resize_mode, checkpoint.config.interpolation) == ("stretch", "bicubic")
    YOLOv4(checkpoint.config).load_state_dict(checkpoint.weights)


def test_names_must_be_as_many_as_the_classes(shared: Path) -> None:
    with pytest.raises(UserError, match="2 names for the file's 20 classes"):
        import_reference(reference_weights(shared, 2), ("cat", "dog"))


def test_other_numbers_of_classes_are_numbered_with_a_warning(shared: Path, capsys) -> None:
    weights = reference_weights(shared, 1)
    for head in ("yolo_head1", "yolo_head2", "yolo_head3"):
        weights[f"{head}.1.weight"] = weights[f"{head}.1.weight"][: 3 * (5 + 2)]
        weights[f"{head}.1.bias"] = weights[f"{head}.1.bias"][: 3 * (5 + 2)]
    assert import_reference(weights).config.class_names == ("class_0", "class_1")
    assert "does not name its 2 classes" in capsys.readouterr().err


def test_another_file_is_rejected_in_one_line(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: not a weight file of mobilenet-yolov4-pytorch") as raised:
        main([str(tmp_path / "other.pth"), str(tmp_path / "out.pth")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.pth").exists()


def test_the_anchors_and_the_size_of_the_training_are_kept(shared: Path, tmp_path: Path, capsys) -> None:
    torch.save(reference_weights(shared, 1), tmp_path / "in.pth")
    (tmp_path / "anchors.txt").write_text("1, 2,  3,4, 5,6, 7,8, 9,10, 11,12, 13,14, 15,16, 17,18.5\n")
    main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--anchors", str(tmp_path / "anchors.txt"),
          "--input-size", "320", "640"])  # fmt: skip
    config = load_checkpoint(tmp_path / "out.pth").config
    assert config.anchors[0] == ((1, 2), (3, 4), (5, 6)) and config.anchors[2][2] == (17, 18.5)
    assert config.input_size == (320, 640) and "input 320 x 640" in capsys.readouterr().out
    (tmp_path / "anchors.txt").write_text("1,2,3")
    with pytest.raises(UserError, match="not a list of 18 numbers"):
        read_anchors(str(tmp_path / "anchors.txt"))


def test_weights_of_another_backbone_are_named(shared: Path) -> None:
    weights = {name.replace("stage1", "layer1"): each for name, each in reference_weights(shared, 1).items()}
    with pytest.raises(UserError, match="the backbone is not MobileNetV1, V2 or V3"):
        import_reference(weights)


def test_a_missing_tensor_is_named(shared: Path) -> None:
    weights = reference_weights(shared, 3)
    del weights["conv_for_P4.conv.weight"]
    with pytest.raises(UserError, match=r"neck\.lateral4\.0\.weight is missing"):
        import_reference(weights)


def test_an_unexpected_tensor_is_reported(shared: Path) -> None:
    weights = reference_weights(shared, 2) | {"backbone.model.features.19.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"features\.19\.0\.weight does not belong to"):
        import_reference(weights)


@pytest.mark.parametrize(("file", "count", "first", "last"), [
    ("voc_classes.txt", 20, "aeroplane", "tvmonitor"),
    ("coco_classes.txt", 80, "person", "toothbrush"),
])  # fmt: skip
def test_the_class_lists_are_the_official_ones(file: str, count: int, first: str, last: str) -> None:
    names = read_class_names(Path(__file__).parent.parent / "model_data" / file)
    assert (len(names), names[0], names[-1]) == (count, first, last)
