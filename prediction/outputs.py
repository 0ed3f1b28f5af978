"""Write detections as JSON, JSON Lines, CSV, COCO results, VOC XML, YOLO txt, crops, counts and tables."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.formats.writers import voc_xml
from imaging.detections import Detections
from utils.errors import UserError
from utils.files import naming_errors, write_file
from utils.output_rules import check_output_folder, shortened_name


@dataclass(frozen=True)
class Result:
    """Detections of one image or one video frame.

    Args:
        name: the image or video as named by the user.
        key: base name of its output files, unique in the output folder.
        detections: in image pixels.
        size: (height, width) of the image, pixels.
        image: (H, W, 3) uint8 RGB, without drawing.
        frame: its index in the video, from 0; None for an image.
        time: seconds since the start of the video; None for an image.
    """

    name: str
    key: str
    detections: Detections
    size: tuple[int, int]
    image: np.ndarray = field(repr=False)
    frame: int | None = None
    time: float | None = None

    @property
    def file_key(self) -> str:
        """Base name of the output files of this frame."""
        return self.key if self.frame is None else f"{self.key}_{self.frame:06d}"

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Plain types: image, width, height, detections; and frame and time for a video."""
        row: dict[str, Any] = {"image": _text(self.name), "width": self.size[1], "height": self.size[0]}
        if self.frame is not None:
            row |= {"frame": self.frame, "time": round(self.time or 0.0, 3)}
        return row | {"detections": self.detections.to_dicts(class_names)}


class OutputFolder:
    """An output folder that protects existing files from being overwritten.

    Args:
        path: the folder, created if missing.
        overwrite: whether existing files may be replaced.
        sources: files that are never overwritten, regardless of `overwrite`.

    Raises:
        UserError: if `path` is not a folder.
    """

    def __init__(self, path: Path, overwrite: bool = False, sources: Sequence[Path] = ()) -> None:
        self.path, self.overwrite = path, overwrite
        self._sources = {source.resolve() for source in sources}
        self._claimed: set[Path] = set()
        if path.exists() and not path.is_dir():
            raise UserError(path, "is not a folder", "choose another --output")
        check_output_folder("--output", path)

    def check(self, name: str) -> None:
        """Raises UserError if a file of this name may not be written."""
        path = self.path / name
        if path.resolve() in self._sources:
            raise UserError(path, "is one of the input images", "choose another --output")
        if path not in self._claimed and not self.overwrite and (path.exists() or path.is_symlink()):
            raise UserError(path, "exists and would be overwritten", "add --overwrite, or choose another --output")

    def claim(self, name: str) -> Path:
        """The path of an output file; its folder is created."""
        self.check(name)
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()  # never write through a symbolic link
        self._claimed.add(path)
        return path


def new_output_folder(root: Path, stem: str = "predict") -> Path:
    """`root/stem-1`, or the first free number."""
    taken = [int(match[1]) for path in root.glob(f"{stem}-*") if (match := re.fullmatch(rf"{stem}-(\d+)", path.name))]
    return root / f"{stem}-{max(taken, default=0) + 1}"


class ResultWriter:
    """Writes results in order; the file on disk is valid after each of them.

    Args:
        folder: the output folder.
        class_names: of the model.
    """

    def __init__(self, folder: OutputFolder, class_names: Sequence[str]) -> None:
        self.folder, self.class_names = folder, class_names

    def add(self, result: Result) -> None:
        """Write the detections of one image."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; also called after an error or Ctrl-C."""


class _JsonList(ResultWriter):
    """A JSON list that is valid after every row: the next row overwrites the closing bracket."""

    file_name = "detections.json"

    def __init__(self, folder: OutputFolder, class_names: Sequence[str]) -> None:
        super().__init__(folder, class_names)
        self._path = folder.claim(self.file_name)
        self._end = 2  # position before the closing bracket
        write_file(self._path, b"[\n]\n")  # fails here if the disk is full
        self._file = open(self._path, "r+b", buffering=0)  # noqa: SIM115 -- closed in close()

    def add(self, result: Result) -> None:
        rows = self.rows(result)
        if rows:
            text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            data = (("" if self._end == 2 else ",\n") + text).encode("utf-8", "backslashreplace")
            with naming_errors(self._path):
                try:
                    self._put(data + b"\n]\n")
                except OSError:  # the disk is full: the earlier rows are still a valid list
                    self._file.truncate(self._end)
                    self._put(b"]\n" if self._end == 2 else b"\n]\n")
                    raise
            self._end += len(data)

    def _put(self, data: bytes) -> None:
        self._file.seek(self._end)
        while data:
            data = data[self._file.write(data) :]

    def rows(self, result: Result) -> list[dict[str, Any]]:
        return [result.to_dict(self.class_names)]

    def close(self) -> None:
        self._file.close()


