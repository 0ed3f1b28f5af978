"""The three things most worth doing, each with the figure that says so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.evaluator import EvaluationResult
from evaluation.metrics.errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    LOCALISATION,
    MISSED,
    SIZES,
    ErrorAnalysis,
)

HARDLY_LEARNED = 0.05  # mAP50 below which there is no point in looking at single mistakes
FALLBACK_THRESHOLD = 0.25
NOTABLE_SHARE = 0.1  # of wrong classes, from which a pair of classes stands out


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Args:
        gain: what mAP50 would gain if it succeeded altogether, 0 where that is not known.
        text: the figure and what to do, in one sentence each.
    """

    gain: float
    text: str


def advise(
    result: EvaluationResult, errors: ErrorAnalysis, input_size: tuple[int, int] | None = None, limit: int = 3
) -> list[Advice]:
    """What is most worth doing, the largest gain first.

    Args:
        result: the evaluation.
        errors: of `analyse_errors` on its record.
        input_size: (height, width) of the network's input, if a network was scored.
        limit: how many.
    """
    if np.isnan(errors.average_precision):
        return [Advice(0.0, "There are no objects to score against: name a split that has annotations.")]
    found = [
        *_missed(result, errors, input_size),
        *_localisation(errors, input_size),
        *_classification(result, errors),
        *_background(result, errors),
        *_duplicates(errors),
        *_weak_class(result, errors),
    ]
    found = sorted((each for each in found if each.gain >= 0.001), key=lambda each: -each.gain)
    if errors.average_precision < HARDLY_LEARNED:
        found.insert(0, _not_learned(result, errors))
    found += _threshold(result) + _more_data(result)
    return found[:limit]


def _cost(gain: float, errors: ErrorAnalysis) -> str:
    share = gain / max(1 - errors.average_precision, 1e-9)
    return f"{share:.0%} of the lost mAP50 ({100 * gain:.1f} points)"


def _bigger(input_size: tuple[int, int] | None) -> str:
    if input_size is None:
        return "a larger --input-size"
    height, width = (32 * round(side * 1.46 / 32) for side in input_size)
    return f"--input-size {height}" if height == width else f"--input-size {height} {width}"


def _missed(result: EvaluationResult, errors: ErrorAnalysis, input_size: tuple[int, int] | None) -> list[Advice]:
    total = int(result.record.num_gt.sum())
    small = errors.gain_by_size[MISSED, 0]
    advice = [
        Advice(
            small,
            f"{_cost(small, errors)} is missed small objects ({errors.counts[MISSED, 0]} under 32 x 32 pixels, of "
            f"{total} in all): try {_bigger(input_size)}.",
        )
    ]
    rest = errors.gain[MISSED] - small
    names = " and ".join(SIZES[s] for s in (1, 2) if errors.counts[MISSED, s])
    count = int(errors.counts[MISSED, 1:].sum())
    advice.append(
        Advice(
            rest,
            f"{_cost(rest, errors)} is missed {names} objects ({count} of {total}): train longer, or a wider network "
            "(--alpha, --neck-width), from --pretrained weights.",
        )
    )
    return advice


def _localisation(errors: ErrorAnalysis, input_size: tuple[int, int] | None) -> list[Advice]:
    gain, counts = errors.gain[LOCALISATION], errors.counts[LOCALISATION]
    small = errors.gain_by_size[LOCALISATION, 0] > 0.5 * gain
    todo = "try the anchors of `dataset.py anchors`, and train longer"
    if small:
        todo = f"mostly of small objects, so try {_bigger(input_size)}"
    return [Advice(gain, f"{_cost(gain, errors)} is boxes that do not fit ({counts.sum()} of IoU 0.1 to 0.5): {todo}.")]


