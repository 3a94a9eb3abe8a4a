"""The image and the options of a request, from a bounded body that never leaves memory."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any, NamedTuple

from fastapi import HTTPException, Request
from pydantic import ValidationError

from rfdetr.config.fields import fault_lines
from rfdetr.serving.wire import JsonRequest, Options

MOST_PARTS = 16  # of a form: a file and a few options
MOST_HEAD = 8192  # bytes of the headers of a part
FILE_FIELD = "file"
_FORMS = 'a form with a field "file", JSON with a key "image" in base64, or an image as it is'


class Upload(NamedTuple):
    """An image file's bytes, and what is wanted of it."""

    image: bytes
    options: Options


async def read_body(request: Request, most: int) -> bytes:
    """The whole body; 413 as soon as it is known to have more than `most` bytes."""
    announced = request.headers.get("content-length", "")
    too_many = HTTPException(413, f"the body is larger than {most:,} bytes, which is the most")
    if announced.isdecimal() and int(announced) > most:
        raise too_many
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise too_many
        body += chunk
    return bytes(body)


def read_upload(
    body: bytes, headers: Mapping[str, str], query: Iterable[tuple[str, str]]
) -> Upload:
    """What a body is, by its type; 415 for a type that is none of the three forms, 422 for values
    that cannot be. `query` are the options in the address, which each form may have.
    """
    told = Message()
    told["content-type"] = headers.get("content-type", "none")
    kind = told.get_content_type() if "/" in told["content-type"] else "none"
    if coding := headers.get("content-encoding"):
        raise HTTPException(415, f"content-encoding {coding!r}: send the body as it is")
    if not body:
        raise HTTPException(422, f"the body is empty: expected {_FORMS}")
    given = dict[str, Any](_once(query))
    if kind == "application/json":
        return _of_json(body, given)
    if kind == "multipart/form-data":
        fields = dict(_once([*given.items(), *form_fields(body, told.get_param("boundary"))]))
        image = fields.pop(FILE_FIELD, b"")
        if not isinstance(image, bytes) or not image:
            raise HTTPException(422, f'no file in the form: expected a field "{FILE_FIELD}"')
        return Upload(image, _options(fields))
    if kind == "application/octet-stream" or kind.startswith("image/"):
        return Upload(body, _options(given))
    hint = "; curl says what it sends by -H 'Content-Type: image/jpeg'"
    raise HTTPException(415, f"content-type is {kind}: expected {_FORMS}{hint}")


def form_fields(body: bytes, boundary: Any) -> list[tuple[str, bytes]]:
    """Name and content of each field of a multipart body; 422 where it is none.

    --b\\r\\nContent-Disposition: form-data; name="file"\\r\\n\\r\\n...\\r\\n--b--\\r\\n
    """
    if not isinstance(boundary, str) or not boundary.isascii() or not boundary:
        raise HTTPException(422, "the form's content-type names no boundary")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), MOST_PARTS + 1)
    fields: list[tuple[str, bytes]] = []
    for part in parts:
        if part.startswith(b"--"):
            return fields
        head, _, content = part.partition(b"\r\n\r\n")
        if not head.lstrip(b" \t").startswith(b"\r\n") or len(head) > MOST_HEAD:
            break
        told = BytesHeaderParser().parsebytes(head.lstrip())
        name = told.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise HTTPException(422, "a part of the form has no name")
        fields.append((name, content))
    broken = f"expected at most {MOST_PARTS} fields, each with its headers, and a closing boundary"
    raise HTTPException(422, f"the form is broken: {broken}")


def _of_json(body: bytes, given: dict[str, Any]) -> Upload:
    try:
        found = JsonRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise HTTPException(422, "; ".join(fault_lines(error))) from error
    keys = {name: getattr(found, name) for name in found.model_fields_set - {"image"}}
    options = _options(dict(_once([*given.items(), *keys.items()])))
    text = found.image
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return Upload(base64.b64decode("".join(text.split()), validate=True), options)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, f"image: no base64: {error}") from error


def _once(pairs: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    """The same pairs; 422 where a name comes twice."""
    seen = set[str]()
    for name, value in pairs:
        if name in seen:
            raise HTTPException(422, f"{name!r} is given twice")
        seen.add(name)
        yield name, value


def _options(fields: dict[str, Any]) -> Options:
    """The options of texts, or of values of their own types."""
    texts = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in fields.items()
    }
    try:
        return Options.model_validate(texts)
    except ValidationError as error:
        raise HTTPException(422, "; ".join(fault_lines(error))) from error
