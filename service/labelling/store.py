"""Images of a folder and their labels, in the folder's format. A save never overwrites changes that it has not seen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.class_names import check_class_names, decode_text
from data.formats.coco import MAX_JSON_BYTES, find_coco_files
from data.formats.voc import MAX_XML_BYTES, annotation_path, find_voc_years
from data.formats.yolo_rows import MAX_LABEL_BYTES, label_classes, label_path
from data.formats.yolo_txt import find_data_yaml, list_yolo_splits, read_data_yaml
from data.open import open_dataset
from imaging.image_io import IMAGE_SUFFIXES, ImageHeader, read_header
from service.labelling.documents import (
    Box,
    Labels,
    PictureFacts,
    entry_text,
    read_coco_labels,
    read_voc_labels,
    read_yolo_labels,
    write_coco_labels,
    write_voc_labels,
    write_yolo_labels,
)
from utils.errors import UserError, warn
from utils.files import FileError, read_file, write_atomically
from utils.text import quoted

CLASS_FILE = "classes.txt"
NO_FILE = "none"  # the version of labels that do not exist yet
XML_FOLDERS = (
    "annotations",
    "annots",
    "annotation",
    "xml",
    "xmls",
    "labels",
)  # folders of labels next to the images, in any case
LEAST_SIDE = 1.0  # minimum side of a box, pixels


class Conflict(Exception):
    """The labels were changed by another program since they were read.

    Args:
        current: the current labels.
    """

    def __init__(self, current: StoredLabels) -> None:
        self.current = current
        super().__init__("changed in the meantime")


@dataclass(frozen=True)
class StoredLabels:
    """The labels of an image as stored on disk.

    Args:
        version: version of the labels, which a save must pass back.
        labels: the objects.
        is_labelled: whether the image has been labelled; it may be labelled as an image without objects.
        problem: reason why the labels cannot be read; empty if they can.
    """

    version: str
    labels: Labels
    is_labelled: bool
    problem: str = ""


@dataclass
class Counts:
    """Number of labelled objects, updated by every read and save.

    Args:
        boxes: for each image that has been read, the number of boxes of each class.
        is_complete: whether all labelled images have been read.
    """

    boxes: dict[int, Counter[str]] = field(default_factory=dict)
    is_complete: bool = False

    def by_class(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for each in list(self.boxes.values()):
            total.update(each)
        return total


class Store(ABC):
    """Images and labels of one folder. An image is identified by its number, which never changes in a store.

    Args:
        root: the given folder or file.
        class_names: initial class names.

    Attributes:
        format: `voc`, `yolo` or `coco`.
        paths: paths of the images, by number.
        labelled: numbers of the labelled images.
    """

    format: str

    def __init__(self, root: Path, class_names: Sequence[str] = ()) -> None:
        self.root = root
        self.paths: list[Path] = []
        self.labelled: set[int] = set()
        self.counts = Counts()
        self._number: dict[Path, int] = {}
        self._same_stem: dict[str, list[Path]] = {}
        self._warned: set[int] = set()
        self._names: dict[str, None] = dict.fromkeys(class_names)
        self._sorted: list[int] = []
        self._lock = threading.RLock()

    # ---- images and classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the keys 1 to 9: classes that were given or listed, then those found in labels."""
        return tuple(self._names)

    def name(self, number: int) -> str:
        """Path of an image relative to the folder."""
        folder = self.root if self.root.is_dir() else self.root.parent
        path = self.paths[number]
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name

    @property
    def key(self) -> str:
        """A short text that tells this folder from others."""
        return hashlib.blake2b(os.fsencode(os.path.abspath(self.root)), digest_size=12).hexdigest()

    def by_name(self) -> list[int]:
        """All numbers in natural order: img2 before img10."""
        if len(self._sorted) != len(self.paths):
            self._sorted = sorted(range(len(self.paths)), key=lambda number: natural_key(self.name(number)))
        return self._sorted

    def number_of(self, path: Path) -> int | None:
        return self._number.get(Path(os.path.abspath(path)))

    def facts(self, number: int) -> tuple[PictureFacts, ImageHeader]:
        """Properties and header of an image. Raises ImageError if it cannot be read."""
        path = self.paths[number]
        header = read_header(path)
        return PictureFacts(path.name, path.parent.name, header.size), header

    def rescan(self) -> None:
        """Find new images, and labels that other programs have written or removed."""
        with self._lock:
            for path in self._list_pictures():
                self._add(path)
            self.labelled = self._list_labelled()
            for number in set(self.counts.boxes) - self.labelled:
                del self.counts.boxes[number]

    def count_all(self) -> None:
        """Read the labels of all labelled images once; runs in a separate thread."""
        for number in sorted(self.labelled):
            if number not in self.counts.boxes:
                with contextlib.suppress(UserError, OSError):
                    self.read(number)
        self.counts.is_complete = True

    def _add(self, path: Path) -> int:
        path = Path(os.path.abspath(path))
        if path not in self._number:
            self._number[path] = len(self.paths)
            self.paths.append(path)
            self._same_stem.setdefault(path.stem, []).append(path)
        return self._number[path]

    # ---- labels

    def read(self, number: int) -> StoredLabels:
        """Read the labels of an image. Raises ImageError if the image itself cannot be read."""
        with self._lock:
            stored = self._read(number)
        self._note(number, stored)
        return stored

    def write(self, number: int, version: str, boxes: Sequence[Box]) -> StoredLabels:
        """Save the labels of an image; objects without `ref` are new, missing objects are deleted.

        Args:
            number: number of the image.
            version: version of the labels that were edited.
            boxes: all objects of the image.

        Raises:
            Conflict: if the labels have another version now; nothing is written.
            RunError: if they cannot be written (full disk); the old labels are unchanged.
            UserError: for an invalid class name or box.
        """
        with self._lock:
            _, header = self.facts(number)
            boxes = [_inside(box, header.size) for box in boxes]
            for name in check_class_names(dict.fromkeys(box.class_name for box in boxes), "class") if boxes else ():
                if name not in self._names:
                    self.add_class(name)
            stored = self._write(number, version, boxes)
        self._note(number, stored)
        return stored

    def add_class(self, name: str) -> None:
        """Add a class and save it. Raises UserError for an invalid name, RunError if it cannot be saved."""
        with self._lock:
            name = check_class_names([name], "class")[0]
            if name not in self._names:
                self._save_class(name)
                self._names[name] = None

    def _note(self, number: int, stored: StoredLabels) -> None:
        if not stored.is_labelled:
            self.labelled.discard(number)
            self.counts.boxes.pop(number, None)
            return
        self.labelled.add(number)
        self.counts.boxes[number] = Counter(box.class_name for box in stored.labels.boxes)
        for box in stored.labels.boxes:
            self._names.setdefault(box.class_name)

    @abstractmethod
    def _list_pictures(self) -> Iterator[Path]: ...

    @abstractmethod
    def _list_labelled(self) -> set[int]: ...

    @abstractmethod
    def _read(self, number: int) -> StoredLabels: ...

    @abstractmethod
    def _write(self, number: int, version: str, boxes: Sequence[Box]) -> StoredLabels: ...

    @abstractmethod
    def _save_class(self, name: str) -> None: ...


