"""Decoding and encoding of boxes, compared with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nets.anchors import decode, decode_level, encode


def test_zero_offsets_are_the_anchor_in_the_middle_of_its_cell() -> None:
    box = decode(torch.zeros(4), torch.tensor([20.0, 40.0]), torch.tensor([3.0, 5.0]), 16, 1.0)
    assert box.tolist() == [56.0, 88.0, 20.0, 40.0]  # (3.5 * 16, 5.5 * 16)


@pytest.mark.parametrize("scale", [1.0, 1.2, 2.0])
def test_encode_is_the_inverse_of_decode(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    anchors = torch.rand(50, 2, generator=generator, dtype=torch.float64) * 90 + 10
    cells = torch.randint(0, 13, (50, 2), generator=generator).double()
    assert torch.allclose(encode(decode(offsets, anchors, cells, 32, scale), anchors, cells, 32, scale), offsets)


def test_grid_sensitivity_two_reaches_half_a_cell_into_the_neighbours() -> None:
    far = decode(torch.tensor([40.0, -40.0, 0, 0]), torch.ones(2), torch.zeros(2), 8, 2.0)
    assert far[:2].tolist() == pytest.approx([1.5 * 8, -0.5 * 8])


def test_a_huge_raw_size_stays_finite() -> None:
    box = decode(torch.tensor([0.0, 0.0, 1e4, 1e4]), torch.ones(2), torch.zeros(2), 8, 1.0)
    assert box.isfinite().all()


def test_a_complete_level_equals_its_single_cells() -> None:
    raw = torch.randn(2, 3, 4, 5, 7)
    anchors = torch.tensor([[10.0, 20.0], [30.0, 15.0], [50.0, 60.0]])
    dense = decode_level(raw, anchors, 16, 1.1)
    single = decode(raw[1, 2, 3, 4, :4], anchors[2], torch.tensor([4.0, 3.0]), 16, 1.1)
    assert torch.equal(dense[1, 2, 3, 4], single)


def test_a_centre_at_the_limit_of_its_cell_is_encoded_as_a_millionth() -> None:
    box = torch.tensor([16.0, 32.0, 20.0, 40.0], dtype=torch.float64)  # the corner of cell (1, 1) that t does not reach
    offsets = encode(box, torch.tensor([20.0, 20.0]), torch.tensor([1.0, 1.0]), 16, 1.0)
    assert offsets.tolist() == pytest.approx([-math.log(1e6 - 1), math.log(1e6 - 1), 0, math.log(2)])
