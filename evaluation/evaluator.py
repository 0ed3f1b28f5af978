"""Evaluate a detector on a split; used by training and by eval.py."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data.index import DatasetIndex
from data.skips import Skip
from evaluation.metrics.coco import TOOLS, choose_evaluator, coco_figures
from evaluation.metrics.curves import ScoreCurves, score_curves
from evaluation.metrics.matching import FALSE_POSITIVE, TRUE_POSITIVE, BestMatch, best_matches, outcomes
from evaluation.metrics.record import EvalRecord, record_from_index
from evaluation.metrics.voc import IOU_THRESHOLD, voc_figures
from imaging.detections import Detections
from imaging.pipeline import parallel_map
from utils.errors import UserError, warn
from utils.text import counted, some_names
from utils.thresholds import Thresholds

STAGES = ("decode", "preprocess", "network", "postprocess")
READ_AHEAD_BATCHES = 2  # decoded batches waiting for the network; bounds memory

# Class names that are equivalent in VOC and COCO.
CLASS_ALIASES = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}


# Thresholds for evaluation: a low score threshold, so that the whole precision-recall curve is covered;
# the NMS of prediction; COCO's limit of detections (https://cocodataset.org/#detection-eval); and several classes per
# box, so that an ambiguous box also counts for its second class.
EVAL_THRESHOLDS = Thresholds(score_threshold=0.001, iou_threshold=0.5, max_detections=100, multi_label=True)


class DetectorLike(Protocol):
    """`nets.detector.Detector`, or any object with the same interface."""

    @property
    def config(self) -> Any: ...

    def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]: ...


AfterBatch = Callable[[Sequence[int], Sequence[tuple[int, int]]], None]


@dataclass(frozen=True)
class FoundDetections:
    """Detections of many images of an index, as flat arrays.

    Args:
        image: (N,) int64 position in the index.
        boxes: (N, 4) xyxy image pixels.
        scores: (N,).
        labels: (N,) int64, index into the scored class names.
        images: (I,) int64 positions of the images that were processed.
        seconds: time spent by stage, and `wall`.
        skips: images that could not be read.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    skips: tuple[Skip, ...] = ()

    @classmethod
    def from_list(cls, positions: Sequence[int], found: Sequence[Detections], **others: Any) -> FoundDetections:
        """Concatenate one `Detections` per image."""
        images, counts = np.asarray(positions, np.int64), [len(each) for each in found]
        parts = found or [Detections.empty()]
        names = ("boxes", "scores", "labels")
        boxes, scores, labels = (np.concatenate([getattr(each, name) for each in parts]) for name in names)
        return cls(np.repeat(images, counts), boxes, scores, labels, images, **others)

    @classmethod
    def merged(cls, parts: Sequence[FoundDetections]) -> FoundDetections:
        """Merge the parts of several processes in image order, as a single process would return them."""
        image = np.concatenate([part.image for part in parts])
        order = np.argsort(image, kind="stable")
        stages = {key for part in parts for key in part.seconds}
        return cls(
            image[order],
            np.concatenate([part.boxes for part in parts])[order],
            np.concatenate([part.scores for part in parts])[order],
            np.concatenate([part.labels for part in parts])[order],
            np.sort(np.concatenate([part.images for part in parts])),
            {key: (max if key == "wall" else sum)(part.seconds.get(key, 0.0) for part in parts) for key in stages},
            tuple(skip for part in parts for skip in part.skips),
        )


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation: detections, ground truth and metrics.

    Args:
        record: detections and ground truth of all images.
        index: the images that were scored, in the order of the record.
        figures: `voc07_mAP50`, `voc10_mAP50`, `coco_AP`, `coco_AP50`, ... and `per_class`; None where undefined.
        protocol: text that describes how the metrics were computed.
        seconds: time spent by stage (over all threads), and `wall`.
        skips: images left out.
        num_not_scored: objects of classes that the model does not know.
    """

    record: EvalRecord
    index: DatasetIndex
    figures: dict[str, Any]
    protocol: str
    seconds: dict[str, float] = field(default_factory=dict)
    skips: tuple[Skip, ...] = ()
    num_not_scored: int = 0

    @cached_property
    def matches(self) -> BestMatch:
        """The best object of its class for each detection."""
        return best_matches(self.record)

    @cached_property
    def outcome(self) -> np.ndarray:
        """(N,) true positive, false positive or ignored, at IoU 0.5."""
        return outcomes(self.record, self.matches, IOU_THRESHOLD)

    @cached_property
    def curves(self) -> ScoreCurves:
        """Precision, recall and F1 by score, at IoU 0.5."""
        return score_curves(self.record, self.outcome)

    @property
    def best_f1_threshold(self) -> float | None:
        """The score threshold of the largest F1 over all classes together."""
        return self.curves.best_threshold

    @property
    def images_per_second(self) -> float | None:
        wall = self.seconds.get("wall", 0.0)
        return self.record.num_images / wall if wall else None

    @property
    def timing(self) -> dict[str, float]:
        """Fraction of the total time of the four stages that each stage takes."""
        total = sum(self.seconds.get(stage, 0.0) for stage in STAGES)
        return {stage: self.seconds[stage] / total for stage in STAGES if total and stage in self.seconds}

    @property
    def num_images(self) -> int:
        return self.record.num_images

    def per_class(self) -> dict[str, dict[str, Any]]:
        """Per class: AP by each protocol, counts, and precision, recall and F1 at the class's best-F1 threshold."""
        rows = {}
        for name, curve in zip(self.record.class_names, self.curves.per_class, strict=True):
            threshold, _ = curve.best
            working = curve.at(threshold) if threshold is not None else (None, None, None)
            own = dict(zip(("precision", "recall", "f1"), working, strict=True))
            rows[name] = self.figures["per_class"][name] | own | {"threshold": threshold}
        return rows

    def per_image(self) -> list[dict[str, Any]]:
        """One plain dict per image.

        `objects` counts the scored objects of each class; `true_positives`, `false_positives` and `missed` are at
        the best-F1 threshold; `detections` are all [class index, score, outcome at IoU 0.5: 1 correct, 0 wrong,
        -1 ignored], which is the input for comparing two models.
        """
        record = self.record
        counted = ~record.gt_ignored
        num_gt = np.bincount(record.gt_image[counted], minlength=record.num_images)
        kept = record.det_scores >= (np.inf if self.best_f1_threshold is None else self.best_f1_threshold)
        true, false = (
            np.bincount(record.det_image[kept & (self.outcome == what)], minlength=record.num_images)
            for what in (TRUE_POSITIVE, FALSE_POSITIVE)
        )
        det_bounds = np.searchsorted(record.det_image, np.arange(record.num_images + 1))
        gt_bounds = np.searchsorted(record.gt_image, np.arange(record.num_images + 1))
        labels, scores = record.det_labels.tolist(), record.det_scores.round(7).tolist()
        outcome = self.outcome.tolist()
        rows = []
        for i in range(record.num_images):
            part = slice(gt_bounds[i], gt_bounds[i + 1])
            objects = np.bincount(record.gt_labels[part][counted[part]], minlength=record.num_classes)
            dets = slice(det_bounds[i], det_bounds[i + 1])
            rows.append(
                {
                    "image_id": record.image_ids[i].item(),
                    "image": self.index.path(i).name,
                    "objects": {record.class_names[c]: int(objects[c]) for c in np.flatnonzero(objects)},
                    "true_positives": int(true[i]),
                    "false_positives": int(false[i]),
                    "missed": int(num_gt[i] - true[i]),
                    "detections": [list(row) for row in zip(labels[dets], scores[dets], outcome[dets], strict=True)],
                }
            )
        return rows

    def to_json(self, per_image: bool = False) -> dict[str, Any]:
        """Plain types; see `figures`, `per_class` and `per_image`."""
        values = {key: value for key, value in self.figures.items() if key != "per_class"}
        values |= {
            "per_class": self.per_class(),
            "class_names": list(self.record.class_names),
            "num_images": self.num_images,
            "num_objects": int(self.record.num_gt.sum()),
            "num_skipped": len(self.skips),
            "skipped": [str(skip) for skip in self.skips],
            "num_not_scored": self.num_not_scored,
            "protocol": self.protocol,
            "best_f1_threshold": self.best_f1_threshold,
            "best_f1": self.curves.best_f1,
            "images_per_second": self.images_per_second,
            "timing": self.timing,
        }
        if per_image:
            values["per_image"] = self.per_image()
        return values


