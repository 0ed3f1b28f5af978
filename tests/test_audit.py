"""The label audit: each kind of error on simple boxes, planted errors, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_makers import make_voc

from benchmarks.label_audit import measure, plant
from data.index import DatasetIndex
from evaluation.audit import CLASS, DUPLICATE, MISSING, PHANTOM, SLOPPY, Finding, find_label_errors
from evaluation.evaluator import FoundDetections
from imaging.detections import Detections
from nets.model_config import ModelConfig
from prediction import audit
from utils.errors import UserError
from utils.thresholds import Thresholds

Rows = Sequence[tuple[int, str, tuple[float, float, float, float]]]
NAMES = ("dog", "cat", "cow")
GRID = [(40 * x + 2, 40 * y + 2, 40 * x + 34, 40 * y + 34) for y in range(4) for x in range(4)]


def truth(images: int = 40) -> list[tuple[int, str, tuple[float, float, float, float]]]:
    """Sixteen objects per image, with alternating classes."""
    return [(i, NAMES[(i + k) % 3], box) for i in range(images) for k, box in enumerate(GRID[: 4 + i % 8])]


def index_of(labels: Rows, images: int = 40) -> DatasetIndex:
    mine = [[row for row in labels if row[0] == i] for i in range(images)]
    return DatasetIndex.build(
        "set",
        NAMES,
        [f"/x/{i}.jpg" for i in range(images)],
        [f"{i}" for i in range(images)],
        [(160, 160)] * images,
        [np.array([box for _, _, box in rows], float).reshape(-1, 4) for rows in mine],
        [[NAMES.index(name) for _, name, _ in rows] for rows in mine],
    )


def found_of(rows: Rows, images: int = 40, score: float = 0.9) -> FoundDetections:
    rows = sorted(rows, key=lambda row: row[0])
    return FoundDetections(
        np.array([i for i, _, _ in rows], np.int64),
        np.array([box for _, _, box in rows], float).reshape(-1, 4),
        np.full(len(rows), score),
        np.array([NAMES.index(name) for _, name, _ in rows], np.int64),
        np.arange(images),
    )


def first(labels: Rows, seen: Rows) -> tuple[Finding, DatasetIndex]:
    index = index_of(labels)
    findings = find_label_errors(index, found_of(seen))
    assert findings and all(each.score < findings[0].score for each in findings[1:3])
    return findings[0], index


def test_right_labels_give_no_finding() -> None:
    findings = find_label_errors(index_of(truth()), found_of(truth()))
    assert [each for each in findings if each.score > 0.1] == []


def test_a_dropped_label_is_missing() -> None:
    labels = truth()
    gone = labels.pop(17)
    finding, _ = first(labels, truth())
    assert (finding.kind, finding.image) == (MISSING, gone[0])


def test_a_label_without_object_is_a_phantom() -> None:
    labels = sorted([*truth(), (0, "dog", GRID[15])])
    finding, index = first(labels, truth())
    assert (finding.kind, index.boxes[finding.label].tolist()) == (PHANTOM, list(GRID[15]))


@pytest.mark.parametrize(("label", "score"), [(-1, 0.9), (0, 0.03)])
def test_a_detection_of_a_foreign_class_or_of_a_low_score_supports_a_label(label: int, score: float) -> None:
    labels = sorted([*truth(), (0, "dog", GRID[15]), (1, "dog", GRID[15])])
    index, found = index_of(labels), found_of(truth())
    found = FoundDetections(
        np.append(found.image, 1),
        np.concatenate([found.boxes, [GRID[15]]]),
        np.append(found.scores, score),
        np.append(found.labels, label),
        found.images,
    )
    phantoms = [each for each in find_label_errors(index, found) if each.kind == PHANTOM]
    assert phantoms[0].image == 0
    supported = [each.score for each in phantoms if each.image == 1 and index.boxes[each.label][0] == GRID[15][0]]
    assert max(supported, default=0) < 0.5 * phantoms[0].score


def test_another_class_is_found() -> None:
    labels = truth()
    labels[17] = (labels[17][0], "cow" if labels[17][1] != "cow" else "dog", labels[17][2])
    finding, index = first(labels, truth())
    assert (finding.kind, finding.image) == (CLASS, labels[17][0])
    assert index.boxes[finding.label].tolist() == list(labels[17][2])


def test_a_detection_of_the_labelled_class_is_evidence_against_a_wrong_class() -> None:
    labels = truth()
    swapped, supported = [k for k, row in enumerate(labels) if row[1] == "cow" and row[0] in (20, 21)][:2]
    for k in (swapped, supported):
        labels[k] = (labels[k][0], "dog", labels[k][2])
    found = found_of(sorted([*truth(), labels[supported]]))
    findings = [each for each in find_label_errors(index_of(labels), found) if each.kind == CLASS]
    score = {each.label: each.score for each in findings}
    assert findings[0].label == swapped and score.get(supported, 0) < 0.5 * findings[0].score


def test_a_shifted_box_is_a_localisation_error() -> None:
    labels = truth()
    image, name, (x1, y1, x2, y2) = labels[17]
    labels[17] = (image, name, (x1 + 11, y1, x2 + 11, y2))
    finding, index = first(labels, truth())
    assert (finding.kind, index.boxes[finding.label][0]) == (SLOPPY, x1 + 11)


def test_a_repeated_label_is_a_duplicate() -> None:
    labels = truth()
    image, name, (x1, y1, x2, y2) = labels[17]
    finding, _ = first(sorted([*labels, (image, name, (x1 + 1, y1, x2, y2))]), truth())
    assert finding.kind == DUPLICATE and finding.other >= 0 and finding.other != finding.label


@pytest.mark.parametrize(("labels", "seen"), [([], truth()), (truth(), []), ([], [])])
def test_no_labels_and_no_detections_are_no_error(labels: Rows, seen: Rows) -> None:
    findings = find_label_errors(index_of(labels), found_of(seen))
    assert all(0 <= each.score <= 1 for each in findings)


def test_a_missing_label_is_ranked_by_what_the_annotator_labels() -> None:
    """Detections of one class in ten are labelled, those of the others always: a missing dog comes before the cows."""
    seen = truth()
    labels = [row for k, row in enumerate(seen) if row[1] != "cow" or k % 10 == 0]
    gone = labels.pop(next(k for k, row in enumerate(labels) if row[0] == 20 and row[1] == "dog"))
    missing = [each for each in find_label_errors(index_of(labels), found_of(seen)) if each.kind == MISSING]
    assert missing[0].image == gone[0] and missing[0].score > 2 * missing[1].score > 0


def test_the_command_merges_views_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --detections: the mirrored image counts, too; and the detector's classes get the data set's numbers."""

    class Seer:
        """Sees a dog at the left edge of every view."""

        config = ModelConfig(class_names=("person", "dog"), input_size=(160, 160))
        runtime = SimpleNamespace(fixed_size=True)

        def detect_batch(self, images: Sequence[np.ndarray], thresholds: Thresholds) -> list[Detections]:
            assert thresholds.score_threshold <= 0.01
            box = np.array([[0, 0, 20, 20]], np.float32)
            return [Detections(box, np.array([0.8], np.float32), np.array([1])) for _ in images]

    year = make_voc(tmp_path / "devkit", 8, 2)
    monkeypatch.setattr(audit, "load_detector", lambda *_: Seer())
    taken: list[FoundDetections] = []
    monkeypatch.setattr(audit, "find_label_errors", lambda index, found: taken.append(found) or [])
    arguments = [str(year.parent), "--split", "train", "--output", str(tmp_path / "audit"), "--no-progress"]
    assert audit.main(arguments) == 0
    mine = taken[0].image == 0
    assert sorted(taken[0].boxes[mine][:, 0].tolist())[0] == 0 and mine.sum() == 2
    assert taken[0].scores[mine] == pytest.approx([0.4, 0.4])  # half of the views have each of the boxes


