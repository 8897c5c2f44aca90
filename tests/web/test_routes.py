"""The table of routes: what a path stands for."""

from __future__ import annotations

import pytest

from ppio_agent.web import Reply
from ppio_agent.web.routes import Route, RouteTable


def view(target: object, exchange: object) -> Reply:
    del target, exchange
    return Reply(200)


TABLE = RouteTable(
    Route(name, method, path, view)
    for name, method, path in (
        ("root", "GET", "/"),
        ("list", "GET", "/letters"),
        ("drop", "DELETE", "/letters/<id>"),
        ("redrive", "POST", "/letters/<id>:redrive"),
        ("send", "POST", "/<type>/<key>/<id>"),
        ("cancel", "POST", "/<type>/<key>/<id>:cancel"),
    )
)


@pytest.mark.parametrize(
    ("method", "path", "name", "params"),
    [
        ("GET", "/", "root", {}),
        ("HEAD", "/", "root", {}),
        ("GET", "/letters", "list", {}),
        ("POST", "/letters", None, {}),
        ("DELETE", "/letters/a", "drop", {"id": "a"}),
        ("POST", "/letters/a:redrive", "redrive", {"id": "a"}),
        ("POST", "/t/k/m", "send", {"type": "t", "key": "k", "id": "m"}),
        ("POST", "/t/k/m:cancel", "cancel", {"type": "t", "key": "k", "id": "m"}),
        ("POST", "/t/k/m:cancel/x", None, {}),
        ("POST", "/t//m", None, {}),
        ("GET", "/nothing", None, {}),
    ],
)
def test_a_path_is_found(
    method: str, path: str, name: str | None, params: dict[str, str]
) -> None:
    """By its fixed text first; a piece that stands for something is never empty."""
    routes, found = TABLE.find(path)
    route = routes.get(method)
    assert (None if route is None else route.name, found) == (name, params)


def test_a_route_has_a_template() -> None:
    """As OpenAPI writes it."""
    route = Route("cancel", "POST", "/a/<key>/<message_id>:cancel", view)
    assert route.template == "/a/{key}/{message_id}:cancel"
    assert route.places == ["key", "message_id"]
