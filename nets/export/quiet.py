"""Suppress progress bars, advice and deprecation warnings of converters and quantisers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context that suppresses output of Python and of C++ code, which writes to the file descriptors directly."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for descriptor in (1, 2):
                os.dup2(nowhere.fileno(), descriptor)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        logging.disable(level)
