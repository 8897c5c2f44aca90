"""Logs, metrics and events of the control plane, on a fake backend."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from ppio_agent.sandbox.backends.base import AgentStatus, Usage
from ppio_agent.sandbox.control import lane_of
from ppio_agent.sandbox.logs import AgentLog
from ppio_agent.web import Lane
from ppio_agent.wire.models import SandboxMetric
from ppio_agent.wire.sse import SSEEvent, SSEFramer
from ppio_agent.wire.times import parse_time
from tests.sandbox.control.wirekit import BLUE, RED, Wire, assert_refused
from tests.sandbox.rig import PlatformRig
from tests.support import SLOW, wait_until

NOBODY = "0" * 20


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    rig = PlatformRig(tmp_path)
    wire = Wire(rig)
    yield wire
    wire.control.streams.close(0.0)
    rig.close()


class Listening:
    """A stream that is read by the test."""

    def __init__(self, response: TestResponse) -> None:
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith("text/event-stream")
        self.response = response
        self._pieces = response.iter_encoded()
        self._framer = SSEFramer()
        self._events: list[SSEEvent] = []

    def next(self) -> SSEEvent:
        """Return the next event."""
        while not self._events:
            found = self._framer.feed(next(self._pieces))
            self._events += [one for one in found if isinstance(one, SSEEvent)]
        return self._events.pop(0)

    def until_end(self) -> list[SSEEvent]:
        """Read on to the end of the body."""
        found = self._events
        for piece in self._pieces:
            events = self._framer.feed(piece)
            found += [one for one in events if isinstance(one, SSEEvent)]
        self.close()
        return found

    def close(self) -> None:
        """Leave."""
        self.response.close()


def listen(wire: Wire, path: str, **headers: str) -> Listening:
    given = {**RED, **{name.replace("_", "-"): v for name, v in headers.items()}}
    return Listening(wire.ask("GET", path, headers=given, buffered=False))


def value(event: SSEEvent) -> Any:
    return json.loads(event.data)


def write_log(wire: Wire, *lines: str, first: int = 1) -> None:
    log = wire.rig.backend.last.spec.root / "logs" / "agent.log"
    with log.open("a") as file:
        for number, line in enumerate(lines, first):
            record = {"t": number, "stream": "stdout", "line": line}
            file.write(json.dumps(record) + "\n")


@pytest.mark.parametrize(
    "path",
    [
        "/sandboxes/{}/logs",
        "/v2/sandboxes/{}/logs",
        "/sandboxes/{}/metrics",
        "/platform/v1/sandboxes/{}/events",
        "/platform/v1/sandboxes/{}/logs/stream",
    ],
)
def test_what_is_not_ones_own_is_404(wire: Wire, path: str) -> None:
    """No route tells whether another tenant's sandbox is there."""
    for sandbox_id in (wire.create(), NOBODY, f"{NOBODY}-local"):
        response = wire.ask("GET", path.format(sandbox_id), headers=BLUE)
        assert_refused(response, 404, "was not found")
    assert wire.control.streams.count == 0


def test_streams_have_threads_of_their_own() -> None:
    """They are open for long, and must not keep other requests waiting."""
    for path in ("events", "logs/stream"):
        assert lane_of("GET", f"/platform/v1/sandboxes/x/{path}", {}) is Lane.READ
    assert lane_of("GET", "/platform/v1/sandboxes/x/y/events", {}) is Lane.INVOKE


# Logs


def test_logs_are_shown_in_both_shapes(wire: Wire) -> None:
    """The first version's, and the entries of the second, in pages either way."""
    sandbox_id = wire.create()
    write_log(wire, "l0", "l1", "l2", "l3")

    old = wire.ask("GET", f"/sandboxes/{sandbox_id}/logs?start=2&limit=2").json
    assert old is not None
    assert [line["line"] for line in old["logs"]] == ["l1", "l2"]
    assert old["logEntries"][0] == {
        "timestamp": "1970-01-01T00:00:00.002Z",
        "level": "info",
        "message": "l1",
        "fields": {"stream": "stdout"},
    }
    query = "cursor=3&direction=backward&search=l"
    new = wire.ask("GET", f"/v2/sandboxes/{sandbox_id}/logs?{query}").json
    assert new is not None
    assert [e["message"] for e in new["logs"]] == ["l2", "l1", "l0"]


