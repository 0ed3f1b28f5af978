"""TorchScript: writing a network as a file that PyTorch runs without this platform's code."""

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

from nets.export.exported import ExportedRuntime
from nets.export.graph import DeployedNetwork, Form, read_metadata, write_metadata
from nets.weights.checkpoint import write_atomically
from nets.weights.torch_file import open_model_file
from nets.yolov4 import YOLOv4
from utils.errors import UserError

METADATA_FILE = "metadata.json"


def export_torchscript(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a network as TorchScript, metadata as the extra file `metadata.json`.

    Args:
        model: in eval mode.
        path: the file.
        form: precision `fp32` or `bf16`; no suppression inside.
        info: what else the file should say, plain types.
    """
    traced = trace_torchscript(DeployedNetwork(model, form), form.example(model.config))
    texts = json.dumps(write_metadata(model.config, form, info))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, buffer, _extra_files={METADATA_FILE: texts})
    write_atomically(path, buffer.getvalue())


def trace_torchscript(network: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """A network's operations on an example."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it is deprecated, and has no successor that C++ and ncnn read
        return torch.jit.trace(network, example, check_trace=False)


def is_torchscript(path: Path) -> bool:
    """Whether a file is TorchScript, by its content: .pt may be that or a checkpoint."""
    try:
        with open_model_file(path) as file, zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):  # a UserError is a ValueError
        return False


class TorchScriptRuntime(ExportedRuntime):
    """A TorchScript file of ours. Such a file holds a program: load none from people you do not trust."""

    name = "torchscript"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        extra = {METADATA_FILE: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
            except (RuntimeError, ValueError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(path, f"is no TorchScript file: {reason}", "export it again") from error
            config, form = read_metadata(path, _texts(path, extra[METADATA_FILE]))
            self.module = torch.jit.freeze(module.eval())
        self.device = torch.device(device)
        super().__init__(path, config, form)

    @torch.inference_mode()
    def call(self, images: np.ndarray) -> list[Tensor]:
        return list(self.module(torch.from_numpy(images).to(self.device)))


def _texts(path: Path, text: str | bytes) -> dict[str, str]:
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(path, f"its metadata is damaged: {error}", "export it again") from error
    return values if isinstance(values, dict) else {}
