"""Leaving PyTorch: one table of formats, and an export that is checked against the network before it counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nets.export.graph import Form
from nets.export.onnx_file import export_onnx
from nets.export.openvino_file import export_openvino
from nets.export.parity import TOLERANCES, Parity, Tolerance, compare
from nets.export.torchscript_file import export_torchscript
from nets.export.vendors import export_executorch, export_litert, export_ncnn, export_tensorrt
from nets.runtime import Runtime, TorchRuntime, load_runtime
from nets.yolov4 import YOLOv4
from utils.errors import RunError

Export = Callable[[YOLOv4, Path, Form, dict[str, Any] | None], None]


@dataclass(frozen=True)
class Exporter:
    """A format.

    Args:
        export: writes the file.
        suffix: of the file.
        runs: whether this platform runs it, and so can check it.
        half: what --half means for it.
        int8, nms, dynamic: whether it has them.
    """

    export: Export
    suffix: str
    runs: bool = False
    half: str | None = None
    int8: bool = False
    nms: bool = False
    dynamic: bool = False


EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(export_onnx, ".onnx", True, "fp16", True, True, True),
    "openvino": Exporter(export_openvino, ".xml", True, "fp16", True, True, True),
    "torchscript": Exporter(export_torchscript, ".torchscript", True, "bf16", dynamic=True),
    "ncnn": Exporter(export_ncnn, ".ncnn.param", half="fp16"),
    "litert": Exporter(export_litert, ".tflite"),
    "executorch": Exporter(export_executorch, ".pte"),
    "tensorrt": Exporter(export_tensorrt, ".engine", half="fp16"),
}


def export_and_check(
    model: YOLOv4,
    path: Path,
    kind: str,
    form: Form,
    photos: Sequence[np.ndarray],
    info: dict[str, Any] | None = None,
) -> Parity | None:
    """Write an exported file and compare it with the network; one that fails does not stay.

    Args:
        model: in eval mode.
        path: the file.
        kind: a key of `EXPORTERS`.
        form: what the file takes and gives.
        photos: RGB images (H, W, 3) uint8 to compare on.
        info: what else the file should say, plain types.

    Returns:
        The comparison; None for a format that cannot be run here.

    Raises:
        RunError: if it differs by more than `TOLERANCES` allow.
    """
    exporter = EXPORTERS[kind]
    exporter.export(model, path, form, info)
    return check_export(TorchRuntime(model), path, form, photos) if exporter.runs else None


def check_export(network: Runtime, path: Path, form: Form, photos: Sequence[np.ndarray]) -> Parity:
    """Compare a file that was just written with the network; it is removed if it differs too much (RunError)."""
    try:
        exported = load_runtime(path, "cpu")
        tolerance = _tolerance(exported, form)
        parity = compare(network, exported, photos, form.nms, tolerance.margin)
        if form.dynamic and parity.fits(tolerance):
            parity = _compare_other_size(network, exported, photos, parity, form, tolerance)
        if not parity.fits(tolerance):
            what = f"the export does not answer as the network does: {parity}"
            raise RunError(path, what, f"removed; allowed for {form.precision}: {tolerance}")
    except BaseException:
        remove_export(path)
        raise
    return parity


def _tolerance(exported: Runtime, form: Form) -> Tolerance:
    """OpenVINO computes a file of fp16 weights in bf16 where the CPU has it, which is coarser."""
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
    """A file for any size must be right at another one, too; the worse of the two comparisons."""
    config = network.config
    other = config.replace(input_size=(config.input_size[0] + 32, config.input_size[1] + 64))
    network.config = exported.config = other
    try:
        second = compare(network, exported, photos[:1], form.nms, tolerance.margin)
    finally:
        network.config = exported.config = config
    return parity if second.fits(tolerance) else second


def remove_export(path: Path) -> None:
    """Remove an exported file and what lies beside it."""
    for file in (path, path.with_suffix(".bin") if path.suffix == ".xml" else path):
        file.unlink(missing_ok=True)
