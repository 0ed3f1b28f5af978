"""Distributed runs equal a single process: gradients, losses, scores, resuming, prediction; joint exit."""

from __future__ import annotations

import csv
import filecmp
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed_run
import pytest
import torch
from torch.distributed import TCPStore

import eval as eval_command
import predict
import train
from data.loader import TrainLoader
from data.open import open_dataset
from data.skips import Skip
from data.tools.demo import write_demo
from nets.weights.checkpoint import load_checkpoint
from training import options as training_options
from training import run as training_run
from training.engine import EpochProgress
from training.state import Progress, check_parts, epoch_parts, share_batch
from utils import distributed
from utils.config import check_options
from utils.errors import RunError, UserError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs fork and gloo"),
    pytest.mark.timeout(1800),  # processes that wait for each other are slow where others have the cores
]
SECONDS_TO_END = 60  # from the death of a process to the end of all: 3 s of grace, 30 s of torchrun's, and a reserve
TWO_PROCESSES = 2
HERE = Path(distributed_run.__file__)
PICTURES = 18


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training images, so that the second batch of eight has only four, and three validation images."""
    folder = write_demo(tmp_path_factory.mktemp("data"), PICTURES, sides=(64, 96))
    names = sorted(p.stem for p in (folder / "JPEGImages").iterdir())
    for split, chosen in (("train", names[:12]), ("val", names[12:15])):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(chosen) + "\n")
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of one, two and four processes."""
    folder = tmp_path_factory.mktemp("runs")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # one for all starts, as torchrun's is
    with open(folder / "errors", "w") as errors:
        command = [sys.executable, str(HERE), "several", str(store.port), str(data), str(folder)]
        processes = subprocess.Popen(command, stderr=errors, env=_environment())
    try:
        arguments = distributed_run.train_command(data, "--batch-size", 8)
        torch.save(distributed_run.first_step([*arguments, "--run-dir", str(folder / "one")]), folder / "one.pt")
        with distributed_run.in_double():
            train.main([*arguments, "--epochs", "2", "--eval-every", "2", "--run-dir", str(folder / "single")])
        code = processes.wait()
    finally:
        processes.kill()
    assert code == 0, (folder / "errors").read_text()[-5000:]
    return folder


def _environment() -> dict[str, str]:
    lines = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent), "GLOO_SOCKET_IFNAME": "lo"}
    return {name: value for name, value in os.environ.items() if "RANK" not in name} | lines


def _rows(run: Path) -> list[dict[str, Any]]:
    """The numbers of metrics.csv. Epochs without evaluation have no scores."""
    with open(run / "metrics.csv") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


# ---- learning


@pytest.mark.parametrize(("name", "count"), [("two", 2), ("four", 4)])
def test_processes_with_shared_batch_norm_have_the_gradient_of_one(runs: Path, name: str, count: int) -> None:
    one = torch.load(runs / "one.pt")
    many = [torch.load(runs / f"{name}{rank}.pt") for rank in range(count)]
    assert [image for each in many for image in each["images"]] == one["images"]  # none lost, none repeated
    largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    for each in many:
        for key, gradient in one["gradients"].items():
            torch.testing.assert_close(each["gradients"][key], gradient, rtol=1e-5, atol=1e-5 * min(largest, 1.0))
        for key, buffer in one["buffers"].items():
            torch.testing.assert_close(each["buffers"][key], buffer, rtol=1e-5, atol=1e-5)
    assert sum(each["loss"] for each in many) / count == pytest.approx(one["loss"], rel=1e-5)


def test_all_processes_hold_the_same_gradient_after_accumulating(runs: Path) -> None:
    first, second = (torch.load(runs / f"accumulated{rank}.pt") for rank in range(2))
    assert set(first["images"]).isdisjoint(second["images"])
    for key, gradient in first["gradients"].items():
        assert torch.equal(second["gradients"][key], gradient)
        assert gradient.isfinite().all()


def test_curves_of_two_processes_follow_those_of_one(runs: Path) -> None:
    _assert_one_curve(runs / "whole", runs / "single")


def _assert_one_curve(run: Path, other: Path) -> None:
    for one, two in zip(_rows(run), _rows(other), strict=True):
        assert one["step"] == two["step"]
        assert one["learning_rate"] == two["learning_rate"]
        for name in ("train_box", "train_objectness", "train_class"):
            assert two[name] == pytest.approx(one[name], rel=1e-3)


def test_processes_that_do_not_share_their_gradients_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed.check_equal("gradient", 3.0)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, 1.1 * value])
    with pytest.raises(RunError, match=r"gradient: differs between processes \(3, 3.3\)"):
        distributed.check_equal("gradient", 3.0)


