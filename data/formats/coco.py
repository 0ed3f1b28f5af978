"""Read COCO instances JSON as a DatasetIndex."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from data.class_names import check_class_names, unlisted_classes
from data.formats.clean import RawSplit, build_index
from data.formats.folder import Folder
from data.index import DatasetIndex
from data.skips import Skip
from imaging.image_io import MAX_MEGAPIXELS
from utils.errors import UserError, brief
from utils.files import MEGABYTE, StrPath, read_ends
from utils.json_file import read_json
from utils.text import counted

MAX_JSON_BYTES = 2048 * MEGABYTE
SNIFFED_BYTES = 1 << 20
MAX_FILES = 50  # maximum number of annotation files in a folder
MAX_ID = 1000  # maximum length of a text id
_INT64 = 2**63 - 1


def find_coco_files(data: StrPath) -> dict[str, Path]:
    """The annotation files of a COCO folder (or next to a JSON, including it), by split name.

    `annotations/instances_train2017.json` is `train2017`, `train/_annotations.coco.json` (Roboflow) is `train`,
    `val.json` is `val`.
    """
    path = Path(data)
    if path.is_file():
        siblings = _instances(path.parent) if path.name.startswith("instances_") else {}
        return siblings | {_split_of(path): path}
    found = _instances(path / "annotations") or _instances(path)
    if not found:
        roboflow = [*sorted(path.glob("_annotations.coco.json")), *sorted(path.glob("*/_annotations.coco.json"))]
        found = {each.resolve().parent.name: each for each in roboflow}
    if not found:
        for where in ("[aA]nnotations/*.[jJ]*[nN]", "*.[jJ]*[nN]", "*/*.[jJ]*[nN]"):
            files = sorted(path.glob(where))
            if len(files) <= MAX_FILES:  # many files, one JSON per image, belong to another format
                files = [p for p in files if p.suffix.lower() == ".json" and p.is_file() and looks_like_coco(p)]
                found |= _named(files, {path, *path.glob("[aA]nnotations")})
    return found


def _named(files: Sequence[Path], plain: set[Path]) -> dict[str, Path]:
    """Files by split: in `plain` folders named by the file, elsewhere by the folder (`valid/a.json`)."""
    names = [_split_of(each) if each.parent in plain else each.parent.name for each in files]
    times = Counter(names)
    return {name if times[name] == 1 else f"{each.parent.name}/{each.stem}": each
            for name, each in zip(names, files, strict=True)}  # fmt: skip


def _instances(folder: Path) -> dict[str, Path]:
    return {_split_of(each): each for each in sorted(folder.glob("instances_*.json")) if each.is_file()}


def _split_of(path: Path) -> str:
    if path.name == "_annotations.coco.json":
        return path.resolve().parent.name
    return re.sub(r"^instances_|^annotations_|_annotations$|[._]coco$", "", path.stem) or path.stem


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON has COCO's three lists, by its first and last bytes; `categories` alone means another format."""
    try:
        head, tail, size = read_ends(path, MAX_JSON_BYTES, SNIFFED_BYTES, SNIFFED_BYTES)
    except UserError:
        return False
    if re.search(rb'"categories"\s*:\s*\{', head):  # Datumaro's
        return False
    keys = sum(key in head or key in tail for key in (b'"images"', b'"annotations"', b'"categories"'))
    return keys == 3 or (keys == 2 and size > 2 * SNIFFED_BYTES)


