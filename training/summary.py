"""Text printed at the start and at the end of a run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np

from data.index import DatasetIndex
from nets.model_config import ModelConfig
from nets.summary import count_layers, sum_stages

CLASSES_SHOWN = 12


def class_counts(index: DatasetIndex) -> str:
    """`cat 120, dog 88`: number of boxes of each class, the most frequent first, and classes without boxes."""
    counts = np.bincount(index.labels, minlength=len(index.class_names))
    order = np.argsort(-counts, kind="stable")
    shown = [f"{index.class_names[i]} {counts[i]}" for i in order[:CLASSES_SHOWN]]
    left = len(order) - len(shown)
    missing = [index.class_names[i] for i in order if not counts[i]]
    text = ", ".join(shown) + (f", {left} more" if left > 0 else "")
    return text + (f"; without a box: {', '.join(missing[:5])}" if missing and left > 0 else "")


def network_size(config: ModelConfig) -> str:
    """`3.46 M parameters, 0.52 G multiply-adds at 320 x 320`."""
    total = sum_stages(count_layers(config))["total"]
    height, width = config.input_size
    adds = total["multiply_adds"] / 1e9
    return f"{total['parameters'] / 1e6:.2f} M parameters, {adds:.2f} G multiply-adds at {height} x {width}"


def memory_used() -> str:
    """Resident memory of this process; empty if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return ""
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB of memory"


def next_commands(folder: Path, data: str | None) -> str:
    """Text with the files of the run, and the next three commands to copy."""
    best = shlex.quote(str(folder / "best.pth"))
    scored = f" --data {shlex.quote(data)}" if data else " --data DATA"
    return "\n".join(
        [
            f"in {folder}: best.pth, last.pth, metrics.csv, curves.png, val_detections.jpg, config.json",
            "next:",
            f"  python predict.py --checkpoint {best} photo.jpg",
            f"  python eval.py --checkpoint {best}{scored} --report report.html",
            f"  python export.py --checkpoint {best} --format onnx",
        ]
    )
