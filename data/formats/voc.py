"""Read Pascal VOC folders (one year or several) as a DatasetIndex."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError
from tqdm import tqdm

from data.class_names import MAX_NAME, suggestions
from data.formats.clean import RawSplit, build_index
from data.formats.folder import suffix_of
from data.formats.shapes import box_of_points, rotated_box
from data.index import DatasetIndex
from data.skips import Skip, rotated_note
from data.walk import walk_files
from imaging.image_io import IMAGE_SUFFIXES, MAX_MEGAPIXELS
from utils.errors import UserError
from utils.files import MEGABYTE, FileError, StrPath, read_file, read_lines

MAX_XML_BYTES = 10 * MEGABYTE
MAX_SPLIT_BYTES = 256 * MEGABYTE
MAX_DEPTH = 64
ALL = "all"  # the split of a data set without lists: every annotated image
_ANNOTATION_SUFFIXES = (".xml", ".txt", ".json", ".csv")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_LABELME_SIZE = {"nrows": "height", "ncols": "width"}  # the XML of the LabelMe web page, which CVAT exports too
_ROTATED = ("cx", "cy", "w", "h", "angle")  # roLabelImg: the angle in radians


# --- one XML file ----------------------------------------------------------------------------------------------------


@dataclass
class VocObject:
    """One `<object>`: the raw texts of its children, of its `<bndbox>` and of its outline's points, and its line."""

    line: int
    fields: dict[str, str] = field(default_factory=dict)
    edges: dict[str, str] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)


@dataclass
class VocAnnotation:
    """One `<annotation>`: the texts of its children (`filename`, ...), of its `<size>`, and its objects."""

    fields: dict[str, str] = field(default_factory=dict)
    size: dict[str, str] = field(default_factory=dict)
    objects: list[VocObject] = field(default_factory=list)


class _Collector:
    """Parser callbacks; only the needed texts are kept, to bound memory."""

    def __init__(self) -> None:
        self.annotation = VocAnnotation()
        self.line = lambda: 0
        self._stack: list[str] = []
        self._text: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._stack and tag != "annotation":
            raise ValueError(f"starts with <{tag[:40]}>, not with <annotation>")
        if len(self._stack) >= MAX_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
        self._stack.append(tag)
        self._text.clear()
        if self._stack[1:] == ["object"]:
            self.annotation.objects.append(VocObject(self.line()))

    def data(self, text: str) -> None:
        self._text.append(text)

    def end(self, tag: str) -> None:
        place, text = self._stack[1:], "".join(self._text).strip()
        self._stack.pop()
        self._text.clear()
        if len(place) == 1:
            self.annotation.fields.setdefault(tag, text)
        elif place[0:1] in (["size"], ["imagesize"]) and len(place) == 2:
            self.annotation.size.setdefault(_LABELME_SIZE.get(tag, tag), text)
        elif place[0:1] == ["object"]:
            if len(place) == 2:
                self.annotation.objects[-1].fields.setdefault(tag, text)
            elif place[1] in ("bndbox", "robndbox") and len(place) == 3:
                self.annotation.objects[-1].edges.setdefault(tag, text)
            elif place[1:3] == ["polygon", "pt"] and tag in ("x", "y"):
                self.annotation.objects[-1].points.append(text)

    def close(self) -> VocAnnotation:
        return self.annotation


def parse_voc_xml(data: bytes, where: object) -> VocAnnotation:
    """The texts of a VOC annotation file.

    Raises:
        FileError: `bad_xml` if it is empty, truncated, not XML or not VOC, or declares a document type or entities.
    """
    if not data.strip(b"\xef\xbb\xbf \t\r\n\0"):
        raise FileError("bad_xml", where, "is empty", "annotate the image, or remove the file")
    try:
        return _parse(data)
    except DefusedXmlException:
        what = "declares a document type, which is not allowed"
        raise FileError("bad_xml", where, what, "remove <!DOCTYPE ...>") from None
    except (ParseError, ExpatError) as error:
        line = error.position[0] if isinstance(error, ParseError) else error.lineno
        raise FileError("bad_xml", f"{where}:{line}", f"is not valid XML ({error})", "write it again") from None
    except (ValueError, LookupError) as error:
        raise FileError("bad_xml", where, str(error), "give a VOC annotation in UTF-8") from None


def _parse(data: bytes) -> VocAnnotation:
    collector = _Collector()
    parser = DefusedXMLParser(target=collector, forbid_dtd=True)
    collector.line = lambda: parser.parser.CurrentLineNumber
    parser.feed(recode_xml(data))
    return parser.close()