def test_losses_of_processes_are_averaged_so_that_any_of_them_may_be_saved() -> None:
    parts = [EpochProgress(2, 4, {"box": 8.0}), EpochProgress(2, 3, {"box": 4.0, "class": 1.0})]
    merged = parts[0].merged(parts)
    assert merged == EpochProgress(2, 3.5, {"box": 6.0, "class": 0.5})
    assert merged.merged([merged, merged]) == merged
    assert repr(EpochProgress(0, 0, {}).scaled(2)) == repr(EpochProgress(0, 0, {}).scaled(2).scaled(0.5))


def test_an_image_that_any_process_could_not_read_is_counted_once() -> None:
    first, second = (Skip("image", "unreadable_image", f"{name}.jpg", "is cut off", "") for name in "ab")
    loader = TrainLoader.__new__(TrainLoader)
    loader.restore_skips([first, second, first])
    assert loader.skips == [first, second]


# ---- scores


def test_two_processes_score_while_training_as_one_does(runs: Path, data: Path) -> None:
    row = _rows(runs / "whole")[-1]
    with distributed_run.in_double():
        detector = training_run.Detector.from_model(_model(load_checkpoint(runs / "whole" / "last.pth")), "cpu")
    result = training_run.evaluate(detector, open_dataset(str(data), "val"), batch_size=2, progress=False)
    assert result is not None
    for name in ("voc07_mAP50", "voc10_mAP50", "coco_AP", "coco_AP50"):
        assert row[name] == pytest.approx(result.figures[name], abs=1e-12)


def _model(checkpoint: Any) -> Any:
    model = training_run.YOLOv4(checkpoint.config)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def test_four_processes_of_which_one_has_no_image_give_the_figures_of_one(runs: Path, data: Path) -> None:
    eval_command.main(distributed_run.eval_arguments(data, runs / "whole", runs / "figures1.json"))
    one, four = (json.loads((runs / f"figures{count}.json").read_text()) for count in (1, 4))
    assert one["num_images"] == 3
    differing = {name for name in one if json.dumps(one[name]) != json.dumps(four[name])}  # as text: NaN is not NaN
    assert differing <= {"images_per_second", "timing"}


# ---- resuming


def test_a_signal_to_one_process_stops_all_and_resuming_gives_the_uninterrupted_run(runs: Path) -> None:
    whole, resumed = (load_checkpoint(runs / name / "last.pth") for name in ("whole", "resumed"))
    assert whole.weights.keys() == resumed.weights.keys()
    for key, value in whole.weights.items():
        assert torch.equal(resumed.weights[key], value), key
    for one, two in zip(_rows(runs / "whole"), _rows(runs / "resumed"), strict=True):
        assert two == pytest.approx(one, rel=1e-9)
    assert "resumed: epoch 1, batch 1" in (runs / "printed0").read_text()


def test_a_run_begun_by_two_processes_goes_on_in_four_at_the_same_images_a_step(runs: Path) -> None:
    assert (runs / "printed0").read_text().count("resumed: epoch 1, batch 1") == 2
    _assert_one_curve(runs / "whole", runs / "resumed4")


def test_a_run_may_go_on_with_fewer_processes_at_the_same_images_a_step(runs: Path) -> None:
    checkpoint = load_checkpoint(runs / "whole" / "last.pth")
    assert share_batch(4, checkpoint) == (TWO_PROCESSES, 8)
    assert share_batch(4, None) == (1, 4)


def test_a_run_is_not_shared_by_processes_that_cannot_have_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    checkpoint: Any = SimpleNamespace(info={"world_size": 2})
    with pytest.raises(UserError, match="3 processes cannot share the run's 8 images"):
        share_batch(4, checkpoint)


def test_the_rest_of_an_epoch_of_shards_is_cut_as_its_beginning_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = epoch_parts(check_options(training_options.TrainOptions, {"shards": "shards", "workers": 3}))
    assert parts == 6
    assert epoch_parts(check_options(training_options.TrainOptions, {"workers": 3})) == 1
    checkpoint: Any = SimpleNamespace(info={"parts": 6})
    middle, between = Progress(batch=EpochProgress(5, 40, {})), Progress(epoch=2)
    check_parts(checkpoint, middle, 6)
    check_parts(checkpoint, between, 4)
    with pytest.raises(UserError, match="--workers: epoch 1 was started with 6 workers in total, not 4"):
        check_parts(checkpoint, middle, 4)


# ---- one writes, one prints


