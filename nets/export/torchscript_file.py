"""Write a network as TorchScript, which PyTorch runs without this project's code, and run it."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nets.export.exported import ExportedRuntime
from nets.export.form import Form, read_metadata, write_metadata
from nets.export.graph import DeployedNetwork
from nets.model_config import FORMAT
from nets.weights.checkpoint import write_atomically
from nets.weights.torch_file import open_model_file
from nets.yolov4 import YOLOv4
from utils.errors import UserError

METADATA_FILE = "metadata.json"
MAX_METADATA_BYTES = 4 << 20


def export_torchscript(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a network as TorchScript, with metadata in the extra file `metadata.json`.

    Args:
        model: in eval mode.
        path: the file.
        form: precision `fp32` or `bf16`; without NMS.
        info: additional metadata, plain types.
    """
    traced = trace_torchscript(DeployedNetwork(model, form), form.example(model.config))
    write_atomically(path, torchscript_bytes(traced, json.dumps(write_metadata(model.config, form, info))))


def torchscript_bytes(traced: torch.jit.ScriptModule, metadata: str = "") -> bytes:
    """Serialise a traced network."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, buffer, _extra_files={METADATA_FILE: metadata})
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
    try:
        with open_model_file(path) as file, zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            entry = archive.getinfo(names[f"extra/{METADATA_FILE}"])
            if "constants.pkl" not in names or entry.file_size > MAX_METADATA_BYTES:
                raise KeyError(METADATA_FILE)
            values = json.loads(archive.read(entry))
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        NotImplementedError,
        LookupError,
        RecursionError,
        ValueError,
        zlib.error,
    ) as error:
        what = f"is not a TorchScript file of export.py: it has no readable {METADATA_FILE}"
        raise UserError(path, what, "rejected, because it could run code; export the checkpoint again") from error
    return values if isinstance(values, dict) else {}


class TorchScriptRuntime(ExportedRuntime):
    """Runs a TorchScript file. Such a file contains code: load it only from a trusted source."""

    name = "torchscript"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        config, form = read_metadata(path, _read_metadata(path))  # before its code is loaded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = torch.jit.load(str(path), map_location=device)
            except (RuntimeError, ValueError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(path, f"is not a TorchScript file: {reason}", "export it again") from error
            self.module = torch.jit.freeze(module.eval())
        self.device = torch.device(device)
        super().__init__(path, config, form)

    @torch.inference_mode()
    def call(self, images: np.ndarray) -> list[np.ndarray]:
        return [output.cpu().numpy() for output in self.module(torch.from_numpy(images).to(self.device))]
