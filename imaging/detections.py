"""Detections of one image: boxes, scores and labels, as returned by detectors and used by metrics."""

from __future__ import annotations

import base64
import html
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import RunError, UserError, require_packages
from utils.files import StrPath

SHOWN_OBJECTS = 8  # in `repr`
SHOWN_ROWS = 50  # in a notebook
SHOWN_SIDE = 900  # longer side of a notebook's image, pixels

# Names in other libraries (Ultralytics, supervision, torchvision) and the names here.
OTHER_NAMES = {
    **dict.fromkeys(("xyxy", "xyxyn", "xywh", "bbox", "bboxes"), "boxes, (N, 4) xyxy pixels"),
    **dict.fromkeys(("conf", "confidence", "score", "probs"), "scores"),
    **dict.fromkeys(("cls", "class_id", "class_ids", "classes", "label"), "labels"),
    **dict.fromkeys(("id", "tracker_id"), "track_ids"),
    "class_names": "names",
    "numpy": "boxes, scores and labels, which are NumPy arrays",
    "box": "boxes, or a Detection of `for each in detections`",
    **dict.fromkeys(("plot", "render", "annotate"), "draw()"),
    **dict.fromkeys(("pandas", "to_df"), "to_dataframe()"),
    **dict.fromkeys(("to_json", "tojson", "summary"), "to_dicts()"),
    **dict.fromkeys(("save_crop", "crop"), "crops()"),
}


