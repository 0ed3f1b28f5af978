"""Read and write detections: COCO results, predict.py's lists, and the VOC challenge's layout."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.index import DatasetIndex
from evaluation.evaluator import EvaluationResult, FoundDetections, plain_class_name
from utils.errors import UserError, warn
from utils.files import write_file
from utils.json_file import read_json
from utils.text import counted, some_names

MAX_MISSING = 0.5  # fraction of the split's images that a file may lack
MISSING = ("refuse", "empty", "skip")
# https://github.com/cocodataset/cocoapi: 80 of the numbers 1 to 90
COCO_CATEGORY_IDS = tuple(k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
_Row = tuple[Any, list[float], float, Any]  # image, box xyxy, score, and the class: its name or category number
_FORMATS = "a COCO results list, or a list written by predict.py --json"


@dataclass(frozen=True)
class ReadDetections:
    """Content of a detections file.

    Args:
        found: the detections; `found.images` are the images that they are scored on.
        notes: assumptions to report, as text.
    """

    found: FoundDetections
    notes: tuple[str, ...] = ()


def read_detections(
    path: Path,
    index: DatasetIndex,
    classes: Sequence[str] | None = None,
    missing: str = "refuse",
    others: str = "refuse",
    unknown: str = "skip",
) -> ReadDetections:
    """Read detections from a JSON file, for the images of an index.

    Args:
        path: a COCO results file (a list of `image_id`, `category_id`, `bbox` xywh, `score`, or an object with such a
            list in `annotations`), or predict.py's list of `image` and `detections` (`class_name`, `score`,
            `box_xyxy`).
        index: the split. Images are matched by id, by file name, or by file name without folder and suffix; numbers
            also with different leading zeros.
        classes: the names of the file's category numbers, in their order.
        missing: how to treat images that the file does not list: `empty` (no detections), `skip` (not
            evaluated), or `refuse`: an error if they are more than half, else `skip` for predict.py's lists,
            which list every image, and `empty` for COCO results, which cannot.
        others: how to treat images that are not in the split: `refuse`, or `skip`: leave them out.
        unknown: how to treat detections of classes that the index does not have: `skip`, or `keep` with label -1.

    Returns:
        labels index `index.class_names`, boxes are float64.

    Raises:
        UserError: if the file cannot be read, has neither form, contains invalid boxes or scores, or images that
            the split does not have; the message names the row.
    """
    values = read_json(path, _FORMATS)
    rows = _rows(path, values)
    is_ours = bool(rows) and "detections" in rows[0]
    lookup, notes = _ImageLookup(index), []
    label_of: Callable[[Any], int]
    if is_ours:
        table, label_of = _our_rows(path, rows), label_lookup(index)
    else:
        table, (label_of, note) = _coco_rows(path, rows), _category_labels(path, values, rows, index, classes)
        notes += [note] if note else []
    found: list[tuple[int, list[float], float, int]] = []
    count_of: Counter[Any] = Counter()
    listed: set[int] = set()
    elsewhere: dict[str, None] = {}
    for image, box, score, name in table:
        count_of[name] += 1
        position = lookup.find(path, image)
        if position is None:
            elsewhere[str(image)] = None
            continue
        listed.add(position)
        if name is not None and ((label := label_of(name)) >= 0 or unknown == "keep"):
            found.append((position, box, score, label))
    del count_of[None]
    _report_unknown(path, count_of, label_of, index)
    if elsewhere and others == "refuse":
        names = some_names([*elsewhere], 5)
        what = f"{counted(len(elsewhere), 'image')} ({names}) not in {index.name} (e.g. {_example(index)})"
        raise UserError(path, what, "give the split of the detections, or remove these images")
    if isinstance(values, dict) and isinstance(values.get("images"), list):
        keys = (each["id"] for each in values["images"] if isinstance(each, dict) and "id" in each)
        listed |= {place for key in keys if (place := lookup.find(path, key)) is not None}
    scored = _scored_images(path, index, listed, missing, is_ours, notes)
    found.sort(key=lambda row: row[0])
    columns = [[row[k] for row in found] for k in range(4)]
    detections = FoundDetections(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.float64).reshape(-1, 4),
        np.array(columns[2], np.float64),
        np.array(columns[3], np.int64),
        scored,
    )
    return ReadDetections(detections, tuple(notes))


def _scored_images(
    path: Path, index: DatasetIndex, listed: set[int], missing: str, is_ours: bool, notes: list[str]
) -> np.ndarray:
    """Positions of the images that the detections are scored on."""
    absent = len(index) - len(listed)
    if absent and missing == "refuse" and absent > MAX_MISSING * len(index):
        what = f"lacks {absent} of the {len(index)} images of {index.name}"
        todo = "was it made with --limit, or from another split? If it is correct: --missing-images skip (they were "
        raise UserError(path, what, f"{todo}not processed) or empty (they have no detections)")
    skip = missing == "skip" or (missing == "refuse" and is_ours)
    if skip and not listed:
        raise UserError(path, f"lists no image of {index.name}", "give the detections of this data set")
    if absent:
        how = "not evaluated" if skip else "evaluated as images without detections"
        notes.append(f"{path} lacks {absent} of the {len(index)} images of {index.name}: {how}")
    return np.array(sorted(listed), np.int64) if skip else np.arange(len(index))


def _rows(path: Path, values: Any) -> list[dict[str, Any]]:
    if isinstance(values, dict):
        values = values.get("annotations")
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise UserError(path, "contains no list of detections", f"give {_FORMATS}")
    return values


def _our_rows(path: Path, rows: list[dict[str, Any]]) -> Iterable[_Row]:
    """The detections of predict.py's list, and a row without a class for each image."""
    for number, row in enumerate(rows):
        where = f"{path}, item {number}"
        image, found = row.get("image_id", row.get("image")), row.get("detections")
        image = row.get("image") if isinstance(row.get("image"), str) else image
        if not isinstance(image, (str, int)) or not isinstance(found, list):
            raise UserError(where, "has no `image` and `detections`", f"give {_FORMATS}")
        yield image, [], 0.0, None
        for place, each in enumerate(found):
            name = each.get("class_name") if isinstance(each, dict) else None
            if not isinstance(name, str):
                raise UserError(where, "has a detection without `class_name`", f"give {_FORMATS}")
            within = f"{where}, detection {place}"
            box = _numbers(within, each.get("box_xyxy"), 4, "box_xyxy")
            _check_box(within, "box_xyxy", box, box[2] - box[0], box[3] - box[1])
            yield image, box, _score(within, each), name


