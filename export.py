"""Export a checkpoint to a file for another runtime, and compare its outputs with the network's on photographs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.index import DatasetIndex
from nets.detector import Detector
from nets.export.form import Form
from nets.export.formats import ALIASES, FORMATS, Format
from nets.export.load import load_runtime
from nets.model_config import ModelConfig, input_size_option
from nets.weights.bundled import find_model
from utils.config import option, parse_options
from utils.errors import RunError, UserError, run_command, warn
from utils.output_rules import check_output_file, check_output_folder
from utils.text import counted

if TYPE_CHECKING:
    from nets.yolov4 import YOLOv4

DRAWN = 6  # synthetic images, if there are no photographs
MAP_BATCH = 4
WEB = "web"  # an ONNX file in a folder with a page and the runtime, for any web server


@dataclass(frozen=True)
class ExportOptions:
    """The options of export.py."""

    checkpoint: str | None = option(None, "model file (default: the bundled weights)", metavar="FILE")
    format: str = option("onnx", "output format", choices=(*FORMATS, *ALIASES, WEB))
    output: str | None = option(
        None, "output file, for web a folder (default: the checkpoint's name with another suffix)", metavar="FILE"
    )
    input_size: tuple[int, ...] | None = option(None, "height [width] of the input (default: the checkpoint's)")
    dynamic: bool = option(False, "allow any batch size, and any input size in multiples of 32")
    uint8_input: bool = option(False, "input (B, H, W, 3) uint8 RGB instead of (B, 3, H, W) float in [0, 1]")
    raw: bool = option(False, "output the three raw maps instead of boxes and scores")
    nms: bool = option(False, "include NMS in the graph, with the checkpoint's thresholds")
    score_threshold: float | None = option(
        None, "default score threshold of the file; fixed with --nms", low=0.0, high=1.0
    )
    iou_threshold: float | None = option(
        None, "default IoU threshold of NMS of the file; fixed with --nms", low=0.0, high=1.0
    )
    half: bool = option(False, "16-bit weights: fp16, for torchscript bf16")
    int8: bool = option(
        False, "post-training quantisation; needs --data, whose training images are used for calibration"
    )
    data: str | None = option(None, "data set for the comparison and for the calibration of int8", metavar="PATH")
    split: str | None = option(None, "split for the comparison and for the evaluation of int8 (default: val)")
    calibration_split: str | None = option(None, "split for the calibration of int8 (default: train)")
    calibration_images: int = option(200, "number of calibration images for int8", low=1, high=100_000)
    max_loss: float = option(1.0, "maximum loss of mAP50 by int8, points", low=0.0, high=100.0)
    images: str | None = option(None, "photographs for the comparison: an image or a folder", metavar="PATH")
    num_images: int = option(16, "number of photographs for the comparison", low=1, high=10_000)
    limit: int | None = option(None, "evaluate int8 only on the first N images", low=1)
    ort_web: str | None = option(
        None, "for web: folder dist of the npm package onnxruntime-web (default: downloaded once)", metavar="DIR"
    )
    overwrite: bool = option(False, "replace the output if it exists")


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv`."""
    options = parse_options(ExportOptions, argv, description=__doc__ or "", prog="export.py")
    web_folder = None
    if options.format == WEB:
        options, web_folder = web_options(options)
    elif options.ort_web:
        raise UserError("--ort-web", f"has no effect for --format {options.format}", f"leave it out, or use {WEB}")
    options = dataclasses.replace(options, format=ALIASES.get(options.format, options.format))
    exporter = FORMATS[options.format]
    form = choose_form(options, exporter)
    checkpoint = find_model(options.checkpoint)
    path = output_path(options, checkpoint, exporter)
    exporter.require_packages(form.precision == "int8")
    from nets.export.check import export_and_check  # imports PyTorch and OpenCV, which --help does not need
    from nets.weights.checkpoint import load_model

    model = load_model(checkpoint)
    model.config = adjusted(model.config, options)
    index = open_split(options, options.split, 1) if options.data else None
    photos = comparison_photos(options, index, model.config)
    info = {"checkpoint": checkpoint.name}
    if form.precision == "int8":
        export_int8(options, model, path, form, photos, index, info)
    else:
        parity = export_and_check(model, path, options.format, form, photos, info)
        print(f"wrote {path} ({size_text(path, exporter)}): {describe(form, model.config)}")
        if parity is None:
            what = f"{exporter.title} does not run here, so nothing was compared"
            warn(path, what, "test it on a system that supports it")
        else:
            print(f"parity with the checkpoint: {parity}")
    if web_folder is not None:
        complete_web_folder(options, web_folder, path)


