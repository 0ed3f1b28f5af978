"""CPU count from affinity and quota; OpenMP settings before the import of PyTorch, without overriding the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.image_cache import available_memory
from utils import cgroup, cpus

ROOT = Path(__file__).resolve().parent.parent


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (  # the strictest of the whole way up
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            2.0,
        ),
        (  # the host's path, as version 1 shows it within a container
            {
                "proc/self/cgroup": "12:cpu,cpuacct:/docker/123\n3:memory:/docker/123\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_the_quota_of_a_cgroup_is_read(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpus.cpu_quota(tree(tmp_path, files)) == quota


GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"},
            None,
        ),
        (  # version 2: the strictest of the whole way up
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/a/b/memory.max": f"{8 * GIB}\n",
                "sys/fs/cgroup/a/b/memory.current": f"{2 * GIB}\n",
            },
            GIB,
        ),
        (  # version 1, within a container; unused page cache is free
            {
                "proc/self/cgroup": "12:cpu,cpuacct:/docker/123\n3:memory:/docker/123\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"cache 7\ntotal_inactive_file {GIB // 2}\n",
            },
            GIB + GIB // 2,
        ),
        (  # both at once: version 2 without a memory controller beside version 1
            {
                "proc/self/cgroup": "4:memory:/x\n0::/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{2 * GIB}\n",
            },
            0,
        ),
    ],
)
def test_the_memory_that_a_cgroup_leaves_is_read(files: dict[str, str], free: int | None, tmp_path: Path) -> None:
    root = tree(tmp_path, files)
    assert cgroup.free_memory(root) == free
    meminfo = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {3 * GIB // 1024} kB\n"}
    assert available_memory(tree(root, meminfo)) == min(3 * GIB, 3 * GIB if free is None else free)


def test_as_many_cpus_as_affinity_and_quota_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert cpus.usable_cpus(tmp_path) == 6
    quota = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "230000 100000\n"}
    assert cpus.usable_cpus(tree(tmp_path, quota)) == 3
    quota["sys/fs/cgroup/cpu.max"] = "10000 100000\n"
    assert cpus.usable_cpus(tree(tmp_path, quota)) == 1
    quota["sys/fs/cgroup/cpu.max"] = "900000 100000\n"
    assert cpus.usable_cpus(tree(tmp_path, quota)) == 6


def test_the_users_settings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "cpu_quota", lambda *_: 1.0)
    monkeypatch.setattr(cpus, "usable_cpus", lambda *_: 1)
    empty: dict[str, str] = {}
    cpus.prepare_environment(empty)
    assert empty["GOMP_SPINCOUNT"] == str(cpus.SPIN_COUNT) and empty["KMP_BLOCKTIME"] == str(cpus.BLOCK_TIME)
    assert empty.get("OMP_NUM_THREADS", "1") == "1" and ("OMP_NUM_THREADS" in empty) == sys.platform.startswith("linux")
    for name in cpus.SPIN_SETTINGS:
        own = {name: "7", "OMP_NUM_THREADS": "3"}
        cpus.prepare_environment(own)
        assert own == {name: "7", "OMP_NUM_THREADS": "3"}
    assert not cpus.may_spin({}) and cpus.may_spin({"OMP_WAIT_POLICY": "ACTIVE"})


@pytest.mark.parametrize("script", ["train"])
def test_every_script_prepares_openmp_before_it_imports_anything_else(script: str) -> None:
    code = (
        f"import sys, os, runpy; sys.argv = ['{script}.py', '--help']\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': print('torch sees', os.environ.get('GOMP_SPINCOUNT')); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"try: runpy.run_path('{script}.py', run_name='__main__')\n"
        "finally: print('ends with', os.environ.get('GOMP_SPINCOUNT'))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in cpus.SPIN_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert f"with {cpus.SPIN_COUNT}" in done.stdout or f"sees {cpus.SPIN_COUNT}" in done.stdout, (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(("text", "share"), [("300 700 5", 0.3), ("8 0 1", 1.0), ("0 0 0", None), (None, None)])
def test_the_share_of_a_core_that_was_received(text: str | None, share: float | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "schedstat").write_text(text + "\n")
    assert cpus.cpu_share(tmp_path) == share
