"""The upright boxes of shapes that labelling tools write: points, ellipses, rotated rectangles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def number_of(value: Any) -> float | None:
    """A number, also if written as text with a decimal comma; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        text = str(value).strip()
        return None if "_" in text else float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        return None


def numbers_of(values: Iterable[Any]) -> list[float] | None:
    """All values as numbers; None if one of them is not a number."""
    found = [number_of(value) for value in values]
    numbers = [number for number in found if number is not None]
    return numbers if len(numbers) == len(found) else None


def box_of_sides(values: Any, keys: Iterable[Any] = ("x", "y", "width", "height")) -> list[float] | None:
    """xyxy from the left, top, width and height that a mapping holds under `keys`; None if one is missing."""
    numbers = numbers_of(values.get(key) for key in keys) if isinstance(values, Mapping) else None
    return None if numbers is None else [*numbers[:2], numbers[0] + numbers[2], numbers[1] + numbers[3]]


def box_of_points(points: Any) -> list[float] | None:
    """The box around a list of at least two (x, y) pairs; None if it is anything else."""
    if not isinstance(points, Sequence) or len(points) < 2:
        return None
    if not all(isinstance(point, Sequence) and len(point) == 2 for point in points):
        return None
    numbers = numbers_of(value for point in points for value in point)
    return None if numbers is None else [f(numbers[k::2]) for f in (min, max) for k in (0, 1)]


def box_of_ellipse(values: Sequence[Any], degrees: float = 0.0) -> list[float] | None:
    """The box around an ellipse: its centre x, y and its radii, which may be rotated."""
    numbers = numbers_of(values)
    if numbers is None or len(numbers) != 4:
        return None
    (x, y, rx, ry), angle = numbers, math.radians(degrees)
    half_width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    half_height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return [x - half_width, y - half_height, x + half_width, y + half_height]


def rotated_box(
    box: Sequence[float], degrees: float, pivot: Sequence[float] | None = None, aspect: float = 1.0
) -> list[float]:
    """The upright box around a rectangle that is rotated clockwise.

    Args:
        box: xyxy before the rotation, y pointing down.
        degrees: the angle.
        pivot: (x, y) of the fixed point; None is the centre.
        aspect: length of one unit of x in units of y: width by height of the image for fractions of its sides, else 1.
    """
    if not degrees:
        return list(box)
    x0, y0 = pivot or ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [((x - x0) * aspect, y - y0) for x in box[::2] for y in box[1::2]]
    xs = [x0 + (x * cos - y * sin) / aspect for x, y in corners]
    ys = [y0 + x * sin + y * cos for x, y in corners]
    return [min(xs), min(ys), max(xs), max(ys)]