class _Rows:
    """Collects annotations during parsing: numbers go directly into flat arrays, outlines are discarded.

    The official train2017 file is 450 MB of text, and several GB if kept as Python objects.
    """

    def __init__(self) -> None:
        self.ids = array("q")
        self.images = array("q")
        self.categories = array("q")
        self.boxes = array("d")
        self.areas = array("d")
        self.crowd = array("b")
        self.difficult = array("b")
        self.faults: dict[int, tuple[str, str]] = {}
        self.numbers: dict[str, int] = {}  # numbers that replace text ids

    def __len__(self) -> int:
        return len(self.ids)

    def hook(self, item: dict[str, Any]) -> Any:
        """Called by the JSON parser with every object, innermost first."""
        if "category_id" in item or ("bbox" in item and "image_id" in item):
            return self._add(item)
        if "counts" in item and "size" in item:
            return None  # a crowd's outline
        return item

    def _add(self, item: dict[str, Any]) -> _Row:
        row = len(self)
        box = item.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
            reason = "has no bbox" if box is None else f"bbox is {brief(box)}"
            self.faults[row] = ("no_box" if box is None else "bad_number", reason)
            box = (0.0, 0.0, 0.0, 0.0)
        for key in ("category_id", "image_id"):
            if _id(item.get(key)) is None:
                reason = f"{key} is {brief(item[key])}" if key in item else f"has no {key}"
                self.faults.setdefault(row, ("bad_reference", reason))
        area = item.get("area")
        self.ids.append(item["id"] if _is_integer(item.get("id")) else -1)
        self.images.append(self.number(item.get("image_id")))
        self.categories.append(self.number(item.get("category_id")))
        self.boxes.extend(_floats(box))
        self.areas.append(_floats([area])[0] if _is_number(area) else -1.0)
        self.crowd.append(_truth(item.get("iscrowd")))
        self.difficult.append(_truth(item.get("difficult")) or _truth(item.get("ignore")))
        return _Row(row)

    def number(self, identity: Any) -> int:
        """The id as a number: itself, a negative number for a text id, or -1 for an invalid id."""
        identity = _id(identity)
        if isinstance(identity, str):
            return self.numbers.setdefault(identity, -2 - len(self.numbers))
        return -1 if identity is None else identity


class _Row(int):
    """The number of an annotation in the flat arrays; a separate type, to distinguish it from numbers of the file."""


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value <= _INT64


def _id(value: Any) -> int | str | None:
    """An id: an integer, also one written as text, or another text; None for anything else."""
    if isinstance(value, str) and 0 < len(value) <= MAX_ID:
        return int(value) if re.fullmatch(r"0|[1-9][0-9]{0,17}", value) else value
    return value if _is_integer(value) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _floats(values: Sequence[int | float]) -> list[float]:
    return [float(value) if isinstance(value, float) or abs(value) < _INT64 else float("inf") for value in values]


def _truth(value: Any) -> bool:
    return isinstance(value, int | float) and value == 1


def read_coco(
    data: StrPath,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    image_folder: StrPath | None = None,
    need_pictures: bool = True,
) -> DatasetIndex:
    """Read a COCO annotation file.

    Args:
        data: the JSON, or a folder supported by `find_coco_files`.
        split: split of the folder, e.g. `train2017`; None if there is only one.
        class_names: the classes in label order; None uses the categories by ascending id.
        max_megapixels, image_folder, need_pictures: as in `open_dataset`.

    Returns:
        The split; images without annotations are negatives; crowds are marked, `ignore` and `difficult` too.

    Raises:
        UserError: if the file or split does not exist, or the JSON is not in COCO format.

    Source: https://cocodataset.org/#format-data
    """
    files = find_coco_files(data)
    if split is None and len(files) == 1:
        split = next(iter(files))
    if split is None or split not in files:
        raise UserError(data, f"has no split {split!r}", f"choose from {', '.join(files) or 'none'}")
    path = files[split]
    rows = _Rows()
    content = _load(path, rows)
    skips: list[Skip] = []
    categories = _categories(content["categories"], path, rows)
    roots, looked_at = _empty_roots(content["categories"], categories, rows, path, list(files.values()), skips)
    names = tuple(each for each in categories.values() if each not in roots)
    names = tuple(class_names) if class_names is not None else names
    folder = Path(image_folder) if image_folder else _image_folder(path, split, content["images"])
    pictures = _Pictures(path, folder, _home(data, path, image_folder))
    images, texts, declared = _images(content["images"], pictures, skips)
    ids = [rows.number(each) for each in texts]
    raw = RawSplit(
        name=f"{path.parent.resolve().parent.name if path.parent.name == 'annotations' else path.stem} {split}",
        class_names=names,
        paths=images,
        image_ids=ids if all(type(each) is int for each in texts) else [str(each) for each in texts],
        declared=declared,
        box_image=np.zeros(0, np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int32),
        box_where=str,
        skips=skips,
    )
    found = _add_boxes(raw, np.array(ids, np.int64), rows, content["annotations"], categories, path)
    id_of = {name: number for number, name in categories.items() if number >= 0}
    spare = iter(range(max([0, *categories]) + 1, _INT64))
    raw.category_ids = tuple(id_of[name] if name in id_of else next(spare) for name in names)
    raw.source = {
        "format": "coco",
        "root": os.path.abspath(data),
        "split": split,
        "json": os.path.abspath(path),
        "dependencies": {
            "files": [os.path.abspath(each) for each in (path, *looked_at)],
            "folders": sorted({os.path.abspath(folder), *(os.path.dirname(os.path.abspath(each)) for each in images)}),
        },
        "found_classes": found,
        "facts": {},
    }
    raw.numbers = "xywh"
    return build_index(raw, max_megapixels, need_pictures)


