"""Statistics of a data set: classes, box sizes, shapes and positions, as numbers and as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.data_options import DataOptions
from data.index import DatasetIndex
from data.tools.anchors import RATIO_LIMIT, box_sizes, measure_anchors, scaled_anchors, shape_iou, two_sides
from imaging.letterbox import RESIZE_MODES, Letterbox
from utils.config import option, parse_options
from utils.errors import UserError
from utils.files import replacing
from utils.output_rules import check_output_file
from utils.text import counted, plot_label, text_table

COCO_AREAS = (32**2, 96**2)  # pixels: small, medium, large; https://cocodataset.org/#detection-eval
GRID = 16  # cells of the heat map, each way
PERCENTILES = (5, 25, 50, 75, 95)
BAR_CLASSES = 40  # maximum number of classes drawn, the most frequent first


def dataset_stats(index: DatasetIndex, letterbox: Letterbox, anchors: Sequence[Any]) -> dict[str, Any]:
    """All statistics, as plain types.

    Args:
        index: one split.
        letterbox: resizing to the network input.
        anchors: levels x anchors x (width, height), input pixels.
    """
    counts = np.diff(index.offsets)
    sizes = box_sizes(index, letterbox)
    recall, iou = measure_anchors(sizes, np.asarray(anchors, np.float64))
    return {
        "name": index.name,
        "num_images": len(index),
        "num_empty_images": int((counts == 0).sum()),
        "num_boxes": index.num_boxes,
        "num_difficult": int(index.difficult.sum()),
        "num_crowd": int(index.crowd.sum()),
        "classes": _class_rows(index),
        "imbalance": _imbalance(index),
        "objects_per_image": {
            "mean": _round(counts.mean()) if len(counts) else 0.0,
            "max": int(counts.max(initial=0)),
            "histogram": np.bincount(counts).tolist() if len(counts) else [],
        },
        "image_sizes": _image_sizes(index),
        "box_sizes": _box_numbers(index, sizes),
        "input_size": list(letterbox.input_size),
        "anchors": {
            "best_possible_recall": _round(recall),
            "mean_iou": _round(iou),
            "rows": _anchor_rows(sizes, anchors),
        },
        "centres": centre_map(index).tolist(),
    }


def centre_map(index: DatasetIndex, grid: int = GRID) -> np.ndarray:
    """(grid, grid) int64: how many boxes have their centre in each cell of the image, rows from the top."""
    owner = index.image_of_box
    sizes = index.sizes[owner]
    known = (sizes > 0).all(axis=1)
    centres = (index.boxes[known, :2] + index.boxes[known, 2:]) / 2 / sizes[known][:, ::-1]
    cells = np.clip((centres * grid).astype(np.int64), 0, grid - 1)
    return np.bincount(cells[:, 1] * grid + cells[:, 0], minlength=grid * grid).reshape(grid, grid)


def _class_rows(index: DatasetIndex) -> list[dict[str, Any]]:
    owner = index.image_of_box
    number = len(index.class_names)
    pairs = np.unique(np.stack([index.labels.astype(np.int64), owner], axis=1), axis=0)[:, 0]
    boxes, images, difficult, crowd = (
        np.bincount(labels, minlength=number)
        for labels in (index.labels, pairs, index.labels[index.difficult], index.labels[index.crowd])
    )
    return [
        {"name": name, "boxes": int(boxes[k]), "images": int(images[k]), "difficult": int(difficult[k]),
         "crowd": int(crowd[k])}
        for k, name in enumerate(index.class_names)
    ]  # fmt: skip


def _imbalance(index: DatasetIndex) -> float:
    """Ratio of the box counts of the most frequent and the rarest occurring class."""
    counts = np.bincount(index.labels, minlength=1)
    there = counts[counts > 0]
    return _round(there.max() / there.min()) if len(there) else 0.0


def _image_sizes(index: DatasetIndex) -> dict[str, Any]:
    known = index.sizes[(index.sizes > 0).all(axis=1)]
    if not len(known):
        return {}
    return {
        "smallest": known.min(axis=0).tolist(),
        "largest": known.max(axis=0).tolist(),
        "median": np.median(known, axis=0).tolist(),
    }


def _box_numbers(index: DatasetIndex, sizes: np.ndarray) -> dict[str, Any]:
    """Percentiles of side (root of the area) and of width / height at the input size; COCO's size classes."""
    areas = (index.boxes[:, 2:] - index.boxes[:, :2]).prod(axis=1)
    classes = np.bincount(np.digitize(areas, COCO_AREAS), minlength=3) if len(areas) else np.zeros(3, int)
    numbers: dict[str, Any] = dict(zip(("small", "medium", "large"), classes.tolist(), strict=True))
    good = sizes[(sizes > 0).all(axis=1)]
    if len(good):
        sides, ratios = np.sqrt(good.prod(axis=1)), good[:, 0] / good[:, 1]
        numbers["percentiles"] = list(PERCENTILES)
        numbers["side_at_input_size"] = [_round(v) for v in np.percentile(sides, PERCENTILES)]
        numbers["width_by_height"] = [_round(v) for v in np.percentile(ratios, PERCENTILES)]
        numbers["below_8_pixels"] = int((sides < 8).sum())
    return numbers


