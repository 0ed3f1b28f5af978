"""The HTTP service: detection in images, health, metrics, an OpenAPI description, and the page."""

from __future__ import annotations

import http
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from data.class_names import class_index
from imaging.image_io import encode_image
from imaging.scenes import draw_scene
from service.body import FORM, read_request_image
from service.browser import ORT_FILES, STATIC, STATIC_TYPES, WEBGPU_FILES, BrowserModel, describe_model
from service.docs_page import docs_page
from service.drain import Drain, Waiting
from service.hosts import Hosts
from service.labelling.routes import Labelling, add_labelling
from service.limits import ByteBudget, Limits, RateLimit, Refused
from service.metrics import CONTENT_TYPE, Metrics
from service.models import Models
from service.pipeline import LOWEST_SCORE, MOST_DETECTIONS, DetectParams
from utils.errors import UserError, warn
from utils.other_words import choice_hint
from utils.thresholds import OTHER_NAMES

Parsed = TypeVar("Parsed", bound=BaseModel)
Application = Callable[[Any, Any, Any], Awaitable[None]]  # ASGI: scope, receive, send

PARAMETERS = ("score_threshold", "max_detections", "classes", "model")  # of /detect
EXAMPLES = ("drawing-1.jpg", "drawing-2.jpg", "drawing-3.jpg")  # example images of the page, drawn by this project
EXAMPLE_SEED = 3

# No content from other origins; WebAssembly is allowed; cross-origin isolation allows threads in the browser.
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
        b"img-src 'self' blob: data:; media-src 'self' blob:; "
        b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-embedder-policy", b"require-corp"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
)
DESCRIPTION = """Detects objects in images. Send one image to `/detect`, as the request body or as the file of a form.

Boxes are `[x1, y1, x2, y2]` in pixels of the upright image, from its top left corner."""


UNEXPECTED = Refused(500, "internal", "service: unexpected failure; see its log")


class DetectedObject(BaseModel):
    """One detected object."""

    class_id: int = Field(description="Index of the class, from 0")
    class_name: str
    score: float = Field(ge=0, le=1)
    box_xyxy: list[float] = Field(min_length=4, max_length=4, description="x1, y1, x2, y2 in pixels")


class DetectResponse(BaseModel):
    """The objects of one image: a row of predict.py's detections.json."""

    image: str = Field(description="File name in the form, or `image`")
    width: int
    height: int
    detections: list[DetectedObject] = Field(description="Best first")


class ErrorResponse(BaseModel):
    """An error response."""

    code: str = Field(description="Short, stable name of the error")
    error: str = Field(description="where: what; what to do")


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                }
            },
        },
    }
}
_ERRORS = {
    400: "A form without a file",
    403: "A host name or origin that is not allowed",
    408: "The body did not arrive in time",
    413: "The body or the image is too large",
    415: "Not an image",
    422: "A damaged image or an invalid parameter",
    429: "Too many requests of one client; see Retry-After",
    431: "The request line and headers are too long",
    500: "The network failed",
    503: "The queue is full, or the service is shutting down; see Retry-After",
}


class Service(FastAPI):
    """FastAPI's application; it checks the host, counts answers, adds `HEADERS`, and returns unexpected errors as JSON.

    Requests that are not finished when the service stops are answered with 503 (`service.drain`).

    Attributes:
        direct: ASGI applications by method and path that answer instead of FastAPI.
    """

    def __init__(self, metrics: Metrics, hosts: Hosts, drain: Drain, **options: Any) -> None:
        super().__init__(**options)
        self.metrics, self.hosts, self.drain = metrics, hosts, drain
        self.direct: dict[tuple[str, str], Application] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        request = Waiting()

        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                request.is_answered = True
                self.metrics.requests.labels(str(message["status"])).inc()
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            with self.drain.watch(request):
                self.hosts.check(scope["method"], scope["headers"])
                if scope["method"] == "HEAD":  # monitors send it; the server drops the body of the answer
                    scope = {**scope, "method": "GET"}
                application = self.direct.get((scope["method"], scope["path"]), super().__call__)
                await application(scope, receive, send_on)
            return
        except Refused as error:
            problem = error
        except Exception as error:
            warn("service", f"unexpected {type(error).__name__}: {str(error)[:200]}", "please report it")
            problem = UNEXPECTED
        if not request.is_answered:
            await _answer(problem, self.metrics)(scope, receive, send_on)


