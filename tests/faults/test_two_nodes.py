"""Distributed training on two machines (network namespaces) whose host names resolve to 127.0.1.1, as on Debian."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import distributed

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NODES = {"a": "10.213.7.1", "b": "10.213.7.2"}
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import torch
from utils import distributed
distributed.start("cpu")
print("sum", int(distributed.total(torch.tensor([distributed.rank() + 1.0]))), flush=True)
distributed.stop()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, list[str]]]:
    """Command prefixes that run on two connected network namespaces."""
    if not shutil.which("ip") or not shutil.which("unshare") or os.getuid() != 0:
        pytest.skip("needs root, ip and unshare")
    names = {node: f"yolo-{os.getpid()}-{node}" for node in NODES}
    made = []
    try:
        try:
            for node in NODES:
                ip("netns", "add", names[node])
                made.append(names[node])
            links = [f"y{os.getpid() % 100000}{node}" for node in NODES]
            ip("link", "add", links[0], "netns", names["a"], "type", "veth", "peer", links[1], "netns", names["b"])
            for (node, address), link in zip(NODES.items(), links, strict=True):
                ip("-n", names[node], "addr", "add", f"{address}/24", "dev", link)
                ip("-n", names[node], "link", "set", link, "up")
                ip("-n", names[node], "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        commands = {}
        for node in NODES:
            hosts = [f"{'127.0.1.1' if other == node else address} node-{other}" for other, address in NODES.items()]
            (tmp_path / node).write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
            setup = f'hostname node-{node} && mount --bind {tmp_path / node} /etc/hosts && exec "$@"'
            unshare = ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", setup, "sh"]
            commands[node] = ["ip", "netns", "exec", names[node], *unshare]
        probe = subprocess.run([*commands["a"], "true"], capture_output=True, text=True)
        if probe.returncode:
            pytest.skip(f"a host name of its own cannot be given here: {probe.stderr.strip()}")
        yield commands
    finally:
        for name in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.mark.slow
def test_two_machines_find_each_other_though_their_own_names_are_loopback_addresses(
    nodes: dict[str, list[str]], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(REPOSITORY)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node-a:29511", str(program)]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_SOCKET_IFNAME")} | {"OMP_NUM_THREADS": "1"}
    started = {
        node: subprocess.Popen(
            [*command, *torchrun], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for node, command in nodes.items()
    }
    try:
        said = {node: process.communicate(timeout=1500)[0] for node, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    for node, process in started.items():
        assert process.returncode == 0, said[node][-2000:]
        assert "sum 3" in said[node] and "GLOO_SOCKET_IFNAME" in said[node], said[node]


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are known on Linux only")
def test_the_interface_to_an_address_is_not_the_loopback() -> None:
    known = dict(distributed._interfaces())
    assert known.get("lo", "127.0.0.1").startswith("127.")
    found = distributed.interface_to("127.0.0.1")
    assert found is None or not known[found].startswith("127.")


def test_an_interface_that_the_user_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "mine"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine too")
    monkeypatch.setattr(distributed, "_is_loopback", lambda _: True)
    distributed._choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine" and os.environ["NCCL_SOCKET_IFNAME"] == "mine too"


def test_a_machine_whose_interface_is_not_known_says_how_to_name_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(distributed, "_is_loopback", lambda _: True)
    monkeypatch.setattr(distributed, "_interfaces", lambda: [])
    distributed._choose_interface()
    assert "GLOO_SOCKET_IFNAME=" in capsys.readouterr().err and "GLOO_SOCKET_IFNAME" not in os.environ
