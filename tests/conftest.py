"""What all tests share: one thread for each, and where the developers' data lies."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MOBILENET_YOLO_RUNTIME", "torch")  # an export for each test's checkpoint would take minutes

import pytest
import torch

from utils.cpus import usable_cpus

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.hookimpl(optionalhook=True)  # plain pytest works without pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one worker more than CPUs, because tests also wait for other processes."""
    return usable_cpus() + 1


def pytest_collection(session: pytest.Session) -> None:
    """A parallel worker imports its share of the test files first, so that no two rewrite the assertions of the same.

    Rewriting takes half of a collection; the other workers read the result from the bytecode cache.
    """
    number = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    if number is None or len(session.config.args) != 1:  # a few files were named
        return
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    for path in files[int(number[1]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection reports it
            importlib.import_module(path.stem)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that parallel workers finish at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data next to the project. The test is skipped if it does not exist."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} does not exist: this test needs the developers' data")
    return SHARED
