"""`train.py --folds K`: K-fold cross-validation with one score over all folds."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.class_names import read_class_names
from data.division import class_counts, stratified_split
from data.formats.snapshot import write_snapshot
from data.index import DatasetIndex
from data.open import open_dataset
from data.tools.hashing import image_hashes, near_duplicate_groups
from evaluation.detections_file import detection_lists
from evaluation.evaluator import (
    EVAL_THRESHOLDS,
    DetectorLike,
    EvaluationResult,
    FoundDetections,
    describe,
    run_detector,
    score,
)
from evaluation.metrics.compare import Comparison, compare_rows
from nets.detector import Detector
from nets.runtime import resolve_device
from nets.tiling import TiledDetector
from nets.weights.checkpoint import load_model
from training.checks import check_before_loading
from training.choose import TrainSettings, choose_splits
from training.run_folder import new_run_dir, write_json
from training.state import RESUME_AUTO
from utils.config import options_to_dict
from utils.errors import UserError
from utils.files import write_atomically
from utils.json_file import read_json
from utils.text import counted

PLAN, DETECTIONS, RESULT, TABLE = "folds.json", "detections.json", "result.json", "folds.csv"
ALL = "all"
_DATA_OPTIONS = ("data", "train_split", "val_split", "val_data", "classes", "image_folder")
NOT_FOR_FOLDS = ("folds", "resume", "run_dir", "eval_every", "limit", *_DATA_OPTIONS)
Train = Callable[[list[str]], int]  # train.py's main


def is_folds_run(settings: TrainSettings) -> bool:
    """Whether `--resume` is the folder of a cross-validation."""
    return resumed_folder(settings, PLAN) is not None


def resumed_folder(settings: TrainSettings, mark: str) -> Path | None:
    """The folder that `--resume` names (`auto`: that of `--run-dir`), if the file `mark` is in it."""
    run = settings.options.run
    name = run.run_dir if run.resume == RESUME_AUTO else run.resume
    return Path(name) if name is not None and run.resume is not None and (Path(name) / mark).is_file() else None


def given_options(settings: TrainSettings, but: Sequence[str]) -> dict[str, Any]:
    """The options given by the user, by name, as plain values."""
    values = options_to_dict(settings.options)
    return {name: value for name, value in values.items() if settings.is_given(name) and name not in but}


def run_folds(settings: TrainSettings, train: Train) -> int:
    """Train and evaluate all folds; finished folds of an earlier call are kept.

    The images of the training and validation splits are divided into K parts: classes evenly, near-duplicates together.
    Each fold trains on the other parts, evaluates only after its last epoch and keeps the weights of that epoch:
    its validation part is not used for model selection.

    Args:
        settings: with `--folds`, or with `--resume` and the folder of such a run.
        train: train.py's main.

    Returns:
        the exit code of the first fold that failed, else 0.

    Raises:
        UserError: for too many folds or too few images.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--folds", "works in one process", "start it without torchrun")
    options = settings.options
    folder = resumed_folder(settings, PLAN)
    if folder is None:
        check_before_loading(options)
        folder = new_run_dir(options.run.run_dir, "folds")
        plan = _begin(folder, settings)
    else:
        plan = read_json(folder / PLAN, "a folder of train.py --folds")
    for number in range(1, plan["folds"] + 1):
        code = _train_fold(folder, number, plan, train)
        if code:
            return code
        _detect(folder, number, options.machine.device)
    rows = merge_folds(folder, plan).to_json(per_image=True)
    interval = score_with_interval(rows)
    write_json(folder / RESULT, {"folds": plan["folds"], "interval": [interval.low, interval.high], **rows})
    write_atomically(folder / TABLE, _table(rows, interval).encode())
    print(summary(plan, rows, interval))
    print(f"out-of-fold detections: {folder / DETECTIONS}\nresults: {folder / RESULT}, by class: {folder / TABLE}")
    return 0


