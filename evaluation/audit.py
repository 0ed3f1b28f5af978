"""Find labels that are probably wrong, using detections of a model that was not trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data.index import DatasetIndex
from evaluation.evaluator import FoundDetections

MISSING, PHANTOM, CLASS, SLOPPY, DUPLICATE = KINDS = ("missing", "phantom", "class", "sloppy", "duplicate")
FOUND_IOU = 0.5  # minimum IoU of a detection with its object, as in VOC's metric
SEEN_IOU = 0.1  # below it, detection and label are unrelated (TIDE, section 2.2)
OTHER_IOU = 0.45  # with a label of another class: then the class is in doubt
NEAR_IOU = 0.2  # with a label of the same class: then the box is in doubt
FITS_IOU = 0.8  # usual for a good detection and a good label
DUPLICATE_IOU = 0.75  # of two labels of the same class
SAME_BOX_IOU = 0.9  # of two labels of different classes
INSIDE = 0.7  # fraction of a detection inside a label of its class: it is a part of that object
LEAST_SCORE = 0.05
PRIOR = {PHANTOM: 0.02, CLASS: 0.03}  # prior fraction of wrong labels
STEPS, RIDGE = 30, 3.0  # of the logistic regression
DECOYS = 4  # for each label
MOST_SAMPLES = 20_000  # labels, and decoys, that it learns from
LEVELS = (0.5, 0.3, 0.1)  # IoU of a box with the detections that support it
QUANTILES = np.linspace(0, 1, 9)[1:-1]  # borders of the intervals of a feature


@dataclass(frozen=True)
class Finding:
    """One label that is probably wrong or missing.

    Args:
        kind: one of `KINDS`.
        score: confidence, 0 to 1; findings of all kinds are ranked by it.
        image: position in the index.
        label: position of the label in the index's box arrays; -1 where one is missing.
        detection: position in the detections; -1 where none supports the finding.
        other: for `duplicate`, the label that stays.
    """

    kind: str
    score: float
    image: int
    label: int = -1
    detection: int = -1
    other: int = -1


def find_label_errors(index: DatasetIndex, found: FoundDetections) -> list[Finding]:
    """All findings, by decreasing score; a label or a location is reported once, for its highest-scoring kind.

    Args:
        index: labels.
        found: detections of a detector that was not trained on these labels (out of fold), of all scores from about
            0.01 on; labels index `index.class_names`, -1 for a class that the data does not have.

    Based on ObjectLab (Tkachenko, Thyagarajan and Mueller, 2023, https://arxiv.org/abs/2309.00832):
    overlooked, swapped and badly located objects.
    """
    pairs = _Pairs(index, found, (found.scores >= LEAST_SCORE) & (found.labels >= 0))
    groups = [_missing(pairs), _phantoms(pairs), _wrong_classes(pairs), _sloppy(pairs), _duplicates(index)]
    findings = sorted((each for group in groups for each in group), key=lambda each: -each.score)
    taken: set[int] = set()
    result = []
    for each in findings:
        if each.label >= 0:
            if each.label in taken:
                continue
            taken.add(each.label)
        result.append(each)
    return result


class _Pairs:
    """All overlapping pairs of a detection and a label of one image, as flat arrays.

    Attributes:
        det, gt: (P,) positions in the detections and labels.
        iou, inside: (P,) IoU, and the fraction of the detection inside the label.
        same: (P,) bool, whether the classes are equal.
    """

    def __init__(self, index: DatasetIndex, found: FoundDetections, keep: np.ndarray) -> None:
        self.index, self.found = index, found
        self.dets = np.flatnonzero(keep)
        self.image_of_label = index.image_of_box
        parts = []
        order = self.dets[np.argsort(found.image[self.dets], kind="stable")]
        bounds = np.searchsorted(found.image[order], np.arange(len(index) + 1))
        for i in range(len(index)):
            dets = order[bounds[i] : bounds[i + 1]]
            gts = np.arange(index.offsets[i], index.offsets[i + 1])
            if len(dets) and len(gts):
                iou, inside = box_overlaps(found.boxes[dets], index.boxes[gts])
                d, g = np.nonzero(iou > 0)
                parts.append((dets[d], gts[g], iou[d, g], inside[d, g]))
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        joined: Any = [np.concatenate(each) for each in zip(*parts, strict=True)] if parts else empty
        self.det, self.gt, self.iou, self.inside = joined
        self.same = found.labels[self.det] == index.labels[self.gt]

    @cached_property
    def near(self) -> _Near:
        """What is near the labels, of all detections."""
        order = np.argsort(self.found.image, kind="stable")
        bounds = np.searchsorted(self.found.image[order], np.arange(len(self.index) + 1))
        return _Near(self.index, self.found, order, bounds)

    def most_of_det(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(N,) the largest value over each detection's pairs of the mask, 0 without."""
        result = np.zeros(len(self.found.scores))
        np.maximum.at(result, self.det[mask], values[mask])
        return result

    def best_of_label(self, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M,) the largest value over each label's pairs of the mask (0 without), and its detection (-1 without)."""
        best, which = np.zeros(self.index.num_boxes), np.full(self.index.num_boxes, -1, np.int64)
        order = np.flatnonzero(mask)[np.argsort(values[mask], kind="stable")]
        best[self.gt[order]] = values[order]
        which[self.gt[order]] = self.det[order]
        return best, which


def box_overlaps(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, M) IoU of (N, 4) and (M, 4) xyxy boxes, and the fraction of each first box inside each second one."""
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    left_top = np.maximum(boxes[:, None, :2], others[None, :, :2])
    right_bottom = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.clip(right_bottom - left_top, 0, None).prod(axis=2)
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    iou = both / np.maximum(area[:, None] + other_area[None] - both, 1e-9)
    return iou, both / np.maximum(area[:, None], 1e-9)


def _chance_of_label(pairs: _Pairs) -> np.ndarray:
    """(N,) the chance that the annotator has labelled a detection; 0 for detections that `pairs` leaves out.

    An additive logistic regression on score, class, size and place of the detection, and on the other detections of
    the image. It learns what this annotator labels: for example no small chairs, and no groups beside their members.
    Labels are not among the features: those around would separate the object of a removed label from the others.
    """
    index, found = pairs.index, pairs.found
    order = pairs.dets[np.lexsort((-found.scores[pairs.dets], found.image[pairs.dets]))]
    chance = np.zeros(len(found.scores))
    if not len(order):
        return chance
    starts = np.flatnonzero(np.diff(found.image[order], prepend=-1))
    around = np.concatenate([_among_detections(found, d) for d in np.split(order, starts[1:])])
    features = np.concatenate([around, _geometry(found.boxes[order], _wide_high(index)[found.image[order]])], axis=1)
    edges = [np.unique(np.quantile(column, QUANTILES)) for column in features.T]
    is_labelled = pairs.most_of_det(pairs.iou, pairs.same)[order] >= FOUND_IOU
    learnt = np.random.default_rng(0).permutation(len(order))[:MOST_SAMPLES]

    def table(rows: np.ndarray) -> np.ndarray:
        return _indicators(features[rows], edges, found.labels[order[rows]], len(index.class_names))

    weights = fit_logistic(table(learnt), is_labelled[learnt])
    for rows in np.array_split(np.arange(len(order)), -(-len(order) // MOST_SAMPLES)):
        chance[order[rows]] = 1 / (1 + np.exp(-table(rows) @ weights))
    return chance


def _among_detections(found: FoundDetections, d: np.ndarray) -> np.ndarray:
    """(N, 9) features of the detections `d` of one image, best first: the log-odds of the score, and how each lies to
    the others."""
    scores, labels = found.scores[d], found.labels[d]
    iou, inside = box_overlaps(found.boxes[d], found.boxes[d])
    same = labels[:, None] == labels
    better = np.tri(len(d), k=-1, dtype=bool)  # the column's score is higher
    columns = [np.where(mask & better, part, 0).max(axis=1) for part in (iou, inside) for mask in (same, ~same)]
    columns.append((np.where(same, inside.T * scores, 0) - np.diag(scores)).max(axis=1))
    sums = [(same * scores).sum(axis=1) - scores, scores.sum() - scores, np.full(len(d), scores.max())]
    return np.stack([np.log(scores / (1 - np.minimum(scores, 1 - 1e-6))), *columns, *sums], axis=1)


def _missing(pairs: _Pairs) -> list[Finding]:
    """Detections without a label; one per location."""
    found, crowd = pairs.found, pairs.index.crowd[pairs.gt]
    own = pairs.most_of_det(pairs.iou, pairs.same)
    other = pairs.most_of_det(pairs.iou, ~pairs.same)
    inside = pairs.most_of_det(pairs.inside, pairs.same | crowd)
    free = (own < NEAR_IOU) & (other < OTHER_IOU)
    # A part of a labelled object, or one of a crowd, is rarely a missing label.
    score = _chance_of_label(pairs) * (1 - own) * (1 - 0.5 * other) * np.where(inside > INSIDE, 0.3, 1.0)
    candidates = pairs.dets[free[pairs.dets]]
    candidates = candidates[np.argsort(-score[candidates], kind="stable")]
    kept: dict[int, list[int]] = {}
    result = []
    for d in candidates.tolist():
        image = int(found.image[d])
        before = kept.setdefault(image, [])
        if before and box_overlaps(found.boxes[d][None], found.boxes[before])[0].max() > OTHER_IOU:
            continue
        before.append(d)
        result.append(Finding(MISSING, float(score[d]), image, detection=d))
    return result


def _phantoms(pairs: _Pairs) -> list[Finding]:
    """Labels that resemble decoys (labels laid over other images) more than labels of their own image."""
    near, owner = pairs.near, pairs.image_of_label
    usual, rng = near.usual, np.random.default_rng(0)
    sources = rng.permutation(np.tile(usual, DECOYS))[:MOST_SAMPLES]
    boxes, labels, images = _decoys(pairs.index, sources, owner, rng)
    if not len(boxes):
        return []
    of_decoys = near.evidence(boxes, labels, images, np.full(len(boxes), -1))
    score = _chance_of_decoy(near, of_decoys, labels, PRIOR[PHANTOM], rng)
    likely = np.flatnonzero(score > LEAST_SCORE)
    return [Finding(PHANTOM, float(score[k]), int(owner[usual[k]]), label=int(usual[k])) for k in likely]


def _chance_of_decoy(
    near: _Near, of_decoys: np.ndarray, decoys: np.ndarray, prior: float, rng: np.random.Generator
) -> np.ndarray:
    """(N,) the chance that each label of `near.usual` is wrong as decoys are, by (M, F) features and (M,) classes.

    A logistic regression separates labels from decoys by the detections near them, so it learns from the data how weak
    a detection still supports a label of this class and size. Detections of every score and class count, also of
    classes that the data does not have. Method: noise-contrastive estimation (Gutmann and Hyvarinen, AISTATS 2010).
    """
    of_labels, labels = near.of_usual, near.index.labels[near.usual]
    edges = [np.unique(np.quantile(column, QUANTILES)) for column in np.concatenate([of_labels, of_decoys]).T]
    count = int(max(labels.max(), decoys.max())) + 1
    sample = rng.permutation(len(labels))[:MOST_SAMPLES]
    both = np.concatenate([of_labels[sample], of_decoys]), np.concatenate([labels[sample], decoys])
    weights = fit_logistic(_indicators(both[0], edges, both[1], count), np.arange(len(both[1])) >= len(sample))
    odds = np.zeros(len(labels))
    for part in np.array_split(np.arange(len(labels)), -(-len(labels) // MOST_SAMPLES)):
        odds[part] = np.exp(_indicators(of_labels[part], edges, labels[part], count) @ weights)
    odds *= prior / (1 - prior) * len(sample) / len(decoys)
    return odds / (1 + odds)


def _decoys(
    index: DatasetIndex, sources: np.ndarray, owner: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 4) boxes, (N,) labels and (N,) images: the labels `sources`, each at its relative place in another image.

    Those on a label of that image are left out.
    """
    if len(index) < 2:
        return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    images = (owner[sources] + rng.integers(1, len(index), len(sources))) % len(index)
    sizes = _wide_high(index)
    boxes = index.boxes[sources] * np.tile(sizes[images] / sizes[owner[sources]], 2)
    free = np.ones(len(sources), bool)
    for k, image in enumerate(images.tolist()):
        there = index.boxes[index.offsets[image] : index.offsets[image + 1]]
        free[k] = not len(there) or box_overlaps(boxes[k : k + 1], there)[0].max() < SEEN_IOU
    return boxes[free], index.labels[sources[free]], images[free]


def _wide_high(index: DatasetIndex) -> np.ndarray:
    """(I, 2) width and height of each image, or the extent of all boxes where the size is not known."""
    sizes = index.sizes[:, ::-1].astype(np.float64)
    return np.where(sizes > 0, sizes, index.boxes[:, 2:].max(initial=1))


@dataclass(frozen=True)
class _Near:
    """Measures what is near a box. Args: as named; `bounds`: each image's part of `order`, its detections."""

    index: DatasetIndex
    found: FoundDetections
    order: np.ndarray
    bounds: np.ndarray

    @cached_property
    def usual(self) -> np.ndarray:
        """(N,) the labels that are neither crowds nor difficult."""
        return np.flatnonzero(~(self.index.crowd | self.index.difficult))

    @cached_property
    def of_usual(self) -> np.ndarray:
        """(N, F) features of the labels of `usual`."""
        index, usual = self.index, self.usual
        return self.evidence(index.boxes[usual], index.labels[usual], index.image_of_box[usual], usual)

    def evidence(self, boxes: np.ndarray, labels: np.ndarray, images: np.ndarray, own: np.ndarray) -> np.ndarray:
        """(N, F) features of (N, 4) boxes of (N,) labels; `own`: (N,) the label that is the box itself, or -1."""
        result = np.zeros((len(boxes), 2 * len(LEVELS) + 9))
        by_image = np.argsort(images, kind="stable")
        ends = np.searchsorted(images[by_image], np.arange(len(self.index) + 1))
        for image in np.unique(images).tolist():
            rows = by_image[ends[image] : ends[image + 1]]
            result[rows] = self._of_image(image, boxes[rows], labels[rows], own[rows])
        return np.concatenate([result, _geometry(boxes, _wide_high(self.index)[images])], axis=1)

    def _of_image(self, image: int, boxes: np.ndarray, labels: np.ndarray, own: np.ndarray) -> np.ndarray:
        d = self.order[self.bounds[image] : self.bounds[image + 1]]
        gts = np.arange(self.index.offsets[image], self.index.offsets[image + 1])
        iou, inside = box_overlaps(boxes, self.found.boxes[d])
        within = box_overlaps(self.found.boxes[d], boxes)[1].T
        same = labels[:, None] == self.found.labels[d]
        score = np.broadcast_to(self.found.scores[d], iou.shape)
        other = gts != own[:, None]
        covered = box_overlaps(boxes, self.index.boxes[gts])[1]
        columns = [np.where(mask & (iou >= level), score, 0) for mask in (same, True) for level in LEVELS]
        columns += [iou * same, iou, np.where(~same & (iou >= FOUND_IOU), score, 0)]
        columns += [np.where((part > INSIDE) & (iou < FOUND_IOU), score, 0) for part in (inside, within)]
        columns += [np.where(same & (iou < SEEN_IOU), score, 0), covered * other]
        counts = [(other & (labels[:, None] == self.index.labels[gts])).sum(axis=1), other.sum(axis=1)]
        return np.stack([*(each.max(axis=1, initial=0) for each in columns), *counts], axis=1)


def _geometry(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N, 5) log area, log short side, log aspect ratio, borders touched and height in the image, of boxes in images
    of (N, 2) width and height."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    gap = np.concatenate([boxes[:, :2], sizes - boxes[:, 2:]], axis=1) / np.tile(sizes, 2)
    area = np.log(sides.prod(axis=1) / sizes.prod(axis=1))
    short, aspect = np.log(sides.min(axis=1)), np.log(sides[:, 0] / sides[:, 1])
    return np.stack([area, short, aspect, (gap < 0.01).sum(axis=1), boxes[:, 3] / sizes[:, 1]], axis=1)


def _indicators(features: np.ndarray, edges: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """(N, P) the table of an additive model: 1, the interval of each feature, the class, and its own slopes for the
    score of the detection on the box and for the area."""
    steps = [np.eye(len(e) + 1)[np.digitize(column, e)] for column, e in zip(features.T, edges, strict=True)]
    each = np.eye(classes)[labels]
    score, area = features[:, :1], features[:, -5:-4]
    return np.concatenate([np.ones((len(features), 1)), *steps, each, each * score, each * area], axis=1)


def fit_logistic(table: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """(F,) weights of a ridge logistic regression on (M, F) features, the first of which is constant."""
    weights = np.zeros(table.shape[1])
    penalty = np.full(table.shape[1], RIDGE)
    penalty[0] = 1e-6
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(table @ weights, -30, 30)))
        slope = table.T @ (outcome - chance) - penalty * weights
        curvature = (table * (chance * (1 - chance))[:, None]).T @ table + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _wrong_classes(pairs: _Pairs) -> list[Finding]:
    """Labels that a detection of another class overlaps, and that resemble decoys (with the class of another label)
    more than labels as they are."""
    index, found, owner, near = pairs.index, pairs.found, pairs.image_of_label, pairs.near
    usual, rng = near.usual, np.random.default_rng(0)
    sources = rng.permutation(np.tile(usual, DECOYS))[:MOST_SAMPLES]
    classes = rng.permutation(index.labels[sources])
    sources, classes = (each[classes != index.labels[sources]] for each in (sources, classes))
    if not len(sources):
        return []
    of_decoys = near.evidence(index.boxes[sources], classes, owner[sources], sources)
    score = _chance_of_decoy(near, of_decoys, classes, PRIOR[CLASS], rng)
    # A detection that matches a label of its own class is explained by it.
    explained = pairs.most_of_det(pairs.iou, pairs.same)[pairs.det]
    free = ~pairs.same & (explained < FOUND_IOU) & (pairs.iou >= np.maximum(explained, FOUND_IOU))
    _, which = pairs.best_of_label(found.scores[pairs.det] * pairs.iou, free)
    likely = np.flatnonzero((score > 0.02) & (which[usual] >= 0))
    return [
        Finding(CLASS, float(score[k]), int(owner[usual[k]]), label=int(usual[k]), detection=int(which[usual[k]]))
        for k in likely
    ]


def _sloppy(pairs: _Pairs) -> list[Finding]:
    """Labels whose object is detected at another location."""
    index, found = pairs.index, pairs.found
    seen = pairs.same & (pairs.iou >= NEAR_IOU)
    best_iou, _ = pairs.best_of_label(pairs.iou, seen & (found.scores[pairs.det] >= 0.3 * _best_score(pairs, seen)))
    explained = pairs.most_of_det(pairs.iou, pairs.same)
    nearest = pairs.iou >= explained[pairs.det] - 1e-9  # not the detection of a neighbour
    support, which = pairs.best_of_label(found.scores[pairs.det], seen & nearest)
    named = np.flatnonzero((which >= 0) & ~index.crowd)
    misfit = np.clip((FITS_IOU - best_iou[named]) / (FITS_IOU - NEAR_IOU - 0.15), 0, 1)
    score = support[named] * misfit
    return [
        Finding(SLOPPY, float(s), int(pairs.image_of_label[m]), label=int(m), detection=int(which[m]))
        for m, s in zip(named.tolist(), score.tolist(), strict=True)
        if s > 0.02
    ]


def _best_score(pairs: _Pairs, mask: np.ndarray) -> np.ndarray:
    """(P,) the best score of the detections of each pair's label."""
    best, _ = pairs.best_of_label(pairs.found.scores[pairs.det], mask)
    return best[pairs.gt]


def _duplicates(index: DatasetIndex) -> list[Finding]:
    """Labels that duplicate another label."""
    result = []
    for i in range(len(index)):
        start, end = int(index.offsets[i]), int(index.offsets[i + 1])
        iou, _ = box_overlaps(index.boxes[start:end], index.boxes[start:end])
        for first, second in zip(*np.nonzero(np.triu(iou, 1) >= DUPLICATE_IOU), strict=True):
            same = index.labels[start + first] == index.labels[start + second]
            if same or iou[first, second] >= SAME_BOX_IOU:
                score = float(iou[first, second]) * (1.0 if same else 0.5)
                result.append(Finding(DUPLICATE, score, i, label=start + int(second), other=start + int(first)))
    return result


def finding_row(finding: Finding, index: DatasetIndex, found: FoundDetections, rank: int) -> dict[str, Any]:
    """A finding as plain types for the labelling page: `image`, `kind`, `score`, `label`, `suggestion`."""
    label = suggestion = None
    if finding.label >= 0:
        label = _row(index.class_names[index.labels[finding.label]], index.boxes[finding.label])
    if finding.detection >= 0:
        d = finding.detection
        suggestion = _row(index.class_names[found.labels[d]], found.boxes[d]) | {
            "score": round(float(found.scores[d]), 4)
        }
    return {
        "rank": rank,
        "kind": finding.kind,
        "score": round(finding.score, 4),
        "image": str(index.path(finding.image)),
        "image_id": index.image_ids[finding.image].item(),
        "label": label,
        "suggestion": suggestion,
        "text": _words(finding.kind, label, suggestion),
    }


def _row(name: str, box: np.ndarray) -> dict[str, Any]:
    return {"class_name": name, "box": [round(float(value), 2) for value in box]}


def _words(kind: str, label: dict[str, Any] | None, suggestion: dict[str, Any] | None) -> str:
    is_labelled = label["class_name"] if label else ""
    is_seen = suggestion["class_name"] if suggestion else ""
    return {
        MISSING: f"a {is_seen} without a label?",
        PHANTOM: f"no {is_labelled} here?",
        CLASS: f"a {is_seen}, not a {is_labelled}?",
        SLOPPY: f"the box of the {is_labelled} does not fit?",
        DUPLICATE: f"the {is_labelled} is labelled twice?",
    }[kind]


def counts_by_kind(findings: Sequence[Finding], least: float = 0.5) -> dict[str, int]:
    """Number of findings of each kind with a score of at least `least`."""
    return {kind: sum(1 for each in findings if each.kind == kind and each.score >= least) for kind in KINDS}
