"""Convert a data set to another format, and report what that format cannot store."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.class_names import read_class_names
from data.formats.dataset_writer import FORMATS, NATIVE, Losses, write_dataset
from data.index import DatasetIndex
from data.open import list_splits, match_split, open_dataset, read_alike
from data.tools.new_folder import check_new_folder, new_folder
from utils.config import option, parse_options
from utils.errors import UserError
from utils.text import counted, quoted

REPORT = "conversion_report.json"
MAX_LISTED = 1000  # skips listed in the report


@dataclass
class ConversionReport(Losses):
    """Result of a conversion, with its losses.

    Args:
        source, target: the folders; their formats are among `FORMATS`.
        splits: number of images and boxes of each split.
        category_ids: COCO ids of the classes, if the source has them.
        skipped: skips of the source's reader, as text.
    """

    source: str
    target: str
    source_format: str
    target_format: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int] | None = None
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.source_format}) -> {self.target} ({self.target_format})"]
        lines += [
            f"  {name}: {counted(part['images'], 'image')}, {counted(part['boxes'], 'box')}"
            for name, part in self.splits.items()
        ]
        lines.append("cannot be stored in the new format:" if self.lost else "nothing was lost")
        if self.source_format not in NATIVE:
            lines[-1] += " (class, box and flags of each object are read; other attributes are not)"
        lines += [f"  {count:8} x {what}" for what, count in self.lost.items()]
        if self.renamed:
            images = counted(len(self.renamed), "image was", "images were")
            lines.append(f"{images} renamed, because two had the same name")
        if self.skipped:
            lines.append(f"{counted(len(self.skipped), 'note')} on the source, the first: {self.skipped[0]}")
        return "\n".join([*lines, f"details: {Path(self.target) / REPORT}"])


def convert_dataset(
    source: str | Path,
    target: str | Path,
    to: str | None,
    split: str = "all",
    class_names: Sequence[str] | None = None,
    link: bool = False,
    year: str | None = None,
    progress: bool = True,
    image_folder: str | None = None,
) -> ConversionReport:
    """Convert a data set to another format.

    See `write_dataset` for the files. Boxes keep their exact pixels; a conversion back restores them.

    Args:
        source: a data set of any known format; it is only read.
        target: a new or empty folder, which appears only when it is complete.
        to: one of `FORMATS`.
        split: name of one split, or `all`.
        class_names, image_folder: as in `open_dataset`.
        link, year, progress: as in `write_dataset`.

    Raises:
        UserError: if the target is not empty, one folder contains the other, or a split is unknown.
    """
    source, target = Path(source), Path(target)
    if to not in FORMATS:
        raise UserError("--to", f"unknown format {to!r}" if to else "is missing", f"choose from {', '.join(FORMATS)}")
    check_new_folder("DST", target, source)
    names = _split_names(source, split, image_folder)
    indexes = _open_all(source, names, class_names, image_folder)
    first = next(iter(indexes.values()))
    report = ConversionReport(str(source), str(target), first.source["format"], to)
    report.class_names = list(first.class_names)
    report.category_ids = list(first.category_ids) if first.category_ids is not None else None
    report.splits = {name: {"images": len(index), "boxes": index.num_boxes} for name, index in indexes.items()}
    report.skipped = [str(skip) for index in indexes.values() for skip in index.skips][:MAX_LISTED]

    with new_folder(target) as partial:
        write_dataset(indexes, partial, to, report, link, progress, year)
        text = json.dumps(asdict(report), indent=2, ensure_ascii=False)
        (partial / REPORT).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return report


def _split_names(source: Path, split: str, image_folder: str | None) -> list[str]:
    if split != "all":
        return [split if ":" in split or "+" in split else match_split(source, split, image_folder)]
    names = [name for name in list_splits(source, image_folder) if ":" not in name]  # years are in the joined splits
    if not names:
        raise UserError(source, "has no splits", f"create them: python dataset.py split {quoted(source)}")
    return names


def _open_all(
    source: Path, names: Sequence[str], class_names: Sequence[str] | None, image_folder: str | None
) -> dict[str, DatasetIndex]:
    """The splits, all with the same classes. Raises UserError if there is no class at all: no format can hold that."""

    def read(name: str, classes: Sequence[str] | None) -> DatasetIndex:
        return open_dataset(source, name, classes, allow_empty=True, image_folder=image_folder)

    indexes = read_alike(names, class_names, read)
    if not indexes[0].class_names:
        raise UserError(source, "has no object and names no class", "label it, or give --classes FILE")
    return dict(zip(names, indexes, strict=True))


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `dataset.py convert`."""

    source: str = option("", "data set in any layout of docs/DATA.md", positional=True, metavar="SRC")
    target: str = option("", "output folder, new or empty", positional=True, metavar="DST")
    to: str | None = option(None, "output format", choices=FORMATS)
    split: str = option("all", "name of one split, or all")
    classes: str | None = option(None, "file of class names, one per line, in label order", metavar="FILE")
    link: bool = option(False, "create hard links to the images instead of copies")
    year: str | None = option(None, "name of the VOC folder", metavar="NAME")
    image_folder: str | None = option(
        None, "folder of the images, if it is not that of the annotations (COCO, CSV, XML, JSON)", metavar="DIR"
    )


def main(argv: list[str] | None = None) -> None:
    """`dataset.py convert SRC DST --to FORMAT`."""
    options = parse_options(ConvertOptions, argv, prog="dataset.py convert", description=__doc__.splitlines()[0])
    names = read_class_names(options.classes) if options.classes else None
    if options.year is not None and not re.fullmatch(r"[\w.-]+", options.year):
        raise UserError("--year", f"{options.year!r} is not a valid folder name", "for example VOC2007")
    arguments = (options.source, options.target, options.to, options.split, names, options.link, options.year)
    report = convert_dataset(*arguments, image_folder=options.image_folder)
    print(report)
