"""Post-training int8 quantisation: calibration on real images; sensitive layers stay in floating point."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.index import DatasetIndex
from nets.export.exported import as_float
from nets.export.form import Form, write_metadata
from nets.export.onnx_file import build_onnx, set_metadata
from nets.export.onnx_nms import append_nms
from nets.export.onnx_runtime import INPUT, open_session
from nets.export.openvino_file import build_openvino, save_openvino
from nets.export.openvino_runtime import compile_model
from nets.export.quiet import quiet
from nets.model_config import ModelConfig
from nets.yolov4 import YOLOv4
from utils.files import write_atomically

PROBES = 8  # calibration images on which the error is measured
WORTH = 0.9  # a group of layers stays in floating point if that reduces the error to this fraction or less
BEST_BOXES = 100
# groups of layers that are tried in floating point, and their descriptions
GROUPS = {
    "last": "the head's last convolutions",
    "first": "the first convolution",
    "gates": "squeeze-and-excitation",
    # OpenVINO runs them equally fast in floating point; ONNX has no separate operation for them
    "depthwise": "depthwise convolutions",
}
# names of an operation in each kind of graph (ONNX, OpenVINO, LiteRT, ncnn)
_DEPTHWISE = ("GroupConvolution", "DEPTHWISE_CONV_2D", "ConvolutionDepthWise")
_CONVOLUTIONS = ("Conv", "Convolution", "CONV_2D", *_DEPTHWISE)
# Clip and Relu are included so that the range is that of their output; they are then fused away
_QUANTIZED_OPS = ["Conv", "Clip", "Relu", "Add", "Concat", "MaxPool", "Resize"]

Run = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Node:
    """An operation of any graph: its name, its kind, and the names of its inputs' operations."""

    name: str
    kind: str
    inputs: tuple[str, ...]


