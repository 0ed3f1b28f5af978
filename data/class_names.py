"""Read class name files, and suggest names for typing errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data.skips import Skip
from utils.errors import UserError, brief
from utils.files import MEGABYTE, StrPath, read_file
from utils.text import counted, some_names

_LISTS = Path(__file__).resolve().parents[1] / "model_data"
KNOWN_LISTS = {"voc": str(_LISTS / "voc_classes.txt"), "coco": str(_LISTS / "coco_classes.txt")}
MAX_NAME = 200  # characters; a longer text is not a class name
MAX_GUESSES = 20  # maximum number of unknown names that get a suggestion: each is compared with all known ones


def read_class_names(path: StrPath) -> tuple[str, ...]:
    """Read one class name per line, in label order; blank lines at the end are allowed.

    `voc` and `coco`, if there is no file of that name, are the 20 and 80 classes of these data sets.

    Raises:
        UserError: if the file cannot be read, is empty, is not text, has a blank line or a name twice (with the line).
    """
    if os.fspath(path) in KNOWN_LISTS and not os.path.lexists(path):
        path = KNOWN_LISTS[os.fspath(path)]
    text = decode_text(read_file(path, MEGABYTE), path)
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not any(lines):
        raise UserError(path, "contains no class name", "write one name per line")
    first: dict[str, int] = {}
    for number, name in enumerate(lines, 1):
        where = f"{os.fsdecode(path)}:{number}"
        if not name:
            raise UserError(where, "blank line between class names", "remove it: it would shift every label after it")
        if len(name) > MAX_NAME:
            raise UserError(where, f"has {len(name)} characters", "write one class name per line")
        if name in first:
            raise UserError(where, f"class {name!r} is already on line {first[name]}", "remove one of them")
        first[name] = number
    return tuple(lines)


def check_class_names(names: Iterable[object], where: object) -> tuple[str, ...]:
    """The names as a tuple of distinct, non-empty strings. Raises UserError if one of them is not."""
    checked: dict[str, None] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise UserError(where, f"class {number} is {brief(name)}", "give every class a name")
        text = str(name).strip()
        if len(text) > MAX_NAME:
            raise UserError(where, f"the name of class {number} has {len(text)} characters", "give it a shorter one")
        if text in checked:
            raise UserError(where, f"class {text!r} appears twice", "remove one of them")
        checked[text] = None
    if not checked:
        raise UserError(where, "contains no class name", "give at least one class")
    return tuple(checked)


def decode_text(data: bytes, where: object) -> str:
    """Read a small text file: UTF-8 or UTF-16, with or without byte order mark.

    Raises:
        UserError: if it has another encoding.
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(where, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    if "\0" in text:
        raise UserError(where, "is not a text file", "give a text file")
    return text


def class_index(name: str | int, known: Sequence[str], where: object) -> int:
    """The index of a class given by name or index.

    Raises:
        UserError: if there is no such class; suggests the closest name.
    """
    if isinstance(name, str) and name in known:
        return known.index(name)
    text = str(name)
    if text.isascii() and text.isdigit() and int(text[:9]) < len(known):
        return int(text[:9])
    near = nearest_name(text[:MAX_NAME], known)
    todo = f"did you mean {near!r}?" if near is not None else f"known: {some_names(known)}"
    raise UserError(where, f"the model has no class {brief(name)}", todo)


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The known name closest to `name` (other case, typing error), or None."""

    def simple(text: str) -> str:
        return "".join(c for c in text.casefold() if c.isalnum())

    by_simple = {simple(each): each for each in known}
    close = difflib.get_close_matches(simple(name), list(by_simple), 1, cutoff=0.75)
    close = close or [each for each in by_simple if sorted(each) == sorted(simple(name))]  # dgo: too short to be close
    return by_simple[close[0]] if close else None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Advice on an unknown class name, as text."""
    near = nearest_name(name, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"add it to the classes ({some_names(known)}) or leave it out"


def suggestions(found: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Advice on each of the `found` names that is not `known`; the first few get a suggestion."""
    listed = set(known)
    unknown = dict.fromkeys(name for name in found if name not in listed)
    return {
        name: did_you_mean(name, known) if number < MAX_GUESSES else "add it to the classes, or leave it out"
        for number, name in enumerate(unknown)
    }


def unlisted_classes(found: Mapping[str, int], known: Sequence[str], where: str) -> list[Skip]:
    """One skip for each class of the annotations that is not `known`, with the number of its dropped boxes."""
    skips = []
    for name, todo in suggestions(found, known).items():
        what = f"class {name!r} is not one of the {len(known)} classes; {counted(found[name], 'box')} dropped"
        skips.append(Skip("box", "unknown_class", where, what, todo, found[name]))
    return skips


def numbers_from_one(names: Sequence[str], where: str) -> Skip:
    """The note that class numbers are read as starting at 1."""
    what = f"class numbers run from 1 to {len(names)}, and none is 0: they are read as starting at 1"
    return Skip("note", "ids_from_one", where, what, f"the first is {names[0]!r}; check it")
