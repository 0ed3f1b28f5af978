"""Write annotations: VOC XML, COCO JSON, YOLO txt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml

from utils.files import replacing, write_file

# A box converted through another format carries floating-point noise (1e-12) or that
# format's rounding error. A number this close to the format's usual precision is rounded to it.
VOC_NOISE = 1e-4  # pixels from an integer
COCO_NOISE = 1e-7  # pixels from two decimals
YOLO_NOISE = 1e-11  # of the side, from six decimals


def voc_xml(
    file_name: str,
    size: tuple[int, int],
    boxes: np.ndarray,
    names: Sequence[str],
    difficult: Sequence[bool] | np.ndarray | None = None,
    fields: Sequence[Mapping[str, str]] | None = None,
    folder: str = "VOC",
    depth: int = 3,
) -> str:
    """A Pascal VOC annotation.

    Args:
        file_name: of the image.
        size: (height, width) of the image, pixels.
        boxes: (N, 4) xyxy, 0-based pixels; written 1-based and inclusive, with decimals only where there are some.
        names: class name of each box.
        difficult: of each box; false if not given.
        fields: of each box, other elements to write (`pose`, `truncated`, `occluded`, ...).
        folder: content of `<folder>`.
        depth: channels of the image.
    """
    lines = [
        "<annotation>",
        f"\t<folder>{xml_text(folder)}</folder>",
        f"\t<filename>{xml_text(file_name)}</filename>",
        f"\t<size><width>{size[1]}</width><height>{size[0]}</height><depth>{depth}</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    for number, (box, name) in enumerate(zip(boxes, names, strict=True)):
        own = {"pose": "Unspecified", "truncated": "0", **(fields[number] if fields is not None else {})}
        own["difficult"] = str(int(difficult is not None and bool(difficult[number])))
        edges = zip(("xmin", "ymin", "xmax", "ymax"), box + np.array([1, 1, 0, 0]), strict=True)
        lines += ["\t<object>", f"\t\t<name>{xml_text(name)}</name>"]
        lines += [f"\t\t<{key}>{xml_text(value)}</{key}>" for key, value in own.items()]
        lines += [
            "\t\t<bndbox>" + "".join(f"<{k}>{voc_number(v)}</{k}>" for k, v in edges) + "</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def xml_text(text: str) -> str:
    """Escape `text` for XML 1.0, and remove control characters that XML forbids."""
    return escape("".join(c if c in "\t\n" or c >= " " else "\ufffd" for c in text))


def voc_number(value: float) -> str:
    """Format a pixel coordinate: as an integer if it is one, as in VOC, else with all decimals."""
    nearest = round(value)
    return str(nearest) if abs(value - nearest) < VOC_NOISE else _short(value, 10)


def coco_annotation(
    number: int, image_id: int, category_id: int, box: np.ndarray, crowd: bool = False, area: float | None = None
) -> dict[str, Any]:
    """One entry of COCO's `annotations`.

    Args:
        number: the annotation's id, unique in the file.
        image_id, category_id: as in `images` and `categories`.
        box: (4,) xyxy pixels; written as x, y, width, height.
        crowd: the region stands for many objects.
        area: of the outline, square pixels; None uses the area of the box.
    """
    x, y, width, height = (coco_number(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1]))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, width, height],
        "area": coco_number(width * height if area is None else area),
        "iscrowd": int(crowd),
    }


def coco_number(value: float) -> float | int:
    """Format a pixel coordinate with two decimals, as in COCO's files, or all if it has more."""
    near = round(float(value), 2)
    near = near if abs(value - near) < COCO_NOISE else round(float(value), 10)
    return int(near) if near == int(near) else near


def write_coco_json(
    path: Path,
    categories: Sequence[Mapping[str, Any]],
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a COCO instances file entry by entry, in constant memory.

    Source: https://cocodataset.org/#format-data
    """
    with (
        replacing(path, f".{path.name}.tmp") as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(f'{{"info": {json.dumps(info or {}, ensure_ascii=False)},\n"licenses": [],\n')
        for key, entries in (("categories", categories), ("images", images), ("annotations", annotations)):
            file.write(f'"{key}": [')
            for number, entry in enumerate(entries):
                file.write((",\n" if number else "\n") + json.dumps(entry, ensure_ascii=False))
            file.write("]" + ("}\n" if key == "annotations" else ",\n"))


def yolo_txt(boxes: np.ndarray, labels: Sequence[int] | np.ndarray, size: tuple[int, int]) -> str:
    """The lines of a YOLO label file: class, centre x, y, width, height as fractions of the image.

    Args:
        boxes: (N, 4) xyxy pixels.
        labels: (N,) class of each box.
        size: (height, width) of the image, pixels.

    Fractions have as many digits as needed to restore the same pixels.
    """
    height, width = size
    lines = []
    for (x1, y1, x2, y2), label in zip(np.asarray(boxes, np.float64), labels, strict=True):
        numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(int(label)), *(yolo_number(v) for v in numbers)]))
    return "".join(f"{line}\n" for line in lines)


def yolo_number(value: float) -> str:
    """Format a fraction with six decimals, or all if it has more."""
    near = round(value, 6)
    return _short(near, 6) if abs(value - near) < YOLO_NOISE else _short(value, 16)


def write_yolo_yaml(
    path: Path,
    class_names: Sequence[str] | Mapping[int, str],
    splits: Mapping[str, str],
    root: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """A data.yaml: the image root, the list or folder of each split, the class names by number, and other settings.

    Source: https://docs.ultralytics.com/datasets/detect/
    """
    names = dict(class_names) if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    content = {**({"path": root} if root else {}), **splits, "names": names, **(settings or {})}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)
    write_file(path, text.encode("utf-8", "backslashreplace"))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A text file with one entry per line; names that are not UTF-8 keep their bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def _short(value: float, decimals: int) -> str:
    """A plain decimal number (never 1e-05) without trailing zeros."""
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
