"""Layer fusion: the outputs equal those of the original network."""

import copy

import pytest
import torch

from nets.fuse import fuse_batch_norms, pack_convolutions
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4


@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"])
def test_packed_convolutions_give_the_networks_outputs_at_any_size_and_batch(backbone: str, padding: str) -> None:
    torch.manual_seed(0)
    model = YOLOv4(ModelConfig(("a", "b"), backbone=backbone, alpha=0.25, padding=padding)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    packed = pack_convolutions(fuse_batch_norms(copy.deepcopy(model)).to(memory_format=torch.channels_last))
    for shape in ((1, 3, 64, 96), (3, 3, 64, 64), (1, 3, 64, 96), *((1, 3, 32, 32 * n) for n in range(1, 7))):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.inference_mode():
            for got, expected in zip(packed(images), model(images), strict=True):
                torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_packed_convolutions_still_have_gradients() -> None:
    model = YOLOv4(ModelConfig(("a",), backbone="mobilenet_v2", alpha=0.25)).eval()
    packed = pack_convolutions(fuse_batch_norms(copy.deepcopy(model)))
    images = torch.rand(1, 3, 64, 64)
    gradients = []
    for network in (model, packed):
        pixels = images.clone().requires_grad_(True)
        network(pixels)[0].sum().backward()
        gradients.append(pixels.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)
