"""The complete network: shapes, views, parameter counts, normalisation, gradients, initialisation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.backbones.registry import list_backbones
from nets.layers import ConvBNAct
from nets.model_config import STRIDES, ModelConfig
from nets.neck import SPP
from nets.yolov4 import YOLOv4

COCO = tuple(f"class {number}" for number in range(80))
PARAMETERS = {
    ("mobilenet_v1", "separable"): 12_692_029,
    ("mobilenet_v2", "separable"): 10_801_149,
    ("mobilenet_v3_large", "separable"): 11_729_069,
    ("mobilenet_v1", "standard"): 40_952_893,
    ("mobilenet_v2", "standard"): 39_062_013,
    ("mobilenet_v3_large", "standard"): 39_989_933,
}


def small(**changes) -> YOLOv4:
    """A small, fast network."""
    values = {"class_names": ("cat", "dog"), "backbone": "mobilenet_v3_small", "alpha": 0.5, "neck_width": 0.25}
    return YOLOv4(ModelConfig(**{**values, **changes}))


@pytest.mark.parametrize(("backbone", "neck_conv"), list(PARAMETERS))
def test_parameters_are_counted_as_the_reference_has_them(backbone: str, neck_conv: str) -> None:
    with torch.device("meta"):
        model = YOLOv4(ModelConfig(class_names=COCO, backbone=backbone, neck_conv=neck_conv))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[backbone, neck_conv]


@pytest.mark.parametrize("backbone", list_backbones())
@pytest.mark.parametrize(("neck_width", "neck_conv"), [(0.25, "standard"), (0.5, "separable"), (0.75, "separable")])
def test_predictions_have_their_shapes(backbone: str, neck_width: float, neck_conv: str) -> None:
    with torch.device("meta"):
        config = ModelConfig(class_names=("cat",), backbone=backbone, neck_width=neck_width, neck_conv=neck_conv)
        model = YOLOv4(config)
        model.scale, model.shift = model.scale.to("meta"), model.shift.to("meta")
        predictions = model(torch.empty(2, 3, 96, 160))
    assert [p.shape for p in predictions] == [(2, 3, 96 // s, 160 // s, 6) for s in STRIDES]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_predictions_are_views_of_the_convolutions_outputs(memory_format: torch.memory_format) -> None:
    model = small().eval().to(memory_format=memory_format)
    outputs: list[Tensor] = []
    for level in model.head.levels:
        level[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.inference_mode():
        predictions = model(torch.rand(2, 3, 64, 96).to(memory_format=memory_format))
    for prediction, output in zip(predictions, outputs, strict=True):
        assert output.is_contiguous(memory_format=memory_format)
        assert prediction.data_ptr() == output.data_ptr()
        batch, anchor, row, column, value = 1, 2, 1, 2, 4
        assert prediction[batch, anchor, row, column, value] == output[batch, anchor * 7 + value, row, column]


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v2"])
def test_the_slim_neck_predicts_at_the_same_places_with_fewer_parameters(backbone: str) -> None:
    slim, full = (small(backbone=backbone, neck=neck, alpha=1.0) for neck in ("slim", "panet"))
    images = torch.zeros(1, 3, 64, 96)
    assert [p.shape for p in slim(images)] == [p.shape for p in full(images)]
    sizes = [sum(p.numel() for part in (m.neck, m.head) for p in part.parameters()) for m in (slim, full)]
    assert sizes[0] < sizes[1] / 2
    assert ModelConfig.from_dict(slim.config.to_dict()) == slim.config
    before = {name: value for name, value in full.config.to_dict().items() if name != "neck"}
    assert ModelConfig.from_dict(before) == full.config  # files of before the choice hold the full one


@pytest.mark.parametrize("neck", ["panet", "slim"])
def test_every_parameter_of_the_network_gets_a_gradient(neck: str) -> None:
    model = small(neck_conv="separable", neck=neck).train()
    sum(p.square().mean() for p in model(torch.rand(2, 3, 96, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_bytes_and_fractions_are_the_same_image() -> None:
    model = small(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        for ours, theirs in zip(model(images), model(images.float() / 255), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_images_are_normalized_by_the_configurations_mean_and_std() -> None:
    model = small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    images = torch.rand(2, 3, 32, 32)
    expected = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1)
    torch.testing.assert_close(model.normalize(images), expected)


def test_normalization_that_does_nothing_costs_nothing() -> None:
    images = torch.rand(1, 3, 32, 32)
    assert small().normalize(images) is images


def test_normalization_is_no_weight_and_survives_building_on_meta() -> None:
    source = small(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).eval()
    assert not {"scale", "shift"} & set(source.state_dict())
    with torch.device("meta"):
        model = YOLOv4(source.config).eval()
    model.load_state_dict(source.state_dict(), assign=True)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(model(images), source(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_half_precision_weights_take_bytes() -> None:
    model = small(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).eval().to(torch.bfloat16)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0].dtype == torch.bfloat16


def test_chained_pools_are_the_pools_of_5_9_and_13() -> None:
    x = torch.randn(2, 4, 13, 20)
    pools = [F.max_pool2d(x, size, 1, size // 2) for size in (13, 9, 5)]
    torch.testing.assert_close(SPP()(x), torch.cat([*pools, x], dim=1), rtol=0, atol=0)


def test_an_untrained_network_expects_few_objects_and_no_class() -> None:
    model = small(class_names=COCO, backbone="mobilenet_v2", alpha=1.0, neck_width=1.0)
    for level, stride in zip(model.head.levels, STRIDES, strict=True):
        bias = level[-1].bias.detach().view(3, 85)
        cells = (640 / stride) ** 2
        torch.testing.assert_close(bias[:, 4].sigmoid() * cells, torch.full((3,), 8.0), rtol=1e-3, atol=0)
        assert torch.allclose(bias[:, 5:], torch.tensor(math.log(0.6 / 79.00001)))
        assert not bias[:, :4].any()


def test_depthwise_kernels_start_at_the_size_of_their_own_fan() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small(backbone="mobilenet_v1", alpha=1.0)
    depthwise = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1][-1]
    assert float(depthwise.weight.detach().std()) == pytest.approx(math.sqrt(2 / 9), rel=0.05)


def test_an_image_of_any_multiple_of_32_is_taken() -> None:
    model = small().eval()
    with torch.inference_mode():
        for height, width in ((32, 32), (32, 160), (96, 64)):
            shapes = [p.shape[2:4] for p in model(torch.zeros(1, 3, height, width))]
            assert shapes == [(height // s, width // s) for s in STRIDES]


@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (8, 1), (8, 2)])
def test_a_norm_that_keeps_its_averages_is_folded_with_the_same_values_and_gradients(
    groups: int, stride: int, padding: str
) -> None:
    block = ConvBNAct(8, 8, 3, stride, groups, padding=padding).double()
    norm = block[1]
    with torch.no_grad():
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.normal_(), norm.bias.normal_()
    block.train()
    norm.eval()
    images = torch.rand(2, 8, 6, 10, dtype=torch.double, requires_grad=True)
    folded = block(images)
    plain = F.relu6(norm(block[0](images)))
    torch.testing.assert_close(folded, plain)
    weights = torch.rand_like(plain)
    inputs = [images, *block.parameters()]
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (folded, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