def evaluate(
    detector: DetectorLike,
    index: DatasetIndex,
    *,
    batch_size: int = 0,
    thresholds: Thresholds = EVAL_THRESHOLDS,
    coco: str | None = "auto",
    progress: bool = True,
    workers: int = 2,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], list[Any] | None] | None = None,
    read: Callable[[Path], np.ndarray] | None = None,
    after_batch: AfterBatch | None = None,
) -> EvaluationResult | None:
    """Evaluate a detector on a split, in image pixel coordinates.

    Args:
        detector: its `config.class_names` are the scored classes; objects of other classes are left out and counted.
        index, thresholds, workers, progress, read, after_batch: as in `run_detector`.
        batch_size: images per forward pass; 0 uses the default of the runtime. It does not change the metrics.
        coco: `auto`, `pycocotools`, `faster`, or None to skip the COCO metrics.
        rank, world_size: this process evaluates the images rank, rank + world_size, ...
        gather: takes an object and returns the list of all processes' objects by rank (None on ranks that need none).

    Returns:
        The result over all images, the same in every process; None where `gather` returned None.

    Raises:
        UserError: if model and data have no class in common.
    """
    class_names = tuple(detector.config.class_names)
    class_map = match_classes(class_names, index.class_names, index.name)
    positions = np.arange(rank, len(index), world_size)
    found: FoundDetections | None = run_detector(
        detector, index, positions, batch_size, thresholds, progress and rank == 0, workers, read, after_batch
    )
    if gather is not None and found is not None:
        parts = gather(found)
        found = None if parts is None else FoundDetections.merged(parts)
    if found is None:
        return None
    return score(index, class_names, class_map, found, coco, describe(thresholds))