def recode_xml(data: bytes) -> bytes:
    """Convert XML in an encoding that expat lacks (such as GBK, common in China) to UTF-8; else unchanged."""
    declared = re.match(rb"""\s*<\?xml[^>]*encoding=["']([\w.-]+)""", data[:200])
    if declared and declared[1].lower() not in (b"utf-8", b"utf-16", b"ascii", b"us-ascii", b"iso-8859-1"):
        text = data.decode(declared[1].decode("ascii"))
        data = re.sub(r"^\s*<\?xml[^>]*\?>", "", text).encode()
    return data


# --- folders ---------------------------------------------------------------------------------------------------------


def find_voc_years(root: StrPath) -> dict[str, Path]:
    """The year folders of a VOCdevkit by name; `root` may be the devkit, the folder around it, or one year folder."""
    root = Path(root)
    if _is_year(root):
        return {root.resolve().name: root}
    for folder in (root, root / "VOCdevkit"):
        if folder.is_dir():
            years = {each.name: each for each in sorted(folder.iterdir()) if _is_year(each)}
            if years:
                return years
    return {}


def list_voc_splits(root: StrPath) -> dict[str, list[str]]:
    """The splits of each year folder; the devkit's lists of single classes (`dog_train`) are not splits.

    If no year has a list, the only split is `all`: every annotated image.
    """
    splits = {}
    for year, folder in find_voc_years(root).items():
        main = folder / "ImageSets" / "Main"
        names = {file.stem for file in main.glob("*.txt")} if main.is_dir() else set()
        splits[year] = sorted(name for name in names if not ("_" in name and name.rsplit("_", 1)[1] in names))
    return splits if any(splits.values()) else {year: [ALL] for year in splits}


