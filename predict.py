"""Find objects in pictures, folders, videos and streams, draw them and write them down."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
from tqdm import tqdm

from data.index import Skip
from nets.detector import Detector, default_checkpoint, load_detector
from nets.model_config import check_input_size
from nets.nms import SUPPRESSIONS
from nets.runtime import TorchRuntime, file_kind, load_runtime
from prediction.explain import layer_cam, objectness_map
from prediction.finder import Finder, read_threshold
from prediction.live_view import Page, open_view
from prediction.outputs import (
    OF_PICTURES,
    WRITERS,
    OutputFolder,
    Postponed,
    Result,
    ResultWriter,
    count_text,
    fresh_folder,
    planned_files,
    write_merged,
)
from prediction.sources import Source, list_sources, unique_names
from prediction.threads import Background, parallel_map, prefetch
from prediction.tracking import LOW_SCORE, LineCounter, Tracker, TrackLog, ZoneCounter, read_line, read_zone
from prediction.video import CODECS, DEFAULT_FPS, Frame, TimedWriter, VideoWriter, video_suffix
from utils import distributed
from utils.config import option, parse_options
from utils.detections import Detections
from utils.draw import draw_boxes, draw_detections, draw_heatmap
from utils.errors import Interrupted, RunError, UserError, printable, run_command, warn
from utils.images import IMAGE_SUFFIXES, write_image
from utils.output_rules import check_output_folder

CAMS_PER_PICTURE = 5
MANY_PICTURES = 300  # from here on it pays to export the network first
LONG_VIDEO_BYTES = 4 << 20
PATIENCE_SECONDS = 7 * 24 * 3600  # one of several processes may have the longest video
KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # a drawn picture keeps these; others become .jpg


@dataclass(frozen=True)
class PredictOptions:
    sources: tuple[str, ...] = option(
        (),
        "pictures, videos, folders, globs, .txt lists, http(s) addresses, webcam numbers, rtsp:// streams, - for stdin",
        nargs="*",
        positional=True,
        metavar="SOURCE",
    )
    checkpoint: str | None = option(None, "the model's file; without it the built-in weights", metavar="FILE")
    output: str | None = option(None, "folder of the results (default: a fresh output/predict-N)", metavar="DIR")
    score_threshold: tuple[str, ...] = option(
        (), "least score, 0 to 1, and NAME=T for single classes (default: the checkpoint's)", metavar="T"
    )
    iou_threshold: float | None = option(None, "overlap above which two boxes are one object", low=0, high=1)
    max_detections: int | None = option(None, "most objects of one picture", low=1, high=100_000)
    input_size: tuple[str, ...] = option((), "height and width of the network's input, multiples of 32", metavar="N")
    classes: tuple[str, ...] = option((), "only these classes, by name or number", metavar="NAME")
    nms: str = option("default", "how boxes of one object become one", choices=tuple(SUPPRESSIONS))
    tile: int | None = option(None, "look at overlapping tiles of this many pixels; 0: of the input size", low=0)
    tile_overlap: float = option(0.25, "share of a tile that its neighbour sees too", low=0, high=0.9)
    tta: bool = option(False, "look several times, mirrored and at three sizes")
    track: bool = option(False, "follow objects through videos (needs the extra `tracking`)")
    line: tuple[str, ...] = option((), "count who crosses the line x1,y1,x2,y2 (pixels); turns on --track")
    zone: tuple[str, ...] = option((), "count who is inside the polygon x1,y1,x2,y2,x3,y3,...; turns on --track")
    heatmap: bool = option(False, "also draw where the network sees objects at all")
    cam: bool = option(False, "also draw what made it find each of the best objects of a picture")
    json: bool = option(False, "write detections.json")
    save: tuple[str, ...] = option((), f"write {', '.join(WRITERS)}", metavar="KIND")
    images: bool = option(True, "write drawn pictures and videos")
    codec: str = option("mp4v", "of written videos", choices=tuple(CODECS))
    show: bool = option(False, "show pictures as they come, in a window or on a local page")
    recursive: bool = option(False, "take the folders inside folders as well")
    overwrite: bool = option(False, "replace files in the output folder")
    batch_size: int = option(8, "pictures run at once", low=1, high=1024)
    max_frames: int | None = option(None, "stop a video or stream after this many frames", low=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    runtime: str = option("auto", "what to run an exported file on")


def main(argv: list[str] | None = None) -> int:
    options = parse_options(PredictOptions, argv, description=__doc__ or "", prog="predict.py")
    options = _return_sources(options)
    if not options.sources and not options.classes:  # the last names after --classes may be sources
        raise _no_source()
    counters = _counters(options)
    _check_numbers(options)
    runtime = "torch" if _needs_gradients(options) else options.runtime
    detector = load_detector(options.checkpoint, distributed.own_device(options.device), runtime)
    if options.input_size:
        detector.set_input_size([int(size) for size in options.input_size])
    options = _return_class_sources(options, detector.config.class_names)
    if not options.sources:
        raise _no_source()
    finder = Finder(
        detector,
        thresholds=options.score_threshold,
        iou_threshold=options.iou_threshold,
        max_detections=options.max_detections,
        classes=options.classes,
        nms=options.nms,
        tile=options.tile,
        tile_overlap=options.tile_overlap,
        tta=options.tta,
        batch_size=options.batch_size,
    )
    if options.track or options.line or options.zone:
        Tracker(finder.threshold, DEFAULT_FPS)  # says at once if the package is missing
    with TemporaryDirectory(prefix="predict-") as downloads, _signals(), _processes():
        names = [os.fspath(name) for name in options.sources]
        if "-" in names and distributed.world_size() > 1:
            raise UserError("-", "is read by one process only", "write a list of names to a .txt file, and name that")
        sources, skips = list_sources(names, options.recursive, download_folder=Path(downloads))
        _report(skips, nothing_else=not sources)
        _quicken(detector, options, sources)
        folder = _output_folder(options, sources)
        names_of = list(unique_names(sources, lambda source: _drawn_suffix(source, options)))
        _check_outputs(options, folder, sources, names_of)
        listed = hashlib.sha256(repr(names_of).encode("utf-8", "surrogatepass")).digest()
        if len(set(distributed.gather(listed))) > 1:  # and nobody writes before all have looked at what is there
            raise RunError("SOURCE", "is not the same in every process", "keep what is looked at on a shared disk")
        if distributed.is_main():
            print(finder.threshold_text(), flush=True)
        with Prediction(finder, options, folder, counters) as prediction:
            try:
                items = list(zip(sources, names_of, strict=True))
                prediction.run(items[distributed.rank() :: distributed.world_size()])
                if not prediction.merge([key for key, _ in names_of]):
                    return 0  # the main process sums up
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
    """Whether only PyTorch will do (and the user has not named another, which is told where it fails)."""
    path = Path(options.checkpoint or default_checkpoint())
    return options.cam and options.runtime == "auto" and path.is_file() and file_kind(path) == "checkpoint"


def _quicken(detector: Detector, options: PredictOptions, sources: Sequence[Source]) -> None:
    """Change from PyTorch to what runs the same network quicker on this CPU, if it is ready or there is much to do."""
    runtime = getattr(detector, "runtime", None)
    if (
        options.runtime != "auto"
        or options.cam
        or not isinstance(runtime, TorchRuntime)
        or runtime.device.type != "cpu"
    ):
        return
    from nets.export.cache import quickest

    is_long = any(
        each.kind == "stream" or (each.kind == "video" and each.path and each.path.stat().st_size > LONG_VIDEO_BYTES)
        for each in sources
    )
    is_much = is_long or len(sources) >= MANY_PICTURES
    path = Path(options.checkpoint or default_checkpoint())
    name = quickest(path, exports=is_much and distributed.world_size() == 1)
    if name == "torch":
        return
    try:
        detector.runtime = load_runtime(path, "cpu", name)
    except (UserError, RunError) as error:  # PyTorch does it, too
        warn(error.where, error.what, "it runs on PyTorch instead")
        return
    detector.runtime.config = runtime.config


class Prediction:
    """One run over all sources: finds, draws, writes, counts.

    Attributes:
        done, failed: sources so far.
        counts: objects of each class index so far.
    """

    def __init__(
        self,
        finder: Finder,
        options: PredictOptions,
        folder: OutputFolder,
        counters: Callable[[], list[LineCounter | ZoneCounter]],
    ) -> None:
        self.finder, self.options, self.folder, self.counters = finder, options, folder, counters
        self.class_names = finder.config.class_names
        self.done = self.failed = 0
        self.counts: Counter[int] = Counter()
        self.writers: list[ResultWriter] = []
        self.postponed: Postponed | None = None
        self.view: Any = None
        self._bar: Any = None

    def __enter__(self) -> Prediction:
        try:
            kinds = _kinds(self.options)
            if distributed.world_size() > 1:
                self.postponed = Postponed(self.folder, self.class_names)
                self.writers.append(self.postponed)
                kinds = [kind for kind in kinds if kind in OF_PICTURES]
            for kind in kinds:
                self.writers.append(WRITERS[kind](self.folder, self.class_names))
            if self.options.show:
                self.view = open_view()
                if isinstance(self.view, Page):
                    print(f"live view: {self.view.address}", flush=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.writers:
            writer.close()
        if self.view is not None:
            self.view.close()

    def run(self, items: Sequence[tuple[Source, tuple[str, str]]]) -> None:
        """Look at every source, in order."""
        hidden = None if len(items) > 1 and distributed.is_main() else True
        with tqdm(total=len(items), unit="source", disable=hidden) as self._bar:
            for is_image, group in itertools.groupby(items, key=lambda item: item[0].kind == "image"):
                if is_image:
                    self._run_images(list(group))
                    continue
                for source, (key, drawn) in group:
                    try:
                        self._run_video(source, key, drawn)
                    except UserError as error:
                        self._fail(error)
                    self._bar.update()

    def merge(self, keys: Sequence[str]) -> bool:
        """Of several processes: write the results of all in the order of `keys`. False if this is not the main one."""
        if self.postponed is None:
            return True
        parts = distributed.gather_to_main((self.postponed.results, self.done, self.failed, self.counts))
        if parts is not None:
            results = [result for part in parts for result in part[0]]
            kinds = [kind for kind in _kinds(self.options) if kind not in OF_PICTURES]
            write_merged(self.folder, self.class_names, kinds, results, keys)
            self.done, self.failed = sum(part[1] for part in parts), sum(part[2] for part in parts)
            self.counts = sum((part[3] for part in parts), Counter())
        distributed.barrier()  # torchrun takes one that has ended for the end of all, should it have failed
        return parts is not None

    def _run_images(self, items: Sequence[tuple[Source, tuple[str, str]]]) -> None:
        loaded = parallel_map(_load, items, ahead=2 * self.options.batch_size)
        with Background(self._finish_image) as background, contextlib.closing(loaded):
            for batch in _batches(self._good(loaded), self.options.batch_size):
                found = self.finder.find([image for _, _, image in batch])
                for (source, (key, drawn), image), detections in zip(batch, found, strict=True):
                    result = Result(source.name, key, detections, image.shape[:2], image)
                    background.put((result, drawn, self._explain(result)))
                if self.view is not None and self.view.closed:
                    return

    def _good(self, loaded: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Source, tuple[str, str], np.ndarray]]:
        for (source, names), image in loaded:
            if isinstance(image, UserError):
                self._fail(image)
                self._bar.update()
            else:
                yield source, names, image

    def _finish_image(self, item: tuple[Result, str, dict[str, np.ndarray]]) -> None:
        result, drawn, explanations = item
        self._write(result)
        if self.options.images or self.view is not None:
            picture = draw_detections(result.image, result.detections, self.class_names)
            if self.options.images:
                write_image(self.folder.claim(drawn), picture)
            if self.view is not None:
                self.view.show(picture)
        for suffix, picture in explanations.items():
            write_image(self.folder.claim(f"{result.key}_{suffix}.jpg"), picture)
        labels = result.detections.labels
        self.counts.update(labels.tolist())
        tqdm.write(f"{printable(result.name)}: {count_text(labels, self.class_names)}")
        self.done += 1
        self._bar.update()

    def _explain(self, result: Result) -> dict[str, np.ndarray]:
        """Heat maps of one picture: end of the file name -> drawn picture."""
        drawn: dict[str, np.ndarray] = {}
        if self.options.heatmap:
            drawn["heatmap"] = draw_heatmap(result.image, objectness_map(self.finder.detector, result.image))
        if self.options.cam:
            for number, one in enumerate(result.detections[slice(i, i + 1)] for i in range(len(result.detections))):
                if number == CAMS_PER_PICTURE:
                    break
                heat = layer_cam(self.finder.detector, result.image, one.boxes[0], int(one.labels[0]))
                drawn[f"cam_{number:03d}"] = draw_detections(draw_heatmap(result.image, heat), one, self.class_names)
        return drawn

    def _run_video(self, source: Source, key: str, drawn: str) -> None:
        with source.open_video() as reader, VideoOutput(self, source, key, drawn, reader) as output:
            try:
                self._watch(source, reader, output)
            finally:  # also of a stream that died and after Ctrl-C
                self._sum_up(source, reader, output)
        cut = reader.cut if self.options.max_frames is None else ""
        if cut or not output.frames:
            raise UserError(source.name, f"gave {cut or 'no frames'}; the file is damaged or cut", "copy it again")
        self.done += 1

    def _watch(self, source: Source, reader: Any, output: VideoOutput) -> None:
        source_frames: Any = iter(reader) if reader.live else prefetch(reader)
        frames: Any = source_frames
        total = min(reader.frame_count or sys.maxsize, self.options.max_frames or sys.maxsize)
        bar = tqdm(
            total=None if total == sys.maxsize else total,
            desc=printable(source.file_name)[:30],
            unit="frame",
            leave=False,
            disable=None,
        )
        frames = itertools.islice(frames, self.options.max_frames)
        batches = _batches(frames, 1 if reader.live else self.options.batch_size)
        least = LOW_SCORE if output.tracker else None

        def find(batch: list[Frame]) -> tuple[list[Frame], list[Detections]]:
            return batch, self.finder.find([frame.image for frame in batch], least)

        # of a file two batches are on their way: one in the network, one being prepared or read
        beside = not (reader.live or self.options.heatmap or self.options.tta)
        looked: Any = parallel_map(find, batches, ahead=2, workers=2) if beside else (find(batch) for batch in batches)
        # closed in this order: what is drawn, what is looked at, then the thread that reads from the file
        with contextlib.closing(source_frames), contextlib.closing(looked), bar, Background(output.add) as background:
            for batch, found in looked:
                for frame, detections in zip(batch, found, strict=True):
                    background.put((frame, detections, self._frame_heat(frame)))
                    bar.update()
                if reader.live:
                    bar.set_postfix_str(f"lag {batch[-1].lag * 1000:.0f} ms")
                if self.view is not None and self.view.closed:
                    break

    def _sum_up(self, source: Source, reader: Any, output: VideoOutput) -> None:
        text = count_text(output.counts, self.class_names)
        how = "tracks" if output.tracker else "detections"
        live = f", {reader.dropped} dropped, lag {output.lag * 1000:.0f} ms at most" if reader.live else ""
        tqdm.write(f"{printable(source.name)}: {output.frames} frames{live}, {how}: {text}")
        for line in output.count_lines():
            tqdm.write(f"  {line}")
        self.counts.update(output.counts)

    def _frame_heat(self, frame: Frame) -> np.ndarray | None:
        return objectness_map(self.finder.detector, frame.image) if self.options.heatmap else None

    def _write(self, result: Result) -> None:
        for writer in self.writers:
            writer.add(result)

    def _fail(self, error: UserError) -> None:
        self.failed += 1
        warn(error.where, error.what, error.todo)


class VideoOutput:
    """What becomes of the frames of one video: tracks, files, a drawn video. `add` runs beside the network."""

    def __init__(self, prediction: Prediction, source: Source, key: str, drawn: str, reader: Any) -> None:
        self.prediction, self.source, self.key, self.drawn, self.reader = prediction, source, key, drawn, reader
        self.options, self.class_names = prediction.options, prediction.class_names
        self.frames = 0
        self.lag = 0.0
        self.counts: Counter[int] = Counter()
        self._writer: VideoWriter | None = None
        self._timed: TimedWriter | None = None
        counters = prediction.counters()
        self.tracker = Tracker(prediction.finder.threshold, reader.fps) if self.options.track or counters else None
        self.log = TrackLog(self.class_names, counters)
        self._seen: set[int] = set()

    def __enter__(self) -> VideoOutput:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self.tracker is not None:
                path = self.prediction.folder.claim(f"{self.key}_tracks.json")
                self.log.save(path)

    def add(self, item: tuple[Frame, Detections, np.ndarray | None]) -> None:
        """Take the next frame."""
        frame, detections, heat = item
        if self.tracker is not None:
            detections = self.tracker.update(detections)
            self.log.update(frame.index, detections)
            ids = detections.track_ids if detections.track_ids is not None else ()
            fresh = [i for i, track in enumerate(ids) if track not in self._seen]
            self._seen.update(int(track) for track in ids)
            self.counts.update(detections.labels[fresh].tolist() if fresh else [])
        else:
            self.counts.update(detections.labels.tolist())
        size = frame.image.shape[:2]
        result = Result(self.source.name, self.key, detections, size, frame.image, frame.index, frame.time)
        self.prediction._write(result)
        self.frames += 1
        self.lag = max(self.lag, frame.lag)
        view = self.prediction.view
        if self.options.images or view is not None:
            picture = self._draw(frame, detections, heat)
            if self.options.images:
                self._save(frame, picture)
            if view is not None:
                view.show(picture)

    def count_lines(self) -> list[str]:
        return [counter.text() for counter in self.log.counters]

    def _draw(self, frame: Frame, detections: Detections, heat: np.ndarray | None) -> np.ndarray:
        image = frame.image if heat is None else draw_heatmap(frame.image, heat)
        picture = draw_boxes(
            image,
            detections.boxes,
            detections.labels,
            self.class_names,
            detections.scores,
            track_ids=detections.track_ids,
        )
        if self.tracker is not None:
            self.log.draw(picture)
        return picture

    def _save(self, frame: Frame, picture: np.ndarray) -> None:
        if self._writer is None:
            path = self.prediction.folder.claim(self.drawn)
            if self.options.overwrite:
                path.unlink(missing_ok=True)
            self._writer = VideoWriter(path, self.reader.fps, picture.shape[:2], self.options.codec)
            self._timed = TimedWriter(self._writer) if self.reader.live else None
        if self._timed is not None:
            self._timed.write(picture, frame.time)
        else:
            self._writer.write(picture)


def _load(item: tuple[Source, tuple[str, str]]) -> tuple[tuple[Source, tuple[str, str]], np.ndarray | UserError]:
    try:
        return item, item[0].read_image()
    except UserError as error:
        return item, error


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _check_numbers(options: PredictOptions) -> None:
    """Raises UserError, before anything is loaded, for values that the option's type does not rule out."""
    for value in options.score_threshold:
        read_threshold(value.rpartition("=")[2])
    if options.input_size:
        try:
            check_input_size([int(size) for size in options.input_size])
        except ValueError as error:
            raise UserError("--input-size", str(error), "give one number or two, such as 416") from error


