"""Detect objects in images, folders, videos and streams, and write the results as drawings and files."""

from __future__ import annotations

import utils.startup  # noqa: F401 -- first: Ctrl-C while the rest is imported

# isort: split

from prediction.options import PredictOptions, check_numbers, check_sources
from utils import distributed
from utils.config import parse_options
from utils.errors import run_command


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit code."""
    options = check_sources(parse_options(PredictOptions, argv, description=__doc__ or "", prog="predict.py"))
    check_numbers(options)
    from prediction.command import predict  # imports OpenCV and runtimes, which --help does not need

    return predict(options)


if __name__ == "__main__":
    run_command(distributed.recorded(main))
