"""Open any model file for inference: a checkpoint or an exported file, on the runtime asked for."""

from __future__ import annotations

from pathlib import Path

from nets.export.cache import choose_fastest, export_cached, remembered
from nets.export.formats import RUNTIMES, file_kind, load_exported, runtimes_of
from nets.runtime import Runtime, TorchRuntime, resolve_device
from nets.weights.bundled import find_model
from nets.weights.checkpoint import load_model
from nets.weights.torch_file import refuse_no_model
from utils.errors import UserError


def load_runtime(path: str | Path, device: str = "auto", runtime: str = "auto") -> Runtime:
    """Make a model file ready to run.

    Args:
        path: a checkpoint, an exported file, or a folder: of a run (its best.pth), or of one OpenVINO file.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`...
        runtime: `auto`, or a name of `RUNTIMES`. A checkpoint is exported for another runtime than torch, once, into
            the cache folder. `fastest` measures those that are installed, once, and remembers; from then on `auto`
            takes what was found.

    Raises:
        UserError: for a file that is no model, or that the named runtime does not run.
        MissingExtra: if what the file needs is not installed.
    """
    if runtime not in RUNTIMES:
        raise UserError("--runtime", f"{runtime!r} is not known", f"choose from {', '.join(RUNTIMES)}")
    path = find_model(path)
    kind = file_kind(path)
    device = resolve_device(device)
    if kind == "checkpoint":
        return _load_checkpoint(path, device, runtime)
    refuse_no_model(path)
    allowed = runtimes_of(kind)
    if runtime not in ("auto", "fastest", *allowed):
        raise UserError("--runtime", f"{runtime} does not run {path.name}", f"choose from {', '.join(allowed)}")
    return load_exported(path, runtime if runtime in allowed else allowed[0], device)


def _load_checkpoint(path: Path, device: str, runtime: str) -> Runtime:
    if runtime == "torch" or not device.startswith("cpu"):
        return TorchRuntime(load_model(path), device)
    if runtime == "fastest":
        runtime = choose_fastest(path)
    elif runtime == "auto":
        runtime = remembered(path) or "torch"
    if runtime == "torch":
        return TorchRuntime(load_model(path))
    return load_exported(export_cached(path, runtime), runtime, device)
