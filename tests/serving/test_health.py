"""What `/ping` says."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent._util.threads import start_thread
from ppio_agent.serving.health import Health, Said, judge, read_check
from ppio_agent.wire.models import PingResponse, PingStatus
from tests.serving.support import make_app
from tests.support import SLOW, wait_until

H, B, U = PingStatus.HEALTHY, PingStatus.HEALTHY_BUSY, PingStatus.UNHEALTHY


@pytest.mark.parametrize(
    ("value", "idle", "busy"),
    [
        (H, "Healthy", "Healthy"),
        (B, "HealthyBusy", "HealthyBusy"),
        (U, "Unhealthy", "Unhealthy"),
        (PingResponse(status=H, message="m"), "Healthy", "Healthy"),
        ("healthy", "Healthy", "HealthyBusy"),
        ("OK", "Healthy", "HealthyBusy"),
        ("working", "HealthyBusy", "HealthyBusy"),
        ("down", "Unhealthy", "Unhealthy"),
        ({"status": "up", "service": "x"}, "Healthy", "HealthyBusy"),
        ({"status": "Busy"}, "HealthyBusy", "HealthyBusy"),
        ({"status": U}, "Unhealthy", "Unhealthy"),
        ({"service": "x"}, "Healthy", "HealthyBusy"),
        (True, "Healthy", "HealthyBusy"),
        (None, "Healthy", "HealthyBusy"),
        (False, "Unhealthy", "Unhealthy"),
        ("fine, thanks", "Healthy", "HealthyBusy"),
        (7, "Healthy", "HealthyBusy"),
        ({"status": 7}, "Healthy", "HealthyBusy"),
    ],
)
def test_the_agents_word_and_what_runs(value: Any, idle: str, busy: str) -> None:
    """A constant "healthy" does not hide a running turn; an exact status does."""
    said = read_check(value)
    found = [
        judge(draining=False, forced=None, said=said, busy=is_busy)[0].value
        for is_busy in (False, True)
    ]
    assert found == [idle, busy]


@given(
    st.booleans(),
    st.none() | st.sampled_from(PingStatus),
    st.sampled_from([Said(), Said(status=U), Said(failed="x")]),
    st.booleans(),
)
def test_draining_comes_before_forced_before_the_rest(
    draining: bool, forced: PingStatus | None, said: Said, busy: bool
) -> None:
    """In every combination."""
    status, _ = judge(draining=draining, forced=forced, said=said, busy=busy)
    if draining:
        assert status is U
    elif forced is not None:
        assert status is forced


def test_an_unhealthy_agent_is_503(through_flask: bool) -> None:
    """With the members that a dict adds, but not over ours."""
    app = make_app(through_flask=through_flask)

    @app.ping
    def health_check() -> dict[str, Any]:
        return {"status": "down", "service": "My Agent", "timestamp": "mine"}

    answer = app.test_client().get("/ping")
    assert answer.status_code == 503
    assert answer.json["status"] == "Unhealthy"
    assert answer.json["service"] == "My Agent"
    assert answer.json["timestamp"].endswith("Z")


def test_an_async_check_is_awaited() -> None:
    """On the shared loop."""
    app = make_app()

    @app.ping
    async def health_check() -> str:
        await asyncio.sleep(0)
        return "busy"

    assert app.test_client().get("/ping").json["status"] == "HealthyBusy"


def test_a_check_that_raises_is_no_reason_to_be_ill(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said, and logged once."""
    app = make_app()

    @app.ping
    def health_check() -> None:
        raise LookupError("no database")

    client = app.test_client()
    with caplog.at_level(logging.WARNING, "ppio_agent"):
        answers = [client.get("/ping") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].json["message"] == "health check failed: LookupError"
    assert [r.getMessage() for r in caplog.records] == [
        "health check failed: LookupError"
    ]


def test_a_check_that_ends_the_program_ends_the_check() -> None:
    """As any other exception."""
    app = make_app()
    app.ping(sys.exit)
    client = app.test_client()
    for _ in range(2):
        answer = client.get("/ping")
        said = (answer.status_code, answer.json["message"])
        assert said == (200, "health check failed: SystemExit")


@pytest.mark.parametrize("check", [lambda context: True, "ok", None])
def test_what_cannot_be_called_without_arguments_is_no_check(check: Any) -> None:
    """It is told when it is registered, not when somebody asks."""
    app = make_app()
    with pytest.raises(TypeError, match="without arguments"):
        app.ping(check)
    app.ping(lambda verbose=False: not verbose)
    assert app.test_client().get("/ping").status_code == 200


def test_a_check_that_hangs_holds_nobody_up() -> None:
    """After a second the automatic status is told; one check runs at a time."""
    stuck, calls = threading.Event(), []
    health = Health(lambda: 0, lambda: 0.0)

    def check() -> str:
        calls.append(1)
        stuck.wait(10)
        return "down"

    health.set_check(check)
    asked_at = time.monotonic()
    for _ in range(10):
        status, body = health.ping()
        assert (status, body["message"]) == (200, "health check timed out")
    # The second is the check's, not that of each who asks.
    assert time.monotonic() - asked_at < 3 * SLOW
    assert len(calls) == 1
    stuck.set()
    wait_until(lambda: health.ping()[0] == 503)
    health.close()


def test_the_change_of_status_is_stamped_once() -> None:
    """Pings never move it; each change does, also one that no ping has seen."""
    now = [100.0]
    live = [0, 100.0]
    health = Health(lambda: live[0], lambda: live[1], clock=lambda: now[0])

    def stamps(times: int) -> set[tuple[str, int]]:
        found = set()
        for _ in range(times):
            now[0] += 1
            _, body = health.ping()
            found.add((body["status"], body["time_of_last_update"]))
        return found

    assert stamps(20) == {("Healthy", 100)}
    live[:] = 1, now[0]
    assert stamps(20) == {("HealthyBusy", 120)}
    live[:] = 0, now[0]
    assert stamps(20) == {("Healthy", 140)}
    health.force(U)
    assert stamps(1) == {("Unhealthy", 160)}
    health.force(None)
    health.drain()
    assert health.ping()[1]["message"] == "draining"


def test_background_work_is_busy_until_it_is_done() -> None:
    """From any thread, nested, also when it raises."""
    app = make_app()
    client = app.test_client()

    def status() -> str:
        found: str = client.get("/ping").json["status"]
        return found

    entered, leave = threading.Event(), threading.Event()

    def helper() -> None:
        with app.busy("index"), app.busy("inner"):
            entered.set()
            leave.wait(10)

    thread = start_thread("helper", helper)
    entered.wait(5)
    assert status() == "HealthyBusy"
    leave.set()
    thread.join(5)
    assert status() == "Healthy"
    handle = app.busy("elsewhere")
    assert status() == "HealthyBusy"
    handle.done()
    handle.done()
    assert status() == "Healthy"
    with pytest.raises(LookupError), app.busy("broken"):
        raise LookupError
    assert status() == "Healthy"


def test_a_forced_status_wins_over_the_agents_word() -> None:
    """Until it is taken back."""
    app = make_app()
    app.ping(lambda: "down")
    client = app.test_client()
    app.force_ping_status(H)
    assert client.get("/ping").json["status"] == "Healthy"
    app.force_ping_status(None)
    assert client.get("/ping").json["status"] == "Unhealthy"
