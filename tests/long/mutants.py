"""Mutation testing of the numerical core: count the mutants that the tests detect.

    python -m tests.long.mutants --sample 0 --results mutants.jsonl

A mutant changes one operator, comparison, constant or boolean of one function. It is killed if one of the module's
tests fails; a survivor is printed with its line, for a value test or for a reason why it changes nothing. With
--results, a run continues where the last one stopped, and survivors are tested again.
"""

from __future__ import annotations

import ast
import bisect
import functools
import gc
import hashlib
import json
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from utils.config import option, parse_options
from utils.errors import RunError, run_command
from utils.fork import exit_code_in_fork

ROOT = Path(__file__).resolve().parents[2]
# each module with the tests that must hold it, the quick ones first
MODULES: dict[str, tuple[str, ...]] = {
    "nets/losses.py": ("tests/test_loss_values.py", "tests/test_losses.py"),
    "nets/assigner.py": ("tests/test_loss_values.py", "tests/test_losses.py"),
    "nets/anchors.py": ("tests/test_anchors.py", "tests/test_loss_values.py", "tests/test_losses.py"),
    "nets/postprocess.py": ("tests/test_postprocess.py", "tests/test_nms.py"),
    "training/optim.py": ("tests/test_optim.py",),
    "data/augment.py": ("tests/test_augment_values.py", "tests/test_augment.py", "tests/test_mosaic.py"),
    "data/mosaic.py": ("tests/test_augment_values.py", "tests/test_mosaic.py"),
    "evaluation/metrics/matching.py": (
        "tests/test_metric_values.py",
        "tests/test_voc_metric.py",
        "tests/test_coco_metric.py",
    ),
    "evaluation/metrics/voc.py": ("tests/test_metric_values.py", "tests/test_voc_metric.py"),
    "evaluation/metrics/coco.py": ("tests/test_metric_values.py", "tests/test_coco_metric.py"),
    "evaluation/metrics/curves.py": (
        "tests/test_metric_values.py",
        "tests/test_evaluator.py",
        "tests/test_voc_metric.py",
        "tests/test_coco_metric.py",
    ),
    "evaluation/evaluator.py": ("tests/test_metric_values.py", "tests/test_evaluator.py"),
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARISONS = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
CALLS = {"min": "max", "max": "min", "floor": "ceil", "ceil": "floor", "cos": "sin", "sin": "cos", "any": "all"}
CALLS |= {"minimum": "maximum", "maximum": "minimum", "amax": "amin", "sum": "mean", "argmax": "argmin"}


@dataclass(frozen=True)
class Options:
    """Options of the mutation test."""

    sample: int = option(100, "number of mutants, drawn at random; 0: all", low=0)
    seed: int = option(0, "seed of the sample", low=0)
    only: tuple[str, ...] = option((), "only modules whose path contains one of these", nargs="+")
    results: str = option("", "JSON lines file of the results, to continue a run; killed mutants are not run again")
    timeout: int = option(
        60, "CPU seconds after which a mutant that hangs counts as killed; ten times of waiting", low=1
    )


@dataclass(frozen=True)
class Mutant:
    """One mutant: module, node, line, and the change."""

    module: str
    node: int
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.what}"

    def key(self) -> str:
        """Key of the mutant and the code of its function, without comments and docstrings."""
        code, number = places(self.module)[self.node]
        return hashlib.sha256(f"{self.module} {number} {self.what} {code}".encode()).hexdigest()[:24]

    def text(self) -> str:
        """Source of the module with the change."""
        tree = ast.parse((ROOT / self.module).read_text(encoding="utf-8"))
        node = next(each for number, each in enumerate(walk(tree)) if number == self.node)
        dict(changes(node))[self.what]()
        return ast.unparse(ast.fix_missing_locations(tree))


