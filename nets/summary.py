"""Cost of a network by stage: parameters, multiply-adds, activations, and the savings of separable convolutions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nets.model_config import NECK_CONVS, ModelConfig, input_size_option
from nets.weights.checkpoint import load_checkpoint
from nets.yolov4 import YOLOv4
from utils.config import option, parse_options
from utils.errors import UserError, run_command
from utils.text import counted, text_table

# A kernel is dead if all its weights, folded with the batch norm, are below this. Activations here are from 0 to 6, so
# nine such weights change the output by less than 1 % of its range.
DEAD_WEIGHT = 1e-3
COUNTS = ("parameters", "multiply_adds", "activations")
NETWORK = ("backbone", "alpha", "neck_conv", "neck_width", "num_classes")  # options that a checkpoint determines


@dataclass(frozen=True)
class SummaryOptions:
    """Options of `python -m nets.summary`."""

    checkpoint: str | None = option(
        None,
        "checkpoint to describe; the network options below are then not allowed",
        positional=True,
        nargs="?",
        metavar="CHECKPOINT",
    )
    backbone: str | None = option(None, "a backbone, or timm:NAME (default: mobilenet_v2)")
    alpha: float | None = option(None, "width multiplier of the backbone (default: 1.0)", above=0.0)
    neck_conv: str | None = option(None, "3x3 convolutions of neck and head (default: separable)", choices=NECK_CONVS)
    neck_width: float | None = option(None, "width multiplier of neck and head (default: 1.0)", above=0.0)
    num_classes: int | None = option(None, "number of classes (default: 80)", low=1)
    input_size: tuple[int, ...] | None = option(None, "height [width], pixels (default: 416, or the checkpoint's)")
    json: bool = option(False, "print JSON instead of tables")


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image.

    Args:
        name: its path in the network.
        stage: `backbone/stride 8`, `neck/top_down4`, `head/stride 8`, ...
        parameters: number of its parameters.
        multiply_adds: of convolutions and linear layers; norms are folded into them and activations are not counted.
        activations: number of output elements of convolutions and linear layers.
        conv: the layer, if it is a convolution.
        size: (height, width) of a convolution's output.
    """

    name: str
    stage: str
    parameters: int
    multiply_adds: int = 0
    activations: int = 0
    conv: nn.Conv2d | None = None
    size: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class SeparableCost:
    """A depthwise convolution and the following pointwise one, compared with a standard one of the same k, M and N.

    MobileNetV1, section 3.1: the pair costs D*D*M*(k*k + N), the standard one D*D*M*N*k*k; the ratio is 1/N + 1/k^2.

    Args:
        name: of the depthwise convolution.
        kernel, in_channels, out_channels: k, M and N.
        multiply_adds, ordinary_multiply_adds: counted, of the pair and of the standard convolution.
    """

    name: str
    kernel: int
    in_channels: int
    out_channels: int
    multiply_adds: int
    ordinary_multiply_adds: int

    @property
    def ratio_by_formula(self) -> float:
        return 1 / self.out_channels + 1 / self.kernel**2

    @property
    def ratio_by_count(self) -> float:
        return self.multiply_adds / self.ordinary_multiply_adds


@dataclass(frozen=True)
class DeadKernels:
    """Numbers of channels, and of empty and silent ones, of a depthwise convolution: see `find_dead_kernels`."""

    name: str
    channels: int
    empty: int
    silent: int


@cache
def count_layers(config: ModelConfig) -> tuple[LayerCost, ...]:
    """Cost of each layer for one image of `config.input_size`, in execution order; allocates no tensors."""
    costs: list[LayerCost] = []

    def count(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        part, _, rest = name.partition(".")
        stage = f"{part}/stride {config.input_size[0] // output.shape[2]}" if output.ndim == 4 else ""
        if part == "neck":
            stage = f"neck/{rest.split('.')[0]}"
        elif part == "backbone" and costs and (output.ndim < 4 or inputs[0].shape[2:] == (1, 1)):
            stage = costs[-1].stage  # squeeze-and-excitation works on pooled maps
        cost = LayerCost(name, stage, sum(p.numel() for p in module.parameters(recurse=False)))
        if isinstance(module, nn.Conv2d | nn.Linear):
            elements = output[0].numel()
            inputs_each = module.weight[0].numel()  # of one output element
            cost = dataclasses.replace(cost, activations=elements, multiply_adds=elements * inputs_each)
        if isinstance(module, nn.Conv2d):
            cost = dataclasses.replace(cost, conv=module, size=(output.shape[2], output.shape[3]))
        costs.append(cost)

    with torch.device("meta"):
        model = YOLOv4(config.replace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))).eval()
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_hook(partial(count, name))
        with torch.inference_mode():
            model(torch.empty(1, 3, *config.input_size))
    return tuple(costs)