def _coco_rows(path: Path, rows: list[dict[str, Any]]) -> Iterable[_Row]:
    """The detections of COCO results."""
    for number, row in enumerate(rows):
        where = f"{path}, item {number}"
        image, category = row.get("image_id"), row.get("category_id")
        if not isinstance(image, (str, int)) or isinstance(category, bool) or not isinstance(category, int):
            raise UserError(where, "has no `image_id` and whole `category_id`", f"give {_FORMATS}")
        x, y, width, height = _numbers(where, row.get("bbox"), 4, "bbox")
        _check_box(where, "bbox", [x, y, width, height], width, height)
        yield image, [x, y, x + width, y + height], _score(where, row), category


def _category_labels(
    path: Path, values: Any, rows: list[dict[str, Any]], index: DatasetIndex, classes: Sequence[str] | None
) -> tuple[Callable[[int], int], str]:
    """Takes a category number to its label, -1 for a class that the index does not have; and a text about its source.

    By name if `classes` or a `categories` list of the file names the numbers; else by the data set's COCO numbers;
    else 1, 2, ... in class order.
    """
    numbers = {row["category_id"] for row in rows if type(row.get("category_id")) is int}
    categories = values.get("categories") if isinstance(values, dict) else None
    if classes is not None:
        names, source = _numbered(classes, numbers), "--detection-classes"
    elif isinstance(categories, list):
        names = {each["id"]: str(each.get("name")) for each in categories
                 if isinstance(each, dict) and type(each.get("id")) is int}  # fmt: skip
        source = f"the categories of {path.name}"
    elif index.category_ids is not None:
        labels = {category: i for i, category in enumerate(index.category_ids)}
        return lambda category: labels.get(category, -1), ""
    else:
        names = dict(enumerate(index.class_names, 1))
        source = f"{index.name}, which has no category numbers, in alphabetical order"
        if numbers - names.keys():
            others = some_names([str(number) for number in sorted(numbers - names.keys())])
            what = f"category numbers ({others}) are not 1 to {len(names)}, as the classes of {index.name} would be"
            raise UserError(path, what, "give their class names with --detection-classes FILE (or voc, coco)")
    label_of = label_lookup(index)
    labels = {k: label_of(name) for k, name in names.items()}
    used = [f"{k} = {names[k]}" for k in sorted(numbers) if labels.get(k, -1) >= 0]
    return lambda category: labels.get(category, -1), f"category numbers by {source}: {some_names(used)}"


