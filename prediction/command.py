"""The main function of predict.py: sources, detector, outputs, summary."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from data.skips import Skip
from imaging.image_io import IMAGE_SUFFIXES
from nets.detector import Detector
from nets.export.formats import file_kind
from nets.weights.bundled import default_model_text, find_model
from prediction.codecs import CODECS, choose_codec
from prediction.configured import ConfiguredDetector
from prediction.options import PredictOptions, no_source, return_class_sources
from prediction.outputs import (
    OutputFolder,
    count_text,
    new_output_folder,
    planned_files,
)
from prediction.run import Prediction, output_kinds
from prediction.sources import Source, check_cameras, list_sources, unique_names
from prediction.tracking import LineCounter, ZoneCounter, read_line, read_zone
from utils import distributed
from utils.errors import RunError, UserError, printable, warn
from utils.output_rules import check_output_folder
from utils.text import counted

PATIENCE_SECONDS = 7 * 24 * 3600  # one of several processes may have the longest video
KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # a drawn picture keeps these; others become .jpg


def predict(options: PredictOptions) -> int:
    """Run predict.py with these options; returns the exit code."""
    counters = _counters(options)
    check_cameras(options.sources)
    runtime = "torch" if _needs_gradients(options) else options.runtime
    detector = Detector.open(options.checkpoint, distributed.own_device(options.device), runtime)
    if options.input_size:
        detector.set_input_size([int(size) for size in options.input_size])
    options = return_class_sources(options, detector.config.class_names)
    if not options.sources:
        raise no_source()
    configured = ConfiguredDetector(detector, options)
    with TemporaryDirectory(prefix="predict-") as downloads, _processes():
        names = [os.fspath(name) for name in options.sources]
        if "-" in names and distributed.world_size() > 1:
            raise UserError(
                "-", "can be read by one process only", "write the list of names to a .txt file, and give that file"
            )
        sources, skips = list_sources(names, options.recursive, download_folder=Path(downloads))
        _report(skips, nothing_else=not sources)
        folder = _output_folder(options, sources)
        names_of = list(unique_names(sources, lambda source: _drawn_suffix(source, options)))
        _check_outputs(options, folder, sources, names_of)
        _warn_of_names(options, sources, names_of)
        listed = hashlib.sha256(repr(names_of).encode("utf-8", "surrogatepass")).digest()
        if len(set(distributed.gather(listed))) > 1:  # also a barrier: no process writes before all have listed
            raise RunError("SOURCE", "differs between the processes", "use a shared disk")
        if distributed.is_main():
            if options.checkpoint is None:
                print(default_model_text(detector.config))
            print(configured.threshold_text(), flush=True)
        with Prediction(configured, options, folder, counters) as prediction:
            try:
                items = list(zip(sources, names_of, strict=True))
                prediction.run(items[distributed.rank() :: distributed.world_size()])
                if not prediction.merge([key for key, _ in names_of]):
                    return 0  # the main process prints the summary
            finally:
                done, failed = prediction.done, prediction.failed + len(skips)
                if distributed.is_main():
                    print(f"total: {count_text(prediction.counts, detector.config.class_names)}")
                    if folder.path.is_dir():
                        print(f"results: {printable(folder.path)}")
                    tail = f", {failed} failed" if failed else ""
                    print(f"predict: {done} of {len(sources) + len(skips)} sources done{tail}", flush=True)
    return 1 if failed else 0


def _needs_gradients(options: PredictOptions) -> bool:
    """Whether PyTorch is required (if the user named another runtime, the error is raised later)."""
    path = find_model(options.checkpoint)
    return options.cam and options.runtime == "auto" and path.is_file() and file_kind(path) == "checkpoint"


def _report(skips: Sequence[Skip], nothing_else: bool) -> None:
    """Report the sources that were not found. Raises UserError if none was found."""
    if nothing_else and len(skips) == 1:
        raise UserError(skips[0].where, skips[0].what, skips[0].todo)
    for skip in skips if distributed.is_main() else ():
        warn(skip.where, skip.what, skip.todo)
    if nothing_else:
        raise UserError("SOURCE", f"none of the {len(skips)} sources can be used", "see the warnings above")


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Distribute the sources over torchrun's processes, if any. They synchronise only at the end: a long timeout."""
    distributed.start("cpu", timeout_seconds=PATIENCE_SECONDS)
    try:
        yield
    finally:
        distributed.stop()


def _output_folder(options: PredictOptions, sources: Sequence[Source]) -> OutputFolder:
    fresh = new_output_folder(Path("output")) if options.output is None and distributed.is_main() else None
    path = distributed.gather(fresh)[0] if options.output is None else Path(options.output)
    check_output_folder("--output", path, [name for name in options.sources if os.path.isdir(name)])
    return OutputFolder(path, options.overwrite, [source.path for source in sources if source.path is not None])


def _drawn_suffix(source: Source, options: PredictOptions) -> str:
    if source.kind != "image":
        return CODECS[choose_codec(options.codec)].suffix
    suffix = os.path.splitext(source.file_name)[1].lower()
    return suffix if suffix in KEPT_SUFFIXES and suffix in IMAGE_SUFFIXES else ".jpg"


def _check_outputs(
    options: PredictOptions, folder: OutputFolder, sources: Sequence[Source], names: Sequence[tuple[str, str]]
) -> None:
    """Raises UserError before any work if an output file exists already."""
    pictures = [key for source, (key, _) in zip(sources, names, strict=True) if source.kind == "image"]
    planned = [drawn for _, drawn in names] if options.images else []
    planned += [f"{key}_heatmap.jpg" for key in pictures] if options.heatmap else []
    for kind in output_kinds(options):
        planned += planned_files(kind, pictures)
    for name in planned:
        folder.check(name)


def _warn_of_names(options: PredictOptions, sources: Sequence[Source], names: Sequence[tuple[str, str]]) -> None:
    """Warn of images whose label files cannot have their name, because another image has it."""
    kinds = output_kinds(options)
    if "frames" in kinds or not {"voc", "yolo"} & {*kinds} or not distributed.is_main():
        return
    pairs = [(os.path.splitext(source.file_name)[0], key) for source, (key, _) in zip(sources, names, strict=True)
             if source.kind == "image"]  # fmt: skip
    renamed = [(stem, key) for stem, key in pairs if stem != key]
    if renamed:
        (stem, key), count = renamed[0], counted(len(renamed), "image has", "images have")
        what = (
            f"{count} the name of another image, such as {stem}: the labels are in {key}.*, where no reader finds them"
        )
        warn("--save", what, "rename the images, or add `frames`, which saves them under the names of their labels")


def _counters(options: PredictOptions) -> Callable[[], list[LineCounter | ZoneCounter]]:
    """A factory of counters, new for each video. Raises UserError for invalid lines or zones."""

    def make() -> list[LineCounter | ZoneCounter]:
        return [*map(read_line, options.line), *map(read_zone, options.zone)]

    make()
    return make
