"""Cost of a network by stage: parameters, multiply-adds, activations, and the savings of separable convolutions."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nets.model_config import NECK_CONVS, ModelConfig, input_size_option
from nets.weights.checkpoint import load_checkpoint
from nets.yolov4 import YOLOv4
from utils.config import option, parse_options
from utils.errors import UserError, run_command
from utils.text import counted

# A kernel is dead if all its weights, folded with the batch norm, are below this. Activations here are from 0 to 6, so
# nine such weights change the output by less than 1 % of its range.
DEAD_WEIGHT = 1e-3


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
class ConvShape:
    """A convolution: kernel size, channels, groups, and (height, width) of its output."""

    kernel: int
    in_channels: int
    out_channels: int
    groups: int
    size: tuple[int, int]


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image.

    Args:
        name: its path in the network.
        stage: `backbone/stride 8`, `neck/top_down4`, `head/stride 8`, ...
        parameters: number of its parameters.
        multiply_adds: of convolutions and linear layers; norms are folded into them and activations are not counted.
        activations: number of output elements of convolutions and linear layers.
        conv: its shape, for a convolution.
    """

    name: str
    stage: str
    parameters: int
    multiply_adds: int
    activations: int
    conv: ConvShape | None = None


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
    """Numbers of dead channels of a depthwise convolution (see `find_dead_kernels`).

    Args:
        name: name of the convolution.
        channels: number of its channels.
        empty: channels whose kernel is almost 0.
        silent: of the others, channels whose ReLU6 output is 0 for every input.
    """

    name: str
    channels: int
    empty: int
    silent: int


@functools.cache
def count_layers(config: ModelConfig) -> tuple[LayerCost, ...]:
    """Cost of each layer for one image of `config.input_size`, in execution order; allocates no tensors."""
    with torch.device("meta"):
        model = YOLOv4(config.replace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))).eval()
        costs: list[LayerCost] = []
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_hook(_Counter(name, config.input_size[0], costs))
        with torch.inference_mode():
            model(torch.empty(1, 3, *config.input_size))
    return tuple(costs)


class _Counter:
    """A forward hook that appends a layer's cost."""

    def __init__(self, name: str, height: int, costs: list[LayerCost]) -> None:
        self.name, self.height, self.costs = name, height, costs

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        multiply_adds = activations = 0
        conv = None
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            activations = output[0].numel()
            multiply_adds = activations * kernel * module.in_channels // module.groups
            size = (output.shape[2], output.shape[3])
            conv = ConvShape(module.kernel_size[0], module.in_channels, module.out_channels, module.groups, size)
        elif isinstance(module, nn.Linear):
            activations = output[0].numel()
            multiply_adds = activations * module.in_features
        stage = self._stage(inputs[0], output)
        self.costs.append(LayerCost(self.name, stage, parameters, multiply_adds, activations, conv))

    def _stage(self, x: Tensor, output: Tensor) -> str:
        part, _, rest = self.name.partition(".")
        if part == "neck":
            return f"neck/{rest.split('.')[0]}"
        if part == "backbone" and self.costs and (output.ndim < 4 or x.shape[2:] == (1, 1)):
            return self.costs[-1].stage  # squeeze-and-excitation works on pooled maps
        return f"{part}/stride {self.height // output.shape[2]}"


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
    return {
        "parameters": sum(cost.parameters for cost in costs),
        "multiply_adds": sum(cost.multiply_adds for cost in costs),
        "activations": sum(cost.activations for cost in costs),
    }


