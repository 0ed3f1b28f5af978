"""Read YOLO text labels: with a data.yaml, a darknet obj.data, or only a list of class names."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from data.class_names import check_class_names, decode_text, numbers_from_one, read_class_names, unlisted_classes
from data.formats.clean import RawSplit, build_index
from data.formats.folder import UPLOAD_PREFIX, Folder, plain_name, split_of, stem_of, suffix_of, unread_labels
from data.formats.yolo_rows import ROW, LabelFiles, Rows, label_classes, label_path
from data.index import DatasetIndex
from data.skips import Skip
from data.walk import walk_files
from imaging.image_io import IMAGE_SUFFIXES, MAX_MEGAPIXELS
from utils.errors import UserError, brief
from utils.files import MEGABYTE, StrPath, read_file, read_lines
from utils.text import counted, some_names

MAX_YAML_BYTES = MEGABYTE // 4  # the parser takes seconds for a megabyte; a thousand classes need 30 KB
MAX_LIST_BYTES = 256 * MEGABYTE
SPLIT_KEYS = ("train", "val", "valid", "validation", "test", "minival", "trainval")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "_classes.txt", "names.txt", "class_names.txt",
              "labels.txt", "predefined_classes.txt")  # fmt: skip
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
ALL = "all"  # the split of a data set without splits
_SETTINGS = ("path", "names", "nc", "download", "task", "kpt_shape", "flip_idx", "roboflow")


@dataclass
class DataYaml:
    """The description of a data set by a data.yaml, an obj.data or the folder itself.

    Args:
        path: the file, or the folder if there is no file.
        root: base of its relative paths.
        splits: name to the folders, lists or images it names.
        class_names: in the order of the labels.
        unnamed: those that stand for numbers without a name; they are not classes.
        key_points: number and size of the keypoints of a row (`kpt_shape`).
        are_polygons: `task` is `segment` or `obb`: rows of more than five columns are polygons.
        files: what else was read, or would have been if it were there; a change makes a cached index stale.
        found_by_hand: there is no file; the names of classes without a box are left out.
        notes: corrections to report.
    """

    path: Path
    root: Path
    splits: dict[str, list[str]]
    class_names: tuple[str, ...]
    unnamed: frozenset[str] = frozenset()
    key_points: tuple[int, int] | None = None
    are_polygons: bool = False
    files: list[Path] = field(default_factory=list)
    found_by_hand: bool = False
    notes: list[Skip] = field(default_factory=list)

    @property
    def numbered(self) -> dict[int, str]:
        """The classes by their numbers."""
        return {number: name for number, name in enumerate(self.class_names) if name not in self.unnamed}

    def settings(self) -> dict[str, Any]:
        """The entries of a data.yaml that say how rows of more than five columns are to be read."""
        if self.key_points is not None:
            return {"kpt_shape": list(self.key_points)}
        return {"task": "segment"} if self.are_polygons else {}


# --- data.yaml and obj.data ------------------------------------------------------------------------------------------


def find_data_yaml(folder: Path) -> Path | None:
    """The data.yaml of a folder: that name, else the only YAML file that has `names` and a split, else an obj.data."""
    for name in YAML_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = [each for each in sorted(folder.glob("*.[yY]*[mM][lL]")) if each.is_file() and _looks_like_data_yaml(each)]
    others = others or [each for each in sorted(folder.glob("*.data")) if each.is_file() and _looks_like_obj_data(each)]
    return others[0] if len(others) == 1 else None


def _looks_like_data_yaml(path: Path) -> bool:
    text = _small_text(path)
    has_split = re.search(r"^(train|val\w*|test)\s*:", text, re.M | re.IGNORECASE)
    return bool(has_split and re.search(r"^names\s*:", text, re.M))


def _looks_like_obj_data(path: Path) -> bool:
    return bool(re.search(r"^\s*names\s*=", _small_text(path), re.M))


def _small_text(path: Path) -> str:
    try:
        return decode_text(read_file(path, MAX_YAML_BYTES), path)
    except UserError:
        return ""


def read_data_yaml(data: StrPath) -> DataYaml:
    """Read a data.yaml or obj.data (or the one of a folder).

    Raises:
        UserError: if it does not exist, is larger than 256 KB, is not YAML, or its names or splits are invalid.
    """
    path = Path(data)
    if path.is_dir():
        found = find_data_yaml(path)
        if found is None:
            raise UserError(path, "has no data.yaml", "create one with train, val and names")
        path = found
    text = decode_text(read_file(path, MAX_YAML_BYTES), path)
    if path.suffix.lower() == ".data":
        return _from_obj_data(text, path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        what = f"is not YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        raise UserError(where, what, "correct it, or create a new one with train, val and names") from None
    if not isinstance(content, dict):
        raise UserError(path, "contains no settings", "write train, val and names into it")
    class_names, unnamed, names_file = _names(content, path)
    root = content.get("path") or "."
    if not isinstance(root, str) or "\0" in root:
        raise UserError(path, f"path is {brief(root)}", "give a folder")
    base = path.parent / os.path.expanduser(root)
    config = DataYaml(path, base if base.is_dir() else path.parent, {}, class_names, unnamed, files=names_file)
    if not base.is_dir():
        config.files.append(base)
    if not base.is_dir() and (moved := _tail_in(root, [path.parent])) and os.path.isdir(moved):
        config.root = Path(moved)
    config.splits = _splits(content, config)
    if not config.splits:
        raise UserError(path, "has no train, val or test", "add `train: images/train` and `val: images/val`")
    missing = _missing_test(config)
    config.key_points = _key_points(content.get("kpt_shape"), path)
    config.are_polygons = content.get("task") in ("segment", "obb")
    config.notes = [*missing, *_check_class_files(config)]
    return config


def _missing_test(config: DataYaml) -> list[Skip]:
    """Leave out a `test` that does not exist: Roboflow's data.yaml names one also where nothing was exported for it."""
    if len(config.splits) < 2 or any(_resolve(config, entry)[0] for entry in config.splits.get("test", [""])):
        return []
    what = f"test: {', '.join(config.splits.pop('test'))[:80]} does not exist in {config.root}; there is no split test"
    return [Skip("note", "missing_test", str(config.path), what, "correct the path, or remove the line")]


