"""Plain-text report of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.evaluator import STAGES, EvaluationResult
from evaluation.metrics.calibration import calibrate
from evaluation.metrics.coco import FIGURES
from evaluation.metrics.errors import ERROR_TYPES, SIZES, ErrorAnalysis, analyse_errors
from evaluation.report.advice import FALLBACK_THRESHOLD, UNKNOWN, Scored, advise
from utils.errors import printable
from utils.text import counted, text_table

if TYPE_CHECKING:
    from evaluation.metrics.compare import Comparison

FEW_IMAGES = 200  # below this number the report states the uncertainty
MOST_CLASSES = 40  # maximum rows of the class table


def summary_text(result: EvaluationResult, scored: Scored = UNKNOWN) -> str:
    """The report: metrics, classes, time, errors and their cost, and three recommendations."""
    errors = analyse_errors(result.record, result.outcome)
    parts = [
        _head(result),
        _figures(result),
        class_table(result),
        _losses(result, errors),
        _scores(result),
        _time(result),
        noise_text(result),
        _advice(result, errors, scored),
    ]
    return "\n\n".join(part for part in parts if part)


def number(value: Any, digits: int = 3) -> str:
    """A number with fixed digits, `-` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def _head(result: EvaluationResult) -> str:
    objects = counted(int(result.record.num_gt.sum()), "object")
    lines = [f"{printable(result.index.name)}: {counted(result.num_images, 'image')}, {objects}"]
    return "\n".join([*lines, *(f"  {line}" for line in (printable(result.protocol), *left_out(result)))])


def left_out(result: EvaluationResult) -> list[str]:
    """What was not evaluated, as text."""
    counts = ((len(result.skips), "unreadable image", ""), (result.num_not_scored, "object", " of unknown classes"))
    return [f"{counted(count, noun)}{more} not evaluated" for count, noun, more in counts if count]


def _figures(result: EvaluationResult) -> str:
    f = result.figures
    voc10, voc07 = number(f["voc10_mAP50"]), number(f["voc07_mAP50"])
    lines = [f"VOC   mAP50 {voc10} (2010, all points)   {voc07} (2007, 11 points)"]
    if "coco_AP" in f:
        shown = [f"{key} {number(f[f'coco_{key}'])}" for key in FIGURES]
        lines += [f"COCO  {'  '.join(shown[:6])}", f"      {'  '.join(shown[6:])}"]
    return "\n".join(lines)


def class_table(result: EvaluationResult) -> str:
    """One line per class with objects, at most 40: AP, and results at the working threshold."""
    rows = [row for row in working_rows(result) if row.objects]
    head = ("class", "objects", "AP50", "COCO", f"at score {working_threshold(result):.2f}:", "found", "wrong",
            "precision", "recall")  # fmt: skip
    cells = [
        (printable(row.name), row.objects, number(row.ap50), number(row.coco), "", row.found, row.wrong,
         number(row.precision), number(row.recall))
        for row in rows[:MOST_CLASSES]
    ]  # fmt: skip
    lines = text_table([head, *cells])
    if len(rows) > MOST_CLASSES:
        lines.append(f"... and {counted(len(rows) - MOST_CLASSES, 'more class')} (--json has them all)")
    return "\n".join(lines)


def working_threshold(result: EvaluationResult) -> float:
    """The score threshold of the table: the best-F1 threshold over all classes, if there are detections."""
    return FALLBACK_THRESHOLD if result.best_f1_threshold is None else result.best_f1_threshold


@dataclass(frozen=True)
class ClassRow:
    """Results of a class at the working threshold.

    Args:
        objects: number of objects that count.
        ap50, coco: AP at IoU 0.5 (VOC 2010), and over IoU 0.5 to 0.95; None where there is none.
        found, wrong: true and false positives with a score of at least the working threshold.
        precision, recall: of these; None where undefined.
    """

    name: str
    objects: int
    ap50: float | None
    coco: float | None
    found: int
    wrong: int

    @property
    def precision(self) -> float | None:
        return self.found / (self.found + self.wrong) if self.found + self.wrong else None

    @property
    def recall(self) -> float | None:
        return self.found / self.objects if self.objects else None


