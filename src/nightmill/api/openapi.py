"""The served OpenAPI 3.1 document, with OpenAI's operation ids, schema names and paths.

A client generated from the document looks like a client generated for OpenAI. This module adds the parts that
FastAPI does not know: streamed bodies, errors, the `/v1` prefix and the security scheme. The `*wire` modules
hold the schemas.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from nightmill.api import wire
from nightmill.api.batch_wire import CreateBatchRequest
from nightmill.settings import LimitSettings

Node = dict[str, Any]

_REF = "#/components/schemas/"
_PREFIX = "/v1"
_GENERATED = frozenset({"HTTPValidationError", "ValidationError"})
_SERVER_DESCRIPTION = "This server. Clients that ask for a base URL want it with the `/v1`."


def _error(description: str) -> Node:
    schema = {"$ref": _REF + wire.ErrorResponse.__name__}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


ERRORS: Mapping[str, Node] = {
    "400": _error("Something in the request is wrong; the error says what."),
    "401": _error("The API key is missing or wrong."),
    "403": _error("The API key may only read."),
    "404": _error("There is no such thing in this project."),
    "429": _error("Too many requests; Retry-After says when to ask again."),
    "500": _error("An error of the server; its log knows the request id."),
    "503": _error("The server can't do it for now; Retry-After says when to ask again."),
}
CONFLICT: dict[int | str, Node] = {"409": _error("The state of the object forbids it.")}
TOO_LARGE: dict[int | str, Node] = {"413": _error("The body is too large.")}


def takes_json(model: type[wire.WireModel]) -> Node:
    """For `openapi_extra` of a route that reads its JSON body itself."""
    return _takes("application/json", model)


def takes_multipart(model: type[wire.WireModel]) -> Node:
    """For `openapi_extra` of a route that streams its multipart body itself."""
    return _takes("multipart/form-data", model)


def _takes(media_type: str, model: type[wire.WireModel]) -> Node:
    content = {media_type: {"schema": {"$ref": _REF + model.__name__}}}
    return {"requestBody": {"required": True, "content": content}}


def describer(app: FastAPI, limits: LimitSettings) -> Callable[[], Node]:
    """A function for `app.openapi`: the document for these settings, made on the first call."""
    document: Node = {}

    def describe() -> Node:
        if not document:
            document.update(_document(app, limits))
        return document

    return describe


def _document(app: FastAPI, limits: LimitSettings) -> Node:
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        separate_input_output_schemas=False,
    )
    document["paths"] = {
        path.removeprefix(_PREFIX): _described(item) for path, item in document["paths"].items()
    }
    document["servers"] = [{"url": _PREFIX, "description": _SERVER_DESCRIPTION}]
    document["security"] = [{"ApiKeyAuth": []}]
    schemas = {
        name: schema
        for name, schema in document.get("components", {}).get("schemas", {}).items()
        if name not in _GENERATED
    }
    schemas.update(_wire_schemas(limits))
    document["components"] = {
        "schemas": dict(sorted(schemas.items())),
        "securitySchemes": {"ApiKeyAuth": {"type": "http", "scheme": "bearer"}},
    }
    return cast("Node", _as_published(document))


def _wire_schemas(limits: LimitSettings) -> Node:
    models = [
        (model, "validation")
        for model in wire.WireModel.__subclasses__()
        if not model.__name__.startswith("_")
    ]
    _, definitions = models_json_schema(cast("Any", models), ref_template=_REF + "{model}")
    schemas = cast("Node", definitions["$defs"])
    properties = schemas[CreateBatchRequest.__name__]["properties"]
    properties["endpoint"]["enum"] = list(limits.endpoints)
    properties["completion_window"]["enum"] = list(limits.completion_windows)
    return schemas


def _described(item: Node) -> Node:
    """Adds `ERRORS` to every operation and removes the 422 of FastAPI, which this server never sends."""
    for operation in item.values():
        responses: Node = {**ERRORS, **operation["responses"]}
        responses.pop("422", None)
        operation["responses"] = dict(sorted(responses.items()))
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
    return item


def _without_null(schema: Node) -> Node:
    """Removes null from a parameter: a query can omit a parameter, but cannot set it to null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else schema


def _as_published(node: object) -> object:
    """Removes the differences between pydantic and the published document: `const`, titles, null defaults."""
    if isinstance(node, list):
        return [_as_published(entry) for entry in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    node = cast("Node", node)
    is_schema = "title" in node and isinstance(node["title"], str) and "version" not in node
    published: Node = {}
    for key, value in node.items():
        if key == "title" and is_schema:
            continue
        if key == "default" and value is None:
            continue
        if key == "const":
            published["enum"] = [value]
            continue
        published[key] = _as_published(value)
    return published