def natural_key(name: str) -> list[tuple[int, Any]]:
    """Sort key that compares numbers in names by value."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name.casefold()) if part]


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """Clip a box to the image. Raises UserError if nothing is left."""
    height, width = size
    corners = np.array(box.box, np.float64)
    x1, y1, x2, y2 = (float(v) for v in np.clip(corners, 0, [width, height, width, height]))
    if box.ref is None and (not np.isfinite(corners).all() or x2 - x1 < LEAST_SIDE or y2 - y1 < LEAST_SIDE):
        raise UserError("boxes", f"the {box.class_name} {list(box.box)} has no area in the image", "draw it again")
    inside = box.box if box.ref is not None and not x2 - x1 >= LEAST_SIDE <= y2 - y1 else (x1, y1, x2, y2)
    return Box(box.class_name.strip(), inside, box.difficult, box.ref)


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lock the labels of a folder against other processes of this program; no effect if folders cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network drives
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _digest(data: bytes | None) -> str:
    return NO_FILE if data is None else hashlib.blake2b(data, digest_size=12).hexdigest()


def _read_or_none(path: Path, max_bytes: int) -> bytes | None:
    try:
        return read_file(path, max_bytes)
    except FileError as error:
        if error.code == "missing_file":
            return None
        raise


def _pictures_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(parent, name)


# --- a file of labels for each image ---------------------------------------------------------------------------------


class FileStore(Store):
    """One file of labels for each image."""

    max_bytes: int

    @abstractmethod
    def annotation(self, number: int) -> Path:
        """Path of the labels of an image; it may not exist."""

    @abstractmethod
    def _parse(self, data: bytes, facts: PictureFacts, where: Path) -> Labels: ...

    @abstractmethod
    def _edit(self, data: bytes | None, boxes: Sequence[Box], facts: PictureFacts, where: Path) -> bytes: ...

    def _list_labelled(self) -> set[int]:
        there: dict[str, set[str]] = {}  # folder: its file names; faster than a stat of each of 20,000 files
        labelled = set()
        first: dict[Path, int] = {}
        for number in range(len(self.paths)):
            path = self.annotation(number)
            if first.setdefault(path, number) != number and number not in self._warned:
                self._warned.add(number)
                what = f"has the same file of labels as {self.name(first[path])}: {path.name}"
                warn(self.name(number), what, "give one of the images another name")
            folder, name = os.path.split(path)
            if folder not in there:
                try:
                    there[folder] = set(os.listdir(folder))
                except OSError:
                    there[folder] = set()
            if name in there[folder]:
                labelled.add(number)
        return labelled

    def _read(self, number: int) -> StoredLabels:
        path = self.annotation(number)
        return self._stored(_read_or_none(path, self.max_bytes), number, path)

    def _stored(self, data: bytes | None, number: int, path: Path) -> StoredLabels:
        facts, header = self.facts(number)
        if data is None:
            return StoredLabels(NO_FILE, Labels(), False)
        try:
            return StoredLabels(_digest(data), self._parse(data, facts, path).turned(header), True)
        except UserError as error:
            return StoredLabels(_digest(data), Labels(), True, str(error))

    def _write(self, number: int, version: str, boxes: Sequence[Box]) -> StoredLabels:
        path = Path(os.path.realpath(self.annotation(number)))  # a symbolic link is kept
        facts, header = self.facts(number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(path.parent, f"cannot be created: {error.strerror}", "create it manually") from error
        with _folder_lock(path.parent):
            data = _read_or_none(path, self.max_bytes)
            self._require(version, data, number, path)
            old = self._stored(data, number, path)
            if old.problem:
                raise UserError(path, f"cannot be edited: {old.problem}", "correct or remove the file")
            declared = Labels() if data is None else self._parse(data, facts, path)
            back = Labels(tuple(boxes), 0, declared.declared).turned(header, back=True)
            new = self._edit(data, back.boxes, facts, path)
            if new != data:
                write_atomically(
                    path, new, lambda: self._require(version, _read_or_none(path, self.max_bytes), number, path)
                )
            return self._stored(new, number, path)

    def _require(self, version: str, data: bytes | None, number: int, path: Path) -> None:
        if _digest(data) != version:
            raise Conflict(self._stored(data, number, path))

    def _class_file(self) -> Path:
        return (self.root if self.root.is_dir() else self.root.parent) / CLASS_FILE

    def _listed_classes(self) -> list[str]:
        data = _read_or_none(self._class_file(), MAX_LABEL_BYTES)
        return [] if data is None else [line.strip() for line in decode_text(data, self._class_file()).splitlines()]

    def _save_class(self, name: str) -> None:
        """Save a class in the list of names, because it has no boxes yet."""
        path = self._class_file()
        data = _read_or_none(path, MAX_LABEL_BYTES) or b""
        if name not in self._listed_classes():
            head = data if not data or data.endswith(b"\n") else data + b"\n"
            write_atomically(path, head + f"{name}\n".encode())


class VocStore(FileStore):
    """Pascal VOC: year folders with JPEGImages and Annotations, or XML files next to the images."""

    format = "voc"
    max_bytes = MAX_XML_BYTES

    def __init__(self, root: Path, class_names: Sequence[str] = ()) -> None:
        super().__init__(root, class_names)
        self._years = find_voc_years(root)
        self._xml: dict[str, list[Path]] = {}
        self._homes: dict[Path, Path] = {}
        self._names |= dict.fromkeys(name for name in self._listed_classes() if name)
        self.rescan()

    def _list_pictures(self) -> Iterator[Path]:
        if self._years:
            for folder in self._years.values():
                yield from _pictures_below(folder / "JPEGImages")
            return
        self._xml = {}
        for parent, folders, names in os.walk(self.root):
            folders[:] = [each for each in folders if not each.startswith(".")]
            for name in names:
                if name.lower().endswith(".xml"):
                    self._xml.setdefault(os.path.splitext(name)[0], []).append(Path(os.path.abspath(parent), name))
        yield from _pictures_below(self.root)

    def annotation(self, number: int) -> Path:
        picture = self.paths[number]
        if self._years:
            return annotation_path(picture)
        found, same = self._xml.get(picture.stem, []), self._same_stem[picture.stem]
        if len(same) > 1:  # each has labels of its own: in the folder of its name, or next to it
            if picture != min(each for each in same if each.parent == picture.parent):
                return picture.with_name(f"{picture.name}.xml")  # a.png beside a.jpg
            own = picture.with_suffix(".xml")
            found = [each for each in found if each.parent.name == picture.parent.name and own not in found]
            return found[0] if len(found) == 1 else own
        if len(found) == 1 or picture.with_suffix(".xml") in found:
            return picture.with_suffix(".xml") if picture.with_suffix(".xml") in found else found[0]
        return self._xml_folder(picture.parent) / f"{picture.stem}.xml"

    def _xml_folder(self, pictures: Path) -> Path:
        """The folder of the labels for images of this folder."""
        if pictures not in self._homes:
            top = Path(os.path.abspath(self.root))
            places = [each for each in (pictures.parent, pictures) if each.is_relative_to(top)]
            folders = [each for place in places for each in place.iterdir()]
            named = [each for each in folders if each.name.lower() in XML_FOLDERS and any(each.glob("*.xml"))]
            self._homes[pictures] = named[0] if named else pictures
        return self._homes[pictures]

    def _parse(self, data: bytes, facts: PictureFacts, where: Path) -> Labels:
        return read_voc_labels(data, where)

    def _edit(self, data: bytes | None, boxes: Sequence[Box], facts: PictureFacts, where: Path) -> bytes:
        return write_voc_labels(data, boxes, facts, where)


class YoloStore(FileStore):
    """YOLO txt: a data.yaml, or labels next to the images with a classes.txt."""

    format = "yolo"
    max_bytes = MAX_LABEL_BYTES

    def __init__(self, root: Path, class_names: Sequence[str] = ()) -> None:
        super().__init__(root)
        found = root if root.is_file() else find_data_yaml(root)
        self._yaml = found
        config = read_data_yaml(found) if found else None
        listed = config.class_names if config else [name for name in self._listed_classes() if name]
        self._names = dict.fromkeys(listed)
        self.keypoints = int(np.prod(config.key_points)) if config and config.key_points else 0
        self.rescan()
        self._check_numbers()
        for name in class_names:
            self.add_class(name)

    def _check_numbers(self) -> None:
        """Raises UserError for labels whose classes are not numbers from 0, which would be shown as other classes."""
        used = set(label_classes(str(self.annotation(number)) for number in range(len(self.paths))))
        numbers = {each for each in used if isinstance(each, int)}
        if len(numbers) < len(used):
            what = "has rows that begin with class names"
        elif self._names and 0 not in numbers and max(numbers, default=0) == len(self._names):
            what = "has class numbers that start at 1"
        else:
            return
        todo = f"convert it: python dataset.py convert {quoted(self.root)} OUT --to yolo"
        raise UserError(self.root, f"{what}, which the labelling page cannot edit", todo)

    def _list_pictures(self) -> Iterator[Path]:
        if self._yaml is None:
            yield from _pictures_below(self.root)
            return
        for split in list_yolo_splits(self._yaml):
            index = open_dataset(self._yaml, split, allow_empty=True)
            yield from (index.path(i) for i in range(len(index)))
            for folder in {path.parent for path in (index.path(i) for i in range(len(index)))}:
                yield from _pictures_below(folder)

    def annotation(self, number: int) -> Path:
        return Path(label_path(self.paths[number]))

    def _parse(self, data: bytes, facts: PictureFacts, where: Path) -> Labels:
        return read_yolo_labels(data, self.class_names, facts, self.keypoints)

    def _edit(self, data: bytes | None, boxes: Sequence[Box], facts: PictureFacts, where: Path) -> bytes:
        return write_yolo_labels(data, boxes, self.class_names, facts, self.keypoints)

    def _save_class(self, name: str) -> None:
        if self._yaml is None:
            super()._save_class(name)
            return
        data = read_file(self._yaml, MAX_LABEL_BYTES)
        text = add_yaml_name(decode_text(data, self._yaml), name, self._yaml)
        write_atomically(self._yaml, text.encode())


def add_yaml_name(text: str, name: str, where: object) -> str:
    """Add a class at the end of `names` of a data.yaml; comments and all other content are unchanged.

    Raises:
        UserError: if `names` is written in an unsupported way.
    """
    before = yaml.safe_load(text)
    root = yaml.compose(text, yaml.SafeLoader)
    nodes = {key.value: value for key, value in root.value}
    names = nodes["names"]
    count = len(before["names"])
    entry = json.dumps(name, ensure_ascii=False)
    is_map = isinstance(names, yaml.MappingNode)
    item = f"{count}: {entry}" if is_map else entry
    if names.flow_style:
        last = (names.value[-1][1] if is_map else names.value[-1]) if names.value else None
        place = last.end_mark.index if last else names.end_mark.index - 1
        insertion = f", {item}" if last else item
    else:
        last = names.value[-1][1] if is_map else names.value[-1]
        place = last.end_mark.index
        insertion = f"\n{' ' * names.start_mark.column}{item if is_map else f'- {item}'}"
    edits = [(place, place, insertion)]
    if "nc" in nodes:
        edits.append((nodes["nc"].start_mark.index, nodes["nc"].end_mark.index, str(count + 1)))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    after = yaml.safe_load(text)
    known = list(before["names"].values()) if is_map else before["names"]
    now = list(after["names"].values()) if is_map else after["names"]
    if now != [*known, name] or before.keys() != after.keys():
        raise UserError(where, f"class {name!r} cannot be added to its names", "add it there manually")
    return text


# --- one file for all images -----------------------------------------------------------------------------------------


class _Book:
    """A COCO file, with its entries as text by image, so that a save is one join and one write."""

    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.state: tuple[int, ...] = ()
        self.load()

    def load(self) -> None:
        self.state = self.look()
        content = json.loads(read_file(self.path, MAX_JSON_BYTES).decode("utf-8-sig"))
        self.head = {key: value for key, value in content.items() if key not in ("images", "annotations")}
        self.names = {each["id"]: str(each.get("name", "")).strip() for each in content["categories"]}
        self.images = {each["id"]: each for each in content["images"] if isinstance(each, dict) and "id" in each}
        self.annotations: list[Any] = content["annotations"]
        self.of_image: dict[Any, list[int]] = {}
        for position, each in enumerate(self.annotations):
            if isinstance(each, dict):
                self.of_image.setdefault(each.get("image_id"), []).append(position)
        self.texts = [entry_text(each) for each in self.annotations]
        self.image_texts = {key: entry_text(each) for key, each in self.images.items()}

    def look(self) -> tuple[int, ...]:
        status = os.stat(self.path)
        return status.st_mtime_ns, status.st_size, status.st_ino

    def refresh(self) -> None:
        if self.look() != self.state:
            self.load()

    def entries(self, key: Any) -> list[dict[str, Any]]:
        return [self.annotations[position] for position in self.of_image.get(key, [])]

    def version(self, key: Any) -> str:
        if key not in self.images:
            return NO_FILE
        parts = [self.image_texts[key], *(self.texts[position] for position in self.of_image.get(key, []))]
        return _digest("\n".join(parts).encode("utf-8", "surrogatepass"))

    def is_labelled(self, key: Any) -> bool:
        return key in self.images and bool(self.of_image.get(key) or self.images[key].get("labelled") is True)

    def replace(self, key: Any, image: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        self.images[key], self.image_texts[key] = image, entry_text(image)
        places = self.of_image.get(key, [])
        self.of_image[key] = []
        for number, each in enumerate(entries):
            if number < len(places):
                position = places[number]
                self.annotations[position], self.texts[position] = each, entry_text(each)
            else:
                position = len(self.annotations)
                self.annotations.append(each)
                self.texts.append(entry_text(each))
            self.of_image[key].append(position)
        for position in places[len(entries) :]:
            self.annotations[position], self.texts[position] = None, ""

    def save(self) -> None:
        lists = {"images": list(self.image_texts.values()), "annotations": [text for text in self.texts if text]}
        parts = [f"{json.dumps(key)}: {entry_text(value)}" for key, value in self.head.items()]
        parts += [f"{json.dumps(key)}: [\n" + ",\n".join(rows) + "\n]" for key, rows in lists.items()]
        data = ("{" + ",\n".join(parts) + "}\n").encode("utf-8", "backslashreplace")
        state = self.state

        def unchanged() -> None:
            if self.look() != state:
                raise _Stale

        write_atomically(self.path, data, unchanged)
        self.state = self.look()


class _Stale(Exception):
    """The file has been changed by another program since it was read."""


class CocoStore(Store):
    """COCO instances JSON; several files if the folder has several splits.

    An image labelled as without objects is marked `"labelled": true` in `images`, because COCO does not distinguish it
    from an unlabelled one.
    """

    format = "coco"

    def __init__(self, root: Path, class_names: Sequence[str] = ()) -> None:
        super().__init__(root)
        self._books = [_Book(path, split) for split, path in find_coco_files(root).items()]
        self._place: dict[int, tuple[_Book, Any]] = {}
        self._folders: dict[Path, _Book] = {}
        for book in self._books:
            self._names |= dict.fromkeys(name for name in book.names.values() if name)
        self.rescan()
        for name in class_names:
            self.add_class(name)

    def _list_pictures(self) -> Iterator[Path]:
        for book in self._books:
            book.refresh()
            index = open_dataset(self.root, book.split, allow_empty=True)
            by_name = {str(each.get("file_name", "")).replace("\\", "/"): key for key, each in book.images.items()}
            for i in range(len(index)):
                path, key = index.path(i), index.image_ids[i].item()
                if key not in book.images:
                    key = next((known for name, known in by_name.items() if path.as_posix().endswith(f"/{name}")), key)
                self._place[self._add(path)] = (book, key)
            for folder in index.source["dependencies"]["folders"]:
                self._folders.setdefault(Path(folder), book)
        for folder, book in self._folders.items():
            for path in _pictures_below(folder):
                number = self._add(path)
                self._place.setdefault(number, (book, None))
        return iter(())

    def _list_labelled(self) -> set[int]:
        return {number for number, (book, key) in self._place.items() if book.is_labelled(key)}

    def _read(self, number: int) -> StoredLabels:
        book, key = self._place[number]
        book.refresh()
        return self._stored(number, book, key)

    def _stored(self, number: int, book: _Book, key: Any) -> StoredLabels:
        _, header = self.facts(number)
        labels = self._labels(book, key).turned(header)
        return StoredLabels(book.version(key), labels, book.is_labelled(key))

    def _labels(self, book: _Book, key: Any) -> Labels:
        found = read_coco_labels(book.entries(key), book.names)
        image = book.images.get(key, {})
        height, width = (image.get(side) for side in ("height", "width"))
        if isinstance(height, int) and isinstance(width, int):
            found = Labels(found.boxes, found.hidden, (height, width))
        return found

    def _write(self, number: int, version: str, boxes: Sequence[Box]) -> StoredLabels:
        facts, header = self.facts(number)
        while True:
            book, key = self._place[number]
            with _folder_lock(book.path.parent):
                book.refresh()
                if book.version(key) != version:
                    raise Conflict(self._stored(number, book, key))
                try:
                    key = self._write_book(number, book, key, boxes, facts, header)
                except _Stale:
                    continue  # read it again, and check whether this image was changed
                except BaseException:
                    book.state = ()  # memory and disk differ: read the file again
                    raise
                return self._stored(number, book, key)

    def _write_book(
        self, number: int, book: _Book, key: Any, boxes: Sequence[Box], facts: PictureFacts, header: ImageHeader
    ) -> Any:
        ids = {name: number for number, name in book.names.items()}
        for box in boxes:
            if box.class_name not in ids:
                ids[box.class_name] = self._add_category(book, box.class_name)
        if key is None:
            key = max([0, *(each for each in book.images if isinstance(each, int))]) + 1
            folder = next(each for each in self._folders if self.paths[number].is_relative_to(each))
            name = self.paths[number].relative_to(folder).as_posix()
            image = {"id": key, "file_name": name, "width": facts.size[1], "height": facts.size[0]}
        else:
            image = dict(book.images[key])
        back = Labels(tuple(boxes), 0, self._labels(book, key).declared).turned(header, back=True)
        known = (each.get("id") for each in book.annotations if isinstance(each, dict))
        free = max([0, *(each for each in known if isinstance(each, int))]) + 1
        entries = write_coco_labels(book.entries(key), back.boxes, ids, key, free)
        book.replace(key, image | {"labelled": True}, entries)
        book.save()
        self._place[number] = (book, key)
        return key

    def _add_category(self, book: _Book, name: str) -> int:
        number = max([0, *(each for each in book.names if isinstance(each, int))]) + 1
        book.names[number] = name
        book.head["categories"] = [*book.head["categories"], {"id": number, "name": name}]
        return number

    def _save_class(self, name: str) -> None:
        """Save a class in every file, so that all splits have the same classes."""
        for book in self._books:
            with _folder_lock(book.path.parent):
                book.refresh()
                if name not in book.names.values():
                    self._add_category(book, name)
                    try:
                        book.save()
                    except BaseException:
                        book.state = ()
                        raise


def open_store(data: str | os.PathLike[str], class_names: Sequence[str] = ()) -> Store:
    """Open the labels of a folder in its format, or in Pascal VOC XML next to the images if there are no labels.

    Args:
        data: a VOCdevkit, a COCO folder or JSON, a YOLO data.yaml, or any folder of images.
        class_names: initial class names.

    Raises:
        UserError: if it does not exist or contains no image.
    """
    path = Path(data)
    if not os.path.lexists(path):
        raise UserError(data, "does not exist", "give a folder of images")
    kind: type[Store] = VocStore
    if path.is_file():
        kinds: dict[str, type[Store]] = {".json": CocoStore, ".yaml": YoloStore, ".yml": YoloStore}
        if path.suffix.lower() not in kinds:
            raise UserError(data, "is not a data set", "give a folder of images, a COCO JSON or a data.yaml")
        kind = kinds[path.suffix.lower()]
    elif find_voc_years(path):
        kind = VocStore
    elif find_data_yaml(path) is not None:
        kind = YoloStore
    elif find_coco_files(path):
        kind = CocoStore
    elif (path / CLASS_FILE).is_file() and any(each.with_suffix(".txt").is_file() for each in _pictures_below(path)):
        kind = YoloStore
    store = kind(path, class_names)
    if not store.paths:
        raise UserError(data, "contains no image", "give a folder of JPEG, PNG or other images")
    return store
