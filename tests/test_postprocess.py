"""Postprocessing of raw maps: thresholds, classes, suppression, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, nms

import nets.postprocess
from nets.anchors import decode_level, encode
from nets.model_config import STRIDES, ModelConfig
from nets.nms import Found
from nets.postprocess import MAX_CANDIDATES, postprocess, postprocess_decoded
from utils.thresholds import Thresholds

CONFIG = ModelConfig(class_names=("cat", "dog"), input_size=(128, 128))


def silent(batch: int = 1) -> list[Tensor]:
    return [torch.full((batch, 3, 128 // s, 128 // s, 7), -20.0) for s in STRIDES]


def put(
    maps: list[Tensor], box: tuple[float, ...], logits: list[float], level: int = 1, anchor: int = 0, image: int = 0
) -> None:
    """Write a box (cxcywh) with its objectness and class logits into the cell of its centre."""
    stride = STRIDES[level]
    column, row = int(box[0] // stride), int(box[1] // stride)
    place = maps[level][image, anchor, row, column]
    size, cell = torch.tensor(CONFIG.anchors[level][anchor]), torch.tensor([float(column), float(row)])
    place[:4] = encode(torch.tensor(box), size, cell, stride, CONFIG.scale_xy[level])
    place[4:] = torch.tensor(logits)


def test_one_object_is_detected_at_its_position() -> None:
    maps = silent()
    put(maps, (40.0, 56.0, 30.0, 20.0), [3.0, 4.0, -4.0])
    (found,) = postprocess(maps, CONFIG)
    assert found.boxes.tolist() == [pytest.approx([25, 46, 55, 66], abs=1e-3)]
    expected = torch.sigmoid(torch.tensor(3.0)) * torch.sigmoid(torch.tensor(4.0))
    assert found.labels.tolist() == [0] and found.scores[0] == pytest.approx(expected.item(), abs=1e-6)


def test_nothing_found_is_an_empty_result_for_each_image() -> None:
    found = postprocess(silent(3), CONFIG)
    assert [len(each) for each in found] == [0, 0, 0] and found[0].boxes.shape == (0, 4)


def test_boxes_of_one_class_that_overlap_are_one_object_and_of_two_classes_two() -> None:
    maps = silent()
    put(maps, (40.0, 56.0, 30.0, 20.0), [5.0, 5.0, -9.0], anchor=0)
    put(maps, (41.0, 56.0, 30.0, 20.0), [3.0, 5.0, -9.0], anchor=1)
    assert len(postprocess(maps, CONFIG)[0]) == 1
    put(maps, (41.0, 56.0, 30.0, 20.0), [3.0, -9.0, 5.0], anchor=1)
    assert sorted(postprocess(maps, CONFIG)[0].labels.tolist()) == [0, 1]


def test_multi_label_lets_a_box_answer_for_several_classes() -> None:
    maps = silent()
    put(maps, (40.0, 56.0, 30.0, 20.0), [5.0, 2.0, 1.0])
    assert len(postprocess(maps, CONFIG, Thresholds(multi_label=False))[0]) == 1
    assert postprocess(maps, CONFIG, Thresholds(multi_label=True))[0].labels.tolist() == [0, 1]


def test_images_of_a_batch_do_not_mix() -> None:
    maps = silent(2)
    put(maps, (40.0, 56.0, 30.0, 20.0), [5.0, 5.0, -9.0], image=1)
    put(maps, (90.0, 90.0, 40.0, 30.0), [5.0, -9.0, 5.0], image=0, level=2)
    first, second = postprocess(maps, CONFIG)
    assert first.labels.tolist() == [1] and second.labels.tolist() == [0]


def test_detections_come_best_first_and_no_more_than_asked_for() -> None:
    maps = [torch.randn(1, 3, 128 // s, 128 // s, 7, generator=torch.Generator().manual_seed(1)) for s in STRIDES]
    (found,) = postprocess(maps, CONFIG, Thresholds(score_threshold=0.001, max_detections=17))
    assert len(found) == 17 and (found.scores[:-1] >= found.scores[1:]).all()


def test_suppression_looks_at_a_bounded_number_of_candidates() -> None:
    maps = [torch.randn(1, 3, 512 // s, 512 // s, 7) for s in STRIDES]
    seen: list[int] = []

    def count(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> Found:
        seen.append(len(boxes))
        return boxes, scores, labels

    postprocess(maps, CONFIG, Thresholds(score_threshold=0.0, suppress=count, multi_label=True))
    postprocess(maps, CONFIG, Thresholds(score_threshold=0.0, suppress=count, max_detections=1500))
    scores = torch.rand(1, 1600, 1)
    scores[0, :700] = float("nan")
    postprocess_decoded(torch.rand(1, 1600, 4), scores, CONFIG, Thresholds(score_threshold=0.0, suppress=count))
    assert seen == [1000, 1500, 900]


def test_many_candidates_below_the_threshold_do_not_get_through() -> None:
    scores = torch.full((1, 1500, 2), 0.1)
    scores[0, [3, 700, 1400], 1] = torch.tensor([0.6, 0.5, 0.7])
    boxes = torch.arange(1500.0)[None, :, None] * 50 + torch.tensor([0.0, 0, 20, 20])
    (found,) = postprocess_decoded(boxes, scores, CONFIG, Thresholds(score_threshold=0.5, multi_label=True))
    assert found.scores.tolist() == pytest.approx([0.7, 0.6, 0.5]) and found.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_predictions_below_the_threshold_by_objectness_alone_are_not_read(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, limit = silent(), np.log(threshold / (1 - threshold))
    for column, logit in enumerate((limit - 0.01, limit + 0.01, limit + 5)):
        put(maps, (8.0 + 16 * column, 24.0, 30.0, 20.0), [logit, 20.0, -20.0])
    original, seen = nets.postprocess._best_candidates, []
    monkeypatch.setattr(
        nets.postprocess, "_best_candidates", lambda scores, rules: seen.append(len(scores)) or original(scores, rules)
    )
    assert len(postprocess(maps, CONFIG, Thresholds(score_threshold=threshold))[0]) == 2 and seen == [2]


def test_non_finite_outputs_are_removed() -> None:
    maps = silent()
    put(maps, (40.0, 56.0, 30.0, 20.0), [5.0, 5.0, -9.0])
    maps[1][0, 0, 0, 0] = float("nan")
    maps[2][0, 0, 0, 0, 4] = float("nan")
    assert len(postprocess(maps, CONFIG)[0]) == 1


def test_a_network_that_decodes_by_itself_gives_the_same_detections() -> None:
    boxes = torch.tensor([[[25.0, 46, 55, 66], [26, 46, 56, 66], [80, 80, 100, 110]]])
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.3], [0.2, 0.7]]])
    (found,) = postprocess_decoded(boxes, scores, CONFIG)
    assert found.labels.tolist() == [0, 1] and found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_thresholds_of_zero_and_one_are_allowed() -> None:
    maps = silent()
    assert len(postprocess(maps, CONFIG, Thresholds(score_threshold=1.0))[0]) == 0
    assert len(postprocess(maps, CONFIG, Thresholds(score_threshold=0.0))[0]) == CONFIG.max_detections


def read_with_torchvision(
    maps: list[Tensor], score_threshold: float, iou_threshold: float, multi_label: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same computed by PyTorch and torchvision for all positions: boxes, scores, labels of the best 100."""
    boxes, scores = [], []
    for raw, anchors, stride, scale in zip(maps, CONFIG.anchors, STRIDES, CONFIG.scale_xy, strict=True):
        raw = raw.float()
        decoded = decode_level(raw, torch.tensor(anchors), stride, scale).reshape(-1, 4)
        boxes.append(box_convert(decoded, "cxcywh", "xyxy"))
        scores.append((raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()).reshape(-1, 2))
    every, score = torch.cat(boxes), torch.cat(scores)
    if multi_label:
        place, label = (score >= score_threshold).nonzero(as_tuple=True)
    else:
        label = score.argmax(1)
        place = (score.amax(1) >= score_threshold).nonzero()[:, 0]
        label = label[place]
    best = score[place, label]
    good = every[place].isfinite().all(1)
    place, label, best = place[good], label[good], best[good]
    order = best.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    place, label, best = place[order], label[order], best[order]
    kept = [
        part[nms(every[place[part]], best[part], iou_threshold)]
        for part in ((label == c).nonzero()[:, 0] for c in (0, 1))
    ]
    keep = torch.cat(kept).sort().values[:100]
    return every[place[keep]].numpy(), best[keep].numpy(), label[keep].numpy()