def web_options(options: ExportOptions) -> tuple[ExportOptions, Path]:
    """The options for the ONNX file of a web folder, and the folder, created if missing. Raises UserError."""
    from service.browser import find_ort_web

    for flag in ("raw", "dynamic", "nms"):
        if getattr(options, flag):
            raise UserError(f"--{flag}", "the page reads boxes and scores of one image", f"leave out --{flag}")
    checkpoint = find_model(options.checkpoint, "--checkpoint")
    folder = checkpoint.with_name(f"{checkpoint.stem}-web") if options.output is None else Path(options.output)
    if folder.is_dir() and any(folder.iterdir()) and not options.overwrite:
        raise UserError(folder, "exists and is not empty", "add --overwrite, or give another --output")
    if folder.exists() and not folder.is_dir():
        raise UserError(folder, "is a file", "give a folder")
    ort_web = find_ort_web(None if options.ort_web is None else Path(options.ort_web))
    check_output_folder("--output", folder, [options.data, options.images])
    folder.mkdir(parents=True, exist_ok=True)
    output = str(folder / "model.onnx")
    return dataclasses.replace(options, format="onnx", output=output, ort_web=str(ort_web)), folder


def complete_web_folder(options: ExportOptions, folder: Path, path: Path) -> None:
    """Add the page and the runtime to the folder of the exported file."""
    from service.browser import load_browser_model, write_web_folder

    write_web_folder(folder, load_browser_model(path, Path(options.ort_web or "")))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"wrote {folder} ({size / 1e6:.0f} MB; a browser loads the model and one of two runtimes)")
    print(f"try it: python -m http.server --directory {folder} 8000, then open http://127.0.0.1:8000")


def choose_form(options: ExportOptions, exporter: Format) -> Form:
    """The input and output form of the file. Raises UserError for a form that the format does not support."""
    name = options.format
    for flag in ("int8", "nms", "dynamic", "half", "uint8_input"):
        if getattr(options, flag) and not getattr(exporter, flag):
            able = ", ".join(other for other, each in FORMATS.items() if getattr(each, flag))
            raise UserError(f"--{flag.replace('_', '-')}", f"is not supported by {name}", f"use --format {able}")
    int8 = options.int8
    conflicts = (
        (options.nms and options.raw, "--raw", "NMS (--nms) needs decoded boxes", "leave out --raw or --nms"),
        (int8 and options.half, "--half", "cannot be combined with --int8", "leave out --half or --int8"),
        (int8 and options.dynamic, "--int8", "quantised files have a fixed size", "leave out --dynamic"),
        (
            int8 and options.nms and name == "openvino",
            "--nms",
            "is not supported for int8 OpenVINO",
            "use --format onnx",
        ),
        (int8 and not options.data, "--int8", "needs images to calibrate activation ranges", "add --data DATA"),
    )
    for applies, *problem in conflicts:
        if applies:
            raise UserError(*problem)
    precision = "int8" if options.int8 else (exporter.half if options.half else "fp32")
    return Form(options.uint8_input, not options.raw, options.nms, options.dynamic, precision or "fp32")


def adjusted(config: ModelConfig, options: ExportOptions) -> ModelConfig:
    """The checkpoint's configuration with the changes of the options."""
    changes: dict[str, Any] = {
        name: value for name in ("score_threshold", "iou_threshold") if (value := getattr(options, name)) is not None
    }
    if "score_threshold" in changes:
        changes["score_threshold_source"] = "export.py --score-threshold"
    if options.input_size is not None:
        changes["input_size"] = input_size_option(options.input_size)
    return config.replace(**changes)


def output_path(options: ExportOptions, checkpoint: Path, exporter: Format) -> Path:
    """The file to write. Raises UserError if it exists, has a wrong suffix, or its folder does not exist."""
    marks = "".join(f"-{flag}" for flag in ("int8", "half") if getattr(options, flag))
    default = checkpoint.with_name(f"{checkpoint.stem}{marks}{exporter.suffix}")
    path = default if options.output is None else Path(options.output)
    if not path.name.endswith(exporter.suffix):
        raise UserError("--output", f"{path.name} does not end in {exporter.suffix}", f"give NAME{exporter.suffix}")
    for file in exporter.files(path):
        check_output_file("--output", file, options.overwrite, [options.data, options.images], exporter.is_folder)
    if not path.parent.is_dir():
        raise UserError(path.parent, "is not a folder", "create it first")
    return path


