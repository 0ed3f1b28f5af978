"""Collect the images and boxes of a data set from its annotation files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.class_names import MAX_NAME, decode_text, unlisted_classes
from data.formats.clean import RawSplit, build_index
from data.formats.folder import Folder, split_of
from data.formats.shapes import number_of
from data.formats.yolo_txt import unique_ids
from data.index import DatasetIndex
from data.skips import Skip, rotated_note
from utils.errors import UserError, brief
from utils.files import MEGABYTE, read_file
from utils.text import counted

MAX_TEXT_BYTES = 10 * MEGABYTE  # of the label file of one image
ALL = "all"  # the split of images without a list or folder of a split


class Labels:
    """Container that the small readers fill; `finish` builds the index.

    Args:
        folder: the data set's folder, which is searched for images.

    Attributes:
        unit: separator between annotation file and box number in messages: `:` for a line.
        normalised: boxes are fractions of the upright image.
        numbers: `corners` or `xywh` where the file does not say which of the two its four numbers are.
        names: class names by class number, if classes are numbers.
        declared_names: keep names without boxes.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.unit = ":"
        self.normalised = False
        self.numbers: str | None = None
        self.names: Sequence[str] | None = None
        self.declared_names = False
        self.paths: list[str] = []
        self.splits: list[str] = []
        self.skips: list[Skip] = []
        self.files: dict[str, None] = {}
        self.label_files: dict[str, str] = {}
        self._number_of: dict[str, int] = {}
        self._rotated: list[str] = []
        self._declared: list[tuple[float, float]] = []
        self._owner: list[int] = []
        self._boxes: list[tuple[float, ...]] = []
        self._classes: list[str] = []
        self._flags: list[tuple[bool, bool]] = []
        self._where: list[tuple[str, int]] = []

    def image(
        self, name: str, file: str, number: int = 0, size: tuple[Any, Any] = (None, None), split: str | None = None
    ) -> int | None:
        """The number of the image that an annotation file calls `name`; None, with a skip, if it does not exist.

        Args:
            name: a path, complete or partial, of any operating system; see `Folder.find`.
            file, number: the annotation file and the position in it.
            size: (height, width) stated by the file.
            split: stated by the file; else taken from the folder or the file name.
        """
        self.files[file] = None
        path, several = self.folder.find(name, os.path.dirname(file))
        where = f"{file}{self.unit}{number}" if number else file
        if path is None:
            self.skips.append(self.folder.not_found(where, name[-80:], several))
            return None
        if path not in self._number_of:
            self._number_of[path] = len(self.paths)
            self.paths.append(path)
            stated = split_of(split) or split if split else None
            own = stated or split_of(self.folder.relative(path)) or split_of(self.folder.relative(file))
            self.splits.append(own or ALL)
            height, width = (number_of(side) for side in size)
            known = height is not None and width is not None and 0 < height < 1e6 and 0 < width < 1e6
            self._declared.append((round(height), round(width)) if known and height and width else (0, 0))
            self.label_files[path] = file
        return self._number_of[path]

    def box(
        self,
        image: int,
        name: Any,
        box: Sequence[Any],
        file: str,
        number: int,
        difficult: bool = False,
        crowd: bool = False,
    ) -> None:
        """Add one object; an invalid one is dropped and reported.

        Args:
            image: as returned by `image`.
            name: of the class.
            box: xyxy; should be four numbers, but is validated.
            file, number: the annotation file and the position in it.
            difficult: the object is ignored in evaluation.
            crowd: the region stands for many objects.
        """
        values = [number_of(value) for value in box]
        name = name.strip() if isinstance(name, str) else name
        if not name or not isinstance(name, str) or len(name) > MAX_NAME:
            return self.drop("no_name", file, number, f"the object's class is {brief(name)}")
        if len(values) != 4 or any(value is None for value in values):
            return self.drop("bad_number", file, number, f"the box of the {name} is {brief(list(box))}")
        self._owner.append(image)
        self._boxes.append(tuple(float(value) for value in values if value is not None))
        self._classes.append(name)
        self._flags.append((difficult, crowd))
        self._where.append((file, number))

    def shape(
        self,
        image: int | None,
        name: Any,
        box: Sequence[Any] | None,
        file: str,
        number: int,
        kind: Any = "shape",
        rotated: bool = False,
        **flags: bool,
    ) -> None:
        """Add the object of a shape; one without a box is dropped and reported.

        Args:
            image: as returned by `image`; nothing is added for None.
            name, file, number, flags: see `box`.
            box: xyxy around the shape; None if it has none.
            kind: what it is, for the message.
            rotated: the box is the upright one around a rotated rectangle.
        """
        if image is None:
            return
        if box is None:
            return self.drop("no_box", file, number, f"a {str(kind)[:80]} has no box")
        before = len(self._boxes)
        self.box(image, name, box, file, number, **flags)
        if rotated and len(self._boxes) > before:
            self._rotated.append(f"{file}{self.unit}{number}")

    def drop(self, code: str, file: str, number: int, what: str) -> None:
        """Record a box that cannot be used."""
        self.skips.append(Skip("box", code, f"{file}{self.unit}{number}", f"{what}; box dropped", "correct it"))

    def refuse(self, file: str, what: str, todo: str = "correct or remove the file") -> None:
        """Record an annotation file that cannot be used."""
        self.skips.append(Skip("image", "bad_annotation_file", file, what, todo))

    def text_files(self, files: Sequence[str]) -> Iterator[tuple[int, str, list[str]]]:
        """(image, file, lines) of label files that are named after their images; empty for images without objects."""
        homes = {os.path.dirname(path) for path in files}
        for path in self.folder.having(".txt"):
            picture, _ = self.folder.same_stem(path)
            if os.path.dirname(path) not in homes or (picture is None and path not in files):
                continue
            try:
                lines = decode_text(read_file(path, MAX_TEXT_BYTES), path).splitlines()
            except UserError as error:
                self.refuse(path, error.what)
                continue
            image = self.image(picture or self.folder.relative(path), path)
            if image is not None:
                yield image, path, lines

    def finish(self, kind: str, class_names: Sequence[str] | None, max_megapixels: float) -> DatasetIndex:
        """Build the index of all splits together; `source["split_of"]` gives the split of each image."""
        found = Counter(self._classes)
        if class_names is None:
            class_names = [name for name in self.names or () if found[name] or self.declared_names] or sorted(found)
        number_of = {each: number for number, each in enumerate(class_names)}
        self.skips += unlisted_classes(found, class_names, str(self.folder.root))
        flags = np.array(self._flags, bool).reshape(-1, 2)
        rotated = [rotated_note(str(self.folder.root), len(self._rotated), self._rotated[0])] if self._rotated else []
        notes = self.folder.notes(str(self.folder.root), len(self.paths))
        folders = {os.path.dirname(path) for path in (*self.paths, *self.files)}
        folders |= {str(self.folder.root), str(self.folder.home)}
        raw = RawSplit(
            name=self.folder.root.resolve().name,
            class_names=class_names,
            paths=self.paths,
            image_ids=unique_ids(self.paths, self.folder.home),
            declared=np.array(self._declared, np.float64).reshape(-1, 2),
            box_image=np.array(self._owner, np.int64),
            boxes=np.array(self._boxes, np.float64).reshape(-1, 4),
            labels=np.array([number_of.get(each, -1) for each in self._classes], np.int32),
            difficult=flags[:, 0],
            crowd=flags[:, 1],
            box_where=lambda m: self.unit.join(map(str, self._where[m])),
            normalised=self.normalised,
            numbers=self.numbers,
            box_refs=np.array([number for _, number in self._where], np.int64),
            source={
                "format": kind,
                "root": os.path.abspath(self.folder.only or self.folder.root),
                "split": ALL,
                "image_folder": str(self.folder.home),
                "dependencies": {"files": sorted(map(os.path.abspath, self.files)),
                                 "folders": sorted(map(os.path.abspath, folders))},
                "found_classes": dict(found),
                "facts": {"rotated": len(self._rotated)},
                "unit": self.unit,
                "label_files": self.label_files,
            },
            skips=[*self.skips, *rotated, *self.folder.links_outside(), *notes],
        )  # fmt: skip
        index = build_index(raw, max_megapixels)
        split_by_path = dict(zip(self.paths, self.splits, strict=True))
        index.source["split_of"] = [split_by_path[str(index.path(i))] for i in range(len(index))]
        return index


@dataclass(frozen=True)
class Layout:
    """A layout of annotation files that is read as a whole.

    Args:
        suffixes: of its annotation files.
        is_annotation: whether a file with such a suffix is one, from its path and its first bytes.
        evidence: text with the number of `{files}`, the name of the `{first}`, and the number of `{pictures}`.
        read: reads annotation files; the class names are those that the user gave.
    """

    suffixes: tuple[str, ...]
    is_annotation: Callable[[str, bytes], bool]
    evidence: str
    read: Callable[[Labels, list[str], Sequence[str] | None], None]

    def files(self, folder: Folder) -> list[str]:
        """The annotation files of a folder."""
        return [path for path in folder.having(*self.suffixes) if self.is_annotation(path, folder.head(path))]

    def sniff(self, folder: Folder) -> str | None:
        """Evidence that a folder has this layout, or None."""
        files = self.files(folder)
        if not files:
            return None
        first, pictures = os.path.basename(files[0]), counted(len(folder.pictures), "image")
        kind = f"{os.path.splitext(first)[1].lower()} file"
        return self.evidence.format(first=first, pictures=pictures, files=counted(len(files), kind))
