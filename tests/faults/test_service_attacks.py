"""Attacks on the service: foreign pages, malformed HTTP, idle connections, slow images, and SIGTERM under load."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from service_makers import Address, Painted, encoded, running, scene, until

from service import decoders
from service.app import build_app
from service.drain import STOP_SECONDS
from service.hosts import Hosts
from service.limits import MEGABYTE, Limits, Refused
from service.protocol import HEAD_BYTES, MAX_PIPELINED
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SMALL = Limits(max_body=200_000 / MEGABYTE, max_megapixels=2.0, read_timeout=5.0, max_waiting=40, batch_wait=0.0)


@pytest.fixture(scope="module")
def detector() -> Painted:
    return Painted()


@pytest.fixture(scope="module")
def service(detector: Painted) -> Iterator[Address]:
    with running(build_app(detector, SMALL, hosts=Hosts(["detector.example"])), SMALL) as address:
        yield address


def exchange(service: Address, *data: bytes, seconds: float = 20.0) -> bytes:
    """All bytes that the service sends in response to `data`, until it closes the connection or the timeout expires.

    The parts of `data` are sent one after another, with a pause.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", service.port), timeout=seconds) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, part in enumerate(data):
            time.sleep(0.1 * bool(number))
            connection.sendall(part)
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            pass
    return received