def sum_stages(costs: Sequence[LayerCost]) -> dict[str, dict[str, int]]:
    """Parameters, multiply-adds and activations of each stage, and of backbone, neck, head and all together."""
    stages: dict[str, dict[str, int]] = {}
    for part in ("backbone", "neck", "head"):
        own = [cost for cost in costs if cost.stage.startswith(part + "/")]
        stages[part] = _sum(own)
        for stage in dict.fromkeys(cost.stage for cost in own):
            stages[stage] = _sum([cost for cost in own if cost.stage == stage])
    stages["total"] = _sum(costs)
    return stages


def _sum(costs: Sequence[LayerCost]) -> dict[str, int]:
    return {name: sum(getattr(cost, name) for cost in costs) for name in COUNTS}


def compare_separable(costs: Sequence[LayerCost]) -> list[SeparableCost]:
    """Compare every depthwise and following pointwise convolution with the standard convolution that they replace."""
    convs = [(cost, cost.conv) for cost in costs if cost.conv is not None]
    pairs = []
    for number, (depthwise, conv) in enumerate(convs):
        kernel, channels = conv.kernel_size[0], conv.in_channels
        if not conv.groups == channels == conv.out_channels > 1 or kernel == 1:
            continue
        # The two convolutions of squeeze-and-excitation, on 1x1 maps, may be between them.
        for pointwise, following in convs[number + 1 : number + 4]:
            is_pointwise = (following.kernel_size[0], following.in_channels, following.groups) == (1, channels, 1)
            if is_pointwise and pointwise.size == depthwise.size:
                pair = depthwise.multiply_adds + pointwise.multiply_adds
                ordinary = pointwise.multiply_adds * kernel**2
                pairs.append(SeparableCost(depthwise.name, kernel, channels, following.out_channels, pair, ordinary))
                break
    return pairs


def find_dead_kernels(model: nn.Module) -> list[DeadKernels]:
    """Count the dead depthwise kernels of each layer.

    w and b are the kernel and bias after folding the batch norm (w * gamma / sqrt(var + eps)). A channel is `empty` if
    no weight reaches `DEAD_WEIGHT`: kernel or gamma is almost 0, and the output is constant. It is `silent` if it is
    between two ReLU6, as in V1, V2 and the neck, and 6 * sum(max(w, 0)) + b <= 0: the output is 0 for every input, and
    so is the gradient.

    Args:
        model: the model, with trained weights.
    """
    modules = list(model.named_modules())
    report = []
    for (name, conv), (_, norm), (_, activation) in zip(modules, modules[1:], modules[2:], strict=False):
        is_depthwise = isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1
        if not is_depthwise or not isinstance(norm, nn.BatchNorm2d):
            continue
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        kernels = (conv.weight.detach() * scale[:, None, None, None]).flatten(1)
        shift = norm.bias.detach() - norm.running_mean * scale
        empty = kernels.abs().amax(dim=1) < DEAD_WEIGHT
        silent = (6 * kernels.clamp(min=0).sum(dim=1) + shift <= 0) & ~empty & isinstance(activation, nn.ReLU6)
        report.append(DeadKernels(name, conv.out_channels, int(empty.sum()), int(silent.sum())))
    return report


