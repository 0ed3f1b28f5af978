"""Export a network and compare the outputs of the file on images. A file that differs too much is removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nets.export.form import Form
from nets.export.formats import FORMATS, file_kind, load_exported, runtimes_of
from nets.export.parity import TOLERANCES, Parity, Tolerance, compare
from nets.runtime import Runtime
from nets.torch_runtime import TorchRuntime
from nets.yolov4 import YOLOv4
from utils.errors import RunError


def export_and_check(
    model: YOLOv4,
    path: Path,
    kind: str,
    form: Form,
    photos: Sequence[np.ndarray],
    info: dict[str, Any] | None = None,
) -> Parity | None:
    """Write a file of the format `kind` (see `Format.exporter`) and compare it with the network on photographs.

    Returns:
        The comparison, or None for a format that cannot run here.

    Raises:
        RunError: if the outputs differ by more than `TOLERANCES`; the file is then removed.
    """
    exporter = FORMATS[kind]
    exporter.export(model, path, form, info)
    return check_export(TorchRuntime(model), path, form, photos) if exporter.runs else None


def check_export(network: Runtime, path: Path, form: Form, photos: Sequence[np.ndarray]) -> Parity:
    """Compare a new file with the network. If it differs too much, it is removed. Raises RunError."""
    try:
        exported = load_exported(path, runtimes_of(file_kind(path))[0], "cpu")
        tolerance = _tolerance(exported, form)
        parity = compare(network, exported, photos, form.nms, tolerance.margin)
        if form.dynamic and parity.fits(tolerance):
            parity = _compare_other_size(network, exported, photos, parity, form, tolerance)
        if not parity.fits(tolerance):
            what = f"the outputs of the export differ from those of the network: {parity}"
            raise RunError(path, what, f"it was removed; allowed for {form.precision}: {tolerance}")
    except BaseException:
        remove_export(path)
        raise
    return parity


def _tolerance(exported: Runtime, form: Form) -> Tolerance:
    """The tolerance for the precision of the computation: OpenVINO runs fp16 files in bf16 on CPUs that support it."""
    is_bf16 = exported.name == "openvino" and form.precision == "fp16"
    return TOLERANCES["bf16" if is_bf16 else form.precision]


def _compare_other_size(
    network: Runtime,
    exported: Runtime,
    photos: Sequence[np.ndarray],
    parity: Parity,
    form: Form,
    tolerance: Tolerance,
) -> Parity:
    """Compare a file for any size at a second size, too; returns the worse of the two comparisons."""
    config = network.config
    other = config.replace(input_size=(config.input_size[0] + 32, config.input_size[1] + 64))
    network.config = exported.config = other
    try:
        second = compare(network, exported, photos[:1], form.nms, tolerance.margin)
    finally:
        network.config = exported.config = config
    return parity if second.fits(tolerance) else second


def remove_export(path: Path) -> None:
    """Remove an exported file and the files that belong to it."""
    for file in FORMATS[file_kind(path)].files(path):
        file.unlink(missing_ok=True)
