"""What callers are told while the store of the actors cannot be reached."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.actors import InProcessActorRuntime, RuntimeOptions
from ppio_agent.actors.http_api import create_app
from ppio_agent.exceptions import ServiceUnavailableError
from ppio_agent.storage.actors.memory import InMemoryStateStorage
from tests.actors.http.conftest import Serve
from tests.actors.http.support import Http, said
from tests.serving.support import JSON, SSE, Gate
from tests.support import wait_until

_PLACE = "10.0.0.7 port 5432"


class Away(InMemoryStateStorage):
    """A store that fails while it is told to, and says where it is."""

    error: Exception | None = None

    def __getattribute__(self, name: str) -> Any:
        error = super().__getattribute__("error")
        if error is not None and name in _ASKED:
            raise error
        return super().__getattribute__(name)


_ASKED = {"accept", "claim", "dead_letters", "expire", "get_request", "inspect"}
_ASKED |= {"read_progress", "delete", "heartbeat"}
_ERRORS = [ServiceUnavailableError(f"no answer from {_PLACE}"), OSError(_PLACE)]


@pytest.fixture
def store() -> Away:
    return Away()


@pytest.fixture
def http(serve: Serve, store: Away) -> Http:
    options = RuntimeOptions(sweep_every=0.05)
    return serve(InProcessActorRuntime(store, options=options))


@pytest.mark.parametrize("error", _ERRORS)
def test_nobody_is_told_where_the_store_is(
    http: Http, store: Away, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is."""
    store.error = error
    answers = [
        http.run("echo", said()),
        http.post("/actors/v1/counter/a/m-1", {"method": "x"}),
        http.get("/actors/v1/counter/a/m-1"),
        http.get("/actors/v1/counter/a"),
        http.get("/dead-letters"),
    ]
    store.error = None
    for answer in answers:
        assert (answer.status, answer.json["code"]) == (503, "service_unavailable")
        assert answer.json["error"] == "the store of the actors cannot be reached"
        assert int(answer.headers["retry-after"]) >= 1
    assert _PLACE in caplog.text


def test_health_tells_of_an_outage(http: Http, store: Away) -> None:
    """While it lasts."""
    store.error = OSError(_PLACE)
    wait_until(lambda: http.get("/health").json["status"] == "degraded")
    health = http.get("/health")
    assert (health.status, health.json["store"]) == (200, "cannot be reached")
    assert "degraded" not in health.json
    store.error = None
    wait_until(lambda: http.get("/health").json["status"] == "healthy")


def test_a_stream_ends_with_an_error_that_can_be_gone_on_from(
    http: Http, store: Away, gate: Gate
) -> None:
    """As it does when the runtime is stopped."""
    connection, events = http.events(
        "POST", "/agents/slow/run", said(), {**JSON, **SSE}
    )
    gate.wait_reached()
    store.error = OSError(_PLACE)
    gate.open()
    told = next(event for event in events if event.get("event") == "error")
    store.error = None
    connection.close()
    assert "cannot be reached" in told["data"]
    assert _PLACE not in told["data"]


def test_a_store_that_is_away_at_the_start_is_not_told_of_either(store: Away) -> None:
    """As the runtime is started with the first request."""
    client = create_app(InProcessActorRuntime(store)).test_client()
    store.error = OSError(_PLACE)
    with pytest.raises(ServiceUnavailableError) as caught:
        client.get("/agents")  # which servers answer as problems
    assert _PLACE not in str(caught.value)


def test_in_debugging_the_place_is_told(serve: Serve, store: Away) -> None:
    """As all else is."""
    http = serve(InProcessActorRuntime(store, options=RuntimeOptions(debug=True)))
    store.error = OSError(_PLACE)
    assert _PLACE in http.get("/dead-letters").json["error"]
    store.error = None
