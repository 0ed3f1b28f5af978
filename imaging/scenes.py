"""Draw synthetic scenes with annotated objects: landscapes, coasts and seabeds with six kinds of objects."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

SCENE_CLASSES = ("balloon", "boat", "car", "fish", "house", "tree")
SIDES = (320, 416)  # shortest and longest side of an image, pixels
EMPTY_SHARE = 0.06  # images without any object
MIN_VISIBLE = 0.12  # an object with a smaller visible fraction is not annotated
DIFFICULT_VISIBLE = 0.40  # an object with a smaller visible fraction is `difficult`
MIN_SIDE = 6  # pixels; a thinner visible part is not annotated

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class SceneObject:
    """One annotated object: xyxy box of its visible part (0-based, continuous pixels) and its flags."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    occluded: bool
    difficult: bool


class Sprite:
    """A square canvas in coordinates from -1 to 1 (y down), with transparency (premultiplied RGBA, uint8)."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.rgba = np.zeros((side, side, 4), np.uint8)

    def _fixed(self, points: Sequence[Point]) -> np.ndarray:
        """Canvas points with 4 fractional bits, as OpenCV's `shift=4` takes them."""
        return np.round((np.asarray(points) + 1) * (self.side / 2 * 16)).astype(np.int32)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        cv2.fillPoly(self.rgba, [self._fixed(points)], (*colour, 255), cv2.LINE_AA, 4)

    def ellipse(self, centre: Point, radii: Point, colour: Colour, angle: float = 0.0) -> None:
        axes = tuple(int(r * self.side / 2 * 16) for r in radii)
        middle = tuple(int(v) for v in self._fixed([centre])[0])
        cv2.ellipse(self.rgba, middle, axes, angle, 0, 360, (*colour, 255), -1, cv2.LINE_AA, 4)

    def line(self, start: Point, end: Point, colour: Colour, width: float) -> None:
        """A line of `width` canvas units: a thin quadrilateral, so that it scales with the sprite."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / length * width / 2, dx / length * width / 2
        corners = [(start[0] + nx, start[1] + ny), (end[0] + nx, end[1] + ny)]
        self.polygon([*corners, (end[0] - nx, end[1] - ny), (start[0] - nx, start[1] - ny)], colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB, 0 to 255, of a hue in turns (any real number), saturation and value in [0, 1]."""
    red, green, blue = (int(channel * 255) for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue


def darker(colour: Colour, factor: float) -> Colour:
    """The colour with its brightness times `factor`."""
    return tuple(min(int(c * factor), 255) for c in colour)  # type: ignore[return-value]


def draw_balloon(sprite: Sprite, rng: Generator) -> None:
    """A hot-air balloon: gores, ropes, a basket."""
    hue = rng.random()
    first, second = hsv(hue, 0.75, 0.95), hsv(hue + rng.uniform(0.3, 0.6), rng.uniform(0.1, 0.7), 0.95)
    width = rng.uniform(0.62, 0.72)
    for x in (-0.3, 0.3):
        sprite.line((x, 0.2), (x * 0.4, 0.75), (70, 55, 45), 0.03)
    sprite.polygon([(-width * 0.93, 0.02), (width * 0.93, 0.02), (0.2, 0.55), (-0.2, 0.55)], darker(first, 0.9))
    for share, colour in ((1.0, first), (0.72, second), (0.44, first), (0.16, second)):
        sprite.ellipse((0, -0.27), (width * share, 0.68), colour)
        sprite.polygon([(-width * share * 0.93, 0.02), (width * share * 0.93, 0.02), (0.2 * share, 0.55),
                        (-0.2 * share, 0.55)], darker(colour, 0.92))  # fmt: skip
    if rng.random() < 0.5:
        sprite.rectangle(-width * 0.97, -0.3, width * 0.97, -0.14, second)
    sprite.rectangle(-0.15, 0.72, 0.15, 0.95, (130, 85, 45))
    sprite.rectangle(-0.17, 0.70, 0.17, 0.76, (95, 60, 30))


def draw_boat(sprite: Sprite, rng: Generator) -> None:
    """A sailing boat, or one with a cabin and a funnel."""
    hull = hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.45, 0.95))
    if rng.random() < 0.7:
        canvas = hsv(rng.random(), rng.choice([0.05, 0.1, 0.6]), rng.uniform(0.88, 1.0))
        top, mast = rng.uniform(-0.95, -0.8), rng.uniform(-0.15, 0.1)
        sprite.line((mast, top), (mast, 0.5), (90, 65, 45), 0.05)
        sprite.polygon([(mast + 0.05, top + 0.05), (mast + 0.05, 0.36), (0.78, 0.36)], canvas)
        sprite.polygon([(mast - 0.05, top + 0.2), (mast - 0.05, 0.36), (-0.68, 0.36)], darker(canvas, 0.85))
    else:
        cabin = hsv(rng.random(), 0.08, 0.95)
        sprite.rectangle(0.05, -0.35, 0.22, 0.1, hsv(rng.random(), 0.8, 0.8))
        sprite.rectangle(0.05, -0.35, 0.22, -0.25, (40, 40, 40))
        sprite.rectangle(-0.5, -0.02, 0.5, 0.5, cabin)
        sprite.rectangle(-0.56, -0.1, 0.56, 0.0, darker(hull, 0.8))
        for x in (-0.38, -0.13, 0.12):
            sprite.rectangle(x, 0.1, x + 0.17, 0.28, (70, 110, 150))
    sprite.polygon([(-0.95, 0.4), (0.95, 0.4), (0.66, 0.8), (-0.62, 0.8)], hull)
    sprite.polygon([(-0.95, 0.4), (0.95, 0.4), (0.88, 0.5), (-0.87, 0.5)], darker(hull, 0.6))
    if rng.random() < 0.5:
        sprite.rectangle(-0.7, 0.62, 0.74, 0.67, (240, 240, 235))


