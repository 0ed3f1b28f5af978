"""Read Apple CreateML JSON: a list of images with box centres and sizes in pixels.

Source: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from data.formats.folder import Folder
from data.formats.json_files import load_json
from data.formats.labels import Labels, number_of


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{os.path.basename(files[0])} has CreateML's `coordinates`" if files else None


def _files(folder: Folder) -> list[str]:
    keys = (b'"image', b'"annotations"', b'"coordinates"')
    return [path for path in folder.having(".json") if all(key in folder.head(path) for key in keys)]


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    labels.unit = ": box "
    for path in _files(folder):
        content, problem = load_json(path)
        if not isinstance(content, list):
            labels.refuse(path, problem or "is no list of pictures")
            continue
        number = 0
        for item in content:
            name = (item.get("image") or item.get("imagefilename")) if isinstance(item, dict) else None
            image = labels.image(name, path) if isinstance(name, str) else None
            for each in (item.get("annotations") or []) if image is not None else []:
                number += 1
                at = each.get("coordinates") if isinstance(each, dict) else None
                values = (
                    [number_of(at.get(key)) for key in ("x", "y", "width", "height")] if isinstance(at, dict) else []
                )
                if len(values) != 4 or None in values:
                    labels.drop("no_box", path, number, "has no x, y, width and height")
                elif image is not None:
                    x, y, width, height = (value for value in values if value is not None)
                    box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                    labels.box(image, each.get("label"), box, path, number)
