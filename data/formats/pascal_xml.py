"""Read Pascal VOC XML files in any layout: next to the images (labelImg), or in separate folders.

Source: VOC2012 development kit, section 2.3, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from tqdm import tqdm

from data.formats.folder import Folder, plain_name, split_of, stem_of, unread_labels
from data.formats.labels import ALL
from data.formats.voc import MAX_SPLIT_BYTES, XmlReader, finish_xml
from data.formats.yolo_txt import unique_ids
from data.index import DatasetIndex
from data.skips import Skip
from utils.files import FileError, read_lines
from utils.text import counted

_ANNOTATION = re.compile(rb"<annotation[\s>]")


def sniff(folder: Folder) -> str | None:
    files = folder.having(".xml")
    found = sum(bool(_ANNOTATION.search(folder.head(path)[:4096])) for path in files[:100])
    if not found or found < 0.5 * len(files[:100]):
        return None
    return f"{counted(len(folder.pictures), 'image')} and {counted(len(files), '.xml file')} with <annotation>"


def read(folder: Folder, class_names: Sequence[str] | None, max_megapixels: float) -> DatasetIndex:
    """All annotated images; their splits are those of lists (`ImageSets/Main/train.txt`) or folders (`valid/`)."""
    reader = XmlReader()
    label_files: dict[str, str] = {}
    skips: list[Skip] = []
    pairs: list[tuple[str, str]] = []
    for xml in folder.having(".xml"):
        picture, several = folder.same_stem(xml)
        if picture is None and not several:  # the image was renamed
            head = re.search(rb"<filename>([^<]+)</filename>", folder.head(xml))
            if head:
                picture, several = folder.find(head[1].decode("utf-8", "replace"), os.path.dirname(xml))
        if picture is not None:
            pairs.append((picture, xml))
            continue
        if several or _ANNOTATION.search(folder.head(xml)[:4096]):
            skips.append(folder.not_found(xml, stem_of(xml), several))
    ids = unique_ids([picture for picture, _ in pairs], folder.home)
    for (picture, xml), identity in zip(tqdm(pairs, desc=folder.root.name, delay=2, leave=False), ids, strict=True):
        if picture in label_files:
            what = f"{xml} is a second annotation of it; {label_files[picture]} is used"
            skips.append(Skip("note", "two_annotations", picture, what, "remove one of them"))
            continue
        label_files[picture] = xml
        reader.add(identity, picture, xml)
    plain = [path for path in folder.pictures if path not in label_files]
    reader.skips += [*skips, *folder.links_outside(), *folder.notes(str(folder.root), len(reader.paths))]
    reader.skips += unread_labels(plain, (".txt", ".json"), str(folder.root))
    folders = {os.path.dirname(path) for pair in pairs for path in pair} | {str(folder.root), str(folder.home)}
    source = {
        "format": "xml",
        "root": os.path.abspath(folder.root),
        "split": ALL,
        "image_folder": str(folder.home),
        "dependencies": {"files": [], "folders": sorted(map(os.path.abspath, folders))},
        "label_files": label_files,
    }
    index = finish_xml(reader, folder.root.resolve().name, class_names, source, max_megapixels, True)
    lists = _split_lists(folder)
    index.source["split_of"] = [
        lists.get(plain_name(stem_of(path))) or split_of(folder.relative(path))
        or split_of(folder.relative(label_files[path])) or ALL
        for path in map(str, index.paths())
    ]  # fmt: skip
    return index


def _split_lists(folder: Folder) -> dict[str, str]:
    """The split of each base name listed in files of one name per line (`ImageSets/Main/train.txt`, `val.txt`)."""
    known = {plain_name(stem_of(path)) for path in folder.pictures}
    split_by_stem: dict[str, str] = {}
    for path in folder.files:
        split = split_of(stem_of(path)) if path.endswith(".txt") else None
        if split in (None, "trainval"):
            continue
        try:
            lines = [line.split()[0].replace("\\", "/") for _, line in read_lines(path, MAX_SPLIT_BYTES)]
        except FileError:
            continue
        stems = [plain_name(line.rsplit("/", 1)[-1]) for line in lines]
        stems = [stem if stem in known else os.path.splitext(stem)[0] for stem in stems]
        if stems and sum(stem in known for stem in stems) >= 0.5 * len(stems):
            split_by_stem |= {stem: str(split) for stem in stems}
    return split_by_stem
