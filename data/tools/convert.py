"""Convert a data set to another format, and report what that format cannot store."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.class_names import read_class_names
from data.formats.voc import MAX_XML_BYTES, annotation_path, parse_voc_xml
from data.formats.writers import (
    coco_annotation,
    voc_xml,
    write_coco_json,
    write_lines,
    write_yolo_yaml,
    yolo_txt,
)
from data.formats.yolo_txt import SPLIT_KEYS
from data.index import DatasetIndex
from data.open import list_splits, match_split, open_dataset
from data.tools.new_folder import new_folder
from utils.config import option, parse_options
from utils.errors import UserError
from utils.files import FileError, read_file

FORMATS = ("voc", "coco", "yolo")
REPORT = "conversion_report.json"
YEAR = "VOC2007"  # the folder that images of another format go to
KEPT_FIELDS = ("pose", "truncated", "occluded")  # of VOC's objects; COCO holds them as additional keys
_VOC_KNOWN = {"name", "difficult", "bndbox", *KEPT_FIELDS}
_COCO_EXTRAS = ("segmentation", "keypoints", "supercategory", "coco_url", "flickr_url", "date_captured", "license")
MAX_JSON_BYTES = 2 << 30
MAX_LISTED = 1000  # skips and new names listed in the report


@dataclass
class ConversionReport:
    """Result of a conversion, with its losses.

    Args:
        source, target: the folders.
        source_format, target_format: of `FORMATS`.
        splits: images and boxes of each.
        class_names: in the order of the labels.
        category_ids: COCO's numbers of the classes, if the source has any.
        lost: information that the target cannot store, with counts.
        renamed: new image names, for duplicate names.
        skipped: what the source's reader left out, as text.
    """

    source: str
    target: str
    source_format: str
    target_format: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int] | None = None
    lost: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def lose(self, what: str, count: int = 1) -> None:
        """Record that `count` items could not be stored."""
        if count:
            self.lost[what] = self.lost.get(what, 0) + int(count)

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.source_format}) -> {self.target} ({self.target_format})"]
        lines += [f"  {name}: {part['images']} images, {part['boxes']} boxes" for name, part in self.splits.items()]
        lines.append("not held by the new format:" if self.lost else "nothing was lost")
        lines += [f"  {count:8} x {what}" for what, count in self.lost.items()]
        if self.renamed:
            lines.append(f"{len(self.renamed)} pictures have a new name, because two had the same one")
        if self.skipped:
            lines.append(f"{len(self.skipped)} notes on the source, the first: {self.skipped[0]}")
        return "\n".join([*lines, f"all of this is in {Path(self.target) / REPORT}"])


@dataclass(frozen=True)
class _Item:
    """One image of the source, ready to be written: its boxes and flags, and what else its format says of them."""

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
    fields: list[dict[str, str]]

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]


def convert_dataset(
    source: str | Path,
    target: str | Path,
    to: str | None,
    split: str = "all",
    class_names: Sequence[str] | None = None,
    link: bool = False,
    year: str | None = None,
    progress: bool = True,
) -> ConversionReport:
    """Convert a data set to another format.

    VOC becomes `target/YEAR/{JPEGImages,Annotations,ImageSets/Main}` and `target/classes.txt`; COCO
    `target/images` and `target/annotations/instances_SPLIT.json`; YOLO `target/{images,labels}`, `SPLIT.txt` and
    `data.yaml`. Boxes keep their exact pixels; a conversion back restores them.

    Args:
        source: a data set of any known format; it is only read.
        target: a folder that does not exist or is empty.
        to: `voc`, `coco` or `yolo`.
        split: one split, or `all`.
        class_names: the classes in label order; None uses the source's.
        link: make hard links to the images instead of copies, if the file system allows it.
        year: name of the VOC folder; None takes the source's, else `VOC2007`.
        progress: show a bar.

    Raises:
        UserError: if the target is not empty or lies within the source (or the other way round), or a split is unknown.
    """
    source, target = Path(source), Path(target)
    if to not in FORMATS:
        raise UserError("--to", f"unknown format {to!r}" if to else "is missing", f"choose from {', '.join(FORMATS)}")
    _check_target(source, target)
    names = _split_names(source, split)
    indexes = _open_all(source, names, class_names)
    first = next(iter(indexes.values()))
    report = ConversionReport(str(source), str(target), first.source["format"], to)
    report.class_names = list(first.class_names)
    report.category_ids = list(first.category_ids) if first.category_ids is not None else None
    report.splits = {name: {"images": len(index), "boxes": index.num_boxes} for name, index in indexes.items()}
    report.skipped = [str(skip) for index in indexes.values() for skip in index.skips][:MAX_LISTED]

    with new_folder(target) as partial:
        converter = _Converter(indexes, partial, report, link, progress)
        {"voc": converter.to_voc, "coco": converter.to_coco, "yolo": converter.to_yolo}[to](year)
        text = json.dumps(asdict(report), indent=2, ensure_ascii=False)
        (partial / REPORT).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return report


def _check_target(source: Path, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(target, "is there already and is not empty", "choose another folder")
    inner, outer = target.resolve(), source.resolve()
    home = outer if source.is_dir() else outer.parent
    if inner == home or home in inner.parents or (source.is_dir() and inner in outer.parents):
        raise UserError(target, f"and the source {source} lie in each other", "choose a folder beside it")


def _split_names(source: Path, split: str) -> list[str]:
    if split != "all":
        return [split if ":" in split or "+" in split else match_split(source, split)]
    names = [name for name in list_splits(source) if ":" not in name]  # a year's own splits are in the joined ones
    if not names:
        raise UserError(source, "has no splits", f"make them: python dataset.py split {source}")
    return names


def _open_all(source: Path, names: Sequence[str], class_names: Sequence[str] | None) -> dict[str, DatasetIndex]:
    """The splits, all with the same classes: a VOC split alone only knows those that occur in it."""
    indexes = {name: open_dataset(source, name, class_names, allow_empty=True) for name in names}
    known = [index.class_names for index in indexes.values()]
    if class_names is None and len(set(known)) > 1:
        union = dict.fromkeys(name for each in known for name in each)
        is_voc = next(iter(indexes.values())).source["format"] == "voc"
        together = tuple(sorted(union)) if is_voc else tuple(union)
        indexes = {name: open_dataset(source, name, together, allow_empty=True) for name in names}
    return indexes


class _Converter:
    """Processes the images of all splits once, and writes each to the target.

    Args:
        indexes: of each split.
        root: where to write.
        report: gets what is lost.
        link: hard links instead of copies.
        progress: show a bar.
    """

    def __init__(
        self, indexes: dict[str, DatasetIndex], root: Path, report: ConversionReport, link: bool, progress: bool
    ) -> None:
        self.indexes, self.root, self.report, self.link, self.progress = indexes, root, report, link, progress
        self.class_names = next(iter(indexes.values())).class_names
        self.names = self._plan_names()
        self.written: dict[Path, bytes] = {}
        self.coco_fields = {index.source.get("json", ""): _coco_fields(index, report) for index in indexes.values()}
        for index in indexes.values():
            polygons = index.source.get("facts", {}).get("polygons", 0)
            report.lose("outline of an object in YOLO's polygon form, kept as its box", polygons)

    def _plan_names(self) -> dict[Path, str]:
        """The target's name of every picture: its own, unless that is taken or cannot stand in a list."""
        names: dict[Path, str] = {}
        taken: set[str] = set()
        for index in self.indexes.values():
            for i in range(len(index)):
                path = index.path(i)
                if path in names:
                    continue
                stem = _plain_stem(path.stem)
                candidates = [stem, f"{_plain_stem(path.parent.name)}_{stem}"]
                free = next((c for c in candidates if c.casefold() not in taken), None)
                number = 2
                while free is None:
                    free = f"{stem}_{number}" if f"{stem}_{number}".casefold() not in taken else None
                    number += 1
                taken.add(free.casefold())
                names[path] = free + path.suffix
                if free != path.stem and len(self.report.renamed) < MAX_LISTED:
                    self.report.renamed[str(path)] = names[path]
        return names

    def items(self, index: DatasetIndex, split: str) -> Iterator[_Item]:
        """The images of a split."""
        is_voc = index.source["format"] in ("voc", "xml")
        xml_of = index.source.get("label_files", {})
        coco = self.coco_fields[index.source.get("json", "")]
        bar = tqdm(range(len(index)), desc=split, unit="image", leave=False, disable=None if self.progress else True)
        for i in bar:
            part = slice(int(index.offsets[i]), int(index.offsets[i + 1]))
            path = index.path(i)
            refs = None if index.box_refs is None else index.box_refs[part]
            fields: list[dict[str, str]] = [{} for _ in range(part.stop - part.start)]
            if is_voc and refs is not None:
                xml = xml_of.get(str(path)) or annotation_path(path)
                fields = _voc_fields(Path(xml), refs, self.report, new=path not in self.written)
            elif coco and refs is not None:
                fields = [coco.get(int(ref), {}) for ref in refs]
            yield _Item(
                path,
                self.names[path],
                index.image_ids[i].item(),
                (int(index.sizes[i, 0]), int(index.sizes[i, 1])),
                index.boxes[part],
                index.labels[part],
                index.difficult[part],
                index.crowd[part],
                None if index.areas is None else index.areas[part],
                refs,
                fields,
            )

    def is_new(self, item: _Item, text: str) -> bool:
        """Whether the image was not written before, in another split; notes where its annotation differs there."""
        if item.path in self.written:
            if self.written[item.path] != text.encode("utf-8", "surrogateescape"):
                self.report.lose("picture in two splits with different boxes, of which the first were kept")
            return False
        self.written[item.path] = text.encode("utf-8", "surrogateescape")
        return True

    def place(self, item: _Item, folder: Path) -> None:
        """The image itself, byte for byte."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.link:
            try:
                return os.link(item.path.resolve(), folder / item.name)
            except OSError:  # another disk, or one without hard links
                pass
        shutil.copyfile(item.path, folder / item.name)

    def to_voc(self, year: str | None) -> None:
        """VOC: crowds become difficult, since evaluation ignores both."""
        home = self.root / (year or self._year())
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (home / name).mkdir(parents=True)
        for split, index in self.indexes.items():
            lines = []
            for item in self.items(index, split):
                lines.append(item.stem)
                classes = [self.class_names[k] for k in item.labels]
                ignored = item.difficult | item.crowd
                text = voc_xml(item.name, item.size, item.boxes, classes, ignored, item.fields, home.name)
                if self.is_new(item, text):
                    self.place(item, home / "JPEGImages")
                    path = home / "Annotations" / f"{item.stem}.xml"
                    path.write_text(text, encoding="utf-8", errors="backslashreplace")
                    self.report.lose("crowd region, written as difficult", item.crowd.sum())
                    self._lose_coco(item)
            write_lines(home / "ImageSets" / "Main" / f"{split}.txt", lines)
        write_lines(self.root / "classes.txt", self.class_names)
        if self.class_names != tuple(sorted(self._found())):
            self.report.lose("order or list of the classes, kept in classes.txt: give it as --classes")
        self._lose_category_ids()

    def to_coco(self, year: str | None) -> None:
        """COCO: difficult, truncated, occluded and pose are written as additional keys."""
        (self.root / "annotations").mkdir()
        category_ids = self.report.category_ids or list(range(1, len(self.class_names) + 1))
        by_id = sorted(zip(category_ids, self.class_names, strict=True))
        categories = [{"id": number, "name": name} for number, name in by_id]
        image_ids = self._image_ids()
        number = 0
        for split, index in self.indexes.items():
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            own_ids = index.box_refs is not None and index.source["format"] == "coco" and _unique(index.box_refs)
            for item in self.items(index, split):
                image_id = image_ids[item.path]
                height, width = item.size
                images.append({"id": image_id, "file_name": item.name, "width": width, "height": height})
                if self.is_new(item, ""):
                    self.place(item, self.root / "images")
                for k, box in enumerate(item.boxes):
                    number += 1
                    name = int(item.refs[k]) if own_ids and item.refs is not None else number
                    area = None if item.areas is None else float(item.areas[k])
                    category_id = category_ids[int(item.labels[k])]
                    entry = coco_annotation(name, image_id, category_id, box, bool(item.crowd[k]), area)
                    if item.difficult[k]:
                        entry["difficult"] = 1
                    annotations.append(entry | {key: _plain(v) for key, v in item.fields[k].items()})
            path = self.root / "annotations" / f"instances_{split}.json"
            write_coco_json(path, categories, images, annotations, {"description": f"{index.name}, converted"})

    def to_yolo(self, year: str | None) -> None:
        """YOLO: crowds are left out, since they would be read as one object."""
        (self.root / "labels").mkdir()
        lists = {}
        for split, index in self.indexes.items():
            lines = []
            for item in self.items(index, split):
                lines.append(f"./images/{item.name}")
                text = yolo_txt(item.boxes[~item.crowd], item.labels[~item.crowd], item.size)
                if self.is_new(item, text):
                    self.place(item, self.root / "images")
                    (self.root / "labels" / f"{item.stem}.txt").write_text(text, encoding="utf-8")
                    self._lose_yolo(item)
                    self._lose_coco(item)
            short = re.sub(r"(19|20)\d\d$", "", split)
            write_lines(self.root / f"{split}.txt", lines)
            if short in SPLIT_KEYS and short not in lists:
                lists[short] = f"{split}.txt"
            else:
                self.report.lose(f"split {split}, which data.yaml has no name for; it is in {split}.txt")
        if not lists:
            lists["train"] = f"{next(iter(self.indexes))}.txt"
        write_yolo_yaml(self.root / "data.yaml", self.class_names, lists)
        self._lose_category_ids()

    def _year(self) -> str:
        """The source's own year, if it is VOC of one year."""
        index = next(iter(self.indexes.values()))
        years = {path.parts[path.parts.index("JPEGImages") - 1] for path in self.names if "JPEGImages" in path.parts}
        if index.source["format"] == "voc" and len(years) == 1:
            return years.pop()
        return YEAR

    def _found(self) -> set[str]:
        return {self.class_names[k] for index in self.indexes.values() for k in np.unique(index.labels)}

    def _image_ids(self) -> dict[Path, int]:
        """COCO's own image ids, or the numbers that the images are named by, or 1, 2, 3, ..."""
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
        self.report.lose("crowd region, left out", item.crowd.sum())
        self.report.lose("flag difficult", (item.difficult & ~item.crowd).sum())
        for key, nothing in (("truncated", "0"), ("occluded", "0"), ("pose", "Unspecified")):
            count = sum(each.get(key, nothing) not in (nothing, "") for each in item.fields)
            self.report.lose(f"{key} of an object", count)

    def _lose_coco(self, item: _Item) -> None:
        if item.areas is not None:
            sides = item.boxes[:, 2:] - item.boxes[:, :2]
            self.report.lose("area of an object's outline", (np.abs(sides.prod(axis=1) - item.areas) > 0.01).sum())
        if isinstance(item.image_id, int):
            digits = re.fullmatch(r"[0-9]{1,15}", item.stem)
            self.report.lose(
                "COCO image id that is not the file's number", not digits or int(item.stem) != item.image_id
            )

    def _lose_category_ids(self) -> None:
        ids = self.report.category_ids
        if ids is not None and ids != list(range(1, len(ids) + 1)):
            self.report.lose(f"COCO category id, kept in {REPORT}", len(ids))


