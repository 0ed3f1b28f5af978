"""ncnn int8: a replacement for ncnn's tools ncnn2table and ncnn2int8, which are not on PyPI.

Only weights and activation ranges are computed here; ncnn itself runs the file. The layout of a layer's data in .bin
follows `ModelBinFromDataReader::load` and each layer's `load_model`.

Source: https://github.com/Tencent/ncnn/wiki/quantized-int8-inference
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nets.export.form import Form, write_metadata
from nets.export.ncnn_file import convert_ncnn, save_ncnn
from nets.export.ncnn_runtime import FP16_OPTIONS, INPUT
from nets.export.quantize import PROBES, Node, Run, as_inputs, choose_layers
from nets.yolov4 import YOLOv4
from utils.cpus import num_threads
from utils.errors import RunError

FLOAT_TAG, INT8_TAG = b"\x00\x00\x00\x00", (0x000D4B38).to_bytes(4, "little")
BINS = 2048  # histogram bins of an activation
BEST_LIMITS = np.linspace(0.3, 1.0, 71)  # candidates for the clipping limit, as fractions of the largest value
# keys of the layer parameters that are read or written here
OUTPUTS, BIAS, WEIGHTS, GROUPS, INT8_SCALES = 0, 5, 6, 7, 8


@dataclass
class _Layer:
    """A layer: a line of .param and its data in .bin."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, str]
    arrays: list[np.ndarray] = field(default_factory=list)

    def number(self, key: int, default: int = 0) -> int:
        return int(self.parameters.get(key, default))

    @property
    def is_convolution(self) -> bool:
        return self.kind in ("Convolution", "ConvolutionDepthWise")


def quantize_ncnn(
    model: YOLOv4, path: Path, form: Form, photos: Sequence[np.ndarray], info: dict[str, Any] | None = None
) -> str:
    """Write an int8 ncnn file (activations per tensor)."""
    param, weights = convert_ncnn(model, path, form)
    layers = _parse(path, param.decode(), weights)
    inputs = as_inputs(photos, model.config, Form())
    outputs = [f"out{number}" for number in range(len(form.outputs))]
    limits = _activation_limits(param, weights, [each for each in layers if each.is_convolution], inputs)

    def build(left_out: set[str]) -> tuple[bytes, bytes]:
        return _write(param.decode(), layers, limits, left_out)

    def run_of(files: tuple[bytes, bytes]) -> Run:
        net = _load(*files)
        return lambda image: [each[None] for each in _extract(net, image, outputs)]

    best, kept = choose_layers(build, run_of, run_of((param, weights)), _nodes(layers), inputs[:PROBES])
    save_ncnn(path, *best, write_metadata(model.config, form, {**(info or {}), "floating_point": kept}))
    return kept


def _parse(path: Path, param: str, weights: bytes) -> list[_Layer]:
    """Parse the layers with their arrays. Raises RunError for an unexpected layout."""
    layers = []
    for line in param.splitlines()[2:]:
        kind, name, *rest = line.split()
        reads, writes = int(rest[0]), int(rest[1])
        parameters = dict(part.split("=", 1) for part in rest[2 + reads + writes :])
        layers.append(
            _Layer(
                kind,
                name,
                rest[2 : 2 + reads],
                rest[2 + reads : 2 + reads + writes],
                {int(key): value for key, value in parameters.items()},
            )
        )
    place = 0

    def take(count: int) -> np.ndarray:
        nonlocal place
        place += 4 * count
        return np.frombuffer(weights, "<f4", count, place - 4 * count)

    for layer in layers:
        if layer.is_convolution:
            if weights[place : place + 4] != FLOAT_TAG:
                raise RunError(path, f"{layer.name} has weights that are not float32", "use another version of pnnx")
            place += 4
            layer.arrays = [take(layer.number(WEIGHTS))]
            if layer.number(BIAS):
                layer.arrays.append(take(layer.number(OUTPUTS)))
        elif layer.kind == "MemoryData":
            layer.arrays = [take(int(np.prod([layer.number(key) or 1 for key in (0, 1, 2, 11)])))]
    if place != len(weights):
        raise RunError(path, "contains layers with an unknown layout, which cannot be quantised", "leave out --int8")
    return layers