def _load(path: Path, rows: _Rows) -> dict[str, Any]:
    content = read_json(path, "an instances JSON", MAX_JSON_BYTES, rows.hook)
    if not isinstance(content, dict):
        raise UserError(path, "is not COCO: the top level is not an object", "give an instances JSON")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            what = f"has no list {key!r}" if key not in content else f"{key!r} is not a list"
            raise UserError(path, f"is not COCO: it {what}", "give an instances JSON")
    return content


def _categories(items: list[Any], path: Path, rows: _Rows) -> dict[int, str]:
    """Category id to name, by ascending id; ids may have gaps, or be text.

    Raises:
        UserError: if one has no id or name, or an id or name is duplicated.
    """
    categories: dict[int, str] = {}
    for number, item in enumerate(items):
        if not isinstance(item, dict) or _id(item.get("id")) is None:
            raise UserError(path, f"categories[{number}] is {brief(item)}", "give every category an id and a name")
        identity = rows.number(item["id"])
        if identity in categories:
            raise UserError(path, f"category id {item['id']} appears twice", "give every category its own id")
        categories[identity] = item.get("name", "")
    are_numbers = all(type(_id(item["id"])) is int for item in items)
    ordered = dict(sorted(categories.items())) if are_numbers else categories
    return dict(zip(ordered, check_class_names(ordered.values(), path), strict=True))


def _empty_roots(
    items: list[Any], categories: dict[int, str], rows: _Rows, path: Path, files: Sequence[Path], skips: list[Skip]
) -> tuple[set[str], list[Path]]:
    """Names of categories that only group others: the supercategory of another one, without a box in any split.

    Roboflow writes one as category 0 of every export. Also returns the other splits' files, if they had to be read.
    """
    parents = {str(each.get("supercategory")) for each in items if str(each.get("supercategory")) != each.get("name")}
    used = set(rows.categories)
    roots = {name: number for number, name in categories.items() if name in parents and number not in used}
    looked_at = [other for other in files if roots and other != path]  # rare
    for other in looked_at:
        theirs = _Rows()
        content = _load(other, theirs)["categories"]
        used_there = {name for k, name in _categories(content, other, theirs).items() if k in theirs.categories}
        roots = {name: number for name, number in roots.items() if name not in used_there}
    if len(roots) == len(categories):
        return set(), looked_at
    for name in roots:
        what = f"category {name!r} only groups others and has no box; it is not a class"
        skips.append(Skip("note", "root_category", str(path), what))
    return set(roots), looked_at


def _home(data: StrPath, path: Path, image_folder: StrPath | None) -> Path:
    """The folder to search for image names that do not resolve."""
    if image_folder is not None:
        return Path(image_folder)
    if os.path.isdir(data):
        return Path(data)
    return path.parent.parent if path.parent.name.casefold() == "annotations" else path.parent


