"""Routes of templates, the platform's own upload among them."""

from __future__ import annotations

import math
from typing import Any, Final

from flask import Blueprint, Response, request

from ppio_agent.exceptions import RequestTooLargeError, ValidationError
from ppio_agent.sandbox.seats import Seats
from ppio_agent.sandbox.templates.records import BuildInfo
from ppio_agent.sandbox.templates.snapshot import MAX_BYTES
from ppio_agent.sandbox.templates.sources import ArchiveSource

from .kit import Control, answer, tenant
from .listing import page, whole_number

__all__ = ["template_routes"]

_TYPE: Final = "template_build"
# Each has a thread of the control plane, and up to twice 512 MiB of disk.
_MOST_UPLOADS: Final = 32
_UPLOADS_OF_EACH: Final = 16


def template_routes(control: Control) -> Blueprint:
    """Return the routes of templates."""
    routes = Blueprint("templates", __name__)
    handlers = _TemplateRoutes(control)
    for rule, method, handler in (
        ("/templates", "GET", handlers.list_all),
        ("/v2/templates", "GET", handlers.list_page),
        ("/templates/aliases/<alias>", "GET", handlers.alias),
        ("/templates/<ref>", "GET", handlers.get),
        ("/templates/<ref>", "DELETE", handlers.delete),
        ("/platform/v1/templates", "POST", handlers.upload),
    ):
        routes.add_url_rule(rule, handler.__name__, handler, methods=[method])
    return routes


class _TemplateRoutes:
    """One method a route; each reads the request and returns the answer."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._uploads = Seats(
            "uploads", most=_MOST_UPLOADS, most_of_one=_UPLOADS_OF_EACH
        )

    def _objects(self) -> list[dict[str, Any]]:
        records = self._control.templates.list_templates(tenant=tenant())
        return [self._control.viewer.template_object(record) for record in records]

    def list_all(self) -> Response:
        return answer(self._objects())

    def list_page(self) -> Response:
        args = request.args
        number = whole_number(args.get("page"), "page", default=1, low=1, high=10**9)
        limit = whole_number(args.get("limit"), "limit", default=100, low=1, high=100)
        # All templates here are of the one type; clients name it unasked.
        kind = args.get("template_type") or _TYPE
        found = self._objects() if kind == _TYPE else []
        first = (number - 1) * limit
        return answer({
            "templates": found[first : first + limit],
            "total": len(found),
            "page": number,
            "limit": limit,
            "totalPages": math.ceil(len(found) / limit),
        })  # fmt: skip

    def get(self, ref: str) -> Response:
        record = self._control.templates.get(ref, tenant=tenant())
        args = request.args
        limit = whole_number(args.get("limit"), "limit", default=100, low=1, high=100)
        shown, token = page(
            record.builds, key=_place, limit=limit, token=args.get("nextToken")
        )
        headers = {} if token is None else {"x-next-token": token}
        return answer(
            self._control.viewer.template_detail(record, shown), headers=headers
        )

    def alias(self, alias: str) -> Response:
        record = self._control.templates.get(alias, tenant=tenant())
        return answer({"templateID": record.id, "public": record.tenant == ""})

    def delete(self, ref: str) -> Response:
        self._control.templates.delete(ref, tenant=tenant())
        return answer(status=204)

    def upload(self) -> Response:
        owner = tenant()
        install = _flag(request.args.get("install"), "install")
        size = request.content_length or 0
        if size > MAX_BYTES:
            raise RequestTooLargeError(
                f"the archive is larger than {MAX_BYTES} bytes", limit=MAX_BYTES
            )
        with (
            self._uploads.taken(owner),
            ArchiveSource.open(
                request.environ["wsgi.input"],
                max_bytes=MAX_BYTES,
                folder=self._control.uploads,
            ) as source,
        ):
            record, new = self._control.templates.deploy(
                source, tenant=owner, install=install
            )
        found = self._control.viewer.template_object(record)
        return answer(found, 201 if new else 200)


def _flag(text: str | None, name: str) -> bool:
    """Return a parameter that is true or false; absent is false.

    Raises:
        ValidationError: It is neither.
    """
    if text not in (None, "true", "false"):
        raise ValidationError(f"{name}: expected true or false")
    return text == "true"


def _place(build: BuildInfo) -> tuple[int, str]:
    return int(build.created_at.timestamp() * 1000), build.id