def _write(param: str, layers: Sequence[_Layer], limits: dict[str, float], left_out: set[str]) -> tuple[bytes, bytes]:
    """The contents of .param and .bin with every convolution in int8, except those in `left_out`."""
    lines, data = param.splitlines()[:2], bytearray()
    for layer in layers:
        parameters = dict(layer.parameters)
        if layer.is_convolution and layer.name not in left_out:
            depthwise = layer.kind == "ConvolutionDepthWise"
            parameters[INT8_SCALES] = "1" if depthwise else "2"
            rows = layer.arrays[0].reshape(layer.number(GROUPS) if depthwise else layer.number(OUTPUTS), -1)
            scales = 127 / np.maximum(np.abs(rows).max(axis=1), 1e-12)
            whole = np.rint(rows * scales[:, None]).clip(-127, 127).astype(np.int8).tobytes()
            data += INT8_TAG + whole + bytes(-len(whole) % 4)
            for array in (*layer.arrays[1:], scales, np.array([127 / limits[layer.name]])):
                data += array.astype("<f4").tobytes()
        else:
            data += FLOAT_TAG if layer.is_convolution else b""
            for array in layer.arrays:
                data += array.tobytes()
        names = [*layer.inputs, *layer.outputs]
        settings = [f"{key}={value}" for key, value in parameters.items()]
        head = f"{layer.kind:<24} {layer.name:<24} {len(layer.inputs)} {len(layer.outputs)}"
        lines.append(" ".join([head, *names, *settings]))
    return ("\n".join(lines) + "\n").encode(), bytes(data)


def _activation_limits(
    param: bytes, weights: bytes, convolutions: Sequence[_Layer], inputs: Sequence[np.ndarray]
) -> dict[str, float]:
    """For each convolution, the clipping limit of its input with the lowest squared error over all images."""
    net = _load(param, weights)
    names = [each.inputs[0] for each in convolutions]
    largest = np.zeros(len(names))
    for image in inputs:
        found = [np.abs(blob).max() for blob in _extract(net, image, names)]
        largest = np.maximum(largest, found)
    largest = np.maximum(largest, 1e-6)
    histograms = np.zeros((len(names), BINS))
    for image in inputs:
        for number, blob in enumerate(_extract(net, image, names)):
            histograms[number] += np.histogram(np.abs(blob), BINS, (0, largest[number]))[0]
    return {
        each.name: float(top * _best_limit(counts))
        for each, top, counts in zip(convolutions, largest, histograms, strict=True)
    }


def _best_limit(counts: np.ndarray) -> float:
    """The fraction of a histogram's range with the lowest squared error after clipping and rounding to 127 steps."""
    values = (np.arange(BINS) + 0.5) / BINS
    errors = []
    for limit in BEST_LIMITS:
        step = limit / 127
        errors.append((counts * (values - np.minimum(np.rint(values / step) * step, limit)) ** 2).sum())
    return float(BEST_LIMITS[int(np.argmin(errors))])


def _load(param: bytes, weights: bytes) -> Any:
    """Load an `ncnn.Net` that computes other layers in float32 and keeps the intermediate tensors."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads, net.opt.lightmode = num_threads(), False
    for option in FP16_OPTIONS:
        setattr(net.opt, option, False)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("model.param", "model.bin")]
        for file, content in zip(files, (param, weights), strict=True):
            file.write_bytes(content)
        if net.load_param(str(files[0])) or net.load_model(str(files[1])):
            raise RunError("int8 for ncnn", "ncnn cannot load the quantised file", "leave out --int8")
    return net


def _extract(net: Any, image: np.ndarray, names: Sequence[str]) -> Iterator[np.ndarray]:
    import ncnn

    extractor = net.create_extractor()
    extractor.input(INPUT, ncnn.Mat(image[0]))
    for name in names:
        yield np.array(extractor.extract(name)[1])


def _nodes(layers: Sequence[_Layer]) -> list[Node]:
    made_by = {output: layer.name for layer in layers for output in layer.outputs}
    return [
        Node(
            layer.name,
            "GlobalAveragePool" if layer.kind == "Pooling" and layer.number(4) else layer.kind,
            tuple(made_by[each] for each in layer.inputs),
        )
        for layer in layers
    ]
