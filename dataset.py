"""Everything one does to a data set before training on it: `python dataset.py check DATA` and the like."""

from __future__ import annotations

import importlib
import sys

from utils.errors import UserError, run_command

COMMANDS = {  # name: (module whose main(argv) does it, what it does)
    "check": ("utils.data.check", "find what would spoil a training, with file and line; --fix writes a corrected copy"),
}


def main(argv: list[str] | None = None) -> int | None:
    """Hand the rest of the command line to the module of the subcommand."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError("command line", f"no subcommand {name!r}", f"choose from {', '.join(COMMANDS)}")
    return importlib.import_module(COMMANDS[name][0]).main(rest)


def usage() -> str:
    """The table of subcommands."""
    lines = ["usage: dataset.py COMMAND [options]   (dataset.py COMMAND --help says more)", ""]
    return "\n".join([*lines, *(f"  {name:10s} {words}" for name, (_, words) in COMMANDS.items())])


if __name__ == "__main__":
    run_command(main)
