"""Write a network as TorchScript, which PyTorch runs without this project's code, and run it."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nets.export.attached import ENTRY, MAX_ENTRY_BYTES
from nets.export.exported import ExportedRuntime
from nets.export.form import Form, write_metadata
from nets.export.graph import DeployedNetwork
from nets.model_config import FORMAT
from nets.weights.model_file import open_model_file
from nets.yolov4 import YOLOv4
from utils.errors import UserError, wrap_errors
from utils.files import write_atomically


def export_torchscript(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a network as TorchScript, with metadata in the extra file `metadata.json`."""
    traced = trace_torchscript(DeployedNetwork(model, form), form.example(model.config))
    write_atomically(path, torchscript_bytes(traced, json.dumps(write_metadata(model.config, form, info))))


def torchscript_bytes(traced: torch.jit.ScriptModule, metadata: str = "") -> bytes:
    """Serialise a traced network."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, buffer, _extra_files={ENTRY: metadata})
    return buffer.getvalue()


def trace_torchscript(network: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """Trace a network with an example input."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it is deprecated, but C++ and ncnn read no other format
        return torch.jit.trace(network, example, check_trace=False)


def is_export(path: Path) -> bool:
    """Whether a file was written by `export_torchscript`, by its metadata. It runs no code of the file."""
    try:
        return _read_metadata(path).get("format") == FORMAT
    except UserError:
        return False


def _read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a TorchScript file from its archive. Raises UserError."""
    what = f"is not a TorchScript file of export.py, its {ENTRY} cannot be read"
    todo = "rejected, because it could run code; export the checkpoint again"
    with wrap_errors(path, what, todo), open_model_file(path) as file, zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        entry = archive.getinfo(names[f"extra/{ENTRY}"])
        if "constants.pkl" not in names or entry.file_size > MAX_ENTRY_BYTES:
            raise ValueError("another layout")
        values = json.loads(archive.read(entry))
    return values if isinstance(values, dict) else {}


class TorchScriptRuntime(ExportedRuntime):
    """Runs a TorchScript file. Such a file contains code: load it only from a trusted source."""

    name = "torchscript"
    supports_gpu = True

    def __init__(self, path: Path, device: str = "cpu") -> None:
        super().__init__(path, _read_metadata(path), device)  # before its code is loaded
        with wrap_errors(path, "is not a TorchScript file", "export it again"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.module = torch.jit.freeze(torch.jit.load(str(path), map_location=device).eval())
        self.device = torch.device(device)

    @torch.inference_mode()
    def call(self, images: np.ndarray) -> list[np.ndarray]:
        return [output.cpu().numpy() for output in self.module(torch.from_numpy(images).to(self.device))]
