"""eval.py on the command line: a checkpoint, detection files of both formats, and messages for user errors."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import eval as eval_command
from data.class_names import read_class_names
from data.open import open_dataset
from evaluation.detections_file import read_detections
from evaluation.metrics.coco import FIGURES
from utils.errors import MissingExtra, UserError

OBJECTS = {  # image id: (name, xmin, ymin, xmax, ymax as in the file, difficult)
    "000001": [("cat", 11, 11, 40, 40, 0), ("dog", 51, 51, 90, 90, 0)],
    "000002": [("cat", 21, 21, 60, 60, 1)],
    "000013": [("dog", 1, 1, 50, 30, 0)],
    "000020": [],
}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A VOCdevkit of four images and two classes, all in the split `test`."""
    year = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    (year / "ImageSets/Main/test.txt").write_text("".join(f"{image_id}\n" for image_id in OBJECTS))
    for image_id, objects in OBJECTS.items():
        cv2.imwrite(str(year / "JPEGImages" / f"{image_id}.jpg"), np.full((100, 120, 3), 90, np.uint8))
        rows = "".join(
            f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for name, x1, y1, x2, y2, hard in objects
        )
        size = "<size><width>120</width><height>100</height><depth>3</depth></size>"
        (year / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{size}{rows}</annotation>")
    return tmp_path / "VOCdevkit"


def perfect() -> list[dict[str, Any]]:
    """The ground truth in the format of predict.py's JSON list."""
    return [
        {
            "image": f"some/folder/{image_id}.jpg",
            "width": 120,
            "height": 100,
            "detections": [
                {"class_id": 0, "class_name": name, "score": 0.9, "box_xyxy": [x1 - 1, y1 - 1, x2, y2]}
                for name, x1, y1, x2, y2, _ in objects
            ],
        }
        for image_id, objects in OBJECTS.items()
    ]


def coco_results() -> list[dict[str, Any]]:
    """The same as COCO results, image ids as numbers; categories are VOC's 20 names counted from 1."""
    category = {"cat": 8, "dog": 12}
    return [
        {"image_id": int(i), "category_id": category[n], "bbox": [a - 1, b - 1, c - a + 1, d - b + 1], "score": 0.9}
        for i, objects in OBJECTS.items()
        for n, a, b, c, d, _ in objects
    ]


def write(path: Path, values: Any) -> str:
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize("make", [perfect, coco_results])
def test_perfect_detections_of_either_form_score_one(devkit: Path, tmp_path: Path, make: Any, capsys: Any) -> None:
    file, out = write(tmp_path / "found.json", make()), tmp_path / "deep" / "figures.json"
    arguments = ["--detections", file, "--data", str(devkit), "--split", "test", "--json", str(out)]
    arguments += ["--detection-classes", "voc"]
    assert not eval_command.main(arguments)
    figures = json.loads(out.read_text())
    assert figures["voc10_mAP50"] == 1.0
    assert figures["voc07_mAP50"] == pytest.approx(1.0)
    assert figures["coco_AP"] == pytest.approx(1.0)
    assert figures["num_images"] == 4
    assert figures["per_class"]["cat"]["num_gt"] == 1
    assert [row["image_id"] for row in figures["per_image"]] == list(OBJECTS)
    assert "Recommendations:" in capsys.readouterr().out


def test_images_are_not_needed_to_score_detections(devkit: Path, tmp_path: Path) -> None:
    for picture in (devkit / "VOC2007/JPEGImages").iterdir():
        picture.unlink()
    file, out = write(tmp_path / "found.json", perfect()), tmp_path / "figures.json"
    eval_command.main(["--detections", file, "--data", str(devkit), "--split", "test", "--json", str(out)])
    assert json.loads(out.read_text())["voc10_mAP50"] == 1.0


def test_published_coco_figures_come_out_of_the_command(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/eval_cases"
    out = tmp_path / "figures.json"
    found, truth = folder / "coco_100/detections.json", folder / "coco_100/ground_truth.json"
    eval_command.main(["--detections", str(found), "--data", str(truth), "--json", str(out)])
    figures, expected = json.loads(out.read_text()), json.loads((folder / "expected.json").read_text())["coco_100"]
    for name in FIGURES:
        assert figures[f"coco_{name}"] == pytest.approx(expected[name], abs=expected["tolerance"])


def test_a_plain_results_list_scores_as_one_inside_an_object(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/eval_cases/coco_100"
    index = open_dataset(folder / "ground_truth.json", "ground_truth", need_pictures=False)
    rows = json.loads((folder / "detections.json").read_text())["annotations"]
    inside = read_detections(folder / "detections.json", index).found
    plain = read_detections(Path(write(tmp_path / "plain.json", rows)), index).found
    assert np.array_equal(inside.boxes, plain.boxes)
    assert np.array_equal(inside.image, plain.image)


def test_detections_of_images_outside_of_the_split_are_rejected_by_name(devkit: Path, tmp_path: Path) -> None:
    rows = coco_results()
    rows.append({**rows[0], "image_id": 777})
    with pytest.raises(UserError, match=r"1 image \(777\) not in VOC2007 test"):
        read_detections(
            Path(write(tmp_path / "found.json", rows)), open_dataset(devkit, "test"), read_class_names("voc")
        )


def test_numbers_that_may_be_two_images_are_an_error(devkit: Path, tmp_path: Path) -> None:
    (devkit / "VOC2007/ImageSets/Main/test.txt").write_text("000001\n01\n")
    (devkit / "VOC2007/Annotations/01.xml").write_text("<annotation></annotation>")
    shutil.copy(devkit / "VOC2007/JPEGImages/000001.jpg", devkit / "VOC2007/JPEGImages/01.jpg")
    index = open_dataset(devkit, "test")
    with pytest.raises(UserError, match="image 1 may be 000001 and 01"):
        read_detections(Path(write(tmp_path / "found.json", coco_results())), index, read_class_names("voc"))


def test_a_box_rounded_to_zero_height_is_read_and_matches_nothing(devkit: Path, tmp_path: Path) -> None:
    """YOLOX-Nano's detections, rounded to a tenth of a pixel, have such a box."""
    flat = {"class_name": "cat", "score": 0.9, "box_xyxy": [332.3, 333.0, 383.9, 333.0]}
    file = write(tmp_path / "found.json", [{"image": "000001.jpg", "detections": [flat]}])
    found = read_detections(Path(file), open_dataset(devkit, "test"), read_class_names("voc"), missing="empty")
    assert found.found.boxes.tolist() == [pytest.approx([332.3, 333.0, 383.9, 333.0])]
    file = write(tmp_path / "coco.json", [{"image_id": 1, "category_id": 8, "bbox": [1, 2, 3, 0], "score": 1}])
    found = read_detections(Path(file), open_dataset(devkit, "test"), read_class_names("voc"), missing="empty")
    assert found.found.boxes.tolist() == [[1, 2, 4, 2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 1}]', "item 0: has no `image_id` and whole `category_id`"),
        ('[{"image_id": 1, "category_id": 8, "bbox": [1, 2, 3], "score": 1}]', "`bbox` is not 4 finite numbers"),
        ('[{"image_id": 1, "category_id": 8, "bbox": [1, 2, 3, NaN], "score": 1}]', "`bbox` is not 4 finite numbers"),
        ('[{"image_id": 1, "category_id": 8, "bbox": [1, 2, 3, 4], "score": null}]', "`score` is not 1 finite number"),
        ('[{"image_id": 5, "category_id": 8, "bbox": [1, 2, 3, 4], "score": 1}]', r"1 image \(5\) not in"),
        ('[{"image_id": 1, "category_id": 8, "bbox": [1, 2, -3, 4], "score": 1}]', "item 0: `bbox` .* width -3"),
        (
            '[{"image_id": 1, "category_id": 8, "bbox": [1, 2, 3, 4], "score": 87}]',
            "`score` is 87, not between 0 and 1",
        ),
        (
            '[{"image_id": 1, "category_id": 8, "bbox": [1, 2, 3, 4], "score": -1}]',
            "`score` is -1, not between 0 and 1",
        ),
        (
            '[{"image": "000001.jpg", "detections": [{"class_name": "cat", "score": 1, "box_xyxy": [6, 1, 5, 9]}]}]',
            "item 0, detection 0: `box_xyxy` .* width -1",
        ),
        ('[{"image": "000001.jpg", "detections": [{"class_id": 1}]}]', "detection without `class_name`"),
        ("[1, 2]", "contains no list of detections"),
        ('{"images": []}', "contains no list of detections"),
        ("[{", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_a_bad_detections_file_is_a_one_line_error(devkit: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "found.json").write_text(content)
    with pytest.raises(UserError, match=message):
        file = str(tmp_path / "found.json")
        common = ["--data", str(devkit), "--split", "test", "--detection-classes", "voc", "--missing-images", "empty"]
        eval_command.main(["--detections", file, *common])


def test_no_detections_at_all_score_zero(devkit: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    file = write(tmp_path / "found.json", [])
    arguments = ["--detections", file, "--data", str(devkit), "--split", "test", "--json", str(out)]
    with pytest.raises(UserError, match="lacks 4 of the 4 images of VOC2007 test"):
        eval_command.main(arguments)
    with pytest.raises(UserError, match="lists no image of VOC2007 test; give the detections of this data set"):
        eval_command.main([*arguments, "--missing-images", "skip"])
    eval_command.main([*arguments, "--missing-images", "empty"])
    figures = json.loads(out.read_text())
    assert figures["voc10_mAP50"] == 0.0
    assert figures["best_f1_threshold"] is None


@pytest.mark.parametrize(
    "rows",
    [
        [{"image_id": 1, "category_id": 99, "bbox": [1, 2, 3, 4], "score": 1}],
        [{"image": "000001.jpg", "detections": [{"class_name": "zebra", "score": 0.9, "box_xyxy": [1, 1, 9, 9]}]}],
    ],
)
def test_detections_of_other_classes_only_score_zero_with_a_warning(
    devkit: Path, tmp_path: Path, capsys: Any, rows: list[Any]
) -> None:
    out = tmp_path / "figures.json"
    arguments = ["--detections", write(tmp_path / "found.json", rows), "--missing-images", "empty", "--json", str(out)]
    eval_command.main([*arguments, "--data", str(devkit), "--split", "test", "--detection-classes", "voc"])
    figures = json.loads(out.read_text())
    assert (figures["voc10_mAP50"], figures["coco_AP"], figures["num_images"]) == (0.0, 0.0, 4)
    assert "no detection of a class of VOC2007 test (cat, dog), only of: " in capsys.readouterr().err


def test_saved_detections_score_as_before_and_the_voc_files_are_the_servers(devkit: Path, tmp_path: Path) -> None:
    rows = perfect()
    rows[0]["detections"][0]["box_xyxy"] = [15.5, 12.25, 44.0, 41.0]
    file, saved, voc = write(tmp_path / "found.json", rows), tmp_path / "saved.json", tmp_path / "voc"
    common = ["--data", str(devkit), "--split", "test"]
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    outputs = ["--save-detections", str(saved), "--voc-submission", str(voc), "--json", str(first)]
    eval_command.main(["--detections", file, *common, *outputs])
    eval_command.main(["--detections", str(saved), *common, "--json", str(second)])
    one, two = (json.loads(each.read_text()) for each in (first, second))
    assert one["per_image"] == two["per_image"]
    assert one["coco_AP"] == two["coco_AP"]
    lines = (voc / "results/VOC2007/Main/comp4_det_test_cat.txt").read_text().splitlines()
    assert lines[0] == "000001 0.900000 16.500000 13.250000 44.000000 41.000000"
    assert (voc / "results/VOC2007/Main/comp4_det_test_dog.txt").exists()


def test_a_file_of_half_of_the_images_says_so_and_fewer_are_rejected(devkit: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "figures.json"
    common = ["--data", str(devkit), "--split", "test", "--json", str(out), "--overwrite"]
    half = write(tmp_path / "half.json", perfect()[:2])
    eval_command.main(["--detections", half, *common])
    assert "lacks 2 of the 4 images of VOC2007 test" in capsys.readouterr().out
    assert json.loads(out.read_text())["num_images"] == 2
    eval_command.main(["--detections", half, *common, "--missing-images", "empty"])
    assert json.loads(out.read_text())["num_images"] == 4
    few = write(tmp_path / "few.json", perfect()[:1])
    with pytest.raises(UserError, match="3 of the 4 images"):
        eval_command.main(["--detections", few, *common])


def test_category_numbers_are_mapped_by_name_and_the_mapping_is_reported(
    devkit: Path, tmp_path: Path, capsys: Any
) -> None:
    """In COCO, the cat is 17 and the dog 18; alphabetical ids are used only if they match."""
    rows = [row | {"category_id": {8: 17, 12: 18}[row["category_id"]]} for row in coco_results()]
    common = ["--data", str(devkit), "--split", "test", "--json", str(tmp_path / "out.json"), "--overwrite"]
    plain = write(tmp_path / "plain.json", rows)
    with pytest.raises(UserError, match=r"category numbers \(17, 18\) are not 1 to 2.*--detection-classes"):
        eval_command.main(["--detections", plain, *common])
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "Dog"}]
    named = write(tmp_path / "named.json", {"annotations": rows, "categories": categories})
    for arguments in (["--detections", plain, "--detection-classes", "coco"], ["--detections", named]):
        eval_command.main([*arguments, *common])
        assert "17 = cat, 18 = " in capsys.readouterr().out
        assert json.loads((tmp_path / "out.json").read_text())["voc10_mAP50"] == 1.0
    first = write(tmp_path / "first.json", [row | {"category_id": row["category_id"] - 16} for row in rows])
    eval_command.main(["--detections", first, *common])
    assert "in alphabetical order: 1 = cat, 2 = dog" in capsys.readouterr().out


def test_a_truth_without_any_object_gives_no_figures(devkit: Path, tmp_path: Path) -> None:
    for path in (devkit / "VOC2007/Annotations").iterdir():
        path.write_text("<annotation></annotation>")
    with pytest.raises(UserError, match="has no objects, which evaluation needs"):
        eval_command.main(["--detections", write(tmp_path / "found.json", perfect()), "--data", str(devkit)])


def test_comparing_a_result_with_itself_says_that_there_is_no_difference(
    devkit: Path, tmp_path: Path, capsys: Any
) -> None:
    file, out = write(tmp_path / "found.json", perfect()), str(tmp_path / "figures.json")
    eval_command.main(["--detections", file, "--data", str(devkit), "--split", "test", "--json", out])
    eval_command.main(["--compare", out, out, "--json", str(tmp_path / "difference.json")])
    assert "there is no difference" in capsys.readouterr().out
    assert json.loads((tmp_path / "difference.json").read_text())["more_than_noise"] is False
    with pytest.raises(UserError, match="contains no results per image"):
        eval_command.main(["--compare", out, file])


def test_data_must_be_named() -> None:
    with pytest.raises(UserError, match="--data: is required"):
        eval_command.main([])


def test_faster_evaluator_says_how_to_get_it(devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    file = write(tmp_path / "found.json", perfect())
    with pytest.raises(MissingExtra):
        eval_command.main(["--detections", file, "--data", str(devkit), "--split", "test", "--evaluator", "faster"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights for cats and dogs."""
    import torch

    from nets.model_config import ModelConfig
    from nets.weights.checkpoint import Checkpoint, save_checkpoint
    from nets.yolov4 import YOLOv4

    torch.manual_seed(0)
    config = ModelConfig(("dog", "cat"), "mobilenet_v3_small", alpha=0.35, neck_width=0.25, input_size=(64, 96))
    path = tmp_path_factory.mktemp("model") / "random.pth"
    save_checkpoint(path, Checkpoint(config, YOLOv4(config).state_dict()))
    return path


def test_a_checkpoint_is_scored_and_equals_its_own_saved_detections(
    devkit: Path, checkpoint: Path, tmp_path: Path
) -> None:
    first, second, saved = (tmp_path / name for name in ("1.json", "2.json", "saved.json"))
    common = ["--data", str(devkit), "--split", "test", "--device", "cpu", "--no-progress"]
    model = ["--checkpoint", str(checkpoint)]
    eval_command.main([*model, *common, "--json", str(first), "--save-detections", str(saved)])
    figures = json.loads(first.read_text())
    assert figures["num_images"] == 4
    assert set(figures["per_class"]) == {"cat", "dog"}
    assert figures["images_per_second"] > 0
    eval_command.main(["--detections", str(saved), "--data", str(devkit), "--split", "test", "--json", str(second)])
    assert json.loads(second.read_text())["voc10_mAP50"] == pytest.approx(figures["voc10_mAP50"], abs=1e-6)


def test_augmentation_limit_and_thresholds_are_accepted(devkit: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    arguments = ["--checkpoint", str(checkpoint), "--data", str(devkit), "--split", "test", "--tta", "--limit", "2"]
    arguments += ["--device", "cpu", "--no-progress", "--score-threshold", "0.01", "--max-detections", "3"]
    eval_command.main([*arguments, "--json", str(out)])
    figures = json.loads(out.read_text())
    assert figures["num_images"] == 2
    assert "test-time flips and scales" in figures["protocol"]
    assert "score >= 0.01" in figures["protocol"]
    assert all(len(row["detections"]) <= 3 for row in figures["per_image"])


def _one_of_two(rank: int, port: int, arguments: list[str], folder: Path) -> None:
    """Start a process with the environment that torchrun sets."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    with open(folder / f"printed{rank}", "w") as printed, contextlib.redirect_stdout(printed):
        eval_command.main(arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_two_processes_write_the_figures_of_one(devkit: Path, checkpoint: Path, tmp_path: Path) -> None:
    single, shared_out = tmp_path / "1.json", tmp_path / "2.json"
    arguments = ["--checkpoint", str(checkpoint), "--data", str(devkit), "--split", "test", "--device", "cpu"]
    eval_command.main([*arguments, "--no-progress", "--json", str(single)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported already, which takes longer than all the rest
    command = [*arguments, "--no-progress", "--json", str(shared_out)]
    runs = [context.Process(target=_one_of_two, args=(rank, port, command, tmp_path)) for rank in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(240)  # on a machine that has other things to do
        run.kill()
    assert [run.exitcode for run in runs] == [0, 0]
    assert "Recommendations" in (tmp_path / "printed0").read_text()
    assert (tmp_path / "printed1").read_text() == ""
    one, two = (json.loads(path.read_text()) for path in (single, shared_out))
    assert one["per_image"] == two["per_image"]
    assert {key: one[key] for key in one if "mAP" in key or "AR" in key} == {
        key: two[key] for key in two if "mAP" in key or "AR" in key
    }
