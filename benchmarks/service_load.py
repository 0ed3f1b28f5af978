"""Load-test the service with several clients: throughput relative to the network alone, CPU time and memory.

On a shared machine, rates depend on other processes. CPU time is therefore printed as well: of the whole service with
its decoder processes, and of the network's thread, which limits the throughput of a machine with enough cores.
"""

from __future__ import annotations

import http.client
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from benchmarks.harness import REPOSITORY, children_of, cpu_by_thread, cpu_of_tree, mean_cost
from prediction.detector import Detector, load_detector
from utils.config import option, parse_options
from utils.errors import Interrupted, RunError, UserError, run_command
from utils.text import counted

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class LoadOptions:
    checkpoint: str = option("", "model file", positional=True, metavar="FILE")
    requests: int = option(2000, "total number of requests", low=1, high=1_000_000)
    clients: int = option(8, "number of concurrent clients; each sends one request after another", low=1, high=256)
    rounds: int = option(5, "rounds of requests; the network alone is measured before and after each round", low=1)
    seconds: float = option(600.0, "time limit in seconds", above=0)
    input_size: tuple[int, ...] = option((), "height and width of the network's input", metavar="N")
    batch_size: int = option(8, "batch size of the service and of the network alone", low=1, high=256)
    threads: int = option(1, "threads of the network", low=1, high=256)
    picture_size: tuple[int, ...] = option((375, 500), "height and width of the images sent", metavar="N")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")


@dataclass
class Tally:
    """Responses received by the clients.

    Attributes:
        statuses: number of responses per HTTP status; 0 for a failed connection.
        seconds: latency of each response.
        batches: number of responses per size of the batch that they were computed in.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    batches: Counter[int] = field(default_factory=Counter)


def main(argv: list[str] | None = None) -> int:
    options = parse_options(LoadOptions, argv, description=__doc__ or "", prog="benchmarks.service_load")
    if not options.checkpoint:
        raise UserError("FILE", "no checkpoint is given", "give a model file")
    if len(options.picture_size) != 2:
        raise UserError("--picture-size", "needs two numbers", "give height and width")
    import torch

    torch.set_num_threads(options.threads)
    detector = load_detector(options.checkpoint, options.device)
    if options.input_size:
        detector.set_input_size(options.input_size)
    alone = NetworkAlone(detector, options.batch_size)
    signal.signal(signal.SIGTERM, _stop)
    process, port = start(options)
    try:
        return measure(options, alone, process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _stop(signum: int, _: object) -> NoReturn:
    raise Interrupted(signum)  # so that the service is stopped, too


def measure(options: LoadOptions, alone: NetworkAlone, pid: int, port: int) -> int:
    """Measure the service and the network alone in turn, so that other load affects both equally."""
    pictures = make_pictures(16, *options.picture_size)
    send_requests(port, pictures, options.clients, 20 * options.clients, Tally(), options.seconds)  # warm-up
    tally, service_rates, alone_rates, memory = Tally(), [], [alone.rate()], [memory_of(pid)]
    end, done, alone_cpu = time.monotonic() + options.seconds, 0, [alone.cpu]
    tree, threads = cpu_of_tree(pid), cpu_by_thread(pid)
    for part in range(options.rounds):
        number = options.requests * (part + 1) // options.rounds - done
        seconds = send_requests(port, pictures, options.clients, number, tally, end - time.monotonic())
        before, done = done, sum(tally.statuses.values())
        service_rates.append((done - before) / seconds)
        alone_rates.append(alone.rate())
        alone_cpu.append(alone.cpu)
        memory.append(memory_of(pid))
        print(
            f"{done:6d} requests: {service_rates[-1]:7.1f} images/s, network alone "
            f"{(alone_rates[-2] + alone_rates[-1]) / 2:7.1f}, memory {describe(memory[-1])}",
            flush=True,
        )
        if time.monotonic() > end:
            break
    between = [(a + b) / 2 for a, b in itertools.pairwise(alone_rates)]
    ratios = sorted(ours / most for ours, most in zip(service_rates, between, strict=True))
    p50, p95, p99 = np.percentile(tally.seconds, [50, 95, 99]) * 1000
    mean_batch = sum(size * n for size, n in tally.batches.items()) / max(sum(tally.batches.values()), 1)
    print(f"responses by status: {dict(sorted(tally.statuses.items()))}")
    print(f"latency with {counted(options.clients, 'client')}: median {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms")
    print(f"mean batch size of a request: {mean_batch:.1f} of {options.batch_size}")
    print(f"memory: {describe(memory[0])} at the start, {describe(memory[-1])} after {counted(done, 'request')}")
    service = (cpu_of_tree(pid) - tree) / done
    used = {thread: (cpu - threads.get(thread, 0.0)) / done for thread, cpu in cpu_by_thread(pid).items()}
    web, network = used.pop(pid), max(used.values())  # the main thread serves HTTP
    own = float(np.median(alone_cpu))
    print(
        f"CPU ms per image: service with decoders {1000 * service:.1f}, its network thread {1000 * network:.1f}, "
        f"its HTTP thread {1000 * web:.1f}, network alone {1000 * own:.1f}"
    )
    print(f"network alone / network thread {own / network:.3f}, / whole service {own / service:.3f}, by CPU time")
    print(f"service / network alone: median {np.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")
    return 0 if set(tally.statuses) == {200} else 1


class NetworkAlone:
    """The network alone, with the runtime, batch size and input size of the service; no decoding, no HTTP.

    Attributes:
        cpu: CPU seconds per image in the last measurement.
    """

    cpu = 0.0

    def __init__(self, detector: Detector, batch_size: int) -> None:
        size = detector.config.input_size
        self._runtime = detector.runtime
        self._batch = np.random.default_rng(0).integers(0, 256, (batch_size, *size, 3), np.uint8)

    def rate(self, seconds: float = 4.0) -> float:
        """Run the network for `seconds` seconds. Returns images per second."""
        cost = mean_cost(lambda: self._runtime.run(self._batch), seconds)
        self.cpu = cost.cpu / len(self._batch)
        return len(self._batch) / cost.wall


def start(options: LoadOptions) -> tuple[subprocess.Popen[str], int]:
    """Start serve.py in a separate process. Returns the process and its port. Raises RunError if it does not start."""
    command = [sys.executable, str(REPOSITORY / "serve.py"), "--checkpoint", options.checkpoint, "--port", "0"]
    command += ["--batch-size", str(options.batch_size), "--threads", str(options.threads), "--device", options.device]
    if options.input_size:
        command += ["--input-size", *map(str, options.input_size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
    if found is None:
        raise RunError("serve.py", "did not start", "see its messages above")
    return process, int(found[1])


def make_pictures(number: int, height: int, width: int) -> list[bytes]:
    """JPEG files of smooth noise, which take about as long to decode as photographs."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    return pictures