def _is_year(folder: Path) -> bool:
    has_images = (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()
    return has_images or (folder / "ImageSets" / "Main").is_dir()


def split_files(root: StrPath, split: str) -> list[tuple[str, Path]]:
    """The year and the file of each part of a split such as `trainval` or `VOC2007:trainval+2012:train`.

    A part without a year stands for every year that has it.

    Raises:
        UserError: if there is no such year or split; lists those that exist.
    """
    years = find_voc_years(root)
    if not years:
        todo = "give a VOCdevkit or one of its year folders"
        raise UserError(root, "is not a VOC folder (it has no ImageSets/Main)", todo)
    files = []
    for part in split.split("+"):
        year, _, name = part.strip().rpartition(":")
        chosen = {key: folder for key, folder in years.items() if year in ("", key) or key == f"VOC{year}"}
        if not chosen:
            raise UserError(root, f"has no year {year!r}", f"choose from {', '.join(years)}")
        found = [(key, folder / "ImageSets" / "Main" / f"{name}.txt") for key, folder in chosen.items()]
        has_lists = name != ALL or ALL not in list_voc_splits(root)[next(iter(chosen))]
        found = [(key, path) for key, path in found if os.path.lexists(path) or not has_lists]
        if not found or not name or os.sep in name or "\0" in name:
            there = "; ".join(f"{key}: {', '.join(names) or 'none'}" for key, names in list_voc_splits(root).items())
            todo = f"choose from {there}" if any(list_voc_splits(root).values()) else "run: python dataset.py split"
            raise UserError(root, f"has no split {part.strip()!r} in ImageSets/Main", todo)
        files += found
    return files


class VocFolder:
    """The images and annotations of one year, by id."""

    def __init__(self, folder: Path, home: str) -> None:
        self.folder = folder
        self.outside: set[str] = set()  # ids whose file is a link that leads out of the data set
        self.images, self.extra = self._scan(folder / "JPEGImages", home, is_xml=False)
        self.annotations, _ = self._scan(folder / "Annotations", home, is_xml=True)
        self._composed = {unicodedata.normalize("NFC", name): name for name in self.images if not name.isascii()}

    def _scan(self, folder: Path, home: str, is_xml: bool) -> tuple[dict[str, str], dict[str, list[str]]]:
        files, outside = walk_files(folder, [home, os.path.realpath(folder)], hidden=True)

        def identity(path: str) -> str:
            return os.path.splitext(os.path.relpath(path, folder).replace(os.sep, "/"))[0]

        self.outside |= {identity(path) for path in outside}
        found: dict[str, list[str]] = {}
        for path in files:
            suffix = suffix_of(path)
            if suffix == ".xml" if is_xml else suffix not in _ANNOTATION_SUFFIXES:
                found.setdefault(identity(path), []).append(path)
        for stem, paths in found.items():  # a file of another suffix is an image only where there is no other
            pictures = [path for path in paths if suffix_of(path) in IMAGE_SUFFIXES]
            found[stem] = sorted(pictures or paths)
        return {stem: paths[0] for stem, paths in found.items()}, {s: p for s, p in found.items() if len(p) > 1}

    def identify(self, line: str) -> str | None:
        """The id in a line of a split, or None: alone, with a suffix, or with a class list's second column."""
        known = self.images
        bare = line.strip()
        stem, suffix = os.path.splitext(bare)
        column = re.fullmatch(r"(.*\S)\s+(?:-?1|0)", bare)
        composed = self._composed.get(unicodedata.normalize("NFC", bare))
        is_absolute = bare[:1] in ("/", "\\") or bare[1:2] == ":"  # of the machine where the list was written
        for candidate in (
            line,
            bare,
            stem if suffix.lower() in IMAGE_SUFFIXES else None,
            column and column[1],
            composed,
            os.path.splitext(re.split(r"[/\\]", bare)[-1])[0] if is_absolute else None,
        ):
            if candidate is not None and (candidate in known or candidate in self.outside):
                return candidate
        return None


# --- the reader ------------------------------------------------------------------------------------------------------


class XmlReader:
    """Collects images and boxes in plain lists."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.ids: list[str] = []
        self.declared: list[tuple[float, float]] = []
        self.xml: list[str] = []
        self.owner: list[int] = []
        self.boxes: list[list[float]] = []
        self.names: list[str] = []
        self.difficult: list[bool] = []
        self.lines: list[int] = []
        self.scores: list[float] = []
        self.skips: list[Skip] = []
        self.facts: Counter[str] = Counter()
        self.rotated: list[str] = []

    def add(self, identity: str, image: str, xml: str) -> None:
        try:
            annotation = parse_voc_xml(read_file(xml, MAX_XML_BYTES), xml)
        except FileError as error:
            code = {"file_too_big": "bad_xml", "missing_file": "missing_annotation"}.get(error.code, error.code)
            self.skips.append(Skip("image", code, error.where, error.what, error.todo))
            return
        self.declared.append(self._size(annotation, xml))
        self._note_name(annotation.fields.get("filename", ""), identity, image, xml)
        self.paths.append(image)
        self.ids.append(identity)
        self.xml.append(xml)
        for each in annotation.objects:
            self._add_object(each, f"{xml}:{each.line}")

    def _note_name(self, filename: str, identity: str, image: str, xml: str) -> None:
        named = unicodedata.normalize("NFC", re.split(r"[/\\]", filename)[-1])
        if named and unicodedata.normalize("NFC", os.path.basename(identity)) not in (
            named,
            os.path.splitext(named)[0],
        ):
            what = f"<filename> is {named[:80]!r}, the image is {os.path.basename(image)!r}"
            self.skips.append(Skip("note", "wrong_filename", xml, what, "check that both belong together"))

    def _add_object(self, each: VocObject, where: str) -> None:
        name = each.fields.get("name", "")
        if not name:
            return self._drop("no_name", where, "the object has no name")
        if len(name) > MAX_NAME:
            return self._drop("no_name", where, f"the object has a name of {len(name)} characters")
        if each.fields.get("deleted") == "1":  # LabelMe keeps what was deleted
            return None
        if not each.edges and (box := box_of_points(list(zip(each.points[::2], each.points[1::2], strict=False)))):
            each.edges = dict(zip(_EDGES, (str(value) for value in (box[0] + 1, box[1] + 1, *box[2:])), strict=True))
        if not each.edges:
            return self._drop("no_box", where, f"the {name} has no <bndbox>")
        edges = _ROTATED if "angle" in each.edges else _EDGES
        numbers = [_number(each.edges.get(edge, "")) for edge in edges]
        for edge, number in zip(edges, numbers, strict=True):
            if number is None:
                return self._drop("bad_number", where, f"<{edge}> of the {name} is {each.edges.get(edge, '')[:40]!r}")
        xmin, ymin, xmax, ymax, *angle = (float(number) for number in numbers if number is not None)
        if angle:  # cx, cy, width, height; pixels from 0 on
            xmin, ymin, xmax, ymax = _around_rotated(xmin, ymin, xmax, ymax, angle[0])
            self.rotated.append(where)
        if xmin == xmax or ymin == ymax:  # valid as one pixel wide, but in practice a click
            return self._drop("zero_box", where, f"the {name} ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) has no area")
        finite = [number for number in (xmin, ymin, xmax, ymax) if np.isfinite(number)]
        self.facts["decimal"] += not angle and any(number % 1 != 0 for number in finite)
        self.owner.append(len(self.paths) - 1)
        self.boxes.append([xmin - 1, ymin - 1, xmax, ymax])
        self.names.append(name)
        self.difficult.append(self._difficult(each.fields.get("difficult"), where))
        self.lines.append(each.line)
        score = _number(each.fields.get("confidence", "1"))
        self.scores.append(1.0 if score is None or not 0 <= score <= 1 else score)

    def _drop(self, code: str, where: str, what: str) -> None:
        self.skips.append(Skip("box", code, where, f"{what}; box dropped", "correct the annotation"))

    def _difficult(self, text: str | None, where: str) -> bool:
        if text is None or text.lower() in ("0", "false", "no", "0.0"):
            return False
        if text.lower() in ("1", "true", "yes", "1.0"):
            return True
        what = f"<difficult> is {text[:40]!r}, taken as 0"
        self.skips.append(Skip("note", "bad_difficult", where, what, "write 0 or 1"))
        return False

    def _size(self, annotation: VocAnnotation, xml: str) -> tuple[float, float]:
        height, width = (_number(annotation.size.get(side, "")) for side in ("height", "width"))
        if height is not None and width is not None and 0 < height < 1e6 and 0 < width < 1e6:
            return float(round(height)), float(round(width))
        what = "has no <size>" if not annotation.size else f"<size> is {annotation.size}"
        self.skips.append(Skip("note", "bad_size", xml, f"{what[:80]}; the image's size is used"))
        return 0.0, 0.0


def read_voc(
    root: StrPath,
    split: str,
    class_names: Sequence[str] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    need_pictures: bool = True,
) -> DatasetIndex:
    """Read a split of a VOCdevkit (or of one year folder).

    Args:
        root: the devkit, the folder around it, or one year folder.
        split: a file of ImageSets/Main without `.txt`; several with `+`, of one year with `VOC2007:`.
        class_names: the classes in label order; None uses those of the annotations, in alphabetical order.
        max_megapixels, need_pictures: as in `open_dataset`.

    Returns:
        The split; image ids are the VOC ids, prefixed by `VOC2007/` if several years are joined.

    Raises:
        UserError: if there is no such folder, year or split. Bad images and boxes are skips of the result.

    Source: VOC2012 development kit, section 2.3, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/
    """
    files = split_files(root, split)
    years = find_voc_years(root)
    home = os.path.realpath(root)
    folders = {year: VocFolder(years[year], home) for year in {year for year, _ in files}}
    joined = len(folders) > 1
    reader = XmlReader()
    name = " + ".join(f"{year} {path.stem}" for year, path in files)
    if not need_pictures and not any(folder.images for folder in folders.values()):
        for folder in folders.values():
            folder.images = {each: str(folder.folder / "JPEGImages" / f"{each}.jpg") for each in folder.annotations}
    lines = [(year, path, number, line) for year, path in files for number, line in _lines(path, folders[year])]
    seen: dict[tuple[str, str], str] = {}
    for year, path, number, line in tqdm(lines, desc=name, delay=2, leave=False):
        where = f"{path}:{number}"
        identity = _use(line, where, folders[year], reader.skips)
        if identity is None:
            continue
        if (year, identity) in seen:
            what = f"id {identity!r} is already at {seen[year, identity]}; used once"
            reader.skips.append(Skip("note", "duplicate_id", where, what, "remove one of the lines"))
            continue
        seen[year, identity] = where
        folder = folders[year]
        reader.add(f"{year}/{identity}" if joined else identity, folder.images[identity], folder.annotations[identity])

    dependencies = {
        "files": [os.path.abspath(path) for _, path in files],
        "folders": [os.path.abspath(years[y] / f) for y in sorted(folders) for f in ("Annotations", "JPEGImages")],
    }
    source = {"format": "voc", "root": os.path.abspath(root), "split": split, "dependencies": dependencies}
    return finish_xml(reader, name, class_names, source, max_megapixels, need_pictures)


def _lines(path: Path, folder: VocFolder) -> list[tuple[int, str]]:
    """The lines of a split with their numbers; of `all`, which has no file, the annotated images."""
    if path.stem == ALL and not os.path.lexists(path):
        return list(enumerate(sorted(folder.images.keys() & folder.annotations.keys()), 1))
    return read_lines(path, MAX_SPLIT_BYTES)


def finish_xml(
    reader: XmlReader,
    name: str,
    class_names: Sequence[str] | None,
    source: dict[str, Any],
    max_megapixels: float,
    need_pictures: bool,
) -> DatasetIndex:
    found = Counter(reader.names)
    class_names = sorted(found) if class_names is None else class_names
    number_of = {each: number for number, each in enumerate(class_names)}
    labels = np.array([number_of.get(each, -1) for each in reader.names], np.int32)

    def where(m: int) -> str:
        return f"{reader.xml[reader.owner[m]]}:{reader.lines[m]}"

    todo = suggestions(found, class_names)
    for m in np.flatnonzero(labels < 0).tolist():
        what = f"class {reader.names[m]!r} is not one of the {len(class_names)} classes; box dropped"
        reader.skips.append(Skip("box", "unknown_class", where(m), what, todo[reader.names[m]]))
    if reader.rotated:
        reader.skips.append(rotated_note(source["root"], len(reader.rotated), reader.rotated[0]))
    raw = RawSplit(
        name=name,
        class_names=class_names,
        paths=reader.paths,
        image_ids=reader.ids,
        declared=np.array(reader.declared, np.float64).reshape(-1, 2),
        box_image=np.array(reader.owner, np.int64),
        boxes=np.array(reader.boxes, np.float64).reshape(-1, 4),
        labels=labels,
        difficult=np.array(reader.difficult, bool),
        box_where=where,
        box_refs=np.array(reader.lines, np.int64),
        scores=None if min(reader.scores, default=1.0) == 1 else np.array(reader.scores, np.float64),
        source=source | {"found_classes": dict(found), "facts": {**reader.facts, "rotated": len(reader.rotated)}},
        skips=reader.skips,
        numbers="corners",
    )
    return build_index(raw, max_megapixels, need_pictures)


def annotation_path(image_path: StrPath) -> Path:
    """The XML file that belongs to an image of a VOC folder."""
    path = Path(image_path)
    parts = list(path.parts)
    place = len(parts) - 1 - parts[::-1].index("JPEGImages")
    parts[place] = "Annotations"
    xml = Path(*parts).with_name(os.path.splitext(path.name)[0] + ".xml")
    upper = xml.with_suffix(".XML")
    return upper if not xml.exists() and upper.exists() else xml


def leads_outside(line: str) -> bool:
    """Whether a line of a split is a path that leaves its folder."""
    bare = line.strip()
    return bare.startswith(("/", "\\")) or bare[1:3] in (":\\", ":/") or ".." in re.split(r"[/\\]", bare)


def _use(line: str, where: str, folder: VocFolder, skips: list[Skip]) -> str | None:
    """The id of a line of a split if its image and annotation exist, else None and the reason in `skips`."""
    bare = line.strip()
    identity = folder.identify(line)
    if identity in folder.outside or (identity is None and leads_outside(line)):
        what = f"id {bare[:80]!r} is outside of {folder.folder}"
        skips.append(Skip("image", "leads_outside", where, what, "keep images and annotations inside the data set"))
    elif identity is None:
        what = f"there is no image for id {bare[:80]!r} in {folder.folder / 'JPEGImages'}"
        skips.append(Skip("image", "missing_image", where, what, "add the image or remove the line"))
    elif identity not in folder.annotations:
        what = f"there is no annotation for id {identity!r} in {folder.folder / 'Annotations'}"
        skips.append(Skip("image", "missing_annotation", where, what, "annotate it or remove the line"))
    else:
        if identity in folder.extra:
            what = f"several images have the id {identity!r}; {os.path.basename(folder.images[identity])} is used"
            skips.append(Skip("note", "several_images", where, what, "remove the others"))
        return identity
    return None


def _around_rotated(cx: float, cy: float, width: float, height: float, angle: float) -> list[float]:
    """The upright box around a rotated one, as VOC counts: from 1, edges included. Without area, it is a point."""
    sides = (width / 2, height / 2) if min(width, height) > 0 else (0.0, 0.0)
    box = rotated_box([cx - sides[0], cy - sides[1], cx + sides[0], cy + sides[1]], math.degrees(angle))
    return [box[0] + 1, box[1] + 1, *box[2:]] if sides[0] else box


def _number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None  # only Python accepts 1_000
    except ValueError:
        return None