def _anchor_rows(sizes: np.ndarray, anchors: Sequence[Any]) -> list[dict[str, Any]]:
    """Per anchor, the fraction of boxes that it fits best, and of boxes that it can match."""
    flat = np.asarray(anchors, np.float64).reshape(-1, 2)
    if len(sizes):
        parts = np.array_split(sizes, len(sizes) // 50_000 + 1)
        best = np.concatenate([shape_iou(part, flat).argmax(axis=1) for part in parts])
        share = np.bincount(best, minlength=len(flat)) / len(sizes)
        able = [float((np.maximum(sizes / a, a / sizes).max(axis=1) < RATIO_LIMIT).mean()) for a in flat]
    else:
        share, able = np.zeros(len(flat)), [0.0] * len(flat)
    return [
        {"width": float(w), "height": float(h), "best_for": _round(share[k]), "can_answer_for": _round(able[k])}
        for k, (w, h) in enumerate(flat)
    ]


def format_stats(stats: dict[str, Any]) -> str:
    """The statistics as text for a terminal."""
    per_image, boxes, anchors = stats["objects_per_image"], stats["box_sizes"], stats["anchors"]
    lines = [
        f"{stats['name']}: {counted(stats['num_images'], 'image')} ({stats['num_empty_images']} without an object), "
        f"{counted(stats['num_boxes'], 'box')} ({stats['num_difficult']} difficult, {stats['num_crowd']} crowd)",
        f"objects per image: mean {per_image['mean']:g}, at most {per_image['max']}",
        f"boxes by area: {boxes['small']} small (under 32 x 32), {boxes['medium']} medium, "
        f"{boxes['large']} large (over 96 x 96)",
    ]
    if "percentiles" in boxes:
        size = " x ".join(str(s) for s in reversed(stats["input_size"]))
        named = ", ".join(f"{p}%" for p in boxes["percentiles"])
        lines.append(f"at an input of {size}, side: {_row(boxes['side_at_input_size'])} pixels ({named}); "
                     f"{boxes['below_8_pixels']} under 8")  # fmt: skip
        lines.append(f"width / height: {_row(boxes['width_by_height'])} ({named})")
    recall, iou = anchors["best_possible_recall"], anchors["mean_iou"]
    lines.append(f"anchors: best possible recall {recall:.4f}, mean IoU {iou:.4f}")
    lines += [f"  {row['width']:6.4g} x {row['height']:<6.4g} fits best {row['best_for']:6.1%}, can match "
              f"{row['can_answer_for']:6.1%}" for row in anchors["rows"]]  # fmt: skip
    head = ("name", "boxes", "images", "difficult", "crowd")
    rows = sorted(stats["classes"], key=lambda row: -row["boxes"])
    lines += text_table([("class", *head[1:]), *([row[key] for key in head] for row in rows)])
    if stats["imbalance"]:
        lines.append(f"the most frequent class has {stats['imbalance']:g} times the boxes of the rarest")
    return "\n".join(lines)


def draw_stats(
    index: DatasetIndex, stats: dict[str, Any], letterbox: Letterbox, anchors: Sequence[Any], path: Path
) -> None:
    """The statistics as a PNG of six panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = min(len(stats["classes"]), BAR_CLASSES)
    figure = Figure(figsize=(16, max(9, 2 * 0.16 * rows + 2)), layout="constrained")  # room for every class name
    FigureCanvasAgg(figure)  # needs no display, and does not change the caller's pyplot state
    (classes, scatter, sides), (objects, ratios, heat) = figure.subplots(2, 3)
    figure.suptitle(f"{index.name}: {counted(stats['num_images'], 'image')}, {counted(stats['num_boxes'], 'box')}")
    sizes = box_sizes(index, letterbox)
    sizes = sizes[(sizes > 0).all(axis=1)]
    flat = np.asarray(anchors, np.float64).reshape(-1, 2)
    _draw_classes(classes, stats)
    _draw_scatter(scatter, sizes, flat, letterbox.input_size)
    _draw_logarithmic(sides, np.sqrt(sizes.prod(axis=1)), np.sqrt(flat.prod(axis=1)), "side, input pixels", letterbox)
    _draw_logarithmic(ratios, sizes[:, 0] / sizes[:, 1], flat[:, 0] / flat[:, 1], "width / height", letterbox)
    histogram = stats["objects_per_image"]["histogram"]
    objects.bar(range(len(histogram)), histogram, width=0.9, color="tab:blue")
    objects.set(title="objects per image", xlabel="objects", ylabel="images")
    objects.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = heat.imshow(np.asarray(stats["centres"]), extent=(0, 1, 1, 0), cmap="magma")
    heat.set(title="centres of boxes", xlabel="x / width", ylabel="y / height")
    figure.colorbar(shown, ax=heat, label="boxes")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".tmp.{path.name}") as temporary:  # the suffix gives the format
        figure.savefig(temporary, dpi=90)


def _draw_classes(axes: Any, stats: dict[str, Any]) -> None:
    rows = sorted(stats["classes"], key=lambda row: row["boxes"])[-BAR_CLASSES:]
    axes.barh(range(len(rows)), [row["boxes"] for row in rows], color="tab:blue")
    names = [plot_label(row["name"]) for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7 if len(rows) > 15 else 9)
    left = len(stats["classes"]) - len(rows)
    axes.set(title="boxes of each class" + (f" (the {left} rarest are omitted)" if left else ""), xlabel="boxes")


def _draw_scatter(axes: Any, sizes: np.ndarray, anchors: np.ndarray, input_size: tuple[int, int]) -> None:
    some = sizes[np.random.default_rng(0).permutation(len(sizes))[:20_000]]
    axes.plot(some[:, 0], some[:, 1], ".", markersize=2, alpha=0.3, color="tab:blue")
    axes.plot(anchors[:, 0], anchors[:, 1], "x", color="tab:red", label="anchors")
    axes.set(title="boxes and anchors", xlabel="width, input pixels", ylabel="height, input pixels")
    right, bottom = (max(input_size[1 - k], anchors[:, k].max(initial=0)) * 1.04 for k in (0, 1))
    axes.set(xlim=(0, right), ylim=(0, bottom))
    axes.legend(loc="upper right")


def _draw_logarithmic(axes: Any, values: np.ndarray, anchors: np.ndarray, label: str, letterbox: Letterbox) -> None:
    if len(values):
        low, high = np.log10(values.min() * 0.9), np.log10(values.max() * 1.1)
        axes.hist(values, bins=np.logspace(low, high, 50), color="tab:blue")
    for value in anchors:
        axes.axvline(value, color="tab:red", linewidth=0.8)
    axes.set_xscale("log")
    _label_few(axes)
    axes.set(title=f"{label.split(',')[0]} of boxes; anchors in red", xlabel=label, ylabel="boxes")


def _label_few(axes: Any) -> None:
    """Labels at 1, 2 and 5 of each power of ten: labels of all minor ticks would overlap."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.ticklabel_format(axis="x", style="plain")


def _row(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _round(value: Any) -> float:
    return round(float(value), 6)


@dataclass(frozen=True)
class StatsOptions(DataOptions):
    """Options of `dataset.py stats`."""

    input_size: tuple[int, ...] = option((416,), "height [width] of the network's input, pixels", nargs="+")
    resize_mode: str = option("letterbox", "how images are resized to the input size", choices=RESIZE_MODES)
    output: str | None = option(None, "also draw the statistics into this PNG file", metavar="FILE.png")
    json: bool = option(False, "print JSON")
    overwrite: bool = option(False, "replace an existing --output file")


def main(argv: list[str] | None = None, anchors: Sequence[Any] = ()) -> None:
    """`dataset.py stats DATA`; `anchors` are the current ones, of a 416 input."""
    options = parse_options(StatsOptions, argv, prog="dataset.py stats", description=__doc__.splitlines()[0])
    if options.output and Path(options.output).suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise UserError("--output", f"{options.output} is not the name of an image", "give a name that ends in .png")
    if options.output:
        check_output_file("--output", options.output, options.overwrite, [options.data])
    index = options.open()
    letterbox = Letterbox(two_sides(options.input_size), options.resize_mode)
    scaled = scaled_anchors(anchors, letterbox.input_size)
    stats = dataset_stats(index, letterbox, scaled)
    print(json.dumps(stats, indent=2) if options.json else format_stats(stats))
    if options.output:
        draw_stats(index, stats, letterbox, scaled, Path(options.output))
        if not options.json:
            print(f"drawn in {options.output}")
