"""`--minutes` is replanned during a run and not exceeded; a run without progress prints a warning."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from train_makers import run_train

import training.run
from training import budget
from training.budget import Clock, duration_text, plan_steps

EPOCH = 10  # steps
PLAN = {"steps_per_epoch": EPOCH, "eval_every": 1, "score_seconds": 0.0, "budget": 1000.0, "most_steps": 10**6}


def planned(step: int, total: int, left: float, step_seconds: float, **others: float) -> int:
    values = {**PLAN, **others, "step": step, "total_steps": total, "left": left, "step_seconds": step_seconds}
    return plan_steps(**values)  # type: ignore[arg-type]


def test_a_plan_that_ends_in_time_is_not_changed() -> None:
    each = 1 / budget.OVERHEAD
    assert planned(100, 1000, 900, each) == 1000
    assert planned(100, 1000, 870, each) == 1000  # 30 s late, of 1000


def test_a_slower_machine_gets_fewer_whole_epochs_and_a_freer_one_more() -> None:
    assert planned(100, 1000, 900, 4 / budget.OVERHEAD) == 320  # 225 more steps at 4 s, in whole epochs
    assert planned(100, 300, 900, 1 / budget.OVERHEAD) == 1000
    assert planned(100, 300, 900, 1 / budget.OVERHEAD, most_steps=400) == 400


def test_the_last_epoch_is_cut_where_no_whole_one_fits() -> None:
    assert planned(102, 1000, 40, 10 / budget.OVERHEAD) == 106
    assert planned(102, 1000, -5, 10 / budget.OVERHEAD) == 102


def test_scoring_takes_its_part_of_the_time() -> None:
    # 10 s an epoch and 10 s to score it: half as many epochs as without; the last scoring is kept free
    assert planned(0, 1000, 1000, 1 / budget.OVERHEAD, score_seconds=10.0) == 490


def test_a_clock_counts_steps_and_goes_on_where_a_run_was_interrupted() -> None:
    times = iter([100.0, 100.0, 104.0, 104.0, 106.0])
    clock = Clock(spent=50.0, now=lambda: next(times))
    clock.start()
    clock.begin_epoch()
    clock.count_step()
    clock.count_step()
    clock.measure()
    assert clock.step == 2.0 and clock.total() == 56.0


def test_durations_are_formatted_as_text() -> None:
    assert (duration_text(40), duration_text(1500), duration_text(11400)) == ("40 s", "25 min", "3 h 10 min")


def test_a_run_on_a_machine_that_becomes_faster_trains_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "_time_step", lambda *_: 60.0)  # as on a machine that is busy for a moment
    monkeypatch.setattr(budget, "_time_image", lambda *_: 0.0)
    ticks = itertools.count(0.0, 0.5)  # seconds, each time that the run looks at its clock
    monkeypatch.setattr(training.run, "Clock", lambda: Clock(now=lambda: next(ticks)))
    command = ("--minutes", "10", "--batch-size", "4", "--eval-every", "50")
    run_train(tmp_path / "run", *command, epochs=6)
    said = capsys.readouterr().out
    assert "10 minutes: 3 epochs" in said and "replanned" in said
    (end,) = [line for line in said.splitlines() if line.startswith("time: ")]
    assert end.endswith(" of 10 minutes, 6 epochs")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 7 and json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 6


@pytest.mark.parametrize(("epochs", "part"), [(3, "33%"), (2, "100%")])
def test_a_run_without_progress_warns_after_a_third(
    epochs: int, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(tmp_path / "run", "--learning-rate", "1e-9", epochs=epochs)
    lines = [line for line in capsys.readouterr().err.splitlines() if "the model has learnt nothing" in line]
    assert len(lines) == 1 and f"after {part} of the run" in lines[0]
    assert "--preset auto" in lines[0] and "dataset.py check" in lines[0]


def test_a_busy_machine_is_reported_once_with_the_share_received(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = SimpleNamespace(_is_busy_warned=False)
    for share in (None, 0.71, 0.3, 0.2):
        monkeypatch.setattr(training.run, "cpu_share", lambda share=share: share)
        training.run.Run._warn_of_busy_machine(run)  # type: ignore[arg-type]
    (line,) = capsys.readouterr().err.splitlines()
    assert "only 30% of the CPU time" in line and "--threads" in line