def _splits(content: dict[Any, Any], config: DataYaml) -> dict[str, list[str]]:
    """The entries that name pictures: `train`, `val`, `test` in any case, and others that lead to a folder or list."""
    splits = {}
    for key, value in content.items():
        name = str(key).lower()
        if name in SPLIT_KEYS and value:
            splits[name] = _strings(value, name, config.path)
        elif name not in _SETTINGS and isinstance(value, str) and "\0" not in value and _resolve(config, value)[0]:
            splits[str(key)] = [value]
    return splits


def _from_obj_data(text: str, path: Path) -> DataYaml:
    """Parse darknet's `key = value` lines; paths are relative to darknet's working folder (`data/train.txt`)."""
    rows = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    content = {key.strip().lower(): value.strip() for key, value in rows}
    names = _tail_in(content.get("names", ""), [path.parent])
    if names is None:
        what = f"refers to the class file {content.get('names', '')!r}, which does not exist"
        raise UserError(path, what, "restore it")
    config = DataYaml(path, path.parent, {}, read_class_names(names), files=[Path(names)])
    config.splits = {key: [content[key]] for key in SPLIT_KEYS if content.get(key)}
    if not config.splits:
        raise UserError(path, "has no train or valid", "add `train = train.txt`")
    return config


def list_yolo_splits(data: StrPath) -> list[str]:
    """The splits that a data.yaml names."""
    return list(read_data_yaml(data).splits)