def summarize(config: ModelConfig, model: nn.Module | None = None) -> dict[str, Any]:
    """Summarise a network as plain values, ready for JSON.

    Args:
        config: the network.
        model: the same network with trained weights; adds `dead_kernels` to the summary.
    """
    costs = count_layers(config)
    stages = sum_stages(costs)
    total = stages.pop("total")
    pairs = compare_separable(costs)
    separable = [
        {**dataclasses.asdict(p), "ratio_by_formula": p.ratio_by_formula, "ratio_by_count": p.ratio_by_count}
        for p in pairs
    ]
    summary: dict[str, Any] = {name: getattr(config, name) for name in NETWORK}
    summary |= {"input_size": list(config.input_size), **total, "stages": stages, "separable": separable}
    summary["separable_total"] = {
        "multiply_adds": sum(p.multiply_adds for p in pairs),
        "ordinary_multiply_adds": sum(p.ordinary_multiply_adds for p in pairs),
    }
    if model is not None:
        summary["dead_weight"] = DEAD_WEIGHT
        summary["dead_kernels"] = [dataclasses.asdict(layer) for layer in find_dead_kernels(model)]
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Format the summary as tables."""
    height, width = summary["input_size"]
    stages = {**summary["stages"], "total": summary}
    lines = [
        f"{summary['backbone']}, alpha {summary['alpha']:g}, {summary['neck_conv']} neck of width "
        f"{summary['neck_width']:g}, {counted(summary['num_classes'], 'class')}, {height} x {width}",
        "",
        *text_table(
            [
                ("stage", "parameters", "multiply-adds", "activations"),
                *(("  " + name.partition("/")[2] if "/" in name else name, *_counts(stages[name])) for name in stages),
            ]
        ),
        "",
        *_format_separable(summary["separable"], summary["separable_total"]),
    ]
    if "dead_kernels" in summary:
        lines += ["", *_format_dead(summary["dead_kernels"])]
    return "\n".join(lines)


def _counts(cost: dict[str, Any]) -> list[str]:
    return [f"{cost[name]:,}" for name in COUNTS]


def _format_separable(layers: list[dict[str, Any]], total: dict[str, int]) -> list[str]:
    if not layers:
        return ["no depthwise-separable convolutions"]
    rows: list[tuple[Any, ...]] = [
        (
            *(row[name] for name in ("name", "kernel", "in_channels", "out_channels")),
            *(f"{row[name]:,}" for name in ("multiply_adds", "ordinary_multiply_adds")),
            *(f"{row[name]:.4f}" for name in ("ratio_by_formula", "ratio_by_count")),
        )
        for row in layers
    ]
    pairs, ordinary = total["multiply_adds"], total["ordinary_multiply_adds"]
    rows.append(("total", "", "", "", f"{pairs:,}", f"{ordinary:,}", "", f"{pairs / ordinary:.4f}"))
    return [
        "depthwise-separable convolutions, compared with the standard k x k convolution from M to N channels;",
        "ratio of the multiply-adds (and weights): 1/N + 1/k^2 by formula, and as counted",
        *text_table([("depthwise", "k", "M", "N", "separable", "standard", "formula", "count"), *rows]),
    ]


def _format_dead(layers: list[dict[str, Any]]) -> list[str]:
    empty, silent, channels = (sum(layer[name] for layer in layers) for name in ("empty", "silent", "channels"))
    rows = [(*row.values(), f"{(row['empty'] + row['silent']) / row['channels']:.1%}") for row in layers]
    return [
        f"dead depthwise kernels: {empty + silent} of {channels}, of which {empty} empty (no weight reaches "
        f"{DEAD_WEIGHT:g} with the batch norm folded) and {silent} silent (output 0 after ReLU6 for every input)",
        *text_table([("depthwise", "channels", "empty", "silent", "dead"), *rows]),
    ]


def build_config(options: SummaryOptions) -> ModelConfig:
    """Build the configuration from the options. Raises UserError for invalid values."""
    values = {name: value for name in NETWORK[:-1] if (value := getattr(options, name)) is not None}
    classes = tuple(f"class {number}" for number in range(options.num_classes or 80))
    try:
        return ModelConfig(class_names=classes, **values)
    except ValueError as error:
        raise UserError("options", str(error), "see --help") from error


def main(argv: list[str] | None = None) -> None:
    """Print the summary of a network."""
    options = parse_options(SummaryOptions, argv, description=str(__doc__), prog="python -m nets.summary")
    model = None
    if options.checkpoint is None:
        config = build_config(options)
    else:
        for name in NETWORK:
            if getattr(options, name) is not None:
                what = "cannot be combined with a checkpoint, which defines the network"
                raise UserError("--" + name.replace("_", "-"), what, "leave out one of them")
        checkpoint = load_checkpoint(Path(options.checkpoint))
        config = checkpoint.config
        with torch.device("meta"):
            model = YOLOv4(config)
        model.load_state_dict(checkpoint.weights, assign=True)
    if options.input_size is not None:
        config = config.replace(input_size=input_size_option(options.input_size))
    summary = summarize(config, model)
    print(json.dumps(summary, indent=2) if options.json else format_summary(summary))


if __name__ == "__main__":
    run_command(main)
