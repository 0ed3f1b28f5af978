"""The labelling loop with real commands: label over HTTP, train, switch to the new weights, audit, label again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from service_makers import until
from test_labelling_page import Labeller, photos

from imaging.image_io import read_image

ROOT = Path(__file__).parent.parent
NAMES = ("brick", "leaf", "pond")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/")
PATIENCE = 300  # seconds


class Server:
    """The labelling interface of a running serve.py."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, body: Any = None, method: str = "GET") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}label/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    log = folder / "serve.log"
    command = [sys.executable, str(ROOT / "serve.py"), "--label", "photos", "--port", "0"]
    command += ["--device", "cpu", "--runtime", "torch", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MOBILENET_YOLO_CACHE": str(folder / "cache")}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: process.poll() is not None or ADDRESS.search(log.read_text()), PATIENCE)
        found = ADDRESS.search(log.read_text())
        assert found is not None, log.read_text()
        server = Server(found[0])
        until(lambda: _answers(server), PATIENCE)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _answers(server: Server) -> bool:
    try:
        return bool(server.ask("state"))
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_label_train_load_the_weights_audit_and_label_again(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 14, 96)
    boxes = painted_boxes(tmp_path / "photos" / "p0.png")
    config = tmp_path / "train.json"
    config.write_text(json.dumps({"input_size": [96], "batch_size": 4, "workers": 0, "threads": 1, "epochs": 4}))
    with serving(tmp_path, "--train", "--train-minutes", "0.5", "--train-config", str(config)) as server:
        for count in range(12):
            number = server.ask("next?order=uncertain&client=me")["id"]
            picture = server.ask(f"pictures/{number}?client=me")
            assert isinstance(server.ask(f"pictures/{number}/suggestions")["suggestions"], list)
            drawn = boxes[1:] if count == 2 else boxes  # one object is forgotten
            server.ask(f"pictures/{number}", {"version": picture["version"], "boxes": drawn}, "PUT")
        start = time.monotonic()
        while not (training := server.ask("state")["training"])["history"]:
            assert training["status"] != "failed" and time.monotonic() - start < PATIENCE, training
            time.sleep(0.5)
        result = training["history"][0]
        state = server.ask("state")
        assert result["taken"] and result["before"] is None  # the bundled detector has none of these classes
        assert state["model"]["number"] == 2 and state["labelled"] == 12
    weights = Path(result["run"]) / "train" / "best.pth"
    audit = [sys.executable, str(ROOT / "dataset.py"), "audit", "photos", "--checkpoint", str(weights), "--no-progress"]
    subprocess.run(audit, cwd=tmp_path, check=True, timeout=PATIENCE)
    findings = json.loads((tmp_path / "audit" / "audit.json").read_text())["findings"]
    with serving(tmp_path, "--checkpoint", str(weights), "--queue", "audit/audit.json") as server:
        if findings:  # so short a training may find nothing
            number = server.ask("next?order=queue&client=me")["id"]
            assert server.ask(f"pictures/{number}?client=me")["findings"][0]["kind"] == findings[0]["kind"]
        assert server.ask("state")["queue"] == {"name": "audit.json"}


def painted_boxes(path: Path) -> list[dict[str, Any]]:
    """The rectangles of an image of `photos`, as the page sends them."""
    found = Labeller()._detect(read_image(path), 0.0)
    return [
        {"class_name": NAMES[label], "box": box}
        for label, box in zip(found.labels.tolist(), found.boxes.tolist(), strict=True)
    ]
