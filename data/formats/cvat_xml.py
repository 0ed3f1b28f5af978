"""Read CVAT XML ("CVAT for images 1.1"): boxes, polygons and ellipses, with subsets.

Source: https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from xml.parsers.expat import ExpatError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from data.formats.folder import Folder
from data.formats.labels import Labels, number_of
from utils.files import MEGABYTE, FileError, read_file

MAX_XML_BYTES = 512 * MEGABYTE
_FIRST_TAG = re.compile(rb"<annotations[\s>]")


def sniff(folder: Folder) -> str | None:
    files = _files(folder)
    return f"{os.path.basename(files[0])} begins with <annotations>, as CVAT writes it" if files else None


def _files(folder: Folder) -> list[str]:
    return [path for path in folder.having(".xml") if _FIRST_TAG.search(folder.head(path)[:1024])]


def read(folder: Folder, labels: Labels, class_names: Sequence[str] | None) -> None:
    labels.unit = ": shape "
    for path in _files(folder):
        try:
            root = fromstring(read_file(path, MAX_XML_BYTES), forbid_dtd=True)
        except FileError as error:
            labels.refuse(path, error.what)
            continue
        except (ParseError, ExpatError, DefusedXmlException, ValueError) as error:
            labels.refuse(path, f"is not whole XML ({str(error)[:80]})", "write it again")
            continue
        number = 0
        for item in root.iter("image"):
            image = labels.image(item.get("name", ""), path, size=(item.get("height"), item.get("width")),
                                 split=item.get("subset"))  # fmt: skip
            for shape in item if image is not None else ():
                number += 1
                box = _box(shape.tag, shape.attrib)
                if box is None:
                    labels.drop("no_box", path, number, f"a <{shape.tag}> has no box")
                elif image is not None:
                    labels.box(image, shape.get("label"), box, path, number)


def _box(tag: str, values: dict[str, str]) -> list[float] | None:
    if tag == "box":
        box = [number_of(values.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
    elif tag == "ellipse":
        cx, cy, rx, ry = (number_of(values.get(key)) or 0.0 for key in ("cx", "cy", "rx", "ry"))
        box = [cx - rx, cy - ry, cx + rx, cy + ry]
    elif tag in ("polygon", "polyline"):
        points = [point.split(",") for point in values.get("points", "").split(";") if "," in point]
        xs, ys = ([number_of(point[k]) or 0.0 for point in points] for k in (0, 1))
        box = [min(xs), min(ys), max(xs), max(ys)] if points else []
    else:
        return None
    return None if len(box) != 4 or None in box else [value for value in box if value is not None]
