"""Exceptions, warnings and exit codes; all messages have the form `error: <where>: <what>; <what to do>`."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import reprlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from utils.startup import hold_streams

EXIT_FAILURE = 1
EXIT_USAGE = 2
MAX_MESSAGE = 4000  # maximum characters of an error; values from files are shortened by `brief` before
# errors caused by a name that cannot be used
_NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)
# messages of torch on the CPU, of CUDA's libraries for their workspaces, and of OpenCV
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "Insufficient memory")


class UserError(ValueError):
    """A mistake in the user's input (option, file, data): one line, exit code 2.

    Args:
        where: the file, `file:line`, or option that is wrong.
        what: what is wrong with it, with the offending value.
        todo: what to do about it.
    """

    exit_code = EXIT_USAGE

    def __init__(self, where: object, what: str, todo: str = "") -> None:
        self.where, self.what, self.todo = str(where), what, todo
        super().__init__(str(where), what, todo)  # the arguments, so that the error can be pickled between processes

    def __str__(self) -> str:
        return format_problem(self.where, self.what, self.todo)


class RunError(UserError):
    """A run that failed after a valid start (disk full, NaN, lost worker): one line, exit code 1."""

    exit_code = EXIT_FAILURE


class MissingFileError(UserError, FileNotFoundError):
    """A missing file; it is also a FileNotFoundError."""

    def __init__(self, where: object, what: str = "does not exist", todo: str = "check the name") -> None:
        super().__init__(where, what, todo)
        self.args = (str(where), what, todo)  # OSError would keep only two of the three


class MissingExtra(RunError):
    """An optional package that is not installed; the line names the command that installs it."""

    def __init__(self, feature: str, package: str, extra: str | None = None) -> None:
        install = f"pip install -e '.[{extra}]'" if extra else f"pip install {package}"
        words = "packages {}, which are" if " and " in package else "package {}, which is"
        super().__init__(feature, f"needs the {words.format(package)} not installed", f"run: {install}")
        self.args = (feature, package, extra)


def require_packages(feature: str, modules: Iterable[str], extra: str | None = None) -> None:
    """Raises MissingExtra for top-level modules that are not installed; imports none of them.

    Call it before the import of an optional package. An ImportError of the import itself then comes from a requirement
    of that package, and names it.
    """
    missing = [name.replace("_", "-") for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(feature, " and ".join(missing), extra)


@contextlib.contextmanager
def wrap_errors(where: object, what: str, todo: str) -> Iterator[None]:
    """Context that reports any exception of a parser or library as a UserError: `where: what: reason; todo`.

    It is for calls whose exceptions have no common base class. A package that cannot be imported is not a fault of the
    file, so that its ImportError is raised as it is.
    """
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise UserError(where, f"{what}: {reason_of(error)}", todo) from error


def reason_of(error: Exception, limit: int = 200) -> str:
    """The message of an exception in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class Interrupted(BaseException):
    """A signal asked the program to exit; everything that must be saved has been saved."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}")


def printable(value: object) -> str:
    """`value` as one line of text for any terminal: control characters and lone surrogates are escaped."""
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 2, 60, 60, 60


def brief(value: object) -> str:
    """`repr` of a value from a file, at most 60 characters, in constant time for any nesting."""
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = "a very large number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def format_problem(where: object, what: str, todo: str = "") -> str:
    """`where: what; todo` in one line."""
    line = f"{printable(where)}: {_shortened(printable(what))}"
    return f"{line}; {printable(todo)}" if todo else line


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."


def warn(where: object, what: str, todo: str = "") -> None:
    """Print one `warning: ...` line to stderr, above a progress bar if there is one."""
    from tqdm import tqdm  # keeps a running bar intact

    tqdm.write(f"warning: {format_problem(where, what, todo)}", file=sys.stderr)


def run_command(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> NoReturn:
    """Run a script's `main(argv)` and exit with the matching exit code.

    0 success, 1 a failed run, 2 invalid input, 130 Ctrl-C, 143 SIGTERM. A traceback appears only with `--debug`
    (or `DEBUG=1` in the environment).
    """
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments or os.environ.get("DEBUG") == "1"
    hold_streams()
    for stream in (sys.stdout, sys.stderr):  # names that are not UTF-8, Windows' code pages
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _raising_signals(), lasting_output():
            code = main(argv) or 0
    except UserError as error:
        code = _report(f"error: {error}", error.exit_code, debug)
    except Interrupted as stop:
        code = 128 + stop.signum
        if os.environ.get("RANK", "0") == "0":  # only one of several processes prints it
            _report(f"{stop}", code, debug)
    except KeyboardInterrupt:
        code = _report("interrupted", 128 + signal.SIGINT, debug)
    except OSError as error:
        where = error.filename if error.filename is not None else "system"
        todo = "check the name, the permissions and the disk"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            todo = "raise the limit with ulimit -n 1024, or use fewer --workers"
        line = format_problem(where, error.strerror or str(error), todo)
        code = _report(f"error: {line}", EXIT_USAGE if error.errno in _NO_SUCH_NAME else EXIT_FAILURE, debug)
    except ImportError as error:
        what, todo = f"cannot be imported: {reason_of(error)}", "install it again, with the libraries that it needs"
        if isinstance(error, ModuleNotFoundError):
            what, todo = "this Python package is not installed", "run: pip install -r requirements.txt"
            todo += f", or pip install {error.name}"
        code = _report(f"error: {format_problem(error.name or 'import', what, todo)}", EXIT_FAILURE, debug)
    except Exception as error:  # noqa: BLE001 -- a programming error is also reported in one line
        line = "memory: not enough for this run; use a smaller --batch-size or --input-size"
        if not is_out_of_memory(error):
            what = f"unexpected {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            line = format_problem("internal", what, "run again with --debug and report it")
        code = _report(f"error: {line}", EXIT_FAILURE, debug)
    sys.exit(code)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine or a device is out of memory."""
    if isinstance(error, MemoryError):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name, because torch and OpenCV may not be imported
    is_theirs = isinstance(error, RuntimeError) or "error" in kinds
    return "OutOfMemoryError" in kinds or (is_theirs and any(words in str(error) for words in _OUT_OF_MEMORY))


class _Lasting:
    """A stream that ignores write errors; text written after an error is lost.

    Attributes:
        error: the first error, except a closed pipe.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if not isinstance(error, BrokenPipeError) and self.error is None:
                self.error = error
            with contextlib.suppress(OSError, ValueError):  # so that Python's final flush succeeds
                descriptor = os.open(os.devnull, os.O_WRONLY)
                os.dup2(descriptor, self._stream.fileno())
                os.close(descriptor)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Context manager in which a command continues if stdout or stderr cannot be written (`| head`, a full disk).

    Raises:
        RunError: at the end, if stdout could not be written for another reason than a closed pipe.
    """
    before = sys.stdout, sys.stderr
    stdout = _Lasting(sys.stdout)
    sys.stdout, sys.stderr = stdout, _Lasting(sys.stderr)  # type: ignore[assignment]
    try:
        yield
        stdout.flush()
        if stdout.error is not None:
            what = f"cannot be written: {stdout.error.strerror or stdout.error}"
            raise RunError("stdout", what, "the run has finished, but its printed results are lost")
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def _raising_signals() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise exceptions, where a command does not handle them itself."""

    def leave(signum: int, _frame: object) -> None:
        raise Interrupted(signum)

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for signum in (signal.SIGINT, signal.SIGTERM):
            before[signum] = signal.signal(signum, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    return code