def _voc_fields(xml: Path, lines: np.ndarray, report: ConversionReport, new: bool) -> list[dict[str, str]]:
    """Pose, truncated and occluded of the objects that stand on these lines; notes what else the file says of them."""
    try:
        annotation = parse_voc_xml(read_file(xml, MAX_XML_BYTES), xml)
    except FileError:  # changed since the index was read
        return [{} for _ in lines]
    at = {each.line: each.fields for each in annotation.objects}
    if new:
        for each in annotation.objects:
            for key in set(each.fields) - _VOC_KNOWN:
                report.lose(f"<{key}> of a VOC object")
        for key in ("source", "owner"):
            report.lose(f"<{key}> of a VOC picture", key in annotation.fields)
        report.lose("<segmented> 1 of a VOC picture", annotation.fields.get("segmented", "0") not in ("0", ""))
    return [{key: at[int(n)][key] for key in KEPT_FIELDS if key in at.get(int(n), {})} for n in lines]


def _coco_fields(index: DatasetIndex, report: ConversionReport) -> dict[int, dict[str, str]]:
    """Pose, truncated and occluded by annotation id, where a COCO file was written with them; notes what is lost."""
    path = index.source.get("json")
    if not path:
        return {}
    data = read_file(path, MAX_JSON_BYTES)
    for key in _COCO_EXTRAS:
        report.lose(f"{key!r} in COCO's JSON", data.count(f'"{key}"'.encode()))
    if not any(f'"{key}"'.encode() in data for key in KEPT_FIELDS):
        return {}
    found = {}
    for each in json.loads(data)["annotations"]:
        fields = {key: str(each[key]) for key in KEPT_FIELDS if key in each}
        if fields and isinstance(each.get("id"), int):
            found[each["id"]] = fields
    return found