def _no_source() -> UserError:
    return UserError("SOURCE", "nothing to look at", "name pictures, folders or videos; see predict.py --help")


def _report(skips: Sequence[Skip], nothing_else: bool) -> None:
    """Name what could not be found. Raises UserError if nothing could."""
    if nothing_else and len(skips) == 1:
        raise UserError(skips[0].where, skips[0].what, skips[0].todo)
    for skip in skips if distributed.is_main() else ():
        warn(skip.where, skip.what, skip.todo)
    if nothing_else:
        raise UserError("SOURCE", f"none of the {len(skips)} can be looked at", "see the warnings above")


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Share the sources out over torchrun's processes, if it started this one. They meet at the end only: no limit."""
    distributed.start("cpu", timeout_seconds=PATIENCE_SECONDS)
    try:
        yield
    finally:
        distributed.stop()


def _output_folder(options: PredictOptions, sources: Sequence[Source]) -> OutputFolder:
    fresh = fresh_folder(Path("output")) if options.output is None and distributed.is_main() else None
    path = distributed.gather(fresh)[0] if options.output is None else Path(options.output)
    check_output_folder("--output", path, [name for name in options.sources if os.path.isdir(name)])
    return OutputFolder(path, options.overwrite, [source.path for source in sources if source.path is not None])


