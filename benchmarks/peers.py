"""Build peer detectors with random weights as ONNX files, to compare speed in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import run_command

PEER_CLASSES = 20


class _ConvBNSiLU(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=1e-3),
            nn.SiLU(inplace=True),
        )


class _Separable(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            _ConvBNSiLU(in_channels, in_channels, 3, stride, in_channels), _ConvBNSiLU(in_channels, out_channels, 1)
        )


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, has_residual: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(_ConvBNSiLU(channels, channels, 1), _Separable(channels, channels))
        self.has_residual = has_residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x) if self.has_residual else self.convs(x)


class _CSP(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, repeats: int, has_residual: bool) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.main, self.side = _ConvBNSiLU(in_channels, hidden, 1), _ConvBNSiLU(in_channels, hidden, 1)
        self.blocks = nn.Sequential(*(_Bottleneck(hidden, has_residual) for _ in range(repeats)))
        self.mix = _ConvBNSiLU(2 * hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat((self.blocks(self.main(x)), self.side(x)), dim=1))


class _SPP(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.mix = _ConvBNSiLU(channels, channels // 2, 1), _ConvBNSiLU(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.mix(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], dim=1))


class YOLOXNano(nn.Module):
    """YOLOX-Nano: depth 0.33, width 0.25, depthwise convolutions; 0.91 M parameters and 0.54 G multiply-adds at 416.

    Returns (B, N, 5 + C): raw boxes, then objectness and classes through the sigmoid, as its published ONNX file does.

    Source: YOLOX, https://arxiv.org/abs/2107.08430, table 5; CSPDarknet, PAFPN and decoupled head as in section 2.
    """

    def __init__(self, num_classes: int = 80) -> None:
        super().__init__()
        self.stem = _ConvBNSiLU(12, 16, 3)
        self.dark2 = nn.Sequential(_Separable(16, 32, 2), _CSP(32, 32, 1, True))
        self.dark3 = nn.Sequential(_Separable(32, 64, 2), _CSP(64, 64, 3, True))
        self.dark4 = nn.Sequential(_Separable(64, 128, 2), _CSP(128, 128, 3, True))
        self.dark5 = nn.Sequential(_Separable(128, 256, 2), _SPP(256), _CSP(256, 256, 1, False))
        self.lateral5, self.lateral4 = _ConvBNSiLU(256, 128, 1), _ConvBNSiLU(128, 64, 1)
        self.top_down4, self.top_down3 = _CSP(256, 128, 1, False), _CSP(128, 64, 1, False)
        self.downsample3, self.bottom_up4 = _Separable(64, 64, 2), _CSP(128, 128, 1, False)
        self.downsample4, self.bottom_up5 = _Separable(128, 128, 2), _CSP(256, 256, 1, False)
        self.stems = nn.ModuleList(_ConvBNSiLU(channels, 64, 1) for channels in (64, 128, 256))
        self.class_convs = nn.ModuleList(nn.Sequential(_Separable(64, 64), _Separable(64, 64)) for _ in range(3))
        self.box_convs = nn.ModuleList(nn.Sequential(_Separable(64, 64), _Separable(64, 64)) for _ in range(3))
        self.classes = nn.ModuleList(nn.Conv2d(64, num_classes, 1) for _ in range(3))
        self.boxes = nn.ModuleList(nn.Conv2d(64, 4, 1) for _ in range(3))
        self.objectness = nn.ModuleList(nn.Conv2d(64, 1, 1) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        corners = [images[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        c3 = self.dark3(self.dark2(self.stem(torch.cat(corners, dim=1))))
        c4 = self.dark4(c3)
        p5 = self.lateral5(self.dark5(c4))
        p4 = self.lateral4(self.top_down4(torch.cat((F.interpolate(p5, scale_factor=2), c4), dim=1)))
        p3 = self.top_down3(torch.cat((F.interpolate(p4, scale_factor=2), c3), dim=1))
        n4 = self.bottom_up4(torch.cat((self.downsample3(p3), p4), dim=1))
        n5 = self.bottom_up5(torch.cat((self.downsample4(n4), p5), dim=1))
        return torch.cat([self._predict(level, x) for level, x in enumerate((p3, n4, n5))], dim=2).permute(0, 2, 1)

    def _predict(self, level: int, x: Tensor) -> Tensor:
        x = self.stems[level](x)
        classes, boxes = self.class_convs[level](x), self.box_convs[level](x)
        objectness, scores = self.objectness[level](boxes).sigmoid(), self.classes[level](classes).sigmoid()
        return torch.cat((self.boxes[level](boxes), objectness, scores), dim=1).flatten(2)


class _SSDLite(nn.Module):
    """torchvision's SSDLite320 with MobileNetV3-Large: raw boxes and class logits of all anchors, without NMS."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes + 1)
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.head(list(self.backbone(images).values()))
        return outputs["bbox_regression"], outputs["cls_logits"]


# name -> (network, published input size)
PEERS: dict[str, tuple[Callable[[int], nn.Module], int]] = {"yolox_nano": (YOLOXNano, 416), "ssdlite": (_SSDLite, 320)}


def export_peer(name: str, path: Path, input_size: int | None = None, num_classes: int = PEER_CLASSES) -> Path:
    """Write a peer with random weights as ONNX: fp32, batch size 1, batch norms folded.

    Args:
        name: a key of `PEERS`.
        path: the file to write.
        input_size: pixels of a side; None takes the size it was published for.
    """
    from nets.export.onnx_file import trace_onnx

    build, own_size = PEERS[name]
    torch.manual_seed(0)
    size = input_size or own_size
    model = build(num_classes).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs = ["boxes", "scores"] if name == "ssdlite" else ["outputs"]
    path.write_bytes(trace_onnx(model, (torch.rand(1, 3, size, size),), outputs).SerializeToString())
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(PEERS))
    parser.add_argument("path", type=Path, help="the ONNX file to write")
    parser.add_argument("--input-size", type=int, help="input size in pixels, square (default: the published one)")
    options = parser.parse_args(argv)
    print(f"wrote {export_peer(options.name, options.path, options.input_size)}")


if __name__ == "__main__":
    run_command(main)