def build_app(
    detector: Any,
    limits: Limits | None = None,
    *,
    name: str = "detector",
    more: Mapping[str, Any] | None = None,
    iou_threshold: float | None = None,
    browser_model: BrowserModel | None = None,
    hosts: Hosts | None = None,
    labelling: Labelling | None = None,
    title: str = "Detector",
) -> Service:
    """Build the application.

    Args:
        detector: a `nets.detector.Detector`.
        limits: limits of every request.
        name: name of the model on the page and in requests (`model=`).
        more: further detectors by name; the page shows a menu.
        iou_threshold: IoU threshold of NMS; None for the checkpoint's.
        browser_model: model that runs in the browser, an export of `detector`.
        hosts: host names that requests may use; by default only those of this machine.
        title: title of the page.
        labelling: data to label. The labelling page is then the first page, and the demo page is /try.
    """
    limits = limits or Limits()
    metrics, drain = Metrics(), Drain()
    models = Models({name: detector, **(more or {})}, limits, metrics, iou_threshold)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await models.start()
        if labelling is not None:
            labelling.start()
        try:
            yield
        finally:
            if labelling is not None:
                labelling.close()
            await models.close()

    # FastAPI's documentation pages load scripts from other origins; /docs shows the same content without them.
    pages: dict[str, Any] = {"docs_url": None, "redoc_url": None}
    app = Service(
        metrics, hosts or Hosts(), drain, title=title, version="1", description=DESCRIPTION, lifespan=lifespan, **pages
    )
    app.state.models, app.state.metrics, app.state.drain = models, metrics, drain
    _add_detection(app, models, limits)
    _add_status(app, models, metrics)
    description = _describe(models, limits, browser_model) | {"title": title}
    _add_page(app, description, "page.html" if labelling is None else "label.html")
    if labelling is not None:
        add_labelling(app, labelling, limits)
    if browser_model is not None:
        _add_browser_model(app, browser_model)
    _add_problems(app, metrics)
    return app


def _add_detection(app: Service, models: Models, limits: Limits) -> None:
    budget, rate = ByteBudget(limits.bodies), RateLimit(limits.per_minute)
    config = models.named(models.default).config  # its thresholds are the defaults in the description
    configs = [pipeline.config for pipeline in models.pipelines.values()]

    # Only for the description: `_labels` and `Models.named` check the values and suggest similar names.
    allowed = [*dict.fromkeys(name for each in configs for name in each.class_names)]
    allowed += map(str, range(max(each.num_classes for each in configs)))
    names: dict[str, Any] = {"enum": list(models.pipelines)}
    items: dict[str, Any] = {"items": {"type": "string", "enum": allowed}}
    errors: dict[int | str, Any] = {
        status: {"model": ErrorResponse, "description": text} for status, text in _ERRORS.items()
    }

    class Parameters(BaseModel):
        score_threshold: float = Field(
            max(config.score_threshold, LOWEST_SCORE),
            ge=LOWEST_SCORE,
            le=1,
            allow_inf_nan=False,
            description="Confidence",
        )
        max_detections: int = Field(
            min(config.max_detections, MOST_DETECTIONS),
            ge=1,
            le=MOST_DETECTIONS,
            description="Maximum number of objects",
        )
        classes: list[str] = Field(
            [],
            description="Only these classes, by name or number",
            max_length=len(allowed),
            json_schema_extra=items,
        )
        model: str = Field(models.default, description="Which model", json_schema_extra=names)

    async def detect(request: Request, query: Parameters) -> Response:
        """Detect objects in one image. Thresholds default to those of the model."""
        pipeline = models.named(query.model)
        rate.check(request.client.host if request.client else "")
        models.pending.check()  # before the body is read
        own, given = pipeline.config, query.model_fields_set
        params = DetectParams(
            query.score_threshold if "score_threshold" in given else max(own.score_threshold, LOWEST_SCORE),
            query.max_detections if "max_detections" in given else min(own.max_detections, MOST_DETECTIONS),
            _labels(query.classes, own.class_names),
        )
        with budget.account() as take:
            data, name = await read_request_image(request, limits, take)
            found = await pipeline.find(data, name, params)
        row = {
            "image": name,
            "width": found.size[1],
            "height": found.size[0],
            "detections": found.detections.to_dicts(own.class_names),
        }
        timing = ", ".join(f"{stage};dur={ms:.1f}" for stage, ms in found.timings.items())
        return JSONResponse(row, headers={"Server-Timing": timing, "X-Batch-Size": str(found.batch)})

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await detect(request, _parameters(Parameters, request.query_params))
        await response(scope, receive, send)

    # FastAPI describes the request and answers other methods; `answer` takes a third of FastAPI's time (docs/SPEED.md).
    detect.__annotations__["query"] = Annotated[Parameters, Query()]  # FastAPI cannot see a local class by its name
    app.post("/detect", openapi_extra=_BODY, response_model=DetectResponse, responses=errors)(detect)
    app.direct["POST", "/detect"] = answer


