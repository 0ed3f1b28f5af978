"""Values chosen by `--auto` and `--minutes`; the user's options take precedence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from train_makers import TINY, demo_data, run_train

import train
import training.run
from data.index import DatasetIndex
from data.open import open_dataset
from nets.model_config import YOLOV4_ANCHORS
from nets.weights.bundled import find_model
from nets.weights.checkpoint import load_checkpoint
from training import budget, choose
from training.choose import choose_network, choose_optimizer, choose_recipe_options, choose_start
from training.optim import scaled_lr
from training.options import TrainOptions
from training.recipe import choose_recipe
from training.setup import build_model
from utils.config import Settings, parse_settings
from utils.errors import UserError


def chosen(num_images: int, pretrained: bool, **settings: int) -> dict[str, object]:
    """The recipe for a data set of two classes that are in every image."""
    counts = np.array([num_images, num_images])
    return {c.option: c.value for c in choose_recipe(num_images, counts, counts, pretrained, **settings)}


def resolve(index: DatasetIndex, *arguments: str) -> Settings[TrainOptions]:
    """The settings of a command line, with all values that are chosen from the data."""
    settings = parse_settings(TrainOptions, ["--data", "x", *arguments], description="")
    settings, _ = choose_network(choose_start(settings), index)
    return choose_optimizer(choose_recipe_options(settings, index))


def test_a_small_set_is_seen_more_often_than_a_large_one_in_as_many_steps() -> None:
    few, many = chosen(200, True), chosen(3000, True)
    assert few["epochs"] > many["epochs"]  # type: ignore[operator]
    steps = [-(-n // c["batch_size"]) * c["epochs"] for n, c in ((200, few), (3000, many))]  # type: ignore[operator]
    assert 0.8 < steps[0] / steps[1] < 1.25


def test_a_typed_batch_is_what_the_other_choices_count_with() -> None:
    index = open_dataset(str(demo_data()), "train")
    for typed, batch in ((("--batch-size", "4"), 4), (("--batch-size", "1", "--accumulate", "8"), 8)):
        settings = resolve(index, "--auto", *typed)
        steps, duration = -(-len(index) // batch), settings.options.duration
        assert duration.epochs == 500 and settings.reasons["epochs"].startswith(f"about {500 * steps} steps")
        assert settings.reasons["warmup_epochs"] == f"about {settings.options.optim.warmup_epochs * steps:.0f} steps"
    given = {"pretrained": True, "is_detector": True, "given_batch": 16}
    assert chosen(800, **given)["epochs"] == 40 and chosen(200, **given)["warmup_epochs"] == 3.0


def test_a_backbone_from_scratch_is_never_frozen_and_gets_more_steps() -> None:
    scratch, pretrained = chosen(1000, False), chosen(1000, True)
    assert "freeze_layers" not in scratch and "freeze_norms" not in scratch
    assert pretrained["freeze_layers"] == 4 and pretrained["freeze_norms"] is True
    assert scratch["epochs"] > pretrained["epochs"] > chosen(1000, True, is_detector=True)["epochs"]  # type: ignore
    assert "freeze_layers" not in chosen(1000, True, layers_are_known=False)


def test_few_images_from_scratch_get_small_batches_and_a_large_rate() -> None:
    few, many = chosen(200, False), chosen(5000, False)
    assert (few["batch_size"], few["learning_rate"]) == (8, 0.02)
    assert many["batch_size"] == 16 and "learning_rate" not in many and "learning_rate" not in chosen(200, True)
    index = open_dataset(str(demo_data()), "train")
    scratch = ("--auto", "--backbone", "mobilenet_v2")
    assert resolve(index, *scratch).options.optim.learning_rate == 0.02
    assert resolve(index, *scratch, "--optimizer", "sgd").options.optim.learning_rate == 0.01


def test_auto_alone_starts_from_the_bundled_detector() -> None:
    index = open_dataset(str(demo_data()), "train")
    bundled = load_checkpoint(find_model("small")).config
    resolved = resolve(index, "--auto")
    assert resolved.options.start.weights == "small" and resolved.options.start.freeze_norms
    assert resolved.origins["weights"] == "auto" and "bundled" in resolved.reasons["weights"]
    model = build_model(resolved.options, load_checkpoint(find_model("small")), index)
    for name in ("backbone", "alpha", "neck", "neck_width", "input_size", "anchors"):
        assert getattr(model.config, name) == getattr(bundled, name)
    larger = resolve(index, "--auto", "--input-size", "416").options
    assert larger.start.weights == "small"
    assert build_model(larger, load_checkpoint(find_model("small")), index).config.input_size == (416, 416)


def many_images(count: int) -> DatasetIndex:
    """An index of large objects, without image files."""
    boxes = [np.array([[100.0, 100, 400, 400]])] * count
    names = [f"{i}.jpg" for i in range(count)]
    return DatasetIndex.build("many", ["dog"], names, names, [(640, 640)] * count, boxes, [[0]] * count)


def resolve_on(device: str, free: float, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings[TrainOptions]:
    """Simulate a device with this much free memory in GB."""
    monkeypatch.setattr(choose.torch.cuda, "mem_get_info", lambda device: (int(free * 1e9), int(80e9)))
    monkeypatch.setattr(choose, "available_memory", lambda: int(free * 1e9))
    monkeypatch.setattr(choose, "usable_cpus", lambda: 6)
    monkeypatch.setattr(choose, "fitting_workers", lambda workers, *_: (workers, ""))
    command = ["--data", "x", "--auto", "--device", device, "--amp", "none", *arguments]
    settings = parse_settings(TrainOptions, command, description="")
    return choose.choose_new_run(settings, many_images(1000))[0]


def test_auto_on_a_gpu_chooses_network_batch_and_workers_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = resolve_on("cpu", 16, monkeypatch)
    assert cpu.options.network.input_size == (320, 320) and cpu.options.duration.batch_size == 16
    assert cpu.options.machine.workers == 2

    large = resolve_on("cuda:0", 16, monkeypatch)
    assert large.options.network.input_size == (416, 416) and large.options.duration.batch_size == 32
    assert large.options.machine.workers == 6 and large.options.duration.accumulate == 1
    assert "16.0 GB of GPU memory are free" in large.reasons["input_size"]
    assert "GPU waits for images" in large.reasons["workers"]
    scaled = scaled_lr("adamw", 32, large.options.optim.learning_rate)
    assert scaled == pytest.approx(2**0.5 * large.options.optim.learning_rate)

    small = resolve_on("cuda:0", 4, monkeypatch)  # a step at 416 takes more than it has, and 32 images at 320, too
    assert small.options.network.input_size == (320, 320)
    assert (small.options.duration.batch_size, small.options.duration.accumulate) == (16, 2)
    assert "4.0 GB of GPU memory are free" in small.reasons["batch_size"]
    assert "2 batches of 16 make a step of 32 images" in small.reasons["accumulate"]

    tiny = resolve_on("cpu", 1, monkeypatch)
    assert tiny.options.duration.batch_size * tiny.options.duration.accumulate == 16
    assert tiny.options.duration.batch_size < 16 and "GB of memory are free" in tiny.reasons["batch_size"]


def test_typed_values_are_kept_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ("--input-size", "256", "--batch-size", "64", "--workers", "1")
    options = resolve_on("cuda:0", 1, monkeypatch, *typed).options
    assert options.network.input_size == (256, 256) and options.machine.workers == 1
    assert (options.duration.batch_size, options.duration.accumulate) == (64, 1)
    larger = resolve_on("cuda:0", 80, monkeypatch, "--weights", "nano").options
    assert larger.start.weights == "nano" and larger.network.input_size == (416, 416)


def test_a_set_of_small_objects_gets_a_larger_input(monkeypatch: pytest.MonkeyPatch) -> None:
    index = many_images(100)
    index.boxes[:30] = [100, 100, 115, 115]  # 30 % are 15 of 640 pixels: 7.5 at 320, 9.75 at 416
    settings = parse_settings(TrainOptions, ["--data", "x", "--auto"], description="")
    chosen, _ = choose_network(choose_start(settings), index)
    assert chosen.options.network.input_size == (416, 416) and chosen.origins["input_size"] == "auto"
    assert "at 320, 30% of the objects are narrower than 8 pixels" in chosen.reasons["input_size"]
    index.boxes[20:30] = [100, 100, 400, 400]
    assert choose_network(choose_start(settings), index)[0].options.network.input_size == (320, 320)


def test_an_input_that_is_padding_for_nearly_all_images_is_trimmed() -> None:
    def chosen(sizes: list[tuple[int, int]], *arguments: str) -> Settings[TrainOptions]:
        names = [f"{i}.jpg" for i in range(len(sizes))]
        boxes = [np.array([[10.0, 10, 200, 200]])] * len(sizes)
        index = DatasetIndex.build("any", ["dog"], names, names, sizes, boxes, [[0]] * len(sizes))
        settings = parse_settings(TrainOptions, ["--data", "x", "--auto", *arguments], description="")
        settings, start = choose_network(choose_start(settings), index)
        config = choose.model_config(settings.options, start, index)
        original = YOLOV4_ANCHORS if start is None else start.config.anchors
        assert config.anchors[1][0] == pytest.approx(original[1][0])  # objects keep their size in pixels
        return settings

    camera = chosen([(1080, 1920)] * 40)  # 320 * 9 / 16 = 180
    assert camera.options.network.input_size == (192, 320) and camera.origins["input_size"] == "auto"
    assert "95% of the images fit into 192 x 320 as large as into 320 x 320" in camera.reasons["input_size"]
    assert chosen([(1920, 1080)] * 40).options.network.input_size == (320, 192)
    assert chosen([(720, 1280)] * 39 + [(1280, 720)]).options.network.input_size == (192, 320)  # one of 40 is upright
    for sizes in ([(720, 1280)] * 36 + [(1280, 720)] * 4, [(480, 640)] * 40, [(500, 500)] * 40, [(0, 0)] * 40):
        assert chosen(sizes).options.network.input_size == (320, 320)  # too few are wide, or not wide enough
    assert chosen([(720, 1280)] * 40, "--input-size", "320").options.network.input_size == (320, 320)
    assert chosen([(720, 1280)] * 40, "--resize-mode", "stretch").options.network.input_size == (416, 416)
    assert chosen([(720, 1280)] * 40, "--pretrained", "none").options.network.input_size == (256, 416)


def test_a_file_takes_precedence_over_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model("small").name == "small.pth"
    Path("small").touch()
    assert find_model("small") == Path("small")


def test_every_choice_says_why() -> None:
    counts = np.array([50, 1])
    choices = choose_recipe(50, counts, counts, True)
    assert all(len(choice.why) > 10 and choice.option in str(choice).replace("-", "_") for choice in choices)
    assert any(choice.option == "repeat_rare" for choice in choices)


def test_the_users_options_are_kept() -> None:
    index = open_dataset(str(demo_data()), "train")
    resolved = resolve(index, "--auto", "--epochs", "100", "--batch-size", "16", "--weights", "small")
    assert resolved.options.duration.epochs == 100 and resolved.options.duration.batch_size == 16
    assert resolved.origins["epochs"] == resolved.origins["batch_size"] == "typed"  # though they equal the default
    assert resolved.options.start.freeze_norms


def test_minutes_become_epochs_by_the_measured_speed_and_change_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a step of 3 s and 0.5 s an image to score, and no time for what comes before
    monkeypatch.setattr(training.run, "Clock", lambda: budget.Clock(now=lambda: 0.0))
    monkeypatch.setattr(budget, "_time_step", measured := Timer(budget._time_step, 3.0))
    monkeypatch.setattr(budget, "_time_image", Timer(budget._time_image, 0.5))
    images, steps = len(open_dataset(str(demo_data()), "val")), -(-len(open_dataset(str(demo_data()), "train")) // 4)
    seconds = budget.OVERHEAD * 3.0 * steps + 0.5 * images
    run = run_train(tmp_path / "timed", "--minutes", str((2.5 * seconds + 0.5 * images) / 60))
    assert measured.calls == 1
    checkpoint = load_checkpoint(run / "last.pth")
    assert checkpoint.info["epoch"] == 2
    plain = run_train(tmp_path / "plain", epochs=2)
    for name, value in load_checkpoint(plain / "last.pth").weights.items():
        assert (value == checkpoint.weights[name]).all(), name


def test_too_few_minutes_are_rejected_with_what_one_epoch_takes(tmp_path: Path) -> None:
    arguments = [*TINY, "--data", str(demo_data()), "--run-dir", str(tmp_path / "run"), "--minutes", "0.00001"]
    with pytest.raises(UserError, match=r"--minutes: 1e-05 is not enough for one epoch"):
        train.main(arguments)
    assert not (tmp_path / "run").exists()


class Timer:
    """Runs the timed function and reports a given duration."""

    def __init__(self, function: object, seconds: float) -> None:
        self.function, self.seconds, self.calls = function, seconds, 0

    def __call__(self, *arguments: object) -> float:
        self.calls += 1
        assert self.function(*arguments) > 0  # type: ignore[operator]
        return self.seconds


def test_a_long_run_of_few_images_is_not_scored_after_every_epoch() -> None:
    counts = np.array([200])
    choices = {c.option: c.value for c in choose_recipe(200, counts, counts, False)}
    assert choices["epochs"] // choices["eval_every"] in range(30, 60)
    shorter = {c.option: c.value for c in choose_recipe(200, counts, counts, False, given_epochs=30)}
    assert "eval_every" not in shorter
