"""Formats for phones and accelerators: each vendor's documented call, as far as its tools can be installed.

ncnn was run and compared here. LiteRT, ExecuTorch and TensorRT were not: their tools do not fit beside this platform,
or need the hardware. `docs/DEPLOYMENT.md` says how each would be checked.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from nets.export.form import Form, write_metadata
from nets.export.graph import DeployedNetwork
from nets.export.onnx_file import build_onnx
from nets.export.torchscript_file import trace_torchscript
from nets.weights.checkpoint import write_atomically
from nets.yolov4 import YOLOv4
from utils.errors import MissingExtra, RunError, UserError


def export_ncnn(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write NAME.ncnn.param, NAME.ncnn.bin and NAME.ncnn.json by pnnx, ncnn's own converter, from TorchScript.

    The maps are raw (ncnn has no tensors of five dimensions): `decode` of `nets/anchors.py` is left to the application.

    Raises:
        UserError: for a form that ncnn does not have.
        MissingExtra: without pnnx.
        RunError: if pnnx fails.

    Source: https://github.com/pnnx/pnnx, "Usage"
    """
    _need_raw("ncnn", form)
    try:
        import pnnx
    except ImportError as error:
        raise MissingExtra("export to ncnn", "pnnx", "ncnn") from error
    height, width = model.config.input_size
    name = path.name.removesuffix(".ncnn.param")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.pt"
        raw = Form(decodes=False)
        torch.jit.save(trace_torchscript(DeployedNetwork(model, raw), raw.example(model.config)), source)
        fp16 = int(form.precision == "fp16")
        command = [pnnx.EXEC_PATH, source.name, f"inputshape=[1,3,{height},{width}]", f"fp16={fp16}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        written = [Path(folder) / f"model.ncnn.{part}" for part in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in written):
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise RunError(path, f"pnnx failed: {lines[-1][:200]}", "see its messages with another version of pnnx")
        for file in written:
            write_atomically(path.with_name(f"{name}.{file.name.removeprefix('model.')}"), file.read_bytes())
    texts = write_metadata(model.config, form, info)
    write_atomically(path.with_name(f"{name}.ncnn.json"), json.dumps(texts, indent=1).encode())


def export_litert(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write .tflite by Google's converter from PyTorch. Not run here.

    Source: https://ai.google.dev/edge/litert/models/convert_pytorch
    """
    try:
        import litert_torch as converter
    except ImportError:
        try:
            import ai_edge_torch as converter  # its name before 2026
        except ImportError as error:
            raise MissingExtra("export to LiteRT", "litert-torch", "litert") from error
    network = DeployedNetwork(model, form)
    converter.convert(network, (form.example(model.config),)).export(str(path))
    write_atomically(path.with_suffix(".json"), json.dumps(write_metadata(model.config, form, info), indent=1).encode())


def export_executorch(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write .pte for ExecuTorch with its XNNPACK backend. Not run here.

    Source: https://docs.pytorch.org/executorch/stable/backends-xnnpack.html
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise MissingExtra("export to ExecuTorch", "executorch", "executorch") from error
    network = DeployedNetwork(model, form)
    exported = torch.export.export(network, (form.example(model.config),))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    write_atomically(path, program.buffer)
    write_atomically(path.with_suffix(".json"), json.dumps(write_metadata(model.config, form, info), indent=1).encode())


def export_tensorrt(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write an .engine for the NVIDIA GPU of this machine, through ONNX. Not run here.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
    """
    try:
        import tensorrt
    except ImportError as error:
        raise MissingExtra("export to TensorRT", "tensorrt", "tensorrt") from error
    onnx_form = Form(form.uint8_input, form.decodes, form.nms)
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)  # explicit batch is the only kind since TensorRT 10
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(build_onnx(model, onnx_form, info).SerializeToString()):
        raise RunError(path, f"TensorRT does not take the graph: {parser.get_error(0)}", "export --format onnx instead")
    config = builder.create_builder_config()
    if form.precision == "fp16":
        config.set_flag(tensorrt.BuilderFlag.FP16)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RunError(path, "TensorRT built no engine", "see its messages above")
    write_atomically(path, bytes(engine))
    write_atomically(path.with_suffix(".json"), json.dumps(write_metadata(model.config, form, info), indent=1).encode())


def _need_raw(name: str, form: Form) -> None:
    if form.decodes or form.nms or form.dynamic or form.uint8_input:
        raise UserError("--format", f"{name} takes float images of one size and gives raw maps", "add --raw")
