"""Describe bodies and problems for OpenAPI: the routes read the body themselves, so FastAPI cannot know them."""

from __future__ import annotations

from typing import Any

from service.api.options import MAX_IMAGES, BoxNotation
from service.api.problems import PROBLEM_JSON
from service.api.schemas import Problem

BINARY = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "contentEncoding": "base64", "description": "the image's bytes"}

_NOT_FOUND = "There is no such model; the one that is served is named in `detail`"
_PROBLEMS = {
    400: "The bytes begin like an image and cannot be decoded, or the JSON or multipart around them is broken",
    401: "An API key is configured, and the request has none or a wrong one",
    408: "The body took too long to arrive",
    413: "The body, the options in it (64 KiB) or the image are over their limit",
    415: "Not a supported image, judged by its content",
    422: "An option is unknown or out of range; `errors` says which",
    429: "The queue is full, or too many requests of this API key are; try again after `Retry-After` seconds",
    500: "The detector failed on this image alone, or the device has too little memory for it; `code` says which",
    503: "Not ready, or shutting down; try again after `Retry-After` seconds",
    504: "The deadline passed before there was a result",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return ``responses=`` for the failures of a route; all of ``_PROBLEMS`` where none is named."""
    schema = {"$ref": "#/components/schemas/Problem"}
    descriptions = {404: _NOT_FOUND} | _PROBLEMS
    return {
        status: {"description": descriptions[status], "content": {PROBLEM_JSON: {"schema": schema}}}
        | ({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status in (429, 503) else {})
        for status in statuses or _PROBLEMS
    }


def image_body(options: type[BoxNotation]) -> dict[str, Any]:
    """Return ``openapi_extra=`` for one image in any of the three forms, with ``options`` beside it."""
    fields = _fields(options)
    return _body(
        {
            "image/*": {"schema": BINARY},
            "multipart/form-data": {"schema": _object({"image": BINARY} | fields)},
            "application/json": {"schema": _object({"image": BASE64} | fields)},
        }
    )


def batch_body(options: type[BoxNotation]) -> dict[str, Any]:
    """Return ``openapi_extra=`` for a route that takes several images."""
    images = {"type": "array", "items": BINARY, "minItems": 1, "maxItems": MAX_IMAGES}
    return _body({"multipart/form-data": {"schema": _object({"image": images} | _fields(options))}})


def any_body(content: dict[str, dict[str, Any]], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return ``openapi_extra=`` for a body that has these properties by content type; ``BINARY`` for raw bytes."""
    schemas = {
        kind: properties
        if properties is BINARY
        else {"type": "object", "required": list(required), "properties": properties}
        for kind, properties in content.items()
    }
    return _body({kind: {"schema": schema} for kind, schema in schemas.items()})


def image_response(content: str) -> dict[str, Any]:
    """Return the 200 of a route that responds with JSON or, where ``Accept`` prefers it, with an image."""
    return {
        "description": f"{content}; with `Accept: image/jpeg` or `image/png`, the image with them drawn on it",
        "content": {"image/jpeg": {"schema": BINARY}, "image/png": {"schema": BINARY}},
        "headers": {
            "Server-Timing": {"schema": {"type": "string"}, "description": "milliseconds by stage"},
            "X-Request-ID": {"schema": {"type": "string"}},
        },
    }


def add_problem_schema(document: dict[str, Any]) -> dict[str, Any]:
    """Put ``Problem`` among the document's schemas, and take FastAPI's own error schemas, which are never sent, out."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _fields(options: type[BoxNotation]) -> dict[str, Any]:
    properties: dict[str, Any] = options.model_json_schema()["properties"]
    return properties


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": ["image"], "properties": properties, "additionalProperties": False}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}
