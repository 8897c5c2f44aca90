"""The routes of an application: plain functions in one table.

The front calls them directly, or as views of a Flask app; which lane of the server they
get stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen

from .kit import Reply
from .lanes import Lane

__all__ = ["Route", "RouteTable"]

View = Callable[..., Reply]

_PLACE = re.compile(r"<([a-z_]+)>")


@frozen
class Route:
    """One route.

    Attributes:
        name: What the application calls it.
        method: `GET` (which serves `HEAD`, too), `POST` or `DELETE`.
        path: Its path; `<id>` stands for a piece of it that has no `/`.
        view: Called with the application and the exchange, and by its name with each
            piece that stands for something.
        lane: Where the server runs it.
        public: Whether it is served without authentication.
    """

    name: str
    method: str
    path: str
    view: View
    lane: Lane = Lane.EXPRESS
    public: bool = field(default=False, kw_only=True)

    @property
    def template(self) -> str:
        """Its path as URI templates and OpenAPI write it."""
        return _PLACE.sub(r"{\1}", self.path)

    @property
    def places(self) -> list[str]:
        """The names of the pieces of its path that stand for something."""
        return _PLACE.findall(self.path)


class RouteTable:
    """Finds the route of a request.

    Args:
        routes: All of them; of two whose paths fit the one with more fixed text is
            taken.

    Thread safety: immutable.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            methods = by_path.setdefault(route.path, {})
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route
        self._exact = {path: m for path, m in by_path.items() if "<" not in path}
        rest = sorted(
            (path for path in by_path if "<" in path),
            key=lambda path: -len(_PLACE.sub("", path)),
        )
        self._patterns = [(_pattern(path), by_path[path]) for path in rest]

    def find(self, path: str) -> tuple[Mapping[str, Route], dict[str, Any]]:
        """Return the routes of a path by method, and what its pieces stand for."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, {}
        for pattern, methods in self._patterns:
            found = pattern.fullmatch(path)
            if found is not None:
                return methods, found.groupdict()
        return {}, {}


def _pattern(path: str) -> re.Pattern[str]:
    # Odd pieces of the split are the names.
    pieces = _PLACE.split(path)
    return re.compile(
        "".join(
            f"(?P<{piece}>[^/]+)" if number % 2 else re.escape(piece)
            for number, piece in enumerate(pieces)
        )
    )
