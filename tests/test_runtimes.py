"""Model files are recognised by content and loaded on the requested runtime, or rejected with the reason."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from export_makers import CONFIG, checkpoint, export_once, exported, pictures, small_model

from nets.export import cache, check
from nets.export.form import Form
from nets.export.formats import FORMAT_OF_RUNTIME, FORMATS, RUNTIMES, file_kind, runtimes_of
from nets.export.load import load_runtime
from nets.export.parity import TOLERANCES, compare, drawn_photos
from nets.torch_runtime import TorchRuntime
from nets.weights.bundled import find_model
from nets.weights.checkpoint import Checkpoint, load_model, save_checkpoint
from prediction.detector import Detector, load_detector
from utils.errors import UserError

PLAIN, ANY, RAW_ANY = Form(), Form(dynamic=True), Form(uint8_input=True, decodes=False, dynamic=True)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MOBILENET_YOLO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(check, "export_and_check", export_once)
    return tmp_path / "cache"


def test_each_file_loads_on_the_runtime_it_was_made_for() -> None:
    for path, name in [
        (checkpoint(), "torch"),
        (exported("onnx", PLAIN), "onnxruntime"),
        (exported("openvino", RAW_ANY), "openvino"),
        (exported("torchscript", ANY), "torchscript"),
    ]:
        assert load_runtime(path, "cpu").name == name


def test_an_exported_file_gives_the_detections_of_the_checkpoint() -> None:
    photos = list(pictures(3, 70, 90))
    expected = load_detector(checkpoint(), "cpu")(photos)
    assert sum(len(each) for each in expected) > 5
    for path in (exported("onnx", PLAIN), exported("openvino", RAW_ANY), exported("torchscript", ANY)):
        for a, b in zip(expected, load_detector(path, "cpu")(photos), strict=True):
            assert np.allclose(np.sort(a.scores), np.sort(b.scores), atol=1e-4)
            assert np.array_equal(np.bincount(a.labels, minlength=3), np.bincount(b.labels, minlength=3))


def test_openvino_runs_an_onnx_file_when_asked() -> None:
    runtime = load_runtime(exported("onnx", PLAIN), "cpu", "openvino")
    assert runtime.name == "openvino"
    boxes, scores = runtime.run(pictures(1))
    expected = load_runtime(exported("onnx", PLAIN), "cpu").run(pictures(1))
    assert np.allclose(boxes, expected[0], atol=0.05) and np.allclose(scores, expected[1], atol=1e-4)


def test_a_file_of_one_size_rejects_another() -> None:
    with pytest.raises(UserError, match="export it with --dynamic"):
        Detector(load_runtime(exported("onnx", PLAIN), "cpu")).set_input_size(96)
    Detector(load_runtime(exported("openvino", RAW_ANY), "cpu")).set_input_size(96)


def test_warming_up_takes_the_size_and_batch_of_the_file() -> None:
    load_runtime(exported("onnx", PLAIN), "cpu").warm_up(batch=4)
    TorchRuntime(small_model()).warm_up(batch=2)


def test_pt_may_be_a_checkpoint_or_torchscript(tmp_path) -> None:
    script, weights = tmp_path / "a.pt", tmp_path / "b.pt"
    shutil.copy(exported("torchscript", ANY), script)
    shutil.copy(checkpoint(), weights)
    assert (file_kind(script), file_kind(weights)) == ("torchscript", "checkpoint")
    assert (load_runtime(script, "cpu").name, load_runtime(weights, "cpu").name) == ("torchscript", "torch")


@pytest.mark.parametrize("kind", [kind for kind, each in FORMATS.items() if each.runs])
def test_a_folder_with_one_exported_file_can_be_given(tmp_path, kind) -> None:
    for file in FORMATS[kind].files(tmp_path / f"model{FORMATS[kind].suffix}"):
        file.touch()
    assert find_model(tmp_path).name == f"model{FORMATS[kind].suffix}"
    (tmp_path / "other.onnx").touch()
    with pytest.raises(UserError, match="2 exported files"):
        find_model(tmp_path)


@pytest.mark.parametrize("runtime", ["tvm", "openvino", "torch"])
def test_a_runtime_that_does_not_run_the_file_is_rejected(runtime) -> None:
    with pytest.raises(UserError, match="choose from"):
        load_runtime(exported("torchscript", ANY), "cpu", runtime)


@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.torchscript", "a.tflite", "a.pth"])
def test_a_file_that_is_not_a_model_is_a_one_line_error(tmp_path, name) -> None:
    if name.endswith(".tflite"):
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    path = tmp_path / name
    for content in (b"", b"no model", b"<html></html>", b"PK\x03\x04" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_runtime(path, "cpu")
        assert "\n" not in str(caught.value) and name in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_runtime(path, "cpu")


def test_a_foreign_onnx_file_is_rejected(tmp_path) -> None:
    import onnx

    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["y"])], "g", [value], [other])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 18)]),
        tmp_path / "a.onnx",
    )
    with pytest.raises(UserError, match="was not exported by this platform"):
        load_runtime(tmp_path / "a.onnx", "cpu")


def test_a_truncated_openvino_file_is_a_one_line_error(tmp_path) -> None:
    shutil.copy(exported("openvino", RAW_ANY), tmp_path / "a.xml")
    with pytest.raises(UserError, match=r"the \.bin must be in"):
        load_runtime(tmp_path / "a.xml", "cpu")


def test_the_tables_of_runtimes_agree() -> None:
    assert set(RUNTIMES) == {"auto", "fastest", "torch", *FORMAT_OF_RUNTIME}
    assert all(set(runtimes_of(name)) <= set(FORMAT_OF_RUNTIME) for name in FORMATS)


def test_a_checkpoint_is_exported_for_another_runtime_only_once(cache_folder, capsys) -> None:
    runtime = load_runtime(checkpoint(), "cpu", "torchscript")
    assert runtime.name == "torchscript" and runtime.config == CONFIG and not runtime.fixed_size
    assert "exporting model.pth for torchscript" in capsys.readouterr().err
    load_runtime(checkpoint(), "cpu", "torchscript")
    assert capsys.readouterr().err == ""
    assert len(list((cache_folder / "exports").iterdir())) == 1


def test_the_fastest_runtime_is_measured_once_and_then_taken_by_itself(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cache, "CACHED_RUNTIMES", ("torchscript",))
    monkeypatch.delenv(cache.DEFAULT)
    monkeypatch.setattr(cache, "measure", lambda model, runtimes: {"torch": 0.2, "torchscript": 0.1})
    assert load_runtime(checkpoint(), "cpu", "fastest").name == "torchscript"
    assert "torchscript (torch 200.0 ms, torchscript 100.0 ms)" in capsys.readouterr().err
    monkeypatch.setattr(cache, "measure", None)  # would fail if it were called again
    assert load_runtime(checkpoint(), "cpu", "fastest").name == "torchscript"
    assert load_runtime(checkpoint(), "cpu").name == "torchscript"
    assert load_runtime(checkpoint(), "cpu", "torch").name == "torch"


def test_a_cached_file_record_is_ignored_if_the_file_is_missing(monkeypatch, cache_folder) -> None:
    monkeypatch.delenv(cache.DEFAULT)
    monkeypatch.setattr(cache, "CACHED_RUNTIMES", ("torchscript",))
    monkeypatch.setattr(cache, "measure", lambda model, runtimes: {"torch": 0.2, "torchscript": 0.1})
    load_runtime(checkpoint(), "cpu", "fastest")
    memory = cache_folder / "exports" / "fastest.json"
    found = json.loads(memory.read_text())
    assert len(found) == 1
    file = next((cache_folder / "exports").glob("*.torchscript"))
    for text in (memory.read_text(), "{", "[]", "{}"):
        file.unlink()
        memory.write_text(text)
        assert load_runtime(checkpoint(), "cpu").name == "torchscript" and file.exists()


def test_without_a_measurement_the_fastest_that_can_be_exported_is_taken(monkeypatch) -> None:
    monkeypatch.delenv(cache.DEFAULT)
    monkeypatch.setattr(cache, "are_installed", lambda packages: "openvino" not in packages)
    assert cache.default_runtime(checkpoint()) == "onnxruntime"
    assert load_runtime(checkpoint(), "cpu").name == "onnxruntime"
    monkeypatch.setattr(cache, "are_installed", lambda packages: not {"openvino", "onnxscript"} & set(packages))
    assert cache.default_runtime(checkpoint()) == "onnxruntime"  # ready: what exports it need not be there
    cache.remember_failure(checkpoint(), "onnxruntime", "no such operator")
    assert cache.default_runtime(checkpoint()) == "torch"
    monkeypatch.setenv(cache.DEFAULT, "openvino")
    assert cache.default_runtime(checkpoint()) == "openvino"


def test_where_several_runtimes_are_installed_the_first_checkpoint_is_measured(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(cache.DEFAULT)
    monkeypatch.setattr(cache, "CACHED_RUNTIMES", ("onnxruntime", "torchscript"))
    calls = []

    def measure(model: object, runtimes: dict[str, object]) -> dict[str, float]:
        calls.append(list(runtimes))
        return {"torch": 0.3, "onnxruntime": 0.2, "torchscript": 0.1}

    monkeypatch.setattr(cache, "measure", measure)
    assert load_runtime(checkpoint(), "cpu").name == "torchscript"
    other = tmp_path / "other.pth"
    other_config = CONFIG.replace(score_threshold=0.25)
    save_checkpoint(other, Checkpoint(other_config, small_model(other_config).state_dict()))
    assert load_runtime(other, "cpu").name == "torchscript"  # by the order that was found
    assert calls == [["torch", "onnxruntime", "torchscript"]]


def test_a_runtime_that_cannot_be_exported_for_is_omitted_from_the_measurement(monkeypatch, capsys) -> None:
    monkeypatch.delenv(cache.DEFAULT)
    monkeypatch.setattr(cache, "CACHED_RUNTIMES", ("onnxruntime", "torchscript"))
    real = cache.load_cached

    def load(path: Path, name: str) -> object:
        if name == "torchscript":
            raise RuntimeError("no such operator")
        return real(path, name)

    monkeypatch.setattr(cache, "load_cached", load)
    monkeypatch.setattr(cache, "measure", lambda model, runtimes: dict.fromkeys(runtimes, 0.1) | {"onnxruntime": 0.05})
    for _ in range(2):  # it is not tried again
        assert load_runtime(checkpoint(), "cpu").name == "onnxruntime"
    assert capsys.readouterr().err.count("no such operator") == 1


def test_a_checkpoint_that_cannot_be_exported_runs_on_pytorch_with_one_line(monkeypatch, capsys) -> None:
    monkeypatch.delenv(cache.DEFAULT)
    monkeypatch.setattr(cache, "CACHED_RUNTIMES", ("onnxruntime",))

    def fail(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(check, "export_and_check", fail)
    assert load_runtime(checkpoint(), "cpu").name == "torch"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "no such operator" in lines[1] and "PyTorch is used" in lines[1]
    assert load_runtime(checkpoint(), "cpu").name == "torch"  # and it is not tried again at each start
    assert capsys.readouterr().err == ""


def test_a_damaged_cached_export_is_made_again(monkeypatch) -> None:
    load_runtime(checkpoint(), "cpu", "onnxruntime")
    target = cache.cached_path(checkpoint(), "onnxruntime")
    size = target.stat().st_size
    target.write_bytes(target.read_bytes()[:1000])
    assert load_runtime(checkpoint(), "cpu", "onnxruntime").name == "onnxruntime"
    assert target.stat().st_size == size


def test_threads_take_turns_in_the_network() -> None:
    detector = Detector.from_model(small_model())
    images = pictures(2)
    expected = detector(list(images))
    run, inside = detector.runtime.run, threading.Semaphore(1)

    def run_alone(batch: np.ndarray) -> list[np.ndarray]:
        assert inside.acquire(blocking=False), "two threads are in the network"
        try:
            return run(batch)
        finally:
            inside.release()

    detector.runtime.run = run_alone
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: detector(list(images)), range(12)))
    for answer in answers:
        assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(answer, expected, strict=True))


def test_measuring_gives_a_time_for_each_runtime() -> None:
    network = TorchRuntime(small_model())
    times = cache.measure(small_model(), {"a": network, "b": network}, trials=2)
    assert set(times) == {"a", "b"} and all(seconds > 0 for seconds in times.values())


@pytest.mark.slow
def test_the_network_the_fused_network_and_the_cached_export_agree_on_photographs() -> None:
    model = load_model(find_model("nano"))
    photos = drawn_photos(model.config, 2)
    pixels = torch.from_numpy(np.stack([model.config.letterbox.apply(photo) for photo in photos]))
    fused, exported_runtime = TorchRuntime(model), cache.load_cached(find_model("nano"), "onnxruntime")
    with torch.inference_mode():
        eager = model(pixels.permute(0, 3, 1, 2))
    for ours, theirs in zip(fused.run(pixels.numpy()), eager, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=0.02)
    parity = compare(fused, exported_runtime, photos)
    assert exported_runtime.config == model.config
    assert parity.detections > 0 and parity.fits(TOLERANCES["fp32"]), parity