class _CocoResults(_JsonList):
    """COCO results: a list of image_id, category_id, bbox xywh, score.

    image_id is the number in the file name, as in COCO (else the name); category_id is the
    class index + 1. Source: https://cocodataset.org/#format-results
    """

    file_name = "coco_results.json"

    def rows(self, result: Result) -> list[dict[str, Any]]:
        stem = result.file_key
        image_id: int | str = int(stem) if re.fullmatch(r"[0-9]{1,18}", stem) else _text(stem)
        return result.detections.to_coco(image_id)


class _Lines(ResultWriter):
    file_name: str

    def __init__(self, folder: OutputFolder, class_names: Sequence[str]) -> None:
        super().__init__(folder, class_names)
        self._path = folder.claim(self.file_name)
        self._file: IO[str] = open(  # noqa: SIM115 -- closed in close()
            self._path, "w", encoding="utf-8", errors="backslashreplace", newline=""
        )

    def add(self, result: Result) -> None:
        with naming_errors(self._path):
            self.write(result)
            self._file.flush()

    def write(self, result: Result) -> None:
        """Write the lines of one image."""
        raise NotImplementedError

    def close(self) -> None:
        with naming_errors(self._path):
            self._file.close()


class _JsonLines(_Lines):
    """JSON Lines: one JSON object per image."""

    file_name = "detections.jsonl"

    def write(self, result: Result) -> None:
        self._file.write(json.dumps(result.to_dict(self.class_names), ensure_ascii=False) + "\n")


CLASS_BYTES = 100  # maximum length of a class name as a folder name
CSV_COLUMNS = ("image", "frame", "time", "class_id", "class_name", "score", "x1", "y1", "x2", "y2", "track_id")


class _Csv(_Lines):
    """CSV with one line per object; x1, y1, x2, y2 in image pixels."""

    file_name = "detections.csv"

    def __init__(self, folder: OutputFolder, class_names: Sequence[str]) -> None:
        super().__init__(folder, class_names)
        self._table = csv.DictWriter(self._file, CSV_COLUMNS, restval="")
        self._table.writeheader()

    def write(self, result: Result) -> None:
        self._table.writerows(flat_rows(result, self.class_names))


class _Counts(_Lines):
    """Number of objects per class, for each image and in total."""

    file_name = "counts.csv"

    def __init__(self, folder: OutputFolder, class_names: Sequence[str]) -> None:
        super().__init__(folder, class_names)
        self._table = csv.writer(self._file)
        self._table.writerow(["image", "frame", *class_names])
        self._total = np.zeros(len(class_names), np.int64)

    def write(self, result: Result) -> None:
        counts = np.bincount(result.detections.labels, minlength=len(self.class_names))
        self._total += counts
        self._table.writerow([_text(result.name), "" if result.frame is None else result.frame, *counts.tolist()])

    def close(self) -> None:
        if not self._file.closed:
            self._table.writerow(["total", "", *self._total.tolist()])
        super().close()


class _VocXml(ResultWriter):
    """One VOC annotation per image, for correction in labelImg or CVAT.

    Coordinates are 1-based and inclusive, as in the VOC devkit.
    """

    def add(self, result: Result) -> None:
        path = self.folder.claim(f"voc/{result.file_key}.xml")
        write_file(path, annotation_xml(result, self.class_names).encode("utf-8", "backslashreplace"))


class _YoloTxt(ResultWriter):
    """One text file per image: class index, normalised centre x, y, width, height, and the score."""

    def __init__(self, folder: OutputFolder, class_names: Sequence[str]) -> None:
        super().__init__(folder, class_names)
        names = "".join(f"{' '.join(name.split())}\n" for name in class_names)
        write_file(folder.claim("yolo/classes.txt"), names.encode("utf-8", "backslashreplace"))

    def add(self, result: Result) -> None:
        height, width = result.size
        found = result.detections
        boxes = np.clip(found.boxes / [width, height, width, height], 0, 1)
        centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        lines = "".join(
            f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f} {score:.6f}\n"
            for label, (x, y), (w, h), score in zip(found.labels, centres, sizes, found.scores, strict=True)
        )
        write_file(self.folder.claim(f"yolo/{result.file_key}.txt"), lines.encode())


