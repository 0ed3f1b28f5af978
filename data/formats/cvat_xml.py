"""Read CVAT XML for images 1.1 (with subsets) and for video 1.1: boxes, polygons, ellipses and masks.

Source: https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element  # only to hold elements; parsing is defusedxml's
from xml.parsers.expat import ExpatError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from data.formats.labels import Labels, Layout
from data.formats.shapes import box_of_ellipse, box_of_points, box_of_sides, number_of, numbers_of, rotated_box
from utils.files import MEGABYTE, FileError, read_file

MAX_XML_BYTES = 512 * MEGABYTE
_FIRST_TAG = re.compile(rb"<annotations[\s>]")


def is_annotation(path: str, head: bytes) -> bool:
    return bool(_FIRST_TAG.search(head[:1024]))


def read(labels: Labels, files: list[str], class_names: Sequence[str] | None) -> None:
    labels.unit = ": shape "
    for path in files:
        try:
            root = fromstring(read_file(path, MAX_XML_BYTES), forbid_dtd=True)
        except FileError as error:
            labels.refuse(path, error.what)
            continue
        except (ParseError, ExpatError, DefusedXmlException, ValueError) as error:
            labels.refuse(path, f"is not valid XML ({str(error)[:80]})", "export it again")
            continue
        number = 0
        for item in (*root.iter("image"), *_frames(root)):
            image = labels.image(item.get("name", ""), path, size=(item.get("height"), item.get("width")),
                                 split=item.get("subset"))  # fmt: skip
            for shape in item:
                if shape.tag == "tag":  # of the whole image
                    continue
                number += 1
                angle = number_of(shape.get("rotation")) or 0.0
                box = _box(shape.tag, shape.attrib, angle)
                labels.shape(image, shape.get("label"), box, path, number, shape.tag, angle != 0)


def _frames(root: Any) -> list[Element]:
    """The frames of "CVAT for video 1.1", with the shapes of all tracks that are seen on them, as <image> elements."""
    frames: dict[int, Element] = {}
    for track in root.iter("track"):
        for shape in track:
            frame = number_of(shape.get("frame"))
            if frame is None or shape.get("outside") == "1":
                continue
            item = frames.setdefault(int(frame), Element("image", name=f"frame_{int(frame):06d}"))
            shape.set("label", track.get("label", ""))
            item.append(shape)
    return [frames[frame] for frame in sorted(frames)]


def _box(tag: str, values: dict[str, str], degrees: float) -> list[float] | None:
    if tag == "box":
        box = numbers_of(values.get(key) for key in ("xtl", "ytl", "xbr", "ybr"))
        return rotated_box(box, degrees) if box else None  # about its centre
    if tag == "ellipse":
        return box_of_ellipse([values.get(key) for key in ("cx", "cy", "rx", "ry")], degrees)
    if tag == "mask":
        return box_of_sides(values, ("left", "top", "width", "height"))
    is_outline = tag in ("polygon", "polyline")
    return box_of_points([point.split(",") for point in values.get("points", "").split(";")]) if is_outline else None


LAYOUT = Layout((".xml",), is_annotation, "{first} starts with <annotations>, as CVAT writes it", read)
