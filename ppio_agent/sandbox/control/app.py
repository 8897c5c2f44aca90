"""The Flask application of the control plane: who may ask, and what is answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from ppio_agent.exceptions import PermissionDeniedError, PPIOAgentError, WireError
from ppio_agent.sandbox.keys import basic_user
from ppio_agent.sandbox.life.options import not_supported
from ppio_agent.web import Lane

from .kit import (
    Control,
    answer,
    error_answer,
    files_answer,
    tenant,
    unexpected_answer,
)
from .sandbox_routes import sandbox_routes
from .template_routes import template_routes
from .watch_routes import watch_routes

__all__ = ["create_app", "lane_of"]

_HEALTHZ: Final = "/platform/v1/healthz"
_LIST: Final = ("GET", "/templates")
_STREAM: Final = re.compile(r"/platform/v1/sandboxes/[^/]*/(?:events|logs/stream)")
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_NOT_HERE: Final[Mapping[str, str]] = {
    "/sandboxes/<_id>/snapshots": "the use of snapshots",
    "/sandboxes/<_id>/clone": "clone",
    "/sandboxes/<_id>/fork": "fork",
    "/sandboxes/<_id>/reset": "reset",
    "/sandboxes/<_id>/commit": "commit",
    "/sandboxes/<_id>/hotplug-memory": "hotplug-memory",
    "/sandboxes/<_id>/volume-mounts": "the use of volumes",
    "/sandboxes/<_id>/network": "changing the network",
    "/sandboxes/<_id>/quota": "quota",
    "/sandboxes/quota": "quota",
    "/sandboxes/events": "the list of events",
    "/snapshots": "the use of snapshots",
    "/sandboxes/<_id>/events": "the list of events",
    "/v3/templates": "building templates by the API",
    "/templates/<_id>/builds/<path:_rest>": "building templates by the API",
    "/v2/templates/<_id>/builds/<path:_rest>": "building templates by the API",
    "/templates/<_id>/files/<_hash>": "building templates by the API",
    "/templates/tags": "the use of tags",
    "/templates/<_id>/tags": "the use of tags",
    "/volumes": "the use of volumes",
    "/volumes/<path:_rest>": "the use of volumes",
    "/secrets": "the use of secrets",
    "/secrets/<path:_rest>": "the use of secrets",
}
"""Routes of the cloud that this platform knows but does not have, and what they are."""


def lane_of(method: str, path: str, headers: Mapping[str, str]) -> Lane:
    """Return the server's lane of a request.

    Health checks never wait, and streams, which have a thread for as long as they are
    read, take none of those of other requests.
    """
    del method, headers
    if path == _HEALTHZ:
        return Lane.EXPRESS
    return Lane.READ if _STREAM.fullmatch(path) else Lane.INVOKE


class _Plane(Flask):
    """An application in which OPTIONS is a method that no route takes.

    An offer to go on with another protocol is left unanswered, as HTTP has it: to the
    routes such a request would be one for WebSockets, of which there are none.
    """

    def __call__(self, environ: Any, start_response: Any) -> Any:
        environ.pop("HTTP_UPGRADE", None)
        return super().__call__(environ, start_response)

    def add_url_rule(self, *args: Any, **options: Any) -> None:
        options["provide_automatic_options"] = False
        super().add_url_rule(*args, **options)


def create_app(control: Control) -> Flask:
    """Return the control plane as a WSGI application."""
    app = _Plane("ppio_agent.sandbox", static_folder=None)
    app.url_map.merge_slashes = False
    app.before_request(lambda: _authenticate(control))
    app.register_error_handler(PPIOAgentError, error_answer)
    app.register_error_handler(WireError, error_answer)
    app.register_error_handler(HTTPException, error_answer)
    app.register_error_handler(
        OSError, partial(files_answer, folder=control.config.data_dir)
    )
    app.register_error_handler(Exception, unexpected_answer)
    app.register_blueprint(sandbox_routes(control))
    app.register_blueprint(watch_routes(control))
    app.register_blueprint(template_routes(control))
    app.add_url_rule(_HEALTHZ, "healthz", lambda: answer(status=204))
    app.add_url_rule(
        "/platform/v1/status", "status", lambda: answer(dict(control.status(tenant())))
    )
    for number, (rule, what) in enumerate(_NOT_HERE.items()):
        app.add_url_rule(
            rule, f"not_here_{number}", _refuses(what), methods=list(_METHODS)
        )
    return app


def _authenticate(control: Control) -> None:
    if "Origin" in request.headers:
        # A browser sends it for pages of others; no page has business here, whatever
        # name it has made this address answer to.
        raise PermissionDeniedError("requests of web pages are not accepted")
    if request.path == _HEALTHZ:
        return
    api_key = request.headers.get("X-API-KEY")
    authorization = request.headers.get("Authorization")
    g.tenant = _lister(control, api_key, authorization) or control.keys.tenant_of(
        api_key, authorization
    )


def _lister(
    control: Control, api_key: str | None, authorization: str | None
) -> str | None:
    """Return who lists templates with no more than the short form of a key, or None.

    Clients that find it in their URL send that alone, and only in this call.
    """
    label, _, short = (basic_user(authorization) or "").partition(".")
    if api_key or label != "api" or (request.method, request.path) != _LIST:
        return None
    return control.keys.tenant_of_short(short)


def _refuses(what: str) -> Callable[..., Response]:
    def view(**_: str) -> Response:
        raise not_supported(what)

    return view
