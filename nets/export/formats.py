"""The table of export formats: suffix, packages, exporter, runtime and abilities of each, said once."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nets.runtime import Runtime
from utils.errors import UserError


@dataclass(frozen=True)
class Format:
    """One export format. Modules are named, not imported: each is loaded when the format is used.

    Args:
        suffix: of the file.
        exporter: `module:function` that writes it, called with (model, path, form, info).
        runtime: name of the runtime that runs it, or None if it cannot be run here.
        loader: `module:class` of that runtime, called with (path, device).
        packages: what running it needs; `export_packages`: what writing it needs besides.
        half: what --half means for it.
        int8, nms, dynamic: whether it has them.
        also: other runtimes that take the file.
    """

    suffix: str
    exporter: str
    runtime: str | None = None
    loader: str | None = None
    packages: tuple[str, ...] = ()
    export_packages: tuple[str, ...] = ()
    half: str | None = None
    int8: bool = False
    nms: bool = False
    dynamic: bool = False
    also: tuple[str, ...] = ()

    def export(self, *arguments: Any) -> None:
        """Write a file of this format; see `exporter`."""
        _resolve(self.exporter)(*arguments)

    @property
    def runs(self) -> bool:
        """Whether this platform runs the file, and so can check it."""
        return self.runtime is not None


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx",
        "nets.export.onnx_file:export_onnx",
        "onnxruntime",
        "nets.export.onnx_runtime:OnnxRuntime",
        ("onnxruntime",),
        ("onnx", "onnxscript"),
        "fp16",
        int8=True,
        nms=True,
        dynamic=True,
        also=("openvino",),
    ),
    "openvino": Format(
        ".xml",
        "nets.export.openvino_file:export_openvino",
        "openvino",
        "nets.export.openvino_runtime:OpenVinoRuntime",
        ("openvino",),
        ("onnx", "onnxscript"),
        "fp16",
        int8=True,
        nms=True,
        dynamic=True,
    ),
    "torchscript": Format(
        ".torchscript",
        "nets.export.torchscript_file:export_torchscript",
        "torchscript",
        "nets.export.torchscript_file:TorchScriptRuntime",
        half="bf16",
        dynamic=True,
    ),
    "ncnn": Format(".ncnn.param", "nets.export.vendors:export_ncnn", half="fp16"),
    "litert": Format(".tflite", "nets.export.vendors:export_litert"),
    "executorch": Format(".pte", "nets.export.vendors:export_executorch"),
    "tensorrt": Format(".engine", "nets.export.vendors:export_tensorrt", half="fp16"),
}
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
FORMAT_OF_RUNTIME = {each.runtime: name for name, each in FORMATS.items() if each.runtime}
RUNTIMES = ("auto", "fastest", "torch", *FORMAT_OF_RUNTIME)


def runtimes_of(kind: str) -> tuple[str, ...]:
    """The runtimes that take a file of this format, the usual one first."""
    each = FORMATS[kind]
    return (each.runtime, *each.also) if each.runtime else ()


def load_exported(path: Path, runtime: str, device: str) -> Runtime:
    """An exported file on a runtime."""
    loader = FORMATS[FORMAT_OF_RUNTIME[runtime]].loader
    assert loader is not None
    return _resolve(loader)(path, device)


def file_kind(path: Path) -> str:
    """`checkpoint` or a key of `FORMATS`. Raises UserError for an unknown suffix."""
    suffix = path.suffix.lower()
    if suffix == ".pt" and _resolve("nets.export.torchscript_file:is_export")(path):  # PyTorch's name for anything
        return "torchscript"
    if suffix in CHECKPOINT_SUFFIXES:
        return "checkpoint"
    for name, each in FORMATS.items():
        if each.runs and path.name.lower().endswith(each.suffix):
            return name
    known = ", ".join([*CHECKPOINT_SUFFIXES, *(each.suffix for each in FORMATS.values() if each.runs)])
    raise UserError(path, f"unknown kind of model file {path.suffix!r}", f"known: {known}")


def are_installed(packages: Iterable[str]) -> bool:
    """Whether all of these packages can be imported."""
    return all(importlib.util.find_spec(package) for package in packages)


def _resolve(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