def _names(content: dict[Any, Any], path: Path) -> tuple[tuple[str, ...], frozenset[str], list[Path]]:
    """The class names, those that stand for a missing number, and the file that holds them if it is not the yaml."""
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, str) and (file := _tail_in(names, [path.parent])):
        return read_class_names(file), frozenset(), [Path(file)]
    unnamed: frozenset[str] = frozenset()
    if isinstance(names, dict):
        numbered = {str(key): name for key, name in names.items()}
        if not all(re.fullmatch(r"0|[1-9]\d{0,3}", key) for key in numbered):
            raise UserError(path, f"the keys of names are {brief(list(names))}", "number the classes from 0")
        total = 1 + max(map(int, numbered), default=-1)
        unnamed = frozenset(f"class_{number}" for number in range(total) if str(number) not in numbered)
        names = [numbered.get(str(number), f"class_{number}") for number in range(total)]
    if not isinstance(names, list):
        raise UserError(path, "has no names", "add the class names as a list in label order")
    checked = check_class_names(names, path)
    counts = (len(checked), len(checked) - len(unnamed))
    if count is not None and count not in (*counts, *map(str, counts)):  # never as text: it may be a YAML bomb
        what = f"nc is {brief(count)}, but names has {counted(len(checked) - len(unnamed), 'name')}"
        raise UserError(path, what, "correct one of them")
    return checked, unnamed, []


def _strings(value: Any, key: str, path: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and "\0" not in each for each in values):
        raise UserError(path, f"{key} is {brief(value)}", "give a folder, a list file, or several of them")
    return values


def _key_points(value: Any, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    is_shape = isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value)
    if not is_shape or value[0] < 1 or value[1] not in (2, 3):
        raise UserError(path, f"kpt_shape is {brief(value)}", "give number and size of the keypoints, such as [17, 3]")
    return value[0], value[1]


def _check_class_files(config: DataYaml) -> list[Skip]:
    """Compare the names with every classes.txt that a labelling tool left in the data set.

    Raises:
        UserError: if one gives other names to the same numbers: the labels follow one of the two orders.
    """
    files = [config.path.parent / "classes.txt"]
    config.files += files  # those among the labels are in their folders
    files += [Path(path) for pattern in ("[lL]abels", "[lL]abels/*", "*/[lL]abels")
              for path in sorted(config.root.glob(f"{pattern}/classes.txt"))]  # fmt: skip
    for file in files:
        if not file.is_file():
            continue
        theirs, ours = read_class_names(file), config.class_names
        if any(one != other for one, other in zip(theirs, ours, strict=False)):
            what = f"has the classes {some_names(ours, 6)}, but {file} has {some_names(theirs, 6)}"
            raise UserError(config.path, what, "find out which order the labels follow and correct the other file")
        if len(theirs) > len(ours):
            missing = some_names(theirs[len(ours) :], 6)
            what = f"names {counted(len(theirs), 'class')}, {config.path.name} only {len(ours)}: not {missing}"
            return [Skip("note", "more_names", str(file), what, f"add them to {config.path.name} if they have boxes")]
    return []


# --- paths of another machine ----------------------------------------------------------------------------------------


def _tail_in(name: str, bases: Iterable[StrPath]) -> str | None:
    """The longest suffix of a path that exists in one of the folders, ignoring case and slash style."""
    parts = [part for part in re.split(r"[/\\]", re.sub(r"^[A-Za-z]:", "", name)) if part not in ("", ".", "..")]
    folders = list(dict.fromkeys(os.fspath(base) for base in bases))
    for start in range(len(parts)):
        for base in folders:
            if (found := _descend(base, parts[start:])) is not None:
                return found
    return None


def _descend(base: str, parts: Sequence[str]) -> str | None:
    for part in parts:
        exact = os.path.join(base, part)
        if not os.path.lexists(exact):
            try:
                names = {plain_name(name): name for name in os.listdir(base)}
            except OSError:
                return None
            if plain_name(part) not in names:
                return None
            exact = os.path.join(base, names[plain_name(part)])
        base = exact
    return base


