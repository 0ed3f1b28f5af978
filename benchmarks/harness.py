"""Shared code of the benchmarks: interleaved runs, CPU time and memory of commands, ratios, results as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nets.timing import Sample, interleave, machine
from utils.errors import RunError, UserError
from utils.files import read_file, write_file
from utils.text import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nets.model_config import ModelConfig
    from nets.yolov4 import YOLOv4

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parent.parent
MAX_BYTES = 10_000_000
SLOWER = 1.15  # smaller increases of a ratio are treated as noise


@dataclass(frozen=True)
class Cost:
    """Resources used by a command.

    Args:
        cpu: CPU seconds of all threads and of child processes.
        wall: wall-clock seconds.
        memory: peak resident memory in bytes.
    """

    cpu: float
    wall: float
    memory: int


# A child process inherits the peak memory of its parent (ru_maxrss), so a small launcher starts the command.
LAUNCHER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.call(sys.argv[2:], stderr=subprocess.STDOUT)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
wall = time.perf_counter() - started
json.dump([code, usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss], open(sys.argv[1], "w"))
"""


def command_cost(arguments: Sequence[str], cwd: Path = REPOSITORY, **environment: str) -> Cost:
    """Run a command and measure its cost. Raises RunError with the command's last line of output if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "cost.json"
        launcher = [sys.executable, "-S", "-c", LAUNCHER, str(result), *arguments]
        done = subprocess.run(launcher, cwd=cwd, env={**os.environ, **environment}, capture_output=True, check=False)
        code, cpu, wall, memory = json.loads(result.read_bytes()) if result.exists() else (1, 0.0, 0.0, 0)
    if code:
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise RunError(" ".join(arguments[:3]), f"exit code {code}: {lines[-1][:200]}", "see above")
    return Cost(cpu, wall, memory * (1 if sys.platform == "darwin" else 1024))


def cpu_of_tree(pid: int) -> float:
    """CPU seconds used so far by a running process and its descendants (Linux only)."""
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_of_tree(child) for child in children_of(pid))


def children_of(pid: int) -> list[int]:
    """The running child processes of a process (Linux only)."""
    return [int(child) for task in Path(f"/proc/{pid}").glob("task/*/children") for child in task.read_text().split()]


def cpu_by_thread(pid: int) -> dict[int, float]:
    """CPU seconds of each thread of a process (Linux only). The main thread has the process ID as its key."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}


def cpu_in_turns(calls: Mapping[str, Callable[[], Any]], repetitions: int, warm_up: int = 1) -> dict[str, Sample]:
    """CPU seconds of this process for each call; the calls are interleaved."""
    return interleave(calls, repetitions, warm_up, time.process_time)


def in_turns(measurements: Mapping[str, Callable[[], T]], repetitions: int, warm_up: int = 1) -> dict[str, list[T]]:
    """Results of interleaved functions that measure by themselves; the first `warm_up` rounds are not counted."""
    results: dict[str, list[T]] = {name: [] for name in measurements}
    for repetition in range(-warm_up, repetitions):
        for name, measure in measurements.items():
            result = measure()
            if repetition >= 0:
                results[name].append(result)
    return results


def mean_cost(call: Callable[[], Any], seconds: float) -> Cost:
    """Mean CPU and wall-clock seconds of a call that is repeated for `seconds`; no memory."""
    call()
    started, busy, count = time.perf_counter(), time.process_time(), 0
    while not count or time.perf_counter() - started < seconds:
        call()
        count += 1
    return Cost((time.process_time() - busy) / count, (time.perf_counter() - started) / count, 0)


def trained_scores(run_dir: Path, options: Sequence[str]) -> tuple[float, float]:
    """VOC10 mAP50 and COCO AP of a run of train.py. A run that has a best checkpoint is not repeated."""
    from nets.weights.checkpoint import load_checkpoint  # imported here: most measurements need no PyTorch

    if not (run_dir / "best.pth").exists():
        command_cost([sys.executable, str(REPOSITORY / "train.py"), "--run-dir", str(run_dir), *options], Path())
    metrics = load_checkpoint(run_dir / "best.pth").metrics
    return metrics["voc10_mAP50"], metrics["coco_AP"]


def median_cost(costs: Sequence[Cost]) -> Cost:
    """Median of each component."""
    cpu, wall, memory = (
        float(np.median([getattr(cost, name) for cost in costs])) for name in ("cpu", "wall", "memory")
    )
    return Cost(cpu, wall, int(memory))


@dataclass(frozen=True)
class Row:
    """One line of a table: the same work done by a baseline and by this project, in one run.

    Args:
        work: description of the work.
        baseline, ours: the two figures.
        unit: unit of both figures.
        what: description of the baseline.
        goal: largest allowed ratio `ours / baseline`; None for no limit.
    """

    work: str
    baseline: float
    ours: float
    unit: str
    what: str
    goal: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.baseline


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    cells = []
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:.2f}{'' if row.ratio <= row.goal else ' (not met)'}"
        baseline = f"{row.baseline:.3g} {row.unit} ({row.what})"
        cells.append((row.work, baseline, f"{row.ours:.3g} {row.unit}", f"{row.ratio:.2f}", goal))
    return markdown_table(("work", "baseline", "ours", "ratio", "goal"), cells)


def save(rows: Sequence[Row], path: Path) -> None:
    """Save the figures with the machine and commit they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "commit": commit(), "rows": [asdict(row) for row in rows]}
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def slower_than_before(rows: Sequence[Row], path: Path) -> list[str]:
    """Rows whose ratio is more than 15 % above the figures stored for the same processor, as text."""
    if not path.is_file():
        return []
    before = json.loads(read_file(path, MAX_BYTES))
    if before["machine"]["processor"] != machine()["processor"]:
        return []
    ratios = {row["work"]: row["ours"] / row["baseline"] for row in before["rows"]}
    return [
        f"{row.work}: {row.ratio:.2f} of its baseline, {ratios[row.work]:.2f} at {before['commit']}"
        for row in rows
        if row.work in ratios and row.ratio > SLOWER * ratios[row.work]
    ]


def commit() -> str:
    """The checked-out commit, with a `+` if there are uncommitted changes. Empty outside a git repository."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=8"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def save_plot(figure: Figure, flag: str, path: Path) -> None:
    """Write a plot to the file of an option. Raises UserError if its suffix is not that of a format for plots."""
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise UserError(flag, str(error)[:100], "use the suffix .png, .svg or .pdf") from error


def random_network(config: ModelConfig, spread: float = 0.1) -> YOLOv4:
    """A network whose outputs depend on the image, with high scores everywhere: the worst case for NMS.

    `spread` is the standard deviation of the weights of the last layers.
    """
    import torch  # imported here: most measurements need no PyTorch

    from nets.yolov4 import YOLOv4

    torch.manual_seed(0)
    model = YOLOv4(config).eval()
    for level in model.head.levels:
        torch.nn.init.normal_(level[-1].weight, 0.0, spread)
        torch.nn.init.zeros_(level[-1].bias)
    return model
