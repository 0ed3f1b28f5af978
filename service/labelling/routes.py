"""The HTTP interface of the labelling page, under /label/."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import anyio.to_thread
import cv2
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imaging.draw import class_colour
from imaging.image_io import ImageError, read_header, read_image
from service.body import read_body
from service.labelling.documents import Box
from service.labelling.order import Queue, step
from service.labelling.store import Conflict, Store, StoredLabels
from service.labelling.suggest import LEAST_SCORE, Suggester
from service.labelling.trainer import METRIC, LabelTrainer
from service.limits import Limits, Refused
from utils.errors import RunError, UserError

MAX_BOXES = 2000  # of one image
MAX_MEGABYTES = 4.0  # size of the labels of one image
PRESENT_SECONDS = 40.0  # an image counts as open in a tab until this long after the tab's last request
ROWS = 200  # maximum rows of the list per request
SHOWN_BY_BROWSERS = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
SHOWN_BY_BROWSERS |= {".gif": "image/gif", ".bmp": "image/bmp"}
JPEG_QUALITY = 92
Order = Literal["uncertain", "name", "queue"]
Client = Annotated[str, Query(max_length=64)]
Made = TypeVar("Made", bound=BaseModel)


class SentBox(BaseModel):
    model_config = ConfigDict(extra="forbid")
    class_name: str = Field(min_length=1, max_length=200)
    box: tuple[float, float, float, float]
    difficult: bool = False
    ref: int | None = None


class SentLabels(BaseModel):
    name: str | None = Field(None, max_length=4096)
    version: str = Field(max_length=64)
    boxes: list[SentBox] = Field(max_length=MAX_BOXES)


class SentName(BaseModel):
    name: str = Field(min_length=1, max_length=200)


class SentRename(BaseModel):
    model_class: str = Field(max_length=200)
    name: str = Field(max_length=200)


class SentAction(BaseModel):
    action: Literal["start", "stop"]


@dataclass
class Presence:
    """The image that is open in each tab."""

    seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, client: str, number: int) -> None:
        with self.lock:
            now = time.monotonic()
            self.seen = {key: (n, at) for key, (n, at) in self.seen.items() if now - at < PRESENT_SECONDS}
            if client:
                self.seen[client] = (number, now)

    def others(self, client: str) -> list[int]:
        """The images that are open in other tabs."""
        now = time.monotonic()
        with self.lock:
            return [n for key, (n, at) in self.seen.items() if key != client and now - at < PRESENT_SECONDS]


@dataclass
class Labelling:
    """State of the labelling page.

    Args:
        store: images and labels.
        suggester: suggested labels.
        trainer: background training; None without `--train`.
        queue: list of images to check; None without one.
    """

    store: Store
    suggester: Suggester
    trainer: LabelTrainer | None = None
    queue: Queue | None = None
    presence: Presence = field(default_factory=Presence)

    def start(self) -> None:
        threading.Thread(target=self.store.count_all, name="counts", daemon=True).start()
        self.suggester.start()
        if self.trainer is not None:
            self.trainer.open()

    def close(self) -> None:
        self.suggester.close()
        if self.trainer is not None:
            self.trainer.close()

    def numbers(self, order: Order) -> list[int]:
        if order == "queue" and self.queue is not None:
            return self.queue.numbers
        return self.suggester.order() if order == "uncertain" else self.store.by_name()

    def check(self, number: int) -> None:
        if not 0 <= number < len(self.store.paths):
            raise Refused(404, "renumbered", f"image: {number} is not one of {len(self.store.paths)}; reload")


def add_labelling(app: FastAPI, labelling: Labelling, limits: Limits) -> None:
    """Add the page's routes to an application."""
    _add_overview(app, labelling)
    _add_pictures(app, labelling)
    _add_changes(app, labelling, limits)

    @app.exception_handler(ImageError)
    async def bad_picture(_: Request, error: ImageError) -> Response:
        return JSONResponse({"code": error.code, "error": str(error)}, 415)

    @app.exception_handler(RunError)
    async def not_written(_: Request, error: RunError) -> Response:
        return JSONResponse({"code": "not_saved", "error": str(error)}, 507)

    @app.exception_handler(UserError)
    async def refused(_: Request, error: UserError) -> Response:
        return JSONResponse({"code": "refused", "error": str(error)}, 422)


