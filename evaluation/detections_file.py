"""Detections from elsewhere: COCO results, predict.py's lists, and files in the VOC challenge's own layout."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.index import DatasetIndex
from evaluation.evaluator import EvaluationResult, FoundDetections
from utils.errors import UserError, warn
from utils.json_file import read_json

_FORMATS = "a COCO results list, or the list that predict.py --json writes"


def read_detections(path: Path, index: DatasetIndex) -> FoundDetections:
    """Detections of a JSON file, for the images of an index.

    Args:
        path: a COCO results file (a list of `image_id`, `category_id`, `bbox` xywh, `score`, or an object with such a
            list in `annotations`), or predict.py's list of `image` and `detections` (`class_name`, `score`,
            `box_xyxy`).
        index: the split. Images are found by id, by file name, or by file name without folder and suffix; numbers
            also with other leading zeros. An image without detections is scored as such.

    Returns:
        labels index `index.class_names`, boxes are float64.

    Raises:
        UserError: if the file cannot be read, is of neither form, or has nothing of this split.
    """
    rows = _read_rows(path)
    is_ours = bool(rows) and "detections" in rows[0]
    lookup = _ImageLookup(index)
    table = _our_rows(path, rows, index) if is_ours else _coco_rows(path, rows, index)
    images, boxes, scores, labels = [], [], [], []
    elsewhere: Counter[str] = Counter()
    for image_key, box, score, label in table:
        position = lookup.find(path, image_key)
        if position is None:
            elsewhere[str(image_key)] += 1
        elif label >= 0:
            images.append(position)
            boxes.append(box)
            scores.append(score)
            labels.append(label)
    if rows and elsewhere and not images:
        example = next(iter(elsewhere))
        raise UserError(
            path,
            f"none of its images (e.g. {example}) is in {index.name} (e.g. {_example(index)})",
            "name the split that the detections are of",
        )
    if elsewhere:
        what = f"{sum(elsewhere.values())} detections are of {len(elsewhere)} images outside of {index.name}"
        warn(path, what, "they are left out")
    order = np.argsort(np.asarray(images, np.int64), kind="stable")
    return FoundDetections(
        np.asarray(images, np.int64)[order],
        np.asarray(boxes, np.float64).reshape(-1, 4)[order],
        np.asarray(scores, np.float64)[order],
        np.asarray(labels, np.int64)[order],
        np.arange(len(index)),
    )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    values = read_json(path, _FORMATS)
    if isinstance(values, dict):
        values = values.get("annotations")
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise UserError(path, "holds no list of detections", f"give {_FORMATS}")
    return values


def _our_rows(path: Path, rows: list[dict[str, Any]], index: DatasetIndex) -> Iterable[tuple[Any, list, float, int]]:
    """(image, box xyxy, score, label) of predict.py's list; label -1 for a class that the data does not have."""
    labels = {name: i for i, name in enumerate(index.class_names)}
    unknown: Counter[str] = Counter()
    known = 0
    for number, row in enumerate(rows):
        where = f"{path}, item {number}"
        image, found = row.get("image"), row.get("detections")
        if not isinstance(image, (str, int)) or not isinstance(found, list):
            raise UserError(where, "has no `image` and `detections`", f"give {_FORMATS}")
        for each in found:
            name = each.get("class_name") if isinstance(each, dict) else None
            if not isinstance(name, str):
                raise UserError(where, "has a detection without `class_name`", f"give {_FORMATS}")
            box = _numbers(where, each.get("box_xyxy"), 4, "box_xyxy")
            label = labels.get(name, -1)
            known += label >= 0
            unknown[name] += label < 0
            yield image, box, _numbers(where, [each.get("score")], 1, "score")[0], label
    _report_unknown(path, +unknown, known, index)


def _coco_rows(path: Path, rows: list[dict[str, Any]], index: DatasetIndex) -> Iterable[tuple[Any, list, float, int]]:
    """(image id, box xyxy, score, label) of COCO results; label -1 for a category that the data does not have."""
    ids = index.category_ids or tuple(range(1, len(index.class_names) + 1))
    labels = {category: i for i, category in enumerate(ids)}
    unknown: Counter[str] = Counter()
    known = 0
    for number, row in enumerate(rows):
        where = f"{path}, item {number}"
        image, category = row.get("image_id"), row.get("category_id")
        if not isinstance(image, (str, int)) or isinstance(category, bool) or not isinstance(category, int):
            raise UserError(where, "has no `image_id` and whole `category_id`", f"give {_FORMATS}")
        x, y, width, height = _numbers(where, row.get("bbox"), 4, "bbox")
        label = labels.get(category, -1)
        known += label >= 0
        unknown[str(category)] += label < 0
        score = _numbers(where, [row.get("score")], 1, "score")[0]
        yield image, [x, y, x + width, y + height], score, label
    _report_unknown(path, +unknown, known, index)


