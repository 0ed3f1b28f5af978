"""Read JSON files of labelling tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from data.formats.labels import Labels
from utils.errors import UserError
from utils.files import MEGABYTE
from utils.json_file import read_json

MAX_JSON_BYTES = 512 * MEGABYTE


def load_json(path: str) -> tuple[Any, str]:
    """The content of a JSON file, and the reason if it cannot be read (empty if it can)."""
    try:
        return read_json(path, "a JSON file", MAX_JSON_BYTES), ""
    except UserError as error:
        return None, error.what


def json_lists(
    labels: Labels, paths: Iterable[str], key: str | None, content_name: str
) -> Iterator[tuple[str, Any, list[Any]]]:
    """(path, content, list) of each JSON file; a file without that list is reported.

    Args:
        labels: gets the reports.
        paths: the files.
        key: of the list in the file's object; None if the file is the list.
        content_name: what the list holds, for the message.
    """
    for path in paths:
        content, problem = load_json(path)
        items = content if key is None else content.get(key) if isinstance(content, dict) else None
        if isinstance(items, list):
            yield path, content, items
        else:
            labels.refuse(path, problem or f"contains no list of {content_name}")