def _plain_stem(stem: str) -> str:
    """A file name that is valid on a line of a list and in JSON."""
    text = stem.encode("utf-8", "backslashreplace").decode("utf-8").replace("\\", "_")
    return re.sub(r"[\x00-\x1f\x7f/:]", "_", text).strip() or "image"


def _plain(value: str) -> str | int:
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else value


def _unique(ids: np.ndarray) -> bool:
    return bool(len(np.unique(ids)) == len(ids) and (ids >= 0).all())


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `dataset.py convert`."""

    source: str = option("", "a data set of any layout of docs/DATA.md", positional=True, metavar="SRC")
    target: str = option("", "folder to write, which must not exist or be empty", positional=True, metavar="DST")
    to: str | None = option(None, "the format to write", choices=FORMATS)
    split: str = option("all", "one split, or all")
    classes: str | None = option(None, "file of class names, one a line, in the order of the labels", metavar="FILE")
    link: bool = option(False, "hard links to the pictures instead of copies")
    year: str | None = option(None, "name of the VOC folder", metavar="NAME")


def main(argv: list[str] | None = None) -> None:
    """`dataset.py convert SRC DST --to FORMAT`."""
    options = parse_options(ConvertOptions, argv, prog="dataset.py convert", description=__doc__.splitlines()[0])
    names = read_class_names(options.classes) if options.classes else None
    if options.year is not None and not re.fullmatch(r"[\w.-]+", options.year):
        raise UserError("--year", f"{options.year!r} is no folder's name", "for example VOC2007")
    report = convert_dataset(
        options.source, options.target, options.to, options.split, names, options.link, options.year
    )
    print(report)