@functools.cache
def places(module: str) -> list[tuple[str, int]]:
    """For each node of `walk`: the code of its function or statement, without docstrings, and its number therein."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    units = [part for each in tree.body for part in (each.body if isinstance(each, ast.ClassDef) else [each])]
    starts = [min([unit.lineno, *(each.lineno for each in getattr(unit, "decorator_list", ()))]) for unit in units]
    owners = [bisect.bisect_right(starts, node.lineno) - 1 for node in walk(tree)]  # type: ignore[attr-defined]
    codes = [ast.unparse(_without_docstrings(unit)) for unit in units]
    return [(codes[owner], number - owners.index(owner)) for number, owner in enumerate(owners)]


def _without_docstrings(unit: ast.AST) -> ast.AST:
    for node in ast.walk(unit):
        body = getattr(node, "body", None)
        if isinstance(body, list) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0] = ast.Pass()
    return unit


def main(argv: list[str] | None = None) -> int:
    """Test a sample of mutants. Returns 1 if fewer than 95 % are killed."""
    options = parse_options(Options, argv, description=__doc__ or "", prog="python -m tests.long.mutants")
    modules = [module for module in MODULES if not options.only or any(each in module for each in options.only)]
    mutants = [mutant for module in modules for mutant in all_mutants(module)]
    total = len(mutants)
    if options.sample and options.sample < total:
        mutants = random.Random(options.seed).sample(mutants, options.sample)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    results = Path(options.results) if options.results else None
    done = read_killed(results)
    survivors = []

    def report(mutant: Mutant, killed: bool) -> None:
        print(f"{'killed' if killed else 'SURVIVED'} {mutant}", flush=True)
        if not killed:
            survivors.append(mutant)
        elif results is not None:
            with results.open("a") as file:
                file.write(json.dumps({"mutant": str(mutant), "killed": mutant.key()}) + "\n")

    for module in modules:
        left = [mutant for mutant in mutants if mutant.module == module and mutant.key() not in done]
        print(f"{module}: {len(left)} mutants", flush=True)
        if left and not test_mutants(module, left, options.timeout, report):
            raise RunError(module, "its tests fail without a fault", f"look at {', '.join(MODULES[module])}")
    rate = 1 - len(survivors) / max(len(mutants), 1)
    for module in modules:
        count = sum(mutant.module == module for mutant in mutants)
        print(f"{module}: {count - sum(mutant.module == module for mutant in survivors)} of {count} killed")
    print(f"{len(mutants)} of {total} mutants, {len(mutants) - len(survivors)} killed: {rate:.1%}")
    for mutant in survivors:
        print(f"survived: {mutant}")
    return 0 if rate >= 0.95 else 1


def read_killed(path: Path | None) -> set[str]:
    """Keys of the mutants that an earlier run killed; a mutant whose function has changed since has another one."""
    if path is None or not path.exists():
        return set()
    return {json.loads(line)["killed"] for line in path.read_text().splitlines()}


def test_mutants(module: str, mutants: Sequence[Mutant], timeout: int, report: Callable[[Mutant, bool], None]) -> bool:
    """Test mutants of one module; returns False if its tests fail without one. `report` gets (mutant, killed)."""
    import pytest

    files = [str(ROOT / test) for test in MODULES[module]]
    options = ["-s", "-p", "no:cacheprovider", "-p", "no:terminal"]
    command = [*options, "-m", "not slow", "--rootdir", str(ROOT), *files]
    loop = Loop(mutants, timeout, report)
    pytest.main(command, plugins=[loop])
    if loop.error is not None:  # Ctrl-C, which pytest would swallow
        raise loop.error
    return loop.is_sound


class Loop:
    """A pytest plugin that runs the collected tests once for each mutant, each time in a separate process.

    The test that killed the last mutant runs first: it often kills the next one, too.
    """

    def __init__(self, mutants: Sequence[Mutant], timeout: int, report: Callable[[Mutant, bool], None]) -> None:
        self.mutants, self.timeout, self.report = mutants, timeout, report
        self.is_sound = False
        self.order: list[Any] = []  # of the tests
        self.error: BaseException | None = None

    def pytest_runtestloop(self, session: Any) -> bool:
        path = str(ROOT / self.mutants[0].module)
        functions = [each for each in gc.get_objects() if type(each) is FunctionType]
        ours = [each for each in functions if each.__code__.co_filename == path]
        self.order = list(session.items)
        self.is_sound = bool(session.items) and not session.testsfailed and not self.fails(session, lambda: None)
        try:
            for mutant in self.mutants if self.is_sound else ():
                self.report(mutant, self.fails(session, lambda mutant=mutant: put_in_place(mutant, ours)))
        except BaseException as error:
            self.error = error
        return True

    def fails(self, session: Any, change: Callable[[], None]) -> bool:
        """Whether a test fails or hangs after `change`. Writes no file."""

        def run() -> int:
            used = math.ceil(time.process_time())  # a fork begins at 0, other systems may not
            resource.setrlimit(resource.RLIMIT_CPU, (used + self.timeout, used + self.timeout))
            change()
            for number, item in enumerate(self.order):
                following = self.order[number + 1] if number + 1 < len(self.order) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    return 1 + min(number, 200)
            return 0

        code = exit_code_in_fork(run, 10 * self.timeout)
        if code is not None and 0 < code <= 200:
            self.order.insert(0, self.order.pop(code - 1))
        return code != 0


def put_in_place(mutant: Mutant, functions: Sequence[FunctionType]) -> None:
    """Give the imported function the mutant's code, or all modules the constants of the mutant."""
    text, path = mutant.text(), ROOT / mutant.module
    function = enclosing_function(ast.parse(path.read_text(encoding="utf-8")), mutant.node)
    code: Any = compile(text, str(path), "exec")
    if function is None:
        name = ".".join(Path(mutant.module).with_suffix("").parts)
        exec(code, new := {"__name__": name})
        for key, old in vars(sys.modules[name]).copy().items():
            if key.startswith("__") or callable(old) or isinstance(old, ModuleType):
                continue
            for module in list(sys.modules.values()):
                if vars(module).get(key) is old:
                    setattr(module, key, new[key])
        return
    for part in function.split("."):
        code = next(each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == part)
    ours = [each for each in functions if each.__qualname__ == function]
    assert ours, f"{mutant}: {function} was not found"
    for each in ours:
        each.__code__ = code