def problem(answer: bytes) -> tuple[int, dict[str, str]]:
    """(status, JSON) of the single response in `answer`, which must contain `Connection: close`."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head and b"connection: close" in head.lower(), answer
    return int(head.split()[1]), json.loads(body)


# ---- other people's pages

FOREIGN_HOSTS = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"]
FOREIGN_HOSTS += ["", "[::2]", "local host", "detector.example.evil.example", "@localhost", "localhost/", "[::1"]
OWN_HOSTS = ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.9.9.9:1", "[::1]:80", "my.localhost", "detector.example."]


PATHS = ["/", "/health", "/metrics", "/info", "/openapi.json", "/model.onnx", "/static/page.js"]


@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_host_name_is_rejected_for_all_paths(service: Address, path: str) -> None:
    reply = service.ask("GET", path, Host="evil.example")
    assert (reply.status, reply.json["code"]) == (403, "host_not_allowed") and "--allow-host" in reply.json["error"]


def test_hosts_are_compared_as_names_not_as_text(service: Address) -> None:
    for host in FOREIGN_HOSTS:
        assert service.ask("POST", "/detect", b"x", Host=host).status in (400, 403), host
    for host in OWN_HOSTS:
        assert service.ask("GET", "/health", Host=host).status == 200, host


def test_a_service_for_other_machines_takes_addresses_but_no_names() -> None:
    hosts = Hosts(["*.lab.example"], any_address=True)
    for host in ("10.0.0.1:8000", "[fe80::1]", "a.lab.example", "b.a.lab.example:80"):
        hosts.check("GET", [(b"host", host.encode())])
    for host in ("evil.example", "lab.example", "xlab.example"):
        with pytest.raises(Refused):
            hosts.check("GET", [(b"host", host.encode())])
    Hosts(["*"]).check("GET", [(b"host", b"anything.example")])
    for name in ("http://a", "a:80", "a/b", "a*", ""):
        with pytest.raises(UserError, match="--allow-host"):
            Hosts([name])


def test_a_page_of_another_origin_cannot_post(service: Address) -> None:
    picture, own = encoded(scene()), f"127.0.0.1:{service.port}"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://"):
        reply = service.ask("POST", "/detect", picture, Origin=origin)
        assert (reply.status, reply.json["code"]) == (403, "origin_not_allowed"), origin
        assert service.ask("GET", "/model.onnx", Origin=origin).status == 403, origin
    assert service.ask("POST", "/detect", picture, Sec_Fetch_Site="cross-site").status == 403
    assert service.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200, "a link"
    for origin in (f"http://{own}", "https://detector.example"):
        assert service.ask("POST", "/detect", picture, Origin=origin).status == 200, origin


# ---- what is not HTTP

BAD_REQUESTS = {
    "noise": b"\x00\x01\x02 nothing\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    "two lengths": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a length in words": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: one\r\n\r\n",
    "length and chunks": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"
    b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "a header with a blank": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA B: c\r\n\r\n",
    "bad chunks": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "another encoding": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    "two encodings": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two fields of encodings": b"POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/2.0": b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a control character": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "a path that is not ASCII": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_protocol_error_is_answered_as_json_and_closes_the_connection(service: Address, kind: str) -> None:
    status, reply = problem(exchange(service, BAD_REQUESTS[kind]))
    assert status in (400, 501) and reply["code"] == "bad_request" and ": " in reply["error"]
    assert service.ask("GET", "/health").status == 200


@pytest.mark.parametrize("length", [HEAD_BYTES, 3 * HEAD_BYTES, 10 * HEAD_BYTES])
def test_a_long_head_is_rejected_also_when_it_comes_at_once(service: Address, length: int) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * length + b"\r\n\r\n"
    status, reply = problem(exchange(service, head))
    assert (status, reply["code"]) == (431, "head_too_big")
    both = exchange(service, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + head)
    assert both.count(b"HTTP/1.1") == 2 and b" 431 " in both, "a pipelined one"


def test_an_endless_line_is_refused_before_its_end(service: Address) -> None:
    begin = b"POST /detect HTTP/1.1\r\nHost: localhost\r\n"
    last = begin + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"  # the parser holds headers behind the chunks, too
    for start in (b"GET /", begin + b"X: ", last + b"0\r\nX: ", last + b"1;"):
        answer = exchange(service, start, b"a" * 2 * HEAD_BYTES, seconds=4.0)
        assert problem(answer)[0] == 431, start
    many = b"".join(b"X: %d\r\n" % number for number in range(HEAD_BYTES // 6))
    assert problem(exchange(service, last + b"0\r\n" + many + b"\r\n", seconds=4.0))[0] == 431


def test_headers_behind_the_body_are_ignored(service: Address) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert exchange(service, request + b"0\r\nHost: evil.example\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("is_slow", [False, True])
def test_an_offer_of_http_2_is_ignored_and_the_body_is_read(service: Address, is_slow: bool) -> None:
    # Java's HttpClient and `curl --http2` send it
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
    picture = encoded(scene())
    head = b"POST /detect HTTP/1.1\r\nHost: localhost\r\n" + offer + b"Content-Length: %d\r\n\r\n" % len(picture)
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    parts = (head[:30], head[30:100], head[100:] + picture[:9], picture[9:] + last)
    answer = exchange(service, *parts) if is_slow else exchange(service, b"".join(parts))
    assert answer.count(b"HTTP/1.1 200 ") == 2 and b'"red"' in answer and b'"waiting"' in answer


def test_requests_before_an_invalid_one_are_answered_in_order(service: Address) -> None:
    picture = encoded(scene())
    first = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture
    for kind in ("noise", "bad chunks", "length and chunks", "another encoding"):
        answer = exchange(service, first + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + BAD_REQUESTS[kind])
        statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses in ([200, 200, 400], [200, 200, 501]), (kind, answer)


def test_few_requests_of_a_connection_wait_for_an_answer(service: Address) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = exchange(
        service, (MAX_PIPELINED - 1) * request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    assert answer.count(b"HTTP/1.1 200 ") == MAX_PIPELINED
    answer = exchange(service, 5000 * request)
    assert answer.count(b"HTTP/1.1 200 ") == MAX_PIPELINED + 1 and answer.count(b"HTTP/1.1 503 ") == 1
    assert service.ask("GET", "/health").status == 200


# ---- connections


def test_one_client_cannot_take_all_connections(detector: Painted) -> None:
    limits = replace(SMALL, connections=20)
    with running(build_app(detector, limits), limits) as service:
        idle = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(20)]
        try:
            until(lambda: service.ask("GET", "/health").status == 503)
            reply = service.ask("GET", "/health")
            assert reply.json["code"] == "too_many_connections" and "retry-after" in reply.headers
            with socket.socket() as other:  # another address of this machine
                other.bind(("127.0.0.2", 0))
                other.connect(("127.0.0.1", service.port))
                other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert other.recv(100).startswith(b"HTTP/1.1 200 ")
        finally:
            for each in idle:
                each.close()
        until(lambda: service.ask("GET", "/health").status == 200)


# ---- a signal to stop


SERVICE = """
import socket, sys, threading, time
sys.path[:0] = [{root!r}, {tests!r}]
from service_makers import Painted
from service.app import build_app
from service.limits import Limits
from service.server import Server
from utils.errors import run_command

