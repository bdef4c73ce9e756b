"""The OpenAPI document of the routes that OpenAI does not publish, served at `/nightmill/openapi.json`.

A document of its own, so that a client generated from `/openapi.json` stays one for OpenAI. Bodies are
described as JSON objects; the routes' own descriptions and docs/ say what is in them.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from nightmill.api.openapi import ERRORS, Node
from nightmill.api.wire import ErrorResponse

_DESCRIPTION = "What nightmill has beside OpenAI's Batch API. Routes without a lock need no key."
_PREFIX = "/nightmill/"
_WITH_BODY = ("post", "put", "patch")
_BODY: Node = {"content": {"application/json": {"schema": {"type": "object"}}}}


def own_describer(app: FastAPI, routers: Sequence[APIRouter]) -> Callable[[], Node]:
    """A function that returns the document, made on the first call."""
    document: Node = {}

    def describe() -> Node:
        if not document:
            document.update(_document(app, routers))
        return document

    return describe


def _document(app: FastAPI, routers: Sequence[APIRouter]) -> Node:
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    document = get_openapi(
        title="nightmill",
        version=app.version,
        openapi_version="3.1.0",
        description=_DESCRIPTION,
        routes=list(map(_shown, routes)),
    )
    for path, item in document["paths"].items():
        for method, operation in item.items():
            _complete(operation, method=method, is_public=not path.startswith(_PREFIX))
    error = ErrorResponse.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = error.pop("$defs", {})
    # Those of parameters. FastAPI's own errors are not among the responses.
    found: dict[str, Any] = document.get("components", {}).get("schemas", {})
    parts |= {name: schema for name, schema in found.items() if not name.endswith("ValidationError")}
    document["components"] = {
        "schemas": {**parts, ErrorResponse.__name__: error},
        "securitySchemes": {"ApiKeyAuth": {"type": "http", "scheme": "bearer"}},
    }
    document["security"] = [{"ApiKeyAuth": []}]
    return document


def _shown(route: APIRoute) -> APIRoute:
    shown = copy(route)
    shown.include_in_schema = True
    return shown


def _complete(operation: Node, *, method: str, is_public: bool) -> None:
    if is_public:
        operation["security"] = []
    elif method in _WITH_BODY:
        operation["requestBody"] = _BODY
    responses: Node = {**({} if is_public else ERRORS), **operation["responses"]}
    responses.pop("422", None)  # FastAPI's own, which this server never sends
    operation["responses"] = responses
