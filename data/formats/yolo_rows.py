"""Parse rows of YOLO label files: `class cx cy width height`, a polygon, or a box with keypoints."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from data.class_names import decode_text
from data.formats.folder import as_utf8, plain_name, stem_of, suffix_of
from data.skips import Skip, rotated_note
from utils.errors import UserError
from utils.files import MEGABYTE, FileError, StrPath, read_file
from utils.text import counted

MAX_LABEL_BYTES = 10 * MEGABYTE
NOT_NORMALISED = 2.0  # a larger value is a pixel coordinate, not a rounding error
LIKELY_SHAPE = 0.8  # fraction of rows that must fit keypoints, or rotated boxes, for a data set to be taken as such
PARALLELOGRAM = 0.1  # difference of the diagonals' centres, as a fraction of the side, of a hand-drawn rotated box
_FRACTION = rb"(0?\.\d+|[01](\.0*)?|\d(\.\d+)?e-\d+)"
ROW = re.compile(  # a class number and numbers, or a class name and fractions
    rb"^\s*(\d+(\.0*)?(\s+-?\d*\.?\d+(e-?\d+)?){4,}|"
    rb"(?=\S*[a-z\x80-\xff])[^,;{}<>\n]{1,100}?(\s+" + _FRACTION + rb"){4,})\s*$",
    re.IGNORECASE,
)
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "obj_train_data")
_LABEL_FOLDERS = ("labels", "label", "annotations", "annotation", "annots", "txt")

Box = tuple[float, float, float, float]


class Rows:
    """Collects the rows of label files in plain lists.

    Args:
        key_points: number and size of the keypoints of each row (`kpt_shape`), so that columns 2 to 5 are its box.
        are_polygons: rows of more than five columns are polygons; if neither is given, it is detected, or an error.
    """

    def __init__(self, key_points: tuple[int, int] | None = None, are_polygons: bool = False) -> None:
        self.key_points, self.are_polygons = key_points, are_polygons
        self.owner: list[int] = []
        self.boxes: list[Box] = []
        self.classes: list[int | str] = []
        self.lines: list[int] = []
        self.skips: list[Skip] = []
        self.facts: Counter[str] = Counter()
        self._columns: Counter[int] = Counter()
        self._likely = self._with_flags = self._quadrangles = 0
        self._first_wide = self._first_score = ""

    def add(self, image: int, path: str) -> bool:
        """Read the labels of an image; False if the file exists but cannot be read."""
        try:
            text = decode_text(read_file(path, MAX_LABEL_BYTES), path)
        except UserError as error:
            if isinstance(error, FileError) and error.code == "missing_file":
                self.facts["no_label_file"] += 1
                return True
            self.skips.append(Skip("image", "bad_labels", error.where, error.what, error.todo))
            return False
        for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
            if line.strip():
                self._add_line(image, line.split(), path, number)
        return True

    def _add_line(self, image: int, words: list[str], path: str, number: int) -> None:
        name, values = split_row(words)
        if not values:
            what = f"{' '.join(words)[:60]!r} is not a row of numbers"
            return self._drop("bad_number", path, number, what)
        count = len(values)
        self._columns[count] += 1
        if count > 5:
            size = 0 if self.key_points else _key_point_size(values)
            self._likely += size > 0
            self._with_flags += size == 3
            self._quadrangles += _is_parallelogram(values[1:])
            self._first_wide = self._first_wide or f"{path}:{number}"
        is_polygon = count >= 7 and count % 2 == 1 and not self.key_points
        columns = 5 + self.key_points[0] * self.key_points[1] if self.key_points else 5
        has_score = count == 6 != columns and 0 <= values[5] <= 1  # as YOLO detectors write it
        if count not in (5, columns) and not is_polygon and not has_score:
            what = f"{count} numbers, not `class cx cy width height` or a polygon"
            if self.key_points:
                what = f"{count} numbers, not {columns} as in kpt_shape"
            what += ": is the last one a score or an angle?" if count == 6 else ""
            return self._drop("bad_columns", path, number, what)
        label = values[0]
        if not (label % 1 == 0 and label >= 0):
            return self._drop("unknown_class", path, number, f"class {words[0][:20]} is not an integer of at least 0")
        if any(abs(value) > NOT_NORMALISED for value in (values[1:] if is_polygon else values[1:5])):
            what = f"{' '.join(words[1:5])[:60]} are not fractions of the image size"
            return self._drop("not_normalised", path, number, what)
        if is_polygon:
            xs, ys = values[1::2], values[2::2]
            box = (min(xs), min(ys), max(xs), max(ys))
            self.facts["polygons"] += 1
        else:
            _, cx, cy, width, height = values[:5]
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            self.facts["key_points"] += count > 6
            self.facts["scores"] += has_score
            self._first_score = self._first_score or (f"{path}:{number}" if has_score else "")
        self.owner.append(image)
        self.boxes.append(box)
        self.classes.append(name or min(int(label), 1 << 31))
        self.lines.append(number)

    def _drop(self, code: str, path: str, number: int, what: str) -> None:
        self.skips.append(Skip("box", code, f"{path}:{number}", f"{what}; box dropped", "correct the label"))

    def check_columns(self, config: object) -> None:
        """Reject rows that can be polygons as well as boxes with keypoints; report polygons, rotated boxes and scores.

        Args:
            config: the data.yaml that should specify it.

        Raises:
            UserError: if all rows have the same number of columns, and most of them make sense with keypoints.
        """
        total, polygons, scores = sum(self._columns.values()), self.facts["polygons"], self.facts["scores"]
        if scores:
            what = f"{counted(scores, 'row')} with a sixth number from 0 to 1, read as the score of a detection"
            self.skips.append(
                Skip("note", "scores", self._first_score, what, "check that people have corrected the boxes")
            )
        are_rotated = bool(polygons) and self._quadrangles >= LIKELY_SHAPE * polygons
        if are_rotated:
            self.facts["rotated"] = polygons
            self.skips.append(rotated_note(str(config), polygons, self._first_wide))
        elif polygons:
            what = f"{counted(polygons, 'polygon')}, the first at {self._first_wide}, read as the enclosing boxes"
            self.skips.append(Skip("note", "polygons", str(config), what))
        if self.are_polygons or self.key_points or are_rotated or len(self._columns) != 1 or not total:
            return
        (count,) = self._columns
        if self._likely < LIKELY_SHAPE * total:
            return
        size = 3 if self._with_flags == self._likely else 2
        shape = [(count - 5) // size, size]
        what = f"all rows have {count} columns: a box and {shape[0]} keypoints, or a polygon"
        todo = f"write `kpt_shape: {shape}` into {config} for keypoints, or `task: segment` (`task: obb`) for polygons"
        raise UserError(self._first_wide, what, todo)

    def first_class(self, count: int, others: Callable[[], Iterable[int | str]]) -> int:
        """The number of the first class: 1 if all numbers of the data set are 1 to `count`, else 0.

        Args:
            count: number of class names.
            others: class numbers of the other splits; called only if these rows are ambiguous.
        """
        own = {each for each in self.classes if isinstance(each, int)}
        if not own or 0 in own or max(own) > count:
            return 0
        own |= {each for each in others() if isinstance(each, int)}
        return int(0 not in own and max(own) == count)


def _is_parallelogram(values: Sequence[float]) -> bool:
    """Whether four points are the corners of a rotated box, in order: the diagonals have one centre."""
    if len(values) != 8:
        return False
    for coordinates in (values[::2], values[1::2]):
        a, b, c, d = coordinates
        if abs(a + c - b - d) > 2 * PARALLELOGRAM * (max(coordinates) - min(coordinates)):
            return False
    return True


def _key_point_size(values: Sequence[float]) -> int:
    """2 or 3 if a row can be a box with keypoints of so many numbers each (the points are in the box), else 0."""
    _, cx, cy, width, height, *rest = values
    if not (0 < width <= 1.02 and 0 < height <= 1.02):
        return 0
    edges = (cx - width / 2, cx + width / 2, cy - height / 2, cy + height / 2)
    if not all(-0.02 <= edge <= 1.02 for edge in edges):
        return 0
    for size in (3, 2):
        if len(rest) % size or (size == 3 and not set(rest[2::3]) <= {0.0, 1.0, 2.0}):
            continue
        points = [(x, y) for x, y in zip(rest[::size], rest[1::size], strict=True) if (x, y) != (0, 0)]
        reach_x, reach_y = 0.02 + 0.6 * width, 0.02 + 0.6 * height
        if points and all(abs(x - cx) <= reach_x and abs(y - cy) <= reach_y for x, y in points):
            return size
    return 0


def split_row(words: Sequence[str]) -> tuple[str, list[float]]:
    """The class name of a row, empty if it is a number, and all its numbers; none if the row cannot be read.

    The first number is the class; for a class name, which may have several words, it is 0.
    """
    with contextlib.suppress(ValueError):  # nearly all rows
        if "_" not in "".join(words):  # only Python accepts 1_000
            return "", [float(word) for word in words]
    numbers = [_number(word) for word in words]
    count = next((n for n, value in enumerate(reversed(numbers)) if value is None), len(words))
    count -= count == 5 and words[-5].isdigit()  # `class 1`
    name = words[: len(words) - count] if numbers[0] is None and count >= 4 else []
    return " ".join(name), [0.0, *(value for value in numbers[-count:] if value is not None)] if name else []


def _number(word: str) -> float | None:
    try:
        return None if "_" in word else float(word)
    except ValueError:
        return None


def label_classes(paths: Iterable[str]) -> Iterator[int | str]:
    """The class of every row of label files, a number or a name, without checking the rest."""
    for path in paths:
        try:
            data = as_utf8(read_file(path, MAX_LABEL_BYTES))
        except FileError:
            continue
        for line in re.split(rb"[\r\n]+", data):
            first = line.split(None, 1)[:1]
            if first and first[0].isdigit() and len(first[0]) <= 6:
                yield int(first[0])
            elif first and (name := split_row(line.decode("utf-8", "replace").split())[0]):
                yield name


def label_path(image: StrPath) -> str:
    """The standard label path of an image: the last folder `images` becomes `labels`, the suffix `.txt`."""
    head, separator, tail = os.fspath(image).rpartition(f"{os.sep}images{os.sep}")
    stem = os.path.splitext(tail if separator else os.fspath(image))[0]
    return f"{head}{os.sep}labels{os.sep}{stem}.txt" if separator else f"{stem}.txt"


class LabelFiles:
    """Find the label files of images at their standard paths, ignoring case and Unicode form."""

    def __init__(self) -> None:
        self._listings: dict[str, dict[str, str]] = {}
        self._folders: dict[str, list[str]] = {}

    def find(self, image: str) -> str:
        """The label file of an image; if it does not exist, the standard path."""
        key = plain_name(stem_of(image))
        for folder in self._folders_for(os.path.dirname(image)):
            if (name := self._listing(folder).get(key)) is not None:
                return os.path.join(folder, name)
        return label_path(image)

    def _folders_for(self, folder: str) -> list[str]:
        if folder not in self._folders:
            parts = folder.split(os.sep)
            found = []
            for i in reversed(range(len(parts))):
                if parts[i].casefold() in _IMAGE_FOLDERS:
                    base = os.sep.join(parts[:i]) or os.sep
                    found += [os.path.join(base, name, *parts[i + 1 :]) for name in _subfolders(base, _LABEL_FOLDERS)]
            found.append(folder)
            found += [os.path.join(folder, name) for name in _subfolders(folder, _LABEL_FOLDERS)]
            self._folders[folder] = [each for each in found if os.path.isdir(each)]
        return self._folders[folder]

    def _listing(self, folder: str) -> dict[str, str]:
        if folder not in self._listings:
            names = sorted(os.listdir(folder), key=lambda name: not name.endswith(".txt"))
            labels = [name for name in reversed(names) if suffix_of(name) == ".txt"]
            self._listings[folder] = {plain_name(stem_of(name)): name for name in labels}
        return self._listings[folder]


def _subfolders(base: str, names: Sequence[str]) -> list[str]:
    """The folders in `base` with one of these names in any case, in the order of `names`."""
    try:
        found = {entry.name.casefold(): entry.name for entry in os.scandir(base) if entry.is_dir()}
    except OSError:
        return []
    return [found[name] for name in names if name in found]
