"""The network summary: costs, and the savings of separable convolutions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nets.layers import ConvBNAct, SeparableConv
from nets.model_config import ModelConfig
from nets.summary import compare_separable, count_layers, find_dead_kernels, main, sum_stages
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from utils.errors import UserError

VOC = tuple(f"class {number}" for number in range(20))


@pytest.mark.parametrize(
    ("backbone", "total", "own"),
    # the reference's networks at 416 with 20 classes, in 10^9 multiply-adds
    [("mobilenet_v1", 5.00, 1.96), ("mobilenet_v2", 3.79, 0.96), ("mobilenet_v3_large", 3.53, 0.71)],
)
def test_multiply_adds_are_the_known_ones(backbone: str, total: float, own: float) -> None:
    stages = sum_stages(count_layers(ModelConfig(class_names=VOC, backbone=backbone)))
    assert round(stages["total"]["multiply_adds"] / 1e9, 2) == total
    assert round(stages["backbone"]["multiply_adds"] / 1e9, 2) == own


def test_stages_add_up_and_hold_every_parameter() -> None:
    config = ModelConfig(class_names=VOC, backbone="mobilenet_v3_small", input_size=(64, 96))
    stages = sum_stages(count_layers(config))
    for kind in ("parameters", "multiply_adds", "activations"):
        for part in ("backbone", "neck", "head"):
            inside = sum(cost[kind] for name, cost in stages.items() if name.startswith(part + "/"))
            assert inside == stages[part][kind] > 0
        assert sum(stages[part][kind] for part in ("backbone", "neck", "head")) == stages["total"][kind]
    assert stages["total"]["parameters"] == sum(p.numel() for p in YOLOv4(config).parameters())
    assert {f"backbone/stride {2**n}" for n in range(1, 6)} | {"head/stride 8", "neck/before_spp"} <= set(stages)


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v3_large"])
def test_what_a_separable_convolution_saves_is_the_same_by_formula_and_by_count(backbone: str) -> None:
    pairs = compare_separable(count_layers(ModelConfig(class_names=VOC, backbone=backbone, input_size=(64, 64))))
    depthwise_of_neck_and_head = 12 + 3
    assert len(pairs) == {"mobilenet_v1": 13, "mobilenet_v3_large": 15}[backbone] + depthwise_of_neck_and_head
    for pair in pairs:
        assert pair.ratio_by_count == pytest.approx(pair.ratio_by_formula, rel=1e-12)


def test_the_ratio_is_that_of_the_weights_of_the_two_layers() -> None:
    separable, ordinary = SeparableConv(32, 64), ConvBNAct(32, 64, 3)
    weights = [
        sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (separable, ordinary)
    ]
    assert weights[0] / weights[1] == pytest.approx(1 / 64 + 1 / 9)


def test_with_a_standard_neck_only_the_backbone_has_separable_convolutions() -> None:
    config = ModelConfig(class_names=VOC, backbone="mobilenet_v2", neck_conv="standard", input_size=(64, 64))
    names = [pair.name for pair in compare_separable(count_layers(config))]
    assert len(names) == 17 and all(name.startswith("backbone.") for name in names)


def test_dead_kernels_are_found_where_they_are() -> None:
    layer = SeparableConv(8, 16)
    conv, norm = layer[0][0], layer[0][1]
    with torch.no_grad():
        conv.weight.fill_(0.5)
        conv.weight[0] = 1e-6  # the kernel has gone
        norm.weight[1] = 0.0  # the batch norm has
        norm.bias[2] = -100.0  # 6 * 9 * 0.5 = 27 cannot lift this above 0
        norm.bias[3] = -20.0  # but this
        norm.running_var[4] = 1e12  # folded away as well
    report = find_dead_kernels(layer)
    assert [(row.channels, row.empty, row.silent) for row in report] == [(8, 3, 1)]


def test_json_has_the_total_under_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["--backbone", "mobilenet_v1", "--neck-conv", "standard", "--num-classes", "80", "--input-size", "64", "--json"]
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["parameters"] == 40_952_893
    assert summary["input_size"] == [64, 64]
    assert summary["separable_total"]["multiply_adds"] < summary["separable_total"]["ordinary_multiply_adds"]
    assert "dead_kernels" not in summary


def test_the_table_of_a_checkpoint_tells_its_dead_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(
        class_names=("cat",), backbone="mobilenet_v1", alpha=0.25, neck_width=0.25, input_size=(64, 96)
    )
    model = YOLOv4(config)
    with torch.no_grad():
        model.backbone.features[1][0].weight[:3] = 0.0
    save_checkpoint(tmp_path / "w.pth", Checkpoint(config, model.state_dict()))
    main([str(tmp_path / "w.pth")])
    table = capsys.readouterr().out
    assert "mobilenet_v1, alpha 0.25" in table and "64 x 96" in table
    row = next(line for line in table.splitlines() if line.startswith("backbone.features.1.0 ") and line.endswith("%"))
    assert row.split() == ["backbone.features.1.0", "8", "3", "0", "37.5%"]


def test_options_beside_a_checkpoint_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--alpha: cannot be combined with a checkpoint"):
        main([str(tmp_path / "w.pth"), "--alpha", "0.5"])


@pytest.mark.parametrize("arguments", [["--input-size", "100"], ["--alpha", "9"], ["--backbone", "resnet"]])
def test_invalid_network_values_are_a_one_line_error(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        main(arguments)
