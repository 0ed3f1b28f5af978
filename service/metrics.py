"""Counts and times in Prometheus's text format."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

# https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Counter:
    """A number that grows, for each value of its label.

    Args:
        name, help: as Prometheus shows them.
        label: the label's name; its values must be few.
    """

    def __init__(self, name: str, help: str, label: str = "") -> None:
        self.name, self.help, self.label = name, help, label
        self.values: defaultdict[str, float] = defaultdict(float)
        if not label:
            self.values[""] = 0.0

    def add(self, amount: float = 1.0, label: str = "") -> None:
        self.values[label] += amount

    def lines(self) -> list[str]:
        rows = [f"{self.name}{_labels(self.label, value)} {_number(n)}" for value, n in sorted(self.values.items())]
        return [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} counter", *rows]


class Histogram:
    """How often which amount was seen.

    Args:
        name, help: as Prometheus shows them.
        bounds: upper ends of the buckets, ascending.
    """

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        self.name, self.help, self.bounds = name, help, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.sum += amount

    def lines(self) -> list[str]:
        rows, total = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            rows.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*rows, f"{self.name}_sum {_number(self.sum)}", f"{self.name}_count {total}"]


class Gauge:
    """A number that is asked for when it is shown."""

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.name, self.help, self.read = name, help, read

    def lines(self) -> list[str]:
        return [
            f"# HELP {self.name} {self.help}",
            f"# TYPE {self.name} gauge",
            f"{self.name} {_number(self.read())}",
        ]


class Metrics:
    """Everything that the service counts."""

    def __init__(self) -> None:
        self.requests = Counter("detector_requests_total", "Answers by HTTP status.", "status")
        self.refused = Counter("detector_refused_total", "Requests refused, by reason.", "reason")
        self.objects = Counter("detector_objects_total", "Objects in answers.")
        self.answer = Histogram("detector_answer_seconds", "From the whole body to the answer.", SECONDS)
        self.decode = Histogram("detector_decode_seconds", "Decoding and resizing one picture.", SECONDS)
        self.queue = Histogram("detector_queue_seconds", "Waiting for a batch to begin.", SECONDS)
        self.network = Histogram("detector_network_seconds", "Running one batch.", SECONDS)
        self.batch = Histogram("detector_batch_size", "Pictures in one batch.", BATCH_SIZES)
        self.gauges = [Gauge("process_resident_memory_bytes", "Memory in use.", resident_bytes)]

    def text(self) -> str:
        """What /metrics answers."""
        counters = (self.requests, self.refused, self.objects)
        histograms = (self.answer, self.decode, self.queue, self.network, self.batch)
        kinds: tuple[Counter | Histogram | Gauge, ...] = (*counters, *histograms, *self.gauges)
        return "\n".join(line for kind in kinds for line in kind.lines()) + "\n"


def resident_bytes() -> float:
    """Memory of this process in RAM, bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return 0.0


def _labels(name: str, value: str) -> str:
    return f'{{{name}="{value}"}}' if name else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
