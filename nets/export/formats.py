"""The table of export formats: suffix, packages, exporter, runtime and features of each."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nets.export.form import Form
from nets.runtime import Runtime
from utils.errors import UserError, require_packages


@dataclass(frozen=True)
class Format:
    """One export format. Modules are given by name, and are imported when the format is used.

    Args:
        title: display name of its runtime.
        suffix: suffix of the file.
        exporter: `module:function` that writes the file, called with the network in eval mode, the path, a `Form` that
            the format supports, and a dictionary of plain values for the metadata.
        runtime: name of the runtime, or None if this platform cannot run the file.
        loader: `module:class` of the runtime, called with (path, device).
        packages: packages for inference.
        export_packages: additional packages for export.
        half: precision with --half.
        quantizer: `module:function` that writes an int8 file, called with the calibration images (H, W, 3) uint8 RGB
            of any size before the metadata, and returns a description of the layers that remain in floating point.
        nms, dynamic, uint8_input: whether the format supports them.
        beside: suffixes of the additional files, each in place of `suffix`.
        also: other runtimes that can run the file.
        int8_packages: additional packages for int8.
        extra: the optional dependency of pyproject.toml that brings all of these packages.
        is_folder: the file is a package, which is a folder.
    """

    title: str
    suffix: str
    exporter: str
    runtime: str | None = None
    loader: str | None = None
    packages: tuple[str, ...] = ()
    export_packages: tuple[str, ...] = ()
    half: str | None = None
    quantizer: str | None = None
    nms: bool = False
    dynamic: bool = False
    uint8_input: bool = True
    beside: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    int8_packages: tuple[str, ...] = ()
    extra: str = ""
    is_folder: bool = False

    def require_packages(self, int8: bool = False) -> None:
        """Raises MissingExtra unless the packages that write and run the format are installed; imports none of them."""
        packages = (*self.packages, *self.export_packages, *(self.int8_packages if int8 else ()))
        require_packages(f"export to {self.title}", packages, self.extra)

    def export(self, *arguments: Any) -> None:
        """Write a file of this format; see `exporter`. Raises MissingExtra."""
        self.require_packages()
        _resolve(self.exporter)(*arguments)

    def quantize(self, *arguments: Any) -> str:
        """Write an int8 file of this format; see `quantizer`. Raises MissingExtra."""
        assert self.quantizer is not None
        self.require_packages(int8=True)
        return _resolve(self.quantizer)(*arguments)

    @property
    def runs(self) -> bool:
        """Whether this platform can run the file, and therefore check it."""
        return self.runtime is not None

    @property
    def int8(self) -> bool:
        """Whether it can be quantised."""
        return self.quantizer is not None

    def files(self, path: Path) -> list[Path]:
        """The file and its additional files."""
        stem = path.name[: -len(self.suffix)]
        return [path, *(path.with_name(stem + suffix) for suffix in self.beside)]

    def closest(self, form: Form) -> Form:
        """`form` without the features that the format does not support."""
        return dataclasses.replace(
            form,
            uint8_input=form.uint8_input and self.uint8_input,
            nms=form.nms and self.nms,
            dynamic=form.dynamic and self.dynamic,
        )


FORMATS: dict[str, Format] = {
    "onnx": Format(
        "ONNX Runtime",
        ".onnx",
        "onnx_file:export_onnx",
        "onnxruntime",
        "onnx_runtime:OnnxRuntime",
        ("onnxruntime",),
        ("onnx", "onnxscript"),
        half="fp16",
        quantizer="quantize:quantize_onnx",
        nms=True,
        dynamic=True,
        also=("openvino",),
        extra="onnx",
    ),
    "openvino": Format(
        "OpenVINO",
        ".xml",
        "openvino_file:export_openvino",
        "openvino",
        "openvino_runtime:OpenVinoRuntime",
        ("openvino",),
        ("onnx", "onnxscript"),
        half="fp16",
        quantizer="quantize:quantize_openvino",
        nms=True,
        dynamic=True,
        beside=(".bin",),
        int8_packages=("nncf",),
        extra="openvino",
    ),
    "torchscript": Format(
        "TorchScript",
        ".torchscript",
        "torchscript_file:export_torchscript",
        "torchscript",
        "torchscript_file:TorchScriptRuntime",
        half="bf16",
        dynamic=True,
    ),
    "ncnn": Format(
        "ncnn",
        ".ncnn.param",
        "ncnn_file:export_ncnn",
        "ncnn",
        "ncnn_runtime:NcnnRuntime",
        ("ncnn",),
        ("pnnx",),
        half="fp16",
        quantizer="ncnn_int8:quantize_ncnn",
        uint8_input=False,
        beside=(".ncnn.bin", ".ncnn.json"),
        extra="ncnn",
    ),
    "litert": Format(
        "LiteRT",
        ".tflite",
        "litert_file:export_litert",
        "litert",
        "litert_runtime:LiteRtRuntime",
        ("ai_edge_litert",),
        ("litert_torch",),
        half="fp16",
        quantizer="litert_int8:quantize_litert",
        int8_packages=("ai_edge_quantizer",),
        extra="litert-export",
    ),
    "executorch": Format(
        "ExecuTorch",
        ".pte",
        "executorch_file:export_executorch",
        "executorch",
        "executorch_file:ExecuTorchRuntime",
        ("executorch",),
        extra="executorch",
    ),
    "coreml": Format(
        "Core ML",
        ".mlpackage",
        "coreml_file:export_coreml",
        export_packages=("coremltools",),
        extra="coreml",
        half="fp16",
        uint8_input=False,
        is_folder=True,
    ),
    "tensorrt": Format(
        "TensorRT",
        ".engine",
        "tensorrt_file:export_tensorrt",
        "tensorrt",
        "tensorrt_file:TensorRtRuntime",
        ("tensorrt",),
        ("onnx", "onnxscript"),
        half="fp16",
        beside=(".engine.json",),
        extra="tensorrt",
    ),
}
ALIASES = {"tflite": "litert"}  # other names of formats that users know
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
FORMAT_OF_RUNTIME = {each.runtime: name for name, each in FORMATS.items() if each.runtime}
RUNTIMES = ("auto", "fastest", "torch", *FORMAT_OF_RUNTIME)


def runtimes_of(kind: str) -> tuple[str, ...]:
    """Names of the runtimes for files of this format, the default first."""
    each = FORMATS[kind]
    return (each.runtime, *each.also) if each.runtime else ()


def load_exported(path: Path, runtime: str, device: str) -> Runtime:
    """Load an exported file on a runtime. Raises MissingExtra if its package is not installed."""
    written = FORMATS[FORMAT_OF_RUNTIME[runtime]]
    assert written.loader is not None
    require_packages(f"{written.title} files", written.packages, written.extra)
    return _resolve(written.loader)(path, device)


def file_kind(path: Path) -> str:
    """The kind of a model file: `checkpoint` or a key of `FORMATS`. Raises UserError for an unknown suffix."""
    suffix = path.suffix.lower()
    if suffix == ".pt" and _resolve("torchscript_file:is_export")(path):  # .pt is also used for checkpoints
        return "torchscript"
    if suffix in CHECKPOINT_SUFFIXES:
        return "checkpoint"
    for name, each in FORMATS.items():
        if each.runs and path.name.lower().endswith(each.suffix):
            return name
    known = ", ".join([*CHECKPOINT_SUFFIXES, *(each.suffix for each in FORMATS.values() if each.runs)])
    raise UserError(path, f"unknown type of model file {path.suffix!r}", f"known: {known}")


def are_installed(packages: Iterable[str]) -> bool:
    """Whether all of these packages can be imported."""
    return all(importlib.util.find_spec(package) for package in packages)


def _resolve(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(importlib.import_module(f"nets.export.{module}"), name)
