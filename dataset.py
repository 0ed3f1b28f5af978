"""Commands for data sets: check, convert, split, draw and download. Example: `python dataset.py check DATA`."""

from __future__ import annotations

import importlib
import sys

from nets.model_config import YOLOV4_ANCHORS
from utils.errors import UserError, run_command
from utils.other_words import choice_hint

COMMANDS = {  # name: (module with its main(argv), description)
    "check": ("data.tools.check", "find errors that affect training, by file; --fix writes a corrected copy"),
    "stats": ("data.tools.stats", "count and draw classes, sizes, shapes and positions of the boxes"),
    "anchors": ("data.tools.anchors", "propose better anchors, by k-means"),
    "split": ("data.tools.split", "divide into train, val and test: stratified by class, near-duplicates together"),
    "audit": ("prediction.audit", "find labels that are probably wrong, using a detector"),
    "convert": ("data.tools.convert", "convert to VOC, COCO or YOLO txt"),
    "shard": ("data.shards", "write tar shards for training over http or from a slow disk (train.py --shards)"),
    "pseudo-label": ("training.pseudo_label", "label images with a detector, for train.py --teacher"),
    "demo": ("data.tools.demo", "draw a small data set with six classes, without a download"),
    "download": ("data.tools.download", "download and unpack Pascal VOC or COCO"),
}
ANCHOR_COMMANDS = ("anchors", "stats")  # `data` does not import the network: these commands get the default anchors


def main(argv: list[str] | None = None) -> int | None:
    """Run the module of the subcommand with the rest of the command line."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError("command line", f"unknown subcommand {name!r}", choice_hint(name, [*COMMANDS]))
    facts = {"anchors": YOLOV4_ANCHORS} if name in ANCHOR_COMMANDS else {}
    return importlib.import_module(COMMANDS[name][0]).main(rest, **facts)


def usage() -> str:
    """Usage text with the table of subcommands."""
    lines = ["usage: dataset.py COMMAND [options]   (dataset.py COMMAND --help lists its options)", ""]
    return "\n".join([*lines, *(f"  {name:13s} {words}" for name, (_, words) in COMMANDS.items())])


if __name__ == "__main__":
    run_command(main)