def _classification(result: EvaluationResult, errors: ErrorAnalysis) -> list[Advice]:
    gain, record = errors.gain[CLASSIFICATION], result.record
    wrong = np.flatnonzero(errors.det_type == CLASSIFICATION)
    pairs = np.zeros((record.num_classes, record.num_classes))
    # by score: with several classes a box, a mass of faint second answers would drown what matters
    np.add.at(pairs, (record.gt_labels[errors.det_gt[wrong]], record.det_labels[wrong]), record.det_scores[wrong])
    share = pairs.max(initial=0.0) / max(pairs.sum(), 1e-9)
    if share < NOTABLE_SHARE:
        text = "over many pairs of classes: train longer, or a wider backbone from --pretrained weights"
        return [Advice(gain, f"{_cost(gain, errors)} is right boxes with a wrong class, {text}.")]
    truth, answer = np.unravel_index(np.argmax(pairs), pairs.shape)
    return [
        Advice(
            gain,
            f"{_cost(gain, errors)} is right boxes with a wrong class, most often {record.class_names[truth]} taken "
            f"for {record.class_names[answer]} ({share:.0%} of them by score): look at the labels of these two, and "
            "add examples that tell them apart.",
        )
    ]


def _background(result: EvaluationResult, errors: ErrorAnalysis) -> list[Advice]:
    gain = errors.gain[BACKGROUND] + errors.gain[BOTH]
    threshold = result.best_f1_threshold or FALLBACK_THRESHOLD
    confident = int(((errors.det_type == BACKGROUND) & (result.record.det_scores >= threshold)).sum())
    return [
        Advice(
            gain,
            f"{_cost(gain, errors)} is detections where nothing is ({confident} with a score of {threshold:.2f} or "
            "more): look at them in the --report; if objects lack labels, label them, else add images without objects.",
        )
    ]


def _duplicates(errors: ErrorAnalysis) -> list[Advice]:
    gain = errors.gain[DUPLICATE]
    count = errors.counts[DUPLICATE].sum()
    text = f"{_cost(gain, errors)} is second detections of one object ({count}): lower --iou-threshold to 0.5."
    return [Advice(gain, text)]


def _weak_class(result: EvaluationResult, errors: ErrorAnalysis) -> list[Advice]:
    record = result.record
    ap = np.array(
        [np.nan if (v := result.figures["per_class"][n]["voc10_AP50"]) is None else v for n in record.class_names]
    )
    if (~np.isnan(ap)).sum() < 2:
        return []
    worst = int(np.nanargmin(ap))
    gain = (errors.average_precision - ap[worst]) / (~np.isnan(ap)).sum()
    if ap[worst] > 0.5 * errors.average_precision:
        return []
    cause = int(np.nanargmax(errors.gain_by_class[:, worst]))
    wrong = ("its class", "its place", "class and place", "duplicates", "background", "missed objects")[cause]
    return [
        Advice(
            gain,
            f"{record.class_names[worst]} has an AP50 of {ap[worst]:.2f} where the mean is "
            f"{errors.average_precision:.2f} ({record.num_gt[worst]} objects; most is lost by {wrong}): raising it to "
            f"the mean alone is {100 * gain:.1f} points: add training images of it, or train with --repeat-rare.",
        )
    ]


def _not_learned(result: EvaluationResult, errors: ErrorAnalysis) -> Advice:
    return Advice(
        1.0,
        f"mAP50 is {errors.average_precision:.3f}: hardly anything was learned; run `dataset.py check` on the data, "
        "compare the class names, and train from --pretrained weights for more steps.",
    )


def _threshold(result: EvaluationResult) -> list[Advice]:
    threshold = result.best_f1_threshold
    if threshold is None:
        return []
    best = result.curves.overall.at(threshold)[2]
    default = result.curves.overall.at(FALLBACK_THRESHOLD)[2]
    return [
        Advice(
            0.0,
            f"Predict with --score-threshold {threshold:.2f}: F1 is {best:.3f} there and {default:.3f} at "
            f"{FALLBACK_THRESHOLD}.",
        )
    ]


def _more_data(result: EvaluationResult) -> list[Advice]:
    scored, objects = int((result.record.num_gt > 0).sum()), int(result.record.num_gt.sum())
    few = [n for n, c in zip(result.record.class_names, result.record.num_gt, strict=True) if 0 < c < 30]
    if few:
        text = (
            f"{len(few)} of {scored} classes have fewer than 30 objects here ({', '.join(few[:5])}): their AP is "
            "noise; score on more images before believing it."
        )
        return [Advice(0.0, text)]
    text = f"{objects} objects in {result.num_images} images: compare runs with eval.py --compare before choosing one."
    return [Advice(0.0, text)]