def working_rows(result: EvaluationResult) -> list[ClassRow]:
    """Results of every class at the working threshold."""
    threshold = working_threshold(result)
    rows = zip(result.record.class_names, result.per_class().values(), result.curves.per_class, strict=True)
    return [
        ClassRow(name, row["num_gt"], row["voc10_AP50"], row.get("coco_AP"), *curve.counts(threshold))
        for name, row, curve in rows
    ]


def noise_text(result: EvaluationResult) -> str:
    """The uncertainty of the metrics if there are few images; else an empty text.

    The 95 % interval of a proportion over n independent objects, 1.96 sqrt(p (1 - p) / n). Objects of one image are not
    fully independent, so it is a lower bound.
    """
    objects = int(result.record.num_gt.sum())
    if result.num_images >= FEW_IMAGES or not objects:
        return ""
    recall = min(max(result.curves.overall.at(working_threshold(result))[1], 0.1), 0.9)
    points = 100 * 1.96 * (recall * (1 - recall) / objects) ** 0.5
    return (
        f"{counted(result.num_images, 'image')} with {counted(objects, 'object')}: "
        f"differences below about {points:.0f} points are not "
        "significant; compare two models with eval.py --compare, or evaluate more images."
    )


def _losses(result: EvaluationResult, errors: ErrorAnalysis) -> str:
    if result.figures["voc10_mAP50"] is None:
        return ""
    rows: list[tuple[Any, ...]] = [("mAP50 lost by", "points", "count", *(f"{size} objects" for size in SIZES))]
    for kind, name in enumerate(ERROR_TYPES):
        points = (f"{100 * gain:.1f}" for gain in (errors.gain[kind], *errors.gain_by_size[kind]))
        rows.append((name, next(points), errors.counts[kind].sum(), *points))
    return "\n".join(text_table(rows))


def _scores(result: EvaluationResult) -> str:
    threshold = result.best_f1_threshold
    if threshold is None:
        return "No object was detected, so there is no best score threshold."
    precision, recall, f1 = result.curves.overall.at(threshold)
    calibration = calibrate(result.record.det_scores, result.outcome)
    error = f"; mean calibration error {calibration.error:.2f}" if calibration.error is not None else ""
    return (
        f"Best F1 over all classes {f1:.3f} at score {threshold:.3f} (precision {precision:.3f}, recall {recall:.3f})"
        f"{error}"
    )


def _time(result: EvaluationResult) -> str:
    if not result.seconds:
        return ""
    shares = ", ".join(f"{stage} {result.timing[stage]:.0%}" for stage in STAGES if stage in result.timing)
    return f"{number(result.images_per_second, 1)} images/s; of the time over all threads: {shares}"


def _advice(result: EvaluationResult, errors: ErrorAnalysis, scored: Scored) -> str:
    lines = ["Recommendations:"]
    lines += [f"{i}. {printable(each.text)}" for i, each in enumerate(advise(result, errors, scored), start=1)]
    return "\n".join(lines)


def comparison_text(comparison: Comparison) -> str:
    """The comparison as text."""
    c = comparison
    lines = [
        f"A {printable(c.name_a)}: mAP50 {number(c.a)}",
        f"B {printable(c.name_b)}: mAP50 {number(c.b)}",
        f"B - A: {c.difference:+.4f}, {c.confidence:.0%} interval {c.low:+.4f} to {c.high:+.4f} (bootstrap over "
        f"{counted(c.num_images, 'image')}, {c.repetitions} repetitions, VOC10 AP at IoU 0.5)",
        f"Verdict: {c.verdict}",
    ]
    rows = [("class", "A", "B", "B - A", "interval")]
    for name, (a, b, low, high) in c.per_class.items():
        mark = " *" if low > 0 or high < 0 else "  "
        rows.append((printable(name), number(a), number(b), f"{b - a:+.3f}", f"{low:+.3f} to {high:+.3f}{mark}"))
    lines += ["", *text_table(rows)]
    expected = (1 - c.confidence) * len(c.per_class)
    lines.append(f"* significant for that class alone; about {expected:.0f} such marks are expected by chance")
    return "\n".join(lines)
