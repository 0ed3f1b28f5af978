"""From the options of `serve.py --label` to what the labelling page works with."""

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
    """The pictures of a folder, ready to be labelled.

    Args:
        data: a folder of pictures or a data set.
        detector: makes the first suggestions.
        checkpoint: its file.
        classes: a file of class names to begin with.
        queue: a file of pictures to look at.
        minutes: of one training in the background; None for no training.
        config: a file of options for these trainings.
        device: of the detectors and trainings.

    Raises:
        UserError: if there are no pictures, or a file is not what it should be.
    """
    store = open_store(data, read_class_names(classes) if classes else ())
    suggester = Suggester(store, detector, checkpoint.name)
    trainer = None
    if minutes is not None:

        def take(weights: Path) -> None:
            suggester.replace(load_detector(weights, device), f"{weights.parent.parent.name}/{weights.name}")

        extra = ["--config", os.path.abspath(config)] if config else []
        trainer = LabelTrainer(store, checkpoint.resolve(), take, minutes, device, extra)
    return Labelling(store, suggester, trainer, read_queue(Path(queue), store) if queue else None)