def draw_car(sprite: Sprite, rng: Generator) -> None:
    """A car from its side: saloon or van."""
    paint = hsv(rng.random(), rng.choice([0.1, 0.75, 0.9]), rng.uniform(0.55, 1.0))
    glass = (150, 195, 215) if rng.random() < 0.6 else (60, 75, 90)
    if rng.random() < 0.7:
        cabin = [(-0.62, 0.02), (-0.4, -0.42), (0.22, -0.42), (0.5, 0.02)]
        windows = [[(-0.5, 0.0), (-0.35, -0.34), (-0.1, -0.34), (-0.1, 0.0)],
                   [(-0.03, 0.0), (-0.03, -0.34), (0.18, -0.34), (0.38, 0.0)]]  # fmt: skip
    else:
        cabin = [(-0.92, 0.02), (-0.9, -0.5), (0.4, -0.5), (0.62, 0.02)]
        windows = [[(x, -0.05), (x, -0.4), (x + 0.34, -0.4), (x + 0.34, -0.05)] for x in (-0.82, -0.4)]
        windows.append([(0.04, -0.05), (0.04, -0.4), (0.34, -0.4), (0.5, -0.05)])
    sprite.polygon(cabin, darker(paint, 0.9))
    for window in windows:
        sprite.polygon(window, glass)
    sprite.polygon([(-0.96, 0.0), (0.7, 0.0), (0.95, 0.1), (0.97, 0.36), (-0.97, 0.36)], paint)
    sprite.rectangle(-0.97, 0.28, 0.97, 0.36, darker(paint, 0.55))
    sprite.line((-0.07, 0.04), (-0.07, 0.28), darker(paint, 0.6), 0.03)
    sprite.ellipse((0.9, 0.14), (0.06, 0.06), (255, 240, 170))
    sprite.rectangle(-0.96, 0.08, -0.88, 0.18, (200, 30, 30))
    for x in (-0.55, 0.55):
        sprite.ellipse((x, 0.36), (0.22, 0.22), (30, 30, 32))
        sprite.ellipse((x, 0.36), (0.11, 0.11), (175, 178, 182))


def draw_fish(sprite: Sprite, rng: Generator) -> None:
    """A tropical fish with stripes or a belly."""
    hue = rng.random()
    body, fin = hsv(hue, 0.8, 0.95), hsv(hue + rng.uniform(-0.12, 0.12), 0.9, 0.75)
    height = rng.uniform(0.36, 0.5)
    sprite.polygon([(-0.45, 0.0), (-0.95, -0.48), (-0.8, 0.0), (-0.95, 0.48)], fin)
    sprite.polygon([(-0.3, -height * 0.7), (0.25, -height - 0.25), (0.45, -height * 0.6)], fin)
    sprite.polygon([(-0.15, height * 0.7), (0.05, height + 0.2), (0.3, height * 0.7)], fin)
    sprite.ellipse((0.15, 0.0), (0.75, height), body)
    if rng.random() < 0.6:
        stripe = hsv(hue + 0.5, rng.uniform(0.1, 0.6), 0.98)
        for x in (-0.25, 0.12, 0.45):
            reach = height * math.sqrt(max(1 - ((x - 0.15) / 0.75) ** 2, 0)) * 0.93
            sprite.ellipse((x, 0.0), (0.07, reach), stripe)
    else:
        sprite.ellipse((0.18, height * 0.4), (0.55, height * 0.5), hsv(hue, 0.25, 1.0))
    sprite.polygon([(0.1, 0.05), (-0.22, 0.28), (-0.12, -0.02)], fin)
    sprite.ellipse((0.66, -0.1), (0.09, 0.09), (250, 250, 250))
    sprite.ellipse((0.69, -0.1), (0.045, 0.045), (15, 15, 20))


