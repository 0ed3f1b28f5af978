"""The training loss: box, objectness and class terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import (
    box_convert,
    box_iou,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from nets.anchors import decode_level
from nets.assigner import Batch, Matches, assign, decode_matches, gather, prediction_index
from nets.loss_config import LossConfig
from nets.model_config import STRIDES, ModelConfig

# (P, 4) and (P, 4) xyxy -> (P,) losses, 0 for identical boxes
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


MIN_SIDE = 0.01  # of a predicted box in the box loss, pixels; see `_not_empty`


class _CrossEntropy(torch.autograd.Function):
    """`F.binary_cross_entropy_with_logits(logits, target, reduction="none")` for logits (...) and targets in [0, 1].

    The softplus uses `log` instead of `log1p`, which is ten times slower on a CPU in PyTorch. The results differ by at
    most 6e-8, because 1 + exp(-|x|) is in [1, 2].
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return logits.abs().neg_().exp_().add_(1).log_().add_(logits.clamp(min=0)).addcmul_(logits, target, value=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        return logits.sigmoid().sub_(target).mul_(gradients[0]), None


class YOLOLoss:
    """The loss of a batch.

    Args:
        config: anchors and grid sensitivity of the model.
        settings: weights of the terms, assignment rule and targets.
        total: sums a number over all processes (identity for one process). N processes that share a batch then
            normalise by the same number as one process with the whole batch.
        world_size: number of processes; gradients are averaged over them, so each loss is multiplied by it.
        class_weights: (C,) one factor for each class; empty for equal weights.

    Raises:
        ValueError: if the number of class weights is not the number of classes.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: LossConfig | None = None,
        total: Callable[[Tensor], Tensor] | None = None,
        world_size: int = 1,
        class_weights: Sequence[float] = (),
    ) -> None:
        self.config, self.settings, self.class_weights = config, settings or LossConfig(), tuple(class_weights)
        if class_weights and len(class_weights) != config.num_classes:
            raise ValueError(f"class_weights: {len(class_weights)}, num_classes: {config.num_classes}")
        self.total, self.world_size = total or (lambda value: value), world_size

    def __call__(self, predictions: Sequence[Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            predictions: three raw tensors (B, A, H, W, 5 + C), strides 8, 16, 32.
            targets: `boxes` (M, 4) xyxy input pixels, `labels` (M,), `image_index` (M,) position in the batch, and
                optionally `weights` (M,) in [0, 1]: the weight of each label, also used in its objectness target.
                Anchors matched to a label of weight 0 are ignored: neither object nor background.

        Returns:
            `box`, `objectness`, `class`: scalars, weighted; the total is their sum. Finite for a batch without objects.
        """
        predictions = [raw.float() for raw in predictions]
        batch = self._batch(predictions, targets)
        matches = assign(batch, self.settings.assigner)
        weights = batch.weights[matches.target]
        doubtful = matches[weights == 0]
        rows = gather(predictions, matches)
        # All terms are divided by the number of matched predictions, and not by the number of images or cells.
        count = self.total(weights.sum()).clamp(min=1) / self.world_size

        boxes = box_convert(_not_empty(decode_matches(rows, matches, self.config)), "cxcywh", "xyxy")
        target_boxes = box_convert(batch.boxes, "cxcywh", "xyxy")[matches.target]
        box = BOX_LOSSES[self.settings.box_loss](boxes, target_boxes)
        # 1 - loss is the (penalised) IoU. It is detached: the objectness loss must not train the boxes.
        quality = (1 - box.detach()).clamp(min=0)
        positive_targets = weights * (1 - self.settings.objectness_target * (1 - quality))
        classes = self._classes(rows[:, 5:], batch.labels[matches.target])
        return {
            "box": self.settings.box_weight * (weights * box).sum() / count,
            "objectness": self.settings.objectness_weight
            * self._objectness(batch, matches, positive_targets, doubtful)
            / count,
            "class": self.settings.class_weight * (weights * classes).sum() / count,
        }

    def _batch(self, predictions: Sequence[Tensor], targets: Mapping[str, Any]) -> Batch:
        boxes = box_convert(targets["boxes"].to(predictions[0]), "xyxy", "cxcywh")
        whole = (boxes[:, 2:] > 0).all(dim=1)
        labels, images = targets["labels"].to(boxes.device), targets["image_index"].to(boxes.device)
        weights = targets["weights"].to(boxes) if "weights" in targets else boxes.new_ones(len(boxes))
        grids = [(raw.shape[2], raw.shape[3]) for raw in predictions]
        return Batch(boxes[whole], labels[whole], images[whole], weights[whole], grids, predictions, self.config)

    def _objectness(self, batch: Batch, matches: Matches, positive_targets: Tensor, doubtful: Matches) -> Tensor:
        total = positive_targets.new_zeros(())
        sizes = [raw.shape[:4].numel() for raw in batch.predictions]
        # If several boxes are matched to one prediction, the highest target is used.
        targets = positive_targets.new_zeros(sum(sizes)).scatter_reduce_(
            0, prediction_index(batch, matches), positive_targets, "amax"
        )
        counts = torch.ones_like(targets)
        counts[prediction_index(batch, doubtful)] = 0
        counts[targets > 0] = 1
        by_level = zip(batch.predictions, targets.split(sizes), counts.split(sizes), strict=True)
        for level, (raw, target, counted) in enumerate(by_level):
            logits = raw[..., 4]
            target = target.view(logits.shape)
            loss = self._cross_entropy(logits, target)
            if len(doubtful):
                loss = loss * counted.view(logits.shape)
            if self.settings.ignore_iou < 1:
                loss = loss * ~(self._overlapping(batch, level) & (target == 0))
            total = total + self.settings.level_weights[level] * loss.sum()
        return total

    @torch.no_grad()
    def _overlapping(self, batch: Batch, level: int) -> Tensor:
        """(B, A, H, W) bool: predictions whose box has an IoU above `ignore_iou` with an object of their image."""
        raw = batch.predictions[level]
        anchors = torch.tensor(self.config.anchors[level], device=raw.device)
        decoded = decode_level(raw, anchors, STRIDES[level], self.config.scale_xy[level])
        boxes = box_convert(decoded.flatten(1, 3), "cxcywh", "xyxy")
        objects = box_convert(batch.boxes, "cxcywh", "xyxy")
        # A padded table (B, maximum number of objects in an image) instead of a loop over images.
        counts = torch.bincount(batch.images, minlength=len(raw))
        order = batch.images.argsort(stable=True)
        image = batch.images[order]
        slot = torch.arange(len(order), device=raw.device) - (counts.cumsum(0) - counts)[image]
        table = boxes.new_zeros(len(raw), max(int(counts.max()), 1), 4)
        table[image, slot] = objects[order]
        return (box_iou(boxes, table).amax(-1) > self.settings.ignore_iou).view(raw.shape[:4])

    def _classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        eps = self.settings.label_smoothing
        target = F.one_hot(labels, self.config.num_classes).to(logits) * (1 - eps) + eps / self.config.num_classes
        loss = self._cross_entropy(logits, target)
        if self.class_weights:
            loss = loss * torch.tensor(self.class_weights, device=loss.device)[labels][:, None]
        return loss.sum(1)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = _CrossEntropy.apply(logits, target)
        if self.settings.focal_gamma > 0:  # (1 - p_t)^gamma, generalised to soft targets (focal loss, section 3.2)
            loss = loss * (logits.sigmoid() - target).abs() ** self.settings.focal_gamma
        return loss


def _not_empty(boxes: Tensor) -> Tensor:
    """Clamp the sides of cxcywh boxes to at least MIN_SIDE; the gradient is that of the unclamped boxes.

    A side below the float32 resolution of its coordinates becomes 0 in xyxy, and CIoU's aspect ratio becomes 0 / 0.
    """
    sides = boxes[:, 2:]
    return torch.cat([boxes[:, :2], sides + (sides.detach().clamp(min=MIN_SIDE) - sides.detach())], dim=1)
