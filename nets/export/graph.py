"""The network prepared for export: constants are precomputed, and box decoding is part of the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nets.anchors import decode_wh, decode_xy
from nets.export.form import Form
from nets.fuse import copy_network, fuse_batch_norms
from nets.model_config import ANCHORS_PER_LEVEL, STRIDES
from nets.yolov4 import YOLOv4

BOX_PARTS = (slice(0, 4), slice(4, 5), slice(5, None))  # of an anchor's outputs: box, objectness, classes


class DeployedNetwork(nn.Module):
    """A copy of a network for tracing, with the inputs and outputs of `form`.

    Batch norms are folded. The standard deviation (and the factor 255 of uint8) is folded into the first convolution,
    which is exact. A mean that is not zero is subtracted in the graph. Folded into the bias of that convolution, it
    would give wrong values along the border, where the zero padding comes *after* normalisation.

    Boxes, objectness and classes come from separate convolutions (parts of the head's last one), so that a quantiser
    gives each its own scale.
    """

    scale: Tensor | None
    mean: Tensor | None

    def __init__(self, model: YOLOv4, form: Form) -> None:
        super().__init__()
        self.config, self.form = model.config, form
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(form.precision, torch.float32)
        network = fuse_batch_norms(copy_network(model).cpu()).requires_grad_(False)
        self._fold_normalization(network)
        self.backbone, self.neck = network.backbone, network.neck
        self.stems = nn.ModuleList(level[:-1] for level in network.head.levels)
        parts = BOX_PARTS if form.decodes else (slice(None),)
        self.lasts = nn.ModuleList(
            nn.ModuleList(_part_of_head(level[-1], part) for part in parts) for level in network.head.levels
        )
        self.to(self.dtype)
        for level, (anchors, stride) in enumerate(zip(self.config.anchors, STRIDES, strict=True)):
            self.register_buffer(f"anchors{level}", torch.tensor(anchors)[:, :, None, None], persistent=False)
            height, width = (side // stride for side in self.config.input_size)
            self.register_buffer(f"cells{level}", _cells(height, width), persistent=False)
        self.eval()

    def _fold_normalization(self, network: YOLOv4) -> None:
        config = self.config
        unit = 255.0 if self.form.uint8_input else 1.0
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        first = next(m for m in network.backbone.modules() if isinstance(m, nn.Conv2d))
        scale: Tensor | None
        if first.in_channels == 3 and first.groups == 1 and not config.backbone.startswith("timm:"):
            first.weight.data = first.weight.data / (std * unit).view(1, 3, 1, 1)
            scale = None
        else:  # a timm model may process its input before its first convolution
            scale = 1 / (std * unit).view(1, 3, 1, 1)
        for name, value in (("scale", scale), ("mean", (mean * unit).view(1, 3, 1, 1) if any(config.mean) else None)):
            if value is None:  # not a buffer: torch.export fails for buffers that are None
                setattr(self, name, None)
            else:
                self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute boxes and scores, or raw maps; see `Form` for the shapes."""
        maps = self.compute_maps(images)
        return self.decode(*maps) if self.form.decodes else maps

    def compute_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the convolutions: for each level the raw map, or (B, A * n, H, W) boxes, objectness, classes."""
        x = images.permute(0, 3, 1, 2).contiguous() if self.form.uint8_input else images
        x = x.to(self.dtype)
        if self.mean is not None:
            x = x - self.mean
        if self.scale is not None:
            x = x * self.scale
        features = [stem(p) for stem, p in zip(self.stems, self.neck(*self.backbone(x)), strict=True)]
        return tuple(conv(x).float() for convs, x in zip(self.lasts, features, strict=True) for conv in convs)

    def decode(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """Convert the outputs of `compute_maps` to boxes (B, N, 4) xyxy input pixels and scores (B, N, C)."""
        levels = [[x.unflatten(1, (ANCHORS_PER_LEVEL, -1)) for x in maps[i : i + 3]] for i in range(0, len(maps), 3)]
        boxes = [self._boxes(level, parts[0]) for level, parts in enumerate(levels)]
        scores = [_flatten(classes.sigmoid() * objectness.sigmoid()) for _, objectness, classes in levels]
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def _boxes(self, level: int, offsets: Tensor) -> Tensor:
        # Coordinates stay in the channel dimension: runtimes are slow at slicing a short last dimension.
        cells = getattr(self, f"cells{level}")
        if self.form.dynamic:
            cells = _cells(offsets.shape[3], offsets.shape[4])
        xy = decode_xy(offsets[:, :, :2], cells, STRIDES[level], self.config.scale_xy[level])
        half = decode_wh(offsets[:, :, 2:], getattr(self, f"anchors{level}") / 2)
        return _flatten(torch.cat([xy - half, xy + half], dim=2))


def _part_of_head(conv: nn.Conv2d, part: slice) -> nn.Conv2d:
    """The part of a convolution that computes only these outputs of each anchor."""
    assert conv.bias is not None
    weight = conv.weight.data.view(ANCHORS_PER_LEVEL, -1, *conv.weight.shape[1:])[:, part].flatten(0, 1)
    bias = conv.bias.data.view(ANCHORS_PER_LEVEL, -1)[:, part].flatten()
    result = nn.Conv2d(conv.in_channels, len(bias), 1)
    result.weight.data, result.bias.data = weight.clone(), bias.clone()
    return result


def _flatten(x: Tensor) -> Tensor:
    """(B, A, n, H, W) to (B, A * H * W, n)."""
    return x.flatten(3).permute(0, 1, 3, 2).flatten(1, 2)


def _cells(height: int, width: int) -> Tensor:
    """(2, H, W) column and row of each cell."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows]).float()