def enclosing_function(tree: ast.AST, number: int) -> str | None:
    """Qualified name of the outermost function around node `number` of `walk`; None outside of functions."""
    node = next(each for place, each in enumerate(walk(tree)) if place == number)
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    names: list[str] = []
    while node in parents:
        child, node = node, parents[node]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [node.name] if child in node.body else []
        elif isinstance(node, ast.ClassDef) and names:
            names.insert(0, node.name)
    return ".".join(names) or None


def all_mutants(module: str) -> list[Mutant]:
    """Every mutant of a module, outside of messages, annotations, defaults and checks of arguments."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    return [
        Mutant(module, number, getattr(node, "lineno", 0), what)
        for number, node in enumerate(walk(tree))
        for what, _ in changes(node)
    ]


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes of computations, without error messages, type annotations and docstrings."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.Raise, ast.JoinedStr, ast.Assert, ast.AnnAssign, ast.Import, ast.ImportFrom)):
            continue
        if isinstance(child, ast.arguments) or is_guard(child) or child is getattr(tree, "returns", None):
            continue
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if hasattr(child, "lineno"):
            yield child
        yield from walk(child)


def is_guard(node: ast.AST) -> bool:
    """`if ...: raise`: argument checks, which have separate tests."""
    return isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Raise)


def changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(description, function that applies it) of each change that is possible for a node."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]
        yield f"{type(node.op).__name__} to {other.__name__}", lambda: setattr(node, "op", other())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        swapped = COMPARISONS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} to {swapped.__name__}", lambda: node.ops.__setitem__(0, swapped())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield (
            f"no {type(node.op).__name__}",
            lambda: setattr(node, "op", ast.UAdd()) if isinstance(node.op, ast.USub) else replace_operand(node),
        )
    elif isinstance(node, ast.BoolOp):
        op = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} to {op.__name__}", lambda: setattr(node, "op", op())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
        for new in dict.fromkeys((value + 1, value * 2 if value else 3)):
            yield f"{value!r} to {new!r}", lambda new=new: setattr(node, "value", new)
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CALLS:
            field = "attr" if isinstance(node.func, ast.Attribute) else "id"
            yield f"{name} to {CALLS[name]}", lambda: setattr(node.func, field, CALLS[name])
    elif isinstance(node, ast.IfExp):
        yield "branches exchanged", lambda: exchange(node)


def replace_operand(node: ast.UnaryOp) -> None:
    """Replace `not x` and `~x` by x, negated twice to keep the type."""
    node.operand = ast.UnaryOp(node.op, node.operand)


def exchange(node: ast.IfExp) -> None:
    node.body, node.orelse = node.orelse, node.body


if __name__ == "__main__":
    run_command(main)
