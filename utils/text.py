"""Text: counts with their nouns"""

from __future__ import annotations


def counted(count: int, singular: str, plural: str = "") -> str:
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
