"""Images of a report: the worst images and the most confident errors, with detections and ground truth."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from evaluation.evaluator import EvaluationResult
from evaluation.metrics.errors import BACKGROUND, BOTH, CLASSIFICATION, DUPLICATE, LOCALISATION, ErrorAnalysis
from evaluation.worst import find_mistakes
from imaging.draw import contrast_colour, line_width, put_text, text_height, text_size
from utils.errors import UserError, printable

WORST_IMAGES, WORST_MISTAKES = 12, 16
TILE = 640  # longest side of an image in the page, pixels
CROP_TEXT = 1.5  # height of text in a crop, which has few boxes, for its small size in the page
JPEG_QUALITY = 80
RIGHT, WRONG, MISSED = (22, 163, 74), (220, 38, 38), (245, 158, 11)  # RGB

Mark = tuple[np.ndarray, tuple[int, int, int], str]  # box (4,) image pixels, colour, text


@dataclass(frozen=True)
class Picture:
    """One image of the page: a `data:` URL (empty if the file is missing) and its caption."""

    source: str
    caption: str


def worst_images(
    result: EvaluationResult, threshold: float, read: Callable[[Path], np.ndarray], limit: int = WORST_IMAGES
) -> list[Picture]:
    """The images with the most wrong detections and missed objects at a score threshold, with boxes drawn."""
    record = result.record
    mistakes = find_mistakes(result, threshold)
    pictures = []
    for i in mistakes.worst_first[:limit]:
        path = result.index.path(i)
        marks: list[Mark] = []
        for mask, colour in ((mistakes.right, RIGHT), (mistakes.wrong, WRONG)):
            for d in np.flatnonzero(mask & (record.det_image == i)):
                # correct boxes get no text, which would cover the wrong ones
                text = (
                    f"{record.class_names[record.det_labels[d]]} {record.det_scores[d]:.2f}"
                    if mask is mistakes.wrong
                    else ""
                )
                marks.append((record.det_boxes[d], colour, text))
        for m in np.flatnonzero(mistakes.missed & (record.gt_image == i)):
            marks.append((record.gt_boxes[m], MISSED, record.class_names[record.gt_labels[m]]))
        right, wrong, missed = mistakes.counts[:, i]
        caption = f"{path.name}: {right} correct, {wrong} wrong, {missed} missed"
        pictures.append(Picture(crop(path, marks, None, read), printable(caption)))
    return pictures


def confident_mistakes(
    result: EvaluationResult,
    errors: ErrorAnalysis,
    read: Callable[[Path], np.ndarray],
    limit: int = WORST_MISTAKES,
) -> list[Picture]:
    """Crops of the wrong detections with the highest scores, with some context."""
    record = result.record
    wrong = np.flatnonzero(errors.det_type >= 0)
    pictures = []
    for d in wrong[np.argsort(-record.det_scores[wrong], kind="stable")][:limit]:
        path = result.index.path(record.det_image[d])
        name = record.class_names[record.det_labels[d]]
        marks: list[Mark] = []
        if errors.det_gt[d] >= 0:
            gt = errors.det_gt[d]
            marks.append((record.gt_boxes[gt], MISSED, record.class_names[record.gt_labels[gt]]))
        marks.append((record.det_boxes[d], WRONG, f"{name} {record.det_scores[d]:.2f}"))
        caption = f"{name} {record.det_scores[d]:.2f}: {_reason(result, errors, d)} ({path.name})"
        pictures.append(Picture(crop(path, marks, record.det_boxes[d], read), printable(caption)))
    return pictures


def _reason(result: EvaluationResult, errors: ErrorAnalysis, detection: int) -> str:
    gt = errors.det_gt[detection]
    label = result.record.class_names[result.record.gt_labels[gt]] if gt >= 0 else ""
    return {
        CLASSIFICATION: f"is labelled {label}",
        LOCALISATION: "does not fit the labelled box",
        BOTH: f"has a low overlap with a {label}",
        DUPLICATE: "is a duplicate",
        BACKGROUND: "has no label at this location",
    }[int(errors.det_type[detection])]


def crop(
    path: Path,
    marks: list[Mark],
    around: np.ndarray | None,
    read: Callable[[Path], np.ndarray],
) -> str:
    """An image, or a crop around a box, with marked boxes, as a JPEG in a `data:` URL."""
    try:
        image = read(path)
    except (UserError, OSError, ValueError):
        return ""
    height, width = image.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    if around is not None:
        margin = 0.5 * max(around[2] - around[0], around[3] - around[1], 0.2 * max(height, width))
        low, high = np.floor(around[:2] - margin).astype(int), np.ceil(around[2:] + margin).astype(int)
        left, top = np.clip(low, 0, [width - 1, height - 1]).tolist()
        right, bottom = np.clip(high, [left + 1, top + 1], [width, height]).tolist()
    part = image[top:bottom, left:right]
    scale = min(TILE / max(part.shape[:2]), 4.0)
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    canvas = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for box, colour, text in marks:
        _mark(canvas, (box - [left, top, left, top]) * scale, colour, text, 1.0 if around is None else CROP_TEXT)
    _, data = cv2.imencode(".jpg", canvas[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _mark(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], text: str, enlarged: float) -> None:
    """Draw one box, with its text inside the top edge so that it stays in the image."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.clip(np.rint(box), -1, [width, height, width, height]).astype(int).tolist()
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, max(2, line_width(canvas)))
    if not text:
        return
    cap = round(enlarged * text_height(canvas))
    text_width, ascent, descent = text_size(text, cap)
    left = max(0, min(x1, width - text_width - 4))
    top = max(0, min(y1, height - ascent - descent - 4))
    cv2.rectangle(canvas, (left, top), (left + text_width + 4, top + ascent + descent + 3), colour, cv2.FILLED)
    put_text(canvas, text, left + 2, top + ascent + 2, cap, contrast_colour(colour))
