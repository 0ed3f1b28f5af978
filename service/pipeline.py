"""Detect objects in encoded images: parallel decoding, batched inference, filtering by request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imaging.detections import Detections
from nets.model_config import ModelConfig
from nets.runtime import GPU_BATCH
from service.batcher import Batcher
from service.decoders import Decoders
from service.limits import Limits, PendingLimit, Refused, deadline
from service.metrics import Metrics
from utils.errors import warn
from utils.thresholds import Thresholds

LOWEST_SCORE = 0.01  # lowest score threshold of a request: lower scores are noise and slow
MOST_DETECTIONS = 1000  # largest max_detections of a request
STUCK_SECONDS = 60.0  # a batch that runs longer counts as stuck


@dataclass(frozen=True)
class DetectParams:
    """The parameters of a request.

    Args:
        score_threshold: minimum score, `LOWEST_SCORE` to 1.
        max_detections: maximum number of objects, up to `MOST_DETECTIONS`.
        labels: class indices to return; None for all.
    """

    score_threshold: float
    max_detections: int
    labels: frozenset[int] | None = None


@dataclass(frozen=True)
class DetectResult:
    """The answer to a request.

    Args:
        detections: in image pixels.
        size: (height, width) of the upright image.
        timings: milliseconds by name.
        batch: number of images in its batch.
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
    """A detector for concurrent requests.

    The decoder processes also resize the images to the network's input. The network's thread therefore only runs the
    network.

    Args:
        detector: a `nets.detector.Detector`.
        limits: limits of every request.
        metrics: the metrics to update.
        decoders: decoder processes, which pipelines may share.
        pending: limit of pending requests, which pipelines may share.
        iou_threshold: IoU threshold of NMS; None for the checkpoint's.
    """

    def __init__(
        self,
        detector: Any,
        limits: Limits,
        metrics: Metrics,
        decoders: Decoders,
        pending: PendingLimit,
        iou_threshold: float | None = None,
    ) -> None:
        self.detector, self.limits, self.metrics, self._decoders = detector, limits, metrics, decoders
        self._iou_threshold = iou_threshold
        self.batcher = Batcher(self._run, limits.batch_size or GPU_BATCH, limits.batch_wait / 1000, pending)

    @property
    def config(self) -> ModelConfig:
        return self.detector.config

    @property
    def problem(self) -> str:
        """Reason why the service cannot answer; empty if it can."""
        if not self.batcher.alive:
            return "not running"
        if self.batcher.busy > STUCK_SECONDS:
            return f"the network has been busy for {self.batcher.busy:.0f} s"
        return ""

    async def start(self) -> None:
        """Start, and warm up the network."""
        height, width = self.config.input_size
        grey = np.full((height, width, 3), 127, np.uint8)
        await self.batcher.start(lambda: self._run([_Prepared(grey, 1.0)]))

    async def find(self, data: bytes, where: str, params: DetectParams) -> DetectResult:
        """Detect the objects of one image.

        Args:
            data: the file's content.
            where: name of the image in errors.
            params: thresholds and classes.

        Raises:
            Refused: for an invalid image, a full queue, or a network that fails or takes too long.
        """
        started = time.perf_counter()
        try:
            async with deadline(self.limits.answer_timeout):
                with self.batcher.place():
                    decoded = await self._decoders.decode(data, where, self.config.letterbox)
                    answer = await self.batcher.submit(_Prepared(decoded.image, params.score_threshold))
        except TimeoutError:
            what = f"service: no answer within {self.limits.answer_timeout:g} s; try again later"
            raise Refused(503, "too_slow", what, retry_after=5) from None
        except (Refused, asyncio.CancelledError):
            raise
        except Exception as error:  # an error of the network, not of the client
            warn("network", f"{type(error).__name__}: {str(error)[:200]}")
            raise Refused(500, "network_failed", "service: the network failed on this batch; see its log") from error
        found = self.config.letterbox.boxes_to_image(answer.value.boxes, *decoded.size)
        detections = _filter(Detections(found, answer.value.scores, answer.value.labels), params)
        total = time.perf_counter() - started
        self.metrics.decode.observe(decoded.seconds)
        self.metrics.queue.observe(answer.waited)
        self.metrics.answer.observe(total)
        self.metrics.objects.inc(len(detections))
        seconds = {"decode": decoded.seconds, "queue": answer.waited, "network": answer.ran, "total": total}
        return DetectResult(
            detections, decoded.size, {name: 1000 * value for name, value in seconds.items()}, answer.batch
        )

    def _run(self, batch: list[_Prepared]) -> Sequence[Detections]:
        started = time.perf_counter()
        # In greedy NMS, a box never affects a better one, so a higher score threshold can be applied afterwards.
        found = self.detector.detect_batch(
            [each.image for each in batch],
            Thresholds(min(each.score_threshold for each in batch), self._iou_threshold, MOST_DETECTIONS),
        )
        self.metrics.network.observe(time.perf_counter() - started)
        self.metrics.batch.observe(len(batch))
        return found


def _filter(detections: Detections, params: DetectParams) -> Detections:
    keep = detections.scores >= params.score_threshold
    if params.labels is not None:
        keep &= np.isin(detections.labels, list(params.labels))
    return detections[np.flatnonzero(keep)[: params.max_detections]]
