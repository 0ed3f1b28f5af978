"""NMS as part of an ONNX graph, equivalent to `nets.postprocess`."""

from __future__ import annotations

from typing import Any

import numpy as np

from nets.export.form import Form
from nets.model_config import ModelConfig
from nets.postprocess import MAX_CANDIDATES

OUTPUTS = ("detection_boxes", "detection_scores", "detection_labels", "detection_images")


class _Graph:
    """Adds nodes to a graph; each call returns the names of the outputs."""

    def __init__(self, proto: Any) -> None:
        import onnx

        self.helper, self.numpy_helper, self.graph = onnx.helper, onnx.numpy_helper, proto.graph
        self.count = 0

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"nms_constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(self.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        self.count += 1
        names = [f"nms_{kind}_{self.count}_{i}" for i in range(outputs)]
        self.graph.node.append(self.helper.make_node(kind, inputs, names, f"nms_{kind}_{self.count}", **attributes))
        return names[0] if outputs == 1 else names


def append_nms(proto: Any, config: ModelConfig, form: Form) -> None:
    """Append NMS to a graph with the outputs `boxes` and `scores`; the results are ordered by image, best first.

    The new outputs are boxes (K, 4) xyxy input pixels, scores (K,), labels (K,) and images (K,), int64. At most
    `config.max_detections` are kept for each class, and also for the whole image if the batch size is 1.
    """
    graph = _Graph(proto)
    boxes, scores = _best_candidates(graph)
    if not config.multi_label:  # only the best class of a box counts
        best = graph.node("ReduceMax", scores, graph.ints(-1), keepdims=1)
        nothing = graph.constant(0.0, np.float32)
        scores = graph.node("Where", graph.node("Equal", scores, best), scores, nothing)
    scores = graph.node("Transpose", scores, perm=[0, 2, 1])
    limits = (
        graph.constant([config.max_detections], np.int64),
        graph.constant([config.iou_threshold], np.float32),
        graph.constant([config.score_threshold], np.float32),
    )
    chosen = graph.node("NonMaxSuppression", boxes, scores, *limits)  # rows of (image, class, index)
    kept = graph.node("GatherND", scores, chosen)
    image = graph.node("Gather", chosen, graph.constant(0, np.int64), axis=1)
    order = _order(graph, kept, image, None if form.dynamic else config.max_detections)
    chosen = graph.node("Gather", chosen, order, axis=0)
    place = graph.node("Gather", chosen, graph.ints(0, 2), axis=1)
    results = (
        graph.node("GatherND", boxes, place),
        graph.node("Gather", kept, order, axis=0),
        graph.node("Gather", chosen, graph.constant(1, np.int64), axis=1),
        graph.node("Gather", chosen, graph.constant(0, np.int64), axis=1),
    )
    _set_outputs(graph, results)


def _best_candidates(graph: _Graph) -> tuple[str, str]:
    """Boxes (B, K, 4) and scores (B, K, C) of the K best boxes, which bounds the cost of NMS."""
    best = graph.node("ReduceMax", "scores", graph.ints(-1), keepdims=0)
    there = graph.node("Shape", best, start=1, end=2)
    count = graph.node("Min", there, graph.ints(MAX_CANDIDATES))
    _, places = graph.node("TopK", best, count, outputs=2, axis=1)
    places = graph.node("Unsqueeze", places, graph.ints(-1))
    return tuple(graph.node("GatherND", name, places, batch_dims=1) for name in ("boxes", "scores"))  # type: ignore[return-value]


def _order(graph: _Graph, scores: str, images: str, limit: int | None) -> str:
    """Indices sorted by image, then by descending score."""
    image = graph.node("Mul", graph.node("Cast", images, to=1), graph.constant(-2.0, np.float32))
    count = graph.node("Shape", scores)
    if limit is not None:
        count = graph.node("Min", count, graph.ints(limit))
    _, order = graph.node("TopK", graph.node("Add", scores, image), count, outputs=2, axis=0)
    return order


def _set_outputs(graph: _Graph, results: tuple[str, ...]) -> None:
    del graph.graph.output[:]
    types = (graph.helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in (np.float32, np.float32, np.int64, np.int64))
    for name, result, kind in zip(OUTPUTS, results, types, strict=True):
        graph.graph.node.append(graph.helper.make_node("Identity", [result], [name], name))
        shape = ["detections", 4] if name == OUTPUTS[0] else ["detections"]
        graph.graph.output.append(graph.helper.make_tensor_value_info(name, kind, shape))
