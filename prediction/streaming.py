"""Iterate over the frames of a video, camera or folder with their detections, for Python programs."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.skips import Skip
from imaging.detections import Detections
from imaging.pipeline import parallel_map, prefetch
from prediction.sources import Source, list_sources
from prediction.video import Frame
from utils.errors import MissingFileError, UserError, warn

Detect = Callable[..., list[Detections]]


def stream(
    detect: Detect, source: str | os.PathLike[str] | int | Sequence[str | os.PathLike[str]], batch_size: int = 4
) -> Iterator[tuple[Frame, Detections]]:
    """Yield detections of a source, in order; decoding runs in parallel with the network.

    Args:
        detect: `detect(images, trim=...)` returns the detections of RGB images (H, W, 3) uint8; `trim` is true for the
            frames of a video (see `nets.detector.Detector.detect_batch`).
        source: a video file, image, folder, glob, list, address, or the number of a webcam (see `list_sources`).
        batch_size: frames per batch for files; a camera always uses the newest frame.

    Yields:
        the frame (`image` RGB, `index`, `time` and `lag` in seconds) and its Detections in image pixels. Indices
        restart at 0 with each video; images count as frames of one video at time 0.

    Raises:
        UserError: if the source does not exist. RunError: if a stream is lost. A bad image among many is a warning.
    """
    if batch_size < 1:
        raise UserError("batch_size", f"{batch_size} is out of range", "it must be at least 1")
    with TemporaryDirectory(prefix="stream-") as downloads:
        sources, skips = _sources(source, Path(downloads))
        if not sources and skips:
            kind = MissingFileError if skips[0].code == "missing_file" else UserError
            raise kind(skips[0].where, skips[0].what, skips[0].todo)
        for skip in skips:
            warn(skip.where, skip.what, skip.todo)
        for is_image, group in itertools.groupby(sources, key=lambda each: each.kind == "image"):
            members = list(group)
            for part in [members] if is_image else [[member] for member in members]:
                yield from _watch(detect, part, batch_size, alone=len(sources) == 1)


def _sources(source: Any, downloads: Path) -> tuple[list[Source], list[Skip]]:
    if isinstance(source, int):
        return [Source("stream", f"webcam {source}", address=source)], []
    names = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    return list_sources([os.fspath(name) for name in names], download_folder=downloads)


def _watch(detect: Detect, sources: list[Source], batch_size: int, alone: bool) -> Iterator[tuple[Frame, Detections]]:
    is_video = sources[0].kind != "image"
    with contextlib.ExitStack() as stack:
        frames: Any
        if not is_video:
            frames = _pictures(sources, 2 * batch_size, alone)
        else:
            reader: Any = stack.enter_context(sources[0].open_video())
            batch_size = 1 if reader.live else batch_size
            frames = iter(reader) if reader.live else prefetch(reader)
        stack.callback(frames.close)  # before the reader that it reads from
        while batch := list(itertools.islice(frames, batch_size)):
            yield from zip(batch, detect([frame.image for frame in batch], trim=is_video), strict=True)


def _pictures(sources: list[Source], ahead: int, alone: bool) -> Iterator[Frame]:
    index = 0
    with contextlib.closing(parallel_map(_read, sources, ahead, cost=Source.decoded_bytes)) as images:
        for image in images:
            if not isinstance(image, UserError):
                yield Frame(image, index, 0.0)
                index += 1
            elif alone:
                raise image
            else:
                warn(image.where, image.what, image.todo)


def _read(source: Source) -> Any:
    try:
        return source.read_image()
    except UserError as error:
        return error
