"""What descriptions of APIs are made of: pieces of an OpenAPI 3.1 document. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from ppio_agent.wire import headers as names
from ppio_agent.wire.problem import PROBLEM_CONTENT_TYPE
from ppio_agent.wire.sse import CONTENT_TYPE

from .routes import Route

__all__ = [
    "ID",
    "TEXT",
    "Description",
    "answer",
    "nullable",
    "object_of",
    "operation",
    "parameter",
    "problems",
    "ref",
]

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_ALWAYS = (names.REQUEST_ID, names.AGENT_VERSION)
_KINDS = {
    "json": "application/json",
    "problem": PROBLEM_CONTENT_TYPE,
    "sse": CONTENT_TYPE,
    "html": "text/html",
}


def object_of(properties: Mapping[str, Schema], **more: Any) -> Schema:
    """Return the schema of an object that has all these members."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        **more,
    }


def nullable(*kinds: str) -> Schema:
    """Return the schema of values of these types, or null."""
    return {"type": [*kinds, "null"]}


def ref(kind: str, name: str) -> Schema:
    """Return what refers to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def answer(about: str, /, *headers: str, **content: Schema) -> Schema:
    """Return a response.

    Args:
        about: What it says.
        headers: Its headers, besides those of every answer.
        content: Schemas by `json`, `problem`, `sse` and `html`, or by a media type.
    """
    found: Schema = {
        "description": about,
        "headers": {name: ref("headers", name) for name in (*_ALWAYS, *headers)},
    }
    if content:
        found["content"] = {_KINDS.get(k, k): {"schema": v} for k, v in content.items()}
    return found


def problems(*statuses: int) -> dict[str, Schema]:
    """Return the responses that are problems and nothing else, by their status."""
    return {str(status): ref("responses", f"Problem{status}") for status in statuses}


def operation(name: str, summary: str, responses: Schema, **more: Any) -> Schema:
    """Return what a route does."""
    return {"operationId": name, "summary": summary, **more, "responses": responses}


def parameter(name: str, place: str, schema: Schema, text: str, **more: Any) -> Schema:
    """Return a parameter of an operation; those of a path are always required."""
    required = {"required": True} if place == "path" else {}
    found = {"name": name, "in": place, "description": text, "schema": schema}
    return {**found, **required, **more}


PROBLEM = object_of(
    {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "code": TEXT,
        "retryable": {"type": "boolean"},
        "request_id": nullable("string"),
        "error": TEXT,
    },
    description="Why a request was not carried out (RFC 9457).",
)
_HEADERS = {
    names.REQUEST_ID: ("Id of the request.", TEXT),
    names.AGENT_VERSION: ("Version of the server.", TEXT),
    names.RETRY_AFTER: ("Seconds to wait.", {"type": "integer"}),
}
_ASKS_FOR_PATIENCE = frozenset({429, 503})


@frozen(kw_only=True)
class Description:
    """An API.

    Attributes:
        title: Name of the service.
        version: Its version.
        schemas: By the names with which `ref` refers to them; `Problem` is there.
        headers: Of answers, besides those of every one: description and schema.
        problems: What each status means that `problems` has.
        places: What the pieces of paths stand for: schema and description.
        security_schemes: How callers say who they are, each enough alone.
    """

    title: str
    version: str
    schemas: Mapping[str, Schema]
    headers: Mapping[str, tuple[str, Schema]]
    problems: Mapping[int, str]
    places: Mapping[str, tuple[Schema, str]]
    security_schemes: Mapping[str, Any]

    def document(
        self, routes: Iterable[Route], operations: Mapping[str, Schema]
    ) -> Schema:
        """Return the document, without `servers`.

        Args:
            routes: All there are.
            operations: What they do, by their names.
        """
        headers = {**_HEADERS, **self.headers}
        components: Schema = {
            "schemas": {"Problem": PROBLEM, **self.schemas},
            "headers": {
                name: {"description": text, "schema": schema}
                for name, (text, schema) in headers.items()
            },
            "responses": {
                f"Problem{status}": answer(
                    text,
                    *([names.RETRY_AFTER] if status in _ASKS_FOR_PATIENCE else ()),
                    problem=ref("schemas", "Problem"),
                )
                for status, text in self.problems.items()
            },
        }
        found: Schema = {
            "openapi": "3.1.0",
            "info": {"title": self.title, "version": self.version},
            "paths": self._paths(routes, operations),
            "components": components,
        }
        if self.security_schemes:
            components["securitySchemes"] = dict(self.security_schemes)
            found["security"] = [{name: []} for name in self.security_schemes]
        return found

    def _paths(
        self, routes: Iterable[Route], operations: Mapping[str, Schema]
    ) -> Schema:
        found: dict[str, Schema] = {}
        for route in routes:
            item = found.setdefault(route.template, {})
            if route.places:
                item["parameters"] = [
                    parameter(name, "path", *self.places[name]) for name in route.places
                ]
            secured = self.security_schemes and route.public
            public: Schema = {"security": []} if secured else {}
            item[route.method.lower()] = {**operations[route.name], **public}
        return found
