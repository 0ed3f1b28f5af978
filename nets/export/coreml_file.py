"""Write a network for Core ML, as .mlpackage for iPhones and Macs. Conversion works on Linux, too."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from nets.export.form import Form, write_metadata
from nets.export.graph import DeployedNetwork
from nets.export.quiet import quiet
from nets.export.torchscript_file import trace_torchscript
from nets.yolov4 import YOLOv4


def export_coreml(model: YOLOv4, path: Path, form: Form, info: dict[str, Any] | None = None) -> None:
    """Write .mlpackage (a folder), an ML Program for iOS 16 and later; its input `images` is an RGB image.

    The metadata is stored as user-defined metadata, with the prefix `yolo_`.

    Source: https://apple.github.io/coremltools/docs-guides/source/convert-pytorch-workflow.html
    """
    height, width = model.config.input_size
    float_form = Form(decodes=form.decodes)
    traced = trace_torchscript(DeployedNetwork(model, float_form), float_form.example(model.config))
    with quiet():
        import coremltools

        half = form.precision == "fp16"
        layout = coremltools.colorlayout.RGB
        image = coremltools.ImageType("images", (1, 3, height, width), scale=1 / 255, color_layout=layout)
        package = coremltools.convert(
            traced,
            convert_to="mlprogram",
            inputs=[image],
            outputs=[coremltools.TensorType(name) for name in form.outputs],
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=getattr(coremltools.precision, "FLOAT16" if half else "FLOAT32"),
        )
        for key, value in write_metadata(model.config, form, info).items():
            package.user_defined_metadata[f"yolo_{key}"] = value
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
            package.save(os.path.join(folder, path.name))
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(os.path.join(folder, path.name), path)
