"""Read YOLO text labels, as a data.yaml names them, as a DatasetIndex."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from data.class_names import check_class_names, decode_text, suggestions
from data.formats.clean import RawSplit, build_index
from data.index import DatasetIndex
from data.skips import Skip
from utils.errors import UserError, brief
from utils.files import MEGABYTE, FileError, read_file, read_lines
from utils.images import IMAGE_SUFFIXES, MAX_MEGAPIXELS

MAX_YAML_BYTES = MEGABYTE // 4  # the parser takes seconds for a megabyte; a thousand classes need 30 KB
MAX_LABEL_BYTES = 10 * MEGABYTE
MAX_LIST_BYTES = 256 * MEGABYTE
SPLIT_KEYS = ("train", "val", "valid", "validation", "test", "minival", "trainval")
NOT_NORMALISED = 2.0  # a fraction beyond this is not a rounding error but a pixel


@dataclass
class DataYaml:
    """A data.yaml that was understood.

    Args:
        path: the file.
        root: what its relative paths start from.
        splits: name to the folders and lists it names.
        class_names: in the order of the labels.
    """

    path: Path
    root: Path
    splits: dict[str, list[str]]
    class_names: tuple[str, ...]


def find_data_yaml(folder: Path) -> Path | None:
    """The data.yaml of a folder: that name, else the only YAML file that has `names` and a split."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (folder / name).is_file():
            return folder / name
    others = [each for each in sorted(folder.glob("*.y*ml")) if each.is_file() and _looks_like_data_yaml(each)]
    return others[0] if len(others) == 1 else None


def _looks_like_data_yaml(path: Path) -> bool:
    try:
        text = decode_text(read_file(path, MAX_YAML_BYTES), path)
    except UserError:
        return False
    return bool(re.search(r"^names\s*:", text, re.M) and re.search(r"^(train|val|valid|test)\s*:", text, re.M))


