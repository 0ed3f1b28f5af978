"""Read the body of a request within limits of size and time: raw bytes or one file of a form."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.limits import Limits, Refused, deadline

FORM = "multipart/form-data"
NAME_LENGTH = 200


async def read_body(request: Request, limits: Limits, take: Callable[[int], None]) -> bytes:
    """Read the whole body; `take` is called with a number of bytes before they are stored, to reserve memory.

    Raises:
        Refused: 413 if the body (or its Content-Length) is too large, 408 if it does not arrive in time.
    """
    too_big = Refused(413, "body_too_big", f"body: larger than {limits.max_body:g} MB; send a smaller image")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise too_big
    body = bytearray()
    try:
        async with deadline(limits.read_timeout):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "disconnected", "body: the client has disconnected")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if len(body) + len(chunk) > limits.body_bytes:
                    raise too_big
                take(len(chunk))
                body += chunk
    except TimeoutError:
        what = f"body: did not arrive within {limits.read_timeout:g} s; send a smaller image"
        raise Refused(408, "slow_body", what) from None
    return bytes(body)


async def read_request_image(request: Request, limits: Limits, take: Callable[[int], None]) -> tuple[bytes, str]:
    """Read the image of a request; returns its bytes and its name (only a label, never used as a path).

    In a form, the image is a file, by convention named `image`. For any other content type, the body is the image.
    """
    body = await read_body(request, limits, take)
    if not request.headers.get("content-type", "").lower().startswith(FORM):
        return body, "image"
    take(len(body))  # the part is a copy
    data, name = await _file_of_form(request, body)
    return data, "".join(c for c in name if c.isprintable())[:NAME_LENGTH] or "image"


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 40  # the body is in memory and counted: no temporary files


async def _file_of_form(request: Request, body: bytes) -> tuple[bytes, str]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemory(request.headers, stream(), max_files=1, max_fields=10, max_part_size=4096).parse()
    except MultiPartException as error:
        raise Refused(400, "bad_form", f"body: {error.message}; send one file named image") from None
    for part in form.values():
        if isinstance(part, UploadFile):
            data = await part.read()
            await part.close()
            return data, part.filename or ""
    raise Refused(400, "bad_form", "body: the form has no file; send one file named image")