def _parameters(kind: type[Parsed], given: QueryParams) -> Parsed:
    """The parameters of /detect. Raises Refused if one is unknown or invalid."""
    if not given:
        return kind()
    _refuse_unknown(given)
    try:
        return kind.model_validate({name: given.getlist(name) if name == "classes" else given[name] for name in given})
    except ValidationError as error:
        first = error.errors()[0]
        raise _bad_parameter(first["loc"], first["msg"]) from None


def _bad_parameter(place: Iterable[object], message: str) -> Refused:
    return Refused(422, "bad_parameter", f"{'.'.join(map(str, place)) or 'request'}: {message}; see /openapi.json")


def _refuse_unknown(given: Iterable[str]) -> None:
    """Reject unknown parameters of /detect, because ignoring them would give a wrong result. Raises Refused."""
    for name in given:
        if name not in PARAMETERS:
            todo = choice_hint(OTHER_NAMES.get(name, name), PARAMETERS)
            raise Refused(422, "unknown_parameter", f"{name[:100]}: unknown parameter; {todo}")


def _add_status(app: FastAPI, models: Models, metrics: Metrics) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()))

    @app.get("/health", responses={503: {"description": "The service cannot answer"}})
    async def health() -> Response:
        """Whether the service can answer, the number of pending requests, and of stuck decoders."""
        problem = models.problem
        state = {
            "status": problem or "ok",
            "waiting": models.pending.taken,
            "decoders_busy": models.decoders.busy,
            "decoders_stuck": models.decoders.stuck,
        }
        return JSONResponse(state, 503 if problem else 200)

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_page(app: FastAPI, description: dict[str, Any], first: str = "page.html") -> None:
    files = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in STATIC_TYPES}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _static(files, first)

    @app.get("/try", include_in_schema=False)
    async def page_to_try() -> Response:
        return _static(files, "page.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return _static(files, name)

    drawn: dict[str, bytes] = {}

    @app.get("/examples/{name}", include_in_schema=False)
    def example(name: str) -> Response:
        if name not in EXAMPLES:
            raise HTTPException(404)
        if name not in drawn:
            drawn[name] = encode_image(draw_scene(EXAMPLE_SEED, EXAMPLES.index(name), (480, 640))[0])
        return Response(drawn[name], media_type="image/jpeg")

    description = description | {"examples": [f"examples/{name}" for name in EXAMPLES]}

    @app.get("/info")
    async def info() -> JSONResponse:
        """Classes, colours, thresholds and limits."""
        return JSONResponse(description)


def _static(files: dict[str, bytes], name: str) -> Response:
    if name not in files:  # a lookup among the files read at the start, never a path
        raise HTTPException(404)
    content_type = STATIC_TYPES[Path(name).suffix]
    return Response(files[name], headers={"Content-Type": content_type, "Cache-Control": "no-cache"})


def _add_browser_model(app: FastAPI, browser_model: BrowserModel) -> None:
    @app.get("/model.onnx", include_in_schema=False)
    async def model() -> Response:
        return FileResponse(browser_model.model, media_type="application/octet-stream")

    @app.get("/ort/{name}", include_in_schema=False)
    async def runtime(name: str) -> Response:
        if name not in browser_model.runtime:
            raise HTTPException(404)
        return FileResponse(browser_model.runtime[name], media_type=(ORT_FILES | WEBGPU_FILES)[name])


def _describe(models: Models, limits: Limits, browser_model: BrowserModel | None) -> dict[str, Any]:
    """The default model's description, those of all models as `models`, and the limits."""
    described = []
    for name, pipeline in models.pipelines.items():
        description = describe_model(pipeline.config, name, browser_model if name == models.default else None)
        described.append(description | {"max_detections": pipeline.config.max_detections})
    bounds = {"max_body": limits.body_bytes, "max_megapixels": limits.max_megapixels}
    return {**described[0], **bounds, "models": described}


def _labels(classes: Sequence[str], class_names: Sequence[str]) -> frozenset[int] | None:
    try:
        return frozenset(class_index(name, class_names, "classes") for name in classes) or None
    except UserError as error:
        raise Refused(422, "unknown_class", str(error)) from None


def _add_problems(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, problem: Refused) -> Response:
        return _answer(problem, metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _answer(_bad_parameter(first["loc"][1:], first["msg"]), metrics)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return _answer(UNEXPECTED, metrics)  # the exception is raised again, and `Service` reports it

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        phrase = http.HTTPStatus(error.status_code).phrase.lower()
        problem = Refused(error.status_code, phrase.replace(" ", "_"), f"request: {phrase}; see /openapi.json")
        return _answer(problem, metrics, dict(error.headers or {}))


def _answer(problem: Refused, metrics: Metrics, headers: dict[str, str] | None = None) -> Response:
    metrics.refused.labels(problem.code).inc()
    retry = {"Retry-After": str(problem.retry_after)} if problem.retry_after else {}
    return JSONResponse({"code": problem.code, "error": problem.message}, problem.status, {**retry, **(headers or {})})
