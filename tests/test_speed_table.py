"""`benchmarks.table` and `benchmarks.profile`: their errors come before a measurement, and their commands exist."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import cv2
import pytest

from benchmarks import profile, table
from eval import EvalOptions
from prediction.options import PredictOptions
from utils.config import parse_options
from utils.errors import MissingExtra, UserError


def options(*argv: str) -> table.TableOptions:
    return parse_options(table.TableOptions, argv, prog="benchmarks.table", description="")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "nothing"], "--only: 'nothing' is not a row; choose from runtime, "),
        (["--only", "eval"], "--data: the row `eval` needs a data set; give --data PATH"),
        (["--data", "missing"], "missing: does not exist"),
        (["--only", "help", "--data", "missing"], "missing: does not exist"),
    ],
)
def test_the_table_checks_its_options_first(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        table.main(argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["all"], "ROW: 'all' is not a row that has a profile; choose from decode, service, eval, torch"),
        (["eval"], "--data: the row `eval` needs a data set"),
        (["eval", "--data", "missing"], "missing: does not exist"),
    ],
)
def test_the_profile_checks_its_options_first(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        profile.main(argv)
    assert str(error.value).startswith(message)


def test_the_service_is_left_out_where_its_packages_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    assert table.check_rows(options()) == [name for name in table.ROWS if name not in ("service", *table.OF_DATA)]
    assert "row `service`: left out: " in capsys.readouterr().err
    with pytest.raises(MissingExtra, match=r"needs the package fastapi.*pip install -e '.\[serve\]'"):
        table.check_rows(options("--only", "service"))


def test_the_rows_run_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "load_runtime", lambda *_: None)
    bench = table.Bench(options(), tmp_path)
    for arguments in (["a.jpg", "--runtime", "torch"], ["a", "--no-images", "--json"], ["a.mp4", "--max-frames", "4"]):
        call = bench.predict(*arguments)
        assert isinstance(call, partial) and Path(call.args[0][1]).name == "predict.py"
        assert parse_options(PredictOptions, call.args[0][2:], prog="predict.py", description="").overwrite
    for more in ([], ["--runtime", "torch", "--batch-size", "8", "--evaluator", "pycocotools"]):
        command = table.eval_command(bench.model, "VOCdevkit", 500, *more)
        parsed = parse_options(EvalOptions, command[2:], prog="eval.py", description="")
        assert (parsed.limit, parsed.runtime) == (500, "torch" if more else "onnxruntime")


def test_a_profile_names_the_parts() -> None:
    assert profile.kind_of("mkldnn::_convolution_pointwise", [64, 32, 1, 1]) == "1x1 convolutions"
    assert profile.kind_of("Conv", [32, 1, 3, 3]) == "depthwise convolutions"
    assert profile.kind_of("Conv", [32, 3, 3, 3]) == "other convolutions"
    assert profile.kind_of("aten::cat", []) == "all but convolutions"
    assert profile.package_of(cv2.imread) == "the rest of Python"
    assert profile.package_of(table.main.__code__) == "the rest of Python"
    assert profile.package_of(pytest.fixture.__code__) == "_pytest"