@pytest.mark.parametrize("kind", ["random", "half", "few", "extreme", "nothing"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_detections_are_those_of_pytorch_and_torchvision(kind: str, multi_label: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    spread = {"few": 6.0, "extreme": 60.0}.get(kind, 2.0)
    maps = [torch.randn(2, 3, 256 // s, 256 // s, 7, generator=generator) * spread for s in STRIDES]
    for raw in maps:
        if kind == "nothing":
            raw[..., 4] = -50
        if kind == "few":
            raw[..., 4] -= 6
        if kind == "extreme":
            raw.view(-1)[::97], raw.view(-1)[5::89] = float("nan"), float("inf")
            raw.view(-1)[7::83] = float("-inf")
    maps = [raw.half() for raw in maps] if kind == "half" else maps
    for score_threshold, iou_threshold in ((0.001, 0.5), (0.25, 0.3), (0.7, 0.0)):
        found = postprocess(maps, CONFIG, Thresholds(score_threshold, iou_threshold, multi_label=multi_label))
        for number, each in enumerate(found):
            one = [raw[number : number + 1] for raw in maps]
            boxes, scores, labels = read_with_torchvision(one, score_threshold, iou_threshold, multi_label)
            assert len(each) == len(boxes), (kind, score_threshold)
            np.testing.assert_allclose(each.scores, scores, atol=1e-6)
            same = np.ones(len(each), bool) if kind != "extreme" else np.diff(each.scores, prepend=2) < -1e-6
            np.testing.assert_array_equal(each.labels[same], labels[same])
            np.testing.assert_allclose(each.boxes[same], boxes[same], rtol=1e-4, atol=1e-3)
