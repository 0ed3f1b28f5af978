"""The detectors of one service. Each has its own batches; decoders and limits are shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.decoders import DECODERS, Decoders
from service.limits import Limits, PendingLimit, Refused
from service.metrics import Metrics
from service.pipeline import Pipeline
from utils.other_words import choice_hint


class Models:
    """The pipelines by the name of their model; the first is the default.

    Args:
        detectors: `nets.detector.Detector` by name, at least one.
        limits: of all together.
        iou_threshold: IoU threshold of NMS; None for that of each checkpoint.
    """

    def __init__(
        self, detectors: Mapping[str, Any], limits: Limits, metrics: Metrics, iou_threshold: float | None = None
    ) -> None:
        self.decoders, self.pending = Decoders(limits, metrics), PendingLimit(limits.max_waiting)
        self.pipelines = {
            name: Pipeline(detector, limits, metrics, self.decoders, self.pending, iou_threshold)
            for name, detector in detectors.items()
        }
        metrics.waiting.set_function(lambda: self.pending.taken)

    @property
    def default(self) -> str:
        return next(iter(self.pipelines))

    def named(self, name: str) -> Pipeline:
        """The pipeline of a model. Raises `Refused` if there is none of that name."""
        if name not in self.pipelines:
            todo = choice_hint(name, [*self.pipelines])
            raise Refused(422, "unknown_model", f"model: there is no model {name[:100]!r}; {todo}")
        return self.pipelines[name]

    @property
    def problem(self) -> str:
        """Why the service cannot answer; empty if it can."""
        if self.decoders.stuck >= DECODERS:
            return "all decoders are stuck"
        problems = ((name, pipeline.problem) for name, pipeline in self.pipelines.items())
        return next((f"{name}: {what}" if len(self.pipelines) > 1 else what for name, what in problems if what), "")

    async def start(self) -> None:
        """Start, and warm up the networks and one decoder."""
        await self.decoders.start()
        for pipeline in self.pipelines.values():
            await pipeline.start()

    async def close(self) -> None:
        """Stop; batches that have not started are cancelled."""
        for pipeline in self.pipelines.values():
            pipeline.batcher.close()
        await self.decoders.close()
