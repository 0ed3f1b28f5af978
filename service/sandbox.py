"""Confine the process that decodes: limits of memory, CPU time and files; on Linux no file access and no network.

Whatever the system does not offer is left out without a message: a decoder works without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import site
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_OPEN_FILES = 16  # the pipes, and one after another what Python still imports
# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
SIGKILL = 9
# linux/landlock.h; the numbers of the system calls are the same on all architectures
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
READ_FILE_AND_FOLDER = 1 << 2 | 1 << 3
# file rights by version of Landlock: execute, write, read, make and remove, then refer, truncate and ioctl
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
TCP_BIND_AND_CONNECT = 3  # since version 4
NO_SIGNALS_AND_ABSTRACT_SOCKETS = 3  # since version 6


def confine(memory: int, readable: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Limit this process for the rest of its life.

    Args:
        memory: bytes of address space that it may still take (Linux).
        readable: folders of which files can be read afterwards, besides Python's own. Nothing can be written or
            executed where the system has Landlock (Linux 5.13 or later).
    """
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit("RLIMIT_AS", pages * os.sysconf("SC_PAGE_SIZE") + memory)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", 0)  # pipes have no limit
    _limit("RLIMIT_NOFILE", MAX_OPEN_FILES)
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # other processes of the user cannot trace it
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _landlock(libc, [*_python_folders(), *readable])


@contextlib.contextmanager
def cpu_time(seconds: float) -> Iterator[None]:
    """Within the block this process may use so much CPU time; then the system ends it, even without the service."""
    _limit("RLIMIT_CPU", int(time.process_time() + seconds) + 2, hard=False)
    try:
        yield
    finally:
        _limit("RLIMIT_CPU", None, hard=False)


def _limit(name: str, value: int | None, hard: bool = True) -> None:
    """Lower a limit; `hard` so that it cannot be raised again. None takes the soft limit back to the hard one."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        if value is None or (most != resource.RLIM_INFINITY and value > most):
            value = most
        resource.setrlimit(kind, (value, value if hard else most))


def _python_folders() -> list[str]:
    """Where modules and the libraries that they load lie."""
    paths = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]
    return [*paths, sys.base_prefix + "/lib", "/usr/lib", "/lib", "/lib64", "/etc/ld.so.cache"]


def _landlock(libc: ctypes.CDLL, readable: Iterable[str | os.PathLike[str]]) -> None:
    """Let this thread and its later ones read `readable` and open nothing else, if the kernel can do that."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return
    rights = FILE_RIGHTS[min(version, 5)]
    words = [rights, *([TCP_BIND_AND_CONNECT] if version >= 4 else [])]
    words += [NO_SIGNALS_AND_ABSTRACT_SOCKETS] if version >= 6 else []
    attributes = (ctypes.c_uint64 * len(words))(*words)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    if ruleset < 0:
        return
    try:
        for path in readable:
            _allow(libc, ruleset, path)
        libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


class _PathBeneath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _layout_ = "ms"  # Python 3.14 asks for it where fields are packed
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def _allow(libc: ctypes.CDLL, ruleset: int, path: str | os.PathLike[str]) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = READ_FILE_AND_FOLDER if os.path.isdir(path) else 1 << 2
        rule = _PathBeneath(rights, descriptor)
        libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