def _add_overview(app: FastAPI, labelling: Labelling) -> None:
    store, suggester = labelling.store, labelling.suggester

    @app.get("/label/state", include_in_schema=False)
    def state(rescan: bool = False) -> JSONResponse:
        if rescan:
            store.rescan()
        counts = store.counts.by_class()
        seen, todo = suggester.progress
        names = store.class_names
        trainer = labelling.trainer
        return JSONResponse(
            {
                "name": store.root.resolve().name,
                "key": store.key,
                "format": store.format,
                "pictures": len(store.paths),
                "labelled": len(store.labelled),
                "boxes": sum(counts.values()),
                "counted": store.counts.is_complete,
                "classes": [
                    {"name": name, "colour": _colour(label), "boxes": counts[name]} for label, name in enumerate(names)
                ],
                "model": {
                    "name": suggester.name,
                    "number": suggester.model,
                    "seen": seen,
                    "todo": todo,
                    "score_threshold": max(suggester.detector.config.score_threshold, LEAST_SCORE),
                    "lowest_score": LEAST_SCORE,
                },
                "renames": suggester.renames.to_dict(),
                "queue": None if labelling.queue is None else {"name": labelling.queue.source},
                "training": None if trainer is None else {**vars(trainer.state), "metric": METRIC},
            }
        )

    @app.get("/label/list", include_in_schema=False)
    def rows(order: Order = "name", offset: int = 0, limit: int = ROWS, find: str = "") -> JSONResponse:
        numbers = labelling.numbers(order)
        if find:
            numbers = [number for number in numbers if find.casefold() in store.name(number).casefold()]
        part = numbers[max(offset, 0) :][: min(max(limit, 1), ROWS)]
        found = [{"id": n, "name": store.name(n), "labelled": n in store.labelled} for n in part]
        return JSONResponse({"total": len(numbers), "offset": max(offset, 0), "rows": found})

    @app.get("/label/next", include_in_schema=False)
    def following(
        order: Order = "uncertain", after: int | None = None, direction: int = 1, todo: bool = True, client: Client = ""
    ) -> JSONResponse:
        """The next image, and its position in the list."""
        numbers = labelling.numbers(order)
        taken = set(labelling.presence.others(client))
        skipped = taken | (store.labelled if todo and order != "queue" else set())
        number = step(numbers, after, direction, skipped, from_start=order == "uncertain" and direction > 0)
        if number is not None:
            labelling.presence.note(client, number)
        return JSONResponse({"id": number})

    @app.post("/label/presence/{number}", include_in_schema=False)
    def present(number: int, client: Client = "") -> JSONResponse:
        """Record that an image is open in a tab; returns whether its labels have changed."""
        labelling.check(number)
        labelling.presence.note(client, number)
        version = store.read(number).version
        return JSONResponse({"others": labelling.presence.others(client).count(number), "version": version})


