"""Check the host name and web origin of requests, so that pages of other sites cannot use a local detector.

A page of another site can make a browser send requests to 127.0.0.1, with a form or script (cross-origin), or with a
host name of its own that resolves to 127.0.0.1 (DNS rebinding). The Host header then contains that name, and the Origin
header that site.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from service.limits import Refused
from utils.errors import UserError, brief

ANY = "*"
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::([0-9]{1,5}))?")


class Hosts:
    """The allowed values of the Host header. Loopback names and addresses are always allowed.

    Args:
        names: further host names; `*.example.org` allows all subdomains of example.org, `*` every host.
        any_address: also allow every IP address, for a service that other machines use. DNS rebinding needs a name.

    Raises:
        UserError: for a name that is not a bare host name or address.
    """

    def __init__(self, names: Iterable[str] = (), any_address: bool = False) -> None:
        self.any_address = any_address
        self.names = frozenset(_checked(name) for name in names)

    def check(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises `Refused` for a request to a host that is not allowed, or from a page of another origin."""
        values: dict[bytes, str] = {}
        for name, value in headers:
            values.setdefault(name.lower(), value.decode("latin-1"))
        host = values.get(b"host")
        if host is None:  # HTTP/1.0; every browser sends a Host header
            return
        if not self._allows(host):
            what = f"host: {brief(host)} is not allowed; start the service with --allow-host NAME to allow it"
            raise Refused(403, "host_not_allowed", what)
        origin = values.get(b"origin")
        if origin is not None:
            is_foreign = not self._is_same_origin(origin, host)
        else:  # browsers send no Origin with GET, but Sec-Fetch-Site
            is_link = method == "GET" and values.get(b"sec-fetch-mode") == "navigate"
            is_foreign = values.get(b"sec-fetch-site") == "cross-site" and not is_link
        if is_foreign:
            what = f"origin: a page of {brief(origin or 'another site')} may not use this service"
            raise Refused(403, "origin_not_allowed", f"{what}; open the service's own page")

    def _allows(self, host: str) -> bool:
        name, _ = _split(host)
        return bool(name) and (self._is_named(name) or _is_loopback(name) or (self.any_address and _is_address(name)))

    def _is_named(self, name: str) -> bool:
        parents = (f"*{name[at:]}" for at, letter in enumerate(name) if letter == ".")
        return ANY in self.names or name in self.names or any(each in self.names for each in parents)

    def _is_same_origin(self, origin: str, host: str) -> bool:
        scheme, _, rest = origin.partition("://")
        name, port = _split(rest)
        if scheme not in _DEFAULT_PORTS or not name:
            return False  # the origin `null`: a local file or a sandboxed frame
        default = _DEFAULT_PORTS[scheme]
        own_name, own_port = _split(host)
        is_same = (name, port or default) == (own_name, own_port or default)
        return is_same or (self._is_named(name) and ANY not in self.names)  # a proxy may rewrite Host


@lru_cache(maxsize=64)  # almost all requests name the same host
def _split(host: str) -> tuple[str, str]:
    """(name or address without brackets, port) of a Host header; empty if it is invalid."""
    match = _HOST.fullmatch(host.strip().lower())
    return (match[1].strip("[]").rstrip("."), match[2] or "") if match else ("", "")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=64)
def _is_loopback(name: str) -> bool:
    if _is_address(name):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _checked(name: str) -> str:
    text = name.strip().lower().strip("[]").rstrip(".")
    is_pattern = text == ANY or _is_address(text) or re.fullmatch(r"(\*\.)?[^*:/@\s\[\]]+", text)
    if not is_pattern:
        raise UserError("--allow-host", f"{brief(name)} is not a host name", "give a name without scheme and port")
    return text
