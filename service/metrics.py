"""Counters and timings of the service, for Prometheus."""

from __future__ import annotations

from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

prometheus_client.disable_created_metrics()  # a second line with the creation time for each counter


class Metrics:
    """The counters, histograms and gauges of one service."""

    def __init__(self) -> None:
        own: dict[str, Any] = {"registry": CollectorRegistry()}
        self._registry = own["registry"]
        self.requests = Counter("detector_requests", "Answers by HTTP status.", ["status"], **own)
        self.refused = Counter("detector_refused", "Requests refused, by reason.", ["reason"], **own)
        self.objects = Counter("detector_objects", "Objects in answers.", **own)
        self.decoders_killed = Counter("detector_decoders_killed", "Decoders killed at a deadline.", **own)
        self.answer = Histogram("detector_answer_seconds", "From body to answer.", buckets=SECONDS, **own)
        self.decode = Histogram("detector_decode_seconds", "Decoding one image.", buckets=SECONDS, **own)
        self.queue = Histogram("detector_queue_seconds", "Waiting for a batch to start.", buckets=SECONDS, **own)
        self.network = Histogram("detector_network_seconds", "Running one batch.", buckets=SECONDS, **own)
        self.batch = Histogram("detector_batch_size", "Images in one batch.", buckets=BATCH_SIZES, **own)
        self.waiting = Gauge("detector_waiting", "Pending requests.", **own)
        self.decoders_busy = Gauge("detector_decoders_busy", "Decoders that are working.", **own)
        self.decoders_stuck = Gauge("detector_decoders_stuck", "Decoders that take unusually long.", **own)
        prometheus_client.ProcessCollector(registry=self._registry)  # process_resident_memory_bytes and others

    def text(self) -> bytes:
        """The response of /metrics."""
        return prometheus_client.generate_latest(self._registry)
