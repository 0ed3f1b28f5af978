"""Write a network for ExecuTorch (phones) as .pte for its XNNPACK backend, and run it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nets.export.attached import attach, detach
from nets.export.exported import ExportedRuntime
from nets.export.form import Form, write_metadata
from nets.export.graph import DeployedNetwork
from nets.export.quiet import quiet
from nets.yolov4 import YOLOv4
from utils.cpus import num_threads
from utils.errors import wrap_errors
from utils.files import write_atomically


def export_executorch(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write a .pte that delegates the operations supported by XNNPACK to it; metadata in a zip archive at its end.

    Source: https://docs.pytorch.org/executorch/stable/backends-xnnpack.html
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        exported = torch.export.export(DeployedNetwork(model, form), (form.example(model.config),))
        program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    write_atomically(path, attach(bytes(program.buffer), write_metadata(model.config, form, info)))


class ExecuTorchRuntime(ExportedRuntime):
    """Runs a .pte file on ExecuTorch with XNNPACK, on the CPU. The number of threads applies to all .pte files."""

    name = "executorch"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        content, texts = detach(path)
        super().__init__(path, texts, device)
        with quiet():
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.runtime import Runtime
        with wrap_errors(path, "ExecuTorch cannot load it", "export it again"), quiet():
            _unsafe_reset_threadpool(num_threads())
            self._program = Runtime.get().load_program(content)  # kept, because the method does not keep it alive
            self._method = self._program.load_method("forward")

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning about a read-only array
            return [output.numpy() for output in self._method.execute([torch.from_numpy(images)])]
