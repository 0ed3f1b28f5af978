"""Distributed runs started by torchrun; in a single process, every function here does nothing."""

from __future__ import annotations

import contextlib
import datetime
import functools
import ipaddress
import math
import os
import socket
import struct
import sys
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from utils.errors import RunError, UserError, warn
from utils.fork import exit_code_in_fork
from utils.text import counted

if TYPE_CHECKING:  # nothing here imports PyTorch unless there are several processes
    import torch.distributed as dist
    from torch import Tensor, nn

# A process that dies ends the others at once: torchrun looks every 0.1 s, sends SIGTERM, and SIGKILL 30 s later. This
# is the timeout of a collective for a process that is alive but does not respond.
TIMEOUT_SECONDS = 300
# How long a process waits before it fails after losing another one, so that torchrun reports the first failure.
GRACE_SECONDS = 3.0
HANDSHAKE_SECONDS = 5.0  # for the reply of a server that has accepted the connection
POLL_SECONDS = 0.02
LEFTOVERS = "start several processes with torchrun; for a single process, unset RANK and WORLD_SIZE"
LAUNCHER = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
EQUAL_PART = 1e-3  # relative tolerance for the gradient norms of different kinds of GPU
_SIOCGIFADDR = 0x8915  # of Linux: the address of an interface
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "socket timeout", "tcpstore")


def start(device: str, backend: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    """Join the run that torchrun's environment describes, if any; returns this process's own device.

    Args:
        device: `cpu`, `cuda` or `cuda:N`; in a run of several processes each has the GPU of its own local rank.
        backend: communication backend; by default nccl between GPUs, else gloo.
        timeout_seconds: how long to wait for a process that does not respond.

    Raises:
        UserError: if there are fewer GPUs than processes on this machine, or the environment is incomplete.
        RunError: if the other processes do not connect.
    """
    if not (_has_launcher() or _has_others(timeout_seconds)):
        return device
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    options: dict[str, Any] = {}
    if device.startswith("cuda"):
        if local_rank >= torch.cuda.device_count():
            what = f"process {local_rank} of this machine has no GPU; there are {torch.cuda.device_count()}"
            raise UserError("--nproc-per-node", what, "start one process per GPU")
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
        options = {} if backend else {"device_id": torch.device(device)}
    if not dist.is_initialized():
        backend = backend or ("nccl" if device.startswith("cuda") else "gloo")
        _choose_interface()
        timeout = datetime.timedelta(seconds=timeout_seconds)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            where, (store, place, count) = "torchrun", next(rendezvous("env://", timeout=timeout))
        else:
            where, store, place, count = _own_store(timeout_seconds)
        options |= {"store": _fresh_part(where, store, place, count, timeout_seconds), "rank": place}
        dist.init_process_group(backend, timeout=timeout, world_size=count, **options)
    return device


def _choose_interface() -> None:
    """In a run of several machines, set the network interface of gloo and NCCL if they would use the loopback.

    They use the address of the host's own name, which is 127.0.1.1 on Debian and Ubuntu. The user's settings are kept.
    """
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if is_one_machine or "LOCAL_WORLD_SIZE" not in os.environ or not names or not _is_loopback(socket.gethostname()):
        return
    interface = interface_to(os.environ.get("MASTER_ADDR", ""))
    if interface is None:
        what = "this machine's name resolves to a loopback address, and its network interface is unknown"
        warn("torchrun", what, "set GLOO_SOCKET_IFNAME=eth0 (NCCL_SOCKET_IFNAME for GPUs), see: ip -brief address")
        return
    os.environ.update(dict.fromkeys(names, interface))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"network: {interface} ({socket.gethostname()} is a loopback address; {' and '.join(names)} set)")


def interface_to(address: str) -> str | None:
    """The network interface for a host. For this host, that of the default route, or the only one.

    None if unknown, as on systems other than Linux. No packet is sent.
    """
    own = {ip: name for name, ip in _interfaces() if not ipaddress.ip_address(ip).is_loopback}
    for target in (address, "192.0.2.1"):  # of TEST-NET-1 (RFC 5737): it has no host, and the default route
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            if (source := probe.getsockname()[0]) in own:
                return own[source]
    return next(iter(own.values())) if len(own) == 1 else None


def _interfaces() -> list[tuple[str, str]]:
    """(name, IPv4 address) of each network interface that has one; empty on other systems than Linux."""
    if sys.platform != "linux":
        return []
    import fcntl  # not on Windows

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append((name, socket.inet_ntoa(answer[20:24])))
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:  # the name cannot be resolved
        return True