def test_a_level_is_the_least_that_is_shown(wire: Wire) -> None:
    """A JSON line says its level, any other is `info`."""
    sandbox_id = wire.create()
    write_log(wire, '{"level": "ERROR"}', "plain", '{"level": "debug"}')

    for level, count in (("debug", 3), ("info", 2), ("warn", 1), ("error", 1)):
        path = f"/v2/sandboxes/{sandbox_id}/logs?level={level}"
        found = wire.ask("GET", path).json
        assert found is not None
        assert len(found["logs"]) == count


@pytest.mark.parametrize(
    "query",
    ["limit=1001", "limit=0", "cursor=x", "cursor=-1", "direction=up", "level=loud"],
)
def test_bad_queries_of_logs_are_400(wire: Wire, query: str) -> None:
    """They name the parameter."""
    name = query.partition("=")[0]
    path = f"/v2/sandboxes/{wire.create()}/logs?{query}"
    assert_refused(wire.ask("GET", path), 400, f"query parameter {name}")


def test_a_log_is_followed_to_its_sandboxs_end(wire: Wire) -> None:
    """What was there, what comes, and what came just before the end."""
    sandbox_id = wire.create()
    write_log(wire, "before")
    stream = listen(wire, f"/platform/v1/sandboxes/{sandbox_id}-local/logs/stream")
    assert value(stream.next())["message"] == "before"
    write_log(wire, "during", first=2)
    event = stream.next()
    assert (event.event, value(event)["message"]) == ("log", "during")
    write_log(wire, "last words", first=3)
    wire.ask("DELETE", f"/sandboxes/{sandbox_id}")

    rest = stream.until_end()
    assert [e.event for e in rest] == ["log", "end"]
    assert value(rest[0])["message"] == "last words"
    assert wire.control.streams.count == 0


def test_a_followed_log_goes_on_where_it_was_left(wire: Wire) -> None:
    """By the id of the last event; from an instant, or the end, if there is none."""
    sandbox_id = wire.create()
    write_log(wire, "l0", "l1", "l2", "l3")
    path = f"/platform/v1/sandboxes/{sandbox_id}/logs/stream"
    first = listen(wire, path)
    seen = first.next()
    first.close()
    wire.ask("DELETE", f"/sandboxes/{sandbox_id}")

    def lines(query: str = "", **headers: str) -> list[str]:
        events = listen(wire, path + query, **headers).until_end()
        return [value(e)["message"] for e in events if e.event == "log"]

    assert lines(Last_Event_ID=str(seen.id)) == ["l1", "l2", "l3"]
    assert lines("?tail=0", Last_Event_ID=str(seen.id)) == ["l1", "l2", "l3"]
    assert lines("?start=3") == ["l2", "l3"]
    assert lines("?tail=1") == ["l3"]
    assert lines("?search=l1") == ["l1"]
    assert lines("?level=warn") == []


def test_a_log_may_be_read_to_where_it_ends_now(wire: Wire) -> None:
    """By its events, which have ids, without waiting for the end of the sandbox."""
    path = f"/platform/v1/sandboxes/{wire.create()}/logs/stream"
    write_log(wire, "l0", "l1", "l2")
    for query, lines in (("", ["l0", "l1", "l2"]), ("&tail=1", ["l2"])):
        events = listen(wire, f"{path}?follow=false{query}").until_end()
        assert [e.event for e in events] == ["log"] * len(lines) + ["end"]
        assert [value(e)["message"] for e in events[:-1]] == lines
    assert_refused(wire.ask("GET", f"{path}?follow=1"), 400, "expected true or false")


def test_pages_get_past_many_lines_that_were_written_at_once(wire: Wire) -> None:
    """Each begins at the instant of the last line; those one has are left out."""
    sandbox_id = wire.create()
    log = AgentLog(
        str(wire.rig.backend.last.spec.root / "logs" / "agent.log"),
        wall_clock=lambda: 1.0,
    )
    log.feed("stdout", b"".join(b"l%d\n" % n for n in range(2500)))
    log.close()
    seen: dict[str, None] = {}
    cursor, full = 0, True
    while full:
        path = f"/v2/sandboxes/{sandbox_id}/logs?cursor={cursor}"
        page = (wire.ask("GET", path).json or {})["logs"]
        seen.update(dict.fromkeys(entry["message"] for entry in page))
        cursor = round(parse_time(page[-1]["timestamp"]).timestamp() * 1000)
        full = len(page) == 1000

    assert list(seen) == [f"l{n}" for n in range(2500)]