def quantize_onnx(
    model: YOLOv4, path: Path, form: Form, photos: Sequence[np.ndarray], info: dict[str, Any] | None = None
) -> str:
    """Write an int8 ONNX file (QDQ: weights per channel, uint8 activations, min-max calibration).

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    import onnx

    float_form = Form(form.uint8_input, form.decodes)
    proto = onnx.shape_inference.infer_shapes(build_onnx(model, float_form))
    inputs = as_inputs(photos, model.config, form)
    with quiet():
        ranges = _onnx_ranges(proto, inputs)

    def build(left_out: set[str]) -> Any:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(left_out),
            op_types_to_quantize=_QUANTIZED_OPS,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        with quiet():
            quantizer.quantize_model()
        return quantizer.model.model

    nodes = [Node(n.name, n.op_type, tuple(n.input)) for n in proto.graph.node]
    made_by = {output: n.name for n in proto.graph.node for output in n.output}
    nodes = [Node(n.name, n.kind, tuple(made_by[i] for i in n.inputs if i in made_by)) for n in nodes]
    quantized, kept = choose_layers(build, _run_onnx, _run_onnx(proto), nodes, inputs[:PROBES])
    if form.nms:
        append_nms(quantized, model.config, form)
    set_metadata(quantized, write_metadata(model.config, form, {**(info or {}), "floating_point": kept}))
    write_atomically(path, quantized.SerializeToString())
    return kept


def _run_onnx(proto: Any) -> Run:
    session = open_session(proto.SerializeToString())
    return lambda image: session.run(None, {INPUT: image})


def _onnx_ranges(proto: Any, inputs: Sequence[np.ndarray]) -> Any:
    import tempfile

    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {INPUT: image}

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        source.write_bytes(proto.SerializeToString())
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = create_calibrator(source, _QUANTIZED_OPS, augmented, CalibrationMethod.MinMax)
        calibrator.collect_data(Reader())
        return calibrator.compute_data()


def quantize_openvino(
    model: YOLOv4, path: Path, form: Form, photos: Sequence[np.ndarray], info: dict[str, Any] | None = None
) -> str:
    """Write an int8 OpenVINO file with NNCF.

    Source: https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
    """
    with quiet():
        import nncf
    nncf.set_log_level(logging.ERROR)
    inputs = as_inputs(photos, model.config, form)
    original = build_openvino(model, Form(form.uint8_input, form.decodes))
    nodes = [
        Node(op.get_friendly_name(), op.get_type_name(), tuple(_source(i) for i in op.inputs()))
        for op in original.get_ordered_ops()
    ]

    def build(left_out: set[str]) -> Any:
        with quiet():
            return nncf.quantize(
                original.clone(),
                nncf.Dataset(inputs),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=sorted(left_out), validate=False),
            )

    quantized, kept = choose_layers(build, _run_openvino, _run_openvino(original), nodes, inputs[:PROBES])
    save_openvino(quantized, path, model.config, form, {**(info or {}), "floating_point": kept})
    return kept


def _source(port: Any) -> str:
    return port.get_source_output().get_node().get_friendly_name()


def _run_openvino(model: Any) -> Run:
    request = compile_model(model).create_infer_request()

    def run(image: np.ndarray) -> list[np.ndarray]:
        results = request.infer([image])
        return [results[output].copy() for output in request.model_outputs]

    return run


def calibration_images(index: DatasetIndex, count: int) -> list[int]:
    """Positions of the images that calibrate: all classes in turns, the rarest first, evenly over the split.

    An activation's range is that of what was seen, so a class that no image shows is clipped where it differs. What the
    classes leave of `count` is filled with other images.
    """
    images = index.image_of_box
    by_class = [np.unique(images[index.labels == label]) for label in range(len(index.class_names))]
    turns = itertools.zip_longest(*(_spread_order(part) for part in sorted(by_class, key=len)))
    shown = (position for turn in turns for position in turn if position is not None)
    chosen = dict.fromkeys(itertools.chain(shown, _spread_order(np.arange(len(index)))))
    return sorted(itertools.islice(chosen, count))


def _spread_order(positions: np.ndarray) -> list[int]:
    """The positions in an order whose every beginning is spread evenly (multiples of the golden ratio)."""
    order = np.argsort(np.arange(len(positions)) * 0.6180339887498949 % 1, kind="stable")
    return positions[np.argsort(order)].tolist()


def as_inputs(photos: Sequence[np.ndarray], config: ModelConfig, form: Form) -> list[np.ndarray]:
    """Convert photographs to inputs of the file, each a batch of one."""
    batches = (config.letterbox.apply(photo)[None] for photo in photos)
    return [batch.copy() if form.uint8_input else as_float(batch) for batch in batches]


def choose_layers(
    build: Callable[[set[str]], Any],
    run_of: Callable[[Any], Run],
    reference: Run,
    nodes: Sequence[Node],
    probes: Sequence[np.ndarray],
) -> tuple[Any, str]:
    """Quantise everything up to decoding, then restore the groups of layers with the largest effect on the error.

    Args:
        build: builds a quantised model in which the named operations remain in floating point.
        run_of: returns a function that runs a model of `build`.
        reference: runs the unquantised model.
        nodes: operations of its graph.
        probes: inputs on which the error is measured.

    Returns:
        The model, and a description of the layers that remain in floating point.
    """
    groups = group_nodes(nodes)
    expected = [reference(image) for image in probes]

    def error_of(model: Any) -> float:
        run = run_of(model)
        return float(np.mean([output_error(e, run(image)) for e, image in zip(expected, probes, strict=True)]))

    left_out = set(groups["decode"])
    best = build(left_out)
    error = error_of(best)
    kept = []
    for group, name in GROUPS.items():
        if not groups[group]:
            continue
        other = build(left_out | groups[group])
        other_error = error_of(other)
        if other_error <= WORTH * error:
            kept.append(f"{name} (error {error:.3g} to {other_error:.3g})")
            best, error, left_out = other, other_error, left_out | groups[group]
    return best, ", ".join(["decoding", *kept])


def output_error(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Error of the outputs: of the scores and the best boxes, or of all values of raw maps.

    Scores count relative to their root sum of squares, coordinates in units of 16 pixels.
    """
    if len(expected) != 2:
        return float(np.mean([_relative(e, f) for e, f in zip(expected, found, strict=True)]))
    boxes, scores = expected
    best = np.argsort(-scores[0].max(axis=1))[:BEST_BOXES]
    return _relative(scores, found[1]) + float(np.abs(boxes[0][best] - found[0][0][best]).mean()) / 16


def _relative(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(expected - found) / max(np.linalg.norm(expected), 1e-9))


def group_nodes(nodes: Sequence[Node]) -> dict[str, set[str]]:
    """Names of the operations of each group: those of `GROUPS`, and `decode`.

    `decode` contains the operations after the last and before the first convolution (normalisation of the input).
    """
    by_name = {node.name: node for node in nodes}
    readers: dict[str, list[str]] = {node.name: [] for node in nodes}
    for node in nodes:
        for source in node.inputs:
            readers[source].append(node.name)
    convolutions = {node.name for node in nodes if node.kind in _CONVOLUTIONS}
    before = _reach(convolutions, lambda name: by_name[name].inputs)
    after = _reach(convolutions, lambda name: readers[name])
    pools = {node.name for node in nodes if node.kind in ("ReduceMean", "GlobalAveragePool", "MEAN")}
    gated = {node.name for node in nodes if node.kind in ("HardSigmoid", "HSigmoid")}
    between = _reach(pools, lambda name: () if name in gated else readers[name])
    return {
        "first": convolutions - after,
        "last": convolutions - before,
        "gates": {name for name in between if name in convolutions} if pools and gated else set(),
        "depthwise": {node.name for node in nodes if node.kind in _DEPTHWISE},
        "decode": {node.name for node in nodes} - (before & after) - convolutions,
    }


def _reach(starts: Iterable[str], step: Callable[[str], Iterable[str]]) -> set[str]:
    """All nodes reachable from `starts` (a start only if it is reachable from another one)."""
    seen: set[str] = set()
    waiting = [name for start in starts for name in step(start)]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(step(name))
    return seen
