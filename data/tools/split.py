"""Divide a data set into train, val and test: stratified by class, seeded, near-duplicates in one split."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.data_options import SourceOptions
from data.division import check_shares, class_counts, stratified_split
from data.formats.snapshot import link_folder, write_snapshot
from data.formats.voc import MAX_XML_BYTES, annotation_path, find_voc_years, parse_voc_xml
from data.formats.writers import write_coco_json, write_lines, write_yolo_yaml
from data.formats.yolo_txt import read_data_yaml
from data.index import DatasetIndex
from data.open import check_image_folder, list_splits, open_dataset, recognise
from data.tools.hashing import MAX_DISTANCE, file_hashes, near_duplicate_groups
from imaging.image_io import IMAGE_SUFFIXES
from utils.config import option, parse_options
from utils.errors import UserError, warn
from utils.files import FileError, read_file
from utils.json_file import read_json
from utils.text import counted, quoted, text_table


@dataclass(frozen=True)
class Pool:
    """All images to divide.

    Args:
        format: `voc`, `coco`, `yolo`, or `other`: any other readable format, written as COCO.
        ids: id of each image in a list: (year, id) in VOC, (annotation file, image id) in COCO, else empty.
        class_names, counts: the classes found, and (I, C) boxes of each class in each image.
        index: all images, if the new lists are written from it.
    """

    format: str
    root: Path
    paths: list[Path]
    ids: list[tuple[str, Any]]
    class_names: tuple[str, ...]
    counts: np.ndarray
    index: DatasetIndex | None = None


@dataclass
class SplitReport:
    """Result of `split_dataset`: number of images, and of boxes of each class, in each split; the written files.

    Args:
        groups_of_duplicates: groups of near-duplicate images, each kept in one split.
        data: the new value of `--data`.
    """

    images: dict[str, int]
    classes: dict[str, dict[str, int]]
    groups_of_duplicates: int
    files: list[str] = field(default_factory=list)
    data: str = ""

    def __str__(self) -> str:
        names = list(self.images)
        cells = [[label, *(counts[name] for name in names)] for label, counts in self.classes.items()]
        rows = text_table([["", *names], ["images", *self.images.values()], *cells])
        rows.append(f"{counted(self.groups_of_duplicates, 'group')} of near-duplicates were kept together")
        rows += [f"wrote {file}" for file in self.files]
        return "\n".join([*rows, f"train on it: python train.py --data {quoted(self.data)}"])


def split_dataset(
    data: str | Path,
    shares: Mapping[str, float],
    output: str | Path | None = None,
    in_place: bool = False,
    seed: int = 0,
    max_distance: int = MAX_DISTANCE,
    overwrite: bool = False,
    image_folder: str | None = None,
) -> SplitReport:
    """Divide a data set and write the lists; the images are not moved.

    VOC gets ImageSets/Main files (with trainval as train and val together), COCO one JSON per split with all
    original entries of its images, YOLO image lists and a data.yaml; boxes of other layouts are written as COCO.

    Args:
        data: the data set. For VOC all annotated images are divided, for others the union of all splits.
        shares: share of each split, by name; they sum to 1.
        output: folder for the new lists, with links to the images, to pass as `--data`; None is `DATA-split`.
        in_place: for VOC, write into the data set's own ImageSets/Main instead.
        seed: random seed of the division.
        max_distance: maximum hash distance of near-duplicates, bits; -1 disables the search.
        overwrite: replace existing lists.
        image_folder: as in `open_dataset`.

    Raises:
        UserError: for shares that do not sum to 1, no place to write, or existing lists.
    """
    shares = check_shares(shares)
    if output is not None and in_place:
        raise UserError("--output", "cannot be combined with --in-place", "give one of them")
    pool = read_pool(data, image_folder)
    if in_place and pool.format != "voc":
        raise UserError("--in-place", f"works only for VOC, and {data} is {pool.format}", "give --output DIR")
    home = Path(data).resolve()
    beside = home.with_name(f"{home.stem if home.is_file() else home.name}-split")
    target = Path(data) if in_place else Path(output or beside)
    plan = _plan_files(pool, target, shares, in_place)
    there = [path for path in plan if os.path.lexists(path)]
    if there and not overwrite:
        raise UserError(there[0], "exists", "give --overwrite to replace it, or another --output")
    hashes = file_hashes(pool.paths) if max_distance >= 0 else None
    groups = near_duplicate_groups(hashes, max_distance) if hashes is not None else np.arange(len(pool.paths))
    parts = stratified_split(pool.counts, groups, shares, seed)
    _WRITERS[pool.format](pool, parts, target, in_place)
    return SplitReport(
        {name: len(part) for name, part in parts.items()},
        {
            label: {name: int(pool.counts[part, k].sum()) for name, part in parts.items()}
            for k, label in enumerate(pool.class_names)
        },
        int((np.bincount(groups) > 1).sum()) if len(groups) else 0,
        [str(path) for path in plan],
        str(target),
    )


def read_pool(data: str | Path, image_folder: str | None = None) -> Pool:
    """Read all images of a data set. Raises UserError if it is not a data set, or has no annotated image."""
    found = recognise(data)
    kind = found.format.name
    image_folder = check_image_folder(found, image_folder)
    if kind == "voc":
        rows = list(_voc_images(found.place))
    elif kind == "yolo" or (kind == "coco" and image_folder is None and _is_plain_coco(found.place)):
        rows = list(_indexed_images(found.place))
    else:
        index = open_dataset(data, "all", image_folder=image_folder)
        ids = [("", each) for each in index.image_ids.tolist()]
        return Pool("other", Path(data), index.paths(), ids, index.class_names, class_counts(index), index)
    if not rows:
        raise UserError(data, "has no annotated image", "run: python dataset.py check")
    class_names = tuple(sorted({name for _, _, names in rows for name in names}))
    number_of = {name: k for k, name in enumerate(class_names)}
    counts = np.zeros((len(rows), len(class_names)), np.int32)
    for i, (_, _, names) in enumerate(rows):
        for name in names:
            counts[i, number_of[name]] += 1
    return Pool(kind, found.place, [row[0] for row in rows], [row[1] for row in rows], class_names, counts)


def _is_plain_coco(root: Path) -> bool:
    """Whether every image is at the path in its JSON, so that the JSON can be divided unchanged."""
    indexes = [open_dataset(root, split, allow_empty=True) for split in list_splits(root)]
    codes = {skip.code for index in indexes for skip in index.skips}
    are_numbers = all(np.issubdtype(index.image_ids.dtype, np.integer) for index in indexes)
    return are_numbers and not codes & {"found_by_name", "root_category"}


_Image = tuple[Path, tuple[str, Any], list[str]]  # its path, its id (see `Pool`) and the class of each box


def _voc_images(root: Path) -> Iterator[_Image]:
    """Every image of every year that has a readable annotation, whether a list names it or not."""
    for year, folder in find_voc_years(root).items():
        pictures, last = folder / "JPEGImages", ""
        for path in sorted(pictures.rglob("*")):
            name = path.relative_to(pictures).with_suffix("").as_posix()
            if path.suffix.lower() not in IMAGE_SUFFIXES or name == last:
                continue
            xml = annotation_path(path)
            try:
                objects = parse_voc_xml(read_file(xml, MAX_XML_BYTES), xml).objects
            except FileError as error:
                warn(error.where, error.what, "its image is skipped")
                continue
            last = name
            yield path, (year, name), [each.fields["name"] for each in objects if each.fields.get("name")]


def _indexed_images(root: Path) -> Iterator[_Image]:
    """The images of all splits of a COCO or YOLO data set, each once."""
    seen: set[Path] = set()
    for split in list_splits(root):
        index = open_dataset(root, split, allow_empty=True)
        where = str(index.source.get("json", ""))
        for i, path in enumerate(index.paths()):
            if path not in seen:
                seen.add(path)
                labels = index.labels[index.boxes_of(i)]
                yield path, (where, index.image_ids[i].item()), [index.class_names[k] for k in labels]


# --- writing ---------------------------------------------------------------------------------------------------------


def _plan_files(pool: Pool, target: Path, shares: Mapping[str, float], in_place: bool) -> list[Path]:
    """The files that will be written."""
    if pool.format == "voc":
        names = [*shares, *(["trainval"] if {"train", "val"} <= set(shares) else [])]
        folders = find_voc_years(pool.root)
        homes = [folder if in_place else target / year for year, folder in folders.items()]
        return [home / "ImageSets" / "Main" / f"{name}.txt" for home in homes for name in names]
    if pool.format in ("coco", "other"):
        return [target / "annotations" / f"instances_{name}.json" for name in shares]
    return [*(target / f"{name}.txt" for name in shares), target / "data.yaml"]


def _write_voc(pool: Pool, parts: Mapping[str, np.ndarray], target: Path, in_place: bool) -> None:
    parts = dict(parts)
    if {"train", "val"} <= set(parts):
        parts["trainval"] = np.sort(np.concatenate([parts["train"], parts["val"]]))
    for year, folder in find_voc_years(pool.root).items():
        home = folder if in_place else target / year
        for name, part in parts.items():
            lines = [pool.ids[i][1] for i in part if pool.ids[i][0] == year]
            write_lines(home / "ImageSets" / "Main" / f"{name}.txt", lines)
        if not in_place:
            for each in ("Annotations", "JPEGImages"):
                link_folder(folder / each, home / each)


def _write_coco(pool: Pool, parts: Mapping[str, np.ndarray], target: Path, in_place: bool) -> None:
    """Write one JSON per split, with all original entries; images are found through links to their folders."""
    (target / "annotations").mkdir(parents=True, exist_ok=True)
    documents = {where: read_json(where, "an instances JSON") for where in {where for where, _ in pool.ids}}
    links = _coco_links(pool, documents)
    for folder, name in links.items():
        link_folder(Path(folder), target / "images" / name)
    split_of = {pool.ids[i]: name for name, part in parts.items() for i in part}
    categories = {each["id"]: each for document in documents.values() for each in document["categories"]}
    unique = len({identity for _, identity in pool.ids}) == len(pool.ids)
    number = {key: key[1] if unique else n for n, key in enumerate(pool.ids, 1)}
    place = dict(zip(pool.ids, pool.paths, strict=True))
    for name in parts:
        images, annotations = [], []
        for where, document in documents.items():
            for image in document["images"]:
                key = (where, image.get("id"))
                if split_of.get(key) == name:
                    images.append({**image, "id": number[key], "file_name": _linked_name(place[key], image, links)})
            for annotation in document["annotations"]:
                key = (where, annotation.get("image_id"))
                if split_of.get(key) == name:
                    annotations.append({**annotation, "image_id": number[key]})
        if not unique or len({each.get("id") for each in annotations}) < len(annotations):
            annotations = [{**each, "id": n} for n, each in enumerate(annotations, 1)]
        path = target / "annotations" / f"instances_{name}.json"
        write_coco_json(path, list(categories.values()), images, annotations, {"description": f"{pool.root} {name}"})


def _coco_links(pool: Pool, documents: Mapping[str, Any]) -> dict[str, str]:
    """The folders that file names start from, each with the name of its link."""
    images = [(where, image) for where, document in documents.items() for image in document["images"]]
    names = {(where, image.get("id")): image.get("file_name") for where, image in images}
    bases = dict.fromkeys(
        os.path.abspath(path)[: -len(os.path.normpath(names[key])) - 1]
        for key, path in zip(pool.ids, pool.paths, strict=True)
    )
    return {
        base: f"{k}_{os.path.basename(base)}" if len(bases) > 1 else os.path.basename(base)
        for k, base in enumerate(bases)
    }


def _linked_name(path: Path, image: Mapping[str, Any], links: Mapping[str, str]) -> str:
    name = image["file_name"]
    return f"{links[os.path.abspath(path)[: -len(os.path.normpath(name)) - 1]]}/{name}"


def _write_other(pool: Pool, parts: Mapping[str, np.ndarray], target: Path, in_place: bool) -> None:
    """Write one COCO JSON per split from the index; images are found through a link to their common folder."""
    assert pool.index is not None
    write_snapshot(target, {name: [(pool.index, part)] for name, part in parts.items()})


def _write_yolo(pool: Pool, parts: Mapping[str, np.ndarray], target: Path, in_place: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        write_lines(target / f"{name}.txt", (os.path.abspath(pool.paths[i]) for i in part))
    root = os.path.commonpath([os.path.realpath(path.parent) for path in pool.paths])
    lists = {name: os.path.abspath(target / f"{name}.txt") for name in parts}
    config = read_data_yaml(pool.root)
    write_yolo_yaml(target / "data.yaml", config.numbered, lists, root, config.settings())


_WRITERS = {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo, "other": _write_other}


@dataclass(frozen=True)
class SplitOptions(SourceOptions):
    """Options of `dataset.py split`."""

    train: float = option(0.8, "fraction of images for training", low=0, high=1)
    val: float = option(0.1, "fraction of images for validation", low=0, high=1)
    test: float = option(0.1, "fraction of images for the final test", low=0, high=1)
    output: str | None = option(None, "folder for the new lists (default: DATA-split, beside the data)", metavar="DIR")
    in_place: bool = option(False, "write into ImageSets/Main of a VOC data set")
    seed: int = option(0, "random seed of the division", low=0)
    max_distance: int = option(
        MAX_DISTANCE, "maximum hash distance of near-duplicates, bits of 128; -1 = no search", low=-1, high=64
    )
    overwrite: bool = option(False, "replace existing lists")


def main(argv: list[str] | None = None) -> None:
    """`dataset.py split DATA`."""
    options = parse_options(SplitOptions, argv, prog="dataset.py split", description=__doc__.splitlines()[0])
    shares = {"train": options.train, "val": options.val, "test": options.test}
    arguments = (options.data, shares, options.output, options.in_place, options.seed, options.max_distance)
    report = split_dataset(*arguments, options.overwrite, options.image_folder)
    print(report)
