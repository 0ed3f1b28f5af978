"""Open a data set of any known format: which one it is, which splits it has, and one of them as a DatasetIndex."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from data.index import DatasetIndex, classes_found
from utils.errors import UserError
from utils.images import MAX_MEGAPIXELS

ACCEPTED = "a VOCdevkit, a COCO folder or JSON, or a YOLO data.yaml (or its folder)"


def recognise_format(data: str | os.PathLike[str]) -> str:
    """`voc`, `coco` or `yolo`.

    Raises:
        UserError: if it is none of them; says what was found and what is accepted.
    """
    from data.formats.coco import find_coco_files
    from data.formats.voc import find_voc_years
    from data.formats.yolo_txt import find_data_yaml

    path = Path(data)
    if not os.path.lexists(path):
        raise UserError(data, "does not exist", f"give {ACCEPTED}")
    if path.is_file():
        kind = {".yaml": "yolo", ".yml": "yolo", ".json": "coco"}.get(path.suffix.lower())
        if kind is None:
            raise UserError(data, f"is a {path.suffix or 'nameless'} file, not a data set", f"give {ACCEPTED}")
        return kind
    if not path.is_dir():
        raise UserError(data, "is neither a folder nor a file", f"give {ACCEPTED}")
    if find_voc_years(path):
        return "voc"
    if find_data_yaml(path) is not None:
        return "yolo"
    if find_coco_files(path):
        return "coco"
    raise UserError(data, f"is no data set: {_contents(path)}", f"give {ACCEPTED}")


def list_splits(data: str | os.PathLike[str]) -> list[str]:
    """The names of the splits that `open_dataset` takes for this data set.

    Raises:
        UserError: as `recognise_format`.
    """
    kind = recognise_format(data)
    if kind == "voc":
        from data.formats.voc import list_voc_splits

        splits = list_voc_splits(data)
        names = dict.fromkeys(name for of_year in splits.values() for name in of_year)
        return [*names, *(f"{year}:{name}" for year, of_year in splits.items() for name in of_year if len(splits) > 1)]
    if kind == "yolo":
        from data.formats.yolo_txt import list_yolo_splits

        return list_yolo_splits(data)
    from data.formats.coco import find_coco_files

    return list(find_coco_files(data))


def default_splits(data: str | os.PathLike[str]) -> tuple[str, str]:
    """(training split, validation split): train and val, else trainval and test, else train and test.

    Raises:
        UserError: if there is no such pair; names the splits that are there and the command that makes them.
    """
    names = list_splits(data)
    for train, val in (("train", "val"), ("trainval", "test"), ("train", "test")):
        pair = (_match(train, names), _match(val, names))
        if pair[0] is not None and pair[1] is not None:
            return pair[0], pair[1]
    there = f"has only the splits {', '.join(names)}" if names else "has no splits"
    todo = f"name them with --train-split and --val-split, or make them: python dataset.py split {data}"
    raise UserError(data, f"{there}; training needs train and val", todo)


def training_split(data: str | os.PathLike[str]) -> str:
    """The split to look at when none is named: the one to train on, else the only or first one.

    Raises:
        UserError: if there is no split.
    """
    names = list_splits(data)
    for name in ("train", "trainval"):
        match = _match(name, names)
        if match is not None:
            return match
    if not names:
        raise UserError(data, "has no splits", f"make them: python dataset.py split {data}")
    return names[0]


def open_dataset(
    data: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] | None = None,
    use_cache: bool = True,
    max_megapixels: float = MAX_MEGAPIXELS,
    allow_empty: bool = False,
) -> DatasetIndex:
    """Read one split of a data set of any known format.

    Args:
        data: a VOCdevkit (or year folder), a COCO folder or JSON, a YOLO data.yaml or its folder.
        split: its name; for VOC also several years, `VOC2007:trainval+VOC2012:trainval`.
        class_names: the classes in the order of the labels; None takes those of the data set.
        use_cache: keep the index in the user's cache folder and take it from there while the files are the same.
        max_megapixels: leave out pictures that claim more.
        allow_empty: give an index without images back instead of raising.

    Raises:
        UserError: if the data set or split is not there, or not one of its images can be used.
    """
    kind = recognise_format(data)

    def read() -> DatasetIndex:
        if kind == "voc":
            from data.formats.voc import read_voc

            return read_voc(data, split, class_names, max_megapixels)
        if kind == "coco":
            from data.formats.coco import read_coco

            return read_coco(data, match_split(data, split), class_names, max_megapixels=max_megapixels)
        from data.formats.yolo_txt import read_yolo

        return read_yolo(data, match_split(data, split), class_names, max_megapixels)

    if use_cache:
        from data.index_cache import cached_index

        names = None if class_names is None else list(class_names)
        index = cached_index([kind, os.path.abspath(data), split, names, max_megapixels], read)
    else:
        index = read()
    if not len(index) and not allow_empty:
        reasons = [skip for skip in index.skips if skip.kind == "image"]
        why = f": {len(reasons)} left out, the first because {reasons[0]}" if reasons else ", its list is empty"
        if index.source.get("found_classes"):
            why += f"; found {classes_found(index)}"
        todo = f"run: python dataset.py check {data}"
        raise UserError(f"{data} ({split})", f"has no image that can be used{why}", todo)
    return index


def match_split(data: str | os.PathLike[str], split: str) -> str:
    """The data set's own name of a split: `val` also means `valid`, `val2017`, `validation`.

    Raises:
        UserError: if there is none; names those that are there.
    """
    names = list_splits(data)
    match = _match(split, names)
    if match is None:
        raise UserError(data, f"has no split {split!r}", f"choose from {', '.join(names) or 'none'}")
    return match


def _match(split: str, names: Sequence[str]) -> str | None:
    if split in names:
        return split
    aliases = {"val": ("valid", "validation"), "valid": ("val",), "validation": ("val", "valid")}.get(split, ())
    wanted = [name for name in names if name in aliases or re.fullmatch(re.escape(split) + r"(19|20)\d\d", name)]
    return wanted[0] if len(wanted) == 1 else None


def _contents(folder: Path) -> str:
    """What lies in a folder, in a few words."""
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder))
    except OSError as error:
        return f"it cannot be listed ({error.strerror})"
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