def send_requests(port: int, pictures: list[bytes], clients: int, number: int, tally: Tally, seconds: float) -> float:
    """Send `number` requests from `clients` threads. Returns the elapsed seconds."""
    numbers = iter(range(number))
    lock, end = threading.Lock(), time.monotonic() + seconds

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            with lock:
                turn = next(numbers, None)
            if turn is None:
                break
            started = time.perf_counter()
            try:
                connection.request("POST", "/detect", pictures[turn % len(pictures)])
                reply = connection.getresponse()
                json.loads(reply.read())
                status, batch = reply.status, int(reply.headers.get("X-Batch-Size", 0))
            except OSError:
                connection.close()
                status, batch = 0, 0
            with lock:
                tally.statuses[status] += 1
                tally.seconds.append(time.perf_counter() - started)
                tally.batches[batch] += 1
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def memory_of(pid: int) -> tuple[int, int]:
    """Resident memory in bytes of the service and of its decoder processes."""
    return resident(pid), sum(map(resident, children_of(pid)))


def describe(memory: tuple[int, int]) -> str:
    service, decoders = (size / MEGABYTE for size in memory)
    return f"{service:.0f} MB + {decoders:.0f} MB for the decoders"


def resident(pid: int) -> int:
    """Resident memory of a process in bytes. Raises RunError on systems other than Linux."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError as error:
        raise RunError("memory", "can be read on Linux only", "run the benchmark on Linux") from error
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    run_command(main)
