"""`--grow-sizes`: the input size of each epoch, and rejected values."""

from __future__ import annotations

from typing import Any

import pytest

from training.checks import check_before_loading
from training.options import TrainOptions
from training.setup import epoch_sizes
from utils.config import check_options
from utils.errors import UserError


def options(**changes: Any) -> TrainOptions:
    values = {"data": ".", "input_size": (320,), "epochs": 10, "grow_sizes": (192, 256), "grow_until": (0.4, 0.7)}
    return check_options(TrainOptions, values | changes)


def test_each_size_lasts_until_its_part_of_the_run() -> None:
    sizes = [epoch_sizes(options(), (320, 320), epoch, 10) for epoch in range(10)]
    assert [size[0][0] for size in sizes if size] == [192] * 4 + [256] * 3 + [320] * 3


def test_a_size_that_is_not_square_keeps_its_proportions() -> None:
    assert epoch_sizes(options(), (320, 480), 0, 10) == [(192, 288)]


def test_sizes_vary_around_the_present_one() -> None:
    sizes = epoch_sizes(options(multi_scale=0.2), (320, 320), 0, 10)
    assert sizes == [(160, 160), (192, 192), (224, 224)]


def test_without_growing_the_loader_keeps_its_sizes() -> None:
    assert epoch_sizes(options(grow_sizes=(), grow_until=()), (320, 320), 0, 10) is None


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"grow_until": (0.4,)}, "--grow-until"),
        ({"grow_until": (0.7, 0.4)}, "--grow-until"),
        ({"grow_sizes": (256, 192)}, "--grow-sizes"),
        ({"grow_sizes": (256, 320)}, "--grow-sizes"),
        ({"grow_sizes": (100, 256)}, "--grow-sizes"),
        ({"label_scores": (0.6, 0.3)}, "--label-scores"),
        ({"teacher": ("nowhere.json",)}, "--teacher"),
        ({"shards": "shards", "grow_sizes": (192, 256)}, "--grow-sizes"),
    ],
)
def test_invalid_combinations_are_rejected(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as error:
        check_before_loading(options(**changes))
    assert error.value.where == where
