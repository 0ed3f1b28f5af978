"""Serve a detector over HTTP: a REST service that batches requests, a demo page, and a labelling page."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nets.weights.bundled import find_model, model_names
from service.hosts import Hosts
from service.limits import PACKAGES, Limits
from utils.config import check_options, group, option, options_to_dict, parse_options, read_config
from utils.cpus import set_num_threads
from utils.errors import UserError, printable, require_packages, run_command, warn


@dataclass(frozen=True)
class ServeOptions:
    checkpoint: tuple[str, ...] = option(
        (), "one or several model files; requests choose one by `model` (default: the bundled weights)", metavar="FILE"
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 also accepts requests from other machines")
    port: int = option(8000, "port to listen on; 0 = any free port", low=0, high=65535)
    allow_host: tuple[str, ...] = option(
        (),
        "host names of the service that requests may use, besides localhost; *.NAME = all subdomains of NAME, * = any",
        metavar="NAME",
    )
    input_size: tuple[int, ...] = option((), "height [width] of the network's input, multiples of 32")
    iou_threshold: float | None = option(
        None, "IoU above which NMS removes the box with the lower score", low=0, high=1
    )
    behind_proxy: bool = option(
        False, "read client addresses from X-Forwarded-For of a proxy on this machine; --connections then has no effect"
    )
    browser_model: str | None = option(
        None, "an ONNX file of export.py that the page runs in the browser", metavar="FILE.onnx"
    )
    ort_web: str | None = option(
        None, "folder dist of the npm package onnxruntime-web (default: downloaded once)", metavar="DIR"
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    runtime: str = option("auto", "runtime of the model; auto = chosen by the file")
    threads: int | None = option(None, "CPU threads of the network (default: one per core)", low=1, high=1024)
    title: str = option("Detector", "title of the page")
    label: str | None = option(
        None, "open the labelling page for these images: a folder, VOCdevkit, COCO JSON or data.yaml", metavar="DATA"
    )
    classes: str | None = option(None, "--label: file of initial class names, one per line", metavar="FILE")
    queue: str | None = option(
        None, "--label: list of images to check, from dataset.py audit or eval.py --export", metavar="FILE.json"
    )
    train: bool = option(
        False, "--label: train on the labelled images in the background, and use the new weights if they are better"
    )
    train_minutes: float = option(10.0, "--label: minutes of one training run", above=0, high=10_000)
    train_config: str | None = option(None, "--label: file of options for train.py --config", metavar="FILE.json")
    limits: Limits = group(Limits, "limits")


def main(argv: list[str] | None = None) -> int:
    options = _with_old_name(parse_options(ServeOptions, argv, description=__doc__ or "", prog="serve.py"))
    _check_labelling(options)
    require_packages("serve.py", PACKAGES, "serve")
    if options.threads is not None:
        set_num_threads(options.threads)
    from service.server import Server  # imports FastAPI, which --help does not need

    paths = [find_model(each) for each in options.checkpoint] or [find_model()]
    names = model_names(paths)
    detectors = [_open(path, options) for path in paths]
    if options.limits.batch_size is None:
        usual = min(each.runtime.usual_batch for each in detectors)
        options = replace(options, limits=replace(options.limits, batch_size=usual))
    with _listen(options.host, options.port) as (listener, is_local):
        app = _build(options, dict(zip(names, detectors, strict=True)), paths[0], is_local)
        what = f"labelling {printable(options.label)} with" if options.label else "serving"
        files = ", ".join(printable(path) for path in paths)
        print(f"{what} {files} on {_address(listener)} (stop with Ctrl-C)", flush=True)
        Server(app, options.limits, options.behind_proxy).run(sockets=[listener])
    return 0


def _open(path: Path, options: ServeOptions) -> Any:
    from nets.detector import Detector  # imports OpenCV and runtimes, which --help does not need

    detector = Detector.open(path, options.device, options.runtime)
    if options.input_size:
        detector.set_input_size(options.input_size)
    detector.detect_batch([np.zeros((32, 32, 3), np.uint8)])  # fails here if the file cannot run
    return detector


def _with_old_name(options: ServeOptions) -> ServeOptions:
    """Accept `--queue NUMBER`, the former name of `--max-waiting`."""
    if options.queue is None or not options.queue.lstrip("-").isdigit():
        return options
    warn("--queue", "is now called --max-waiting", "--queue is now a file with a list of images to check")
    return check_options(ServeOptions, options_to_dict(options) | {"queue": None, "max_waiting": int(options.queue)})


def _check_labelling(options: ServeOptions) -> None:
    """Raises UserError if an option of --label is given without it."""
    for flag in ("classes", "queue", "train", "train_config"):
        if options.label is None and getattr(options, flag):
            raise UserError(f"--{flag.replace('_', '-')}", "has no effect without --label", "also give --label DATA")
    if options.label is not None and len(options.checkpoint) > 1:
        raise UserError("--checkpoint", "several models; --label uses one", "give one model")
    if options.train_config is not None:
        read_config(Path(options.train_config))


def _labelling(options: ServeOptions, detector: Any, path: Path) -> Any:
    """Open the labelling data; None without --label."""
    if options.label is None:
        return None
    from service.labelling.setup import open_labelling

    return open_labelling(
        options.label,
        detector,
        path,
        classes=options.classes,
        queue=options.queue,
        minutes=options.train_minutes if options.train else None,
        config=options.train_config,
        device=options.device,
    )


def _build(options: ServeOptions, detectors: dict[str, Any], path: Path, is_local: bool) -> Any:
    """The application; `path` is the file of the first detector, which is the default."""
    from service.app import build_app
    from service.browser import load_browser_model

    browser_model = None
    if options.browser_model is not None:
        ort_web = None if options.ort_web is None else Path(options.ort_web)
        browser_model = load_browser_model(Path(options.browser_model), ort_web)
    elif options.ort_web is not None:
        raise UserError("--ort-web", "has no effect without --browser-model", "also give --browser-model FILE.onnx")
    name, detector = next(iter(detectors.items()))
    return build_app(
        detector,
        options.limits,
        name=name,
        more={other: each for other, each in detectors.items() if other != name},
        iou_threshold=options.iou_threshold,
        browser_model=browser_model,
        hosts=Hosts((*options.allow_host, options.host), any_address=not is_local),
        labelling=_labelling(options, detector, path),
        title=options.title,
    )


@contextmanager
def _listen(host: str, port: int) -> Iterator[tuple[socket.socket, bool]]:
    """Open the listening socket; yields it, and whether only this machine can reach it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        what = f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
        raise UserError("--port", what, "choose another --port or --host") from error
    with listener:
        is_local = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
        if not is_local:
            what = "other machines can reach the service, which has no authentication"
            warn(f"--host {host}", what, "use a proxy with authentication in front of it")
        yield listener, is_local


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


if __name__ == "__main__":
    run_command(main)
