"""The options of predict.py, and the checks that need no model."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data.tiles import MIN_TILE
from nets.model_config import check_input_size
from nets.nms import SUPPRESSIONS
from prediction.codecs import CODEC_NAMES
from prediction.outputs import (
    WRITERS,
)
from utils.config import option
from utils.errors import UserError, brief
from utils.other_words import choice_hint


@dataclass(frozen=True)
class PredictOptions:
    sources: tuple[str, ...] = option(
        (),
        "images, videos, folders, globs, .txt lists, http(s) addresses, webcam numbers, rtsp:// streams, - for stdin",
        nargs="*",
        positional=True,
        metavar="SOURCE",
    )
    checkpoint: str | None = option(None, "model file (default: the bundled weights)", metavar="FILE")
    output: str | None = option(None, "folder of the results (default: a new output/predict-N)", metavar="DIR")
    score_threshold: tuple[str, ...] = option(
        (), "minimum score, 0 to 1, and NAME=T for single classes (default: the checkpoint's)", metavar="T"
    )
    iou_threshold: float | None = option(
        None, "IoU above which NMS removes the box with the lower score", low=0, high=1
    )
    max_detections: int | None = option(None, "maximum number of detections per image", low=1, high=100_000)
    input_size: tuple[str, ...] = option(
        (),
        "height [width] of the network's input, multiples of 32 (default: the model's, for video without padding)",
        metavar="N",
    )
    classes: tuple[str, ...] = option(
        (), "detect only these classes, by name or number: cat dog, or cat,dog", metavar="NAME"
    )
    nms: str = option("default", "variant of non-maximum suppression", choices=tuple(SUPPRESSIONS))
    tile: int | None = option(
        None, "detect in overlapping tiles of this size, pixels; 0 = the input size", low=MIN_TILE, zero=True
    )
    tile_overlap: float = option(0.25, "overlap of neighbouring tiles, as a fraction of a tile", low=0, high=0.9)
    tta: bool = option(False, "test-time augmentation: also detect in mirrored images and at three sizes")
    track: bool = option(False, "track objects in videos (ByteTrack)")
    line: tuple[str, ...] = option((), "count objects that cross the line x1,y1,x2,y2 (pixels); turns on --track")
    zone: tuple[str, ...] = option((), "count objects inside the polygon x1,y1,x2,y2,x3,y3,...; turns on --track")
    heatmap: bool = option(False, "also draw a heat map of the objectness")
    cam: bool = option(False, "also draw LayerCAM heat maps of the best detections of an image")
    json: bool = option(False, "write detections.json")
    save: tuple[str, ...] = option((), f"write {', '.join(WRITERS)}", metavar="KIND")
    images: bool = option(True, "write images and videos with drawn detections")
    codec: str = option(
        "auto", "codec of written videos; auto = h264, which browsers play, if ffmpeg is installed", choices=CODEC_NAMES
    )
    every: int = option(1, "detect only in every N-th frame of a video", low=1, high=10_000, metavar="N")
    show: bool = option(False, "show results live, in a window or on a local web page")
    recursive: bool = option(False, "also search subfolders")
    overwrite: bool = option(False, "replace files in the output folder")
    batch_size: int | None = option(None, "images per batch (default: 1 on a CPU, 8 on a GPU)", low=1, high=1024)
    max_frames: int | None = option(None, "stop a video or stream after this many frames", low=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    runtime: str = option("auto", "runtime of the model; auto = chosen by the file")


def check_numbers(options: PredictOptions) -> None:
    """Raises UserError, before loading, for values out of range."""
    for value in options.score_threshold:
        read_threshold(value.rpartition("=")[2])
    general = [value for value in options.score_threshold if "=" not in value]
    if len(general) > 1:
        raise UserError("--score-threshold", f"{' and '.join(general)} are both for all classes", "give one of them")
    if options.input_size:
        try:
            check_input_size([int(size) for size in options.input_size])
        except ValueError as error:
            raise UserError("--input-size", str(error), "give one number or two, such as 416") from error


# --- sources parsed as values of the option before: `--score-threshold 0.3 photo.jpg` ------------------------------


def no_source() -> UserError:
    """The error if no source is given."""
    return UserError("SOURCE", "is required", "give images, folders or videos; see predict.py --help")


def check_sources(options: PredictOptions) -> PredictOptions:
    """Move sources that were parsed as option values back. Raises UserError if there are none."""
    options = return_sources(options)
    if not options.sources and not options.classes:  # the last names after --classes may be sources
        raise no_source()
    return options


def return_sources(options: PredictOptions) -> PredictOptions:
    """Move trailing items that are not values of the option back to the sources."""
    tests: dict[str, Callable[[str], bool]] = {
        "score_threshold": _is_threshold,
        "input_size": str.isdigit,
        "save": lambda value: value in WRITERS,
        "line": _is_numbers,
        "zone": _is_numbers,
    }
    for name, test in tests.items():
        values = getattr(options, name)
        kept = tuple(itertools.takewhile(test, values))
        rest = values[len(kept) :]
        if rest and not (kept and is_source(rest[0])):
            todo = choice_hint(rest[0], list(WRITERS)) if name == "save" else "see --help"
            raise UserError(f"--{name.replace('_', '-')}", f"{rest[0]!r} is not one of its values", todo)
        changes: dict[str, Any] = {name: kept, "sources": (*rest, *options.sources)}
        options = dataclasses.replace(options, **changes)
    return options


def return_class_sources(options: PredictOptions, class_names: Sequence[str]) -> PredictOptions:
    """Split `--classes cat dog photo.jpg` or `--classes cat,dog photo.jpg` into class names and sources."""
    known = {*class_names, *map(str, range(len(class_names)))}
    named = itertools.takewhile(lambda name: name in known or not is_source(name), options.classes)
    count = 0
    kept: tuple[str, ...] = ()
    for name in named:
        count += 1
        kept += (name,) if name in known else tuple(part for part in name.split(",") if part)
    if options.classes and not kept:
        raise UserError(
            "--classes", f"{brief(options.classes[0])} names no class", "give names or numbers, or leave it out"
        )
    return dataclasses.replace(options, classes=kept, sources=(*options.classes[count:], *options.sources))


def read_threshold(text: str) -> float:
    """A score from 0 to 1. Raises UserError."""
    try:
        value = float(text)
    except ValueError as error:
        raise UserError("--score-threshold", f"{text!r} is not a number", "give 0 to 1, or NAME=T") from error
    if not 0 <= value <= 1:
        raise UserError("--score-threshold", f"{value:g} is out of range", "it must be at least 0 and at most 1")
    return value


def _is_threshold(value: str) -> bool:
    number = value.rpartition("=")[2]
    with contextlib.suppress(ValueError):
        return float(number) == float(number)
    return False


def _is_numbers(value: str) -> bool:
    return "," in value and not os.path.lexists(value)


def is_source(value: str) -> bool:
    return os.path.lexists(value) or "://" in value or bool(os.path.splitext(value)[1]) or value == "-"