def draw_house(sprite: Sprite, rng: Generator) -> None:
    """A house: gable roof, chimney, door and windows."""
    wall = hsv(rng.uniform(0.02, 0.16) if rng.random() < 0.7 else rng.random(), rng.uniform(0.08, 0.45), 0.93)
    roof = hsv(rng.uniform(-0.04, 0.06), rng.uniform(0.55, 0.85), rng.uniform(0.45, 0.75))
    if rng.random() < 0.25:
        roof = hsv(0.6, 0.25, rng.uniform(0.35, 0.5))
    eaves, half = rng.uniform(-0.25, -0.05), rng.uniform(0.7, 0.86)
    sprite.rectangle(0.3, -0.8, 0.5, eaves, (140, 80, 65))
    sprite.rectangle(0.27, -0.84, 0.53, -0.76, (95, 60, 50))
    sprite.rectangle(-half, eaves - 0.05, half, 0.92, wall)
    for y in np.arange(eaves + 0.15, 0.9, 0.16):
        sprite.rectangle(-half, y, half, y + 0.02, darker(wall, 0.88))
    peak = 0.0 if rng.random() < 0.6 else 0.45
    sprite.polygon([(-half - 0.12, eaves), (-peak, -0.92), (peak, -0.92), (half + 0.12, eaves)], roof)
    for share in (0.25, 0.5, 0.75):  # rows of tiles
        x, y = peak + (half + 0.12 - peak) * share, -0.92 + (eaves + 0.92) * share
        sprite.line((-x, y), (x, y), darker(roof, 0.8), 0.025)
    door = hsv(rng.random(), 0.6, 0.5)
    middle = rng.uniform(-0.15, 0.15)
    sprite.rectangle(middle - 0.15, 0.36, middle + 0.15, 0.92, door)
    sprite.ellipse((middle + 0.09, 0.66), (0.025, 0.025), (240, 220, 120))
    pane = (250, 225, 130) if rng.random() < 0.4 else (125, 175, 205)
    for x in (-half * 0.62, half * 0.62):
        sprite.rectangle(x - 0.17, 0.1, x + 0.17, 0.46, (245, 245, 240))
        sprite.rectangle(x - 0.14, 0.13, x + 0.14, 0.43, pane)
        sprite.rectangle(x - 0.015, 0.13, x + 0.015, 0.43, (245, 245, 240))


def draw_tree(sprite: Sprite, rng: Generator) -> None:
    """A broad-leaved tree in any season's green, or a conifer."""
    hue = rng.uniform(0.22, 0.38) if rng.random() < 0.7 else rng.uniform(0.05, 0.13)
    leaf = hsv(hue, rng.uniform(0.55, 0.85), rng.uniform(0.4, 0.75))
    bark = hsv(0.07, 0.5, rng.uniform(0.25, 0.45))
    sprite.polygon([(-0.07, 0.0), (0.07, 0.0), (0.13, 0.96), (-0.13, 0.96)], bark)
    if rng.random() < 0.35:
        for level in range(4):
            top, width = -0.95 + 0.34 * level, 0.3 + 0.13 * level
            sprite.polygon([(0, top), (width, top + 0.62), (-width, top + 0.62)], darker(leaf, 0.75 + 0.12 * level))
            lit = [(0, top), (0.2 * width, top + 0.62), (-width, top + 0.62)]
            sprite.polygon(lit, darker(leaf, 0.9 + 0.12 * level))
        return
    sprite.line((0, 0.3), (0.32, -0.1), bark, 0.07)
    sprite.line((0, 0.4), (-0.3, 0.0), bark, 0.07)
    for shade, count, spread in ((0.7, 9, 0.46), (1.0, 9, 0.4), (1.25, 7, 0.3)):
        for angle in np.linspace(0, 2 * math.pi, count, endpoint=False) + rng.random():
            reach = spread * rng.uniform(0.7, 1.0)
            shift = 0.1 * (shade - 0.7)
            centre = (math.cos(angle) * reach * 1.1 - shift, -0.3 + math.sin(angle) * reach - shift)
            radius = rng.uniform(0.16, 0.26) * (1.3 - 0.4 * shade)
            sprite.ellipse(centre, (radius, radius * 0.9), darker(leaf, shade * rng.uniform(0.92, 1.08)))
    sprite.ellipse((0, -0.3), (0.2, 0.18), darker(leaf, 1.1))


DRAWERS: dict[str, Callable[[Sprite, Generator], None]] = {
    "balloon": draw_balloon,
    "boat": draw_boat,
    "car": draw_car,
    "fish": draw_fish,
    "house": draw_house,
    "tree": draw_tree,
}
FLIPPED = {"boat", "car", "fish"}  # those with a front
ROTATION = {"balloon": 10, "boat": 9, "car": 6, "fish": 35, "house": 3, "tree": 5}  # degrees, either way


