"""Exported files: outputs equal to the network's, metadata, and removal of files with wrong outputs."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_makers import CONFIG, checkpoint, exported, pictures, small_model

import export
from data.index import DatasetIndex
from imaging.detections import Detections
from imaging.image_io import write_image
from nets.export.attached import attach, detach
from nets.export.check import check_export, export_and_check
from nets.export.form import Form, read_metadata, write_metadata
from nets.export.formats import FORMATS
from nets.export.graph import DeployedNetwork
from nets.export.load import load_runtime
from nets.export.parity import TOLERANCES, Parity, compare, count_changed
from nets.export.quantize import Node, calibration_images, choose_layers, group_nodes, output_error
from nets.model_config import ModelConfig
from nets.torch_runtime import TorchRuntime
from nets.yolov4 import YOLOv4
from utils.errors import MissingExtra, RunError, UserError
from utils.thresholds import Thresholds

PLAIN, EVERYTHING = Form(), Form(uint8_input=True, nms=True, dynamic=True)
RAW_ANY = Form(uint8_input=True, decodes=False, dynamic=True)
RAW, UINT8 = Form(decodes=False), Form(uint8_input=True)
EXPORTED = [
    pytest.param("onnx", PLAIN, id="onnx"),
    pytest.param("onnx", EVERYTHING, id="onnx with nms for any size"),
    pytest.param("openvino", RAW_ANY, id="openvino raw for any size"),
    pytest.param("torchscript", Form(dynamic=True), id="torchscript for any size"),
    pytest.param("ncnn", PLAIN, id="ncnn"),
    pytest.param("ncnn", RAW, id="ncnn raw"),
    pytest.param("litert", UINT8, id="litert", marks=pytest.mark.slow),
    pytest.param("litert", RAW, id="litert raw", marks=pytest.mark.slow),
    pytest.param("executorch", UINT8, id="executorch", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def network() -> TorchRuntime:
    return TorchRuntime(small_model())


@pytest.mark.parametrize("uint8_input", [False, True])
@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v3_small"])
def test_folding_the_normalisation_changes_nothing_not_even_at_the_border(backbone, padding, uint8_input) -> None:
    model = small_model(CONFIG.replace(backbone=backbone, padding=padding, alpha=0.5))
    images = torch.from_numpy(pictures(2))
    inputs = images if uint8_input else images.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = model(images.permute(0, 3, 1, 2))
        raw = DeployedNetwork(model, Form(uint8_input, decodes=False))(inputs)
    for a, b in zip(expected, raw, strict=True):
        assert torch.allclose(a.permute(0, 1, 4, 2, 3).flatten(1, 2), b, atol=2e-4)


def test_exporting_leaves_the_network_as_it_was() -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    DeployedNetwork(model, PLAIN)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_zero_mean_adds_no_node() -> None:
    deployed = DeployedNetwork(YOLOv4(ModelConfig(("a",), neck_width=0.1)), PLAIN)
    assert deployed.mean is None and None not in deployed._buffers.values()  # torch.export fails for such buffers


def test_metadata_brings_back_configuration_and_form() -> None:
    config = CONFIG.replace(class_names=("Füße", "日本", 'a "b"'), score_threshold=0.123)
    assert read_metadata("x", write_metadata(config, EVERYTHING)) == (config, EVERYTHING)


@pytest.mark.parametrize(
    "damage",
    [{"format": "else"}, {"format_version": "99"}, {"model": "{"}, {"model": "{}"}, {"form": '{"what": 1}'}],
    ids=lambda d: next(iter(d.items()))[0] + " " + next(iter(d.items()))[1],
)
def test_metadata_that_is_not_ours_is_rejected(damage) -> None:
    with pytest.raises(UserError):
        read_metadata("x", write_metadata(CONFIG, PLAIN) | damage)


@pytest.mark.parametrize(("kind", "form"), EXPORTED)
def test_an_exported_file_gives_the_networks_outputs(network, kind, form) -> None:
    runtime = load_runtime(exported(kind, form), "cpu")
    parity = compare(network, runtime, list(pictures(3, 80, 100)), form.nms, 0.001)
    assert parity.detections >= 5 and parity.changed == 0
    assert form.nms or (parity.score_difference < 1e-4 and parity.box_difference < 0.05)


@pytest.mark.parametrize(("kind", "form"), EXPORTED)
def test_an_exported_file_contains_its_metadata(kind, form) -> None:
    runtime = load_runtime(exported(kind, form), "cpu")
    assert (runtime.config, runtime.form) == (CONFIG, form)
    assert (runtime.fixed_batch, runtime.fixed_size) == ((None, False) if form.dynamic else (1, True))


@pytest.mark.parametrize(("kind", "form"), EXPORTED[1:4])
def test_a_dynamic_file_takes_several_images_of_another_size(network, kind, form) -> None:
    images = pictures(3, 96, 160)
    runtime = load_runtime(exported(kind, form), "cpu")
    expected = network.read(network.run(images), Thresholds(0.3))
    found = runtime.read(runtime.run(images), Thresholds(0.3))
    assert [len(each) for each in found] == [len(each) for each in expected]
    assert sum(count_changed(a, b, 0.301) for a, b in zip(expected, found, strict=True)) == 0


def test_a_file_with_nms_inside_reports_that_its_thresholds_are_fixed(capsys) -> None:
    runtime = load_runtime(exported("onnx", EVERYTHING), "cpu")
    outputs = runtime.run(pictures(1))
    all_of_them = runtime.read(outputs, Thresholds(0.001))[0]
    assert "export it without --nms" in capsys.readouterr().err
    fewer = runtime.read(outputs, Thresholds(float(np.median(all_of_them.scores)), max_detections=2))[0]
    assert len(fewer) == 2 and fewer.scores[0] >= fewer.scores[1]


def test_an_export_with_other_outputs_is_removed(tmp_path) -> None:
    other = small_model(CONFIG.replace(scale_xy=(1.0, 1.0, 1.0)))
    path = shutil.copy(exported("torchscript", Form(dynamic=True)), tmp_path / "a.torchscript")
    with pytest.raises(RunError, match="outputs of the export differ"):
        check_export(TorchRuntime(other), Path(path), Form(dynamic=True), list(pictures(1)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [name for name, each in FORMATS.items() if each.packages or each.export_packages])
def test_a_format_without_its_tool_names_what_to_install(tmp_path, monkeypatch, kind) -> None:
    for package in (*FORMATS[kind].packages, *FORMATS[kind].export_packages):
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match="pip install"):
        export_and_check(small_model(), tmp_path / f"a{FORMATS[kind].suffix}", kind, RAW, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("beside", [".ncnn.param", ".ncnn.bin", ".ncnn.json"])
def test_a_file_with_the_name_of_a_part_of_an_export_is_not_overwritten(tmp_path, beside) -> None:
    (tmp_path / f"best{beside}").write_text("mine")
    with pytest.raises(UserError, match=f"best{beside} exists"):
        export.main(
            ["--checkpoint", str(checkpoint()), "--format", "ncnn", "--output", str(tmp_path / "best.ncnn.param")]
        )
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_damaged_ncnn_file_is_rejected_before_ncnn_reads_it(tmp_path, part) -> None:
    files = [Path(shutil.copy(f, tmp_path)) for f in FORMATS["ncnn"].files(exported("ncnn", PLAIN))]
    content = bytearray(files[part].read_bytes())
    content[len(content) // 2] ^= 1
    files[part].write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|is not JSON|is not UTF-8"):
        load_runtime(files[0], "cpu")
    files[part].unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_runtime(files[0], "cpu")


def test_metadata_behind_a_model_is_read_back_and_damage_is_noticed(tmp_path) -> None:
    model, texts = b"TFL3" * 100, {"names": '["Füße"]'}
    data = attach(model, texts)
    path = tmp_path / "a.tflite"
    path.write_bytes(data)
    found, read = detach(path)
    assert found == model and read.items() >= texts.items()
    path.write_bytes(data.replace(b"TFL3TFL3", b"TFL3TFL4", 1))
    with pytest.raises(UserError, match="damaged"):
        detach(path)
    path.write_bytes(model)
    assert detach(path) == (model, {})


@pytest.mark.parametrize(("kind", "precision"), [("torchscript", "bf16"), ("ncnn", "fp16")])
def test_half_precision_stays_near(network, kind, precision) -> None:
    parity = compare(network, load_runtime(exported(kind, Form(precision=precision)), "cpu"), list(pictures(2)))
    assert 0 < parity.score_difference < TOLERANCES[precision].score


def test_int8_stays_near_and_is_a_third_of_the_size(network, tmp_path) -> None:
    form = dataclasses.replace(PLAIN, precision="int8")
    kept = FORMATS["onnx"].quantize(small_model(), tmp_path / "a.onnx", form, list(pictures(6, seed=1)))
    assert kept.startswith("decoding")
    parity = compare(network, load_runtime(tmp_path / "a.onnx", "cpu"), list(pictures(2)))
    assert 0 < parity.score_difference < TOLERANCES["int8"].score
    assert (tmp_path / "a.onnx").stat().st_size < 0.75 * exported("onnx", PLAIN).stat().st_size


GRAPH = [  # image - mean -> conv a -> conv b (through a gate) -> conv c -> decoding
    Node("mean", "Sub", ()),
    Node("a", "Conv", ("mean",)),
    Node("pool", "ReduceMean", ("a",)),
    Node("squeeze", "Conv", ("pool",)),
    Node("gate", "HardSigmoid", ("squeeze",)),
    Node("scaled", "Mul", ("a", "gate")),
    Node("b", "GroupConvolution", ("scaled",)),
    Node("c", "Conv", ("b",)),
    Node("scores", "Sigmoid", ("c",)),
]


def test_groups_of_layers_are_found_in_the_graph() -> None:
    groups = group_nodes(GRAPH)
    assert groups == {
        "first": {"a"}, "last": {"c"}, "gates": {"squeeze"}, "depthwise": {"b"}, "decode": {"mean", "scores"}
    }  # fmt: skip


def test_sensitive_layers_stay_in_floating_point() -> None:
    outputs = {frozenset(): 0.5, frozenset("c"): 0.1, frozenset("ac"): 0.095, frozenset({"c", "squeeze"}): 0.01}
    outputs[frozenset({"c", "squeeze", "b"})] = 0.0095

    def run_of(left_out):
        noise = outputs[frozenset(left_out - {"mean", "scores"})]
        return lambda image: [image + noise]

    _, kept = choose_layers(lambda names: names, run_of, lambda image: [image], GRAPH, [np.ones(4)])
    assert "last convolutions" in kept and "squeeze" in kept and "first" not in kept and "depthwise" not in kept


def test_equal_outputs_have_no_error() -> None:
    boxes, scores = np.ones((1, 3, 4)), np.ones((1, 3, 2))
    assert output_error([boxes, scores], [boxes, scores]) == 0
    assert output_error([boxes, scores], [boxes + 16, scores]) == 1


def test_changed_detections_are_those_without_a_match() -> None:
    a = Detections(np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), np.array([0.9, 0.5]), np.array([0, 1]))
    assert count_changed(a, a, 0.0) == 0
    assert count_changed(a, Detections(a.boxes, a.scores, np.array([0, 0])), 0.0) == 1
    assert count_changed(a, a[:1], 0.0) == 1
    assert count_changed(a, a[:1], 0.6) == 0  # the lost one is not above this
    assert count_changed(a, Detections.empty(), 0.0) == 2


def test_a_comparison_with_nan_fails_the_parity_check() -> None:
    assert not Parity(1, float("nan"), 0.0, 0.3, 5, 0).fits(TOLERANCES["fp32"])
    assert not Parity(1, float("inf"), 0.0, 0.3, 5, 0).fits(TOLERANCES["fp32"])


def test_overwrite_replaces_a_package_of_core_ml_but_no_other_folder(tmp_path) -> None:
    def path_of(kind: str, overwrite: bool) -> Path:
        name = f"best{FORMATS[kind].suffix}"
        (tmp_path / name).mkdir(exist_ok=True)
        options = export.ExportOptions(format=kind, output=str(tmp_path / name), overwrite=overwrite)
        return export.output_path(options, tmp_path / "best.pth", FORMATS[kind])

    assert path_of("coreml", True) == tmp_path / "best.mlpackage"
    with pytest.raises(UserError, match="exists and would be overwritten"):
        path_of("coreml", False)
    with pytest.raises(UserError, match="is a folder"):
        path_of("onnx", True)


def test_the_command_writes_compares_and_tells(tmp_path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "photo.png", pictures(1, 120, 100)[0])
    output = tmp_path / "a.torchscript"
    arguments = ["--checkpoint", str(checkpoint()), "--format", "torchscript", "--output", str(output)]
    export.main([*arguments, "--images", str(tmp_path / "photos"), "--input-size", "96", "--score-threshold", "0.4"])
    text = capsys.readouterr().out
    assert ", 0 changed" in text and "on 1 image" in text and "96 x 96" in text
    config = load_runtime(output, "cpu").config
    assert (config.input_size, config.score_threshold) == ((96, 96), 0.4)
    with pytest.raises(UserError, match="exists"):
        export.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--format", "torchscript", "--nms"], "--nms"),
        (["--format", "litert", "--int8"], "--int8"),
        (["--int8"], "--int8"),
        (["--int8", "--half", "--data", "x"], "--half"),
        (["--raw", "--nms"], "--raw"),
        (["--input-size", "100"], "--input-size"),
        (["--output", "a.engine"], "--output"),
        (["--output", "nowhere/a.onnx"], "nowhere"),
        (["--data", "nowhere"], "nowhere"),
        (["--images", "nowhere.jpg"], "--images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_invalid_values_are_rejected_before_anything_is_written(tmp_path, monkeypatch, arguments, where) -> None:
    path = checkpoint()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        export.main(["--checkpoint", str(path), *arguments])
    assert caught.value.where == where
    assert not list(tmp_path.iterdir())


def test_images_that_calibrate_show_every_class_and_the_whole_split() -> None:
    labels = [[2] if i in (40, 700) else [0] if i < 1000 else [] for i in range(1200)]  # class 1 has no object
    boxes = [np.tile([0.0, 0.0, 9.0, 9.0], (len(each), 1)) for each in labels]
    paths = [f"{i}.jpg" for i in range(1200)]
    index = DatasetIndex.build("split", ("a", "b", "c"), paths, paths, [(10, 10)] * 1200, boxes, labels)
    chosen = calibration_images(index, 32)
    assert len(chosen) == len(set(chosen)) == 32 and {40, 700} <= set(chosen)
    assert np.diff([0, *chosen, 1000]).max() < 120
    assert calibration_images(index, 5000) == list(range(1200))
