"""Several processes do what one does: gradients, curves, scores, resuming, prediction; and they end together."""

from __future__ import annotations

import csv
import filecmp
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_run
import pytest
import torch

import predict
import train
from nets.checkpoint import load_checkpoint
from utils import distributed
from utils.data.demo import write_demo
from utils.engine import EpochProgress
from utils.errors import RunError, UserError

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and gloo"),
    pytest.mark.timeout(1200),  # processes that wait for each other are slow where others have the cores
]
SECONDS_TO_END = 60  # from the death of a process to the end of all: 3 s of grace, 30 s of torchrun's, and a reserve
TWO_PROCESSES = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures to learn from, so that the second step of eight has but four."""
    folder = write_demo(tmp_path_factory.mktemp("data"), 18, sides=(64, 96))
    for split, count in (("train", 12), ("val", 3)):
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        names = sorted(p.stem for p in (folder / "JPEGImages").iterdir())
        path.write_text("\n".join(names[:count] if split == "train" else names[12 : 12 + count]) + "\n")
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one, two and four processes have done the same work."""
    folder = tmp_path_factory.mktemp("runs")
    context = multiprocessing.get_context("fork")  # torch is imported already, which takes longer than all the rest
    ports = [_free_port() for _ in range(6)]
    processes = [context.Process(target=distributed_run.work, args=(rank, ports, data, folder)) for rank in range(4)]
    for process in processes:
        process.start()
    command = distributed_run.train_command(data, "--batch-size", 8)
    torch.save(distributed_run.first_step([*command, "--run-dir", str(folder / "one")]), folder / "one.pt")
    train.main([*command, "--epochs", "2", "--eval-every", "2", "--run-dir", str(folder / "single")])
    for process in processes:
        process.join(1000)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * 4
    return folder


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _rows(run: Path) -> list[dict[str, Any]]:
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("name", "count"), [("two", 2), ("four", 4)])
def test_processes_with_shared_batch_norm_have_the_gradient_of_one(runs: Path, name: str, count: int) -> None:
    one = torch.load(runs / "one.pt")
    many = [torch.load(runs / f"{name}{rank}.pt") for rank in range(count)]
    assert [image for each in many for image in each["images"]] == one["images"]  # none lost, none repeated
    largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    for each in many:
        for key, gradient in one["gradients"].items():
            torch.testing.assert_close(each["gradients"][key], gradient, rtol=1e-5, atol=1e-5 * max(largest, 1.0))
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
    for one, two in zip(_rows(runs / "single"), _rows(runs / "whole"), strict=True):
        assert one["step"] == two["step"]
        assert one["learning_rate"] == two["learning_rate"]
        for name in ("train_box", "train_objectness", "train_class"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=0.01)


def test_a_shared_evaluation_gives_what_one_process_finds(runs: Path, data: Path) -> None:
    row = _rows(runs / "whole")[-1]
    checkpoint = load_checkpoint(runs / "whole" / "last.pth")
    options = train.TrainOptions(data=str(data), val_split="val")
    detector = train.Detector.from_model(_model(checkpoint), "cpu")
    result = train.evaluate(detector, train.open_dataset(options.data, "val"), batch_size=2, progress=False)
    assert result is not None
    for name in ("voc07_mAP50", "voc10_mAP50", "coco_AP", "coco_AP50"):
        assert float(row[name]) == pytest.approx(result.figures[name], abs=1e-12)


def _model(checkpoint: Any) -> Any:
    model = train.YOLOv4(checkpoint.config)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def test_a_signal_to_one_process_stops_all_and_resuming_gives_the_uninterrupted_run(runs: Path) -> None:
    whole, resumed = (load_checkpoint(runs / name / "last.pth") for name in ("whole", "resumed"))
    assert whole.weights.keys() == resumed.weights.keys()
    for key, value in whole.weights.items():
        assert torch.equal(resumed.weights[key], value), key
    for one, two in zip(_rows(runs / "whole"), _rows(runs / "resumed"), strict=True):
        assert {k: float(v) for k, v in two.items()} == pytest.approx({k: float(v) for k, v in one.items()}, rel=1e-9)
    assert "resumed: epoch 1, batch 1" in (runs / "printed0").read_text()