def make_sprite(name: str, size: float, rotation: float, rng: Generator) -> np.ndarray:
    """An object of about `size` pixels, turned by `rotation` degrees, lit and textured: premultiplied RGBA uint8."""
    side = max(int(size * 2), 24)  # drawn at twice the size, because shrinking gives smooth edges
    sprite = Sprite(side)
    DRAWERS[name](sprite, rng)
    rgba = sprite.rgba.astype(np.float32)
    light = rng.uniform(-0.28, 0.28)
    ramp_x, ramp_y = np.linspace(light, -light, side), np.linspace(0.18, -0.18, side)
    grain = noise(rng, side, side, 6) * 0.12 + noise(rng, side, side, max(side // 16, 2)) * 0.07
    rgba[..., :3] *= (1 + ramp_x[None, :] + ramp_y[:, None] + grain)[..., None]
    rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])  # a premultiplied colour cannot exceed its alpha
    if name in FLIPPED and rng.random() < 0.5:
        rgba = rgba[:, ::-1]
    angle = math.radians(rotation)
    half = math.ceil(size / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)))) + 1
    matrix = np.asarray(cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), rotation, 1.0), np.float64)
    matrix[:, 2] += half * side / size - side / 2
    turned = cv2.warpAffine(np.ascontiguousarray(rgba), matrix, (int(2 * half * side / size),) * 2)
    return np.round(cv2.resize(turned, (2 * half, 2 * half), interpolation=cv2.INTER_AREA)).astype(np.uint8)


def noise(rng: Generator, height: int, width: int, cells: int) -> np.ndarray:
    """(height, width) float32 smooth noise in about [-1, 1], with `cells` bumps along the longer side."""
    rows, columns = (max(round(cells * s / max(height, width)), 2) for s in (height, width))
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