def _resolve(config: DataYaml, entry: str) -> tuple[Path | None, bool]:
    """The location of an entry, and whether it had to be searched: another machine's path, or another case."""
    trimmed = re.sub(r"^(\.\.[/\\])+", "", entry)  # Roboflow's ../train/images
    for candidate in (config.root / entry, config.path.parent / entry, config.path.parent / trimmed):
        if candidate.exists():
            return candidate, False
        config.files.append(candidate)
    found = _tail_in(entry, [config.root, config.path.parent])
    return (None if found is None else Path(found)), True


# --- which images ----------------------------------------------------------------------------------------------------


@dataclass
class _Files:
    """The images of a split, where each was named, and the index's dependencies."""

    images: list[str] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _gather(config: DataYaml, split: str) -> _Files:
    gathered = _Files(files=[os.path.abspath(config.path)], skips=list(config.notes))
    if config.found_by_hand:
        gathered.images, gathered.files = list(config.splits[split]), []
    for entry in () if config.found_by_hand else config.splits[split]:
        place, was_moved = _resolve(config, entry)
        if place is None:
            todo = "correct the path, or remove the line: training then divides the images of the other splits"
            raise UserError(config.path, f"{split}: {entry} does not exist in {config.root}", todo)
        if was_moved and not entry.startswith("data/"):  # darknet's folder
            what = f"{split}: {entry} does not exist; {place} is used"
            gathered.skips.append(Skip("note", "moved_path", str(config.path), what, "correct the path"))
        if place.is_dir():
            gathered.folders.append(os.path.abspath(place))
            gathered.images += _images_below(place, config, gathered.skips)
        else:
            gathered.files.append(os.path.abspath(place))
            gathered.images += _images_of_list(place, config, gathered.skips)
    gathered.files += sorted({os.path.abspath(each) for each in config.files})
    unique = dict.fromkeys(gathered.images)
    if len(unique) < len(gathered.images):
        what = f"{split} lists {counted(len(gathered.images) - len(unique), 'image')} twice; each is used once"
        gathered.skips.append(Skip("note", "duplicate_id", str(config.path), what))
    gathered.images = list(unique)
    return gathered


def _homes(config: DataYaml, folder: Path) -> list[str]:
    return [os.path.realpath(each) for each in (config.root, config.path.parent, folder)]


def _images_below(folder: Path, config: DataYaml, skips: list[Skip]) -> list[str]:
    files, outside = walk_files(folder, _homes(config, folder))
    skips += [_outside(path, path, config) for path in outside]
    return [path for path in files if suffix_of(path) in IMAGE_SUFFIXES]


def _images_of_list(file: Path, config: DataYaml, skips: list[Skip]) -> list[str]:
    found, moved = [], []
    homes = _homes(config, file.parent)
    for number, line in read_lines(file, MAX_LIST_BYTES):
        line = line.strip()
        candidates = [os.path.join(config.root, line), os.path.join(file.parent, line)]
        path = next((each for each in candidates if "\0" not in each and os.path.lexists(each)), None)
        if path is None and "\0" not in line and (path := _tail_in(line, [config.root, file.parent])):
            moved.append(line)
        path = path or candidates[0]
        if _leads_outside(path, homes):
            skips.append(_outside(f"{file}:{number}", line, config))
        else:
            found.append(os.path.normpath(path))
    if moved and not any("\\" in line or line.startswith("data/") for line in moved[:1]):  # Windows', darknet's
        what = f"{len(moved)} paths, such as {moved[0][-80:]!r}, do not exist as written; found by their last parts"
        skips.append(Skip("note", "moved_path", str(file), what))
    return found


def _leads_outside(path: str, homes: Sequence[str]) -> bool:
    try:
        real = os.path.realpath(path)
    except ValueError:
        return True
    return not any(real.startswith(home.rstrip(os.sep) + os.sep) for home in homes)


def _outside(where: str, path: str, config: DataYaml) -> Skip:
    todo = "keep images inside the data set, or set `path` to their folder"
    return Skip("image", "leads_outside", where, f"{path[-80:]!r} is outside of {config.root}", todo)