def _drawn_suffix(source: Source, options: PredictOptions) -> str:
    if source.kind != "image":
        return video_suffix(options.codec)
    suffix = os.path.splitext(source.file_name)[1].lower()
    return suffix if suffix in KEPT_SUFFIXES and suffix in IMAGE_SUFFIXES else ".jpg"


def _kinds(options: PredictOptions) -> list[str]:
    kinds = (["json"] if options.json else []) + list(options.save)
    return list(dict.fromkeys(kinds))


def _check_outputs(
    options: PredictOptions, folder: OutputFolder, sources: Sequence[Source], names: Sequence[tuple[str, str]]
) -> None:
    """Raises UserError before any work if a file that will be written is there already."""
    pictures = [key for source, (key, _) in zip(sources, names, strict=True) if source.kind == "image"]
    planned = [drawn for _, drawn in names] if options.images else []
    planned += [f"{key}_heatmap.jpg" for key in pictures] if options.heatmap else []
    for kind in _kinds(options):
        planned += planned_files(kind, pictures)
    for name in planned:
        folder.check(name)


def _counters(options: PredictOptions) -> Callable[[], list[LineCounter | ZoneCounter]]:
    """A maker of fresh counters for each video; what is typed wrongly is said at once."""

    def make() -> list[LineCounter | ZoneCounter]:
        return [*map(read_line, options.line), *map(read_zone, options.zone)]

    make()
    return make


