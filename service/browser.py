"""What a visitor's own browser needs to run the exported network: the file, ONNX Runtime Web, and how to use both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nets.export.form import read_metadata
from nets.export.onnx_runtime import open_session
from utils.errors import UserError

# of onnxruntime-web/dist: the smallest build that runs everywhere (WebAssembly with SIMD and threads)
ORT_FILES = {
    "ort.wasm.min.mjs": "text/javascript",
    "ort-wasm-simd-threaded.mjs": "text/javascript",
    "ort-wasm-simd-threaded.wasm": "application/wasm",
}
HOW_TO_GET = "run: npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz, then give --ort-web package/dist"


@dataclasses.dataclass(frozen=True)
class BrowserModel:
    """An exported file for browsers.

    Args:
        model: the ONNX file.
        runtime: name -> file of ONNX Runtime Web.
        description: what the page must know to feed it and to read its answer, plain types.
    """

    model: Path
    runtime: dict[str, Path]
    description: dict[str, Any]


def load_browser_model(model: Path, ort_web: Path | None) -> BrowserModel:
    """Check that both are there and fit, now and not when the first visitor comes.

    Args:
        model: an ONNX file that `export.py` wrote.
        ort_web: the folder `dist` of the npm package onnxruntime-web.

    Raises:
        UserError: if a file is missing or the model does not decode its boxes.
    """
    if ort_web is None:
        raise UserError("--browser-model", "needs ONNX Runtime Web to be served beside it", HOW_TO_GET)
    runtime = {name: ort_web / name for name in ORT_FILES}
    for path in runtime.values():
        if not path.is_file():
            raise UserError(path, "is not there", HOW_TO_GET)
    if not model.is_file():
        raise UserError(model, "is not there", "write it with export.py")
    config, form = read_metadata(model, open_session(model).get_modelmeta().custom_metadata_map)
    if not form.decodes:
        raise UserError(model, "gives raw maps, which the page does not read", "export it with decoding")
    description = {
        "form": dataclasses.asdict(form),
        "class_names": list(config.class_names),
        "input_size": list(config.input_size),
        "resize_mode": config.resize_mode,
        "interpolation": config.interpolation,
        "pad_value": config.pad_value,
        "iou_threshold": config.iou_threshold,
        "multi_label": config.multi_label,
        "megabytes": round(model.stat().st_size / (1 << 20), 1),
    }
    return BrowserModel(model, runtime, description)
