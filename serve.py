"""Serve a detector over HTTP: a REST service that batches requests, a page to try it, and a labelling page."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nets.weights.bundled import find_model
from service.hosts import Hosts
from service.limits import MEGABYTE, Limits
from utils.config import check_options, option, options_to_dict, parse_options, read_config
from utils.cpus import set_num_threads
from utils.errors import MissingExtra, UserError, printable, run_command, warn


@dataclass(frozen=True)
class ServeOptions:
    checkpoint: str | None = option(None, "model file; without it the bundled weights", metavar="FILE")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 accepts other machines")
    port: int = option(8000, "0 takes any free port", low=0, high=65535)
    allow_host: tuple[str, ...] = option(
        (),
        "host names under which clients reach the service, besides localhost; *.NAME for all below NAME, * for any",
        metavar="NAME",
    )
    input_size: tuple[str, ...] = option((), "height and width of the network's input, multiples of 32", metavar="N")
    iou_threshold: float | None = option(None, "overlap above which two boxes are one object", low=0, high=1)
    batch_size: int | None = option(
        None, "pictures run together at most (default: 1 on a CPU, 8 on a GPU)", low=1, high=256
    )
    batch_wait: float = option(2.0, "milliseconds that a batch waits for requests being decoded", low=0, high=1000)
    max_waiting: int = option(64, "requests under way at most; others get 503", low=1, high=10_000)
    max_body: float = option(20.0, "megabytes of one request at most", above=0, high=1024)
    max_megapixels: float = option(50.0, "megapixels of one picture, checked before decoding", above=0, high=1000)
    read_timeout: float = option(20.0, "seconds in which a request must arrive", above=0, high=3600)
    answer_timeout: float = option(30.0, "seconds in which it must be answered", above=0, high=3600)
    per_minute: int = option(0, "requests of one client a minute, others get 429; 0 = no limit", low=0)
    connections: int = option(128, "open connections of one client at most; others get 503", low=1, high=512)
    behind_proxy: bool = option(
        False, "take clients' addresses from X-Forwarded-For of a proxy on this machine; no limit of --connections"
    )
    browser_model: str | None = option(
        None, "an ONNX file of export.py that the page runs in the visitor's own browser", metavar="FILE.onnx"
    )
    ort_web: str | None = option(
        None, "the folder dist of npm's onnxruntime-web (default: fetched once)", metavar="DIR"
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    runtime: str = option("auto", "what to run an exported file on")
    threads: int | None = option(None, "CPU threads of the network (default: one per core)", low=1, high=1024)
    title: str = option("Detector", "title of the page")
    label: str | None = option(
        None, "open the labelling page on these pictures: a folder, VOCdevkit, COCO JSON or data.yaml", metavar="DATA"
    )
    classes: str | None = option(None, "--label: file of class names to begin with, one a line", metavar="FILE")
    queue: str | None = option(
        None, "--label: pictures to look at, from dataset.py audit or eval.py --export", metavar="FILE.json"
    )
    train: bool = option(False, "--label: train on what is labelled, in the background, and take better weights")
    train_minutes: float = option(10.0, "--label: time of one such training", above=0, high=10_000)
    train_config: str | None = option(None, "--label: a file of options for train.py --config", metavar="FILE.json")

    @property
    def limits(self) -> Limits:
        body = int(self.max_body * MEGABYTE)
        return Limits(
            max_body=body,
            max_megapixels=self.max_megapixels,
            read_timeout=self.read_timeout,
            answer_timeout=self.answer_timeout,
            queue=self.max_waiting,
            bodies=max(Limits.bodies, 4 * body),
            per_minute=self.per_minute,
            connections=self.connections,
            batch_size=self.batch_size or Limits.batch_size,
            batch_wait=self.batch_wait / 1000,
        )


def main(argv: list[str] | None = None) -> int:
    options = _with_old_name(parse_options(ServeOptions, argv, description=__doc__ or "", prog="serve.py"))
    _check_labelling(options)
    server_class = _import_server()
    if options.threads is not None:
        set_num_threads(options.threads)
    path = find_model(options.checkpoint)
    from nets.detector import Detector  # late: OpenCV and the runtimes, which --help does not need

    detector = Detector.open(path, options.device, options.runtime)
    if options.input_size:
        detector.set_input_size([_whole(size) for size in options.input_size])
    detector.detect_batch([np.zeros((32, 32, 3), np.uint8)])  # a file that cannot run fails here
    if options.batch_size is None:
        options = replace(options, batch_size=detector.runtime.usual_batch)
    with _listen(options.host, options.port) as (listener, is_local):
        app = _build(options, detector, path, is_local)
        what = f"labelling {printable(options.label)} with" if options.label else "serving"
        print(f"{what} {printable(path)} on {_address(listener)} (Ctrl-C ends it)", flush=True)
        server_class(app, options.limits, options.behind_proxy).run(sockets=[listener])
    return 0


def _import_server() -> Any:
    """`service.server.Server`; MissingExtra where its packages are not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        packages = "fastapi, uvicorn, python-multipart and prometheus-client"
        raise MissingExtra("serve.py", packages, "serve") from error
    from service.server import Server

    return Server


def _with_old_name(options: ServeOptions) -> ServeOptions:
    """Accept `--queue NUMBER`, the former name of `--max-waiting`."""
    if options.queue is None or not options.queue.lstrip("-").isdigit():
        return options
    warn("--queue", "is now called --max-waiting", "--queue names a file of pictures to look at")
    return check_options(ServeOptions, options_to_dict(options) | {"queue": None, "max_waiting": int(options.queue)})


def _check_labelling(options: ServeOptions) -> None:
    """Raises UserError if an option of --label is given without it."""
    for flag in ("classes", "queue", "train", "train_config"):
        if options.label is None and getattr(options, flag):
            raise UserError(f"--{flag.replace('_', '-')}", "does nothing without --label", "give --label DATA as well")
    if options.train_config is not None:
        read_config(Path(options.train_config))


def _labelling(options: ServeOptions, detector: Any, path: Path) -> Any:
    """The state of the labelling page, or None."""
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


def _build(options: ServeOptions, detector: Any, path: Path, is_local: bool) -> Any:
    from service.app import build_app
    from service.browser import load_browser_model

    browser_model = None
    if options.browser_model is not None:
        ort_web = None if options.ort_web is None else Path(options.ort_web)
        browser_model = load_browser_model(Path(options.browser_model), ort_web)
    elif options.ort_web is not None:
        raise UserError("--ort-web", "does nothing without --browser-model", "give --browser-model FILE.onnx as well")
    return build_app(
        detector,
        options.limits,
        name=path.name,
        iou_threshold=options.iou_threshold,
        browser_model=browser_model,
        hosts=Hosts((*options.allow_host, options.host), any_address=not is_local),
        labelling=_labelling(options, detector, path),
        title=options.title,
    )


@contextmanager
def _listen(host: str, port: int) -> Iterator[tuple[socket.socket, bool]]:
    """The listening socket, and whether only this machine can reach it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        what = f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
        raise UserError("--port", what, "choose another --port or --host") from error
    with listener:
        is_local = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
        if not is_local:
            what = "other machines can reach the service, which has no login"
            warn(f"--host {host}", what, "put a proxy with a login in front of it")
        yield listener, is_local


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError("--input-size", f"{text!r} is not a whole number", "give multiples of 32") from None


if __name__ == "__main__":
    run_command(main)
