"""Encode and decode boxes: the only place that turns raw predictions into boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from nets.model_config import MAX_LOG_SIZE


def decode(offsets: Tensor, anchors: Tensor, cells: Tensor, stride: int | Tensor, scale_xy: float | Tensor) -> Tensor:
    """Decode raw offsets into boxes. All arguments broadcast against each other.

    centre = (cell + s * sigmoid(t_xy) - (s - 1) / 2) * stride; size = anchor * exp(t_wh).

    Args:
        offsets: (..., 4 or more) logits tx, ty, tw, th.
        anchors: (..., 2) width, height in input pixels.
        cells: (..., 2) column, row of the grid cell.
        stride: stride of the level, input pixels per cell.
        scale_xy: grid sensitivity s: the centre may leave its cell by (s - 1) / 2.

    Returns:
        (..., 4) boxes, cxcywh, input pixels.

    Source: YOLOv3, section 2.1, https://arxiv.org/abs/1804.02767; grid sensitivity: YOLOv4, section 3.4,
    https://arxiv.org/abs/2004.10934
    """
    # With s = 1, a centre on the border of its cell needs t = +-infinity. With s > 1, a finite t reaches it.
    xy = decode_xy(offsets[..., :2], cells, stride, scale_xy)
    return torch.cat([xy, decode_wh(offsets[..., 2:4], anchors)], dim=-1)


def decode_xy(offsets: Tensor, cells: Tensor, stride: int | Tensor, scale_xy: float | Tensor) -> Tensor:
    """Centres (..., 2) of boxes, input pixels. Elementwise, so that exported graphs can use another dimension order."""
    return (offsets.sigmoid() * scale_xy - (scale_xy - 1) / 2 + cells) * stride


def decode_wh(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Widths and heights (..., 2) of boxes, input pixels; see `decode_xy`."""
    return offsets.clamp(max=MAX_LOG_SIZE).exp() * anchors


def encode(boxes: Tensor, anchors: Tensor, cells: Tensor, stride: int | Tensor, scale_xy: float | Tensor) -> Tensor:
    """The inverse of `decode`: (..., 4) boxes, cxcywh, input pixels, to offsets."""
    inside = (boxes[..., :2] / stride - cells + (scale_xy - 1) / 2) / scale_xy
    return torch.cat([torch.logit(inside, eps=1e-6), (boxes[..., 2:] / anchors).log()], dim=-1)


def decode_level(raw: Tensor, anchors: Tensor, stride: int, scale_xy: float) -> Tensor:
    """All boxes of one level: (B, A, H, W, 5 + C) predictions to (B, A, H, W, 4) cxcywh, input pixels."""
    height, width = raw.shape[2:4]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=raw.device), torch.arange(width, device=raw.device), indexing="ij"
    )
    cells = torch.stack([columns, rows], dim=-1).to(raw.dtype)
    return decode(raw, anchors.to(raw)[None, :, None, None], cells, stride, scale_xy)