def test_a_run_may_go_on_with_fewer_processes_at_the_same_images_a_step(runs: Path) -> None:
    checkpoint = load_checkpoint(runs / "whole" / "last.pth")
    run = train.Run.__new__(train.Run)
    run.options = train.TrainOptions(batch_size=4)
    assert run._share_batch(checkpoint) == (TWO_PROCESSES, 8)
    assert run._share_batch(None) == (1, 4)


def test_a_run_is_not_shared_by_processes_that_cannot_have_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    run = train.Run.__new__(train.Run)
    run.options = train.TrainOptions(batch_size=4)
    checkpoint = type("Saved", (), {"info": {"world_size": 2}})()
    with pytest.raises(UserError, match="3 processes cannot share the run's 8 images"):
        run._share_batch(checkpoint)


def test_only_the_main_process_writes_and_prints(runs: Path) -> None:
    assert "best: epoch" in (runs / "printed0").read_text()
    for rank in (1, 2, 3):
        assert (runs / f"printed{rank}").read_text().strip() == ""
    names = {path.name for path in (runs / "whole").iterdir()}
    assert names >= {"config.json", "last.pth", "best.pth", "metrics.csv", "curves.png"}
    assert not [name for name in names if name.endswith(".tmp")]


def test_a_folder_shared_by_two_processes_is_predicted_as_by_one(runs: Path, data: Path) -> None:
    assert predict.main(distributed_run.predict_command(data, runs / "whole", runs / "predicted1")) in (0, None)
    one, two = runs / "predicted1", runs / "predicted2"
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert len(files) > 18
    assert [name for name in files if not filecmp.cmp(one / name, two / name, shallow=False)] == []


def test_a_killed_process_is_started_again_and_a_failing_one_ends_all_by_name(data: Path, tmp_path: Path) -> None:
    """One torchrun: rank 1 is killed, all start again from the last checkpoint, then rank 1 fails and all end."""
    command = distributed_run.train_command(data, "--batch-size", 4, "--epochs", 5, "--eval-every", 5)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{_free_port()}"]
    here = Path(distributed_run.__file__)
    done = subprocess.run(
        [*torchrun, str(here), *command, "--run-dir", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent.parent)},
        check=False,
    )
    assert done.returncode == 1
    assert "resumed: epoch 2, batch 0" in done.stdout
    summary = done.stderr[done.stderr.rindex("Root Cause (first observed failure)") :]
    assert "rank      : 1" in summary
    assert "the disk is on fire" in summary
    assert load_checkpoint(tmp_path / "run" / "last.pth").training is not None  # and it could be resumed again


def test_a_lost_process_is_told_from_a_failure_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0)

    def lose(argv: list[str] | None) -> int:
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    def err(argv: list[str] | None) -> int:
        raise UserError("--data", "is missing")

    with pytest.raises(RunError, match="rank 2: another process is gone"):
        distributed.recorded(lose)(None)
    with pytest.raises(UserError, match=r"^rank 2: --data: is missing"):
        distributed.recorded(err)(None)
    assert not distributed.is_lost(RuntimeError("shape mismatch"))


def test_losses_of_processes_are_averaged_so_that_any_of_them_may_be_saved() -> None:
    parts = [EpochProgress(2, 4, {"box": 8.0}), EpochProgress(2, 3, {"box": 4.0, "class": 1.0})]
    merged = parts[0].merged(parts)
    assert merged == EpochProgress(2, 3.5, {"box": 6.0, "class": 0.5})
    assert merged.merged([merged, merged]) == merged
