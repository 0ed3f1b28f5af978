"""Skipped images, annotations and boxes, and how they are reported."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from utils.errors import format_problem, printable, warn
from utils.files import StrPath, write_atomically
from utils.text import counted


@dataclass(frozen=True)
class Skip:
    """A skipped image, annotation or box, and the reason.

    Args:
        kind: `image` (skipped), `box` (only the box is dropped) or `note` (nothing lost, but worth knowing).
        code: short, stable name of the fault, e.g. `truncated_image`, `unknown_class` (data/tools/findings.py).
        where: the file, or `file:line`.
        what: what is wrong, as text.
        todo: what to do about it.
        count: how many faults it represents (boxes of an unlisted COCO category are reported as one).
    """

    kind: str
    code: str
    where: str
    what: str
    todo: str = ""
    count: int = 1

    def __str__(self) -> str:
        return format_problem(self.where, self.what, self.todo)


def rotated_note(where: str, count: int, first: str) -> Skip:
    """Report of rotated boxes, which this detector does not predict."""
    what = f"{counted(count, 'rotated box')}, the first at {first}, read as the upright boxes around them"
    return Skip("note", "rotated_box", where, what, "nothing to do, unless the angles matter")


class ReadSplit(Protocol):
    """The interface of `data.index.DatasetIndex` used here: its name, its images and its skips."""

    @property
    def name(self) -> str: ...

    @property
    def skips(self) -> tuple[Skip, ...]: ...

    def __len__(self) -> int: ...

    def path(self, image: int, /) -> Path: ...


def skips_summary(index: ReadSplit, name: str | None = None) -> str:
    """One line such as `train: 198 images used, 2 skipped, 4 boxes dropped`."""
    return _summary(name or index.name, len(index), index.skips)


def _summary(name: str, used: int, skips: Iterable[Skip]) -> str:
    counts: Counter[str] = Counter()
    for skip in skips:
        counts[skip.kind] += skip.count
    line = f"{name}: {counted(used, 'image')} used, {counts['image']} skipped, {counted(counts['box'], 'box')} dropped"
    return line + (f", {counted(counts['note'], 'note')}" if counts["note"] else "")


def used_summary(index: ReadSplit, name: str, late: Sequence[Skip]) -> str:
    """`skips_summary` at the end of a run, including images that could not be read during the run."""
    unreadable = {skip.where for skip in late}
    used = sum(str(index.path(i)) not in unreadable for i in range(len(index))) if unreadable else len(index)
    return _summary(name, used, (*index.skips, *late))


def warn_skips(index: ReadSplit, shown: int = 5, known: Sequence[Skip] = ()) -> None:
    """Report what was left out, at most `shown` of each kind of fault, then the number of further ones.

    `known` were reported before: those of the whole data set are in every split.
    """
    reported, by_code = set(known), dict[tuple[str, str], list[Skip]]()
    for skip in index.skips:
        if skip not in reported:
            by_code.setdefault((skip.kind, skip.code), []).append(skip)
    for (_, code), skips in sorted(by_code.items()):
        for skip in skips[:shown]:
            warn(skip.where, skip.what, skip.todo)
        if len(skips) > shown:
            warn(index.name, f"{len(skips) - shown} more of {code}", "see skipped.csv of the run, or: dataset.py check")


def write_skips_csv(path: StrPath, skips: Iterable[Skip]) -> None:
    """The full list as a table: kind, code, where, what, todo, count."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["kind", "code", "where", "what", "todo", "count"])
    for skip in skips:
        words = (printable(each) for each in (skip.kind, skip.code, skip.where, skip.what, skip.todo))
        table.writerow([*words, skip.count])
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))
