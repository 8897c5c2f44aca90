"""The rest of the acceptance of the agent app; `test_acceptance.py` has the index."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ppio_agent.exceptions import ConfigurationError, ValidationError
from tests.serving.conftest import Serve
from tests.serving.support import Http, in_background, make_app
from tests.support import wait_until


def test_16_an_open_address_is_refused_and_foreign_pages_are(serve: Serve) -> None:
    """Unless somebody says that everybody may call; loopback is for this machine."""
    with pytest.raises(ConfigurationError, match="allow_unauthenticated=True"):
        make_app().run(host="0.0.0.0", port=0)
    everybody = make_app(allow_unauthenticated=True)
    with everybody.server(host="0.0.0.0", port=0) as server:
        assert Http(server).get("/ping", Host="evil.example").status == 200
    app = make_app()
    app.entrypoint(lambda request: request)
    http = serve(app)
    named = http.get("/ping", Host="evil.example")
    assert (named.status, named.json["code"]) == (403, "host_not_allowed")
    page = http.invoke({}, Origin="https://evil.example")
    assert (page.status, page.json["code"]) == (403, "origin_not_allowed")


def test_17_middleware_refuses_adds_changes_and_filters(
    serve: Serve, through_flask: bool
) -> None:
    """In both forms."""
    app = make_app(through_flask=through_flask)
    seen: list[Any] = []

    @app.middleware
    def check(context: Any, request: Any) -> None:
        if context.headers.get("x-mode") == "refuse":
            raise ValidationError("not like this")

    @app.middleware
    def around(request: Any, call_next: Any) -> Any:
        request.payload = {**request.payload, "n": request.payload["n"] + 1}
        response = call_next()
        response.headers["X-Seen"] = "yes"
        if response.chunks is not None:
            response.chunks = (chunk for chunk in response.chunks if chunk != "b")
        return response

    @app.entrypoint
    def agent(request: Any) -> Any:
        seen.append(request["n"])
        return iter("abc") if request["n"] == 8 else request["n"]

    http = serve(app)
    refused = http.invoke({"n": 1}, X_Mode="refuse")
    assert (refused.status, refused.json["error"]) == (400, "not like this")
    assert seen == []
    answer = http.invoke({"n": 1})
    assert (answer.headers["x-seen"], answer.json["result"], seen) == ("yes", 2, [2])
    stream = http.invoke({"n": 7})
    assert stream.body == b': open\n\ndata: "a"\n\ndata: "c"\n\n: end\n\n'


def test_19_a_status_is_stamped_when_it_changes_and_work_is_busy(serve: Serve) -> None:
    """The agent's own word may be worse than that, and its failure is not."""
    app = make_app()
    word: list[str] = []
    app.ping(lambda: word[0])  # raises as long as there is none
    http = serve(app)

    def ask() -> tuple[int, str, int]:
        answer = http.get("/ping")
        return answer.status, answer.json["status"], answer.json["time_of_last_update"]

    idle = {ask() for _ in range(20)}
    entered, leave = threading.Event(), threading.Event()

    def helper() -> None:
        with app.busy("x"):
            entered.set()
            leave.wait(20)

    ended = in_background(helper)
    assert entered.wait(10)
    busy = {ask() for _ in range(20)}
    leave.set()
    ended()
    assert [found[:2] for found in idle] == [(200, "Healthy")]
    assert [found[:2] for found in busy] == [(200, "HealthyBusy")]
    (before,), (after,) = idle, busy
    assert before[2] <= after[2] <= before[2] + 60
    word.append("down")
    wait_until(lambda: ask()[:2] == (503, "Unhealthy"))
