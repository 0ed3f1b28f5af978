"""List the files of a data set folder, and find the image that an annotation names."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from data.skips import Skip
from data.walk import walk_files
from imaging.image_io import IMAGE_SUFFIXES
from utils.files import FileError, StrPath, read_ends
from utils.text import counted, some_names

MAX_FILES = 1_000_000
HEAD_BYTES = 1 << 16  # bytes read to detect the type of a file
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}[-_](?=.)")  # Label Studio puts one before every uploaded name
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    "trainval": "trainval",
}


def plain_name(text: str) -> str:
    """Normalise a name across file systems: composed Unicode, `/` as separator, case-folded."""
    return unicodedata.normalize("NFC", text.replace("\\", "/")).casefold()


def split_of(name: str) -> str | None:
    """The split in the name of a path's folders or last part (`train/a.jpg`, `2007_val.txt`), or None."""
    for part in name.replace("\\", "/").split("/"):
        for word in re.split(r"[^a-z]+", part.casefold()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def as_utf8(data: bytes) -> bytes:
    """Text as UTF-8 without a byte order mark; UTF-16 is recognised by its mark."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return data.decode("utf-16", "ignore").encode()
    return data.removeprefix(codecs.BOM_UTF8)


class Folder:
    """The files of a folder, following links that stay inside it.

    Args:
        root: the folder, or one annotation file, which then stands for all annotations in its folder.
        image_folder: the folder of the images, if it is not `root`.

    Attributes:
        home: the folder of the images.
        files: paths of all files below `root`, sorted.
        pictures: those that are images by their suffix, or all images of `image_folder`.
        outside: links to targets outside the folder; they are not followed.
    """

    def __init__(self, root: StrPath, image_folder: StrPath | None = None) -> None:
        self.only = Path(root) if not os.path.isdir(root) else None
        self.root = Path(root).parent if self.only is not None else Path(root)
        self.files, self.outside = walk_files(self.root, [os.path.realpath(self.root)], limit=MAX_FILES)
        self.home = Path(image_folder or self.root)
        pictures = self.files
        if image_folder is not None:
            pictures, outside = walk_files(self.home, [os.path.realpath(self.home)], limit=MAX_FILES)
            self.outside += outside
        self.pictures = [path for path in pictures if suffix_of(path) in IMAGE_SUFFIXES]
        self.matched: dict[str, dict[str, str]] = {}

    @classmethod
    def unlisted(cls, root: StrPath) -> Folder:
        """The folder or file, without listing its content."""
        folder = cls.__new__(cls)
        folder.only = Path(root) if not os.path.isdir(root) else None
        folder.root = folder.home = Path(root).parent if folder.only is not None else Path(root)
        folder.files, folder.pictures, folder.outside = [], [], []
        return folder

    def having(self, *suffixes: str) -> list[str]:
        """The annotation files with one of these suffixes (lower case, with the dot)."""
        if self.only is not None:
            return [str(self.only)] if suffix_of(self.only) in suffixes else []
        return [path for path in self.files if suffix_of(path) in suffixes]

    def relative(self, path: StrPath) -> str:
        """The path within the folder, or within that of the images, with `/`."""
        inside = os.path.relpath(path, self.home)
        if inside.startswith(os.pardir):
            inside = os.path.relpath(path, self.root)
        return inside.replace(os.sep, "/")

    @cached_property
    def _by_path(self) -> dict[str, str]:
        return {plain_name(self.relative(path)): path for path in reversed(self.pictures)}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _grouped((plain_name(os.path.basename(path)), path) for path in self.pictures)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped((plain_name(stem_of(path)), path) for path in self.pictures)

    @cached_property
    def _by_upload(self) -> dict[str, list[str]]:
        return _grouped((UPLOAD_PREFIX.sub("", plain_name(os.path.basename(path))), path) for path in self.pictures)

    def find(self, name: str, base: StrPath | None = None) -> tuple[str | None, list[str]]:
        """Find the image that an annotation calls `name` (any slashes, absolute paths and URLs are accepted).

        It is searched as a path from `base` (the annotation file's folder), the root and the image folder, then as the
        only image with that base name, that name without its suffix, or that name without Label Studio's upload prefix.
        Images not found as a path are in `matched`, with the name they were found by.

        Returns:
            The path, or None and the candidates (none, or several).
        """
        name = re.sub(r"^.*[?&]d=", "", name.strip())  # Label Studio: /data/local-files/?d=images/a.jpg
        name = name.removeprefix("file://")
        if suffix_of(name) not in IMAGE_SUFFIXES:
            name = re.sub(r"(\.\w{3,5})[?#].*$", r"\1", name)  # the query of an address
        if os.path.isabs(name) and not (inside := self.relative(name)).startswith(".."):
            name = inside
        wanted = plain_name(name)
        for folder in (base, self.root, self.home):
            if folder is not None:
                path = plain_name(self.relative(os.path.normpath(os.path.join(folder, wanted.lstrip("/")))))
                if (found := self._by_path.get(path)) is not None:
                    if "\\" in name:
                        self._count("path with backslashes", name, found)
                    return found, []
        ambiguous: list[str] = []
        for text in dict.fromkeys((wanted, plain_name(unquote(name)))):
            last = text.rsplit("/", 1)[-1]
            stem = os.path.splitext(last)[0] if os.path.splitext(last)[1] in IMAGE_SUFFIXES else last
            for how, table, key in (
                ("base name", self._by_name, last),
                ("name without suffix", self._by_stem, stem),
                ("name without upload prefix", self._by_name, UPLOAD_PREFIX.sub("", last)),
                ("name without upload prefix", self._by_upload, last),
            ):
                candidates = table.get(key, [])
                best = _nearest(text, candidates, base) if len(candidates) > 1 else candidates
                if len(best) == 1:
                    self._count(how, name, best[0])
                    return best[0], []
                ambiguous = ambiguous or best
        return None, ambiguous

    def _count(self, how: str, name: str, path: str) -> None:
        self.matched.setdefault(how, {}).setdefault(path, name)

    def same_stem(self, annotation: str) -> tuple[str | None, list[str]]:
        """The image that an annotation file is named after; None and the candidates if it is not unique.

        Among several, the one next to it, of its split, or in a folder of the same name is chosen.
        """
        candidates = self._by_stem.get(plain_name(stem_of(annotation)), [])
        folder = os.path.dirname(annotation)
        own = self.relative(annotation)
        for choose in (
            lambda path: os.path.dirname(path) == folder,
            lambda path: split_of(self.relative(path)) == split_of(own),
            lambda path: os.path.basename(os.path.dirname(path)) == os.path.basename(folder),
        ):
            if len(candidates) > 1:
                candidates = [path for path in candidates if choose(path)] or candidates
        beside = len({os.path.dirname(path) for path in candidates}) == 1  # a.jpg and a.png: the first counts
        return (candidates[0], []) if candidates and beside else (None, candidates)

    def not_found(self, where: str, name: str, several: Sequence[str]) -> Skip:
        """The skip of an annotation whose image `name` does not exist, or may be one of `several`."""
        if several:
            what = f"{name!r} may be {' or '.join(map(self.relative, several[:3]))}"
            todo = "give the path within the data set, or give every image its own name"
            return Skip("image", "ambiguous_image", where, what, todo)
        todo = "add the image, give --image-folder, or remove the annotation"
        return Skip("image", "missing_image", where, f"there is no image {name!r} in {self.home}", todo)

    def links_outside(self) -> list[Skip]:
        """The links that were not followed because they lead out of the folder."""
        todo = "keep images inside the data set"
        return [
            Skip("image", "leads_outside", path, f"links to {os.path.realpath(path)}, outside of {self.root}", todo)
            for path in self.outside
        ]

    def notes(self, where: str, total: int) -> list[Skip]:
        """Number of images that were not found by their full path, with an example of each kind."""
        notes = []
        for how, found in self.matched.items():
            path, name = next(iter(found.items()))
            example = f"{name[-80:]!r} as {self.relative(path)}"
            what = f"{len(found)} of {total} images found by their {how}, such as {example}"
            notes.append(Skip("note", "found_by_name", where, what))
        return notes

    def head(self, path: str) -> bytes:
        """The first bytes of a file, as UTF-8 without a byte order mark; empty if it cannot be read.

        Of JSON also the last bytes: some tools write the whole image before the keys that identify the format.
        """
        try:
            data, end, size = read_ends(path, 1 << 40, HEAD_BYTES, HEAD_BYTES)
        except FileError:
            return b""
        return as_utf8(data) + (end if suffix_of(path) == ".json" and size > len(data) else b"")


def unread_labels(pictures: Iterable[str], suffixes: Sequence[str], where: str) -> list[Skip]:
    """Report images that have no annotation in the format that is read, but one in another format beside them."""
    found = [p for p in pictures if any(os.path.isfile(os.path.splitext(p)[0] + suffix) for suffix in suffixes)]
    if not found:
        return []
    names = some_names([os.path.basename(path) for path in found], 5)
    what = f"{counted(len(found), 'image')} annotated only in a file of another format ({' or '.join(suffixes)}), "
    what += f"which is not read: {names}"
    return [Skip("note", "unread_labels", where, what, "export all annotations in one format")]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, path in pairs:
        groups.setdefault(key, []).append(path)
    return groups


def _nearest(name: str, candidates: list[str], base: StrPath | None) -> list[str]:
    """Of several images with one base name, those whose folders match `name` best, or that lie next to `base`."""
    parts = name.split("/")[::-1]

    def shared(path: str) -> int:
        own = plain_name(path).split("/")[::-1]
        return next((n for n, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), min(len(parts), len(own)))

    most = max(shared(path) for path in candidates)
    best = [path for path in candidates if shared(path) == most]
    beside = [path for path in best if base is not None and os.path.dirname(path) == os.fspath(base)]
    return beside if len(beside) == 1 else best


def suffix_of(path: StrPath) -> str:
    """The suffix in lower case, with its dot."""
    return os.path.splitext(os.fspath(path))[1].lower()


def stem_of(path: StrPath) -> str:
    """The name without folder and suffix."""
    return os.path.splitext(os.path.basename(os.fspath(path)))[0]
