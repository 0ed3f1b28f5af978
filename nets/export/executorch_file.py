"""Write a network for ExecuTorch (phones) as .pte for its XNNPACK backend, and run it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nets.export.attached import attach, detach
from nets.export.exported import ExportedRuntime, check_cpu
from nets.export.form import Form, read_metadata, write_metadata
from nets.export.graph import DeployedNetwork
from nets.export.quiet import quiet
from nets.yolov4 import YOLOv4
from utils.cpus import num_threads
from utils.errors import MissingExtra, UserError
from utils.files import write_atomically


def export_executorch(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a .pte that delegates the operations supported by XNNPACK to it; metadata in a zip archive at its end.

    Args:
        model: in eval mode.
        path: the file.
        form: precision `fp32`.
        info: additional metadata, plain types.

    Raises:
        MissingExtra: if executorch is not installed.

    Source: https://docs.pytorch.org/executorch/stable/backends-xnnpack.html
    """
    with quiet():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise MissingExtra("export to ExecuTorch", "executorch", "executorch") from error
        exported = torch.export.export(DeployedNetwork(model, form), (form.example(model.config),))
        program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    write_atomically(path, attach(bytes(program.buffer), write_metadata(model.config, form, info)))


class ExecuTorchRuntime(ExportedRuntime):
    """Runs a .pte file on ExecuTorch with XNNPACK, on the CPU. The number of threads applies to all .pte files."""

    name = "executorch"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        check_cpu("ExecuTorch", device)
        content, texts = detach(path)
        config, form = read_metadata(path, texts)
        super().__init__(path, config, form)
        try:
            with quiet():
                from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
                from executorch.runtime import Runtime
        except ImportError as error:
            raise MissingExtra("ExecuTorch files", "executorch", "executorch") from error
        try:
            with quiet():
                _unsafe_reset_threadpool(threads or num_threads())
                self._program = Runtime.get().load_program(
                    content
                )  # referenced here, because the method does not keep it alive
                self._method = self._program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(path, f"ExecuTorch cannot load it: {reason}", "export it again") from error

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning about a read-only array
            return [output.numpy() for output in self._method.execute([torch.from_numpy(images)])]
