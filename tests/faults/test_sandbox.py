"""The sandboxed decoder process: forbidden operations, and decoding of every format."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from imaging.letterbox import Letterbox
from service.decode_process import LENGTHS, frame

REPOSITORY = Path(__file__).resolve().parents[2]
LANDLOCK = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))"
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are those of Linux")


def run(code: str, memory: int = 256 << 20) -> subprocess.CompletedProcess[str]:
    """Run `code` in a sandboxed process, which prints the operations that failed."""
    head = f"from service.sandbox import confine, cpu_time\nconfine({memory})\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], cwd=REPOSITORY, capture_output=True, text=True, timeout=1500
    )


@pytest.fixture(scope="module")
def landlock() -> int:
    """The kernel's version of Landlock."""
    done = subprocess.run([sys.executable, "-c", LANDLOCK], capture_output=True, text=True, check=True)
    if int(done.stdout) < 1:
        pytest.skip("this kernel has no Landlock")
    return int(done.stdout)


@needs_linux
def test_memory_is_limited() -> None:
    done = run("bytearray(100 << 20)\nprint('some')\ntry: bytearray(400 << 20)\nexcept MemoryError: print('no more')")
    assert done.stdout.split("\n")[:2] == ["some", "no more"], done.stderr


@needs_linux
def test_cpu_time_is_limited_in_a_block_and_not_after_it() -> None:
    assert run("with cpu_time(-1):\n    while True: pass").returncode == -24, "SIGXCPU"
    spin = "import time\nwhile time.process_time() < 2.5: pass\nprint('went on')"
    assert run(f"with cpu_time(-2): pass\n{spin}").stdout == "went on\n"


@needs_linux
def test_no_privileges_are_gained_and_few_files_can_be_open() -> None:
    done = run("import os\nprint(open(os.__file__) and [os.dup(0) for _ in range(20)])")
    assert "Too many open files" in done.stderr
    done = run("import ctypes\nprint(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))  # PR_GET_NO_NEW_PRIVS")
    assert done.stdout == "1\n", done.stderr


def test_nothing_is_written(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no limits of this kind")
    done = run(f"open({str(tmp_path / 'a')!r}, 'w').write('x' * 10)")
    assert done.returncode == 1 and ("File too large" in done.stderr or "Permission denied" in done.stderr)
    assert not (tmp_path / "a").exists() or not (tmp_path / "a").read_bytes()


def test_no_file_is_read_and_no_program_started(landlock: int, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for code in (f"open({str(tmp_path / 'secret')!r})", "import subprocess; subprocess.run(['/bin/true'])"):
        done = run(code)
        assert done.returncode == 1 and "Permission denied" in done.stderr, (code, done.stderr)
    assert run("import xml.dom.minidom, PIL.FliImagePlugin; print('imported')").stdout == "imported\n"


def test_no_address_is_reached(landlock: int) -> None:
    if landlock < 4:
        pytest.skip("Landlock limits connections since version 4 (Linux 6.7)")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = run(f"import socket; socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}))")
    assert done.returncode == 1 and "Permission denied" in done.stderr


def test_a_system_without_these_limits_is_supported(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    code = (
        "import sys\nsys.platform, sys.modules['resource'] = 'win32', None\n"
        "from service.sandbox import confine, cpu_time\nconfine(1 << 20)\n"
        f"with cpu_time(-5): print(open({str(tmp_path / 'a')!r}).read())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=1500)
    assert (done.stdout, done.stderr) == ("x\n", "")


def encoded(format: str, mode: str = "RGB", **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).convert(mode).save(buffer, format, **options)
        return buffer.getvalue()

    return make


PICTURES = {
    "jpeg": encoded("JPEG"),
    "progressive jpeg in CMYK": encoded("JPEG", "CMYK", progressive=True),
    "png": encoded("PNG", "RGBA"),
    "gif": encoded("GIF", "P"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "tiff in floats": encoded("TIFF", "F"),
    "tiff, deflate": encoded("TIFF", compression="tiff_deflate"),
    "webp": encoded("WEBP"),
    "ppm": encoded("PPM"),
    "jpg_2000": encoded("JPEG2000"),
    "avif": encoded("AVIF"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_format_is_decoded(kind: str) -> None:
    if kind in ("avif", "jpg_2000") and not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
    task = {"letterbox": dataclasses.asdict(Letterbox((96, 96))), "max_megapixels": 1.0, "most_pixels": 1e9}
    question = b"".join(frame({**task, "where": "a", "seconds": 20.0}, PICTURES[kind]()))
    command = [sys.executable, "-m", "service.decode_process", str(400 << 20)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, input=question, capture_output=True, timeout=1500)
    ready, at = LENGTHS.unpack_from(done.stdout), LENGTHS.size
    at += sum(ready)
    length, num_bytes = LENGTHS.unpack_from(done.stdout, at)
    at += LENGTHS.size
    head = json.loads(done.stdout[at : at + length])
    assert head.get("size") == [48, 64] and num_bytes == 96 * 96 * 3, (head, done.stderr)


@needs_linux
def test_memory_shared_with_a_decoder_cannot_be_shrunk() -> None:
    pytest.importorskip("prometheus_client")
    from service.decoders import _shared_memory

    with _shared_memory() as (shared, (descriptor,)):
        for size in (0, 2 * len(shared)):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        os.pwrite(descriptor, b"\7", 5)
        assert shared[5] == 7


@pytest.mark.parametrize("size", [1 << 20, 1000, 0])
def test_the_network_input_is_the_same_with_and_without_shared_memory(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prometheus_client")
    import asyncio

    from service import decoders
    from service.limits import Limits
    from service.metrics import Metrics

    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    if size:
        monkeypatch.setattr(decoders, "SHARED_BYTES", size)
    else:
        monkeypatch.delattr(os, "memfd_create", raising=False)

    async def decode() -> list[decoders.Decoded]:
        pool = decoders.Decoders(Limits(), Metrics())
        await pool.start()
        found = [await pool.decode(buffer.getvalue(), "x", Letterbox(size)) for size in ((32, 64), (64, 96))]
        await pool.close()
        return found

    for found in asyncio.run(decode()):
        assert found.size == (64, 96)
        assert np.array_equal(found.image, Letterbox(found.image.shape[:2]).apply(image))