def score(
    index: DatasetIndex,
    class_names: Sequence[str],
    class_map: np.ndarray,
    found: FoundDetections,
    coco: str | None = "auto",
    origin: str = "",
) -> EvaluationResult:
    """Compute the metrics of existing detections.

    Args:
        class_names: the scored classes, which the detections' labels index.
        class_map: (C_index,) the index's labels as labels of `class_names`, -1 for those not scored.
        found: detections, and the images they belong to.
        coco: as in `evaluate`.
        origin: describes how the detections were made, for `protocol`.
    """
    part = index.subset(found.images)
    has_area = (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)  # clipping leaves a box in the padding empty
    detections = (each[has_area] for each in (found.image, found.boxes, found.scores, found.labels))
    record = record_from_index(index, class_names, class_map, found.images, *detections)
    figures = voc_figures(record)
    if coco is not None:
        theirs = coco_figures(record, coco)
        for name, row in theirs.pop("per_class").items():
            figures["per_class"][name] |= row
        figures |= theirs
    num_scored = int((record.num_gt > 0).sum())
    tool = "" if coco is None else TOOLS[choose_evaluator(coco)]
    protocol = (
        f"{index.name}; VOC2007 11-point and VOC2010 all-point AP at IoU 0.5, difficult objects ignored; "
        + (f"COCO AP at IoU 0.50:0.95 by {tool}; " if tool else "")
        + f"boxes in original pixels; mean over {counted(num_scored, 'class')} with objects"
        + (f"; {origin}" if origin else "")
    )
    not_scored = int((class_map[part.labels] < 0).sum())
    return EvaluationResult(record, part, figures, protocol, found.seconds, found.skips, not_scored)


def describe(thresholds: Thresholds) -> str:
    """The thresholds as text."""
    labels = "several classes per box" if thresholds.multi_label else "the best class of each box"
    return (
        f"score >= {thresholds.score_threshold:g}, NMS at IoU {thresholds.iou_threshold:g} within a class, "
        f"at most {thresholds.max_detections} detections per image, {labels}"
    )


