"""Draw boxes, labels, trails and heat maps on copies of RGB images of 200 to 8000 pixels."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from imaging.letterbox import PAD_VALUE, Letterbox
from utils.errors import printable, warn

Colour = tuple[int, int, int]
Place = tuple[int, int, int, int]  # xyxy, integer pixels
GOLDEN_RATIO = 0.618033988749895  # its multiples spread hues evenly for any number of classes
HERSHEY = cv2.FONT_HERSHEY_SIMPLEX

# Paths of system fonts with Chinese, Japanese and Korean glyphs; used only if OpenCV has no such font.
CJK_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/System/Library/Fonts/STHeiti Light.ttc",
    "C:/Windows/Fonts/msyh.ttc",
    "C:/Windows/Fonts/simhei.ttf",
    "C:/Windows/Fonts/simsun.ttc",
)


@functools.cache
def class_colour(label: int) -> Colour:
    """RGB colour of class index `label`: the same in every image, run and program version."""
    hue = (label * GOLDEN_RATIO + 0.33) % 1.0
    lightness = (0.5, 0.66, 0.36)[label % 3]  # hues are similar after 5, 8, 13 classes; lightness distinguishes them
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def contrast_colour(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on `colour` (ITU-R BT.601 luma)."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def line_width(image: np.ndarray) -> int:
    """Width of box lines in pixels: 1 at 200, 2 at 640, 28 at 8000 pixels."""
    return max(1, round((image.shape[0] + image.shape[1]) / 2 * 0.0035))


def text_height(image: np.ndarray) -> int:
    """Height of capital letters in pixels: at least 8, the minimum for readable text."""
    return max(8, round((image.shape[0] + image.shape[1]) / 2 * 0.02))


def shrink(image: np.ndarray, max_side: int | None) -> tuple[np.ndarray, float]:
    """The image with its longer side at most `max_side` pixels (None: any), and the scale, at most 1."""
    scale = 1.0 if max_side is None else min(1.0, max_side / max(image.shape[:2]))
    if scale == 1.0:
        return image, scale
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
    track_ids: np.ndarray | None = None,
    notes: Sequence[str] | None = None,
    copy: bool = True,
) -> np.ndarray:
    """Draw boxes with their class names. Lines have a dark or bright outline, so that they are visible on any image.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy, image pixels, of classes `labels` (N,).
        scores: (N,) in [0, 1], or None for ground truth; the best is drawn last, on top.
        track_ids: (N,) identities, or None.
        notes: (N,) text after each label, e.g. `difficult`.
        copy: draw on a copy; if False, on `image` itself.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    canvas = np.array(image, order="C") if copy else image
    height, width = canvas.shape[:2]
    boxes = np.nan_to_num(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), posinf=1e6, neginf=-1e6)
    corners = np.rint(np.clip(boxes, 0, [width - 1, height - 1] * 2)).astype(int)
    order = np.arange(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable")
    thickness = line_width(canvas)
    outline = thickness + 2 * max(1, thickness // 3)
    for i in order:
        colour, x1y1, x2y2 = class_colour(int(labels[i])), corners[i, :2].tolist(), corners[i, 2:].tolist()
        cv2.rectangle(canvas, x1y1, x2y2, contrast_colour(colour), outline)
        cv2.rectangle(canvas, x1y1, x2y2, colour, thickness)
    places: list[Place] = []
    marks: list[Label] = []
    for i in order[::-1]:  # the label of the best score is placed first and drawn last
        label = int(labels[i])
        text = class_names[label] if 0 <= label < len(class_names) else f"class {label}"
        if track_ids is not None:
            text = f"#{int(track_ids[i])} {text}"
        if scores is not None:
            text = f"{text} {float(scores[i]):.2f}"
        if notes is not None and notes[i]:
            text = f"{text} {notes[i]}"
        x1, y1, x2, y2 = map(int, corners[i])
        marks.append(_place_label(canvas, text, (x1, y1, x2, y2), class_colour(label), places))
        places.append(marks[-1].place)
    for mark in reversed(marks):
        mark.paint(canvas)
    return canvas


def draw_detections(image: np.ndarray, detections: Any, class_names: Sequence[str]) -> np.ndarray:
    """Draw `imaging.detections.Detections` on a copy of the (H, W, 3) uint8 RGB image."""
    return draw_boxes(image, detections.boxes, detections.labels, class_names, detections.scores, detections.track_ids)


def draw_targets(image: np.ndarray, target: Mapping[str, Any], class_names: Sequence[str]) -> np.ndarray:
    """Draw ground truth (a `Target`) on a copy of an (H, W, 3) uint8 RGB image; marks difficult and crowd boxes."""
    count = len(target["labels"])
    difficult, crowd = (target.get(key, np.zeros(count, bool)) for key in ("difficult", "crowd"))
    notes = ["crowd" if c else "difficult" if d else "" for d, c in zip(difficult, crowd, strict=True)]
    return draw_boxes(image, target["boxes"], target["labels"], class_names, notes=notes)


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int = 4,
    tile_size: tuple[int, int] | None = None,
    captions: Sequence[str] | None = None,
    gap: int = 4,
) -> np.ndarray:
    """Arrange images, (H, W, 3) uint8 RGB of any sizes, in rows of `columns` tiles; aspect ratios are kept.

    Args:
        tile_size: (height, width) of a tile, pixels; None for the size of the largest image, at most 640.
        captions: text at the bottom of each tile.
        gap: width of the white space between tiles, pixels.
    """
    if not images:
        return np.full((32, 32, 3), 255, np.uint8)
    if tile_size is None:
        largest = np.array([image.shape[:2] for image in images]).max(axis=0)
        scale = min(1.0, 640 / largest.max())
        tile_size = max(1, round(largest[0] * scale)), max(1, round(largest[1] * scale))
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    tile_height, tile_width = tile_size[0] + gap, tile_size[1] + gap
    sheet = np.full((rows * tile_height + gap, columns * tile_width + gap, 3), 255, np.uint8)
    letterbox = Letterbox(tile_size, pad_value=PAD_VALUE)
    for number, image in enumerate(images):
        tile = letterbox.apply(np.ascontiguousarray(image)).copy()
        if captions is not None and captions[number]:
            draw_caption(tile, captions[number])
        top, left = gap + number // columns * tile_height, gap + number % columns * tile_width
        sheet[top : top + tile_size[0], left : left + tile_size[1]] = tile
    return sheet


def draw_caption(canvas: np.ndarray, text: str, row: int = 0) -> None:
    """Draw one line of text at the lower left of `canvas`, in place; `row` counts lines upwards."""
    size = text_height(canvas)
    height = text_size(text, size)[1] + _padding(size) * 2
    bottom = canvas.shape[0] - 1 - row * height
    _place_label(canvas, text, (0, bottom, 0, bottom), (40, 40, 40), []).paint(canvas)


def draw_heatmap(image: np.ndarray, heat: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Draw a heat map over a copy of the image; regions with low values stay unchanged.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (h, w) in [0, 1], resized to the image.
        opacity: opacity of the colour where heat is 1, 0 to 1.
    """
    height, width = image.shape[:2]
    heat = np.nan_to_num(np.asarray(heat, np.float32))
    heat = np.clip(cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    coloured = cv2.applyColorMap(np.rint(heat * 235).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    share = (opacity * np.sqrt(heat))[..., None]  # the square root makes low values visible
    return np.rint(image * (1 - share) + coloured * share).astype(np.uint8)


def draw_trail(canvas: np.ndarray, points: Sequence[tuple[float, float]], colour: Colour) -> None:
    """Draw an object's trail as a line through `points` (x, y pixels, oldest first), in place."""
    if len(points) > 1:
        vertices = np.rint(np.asarray(points)).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(canvas, [vertices], False, colour, line_width(canvas), cv2.LINE_AA)


def draw_polygon(canvas: np.ndarray, points: np.ndarray, colour: Colour, closed: bool = True) -> None:
    """Draw a zone (closed) or a counting line, (N, 2) x, y pixels, in place."""
    vertices = np.rint(np.asarray(points)).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [vertices], closed, colour, line_width(canvas) + 1, cv2.LINE_AA)


def text_size(text: str, cap_height: int) -> tuple[int, int, int]:
    """(width, height above the baseline, depth below it) in pixels of one line of text."""
    kind, font = _font_for(text)
    if kind == "opencv":
        x, y, width, height = cv2.getTextSize((0, 0), text, (0, 0), font, _em(cap_height), 400)
        return x + width, max(-y, cap_height), max(y + height, 0)
    if kind == "pillow":
        left, top, right, bottom = _pillow_font(font, _em(cap_height)).getbbox(text, anchor="ls")
        return right - min(left, 0), max(-top, cap_height), max(bottom, 0)
    scale, thickness = _hershey(cap_height)
    (width, height), baseline = cv2.getTextSize(_ascii(text), HERSHEY, scale, thickness)
    return width, height, baseline // 2


def put_text(canvas: np.ndarray, text: str, left: int, baseline: int, cap_height: int, colour: Colour) -> None:
    """Draw one line of text on `canvas`, in place, from (left, baseline), with capitals `cap_height` pixels high."""
    kind, font = _font_for(text)
    if kind == "opencv":
        cv2.putText(canvas, text, (left, baseline), colour, font, _em(cap_height), 400)
    elif kind == "pillow":
        _put_pillow(canvas, text, left, baseline, _pillow_font(font, _em(cap_height)), colour)
    else:
        scale, thickness = _hershey(cap_height)
        cv2.putText(canvas, _ascii(text), (left, baseline), HERSHEY, scale, colour, thickness, cv2.LINE_AA)


@dataclass(frozen=True)
class Label:
    """Text on a coloured background, with its position in the image."""

    text: str
    place: Place
    cap_height: int
    descent: int
    colour: Colour

    def paint(self, canvas: np.ndarray) -> None:
        left, top, right, bottom = self.place
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), self.colour, cv2.FILLED)
        pad = _padding(self.cap_height)
        baseline = bottom - pad - self.descent
        put_text(canvas, self.text, left + pad, baseline, self.cap_height, contrast_colour(self.colour))