def open_split(options: ExportOptions, split: str | None, default: int) -> DatasetIndex:
    """A split of the data set; `default` 0 is the training split, 1 the validation split."""
    from data.open import default_splits, open_dataset

    data = options.data or ""
    return open_dataset(data, split or default_splits(data)[default])


def comparison_photos(options: ExportOptions, index: DatasetIndex | None, config: ModelConfig) -> list[np.ndarray]:
    """Photographs of --images or --data, or synthetic images."""
    from imaging.image_io import IMAGE_SUFFIXES
    from nets.export.parity import drawn_photos, read_photos

    if options.images is not None:
        folder = Path(options.images)
        files = [folder]
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        photos = read_photos(files[: options.num_images])
        if not photos:
            raise UserError("--images", f"{folder} contains no images", "give an image or a folder of images")
        return photos
    if index is not None and len(index):
        return read_photos([index.path(i) for i in index.spread(options.num_images)])
    warn("parity", "compared on synthetic images", "give photographs with --images or --data")
    return drawn_photos(config, DRAWN)


def export_int8(
    options: ExportOptions,
    model: YOLOv4,
    path: Path,
    form: Form,
    photos: list[np.ndarray],
    index: DatasetIndex | None,
    info: dict[str, Any],
) -> None:
    """Quantise, compare, and evaluate before and after. Raises RunError if the mAP drops by more than allowed."""
    from nets.export.check import check_export
    from nets.export.parity import read_photos
    from nets.export.quantize import calibration_images
    from nets.torch_runtime import TorchRuntime

    assert index is not None
    training = open_split(options, options.calibration_split, 0)
    calibration = read_photos([training.path(i) for i in calibration_images(training, options.calibration_images)])
    if not calibration:
        raise UserError(options.data, "no calibration image could be read", "give another data set")
    print(f"calibrating on {counted(len(calibration), 'image')} of {training.name}", flush=True)
    kept = FORMATS[options.format].quantize(model, path, form, calibration, info)
    parity = check_export(TorchRuntime(model), path, form, photos)
    print(f"wrote {path} ({size_text(path, FORMATS[options.format])}): {describe(form, model.config)}")
    print(f"in floating point: {kept}")
    print(f"parity with the checkpoint: {parity}", flush=True)
    if form.nms:
        warn("--nms", "NMS is part of the file, so its mAP cannot be compared", "evaluate it without --nms first")
        return
    part = index if options.limit is None else index.subset(np.arange(min(options.limit, len(index))))
    before, after = (mean_ap(load, part) for load in (Detector.from_model(model), Detector(load_runtime(path, "cpu"))))
    print(
        f"mAP50 (VOC2010) on {counted(len(part), 'image')} of {part.name}: {before:.2f} before, {after:.2f} after int8"
    )
    if before - after > options.max_loss:
        path.rename(path.with_name(path.name + ".failed"))
        what = f"int8 loses {before - after:.2f} points of mAP50, more than {options.max_loss:g}"
        todo = "use more calibration images, or increase --max-loss"
        raise RunError(path, f"{what}; kept as {path.name}.failed", todo)


def mean_ap(detector: Detector, index: DatasetIndex) -> float:
    """mAP50 in points."""
    from evaluation.evaluator import evaluate

    result = evaluate(detector, index, batch_size=MAP_BATCH, coco=None, progress=False)
    assert result is not None
    return 100 * float(result.figures["voc10_mAP50"] or 0.0)


def describe(form: Form, config: ModelConfig) -> str:
    """Describe the input and output of a file in words."""
    height, width = config.input_size
    batch, size = ("B", "any size") if form.dynamic else ("1", f"{height} x {width}")
    image = f"({batch}, H, W, 3) uint8 RGB" if form.uint8_input else f"({batch}, 3, H, W) float RGB in [0, 1]"
    gives = "boxes and scores" if form.decodes else "raw maps"
    if form.nms:
        gives = f"detections (score >= {config.score_threshold:g}, IoU {config.iou_threshold:g})"
    return f"{form.precision}, takes {image}, {size}, {config.resize_mode}; gives {gives}"


def size_text(path: Path, written: Format) -> str:
    """Size of a file and of its companion files."""
    files = [part for each in written.files(path) for part in ([*each.rglob("*")] if each.is_dir() else [each])]
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"


if __name__ == "__main__":
    run_command(main)