# --- a folder without a data.yaml ------------------------------------------------------------------------------------


def sniff_plain(folder: Folder) -> str | None:
    """Evidence that a folder holds images and YOLO labels without a data.yaml, or None."""
    labels = _pair(folder)
    heads = (folder.head(path).strip() for path in labels.values())
    rows = [head.splitlines()[0] for head in islice(filter(None, heads), 20)]
    if not rows or sum(bool(ROW.match(row)) for row in rows) < 0.5 * len(rows):
        return None
    return f"{counted(len(labels), 'image has', 'images have')} a .txt file with rows of `class cx cy width height`"


def _pair(folder: Folder) -> dict[str, str]:
    """The label file of each image that has one: at the standard path, else the only .txt of its name."""
    finder = LabelFiles()
    by_stem: dict[str, list[str]] = {}
    for path in folder.having(".txt"):
        by_stem.setdefault(plain_name(stem_of(path)), []).append(path)
    for stem in list(by_stem):  # labels of Label Studio, images as they were before the upload
        by_stem.setdefault(UPLOAD_PREFIX.sub("", stem), by_stem[stem])
    pairs = {}
    for image in folder.pictures:
        label = finder.find(image)
        same = by_stem.get(plain_name(stem_of(image)), [])
        if not os.path.lexists(label) and len(same) > 1:
            same = [path for path in same if split_of(folder.relative(path)) == split_of(folder.relative(image))]
        if os.path.lexists(label):
            pairs[image] = label
        elif len(same) == 1:
            pairs[image] = same[0]
    return pairs


def plain_config(folder: Folder, class_names: Sequence[str] | None) -> tuple[DataYaml, dict[str, str]]:
    """The content of a folder without a data.yaml, and the label file of each image.

    Raises:
        UserError: if neither a file nor `class_names` gives the class names.
    """
    names = names_of_folder(folder)
    labels = _pair(folder)
    if names is None and class_names is None:
        used = Counter(label_classes(labels.values()))
        names = tuple(sorted(each for each in used if isinstance(each, str)))
        if not names or len(names) < len(used):
            raise names_needed(folder)
    splits: dict[str, list[str]] = {}
    for picture in folder.pictures:
        splits.setdefault(split_of(folder.relative(picture)) or ALL, []).append(picture)
    config = DataYaml(folder.root, folder.root, splits, tuple(names or class_names or ()), found_by_hand=True)
    return config, labels


def names_needed(folder: Folder) -> UserError:
    """Error text for class numbers without class names."""
    return UserError(
        folder.root,
        f"has labels with class numbers, but no class names (looked for {', '.join(NAME_FILES)} and data.yaml)",
        "write classes.txt with one name per line in the order of the numbers, or give --classes FILE",
    )


def names_of_folder(folder: Folder) -> tuple[str, ...] | None:
    """The class names given by a file of the folder; several files must agree.

    Raises:
        UserError: if two files give other names to the same numbers.
    """
    ranks = {name: rank for rank, name in enumerate(NAME_FILES)}
    files = [path for path in folder.files if os.path.basename(path).casefold() in ranks
             or path.endswith((".names", "_classes.txt"))]  # fmt: skip
    files.sort(key=lambda path: (folder.relative(path).count("/"), ranks.get(os.path.basename(path).casefold(), 99)))
    lists = {path: read_class_names(path) for path in files if not ROW.match(folder.head(path).split(b"\n")[0])}
    for first, second in zip(lists, list(lists)[1:], strict=False):
        if any(one != other for one, other in zip(lists[first], lists[second], strict=False)):
            what = f"has the classes {some_names(lists[first], 6)}, but {second} has {some_names(lists[second], 6)}"
            raise UserError(first, what, "find out which order the labels follow and remove the other file")
    if lists:
        return max(lists.values(), key=len)
    for path in folder.files:
        if os.path.basename(path) == "notes.json":  # Label Studio
            try:
                content = json.loads(read_file(path, MEGABYTE))["categories"]
                return check_class_names([each["name"] for each in sorted(content, key=lambda each: each["id"])], path)
            except (ValueError, KeyError, TypeError):
                continue
    return None