def _image_folder(path: Path, split: str, items: list[Any]) -> Path:
    """The usual place that holds the first images of the file, else the one that exists."""
    root = path.parent.parent if path.parent.name.casefold() == "annotations" else path.parent
    places = [root / split, root / "images" / split, root / "images", root / split / "images", path.parent, root]
    places += [root / re.sub(r"\d{4}$", "", split), root / "images" / re.sub(r"\d{4}$", "", split)]
    firsts = [each.get("file_name") for each in items[:50] if isinstance(each, dict)]
    names: list[str] = [name for name in firsts if isinstance(name, str) and "\0" not in name]
    for place in places:
        if any(os.path.lexists(place / name) for name in names):
            return place
    return next((place for place in places if place.is_dir()), root)


class _Pictures:
    """Find the image that an entry names: by path, else by the only image whose name matches partially.

    Args:
        path: the JSON.
        base: folder that relative names start from.
        home: folder to search for names that do not resolve.
    """

    def __init__(self, path: Path, base: Path, home: Path) -> None:
        self.path, self.base, self.home = path, base, home
        self._folder: Folder | None = None
        self._inside = os.path.realpath(base) + os.sep

    def find(self, name: str, where: str, skips: list[Skip]) -> str | None:
        """The path; None, with a skip, if it leaves the data set or is ambiguous."""
        exact = os.path.join(self.base, name)
        if "\0" in name:
            skips.append(self._outside(where, name))
            return None
        if not os.path.isabs(name) and ".." not in name and os.path.lexists(exact):
            is_link_outside = os.path.islink(exact) and os.path.exists(exact)
            if is_link_outside and not os.path.realpath(exact).startswith(self._inside):
                skips.append(self._outside(where, name))
                return None
            return exact
        if self._folder is None:
            self._folder = Folder(self.home)
        found, several = self._folder.find(name, self.base)
        if found is not None:
            return found
        if several:
            skips.append(self._folder.not_found(where, name[-80:], several))
            return None
        if os.path.isabs(name) or ".." in re.split(r"[/\\]", name):
            skips.append(self._outside(where, name))
            return None
        return exact

    def _outside(self, where: str, name: str) -> Skip:
        what = f"file_name {name[-80:]!r} is outside of {self.base}"
        return Skip("image", "leads_outside", where, what, "keep images inside the data set")

    def notes(self, total: int) -> list[Skip]:
        """Number of images that were not found by their full path, with an example."""
        return [] if self._folder is None else self._folder.notes(str(self.path), total)


def _images(items: list[Any], pictures: _Pictures, skips: list[Skip]) -> tuple[list[str], list[Any], np.ndarray]:
    """Paths, ids and declared sizes of the usable entries of `images`."""
    paths: list[str] = []
    ids: dict[Any, None] = {}
    sizes: list[tuple[int, int]] = []
    for number, item in enumerate(items):
        where = f"{pictures.path}: images[{number}]"
        identity = _id(item.get("id")) if isinstance(item, dict) else None
        name = item.get("file_name") if isinstance(item, dict) else None
        if identity is None or not isinstance(name, str) or not name:
            what = f"has no usable id and file_name: {brief(item)}"
            skips.append(Skip("image", "bad_image_entry", where, what, "add both"))
        elif identity in ids:
            what = f"image id {identity} appears twice; the first is used"
            skips.append(Skip("image", "duplicate_id", where, what, "give every image its own id"))
        elif (path := pictures.find(name, where, skips)) is not None:
            ids[identity] = None
            paths.append(path)
            sizes.append(_size(item, where, skips))
    skips += pictures.notes(len(paths))
    return paths, list(ids), np.array(sizes, np.float64).reshape(-1, 2)


def _size(item: dict[str, Any], where: str, skips: list[Skip]) -> tuple[int, int]:
    height, width = item.get("height"), item.get("width")
    if _is_number(height) and _is_number(width) and 0 < height < 1e6 and 0 < width < 1e6:
        return round(height), round(width)
    what = f"height is {brief(height)}, width is {brief(width)}; the image's size is used"
    skips.append(Skip("note", "bad_size", where, what, "correct the size"))
    return 0, 0


