"""Selection of the best checkpoint by the metric given in `--best-by`."""

from __future__ import annotations

import pytest

from training.options import BEST_BY
from training.state import best_score

EARLY = {"voc10_mAP50": 0.88, "coco_AP": 0.494}  # a real run: the early peak of mAP50 has the worse boxes
LATE = {"voc10_mAP50": 0.87, "coco_AP": 0.515}


def test_fitness_prefers_tight_boxes_to_an_early_peak_of_map50() -> None:
    assert best_score(LATE, "fitness") > best_score(EARLY, "fitness")
    assert best_score(EARLY, "voc10_mAP50") == 0.88 and best_score(LATE, "coco_AP") == 0.515


@pytest.mark.parametrize("best_by", BEST_BY)
def test_the_weights_sum_to_one_and_a_missing_metric_is_zero(best_by: str) -> None:
    assert sum(BEST_BY[best_by].values()) == pytest.approx(1)
    assert best_score({"voc10_mAP50": None, "coco_AP": None}, best_by) == 0