# --- the reader ------------------------------------------------------------------------------------------------------


def read_yolo(
    data: StrPath,
    split: str,
    class_names: Sequence[str] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> DatasetIndex:
    """Read a split of a data.yaml.

    Args:
        data: the data.yaml or obj.data, or the folder that holds it.
        split: `train`, `val` or `test`, as the file names it.
        class_names: the classes in label order; None uses the file's. They are matched by name.
        max_megapixels: as in `open_dataset`.

    Returns:
        The split; image ids are the image paths within the data set, without suffix. An image without a label
        file has no objects, as in the format; a polygon becomes its box.

    Raises:
        UserError: if the yaml, the split or its folder does not exist, or rows are ambiguous. Bad images and
            boxes are skips of the result.

    Source: https://docs.ultralytics.com/datasets/detect/
    """
    return _read(read_data_yaml(data), data, split, class_names, max_megapixels, {})


def read_plain_yolo(place: Path, split: str, class_names: Sequence[str] | None, max_megapixels: float) -> DatasetIndex:
    """Like `read_yolo` of a folder without a data.yaml; its splits are `train`, `val`, `test` folders, else `all`."""
    folder = Folder(place)
    config, labels = plain_config(folder, class_names)
    names = class_names
    if names is None:  # labelImg's classes.txt lists the tool's classes, not those in use
        used = Counter(label_classes(labels.values()))
        numbers = [each for each in used if isinstance(each, int)]
        start = int(0 not in numbers and max(numbers, default=0) == len(config.class_names))
        names = [each for number, each in enumerate(config.class_names, start) if used[number] or used[each]]
        names = names or config.class_names
        if len(names) < len(config.class_names):
            what = f"{len(config.class_names) - len(names)} of {len(config.class_names)} class names without a box"
            todo = "they are skipped; to keep them, give --classes FILE"
            config.notes.append(Skip("note", "names_without_boxes", str(folder.root), what, todo))
    return _read(config, folder.only or folder.root, split, names, max_megapixels, labels)


def _read(
    config: DataYaml,
    data: StrPath,
    split: str,
    class_names: Sequence[str] | None,
    max_megapixels: float,
    paired: dict[str, str],
) -> DatasetIndex:
    if split not in config.splits:
        raise UserError(config.path, f"has no split {split!r}", f"choose from {', '.join(config.splits)}")
    gathered, finder = _gather(config, split), LabelFiles()
    rows = Rows(config.key_points, config.are_polygons)
    labels = [paired.get(image) or finder.find(image) for image in gathered.images]
    name = f"{(config.root if config.found_by_hand else config.path.parent).resolve().name} {split}"
    bar = tqdm(labels, desc=name, delay=2, leave=False)
    read = [rows.add(number, path) for number, path in enumerate(bar)]
    rows.check_columns(config.path / "data.yaml" if config.found_by_hand else config.path)

    images = [each for each, is_used in zip(gathered.images, read, strict=True) if is_used]
    label_files = [each for each, is_used in zip(labels, read, strict=True) if is_used]
    skips = gathered.skips + rows.skips
    looked_at: list[str] = []
    labelled, keep = _labelled_names(config, split, rows, labels, finder, paired, skips, looked_at)
    names = tuple(config.numbered.values() if class_names is None else class_names)
    found = Counter(each for each, is_known in zip(labelled, keep, strict=True) if is_known)
    label_of = {each: label for label, each in enumerate(names)}
    classes = np.array([label_of.get(each, -1) for each in labelled], np.int32)
    owner = np.array(rows.owner, np.int64)
    owner = (np.cumsum(np.array(read, bool)) - 1)[owner] if len(owner) else owner
    skips += unlisted_classes(found, names, str(config.path))
    unlabelled = [image for image, file in zip(gathered.images, labels, strict=True) if not os.path.lexists(file)]
    if rows.facts["no_label_file"]:
        looked = sorted({os.path.dirname(path) for path in labels if not os.path.lexists(path)})[:2]
        what = f"{rows.facts['no_label_file']} of {len(labels)} images of {split} without a label file in "
        what += f"{' or '.join(looked)}; they are used as images without objects: "
        what += some_names([os.path.basename(image) for image in unlabelled], 5)
        skips.append(Skip("note", "no_label_file", str(config.path), what, "label them if they contain objects"))
    skips += unread_labels(unlabelled, (".xml", ".json"), str(config.path))
    classes[~keep] = -1
    homes = (os.path.dirname(each) for each in chain(gathered.images, labels, looked_at))
    folders = {config.root} if config.found_by_hand else {*gathered.folders, *homes}
    raw = RawSplit(
        name=name,
        class_names=names,
        paths=images,
        image_ids=unique_ids(images, config.root),
        declared=np.zeros((len(images), 2)),
        box_image=owner,
        boxes=np.array(rows.boxes, np.float64).reshape(-1, 4),
        labels=classes,
        box_where=lambda m: f"{label_files[owner[m]]}:{rows.lines[m]}",
        normalised=True,
        numbers=None if rows.facts["polygons"] else "centre",
        box_refs=np.array(rows.lines, np.int64),
        source={
            "format": "yolo",
            "root": os.path.abspath(data),
            "split": split,
            "dependencies": {"files": gathered.files, "folders": sorted(map(os.path.abspath, folders))},
            "found_classes": dict(found),
            "facts": dict(rows.facts),
            "label_files": {i: f for i, f in zip(images, label_files, strict=True) if f != label_path(i)},
            "no_label": unlabelled,
        },
        skips=skips,
    )
    return build_index(raw, max_megapixels)


def _labelled_names(
    config: DataYaml,
    split: str,
    rows: Rows,
    labels: Sequence[str],
    finder: LabelFiles,
    paired: dict[str, str],
    skips: list[Skip],
    looked_at: list[str],
) -> tuple[list[str], np.ndarray]:
    """The class name of each row, and whether it has one; numbers beyond the list are reported with a suggestion.

    `looked_at` gets the label files of the other splits if they had to be read.
    """

    def others() -> Iterator[int | str]:
        rest = (name for name in config.splits if name != split)
        pictures = chain.from_iterable(_gather(config, name).images for name in rest)
        looked_at.extend(paired.get(image) or finder.find(image) for image in pictures)
        yield from label_classes(looked_at)

    known, count = config.class_names, len(config.class_names)
    first = 0 if config.unnamed else rows.first_class(count, others)
    if first:
        skips.append(numbers_from_one(known, str(config.path)))
    extra = next((note.where for note in config.notes if note.code == "more_names"), None)
    theirs = read_class_names(extra) if extra else ()
    names, keep = [], []
    for number, owner, line in zip(rows.classes, rows.owner, rows.lines, strict=True):
        if isinstance(number, str):
            names.append(number)
            keep.append(True)
            continue
        names.append(known[number - first] if first <= number < count + first else "")
        keep.append(bool(names[-1]) and names[-1] not in config.unnamed)
        if not keep[-1]:
            listed = some_names([str(each) for each in config.numbered]) if config.unnamed else ""
            what = f"class {number} is not one of {listed or f'{first} to {count - 1 + first}'}"
            what += f"; {extra} calls it {theirs[number]!r}" if number < len(theirs) else ""
            skips.append(Skip("box", "unknown_class", f"{labels[owner]}:{line}", f"{what}; box dropped",
                              "correct the label, or add the class name"))  # fmt: skip
    return names, np.array(keep, bool)


def unique_ids(images: Sequence[str], root: StrPath) -> list[str]:
    """Unique names: the path within the data set without suffix, or with it if two images share that."""
    names = [os.path.relpath(image, root).replace(os.sep, "/") for image in images]
    stems = [os.path.splitext(name)[0] for name in names]
    times = Counter(stems)
    return [stem if times[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