def _add_boxes(
    raw: RawSplit, image_ids: np.ndarray, rows: _Rows, annotations: list[Any], categories: dict[int, str], path: Path
) -> dict[str, int]:
    """Fill the boxes of `raw`; returns the number of boxes per class."""
    skips = raw.skips
    taken = np.array([each for each in annotations if type(each) is _Row], np.int64)
    for number, item in enumerate(annotations):
        if type(item) is not _Row:
            what = f"is {brief(item)}; box dropped"
            skips.append(Skip("box", "bad_annotation", f"{path}: annotations[{number}]", what))
    ids, images = np.array(rows.ids, np.int64)[taken], np.array(rows.images, np.int64)[taken]
    category, boxes = np.array(rows.categories, np.int64)[taken], np.array(rows.boxes).reshape(-1, 4)[taken]

    def where(m: int) -> str:
        return f"{path}: annotation id {ids[m]}" if ids[m] >= 0 else f"{path}: annotations[{m}]"

    keep = np.ones(len(taken), bool)
    position = {int(row): m for m, row in enumerate(taken)} if rows.faults else {}
    for row, (code, reason) in rows.faults.items():
        if row in position:
            keep[position[row]] = False
            skips.append(Skip("box", code, where(position[row]), f"{reason}; box dropped", "correct the annotation"))
    text_of = {number: text for text, number in rows.numbers.items()}
    owner, has_owner = _lookup(images, image_ids)
    left_out = Counter(images[keep & ~has_owner].tolist())
    for image, count in left_out.items():
        what = f"image id {text_of.get(image, image)} of {count} annotations is not a usable image; boxes dropped"
        skips.append(Skip("box", "unknown_image", str(path), what, "add the image or remove them", count))
    keep &= has_owner
    _, is_listed = _lookup(category, np.array(list(categories), np.int64))
    for number, count in Counter(category[keep & ~is_listed].tolist()).items():
        what = f"category id {text_of.get(number, number)} is not in `categories`; {counted(count, 'box')} dropped"
        skips.append(Skip("box", "unknown_class", str(path), what, f"add it to {len(categories)} categories", count))
    keep &= is_listed
    found = {categories[number]: count for number, count in sorted(Counter(category[keep].tolist()).items())}
    class_of = {name: label for label, name in enumerate(raw.class_names)}
    label_of = {number: class_of[name] for number, name in categories.items() if name in class_of}
    skips += unlisted_classes(found, raw.class_names, str(path))
    place, wanted = _lookup(category, np.array(list(label_of), np.int64))
    keep &= wanted
    labels = np.array([*label_of.values(), -1], np.int32)[place]
    _note_duplicate_ids(ids, path, skips)

    kept = np.flatnonzero(keep)
    boxes = boxes[keep]
    with np.errstate(all="ignore"):  # non-finite values are dropped and reported later
        areas, sizes = np.array(rows.areas)[taken][keep], boxes[:, 2:].prod(1)
        boxes[:, 2:] += boxes[:, :2]
    raw.box_image, raw.boxes, raw.labels = owner[keep], boxes, labels[keep]
    raw.difficult = np.array(rows.difficult, bool)[taken][keep]
    raw.crowd = np.array(rows.crowd, bool)[taken][keep]
    raw.areas = np.where(np.isfinite(areas) & (areas >= 0), areas, sizes)
    raw.box_refs = ids[keep]
    raw.box_where = lambda m: where(int(kept[m]))
    return found


def _lookup(values: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of each value in `keys` (any order, unique), and whether it was found."""
    if not len(keys):
        return np.full(len(values), -1), np.zeros(len(values), bool)
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys, values, sorter=order), len(keys) - 1)]
    return place, keys[place] == values


def _note_duplicate_ids(ids: np.ndarray, path: Path, skips: list[Skip]) -> None:
    values, counts = np.unique(ids[ids >= 0], return_counts=True)
    for value in values[counts > 1]:
        what = f"annotation id {value} appears {counts[values == value][0]} times; all are used"
        skips.append(Skip("note", "duplicate_id", str(path), what, "give every annotation its own id"))