class Slow(Painted):
    def detect_batch(self, *arguments, **named):
        if len(self.batches):
            time.sleep({seconds})
        return super().detect_batch(*arguments, **named)

def main(argv):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        Server(build_app(Slow(), Limits()), Limits()).run(sockets=[listener])

run_command(main, [])
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3.0, 1000.0], ids=["a slow network", "a stuck network"])
def test_sigterm_ends_the_service_in_time_whatever_is_stuck(seconds: float) -> None:
    code = SERVICE.format(root=str(REPOSITORY), tests=str(REPOSITORY / "tests"), seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        service, picture = Address(int(process.stdout.readline())), encoded(scene())
        until(lambda: answers_health(service))
        with ThreadPoolExecutor(24) as pool:
            replies = [pool.submit(service.ask, "POST", "/detect", picture) for _ in range(24)]
            until(lambda: service.ask("GET", "/health").json["waiting"] == 24)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(600) == 128 + signal.SIGTERM
            assert time.monotonic() - started < STOP_SECONDS
            statuses = Counter((each.result().status, each.result().json.get("code")) for each in replies)
        assert set(statuses) <= {(200, None), (503, "shutting_down")} and statuses[(503, "shutting_down")] > 0, statuses
        assert process.stderr.read().strip() == "interrupted by SIGTERM"
    finally:
        process.kill()
        process.communicate()


def answers_health(service: Address) -> bool:
    try:
        return service.ask("GET", "/health").status == 200
    except OSError:
        return False


# ---- decoders

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc (Linux)")


@needs_proc
def test_a_decoder_that_takes_too_long_is_killed_counted_and_replaced(
    detector: Painted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "SLOW_SECONDS", 0.5)
    before = find_decoders()
    with running(build_app(detector, replace(SMALL, answer_timeout=20.0))) as service:
        first = [each for each in find_decoders() if each not in before]
        assert len(first) == 1
        first[0].send(signal.SIGSTOP)  # it neither answers nor ends by itself
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(service.ask, "POST", "/detect", encoded(scene()))
            until(lambda: service.ask("GET", "/health").json["decoders_stuck"] == 1)
            assert service.metric("detector_decoders_stuck") == 1
            assert service.ask("POST", "/detect", encoded(scene())).status == 200, "another decoder has taken over"
            assert (reply.result().status, reply.result().json["code"]) == (422, "decode_too_slow")
        until(lambda: first[0].has_ended)
        until(lambda: service.ask("GET", "/health").json["decoders_stuck"] == 0)
        assert service.metric("detector_decoders_killed_total") == 1


@needs_proc
def test_a_decoder_crash_affects_one_image_only(detector: Painted) -> None:
    before = find_decoders()
    with running(build_app(detector, SMALL)) as service:
        own = [each for each in find_decoders() if each not in before]
        for process in own:
            process.send(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(service.ask, "POST", "/detect", encoded(scene()))
            until(lambda: service.ask("GET", "/health").json["decoders_busy"] == 1)
            for process in own:
                process.send(signal.SIGKILL)
            assert (reply.result().status, reply.result().json["code"]) == (422, "corrupt_image")
        for _ in range(3):
            assert service.ask("POST", "/detect", encoded(scene())).status == 200


@dataclass(frozen=True)
class Decoder:
    """A decoder process, by its process ID."""

    number: int

    def send(self, signum: int) -> None:
        os.kill(self.number, signum)

    @property
    def has_ended(self) -> bool:
        try:
            return Path(f"/proc/{self.number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True


def find_decoders() -> list[Decoder]:
    """The running decoder processes that this process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if b"service.decode_process" in words and parent == os.getpid():
            found.append(Decoder(int(folder.name)))
    return sorted((each for each in found if not each.has_ended), key=lambda each: each.number)


@needs_proc
def test_no_decoder_outlives_the_service(detector: Painted) -> None:
    before = find_decoders()
    with running(build_app(detector, SMALL)):
        assert len(find_decoders()) > len(before)
    until(lambda: find_decoders() == before)
