"""Findings of a data set check: codes, severities, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from utils.errors import printable

ERROR, WARNING, INFO = "error", "warning", "info"
CODES = {  # every code, how bad it is, and what it means
    # images
    "missing_image": (ERROR, "a split or annotation names an image that does not exist"),
    "empty_file": (ERROR, "a picture has no bytes"),
    "not_an_image": (ERROR, "a file is no picture: a web page, a Git LFS pointer, something else"),
    "unsupported_image": (ERROR, "a picture of a kind that cannot be decoded here: HEIC, AVIF, JPEG of 12 bits"),
    "truncated_image": (ERROR, "a picture is cut off"),
    "corrupt_image": (ERROR, "a picture cannot be decoded"),
    "damaged_image": (WARNING, "a picture can be decoded, but the decoder complains of its data"),
    "image_too_big": (ERROR, "a picture claims more pixels than are allowed"),
    "file_too_big": (ERROR, "a file has more bytes than are allowed"),
    "not_a_file": (ERROR, "a folder, pipe, socket or device stands where a file should be"),
    "unreadable_file": (ERROR, "a file cannot be read (permissions, disk)"),
    "leads_outside": (ERROR, "a name or link leads out of the data set"),
    "several_images": (WARNING, "several pictures have the same id"),
    # annotations
    "unreadable_split": (ERROR, "a split cannot be read at all"),
    "empty_split": (ERROR, "a split has no usable image"),
    "no_boxes": (ERROR, "a split has no box of any class"),
    "missing_annotation": (ERROR, "a picture of a split has no annotation file"),
    "bad_xml": (ERROR, "an annotation is empty, cut, no VOC XML, too big, or declares a document type"),
    "bad_labels": (ERROR, "a label file cannot be read"),
    "bad_image_entry": (ERROR, "an image of the JSON has no id or file name"),
    "bad_annotation": (ERROR, "an annotation of the JSON is not an object"),
    "unknown_image": (ERROR, "annotations belong to an image that does not exist"),
    "bad_reference": (ERROR, "an annotation's image_id or category_id is missing or no number"),
    "size_mismatch": (ERROR, "the annotation states another size than the picture has"),
    "bad_size": (WARNING, "the annotation states no size, or 0"),
    "wrong_filename": (WARNING, "the annotation names another picture than the one it belongs to"),
    "exif_rotated_boxes": (WARNING, "a picture was annotated without its EXIF rotation; the boxes are turned"),
    "annotation_without_image": (WARNING, "an annotation or label file has no picture"),
    "image_without_annotation": (INFO, "pictures that no split and no annotation uses"),
    "not_in_a_split": (INFO, "annotated pictures that are in no split"),
    "no_label_file": (WARNING, "pictures without a label file, taken as without objects"),
    "ambiguous_image": (ERROR, "an annotation's name is that of several pictures"),
    "bad_annotation_file": (ERROR, "an annotation file cannot be read"),
    "found_by_name": (INFO, "pictures are not where the annotation says, but were found by their name"),
    "moved_path": (WARNING, "a path is of another machine; its last parts were found"),
    "more_names": (INFO, "a classes.txt names more classes than data.yaml"),
    "names_without_boxes": (INFO, "names of a classes.txt that no box uses are left out"),
    "root_category": (INFO, "a category that only groups others is left out"),
    "two_annotations": (WARNING, "a picture has two annotation files"),
    "one_class": (INFO, "a table names no classes"),
    "fractions": (INFO, "coordinates were taken as fractions of width and height"),
    "ignored_regions": (INFO, "regions that stand for no object are left out"),
    "rotated_box": (INFO, "rotated boxes are read as the upright boxes around them"),
    "polygons": (INFO, "polygons are read as the boxes around them"),
    "ids_from_one": (WARNING, "class numbers start at 1"),
    "duplicate_id": (WARNING, "an id or line is there twice"),
    # boxes
    "no_name": (ERROR, "an object has no class name"),
    "no_box": (ERROR, "an object has no box"),
    "bad_number": (ERROR, "a coordinate is no number"),
    "bad_columns": (ERROR, "a label line has the wrong number of columns"),
    "bad_difficult": (WARNING, "<difficult> is neither 0 nor 1"),
    "nan_box": (ERROR, "a coordinate is not finite"),
    "huge_box": (ERROR, "a coordinate is absurdly large"),
    "not_normalised": (ERROR, "a YOLO label is not in fractions of the picture"),
    "looks_normalised": (ERROR, "the boxes are fractions where pixels are expected"),
    "looks_like_sizes": (ERROR, "boxes look like x, y, width, height where x1, y1, x2, y2 is expected"),
    "looks_like_corners": (ERROR, "COCO boxes look like x1, y1, x2, y2 where x, y, width, height is expected"),
    "reversed_box": (ERROR, "a box has its corners reversed or a negative size"),
    "zero_box": (ERROR, "a box has no area"),
    "outside_box": (ERROR, "a box lies outside the picture"),
    "clipped_box": (WARNING, "a box reaches out of the picture and was clipped"),
    "duplicate_box": (WARNING, "the same box of the same class is there twice"),
    "conflicting_box": (WARNING, "the same box has two classes"),
    "tiny_box": (INFO, "a box is tiny at the training size"),
    "decimal_box": (INFO, "VOC coordinates are not whole numbers"),
    "zero_based_box": (WARNING, "VOC coordinates begin at 0, where the format counts from 1"),
    # classes
    "unknown_class": (ERROR, "boxes of a class that is not in the list"),
    "similar_classes": (WARNING, "two class names are probably one: case, punctuation, or a typing error"),
    "class_without_boxes": (WARNING, "a class has no box in the training split"),
    "class_imbalance": (WARNING, "the commonest class has far more boxes than the rarest"),
    "few_boxes": (INFO, "classes with very few boxes"),
    # splits
    "same_image": (ERROR, "the same picture is in two splits"),
    "near_duplicate": (WARNING, "nearly the same picture is in two splits"),
    "small_split": (WARNING, "a split has very few pictures or boxes"),
    "mostly_without_boxes": (WARNING, "most pictures of a split have no box"),
    "duplicate_image": (WARNING, "the same picture is in one split twice"),
}


@dataclass(frozen=True)
class Finding:
    """One finding of a check.

    Args:
        severity: `error`, `warning` or `info`.
        code: a key of `CODES`.
        where: the file, or `file:line`.
        what: the fault.
        todo: the remedy.
        split: the split it was found in; empty if it is about several.
        count: how many faults of its kind it represents.
        pictures: the files that it is about, for the page.
        box: xyxy pixels of the box that it is about.
    """

    severity: str
    code: str
    where: str
    what: str
    todo: str = ""
    split: str = ""
    count: int = 1
    pictures: tuple[str, ...] = ()
    box: tuple[float, ...] | None = None

    def with_pictures(self, paths: Sequence[str]) -> Finding:
        """The same, with the images that it is about."""
        return replace(self, pictures=tuple(paths))

    def with_box(self, picture: str, box: Sequence[float]) -> Finding:
        """The same, with the box that it is about."""
        return replace(self, pictures=(picture,), box=tuple(float(value) for value in box))

    def __str__(self) -> str:
        todo = f"; {self.todo}" if self.todo else ""
        return printable(f"{self.where}: {self.what}{todo}")


@dataclass
class CheckReport:
    """All findings about a data set, and what its splits hold."""

    data: str
    kind: str
    why: str = ""
    findings: list[Finding] = field(default_factory=list)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, severity: str) -> int:
        """How many findings of a severity."""
        return sum(each.count for each in self.findings if each.severity == severity)

    def by_severity(self) -> Iterator[tuple[str, list[tuple[str, list[Finding]]]]]:
        """The findings by severity, the worst first, and by code, the most frequent first."""
        for severity in (ERROR, WARNING, INFO):
            by_code: dict[str, list[Finding]] = {}
            for each in self.findings:
                if each.severity == severity:
                    by_code.setdefault(each.code, []).append(each)
            yield severity, sorted(by_code.items(), key=lambda item: -sum(each.count for each in item[1]))

    @property
    def is_clean(self) -> bool:
        """Whether there is no error."""
        return not self.count(ERROR)

    def to_json(self) -> str:
        """The report as JSON text."""
        counts = {severity: self.count(severity) for severity in (ERROR, WARNING, INFO)}
        content = {
            "data": self.data,
            "format": self.kind,
            "why": self.why,
            "seconds": round(self.seconds, 2),
            "counts": counts,
        }
        content |= {"splits": self.splits, "findings": [asdict(each) for each in self.findings]}
        return json.dumps(content, indent=1, default=str)


def finding(code: str, where: object, what: str, todo: str = "", split: str = "", count: int = 1) -> Finding:
    return Finding(CODES[code][0], code, str(where), what, todo, split, count)


def some_names(names: Sequence[str], shown: int = 10) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