def _begin(folder: Path, settings: TrainSettings) -> dict[str, Any]:
    """Divide the images and write the data of all folds; the plan is written last, when the rest is complete."""
    options = settings.options
    folds, seed = options.run.folds, options.run.seed
    indices = _pool(settings)
    owner = np.concatenate([np.full(len(index), k) for k, index in enumerate(indices)])
    if folds < 2 or len(owner) < 2 * folds:
        todo = "give 2 or more folds, each of at least 2 images"
        raise UserError("--folds", f"{counted(folds, 'fold')} of {counted(len(owner), 'image')}", todo)
    hashes = np.concatenate([image_hashes(index) for index in indices])
    position = np.concatenate([np.arange(len(index)) for index in indices])
    counts = np.concatenate([class_counts(index) for index in indices])
    parts = divide_folds(counts, near_duplicate_groups(hashes), folds, seed)

    def chosen(mask: np.ndarray) -> list[tuple[DatasetIndex, np.ndarray]]:
        return [(index, position[mask & (owner == k)]) for k, index in enumerate(indices)]

    splits = {ALL: chosen(np.ones(len(owner), bool))}
    for number in range(folds):
        splits[f"train-{number + 1}"] = chosen(parts != number)
        splits[f"val-{number + 1}"] = chosen(parts == number)
    sizes = write_snapshot(folder / "data", splits)
    plan = {
        "folds": folds,
        "seed": seed,
        "images": {name: size for name, size in sizes.items() if name.startswith("val")},
        "options": given_options(settings, NOT_FOR_FOLDS),
        "source": str(options.dataset.data),
    }
    write_json(folder / PLAN, plan)
    return plan


def _pool(settings: TrainSettings) -> list[DatasetIndex]:
    """The training and validation splits, with the same classes; `--limit` of their images, chosen at random."""
    dataset = choose_splits(settings).options.dataset
    names: Sequence[str] | None = read_class_names(Path(dataset.classes)) if dataset.classes else None
    data, train_split, val_split = dataset.data or "", dataset.train_split or "train", dataset.val_split or "val"
    pictures = dataset.image_folder
    train = open_dataset(data, train_split, class_names=names, image_folder=pictures)
    pool = [train]
    if val_split != train_split or dataset.val_data is not None:
        val_data, val_names = dataset.val_data or data, names or train.class_names
        pool.append(open_dataset(val_data, val_split, class_names=val_names, image_folder=pictures))
    total, rng = sum(map(len, pool)), np.random.default_rng(settings.options.run.seed)
    kept = rng.permutation(total) < (dataset.limit or total)
    parts = np.split(kept, np.cumsum([len(index) for index in pool])[:-1])
    return [index.subset(np.flatnonzero(part)) for index, part in zip(pool, parts, strict=True)]


