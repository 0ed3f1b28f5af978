"""Collect the images and boxes of a data set from its annotation files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data.class_names import MAX_NAME, decode_text, suggestions
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
            file: the annotation file.
            number: position in the file.
            size: (height, width) stated by the file.
            split: stated by the file; else taken from the folder or the file name.
        """
        self.files[file] = None
        path, several = self.folder.find(name, os.path.dirname(file))
        where = f"{file}{self.unit}{number}" if number else file
        if path is None:
            code, what = "missing_image", f"there is no image {name[-80:]!r} in {self.folder.home}"
            todo = "add the image, give --image-folder, or remove the annotation"
            if several:
                code, todo = "ambiguous_image", "give the path within the data set"
                what = f"{name[-80:]!r} may be {' or '.join(self.folder.relative(each) for each in several[:3])}"
            self.skips.append(Skip("image", code, where, what, todo))
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
            file: the annotation file.
            number: position in the file.
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
        """(image, file, lines) of label files that are named after their images.

        An empty file belongs to an image without objects.
        """
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
        known = np.array([each in number_of for each in self._classes], bool)
        for name, todo in suggestions(found, class_names).items():
            what = f"class {name!r} is not one of the {len(class_names)} classes; {counted(found[name], 'box')} dropped"
            self.skips.append(Skip("box", "unknown_class", str(self.folder.root), what, todo, found[name]))
        where = [each for each, is_known in zip(self._where, known, strict=True) if is_known]
        flags = np.array(self._flags, bool).reshape(-1, 2)[known]
        outside = [
            Skip("image", "leads_outside", path, f"links to {os.path.realpath(path)}, outside of {self.folder.root}",
                 "keep images inside the data set")
            for path in self.folder.outside
        ]  # fmt: skip
        rotated = [rotated_note(str(self.folder.root), len(self._rotated), self._rotated[0])] if self._rotated else []
        skips = [*self.skips, *rotated, *outside, *self.folder.notes(str(self.folder.root), len(self.paths))]
        folders = {os.path.dirname(path) for path in (*self.paths, *self.files)}
        folders |= {str(self.folder.root), str(self.folder.home)}
        raw = RawSplit(
            name=self.folder.root.resolve().name,
            class_names=class_names,
            paths=self.paths,
            image_ids=unique_ids(self.paths, self.folder.home),
            declared=np.array(self._declared, np.float64).reshape(-1, 2),
            box_image=np.array(self._owner, np.int64)[known],
            boxes=np.array(self._boxes, np.float64).reshape(-1, 4)[known],
            labels=np.array([number_of.get(each, -1) for each in self._classes], np.int32)[known],
            difficult=flags[:, 0],
            crowd=flags[:, 1],
            box_where=lambda m: f"{where[m][0]}{self.unit}{where[m][1]}",
            normalised=self.normalised,
            numbers=self.numbers,
            box_refs=np.array([number for _, number in where], np.int64),
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
            skips=skips,
        )  # fmt: skip
        index = build_index(raw, max_megapixels)
        split_by_path = dict(zip(self.paths, self.splits, strict=True))
        index.source["split_of"] = [split_by_path[str(index.path(i))] for i in range(len(index))]
        return index
