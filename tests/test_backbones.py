"""Backbones: shapes, channels, and features equal to those of torchvision and timm."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from nets.backbones import registry
from nets.backbones.base import Backbone
from nets.backbones.registry import build_backbone, list_backbones, register_backbone
from nets.layers import Conv2dSamePadding, ConvBNAct, StridedConv2d, make_divisible
from nets.model_config import STRIDES, ModelConfig
from utils.errors import MissingExtra, UserError

CHANNELS = {
    "mobilenet_v1": (256, 512, 1024),
    "mobilenet_v2": (32, 96, 320),
    "mobilenet_v3_large": (40, 112, 160),
    "mobilenet_v3_small": (24, 48, 96),
}
has_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def config(backbone: str, **changes) -> ModelConfig:
    return ModelConfig(class_names=("cat", "dog"), backbone=backbone, **changes)


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Random weights and running statistics, so that no default value can hide an error."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.1, generator=generator)
        elif tensor.is_floating_point():
            fan_in = tensor[0].numel()
            tensor.normal_(0, fan_in**-0.5, generator=generator)


def assert_features_equal(ours: tuple[Tensor, ...], theirs: list[Tensor]) -> None:
    """Compare with a tolerance of 1e-5 of the features' magnitude."""
    for own, other in zip(ours, theirs, strict=True):
        assert own.shape == other.shape
        assert float((own - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))


def torchvision_maps(features: nn.Sequential, images: Tensor, taps: tuple[int, ...]) -> list[Tensor]:
    maps = []
    for number, layer in enumerate(features):
        images = layer(images)
        if number in taps:
            maps.append(images)
    return maps


def test_the_four_mobilenets_are_in_the_table() -> None:
    assert set(CHANNELS) <= set(list_backbones())


@pytest.mark.parametrize("name", list_backbones())
@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0, 1.4])
def test_maps_have_the_declared_channels_at_strides_8_16_32(name: str, alpha: float) -> None:
    with torch.device("meta"):
        backbone = build_backbone(config(name, alpha=alpha))
        maps = backbone(torch.empty(1, 3, 64, 96))
    for features, channels, stride in zip(maps, backbone.out_channels, STRIDES, strict=True):
        assert features.shape == (1, channels, 64 // stride, 96 // stride)
    if alpha == 1.0 and name in CHANNELS:
        assert backbone.out_channels == CHANNELS[name]


@pytest.mark.parametrize("name", list_backbones())
def test_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = build_backbone(config(name)).train()
    maps = backbone(torch.rand(2, 3, 64, 64))
    sum(features.square().mean() for features in maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("name", "build", "taps"),
    [
        ("mobilenet_v2", torchvision.models.mobilenet_v2, (6, 13, 17)),
        ("mobilenet_v3_large", torchvision.models.mobilenet_v3_large, (6, 12, 15)),
        ("mobilenet_v3_small", torchvision.models.mobilenet_v3_small, (3, 8, 11)),
    ],
)
def test_features_equal_torchvisions(name: str, build: Callable[[], nn.Module], taps: tuple[int, ...]) -> None:
    theirs = build().eval()
    randomize(theirs)
    ours = build_backbone(config(name)).eval()
    missing, _ = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == []
    images = torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        assert_features_equal(ours(images), torchvision_maps(theirs.features, images, taps))


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.4])
def test_the_width_of_v2_is_torchvisions_at_every_alpha(alpha: float) -> None:
    theirs = torchvision.models.mobilenet_v2(width_mult=alpha)
    missing, _ = build_backbone(config("mobilenet_v2", alpha=alpha)).load_state_dict(theirs.state_dict(), strict=False)
    assert missing == []


