"""Run every command of README and docs, in small sizes, with only the packages that its page installs.

    python -m tests.long.documented_commands --work FOLDER [--pages README.md TUTORIAL.md]

Each page has a folder of its own with the files that its commands name, and its commands run there in their order, on
what the commands before them wrote. Packages that neither requirements.txt nor an extra named by the page installs are
hidden. Options are appended that make a run short (`SHORT`); a server is started, asked for its page and interrupted.
Prints a Markdown table and returns 1 if a command failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from documented import PAGES, documented, extras_of, hide_packages  # noqa: E402

from data.tools.demo import write_demo  # noqa: E402
from imaging.image_io import read_image  # noqa: E402
from imaging.scenes import SCENE_CLASSES  # noqa: E402
from nets.model_config import ModelConfig  # noqa: E402
from nets.weights.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from nets.yolov4 import YOLOv4  # noqa: E402
from prediction.video import VideoWriter  # noqa: E402

LIMIT = 1500  # seconds of a command on a loaded machine
DATA = ("my_photos", "DATA", "VOCdevkit", "PHOTOS", "PICTURES", "RACCOONS", "SET", "V", "VOCDEVKIT", "coco")
# appended to what the page says, so that the command ends soon
SHORT = {
    "train.py": "--epochs 1 --batch-size 4 --workers 0 --device cpu --threads 1",
    "train.py --tune": "--minutes 0.5 --batch-size 4 --workers 0 --device cpu --threads 1 --input-size 64",
    "dataset.py demo": "--num-images 24 --overwrite",
    "benchmark.py": "--repetitions 2 --threads 1 --no-stages",
    "serve.py": "--port 0 --device cpu",
    "export.py": "--overwrite",
    "-m benchmarks.service_load": "--requests 20 --clients 2 --rounds 1 --batch-size 2",
}
# words of a page that stand for something else here
NAMES = {
    "/data/coco": "coco",
    "https://storage.example/coco-shards": "shards",
    "train2017": "train",
    "8000": "0",
    "PLANTED": "SET",
    "model_data/small.pth": "small",
}
# beginnings of commands that are not run, and why
NOT_RUN = {
    "python -m pytest": "it is `make test`",
    "python -m tests.long.tensorrt": "needs an NVIDIA GPU",
    "python -m tests.long.": "hours; its results are on this page",
    "python -m benchmarks.pareto": "needs the measured files of other detectors",
    "python -m benchmarks.backbones": "needs downloaded backbones",
    "python -m benchmarks.gpu_session": "needs a GPU",
    "python -m benchmarks.table": "an hour; its results are on docs/SPEED.md",
    "python -m benchmarks.train_step": "minutes; its results are on this page",
    "python -m benchmarks.cost_model": "minutes; its results are on this page",
    "python -m benchmarks.label_audit": "needs detections of three other networks",
    "python benchmark.py model_data/": "an hour; its results are on this page",
    "python benchmark.py best.pth --all-formats": "needs every runtime; its results are on this page",
    "python -m nets.weights.import_reference": "needs a file of the other project; tests/test_import_reference.py",
    "python predict.py street.jpg --checkpoint mine.pth": "follows the line above",
    "python train.py --data VOCdevkit --weights mine.pth": "follows the line above",
    "python predict.py 0": "needs a camera",
    "python camera.py": "needs a camera; tests/test_onnx_example.py",
    "python -m benchmarks.small_data_curve": "minutes; its results are on this page",
    "python export.py --checkpoint best.pth --format tensorrt": "needs an NVIDIA GPU",
    "python -m http.server": "not a program of this project",
}
INTERRUPTED = 128 + signal.SIGINT


def prepare(folder: Path) -> None:
    """The files that the pages name: photographs, a video, data sets, a checkpoint."""
    first = write_demo(folder / DATA[0], 24, 0, (96, 128))
    pictures = sorted((first / "JPEGImages").iterdir())
    for name in DATA[1:]:
        shutil.copytree(folder / DATA[0], folder / name)
    for name in ("photo.jpg", "new_photos/one.jpg", "photographs/one.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(pictures[0], folder / name)
    images = [read_image(path) for path in pictures[:3]]
    with VideoWriter(folder / "clip.mp4", 10.0, images[0].shape[:2]) as writer:
        for image in images:
            writer.write(image)
    torch.manual_seed(0)
    config = ModelConfig(SCENE_CLASSES, "mobilenet_v3_small", 0.35, neck_width=0.1, input_size=(96, 128))
    (folder / "runs" / "mine").mkdir(parents=True)
    for name in ("best.pth", "runs/mine/best.pth"):
        save_checkpoint(folder / name, Checkpoint(config, YOLOv4(config).state_dict()))
    scoring = [
        "eval.py",
        "--checkpoint",
        "best.pth",
        "--data",
        DATA[0],
        "--split",
        "val",
        "--save-detections",
        "FILE.json",
    ]
    for script, *words in (["export.py", "--checkpoint", "best.pth", "--format", "onnx"], scoring):
        subprocess.run([sys.executable, ROOT / script, *words], cwd=folder, check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--pages", nargs="+", default=[page.name for page in PAGES])
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True)
    (work / "files").mkdir()
    prepare(work / "files")
    rows = []
    for page in PAGES:
        if page.name in options.pages and any(name == page.name for name, _ in documented()):
            rows += [(page.name, *row) for row in run_page(page, work)]
    done = sum(row[2].startswith("ok") for row in rows)
    failed = sum(row[2].startswith("FAILED") for row in rows)
    print(f"\n{len(rows)} commands: {done} ran, {failed} failed, {len(rows) - done - failed} not run")
    return int(failed > 0)


def run_page(page: Path, work: Path) -> Iterator[tuple[str, str, str]]:
    """Run the commands of a page: (command, result, seconds)."""
    folder = work / page.stem
    shutil.copytree(work / "files", folder)
    hide_packages(folder / ".site", extras_of(page))
    seen = set()
    for name, command in documented():
        if name != page.name or command in seen:
            continue
        seen.add(command)
        why = next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")
        if not why and len(shlex.split(command)) < (4 if " -m " in command or "dataset.py" in command else 3):
            continue  # a command named in a sentence
        started = time.monotonic()
        result = f"not run: {why}" if why else run(command, folder, extras_of(page))
        row = (command, result, f"{time.monotonic() - started:.0f}")
        print(f"| {page.name} | `{row[0]}` | {row[1]} | {row[2]} |", flush=True)
        yield row


def run(command: str, folder: Path, extras: set[str]) -> str:
    """Run one command in the folder of its page: "ok", or how it failed."""
    words = [NAMES.get(word, word) for word in shlex.split(command)[1:]]
    key = " ".join(words[: 2 if words[0] in ("-m", "dataset.py") else 1])
    key = "train.py --tune" if "--tune" in words else key
    is_server = key == "serve.py" and "--help" not in words
    if not {"--resume", "--show-config", "--help"} & set(words):
        words += SHORT.get(key, "").split()
    paths = os.pathsep.join([str(folder / ".site"), str(ROOT)])
    cache = str(folder / ".cache")
    environment = {**os.environ, "PYTHONPATH": paths, "MOBILENET_YOLO_CACHE": cache, "OMP_NUM_THREADS": "1"}
    environment.pop("MOBILENET_YOLO_RUNTIME", None)
    if words[0] != "-m":
        words[0] = str(next(path for path in (ROOT / words[0], ROOT / "examples" / words[0]) if path.is_file()))
    log = folder / "log.txt"
    with open(log, "w+") as output:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = interrupt_server(process, log) if is_server else process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            process.kill()
    allowed = (INTERRUPTED,) if is_server else (0, 1) if key == "dataset.py check" else (0,)
    if code in allowed:
        return "ok"
    last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
    missing = re.search(r"not installed; run: pip install -e '\.\[([\w-]+)\]'", last)
    if missing and missing[1] in extras:
        return f"not run: the page names '.[{missing[1]}]', which is not installed here"
    return f"FAILED with {code}: {last[:300]}".replace("|", "/")


def interrupt_server(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the address of a server, load its first page, interrupt it. Returns its exit code."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"http://[\w.:]+:(\d+)", log.read_text(errors="replace"))
        if found:
            urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/", timeout=300).read()
            process.send_signal(signal.SIGINT)
            return process.wait(LIMIT)
        time.sleep(0.2)
    return process.wait(1)


if __name__ == "__main__":
    sys.exit(main())
