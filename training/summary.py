"""Text printed at the start and at the end of a run."""

from __future__ import annotations

import os
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch

from data.index import DatasetIndex
from nets.model_config import ModelConfig
from nets.summary import count_layers, sum_stages
from nets.weights import NONE
from utils.text import quoted

CLASSES_SHOWN = 12
# For each output element of a convolution in float32, the backward pass keeps three tensors (11 to 12 bytes, counted
# with torch.autograd.graph.saved_tensors_hooks) and computes a gradient.
ACTIVATION_BYTES = 16
PARAMETER_BYTES = 20  # weight, gradient, Adam's two moments and the moving average


def class_counts(index: DatasetIndex) -> str:
    """`cat 120, dog 88`: number of boxes of each class, the most frequent first, and classes without boxes."""
    counts = np.bincount(index.labels, minlength=len(index.class_names))
    order = np.argsort(-counts, kind="stable")
    shown = [f"{index.class_names[i]} {counts[i]}" for i in order[:CLASSES_SHOWN]]
    left = len(order) - len(shown)
    missing = [index.class_names[i] for i in order if not counts[i]]
    text = ", ".join(shown) + (f", {left} more" if left > 0 else "")
    return text + (f"; without a box: {', '.join(missing[:5])}" if missing and left > 0 else "")


def training_bytes(config: ModelConfig, batch: int, amp: str) -> int:
    """Estimated memory of a training step, without the libraries' own."""
    layers = count_layers(config)
    each = ACTIVATION_BYTES // (1 if amp == NONE else 2)
    return sum(batch * each * layer.activations + PARAMETER_BYTES * layer.parameters for layer in layers)


def network_size(config: ModelConfig) -> str:
    """`3.46 M parameters, 0.52 G multiply-adds at 320 x 320`."""
    total = sum_stages(count_layers(config))["total"]
    height, width = config.input_size
    adds = total["multiply_adds"] / 1e9
    return f"{total['parameters'] / 1e6:.2f} M parameters, {adds:.2f} G multiply-adds at {height} x {width}"


def memory_used() -> str:
    """Memory of this process and its loader workers, and of the GPU; empty if the system does not report it."""
    used = [resident_bytes(each) for each in (os.getpid(), *(child.pid for child in active_children()))]
    parts = [f"{sum(used) / 1e9:.1f} GB of memory"] if any(used) else []
    if torch.cuda.is_initialized():
        parts.append(f"{torch.cuda.max_memory_reserved() / 1e9:.1f} GB of GPU memory")
    return ", ".join(parts)


def resident_bytes(process: int | None) -> int:
    """Resident memory of a process, shared pages divided among their users; 0 if the system does not report it."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, ValueError, StopIteration):
        return 0


def next_commands(folder: Path, data: str | None) -> str:
    """Text with the files of the run, and the next three commands to copy."""
    best = quoted(folder / "best.pth")
    scored = f" --data {quoted(data)}" if data else " --data DATA"
    return "\n".join(
        [
            f"in {folder}: best.pth, last.pth, metrics.csv, curves.png, val_detections.jpg, config.json",
            "next:",
            f"  python predict.py --checkpoint {best} photo.jpg",
            f"  python eval.py --checkpoint {best}{scored} --report report.html",
            f"  python export.py --checkpoint {best} --format onnx",
        ]
    )
