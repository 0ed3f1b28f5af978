"""List labels that are probably wrong, as JSON, CSV, a page of crops and a labelling queue."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.data_options import DataOptions
from data.index import DatasetIndex
from evaluation.audit import KINDS, Finding, counts_by_kind, find_label_errors, finding_row
from evaluation.detections_file import label_lookup, read_detections
from evaluation.evaluator import EVAL_THRESHOLDS, FoundDetections, run_detector
from evaluation.report.pictures import MISSED, WRONG
from imaging.image_io import read_image
from imaging.web_page import Mark, crop, page_html
from nets.nms import weighted_box_fusion
from prediction.detector import load_detector
from prediction.tta import AugmentedDetector
from utils.config import option, parse_options
from utils.errors import UserError, printable, warn
from utils.files import write_file
from utils.output_rules import check_output_file, check_output_folder
from utils.text import counted, quoted

ALL = "all"  # every split of a data set
SCALES = (1.0, 0.8)  # input sizes of the views, relative to the detector's; each also mirrored
THRESHOLDS = replace(EVAL_THRESHOLDS, score_threshold=0.005, suppress=weighted_box_fusion)
HEADINGS = {
    "missing": "Objects without a label",
    "phantom": "Labels without an object",
    "class": "Labels with a wrong class",
    "sloppy": "Inaccurate boxes",
    "duplicate": "Objects labelled twice",
}


@dataclass(frozen=True)
class AuditOptions(DataOptions):
    """The options of `dataset.py audit`."""

    output: str = option("audit", "folder for audit.json, audit.csv and audit.html", metavar="DIR")
    split: str | None = option(None, "split to check (default: all with --detections, else the training split)")
    detections: str | None = option(
        None, "out-of-fold detections: detections.json of train.py --folds, or a file for eval.py --detections"
    )
    checkpoint: str | None = option(None, "a detector that was not trained on these labels (default: the bundled one)")
    limit: int = option(1000, "maximum number of findings to write", low=1, high=1_000_000)
    pictures: int = option(200, "maximum number of findings on the page", low=0, high=10_000)
    device: str = option("auto", "auto, cpu, cuda, cuda:N")
    overwrite: bool = option(False, "replace existing output files")
    progress: bool = option(True, "show a progress bar")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`."""
    options = parse_options(AuditOptions, argv, prog="dataset.py audit", description=(__doc__ or "").splitlines()[0])
    if options.detections and options.checkpoint:
        raise UserError("--checkpoint", "cannot be combined with --detections", "give one of them")
    folder = check_output_folder("--output", options.output, [options.data])
    files = {suffix: folder / f"audit.{suffix}" for suffix in ("json", "csv", "html")}
    for path in files.values():
        check_output_file("--output", path, options.overwrite, [options.data])
    index = options.open(options.split or (ALL if options.detections else None))
    if options.detections:
        index, found = _read(Path(options.detections), index)
    else:
        what = "a detector that was trained on these labels finds few of their errors"
        warn("audit", what, "use: python train.py --folds 5 ..., then --detections RUN/detections.json")
        found = detect_in_views(options.checkpoint, index, options.device, options.progress)
    findings = find_label_errors(index, found)[: options.limit]
    rows = [finding_row(each, index, found, rank) for rank, each in enumerate(findings, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    origin = options.detections or options.checkpoint or "the bundled detector"
    head = {"data": str(options.data), "split": index.name, "detections": str(origin), "images": len(index)}
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    text = json.dumps(head, indent=1)[:-2] + f',\n "findings": [\n{lines}\n ]\n}}\n'
    write_file(files["json"], text.encode("utf-8", "backslashreplace"))
    write_file(files["csv"], findings_csv(rows).encode("utf-8", "backslashreplace"))
    page = audit_page(index, found, findings[: options.pictures], rows, f"{index.name}, by {origin}")
    write_file(files["html"], page.encode("utf-8", "backslashreplace"))
    counts = counts_by_kind(findings)
    sure = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "none"
    print(f"{counted(len(rows), 'finding')} in {counted(len(index), 'image')}; with a score of 0.5 or more: {sure}")
    print(f"open {files['html']}, or correct them in the labelling page:")
    print(f"  python serve.py --label {quoted(options.data)} --queue {quoted(files['json'])}")
    return 0


def _read(path: Path, index: DatasetIndex) -> tuple[DatasetIndex, FoundDetections]:
    """The images that a file of detections lists, and its detections."""
    found = read_detections(path, index, missing="skip", unknown="keep").found
    place = np.full(len(index), -1, np.int64)
    place[found.images] = np.arange(len(found.images))
    kept = index.subset(found.images)
    return kept, replace(found, image=place[found.image], images=np.arange(len(kept)))


def detect_in_views(
    checkpoint: str | None, index: DatasetIndex, device: str = "auto", progress: bool = True
) -> FoundDetections:
    """Detections of a checkpoint in several views of each image, with the class indices of the data set."""
    detector = load_detector(checkpoint, device)
    find_label = label_lookup(index)
    labels = np.array([find_label(name) for name in detector.config.class_names])
    if (labels < 0).all():
        what = f"has none of the classes of {index.name} ({', '.join(map(printable, index.class_names[:8]))}, ...)"
        raise UserError(checkpoint or "the bundled detector", what, "name another --checkpoint or --detections")
    views = AugmentedDetector(detector, scales=(1.0,) if detector.runtime.fixed_size else SCALES)
    found = run_detector(views, index, np.arange(len(index)), thresholds=THRESHOLDS, progress=progress)
    return replace(found, labels=labels[found.labels])


def findings_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The findings as CSV, one per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    boxes = [name for each in ("label", "seen") for name in (each, *(f"{each}_{e}" for e in ("x1", "y1", "x2", "y2")))]
    writer.writerow(["rank", "kind", "score", "image", *boxes])
    for row in rows:
        cells = [row["rank"], row["kind"], row["score"], row["image"]]
        for each in (row["label"], row["suggestion"]):
            cells += ["", *[""] * 4] if each is None else [each["class_name"], *each["box"]]
        writer.writerow(cells)
    return text.getvalue()


def audit_page(
    index: DatasetIndex,
    found: FoundDetections,
    findings: Sequence[Finding],
    rows: Sequence[dict[str, Any]],
    origin: str,
) -> str:
    """One HTML file: the findings of each kind as crops, with the label and the detection."""
    title = "Labels that are probably wrong"
    key = (
        '<span class="key" style="background:#f59e0b"></span>label'
        '<span class="key" style="background:#dc2626"></span>detection'
    )
    counts = {kind: sum(1 for row in rows if row["kind"] == kind) for kind in KINDS}
    sections = [
        f"<h1>{title}</h1><p class=note>{html.escape(origin)}: {counted(len(rows), 'finding')}, best first. {key}</p>"
    ]
    for kind in KINDS:
        figures = [_figure(index, found, each, rows[place]) for place, each in enumerate(findings) if each.kind == kind]
        if not counts[kind]:
            continue
        more = f", {len(figures)} shown" if len(figures) < counts[kind] else ""
        sheet = f'<div class="sheet">{"".join(figures)}</div>'
        sections.append(f"<section><h2>{HEADINGS[kind]} ({counts[kind]}{more})</h2>{sheet}</section>")
    return page_html(title, sections)


def _figure(index: DatasetIndex, found: FoundDetections, finding: Finding, row: dict[str, Any]) -> str:
    marks: list[Mark] = []
    if finding.other >= 0:
        marks.append((index.boxes[finding.other], MISSED, ""))
    if finding.label >= 0:
        marks.append((index.boxes[finding.label], MISSED, row["label"]["class_name"]))
    if finding.detection >= 0:
        text = f"{row['suggestion']['class_name']} {row['suggestion']['score']:.2f}"
        marks.append((found.boxes[finding.detection], WRONG, text))
    around = np.stack([box for box, _, _ in marks])
    around = np.concatenate([around[:, :2].min(axis=0), around[:, 2:].max(axis=0)])
    path = index.path(finding.image)
    source = crop(path, marks, around, read_image)
    image = f'<img alt="" loading="lazy" src="{source}">' if source else '<div class="absent">not readable</div>'
    caption = f"{row['rank']}. {row['score']:.2f} {row['text']} ({printable(path.name)})"
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