class Scene:
    """An image painted from back to front, which tracks the visible part of each object."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.image = np.zeros((height, width, 3), np.float32)
        self.owner = np.full((height, width), -1, np.int16)  # index of the object that is visible at each pixel
        self.names: list[str] = []
        self.areas: list[float] = []  # pixels of the whole object, including parts outside the image

    def gradient(self, top: Colour, bottom: Colour, first: int, last: int) -> None:
        """Fill the rows from `first` to `last` from one colour to the other."""
        rows = np.linspace(0, 1, max(last - first, 1), dtype=np.float32)[:, None, None]
        self.image[first:last] = np.asarray(top, np.float32) * (1 - rows) + np.asarray(bottom, np.float32) * rows

    def texture(self, rng: Generator, strength: float, first: int, last: int, stretch: int = 1) -> None:
        """Multiply rows by two octaves of noise; `stretch` draws it out sideways (waves, fields)."""
        height = last - first
        if height < 2:
            return
        width = max(self.width // stretch, 2)
        grain = noise(rng, height, width, 9) * 0.5 + noise(rng, height, width, max(height, width) // 3) * 0.5
        wide = cv2.resize(grain, (self.width, height), interpolation=cv2.INTER_LINEAR)
        self.image[first:last] *= (1 + strength * wide)[..., None]

    def blend(self, mask: np.ndarray, colour: Colour) -> None:
        """Blend `colour` with the (H, W) float mask, 0 to 1."""
        self.image += (np.asarray(colour, np.float32) - self.image) * mask[..., None]

    def paint(self, mask: np.ndarray, colour: Colour, opacity: float = 1.0, hides: bool = False) -> None:
        """Paint where the (H, W) uint8 mask is 255; with `hides`, the objects behind it become hidden."""
        self.blend(mask.astype(np.float32) * (opacity / 255), colour)
        if hides:
            self.owner[mask > 127] = -1

    def mask(self, draw: Callable[..., Any], *arguments: Any) -> np.ndarray:
        """(H, W) uint8 mask of a figure drawn by a function of OpenCV with these arguments."""
        mask = np.zeros((self.height, self.width), np.uint8)
        draw(mask, *arguments)
        return mask

    def polygon(self, outline: np.ndarray, smooth: bool = True) -> np.ndarray:
        """The mask of a polygon of (N, 2) int32 points."""
        return self.mask(cv2.fillPoly, [outline], 255, cv2.LINE_AA if smooth else cv2.LINE_8)

    def circle(self, centre: tuple[int, int], radius: int, thickness: int = -1) -> np.ndarray:
        """The mask of a disc, or of a ring."""
        return self.mask(cv2.circle, centre, radius, 255, thickness, cv2.LINE_AA)

    def rectangle(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """The mask of a rectangle, its edges included."""
        return self.mask(cv2.rectangle, (left, top), (right, bottom), 255, -1)

    def polyline(self, points: np.ndarray, thickness: int) -> np.ndarray:
        """The mask of a line through (N, 2) int32 points."""
        return self.mask(cv2.polylines, [points], False, 255, thickness, cv2.LINE_AA)

    def visible(self, number: int, without: np.ndarray | None = None) -> float:
        """The visible fraction of an object, without the pixels of the (H, W) bool mask `without`."""
        seen = self.owner == number
        if without is not None:
            seen &= ~without
        return float(np.count_nonzero(seen)) / max(self.areas[number], 1.0)

    def place(self, name: str, centre: Point, size: float, rotation: float, rng: Generator) -> bool:
        """Paint an object. Returns False, without painting, if it would hide most of another or be mostly outside."""
        sprite = make_sprite(name, size, rotation, rng)
        side = sprite.shape[0]
        left, top = round(centre[0] - side / 2), round(centre[1] - side / 2)
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, self.width), min(top + side, self.height)
        if x1 >= x2 or y1 >= y2:
            return False
        part = sprite[y1 - top : y2 - top, x1 - left : x2 - left].astype(np.float32)
        solid = np.zeros(self.owner.shape, bool)
        solid[y1:y2, x1:x2] = part[..., 3] > 127
        area = float(np.count_nonzero(sprite[..., 3] > 127))
        if np.count_nonzero(solid) < 0.55 * area:
            return False
        touched = np.unique(self.owner[solid])
        if any(self.visible(int(n), solid) < 0.3 + 0.3 * rng.random() for n in touched if n >= 0):
            return False
        alpha = part[..., 3:] / 255
        self.image[y1:y2, x1:x2] = self.image[y1:y2, x1:x2] * (1 - alpha) + part[..., :3]
        self.owner[solid] = len(self.names)
        self.names.append(name)
        self.areas.append(area)
        return True

    def objects(self) -> list[SceneObject]:
        """The objects to annotate: the visible boxes, in painting order."""
        found = []
        for number, name in enumerate(self.names):
            rows, columns = np.nonzero(self.owner == number)
            share = len(rows) / self.areas[number]
            if share < MIN_VISIBLE:
                continue
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
                continue
            edge = box[0] == 0 or box[1] == 0 or box[2] == self.width or box[3] == self.height
            truncated = edge and share < 0.98
            found.append(SceneObject(name, box, truncated, share < 0.9 and not truncated, share < DIFFICULT_VISIBLE))
        return found


SKIES = (  # hue, saturation, value above and at the horizon
    ((0.58, 0.60, 0.85), (0.58, 0.20, 1.00)),  # day
    ((0.60, 0.45, 0.75), (0.05, 0.40, 1.00)),  # evening
    ((0.60, 0.12, 0.75), (0.60, 0.06, 0.92)),  # overcast
    ((0.66, 0.60, 0.30), (0.66, 0.40, 0.55)),  # dusk
)


def paint_sky(scene: Scene, rng: Generator, horizon: int) -> None:
    """Day, evening or overcast, with sun and clouds."""
    turn = rng.uniform(-0.03, 0.03)
    zenith, low = SKIES[int(rng.choice(len(SKIES), p=[0.5, 0.2, 0.2, 0.1]))]
    scene.gradient(hsv(zenith[0] + turn, *zenith[1:]), hsv(low[0] + turn, *low[1:]), 0, horizon)
    if rng.random() < 0.5:
        x, y, radius = int(rng.uniform(0, scene.width)), int(rng.uniform(0, horizon * 0.8)), int(rng.uniform(8, 22))
        scene.paint(scene.circle((x, y), radius * 3), (255, 240, 200), 0.15)
        scene.paint(scene.circle((x, y), radius), (255, 245, 215), 0.9)
    clouds = noise(rng, scene.height, scene.width, 5) + 0.5 * noise(rng, scene.height, scene.width, 14)
    mask = np.clip((clouds - rng.uniform(0.2, 0.8)) * 1.5, 0, 1)
    mask[max(horizon - 20, 0) :] = 0
    scene.blend(cv2.GaussianBlur(mask, (0, 0), 3) * 0.8, (250, 250, 252))
    for _ in range(int(rng.integers(0, 5))):  # birds, which are not objects
        u, v, span = rng.uniform(0, scene.width), rng.uniform(5, max(horizon - 5, 6)), rng.uniform(3, 8)
        wings = np.array([(u - span, v - span * 0.5), (u, v), (u + span, v - span * 0.5)]).astype(np.int32)
        scene.paint(scene.polyline(wings, 1), (40, 40, 50), 0.9)


def paint_hills(scene: Scene, rng: Generator, horizon: int, hue: float) -> None:
    """Ranges of hills behind the horizon, paler with distance."""
    xs = np.arange(scene.width + 1)
    for layer in range(int(rng.integers(1, 4))):
        height = rng.uniform(0.05, 0.16) * scene.height * (1 - 0.2 * layer)
        waves = sum(np.sin(xs * rng.uniform(0.5, 3) * k / 90 + rng.uniform(0, 6.3)) / k for k in (1, 2, 4))
        ys = horizon - height * (0.9 + 0.45 * waves)
        foot = [(scene.width, horizon + 2), (0, horizon + 2)]
        outline = np.concatenate([np.stack([xs, ys], 1), foot]).astype(np.int32)
        colour = hsv(hue + rng.uniform(-0.04, 0.04), 0.2 + 0.12 * layer, 0.72 - 0.1 * layer)
        scene.paint(scene.polygon(outline), colour)


def paint_strokes(
    scene: Scene, rng: Generator, count: int, top: int, colour: Colour, lean: float, length: float
) -> None:
    """Short strokes below row `top`, longer towards the viewer: grass, or waves where `lean` is 1 (lying)."""
    mask = np.zeros((scene.height, scene.width), np.uint8)
    xs, ys = rng.uniform(0, scene.width, count), top + (scene.height - top) * np.sqrt(rng.random(count))
    reach = length * (0.3 + (ys - top) / max(scene.height - top, 1)) * rng.uniform(0.5, 1.2, count)
    tilt = rng.uniform(-0.4, 0.4, count) * (1 - lean)
    for x, y, dx, dy in zip(xs, ys, reach * (lean + tilt), reach * (1 - lean), strict=True):
        cv2.line(mask, (int(x), int(y)), (int(x + dx), int(y - dy)), 255, 1, cv2.LINE_AA)
    scene.blend(mask.astype(np.float32) / 255 * 0.5, colour)


def around(centre: Point, angles: np.ndarray, across: Any, down: Any) -> np.ndarray:
    """(N, 2) int32 points at these angles around `centre`, at distances `across` and `down` along the axes."""
    return (np.array(centre) + np.stack([np.cos(angles) * across, np.sin(angles) * down], 1)).astype(np.int32)


def paint_rocks(scene: Scene, rng: Generator, count: int, top: int, hue: float = 0.08) -> None:
    """Rough grey stones: clutter that is not annotated."""
    for _ in range(count):
        y = rng.uniform(top, scene.height)
        radius = rng.uniform(3, 15) * (0.4 + (y - top) / max(scene.height - top, 1))
        angles = np.sort(rng.uniform(0, 2 * math.pi, 8))
        reach = radius * rng.uniform(0.7, 1.1, 8)
        outline = around((rng.uniform(0, scene.width), y), angles, reach * 1.4, reach * 0.8)
        colour = hsv(hue, rng.uniform(0.03, 0.15), rng.uniform(0.35, 0.6))
        scene.paint(scene.polygon(outline), colour)
        lit = outline - np.array([[round(radius * 0.25), round(radius * 0.3)]], np.int32)
        both = np.minimum(scene.polygon(lit, smooth=False), scene.polygon(outline, smooth=False))
        scene.paint(both, (235, 232, 225), 0.22)


def paint_posts(scene: Scene, rng: Generator, count: int) -> None:
    """Poles and fence posts in the foreground, which occlude objects."""
    for _ in range(count):
        x, width = rng.uniform(0, scene.width), rng.uniform(2, 6)
        top = rng.uniform(0.3, 0.75) * scene.height
        post = scene.rectangle(round(x - width / 2), round(top), round(x + width / 2), scene.height)
        colour = hsv(0.07, rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.5))
        scene.paint(post, colour, hides=True)
        cap = scene.rectangle(round(x - width), round(top - 2), round(x + width), round(top + 1))
        scene.paint(cap, darker(colour, 1.3), hides=True)


def fill(
    scene: Scene, rng: Generator, count: int, zones: dict[str, tuple[float, float]], horizon: float, tilt: float = 1.0
) -> None:
    """Place about `count` objects, from far (high, small) to near; `zones` are the rows (in heights) of each class."""
    short = min(scene.height, scene.width)
    plan = []
    names = list(zones)
    for _ in range(count):
        name = names[int(rng.integers(len(names)))]
        first, last = zones[name]
        y = rng.uniform(first, last)
        if first >= horizon > 0:  # on the ground: nearer is larger
            near = (y - horizon) / max(1 - horizon, 0.1)
            size = short * np.clip((0.12 + 0.36 * near) * math.exp(rng.normal(0, 0.25)), 0.085, 0.62)
        else:
            size = short * math.exp(rng.uniform(math.log(0.1), math.log(0.5)))
        plan.append((y if first >= horizon > 0 else float(size) / short, name, y, float(size)))
    for _, name, y, size in sorted(plan):
        if name in ("house", "tree") and horizon > 0:  # stands with its foot on the ground
            size, y = size * 1.25, y - 0.45 * size * 1.25 / scene.height
        angle = rng.uniform(-1, 1) * ROTATION[name] * tilt
        for _attempt in range(6):
            x = rng.uniform(-0.02, 1.02) * scene.width
            if scene.place(name, (x, y * scene.height), size, angle, rng):
                break


def meadow(scene: Scene, rng: Generator, count: int) -> None:
    """Hills, grass and a road, with houses, trees, cars, and balloons above."""
    horizon = int(scene.height * rng.uniform(0.35, 0.6))
    hue = rng.uniform(0.2, 0.34) if rng.random() < 0.75 else rng.uniform(0.1, 0.16)
    paint_sky(scene, rng, horizon)
    paint_hills(scene, rng, horizon, hue + 0.15)
    scene.gradient(hsv(hue, 0.45, 0.75), hsv(hue, 0.65, 0.5), horizon, scene.height)
    scene.texture(rng, 0.22, horizon, scene.height, 2)
    paint_strokes(scene, rng, 220, horizon, hsv(hue, 0.5, 0.85), 0.0, 9)
    paint_rocks(scene, rng, int(rng.integers(0, 6)), horizon)
    level = horizon / scene.height
    zones = {"house": (level + 0.06, 0.9), "tree": (level + 0.05, 0.95), "car": (level + 0.12, 0.92)}
    zones["balloon"] = (0.08, level)
    fill(scene, rng, count, zones, level)
    paint_posts(scene, rng, int(rng.integers(0, 3)))


def street(scene: Scene, rng: Generator, count: int) -> None:
    """Asphalt with lane marks before a row of houses; mostly cars."""
    horizon = int(scene.height * rng.uniform(0.3, 0.5))
    paint_sky(scene, rng, horizon)
    paint_hills(scene, rng, horizon, rng.uniform(0, 1))
    scene.gradient(hsv(0.1, 0.08, 0.7), hsv(0.1, 0.1, 0.6), horizon, scene.height)
    kerb = horizon + int((scene.height - horizon) * rng.uniform(0.2, 0.35))
    scene.gradient(hsv(0.6, 0.05, 0.45), hsv(0.6, 0.08, 0.28), kerb, scene.height)
    scene.texture(rng, 0.15, horizon, scene.height)
    for lane in (0.35, 0.75):
        y = int(kerb + (scene.height - kerb) * lane)
        for x in range(int(rng.integers(-60, 0)), scene.width, 70):
            scene.paint(scene.rectangle(x, y, x + 34, y + 3), (235, 230, 205), 0.8)
    level = horizon / scene.height
    zones = {"house": (level + 0.05, kerb / scene.height), "car": (kerb / scene.height + 0.05, 0.95),
             "tree": (level + 0.05, kerb / scene.height + 0.05), "balloon": (0.1, level)}  # fmt: skip
    fill(scene, rng, count, zones, level)
    paint_posts(scene, rng, int(rng.integers(0, 4)))


def coast(scene: Scene, rng: Generator, count: int) -> None:
    """Sky and sea, boats and balloons, sometimes a beach with trees and houses."""
    horizon = int(scene.height * rng.uniform(0.3, 0.5))
    paint_sky(scene, rng, horizon)
    if rng.random() < 0.6:
        paint_hills(scene, rng, horizon, rng.uniform(0.3, 0.6))
    hue = rng.uniform(0.48, 0.6)
    scene.gradient(hsv(hue, 0.4, 0.8), hsv(hue, 0.75, rng.uniform(0.35, 0.6)), horizon, scene.height)
    scene.texture(rng, 0.2, horizon, scene.height, 5)
    paint_strokes(scene, rng, 160, horizon, (235, 245, 250), 1.0, 22)
    level = horizon / scene.height
    zones = {"boat": (level + 0.04, 0.85), "balloon": (0.08, level)}
    if rng.random() < 0.5:
        shore = int(scene.height * rng.uniform(0.75, 0.85))
        scene.gradient(hsv(0.11, 0.3, 0.93), hsv(0.1, 0.4, 0.75), shore, scene.height)
        scene.texture(rng, 0.1, shore, scene.height)
        scene.image[shore - 2 : shore + 2] = (245, 248, 250)
        paint_rocks(scene, rng, int(rng.integers(0, 7)), shore)
        zones |= {"boat": (level + 0.04, shore / scene.height - 0.05), "tree": (shore / scene.height + 0.05, 0.98),
                  "house": (shore / scene.height + 0.05, 0.98), "car": (shore / scene.height + 0.07, 0.95)}  # fmt: skip
    fill(scene, rng, count, zones, level)


def seabed(scene: Scene, rng: Generator, count: int) -> None:
    """Under water: rays of light, weed, bubbles, fish; sometimes a sunken boat."""
    hue = rng.uniform(0.45, 0.62)
    scene.gradient(hsv(hue, 0.5, rng.uniform(0.6, 0.9)), hsv(hue + 0.04, 0.85, rng.uniform(0.2, 0.4)), 0, scene.height)
    for _ in range(int(rng.integers(1, 5))):
        x, lean, width = rng.uniform(0, scene.width), rng.uniform(-90, 90), rng.uniform(10, 45)
        corners = [(x, 0), (x + width, 0), (x + lean + 2 * width, scene.height), (x + lean, scene.height)]
        ray = np.array(corners).astype(np.int32)
        scene.paint(scene.polygon(ray), (220, 245, 250), 0.1)
    floor = int(scene.height * rng.uniform(0.78, 0.92))
    scene.gradient(hsv(0.12, 0.35, 0.6), hsv(0.1, 0.4, 0.45), floor, scene.height)
    scene.texture(rng, 0.14, 0, scene.height)
    paint_rocks(scene, rng, int(rng.integers(1, 8)), floor)
    for _ in range(int(rng.integers(2, 8))):
        x, tall = rng.uniform(0, scene.width), rng.uniform(0.1, 0.4) * scene.height
        ys = np.linspace(0, tall, 14)
        stem = np.stack([x + np.sin(ys / 12 + rng.uniform(0, 6)) * 4, scene.height - 4 - ys], 1).astype(np.int32)
        colour, thick = hsv(rng.uniform(0.28, 0.42), 0.7, rng.uniform(0.25, 0.5)), int(rng.integers(2, 6))
        scene.paint(scene.polyline(stem, thick), colour, 0.9)
    wreck = {"boat": (0.6, 0.85)} if rng.random() < 0.25 else {}
    fill(scene, rng, count, {"fish": (0.1, 0.85), **wreck}, 0)
    for _ in range(int(rng.integers(0, 12))):
        centre, radius = (int(rng.uniform(0, scene.width)), int(rng.uniform(0, scene.height))), int(rng.integers(2, 7))
        scene.paint(scene.circle(centre, radius, 1), (235, 250, 255), 0.7)


def poster(scene: Scene, rng: Generator, count: int) -> None:
    """Wallpaper with plain shapes and objects anywhere at larger rotations, so that context does not help."""
    hue, value = rng.random(), rng.uniform(0.45, 0.95)
    upper, lower = (hsv(hue + turn, rng.uniform(0.1, 0.4), value - turn) for turn in (0, 0.1))
    scene.gradient(upper, lower, 0, scene.height)
    scene.texture(rng, 0.2, 0, scene.height)
    step, colour = int(rng.integers(24, 60)), hsv(hue + 0.5, 0.3, value)
    style = int(rng.integers(3))
    for x in range(0, scene.width + scene.height, step):
        ends = np.array([(x, 0), (x - scene.height * (style == 1), scene.height)], np.int32)
        if style < 2:
            scene.paint(scene.polyline(ends, step // 4), colour, 0.25)
    for _ in range(int(rng.integers(2, 9))):
        centre = rng.uniform(0, scene.width), rng.uniform(0, scene.height)
        corners, radius = int(rng.integers(3, 9)), rng.uniform(8, 40)
        outline = around(centre, np.arange(corners) * 2 * math.pi / corners + rng.random(), radius, radius)
        paint = hsv(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.4, 0.95))
        scene.paint(scene.polygon(outline), paint, 0.75)
    fill(scene, rng, count, dict.fromkeys(SCENE_CLASSES, (0.1, 0.9)), 0, tilt=2.0)


SCENES: tuple[tuple[Callable[[Scene, Generator, int], None], float], ...] = (
    (meadow, 0.27),
    (street, 0.17),
    (coast, 0.2),
    (seabed, 0.18),
    (poster, 0.18),
)


def draw_scene(seed: int, number: int, sides: tuple[int, int] = SIDES) -> tuple[np.ndarray, list[SceneObject]]:
    """Image `number` of the set of `seed`: (H, W, 3) uint8 RGB, and its objects.

    Args:
        seed: random seed of the whole set.
        number: number of the image, which depends only on seed and number, so a larger set contains a smaller one.
        sides: shortest and longest side, pixels.
    """
    rng = np.random.default_rng([seed, number])
    shortest, longest = sides
    long_side = int(rng.integers((shortest + longest) // 2, longest + 1))
    short_side = min(int(rng.integers(shortest, longest + 1)), long_side)
    height, width = (short_side, long_side) if rng.random() < 0.7 else (long_side, short_side)
    scene = Scene(height, width)
    paint = SCENES[int(rng.choice(len(SCENES), p=[share for _, share in SCENES]))][0]
    count = 0 if rng.random() < EMPTY_SHARE else 1 + int(rng.poisson(3.2))
    paint(scene, rng, min(count, 12))
    image: np.ndarray = scene.image * rng.uniform(0.82, 1.12) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 6))
    return np.clip(np.round(image), 0, 255).astype(np.uint8), scene.objects()
