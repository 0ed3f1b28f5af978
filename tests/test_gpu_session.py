"""The session on a lent GPU: its table, and that time which is up starts nothing."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.gpu_session import markdown_table, train_until


def test_a_setting_that_failed_has_a_line_too() -> None:
    good = {"images_a_second": 900.5, "without_loading": 1000.0, "loss": {"box": 1.0, "class": 0.5}, "memory_gib": 3.25}
    rows = [
        {"batch": 64, "amp": "bf16", "fast": True, **good},
        {"batch": 256, "amp": "none", "fast": False, "error": "OutOfMemoryError: CUDA out of memory"},
    ]
    lines = markdown_table(rows).splitlines()
    assert lines[2] == "| 64 | bf16 | yes | 900.5 | 1000.0 | 1.500 | 3.25 |"
    assert lines[3] == "| 256 | none | no | OutOfMemoryError: CUDA out of memory |  |  |  |"


def test_nothing_is_started_when_no_time_is_left(tmp_path: Path) -> None:
    assert train_until(time.monotonic() + 10, ["--data", "nowhere"], tmp_path) == 1
    assert not list(tmp_path.iterdir())
