"""Files for running the exported network in the browser: the model, ONNX Runtime Web and their description."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from data.index_cache import cache_folder
from imaging.draw import class_colour
from nets.export.form import read_metadata
from nets.export.onnx_runtime import open_session
from nets.model_config import ModelConfig
from utils.download import download
from utils.errors import RunError, UserError

STATIC = Path(__file__).resolve().parent / "static"
STATIC_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
PAGE_LOWEST_SCORE = 0.05  # score threshold of the page's requests, so that moving its slider needs no new request
# files of onnxruntime-web/dist: the build for all browsers (WebAssembly with SIMD and threads), and that for WebGPU
ORT_FILES = {
    "ort.wasm.min.mjs": "text/javascript",
    "ort-wasm-simd-threaded.mjs": "text/javascript",
    "ort-wasm-simd-threaded.wasm": "application/wasm",
}
WEBGPU_FILES = {
    "ort.webgpu.min.mjs": "text/javascript",
    "ort-wasm-simd-threaded.asyncify.mjs": "text/javascript",
    "ort-wasm-simd-threaded.asyncify.wasm": "application/wasm",
}
ORT_WEB_VERSION = "1.30.0"
ORT_WEB_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
HOW_TO_GET = "run: npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz, then give --ort-web package/dist"


@dataclasses.dataclass(frozen=True)
class BrowserModel:
    """An exported file for browsers.

    Args:
        model: the ONNX file.
        config: its configuration.
        runtime: name -> file of ONNX Runtime Web.
        description: inputs, outputs, classes and thresholds for the page, plain types.
    """

    model: Path
    config: ModelConfig
    runtime: dict[str, Path]
    description: dict[str, Any]


def find_ort_web(folder: Path | None) -> Path:
    """The folder `dist` of the npm package onnxruntime-web: the given one, or one downloaded once from npm.

    Raises:
        UserError: if a file is missing in the folder.
        RunError: if the download fails.
    """
    if folder is None:
        folder = cache_folder() / f"onnxruntime-web-{ORT_WEB_VERSION}"
        if not folder.is_dir():
            _fetch_ort_web(folder)
    for name in ORT_FILES:
        if not (folder / name).is_file():
            raise UserError(folder / name, "does not exist", HOW_TO_GET)
    return folder


def _fetch_ort_web(folder: Path) -> None:
    registry = os.environ.get("npm_config_registry", "https://registry.npmjs.org").rstrip("/")  # noqa: SIM112 -- npm's spelling
    name = f"onnxruntime-web-{ORT_WEB_VERSION}.tgz"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        try:
            archive = download(f"{registry}/onnxruntime-web/-/{name}", Path(temporary) / name, sha256=ORT_WEB_SHA256)
        except RunError as error:
            raise RunError(error.where, error.what, HOW_TO_GET) from error
        kept = Path(temporary) / "dist"
        kept.mkdir()
        with tarfile.open(archive) as package:
            for each in (*ORT_FILES, *WEBGPU_FILES):
                source = package.extractfile(f"package/dist/{each}")
                assert source is not None  # set together with the digest
                with source, open(kept / each, "wb") as target:
                    shutil.copyfileobj(source, target)
        kept.rename(folder)


def load_browser_model(model: Path, ort_web: Path | None) -> BrowserModel:
    """Load the model and the runtime's files for the browser, and check them at the start of the service.

    Args:
        model: an ONNX file of `export.py`.
        ort_web: the folder `dist` of the npm package onnxruntime-web; None downloads it.

    Raises:
        UserError: if a file is missing or the model does not decode its boxes.
    """
    if not model.is_file():
        raise UserError(model, "does not exist", "write it with export.py")
    config, form = read_metadata(model, open_session(model).get_modelmeta().custom_metadata_map)
    if not form.decodes:
        raise UserError(model, "returns raw maps, which the page cannot use", "export it with decoding")
    ort_web = find_ort_web(ort_web)
    has_webgpu = all((ort_web / name).is_file() for name in WEBGPU_FILES)
    names = (*ORT_FILES, *(WEBGPU_FILES if has_webgpu else ()))
    description = {
        "form": dataclasses.asdict(form),
        "class_names": list(config.class_names),
        "input_size": list(config.input_size),
        "resize_mode": config.resize_mode,
        "interpolation": config.interpolation,
        "pad_value": config.pad_value,
        "iou_threshold": config.iou_threshold,
        "multi_label": config.multi_label,
        "webgpu": has_webgpu,
        "megabytes": round(model.stat().st_size / (1 << 20), 1),
    }
    return BrowserModel(model, config, {name: ort_web / name for name in names}, description)


def describe_model(config: ModelConfig, name: str, browser_model: BrowserModel | None) -> dict[str, Any]:
    """Describe the model for the page, as plain types."""
    return {
        "name": name,
        "class_names": list(config.class_names),
        "colours": ["#{:02x}{:02x}{:02x}".format(*class_colour(label)) for label in range(config.num_classes)],
        "input_size": list(config.input_size),
        "score_threshold": config.score_threshold,
        "score_threshold_source": config.score_threshold_source,
        "lowest_score": PAGE_LOWEST_SCORE,
        "browser_model": None if browser_model is None else browser_model.description,
    }


def write_web_folder(folder: Path, bundle: BrowserModel) -> None:
    """Add the page to a folder with `model.onnx`, so that any web server can serve it and other pages can embed it.

    The page is that of serve.py. Browsers allow threads only with cross-origin isolation. If the server does not send
    the headers for it, a service worker (`isolate.js`) adds them.
    """
    for sub in ("static", "ort"):
        (folder / sub).mkdir(exist_ok=True)
    for path in STATIC.iterdir():
        if path.suffix in STATIC_TYPES and path.name not in ("page.html", "isolate.js"):
            shutil.copyfile(path, folder / "static" / path.name)
    shutil.copyfile(STATIC / "page.html", folder / "index.html")
    shutil.copyfile(
        STATIC / "isolate.js", folder / "isolate.js"
    )  # a service worker only controls its own folder and subfolders
    for name, source in bundle.runtime.items():
        shutil.copyfile(source, folder / "ort" / name)
    info = {**describe_model(bundle.config, folder.name, bundle), "without_server": True}
    (folder / "info").write_text(json.dumps(info, indent=1), encoding="utf-8")
