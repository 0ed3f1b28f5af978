"""Load any model file for inference: a checkpoint or an exported file, on the requested runtime."""

from __future__ import annotations

from pathlib import Path

from nets.export.cache import choose_fastest, default_runtime, failure_reason, load_cached, remember_failure
from nets.export.formats import RUNTIMES, file_kind, load_exported, runtimes_of
from nets.runtime import Runtime, resolve_device
from nets.weights.bundled import find_model
from nets.weights.model_file import check_exported_file, open_model_file
from utils.errors import UserError, warn


def load_runtime(path: str | Path, device: str = "auto", runtime: str = "auto") -> Runtime:
    """Load a model file for inference.

    Args:
        path: a checkpoint, an exported file, or a folder: a run (its best.pth), or a folder with one exported file.
        device: `auto` (CUDA if available), `cpu`, `cuda`, `cuda:1`...
        runtime: `auto`, `fastest`, or a name of `RUNTIMES`. For a runtime other than torch, a checkpoint is exported
            once into the cache folder. On the CPU, `auto` uses the installed runtime that is usually the fastest
            (`default_runtime`), and PyTorch if the export fails. `fastest` measures the runtimes once; later, `auto`
            uses the result.

    Raises:
        UserError: for a file that is not a model, or that the runtime cannot run.
        MissingExtra: if a package for the file is not installed.
    """
    if runtime not in RUNTIMES:
        raise UserError("--runtime", f"{runtime!r} is not known", f"choose from {', '.join(RUNTIMES)}")
    path = find_model(path)
    kind = file_kind(path)
    device = resolve_device(device)
    if kind == "checkpoint":
        return _load_checkpoint(path, device, runtime)
    check_exported_file(path)
    allowed = runtimes_of(kind)
    if runtime not in ("auto", "fastest", *allowed):
        raise UserError("--runtime", f"{runtime} does not run {path.name}", f"choose from {', '.join(allowed)}")
    return load_exported(path, runtime if runtime in allowed else allowed[0], device)


def _load_checkpoint(path: Path, device: str, runtime: str) -> Runtime:
    open_model_file(path).close()  # rejects a missing or irregular file before its digest is computed
    if not device.startswith("cpu"):
        return _load_network(path, device)
    if runtime == "fastest":
        runtime = choose_fastest(path)
    elif runtime == "auto":
        return _load_default(path)
    return _load_network(path, device) if runtime == "torch" else load_cached(path, runtime)


def _load_default(path: Path) -> Runtime:
    """Load a checkpoint on the default runtime; on PyTorch, with a warning, if the export fails."""
    runtime = default_runtime(path)
    if runtime == "torch":
        return _load_network(path, "cpu")
    try:
        return load_cached(path, runtime)
    except Exception as error:  # exceptions of exporters and runtimes have no common base class
        network = _load_network(path, "cpu")  # raises if the checkpoint itself is invalid
        reason = failure_reason(error)
        warn(path, f"cannot be exported for {runtime} ({reason})", "PyTorch is used instead, which is slower")
        if not isinstance(error, OSError):  # after a full disk, the export is tried again next time
            remember_failure(path, runtime, reason)
        return network


def _load_network(path: Path, device: str) -> Runtime:
    from nets.torch_runtime import TorchRuntime  # imported here: a cached export runs without PyTorch
    from nets.weights.checkpoint import load_model

    return TorchRuntime(load_model(path), device)