def _place_label(canvas: np.ndarray, text: str, box: Place, colour: Colour, taken: Sequence[Place]) -> Label:
    """Place the label of `box` inside the image, with minimum overlap with the labels placed before."""
    height, width = canvas.shape[:2]
    text = printable(text)
    cap_height = text_height(canvas)
    text_width, ascent, descent = text_size(text, cap_height)
    pad = _padding(cap_height)
    while text_width + 2 * pad > width and cap_height > 5:  # a long name in a narrow image
        cap_height = max(5, int(cap_height * min(0.95, (width - 2 * pad) / text_width)))
        text_width, ascent, descent = text_size(text, cap_height)
        pad = _padding(cap_height)
    label_width, label_height = min(text_width + 2 * pad, width), min(ascent + descent + 2 * pad, height)
    left = int(np.clip(box[0] - line_width(canvas) // 2, 0, max(width - label_width, 0)))
    tops = (box[1] - label_height, box[1], box[3] + 1, box[3] - label_height)
    inside = [top for top in tops if 0 <= top <= height - label_height]
    if not inside:
        inside = [int(np.clip(tops[0], 0, max(height - label_height, 0)))]
    places = [(left, top, left + label_width, top + label_height) for top in inside]
    place = min(places, key=lambda p: sum(_overlap(p, other) for other in taken))
    return Label(text, place, cap_height, descent, colour)


def _overlap(a: Place, b: Place) -> int:
    """Area of the intersection of two rectangles, pixels."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _padding(cap_height: int) -> int:
    return max(2, cap_height // 4)


def _em(cap_height: int) -> int:
    """Font size whose capitals are `cap_height` high (sans-serif fonts: about 0.72 of the size)."""
    return max(6, round(cap_height / 0.72))


@functools.cache
def _hershey(cap_height: int) -> tuple[float, int]:
    thickness = max(1, round(cap_height / 9))
    return cv2.getFontScaleFromHeight(HERSHEY, cap_height, thickness), thickness


def _font_for(text: str) -> tuple[str, Any]:
    return _ascii_font() if text.isascii() else _unicode_font()


@functools.cache
def _ascii_font() -> tuple[str, Any]:
    return ("opencv", cv2.FontFace("sans")) if hasattr(cv2, "FontFace") else ("hershey", None)


@functools.cache
def _unicode_font() -> tuple[str, Any]:
    """The way to draw non-ASCII text: OpenCV 5's font, a system font through Pillow, or ASCII escapes."""
    if hasattr(cv2, "FontFace"):
        face = cv2.FontFace()
        if face.set("uni"):
            return "opencv", face
    path = next((path for path in CJK_FONTS if Path(path).is_file()), None)
    if path is not None:
        return "pillow", path
    todo = "install fonts-noto-cjk; they are drawn as escapes"
    warn("class names", "no font for non-ASCII characters was found", todo)
    return "hershey", None


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")


@functools.lru_cache(maxsize=32)
def _pillow_font(path: str, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(path, size)


def _put_pillow(canvas: np.ndarray, text: str, left: int, baseline: int, font: Any, colour: Colour) -> None:
    """Draw text with Pillow, only in the region of the text, because converting the whole image takes longer."""
    from PIL import Image, ImageDraw

    x0, y0, x1, y1 = font.getbbox(text, anchor="ls")
    top, bottom = max(baseline + y0, 0), min(baseline + y1 + 1, canvas.shape[0])
    first, last = max(left + x0, 0), min(left + x1 + 1, canvas.shape[1])
    if top >= bottom or first >= last:
        return
    window = Image.fromarray(np.ascontiguousarray(canvas[top:bottom, first:last]))
    ImageDraw.Draw(window).text((left - first, baseline - top), text, fill=colour, font=font, anchor="ls")
    canvas[top:bottom, first:last] = np.asarray(window)
