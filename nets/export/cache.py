"""Checkpoints exported behind the scenes: once for each file, for whoever wants it run quicker than by PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.index_cache import cache_folder
from nets.export.check import export_and_check
from nets.export.formats import FORMAT_OF_RUNTIME, FORMATS, are_installed, load_exported
from nets.export.graph import METADATA_VERSION, Form
from nets.export.parity import drawn_photos
from nets.runtime import Runtime, TorchRuntime
from nets.weights.checkpoint import load_model, write_atomically
from nets.yolov4 import YOLOv4
from utils.download import file_digest
from utils.errors import UserError, warn
from utils.timing import interleave

VERSION = 1  # raise it when an export of the same checkpoint would differ
# what a checkpoint can do, an export of it must: any batch, any size, raw maps for heat maps and other suppressions
CACHED_FORM = Form(uint8_input=True, decodes=False, dynamic=True)
CACHED_RUNTIMES = ("onnxruntime", "openvino")
PREFERRED = ("openvino", "onnxruntime")  # the usually quicker one first (docs/DEPLOYMENT.md)
TRIALS = 15


def export_cached(path: Path, runtime: str) -> Path:
    """The export of a checkpoint for a runtime, made if it is not there; its outputs are compared with the original's.

    Raises:
        MissingExtra: if what writes or runs it is not installed.
        RunError: if it cannot be written, or does not answer as the checkpoint does.
    """
    target = _target(path, runtime)
    if target.is_file():
        return target
    print(f"exporting {path.name} for {runtime}, once (kept in {target.parent})", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    _prune(target.parent)
    model = load_model(path)
    export_and_check(model, target, FORMAT_OF_RUNTIME[runtime], CACHED_FORM, drawn_photos(model.config, 2))
    return target


def _target(path: Path, runtime: str) -> Path:
    return _folder() / f"{_digest(path)}-{VERSION}.{METADATA_VERSION}{FORMATS[FORMAT_OF_RUNTIME[runtime]].suffix}"


def remembered(path: Path) -> str | None:
    """The runtime that `choose_fastest` found for this file, machine and number of threads, if its export is there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
        found = json.loads(_memory().read_bytes())[_digest(path)][_machine()]
        runtime = found["runtime"]
        if runtime == "torch" or (runtime in FORMAT_OF_RUNTIME and (_folder() / found["file"]).is_file()):
            return runtime
    return None


def quickest(path: Path, exports: bool = False) -> str:
    """What to run a checkpoint on, on this CPU, where the user has named nothing.

    Args:
        path: the checkpoint.
        exports: take what would have to be exported first: worth its seconds where many pictures come.

    Returns:
        What `choose_fastest` found; else what it has been exported for before; else what it could be exported for, the
        usually quicker one first; else `torch`.
    """
    if runtime := remembered(path):
        return runtime
    runtimes = [name for name in PREFERRED if are_installed((name,))]
    ready = [name for name in runtimes if _target(path, name).is_file()]
    makeable = [name for name in runtimes if exports and _are_makeable(name)]
    return next(iter(ready + makeable), "torch")


def _are_makeable(runtime: str) -> bool:
    """Whether a checkpoint can be exported for this runtime and run on it here."""
    form = FORMATS[FORMAT_OF_RUNTIME[runtime]]
    return are_installed((*form.packages, *form.export_packages))


def choose_fastest(path: Path) -> str:
    """Measure a checkpoint on every runtime that is installed, in turns, and remember the quickest.

    Returns:
        Its name. What was measured before, on this machine with as many threads, is not measured again.
    """
    if runtime := remembered(path):
        return runtime
    model = load_model(path)
    runtimes: dict[str, Runtime] = {"torch": TorchRuntime(model)}
    files = {"torch": ""}
    for name in CACHED_RUNTIMES:
        if _are_makeable(name):
            file = export_cached(path, name)
            runtimes[name], files[name] = load_exported(file, name, "cpu"), file.name
    times = measure(model, runtimes)
    best = min(times, key=lambda name: times[name])
    shown = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.items())
    print(f"fastest for {path.name} with {torch.get_num_threads()} threads: {best} ({shown})", file=sys.stderr)
    _remember(path, {"runtime": best, "file": files[best], "milliseconds": {n: s * 1e3 for n, s in times.items()}})
    return best


def measure(model: YOLOv4, runtimes: dict[str, Runtime], trials: int = TRIALS) -> dict[str, float]:
    """Median seconds of one image by each runtime; they take turns, so that what else runs here hits all alike."""
    image = np.random.default_rng(0).integers(0, 256, (1, *model.config.input_size, 3), np.uint8)
    samples = interleave({name: partial(runtime.run, image) for name, runtime in runtimes.items()}, trials)
    return {name: sample.median for name, sample in samples.items()}


def _remember(path: Path, found: dict[str, Any]) -> None:
    file = _memory()
    memory: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        memory = json.loads(file.read_bytes())
    memory.setdefault(_digest(path), {})[_machine()] = found
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(memory, indent=1).encode())
    except (OSError, UserError) as error:  # costs the next start some seconds, no more
        warn(file, f"cannot be written: {error}")


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _memory() -> Path:
    return _folder() / "fastest.json"


def _folder() -> Path:
    return cache_folder() / "exports"


def _prune(folder: Path, keep: int = 32) -> None:
    """Leave room for others: exports that have not been made lately go."""
    with contextlib.suppress(OSError):
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in [f for f in files if f.suffix != ".json"][keep:]:
            file.unlink()


def _digest(path: Path) -> str:
    try:
        return file_digest(path)[:24]
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", "give a checkpoint") from error
