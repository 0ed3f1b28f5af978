"""Evaluate a model, an exported file or a file of detections on a data set, and recommend next steps."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.class_names import read_class_names
from data.index import DatasetIndex
from data.tiles import MIN_TILE
from data.tools.new_folder import check_new_folder
from evaluation.detections_file import MISSING, detection_lists, read_detections, write_voc_results
from evaluation.evaluator import EVAL_THRESHOLDS, EvaluationResult, FoundDetections, evaluate, score
from evaluation.metrics.coco import EVALUATORS
from evaluation.report.advice import UNKNOWN, Scored
from evaluation.report.text import comparison_text, summary_text
from training.metrics_file import has_converged
from utils import distributed
from utils.config import option, parse_options
from utils.errors import UserError, require_packages, run_command, warn
from utils.files import write_file
from utils.output_rules import check_output_file, check_output_folder
from utils.text import counted, quoted
from utils.thresholds import Thresholds

SKIPS_SHOWN = 10
FEW_OBJECTS = 300  # with fewer objects, the AP of a class has a wide confidence interval


@dataclass(frozen=True)
class EvalOptions:
    """The options of eval.py."""

    checkpoint: str | None = option(None, "model: a checkpoint or an exported file", metavar="FILE")
    data: str | None = option(
        None, "data set: a VOCdevkit, a COCO JSON file, or another layout of docs/DATA.md", metavar="PATH"
    )
    classes: str | None = option(None, "class names of the data set's labels: a file, voc or coco", metavar="FILE")
    image_folder: str | None = option(None, "folder of the images, if it is not that of the annotations", metavar="DIR")
    split: str | None = option(None, "split to evaluate (default: val, or test if there is no val)")
    json: str | None = option(None, "write all metrics, and results per image, to this file", metavar="FILE")
    report: str | None = option(None, "write a report with curves and images as one HTML file", metavar="FILE")
    detections: str | None = option(
        None, "evaluate this file instead of a model: COCO results, or predict.py's detections.json", metavar="FILE"
    )
    detection_classes: str | None = option(
        None, "class names of the category ids in --detections: a file, voc or coco", metavar="FILE"
    )
    missing_images: str = option(
        "refuse",
        "images missing in --detections: refuse (error if more than half), empty (no detections), skip (not evaluated)",
        choices=MISSING,
    )
    compare: tuple[str, ...] | None = option(
        None,
        "compare two files of --json, and test whether the difference is significant",
        nargs=2,
        metavar=("A.json", "B.json"),
    )
    save_detections: str | None = option(
        None, "write the detections to this file, in the format of predict.py --json", metavar="FILE"
    )
    voc_submission: str | None = option(
        None, "write result files for the VOC evaluation server into this folder", metavar="DIR"
    )
    tile: int | None = option(
        None,
        "detect in overlapping tiles of this size, pixels, as predict.py does; 0 = the input size",
        low=MIN_TILE,
        zero=True,
    )
    tile_overlap: float = option(0.25, "overlap of neighbouring tiles, as a fraction of a tile", low=0, high=0.9)
    worst: int = option(50, "number of images that --export writes", low=1, high=1_000_000)
    export: str | None = option(
        None, "write the images with the most errors into this folder, with labels, for serve.py --label", metavar="DIR"
    )
    tta: bool = option(False, "test-time augmentation: also detect in mirrored images and at three sizes")
    evaluator: str = option(
        "auto",
        "library for the COCO metrics; auto = faster-coco-eval if installed, else pycocotools",
        choices=EVALUATORS,
    )
    score_threshold: float = option(EVAL_THRESHOLDS.score_threshold, "minimum score of a detection", low=0.0, high=1.0)
    iou_threshold: float = option(EVAL_THRESHOLDS.iou_threshold, "IoU above which NMS removes a box", low=0.0, high=1.0)
    max_detections: int = option(
        EVAL_THRESHOLDS.max_detections, "maximum number of detections per image", low=1, high=100_000
    )
    multi_label: bool = option(EVAL_THRESHOLDS.multi_label, "a box may have several classes")
    input_size: tuple[int, ...] | None = option(None, "height [width] of the network's input, multiples of 32")
    batch_size: int | None = option(None, "images per batch (default: 1 on a CPU, 8 on a GPU)", low=1, high=4096)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    runtime: str = option("auto", "runtime of the model; auto = chosen by the file")
    workers: int = option(2, "number of threads that decode images", low=1, high=256)
    limit: int | None = option(None, "evaluate only the first N images", low=1)
    overwrite: bool = option(False, "replace existing output files")
    progress: bool = option(True, "show a progress bar")


def main(argv: list[str] | None = None) -> int | None:
    """Run the command line `argv`."""
    options = parse_options(EvalOptions, argv, description=__doc__ or "", prog="eval.py")
    if (options.compare or options.detections) and int(os.environ.get("RANK", 0)) > 0:
        return None  # without a network, only the first process works
    for flag in ("json", "report", "save_detections"):
        if getattr(options, flag) is not None:
            name = f"--{flag.replace('_', '-')}"
            check_output_file(name, getattr(options, flag), options.overwrite, [options.data])
    if options.voc_submission is not None:
        check_output_folder("--voc-submission", options.voc_submission, [options.data])
    if options.export is not None:  # before the evaluation, not after it
        check_output_folder("--export", options.export, [options.data])
        check_new_folder("--export", Path(options.export))
    if options.compare is not None:
        return compare_files(options)
    if options.data is None:
        raise UserError("--data", "is required", "give a VOCdevkit folder or a COCO JSON file")
    if options.evaluator == "faster":
        require_packages("--evaluator faster", ("faster_coco_eval",), "faster")
    result, scored = evaluate_detections(options) if options.detections else evaluate_checkpoint(options)
    if result is None:  # another process has the result
        return None
    print(summary_text(result, scored))
    if note := few_objects(result):
        print(note)
    write_outputs(options, result, scored)
    return None


def evaluate_checkpoint(options: EvalOptions) -> tuple[EvaluationResult | None, Scored]:
    """Evaluate a model; returns the result and the settings. Under torchrun, only the first process has the result."""
    from nets.runtime import resolve_device

    device = distributed.start(resolve_device(options.device))
    try:
        detector = _load(options, device)
        thresholds = Thresholds(
            options.score_threshold, options.iou_threshold, options.max_detections, options.multi_label
        )
        result = evaluate(
            detector,
            open_index(options, quiet=not distributed.is_main()),
            batch_size=options.batch_size or 0,
            thresholds=thresholds,
            coco=options.evaluator,
            progress=options.progress,
            workers=options.workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            gather=lambda part: parts if (parts := distributed.gather(part)) and distributed.is_main() else None,
        )
    finally:
        distributed.stop()
    if options.tta and result is not None:
        result = replace(result, protocol=f"{result.protocol}; test-time flips and scales")
    config = detector.config
    converged = has_converged(Path(options.checkpoint or "").parent)
    return result, Scored(config.input_size, config.score_threshold, options.iou_threshold, converged)


def _load(options: EvalOptions, device: str) -> Any:
    """Load the detector, with tiles or test-time augmentation."""
    from nets.detector import Detector
    from nets.weights.bundled import default_model_text

    detector = Detector.open(options.checkpoint, device=device, runtime=options.runtime)
    if options.input_size is not None:
        detector.set_input_size(options.input_size)
    if options.checkpoint is None and distributed.is_main():
        print(default_model_text(detector.config))
    if options.tile is not None:
        if options.tta:
            raise UserError("--tile", "cannot be combined with --tta", "give one of them")
        from nets.tiling import TiledDetector

        return TiledDetector(detector, options.tile or None, options.tile_overlap, batch_size=options.batch_size or 8)
    if options.tta:
        from prediction.tta import AugmentedDetector

        return AugmentedDetector(detector)
    return detector


def evaluate_detections(options: EvalOptions) -> tuple[EvaluationResult, Scored]:
    """Evaluate a file of detections."""
    index = open_index(options, whole=True)
    classes = read_class_names(options.detection_classes) if options.detection_classes else None
    read = read_detections(Path(options.detections or ""), index, classes, options.missing_images)
    for note in read.notes:
        print(note)
    found = read.found
    if options.limit is not None:
        keep = found.image < options.limit
        found = FoundDetections(found.image[keep], found.boxes[keep], found.scores[keep], found.labels[keep],
                                found.images[found.images < options.limit])  # fmt: skip
    class_map = np.arange(len(index.class_names))
    return score(index, index.class_names, class_map, found, options.evaluator, f"from {options.detections}"), UNKNOWN


def open_index(options: EvalOptions, quiet: bool = False, whole: bool = False) -> DatasetIndex:
    """Open the split to evaluate; `quiet` if another process reports the skipped images.

    With `whole`, --limit is not applied, and a data set without image files is read from its annotations.
    """
    from data.open import open_dataset  # imports OpenCV, which --help does not need

    names = read_class_names(options.classes) if options.classes else None
    index = open_dataset(
        options.data or "", choose_split(options), names, need_pictures=not whole, image_folder=options.image_folder
    )
    lost = [skip for skip in index.skips if skip.kind != "note" and not quiet]
    for skip in lost[:SKIPS_SHOWN]:
        warn(skip.where, skip.what, skip.todo)
    if len(lost) > SKIPS_SHOWN:
        warn(
            options.data,
            f"skipped images or boxes, {len(lost) - SKIPS_SHOWN} more",
            "see dataset.py check",
        )
    if not index.num_boxes:
        what = f"{index.name} has no objects, which evaluation needs"
        raise UserError(options.data, what, "give another --split, or run: dataset.py check")
    return index if options.limit is None or whole else index.subset(np.arange(min(options.limit, len(index))))


def choose_split(options: EvalOptions) -> str:
    """The requested split; else the split of the given file; else the validation split."""
    data = options.data or ""
    if options.split is not None:
        return options.split
    from data.formats.coco import find_coco_files
    from data.open import default_splits, list_splits, recognise_format

    if Path(data).is_file() and recognise_format(data) == "coco":
        return next(name for name, file in find_coco_files(data).items() if file == Path(data))
    names = list_splits(data, options.image_folder)
    return (
        next((name for name in ("val", "test") if name in names), None) or default_splits(data, options.image_folder)[1]
    )


def write_outputs(options: EvalOptions, result: EvaluationResult, scored: Scored) -> None:
    """Write the requested output files."""
    if options.json:
        write_result(Path(options.json), result, {"model": options.checkpoint or options.detections})
        print(f"figures: {options.json}")
    if options.save_detections:
        rows = ",\n".join(json.dumps(row) for row in detection_lists(result))
        write_file(_in_folder(options.save_detections), f"[\n{rows}\n]\n".encode())
        print(f"detections: {options.save_detections}")
    if options.voc_submission:
        folder = write_voc_results(Path(options.voc_submission), result, choose_split(options))
        print(f"VOC results: {folder}")
    if options.export:
        from evaluation.worst import export_worst  # imports OpenCV, which --help does not need

        count = export_worst(result, Path(options.export), options.worst)
        command = f"--label {quoted(options.export)} --queue {quoted(Path(options.export) / 'queue.json')}"
        what = f"{counted(count, 'image')} with the most errors: python serve.py {command}"
        print(what if count else f"no image has an error: {options.export} is not written")
    if options.report:
        from evaluation.report.html import report_html

        page = report_html(result, scored, options.checkpoint or options.detections or "")
        write_file(_in_folder(options.report), page.encode("utf-8", "backslashreplace"))
        print(f"report: {options.report}")


def few_objects(result: EvaluationResult) -> str:
    """A note on classes with too few objects for reliable metrics; empty if there are none."""
    counts = result.record.num_gt
    few = [name for name, count in zip(result.record.class_names, counts, strict=True) if 0 < count < FEW_OBJECTS]
    if not few:
        return ""
    names = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
    return (
        f"note: fewer than {FEW_OBJECTS} objects in {len(few)} of {int((counts > 0).sum())} classes ({names}): their "
        "AP may be off by several points; python train.py --folds 5 evaluates on every image of the data set"
    )


def write_result(path: Path, result: EvaluationResult, extra: dict[str, Any]) -> None:
    """Write all metrics as indented JSON, with one line per image."""
    text = json.dumps(extra | result.to_json(), indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in result.per_image())
    write_file(_in_folder(str(path)), f'{text[:-2]},\n "per_image": [\n{rows}\n ]\n}}\n'.encode())


def compare_files(options: EvalOptions) -> int | None:
    """Compare two result files, and print whether B is better than A."""
    from evaluation.metrics.compare import compare_results

    first, second = options.compare or ("", "")
    comparison = compare_results(Path(first), Path(second))
    print(comparison_text(comparison))
    if options.json:
        write_file(_in_folder(options.json), json.dumps(comparison.to_json(), indent=1).encode())
    return None


def _in_folder(path: str) -> Path:
    """Create the folder of a path; returns the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)


if __name__ == "__main__":
    run_command(main)
