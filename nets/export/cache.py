"""Cache of automatically exported checkpoints: by default, every command uses the fastest runtime of this machine.

Loading an existing export needs no PyTorch: the key is the digest of the checkpoint file, and the configuration is
stored in the export.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.index_cache import cache_folder
from nets.export.form import METADATA_VERSION, Form
from nets.export.formats import FORMAT_OF_RUNTIME, FORMATS, are_installed, load_exported
from nets.runtime import Runtime
from nets.timing import interleave
from utils.cpus import num_threads
from utils.errors import UserError, reason_of, warn
from utils.files import file_digest, write_atomically

if TYPE_CHECKING:
    from nets.yolov4 import YOLOv4

VERSION = 1  # increase it if the exporters change their output
# An export must support all that a checkpoint does: any batch and size, and raw maps (heat maps, NMS variants).
CACHED_FORM = Form(uint8_input=True, decodes=False, dynamic=True)
CACHED_RUNTIMES = ("onnxruntime", "openvino")
TRIALS = 15
DEFAULT = "MOBILENET_YOLO_RUNTIME"  # environment variable: the default runtime


def default_runtime(path: Path) -> str:
    """The default runtime of a checkpoint on the CPU.

    Returns:
        The first that applies: $MOBILENET_YOLO_RUNTIME; the result of `choose_fastest`; `torch` if an export has
        failed before; the first of `CACHED_RUNTIMES` that is exported or can be exported; `torch`. If several can be
        exported, the first checkpoint on this machine is measured, and later ones use the order found then.
    """
    if named := os.environ.get(DEFAULT):
        return named
    if runtime := remembered(path):
        return runtime
    order = _measured_order()
    possible = [name for name in CACHED_RUNTIMES if _is_exportable(name)]
    if len(possible) > 1 and not {*possible} <= {*order}:
        return choose_fastest(path)
    ready = (
        name
        for name in order or CACHED_RUNTIMES
        if are_installed(_format_of(name).packages) and cached_path(path, name).is_file()
    )
    return min(possible, key=order.index) if len(possible) > 1 else next(iter(possible), next(ready, "torch"))


def _measured_order() -> list[str]:
    """The cached runtimes as `choose_fastest` ordered them on this machine with as many threads; empty before that."""
    for found in _read_memory().values():
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            times = found[_machine()]["milliseconds"]
            names = [*sorted(times, key=times.get), *found[_machine()]["failed"]]
            return [name for name in names if name in CACHED_RUNTIMES]
    return []


def load_cached(path: Path, runtime: str) -> Runtime:
    """Load the cached export of a checkpoint for a CPU runtime; export it first if it is missing or damaged.

    Raises:
        MissingExtra: if a package for export or inference is not installed.
        RunError: if it cannot be written, or its outputs differ from the checkpoint's.
    """
    target = cached_path(path, runtime)
    if target.is_file():
        with contextlib.suppress(UserError):
            return load_exported(target, runtime, "cpu")
        target.unlink(missing_ok=True)
    from nets.export.check import export_and_check  # these three import PyTorch
    from nets.export.parity import drawn_photos
    from nets.weights.checkpoint import load_model

    model = load_model(path)
    print(f"exporting {path.name} for {runtime}, once (kept in {target.parent})", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    _prune(target.parent)
    kind = FORMAT_OF_RUNTIME[runtime]
    export_and_check(model, target, kind, FORMATS[kind].closest(CACHED_FORM), drawn_photos(model.config, 2))
    return load_exported(target, runtime, "cpu")


def cached_path(path: Path, runtime: str) -> Path:
    """The cache path of the export of a checkpoint."""
    return _folder() / f"{_digest(path)}-{VERSION}.{METADATA_VERSION}{_format_of(runtime).suffix}"


def remembered(path: Path) -> str | None:
    """The result of `choose_fastest` for this file, machine and number of threads, if its export exists."""
    with contextlib.suppress(KeyError, TypeError, UserError):
        found = _read_memory()[_digest(path)][_machine()]
        runtime = found["runtime"]
        if runtime == "torch" or (runtime in FORMAT_OF_RUNTIME and (_folder() / found["file"]).is_file()):
            return runtime
    return None


def remember_failure(path: Path, runtime: str, reason: str) -> None:
    """Use PyTorch from now on instead of trying to export at every start (until a package changes)."""
    _remember(path, {"runtime": "torch", "file": "", "failed": {runtime: reason}})


def choose_fastest(path: Path) -> str:
    """Measure a checkpoint on every installed runtime, alternately, and store the fastest.

    Returns:
        Its name. A stored result for this machine and number of threads is used without a new measurement.
    """
    if runtime := remembered(path):
        return runtime
    from nets.torch_runtime import TorchRuntime  # imports PyTorch
    from nets.weights.checkpoint import load_model

    model = load_model(path)
    runtimes: dict[str, Runtime] = {"torch": TorchRuntime(model)}
    files = {"torch": ""}
    failed, is_passing = {}, False
    for name in filter(_is_exportable, CACHED_RUNTIMES):
        try:
            runtimes[name], files[name] = load_cached(path, name), cached_path(path, name).name
        except Exception as error:  # of the exporter or of the runtime, whose exceptions have no common base
            is_passing |= isinstance(error, OSError)  # a full disk may have room next time
            failed[name] = failure_reason(error)
            warn(path, f"cannot be exported for {name} ({failed[name]})", "it is left out of the measurement")
    milliseconds = {name: seconds * 1e3 for name, seconds in measure(model, runtimes).items()}
    best = min(milliseconds, key=lambda name: milliseconds[name])
    shown = ", ".join(f"{name} {time:.1f} ms" for name, time in milliseconds.items())
    print(f"fastest for {path.name} with {num_threads()} threads: {best} ({shown})", file=sys.stderr)
    if not is_passing:
        _remember(path, {"runtime": best, "file": files[best], "milliseconds": milliseconds, "failed": failed})
    return best


def failure_reason(error: Exception) -> str:
    """An exporter's or runtime's exception in at most 200 characters of one line."""
    return error.what[:200] if isinstance(error, UserError) else f"{type(error).__name__}: {reason_of(error)}"


def measure(model: YOLOv4, runtimes: dict[str, Runtime], trials: int = TRIALS) -> dict[str, float]:
    """Median seconds per image on each runtime. The runtimes alternate, so that other load affects all equally."""
    image = np.random.default_rng(0).integers(0, 256, (1, *model.config.input_size, 3), np.uint8)
    samples = interleave({name: partial(runtime.run, image) for name, runtime in runtimes.items()}, trials)
    return {name: sample.median for name, sample in samples.items()}


def _format_of(runtime: str) -> Any:
    return FORMATS[FORMAT_OF_RUNTIME[runtime]]


def _is_exportable(runtime: str) -> bool:
    """Whether the packages to export for this runtime and to run it are installed."""
    return are_installed((*_format_of(runtime).packages, *_format_of(runtime).export_packages))


def _remember(path: Path, found: dict[str, Any]) -> None:
    file, memory = _memory(), _read_memory()
    memory.setdefault(_digest(path), {})[_machine()] = found
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(memory, indent=1).encode())
    except (OSError, UserError) as error:  # the next start only takes some seconds longer
        warn(file, f"cannot be written: {error}")


def _read_memory() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        memory = json.loads(_memory().read_bytes())
        return memory if isinstance(memory, dict) else {}
    return {}


def _machine() -> str:
    parts = [platform.machine(), f"{os.cpu_count()} cores", f"{num_threads()} threads"]
    for package in ("torch", *CACHED_RUNTIMES):
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{package} {version(package)}")
    return ", ".join(parts)


def _memory() -> Path:
    return _folder() / "fastest.json"


def _folder() -> Path:
    return cache_folder() / "exports"


def _prune(folder: Path, keep: int = 32) -> None:
    """Delete the oldest exports, so that at most `keep` remain."""
    with contextlib.suppress(OSError):
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in [f for f in files if f.suffix != ".json"][keep:]:
            file.unlink()


def _digest(path: Path) -> str:
    try:
        return file_digest(path)[:24]
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", "give a checkpoint") from error
