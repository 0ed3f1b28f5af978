"""Pseudo-labels of a teacher detector: add its boxes to the data set, with their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.index import DatasetIndex
from evaluation.detections_file import read_detections
from nets.detector import Detector
from nets.export.formats import CHECKPOINT_SUFFIXES
from nets.nms import box_iou
from training.pseudo_label import find_labels
from utils.distributed import say
from utils.text import counted

SAME_OBJECT = 0.5  # minimum IoU at which a detection and a label of the same class are the same object


def add_teacher(index: DatasetIndex, files: Sequence[str | Path]) -> DatasetIndex:
    """Add the detections of `files` to the data set as additional labels.

    Labels of the data set take precedence: a detection that overlaps a label of the same class is dropped. In images
    with labels, other detections are uncertain (score 0: neither object nor background). In images without labels, the
    detections become labels, each with its score.

    Args:
        index: the training split.
        files: detections in a format of `evaluation.detections_file.read_detections`, or checkpoints, which then
            detect objects in all images.

    Raises:
        UserError: for an invalid file, or one without detections of this split.
    """
    labelled = np.diff(index.offsets) > 0
    owner = index.image_of_box
    scores = np.ones(index.num_boxes) if index.scores is None else np.asarray(index.scores)
    added_owner, added_boxes, added_labels, added_scores = [], [], [], []
    for file in files:
        is_model = Path(file).suffix in CHECKPOINT_SUFFIXES
        if is_model:
            found = find_labels(Detector.open(file), index)
        else:
            found = read_detections(Path(file), index, missing="empty", others="skip").found
        image, boxes, labels = np.asarray(found.image), np.asarray(found.boxes), np.asarray(found.labels)
        bounds = np.searchsorted(image, np.arange(len(index) + 1))
        new = np.ones(len(image), bool)
        for i in np.unique(image):
            mine = slice(bounds[i], bounds[i + 1])
            own = index.boxes_of(i)
            same = labels[mine][:, None] == index.labels[own][None]
            new[mine] = ~((box_iou(boxes[mine], index.boxes[own]) > SAME_OBJECT) & same).any(1)
        doubt = labelled[image[new]]
        say(
            f"{file}: {counted(int((~doubt).sum()), 'label')} of {counted(len(np.unique(image)), 'image')}, "
            f"{int(doubt.sum())} uncertain"
        )
        added_owner.append(image[new])
        added_boxes.append(boxes[new])
        added_labels.append(labels[new])
        added_scores.append(np.where(doubt, 0.0, np.asarray(found.scores)[new]))
    owner = np.concatenate([owner, *added_owner])
    order = np.argsort(owner, kind="stable")
    count = len(owner) - index.num_boxes

    def join(old: np.ndarray, *more: np.ndarray) -> np.ndarray:
        return np.concatenate([old, *more])[order].astype(old.dtype)

    return dataclasses.replace(
        index,
        offsets=np.searchsorted(owner[order], np.arange(len(index) + 1)).astype(np.int64),
        boxes=join(index.boxes, *added_boxes),
        labels=join(index.labels, *added_labels),
        scores=join(scores, *added_scores),
        difficult=join(index.difficult, np.zeros(count, bool)),
        crowd=join(index.crowd, np.zeros(count, bool)),
        areas=None,
        box_refs=None,
    )
