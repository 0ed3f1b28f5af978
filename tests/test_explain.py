"""Heat maps and class activation maps: location and values."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nets.detector import Detector
from nets.model_config import ModelConfig
from nets.postprocess import sigmoid
from nets.yolov4 import YOLOv4
from prediction.explain import layer_cam, objectness_map
from utils.errors import UserError


@pytest.fixture(scope="module", params=["letterbox", "stretch"])
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    config = ModelConfig(
        ("a", "b"), "mobilenet_v3_small", 0.25, neck_width=0.25, input_size=(64, 96), resize_mode=request.param
    )
    return Detector.from_model(YOLOv4(config).eval())


@pytest.mark.parametrize("size", [(50, 80), (120, 40), (64, 96)])
def test_objectness_has_the_size_of_the_image_and_the_networks_own_values(
    detector: Detector, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    heat = objectness_map(detector, image)
    assert heat.shape == size and heat.dtype == np.float32
    outputs = detector.runtime.run(detector.config.letterbox.apply(image)[None])
    highest = max(float(sigmoid(raw[..., 4]).max()) for raw in outputs)
    assert 0 < heat.max() <= highest + 1e-6


def test_objectness_is_high_in_the_modified_cell(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [torch.full((1, 3, 64 // s, 96 // s, 7), -9.0) for s in (8, 16, 32)]
    outputs[0][0, 1, 2, 9, 4] = 9.0  # row 2, column 9 of stride 8: pixels 16 to 24, 72 to 80
    monkeypatch.setattr(detector.runtime, "run", lambda _: [raw.numpy() for raw in outputs])
    heat = objectness_map(detector, np.zeros((64, 96, 3), np.uint8))
    assert np.unravel_index(heat.argmax(), heat.shape) in [(y, x) for y in range(16, 24) for x in range(72, 80)]
    assert heat[50, 20] < 0.01


def test_a_class_activation_map_has_a_maximum_of_one(detector: Detector) -> None:
    image = np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    heat = layer_cam(detector, image, [10, 10, 50, 50], 1)
    assert heat.shape == (60, 90) and heat.max() == pytest.approx(1) and heat.min() >= 0
    assert layer_cam(detector, image, [10, 10, 50, 50], 1, layers=["c5"]).shape == (60, 90)


def test_a_level_with_little_influence_has_low_values(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backbone(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(torch.nn.functional.avg_pool2d(pixels, stride) for stride in (8, 16, 32))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()

        def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            c3, _, c5 = self.backbone(pixels)
            answer = c5[0, 0, 1, 0] + 0.02 * c3[0, 0, 1, 10]  # bottom left decides, top right hardly
            return [torch.zeros(1, 3, 64 // s, 96 // s, 7) + answer for s in (8, 16, 32)]

    monkeypatch.setattr(detector.runtime, "model", Model())
    heat = layer_cam(detector, np.full((64, 96, 3), 200, np.uint8), [10, 10, 50, 50], 1)
    assert heat[50, 10] > 0.9 and 0 < heat[12, 84] < 0.05


def test_a_class_activation_map_changes_no_weights_and_needs_no_gradient_outside(detector: Detector) -> None:
    image = np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    before = objectness_map(detector, image)
    with torch.no_grad():
        layer_cam(detector, image, [0, 0, 90, 60], 0)
    assert (objectness_map(detector, image) == before).all()
    assert all(weight.grad is None for weight in detector.runtime.model.parameters())  # type: ignore[attr-defined]


def test_exported_files_are_rejected_with_what_to_do() -> None:
    class Exported:
        runtime = SimpleNamespace(name="onnxruntime", decodes=True)

    for explain in (
        lambda: objectness_map(Exported(), np.zeros((9, 9, 3))),
        lambda: layer_cam(Exported(), None, [], 0),
    ):
        with pytest.raises(UserError, match="checkpoint"):
            explain()
