"""Number of CPUs available to this process, and spinning of idle threads. Needs no other package."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# Iterations that an idle thread of GNU OpenMP spins before it sleeps. With the default of about 30 billion, a single
# other busy process on the same cores almost stops training (docs/EXPERIMENTS.md, section 14).
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


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota of this process's cgroup and its parents; None if there is none.

    Args:
        root: the root of /proc and /sys, for tests.
    """
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


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


def cpu_share() -> float | None:
    """Fraction of the time in which the main thread was runnable that it had a CPU; None if unknown."""
    try:
        ran, waited = map(int, Path("/proc/self/schedstat").read_text().split()[:2])
    except (OSError, ValueError):
        return None
    return ran / (ran + waited) if ran + waited else None


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The folders of the process's CPU controllers, from its own cgroup up to the root, of version 2 and version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        mounts = ["sys/fs/cgroup"] if not controllers else ["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            # A container may have the path of its host, but only its own part of the tree: a folder may be missing.
            for depth in range(len(parts), -1, -1):
                yield root.joinpath(mount, *parts[:depth])


def _quota(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        return None if quota == "max" or int(period) <= 0 else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        micros = int((folder / "cpu.cfs_quota_us").read_text())
        period_micros = int((folder / "cpu.cfs_period_us").read_text())
        return None if micros <= 0 or period_micros <= 0 else micros / period_micros
    return None