def read_data_yaml(data: str | os.PathLike[str]) -> DataYaml:
    """Read a data.yaml (or the one of a folder).

    Raises:
        UserError: if it is not there, bigger than 256 KB, no YAML, or its names or splits are not what they should be.
    """
    path = Path(data)
    if path.is_dir():
        found = find_data_yaml(path)
        if found is None:
            raise UserError(path, "has no data.yaml", "write one with train, val and names")
        path = found
    text = decode_text(read_file(path, MAX_YAML_BYTES), path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        what = f"is not YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        raise UserError(where, what, "correct it, or write it anew with train, val and names") from None
    if not isinstance(content, dict):
        raise UserError(path, "holds no settings", "write train, val and names into it")
    class_names = _names(content, path)
    splits = {str(key): _strings(content[key], key, path) for key in SPLIT_KEYS if content.get(key)}
    if not splits:
        raise UserError(path, "names no train, val or test", "add `train: images/train` and `val: images/val`")
    root = content.get("path") or "."
    if not isinstance(root, str) or "\0" in root:
        raise UserError(path, f"path is {brief(root)}", "give a folder")
    base = path.parent / os.path.expanduser(root)
    return DataYaml(path, base if base.is_dir() else path.parent, splits, class_names)


def list_yolo_splits(data: str | os.PathLike[str]) -> list[str]:
    """The splits that a data.yaml names."""
    return list(read_data_yaml(data).splits)


def _names(content: dict[Any, Any], path: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(path, f"the keys of names are {brief(list(names))}", "number the classes from 0 on")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise UserError(path, "has no names", "add the class names as a list in the order of the labels")
    checked = check_class_names(names, path)
    count = content.get("nc")
    if count is not None and count != len(checked):
        raise UserError(path, f"nc is {brief(count)}, but there are {len(checked)} names", "correct one of them")
    return checked


def _strings(value: Any, key: str, path: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and "\0" not in each for each in values):
        raise UserError(path, f"{key} is {brief(value)}", "give a folder, a list file, or several of them")
    return values


# --- which images ----------------------------------------------------------------------------------------------------


@dataclass
class _Files:
    """The pictures of a split, where each was named, and what the index depends on."""

    images: list[str] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _gather(config: DataYaml, split: str) -> _Files:
    gathered = _Files(files=[os.path.abspath(config.path)])
    for entry in config.splits[split]:
        place = _resolve(config, entry)
        if place is None:
            raise UserError(config.path, f"{split}: {entry} does not exist in {config.root}", "correct the path")
        if place.is_dir():
            gathered.folders.append(os.path.abspath(place))
            gathered.images += _images_below(place, config, gathered.skips)
        else:
            gathered.files.append(os.path.abspath(place))
            gathered.images += _images_of_list(place, config, gathered.skips)
    unique = dict.fromkeys(gathered.images)
    if len(unique) < len(gathered.images):
        what = f"{split} names {len(gathered.images) - len(unique)} pictures twice; each is used once"
        gathered.skips.append(Skip("note", "duplicate_id", str(config.path), what))
    gathered.images = list(unique)
    folders = {os.path.dirname(path) for path in gathered.images}
    gathered.folders = sorted({*folders, *(os.path.dirname(label_path(os.path.join(f, "x"))) for f in folders)})
    return gathered


def _resolve(config: DataYaml, entry: str) -> Path | None:
    """An entry of the yaml: from `path`, from the yaml's folder, or (Roboflow's `../train/images`) without the `..`."""
    trimmed = re.sub(r"^(\.\./)+", "", entry)
    for candidate in (config.root / entry, config.path.parent / entry, config.path.parent / trimmed):
        if candidate.exists():
            return candidate
    return None


def _images_below(folder: Path, config: DataYaml, skips: list[Skip]) -> list[str]:
    if not any(True for _ in os.scandir(folder)):
        return []
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                if os.path.islink(path) and _leads_outside(path, folder, config):
                    skips.append(_outside(path, path, config))
                else:
                    found.append(path)
    return found


def _images_of_list(file: Path, config: DataYaml, skips: list[Skip]) -> list[str]:
    found = []
    for number, line in read_lines(file, MAX_LIST_BYTES):
        line = line.strip()
        candidates = [os.path.join(config.root, line), os.path.join(file.parent, line)]
        path = next((each for each in candidates if "\0" not in each and os.path.lexists(each)), candidates[0])
        if _leads_outside(path, file.parent, config):
            skips.append(_outside(f"{file}:{number}", line, config))
        else:
            found.append(os.path.normpath(path))
    return found


def _leads_outside(path: str, folder: Path, config: DataYaml) -> bool:
    homes = [os.path.realpath(each) for each in (config.root, config.path.parent, folder)]
    try:
        real = os.path.realpath(path)
    except ValueError:
        return True
    return not any(real.startswith(home.rstrip(os.sep) + os.sep) for home in homes)


def _outside(where: str, path: str, config: DataYaml) -> Skip:
    todo = "keep pictures inside the data set, or set `path` to the folder that holds them"
    return Skip("image", "leads_outside", where, f"{path[-80:]!r} leads out of {config.root}", todo)


def label_path(image: str | os.PathLike[str]) -> str:
    """The label file of a picture: the last folder `images` becomes `labels`, the suffix `.txt`."""
    head, separator, tail = os.fspath(image).rpartition(f"{os.sep}images{os.sep}")
    stem = os.path.splitext(tail if separator else os.fspath(image))[0]
    return f"{head}{os.sep}labels{os.sep}{stem}.txt" if separator else f"{stem}.txt"


# --- the labels ------------------------------------------------------------------------------------------------------


class _Reader:
    """Gathers boxes in plain lists while it goes through the label files."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.owner: list[int] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.classes: list[int] = []
        self.lines: list[int] = []
        self.skips: list[Skip] = []
        self.facts: Counter[str] = Counter()

    def add(self, image: int, path: str) -> bool:
        """Read the labels of an image; False if there is a file and it cannot be read."""
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
        try:
            if "_" in "".join(words):  # Python's 1_000 is nobody else's number
                raise ValueError
            values = [float(word) for word in words]
        except ValueError:
            return self._drop("bad_number", path, number, f"{' '.join(words)[:60]!r} is not a row of numbers")
        polygon = len(values) >= 7 and len(values) % 2 == 1
        if len(values) != 5 and not polygon:
            what = f"{len(values)} numbers, not `class cx cy width height` nor a polygon"
            return self._drop("bad_columns", path, number, what)
        label = values[0]
        if not (label % 1 == 0 and 0 <= label < len(self.names)):
            what = f"class {words[0][:20]} is not one of 0 to {len(self.names) - 1}"
            return self._drop("unknown_class", path, number, what)
        if any(abs(value) > NOT_NORMALISED for value in values[1:]):
            what = f"{' '.join(words[1:5])[:60]} are not fractions of the picture"
            return self._drop("not_normalised", path, number, what)
        if polygon:
            xs, ys = values[1::2], values[2::2]
            box = (min(xs), min(ys), max(xs), max(ys))
            self.facts["polygons"] += 1
        else:
            _, cx, cy, width, height = values
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        self.owner.append(image)
        self.boxes.append(box)
        self.classes.append(int(label))
        self.lines.append(number)

    def _drop(self, code: str, path: str, number: int, what: str) -> None:
        self.skips.append(Skip("box", code, f"{path}:{number}", f"{what}; box dropped", "correct the label"))


def read_yolo(
    data: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> DatasetIndex:
    """Read a split that a data.yaml names.

    Args:
        data: the data.yaml, or the folder that holds it.
        split: `train`, `val` or `test`, as the file names it.
        class_names: the classes in the order of the labels; None takes the file's. They are matched by name.
        max_megapixels: leave out pictures that claim more.

    Returns:
        The split; image ids are the pictures' paths within the data set, without suffix. A picture without a label
        file is one without objects, as the format has it; a polygon becomes its box.

    Raises:
        UserError: if the yaml, the split or its folder is not there. Bad images and boxes are skips of the result.

    Source: https://docs.ultralytics.com/datasets/detect/
    """
    config = read_data_yaml(data)
    if split not in config.splits:
        raise UserError(config.path, f"has no split {split!r}", f"choose from {', '.join(config.splits)}")
    gathered = _gather(config, split)
    reader = _Reader(config.class_names)
    labels = [label_path(image) for image in gathered.images]
    name = f"{config.path.parent.resolve().name} {split}"
    bar = tqdm(labels, desc=name, delay=2, leave=False)
    read = [reader.add(number, path) for number, path in enumerate(bar)]

    names = tuple(class_names) if class_names is not None else config.class_names
    found = Counter(config.class_names[number] for number in reader.classes)
    label_of = {each: label for label, each in enumerate(names)}
    translate = np.array([label_of.get(each, -1) for each in config.class_names], np.int32)
    classes = translate[np.array(reader.classes, np.int64)]
    used = np.array(read, bool)
    owner, lines = np.array(reader.owner, np.int64), np.array(reader.lines, np.int64)
    skips = gathered.skips + reader.skips + _unlisted(found, names, config.path)
    if reader.facts["no_label_file"]:
        what = f"{reader.facts['no_label_file']} pictures of {split} have no label file; taken as without objects"
        skips.append(Skip("note", "no_label_file", str(config.path), what, "label them if they hold objects"))
    known = classes >= 0
    owner, lines = (np.cumsum(used) - 1)[owner[known]], lines[known]
    images = [each for each, is_used in zip(gathered.images, read, strict=True) if is_used]
    label_files = [each for each, is_used in zip(labels, read, strict=True) if is_used]
    dependencies = {"files": gathered.files, "folders": [os.path.abspath(each) for each in gathered.folders]}
    raw = RawSplit(
        name=name,
        class_names=names,
        paths=images,
        image_ids=_ids(images, config.root),
        declared=np.zeros((len(images), 2)),
        box_image=owner,
        boxes=np.array(reader.boxes, np.float64).reshape(-1, 4)[known],
        labels=classes[known],
        difficult=np.zeros(int(known.sum()), bool),
        crowd=np.zeros(int(known.sum()), bool),
        box_where=lambda m: f"{label_files[owner[m]]}:{lines[m]}",
        normalised=True,
        box_refs=lines,
        source={
            "format": "yolo",
            "root": os.path.abspath(data),
            "split": split,
            "dependencies": dependencies,
            "found_classes": dict(found),
            "facts": dict(reader.facts),
        },
        skips=skips,
    )
    return build_index(raw, max_megapixels)


def _unlisted(found: Counter[str], names: Sequence[str], path: Path) -> list[Skip]:
    return [
        Skip(
            "box",
            "unknown_class",
            str(path),
            f"class {name!r} is not one of the {len(names)} classes; {found[name]} boxes dropped",
            todo,
            found[name],
        )
        for name, todo in suggestions(found, names).items()
    ]


def _ids(images: list[str], root: Path) -> list[str]:
    """Unique names: the path within the data set without suffix, with it where two pictures share that."""
    names = [os.path.relpath(image, root).replace(os.sep, "/") for image in images]
    stems = [os.path.splitext(name)[0] for name in names]
    times = Counter(stems)
    return [stem if times[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