@dataclass(frozen=True)
class Detection:
    """One object.

    Args:
        box: (4,) float32, xyxy, image pixels.
        score: in [0, 1].
        label: index of the class.
        name: the class name; `class 7` if names are unknown.
        track_id: identity of the object over the frames of a video, or None.
    """

    box: np.ndarray
    score: float
    label: int
    name: str
    track_id: int | None = None

    def __repr__(self) -> str:
        track = "" if self.track_id is None else f", track_id={self.track_id}"
        return f"Detection({self.name} {self.score:.2f}, box={[round(float(v), 1) for v in self.box]}{track})"


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one image.

    Args:
        boxes: (N, 4) float32, xyxy, pixels of the image (0-based, continuous: x2 - x1 is the width).
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64, index into `names`.
        track_ids: (N,) int64 or None, the identity of each object over the frames of a video.
        names: the model's class names, or None if unknown.
        source: the image, (H, W, 3) uint8 RGB, or its path; None if it was not kept.

    Raises:
        ValueError: if the shapes do not match.

    `len(detections)` is N. `for each in detections` gives `Detection` objects. `detections[mask, index or slice]` is a
    subset, such as `detections[detections.scores > 0.5]`. `Detections.empty()` has no objects.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    track_ids: np.ndarray | None = None
    names: Sequence[str] | None = None
    source: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        scores = np.asarray(self.scores, dtype=np.float32).reshape(-1)
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError(f"detections: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels differ")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "labels", labels)
        if self.track_ids is not None:
            track_ids = np.asarray(self.track_ids, dtype=np.int64).reshape(-1)
            if len(track_ids) != len(boxes):
                raise ValueError(f"detections: {len(boxes)} boxes and {len(track_ids)} track ids differ")
            object.__setattr__(self, "track_ids", track_ids)

    @classmethod
    def empty(cls) -> Detections:
        """Detections of an image without objects."""
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros(0))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Detections:
        if not isinstance(index, slice):
            index = np.atleast_1d(np.asarray(index))
            index = index.astype(np.int64) if not index.size else index  # an empty list becomes a float array
        track_ids = None if self.track_ids is None else self.track_ids[index]
        return replace(
            self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], track_ids=track_ids
        )

    def __iter__(self) -> Iterator[Detection]:
        for number, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            track_id = None if self.track_ids is None else int(self.track_ids[number])
            yield Detection(box, float(score), int(label), self.name_of(label), track_id)

    def name_of(self, label: Any, names: Sequence[str] | None = None) -> str:
        """The name of class `label`; `class 7` if it is unknown."""
        names = self.names if names is None else names
        return names[int(label)] if names is not None and 0 <= int(label) < len(names) else f"class {int(label)}"

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name} {each.score:.2f}" for each in self[:SHOWN_OBJECTS])
        more = f", {len(self) - SHOWN_OBJECTS} more" if len(self) > SHOWN_OBJECTS else ""
        return f"Detections({len(self)}: {shown}{more})" if len(self) else "Detections(0)"

    def _repr_html_(self) -> str:
        """The image with its boxes and a table of the objects, for notebooks."""
        counts = Counter(self.name_of(label) for label in self.labels)
        title = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no objects"
        rows = "".join(
            f"<tr><td>{html.escape(each.name)}</td><td>{each.score:.2f}</td>"
            f"<td>{', '.join(f'{v:.0f}' for v in each.box)}</td></tr>"
            for each in self[:SHOWN_ROWS]
        )
        table = f"<table><tr><th>class</th><th>score</th><th>x1, y1, x2, y2</th></tr>{rows}</table>" if rows else ""
        picture = ""
        if self.source is not None:
            from PIL import Image  # imported here: only notebooks need it

            data = io.BytesIO()
            Image.fromarray(self.draw(max_side=SHOWN_SIDE)).save(data, "JPEG", quality=90)
            encoded = base64.b64encode(data.getvalue()).decode("ascii")
            picture = f'<img alt="{html.escape(title)}" src="data:image/jpeg;base64,{encoded}">'
        return f"<div><p>{html.escape(title)}</p>{picture}{table}</div>"

    # --- images ----------------------------------------------------------------------------------------------------

    @property
    def image(self) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB, read from its path if needed. Raises UserError if there is none."""
        return self._image(None)

    def draw(self, image: np.ndarray | None = None, max_side: int | None = None) -> np.ndarray:
        """Draw the boxes on a copy of the image.

        Args:
            image: (H, W, 3) uint8 RGB; None uses the source image.
            max_side: shrink the image before drawing, so that its longer side has at most this many pixels.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        from imaging.draw import draw_boxes, shrink  # OpenCV is slow to import, and detections without images need none

        picture = self._image(image)
        small, scale = shrink(picture, max_side)
        names = self.names if self.names is not None else ()
        return draw_boxes(small, self.boxes * scale, self.labels, names, self.scores, self.track_ids)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            hint = f"; did you mean {OTHER_NAMES[name]}?" if name in OTHER_NAMES else ""
            raise AttributeError(f"'Detections' object has no attribute {name!r}{hint}", name=name, obj=self)

    def save(self, path: StrPath, image: np.ndarray | None = None) -> Path:
        """Write the drawn image in the format of the path's suffix, and return the path.

        Raises:
            UserError: for an unsupported suffix, or if the path is that of the image itself.
        """
        from imaging.image_io import write_image

        path = Path(path)
        if isinstance(self.source, (str, os.PathLike)) and path.exists() and os.path.samefile(path, self.source):
            raise UserError("path", f"{path} is the image itself", "give another path; nothing was written")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, self.draw(image))
        return path

    def show(self, image: np.ndarray | None = None) -> None:
        """Show the drawn image: in the notebook, or in the system's image viewer."""
        from PIL import Image  # imported here: only this method needs it

        picture = Image.fromarray(self.draw(image))
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            get_ipython = None
        if get_ipython is not None and get_ipython() is not None:
            display(picture)
        elif not _open_viewer(picture):
            raise RunError("show", "no image viewer was found", "use detections.save('drawn.jpg')")

    def crops(self, image: np.ndarray | None = None) -> list[np.ndarray]:
        """The image in each box, rounded outwards: N arrays (h, w, 3) uint8 RGB; empty for a box off the image."""
        picture = self._image(image)
        height, width = picture.shape[:2]
        edges = np.concatenate([np.floor(self.boxes[:, :2]), np.ceil(self.boxes[:, 2:])], axis=1)
        corners = np.clip(np.nan_to_num(edges), 0, [width, height, width, height]).astype(int)
        return [np.ascontiguousarray(picture[y1 : max(y1, y2), x1 : max(x1, x2)]) for x1, y1, x2, y2 in corners]

    def _image(self, image: np.ndarray | None) -> np.ndarray:
        if image is not None:
            return image
        if self.source is None:
            raise UserError("image", "these detections have no image", "pass it: detections.draw(image)")
        if isinstance(self.source, np.ndarray):
            return self.source
        from imaging.image_io import read_image

        return read_image(self.source)

    # --- other forms -------------------------------------------------------------------------------------------------

    def to_dicts(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One plain dict per object: class_id, class_name, score, box_xyxy (image pixels), and track_id if known."""
        rows: list[dict[str, Any]] = []
        for number, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            row: dict[str, Any] = {
                "class_id": int(label),
                "class_name": self.name_of(label, names),
                "score": round(float(score), 6),
                "box_xyxy": [round(float(v), 3) for v in box],
            }
            if self.track_ids is not None:
                row["track_id"] = int(self.track_ids[number])
            rows.append(row)
        return rows

    def to_coco(self, image_id: int | str = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results: image_id, category_id, bbox xywh in image pixels, score.

        Args:
            image_id: id of the image in the annotation file.
            category_ids: the id of each class; None for label + 1.

        Source: https://cocodataset.org/#format-results
        """
        xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        return [
            {
                "image_id": image_id,
                "category_id": int(label) + 1 if category_ids is None else int(category_ids[int(label)]),
                "bbox": [round(float(v), 3) for v in box],
                "score": round(float(score), 6),
            }
            for box, score, label in zip(xywh, self.scores, self.labels, strict=True)
        ]

    def to_dataframe(self) -> Any:
        """A pandas table, one row per object: class_id, class_name, score, x1, y1, x2, y2 (image pixels), track_id.

        Raises:
            MissingExtra: if pandas is not installed.
        """
        require_packages("to_dataframe", ["pandas"])
        import pandas

        columns: dict[str, Any] = {
            "class_id": self.labels,
            "class_name": [self.name_of(label) for label in self.labels],
            "score": self.scores,
            **{name: self.boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))},
        }
        if self.track_ids is not None:
            columns["track_id"] = self.track_ids
        return pandas.DataFrame(columns)

    def to_supervision(self) -> Any:
        """The same objects as `supervision.Detections`, with the class names in `data["class_name"]`.

        Raises:
            MissingExtra: if supervision is not installed.
        """
        require_packages("to_supervision", ["supervision"])
        import supervision

        names = np.array([self.name_of(label) for label in self.labels], dtype=str)
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            tracker_id=None if self.track_ids is None else self.track_ids.astype(int),
            data={} if self.names is None else {"class_name": names},
        )


def _open_viewer(picture: Any) -> bool:
    """Whether an image viewer was found and started."""
    from PIL import ImageShow  # imported here: only this function needs it

    return bool(ImageShow.show(picture))
