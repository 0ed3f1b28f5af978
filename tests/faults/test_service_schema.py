"""Random requests generated from the OpenAPI description give only documented responses (schemathesis)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from service_makers import Painted, running

from service.app import build_app

pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install schemathesis")


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    with running(build_app(Painted())) as service:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}openapi.json"]
        # a schema cannot say which bytes are a picture: 415 and 422 for random ones are right
        options = ["--exclude-checks", "positive_data_acceptance", "--max-examples", "8", "--seed", "0", "--no-color"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout[-4000:]
        assert service.ask("GET", "/health").status == 200


def test_the_description_names_the_classes() -> None:
    with running(build_app(Painted())) as service:
        operation = service.ask("GET", "/openapi.json").json["paths"]["/detect"]["post"]
    classes = next(each for each in operation["parameters"] if each["name"] == "classes")
    assert classes["schema"]["items"]["enum"] == ["red", "green", "blue", "0", "1", "2"]
    assert classes["schema"]["maxItems"] == 6, "more could make a request line that is too long"
    assert {"403", "431"} <= set(operation["responses"])


def test_a_request_line_that_is_too_long_gets_the_documented_answer() -> None:
    with running(build_app(Painted())) as service:
        reply = service.ask("POST", "/detect?" + "&".join(["classes=green"] * 2000), b"")
    assert (reply.status, reply.json["code"]) == (431, "head_too_big")


def test_a_class_is_named_or_numbered_and_a_misspelt_one_gets_advice() -> None:
    with running(build_app(Painted())) as service:
        reply = service.ask("POST", "/detect?classes=Grean", b"")
        assert (reply.status, reply.json["code"]) == (422, "unknown_class")
        assert reply.json["error"] == "classes: the model has no class 'Grean'; did you mean 'green'?"
        assert service.ask("POST", "/detect?classes=3", b"").json["code"] == "unknown_class"
        assert service.ask("POST", "/detect?classes=2&classes=red", b"").json["code"] == "empty_file"
