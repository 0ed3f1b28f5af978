"""Write splits of any data set as VOC, COCO or YOLO txt, and count what the format cannot store."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.formats.coco import MAX_JSON_BYTES
from data.formats.labels import ALL
from data.formats.places import annotation_file
from data.formats.shapes import box_of_points, numbers_of
from data.formats.voc import MAX_XML_BYTES, VocObject, parse_voc_xml
from data.formats.writers import coco_annotation, voc_xml, write_coco_json, write_lines, write_yolo_yaml, yolo_txt
from data.formats.yolo_rows import split_row
from data.formats.yolo_txt import SPLIT_KEYS, find_data_yaml, read_data_yaml
from data.index import DatasetIndex
from utils.errors import UserError
from utils.files import FileError, read_file, read_lines
from utils.json_file import read_json

FORMATS = ("voc", "coco", "yolo")
NATIVE = {"voc": "voc", "xml": "voc", "coco": "coco", "yolo": "yolo"}  # the format that keeps all of a source format
YEAR = "VOC2007"  # the folder that images of another format go to
KEPT_FIELDS = ("pose", "truncated", "occluded")  # of VOC's objects; COCO holds them as additional keys
_VOC_OWN = ("name", "difficult", "bndbox")
_COCO_OWN = {  # keys that are written anew, by list
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult"),
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
}
_COCO_EXTRAS = ("segmentation", "keypoints", "supercategory", "coco_url", "flickr_url", "date_captured", "license")
MAX_LISTED = 1000  # new names listed in the report
SAME = 0.01  # pixels within which a box is that of its row, and was not clipped


@dataclass(kw_only=True)
class Losses:
    """Information that was lost or changed when writing a data set.

    Args:
        lost: information that the target cannot store, with counts.
        renamed: new image names, for duplicate names.
    """

    lost: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def lose(self, what: str, count: int = 1) -> None:
        """Record that `count` items could not be stored."""
        if count:
            self.lost[what] = self.lost.get(what, 0) + int(count)


@dataclass(frozen=True)
class _Item:
    """One image of the source, ready to be written: its boxes, flags and other information."""

    path: Path
    name: str  # of the image in the target, with suffix
    image_id: Any
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray | None
    refs: np.ndarray | None
    fields: list[dict[str, Any]]

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]


def write_dataset(
    indexes: Mapping[str, DatasetIndex],
    root: Path,
    to: str,
    losses: Losses,
    link: bool = False,
    progress: bool = True,
    year: str | None = None,
    keep_folders: bool = False,
) -> dict[Path, str]:
    """Write all splits into a folder; the images are copied byte for byte. Returns the new file name of each image.

    VOC becomes `YEAR/{JPEGImages,Annotations,ImageSets/Main}` and `classes.txt`; COCO `images` and
    `annotations/instances_SPLIT.json`; YOLO `{images,labels}`, `SPLIT.txt` and `data.yaml`. In its own format, the
    other information on an object (VOC's elements, COCO's keys, YOLO's outlines and keypoints) is kept.

    Args:
        indexes: the splits by name, all with the same classes.
        root: the folder.
        to: `voc`, `coco` or `yolo`.
        losses: receives what is lost.
        link: make hard links to the images instead of copies, if the file system allows it.
        year: name of the VOC folder; None for the source's name, else `VOC2007`.
        keep_folders: keep the subfolders of the images.
    """
    writer = _Writer(indexes, root, to, losses, link, progress, keep_folders)
    {"voc": writer.to_voc, "coco": writer.to_coco, "yolo": writer.to_yolo}[to](year)
    return writer.names


@dataclass
class _Writer:
    """Processes the images of all splits once, and writes each; see `write_dataset`."""

    indexes: Mapping[str, DatasetIndex]
    root: Path
    to: str
    losses: Losses
    link: bool
    progress: bool
    keep_folders: bool

    def __post_init__(self) -> None:
        first = next(iter(self.indexes.values()))
        self.class_names, self.category_ids = first.class_names, first.category_ids
        self.format = first.source["format"]
        self.is_native = NATIVE.get(self.format) == self.to
        self.names = self._plan_names()
        self.written: dict[Path, bytes] = {}
        files = dict.fromkeys(path for index in self.indexes.values() if (path := index.source.get("json")))
        self.coco = {path: _CocoExtras(path, self.losses, self.is_native) for path in files}
        self._lose_outlines()

    def _lose_outlines(self) -> None:
        if self.is_native and self.format == "yolo":
            return
        sources = [index.source for index in self.indexes.values()]
        total = max if "split_of" in sources[0] else sum  # the facts are those of the whole data set, or of each split

        def count(key: str) -> int:
            return total(each.get("facts", {}).get(key, 0) for each in sources)

        outlines = count("polygons") - count("rotated") if self.format == "yolo" else 0
        self.losses.lose("angle of a rotated box, stored as its enclosing box", count("rotated"))
        self.losses.lose("polygon of an object, stored as its box", outlines)
        self.losses.lose("keypoints of an object", count("key_points"))

    def _plan_names(self) -> dict[Path, str]:
        """The file name of every image in the target: its own name, unless it is taken or invalid in a list."""
        names: dict[Path, str] = {}
        taken: set[str] = set()
        paths = dict.fromkeys(path for index in self.indexes.values() for path in index.paths())
        common = os.path.commonpath([path.parent for path in paths]) if paths else ""
        for path in paths:
            inside: Sequence[str] = []
            if self.keep_folders and self.format == "voc" and "JPEGImages" in path.parts:
                inside = path.parts[_image_place(path) + 1 : -1]
            elif self.keep_folders:
                inside = os.path.relpath(path.parent, common).split(os.sep)
            own = _plain_stem(path.stem)
            stem = "/".join([*(_plain_stem(part) for part in inside if part != "."), own])
            numbered = (f"{stem}_{number}" for number in itertools.count(2))
            candidates = itertools.chain([stem, f"{_plain_stem(path.parent.name)}_{own}"], numbered)
            free = next(name for name in candidates if name.casefold() not in taken)
            taken.add(free.casefold())
            names[path] = free + path.suffix
            if free.rpartition("/")[2] != path.stem and len(self.losses.renamed) < MAX_LISTED:
                self.losses.renamed[str(path)] = names[path]
        return names

    def items(self, index: DatasetIndex, split: str) -> Iterator[_Item]:
        """The images of a split."""
        bar = tqdm(range(len(index)), desc=split, unit="image", leave=False, disable=None if self.progress else True)
        for i in bar:
            part, path = index.boxes_of(i), index.path(i)
            refs, areas = (None if array is None else array[part] for array in (index.box_refs, index.areas))
            yield _Item(
                path=path,
                name=self.names[path],
                image_id=index.image_ids[i].item(),
                size=(int(index.sizes[i, 0]), int(index.sizes[i, 1])),
                boxes=index.boxes[part],
                labels=index.labels[part],
                difficult=index.difficult[part],
                crowd=index.crowd[part],
                areas=areas,
                refs=refs,
                fields=self._fields(index, path, index.labels[part], refs),
            )

    def _fields(
        self, index: DatasetIndex, path: Path, labels: np.ndarray, refs: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """Other information on each box in the source that the target can store."""
        if refs is None:
            return [{} for _ in labels]
        if self.format in ("voc", "xml"):
            names = [self.class_names[label] for label in labels]
            is_new = path not in self.written
            return _voc_fields(annotation_file(index, str(path)), refs, names, self.losses, is_new, self.is_native)
        if self.format == "coco":
            extras = self.coco[index.source["json"]].annotations
            return [extras.get(int(ref), {}) for ref in refs]
        facts = index.source.get("facts", {})
        if self.format == "yolo" and self.is_native and (facts.get("polygons") or facts.get("key_points")):
            return _yolo_rows(annotation_file(index, str(path)), refs)
        return [{} for _ in labels]

    def is_new(self, item: _Item, text: str) -> bool:
        """Whether the image was not written before, in another split; notes where its annotation differs there."""
        if item.path in self.written:
            if self.written[item.path] != text.encode("utf-8", "surrogateescape"):
                self.losses.lose("image in two splits with different boxes, of which the first were kept")
            return False
        self.written[item.path] = text.encode("utf-8", "surrogateescape")
        return True

    def place(self, item: _Item, folder: Path) -> None:
        """The image itself, byte for byte."""
        target = folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.link:
            try:
                return os.link(item.path.resolve(), target)
            except OSError:  # another disk, or one without hard links
                pass
        shutil.copyfile(item.path, target)

    def to_voc(self, year: str | None) -> None:
        """VOC: crowds become difficult, since evaluation ignores both."""
        first_year = year or next((self._year(path) for path in self.names), YEAR)
        for split, index in self.indexes.items():
            lines: dict[Path, list[str]] = {}
            for item in self.items(index, split):
                home = self.root / (year or self._year(item.path))
                lines.setdefault(home, []).append(item.stem)
                classes = [self.class_names[k] for k in item.labels]
                ignored = item.difficult | item.crowd
                fields = [{k: str(v) for k, v in each.items() if k in KEPT_FIELDS or self.is_native}
                          for each in item.fields]  # fmt: skip
                text = voc_xml(Path(item.name).name, item.size, item.boxes, classes, ignored, fields, home.name)
                if self.is_new(item, text):
                    self.place(item, home / "JPEGImages")
                    _write_text(home / "Annotations" / f"{item.stem}.xml", text)
                    self.losses.lose("crowd region, written as difficult", item.crowd.sum())
                    self._lose_coco(item)
            names = {part.rpartition(":")[2] for part in split.split("+")}  # of VOC2007:train+VOC2012:train
            for home, stems in (lines or {self.root / first_year: []}).items():
                (home / "JPEGImages").mkdir(parents=True, exist_ok=True)
                write_lines(home / "ImageSets" / "Main" / f"{'_'.join(sorted(names))}.txt", stems)
        write_lines(self.root / "classes.txt", self.class_names)
        if self.class_names != tuple(sorted(self._found())):
            self.losses.lose("order or list of the classes, kept in classes.txt: give it as --classes")
        self._lose_category_ids()

    def to_coco(self, year: str | None) -> None:
        """COCO: difficult, truncated, occluded and pose are written as additional keys."""
        (self.root / "annotations").mkdir()
        extras = {name: more for each in self.coco.values() for name, more in each.categories.items()}
        category_ids = self.category_ids or tuple(range(1, len(self.class_names) + 1))
        categories = [{"id": number, "name": name} | extras.get(name, {})
                      for number, name in sorted(zip(category_ids, self.class_names, strict=True))]  # fmt: skip
        image_ids = self._image_ids()
        number = 0
        for split, index in self.indexes.items():
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            has_ids = self.format == "coco" and np.issubdtype(index.image_ids.dtype, np.integer)
            own_ids = has_ids and index.box_refs is not None and _unique(index.box_refs)
            of_image = self.coco[index.source["json"]].images if has_ids else {}
            for item in self.items(index, split):
                image_id = item.image_id if has_ids else image_ids[item.path]
                height, width = item.size
                entry = {"id": image_id, "file_name": item.name, "width": width, "height": height}
                images.append(entry | of_image.get(item.image_id, {}))
                if self.is_new(item, ""):
                    self.place(item, self.root / "images")
                for k, box in enumerate(item.boxes):
                    number += 1
                    name = int(item.refs[k]) if own_ids and item.refs is not None else number
                    area = None if item.areas is None else float(item.areas[k])
                    category_id = category_ids[int(item.labels[k])]
                    entry = coco_annotation(name, image_id, category_id, box, bool(item.crowd[k]), area)
                    entry |= {"difficult": 1} if item.difficult[k] else {}
                    annotations.append(entry | {key: _plain(value) for key, value in item.fields[k].items()})
            path = self.root / "annotations" / f"instances_{split}.json"
            write_coco_json(path, categories, images, annotations, {"description": f"{index.name}, converted"})

    def to_yolo(self, year: str | None) -> None:
        """YOLO: crowds are skipped, because they would be read as one object."""
        (self.root / "labels").mkdir()
        lists = {}
        for split, index in self.indexes.items():
            lines = []
            for item in self.items(index, split):
                lines.append(f"./images/{item.name}")
                text = "".join(self._yolo_row(item, k) for k in np.flatnonzero(~item.crowd).tolist())
                if self.is_new(item, text):
                    self.place(item, self.root / "images")
                    _write_text(self.root / "labels" / f"{item.stem}.txt", text)
                    self._lose_yolo(item)
                    self._lose_coco(item)
            short = re.sub(r"(19|20)\d\d$", "", split)
            write_lines(self.root / f"{split}.txt", lines)
            if short in SPLIT_KEYS and short not in lists:
                lists[short] = f"{split}.txt"
            elif len(self.indexes) == 1:
                lists["train"] = f"{split}.txt"
                self.losses.lose(f"split name {split}, which is train in data.yaml", split != ALL)
            else:
                self.losses.lose(f"split {split}, which data.yaml cannot contain; it is in {split}.txt")
        if not lists:  # several splits, none of a usual name
            lists["train"] = f"{next(iter(self.indexes))}.txt"
        write_yolo_yaml(self.root / "data.yaml", self.class_names, lists, settings=self._yolo_settings())
        self._lose_category_ids()

    def _yolo_row(self, item: _Item, k: int) -> str:
        """The line of a box; if it was read from a longer row and not clipped, the numbers of that row."""
        words = item.fields[k].get("row")
        if words is not None and _is_of_row(item.boxes[k], words, item.size):
            return " ".join([str(int(item.labels[k])), *words]) + "\n"
        self.losses.lose("polygon or keypoints of an object that was clipped to its image", words is not None)
        return yolo_txt(item.boxes[k : k + 1], item.labels[k : k + 1], item.size)

    def _yolo_settings(self) -> dict[str, Any]:
        """How rows of more than five columns are to be read."""
        if not (self.is_native and self.format == "yolo"):
            return {}
        first = next(iter(self.indexes.values()))
        root = Path(first.source["root"])
        if root.is_file() or find_data_yaml(root) is not None:
            return read_data_yaml(root).settings()
        return {"task": "segment"} if any(e.source["facts"].get("polygons") for e in self.indexes.values()) else {}

    def _year(self, path: Path) -> str:
        """The source's own year, if it is VOC."""
        place = _image_place(path) if self.format == "voc" and "JPEGImages" in path.parts else 0
        return path.parts[place - 1] if place > 1 else YEAR

    def _found(self) -> set[str]:
        return {self.class_names[k] for index in self.indexes.values() for k in np.unique(index.labels)}

    def _image_ids(self) -> dict[Path, int]:
        """Image ids that are whole numbers, or the numbers that the images are named by, or 1, 2, 3, ..."""
        paths = {index.path(i): index.image_ids[i] for index in self.indexes.values() for i in range(len(index))}
        own = [int(each) for each in paths.values() if isinstance(each, np.integer)]
        if len(own) == len(set(own)) == len(paths):
            return dict(zip(paths, own, strict=True))
        stems = [os.path.splitext(self.names[path])[0] for path in paths]
        numbers = [int(stem) for stem in stems if re.fullmatch(r"[0-9]{1,15}", stem)]
        if len(set(numbers)) == len(paths):
            return dict(zip(paths, numbers, strict=True))
        return {path: number for number, path in enumerate(paths, 1)}

    def _lose_yolo(self, item: _Item) -> None:
        self.losses.lose("crowd region, skipped", item.crowd.sum())
        self.losses.lose("flag difficult", (item.difficult & ~item.crowd).sum())
        for key, nothing in (("truncated", "0"), ("occluded", "0"), ("pose", "Unspecified")):
            count = sum(str(each.get(key, nothing)) not in (nothing, "") for each in item.fields)
            self.losses.lose(f"{key} of an object", count)

    def _lose_coco(self, item: _Item) -> None:
        if item.areas is not None:
            sides = item.boxes[:, 2:] - item.boxes[:, :2]
            self.losses.lose("area of an object's outline", (np.abs(sides.prod(axis=1) - item.areas) > 0.01).sum())
        if isinstance(item.image_id, int):
            digits = re.fullmatch(r"[0-9]{1,15}", item.stem)
            is_lost = not digits or int(item.stem) != item.image_id
            self.losses.lose("COCO image id that is not the file's number", is_lost)

    def _lose_category_ids(self) -> None:
        ids = self.category_ids
        if ids is not None and list(ids) != list(range(1, len(ids) + 1)):
            self.losses.lose("COCO category id", len(ids))


# --- other information of the source ----------------------------------------------------------------------------------


def _voc_fields(
    xml: str, lines: np.ndarray, names: Sequence[str], losses: Losses, is_new: bool, keep_all: bool
) -> list[dict[str, str]]:
    """Pose, truncated and occluded (or all plain elements) of each object; notes what is lost of the file."""
    try:
        annotation = parse_voc_xml(read_file(xml, MAX_XML_BYTES), xml)
    except FileError:  # changed since the index was read
        return [{} for _ in lines]
    at: dict[tuple[int, str | None], list[VocObject]] = {}
    for each in reversed(annotation.objects):  # several may be on one line
        at.setdefault((each.line, each.fields.get("name")), []).append(each)
    found = []
    for line, name in zip(lines.tolist(), names, strict=True):
        own = at.get((line, name), [])
        texts = own.pop().fields if own else {}
        found.append({key: text for key, text in texts.items() if key in KEPT_FIELDS or (
            keep_all and text and key not in _VOC_OWN and re.fullmatch(r"[A-Za-z_][\w.-]*", key))})  # fmt: skip
    if is_new and not keep_all:
        for each in annotation.objects:
            for key in set(each.fields) - {*_VOC_OWN, *KEPT_FIELDS}:
                losses.lose(f"<{key}> of a VOC object")
    if is_new:
        for key in ("source", "owner"):
            losses.lose(f"<{key}> of a VOC image", key in annotation.fields)
        losses.lose("<segmented> 1 of a VOC image", annotation.fields.get("segmented", "0") not in ("0", ""))
    return found


class _CocoExtras:
    """Other information in a COCO file, by annotation id, image id and category name.

    With `keep_all`, for a COCO target, every key is kept, else only those of `KEPT_FIELDS`; `losses` receives the rest.
    """

    def __init__(self, path: str, losses: Losses, keep_all: bool) -> None:
        self.annotations: dict[int, dict[str, Any]] = {}
        self.images: dict[int, dict[str, Any]] = {}
        self.categories: dict[str, dict[str, Any]] = {}
        data = read_file(path, MAX_JSON_BYTES)
        if not keep_all:
            for key in _COCO_EXTRAS:
                losses.lose(f"{key!r} in COCO's JSON", data.count(f'"{key}"'.encode()))
            if not any(f'"{key}"'.encode() in data for key in KEPT_FIELDS):
                return
        content = read_json(path, "an instances JSON", MAX_JSON_BYTES)
        tables: dict[str, dict[Any, dict[str, Any]]]
        tables = {"annotations": self.annotations, "images": self.images, "categories": self.categories}
        for name, table in tables.items():
            for each in content[name]:
                identity = each.get("name" if name == "categories" else "id") if isinstance(each, dict) else None
                if identity is None:
                    continue
                kept = {k: v for k, v in each.items() if (k not in _COCO_OWN[name] if keep_all else k in KEPT_FIELDS)}
                if not isinstance(identity, str if name == "categories" else int):
                    losses.lose(f"other keys of `{name}` with an id that is not a number", bool(kept))
                elif kept:
                    table.setdefault(identity, kept)


def _yolo_rows(path: str, lines: np.ndarray) -> list[dict[str, Any]]:
    """The words of each row after the class, of rows that hold more than a box."""
    try:
        rows = dict(read_lines(path, MAX_XML_BYTES))
    except UserError:  # changed since the index was read
        return [{} for _ in lines]
    rows_of = [rows.get(int(line), "").split() for line in lines]
    words = [each[len(each) - len(split_row(each)[1]) + 1 :] for each in rows_of]  # a class name may have several
    return [{"row": each} if len(each) > 5 else {} for each in words]  # a fifth is a score


def _is_of_row(box: np.ndarray, words: Sequence[str], size: tuple[int, int]) -> bool:
    """Whether a box (xyxy pixels) is that of a row: the box around its points, or its first four numbers."""
    numbers = numbers_of(words) or [0.0] * 4
    cx, cy, width, height = numbers[:4]
    readings = [[cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]]
    readings += [box_of_points(list(zip(numbers[::2], numbers[1::2], strict=False))) or []]
    scale = np.array([size[1], size[0]] * 2)
    return any(len(each) == 4 and np.allclose(np.array(each) * scale, box, atol=SAME) for each in readings)


def _image_place(path: Path) -> int:
    """The position of the last JPEGImages in a path."""
    return len(path.parts) - 1 - path.parts[::-1].index("JPEGImages")


def _plain_stem(stem: str) -> str:
    """A file name that is valid on a line of a list and in JSON."""
    text = stem.encode("utf-8", "backslashreplace").decode("utf-8").replace("\\", "_")
    return re.sub(r"[\x00-\x1f\x7f/:]", "_", text).strip() or "image"


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value


def _unique(ids: np.ndarray) -> bool:
    """Whether annotation ids can be kept; pycocotools counts 0 as a miss."""
    return bool(len(np.unique(ids)) == len(ids) and (ids > 0).all())


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