def test_planted_errors_are_counted_and_found_by_a_perfect_detector() -> None:
    clean = index_of(truth())
    planted = plant(clean, 0)
    total = clean.num_boxes
    assert (
        len(planted.dropped) == round(0.05 * total) == (planted.kind == CLASS).sum() == (planted.kind == SLOPPY).sum()
    )
    assert (planted.kind == PHANTOM).sum() == round(0.02 * total)
    assert planted.index.num_boxes == total - len(planted.dropped) + round(0.02 * total)
    rows, false = measure(planted, found_of(truth()))
    for kind in (MISSING, CLASS, SLOPPY, PHANTOM):
        assert rows[kind]["recall_100"] > 0.95 and rows[kind]["precision_at_n"] > 0.95, kind
    assert len(false) <= 2


def write_detections(path: Path, year: Path) -> Path:
    boxes = {"dog": [10, 20, 60, 80], "Cat": [70, 30, 140, 110], "truck": [100, 5, 150, 25]}
    rows = [
        {
            "image": str(image),
            "detections": [{"class_name": n, "score": 0.9, "box_xyxy": box} for n, box in boxes.items()],
        }
        for image in sorted((year / "JPEGImages").glob("*.jpg"))
    ]
    path.write_text(json.dumps(rows))
    return path


def test_the_command_writes_json_csv_page_and_a_queue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from service.labelling.order import read_queue
    from service.labelling.store import open_store

    year = make_voc(tmp_path / "devkit", 8, 2)
    detections = write_detections(tmp_path / "oof.json", year)
    xml = year / "Annotations" / "a3.xml"
    text = xml.read_text()
    xml.write_text(text[: text.index("<object><name>cat")] + "</annotation>")
    arguments = [str(tmp_path / "devkit"), "--detections", str(detections), "--output", str(tmp_path / "audit")]
    assert audit.main(arguments) == 0
    assert "--queue" in capsys.readouterr().out
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    best = content["findings"][0]
    assert (best["kind"], Path(best["image"]).name, best["suggestion"]["class_name"]) == ("missing", "a3.jpg", "cat")
    assert "missing" in (tmp_path / "audit" / "audit.csv").read_text().splitlines()[1]
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "a cat without a label?" in page and "data:image/jpeg" in page and "http" not in page.split("</style>")[1]
    store = open_store(tmp_path / "devkit")
    queue = read_queue(tmp_path / "audit" / "audit.json", store)
    assert store.name(queue.numbers[0]).endswith("a3.jpg")
    assert all((each["suggestion"] or {}).get("class_name") != "truck" for each in content["findings"])
    with pytest.raises(UserError, match="--overwrite"):
        audit.main(arguments)
    with pytest.raises(UserError, match="give one of them"):
        audit.main([*arguments, "--overwrite", "--checkpoint", "x.pth"])
