"""Open a data set of any supported format: detect the format, list the splits, read a split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from data.division import auto_division
from data.formats import (
    box_list,
    coco,
    createml,
    csv_table,
    cvat_xml,
    datumaro,
    dota,
    json_records,
    kitti,
    label_studio,
    labelme,
    mot,
    name_rows,
    pascal_xml,
    supervisely,
    via,
    visdrone,
    voc,
    vott,
    wider_face,
    yolo_txt,
)
from data.formats.folder import Folder, split_of, stem_of, suffix_of
from data.formats.labels import ALL, Labels, Layout
from data.index import DatasetIndex, classes_found, join_indices
from data.index_cache import cached_index
from imaging.image_io import MAX_MEGAPIXELS
from utils.errors import UserError
from utils.files import StrPath
from utils.text import counted, quoted

ACCEPTED = "a data set: images with VOC XML, COCO JSON, YOLO txt or another layout of docs/DATA.md"
ARCHIVES = (".tfrecord", ".record", ".parquet", ".mat", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
UNPACK = "unpack it, or export it as VOC, COCO or YOLO from the tool that wrote it"
AUTO_TRAIN, AUTO_VAL = "auto-train", "auto-val"  # division of a data set without splits
MAX_UNPACKED = 3  # maximum nesting of folders that hold only one folder, as in unpacked archives


@dataclass(frozen=True)
class Format:
    """How to detect and read one format.

    Args:
        name: value of `DatasetIndex.source["format"]`.
        title: display name.
        sniff: returns the evidence in the folder (or file) for this format, None if there is none.
        splits: the names of its splits; None for a format that is read as a whole.
        read: reads one split, from its place, name, class names and limit of megapixels; None likewise.
        read_options: the other arguments of `open_dataset` that `read` takes.
        layout: for most formats that are read as a whole, how they are read.
    """

    name: str
    title: str
    sniff: Callable[[Folder], str | None]
    splits: Callable[[Path], list[str]] | None = None
    read: Callable[..., DatasetIndex] | None = None
    read_options: tuple[str, ...] = ()
    layout: Layout | None = None

    @property
    def has_own_places(self) -> bool:
        """The images are where the layout has them, so that no other folder can be named."""
        return self.read is not None and "image_folder" not in self.read_options


@dataclass(frozen=True)
class Recognised:
    """A data set whose format was detected.

    Args:
        format: the format.
        place: what to read: the given folder or file, or its only subfolder.
        why: the evidence for the format.
    """

    format: Format
    place: Path
    why: str


# --- the formats -----------------------------------------------------------------------------------------------------


def _sniff_voc(folder: Folder) -> str | None:
    years = voc.find_voc_years(folder.root) if folder.only is None else {}
    if not years:
        return None
    lists = sum(len(names) for names in voc.list_voc_splits(folder.root).values())
    return f"{', '.join(years)} with Annotations and {counted(lists, 'list')} in ImageSets/Main"


def _sniff_yolo(folder: Folder) -> str | None:
    path = folder.only or yolo_txt.find_data_yaml(folder.root)
    is_ours = path is not None and path.suffix.lower() in (".yaml", ".yml", ".data")
    return f"{path.name} lists class names and splits" if is_ours and path is not None else None


def _sniff_coco(folder: Folder) -> str | None:
    files = coco.find_coco_files(folder.only or folder.root)
    if folder.only is not None and (suffix_of(folder.only) in ARCHIVES or not coco.looks_like_coco(folder.only)):
        return None
    shown = ", ".join(folder.relative(path) for path in list(files.values())[:3])
    return f"{shown} with images, annotations and categories" if files else None


def _voc_splits(place: Path) -> list[str]:
    splits = voc.list_voc_splits(place)
    names = dict.fromkeys(name for of_year in splits.values() for name in of_year)
    return [*names, *(f"{year}:{name}" for year, of_year in splits.items() for name in of_year if len(splits) > 1)]


def _plain_splits(place: Path) -> list[str]:
    folder = Folder(place)
    return sorted({split_of(folder.relative(path)) or ALL for path in folder.pictures})


FORMATS = (  # in order of priority
    Format("voc", "Pascal VOC", _sniff_voc, _voc_splits, voc.read_voc, ("need_pictures",)),
    Format("yolo", "YOLO txt", _sniff_yolo, yolo_txt.list_yolo_splits, yolo_txt.read_yolo),
    Format(
        "coco",
        "COCO",
        _sniff_coco,
        lambda place: list(coco.find_coco_files(place)),
        coco.read_coco,
        ("need_pictures", "image_folder"),
    ),
    Format("xml", "Pascal XML without lists", pascal_xml.sniff),
    Format("plain_yolo", "YOLO txt without data.yaml", yolo_txt.sniff_plain, _plain_splits, yolo_txt.read_plain_yolo),
    *(
        Format(name, title, layout.sniff, layout=layout)
        for name, title, layout in (
            ("kitti", "KITTI", kitti.LAYOUT),
            ("dota", "DOTA", dota.LAYOUT),
            ("box_list", "list of boxes", box_list.LAYOUT),
            ("via", "VGG Image Annotator", via.LAYOUT),
            ("labelme", "LabelMe", labelme.LAYOUT),
            ("supervisely", "Supervisely", supervisely.LAYOUT),
            ("vott", "VoTT", vott.LAYOUT),
            ("createml", "CreateML", createml.LAYOUT),
            ("label_studio", "Label Studio", label_studio.LAYOUT),
            ("cvat_xml", "CVAT XML", cvat_xml.LAYOUT),
            ("csv", "CSV", csv_table.LAYOUT),
            ("datumaro", "Datumaro", datumaro.LAYOUT),
            ("name_rows", "text files of class names and boxes", name_rows.LAYOUT),
            ("mot", "MOT Challenge", mot.LAYOUT),
            ("visdrone", "VisDrone", visdrone.LAYOUT),
            ("wider_face", "WIDER FACE", wider_face.LAYOUT),
            ("json_records", "JSON with a record per image", json_records.LAYOUT),
        )
    ),
)
_WITHOUT_LISTING = ("voc", "yolo", "coco")  # detected by a few names, for any number of files


# --- recognising -----------------------------------------------------------------------------------------------------


def recognise(data: StrPath) -> Recognised:
    """Detect the format of a folder or file.

    Raises:
        UserError: if no format matches; lists the content, the likely format, and what is supported.
    """
    path = Path(data)
    if not os.path.lexists(path):
        raise UserError(data, "does not exist", f"give {ACCEPTED}")
    if not path.is_dir() and not path.is_file():
        raise UserError(data, "is neither a folder nor a file", f"give {ACCEPTED}")
    place = path
    for _ in range(MAX_UNPACKED):
        found = _recognise_quickly(place)
        if found is not None:
            return found
        inner = _only_folder(place)
        if inner is None:
            break
        place = inner
    folder = Folder(path)
    for each in FORMATS:
        if each.name not in _WITHOUT_LISTING and (why := each.sniff(folder)) is not None:
            return Recognised(each, path, why)
    raise _unrecognised(folder)


def _recognise_quickly(place: Path) -> Recognised | None:
    folder = Folder.unlisted(place)
    for each in FORMATS:
        if each.name in _WITHOUT_LISTING and (why := each.sniff(folder)) is not None:
            return Recognised(each, place, why)
    return None


def _only_folder(place: Path) -> Path | None:
    """The only subfolder of a folder that holds nothing else of interest."""
    if not place.is_dir():
        return None
    inner = [each for each in place.iterdir() if each.is_dir() and not each.name.startswith((".", "__MACOSX"))]
    files = [each for each in place.iterdir() if each.is_file() and not each.name.startswith(".")]
    is_alone = len(inner) == 1 and all(suffix_of(each) in ("", ".txt", ".md", ".zip", ".pdf") for each in files)
    return inner[0] if is_alone else None


def recognise_format(data: StrPath) -> str:
    """The name of the format; raises UserError like `recognise`."""
    return recognise(data).format.name


def _unrecognised(folder: Folder) -> UserError:
    """Error text for a folder that is not a data set: its content, the likely format, and the remedy."""
    where = folder.only or folder.root
    kinds = Counter(suffix_of(path) or "files without suffix" for path in folder.files)
    if folder.only is not None:
        todo = UNPACK if where.suffix.lower() in ARCHIVES else f"give {ACCEPTED}"
        return UserError(where, f"is a {where.suffix or 'nameless'} file, not a data set", todo)
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no file"
    pictures = len(folder.pictures)
    what, todo = f"is not a data set: it contains {held}{_example(folder)}", f"give {ACCEPTED}"
    if pictures and pictures == len(folder.files):
        what += ", and no annotations"
        todo = f"label the images (any tool that writes VOC XML, COCO JSON or YOLO txt), or give {ACCEPTED}"
    elif pictures and kinds.get(".txt"):
        todo = "give labels of rows `class cx cy width height` and a classes.txt, or another layout of docs/DATA.md"
    elif any(kinds.get(suffix) for suffix in ARCHIVES):
        todo = UNPACK
    elif not pictures and kinds:
        what += ", and no image"
        todo = "put the images into the same folder"
    return UserError(where, what, todo)


def _example(folder: Folder) -> str:
    """The first line of a file that could be the annotations."""
    for suffix in (".csv", ".tsv", ".xml", ".json", ".txt"):
        for path in folder.having(suffix):
            line = folder.head(path)[:200].decode("utf-8", "replace").strip().split("\n")[0].strip()
            if line and not stem_of(path).casefold().startswith(("readme", "license", "requirements")):
                return f"; {folder.relative(path)} begins with {line[:80]!r}"
    return ""


# --- splits ----------------------------------------------------------------------------------------------------------


def list_splits(data: StrPath, image_folder: StrPath | None = None) -> list[str]:
    """The split names that `open_dataset` accepts for this data set, and for these images.

    Raises:
        UserError: like `recognise`.
    """
    found = recognise(data)
    return _Source(found, check_image_folder(found, image_folder)).splits()


def default_splits(data: StrPath, image_folder: StrPath | None = None) -> tuple[str, str]:
    """(training split, validation split): train and val, else trainval and test, else train and test.

    A data set without such a pair is divided: `auto-train` and `auto-val` are all its images, seeded, stratified by
    class, with near-duplicates kept together.
    """
    names = list_splits(data, image_folder)
    for train, val in (("train", "val"), ("trainval", "test"), ("train", "test")):
        pair = (_match(train, names), _match(val, names))
        if pair[0] is not None and pair[1] is not None:
            return pair[0], pair[1]
    return AUTO_TRAIN, AUTO_VAL


def training_split(data: StrPath, image_folder: StrPath | None = None) -> str:
    """The default split: the training split, else the only or first one. Raises UserError if there is no split."""
    names = list_splits(data, image_folder)
    for name in ("train", "trainval"):
        match = _match(name, names)
        if match is not None:
            return match
    if not names:
        raise UserError(data, "has no splits", f"create them: python dataset.py split {quoted(data)}")
    return names[0]


def match_split(data: StrPath, split: str, image_folder: StrPath | None = None) -> str:
    """Resolve a split name: `val` also matches `valid`, `val2017`, `Validation`.

    Raises:
        UserError: if there is none; lists the splits.
    """
    return _matched(data, split, list_splits(data, image_folder))


def _matched(data: StrPath, split: str, names: Sequence[str]) -> str:
    if split in (AUTO_TRAIN, AUTO_VAL):
        return split
    match = _match(split, names)
    if match is None and split == "train" and not _match("trainval", names):
        return AUTO_TRAIN
    if match is None and split == "val" and not _match("test", names):
        return AUTO_VAL
    if match is None and split == ALL:
        return ALL
    if match is None:
        raise UserError(data, f"has no split {split!r}", f"choose from {', '.join(names) or 'none'}")
    return match


def _match(split: str, names: Sequence[str]) -> str | None:
    if split in names:
        return split
    aliases = {"val": ("valid", "validation"), "valid": ("val", "validation"), "validation": ("val", "valid")}
    wanted = {split.casefold(), *aliases.get(split.casefold(), ())}
    if split == "train":
        wanted.add("training")
    matches = [name for name in names if re.sub(r"(19|20)\d\d$", "", name).casefold() in wanted]
    return matches[0] if len(matches) == 1 else None


# --- reading ---------------------------------------------------------------------------------------------------------


def open_dataset(
    data: StrPath,
    split: str,
    class_names: Sequence[str] | None = None,
    use_cache: bool = True,
    max_megapixels: float = MAX_MEGAPIXELS,
    allow_empty: bool = False,
    need_pictures: bool = True,
    image_folder: StrPath | None = None,
) -> DatasetIndex:
    """Read one split of a data set of any supported format.

    Args:
        data: a folder or file in any layout of docs/DATA.md.
        split: its name; for VOC also several years, `VOC2007:trainval+VOC2012:trainval`; `auto-train` and `auto-val`
            are the division of all images that training uses if there are no splits.
        class_names: the classes in label order; None uses those of the data set.
        use_cache: cache the index in the user's cache folder and reuse it while the files are unchanged.
        max_megapixels: leave out images whose header states more.
        allow_empty: return an index without images instead of raising.
        need_pictures: if false, VOC and COCO are read from annotations alone if no image file exists.
        image_folder: where the images are, for annotations that name them (COCO, CSV, XML, JSON); None is the data set.

    Raises:
        UserError: if the data set or split does not exist, or none of its images can be used.
    """
    found = recognise(Path(data).absolute())  # the cached index must not depend on the working folder
    folder = check_image_folder(found, image_folder)
    names = None if class_names is None else list(class_names)
    source = _Source(found, folder, names, max_megapixels, use_cache)
    own = source.splits()
    name = split if found.format.name == "voc" and (":" in split or "+" in split) else _matched(data, split, own)

    def read() -> DatasetIndex:
        if name in (AUTO_TRAIN, AUTO_VAL):
            whole = source.joined(own)
            part = auto_division(whole)[name == AUTO_VAL]
            title = f"{whole.source['set_name']} {name}"
            return replace(whole.subset(part), name=title, source=whole.source | {"split": name})
        if found.format.read is not None and name not in own and name == ALL:
            return source.joined(own)
        return source.read(name, names, need_pictures)

    request = [found.format.name, str(Path(data).absolute()), name, names, max_megapixels, need_pictures, folder]
    index = cached_index(request, read) if use_cache else read()
    if not len(index) and not allow_empty:
        reasons = [skip for skip in index.skips if skip.kind == "image"]
        why = f": {len(reasons)} skipped, the first because {reasons[0]}" if reasons else ": its list is empty"
        if index.source.get("found_classes"):
            why += f"; found {classes_found(index)}"
        todo = f"run: python dataset.py check {quoted(data)}"
        raise UserError(f"{data} ({split})", f"has no image that can be used{why}", todo)
    return index


def check_image_folder(found: Recognised, image_folder: StrPath | None) -> str | None:
    """The absolute path of an image folder that can be used with a data set.

    Raises:
        UserError: if it is not a folder, or the layout has its images in fixed places.
    """
    if image_folder is None:
        return None
    if found.format.has_own_places:
        what = f"is not for {found.format.title}, whose pictures have fixed places beside their labels"
        raise UserError("--image-folder", what, "leave it out")
    if not os.path.isdir(image_folder):
        raise UserError("--image-folder", f"{image_folder} is no folder", "name the folder of the pictures")
    return str(Path(image_folder).absolute())


@dataclass(frozen=True)
class _Source:
    """A data set to read; the other arguments are those of `open_dataset`."""

    found: Recognised
    image_folder: str | None
    class_names: list[str] | None = None
    max_megapixels: float = MAX_MEGAPIXELS
    use_cache: bool = True

    def splits(self) -> list[str]:
        """The names of its splits."""
        if self.found.format.splits is not None:
            return self.found.format.splits(self.found.place)
        try:
            whole = self.whole
        except UserError:  # class numbers without names: the splits are still known
            whole = replace(self, class_names=[str(number) for number in range(1000)]).whole
        names = dict.fromkeys(whole.source["split_of"])
        usual = [name for name in ("train", "val", "test") if name in names]
        return [*usual, *sorted(names.keys() - {*usual})] or [ALL]

    @cached_property
    def whole(self) -> DatasetIndex:
        """All images of a format that is read as a whole."""
        kind, place = self.found.format, self.found.place

        def read() -> DatasetIndex:
            folder = Folder(place, self.image_folder)
            if kind.layout is None:
                return pascal_xml.read(folder, self.class_names, self.max_megapixels)
            labels = Labels(folder)
            kind.layout.read(labels, kind.layout.files(folder), self.class_names)
            return labels.finish(kind.name, self.class_names, self.max_megapixels)

        request = [kind.name, str(place), "whole", self.class_names, self.max_megapixels, self.image_folder]
        return cached_index(request, read) if self.use_cache else read()

    def read(self, split: str, class_names: Sequence[str] | None, need_pictures: bool = True) -> DatasetIndex:
        """One split; the skips of a format that is read as a whole are reported with each split."""
        if (read := self.found.format.read) is not None:
            values = {"need_pictures": need_pictures, "image_folder": self.image_folder}
            others = {name: values[name] for name in self.found.format.read_options}
            return read(self.found.place, split, class_names, self.max_megapixels, **others)
        whole = self.whole
        split_of = whole.source["split_of"]
        chosen = [i for i, name in enumerate(split_of) if name == split or split == ALL]
        source = {**whole.source, "split": split, "split_of": [split_of[i] for i in chosen]}
        return replace(whole.subset(chosen), name=f"{whole.name} {split}", source=source)

    def joined(self, splits: Sequence[str]) -> DatasetIndex:
        """All images of all splits, each once."""
        if self.found.format.read is None:
            index = self.read(ALL, None)
            return replace(index, source=index.source | {"set_name": index.name.removesuffix(f" {ALL}")})
        own = [name for name in splits if ":" not in name]
        index = join_indices(read_alike(own, self.class_names, self.read))
        return replace(index, source=index.source | {"set_name": self.found.place.resolve().name, "split": ALL})


def read_alike(
    splits: Sequence[str], names: Sequence[str] | None, read: Callable[[str, Sequence[str] | None], DatasetIndex]
) -> list[DatasetIndex]:
    """Splits with the same classes: a split read by itself has only those that occur in it.

    Args:
        splits: the names of the splits.
        names: the classes; None uses those of all splits together.
        read: reads one split with these classes.
    """
    parts = [read(split, names) for split in splits]
    if names is not None or len({part.class_names for part in parts}) <= 1:
        return parts
    union = dict.fromkeys(name for part in parts for name in part.class_names)
    classes = sorted(union) if parts[0].source["format"] == "voc" else list(union)
    return [read(split, classes) for split in splits]
