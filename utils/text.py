"""Plain text: counts with their nouns, lists of names, tables with aligned columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence


def quoted(path: object) -> str:
    """A path for a command to copy: in quotes if a shell would divide or change it."""
    return shlex.quote(str(path))


def counted(count: int | str, singular: str, plural: str = "") -> str:
    """A count and its noun: "1 box", "2 boxes"; `counted(2, "image is", "images are")` for a verb.

    Without `plural`, it is formed from the singular.
    """
    if count == 1:
        return f"1 {singular}"
    return f"{count} {plural or plural_of(singular)}"


def plural_of(noun: str) -> str:
    """The regular plural of a noun: boxes, classes, entries, epochs."""
    if noun.endswith(("s", "x", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"


def text_table(rows: Sequence[Sequence[object]], left: int = 1) -> list[str]:
    """The lines of a table, each column as wide as its longest cell, with two spaces between columns.

    Args:
        rows: the cells, all rows of the same length.
        left: number of columns, from the first, that are aligned to the left; the others hold numbers.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, without a newline at its end."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def some_names(names: Sequence[str], shown: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def plot_label(name: str, letters: int = 24) -> str:
    """A name of at most so many letters, escaped so that matplotlib does not parse it as mathematics."""
    return (name if len(name) <= letters else name[: letters - 1] + "…").replace("$", r"\$")
