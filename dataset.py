"""Everything one does to a data set before training on it: `python dataset.py check DATA` and the like."""

from __future__ import annotations

import importlib
import sys

from nets.model_config import YOLOV4_ANCHORS
from utils.errors import UserError, run_command
from utils.other_words import value_hint

COMMANDS = {  # name: (module whose main(argv) does it, what it does)
    "check": ("data.tools.check", "find what would spoil a training, file by file; --fix writes a corrected copy"),
    "stats": ("data.tools.stats", "count and draw classes, sizes, shapes and places of the boxes"),
    "anchors": ("data.tools.anchors", "propose anchors that fit better, by k-means"),
    "split": ("data.tools.split", "divide into train, val and test: by class, near-duplicates together"),
    "audit": ("prediction.audit", "find labels that are probably wrong, by what a detector sees"),
    "convert": ("data.tools.convert", "write it as VOC, COCO or YOLO txt"),
    "shard": ("data.shards", "write tar shards to train from over http or a slow disk (train.py --shards)"),
    "pseudo-label": ("training.pseudo_label", "let a detector label the images, for train.py --teacher"),
    "demo": ("data.tools.demo", "draw a small set with six classes; needs no download"),
    "download": ("data.tools.download", "fetch and unpack Pascal VOC or COCO"),
}
ANCHOR_COMMANDS = ("anchors", "stats")  # `utils` does not import the network: these get the default anchors


def main(argv: list[str] | None = None) -> int | None:
    """Hand the rest of the command line to the module of the subcommand."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(
            "command line",
            f"no subcommand {name!r}",
            value_hint(name, [*COMMANDS]) or f"choose from {', '.join(COMMANDS)}",
        )
    facts = {"anchors": YOLOV4_ANCHORS} if name in ANCHOR_COMMANDS else {}
    return importlib.import_module(COMMANDS[name][0]).main(rest, **facts)


def usage() -> str:
    """The table of subcommands."""
    lines = ["usage: dataset.py COMMAND [options]   (dataset.py COMMAND --help says more)", ""]
    return "\n".join([*lines, *(f"  {name:13s} {words}" for name, (_, words) in COMMANDS.items())])


if __name__ == "__main__":
    run_command(main)
