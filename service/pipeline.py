"""Bytes of pictures to detections: decoded side by side, fitted to the network, run in batches, filtered by request."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import anyio
import numpy as np

from nets.model_config import ModelConfig
from service.batcher import Batcher
from service.limits import Limits, Refused
from service.metrics import Gauge, Metrics
from utils.detections import Detections
from utils.errors import warn
from utils.images import ImageError, ImageHeader, decode_image, read_header_bytes
from utils.thresholds import Thresholds

LOWEST_SCORE = 0.01  # no request may ask for less: below is noise, and noise is slow
MOST_DETECTIONS = 1000  # no request may ask for more
BIG_MEGAPIXELS = 12.0  # pictures above are decoded one at a time, which bounds memory
DECODERS = max(2, min(4, os.cpu_count() or 1))
STUCK_SECONDS = 60.0  # a batch that runs longer will not end
IMAGE_STATUS = {"image_too_big": 413, "not_an_image": 415}  # of ImageError codes; others are 422


@dataclass(frozen=True)
class Question:
    """What a request wants to know.

    Args:
        score_threshold: the least score, `LOWEST_SCORE` to 1.
        max_detections: the most objects, up to `MOST_DETECTIONS`.
        labels: only these class indices; None for all.
    """

    score_threshold: float
    max_detections: int
    labels: frozenset[int] | None = None


@dataclass(frozen=True)
class Found:
    """The answer.

    Args:
        detections: in the picture's pixels.
        size: (height, width) of the upright picture.
        timings: milliseconds by name.
        batch: pictures in the batch it was part of.
    """

    detections: Detections
    size: tuple[int, int]
    timings: dict[str, float] = field(default_factory=dict)
    batch: int = 1


@dataclass(frozen=True)
class _Prepared:
    image: np.ndarray  # (input height, input width, 3)
    score_threshold: float


class Pipeline:
    """A detector for many askers.

    Pictures are fitted to the network's input where they are decoded: a batch holds inputs, not photographs, and the
    network's thread does nothing but run the network.

    Args:
        detector: a `nets.detector.Detector`.
        limits: how much at once.
        metrics: told of everything.
        iou_threshold: overlap above which two boxes are one object; None takes the checkpoint's.
    """

    def __init__(self, detector: Any, limits: Limits, metrics: Metrics, iou_threshold: float | None = None) -> None:
        self.detector, self.limits, self.metrics = detector, limits, metrics
        self._iou_threshold = iou_threshold
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._one_big = asyncio.Lock()
        self.batcher = Batcher(self._run, limits.batch_size, limits.batch_wait, limits.queue)
        metrics.gauges.append(Gauge("detector_waiting", "Requests under way.", lambda: self.batcher.taken))

    @property
    def config(self) -> ModelConfig:
        return self.detector.config

    @property
    def problem(self) -> str:
        """Why it cannot answer; empty if it can."""
        if not self.batcher.alive:
            return "not running"
        return f"the network has been busy for {self.batcher.busy:.0f} s" if self.batcher.busy > STUCK_SECONDS else ""

    async def start(self) -> None:
        """Begin, with one picture to warm up, so that the first visitor does not wait for it."""
        blank = _Prepared(np.zeros((*self.config.input_size, 3), np.uint8), 0.5)
        await self.batcher.start(lambda: self._run([blank]))

    async def close(self) -> None:
        await self.batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def find(self, data: bytes, where: str, question: Question) -> Found:
        """The objects of one picture.

        Args:
            data: the file's content.
            where: what an error calls it.
            question: thresholds and classes.

        Raises:
            Refused: for a bad picture, a full queue, a network that fails or takes too long.
        """
        started = time.perf_counter()
        try:
            with anyio.fail_after(self.limits.answer_timeout):
                with self.batcher.place():
                    image, size, decoding = await self._decode(data, where)
                    answer = await self.batcher.submit(_Prepared(image, question.score_threshold))
        except TimeoutError:
            what = f"service: no answer within {self.limits.answer_timeout:g} s; try again later"
            raise Refused(503, "too_slow", what, retry_after=5) from None
        except (Refused, asyncio.CancelledError):
            raise
        except Exception as error:  # of the network: ours, not the client's
            warn("network", f"{type(error).__name__}: {str(error)[:200]}")
            raise Refused(500, "network_failed", "service: the network failed on this batch; see its log") from error
        found = self.config.letterbox.boxes_to_image(answer.value.boxes, *size)
        detections = _filter(Detections(found, answer.value.scores, answer.value.labels), question)
        total = time.perf_counter() - started
        self.metrics.decode.observe(decoding)
        self.metrics.queue.observe(answer.waited)
        self.metrics.answer.observe(total)
        self.metrics.objects.add(len(detections))
        seconds = {"decode": decoding, "queue": answer.waited, "network": answer.ran, "total": total}
        return Found(detections, size, {name: 1000 * value for name, value in seconds.items()}, answer.batch)

    async def _decode(self, data: bytes, where: str) -> tuple[np.ndarray, tuple[int, int], float]:
        """The network's input, the picture's (height, width), and the seconds it took."""
        loop = asyncio.get_running_loop()

        def prepare(big: bool) -> asyncio.Future[tuple[ImageHeader, np.ndarray | None, float]]:
            return loop.run_in_executor(self._decoders, self._prepare, data, where, big)

        try:
            header, image, seconds = await prepare(False)
            if image is None:
                async with self._one_big:
                    header, image, seconds = await loop.run_in_executor(
                        self._decoders, self._prepare, data, where, True
                    )
        except ImageError as error:
            raise Refused(IMAGE_STATUS.get(error.code, 422), error.code, str(error)) from None
        assert image is not None
        return image, header.size, seconds

    def _prepare(self, data: bytes, where: str, big: bool) -> tuple[ImageHeader, np.ndarray | None, float]:
        """Header, input and seconds; the input is None where the picture is big and that is not yet allowed."""
        started = time.perf_counter()
        header = read_header_bytes(data, where, self.limits.max_megapixels)
        if not big and header.height * header.width > BIG_MEGAPIXELS * 1e6:
            return header, None, 0.0
        image = self.config.letterbox.apply(decode_image(data, where, self.limits.max_megapixels))
        return header, image, time.perf_counter() - started

    def _run(self, batch: list[_Prepared]) -> Sequence[Detections]:
        started = time.perf_counter()
        # greedy suppression never lets a worse box touch a better one: a higher threshold can be applied afterwards
        found = self.detector.detect_batch(
            [each.image for each in batch],
            Thresholds(min(each.score_threshold for each in batch), self._iou_threshold, MOST_DETECTIONS),
        )
        self.metrics.network.observe(time.perf_counter() - started)
        self.metrics.batch.observe(len(batch))
        return found


def _filter(detections: Detections, question: Question) -> Detections:
    keep = detections.scores >= question.score_threshold
    if question.labels is not None:
        keep &= np.isin(detections.labels, list(question.labels))
    return detections[keep][: question.max_detections]