def _report_unknown(path: Path, unknown: Counter[str], known: int, index: DatasetIndex) -> None:
    if not unknown:
        return
    names = ", ".join(list(unknown)[:8])
    if not known:
        raise UserError(
            path,
            f"none of its classes ({names}) is one of {index.name} ({', '.join(index.class_names[:8])}, ...)",
            "score it on the data it was made for",
        )
    warn(path, f"{sum(unknown.values())} detections are of classes that {index.name} lacks: {names}", "left out")


def _numbers(where: str, value: Any, count: int, name: str) -> list[float]:
    good = isinstance(value, list) and len(value) == count
    if not good or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
        raise UserError(where, f"`{name}` is not {count} finite number{'s' if count > 1 else ''}", "correct the file")
    return [float(v) for v in value]


class _ImageLookup:
    """Positions of images by id or file name, exactly first, then leniently."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self.exact: dict[str, int] = {}
        self.lenient: dict[str, list[int]] = defaultdict(list)
        self._found: dict[str, int | None] = {}
        for i in range(len(index)):
            image_id, file = str(index.image_ids[i]), index.path(i)
            self.exact[image_id] = i
            self.exact.setdefault(str(file), i)
            for key in {_plain(image_id), _plain(PurePosixPath(image_id).name), file.name, _plain(file.stem)}:
                self.lenient[key].append(i)

    def find(self, path: Path, key: str | int) -> int | None:
        """Position of an image, None if it is not there. Raises UserError where two images answer."""
        text = str(key)
        if text not in self._found:
            self._found[text] = self._search(path, text)
        return self._found[text]

    def _search(self, path: Path, text: str) -> int | None:
        if text in self.exact:
            return self.exact[text]
        name = Path(text.replace("\\", "/"))
        for candidate in (_plain(text), name.name, _plain(name.stem)):
            found = self.lenient.get(candidate, [])
            if len(found) == 1:
                return found[0]
            if found:
                two = " and ".join(str(self.index.image_ids[i]) for i in found[:2])
                raise UserError(path, f"image {text} may be {two}", "give the image's full id or file name")
        return None


def _plain(text: str) -> str:
    """Without leading zeros, so that 000012 is 12."""
    return text.lstrip("0") or "0" if text.isdigit() else text


def _example(index: DatasetIndex) -> str:
    return str(index.image_ids[0]) if len(index) else "no images"


def detection_lists(result: EvaluationResult) -> list[dict[str, Any]]:
    """predict.py's list of an evaluation's detections: one object an image, of `image`, `width`, `height`,
    `detections` (each `class_id`, `class_name`, `score`, `box_xyxy`)."""
    record, index = result.record, result.index
    bounds = np.searchsorted(record.det_image, np.arange(record.num_images + 1))
    rows = []
    for i in range(record.num_images):
        part = slice(bounds[i], bounds[i + 1])
        height, width = index.sizes[i].tolist()
        rows.append(
            {
                "image": str(index.path(i)),
                "image_id": record.image_ids[i].item(),
                "width": width,
                "height": height,
                "detections": [
                    {"class_id": c, "class_name": record.class_names[c], "score": round(s, 6), "box_xyxy": box}
                    for c, s, box in zip(
                        record.det_labels[part].tolist(),
                        record.det_scores[part].tolist(),
                        record.det_boxes[part].round(3).tolist(),
                        strict=True,
                    )
                ],
            }
        )
    return rows


def write_voc_results(folder: Path, result: EvaluationResult, split: str, entry: str = "comp4") -> Path:
    """One file a class, as the VOC evaluation server takes them.

    `results/VOC<year>/Main/<entry>_det_<split>_<class>.txt`, a line a detection: image id, score, and the box
    1-based and inclusive.

    Args:
        folder: where `results` goes.
        result: an evaluation.
        split: the image set, e.g. `test` or `VOC2012:test`.
        entry: `comp3` if only VOC's own images were used in training (pretraining included), else `comp4`.

    Returns:
        the folder of the files.

    Source: VOC2012 development kit, section 4.3.
    """
    record = result.record
    years = re.findall(r"VOC(\d{4})", result.index.name)
    target = folder / "results" / f"VOC{years[-1] if years else '2012'}" / "Main"
    target.mkdir(parents=True, exist_ok=True)
    ids = [str(image_id).rsplit("/", 1)[-1] for image_id in record.image_ids]
    boxes = record.det_boxes + np.array([1.0, 1.0, 0.0, 0.0])
    for c, name in enumerate(record.class_names):
        mine = np.flatnonzero(record.det_labels == c)
        lines = _voc_lines(ids, record.det_image[mine], record.det_scores[mine], boxes[mine])
        file_name = "".join("_" if letter in '/\\:*?"<>|' else letter for letter in name)
        (target / f"{entry}_det_{split.rsplit(':', 1)[-1]}_{file_name}.txt").write_text(lines, encoding="utf-8")
    return target


def _voc_lines(ids: Sequence[str], images: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> str:
    rows = zip(images.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    return "".join(f"{ids[i]} {s:.6f} {b[0]:.6f} {b[1]:.6f} {b[2]:.6f} {b[3]:.6f}\n" for i, s, b in rows)