def run_detector(
    detector: DetectorLike,
    index: DatasetIndex,
    positions: Sequence[int] | np.ndarray,
    batch_size: int = 0,
    thresholds: Thresholds = EVAL_THRESHOLDS,
    progress: bool = True,
    workers: int = 2,
    read: Callable[[Path], np.ndarray] | None = None,
    after_batch: AfterBatch | None = None,
) -> FoundDetections:
    """Detections of the images at `positions`; an image that cannot be read is skipped, with a warning.

    Args:
        workers: threads that decode images ahead.
        read: path to (H, W, 3) uint8 RGB; by default reads the file, and decodes a large JPEG at reduced size.
        after_batch: called after each batch with the images' positions in the index and their (height, width).
    """
    from tqdm import tqdm

    from imaging.image_io import decoded_bytes, read_image_and_size, read_start  # OpenCV, which --help does not need

    started, before = time.perf_counter(), dict(getattr(detector, "timings", {}))
    seen: list[int] = []
    found: list[Detections] = []
    skips: list[Skip] = []
    waiting: list[_Loaded] = []
    decode_seconds = 0.0
    batch_size = batch_size or getattr(getattr(detector, "runtime", None), "usual_batch", 1)
    decoded_size = getattr(detector, "decoded_size", None) if read is None else None

    def detect() -> None:
        if waiting:
            sizes = {} if decoded_size is None else {"sizes": [each.size for each in waiting]}
            found.extend(detector.detect_batch([each.image for each in waiting], thresholds, **sizes))
            seen.extend(each.position for each in waiting)
            if after_batch is not None:
                after_batch([each.position for each in waiting], [each.size for each in waiting])
            waiting.clear()

    def load(position: int) -> _Loaded | Skip:
        begin, path = time.perf_counter(), index.path(position)
        try:
            if read is None:
                image, size = read_image_and_size(path, min_size=decoded_size)
            else:
                image = read(path)
                size = (image.shape[0], image.shape[1])
        except (OSError, ValueError) as error:
            where, what = (error.where, error.what) if isinstance(error, UserError) else (str(path), str(error))
            return Skip("image", "unreadable_image", where, what, "it is not evaluated")
        return _Loaded(position, image, size, time.perf_counter() - begin)

    def cost(position: int) -> int:
        try:
            return decoded_bytes(read_start(index.path(position)), decoded_size)
        except UserError:  # `load` reports the reason
            return 0

    ahead = max(2 * workers, READ_AHEAD_BATCHES * batch_size)
    loaded = parallel_map(load, map(int, positions), ahead, workers, cost)
    with (
        tqdm(total=len(positions), desc="evaluating", unit="image", disable=not progress, leave=False) as bar,
        contextlib.closing(loaded),
    ):
        for each in loaded:
            if isinstance(each, Skip):
                warn(each.where, each.what, each.todo)
                skips.append(each)
            else:
                decode_seconds += each.seconds
                waiting.append(each)
            if len(waiting) == batch_size:
                detect()
            bar.update()
        detect()
    after = getattr(detector, "timings", {})
    spent = {"decode": decode_seconds, **{key: after[key] - before.get(key, 0.0) for key in after}}
    spent["wall"] = time.perf_counter() - started
    return FoundDetections.from_list(seen, found, seconds=spent, skips=tuple(skips))


class _Loaded(NamedTuple):
    """An image of an index, its (height, width) at full size, and the seconds that it took."""

    position: int
    image: np.ndarray
    size: tuple[int, int]
    seconds: float


def match_classes(model_classes: Sequence[str], data_classes: Sequence[str], name: str) -> np.ndarray:
    """Map the data's classes to the model's classes by name; `name` is that of the data set, for messages.

    Names match if they differ only in case, spaces, hyphens and underscores, or are equivalent in VOC and COCO. A
    warning lists the classes that only one side has.

    Returns:
        (C_data,) int64, index into `model_classes`, -1 for a class that the model does not know.

    Raises:
        UserError: if no class is known.
    """
    exact = {each: i for i, each in enumerate(model_classes)}
    loose = {plain_class_name(each): i for i, each in reversed(list(enumerate(model_classes)))}
    mapped = np.array([exact.get(each, loose.get(plain_class_name(each), -1)) for each in data_classes], np.int64)
    unknown = [each for each, label in zip(data_classes, mapped, strict=True) if label < 0]
    if len(data_classes) and (mapped < 0).all():
        near = [(each, m) for each in unknown for m in difflib.get_close_matches(each, model_classes, 1)]
        hint = f"did you mean {near[0][1]!r} for {near[0][0]!r}? " if near else ""
        ours, theirs = some_names(model_classes), some_names(data_classes)
        what = f"has no class in common with the model (data: {theirs}; model: {ours})"
        raise UserError(name, what, f"{hint}use data with the classes of the model, or correct the class names")
    if unknown:
        warn(name, f"classes that the model does not have: {some_names(unknown)}", "their objects are not evaluated")
    absent = [each for i, each in enumerate(model_classes) if i not in set(mapped.tolist())]
    if absent and len(data_classes):
        warn(
            name,
            f"classes of the model that the data does not have: {some_names(absent)}",
            "they are not part of the mean",
        )
    return mapped


def plain_class_name(name: str) -> str:
    """A class name without case, spaces and punctuation; a VOC name is replaced by its COCO name."""
    plain = "".join(letter for letter in name.casefold() if letter not in " -_")
    return CLASS_ALIASES.get(plain, plain)
