"""Faults during training: a one-line message, no lost results, and no invalid checkpoint."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from train_makers import TINY, assert_same, assert_same_run, demo_data, resume, run_train

import train
import utils.files
from nets.losses import YOLOLoss
from nets.weights.checkpoint import load_checkpoint
from training import run as training_run
from training.engine import Trainer, train_epoch
from training.run_folder import lock_run, unlock_runs
from utils.errors import RunError, UserError, is_out_of_memory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of the demo data that a test may change."""
    return shutil.copytree(demo_data(), tmp_path / "data")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs without faults."""
    return run_train(tmp_path_factory.mktemp("runs") / "whole")


# ---- NaN


def spoil_loss(monkeypatch: pytest.MonkeyPatch, at: Sequence[int], value: float = float("nan")) -> list[int]:
    """Make the losses of these batches NaN; returns a list that holds how many there were."""
    original, count = YOLOLoss.__call__, [0]

    def spoilt(self: Any, predictions: Any, targets: Any) -> dict[str, Tensor]:
        losses = original(self, predictions, targets)
        if not torch.is_grad_enabled():  # the validation loss
            return losses
        count[0] += 1
        return {k: v * value if count[0] in at else v for k, v in losses.items()}

    monkeypatch.setattr(YOLOLoss, "__call__", spoilt)
    return count


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_loss_stops_the_step_and_reports_images_and_rate(
    value: float, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count = spoil_loss(patch, [4], value)
        with pytest.raises(RunError) as caught:
            run_train(tmp_path / "run")
    message = str(caught.value)
    assert count == [4] and caught.value.exit_code == 1
    assert message.startswith(f"step 3: the loss is {value} (images 0000") and "learning rate " in message
    assert "--learning-rate" in message and "\n" not in message
    saved = load_checkpoint(tmp_path / "run" / "last.pth")
    assert saved.training is not None and saved.training["progress"]["epoch"] == 1
    resume(tmp_path / "run")  # without the fault
    assert_same_run(tmp_path / "run", whole)


def test_a_nan_gradient_stops_before_the_weights_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.gradient

    def spoilt(self: Trainer, batches: Any) -> Any:
        losses = original(self, batches)
        next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return losses

    monkeypatch.setattr(Trainer, "gradient", spoilt)
    with pytest.raises(RunError, match=r"step 0: the gradient is (inf|nan) \(images 0000"):
        run_train(tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pth").info["epoch"] == 0


def test_rolling_back_goes_on_from_the_last_checkpoint_at_half_the_rate(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        spoil_loss(patch, [4])
        run_train(tmp_path / "run", "--nan", "rollback")
    assert "going back to the last checkpoint, at half the learning rate" in capsys.readouterr().err
    rows = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (whole, tmp_path / "run")]
    assert rows[1][0] == rows[0][0]
    assert float(rows[1][1]["learning_rate"]) == pytest.approx(float(rows[0][1]["learning_rate"]) / 2)
    assert rows[1][1]["step"] == rows[0][1]["step"]


def test_rolling_back_is_given_up_after_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = spoil_loss(monkeypatch, range(1, 100))
    with pytest.raises(RunError, match="even after 3 rollbacks"):
        run_train(tmp_path / "run", "--nan", "rollback")
    assert count == [4]
    state = load_checkpoint(tmp_path / "run" / "last.pth").training
    assert state is not None and state["progress"]["rollbacks"] == 3


def test_weights_with_nan_after_the_last_step_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, count = Trainer.update, [0]

    def spoilt(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        count[0] += 1
        if count[0] == 3:  # the last of the first epoch: no loss comes after it that would be NaN
            next(self.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "update", spoilt)
    with pytest.raises(
        RunError, match=r"step 3: backbone.* is no longer finite \(learning rate .*\); it was not saved"
    ):
        run_train(tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pth").info["epoch"] == 0
    count[0] = 0
    run_train(tmp_path / "rolled", "--nan", "rollback")
    assert "going back to the last checkpoint" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "rolled" / "last.pth").info["epoch"] == 2


# ---- memory


class Recorder(torch.nn.Module):
    """A linear model that runs out of memory for larger batches."""

    def __init__(self, room: int, error: BaseException) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3, momentum=None)
        self.linear = torch.nn.Linear(12, 1, bias=False)
        self.room, self.error, self.seen = room, error, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        out = self.norm(images.float())
        if len(images) > self.room:
            raise self.error
        return self.linear(out.flatten(1))


def recorder_trainer(room: int, error: BaseException, accumulate: int = 1) -> Trainer:
    torch.manual_seed(0)
    model = Recorder(room, error)
    optimizer = torch.optim.SGD([{"params": model.parameters(), "base_rate": 0.1}], lr=0.1)

    def loss(predictions: Tensor, targets: Any) -> dict[str, Tensor]:
        assert len(predictions) == len(targets["image_ids"])
        assert all(0 <= i < len(predictions) for i in targets["image_index"].tolist())
        return {"box": (predictions[:, 0] - targets["boxes"][:, 0]).square().mean()}

    device = torch.device("cpu")
    return Trainer(model, loss, optimizer, lambda step: 1.0, device, accumulate=accumulate)  # type: ignore[arg-type]


def recorder_batch(size: int) -> tuple[Tensor, dict[str, Any]]:
    images = torch.arange(size * 12, dtype=torch.uint8).view(size, 3, 2, 2)
    boxes = torch.arange(size * 4.0).view(size, 4)
    index = torch.arange(size)
    return images, {"boxes": boxes, "labels": index, "image_index": index, "image_ids": [f"i{n}" for n in range(size)]}


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_reduced_until_it_fits_with_a_message(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = recorder_trainer(3, error)
    progress, whole = train_epoch(trainer, [recorder_batch(8)] * 2, 2, "", show=False)
    assert whole and progress.images == 16 and trainer.step == 2 and trainer.parts == 4
    assert trainer.model.seen == [8, 4, *[2] * 4, *[2] * 4]  # tried, tried, then for good
    said = capsys.readouterr().err
    assert (
        "not enough for 8 images at once; continuing with 4 at a time" in said and "continuing with 2 at a time" in said
    )


def test_a_step_with_a_reduced_batch_equals_the_full_step() -> None:
    weights = []
    for room in (100, 2):
        trainer = recorder_trainer(room, OUT_OF_MEMORY[0], accumulate=2)
        trainer.model.norm.eval()
        trainer.frozen = (trainer.model.norm,)
        train_epoch(trainer, [recorder_batch(4), recorder_batch(4)], 2, "", show=False)
        assert trainer.step == 1
        weights.append(trainer.model.linear.weight.detach().clone())
    assert torch.allclose(*weights, rtol=1e-5)


def test_batch_norm_sees_no_image_twice_when_a_step_is_tried_again() -> None:
    trainer = recorder_trainer(4, OUT_OF_MEMORY[0])
    train_epoch(trainer, [recorder_batch(8)], 1, "", show=False)
    assert trainer.model.norm.num_batches_tracked == 2  # two halves, and nothing of the whole that failed


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RunError, match=r"memory: not enough for one image at this size; use a smaller --input-size"):
        train_epoch(recorder_trainer(0, OUT_OF_MEMORY[0]), [recorder_batch(4)], 1, "", show=False)


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train_epoch(recorder_trainer(0, RuntimeError("shape mismatch")), [recorder_batch(4)], 1, "", show=False)


def test_a_cut_batch_stays_cut_when_the_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = Trainer._backward, [0]

    def full(self: Trainer, images: Tensor, targets: Any, share: float) -> Any:
        count[0] += 1
        if count[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(images) > 2:
            raise OUT_OF_MEMORY[0]
        return original(self, images, targets, share)

    monkeypatch.setattr(Trainer, "_backward", full)
    with pytest.raises(BaseException, match="SIGTERM"):
        run_train(tmp_path / "run", epochs=1)
    resume(tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    assert state.info["epoch"] == 1


# ---- workers


def test_a_worker_that_is_killed_ends_the_run_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.update

    def update(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        for worker in list_workers():
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.2)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(RunError, match=r"loader: .*worker") as caught:
        run_train(tmp_path / "run", "--workers", "2")
    assert caught.value.exit_code == 1 and "timed out" not in str(caught.value)  # it did not wait for the time limit
    assert not list_workers()


def list_workers() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid]


# ---- disk


def fill_disk(monkeypatch: pytest.MonkeyPatch, suffix: str, first: int) -> None:
    """Simulate a full disk: from the `first` write on, files with this suffix are truncated."""
    original, count = utils.files.os.fsync, [0]

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"{suffix}.{os.getpid()}.tmp"):
            count[0] += 1
            if count[0] >= first:
                os.truncate(descriptor, 100)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(utils.files.os, "fsync", fsync)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(("suffix", "first"), [("last.pth", 2), ("last.pth", 3), ("best.pth", 1), ("metrics.csv", 1)])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_the_run_can_go_on(
    suffix: str, first: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_disk(patch, suffix, first)
        with pytest.raises(RunError, match=r"No space left on device; it needs .* are free, .* are missing") as caught:
            run_train(run)
    assert caught.value.exit_code == 1 and suffix in str(caught.value)
    assert not list(run.glob(".*"))
    load_checkpoint(run / "last.pth")
    resume(run)
    assert_same_run(run, whole)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="--run-dir"):
        run_train(tmp_path / "run")


# ---- data


def test_skipped_items_are_reported_listed_and_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    year = data / "VOC2026"
    names = (year / "ImageSets/Main/train.txt").read_text().split()
    annotation = year / "Annotations" / f"{names[0]}.xml"
    text = annotation.read_text()
    box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    extra = f"<object><name>car</name><difficult>0</difficult>{box}</object>"
    annotation.write_text(text.replace("</annotation>", extra + "</annotation>"))
    (year / "Annotations" / f"{names[1]}.xml").write_text("")
    picture = year / "JPEGImages" / f"{names[2]}.jpg"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])  # found out in training only
    run = run_train(tmp_path / "run", data=data)
    said = capsys.readouterr()
    for name in names[:3]:
        assert name in said.err, name
    used = len(names) - 2
    assert f"train: {used} images used, 2 skipped, 1 box dropped" in said.out.splitlines()[-8]
    rows = list(csv.DictReader((run / "skipped.csv").read_text().splitlines()))
    assert {(row["kind"], Path(row["where"].split(":")[0]).stem) for row in rows if row["kind"] != "note"} == {
        ("box", names[0]),
        ("image", names[1]),
        ("image", names[2]),
    }
    assert said.err.count(picture.name) == 1


def test_unreadable_images_before_an_interruption_are_counted_after_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (data / "VOC2026/ImageSets/Main/train.txt").read_text().split()
    (data / "VOC2026/JPEGImages" / f"{names[0]}.jpg").write_bytes(b"\xff\xd8\xff")
    expected = run_train(tmp_path / "whole", data=data)
    with monkeypatch.context() as patch:
        original = training_run.evaluate

        def stop(*arguments: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **options)

        patch.setattr(training_run, "evaluate", stop)
        with pytest.raises(BaseException, match="SIGTERM"):
            run_train(tmp_path / "run", data=data)
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", expected)
    assert (tmp_path / "run/skipped.csv").read_bytes() == (expected / "skipped.csv").read_bytes()


def test_unusable_data_is_rejected_before_a_folder_is_created(data: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("zebra\n")
    arguments = ["--data", str(data), "--run-dir", str(tmp_path / "run"), "--classes", str(tmp_path / "names.txt")]
    with pytest.raises(UserError, match=r"\(zebra\); found .*car"):
        train.main([*TINY, *arguments])
    assert not (tmp_path / "run").exists()


def test_a_training_never_writes_into_the_data(data: Path, tmp_path: Path) -> None:
    def listing() -> list[tuple[str, int, float]]:
        return sorted((str(p), p.stat().st_size, p.stat().st_mtime) for p in data.rglob("*"))

    before = listing()
    run_train(tmp_path / "run", "--anchors", "auto", data=data, epochs=1)
    assert listing() == before


def test_a_closed_output_pipe_does_not_end_a_run(tmp_path: Path) -> None:
    arguments = [*TINY, "--data", str(demo_data()), "--run-dir", str(tmp_path / "run"), "--epochs", "1"]
    script = Path(train.__file__)
    done = subprocess.run(
        f"{sys.executable} {script} {' '.join(arguments)} 2>&1 | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable=shutil.which("bash"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stdout
    assert load_checkpoint(tmp_path / "run" / "last.pth").info["finished"]


# ---- two at once


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_run_that_another_process_trains_in_is_not_resumed(tmp_path: Path) -> None:
    locked, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        lock_run(tmp_path)
        os.write(locked[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(locked[0], 1)
    try:
        with pytest.raises(UserError, match="another process is training in it"):
            lock_run(tmp_path)
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
    lock_run(tmp_path)  # its owner has gone
    unlock_runs()


def test_a_training_outside_the_main_thread_works_without_signals(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run_train(tmp_path / "run", epochs=1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert_same(load_checkpoint(tmp_path / "run" / "last.pth").info["epoch"], 1)
