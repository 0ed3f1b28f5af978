"""Read Microsoft VoTT JSON: a project export, or one file per asset.

Source: https://github.com/microsoft/VoTT
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

from data.formats.json_files import load_json
from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_sides


def is_annotation(path: str, head: bytes) -> bool:
    return (b'"assets"' in head or b'"asset"' in head) and (b'"regions"' in head or b'"boundingBox"' in head)


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": region "
    exports = [path for path in files if b'"assets"' in labels.folder.head(path)]  # each holds many assets
    for path in exports or files:
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


LAYOUT = Layout((".json",), is_annotation, "{first} has VoTT's assets", read)