def _has_launcher() -> bool:
    """Whether torchrun started this process and still runs. Its variables are also inherited by later commands.

    Raises:
        UserError: if torchrun's variables describe several processes, but no torchrun answers.
    """
    if any(name not in os.environ for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE")):
        return False
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False":  # rank 0 has the store, which it starts later
        return True
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        with socket.create_connection((host, int(port)), timeout=HANDSHAKE_SECONDS):
            return True
    except (OSError, ValueError, OverflowError) as error:
        if os.environ["WORLD_SIZE"] == "1":
            return False
        what = f"is set, but no torchrun answers at MASTER_ADDR {host or 'unset'}, MASTER_PORT {port or 'unset'}"
        raise UserError("TORCHELASTIC_RUN_ID", what, f"{LEFTOVERS}, and TORCHELASTIC_RUN_ID") from error


def _has_others(timeout_seconds: float) -> bool:
    """Whether RANK and WORLD_SIZE, set without torchrun, mean several processes. Stale values would block this one.

    If they mean one process, they are removed from the environment, and one line says so.

    Raises:
        UserError: for invalid values, or if MASTER_ADDR or MASTER_PORT is missing or the host is unknown.
    """
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or count is None or (rank, count) == ("0", "1"):
        found = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
        if rank is not None or count is not None:
            values = ", ".join(f"{name}={value}" for name, value in found.items())
            warn("environment", f"{values} means one process: the run is not distributed", LEFTOVERS)
        return False
    if not rank.isdecimal() or not count.isdecimal() or int(rank) >= int(count):
        raise UserError("WORLD_SIZE", f"{count!r} does not match RANK {rank!r}", LEFTOVERS)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError("WORLD_SIZE", f"is {count} in the environment, but {name} is not set", LEFTOVERS)
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(host, int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError("MASTER_ADDR", f"{host}:{port} cannot be resolved: {error}", LEFTOVERS) from error
    others = counted(int(count) - 1, "other process") if int(rank) == 0 else "RANK 0"
    warn("WORLD_SIZE", f"is {count}: waiting up to {timeout_seconds:g} s for {others} at {host}:{port}", LEFTOVERS)
    return True


def _own_store(timeout_seconds: float) -> tuple[str, dist.Store, int, int]:
    """(name for messages, store, rank, world size) of a run that was started without torchrun; rank 0 is the server.

    Raises:
        RunError: if nothing listens at MASTER_ADDR, or another program does.
    """
    from torch.distributed import TCPStore

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    where, timeout = f"MASTER_ADDR {host}:{port}", datetime.timedelta(seconds=timeout_seconds)

    def connect(host: str) -> dist.Store:
        return TCPStore(host, port, count, rank == 0, timeout, wait_for_workers=False)

    if rank == 0:
        try:
            store = connect("localhost")
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise RunError(f"MASTER_PORT {port}", f"cannot be used: {reason}", "choose another port") from error
        if not _is_store(host, port, count):
            raise RunError(where, "this process, which has RANK 0, cannot be reached there", LEFTOVERS)
        return where, store, rank, count
    _wait_for_port(where, host, port, timeout_seconds)
    if not _is_store(host, port, count):
        raise RunError(where, "another program answers there, not RANK 0 of this run", LEFTOVERS)
    return where, connect(host), rank, count


def _is_store(host: str, port: int, count: int) -> bool:
    """Whether a PyTorch store answers at an address within HANDSHAKE_SECONDS. Always true where a process cannot fork.

    PyTorch's client waits without limit for a server that accepts the connection and is silent, and prints C++ stacks
    for one that answers something else. So a separate, silent process tries it first.
    """
    if not hasattr(os, "fork"):
        return True
    from torch.distributed import TCPStore

    def connect() -> int:
        limit = datetime.timedelta(seconds=HANDSHAKE_SECONDS)
        TCPStore(host, port, count, False, limit, wait_for_workers=False)
        return 0

    return exit_code_in_fork(connect, HANDSHAKE_SECONDS) == 0


def _wait_for_port(where: str, host: str, port: int, timeout_seconds: float) -> None:
    """Wait until something listens at an address.

    Raises:
        RunError: after the timeout.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), POLL_SECONDS)):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(where, f"does not respond: {error.strerror or error}", LEFTOVERS) from error
        time.sleep(10 * POLL_SECONDS)


def _fresh_part(where: str, store: dist.Store, rank: int, world_size: int, timeout_seconds: float) -> dist.Store:
    """A new prefix of the run's store, the same for all processes of this start; `where` names it in messages.

    torchrun keeps its store through restarts, with the addresses of dead processes (pytorch/pytorch#167288), and counts
    restarts per machine. So each process writes a new random word, and rank 0 replies with the name of the start.
    """
    word, deadline = uuid.uuid4().hex, time.monotonic() + timeout_seconds
    missing = set(range(1, world_size)) if rank == 0 else {0}
    if rank > 0:
        store.set(f"come/{rank}", word)
    while missing:  # poll instead of blocking in the store, so that signals are handled
        for other in sorted(missing):
            if rank > 0 and store.check([f"start/{word}"]):
                word = store.get(f"start/{word}").decode()
                store.set(f"{word}/{rank}", "")
                missing.remove(other)
            elif rank == 0 and store.check([f"{word}/{other}"]):
                missing.remove(other)
            elif rank == 0 and store.check([f"come/{other}"]):  # a reply to a word of an earlier start has no effect
                store.set(f"start/{store.get(f'come/{other}').decode()}", word)
        if time.monotonic() > deadline:
            what = f"ranks {sorted(missing)} did not connect within {timeout_seconds:g} s"
            raise RunError(where, what, "start again" if where == "torchrun" else LEFTOVERS)
        time.sleep(POLL_SECONDS)
    from torch.distributed import PrefixStore

    return PrefixStore(word, store)


def own_device(device: str) -> str:
    """Resolve `auto` and `cuda` in a run of several processes: each uses the GPU of its local rank, if any."""
    if "LOCAL_RANK" not in os.environ or device not in ("auto", "cuda"):
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def stop() -> None:
    """Leave the run."""
    if (dist := _joined()) is not None:
        dist.destroy_process_group()


def rank() -> int:
    return 0 if (dist := _joined()) is None else dist.get_rank()


def world_size() -> int:
    return 1 if (dist := _joined()) is None else dist.get_world_size()


def _joined() -> Any:
    """`torch.distributed` if this process is one of several, else None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def _with_others() -> Any:
    """`torch.distributed` if there is more than one process, else None."""
    return _joined() if world_size() > 1 else None


def is_main() -> bool:
    """Whether this is the main process, which writes files and prints."""
    return rank() == 0


def say(text: str) -> None:
    """Print in the main process only."""
    if is_main():
        print(text, flush=True)


def is_restart() -> bool:
    """Whether torchrun started this run again after one of its processes failed (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def total(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if (dist := _with_others()) is not None:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather(value: Any) -> list[Any]:
    """Every process's object, by rank, in every process."""
    if (dist := _with_others()) is None:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_to_main(value: Any) -> list[Any] | None:
    """Every process's object, by rank, in the main process; None in the others."""
    if (dist := _with_others()) is None:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def barrier() -> None:
    """Wait for all processes."""
    if (dist := _with_others()) is not None:
        dist.barrier()


def check_equal(name: str, value: float) -> None:
    """Check that a number is the same in all processes.

    Raises:
        RunError: in every process, with the numbers by rank, if they differ by more than rounding.
    """
    values = gather(value)
    if any(not math.isclose(each, values[0], rel_tol=EQUAL_PART) for each in values):
        numbers = ", ".join(f"{each:.6g}" for each in values)
        todo = "all processes must use the same program and data set"
        raise RunError(name, f"differs between processes ({numbers})", todo)


def share_buffers(model: nn.Module) -> nn.Module:
    """Copy the main process's buffers (batch norms' running statistics) to all processes, in place; returns `model`.

    Weights are the same in all processes, but running statistics are not. Evaluation must use those of the main
    process, which saves the checkpoint.
    """
    if (dist := _with_others()) is not None:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    return model


# ---- errors


def recorded(main: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int | None]:
    """Wrap `main` so that its errors name the rank and appear in torchrun's report; unchanged without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return main
    from torch.distributed.elastic.multiprocessing.errors import record

    @functools.wraps(main)
    def named(argv: list[str] | None = None) -> int | None:
        try:
            return main(argv)
        except Exception as error:
            name = f"rank {os.environ.get('RANK', 0)}"
            if is_lost(error):
                time.sleep(GRACE_SECONDS)
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                what = f"another process has exited, or did not respond within {TIMEOUT_SECONDS} s ({reason})"
                raise RunError(name, what, "see the first error of the other processes") from error
            if isinstance(error, UserError):
                error.where = f"{name}: {error.where}"
            raise

    return record(named)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process of the run is unreachable, rather than that this one failed."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _LOST)
