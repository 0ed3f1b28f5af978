"""Leftover RANK and WORLD_SIZE variables: a single process runs; settings that would hang are reported in one line."""

from __future__ import annotations

import pytest

from utils import distributed
from utils.errors import UserError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_of_one_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.start("cpu") == "cpu" and distributed.world_size() == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "does not match RANK"),
        ({"RANK": "0", "WORLD_SIZE": "many"}, "does not match RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "9"}, "resolved"),
    ],
)
def test_invalid_values_are_a_one_line_error(
    values: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as caught:
        distributed.start("cpu")
    assert "unset RANK and WORLD_SIZE" in str(caught.value)
