"""Predict throughput and epoch time on several GPUs from the step time, gradient size and loader throughput.

python -m benchmarks.cost_model                      # an assumed GPU (see the options)
python -m benchmarks.cost_model --step-ms 62 --loader-images 95  # measured step time and loader throughput
python -m benchmarks.cost_model --measure --input-size 64 --batch-size 4   # compare the model with 1 and 2 processes
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness import in_turns
from nets.losses import YOLOLoss
from nets.model_config import ModelConfig
from nets.summary import count_layers
from nets.yolov4 import YOLOv4
from utils import distributed
from utils.config import option, parse_options
from utils.errors import RunError, run_command
from utils.text import markdown_table

COCO_IMAGES = 118_287  # train2017
BACKWARD = 2 / 3  # share of a step: gradients of inputs and of weights cost one forward pass each
BUCKET_BYTES = 25 * 2**20  # DDP's default bucket_cap_mb
FIRST_BUCKET = 2**20  # DDP's first bucket is smaller, so that all-reduce starts early


@dataclass(frozen=True)
class Costs:
    """Cost of a training step in one process, and of communication between processes.

    Args:
        batch: images per step and process.
        compute: seconds per step of a single process.
        gradient_bytes: bytes of gradients exchanged per step.
        loader: images per second prepared by the loader workers of one process.
        inner, outer: bandwidth in bytes per second, of a GPU's link within a machine and between machines.
        inner_latency, outer_latency: latency of one message in seconds.
        per_machine: processes per machine.
        overlap: share of the backward pass that all-reduce can overlap with. 0 on CPUs, where both use the same cores.
    """

    batch: int
    compute: float
    gradient_bytes: float
    loader: float = math.inf
    inner: float = 200e9
    outer: float = 12.5e9
    inner_latency: float = 10e-6
    outer_latency: float = 30e-6
    per_machine: int = 8
    overlap: float = 0.8

    def all_reduce(self, processes: int) -> float:
        """Seconds of a hierarchical ring all-reduce: one ring within each machine, then one across machines.

        A ring of n processes sends 2 (n - 1) messages per bucket and 2 (n - 1) / n of the bytes over each link.
        """
        inside = min(processes, self.per_machine)
        machines = -(-processes // self.per_machine)
        buckets = 1 + math.ceil(max(self.gradient_bytes - FIRST_BUCKET, 0) / BUCKET_BYTES)
        return buckets * (_messages(inside) * self.inner_latency + _messages(machines) * self.outer_latency) + (
            self.gradient_bytes * (_share(inside) / self.inner + _share(machines) / self.outer)
        )

    def step(self, processes: int) -> tuple[float, str]:
        """Seconds per step and the bottleneck: `compute`, `network` or `loader`."""
        reduce = self.all_reduce(processes)
        last = min(FIRST_BUCKET / max(self.gradient_bytes, 1), 1.0) * reduce  # no computation remains beside it
        hidden = min(reduce - last, self.overlap * BACKWARD * self.compute)
        network = reduce - hidden
        loading = self.batch / self.loader
        if loading > self.compute + network:
            return loading, "loader"
        return self.compute + network, "network" if network > 0.1 * self.compute else "compute"

    def images_per_second(self, processes: int) -> float:
        """Throughput of all processes together."""
        return processes * self.batch / self.step(processes)[0]


def _messages(count: int) -> int:
    return 2 * (count - 1)


def _share(count: int) -> float:
    return 2 * (count - 1) / count


@dataclass(frozen=True)
class CostOptions:
    """Options of `python -m benchmarks.cost_model`."""

    backbone: str = option("mobilenet_v2", "backbone of the model")
    alpha: float = option(1.0, "width multiplier of the backbone", above=0)
    neck_width: float = option(1.0, "width multiplier of neck and head", above=0)
    neck_conv: str = option("separable", "convolutions of the neck: separable or standard")
    num_classes: int = option(80, "number of classes", low=1)
    input_size: int = option(416, "input size in pixels (square)", low=32)
    batch_size: int = option(32, "batch size per process", low=1)
    gpus: tuple[int, ...] = option((1, 8, 64), "numbers of GPUs to predict, one process per GPU", low=1)
    images: int = option(COCO_IMAGES, "images in the training set", low=1)
    step_ms: float = option(
        0.0, "measured step time of one process in ms; 0 computes it from --tflops and --efficiency", low=0
    )
    tflops: float = option(312.0, "peak TFLOPS of the GPU in bf16 (default: A100)", above=0)
    efficiency: float = option(0.05, "assumed share of the peak that depthwise networks reach", above=0)
    loader_images: float = option(60.0, "images per second prepared by one core (see benchmarks/loader.py)", above=0)
    cores: int = option(12, "CPU cores per GPU", low=1)
    inner_gb: float = option(
        200.0, "bandwidth between the GPUs of a machine in GB/s, one direction (default: NVLink 3)", above=0
    )
    outer_gb: float = option(12.5, "bandwidth between machines in GB/s (default: 100 Gbit/s)", above=0)
    bf16_gradients: bool = option(
        False, "exchange gradients in bf16 (DDP's bf16_compress_hook), which halves their size"
    )
    measure: bool = option(
        False, "measure 1 and 2 processes on this machine (gloo backend) and compare with the prediction"
    )
    rounds: int = option(15, "repetitions of --measure", low=3)


def main(argv: list[str] | None = None) -> int:
    """Print the prediction, or with `--measure` its comparison with a measurement."""
    options = parse_options(CostOptions, argv, description=__doc__ or "")
    model = build(options)
    parameters = sum(p.numel() for p in model.parameters())
    if options.measure:
        return compare(options, parameters)
    gradient_bytes = parameters * (2 if options.bf16_gradients else 4)
    flops = 6 * options.batch_size * sum(cost.multiply_adds for cost in count_layers(model.config))
    compute = options.step_ms / 1000 or flops / (options.tflops * 1e12 * options.efficiency)
    costs = Costs(
        options.batch_size,
        compute,
        gradient_bytes,
        options.loader_images * options.cores,
        options.inner_gb * 1e9,
        options.outer_gb * 1e9,
    )
    source = "measured" if options.step_ms else f"{options.efficiency:.0%} of {options.tflops:g} TFLOPS, assumed"
    print(f"{options.backbone} at {options.input_size}: {parameters / 1e6:.1f} M parameters")
    print(f"gradients {gradient_bytes / 1e6:.0f} MB, {flops / 1e12:.2f} TFLOP per step (batch {options.batch_size})")
    print(f"step time of one process: {compute * 1e3:.1f} ms ({source})")
    print(f"loader {costs.loader:.0f} images/s per process: {options.cores} cores x {options.loader_images:g}")
    print(f"links {options.inner_gb:g} GB/s within a machine of 8 GPUs, {options.outer_gb:g} GB/s between machines")
    rows = []
    for count in options.gpus:
        seconds, limit = costs.step(count)
        speed = costs.images_per_second(count)
        scaling = speed / count / costs.images_per_second(1)
        times = f"{costs.all_reduce(count) * 1e3:.2f}", f"{seconds * 1e3:.1f}"
        rows.append((count, f"{speed:.0f}", f"{scaling:.0%}", *times, limit, f"{options.images / speed:.0f} s"))
    head = ("GPUs", "images/s", "scaling", "all-reduce, ms", "step, ms", "bottleneck", "epoch")
    print("\n" + markdown_table(head, rows))
    return 0


def build(options: CostOptions) -> YOLOv4:
    """Build the model of the options with random weights."""
    torch.manual_seed(0)
    side = (options.input_size, options.input_size)
    return YOLOv4(
        ModelConfig(
            class_names=tuple(str(i) for i in range(options.num_classes)),
            backbone=options.backbone,
            alpha=options.alpha,
            neck_width=options.neck_width,
            neck_conv=options.neck_conv,
            input_size=side,
        )
    )


# --- Measurement


@dataclass(frozen=True)
class Measured:
    """Median seconds per step.

    Args:
        alone: a single process.
        beside: two processes at the same time, without gradient exchange.
        exchange: the all-reduce only.
        together: two processes with gradient exchange.
    """

    alone: float
    beside: float
    exchange: float
    together: float


def compare(options: CostOptions, parameters: int) -> int:
    """Measure, predict two processes from the measured parts, and print the relative error."""
    before = os.getloadavg()[0]
    wall, cpu = measure(options)
    batch, size = options.batch_size, parameters * 4.0
    # Use the measured bandwidth. There is no overlap because gloo runs on the cores of the backward pass.
    link = {"inner": size * _share(2) / wall.exchange, "inner_latency": 0.0, "overlap": 0.0}
    shared = Costs(batch, wall.beside, size, **link).step(2)[0]
    apart = Costs(batch, wall.alone, size, **link).step(2)[0]
    print(f"load {before:.1f} on {os.cpu_count()} cores, one thread per process, medians of {options.rounds} rounds")
    print(f"gradients {size / 1e6:.1f} MB; all-reduce {link['inner'] / 1e9:.2f} GB/s")
    rows = []
    for name, found, predicted in (("wall", wall, shared), ("CPU, both processes", cpu, 2 * cpu.alone + cpu.exchange)):
        seconds = (found.alone, found.beside, found.exchange, predicted, found.together)
        rows.append((name, *(f"{each:.3f}" for each in seconds), f"{predicted / found.together - 1:+.0%}"))
    two = ("two, no exchange", "exchange", "two, predicted", "two, measured")
    head = ("seconds per step", "one process", *two, "error")
    print("\n" + markdown_table(head, rows))
    print(f"\nimages/s: one process {batch / wall.alone:.1f}, two {2 * batch / wall.together:.1f}")
    print(f"with separate cores for each process (as on GPUs): {apart:.3f} s, {apart / wall.together - 1:+.0%}")
    return 0


def measure(options: CostOptions) -> tuple[Measured, Measured]:
    """Measure wall-clock and CPU seconds.

    The cases are interleaved, so that other load on the machine affects all of them equally.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_measure, args=(rank, port, options, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RunError("--measure", "a process failed", "see the messages above")
    return results.get()


def _measure(rank: int, port: int, options: CostOptions, results: multiprocessing.Queue[Any]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    distributed.start("cpu")
    model = build(options).train().to(memory_format=torch.channels_last)
    wrapped = DistributedDataParallel(model)
    loss = YOLOLoss(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images = torch.randint(0, 255, (options.batch_size, 3, options.input_size, options.input_size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    side = options.input_size / 2
    targets = {
        "boxes": torch.tensor([[side / 4, side / 4, side, side]]).repeat(options.batch_size, 1),
        "labels": torch.zeros(options.batch_size, dtype=torch.int64),
        "image_index": torch.arange(options.batch_size),
    }
    gradients = torch.zeros(sum(p.numel() for p in model.parameters()))

    def step(exchange: bool) -> None:
        with contextlib.nullcontext() if exchange else wrapped.no_sync():
            torch.stack(list(loss((wrapped if exchange else model)(images), targets).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    cases = {
        "alone": lambda: step(False) if rank == 0 else None,
        "beside": lambda: step(False),
        "exchange": lambda: dist.all_reduce(gradients),
        "together": lambda: step(True),
    }

    def seconds(case: Callable[[], object]) -> tuple[float, float]:
        """Wall-clock seconds until both processes have finished, and CPU seconds of both."""
        dist.barrier()
        started, busy = time.perf_counter(), time.process_time()
        case()
        used = distributed.total(torch.tensor(time.process_time() - busy, dtype=torch.float64)).item()
        return time.perf_counter() - started, used

    found = in_turns({name: partial(seconds, case) for name, case in cases.items()}, options.rounds, warm_up=2)
    if rank == 0:
        medians = {name: np.median(rows, axis=0).tolist() for name, rows in found.items()}
        results.put(tuple(Measured(**{name: each[kind] for name, each in medians.items()}) for kind in range(2)))
    distributed.stop()


if __name__ == "__main__":
    run_command(main)
