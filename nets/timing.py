"""Interleaved timing, so that other load affects all measurements equally; noisy measurements are reported."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

NOISY_SPREAD = 0.15  # noisy if the quartile distance exceeds this fraction of the median
NOISY_CONTROL = 1.25  # noisy if the median of the control computation exceeds this multiple of its minimum
CONTROL = "control"
_CONTROL_SIZE = 256  # of a matrix product, about a millisecond


@dataclass(frozen=True)
class Sample:
    """Times of one measurement in seconds, one per repetition."""

    seconds: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def minimum(self) -> float:
        return float(np.min(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """Distance of the quartiles, as a fraction of the median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def ratio(self, other: Sample) -> float:
        """Median over the repetitions of the ratio of this time to the other's."""
        return float(np.median(self.seconds / other.seconds))


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    repetitions: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Sample]:
    """Run all calls alternately, `repetitions` times, in reversed order every other time.

    Args:
        calls: functions to time, by name.
        repetitions: number of rounds, after `warm_up` rounds that are not measured.
        clock: the clock; `time.thread_time` counts only CPU time of this thread.
    """
    order = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for repetition in range(-warm_up, repetitions):
        for name in order if repetition % 2 == 0 else reversed(order):
            started = clock()
            calls[name]()
            if repetition >= 0:
                seconds[name].append(clock() - started)
    return {name: Sample(np.array(values)) for name, values in seconds.items()}


def control_call() -> Callable[[], Any]:
    """A fixed computation, whose times show the load of the machine."""
    matrix = np.random.default_rng(0).random((_CONTROL_SIZE, _CONTROL_SIZE), dtype=np.float32)
    return lambda: matrix @ matrix


def noise_reasons(control: Sample, samples: Mapping[str, Sample], shares_matter: bool = True) -> list[str]:
    """Reasons why the times are unreliable; empty if there are none.

    Args:
        control: times of `control_call` in the same run.
        samples: times of the measured functions.
        shares_matter: whether the clock also counts time in which other processes used the CPU.
    """
    reasons = []
    slowdown = control.median / control.minimum
    if slowdown > NOISY_CONTROL:
        reasons.append(f"a fixed computation took {slowdown:.2f} times its minimum: other programs are running")
    for name, sample in samples.items():
        if sample.spread > NOISY_SPREAD:
            reasons.append(f"{name}: the quartiles differ by {100 * sample.spread:.0f} % of the median")
    load, cores = _load(), os.cpu_count() or 1
    if shares_matter and load is not None and load > cores + 0.5:
        reasons.append(f"the load average is {load:.1f} on {cores} cores")
    return reasons


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


def energy_joules() -> float | None:
    """The energy counter of the processor (RAPL), joules; None if it cannot be read (only Linux)."""
    counters = sorted(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj"))
    try:
        return sum(int(file.read_text()) for file in counters) / 1e6 if counters else None
    except (OSError, ValueError):
        return None


def machine() -> dict[str, Any]:
    """Description of the machine and software versions, for published results."""
    info = {
        "processor": _processor() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": _load(),
    }
    for name in ("torch", "onnxruntime", "openvino"):
        try:
            info[name] = version(name)
        except PackageNotFoundError:
            info[name] = None
    return info


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
