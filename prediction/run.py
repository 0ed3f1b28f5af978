"""One run of predict.py: detect in every source, draw, write and count."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from imaging.detections import Detections
from imaging.draw import draw_boxes, draw_detections, draw_heatmap
from imaging.image_io import write_image
from imaging.pipeline import Background, parallel_map, prefetch
from prediction.byte_track import LOW_SCORE, ByteTracker
from prediction.codecs import CODECS, choose_codec
from prediction.configured import ConfiguredDetector
from prediction.explain import layer_cam, objectness_map
from prediction.live_view import Page, open_view
from prediction.options import PredictOptions
from prediction.outputs import (
    OF_PICTURES,
    WRITERS,
    DeferredWriter,
    OutputFolder,
    Result,
    ResultWriter,
    count_text,
    write_merged,
)
from prediction.sources import Source
from prediction.tracking import LineCounter, TrackLog, ZoneCounter
from prediction.video import Frame, TimedWriter, VideoWriter
from utils import distributed
from utils.allocator import keep_freed_memory
from utils.errors import UserError, printable, warn
from utils.text import counted

CAMS_PER_PICTURE = 5


class Prediction:
    """One run over all sources: detects, draws, writes and counts.

    Attributes:
        done, failed: number of sources so far.
        counts: number of objects per class index so far.
    """

    def __init__(
        self,
        configured: ConfiguredDetector,
        options: PredictOptions,
        folder: OutputFolder,
        counters: Callable[[], list[LineCounter | ZoneCounter]],
    ) -> None:
        self.configured, self.options, self.folder, self.counters = configured, options, folder, counters
        self.class_names = configured.config.class_names
        self.done = self.failed = 0
        self.counts: Counter[int] = Counter()
        self.writers: list[ResultWriter] = []
        self.postponed: DeferredWriter | None = None
        self.view: Any = None
        self._bar: Any = None

    def __enter__(self) -> Prediction:
        try:
            kinds = output_kinds(self.options)
            if distributed.world_size() > 1:
                self.postponed = DeferredWriter(self.folder, self.class_names)
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
        """Process every source, in order."""
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
        """Write the results of all processes in the order of `keys`. Returns False if this is not the main process."""
        if self.postponed is None:
            return True
        parts = distributed.gather_to_main((self.postponed.results, self.done, self.failed, self.counts))
        if parts is not None:
            results = [result for part in parts for result in part[0]]
            kinds = [kind for kind in output_kinds(self.options) if kind not in OF_PICTURES]
            write_merged(self.folder, self.class_names, kinds, results, keys)
            self.done, self.failed = sum(part[1] for part in parts), sum(part[2] for part in parts)
            self.counts = sum((part[3] for part in parts), Counter())
        distributed.barrier()  # torchrun stops all processes if one exits with an error
        return parts is not None

    def _run_images(self, items: Sequence[tuple[Source, tuple[str, str]]]) -> None:
        min_size = None if self._needs_pixels() else self.configured.decoded_size

        def load(item: tuple[Source, tuple[str, str]]) -> tuple[Any, Any]:
            try:
                return item, item[0].read_image_and_size(min_size)
            except UserError as error:
                return item, error

        batch_size = self.configured.batch_size
        ahead = max(4, 2 * batch_size)
        loaded = parallel_map(load, items, ahead, cost=lambda item: item[0].decoded_bytes(min_size))
        with Background(self._finish_image) as background, contextlib.closing(loaded):
            for batch in _batches(self._good(loaded), batch_size):
                sizes = [size for _, _, (_, size) in batch]
                found = self.configured.detect([image for _, _, (image, _) in batch], sizes=sizes)
                for (source, (key, drawn), (image, size)), detections in zip(batch, found, strict=True):
                    result = Result(source.name, key, detections, size, image)
                    background.put((result, drawn, self._explain(result)))
                if self.view is not None and self.view.closed:
                    return

    def _needs_pixels(self) -> bool:
        """Whether an output needs the full-size image."""
        options = self.options
        shown = options.images or options.show or options.heatmap or options.cam
        return shown or bool({*OF_PICTURES} & {*output_kinds(options)})

    def _good(self, loaded: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Source, tuple[str, str], Any]]:
        for (source, names), read in loaded:
            if isinstance(read, UserError):
                self._fail(read)
                self._bar.update()
            else:
                yield source, names, read

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
        """Heat maps of one image: file name suffix -> drawn image."""
        drawn: dict[str, np.ndarray] = {}
        if self.options.heatmap:
            drawn["heatmap"] = draw_heatmap(result.image, objectness_map(self.configured.detector, result.image))
        if self.options.cam:
            for number, one in enumerate(result.detections[slice(i, i + 1)] for i in range(len(result.detections))):
                if number == CAMS_PER_PICTURE:
                    break
                heat = layer_cam(self.configured.detector, result.image, one.boxes[0], int(one.labels[0]))
                drawn[f"cam_{number:03d}"] = draw_detections(draw_heatmap(result.image, heat), one, self.class_names)
        return drawn

    def _run_video(self, source: Source, key: str, drawn: str) -> None:
        keep_freed_memory()  # else every frame's arrays are mapped and zeroed again
        with source.open_video(self.options.every) as reader, VideoOutput(self, source, key, drawn, reader) as output:
            try:
                self._watch(source, reader, output)
            finally:  # also after a lost stream or Ctrl-C
                self._sum_up(source, reader, output)
        cut = reader.cut if self.options.max_frames is None else ""
        if cut or not output.frames:
            raise UserError(
                source.name, f"has only {cut or 'no frames'}: the file is damaged or truncated", "copy it again"
            )
        self.done += 1

    def _watch(self, source: Source, reader: Any, output: VideoOutput) -> None:
        source_frames: Any = iter(reader) if reader.live else prefetch(reader)
        frames: Any = source_frames
        count = -(-reader.frame_count // self.options.every) if reader.frame_count else sys.maxsize
        total = min(count, self.options.max_frames or sys.maxsize)
        bar = tqdm(
            total=None if total == sys.maxsize else total,
            desc=printable(source.file_name)[:30],
            unit="frame",
            leave=False,
            disable=None,
        )
        if reader.live and self.options.every > 1:
            frames = itertools.islice(frames, 0, None, self.options.every)
        frames = itertools.islice(frames, self.options.max_frames)
        batches = _batches(frames, 1 if reader.live else self.configured.batch_size)
        least = LOW_SCORE if output.tracker else None

        def find(batch: list[Frame]) -> tuple[list[Frame], list[Detections]]:
            return batch, self.configured.detect([frame.image for frame in batch], least, trim=True)

        # for files two batches are in flight: one in the network, one being read or prepared
        beside = not (reader.live or self.options.heatmap or self.options.tta)
        looked: Any = parallel_map(find, batches, ahead=2, workers=2) if beside else (find(batch) for batch in batches)
        # closed in this order: drawing, detection, then the thread that reads the file
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
        live = f", {reader.dropped} dropped, maximum lag {output.lag * 1000:.0f} ms" if reader.live else ""
        tqdm.write(f"{printable(source.name)}: {counted(output.frames, 'frame')}{live}, {how}: {text}")
        for line in output.count_lines():
            tqdm.write(f"  {line}")
        self.counts.update(output.counts)

    def _frame_heat(self, frame: Frame) -> np.ndarray | None:
        return objectness_map(self.configured.detector, frame.image) if self.options.heatmap else None

    def _write(self, result: Result) -> None:
        for writer in self.writers:
            writer.add(result)

    def _fail(self, error: UserError) -> None:
        self.failed += 1
        warn(error.where, error.what, error.todo)


class VideoOutput:
    """Outputs of one video: tracks, files, an annotated video. `add` runs in its own thread."""

    def __init__(self, prediction: Prediction, source: Source, key: str, drawn: str, reader: Any) -> None:
        self.prediction, self.source, self.key, self.drawn, self.reader = prediction, source, key, drawn, reader
        self.options, self.class_names = prediction.options, prediction.class_names
        self.frames = 0
        self.lag = 0.0
        self.counts: Counter[int] = Counter()
        self._writer: VideoWriter | None = None
        self._timed: TimedWriter | None = None
        counters = prediction.counters()
        self.tracker = (
            ByteTracker(prediction.configured.threshold, reader.fps) if self.options.track or counters else None
        )
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
        """Add the next frame."""
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
            copy=False,  # the frame has been used: `_write` came before
        )
        if self.tracker is not None:
            self.log.draw(picture)
        return picture

    def _save(self, frame: Frame, picture: np.ndarray) -> None:
        if self._writer is None:
            path = self.prediction.folder.claim(self.drawn)
            if self.options.overwrite:
                path.unlink(missing_ok=True)
            codec = choose_codec(self.options.codec)
            if self.options.codec == "auto" and not CODECS[codec].plays:
                warn(path, f"is {codec} video, which browsers do not play", "install ffmpeg, or add --codec vp9 (slow)")
            self._writer = VideoWriter(path, self.reader.write_fps, picture.shape[:2], codec)
            self._timed = TimedWriter(self._writer)
        assert self._timed is not None
        self._timed.write(picture, frame.time)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def output_kinds(options: PredictOptions) -> list[str]:
    kinds = (["json"] if options.json else []) + list(options.save)
    return list(dict.fromkeys(kinds))