@has_timm
def test_features_of_v1_equal_timms() -> None:
    import timm

    from nets.weights.pretrained import load_pretrained_state

    theirs = timm.create_model("mobilenetv1_100", features_only=True, out_indices=(2, 3, 4)).eval()
    randomize(theirs)
    ours = build_backbone(config("mobilenet_v1")).eval()
    report = load_pretrained_state(ours, theirs.state_dict(), "mobilenet_v1", "timm")
    assert len(report.loaded) == report.total
    images = torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        assert_features_equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", list(CHANNELS))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tf_same_padding_is_explicit_padding_to_the_right_and_bottom(
    name: str, memory_format: torch.memory_format
) -> None:
    ours = build_backbone(config(name, padding="tf_same")).eval().to(memory_format=memory_format)
    theirs = build_backbone(config(name)).eval()
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    for layer in [m for m in theirs.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]:
        kernel = layer.kernel_size[0]
        layer.padding = (0, 0)
        before = (kernel - 2) // 2  # TensorFlow: pad_total = k - s on even sizes, the odd one goes after
        pads = (before, kernel - 2 - before) * 2
        layer.register_forward_pre_hook(lambda _, inputs, pads=pads: F.pad(inputs[0], pads))
    images = torch.rand(1, 3, 64, 96).to(memory_format=memory_format)
    with torch.inference_mode():
        assert_features_equal(ours(images), list(theirs(images)))
    assert not any(isinstance(m, Conv2dSamePadding) for m in theirs.modules())


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
def test_the_strided_depthwise_convolution_trains_as_any_other(kernel: int, padding: str) -> None:
    ours = ConvBNAct(8, 8, kernel, 2, groups=8, padding=padding).train()[0]
    images = torch.randn(2, 8, 12, 16, requires_grad=True)
    gradients = []
    for context in (
        contextlib.nullcontext(),
        mock.patch.object(StridedConv2d, "_conv_forward", nn.Conv2d._conv_forward),
    ):
        with context:
            output = ours(images)
            gradients.append((output, *torch.autograd.grad(output.sin().sum(), (images, ours.weight))))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_tf_same_differs_from_symmetric_padding() -> None:
    symmetric = build_backbone(config("mobilenet_v2")).eval()
    same = build_backbone(config("mobilenet_v2", padding="tf_same")).eval()
    same.load_state_dict(symmetric.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(symmetric(images)[0], same(images)[0], atol=1e-3)


def test_squeeze_and_excitation_stands_before_or_after_the_activation() -> None:
    after = build_backbone(config("mobilenet_v3_large")).eval()
    before = build_backbone(config("mobilenet_v3_large", se_order="before")).eval()
    randomize(after)
    before.load_state_dict(after.state_dict())  # the same tensors by the same names
    after_block, before_block = after.features[11].block, before.features[11].block
    x = torch.randn(1, after_block[0][0].in_channels, 8, 8)
    expanded = after_block[0](x)
    normed = after_block[1][1](after_block[1][0](expanded))
    weights = after_block[2].state_dict()
    squeezed, channels = weights["fc1.weight"].shape[:2]
    gate = torchvision.ops.SqueezeExcitation(channels, squeezed, scale_activation=nn.Hardsigmoid)
    gate.load_state_dict(weights)
    torch.testing.assert_close(after_block[3](gate(F.hardswish(normed))), after_block(x))
    torch.testing.assert_close(after_block[3](F.hardswish(gate(normed))), before_block(x))


@pytest.mark.parametrize(
    ("name", "eps"), [("mobilenet_v1", 1e-5), ("mobilenet_v2", 1e-5), ("mobilenet_v3_small", 1e-3)]
)
def test_bn_eps_is_the_architectures_own_unless_given(name: str, eps: float) -> None:
    def epsilons(**changes) -> set[float]:
        with torch.device("meta"):
            return {m.eps for m in build_backbone(config(name, **changes)).modules() if isinstance(m, nn.BatchNorm2d)}

    assert epsilons() == {eps}
    assert epsilons(bn_eps=0.002) == {0.002}


@pytest.mark.parametrize(
    ("value", "expected"), [(32, 32), (16 * 0.75, 16), (24 * 0.35, 8), (18, 24), (4, 8), (100, 104)]
)
def test_channels_round_to_eights_and_lose_at_most_a_tenth(value: float, expected: int) -> None:
    assert make_divisible(value) == expected
    assert make_divisible(value) >= 0.9 * value


def test_an_unknown_name_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown name 'mobilenet_v9'; choose from mobilenet_v1, .* or timm:NAME"):
        build_backbone(config("mobilenet_v9"))


def test_a_builder_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    list_backbones()
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    class Tiny(Backbone):
        out_channels = (8, 8, 8)

    @register_backbone
    def tiny_net(config: ModelConfig) -> Backbone:
        return Tiny()

    assert "tiny_net" in list_backbones()
    assert isinstance(build_backbone(config("tiny_net")), Tiny)


@has_timm
@pytest.mark.parametrize(
    "name", ["ghostnet_100", "vgg16", "densenet121", "densenet169", "densenet201", "resnet50", "mobilenetv4_conv_small"]
)
def test_timm_models_are_backbones(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(config(f"timm:{name}"))
        maps = backbone(torch.empty(1, 3, 64, 96))
    for features, channels, stride in zip(maps, backbone.out_channels, STRIDES, strict=True):
        assert features.shape == (1, channels, 64 // stride, 96 // stride)


@has_timm
def test_timm_takes_bn_eps_and_rejects_what_it_cannot_do() -> None:
    with torch.device("meta"):
        backbone = build_backbone(config("timm:mobilenetv4_conv_small", bn_eps=0.002))
        assert {m.eps for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {0.002}
        for changes, message in (({"alpha": 0.5}, "alpha: 0.5 cannot"), ({"padding": "tf_same"}, "padding: tf_same")):
            with pytest.raises(UserError, match=message):
                build_backbone(config("timm:resnet18", **changes))


@has_timm
def test_a_timm_model_without_the_three_strides_is_rejected() -> None:
    with pytest.raises(UserError, match="not 8, 16 and 32"):
        build_backbone(config("timm:vit_tiny_patch16_224"))


@has_timm
def test_a_misspelt_timm_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"no model 'resnet5O'; did you mean .*resnet50"):
        build_backbone(config("timm:resnet5O"))


def test_without_timm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[timm\]'"):
        build_backbone(config("timm:resnet18"))