def divide_folds(counts: np.ndarray, groups: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Assign a fold to each image, (I,): classes are spread evenly, images of one group stay together.

    Args:
        counts: (I, C) boxes of each class in each image.
        groups: (I,) images of one group are near-duplicates.
        folds: number of folds.
        seed: random seed for the order and for ties.
    """
    parts = stratified_split(counts, groups, {str(number): 1 / folds for number in range(folds)}, seed)
    fold = np.zeros(len(counts), np.int64)
    for name, members in parts.items():
        fold[members] = int(name)
    return fold


def _train_fold(folder: Path, number: int, plan: Mapping[str, Any], train: Train) -> int:
    run = folder / f"fold-{number}"
    if (folder / f"fold-{number}-{DETECTIONS}").is_file():
        return 0
    print(f"fold {number} of {plan['folds']}: {plan['images'][f'val-{number}']} images for validation")
    if (run / "config.json").is_file():
        return train(["--resume", str(run)])
    config = folder / "options.json"
    write_json(config, dict(plan["options"]))
    splits = ["--train-split", f"train-{number}", "--val-split", f"val-{number}"]
    data = ["--data", str(folder / "data"), *splits, "--run-dir", str(run), "--eval-every", "100000"]
    return train(["--config", str(config), *data])


def _detect(folder: Path, number: int, device: str) -> None:
    """Detections of a fold's last weights on its validation part, written once."""
    target = folder / f"fold-{number}-{DETECTIONS}"
    if target.is_file():
        return
    detector = _detector(folder / f"fold-{number}", device)
    index = open_dataset(folder / "data", f"val-{number}")
    found = run_detector(detector, index, np.arange(len(index)), thresholds=EVAL_THRESHOLDS)
    result = score(index, index.class_names, np.arange(len(index.class_names)), found, None)
    rows = [row | {"image": _original(folder, row["image"]), "fold": number} for row in detection_lists(result)]
    write_atomically(target, json.dumps(rows).encode())


def _detector(run: Path, device: str) -> DetectorLike:
    """The detector of a run's last weights, with tiles if it was trained with tiles."""
    detector = Detector.from_model(load_model(run / "last.pth"), resolve_device(device))
    options = read_json(run / "config.json", "a run of train.py")
    if options["tile"] is None:
        return detector
    return TiledDetector(detector, options["tile"] or None, options["tile_overlap"])


def _original(folder: Path, image: str) -> str:
    """The path of the original image instead of the run's link."""
    link = folder / "data" / "images"
    path = Path(image)
    if link.is_symlink() and path.is_relative_to(link):
        return str(Path(os.path.realpath(link)) / path.relative_to(link))
    return image


def merge_folds(folder: Path, plan: Mapping[str, Any]) -> EvaluationResult:
    """Write the detections of all folds to one file, and evaluate them together."""
    index = open_dataset(folder / "data", ALL)
    place = {index.image_ids[i].item(): i for i in range(len(index))}
    rows: list[dict[str, Any]] = []
    for number in range(1, plan["folds"] + 1):
        rows += read_json(folder / f"fold-{number}-{DETECTIONS}", "the detections of a fold")
    rows.sort(key=lambda row: place[row["image_id"]])
    text = ",\n".join(json.dumps({k: v for k, v in row.items() if k != "image_id"}) for row in rows)
    write_atomically(folder / DETECTIONS, f"[\n{text}\n]\n".encode())
    flat = [(place[row["image_id"]], each) for row in rows for each in row["detections"]]
    found = FoundDetections(
        np.array([image for image, _ in flat], np.int64),
        np.array([each["box_xyxy"] for _, each in flat], np.float64).reshape(-1, 4),
        np.array([each["score"] for _, each in flat], np.float64),
        np.array([each["class_id"] for _, each in flat], np.int64),
        np.array([place[row["image_id"]] for row in rows], np.int64),
    )
    origin = f"from {plan['folds']} folds, each with the last weights of its training; {describe(EVAL_THRESHOLDS)}"
    return score(index, index.class_names, np.arange(len(index.class_names)), found, origin=origin)


def score_with_interval(rows: Mapping[str, Any]) -> Comparison:
    """mAP50 (VOC10) of `EvaluationResult.to_json(per_image=True)` and its bootstrap interval over images, also by
    class (compared with a detector without detections)."""
    nothing = {**rows, "per_image": [{**row, "detections": []} for row in rows["per_image"]]}
    return compare_rows(nothing, rows, "nothing", "folds")


def _table(rows: Mapping[str, Any], interval: Comparison) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "objects", "AP50", "low", "high"])
    objects = _objects(rows)
    writer.writerow(["all", sum(objects.values()), f"{interval.b:.4f}", f"{interval.low:.4f}", f"{interval.high:.4f}"])
    for name, (_, ap, low, high) in interval.per_class.items():
        writer.writerow([name, objects.get(name, 0), f"{ap:.4f}", f"{low:.4f}", f"{high:.4f}"])
    return text.getvalue()


def _objects(rows: Mapping[str, Any]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in rows["per_image"]:
        for name, count in row["objects"].items():
            total[name] = total.get(name, 0) + count
    return total


def summary(plan: Mapping[str, Any], rows: Mapping[str, Any], interval: Comparison) -> str:
    """Text with the score over all folds, and of each class."""
    objects = _objects(rows)
    lines = [
        f"{plan['folds']} folds, {rows['num_images']} images, {counted(sum(objects.values()), 'object')}, "
        "each image evaluated by a detector that was not trained on it:",
        f"mAP50 {interval.b:.3f} ({interval.low:.3f} to {interval.high:.3f} at 95 %), COCO AP {rows['coco_AP']:.3f}",
    ]
    width = max((len(name) for name in interval.per_class), default=0)
    for name, (_, ap, low, high) in interval.per_class.items():
        lines.append(f"  {name:{width}} {ap:.3f} ({low:.3f} to {high:.3f}), {counted(objects.get(name, 0), 'object')}")
    return "\n".join(lines)
