"""The three most useful recommendations, each with the metric that supports it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.evaluator import EvaluationResult
from evaluation.metrics.errors import BACKGROUND, CLASSIFICATION, DUPLICATE, LOCALISATION, MISSED, SIZES, ErrorAnalysis
from utils.text import counted

HARDLY_LEARNED = 0.05  # mAP50 below which single errors are not analysed
FALLBACK_THRESHOLD = 0.25
NOTABLE_F1 = 0.005  # minimum F1 gain for recommending another threshold
NOTABLE_SHARE = 0.1  # minimum fraction of class errors for naming a pair of classes


@dataclass(frozen=True)
class Advice:
    """One recommendation.

    Args:
        gain: possible gain in mAP50, 0 if unknown.
        text: the metric and the recommendation, in one sentence each.
    """

    gain: float
    text: str


@dataclass(frozen=True)
class Scored:
    """Settings of the evaluation, so that no recommendation repeats the current setting.

    Args:
        input_size: (height, width) of the network's input; None if no network was scored.
        score_threshold: default of prediction.
        iou_threshold: of the NMS in this evaluation.
        has_converged: whether its training had stopped improving.
    """

    input_size: tuple[int, int] | None = None
    score_threshold: float | None = None
    iou_threshold: float | None = None
    has_converged: bool = False


UNKNOWN = Scored()


def advise(result: EvaluationResult, errors: ErrorAnalysis, scored: Scored = UNKNOWN, limit: int = 3) -> list[Advice]:
    """Recommendations, the largest gain first.

    Args:
        result: the evaluation.
        errors: of `analyse_errors` on its record.
        scored: what was scored.
        limit: maximum number.
    """
    if np.isnan(errors.average_precision):
        return [Advice(0.0, "There are no objects to evaluate against: give a split that has annotations.")]
    found = [
        *_missed(result, errors, scored),
        _localisation(errors, scored),
        _classification(result, errors, scored),
        _background(result, errors),
        _duplicates(errors, scored),
        _weak_class(result, errors),
    ]
    found = sorted((each for each in found if each.gain >= 0.001), key=lambda each: -each.gain)
    if errors.average_precision < HARDLY_LEARNED:
        found.insert(0, _not_learned(errors))
    return [*found, *_threshold(result, scored), _more_data(result)][:limit]


def _cost(gain: float, errors: ErrorAnalysis) -> str:
    share = gain / max(1 - errors.average_precision, 1e-9)
    return f"{share:.0%} of the lost mAP50 ({100 * gain:.1f} points)"


def _more(scored: Scored) -> str:
    """Recommendations for a network with very low mAP."""
    wider = "a wider network (--alpha, --neck-width) from pretrained weights"
    return (
        f"training had converged, so use more images, or {wider}"
        if scored.has_converged
        else f"train longer, or {wider}"
    )


def _bigger(input_size: tuple[int, int] | None) -> str:
    if input_size is None:
        return "a larger --input-size"
    height, width = (32 * round(side * 1.46 / 32) for side in input_size)
    return f"--input-size {height}" if height == width else f"--input-size {height} {width}"


def _missed(result: EvaluationResult, errors: ErrorAnalysis, scored: Scored) -> list[Advice]:
    total = int(result.record.num_gt.sum())
    small = errors.gain_by_size[MISSED, 0]
    rest = errors.gain[MISSED] - small
    names = " and ".join(SIZES[s] for s in (1, 2) if errors.counts[MISSED, s])
    count = int(errors.counts[MISSED, 1:].sum())
    of_small = (
        f"{_cost(small, errors)} is lost by missed small objects ({errors.counts[MISSED, 0]} under 32 x 32 pixels, "
        f"of {total} in total, without a detection at any score): try {_bigger(scored.input_size)}."
    )
    of_others = f"{_cost(rest, errors)} is lost by missed {names} objects ({count} of {total}, at any score): "
    of_others += f"{_more(scored)}."
    return [Advice(small, of_small), Advice(rest, of_others)]


def _localisation(errors: ErrorAnalysis, scored: Scored) -> Advice:
    gain, counts = errors.gain[LOCALISATION], errors.counts[LOCALISATION]
    small = errors.gain_by_size[LOCALISATION, 0] > 0.5 * gain
    todo = "try the anchors of `dataset.py anchors`" + ("" if scored.has_converged else ", and train longer")
    if small:
        todo = f"mostly for small objects, so try {_bigger(scored.input_size)}"
    text = f"{_cost(gain, errors)} is lost by inaccurate boxes ({counts.sum()} of IoU 0.1 to 0.5): {todo}."
    return Advice(gain, text)


def _classification(result: EvaluationResult, errors: ErrorAnalysis, scored: Scored) -> Advice:
    gain, record = errors.gain[CLASSIFICATION], result.record
    wrong = np.flatnonzero(errors.det_type == CLASSIFICATION)
    pairs = np.zeros((record.num_classes, record.num_classes))
    # Weighted by score: with several classes per box, many low-scoring second classes would hide the important ones.
    np.add.at(pairs, (record.gt_labels[errors.det_gt[wrong]], record.det_labels[wrong]), record.det_scores[wrong])
    share = pairs.max(initial=0.0) / max(pairs.sum(), 1e-9)
    found = f"{_cost(gain, errors)} is lost by correct boxes with a wrong class, "
    if share < NOTABLE_SHARE:
        return Advice(gain, f"{found}over many pairs of classes: {_more(scored)}.")
    truth, answer = np.unravel_index(np.argmax(pairs), pairs.shape)
    pair = f"{record.class_names[truth]} detected as {record.class_names[answer]} ({share:.0%} of them by score)"
    todo = "check the labels of both classes, and add images that show their differences."
    return Advice(gain, f"{found}most often {pair}: {todo}")


def _background(result: EvaluationResult, errors: ErrorAnalysis) -> Advice:
    gain = errors.gain[BACKGROUND]
    threshold = result.best_f1_threshold or FALLBACK_THRESHOLD
    confident = int(((errors.det_type == BACKGROUND) & (result.record.det_scores >= threshold)).sum())
    text = (
        f"{_cost(gain, errors)} is lost by detections of background ({confident} with a score of {threshold:.2f} or "
        "more): check them in the --report. If they are unlabelled objects, label them; else add images without "
        "objects."
    )
    return Advice(gain, text)


def _duplicates(errors: ErrorAnalysis, scored: Scored) -> Advice:
    gain = errors.gain[DUPLICATE]
    count = errors.counts[DUPLICATE].sum()
    present = scored.iou_threshold
    todo = "lower --iou-threshold to 0.5" if present is None or present > 0.5 else ""
    if present is not None and 0.3 < present <= 0.5:
        todo = f"lower --iou-threshold from {present:g} to {present - 0.1:.2g}"
    todo = todo or "check for close objects of which only one is labelled, or use --nms agnostic"
    return Advice(gain, f"{_cost(gain, errors)} is lost by duplicate detections ({count}): {todo}.")


def _weak_class(result: EvaluationResult, errors: ErrorAnalysis) -> Advice:
    """Advice on the class with the lowest AP; its gain is 0 if it is not far below the mean."""
    record, per_class = result.record, result.figures["per_class"]
    ap = np.array([per_class[name]["voc10_AP50"] for name in record.class_names], np.float64)
    there = ~np.isnan(ap)
    worst = int(np.nanargmin(ap))
    if there.sum() < 2 or ap[worst] > 0.5 * errors.average_precision:
        return Advice(0.0, "")
    gain = (errors.average_precision - ap[worst]) / there.sum()
    cause = int(np.nanargmax(errors.gain_by_class[:, worst]))
    wrong = ("wrong classes", "inaccurate boxes", "both", "duplicates", "background", "missed objects")[cause]
    objects = counted(record.num_gt[worst], "object")
    text = (
        f"{record.class_names[worst]} has an AP50 of {ap[worst]:.2f}, and the mean is "
        f"{errors.average_precision:.2f} ({objects}; the largest loss is by {wrong}). Raising it to the mean gains "
        f"{100 * gain:.1f} points: add training images of it, or train with --repeat-rare."
    )
    return Advice(gain, text)


def _not_learned(errors: ErrorAnalysis) -> Advice:
    text = (
        f"mAP50 is {errors.average_precision:.3f}: the model has learned almost nothing. Run `dataset.py check` on the "
        "data, check the class names, and train from --pretrained weights for more steps."
    )
    return Advice(1.0, text)


def _threshold(result: EvaluationResult, scored: Scored) -> list[Advice]:
    threshold = result.best_f1_threshold
    if threshold is None:
        return []
    present = FALLBACK_THRESHOLD if scored.score_threshold is None else scored.score_threshold
    best, now = (result.curves.overall.at(each)[2] for each in (threshold, present))
    if best - now < NOTABLE_F1:
        return []
    text = f"Predict with --score-threshold {threshold:.2f}: F1 is {best:.3f} with it and {now:.3f} with {present:g}."
    return [Advice(0.0, text)]


def _more_data(result: EvaluationResult) -> Advice:
    scored, objects = int((result.record.num_gt > 0).sum()), int(result.record.num_gt.sum())
    few = [n for n, c in zip(result.record.class_names, result.record.num_gt, strict=True) if 0 < c < 30]
    counts = f"{counted(objects, 'object')} in {counted(result.num_images, 'image')}"
    text = f"{counts}: compare runs with eval.py --compare before you choose one."
    if few:
        text = f"Fewer than 30 objects in {len(few)} of {scored} classes here ({', '.join(few[:5])}): their AP is "
        text += "noise; score on more images before believing it."
    return Advice(0.0, text)
