"""Build the state of the labelling page from the options of `serve.py --label`."""

from __future__ import annotations

import os
from pathlib import Path

from data.class_names import read_class_names
from prediction.detector import Detector, load_detector
from service.labelling.order import read_queue
from service.labelling.routes import Labelling
from service.labelling.store import open_store
from service.labelling.suggest import Suggester
from service.labelling.trainer import LabelTrainer


def open_labelling(
    data: str,
    detector: Detector,
    checkpoint: Path,
    *,
    classes: str | None = None,
    queue: str | None = None,
    minutes: float | None = None,
    config: str | None = None,
    device: str = "auto",
) -> Labelling:
    """Open a folder of images for labelling.

    Args:
        data: a folder of images or a data set.
        detector: detector for the first suggestions.
        checkpoint: file of the detector.
        classes: file of initial class names.
        queue: file with a list of images to check.
        minutes: time of a background training run; None for no training.
        config: file of options for the training runs.
        device: device of detectors and training runs.

    Raises:
        UserError: if there are no images, or a file is invalid.
    """
    store = open_store(data, read_class_names(classes) if classes else ())
    suggester = Suggester(store, detector, checkpoint.name)
    trainer = None
    if minutes is not None:

        def take(weights: Path) -> None:
            suggester.replace(load_detector(weights, device), f"{weights.parent.parent.name}/{weights.name}")

        extra = ["--config", os.path.abspath(config)] if config else []
        trainer = LabelTrainer(store, checkpoint.resolve(), take, minutes, device, extra)
        trainer.restore()
    return Labelling(store, suggester, trainer, read_queue(Path(queue), store) if queue else None)
