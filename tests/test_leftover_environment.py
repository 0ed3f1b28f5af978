"""Leftover RANK and WORLD_SIZE variables: a single process runs; settings that would hang are reported in one line."""

from __future__ import annotations

import os
import socket

import pytest

from utils import distributed
from utils.errors import RunError, UserError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "1"},  # would silence what only rank 0 prints
        {"WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"},
        {"RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_leftovers_of_one_process_are_removed_with_one_line(
    values: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert distributed.start("cpu") == "cpu" and distributed.world_size() == 1
    assert not set(values) & set(os.environ)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: environment: ") and line.endswith("unset RANK and WORLD_SIZE")
    assert all(f"{name}={value}" in line for name, value in values.items())


def test_variables_of_a_torchrun_that_has_ended_are_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    for place in ({}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}):
        for name, value in (values | place).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="TORCHELASTIC_RUN_ID: is set, but no torchrun answers at MASTER_ADDR"):
            distributed.start("cpu")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "does not match RANK"),
        ({"RANK": "0", "WORLD_SIZE": "many"}, "does not match RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "9"}, "resolved"),
    ],
)
def test_invalid_values_are_a_one_line_error(
    values: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as caught:
        distributed.start("cpu")
    assert "unset RANK and WORLD_SIZE" in str(caught.value)


@pytest.mark.parametrize(
    ("rank", "is_listening", "words"),
    [
        ("1", True, "another program answers there"),  # it accepts the connection and is silent
        ("1", False, "does not respond: Connection refused"),
        ("0", True, "MASTER_PORT .* cannot be used"),
        ("0", False, r"ranks \[1\] did not connect within 0.3 s"),
    ],
)
def test_a_master_that_is_none_is_a_one_line_error(
    rank: str, is_listening: bool, words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if is_listening:
            server.listen()
        values = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (values | {"MASTER_PORT": str(server.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        if rank == "0" and not is_listening:
            server.close()  # the store needs the port
        monkeypatch.setattr(distributed, "HANDSHAKE_SECONDS", 0.5 if rank == "1" else 30.0)
        with pytest.raises(RunError, match=words):
            distributed.start("cpu", timeout_seconds=0.3)
    (line,) = capfd.readouterr().err.splitlines()  # without a stack of C++
    assert line.startswith("warning: WORLD_SIZE: is 2: waiting up to 0.3 s for ")
