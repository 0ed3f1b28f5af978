"""Run ONNX files on ONNX Runtime, without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from nets.export.exported import ExportedRuntime
from nets.runtime import GPU_BATCH
from utils.allocator import keep_freed_memory
from utils.cpus import may_spin, num_threads
from utils.errors import UserError, reason_of, require_packages, wrap_errors

INPUT = "images"


def open_session(path: Path | bytes, device: str = "cpu", threads: int | None = None) -> Any:
    """Open an `onnxruntime.InferenceSession` of any ONNX file.

    Args:
        path: the file, or its content.
        device: `cpu` or `cuda...` (needs onnxruntime-gpu).
        threads: number of threads; None for `utils.cpus.num_threads`.

    Raises:
        MissingExtra: if ONNX Runtime is not installed.
        UserError: if the file is damaged, or the device is not available.
    """
    require_packages("running ONNX files", ["onnxruntime"], "onnx")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would store an identifier and send data
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait by spinning would take the cores from decoding and postprocessing.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(may_spin())))
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise UserError("--device", f"{device}: this ONNX Runtime has no CUDA", "pip install onnxruntime-gpu")
        providers.insert(0, "CUDAExecutionProvider")
    where = path if isinstance(path, Path) else "ONNX model"
    try:
        return ort.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        if any(words in str(error) for words in ("is under development", "model IR version", "till opset")):
            what = f"uses a newer ONNX opset than ONNX Runtime {ort.__version__} supports"
            raise UserError(where, what, "update onnxruntime, or export the checkpoint again") from error
        raise UserError(where, f"ONNX Runtime cannot load it: {reason_of(error)}", "export it again") from error


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """Read a file's metadata, without running it. Raises UserError."""
    require_packages("reading ONNX files", ["onnx"], "onnx")
    import onnx

    with wrap_errors(path, "is not an ONNX file", "export it again"):
        proto = onnx.load(path, load_external_data=False)
    return {entry.key: entry.value for entry in proto.metadata_props}


class OnnxRuntime(ExportedRuntime):
    """Runs an ONNX file on ONNX Runtime."""

    name = "onnxruntime"
    supports_gpu = True

    def __init__(self, path: Path, device: str = "cpu") -> None:
        keep_freed_memory(only_small=True)
        self.session = open_session(path, device)
        super().__init__(path, self.session.get_modelmeta().custom_metadata_map, device)
        self.usual_batch = 1 if device.startswith("cpu") else GPU_BATCH

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {INPUT: images})
