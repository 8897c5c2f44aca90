"""Routes by which sandboxes are watched: logs, metrics, events."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flask import Blueprint, Response, request

from ppio_agent.exceptions import NotFoundError, ValidationError
from ppio_agent.sandbox.logfollow import LogFollower
from ppio_agent.sandbox.logview import LEVELS, LogEntry, LogQuery, read_log
from ppio_agent.sandbox.metrics import as_milliseconds
from ppio_agent.wire.headers import sandbox_key

from .feeds import LogFeed
from .journal import Journals
from .kit import Control, answer, tenant
from .listing import whole_number
from .streams import last_event_id
from .views import log_lines, metric_view

__all__ = ["watch_routes"]

_LATEST: Final = 253402300799999  # the last millisecond of the year 9999
_MOST_IDS: Final = 100


def watch_routes(control: Control) -> Blueprint:
    """Return the routes of logs, metrics and events."""
    routes = Blueprint("watch", __name__)
    handlers = _WatchRoutes(control)
    for rule, handler in (
        ("/sandboxes/metrics", handlers.newest_metrics),
        ("/sandboxes/<sandbox_id>/metrics", handlers.metrics),
        ("/sandboxes/<sandbox_id>/logs", handlers.logs),
        ("/v2/sandboxes/<sandbox_id>/logs", handlers.logs_page),
        ("/platform/v1/sandboxes/<sandbox_id>/logs/stream", handlers.log_stream),
        ("/platform/v1/sandboxes/<sandbox_id>/events", handlers.events),
    ):
        routes.add_url_rule(rule, handler.__name__, handler, methods=["GET"])
    return routes


class _WatchRoutes:
    """One method a route; each reads the request and returns the answer."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._journals = Journals()

    def metrics(self, sandbox_id: str) -> Response:
        start, end = (
            None if value is None else as_milliseconds(value)
            for value in (_instant("start"), _instant("end"))
        )
        if start is not None and end is not None and start > end:
            raise ValidationError("query parameter end: is before start")
        sandbox = self._control.sandboxes.get(sandbox_key(sandbox_id), tenant=tenant())
        series = self._control.metrics.series(sandbox.id)
        samples = [] if series is None else series.between(start, end)
        return answer([metric_view(sandbox, sample) for sample in samples])

    def newest_metrics(self) -> Response:
        given = ",".join(request.args.getlist("sandbox_ids")).split(",")
        ids = dict.fromkeys(sandbox_key(part.strip()) for part in given if part.strip())
        if not 1 <= len(ids) <= _MOST_IDS:
            raise ValidationError(
                f"query parameter sandbox_ids: expected 1 to {_MOST_IDS} ids"
            )
        found = {}
        for sandbox_id in ids:
            sandbox = self._control.sandboxes.find(sandbox_id)
            series = self._control.metrics.series(sandbox_id)
            if sandbox is None or series is None:
                continue
            newest = series.between(None, None)[-1:]
            if newest and sandbox.identity.tenant == tenant():
                found[sandbox_id] = metric_view(sandbox, newest[0])
        return answer({"sandboxes": found})

    def logs(self, sandbox_id: str) -> Response:
        query = LogQuery(start=_instant("start"), limit=_limit())
        return answer(log_lines(self._entries(sandbox_id, query)))

    def logs_page(self, sandbox_id: str) -> Response:
        query = LogQuery(
            start=_instant("cursor"),
            limit=_limit(),
            backward=_choice("direction", "forward", "backward") == "backward",
            level=_choice("level", *LEVELS),
            search=request.args.get("search", ""),
        )
        entries = self._entries(sandbox_id, query)
        return answer({"logs": [entry.to_dict() for entry in entries]})

    def _entries(self, sandbox_id: str, query: LogQuery) -> list[LogEntry]:
        owner = tenant()
        folder = self._log_folder(sandbox_key(sandbox_id), owner)
        with self._control.log_reads.taken(owner):
            return read_log(folder, query)

    def log_stream(self, sandbox_id: str) -> Response:
        owner, key = tenant(), sandbox_key(sandbox_id)
        query = LogQuery(
            level=_choice("level", *LEVELS), search=request.args.get("search", "")
        )
        follows = _choice("follow", "true", "false") == "true"
        tail: int | None = whole_number(
            request.args.get("tail"), "tail", default=-1, low=0, high=1000
        )
        after = last_event_id()
        if after is not None or tail == -1:
            tail = None
        if after is None:
            after = max(0, (_instant("start") or 0) * 1000 - 1)
        self._log_folder(key, owner)  # or it is not there at all
        sandbox = self._control.sandboxes.find(key)

        def folder() -> Path | None:
            try:
                return self._log_folder(key, owner)
            except NotFoundError:
                return None  # on its way from one folder to another, or too old

        def feed() -> LogFeed:
            return LogFeed(
                # The instant of the first event that is wanted: see `Numbering`.
                LogFollower(folder, since=(after + 1) // 1000),
                query,
                ended=sandbox.ended if sandbox is not None and follows else None,
                tail=tail,
            )

        return self._control.streams.respond(owner, feed, after=after)

    def events(self, sandbox_id: str) -> Response:
        owner = tenant()
        sandbox = self._control.sandboxes.get(sandbox_key(sandbox_id), tenant=owner)
        last, journal = last_event_id(), self._journals.of(sandbox)
        # An id that is not given yet would be waited for until it is.
        after = min(last or 0, journal.newest)
        return self._control.streams.respond(owner, lambda: journal, after=after)

    def _log_folder(self, sandbox_id: str, owner: str) -> Path:
        return self._control.sandboxes.logs_of(sandbox_id, tenant=owner)


def _choice(name: str, *words: str) -> str:
    """Return a parameter that is one of some words; absent is the first."""
    found = request.args.get(name) or words[0]
    if found not in words:
        expected = f"{', '.join(words[:-1])} or {words[-1]}"
        raise ValidationError(f"query parameter {name}: expected {expected}")
    return found


def _instant(name: str) -> int | None:
    text = request.args.get(name)
    if not text:
        return None
    return whole_number(text, name, default=0, low=0, high=_LATEST)


def _limit() -> int:
    text = request.args.get("limit")
    return whole_number(text, "limit", default=1000, low=1, high=1000)
