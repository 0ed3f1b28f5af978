"""An interrupted and resumed run equals an uninterrupted run to the last bit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train_makers import TINY, assert_same, assert_same_run, demo_data, resume, run_train

import train
import training.setup
from data.open import open_dataset
from nets.weights.checkpoint import load_checkpoint, save_checkpoint
from training import budget
from training import options as training_options
from training import run as training_run
from training.choose import DATA_PATHS, absolute_paths
from training.engine import Trainer
from training.fingerprint import fingerprint
from training.interrupts import SignalWatch
from training.options import TrainOptions
from training.state import read_run
from utils import startup
from utils.config import TYPED, Settings, check_options, get_option, parse_settings
from utils.errors import Interrupted, UserError, run_command

EVERYTHING = ("--mixup", "0.5", "--copy-paste", "0.5", "--multi-scale", "0.5", "--albumentations", "0.5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two epochs of two steps."""
    return run_train(tmp_path_factory.mktemp("runs") / "whole", *EVERYTHING)


def break_off(folder: Path, *options: str, signum: int = signal.SIGTERM) -> None:
    """Start the same run, which the caller's signal must end."""
    with pytest.raises(Interrupted) as caught:
        run_train(folder, *EVERYTHING, *options)
    assert caught.value.signum == signum


def at_call(
    target: Any, name: str, number: int, signum: int, monkeypatch: pytest.MonkeyPatch, after: bool = False
) -> None:
    """Send this process a signal at the `number`th call of `target.name`, once."""
    original, calls = getattr(target, name), [0]

    def called(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not after:
            os.kill(os.getpid(), signum)
        result = original(*arguments, **options)
        if calls[0] == number and after:
            os.kill(os.getpid(), signum)
        return result

    monkeypatch.setattr(target, name, called)


# ---- SIGTERM and Ctrl-C, everywhere


@pytest.mark.parametrize(
    ("target", "name", "number", "after", "options"),
    [
        (Trainer, "_backward", 1, False, ()),  # in the very first step
        (Trainer, "_backward", 2, True, ("--workers", "2")),  # in the middle of an epoch, its gradient already made
        (Trainer, "update", 3, False, ()),  # in a step that must not be torn
        (training_run, "evaluate", 1, False, ()),
        (training_run, "write_metrics", 2, False, ()),  # with nothing left to do but figures
        (training_run, "save_checkpoint", 2, False, ()),  # while last.pth is being written
        (training_run, "save_checkpoint", 3, True, ("--workers", "2")),
    ],
)
def test_a_signal_anywhere_loses_nothing(
    target: Any,
    name: str,
    number: int,
    after: bool,
    options: tuple[str, ...],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(target, name, number, signal.SIGTERM, patch, after)
        break_off(run, *options)
    assert f"resume with: python train.py --resume {run}" in capsys.readouterr().out
    assert_same_run(resume(run, *options), whole)


def test_a_run_interrupted_twice_has_the_same_result(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 2, signal.SIGINT, patch)
        break_off(run, signum=signal.SIGINT)
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 2, signal.SIGTERM, patch)
        with pytest.raises(Interrupted):
            resume(run, "--workers", "1")
    assert_same_run(resume(run), whole)


def test_a_step_of_several_batches_is_taken_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--batch-size", "2", "--accumulate", "2")
    expected = run_train(tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 2, signal.SIGTERM, patch, after=True)  # half of the first step
        with pytest.raises(Interrupted):
            run_train(tmp_path / "run", *options)
    state = load_checkpoint(tmp_path / "run" / "last.pth").training
    assert state is not None and state["progress"]["batch"]["batch"] == 0 and state["progress"]["step"] == 0
    assert_same_run(resume(tmp_path / "run"), expected)


def test_the_state_of_everything_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_call(Trainer, "_backward", 4, signal.SIGTERM, monkeypatch)
    break_off(tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")
    options = check_options(training_options.TrainOptions, {"resume": str(tmp_path / "run")})
    settings, again = read_run(Settings.of(options))
    assert again is not None
    run = training_run.Run(settings, "cpu", again)
    state = run.state.state_dict()
    assert checkpoint.training is not None
    for name in ("model", "optimizer", "progress", "random", "ema_steps", "skips"):
        assert_same(state[name], checkpoint.training[name], name)
    assert_same(dict(run._scored_model().state_dict()), checkpoint.weights)


def test_a_signal_during_setup_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_call(training.setup, "open_dataset", 1, signal.SIGTERM, monkeypatch)
    monkeypatch.setattr("training.setup.YOLOv4", lambda *_: pytest.fail("it went on"))
    break_off(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_exit_codes_are_those_of_the_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with monkeypatch.context() as patch:
            at_call(training.setup, "open_dataset", 1, signum, patch)
            with pytest.raises(SystemExit) as left:
                run_command(train.main, [*TINY, "--data", str(demo_data()), "--run-dir", str(tmp_path / "run")])
        assert left.value.code == code


def test_signal_handlers_are_restored_and_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    clock = [0.0]
    monkeypatch.setattr("training.interrupts.time.monotonic", lambda: clock[0])
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.signum == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # the same one again, as sent to a whole group
        clock[0] = 5.0
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), watch.raising():
            pytest.fail("it went on")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_signal_while_everything_is_being_imported_ends_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        child = os.fork()
        if not child:
            signal.signal(signum, startup.leave)
            os.kill(os.getpid(), signum)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
        assert capfd.readouterr().err == f"interrupted by {signal.Signals(signum).name}\n"


def test_only_the_commands_of_this_repository_take_signals_so_early(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not startup.is_command()
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(Path(startup.REPOSITORY) / "train.py"), raising=False)
    assert startup.is_command()


# ---- kill -9


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_every_run_killed_at_random_points_has_the_same_result(tmp_path: Path) -> None:
    how = ["term", "kill", "disk", "kill", "int", "kill", "kill"]  # the fourth with two loader processes
    options = ["--how", *how, "--times", str(len(how)), "--epochs", "2", "--in-write", "0.5", "--folder", str(tmp_path)]
    # a process of its own: PyTorch cannot run backward in a fork of a process that has trained with several threads
    command = [sys.executable, "-m", "tests.long.kill_test", *options]
    done = subprocess.run(command, cwd=startup.REPOSITORY, capture_output=True, text=True, check=False)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert f"metrics.csv): {len(how)}\n" in said and "unreadable: 0\n" in said
    assert all(words in said for words in ("1 full disk", "time until the exit", "during a write"))
    assert " 0 during a write" not in said


def test_a_run_killed_before_its_first_checkpoint_begins_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    values = json.loads((whole / "config.json").read_text()) | {"run_dir": str(run)}
    (run / "config.json").write_text(json.dumps(values))
    (run / ".last.pth.123.tmp").write_bytes(b"half a checkpoint")
    assert_same_run(resume(run), whole)
    assert not list(run.glob(".*"))


def test_what_was_asked_for_survives_a_kill_before_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a time budget, a preset or the end of the run replaced it, and if the same command is repeated."""
    monkeypatch.setattr(budget, "_time_step", lambda *_: 60.0)
    monkeypatch.setattr(budget, "_time_image", lambda *_: 0.0)
    run = tmp_path / "run"
    asked = ("--minutes", "5", "--preset", "small", "--pretrained", "none", "--warmup-epochs", "3", "--seed", "5")
    command = [*TINY, "--data", str(demo_data()), "--run-dir", str(run), "--epochs", "4", *asked]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    def config() -> dict[str, Any]:
        return json.loads((run / "config.json").read_text())

    with monkeypatch.context() as patch:
        patch.setattr(training_run.Run, "_write_beginning", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(command)
    first = config()
    assert first["epochs"] == 1 and first["_origins"]["epochs"] == "auto"  # the limit is replaced by the plan,
    assert first["_asked"]["epochs"] == [4, TYPED]  # and remembered, like the warm-up and a preset's weights
    assert first["warmup_epochs"] == 0.5 and first["_asked"]["warmup_epochs"] == [3, TYPED]
    assert first["weights"] is None and first["_asked"]["weights"] == ["small", "preset small"]
    shutil.move(run / "config.json", tmp_path / "kept.json")
    for repeated in (["--resume", str(run)], [*command, "--resume", "auto"]):
        shutil.copy(tmp_path / "kept.json", run / "config.json")
        began: list[training_run.Run] = []
        with monkeypatch.context() as patch:
            patch.setattr(training_run.Run, "train", lambda self, began=began: began.append(self) or 0)
            assert train.main(repeated) == 0
        assert began[0].progress.most_epochs == 4
        assert config() == first | {"_asked": config()["_asked"]}
        assert {name: pair for name, pair in config()["_asked"].items() if name not in ("resume", "run_dir")} == {
            name: pair for name, pair in first["_asked"].items() if name != "run_dir"
        }
    with pytest.raises(UserError, match=r"differs from the run in --epochs 5 \(the run: 4\)"):
        train.main(["--resume", str(run), "--epochs", "5"])


def test_partial_files_of_a_killed_run_are_ignored(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.77.tmp").write_bytes(b"{")
    run_train(run, epochs=1)
    assert not list(run.glob(".*"))


def test_metrics_missing_after_a_kill_are_written_on_resume(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(training_run, "write_metrics", 2, signal.SIGTERM, patch)
        break_off(run)
    (run / "metrics.csv").unlink()
    assert_same_run(resume(run), whole)


# ---- what cannot be resumed


def test_a_finished_run_is_reported_to_be_finished(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "last.pth").read_bytes()
    assert train.main(["--resume", str(whole)]) == 0
    assert "finished after 2 epochs" in capsys.readouterr().out
    assert train.main(["--resume", str(whole / "last.pth")]) == 0
    assert (whole / "last.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backbone", "mobilenet_v1"), "--backbone mobilenet_v1 (the run: mobilenet_v3_small)"),
        (("--batch-size", "16"), "--batch-size 16 (the run: 4)"),  # which is the default
        (("--epochs", "9"), "--epochs 9 (the run: 2)"),
        (("--mosaic", "0.1", "--seed", "3"), "--mosaic 0.1 (the run: 0.5), --seed 3 (the run: 0)"),
        (("--no-ema",), "--no-ema (the run: True)"),
    ],
)
def test_other_options_are_rejected_with_the_list_of_them(options: tuple[str, ...], words: str, whole: Path) -> None:
    with pytest.raises(UserError) as caught:
        train.main(["--resume", str(whole), *options])
    assert words in str(caught.value) and "--weights" in str(caught.value) and caught.value.exit_code == 2


def test_options_changed_in_the_runs_own_file_are_rejected(whole: Path, tmp_path: Path) -> None:
    for name in ("config.json", "last.pth"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"learning_rate": 0.5}))
    with pytest.raises(UserError, match=r"--learning-rate 0\.5 \(the run: 0\.005\)"):
        train.main(["--resume", str(tmp_path)])


def interrupt_at_once(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that SIGTERM ends in its first backward pass."""
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 1, signal.SIGTERM, patch)
        with pytest.raises(Interrupted):
            run_train(run, data=data)


@pytest.mark.parametrize("change", ["an image less", "a box moved", "a class more"])
def test_other_data_is_rejected_with_what_differs(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy_of_demo(tmp_path / "data")
    interrupt_at_once(tmp_path / "run", data, monkeypatch)
    words = CHANGES[change](data / "VOC2026")
    with pytest.raises(UserError) as caught:
        train.main(["--resume", str(tmp_path / "run")])
    assert "the data has changed" in str(caught.value) and words in str(caught.value)
    assert caught.value.exit_code == 2


def copy_of_demo(folder: Path) -> Path:
    import shutil

    return shutil.copytree(demo_data(), folder)


def drop_image(year: Path) -> str:
    ids = (year / "ImageSets/Main/train.txt").read_text().split()
    (year / "ImageSets/Main/train.txt").write_text("\n".join(ids[:-1]) + "\n")
    return f"{len(ids) - 1} training images (the run: {len(ids)})"


def first_annotation(year: Path) -> Path:
    names = (year / "ImageSets/Main/train.txt").read_text().split()
    return next(p for p in (year / "Annotations" / f"{n}.xml" for n in names) if "<object>" in p.read_text())


def move_box(year: Path) -> str:
    path = first_annotation(year)
    text = path.read_text()
    xmin = text.split("<xmin>")[1].split("</xmin>")[0]
    path.write_text(text.replace(f"<xmin>{xmin}<", f"<xmin>{int(xmin) + 1}<", 1))
    return "other boxes in train"


def add_class(year: Path) -> str:
    path = first_annotation(year)
    text = path.read_text()
    name = text.split("<object>")[1].split("<name>")[1].split("</name>")[0]
    before, after = text.split("<object>", 1)
    path.write_text(before + "<object>" + after.replace(f"<name>{name}</name>", "<name>zeppelin</name>", 1))
    return "zeppelin"


CHANGES: dict[str, Callable[[Path], str]] = {
    "an image less": drop_image,
    "a box moved": move_box,
    "a class more": add_class,
}


def test_a_damaged_checkpoint_is_rejected_by_name(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    data = bytearray((whole / "last.pth").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "last.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"last\.pth: damaged"):
        train.main(["--resume", str(tmp_path)])


def test_a_folder_that_is_not_a_run_is_rejected(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="is not the folder of a run"):
            train.main(["--resume", str(path)])


# ---- what a run has earned, and data that lies elsewhere


@pytest.mark.parametrize("command", ["folder", "auto"])
def test_a_run_without_its_last_checkpoint_is_never_restarted(command: str, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "last.pth").unlink()
    best = (run / "best.pth").read_bytes()
    arguments = ["--resume", str(run)] if command == "folder" else ["--resume", "auto", "--run-dir", str(run)]
    with pytest.raises(UserError) as caught:
        train.main(arguments)
    assert "last.pth: is missing, which resuming needs; best.pth exists" in str(caught.value)
    assert f"--weights {run / 'best.pth'}" in str(caught.value) and caught.value.exit_code == 2
    assert (run / "best.pth").read_bytes() == best


def test_a_better_best_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 4, signal.SIGTERM, patch)
        break_off(run)
    best = load_checkpoint(run / "best.pth")
    figures = {"coco_AP": 0.9, "voc10_mAP50": 0.9}
    save_checkpoint(run / "best.pth", dataclasses.replace(best, metrics={**best.metrics, **figures}))
    resume(run)
    assert load_checkpoint(run / "best.pth").metrics["coco_AP"] == 0.9


def test_a_run_can_be_resumed_after_data_and_folder_have_moved(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    shutil.copytree(demo_data(), "data")
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 2, signal.SIGTERM, patch)
        with pytest.raises(Interrupted):
            run_train(Path("runs/one"), *EVERYTHING, data=Path("data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project" / "runs" / "one").rename(tmp_path / "renamed")
    shutil.move(tmp_path / "project" / "data", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"--data: .*data does not exist; give its present path with --data"):
        train.main(["--resume", "renamed"])
    run = resume(Path("renamed"), "--data", "elsewhere")
    assert_same_run(run, whole)
    assert json.loads((run / "config.json").read_text())["data"] == str(tmp_path / "elsewhere")


def test_a_relative_path_of_data_works_from_another_folder(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_data().parent)
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 2, signal.SIGTERM, patch)
        with pytest.raises(Interrupted):
            run_train(tmp_path / "run", *EVERYTHING, data=Path(demo_data().name))
    monkeypatch.chdir(tmp_path)
    assert_same_run(resume(tmp_path / "run"), whole)


def test_every_path_of_the_data_is_absolute_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = []
    for name in DATA_PATHS:
        Path(name).touch()
        typed += [f"--{name.replace('_', '-')}", name, *(["far://there"] if name == "teacher" else [])]
    settings = absolute_paths(parse_settings(TrainOptions, typed, description=""))
    for name in DATA_PATHS:
        here = str(tmp_path / name)
        assert get_option(settings.options, name) == ((here, "far://there") if name == "teacher" else here)
        assert settings.origins[name] == TYPED
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(settings.with_asked().to_dict()))
    asked = parse_settings(TrainOptions, ["--resume", "run", "--image-folder", "other"], description="")
    assert read_run(asked)[0].options.dataset.image_folder == "other"


def test_scores_of_labels_are_part_of_the_data() -> None:
    index = open_dataset(str(demo_data()), "train")
    scored = [dataclasses.replace(index, scores=np.full(index.num_boxes, score)) for score in (0.5, 0.25)]
    digests = [fingerprint(each) for each in (index, *scored)]
    assert len({each["scores"] for each in digests}) == 3 and len({each["boxes"] for each in digests}) == 1


@pytest.mark.parametrize("size", ["other", "same"])
def test_pixels_that_have_changed_are_noticed(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy_of_demo(tmp_path / "data")
    interrupt_at_once(tmp_path / "run", data, monkeypatch)
    picture = sorted((data / "VOC2026" / "JPEGImages").iterdir())[0]
    content = bytearray(picture.read_bytes())
    content[len(content) // 2] ^= 1
    picture.write_bytes(content + (b"\0" if size == "other" else b""))
    with pytest.raises(UserError, match=r"the data has changed: other pixels in (train|val)"):
        train.main(["--resume", str(tmp_path / "run")])


def test_values_chosen_by_auto_are_resumed_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [word for word in TINY if word not in ("--batch-size", "4")]
    command = ["--data", str(demo_data()), "--auto", "--epochs", "2", *tiny]
    monkeypatch.setattr("training.run.draw_curves", lambda *_: None)
    assert train.main([*command, "--run-dir", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        at_call(Trainer, "_backward", 6, signal.SIGTERM, patch)
        with pytest.raises(Interrupted):
            train.main([*command, "--run-dir", str(tmp_path / "run")])
    assert_same_run(resume(tmp_path / "run", "--workers", "2"), tmp_path / "whole")
