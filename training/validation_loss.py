"""Loss of the validation split, from the forward passes of its evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.index import DatasetIndex
from nets.detector import Detector
from nets.losses import YOLOLoss
from nets.tiling import TiledDetector
from nets.torch_runtime import TorchRuntime
from nets.yolov4 import YOLOv4
from training.engine import EpochProgress
from training.options import TrainOptions


class MapsRuntime(TorchRuntime):
    """Keeps the raw maps of the last batch in `maps`."""

    maps: list[Tensor]

    def forward(self, images: np.ndarray) -> list[Tensor]:
        self.maps = super().forward(images)
        return self.maps


class ValidationLoss:
    """The detector that scores a run, and the loss of the images that it has scored.

    The loss is that of training, with the same weights of its terms, on images without augmentation and on the weights
    that are saved. With `--tile` there is none: a tile's labels are not those of its image.

    Args:
        model: the network to score; it is copied.
        device: where to run it.
        index: the validation split.
        options: of the run.
        class_weights: (C,) as in training; empty for equal weights.

    Attributes:
        detector: for `evaluation.evaluator.evaluate`, with `add` as its `after_batch`.
        sums: the losses of this process's images.
    """

    def __init__(
        self,
        model: YOLOv4,
        device: str,
        index: DatasetIndex,
        options: TrainOptions,
        class_weights: Sequence[float] = (),
    ) -> None:
        self.index, self.runtime = index, MapsRuntime(model, device)
        self.loss = YOLOLoss(model.config, options.loss, class_weights=class_weights)
        self.sums = EpochProgress(0, 0, {})
        dataset, detector = options.dataset, Detector(self.runtime)
        self.is_tiled = dataset.tile is not None
        self.detector: Detector | TiledDetector = detector
        if self.is_tiled:
            self.detector = TiledDetector(detector, dataset.tile or None, dataset.tile_overlap)

    def add(self, positions: Sequence[int], sizes: Sequence[tuple[int, int]]) -> None:
        """Add the loss of the batch that was detected last.

        Args:
            positions: of its images in the index.
            sizes: the (height, width) of each image.
        """
        if self.is_tiled:
            return
        boxes, labels, images = [], [], []
        for number, (position, size) in enumerate(zip(positions, sizes, strict=True)):
            part = self.index.boxes_of(position)
            kept = ~self.index.crowd[part]
            boxes.append(self.runtime.config.letterbox.boxes_to_input(self.index.boxes[part][kept], *size))
            labels.append(self.index.labels[part][kept].astype(np.int64))
            images.append(np.full(len(labels[-1]), number))
        names = ("boxes", "labels", "image_index")
        targets = {n: torch.from_numpy(np.concatenate(v)) for n, v in zip(names, (boxes, labels, images), strict=True)}
        with torch.inference_mode():
            losses = self.loss(self.runtime.maps, targets)
        self.sums.add(len(positions), {name: float(value) for name, value in losses.items()})
