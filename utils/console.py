"""The command `yolov4-mobilenet NAME ...`: runs the script NAME.py from any folder."""

from __future__ import annotations

import difflib
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "train": "train a detector, or resume a run",
    "eval": "evaluate a model, an exported file or a file of detections",
    "predict": "detect objects in images, videos and streams",
    "dataset": "check, convert, split and draw data sets",
    "export": "write ONNX, OpenVINO and other formats",
    "serve": "run a REST service with a web page",
    "benchmark": "measure speed by runtime, precision and size",
}


def main() -> None:
    """Run a script of this repository with the rest of the command line."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:10s} {purpose}" for command, purpose in COMMANDS.items()]
        print("\n".join(["usage: yolov4-mobilenet COMMAND [options]   (COMMAND --help lists its options)", "", *lines]))
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        todo = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        print(f"error: command line: unknown command {name!r}; {todo}", file=sys.stderr)
        raise SystemExit(2)
    script = ROOT / f"{name}.py"
    sys.argv = [str(script), *sys.argv[2:]]
    sys.path.insert(0, str(ROOT))  # before the working folder, as with `python train.py`
    runpy.run_path(str(script), run_name="__main__")
