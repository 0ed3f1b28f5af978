"""Read Microsoft VoTT JSON: a project export, or one file per asset.

Source: https://github.com/microsoft/VoTT
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

from data.formats.folder import Folder
from data.formats.json_files import load_json
from data.formats.labels import Labels
from data.formats.shapes import box_of_sides


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{os.path.basename(files[0])} has VoTT's assets" if files else None


def _files(folder: Folder) -> list[str]:
    def is_vott(path: str) -> bool:
        head = folder.head(path)
        return (b'"assets"' in head or b'"asset"' in head) and (b'"regions"' in head or b'"boundingBox"' in head)

    files = [path for path in folder.having(".json") if is_vott(path)]
    exports = [path for path in files if b'"assets"' in folder.head(path)]
    return exports or files


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    labels.unit = ": region "
    for path in _files(folder):
        content, problem = load_json(path)
        if not isinstance(content, dict):
            labels.refuse(path, problem or "contains no assets")
            continue
        assets = content.get("assets")
        items: Iterable[Any] = assets.values() if isinstance(assets, dict) else [content]
        number = 0
        for item in items:
            asset = item.get("asset") if isinstance(item, dict) else None
            name = (asset.get("name") or asset.get("path")) if isinstance(asset, dict) else None
            regions = item.get("regions") if isinstance(item, dict) else None
            if not isinstance(asset, dict) or not isinstance(name, str) or not isinstance(regions, list):
                continue
            size = asset.get("size")
            stated = (size.get("height"), size.get("width")) if isinstance(size, dict) else (None, None)
            image = labels.image(unquote(name), path, size=stated)
            for region in regions:
                number += 1
                region = region if isinstance(region, dict) else {}
                box = box_of_sides(region.get("boundingBox"), ("left", "top", "width", "height"))
                labels.shape(image, (region.get("tags") or [None])[0], box, path, number, region.get("type"))
