"""Train the bundled weights: `python scripts/train_bundled.py DATA --pretrained BACKBONE.pth --teacher FUSION.json`.

It runs the commands of model_data/MODEL_CARD.md in order. Stopped with Ctrl-C and started again, it continues: finished
commands are skipped, and a training that was interrupted is resumed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from utils.config import option, parse_options
from utils.errors import RunError, UserError, run_command


@dataclass(frozen=True)
class BundledOptions:
    data: str = option("", "data set with the splits train, aside and val", positional=True, metavar="DATA")
    pretrained: str = option("", "backbone to start from", metavar="FILE")
    teacher: str = option("", "detections of the teachers on the unlabelled photographs", metavar="FILE.json")
    output: str = option("logs", "folder of the runs and of small.pth and nano.pth", metavar="DIR")
    dry_run: bool = option(False, "print the commands only")


def commands(options: BundledOptions) -> list[list[str]]:
    """The commands, in order: five trainings, the averages of their weights, and the scores stored in the files."""
    out = options.output

    def train(name: str, start: Sequence[str]) -> list[str]:
        given = ["--data", options.data, "--val-split", "aside", *start, "--teacher", options.teacher]
        return ["train.py", "--preset", f"bundled-{name}", *given, "--run-dir", f"{out}/{name}"]

    def pack(*words: str) -> list[str]:
        return ["scripts/pack_weights.py", *words]

    def score(name: str) -> list[str]:
        data = ["--data", options.data, "--split", "val", "--json", f"{out}/{name}.json", "--overwrite"]
        return ["eval.py", "--checkpoint", f"{out}/{name}.pth", *data]

    last = {name: f"{out}/{name}/last.pth" for name in ("start", "small", "finish", "wide", "strong")}
    result = [
        train("start", ["--pretrained", options.pretrained]),
        train("small", ["--weights", last["start"]]),
        pack(last["small"], f"{out}/second.pth"),
        train("finish", ["--weights", f"{out}/second.pth"]),
        train("wide", ["--weights", last["finish"], "--input-size", "320", "384"]),
        pack(last["finish"], last["wide"], f"{out}/mean.pth"),
        train("strong", ["--weights", f"{out}/mean.pth"]),
    ]
    for name, size in (("small", []), ("nano", ["--input-size", "224", "288"])):
        sources = [last["strong"], f"{out}/mean.pth", f"{out}/{name}.pth", *size]
        result += [pack(*sources), score(name), pack(*sources, "--scores", f"{out}/{name}.json")]
    return result


def main(argv: list[str] | None = None) -> None:
    """Run the commands that have not been run yet."""
    options = parse_options(BundledOptions, argv, description=__doc__ or "", prog="train_bundled.py")
    for name in ("data", "pretrained", "teacher"):
        if not getattr(options, name):
            raise UserError(name if name == "data" else f"--{name}", "none given", "see model_data/MODEL_CARD.md")
    progress = Path(options.output) / "commands.txt"
    done = progress.read_text(encoding="utf-8").splitlines() if progress.is_file() else []
    for command in commands(options):
        line = shlex.join(["python", *command])
        print(line, flush=True)
        if options.dry_run or line in done:
            continue
        run_dir = command[-1]
        if command[0] == "train.py" and (Path(run_dir) / "last.pth").is_file():
            command = ["train.py", "--resume", run_dir]
        code = subprocess.call([sys.executable, str(REPOSITORY / command[0]), *command[1:]])
        if code:
            raise RunError(line, f"ended with exit code {code}", "correct the error, and start this command again")
        progress.parent.mkdir(parents=True, exist_ok=True)
        with progress.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    run_command(main)
