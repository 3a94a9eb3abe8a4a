"""The addresses: a page, /predict, /info, /healthz and /openapi.json."""

from __future__ import annotations

import base64
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from rfdetr._version import __version__
from rfdetr.serving.service import RETRY_AFTER, Service
from rfdetr.serving.uploads import FILE_FIELD
from rfdetr.serving.wire import EXAMPLE_IMAGE, Answer, Fault, Health, Info, JsonRequest, Options

PAGES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FAULTS: dict[int | str, dict[str, Any]] = {
    408: {"description": "The body did not arrive in time."},
    413: {"description": "Too many bytes, or too many pixels: /info has the limits."},
    415: {"description": "The body, or the file in it, is no image."},
    422: {"description": "A value cannot be, or the image is damaged."},
    503: {"description": "Too much in hand, or stopping: try again after Retry-After seconds."},
    504: {"description": "No answer within the time limit."},
}
EXAMPLE = {
    "width": 640, "height": 480, "threshold": 0.5, "batch": 1,
    "detections": [
        {
            "class_id": 0, "class_name": "cat", "confidence": 0.9312,
            "box_xyxy": [12.5, 40.25, 310.0, 402.75],
        }
    ],
    "time_ms": {"decode": 3.1, "wait": 0.1, "network": 41.7, "total": 45.9},
}  # fmt: skip


def build_app(service: Service) -> FastAPI:
    """The application; the page's files are read here, and none by a request."""
    title = f"rfdetr: {service.info.variant or 'a detector'}"
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    for path, name in PAGES.items():
        _add_page(app, path, name)

    @app.get("/info", summary="What is served")
    async def info() -> Info:
        return service.info

    @app.get(
        "/healthz",
        summary="Whether a request would be taken now",
        responses={503: {"model": Health, "description": "Overloaded or stopping."}},
    )
    async def healthz(response: Response) -> Health:
        health = service.health
        if health.status != "ready":
            response.status_code = 503
            response.headers.update(RETRY_AFTER)
        return health

    @app.post(
        "/predict",
        summary="Objects in an image",
        response_class=Response,
        responses={
            200: {
                "description": Answer.__doc__,
                "content": {"application/json": {"schema": _ref(Answer), "example": EXAMPLE}},
            },
            **{code: {"model": Fault, **told} for code, told in FAULTS.items()},
        },
        openapi_extra=_request_forms(),
    )
    async def predict(request: Request) -> Response:
        """An image as a form's file, as base64 in JSON, or as it is; options beside it."""
        try:
            return Response(await service.answer(request), media_type="application/json")
        except ClientDisconnect:
            return Response(status_code=408)  # which nobody reads

    _add_schemas(app)
    return app


def _add_page(app: FastAPI, path: str, name: str) -> None:
    content = files("rfdetr.serving").joinpath(name).read_bytes()
    kind = f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(content, headers=headers, media_type=kind)


def _ref(model: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _request_forms() -> dict[str, Any]:
    """OpenAPI of what /predict takes: FastAPI itself knows one form of a body, not three."""
    options = Options.model_json_schema()["properties"]
    as_text = {**options["thresholds"], "type": "string"}
    for name in ("additionalProperties", "default"):
        as_text.pop(name)
    as_text |= {"contentMediaType": "application/json", "example": "{}"}
    in_text = {**options, "thresholds": as_text}
    file = {"type": "string", "format": "binary", "description": "The image file."}
    form = {"type": "object", "required": [FILE_FIELD], "properties": {FILE_FIELD: file, **in_text}}
    example = {"image": base64.b64encode(EXAMPLE_IMAGE).decode(), "threshold": 0.4}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in in_text.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {**form, "additionalProperties": False}},
                "application/json": {"schema": _ref(JsonRequest), "example": example},
                **{
                    kind: {"schema": {"type": "string", "format": "binary"}}
                    for kind in ("image/*", "application/octet-stream")
                },
            },
        },
    }


def _add_schemas(app: FastAPI) -> None:
    """Makes the document once, with the models that only `_request_forms` and `Answer` name."""
    document = app.openapi()
    template = "#/components/schemas/{model}"
    for model in (JsonRequest, Answer):
        schema = model.model_json_schema(ref_template=template)
        document["components"]["schemas"] |= schema.pop("$defs", {})
        document["components"]["schemas"][model.__name__] = schema
