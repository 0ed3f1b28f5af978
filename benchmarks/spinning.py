"""Speed of a training step beside other busy processes, by the spin count of OpenMP's threads."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.config import option, parse_options
from utils.cpus import SPIN_SETTINGS, usable_cpus
from utils.errors import run_command

SETTINGS: dict[str, dict[str, str]] = {
    "GNU's default": {},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (0, 1000, 20_000, 200_000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "while True: pass"
# a training step of the demo preset's network; it prints images per second of wall time
STEP = """
import sys, time, torch
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4
torch.manual_seed(0)
model = YOLOv4(ModelConfig(("a", "b"), "mobilenet_v3_small", neck_width=0.25, input_size=(256, 256))).train()
model.to(memory_format=torch.channels_last)
images = torch.randint(0, 255, (8, 3, 256, 256), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
targets = {"boxes": torch.tensor([[20.0, 20, 90, 120]] * 8), "labels": torch.zeros(8, dtype=torch.long),
           "image_index": torch.arange(8)}
loss, started, steps = YOLOLoss(model.config), 0.0, 0
while not started or time.perf_counter() - started < float(sys.argv[1]):
    sum(loss(model(images), targets).values()).backward()
    model.zero_grad()
    steps += 1
    if not started:
        started, steps = time.perf_counter(), 0
print(8 * steps / (time.perf_counter() - started))
"""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    seconds: float = option(6.0, "length of one measurement", above=0)
    rounds: int = option(3, "measurements of each setting, interleaved; the median is shown", low=1)
    busy: int = option(2, "other processes that keep one core each busy", low=0)


def main(argv: list[str] | None = None) -> int:
    """Print a table: images per second of each setting, alone and beside busy processes."""
    options = parse_options(Options, argv, description=__doc__ or "")
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for busy in (0, options.busy):
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
            try:
                for name in SETTINGS:
                    speeds.setdefault((name, busy), []).append(measure(SETTINGS[name], options.seconds))
            finally:
                for other in others:
                    other.kill()
    print(
        f"{usable_cpus()} CPUs, load {os.getloadavg()[0]:.1f} at the end, {options.rounds} rounds, medians of images/s"
    )
    print(f"{'setting':26}{'alone':>8}{f'beside {options.busy}':>12}")
    for name in SETTINGS:
        alone, beside = (statistics.median(speeds[name, busy]) for busy in (0, options.busy))
        print(f"{name:26}{alone:8.1f}{beside:12.1f}")
    return 0


def measure(settings: dict[str, str], seconds: float) -> float:
    """Images per second of a new process with these environment variables."""
    environment = {k: v for k, v in os.environ.items() if k not in (*SPIN_SETTINGS, "OMP_NUM_THREADS")} | settings
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(seconds)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


if __name__ == "__main__":
    run_command(main)