def compare_separable(costs: Sequence[LayerCost]) -> list[SeparableCost]:
    """Compare every depthwise and following pointwise convolution with the standard convolution that they replace."""
    convs = [(cost, cost.conv) for cost in costs if cost.conv is not None]
    pairs = []
    for number, (depthwise, conv) in enumerate(convs):
        if not conv.groups == conv.in_channels == conv.out_channels > 1 or conv.kernel == 1:
            continue
        # The two convolutions of squeeze-and-excitation, on 1x1 maps, may be between them.
        for pointwise, following in convs[number + 1 : number + 4]:
            takes_it = (following.kernel, following.in_channels, following.groups) == (1, conv.out_channels, 1)
            if takes_it and following.size == conv.size:
                counted = depthwise.multiply_adds + pointwise.multiply_adds
                ordinary = conv.size[0] * conv.size[1] * conv.kernel**2 * conv.in_channels * following.out_channels
                pairs.append(
                    SeparableCost(
                        depthwise.name, conv.kernel, conv.in_channels, following.out_channels, counted, ordinary
                    )
                )
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
    names = ("backbone", "alpha", "neck_conv", "neck_width", "num_classes")
    summary: dict[str, Any] = {name: getattr(config, name) for name in names}
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
    lines = [
        f"{summary['backbone']}, alpha {summary['alpha']:g}, {summary['neck_conv']} neck of width "
        f"{summary['neck_width']:g}, {counted(summary['num_classes'], 'class')}, {height} x {width}",
        "",
        f"{'stage':<28}{'parameters':>14}{'multiply-adds':>18}{'activations':>15}",
    ]
    for name, cost in {**summary["stages"], "total": summary}.items():
        label = name if "/" not in name else "  " + name.split("/", 1)[1]
        row = f"{cost['parameters']:>14,}{cost['multiply_adds']:>18,}{cost['activations']:>15,}"
        lines.append(f"{label:<28}{row}")
    lines += ["", *_format_separable(summary)]
    if "dead_kernels" in summary:
        lines += ["", *_format_dead(summary)]
    return "\n".join(lines)


def _format_separable(summary: dict[str, Any]) -> list[str]:
    if not summary["separable"]:
        return ["no depthwise-separable convolutions"]
    width = max(len(row["name"]) for row in summary["separable"]) + 2
    lines = [
        "depthwise-separable convolutions, compared with the standard k x k convolution from M to N channels;",
        "ratio of the multiply-adds (and weights): 1/N + 1/k^2 by formula, and as counted",
        f"{'depthwise':<{width}}{'k':>3}{'M':>6}{'N':>6}{'separable':>14}{'standard':>16}{'formula':>9}{'count':>9}",
    ]
    for row in summary["separable"]:
        shape = f"{row['kernel']:>3}{row['in_channels']:>6}{row['out_channels']:>6}"
        counts = f"{row['multiply_adds']:>14,}{row['ordinary_multiply_adds']:>16,}"
        shares = f"{row['ratio_by_formula']:>9.4f}{row['ratio_by_count']:>9.4f}"
        lines.append(f"{row['name']:<{width}}{shape}{counts}{shares}")
    total = summary["separable_total"]
    counts = f"{total['multiply_adds']:>14,}{total['ordinary_multiply_adds']:>16,}"
    share = total["multiply_adds"] / total["ordinary_multiply_adds"]
    lines.append(f"{'total':<{width}}{'':>15}{counts}{'':>9}{share:>9.4f}")
    return lines


def _format_dead(summary: dict[str, Any]) -> list[str]:
    layers = summary["dead_kernels"]
    empty, silent = sum(layer["empty"] for layer in layers), sum(layer["silent"] for layer in layers)
    lines = [
        f"dead depthwise kernels: {empty + silent} of {sum(layer['channels'] for layer in layers)}, of which "
        f"{empty} empty (no weight reaches {summary['dead_weight']:g} with the batch norm folded) and {silent} silent "
        f"(output 0 after ReLU6 for every input)",
        f"{'depthwise':<40}{'channels':>9}{'empty':>7}{'silent':>8}{'dead':>8}",
    ]
    for layer in layers:
        share = (layer["empty"] + layer["silent"]) / layer["channels"]
        lines.append(f"{layer['name']:<40}{layer['channels']:>9}{layer['empty']:>7}{layer['silent']:>8}{share:>8.1%}")
    return lines


def build_config(options: SummaryOptions) -> ModelConfig:
    """Build the configuration from the options. Raises UserError for invalid values."""
    names = ("backbone", "alpha", "neck_conv", "neck_width")
    values = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
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
        typed = ("backbone", "alpha", "neck_conv", "neck_width", "num_classes")
        given = next((name for name in typed if getattr(options, name) is not None), None)
        if given is not None:
            flag = "--" + given.replace("_", "-")
            raise UserError(
                flag, "cannot be combined with a checkpoint, which defines the network", "leave out one of them"
            )
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