def test_reads_of_logs_are_bounded(wire: Wire) -> None:
    """They would keep others waiting, those who read none, too."""
    path = f"/v2/sandboxes/{wire.create()}/logs"
    with ExitStack() as reads:
        for _ in range(4):
            reads.enter_context(wire.control.log_reads.taken("red"))
        refused = wire.ask("GET", path)
        assert_refused(refused, 429, "reads of logs")
        assert refused.headers["Retry-After"] == "1"
        assert wire.control.log_reads.count == 4
    assert wire.ask("GET", path).status_code == 200


@pytest.mark.parametrize("last", ["x", "-1", "1" * 30])
def test_the_id_of_no_event_is_400(wire: Wire, last: str) -> None:
    """Rather than a stream that begins anywhere."""
    sandbox_id = wire.create()
    for path in ("events", "logs/stream"):
        response = wire.ask(
            "GET",
            f"/platform/v1/sandboxes/{sandbox_id}/{path}",
            headers={**RED, "Last-Event-ID": last},
        )
        assert_refused(response, 400, "Last-Event-ID")
    assert wire.control.streams.count == 0


# Metrics


def test_metrics_are_listed_in_a_range_of_either_unit(wire: Wire) -> None:
    """Without samples there are none; seconds and milliseconds mean the same."""
    sandbox_id = wire.create()
    path = f"/sandboxes/{sandbox_id}-local/metrics"
    assert wire.ask("GET", path).json == []
    wire.rig.backend.last.load = Usage(cpu_seconds=0.0, rss_bytes=4096, processes=1)
    wire.metrics.sample()

    (found,) = wire.ask("GET", path).json or ()
    metric = SandboxMetric.from_dict(found)
    assert set(found) == {
        "timestamp", "timestampUnix", "cpuCount", "cpuUsedPct", "memTotal", "memUsed",
        "memCache", "diskTotal", "diskUsed", "memTotalMiB", "memUsedMiB",
    }  # fmt: skip
    assert (found["memUsedMiB"], found["memTotalMiB"]) == (1, 1024)
    assert (metric.mem_used, metric.mem_total) == (4096, 1024**3)
    assert metric.disk_used > 0
    at = metric.timestamp_unix
    for query, count in (
        (f"start={at}&end={at + 1}", 1),
        (f"start={at * 1000}&end={(at + 1) * 1000}", 1),
        (f"start={at + 1}", 0),
        (f"end={(at - 1) * 1000}", 0),
    ):
        assert len(wire.ask("GET", f"{path}?{query}").json or ()) == count, query
    for query in ("start=x", "end=-1", f"start={at}&end={at - 1}"):
        assert_refused(wire.ask("GET", f"{path}?{query}"), 400)


def test_the_newest_metrics_of_many_are_asked_for_at_once(wire: Wire) -> None:
    """By id; others' and unknown ones are left out."""
    first, second = wire.create(), wire.create()
    theirs = wire.ask("POST", "/sandboxes", {}, headers=BLUE).json
    assert theirs is not None
    wire.metrics.sample()

    ids = [first, f"{second}-local", theirs["sandboxID"], NOBODY]
    for query in (
        "&".join(f"sandbox_ids={i}" for i in ids),
        "sandbox_ids=" + ",".join(ids),
    ):
        found = wire.ask("GET", f"/sandboxes/metrics?{query}").json
        assert found is not None
        assert set(found["sandboxes"]) == {first, second}
    many = ",".join(f"s{n}" for n in range(101))
    for query in ("", f"sandbox_ids={many}"):
        response = wire.ask("GET", f"/sandboxes/metrics?{query}")
        assert_refused(response, 400, "sandbox_ids")


# Events


