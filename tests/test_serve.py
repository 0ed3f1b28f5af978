"""The HTTP service: responses, errors, and limits."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_makers import exported
from service_makers import Address, Painted, encoded, other_painted, running, scene, until

import serve
from imaging.image_io import decode_image
from nets.export.form import Form
from nets.model_config import ModelConfig
from nets.weights.bundled import model_names
from nets.weights.checkpoint import Checkpoint, save_checkpoint
from nets.yolov4 import YOLOv4
from prediction.detector import Detector
from service.app import build_app
from service.limits import CLIENTS_REMEMBERED, MEGABYTE, Limits, RateLimit, Refused, client_of
from utils.config import parse_options
from utils.errors import MissingExtra, UserError

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = Limits(max_body=200_000 / MEGABYTE, max_megapixels=2.0, read_timeout=2.0, max_waiting=4, batch_wait=0.0)


@pytest.fixture
def detector() -> Painted:
    return Painted()


@pytest.fixture
def service(detector: Painted) -> Iterator[Address]:
    with running(build_app(detector, SMALL, name="painted"), read_timeout=1.0, answer_timeout=1.0) as address:
        yield address


def form(data: bytes, name: str = "a.png", field: str = "image") -> tuple[bytes, str]:
    head = f'--X\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--X--\r\n", "multipart/form-data; boundary=X"


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(1000))
    parts = [header, pixels, b"IEND"]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_unknown_parameters_are_rejected_and_the_description_is_a_local_page(service: Address) -> None:
    picture = encoded(scene())
    for query, words in (("conf=0.3", "did you mean score_threshold"), ("clases=red", "did you mean classes")):
        answer = service.ask("POST", f"/detect?{query}", picture)
        assert answer.status == 422 and words in answer.json["error"]
    page = service.ask("GET", "/docs").body.decode()
    assert "POST /detect" in page and "score_threshold" in page and "http://" not in page and "https://" not in page


def test_an_image_is_answered_in_its_own_pixels_in_the_layout_of_predict(service: Address) -> None:
    reply = service.ask("POST", "/detect", encoded(scene(384, 192)))
    assert reply.status == 200
    assert (reply.json["image"], reply.json["width"], reply.json["height"]) == ("image", 384, 192)
    assert list(reply.json) == ["image", "width", "height", "detections"]
    red, green = reply.json["detections"]  # blue is below the model's threshold
    assert (red["class_id"], red["class_name"], red["score"]) == (0, "red", 0.9) and green["class_name"] == "green"
    assert np.allclose(red["box_xyxy"], [38, 19, 153, 57], atol=5)
    assert "network;dur=" in reply.headers["server-timing"]


def test_a_form_gets_the_same_response_as_the_plain_image(service: Address) -> None:
    body, kind = form(encoded(scene()), "my dog.png")
    reply = service.ask("POST", "/detect", body, Content_Type=kind)
    bare = service.ask("POST", "/detect", encoded(scene()))
    assert reply.status == 200 and reply.json["image"] == "my dog.png"
    assert reply.json["detections"] == bare.json["detections"]


def test_threshold_number_and_classes_can_be_asked_for(service: Address) -> None:
    picture = encoded(scene())

    def names(query: str) -> list[str]:
        return [d["class_name"] for d in service.ask("POST", f"/detect?{query}", picture).json["detections"]]

    assert names("score_threshold=0.05") == ["red", "green", "blue"]
    assert names("score_threshold=0.7") == ["red"]
    assert names("score_threshold=0.05&max_detections=2") == ["red", "green"]
    assert names("score_threshold=0.05&classes=blue&classes=0") == ["red", "blue"]


def test_the_service_finds_exactly_what_the_detector_finds() -> None:
    torch.manual_seed(0)
    config = ModelConfig(class_names=("a", "b"), alpha=0.25, neck_width=0.25, input_size=(96, 96), score_threshold=0.2)
    model = YOLOv4(config).eval()
    for level in model.head.levels:
        torch.nn.init.zeros_(level[-1].bias)  # an untrained network finds nothing otherwise
    detector = Detector.from_model(model)
    picture = encoded(np.random.default_rng(0).integers(0, 256, (150, 110, 3), np.uint8))
    with running(build_app(detector)) as address:
        answers = address.ask("POST", "/detect?score_threshold=0.25&max_detections=50", picture).json["detections"]
    wanted = detector(decode_image(picture), score_threshold=0.25, max_detections=50).to_dicts(config.class_names)
    assert len(wanted) > 5 and [a["class_id"] for a in answers] == [w["class_id"] for w in wanted]
    assert np.allclose([a["box_xyxy"] for a in answers], [w["box_xyxy"] for w in wanted], atol=0.01)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("score_threshold=2", "score_threshold"),
        ("score_threshold=0", "score_threshold"),
        ("score_threshold=nan", "score_threshold"),
        ("max_detections=0", "max_detections"),
        ("max_detections=many", "max_detections"),
        ("classes=gren", "did you mean 'green'"),
        ("classes=3", "no class '3'"),
    ],
)
def test_a_wrong_parameter_is_named(service: Address, query: str, words: str) -> None:
    reply = service.ask("POST", f"/detect?{query}", encoded(scene()))
    assert reply.status == 422 and words in reply.json["error"] and reply.json["code"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "empty_file"),
        (b"<html>no</html>", 415, "not_an_image"),
        (encoded(scene())[:300], 422, "truncated_image"),
        (encoded(scene(), ".jpg")[:-300], 422, "truncated_image"),
        (png_that_claims(30_000, 30_000), 413, "image_too_big"),
        (png_that_claims(1_500, 1_400), 413, "image_too_big"),
        (png_that_claims(100, 100), 422, "truncated_image"),
        (bytes(200_001), 413, "body_too_big"),
    ],
    ids=["empty", "html", "cut png", "cut jpeg", "bomb", "above the cap", "no pixels", "big body"],
)
def test_a_bad_image_is_rejected_with_its_reason(
    service: Address, detector: Painted, body: bytes, status: int, code: str
) -> None:
    reply = service.ask("POST", "/detect", body)
    assert (reply.status, reply.json["code"]) == (status, code)
    assert re.fullmatch(r"[^\n]+: [^\n]+", reply.json["error"])
    assert detector.batches == [1], "only the warm-up has run"
    assert service.ask("POST", "/detect", encoded(scene())).status == 200


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"nothing like it", "multipart/form-data; boundary=X"),
        (b"--X--\r\n", "multipart/form-data; boundary=X"),
        (b"--X\r\n", "multipart/form-data"),
        (
            b'--X\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n--X--\r\n',
            "multipart/form-data; boundary=X",
        ),
        (form(b"1")[0][:-9] + b"\r\n" + form(b"2")[0], "multipart/form-data; boundary=X"),
    ],
    ids=["no form", "empty form", "no boundary", "no file", "two files"],
)
def test_a_form_without_one_file_is_rejected(service: Address, body: bytes, kind: str) -> None:
    reply = service.ask("POST", "/detect", body, Content_Type=kind)
    assert (reply.status, reply.json["code"]) == (400, "bad_form")


def test_a_photograph_of_many_megapixels_is_accepted(detector: Painted) -> None:
    with running(build_app(detector)) as service:
        reply = service.ask("POST", "/detect", encoded(scene(4000, 3600), ".jpg"))
    assert reply.status == 200 and (reply.json["width"], reply.json["height"]) == (4000, 3600)
    assert [found["class_name"] for found in reply.json["detections"]] == ["red", "green"]


# --- batches and bounds ----------------------------------------------------------------------------------------------


def ask_together(service: Address, number: int) -> list[int]:
    picture = encoded(scene())
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda _: service.ask("POST", "/detect", picture).status, range(number)))


def test_requests_that_arrive_while_the_network_is_busy_become_one_batch(detector: Painted) -> None:
    app = build_app(detector, SMALL, name="painted")
    models = app.state.models
    batcher = models.named(models.default).batcher
    with running(app, read_timeout=1.0, answer_timeout=1.0) as service, ThreadPoolExecutor(1) as pool:
        detector.gate.clear()
        answers = pool.submit(ask_together, service, 4)
        # Not "waiting" and "decoders_busy" of /health: a decoder is not busy between two images.
        until(lambda: len(detector.batches) == 2 and detector.batches[1] + len(batcher._waiting) == 4)
        detector.gate.set()
        assert answers.result() == [200] * 4
    assert detector.batches[0] == 1 and sum(detector.batches[1:]) == 4 and len(detector.batches) <= 3


def test_a_full_queue_is_answered_at_once_with_503_and_retry_after(detector: Painted, service: Address) -> None:
    detector.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(ask_together, service, 4)
        until(lambda: service.ask("GET", "/health").json["waiting"] == 4)
        reply = service.ask("POST", "/detect", encoded(scene()))
        assert (reply.status, reply.json["code"]) == (503, "queue_full") and int(reply.headers["retry-after"]) >= 1
        detector.gate.set()
        assert answers.result() == [200] * 4
    assert service.ask("POST", "/detect", encoded(scene())).status == 200


def test_a_network_failure_affects_only_the_requests_of_its_batch(
    detector: Painted, service: Address, capfd: pytest.CaptureFixture[str]
) -> None:
    detector.broken = True
    reply = service.ask("POST", "/detect", encoded(scene()))
    assert (reply.status, reply.json["code"]) == (500, "network_failed")
    assert "out of memory" not in reply.json["error"] and "out of memory" in capfd.readouterr().err
    detector.broken = False
    assert service.ask("POST", "/detect", encoded(scene())).status == 200


def test_a_request_that_waits_too_long_times_out_and_frees_its_place(detector: Painted) -> None:
    with running(build_app(detector, replace(SMALL, answer_timeout=2.0))) as service:
        detector.gate.clear()
        reply = service.ask("POST", "/detect", encoded(scene()))
        assert (reply.status, reply.json["code"]) == (503, "too_slow") and "retry-after" in reply.headers
        assert service.ask("GET", "/health").json["waiting"] == 0
        detector.gate.set()
        until(lambda: service.ask("POST", "/detect", encoded(scene())).status == 200)


def test_uploads_together_may_not_fill_the_memory(detector: Painted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "bodies", 1000)
    with running(build_app(detector, SMALL)) as service:
        reply = service.ask("POST", "/detect", encoded(scene()) + bytes(1000))
        assert (reply.status, reply.json["code"]) == (503, "busy")
        for _ in range(3):
            assert service.ask("POST", "/detect", bytes(900)).status == 415, "what was held is given back"


def test_the_requests_of_a_client_can_be_limited(detector: Painted) -> None:
    with running(build_app(detector, replace(SMALL, per_minute=2))) as service:
        replies = [service.ask("POST", "/detect", encoded(scene())) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 31
        assert service.ask("GET", "/health").status == 200


def test_a_clients_quota_recovers_with_time_and_idle_clients_are_removed() -> None:
    now = [0.0]
    limit = RateLimit(60, clock=lambda: now[0])
    for _ in range(60):
        limit.check("10.0.0.1")
    with pytest.raises(Refused, match=r"wait [12] s"):
        limit.check("10.0.0.1")
    limit.check("10.0.0.2")
    now[0] += 1.01
    limit.check("10.0.0.1")
    for number in range(CLIENTS_REMEMBERED + 10):
        limit.check(f"client {number}")
    assert len(limit._clients) == CLIENTS_REMEMBERED
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff") != client_of("2001:db8:0:1::1")


# --- those who mean harm ---------------------------------------------------------------------------------------------


def read_to_end(connection: socket.socket) -> bytes:
    connection.settimeout(15)
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionError:
        pass
    return received


def test_a_head_that_comes_byte_by_byte_is_cut_off(service: Address) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as slow, pytest.raises(OSError):
        slow.sendall(b"POST /detect HTTP/1.1\r\n")
        for _ in range(100):
            slow.sendall(b"X-A: b\r\n")
            time.sleep(0.1)
    with socket.create_connection(("127.0.0.1", service.port)) as silent:
        assert read_to_end(silent) == b""


def test_a_second_request_on_a_connection_has_the_same_deadline(service: Address) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as slow, pytest.raises(OSError):
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        slow.recv(65536)
        for _ in range(100):
            slow.sendall(b"G")
            time.sleep(0.1)


def test_a_body_that_comes_byte_by_byte_is_answered_with_408(service: Address) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as slow:
        slow.sendall(b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(25):
            slow.sendall(b"a")
            time.sleep(0.1)
        assert b" 408 " in slow.recv(65536)


def test_a_body_without_length_is_limited(service: Address) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as endless:
        endless.sendall(b"POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(5):
            endless.sendall(chunk)
        endless.settimeout(15)
        assert b" 413 " in endless.recv(65536)


def test_an_endless_head_is_rejected(service: Address) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000)
        assert b" 431 " in read_to_end(endless)


def test_no_path_of_a_client_is_a_path_here(service: Address, tmp_path: Path) -> None:
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/../serve.py",
        "/static/page.html%00.png",
        "/model.onnx",
        "/ort/../../etc/passwd",
    ):
        reply = service.ask("GET", path)
        assert reply.status == 404 and reply.json["code"] == "not_found", path
    before = sorted(tmp_path.iterdir())
    for name in ("../../evil.png", "/etc/passwd", "a\x00b.png", str(tmp_path / "evil.png"), "x" * 5000):
        body, kind = form(encoded(scene()), name)
        assert service.ask("POST", "/detect", body, Content_Type=kind).status in (200, 400)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc, which only Linux has")
def test_a_bomb_needs_little_memory(detector: Painted) -> None:
    with running(build_app(detector, Limits())) as service:
        service.ask("POST", "/detect", encoded(scene()))
        before = service.metric("process_resident_memory_bytes")
        for _ in range(20):
            assert service.ask("POST", "/detect", png_that_claims(30_000, 30_000)).status == 413
        assert service.metric("process_resident_memory_bytes") - before < 100e6


# --- several models --------------------------------------------------------------------------------------------------


@pytest.fixture
def two_models(detector: Painted) -> Iterator[Address]:
    with running(build_app(detector, SMALL, name="painted", more={"other": other_painted()}), SMALL) as address:
        yield address


def found_names(service: Address, query: str) -> list[str]:
    reply = service.ask("POST", f"/detect?{query}", encoded(scene(320, 160)))
    assert reply.status == 200, reply.json
    return [each["class_name"] for each in reply.json["detections"]]


def test_a_request_chooses_among_several_models(two_models: Address) -> None:
    assert found_names(two_models, "") == found_names(two_models, "model=painted") == ["red", "green"]
    assert found_names(two_models, "model=other") == ["rot"], "its own threshold, 0.7"
    assert found_names(two_models, "model=other&score_threshold=0.1&classes=blau&classes=0") == ["rot", "blau"]
    row = two_models.ask("POST", "/detect?model=other", encoded(scene(320, 160))).json
    assert row["detections"][0]["box_xyxy"] == pytest.approx([32, 16, 128, 48], abs=4), "fitted to its own input size"


def test_a_model_or_class_that_does_not_exist_is_named(two_models: Address) -> None:
    for query, code, words in (
        ("model=othr", "unknown_model", "did you mean other?"),
        ("model=x", "unknown_model", "choose from painted, other"),
        ("model=other&classes=red", "unknown_class", "the model has no class 'red'; known: rot"),
    ):
        reply = two_models.ask("POST", f"/detect?{query}", b"")
        assert (reply.status, reply.json["code"]) == (422, code) and words in reply.json["error"]


def test_all_models_are_described(two_models: Address) -> None:
    info = two_models.ask("GET", "/info").json
    assert [each["name"] for each in info["models"]] == ["painted", "other"] and info["name"] == "painted"
    assert info["models"][1]["input_size"] == [64, 128] and info["models"][1]["score_threshold"] == 0.7
    operation = two_models.ask("GET", "/openapi.json").json["paths"]["/detect"]["post"]
    parameters = {each["name"]: each["schema"] for each in operation["parameters"]}
    assert parameters["model"]["enum"] == ["painted", "other"] and parameters["model"]["default"] == "painted"
    assert {"red", "gelb", "3"} < set(parameters["classes"]["items"]["enum"])


def test_the_models_share_the_limit_of_requests_under_way(detector: Painted) -> None:
    slow = other_painted()
    limits = replace(SMALL, max_waiting=1, answer_timeout=20.0)
    with running(build_app(detector, limits, name="painted", more={"other": slow}), limits) as service:
        slow.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(service.ask, "POST", "/detect?model=other", encoded(scene()))
            until(lambda: service.ask("GET", "/health").json["waiting"] == 1)
            assert service.ask("POST", "/detect", encoded(scene())).json["code"] == "queue_full"
            slow.gate.set()
            assert first.result().status == 200


def test_model_files_get_the_shortest_names_that_differ(tmp_path: Path) -> None:
    assert model_names([Path("a/small.pth")]) == ["small"]
    assert model_names([Path("small.pth"), Path("small.onnx")]) == ["small.pth", "small.onnx"]
    runs = [tmp_path / "run1" / "best.pth", tmp_path / "run2" / "best.pth"]
    assert model_names(runs) == ["run1/best.pth", "run2/best.pth"]
    with pytest.raises(UserError, match="is given twice"):
        model_names([Path("a.pth"), Path("./a.pth")])


# --- around it -------------------------------------------------------------------------------------------------------


def test_health_metrics_and_description_are_there(service: Address) -> None:
    for _ in range(3):
        service.ask("POST", "/detect", encoded(scene()))
    service.ask("POST", "/detect", b"no")
    assert service.ask("GET", "/health").json == {"status": "ok", "waiting": 0, "decoders_busy": 0, "decoders_stuck": 0}
    reply = service.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = reply.body.decode()
    line = re.compile(r'(# (HELP|TYPE) .+|[a-z_]+(\{[a-z]+="[^"]*"\})? [-+.e\d]+)')
    assert all(line.fullmatch(each) for each in text.splitlines())
    assert 'detector_requests_total{status="200"}' in text and 'detector_refused_total{reason="not_an_image"} 1' in text
    assert service.metric("detector_objects_total") == 6 and service.metric("detector_answer_seconds_count") == 3
    buckets = [int(n) for n in re.findall(r'detector_batch_size_bucket\{le="[^"]+"\} (\d+)', text)]
    assert buckets == sorted(buckets) and buckets[-1] == 4  # the warm-up too
    description = service.ask("GET", "/openapi.json").json
    operation = description["paths"]["/detect"]["post"]
    assert {"image/*", "multipart/form-data"} <= set(operation["requestBody"]["content"])
    assert {"200", "413", "503"} <= set(operation["responses"])
    assert {"score_threshold", "max_detections", "classes", "model"} == {p["name"] for p in operation["parameters"]}


def test_every_answer_forbids_the_browser_what_the_page_does_not_need(service: Address) -> None:
    for path in ("/", "/static/page.js", "/health", "/nothing"):
        headers = service.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]


def test_the_page_asks_for_nothing_from_elsewhere(service: Address) -> None:
    page = service.ask("GET", "/").body.decode()
    names = re.findall(r'(?:src|href)="static/([^"]+)"', page)
    assert len(names) == 2
    for name in ("page.html", "viewer.js", "browser_model.js", *names):
        reply = service.ask("GET", f"/static/{name}")
        assert reply.status == 200
        addresses = set(re.findall(rb"https?://[^\s\"'`)]+", reply.body)) - {b"http://www.w3.org/2000/svg"}
        assert not addresses, name


def test_an_unknown_address_or_method_is_answered_in_the_same_form(service: Address) -> None:
    assert service.ask("GET", "/nothing").json == {
        "code": "not_found",
        "error": "request: not found; see /openapi.json",
    }
    reply = service.ask("GET", "/detect")
    assert reply.status == 405 and reply.json["code"] == "method_not_allowed" and reply.headers["allow"] == "POST"


def test_head_is_answered_like_get_without_a_body(service: Address) -> None:
    for path in ("/", "/health", "/static/page.css", "/nothing"):
        get, head = service.ask("GET", path), service.ask("HEAD", path)
        assert head.status == get.status and head.body == b""
        assert head.headers["content-length"] == str(len(get.body))
    assert service.ask("HEAD", "/detect").status == 405


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(class_names=("a", "b"), alpha=0.25, neck_width=0.25, input_size=(64, 64))
    path = tmp_path_factory.mktemp("serve") / "model.pth"
    save_checkpoint(path, Checkpoint(config, YOLOv4(config).state_dict()))
    return path


def start(checkpoint: Path, *arguments: str) -> tuple[subprocess.Popen[str], Address]:
    command = [sys.executable, "serve.py", "--checkpoint", str(checkpoint), "--port", "0", *arguments]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.search(r"on http://127\.0\.0\.1:(\d+)/", line)
    assert found, line + process.stderr.read()
    return process, Address(int(found[1]))


@pytest.mark.slow
def test_sigterm_ends_it_after_the_last_answer(checkpoint: Path) -> None:
    process, address = start(checkpoint)
    try:
        assert address.ask("POST", "/detect", encoded(scene())).status == 200
        with socket.create_connection(("127.0.0.1", address.port)) as late:
            late.sendall(b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
            until(lambda: address.metric('detector_requests_total{status="200"}') >= 1)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            late.sendall(b"no")
            assert b" 415 " in read_to_end(late)
        assert process.wait(600) == 128 + signal.SIGTERM
        assert process.stderr is not None and process.stderr.read().strip() == "interrupted by SIGTERM"
    finally:
        process.kill()
        process.communicate()


def test_a_used_port_a_missing_file_and_bad_options_are_one_line_errors(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> UserError:
        with pytest.raises(UserError) as caught:
            serve.main([str(argument) for argument in arguments])
        assert "\n" not in str(caught.value)
        return caught.value

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port}" in str(refused("--checkpoint", checkpoint, "--port", port))
    assert refused("--checkpoint", tmp_path / "none.pth").exit_code == 2
    assert "--port" in str(refused("--checkpoint", checkpoint, "--port", 70000))
    assert "--max-waiting" in str(refused("--checkpoint", checkpoint, "--queue", 0))
    assert "--input-size" in str(refused("--checkpoint", checkpoint, "--input-size", "a"))
    assert "a.onnx: does not exist" in str(refused("--checkpoint", checkpoint, "--browser-model", "a.onnx"))
    assert "--browser-model" in str(refused("--checkpoint", checkpoint, "--ort-web", tmp_path))
    pytest.importorskip("onnxruntime")
    onnx = exported("onnx", Form())
    assert "npm pack" in str(refused("--checkpoint", checkpoint, "--browser-model", onnx, "--ort-web", tmp_path))
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    missing = refused("--checkpoint", checkpoint)
    assert isinstance(missing, MissingExtra) and "pip install -e '.[serve]'" in str(missing)


def test_options_become_limits() -> None:
    arguments = ["--max-body", "100", "--batch-wait", "5", "--max-waiting", "3"]
    limits = parse_options(serve.ServeOptions, arguments, description="").limits
    assert (limits.body_bytes, limits.batch_wait, limits.max_waiting) == (100 << 20, 5, 3)
    assert limits.bodies >= 2 * limits.body_bytes, "a form is held twice while it is parsed"