def label_lookup(index: DatasetIndex) -> Callable[[str], int]:
    """Takes a class name to its label, -1 if the index has no such class; VOC's and COCO's names are equivalent."""
    labels = {name: label for label, name in reversed(list(enumerate(index.class_names)))}
    plain = {plain_class_name(name): label for name, label in labels.items()}
    return lambda name: labels.get(name, plain.get(plain_class_name(name), -1))


def _numbered(classes: Sequence[str], numbers: set[int]) -> dict[int, str]:
    """Names by category number: from 1 (0 if it occurs); for COCO's 80 classes, COCO's numbers, which have gaps."""
    if len(classes) == len(COCO_CATEGORY_IDS) and not numbers - set(COCO_CATEGORY_IDS):
        return dict(zip(COCO_CATEGORY_IDS, classes, strict=True))
    return dict(enumerate(classes, 0 if 0 in numbers else 1))


def _report_unknown(path: Path, count_of: Counter[Any], label_of: Callable[[Any], int], index: DatasetIndex) -> None:
    """Warn of detections of classes that the index does not have."""
    unknown = {name: count for name, count in count_of.items() if label_of(name) < 0}
    if not unknown:
        return
    names = some_names([str(name) for name in unknown], 8)
    what = f"{counted(sum(unknown.values()), 'detection')} of classes that {index.name} does not have: {names}"
    if len(unknown) == len(count_of):
        what = f"no detection of a class of {index.name} ({some_names(index.class_names, 8)}), only of: {names}"
    warn(path, what, "they are not evaluated")


def _check_box(where: str, name: str, box: list[float], width: float, height: float) -> None:
    if min(width, height) < 0:  # 0 is valid: coordinates are often rounded, and such a box matches nothing
        what = f"`{name}` {[round(value, 3) for value in box]} has the width {width:g} and the height {height:g}"
        raise UserError(where, what, "both must be at least 0; correct the file")


def _score(where: str, row: dict[str, Any]) -> float:
    score = _numbers(where, [row.get("score")], 1, "score")[0]
    if not 0 <= score <= 1:
        raise UserError(where, f"`score` is {score:g}, not between 0 and 1", "divide percentages by 100")
    return score


def _numbers(where: str, value: Any, count: int, name: str) -> list[float]:
    good = isinstance(value, list) and len(value) == count
    if not good or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
        raise UserError(where, f"`{name}` is not {count} finite number{'s' if count > 1 else ''}", "correct the file")
    return [float(v) for v in value]


class _ImageLookup:
    """Positions of images by id or file name: exact matches first, then lenient ones."""

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
        """Position of an image, None if not found. Raises UserError if two images match."""
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
    """Strip leading zeros, so that 000012 equals 12."""
    return text.lstrip("0") or "0" if text.isdigit() else text


def _example(index: DatasetIndex) -> str:
    return str(index.image_ids[0]) if len(index) else "no images"


def detection_lists(result: EvaluationResult) -> list[dict[str, Any]]:
    """Detections of an evaluation in predict.py's format: one object per image, with `image`, `width`, `height`,
    `detections` (each `class_id`, `class_name`, `score`, `box_xyxy`)."""
    record, index = result.record, result.index
    bounds = np.searchsorted(record.det_image, np.arange(record.num_images + 1))
    rows = []
    for i in range(record.num_images):
        part = slice(bounds[i], bounds[i + 1])
        columns = (each[part].tolist() for each in (record.det_labels, record.det_scores, record.det_boxes))
        found = [
            {"class_id": c, "class_name": record.class_names[c], "score": score, "box_xyxy": box}
            for c, score, box in zip(*columns, strict=True)
        ]
        height, width = index.sizes[i].tolist()
        row = {"image": str(index.path(i)), "image_id": record.image_ids[i].item(), "width": width, "height": height}
        rows.append(row | {"detections": found})
    return rows


def write_voc_results(folder: Path, result: EvaluationResult, split: str, entry: str = "comp4") -> Path:
    """Write one file per class, in the format of the VOC evaluation server; returns their folder.

    `results/VOC<year>/Main/<entry>_det_<split>_<class>.txt`, one line per detection: image id, score, and the box,
    1-based and inclusive. `entry` is `comp3` if only VOC's own images were used (pretraining included), else
    `comp4`.

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
        lines = (
            f"{ids[record.det_image[d]]} {record.det_scores[d]:.6f} {' '.join(f'{edge:.6f}' for edge in boxes[d])}\n"
            for d in mine
        )
        file_name = "".join("_" if letter in '/\\:*?"<>|' else letter for letter in name)
        path = target / f"{entry}_det_{split.rsplit(':', 1)[-1]}_{file_name}.txt"
        write_file(path, "".join(lines).encode())
    return target