def test_events_begin_with_how_the_sandbox_is_and_end_with_it(wire: Wire) -> None:
    """Each change is an event; the last one says why it is gone."""
    sandbox_id = wire.create()
    stream = listen(wire, f"/platform/v1/sandboxes/{sandbox_id}/events")
    agent, state = stream.next(), stream.next()
    assert (agent.event, value(agent)["agent"]["phase"]) == ("agent", "ready")
    assert (state.event, value(state)["state"]) == ("state", "running")
    wire.rig.backend.last.report(
        AgentStatus(phase="exited", exit_code=3, log_tail="Traceback")
    )
    exited = value(stream.next())
    assert exited["agent"]["exitCode"] == 3
    assert exited["agent"]["logTail"] == "Traceback"
    assert exited["sandboxID"] == sandbox_id
    wire.ask("POST", f"/sandboxes/{sandbox_id}/pause")
    assert value(stream.next())["state"] == "paused"
    wire.ask("DELETE", f"/sandboxes/{sandbox_id}")

    rest = stream.until_end()
    assert [e.event for e in rest] == ["state", "end"]
    assert value(rest[0])["state"] == "killed"
    assert value(rest[0])["reason"] == value(rest[1])["reason"] == "request"
    assert wire.control.streams.count == 0


def test_who_comes_back_gets_what_came_meanwhile(wire: Wire) -> None:
    """By the id of the last event; ids of an earlier platform get all there is."""
    sandbox_id = wire.create()
    path = f"/platform/v1/sandboxes/{sandbox_id}/events"
    first = listen(wire, path)
    last = [first.next(), first.next()][-1].id
    first.close()
    wire.ask("POST", f"/sandboxes/{sandbox_id}/pause")
    wire.ask("POST", f"/sandboxes/{sandbox_id}/connect")

    again = listen(wire, path, Last_Event_ID=str(last))
    assert [value(again.next())["state"] for _ in range(2)] == ["paused", "running"]
    again.close()
    older = listen(wire, path, Last_Event_ID="12")
    assert older.next().event == "agent"
    older.close()


def test_an_id_that_is_not_given_yet_is_the_newest(wire: Wire) -> None:
    """What comes next is told, and the end ends the stream."""
    sandbox_id = wire.create()
    path = f"/platform/v1/sandboxes/{sandbox_id}/events"
    listen(wire, path).close()
    ahead = listen(wire, path, Last_Event_ID="9" * 17)
    wire.ask("POST", f"/sandboxes/{sandbox_id}/pause")
    assert value(ahead.next())["state"] == "paused"
    wire.ask("DELETE", f"/sandboxes/{sandbox_id}")

    assert [event.event for event in ahead.until_end()] == ["state", "end"]
    assert wire.control.streams.count == 0


def test_streams_are_bounded(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tenant cannot take them all; who leaves makes room."""
    streams = wire.control.streams
    monkeypatch.setattr(streams._seats, "_most_of_one", 2)
    monkeypatch.setattr(streams._seats, "_most", 3)
    path = f"/platform/v1/sandboxes/{wire.create()}/events"
    mine = [listen(wire, path) for _ in range(2)]
    for one in mine:
        one.next()
    refused = wire.ask("GET", path)
    assert_refused(refused, 429, "close one first")
    assert refused.headers["Retry-After"] == "5"

    theirs = wire.ask("POST", "/sandboxes", {}, headers=BLUE).json
    assert theirs is not None
    path = f"/platform/v1/sandboxes/{theirs['sandboxID']}/events"
    other = wire.ask("GET", path, headers=BLUE, buffered=False)
    full = wire.ask("GET", path, headers=BLUE)
    assert_refused(full, 503)
    assert full.headers["Retry-After"] == "5"
    mine[0].close()
    wire.ask("HEAD", path, headers=BLUE).close()
    for one in (mine[1], other):
        one.close()
    assert streams.count == 0


def test_the_platforms_end_ends_all_streams_with_an_error(wire: Wire) -> None:
    """Which says that the platform, not the sandbox, is at its end."""
    sandbox_id = wire.create()
    base = f"/platform/v1/sandboxes/{sandbox_id}"
    streams = [listen(wire, f"{base}/{path}") for path in ("events", "logs/stream")]
    found: list[list[str]] = []

    def read(stream: Listening) -> None:
        found.append([event.event for event in stream.until_end()])

    readers = [threading.Thread(target=read, args=[stream]) for stream in streams]
    for reader in readers:
        reader.start()
    wait_until(lambda: wire.control.streams.count == 2)
    wire.control.streams.close(5.0 * SLOW)
    assert wire.control.streams.count == 0
    for reader in readers:
        reader.join()

    assert [names[-2:] for names in found] == [["error", "end"]] * 2
    assert_refused(wire.ask("GET", f"{base}/events"), 503, "stopping")
