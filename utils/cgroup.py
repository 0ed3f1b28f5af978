"""Limits of the process's control groups: CPU quota and memory, of cgroup version 1 and 2 (Docker, Kubernetes)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota of this process's cgroup and its parents; None if there is none.

    Args:
        root: the root of /proc and /sys, for tests.
    """
    quotas = [quota for folder in _folders(root, "cpu") if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process's cgroup and those above it leave free; None without a limit.

    The page cache of files that were not used lately counts as free, as the kernel drops it when memory runs short.
    """
    limits = [free for folder in _folders(root, "memory") if (free := _free(folder)) is not None]
    return min(limits, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of a controller, from the process's own cgroup up to the root, of version 2 and version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and controller not in names:
            continue
        mounts = [f"sys/fs/cgroup/{name}" for name in dict.fromkeys((controller, controllers)) if controllers]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts or ["sys/fs/cgroup"]:
            # a container may see its host's path but only its own part of the tree: a folder may be missing
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


def _free(folder: Path) -> int | None:
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # also of "max"
            free = int((folder / limit).read_text()) - int((folder / used).read_text())
            with contextlib.suppress(OSError, ValueError):
                stat = dict(line.split()[:2] for line in (folder / "memory.stat").read_text().splitlines())
                free += int(stat.get(cached, 0))
            return max(free, 0)
    return None
