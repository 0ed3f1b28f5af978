"""Number of CPUs available to this process, and spinning of idle threads. Needs no other package."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from utils.cgroup import cpu_quota

# Iterations that an idle thread of GNU OpenMP spins before it sleeps. By default it spins for minutes if there are no
# more threads than cores: other busy processes on these cores then almost stop training (docs/EXPERIMENTS.md, 14).
SPIN_COUNT = 20_000
BLOCK_TIME = 1  # milliseconds; the same for LLVM's and Intel's OpenMP, whose default is 200
SPIN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")


def usable_cpus(root: Path = Path("/")) -> int:
    """Number of CPUs that this process may use: the minimum of its affinity and its cgroups' quota, rounded up.

    Docker's `--cpuset-cpus` and `taskset` set the affinity, Docker's `--cpus` and Kubernetes' limits the quota.
    `os.cpu_count()` ignores both.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OpenMP's environment variables before PyTorch loads it: threads that fit the quota, and little spinning.

    Variables set by the user, and settings equivalent to them, are not changed.
    """
    if sys.platform.startswith("linux") and not any(name in environment for name in THREAD_SETTINGS):
        if cpu_quota() is not None:  # OpenMP uses the affinity, but not the quota
            environment["OMP_NUM_THREADS"] = str(usable_cpus())
    if not any(name in environment for name in SPIN_SETTINGS):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
        environment["KMP_BLOCKTIME"] = str(BLOCK_TIME)


def num_threads() -> int:
    """Number of CPU threads of a network: PyTorch's setting if it is loaded, so that all runtimes use the same."""
    if (torch := sys.modules.get("torch")) is not None:
        return torch.get_num_threads()
    chosen = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(chosen) if chosen.isdigit() and int(chosen) else usable_cpus()


def set_num_threads(threads: int) -> None:
    """Set the number of threads for `num_threads`, and for PyTorch whether it is loaded now or later."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def may_spin(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether threads of other runtimes (ONNX Runtime) should spin while they wait, as set by OMP_WAIT_POLICY."""
    return environment.get("OMP_WAIT_POLICY", "").lower() == "active"


def cpu_share(root: Path = Path("/")) -> float | None:
    """Fraction of the time in which the main thread was runnable that it had a CPU; None if unknown."""
    try:
        ran, waited = map(int, (root / "proc/self/schedstat").read_text().split()[:2])
    except (OSError, ValueError):
        return None
    return ran / (ran + waited) if ran + waited else None
