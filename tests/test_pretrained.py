"""Pretrained weights: they are assigned to the right parameters, and mismatches are reported."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision.models
from torch import Tensor

from nets.model_config import ModelConfig
from nets.weights import pretrained
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.weights.pretrained import load_pretrained, pretrained_settings
from nets.yolov4 import YOLOv4
from utils.errors import RunError, UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
has_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def network(backbone: str = "mobilenet_v3_small", **changes) -> YOLOv4:
    config = ModelConfig(class_names=("cat", "dog"), backbone=backbone, neck_width=0.25)
    return YOLOv4(config.replace(**changes)).eval()


def torchvision_state(seed: int = 1) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torchvision.models.mobilenet_v3_small().state_dict()


def assert_holds(model: YOLOv4, weights: dict[str, Tensor]) -> None:
    own = model.backbone.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in own)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URL of a local server for `tmp_path / "www"`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "www").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def publish(folder: Path, weights: dict[str, Tensor]) -> str:
    """Write weights with a torchvision file name, which ends with the first digits of the hash."""
    torch.save(weights, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
    (folder / "w.pth").rename(folder / f"mobilenet-{digest}.pth")
    return f"mobilenet-{digest}.pth"


def test_none_loads_nothing() -> None:
    assert str(load_pretrained(network(), "none")) == "pretrained: none, the backbone is initialised randomly"
    assert pretrained_settings("mobilenet_v2", "none") == {}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.backbone.", "backbone.model."])
@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
def test_a_torchvision_file_is_accepted_with_any_wrapper(prefix: str, inside: str | None, tmp_path: Path) -> None:
    weights = torchvision_state()
    content = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save({inside: content, "epoch": 3} if inside else content, tmp_path / "w.pth")
    model = network()
    report = load_pretrained(model, str(tmp_path / "w.pth"))
    assert_holds(model, weights)
    assert (len(report.loaded), report.missing, report.mismatched) == (report.total, (), ())
    assert "classifier.0.weight" in report.unexpected
    assert "201 of the backbone's 201 tensors" in str(report)
    assert pretrained_settings("mobilenet_v3_small", str(tmp_path / "w.pth"))["mean"] == IMAGENET_MEAN


def test_a_file_of_the_old_format_and_of_safetensors_is_taken(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = torchvision_state()
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        model = network()
        load_pretrained(model, str(tmp_path / name))
        assert_holds(model, weights)


def test_a_file_without_classifier_and_without_counters_is_complete(tmp_path: Path) -> None:
    weights = {n: t for n, t in torchvision_state().items() if n.startswith("features") and "num_batches" not in n}
    torch.save(weights, tmp_path / "w.pth")
    report = load_pretrained(network(), str(tmp_path / "w.pth"))
    assert len(report.loaded) == report.total


def test_a_file_with_a_missing_part_is_an_error_that_names_it(tmp_path: Path) -> None:
    weights = torchvision_state()
    del weights["features.2.block.0.0.weight"]
    weights["features.3.block.0.0.weight"] = torch.zeros(1, 1, 1, 1)
    torch.save(weights, tmp_path / "w.pth")
    report = load_pretrained(network(), str(tmp_path / "w.pth"))
    assert report.missing == ("features.2.block.0.0.weight",)
    assert report.mismatched == ("features.3.block.0.0.weight (1, 1, 1, 1) for (88, 24, 1, 1)",)
    assert "initialised randomly" in str(report)


def test_weights_of_another_backbone_or_width_are_an_error(tmp_path: Path) -> None:
    torch.save(torchvision_state(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="of mobilenet_v1 match"):
        load_pretrained(network("mobilenet_v1"), str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match="give the --alpha of these weights"):
        load_pretrained(network(alpha=0.5), str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>not found</html>", "is a web page"),
        (b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00true\x85R.", "rejected: it could run code"),
    ],
)
def test_a_file_without_weights_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_pretrained(network(), str(tmp_path / "w.pth"))


def test_a_misspelt_source_is_an_error() -> None:
    for function in (partial(load_pretrained, network()), partial(pretrained_settings, "mobilenet_v2")):
        with pytest.raises(UserError, match="imagnet: no such file; give none, imagenet or a weights file"):
            function("imagnet")


def test_a_file_without_named_tensors_is_an_error(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "w.pth")
    with pytest.raises(UserError, match="contains no named tensors"):
        load_pretrained(network(), str(tmp_path / "w.pth"))


def test_weights_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    weights = torchvision_state()
    weights["features.0.0.weight"][0] = torch.nan
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"features\.0\.0\.weight contains NaN"):
        load_pretrained(network(), str(tmp_path / "w.pth"))


def test_a_checkpoint_of_ours_gives_its_backbone_and_its_settings(tmp_path: Path) -> None:
    source = network(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), padding="tf_same", bn_eps=0.002)
    save_checkpoint(tmp_path / "w.pth", Checkpoint(source.config, source.state_dict()))
    settings = pretrained_settings("mobilenet_v3_small", str(tmp_path / "w.pth"))
    assert settings == {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "bn_eps": 0.002, "padding": "tf_same"}
    model = network(**settings)
    report = load_pretrained(model, str(tmp_path / "w.pth"))
    assert (len(report.loaded), report.unexpected) == (report.total, ())
    assert_holds(model, source.backbone.state_dict())


@has_timm
def test_a_timm_file_of_v1_is_accepted(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("mobilenetv1_100").state_dict(), tmp_path / "w.pth")
    settings = pretrained_settings("mobilenet_v1", str(tmp_path / "w.pth"))
    assert settings == {"mean": (0.5,) * 3, "std": (0.5,) * 3, "bn_eps": None, "padding": "symmetric"}
    report = load_pretrained(network("mobilenet_v1"), str(tmp_path / "w.pth"))
    assert (len(report.loaded), report.missing) == (report.total, ())
    assert report.unexpected == ("classifier.weight", "classifier.bias")


@has_timm
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv4_conv_small"])
def test_a_timm_file_of_a_timm_backbone_is_accepted(name: str, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model(name).state_dict(), tmp_path / "w.pth")
    report = load_pretrained(network(f"timm:{name}"), str(tmp_path / "w.pth"))
    assert len(report.loaded) == report.total
    assert pretrained_settings(f"timm:{name}", str(tmp_path / "w.pth"))["mean"] == IMAGENET_MEAN


@pytest.mark.parametrize(
    ("file", "backbone", "alpha", "eps"),
    [
        ("mobilenet_v1_050", "mobilenet_v1", 0.5, 1e-3),
        ("mobilenet_v1_100", "mobilenet_v1", 1.0, 1e-3),
        ("mobilenet_v2_100", "mobilenet_v2", 1.0, 1e-5),
        ("mobilenet_v3_small_100", "mobilenet_v3_small", 1.0, 1e-3),
    ],
)
def test_dequantised_tensorflow_weights_bring_their_own_settings(
    shared: Path, file: str, backbone: str, alpha: float, eps: float
) -> None:
    path = str(shared / "data" / "imagenet_backbones" / f"{file}.pth")
    settings = pretrained_settings(backbone, path)
    assert settings == {"mean": (0.5,) * 3, "std": (0.5,) * 3, "bn_eps": eps, "padding": "tf_same"}
    model = network(backbone, alpha=alpha, **settings)
    report = load_pretrained(model, path)
    assert (len(report.loaded), report.missing, report.mismatched) == (report.total, (), ())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_imagenet_fetches_torchvisions_file_and_checks_its_hash(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torchvision_state()
    name = publish(tmp_path / "www", weights)
    entry = type("Entry", (), {"url": f"{server}/{name}"})
    monkeypatch.setattr(pretrained, "torchvision_weights", lambda backbone: entry)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    model = network()
    report = load_pretrained(model, "imagenet")
    assert_holds(model, weights)
    assert len(report.loaded) == report.total

    wrong = f"mobilenet-{'0' * 8}.pth"
    (tmp_path / "www" / name).rename(tmp_path / "www" / wrong)
    entry.url = f"{server}/{wrong}"
    with pytest.raises(RunError, match=r"has sha256 .*, not 00000000; .* give --pretrained FILE"):
        load_pretrained(network(), "imagenet")
    assert not (tmp_path / "hub" / "checkpoints" / wrong).exists()


def test_a_file_in_the_cache_that_is_not_the_published_one_is_fetched_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = publish(tmp_path / "www", torchvision_state())
    monkeypatch.setattr(pretrained, "torchvision_weights", lambda _: type("Entry", (), {"url": f"{server}/{name}"}))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "checkpoints" / name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"planted")
    load_pretrained(network(), "imagenet")
    assert cached.read_bytes() == (tmp_path / "www" / name).read_bytes()
    assert "it is downloaded again" in capsys.readouterr().err


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server}/mobilenet-00000000.pth"  # does not exist
    monkeypatch.setattr(pretrained, "torchvision_weights", lambda _: type("Entry", (), {"url": url}))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with pytest.raises(
        RunError, match=r"404.*download http://127.*save it as .*hub.checkpoints.mobilenet-00000000\.pth"
    ):
        load_pretrained(network("mobilenet_v2"), "imagenet")


@has_timm
def test_imagenet_of_v1_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    from nets.backbones import timm_backbone

    asked: list[tuple[str, bool]] = []
    build = timm_backbone.build_timm_features

    def fake(name: str, pretrained: bool = False):
        asked.append((name, pretrained))
        return build(name)

    monkeypatch.setattr(timm_backbone, "build_timm_features", fake)
    model = network("mobilenet_v1")
    report = load_pretrained(model, "imagenet")
    assert asked == [("timm:mobilenetv1_100", True)]
    assert len(report.loaded) == report.total
    assert pretrained_settings("mobilenet_v1", "imagenet")["mean"] == (0.5, 0.5, 0.5)


@has_timm
def test_a_failed_timm_download_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from nets.backbones import timm_backbone

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm_backbone, "build_timm_features", fail)
    model = network("mobilenet_v1")
    with pytest.raises(RunError, match=r"no route to host; download https://huggingface.co/timm .*--pretrained FILE"):
        load_pretrained(model, "imagenet")


def test_torchvision_publishes_what_is_asked_of_it() -> None:
    for backbone in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"):
        assert pretrained.torchvision_weights(backbone).url.startswith("https://download.pytorch.org/")
        assert pretrained_settings(backbone, "imagenet")["mean"] == IMAGENET_MEAN


def test_no_weights_are_published_for_other_widths() -> None:
    with pytest.raises(UserError, match=r"at alpha 0\.5; use --alpha 1"):
        load_pretrained(network(alpha=0.5), "imagenet")
