"""Accuracy against time: networks on ONNX Runtime beside a peer in one run.

Points that were trained, each with its score (an `eval.py --json` file, a number of points, or `-`):

    python -m benchmarks.pareto --point small model_data/small.pth small.json --point reference reference 31.4 \\
        --peer-score yolox_nano yolox.json --elsewhere PicoDet-S 1.3 picodet.json \\
        --plot docs/images/pareto.png --table pareto.md

A peer's score is measured with its published weights (`eval.py --detections peer.json --json`), its time with random
weights of the same network. `--elsewhere` adds a detector with a given time ratio, drawn as a hollow marker.

`--network` adds a network without training it, to compare the cost of widths and sizes:

    python -m benchmarks.pareto --network mobilenet_v2 0.5 separable 0.25 320 --network mobilenet_v2 1 separable 0.5 288

Times are CPU time of one thread, so that they are valid on a shared machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import save_plot
from benchmarks.peers import PEERS, export_peer
from nets.export.form import Form
from nets.export.onnx_file import build_onnx
from nets.export.onnx_runtime import open_session
from nets.model_config import ModelConfig, check_input_size
from nets.summary import count_layers
from nets.timing import interleave, machine
from nets.weights.bundled import find_model
from nets.weights.checkpoint import load_checkpoint, load_model, write_atomically
from nets.weights.pretrained import pretrained_settings
from nets.yolov4 import YOLOv4
from utils.errors import UserError, run_command
from utils.json_file import read_json
from utils.text import markdown_table

PRESETS = Path(__file__).resolve().parent.parent / "model_data" / "presets"
SCORE = "voc10_mAP50"


@dataclass
class Point:
    """Time and accuracy of a network.

    Args:
        name: label in the table and the plot.
        config: configuration of the network; None for a peer.
        score: mAP50 in points, if it was trained and scored.
        is_timed: whether its time was measured in this run.
        multiply_adds: multiply-adds of one image; None for a peer.
        megabytes: size of the fp32 ONNX file.
        milliseconds: median CPU time of one image, one thread.
        ratios: time divided by a peer's time, median over the repetitions, by the peer's name.
    """

    name: str
    config: ModelConfig | None = None
    score: float | None = None
    multiply_adds: int | None = None
    megabytes: float = 0.0
    milliseconds: float = 0.0
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)
    is_timed: bool = True


# --- measurements ----------------------------------------------------------------------------------------------------


def read_score(text: str) -> float | None:
    """mAP50 in points, from `-` (None), a number, or a file of `eval.py --json`. Raises UserError."""
    if text == "-":
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return 100 * float(read_json(Path(text), "a file of eval.py --json")[SCORE])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(text, f"has no {SCORE}", "give a file of eval.py --json, a number, or -") from error


def read_ratio(text: str) -> float:
    """Parse a ratio of times. Raises UserError if it is not a number."""
    try:
        return float(text)
    except ValueError as error:
        raise UserError("--elsewhere", f"{text!r} is not a number", "give NAME RATIO SCORE") from error


def preset_config(name: str, classes: int) -> ModelConfig:
    """The model configuration of a preset. Raises UserError if there is no preset of that name."""
    path = PRESETS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.json")))
        raise UserError("--point", f"{name} is neither a file nor a preset", f"presets: {known}")
    values = read_json(path, "a preset")
    known_fields = {field.name for field in dataclasses.fields(ModelConfig)}
    if "weights" in values:
        fields = load_checkpoint(find_model(values["weights"])).config.to_dict()
    else:
        fields = pretrained_settings(values.get("backbone", "mobilenet_v2"), values.get("pretrained", "none"))
    fields |= {key: value for key, value in values.items() if key in known_fields - {"anchors"}}
    fields["input_size"] = check_input_size(fields.get("input_size", 416))
    return ModelConfig(**fields | {"class_names": tuple(f"class {number}" for number in range(classes))})


def make_point(name: str, source: str, score: str, classes: int) -> Point:
    """A point from the command line: a checkpoint or a preset, and its score."""
    config = load_checkpoint(source).config if Path(source).is_file() else preset_config(source, classes)
    return Point(name, config, read_score(score))


def make_network(backbone: str, alpha: str, conv: str, width: str, size: str, classes: int) -> Point:
    """A point of an untrained network."""
    names = tuple(f"class {number}" for number in range(classes))
    try:
        widths = {"alpha": float(alpha), "neck_conv": conv, "neck_width": float(width)}
        config = ModelConfig(names, backbone, **widths, input_size=check_input_size(int(size)), **HALF)
    except ValueError as error:
        raise UserError("--network", str(error), "see --help") from error
    return Point(f"{backbone.removeprefix('mobilenet_')} {float(alpha):g}, {conv} {float(width):g}, {size}", config)


HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # normalization of the ImageNet weights


def write_network(point: Point, source: str | None, folder: Path) -> Path:
    """Export a point's network to ONNX (fp32, with decoding); untrained networks get random weights (same time)."""
    assert point.config is not None
    if source is not None and Path(source).is_file():
        model = load_model(source)
    else:
        torch.manual_seed(0)
        model = YOLOv4(point.config).eval()
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    path.write_bytes(build_onnx(model, Form()).SerializeToString())
    point.multiply_adds = sum(cost.multiply_adds for cost in count_layers(point.config))
    return path