class _Crops(ResultWriter):
    """A crop of every object, in one folder per class."""

    def add(self, result: Result) -> None:
        from imaging.image_io import write_image  # imports OpenCV; the options need only the names in `WRITERS`

        found = result.detections
        for number, (crop, label) in enumerate(zip(found.crops(result.image), found.labels, strict=True)):
            if crop.size:
                folder = _folder_name(self.class_names[int(label)], int(label))
                path = self.folder.claim(f"crops/{folder}/{result.file_key}_{number:03d}.jpg")
                write_image(path, crop)


class _Frames(ResultWriter):
    """The original images and video frames, to accompany VOC or YOLO labels of a video."""

    def add(self, result: Result) -> None:
        from imaging.image_io import write_image

        write_image(self.folder.claim(f"frames/{result.file_key}.jpg"), result.image)


# --save NAME -> its writer
WRITERS: dict[str, Callable[[OutputFolder, Sequence[str]], ResultWriter]] = {
    "json": _JsonList,
    "jsonl": _JsonLines,
    "csv": _Csv,
    "coco": _CocoResults,
    "voc": _VocXml,
    "yolo": _YoloTxt,
    "crops": _Crops,
    "counts": _Counts,
    "frames": _Frames,
}


class DeferredWriter(ResultWriter):
    """Keeps results, without images, until they can be merged with those of other processes."""

    def __init__(self, folder: OutputFolder, class_names: Sequence[str]) -> None:
        super().__init__(folder, class_names)
        self.results: list[Result] = []

    def add(self, result: Result) -> None:
        self.results.append(replace(result, image=result.image[:0].copy()))  # a view would keep the whole image


# these need the image: each process writes its own
OF_PICTURES = ("crops", "frames")


def write_merged(
    folder: OutputFolder,
    class_names: Sequence[str],
    kinds: Sequence[str],
    results: Sequence[Result],
    keys: Sequence[str],
) -> None:
    """Write the merged results of several processes in the order of `keys`; the frames of a video stay together."""
    place = {key: i for i, key in enumerate(keys)}
    for kind in kinds:
        writer = WRITERS[kind](folder, class_names)
        try:
            for result in sorted(results, key=lambda result: place[result.key]):
                writer.add(result)
        finally:
            writer.close()


def planned_files(kind: str, keys: Sequence[str]) -> list[str]:
    """The files that an output format will write for images of these keys, as far as known in advance."""
    if kind == "voc":
        return [f"voc/{key}.xml" for key in keys]
    if kind == "yolo":
        return ["yolo/classes.txt", *(f"yolo/{key}.txt" for key in keys)]
    name = getattr(WRITERS[kind], "file_name", None)
    return [name] if name else []


def flat_rows(result: Result, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One flat dict per object, with the known keys of `CSV_COLUMNS`."""
    rows = []
    for found in result.detections.to_dicts(class_names):
        x1, y1, x2, y2 = found.pop("box_xyxy")
        row = {"image": _text(result.name), **found, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
        if result.frame is not None:
            row |= {"frame": result.frame, "time": round(result.time or 0.0, 3)}
        rows.append(row)
    return rows


def annotation_xml(result: Result, class_names: Sequence[str]) -> str:
    """Detections of an image as a VOC annotation; the score is in an element that VOC readers ignore."""
    height, width = result.size
    found = result.detections
    low = np.clip(np.rint(found.boxes[:, :2]), 0, [width - 1, height - 1])
    high = np.clip(np.rint(found.boxes[:, 2:]), low + 1, [width, height])  # at least one pixel, as in VOC
    cut = (low <= 0).any(axis=1) | (high >= [width, height]).any(axis=1)
    fields = [{"truncated": str(int(c)), "score": f"{s:.6f}"} for c, s in zip(cut, found.scores, strict=True)]
    file_name = _text(Path(result.name).name if result.frame is None else f"{result.file_key}.jpg")
    names = [_text(class_names[int(label)]) for label in found.labels]
    return voc_xml(file_name, result.size, np.concatenate([low, high], axis=1), names, fields=fields)


def count_text(labels: np.ndarray | Counter[int], class_names: Sequence[str]) -> str:
    """`2 person, 1 dog`, the most frequent first; `nothing` if empty."""
    counts = Counter(labels.tolist()) if isinstance(labels, np.ndarray) else labels
    return (
        ", ".join(f"{n} {class_names[c]}" for c, n in sorted(counts.items(), key=lambda i: (-i[1], i[0]))) or "nothing"
    )


def _text(name: str) -> str:
    """A name as valid UTF-8 text: other bytes are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _folder_name(class_name: str, label: int) -> str:
    """A class name as a folder name that is valid on any system."""
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", _text(class_name)).strip(" .")
    return shortened_name(name, CLASS_BYTES) or f"class_{label}"