def test_only_the_main_process_writes_and_prints(runs: Path) -> None:
    """The other processes themselves check that they open no file of the run's folder for writing (distributed_run)."""
    assert "best: epoch" in (runs / "printed0").read_text()
    for rank in (1, 2, 3):
        printed = (runs / f"printed{rank}").read_text().partition("predicting\n")
        assert [line for line in printed[0].splitlines() if not _is_of_a_picture(line)] == []
    names = {path.name for path in (runs / "whole").iterdir()}
    assert names >= {"config.json", "last.pth", "best.pth", "metrics.csv", "curves.png"}
    assert not [name for name in names if name.endswith(".tmp")]


def test_each_image_is_named_once_and_all_are_summed_up_once(runs: Path) -> None:
    printed = [(runs / f"printed{rank}").read_text().partition("predicting\n")[2].splitlines() for rank in range(4)]
    of_pictures = [line for each in printed for line in each if _is_of_a_picture(line)]
    assert Counter(Path(line.partition(": ")[0]).name for line in of_pictures) == Counter(
        f"{number:06d}.jpg" for number in range(PICTURES)
    )
    assert [[line for line in each if not _is_of_a_picture(line)] for each in printed[1:]] == [[]] * 3
    assert printed[0][-1] == f"predict: {PICTURES} of {PICTURES} sources done"


def _is_of_a_picture(line: str) -> bool:
    return ".jpg: " in line


@pytest.mark.parametrize("count", [2, 4])
def test_a_folder_shared_by_processes_is_predicted_as_by_one(runs: Path, data: Path, count: int) -> None:
    one, many = runs / "predicted1", runs / f"predicted{count}"
    if not one.exists():
        assert predict.main(distributed_run.predict_command(data, runs / "whole", one)) == 0
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(many) for path in many.rglob("*") if path.is_file())
    assert len(files) > 3 * PICTURES  # each drawn, and two crops of each
    assert [name for name in files if not filecmp.cmp(one / name, many / name, shallow=False)] == []


def test_sources_for_one_process_are_rejected_in_distributed_runs(
    runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = distributed_run.predict_command(data, runs / "whole", tmp_path)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="-: can be read by one process only"):
        predict.main(["-", *command[1:]])
    monkeypatch.setattr(distributed, "gather", lambda value: [value, b"another"])
    with pytest.raises(RunError, match="SOURCE: differs between the processes"):
        predict.main(command)


# ---- the end


def _torchrun(name: str, arguments: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return subprocess.run(
        [*torchrun, str(HERE), name, *arguments], capture_output=True, text=True, env=_environment(), check=False
    )


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_a_killed_process_is_restarted_and_a_failing_one_ends_all(
    data: Path, tmp_path: Path
) -> None:
    """One test for two commands, because torchrun takes seconds to start."""
    run = tmp_path / "run"
    command = distributed_run.train_command(data, "--batch-size", 4, "--epochs", 5, "--eval-every", 5)
    command += ["--run-dir", str(run), "--resume", "auto"]
    left = _torchrun("sigterm_to_torchrun", command, "--max-restarts", "1")
    assert left.returncode != 0
    assert "stopped in epoch 1" in left.stdout
    assert left.stderr.count("SIGTERM: saving") == 1
    progress = load_checkpoint(run / "last.pth").training["progress"]
    assert (progress["epoch"], progress["batch"]["batch"]) == (0, 1)

    before = os.times()
    done = _torchrun("failing", command, "--max-restarts", "1")
    seconds = time.time() - float((tmp_path / "failed_at").read_text())
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    got = busy / (after.elapsed - before.elapsed)
    assert done.returncode == 1
    assert "resumed: epoch 1, batch 1" in done.stdout
    assert "resumed: epoch 2, batch 0" in done.stdout
    assert "exitcode: -9) local_rank: 1" in done.stderr
    summary = done.stderr[done.stderr.rindex("Root Cause (first observed failure)") :]
    assert "rank      : 1" in summary
    assert "the disk is on fire" in summary
    assert seconds * min(got, 1.0) < SECONDS_TO_END  # `got`: the cores' part that other work has left to it
    assert load_checkpoint(run / "last.pth").training is not None  # and it could be resumed again


def test_a_lost_process_is_distinguished_from_an_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0)

    def lose(argv: list[str] | None) -> int:
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    def err(argv: list[str] | None) -> int:
        raise UserError("--data", "is missing")

    with pytest.raises(RunError, match="rank 2: another process has exited"):
        distributed.recorded(lose)(None)
    with pytest.raises(UserError, match=r"^rank 2: --data: is missing"):
        distributed.recorded(err)(None)
    assert not distributed.is_lost(RuntimeError("shape mismatch"))
