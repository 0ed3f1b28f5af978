"""Findings of a data set check: codes, severities, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from utils.errors import printable

ERROR, WARNING, INFO = "error", "warning", "info"
CODES = {  # code: (severity, meaning)
    # images
    "missing_image": (ERROR, "a split or annotation names an image that does not exist"),
    "empty_file": (ERROR, "an image file is empty"),
    "not_an_image": (ERROR, "a file is not an image: a web page, a Git LFS pointer or something else"),
    "unsupported_image": (ERROR, "an image format that cannot be decoded here: HEIC, AVIF, 12-bit JPEG"),
    "truncated_image": (ERROR, "an image is truncated"),
    "corrupt_image": (ERROR, "an image cannot be decoded"),
    "damaged_image": (WARNING, "an image can be decoded, but the decoder reports errors"),
    "image_too_big": (ERROR, "an image has more pixels than allowed"),
    "file_too_big": (ERROR, "a file has more bytes than allowed"),
    "not_a_file": (ERROR, "a folder, pipe, socket or device instead of a file"),
    "unreadable_file": (ERROR, "a file cannot be read (permissions, disk)"),
    "leads_outside": (ERROR, "a name or link points outside the data set"),
    "several_images": (WARNING, "several images have the same id"),
    # annotations
    "unreadable_split": (ERROR, "a split cannot be read"),
    "empty_split": (ERROR, "a split has no usable image"),
    "no_boxes": (ERROR, "a split has no box of any class"),
    "missing_annotation": (ERROR, "an image of a split has no annotation file"),
    "bad_xml": (ERROR, "an annotation is empty, truncated, not VOC XML, too large, or declares a document type"),
    "bad_labels": (ERROR, "a label file cannot be read"),
    "bad_image_entry": (ERROR, "an image of the JSON has no id or file name"),
    "bad_annotation": (ERROR, "an annotation of the JSON is not an object"),
    "unknown_image": (ERROR, "annotations belong to an image that does not exist"),
    "bad_reference": (ERROR, "an annotation's image_id or category_id is missing or not a number"),
    "size_mismatch": (ERROR, "the size in the annotation differs from the image"),
    "bad_size": (WARNING, "the annotation has no size, or 0"),
    "wrong_filename": (WARNING, "the annotation contains the file name of another image"),
    "exif_rotated_boxes": (WARNING, "an image was annotated without its EXIF rotation; the boxes are rotated"),
    "annotation_without_image": (WARNING, "an annotation or label file has no image"),
    "image_without_annotation": (INFO, "images that are in no split and have no annotation"),
    "not_in_a_split": (INFO, "annotated images that are in no split"),
    "no_label_file": (WARNING, "images without a label file, used as images without objects"),
    "unread_labels": (WARNING, "images annotated only in files of another format, which are not read"),
    "ambiguous_image": (ERROR, "an annotation's file name matches several images"),
    "bad_annotation_file": (ERROR, "an annotation file cannot be read"),
    "found_by_name": (INFO, "images are not at the path in the annotation, but were found by name"),
    "moved_path": (WARNING, "a path is from another machine; its last parts were found"),
    "missing_test": (INFO, "a data.yaml names test images that do not exist"),
    "more_names": (INFO, "a classes.txt lists more classes than data.yaml"),
    "names_without_boxes": (INFO, "names of a classes.txt without boxes are skipped"),
    "root_category": (INFO, "a category that only groups others is skipped"),
    "two_annotations": (WARNING, "an image has two annotation files"),
    "one_class": (INFO, "a table has no class column"),
    "fractions": (INFO, "coordinates are read as fractions of width and height"),
    "ignored_regions": (INFO, "regions that are not objects are skipped"),
    "rotated_box": (INFO, "rotated boxes are read as their enclosing upright boxes"),
    "polygons": (INFO, "polygons are read as their enclosing boxes"),
    "scores": (WARNING, "rows with a score are detections, used as labels"),
    "ids_from_one": (WARNING, "class numbers start at 1"),
    "duplicate_id": (WARNING, "an id or line appears twice"),
    # boxes
    "no_name": (ERROR, "an object has no class name"),
    "no_box": (ERROR, "an object has no box"),
    "bad_number": (ERROR, "a coordinate is not a number"),
    "bad_columns": (ERROR, "a label line has the wrong number of columns"),
    "bad_difficult": (WARNING, "<difficult> is neither 0 nor 1"),
    "nan_box": (ERROR, "a coordinate is not finite"),
    "huge_box": (ERROR, "a coordinate is implausibly large"),
    "not_normalised": (ERROR, "a YOLO label is not in fractions of the image size"),
    "looks_normalised": (ERROR, "the boxes are fractions where pixels are expected"),
    "looks_like_sizes": (ERROR, "boxes look like x, y, width, height where another form is expected"),
    "looks_like_corners": (ERROR, "boxes look like x1, y1, x2, y2 where another form is expected"),
    "looks_like_centres": (ERROR, "boxes look like centre x, y, width, height where another form is expected"),
    "reversed_box": (ERROR, "a box has its corners reversed or a negative size"),
    "zero_box": (ERROR, "a box has no area"),
    "outside_box": (ERROR, "a box is outside the image"),
    "clipped_box": (WARNING, "a box exceeds the image and was clipped"),
    "duplicate_box": (WARNING, "the same box of the same class appears twice"),
    "conflicting_box": (WARNING, "the same box has two classes"),
    "tiny_box": (INFO, "a box is tiny at the training size"),
    "decimal_box": (INFO, "VOC coordinates are not integers"),
    "zero_based_box": (WARNING, "VOC coordinates start at 0, but the format counts from 1"),
    # classes
    "unknown_class": (ERROR, "boxes of a class that is not in the list"),
    "similar_classes": (WARNING, "two class names are probably the same class: case, punctuation, or a typing error"),
    "class_without_boxes": (WARNING, "a class has no box in the training split"),
    "class_imbalance": (WARNING, "the most frequent class has far more boxes than the rarest"),
    "few_boxes": (INFO, "classes with very few boxes"),
    # splits
    "same_image": (ERROR, "the same image is in two splits"),
    "near_duplicate": (WARNING, "nearly the same image is in two splits"),
    "small_split": (WARNING, "a split has very few images or boxes"),
    "mostly_without_boxes": (WARNING, "most images of a split have no box"),
    "duplicate_image": (WARNING, "the same image is in one split twice"),
}


@dataclass(frozen=True)
class Finding:
    """One finding of a check.

    Args:
        code: a key of `CODES`.
        where: the file, or `file:line`.
        what: the fault.
        todo: the remedy.
        split: the split; empty if the finding concerns several splits.
        count: number of faults that the finding represents.
        pictures: the image files concerned, for the page.
        box: the box concerned, xyxy pixels.
    """

    code: str
    where: str
    what: str
    todo: str = ""
    split: str = ""
    count: int = 1
    pictures: tuple[str, ...] = ()
    box: tuple[float, ...] | None = None

    @property
    def severity(self) -> str:
        """`error`, `warning` or `info`."""
        return CODES[self.code][0]

    def __str__(self) -> str:
        todo = f"; {self.todo}" if self.todo else ""
        return printable(f"{self.where}: {self.what}{todo}")


@dataclass
class CheckReport:
    """All findings about a data set, and the number of images and boxes in its splits."""

    data: str
    kind: str
    why: str = ""
    findings: list[Finding] = field(default_factory=list)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, severity: str) -> int:
        """Number of findings of a severity."""
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
        content = {
            "data": self.data,
            "format": self.kind,
            "why": self.why,
            "seconds": round(self.seconds, 2),
            "counts": {severity: self.count(severity) for severity in (ERROR, WARNING, INFO)},
            "splits": self.splits,
            "findings": [{"severity": each.severity, **asdict(each)} for each in self.findings],
        }
        return json.dumps(content, indent=1, default=str)


def finding(
    code: str,
    where: object,
    what: str,
    todo: str = "",
    split: str = "",
    count: int = 1,
    pictures: Sequence[str] = (),
    box: Sequence[float] | None = None,
) -> Finding:
    """Make a `Finding` from a location and a box of any type."""
    corners = None if box is None else tuple(map(float, box))
    return Finding(code, str(where), what, todo, split, count, tuple(pictures), corners)