def runner(path: Path) -> Callable[[], Any]:
    """A function that runs an ONNX file once, on random input."""
    session = open_session(path, threads=1)
    entry = session.get_inputs()[0]
    noise = np.random.default_rng(0).random(entry.shape, dtype=np.float32)
    return lambda: session.run(None, {entry.name: noise})


def measure(points: Sequence[Point], peers: Sequence[Point], files: Sequence[Path], repetitions: int) -> None:
    """Measure all networks interleaved and store times and ratios in the points. `files`: of peers, then of points."""
    everything = [*peers, *points]
    calls = {str(number): runner(file) for number, file in enumerate(files)}
    # Sessions have one thread, the calling one, so the CPU time of this thread is that of the network.
    samples = interleave(calls, repetitions, clock=time.thread_time)
    for number, (point, file) in enumerate(zip(everything, files, strict=True)):
        sample = samples[str(number)]
        point.milliseconds, point.megabytes = 1e3 * sample.median, file.stat().st_size / 1e6
        point.ratios = {peer.name: sample.ratio(samples[str(place)]) for place, peer in enumerate(peers)}


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: points that no other point beats in both time and score, fastest first.

    Points without a score are excluded.
    """
    scored = [(p.milliseconds, p.score, p) for p in points if p.score is not None]
    front: list[Point] = []
    best = -float("inf")
    for _, score, point in sorted(scored, key=lambda item: (item[0], -item[1])):
        if score > best:
            front.append(point)
            best = score
    return front


# --- reports ---------------------------------------------------------------------------------------------------------


def points_table(points: Sequence[Point], peers: Sequence[Point]) -> str:
    """A Markdown table with peers first. Points on the Pareto front are in bold."""
    front = pareto_front(points)
    ratio_names = [f"x {peer.name}" for peer in peers if peer.is_timed]
    lines = []
    for point in [*peers, *points]:
        size = "" if point.config is None else point.config.size_words
        name = f"**{point.name}**" if point in front else point.name
        ratios = [point.ratios.get(peer.name) for peer in peers if peer.is_timed]
        cells = [name, size, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)]
        cells += [f"{point.milliseconds:.1f}"] if point.is_timed else ["not timed here"]
        cells += ["" if point.multiply_adds is None else f"{point.multiply_adds / 1e9:.2f}"]
        cells += [f"{point.megabytes:.1f}"] if point.is_timed else [""]
        cells += ["" if point.score is None else f"{point.score:.1f}"]
        lines.append(cells)
    note = "CPU time of one thread, ONNX Runtime fp32, one image; x: median over the repetitions of one run"
    table = markdown_table(["network", "input", *ratio_names, "ms", "G multiply-adds", "MB", "mAP50"], lines)
    return f"{table}\n\n{note}{'; bold: on the Pareto front' if front else ''}"


def draw_plot(points: Sequence[Point], peers: Sequence[Point], path: Path) -> None:
    """Plot mAP50 against the time relative to the first peer. Peers without a score are vertical lines."""
    from matplotlib.figure import Figure  # no window, no global state

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    first, front = peers[0].name, pareto_front(points)
    axes.set_ylabel("mAP50 (VOC2010), points")
    axes.plot([p.ratios[first] for p in front], [p.score for p in front], color="#4c78a8", linewidth=1)
    for point in (p for p in points if p.score is not None):
        place = point.ratios[first], point.score
        axes.plot(*place, "o", color="#4c78a8" if point in front else "#999999")
        axes.annotate(point.name, place, textcoords="offset points", xytext=(6, -3), fontsize=8)
    words: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": "#d62728"}
    for peer in peers:
        x = peer.ratios[first]
        if peer.score is not None:
            axes.plot(x, peer.score, "s", color="#d62728", fillstyle="full" if peer.is_timed else "none")
            axes.annotate(peer.name, (x, peer.score), xytext=(0, 7), ha="center", **words)
        else:
            axes.axvline(x, color="#d62728", linewidth=0.8, linestyle="--")
            high = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top"}
            axes.annotate(peer.name, (x, 1), xytext=(3, -10), **high, **words)
    hollow = "" if all(peer.is_timed for peer in peers) else "\nhollow: timed elsewhere"
    axes.set_xlabel(f"time of one image as a ratio to {first}'s in the same run (ONNX Runtime, one thread){hollow}")
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    save_plot(figure, "--plot", path)


def to_json(points: Sequence[Point], peers: Sequence[Point], arguments: Sequence[str]) -> dict[str, Any]:
    """The points as JSON types."""

    def plain(point: Point) -> dict[str, Any]:
        config = None if point.config is None else point.config.to_dict()
        return {**{f.name: getattr(point, f.name) for f in dataclasses.fields(point)}, "config": config}

    return {
        "machine": machine(),
        "arguments": list(arguments),
        "peers": [plain(peer) for peer in peers],
        "points": [plain(point) for point in points],
        "front": [point.name for point in pareto_front(points)],
    }


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--point", nargs=3, action="append", default=[], metavar=("NAME", "SOURCE", "SCORE"),
        help="a checkpoint or preset, and its score: a file of eval.py --json, mAP50 in points, or - for none",
    )  # fmt: skip
    parser.add_argument(
        "--network", nargs=5, action="append", default=[], metavar=("BACKBONE", "ALPHA", "CONV", "WIDTH", "SIZE"),
        help="an untrained network, for example: mobilenet_v2 1.0 separable 0.375 320",
    )  # fmt: skip
    parser.add_argument("--classes", type=int, default=20, help="number of classes of presets and of --network")
    parser.add_argument("--peers", nargs="*", default=["yolox_nano"], choices=sorted(PEERS))
    parser.add_argument(
        "--compare", nargs="+", type=Path, default=[], metavar="FILE.onnx", help="further peers as ONNX files"
    )
    parser.add_argument(
        "--peer-score", nargs=2, action="append", default=[], metavar=("PEER", "SCORE"),
        help="score of a peer: a file of eval.py --json, or mAP50 in points",
    )  # fmt: skip
    parser.add_argument(
        "--elsewhere", nargs=3, action="append", default=[], metavar=("NAME", "RATIO", "SCORE"),
        help="a detector that is not measured here: its time relative to the first peer, and its score",
    )  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--table", type=Path, help="write the table in Markdown to this file")
    parser.add_argument("--plot", type=Path, help="write the plot to this file (.png, .svg or .pdf)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write the requested files."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if not options.point and not options.network:
        parser.error("give --point NAME SOURCE SCORE or --network BACKBONE ALPHA CONV WIDTH SIZE")
    if options.plot and all(score == "-" for _, _, score in options.point):
        parser.error("--plot needs a --point with a score")
    if not options.peers and not options.compare:
        parser.error("there is nothing to compare with: give --peers or --compare")
    points = [make_point(*triple, options.classes) for triple in options.point]
    sources: list[str | None] = [source for _, source, _ in options.point]
    points += [make_network(*network, options.classes) for network in options.network]
    sources += [None] * (len(points) - len(sources))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pareto-") as temporary:
        folder = Path(temporary)
        files = [export_peer(name, folder / f"{name}.onnx", num_classes=options.classes) for name in options.peers]
        peers = [Point(name) for name in options.peers]
        for path in options.compare:
            if not path.is_file():
                raise UserError("--compare", f"{path} does not exist", "give an ONNX file")
            files.append(path)
            peers.append(Point(path.stem))
        for name, score in options.peer_score:
            known = {peer.name: peer for peer in peers}
            if name not in known:
                raise UserError("--peer-score", f"no peer {name!r} in this run", f"peers: {', '.join(known)}")
            known[name].score = read_score(score)
        files += [write_network(point, source, folder) for point, source in zip(points, sources, strict=True)]
        measure(points, peers, files, options.repetitions)
    first = peers[0].name
    for name, ratio, score in options.elsewhere:
        peers.append(Point(name, score=read_score(score), ratios={first: read_ratio(ratio)}, is_timed=False))
    table = points_table(points, peers)
    print(table)
    if options.table:
        write_atomically(options.table, (table + "\n").encode())
    if options.json:
        figures = to_json(points, peers, sys.argv[1:] if argv is None else argv)
        write_atomically(options.json, json.dumps(figures, indent=1).encode())
    if options.plot:
        draw_plot(points, peers, options.plot)


if __name__ == "__main__":
    run_command(main)
