"""Explain predictions: objectness heat maps, and class activation maps (LayerCAM) of one detection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from nets.model_config import STRIDES
from nets.postprocess import sigmoid
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def objectness_map(detector: Any, image: np.ndarray) -> np.ndarray:
    """The maximum objectness over all anchors and levels at each pixel.

    Args:
        detector: a `Detector` that returns raw maps: a checkpoint, on any runtime.
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) float32 in [0, 1].
    """
    if detector.runtime.decodes:
        raise UserError(
            "--heatmap", "needs raw maps, which this exported file does not return", "use a .pth checkpoint"
        )
    letterbox = detector.config.letterbox
    outputs = detector.runtime.run(letterbox.apply(image)[None])
    height, width = letterbox.input_size
    heat = np.zeros((height, width), np.float32)
    for raw in outputs:
        level = sigmoid(raw[0, ..., 4].max(axis=0))
        heat = np.maximum(heat, cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR))
    return _to_image(heat, letterbox, image)


def layer_cam(
    detector: Any, image: np.ndarray, box: Sequence[float] | np.ndarray, label: int, layers: Sequence[str] | None = None
) -> np.ndarray:
    """LayerCAM heat map: the pixels that contribute to the detection of a class in a box.

    Args:
        detector: a `Detector` that runs on PyTorch.
        image: (H, W, 3) uint8 RGB.
        box: x1, y1, x2, y2 of a detection, image pixels.
        label: its class index.
        layers: `c3`, `c4`, `c5`, the backbone's maps at strides 8, 16, 32; None uses all and keeps the maximum.

    Returns:
        (H, W) float32 with maximum 1; all 0 if no prediction matches the box.

    Source: LayerCAM, Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943
    """
    if detector.runtime.name != "torch":
        raise UserError(
            "--cam", "needs the weights of the network, which an exported file does not have", "use a .pth checkpoint"
        )
    import torch  # imported here: nothing else in this module needs it

    letterbox, model = detector.config.letterbox, detector.runtime.model
    maps: dict[str, Tensor] = {}

    def keep(_module: Any, _inputs: Any, outputs: Sequence[Tensor]) -> None:
        maps.update(zip(("c3", "c4", "c5"), outputs, strict=True))

    pixels = torch.from_numpy(letterbox.apply(image)[None]).permute(0, 3, 1, 2).to(detector.runtime.device)
    pixels = (pixels.float() / 255).requires_grad_(True)  # weights are frozen: the input needs a gradient
    hook = model.backbone.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            predictions = model(pixels)
            score = _responsible(
                predictions,
                detector.config,
                letterbox.boxes_to_input(np.asarray([box], np.float32), *image.shape[:2]),
                label,
            )
            chosen = [maps[name] for name in (layers or maps)]
            gradients = torch.autograd.grad(score, chosen, allow_unused=True)
    finally:
        hook.remove()
    height, width = letterbox.input_size
    heat = np.zeros((height, width), np.float32)
    for values, gradient in zip(chosen, gradients, strict=True):
        if gradient is None:  # the prediction does not depend on this layer
            continue
        level = (values * gradient.relu()).sum(dim=1)[0].relu().detach().cpu().numpy()
        # All levels share one scale, their contribution to the score. Scaling each by its own maximum, as the paper
        # does for classifiers, would amplify the noise of levels that contribute nothing.
        heat = np.maximum(heat, cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR))
    heat = _to_image(heat, letterbox, image)
    return heat / heat.max() if heat.max() > 0 else heat


def _responsible(predictions: Sequence[Tensor], config: Any, box: np.ndarray, label: int) -> Tensor:
    """Objectness and class logit of the prediction that matches a box (1, 4) xyxy, input pixels.

    Among predictions whose IoU is at least 0.9 times the best IoU, the one with the highest score.
    """
    import torch
    from torchvision.ops import box_convert, box_iou

    from nets.anchors import decode_level

    wanted = torch.from_numpy(box).to(predictions[0].device)
    overlaps, logits = [], []
    for raw, anchors, stride, scale in zip(predictions, config.anchors, STRIDES, config.scale_xy, strict=True):
        with torch.no_grad():
            boxes = decode_level(raw.float(), torch.tensor(anchors), stride, scale).reshape(-1, 4)
            overlaps.append(box_iou(box_convert(boxes, "cxcywh", "xyxy"), wanted)[:, 0])
        logits.append(torch.stack([raw[..., 4], raw[..., 5 + label]], dim=-1).reshape(-1, 2).float())
    overlap, logit = torch.cat(overlaps), torch.cat(logits)
    score = logit.detach().sigmoid().prod(dim=1)
    near = overlap >= 0.9 * overlap.max()
    return logit[int(torch.where(near, score, -1.0).argmax())].sum()


def _to_image(heat: np.ndarray, letterbox: Any, image: np.ndarray) -> np.ndarray:
    """Crop a map of the network's input to the image area and resize it to (H, W)."""
    height, width = image.shape[:2]
    new_height, new_width, top, left = letterbox.geometry(height, width)
    part = heat[top : top + new_height, left : left + new_width]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
