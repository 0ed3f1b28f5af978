"""Build TensorRT engines on this machine's NVIDIA GPU, compare them with the checkpoint, and time them.

    python -m tests.long.tensorrt --checkpoint best.pth --images photographs/

This script has not been run by the project yet. Please report its output.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import export
from nets.detector import default_checkpoint
from nets.export.load import load_runtime
from nets.timing import interleave
from utils.errors import UserError, run_command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: the bundled weights")
    parser.add_argument("--images", help="photographs to compare on")
    parser.add_argument("--repetitions", type=int, default=100)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("tensorrt", "this machine has no NVIDIA GPU that PyTorch sees", "run it on one that has")
    checkpoint = options.checkpoint or default_checkpoint()
    runtimes = {"torch": load_runtime(checkpoint, "cuda", "torch")}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "half"):
            path = Path(folder) / f"{precision}.engine"
            flags = ["--half"] if precision == "half" else []
            flags += ["--images", options.images] if options.images else []
            # compares on photographs, prints the parity, and fails where an engine answers otherwise
            export.main(["--checkpoint", str(checkpoint), "--format", "tensorrt", "--output", str(path), *flags])
            runtimes[f"tensorrt {precision}"] = load_runtime(path, "cuda")
        image = np.full((1, *runtimes["torch"].config.input_size, 3), 127, np.uint8)
        calls = {name: lambda runtime=runtime: runtime.run(image) for name, runtime in runtimes.items()}
        for name, sample in interleave(calls, options.repetitions).items():
            print(f"{torch.cuda.get_device_name()}, {name}: {1e3 * sample.median:.2f} ms an image")


if __name__ == "__main__":
    run_command(main)