# --- sources that an option before them swallowed: `--score-threshold 0.3 photo.jpg` ------------------------------


def _return_sources(options: PredictOptions) -> PredictOptions:
    """Give back what stands behind an option's values and is none of them."""
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
        if rest and not (kept and _is_source(rest[0])):
            raise UserError(f"--{name.replace('_', '-')}", f"{rest[0]!r} is not one of its values", "see --help")
        changes: dict[str, Any] = {name: kept, "sources": (*rest, *options.sources)}
        options = dataclasses.replace(options, **changes)
    return options


def _return_class_sources(options: PredictOptions, class_names: Sequence[str]) -> PredictOptions:
    known = {*class_names, *map(str, range(len(class_names)))}
    kept = tuple(itertools.takewhile(lambda name: name in known or not _is_source(name), options.classes))
    return dataclasses.replace(options, classes=kept, sources=(*options.classes[len(kept) :], *options.sources))


def _is_threshold(value: str) -> bool:
    number = value.rpartition("=")[2]
    with contextlib.suppress(ValueError):
        return float(number) == float(number)
    return False


def _is_numbers(value: str) -> bool:
    return "," in value and not os.path.lexists(value)


def _is_source(value: str) -> bool:
    return os.path.lexists(value) or "://" in value or bool(os.path.splitext(value)[1]) or value == "-"


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM leaves as Ctrl-C does: what was written so far is closed and whole."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    run_command(distributed.recorded(main))