def _add_pictures(app: FastAPI, labelling: Labelling) -> None:
    store = labelling.store

    @app.get("/label/pictures/{number}", include_in_schema=False)
    def picture(number: int, client: Client = "") -> JSONResponse:
        """The labels of an image."""
        labelling.check(number)
        labelling.presence.note(client, number)
        facts, _ = store.facts(number)
        findings = [] if labelling.queue is None else labelling.queue.findings.get(number, [])
        return JSONResponse(
            {
                "id": number,
                "name": store.name(number),
                "width": facts.size[1],
                "height": facts.size[0],
                "others": labelling.presence.others(client).count(number),
                "findings": findings,
                **_labels(store.read(number)),
            }
        )

    @app.get("/label/pictures/{number}/suggestions", include_in_schema=False)
    def suggestions(number: int) -> JSONResponse:
        """The suggestions of the detector for an image."""
        labelling.check(number)
        return JSONResponse({"model": labelling.suggester.model, "suggestions": labelling.suggester.rows(number)})

    @app.get("/label/pictures/{number}/image", include_in_schema=False)
    def image(number: int) -> Response:
        """The image, in a format that browsers show upright."""
        labelling.check(number)
        path = store.paths[number]
        header = read_header(path)
        content_type = SHOWN_BY_BROWSERS.get(path.suffix.lower())
        is_upright = header.kind == "jpeg" or header.orientation == 1  # all browsers apply the EXIF rotation of JPEG
        if content_type and is_upright and f"image/{header.kind}" in SHOWN_BY_BROWSERS.values():
            headers = {"Cache-Control": "private, max-age=60"}
            return FileResponse(path, media_type=f"image/{header.kind}", headers=headers)
        pixels = read_image(path)[:, :, ::-1]
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return Response(data.tobytes(), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


def _add_changes(app: FastAPI, labelling: Labelling, limits: Limits) -> None:
    store = labelling.store

    @app.put("/label/pictures/{number}", include_in_schema=False)
    async def save(number: int, request: Request) -> Response:
        """Save the labels of an image; 409 with the current labels if they have changed since they were read.

        With `name`, also 409 if the number is of another image: after a restart of the server with more images.
        """
        sent = await _read(request, SentLabels, limits)
        labelling.check(number)
        if sent.name not in (None, store.name(number)):
            raise Refused(409, "renumbered", f"image: {number} is no longer {sent.name}; reload")
        boxes = [Box(each.class_name, each.box, each.difficult, each.ref) for each in sent.boxes]
        try:
            stored = await _in_thread(lambda: store.write(number, sent.version, boxes))
        except Conflict as conflict:
            error = f"{store.name(number)}: its labels have been changed by another program; choose which to keep"
            return JSONResponse({"code": "changed", "error": error, "current": _labels(conflict.current)}, 409)
        return JSONResponse({**_labels(stored), "classes": list(store.class_names)})

    @app.post("/label/classes", include_in_schema=False)
    async def add_class(request: Request) -> Response:
        sent = await _read(request, SentName, limits)
        await _in_thread(lambda: store.add_class(sent.name))
        return JSONResponse({"classes": list(store.class_names)})

    @app.post("/label/renames", include_in_schema=False)
    async def rename(request: Request) -> Response:
        """Rename a class of the detector; with an empty name, it is not suggested."""
        sent = await _read(request, SentRename, limits)
        if sent.name:
            await _in_thread(lambda: store.add_class(sent.name))
        labelling.suggester.renames.set(sent.model_class, sent.name)
        return JSONResponse({"renames": labelling.suggester.renames.to_dict()})

    @app.post("/label/training", include_in_schema=False)
    async def training(request: Request) -> Response:
        sent = await _read(request, SentAction, limits)
        if labelling.trainer is None:
            raise Refused(404, "no_training", "training: is switched off; start serve.py with --train")
        labelling.trainer.start() if sent.action == "start" else labelling.trainer.stop()
        return JSONResponse({"status": labelling.trainer.state.status})


async def _read(request: Request, kind: type[Made], limits: Limits) -> Made:
    """Read and check the body of a request.

    The content type must be JSON: a page of another site cannot send it without a CORS preflight, which is refused.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "not_json", "body: the Content-Type is not application/json; set it")
    body = await read_body(request, Limits(max_body=MAX_MEGABYTES, read_timeout=limits.read_timeout), lambda _: None)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refused(422, "bad_parameter", f"{where}: {first['msg']}; reload the page") from None


async def _in_thread(call: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(call)


def _labels(stored: StoredLabels) -> dict[str, Any]:
    return {
        "version": stored.version,
        "labelled": stored.is_labelled,
        "problem": stored.problem,
        "hidden": stored.labels.hidden,
        "boxes": [
            {"class_name": box.class_name, "box": list(box.box), "difficult": box.difficult, "ref": box.ref}
            for box in stored.labels.boxes
        ],
    }


def _colour(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_colour(label))
