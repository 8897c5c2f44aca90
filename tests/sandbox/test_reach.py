"""What the edge is told: where to, not yet, or why not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ppio_agent.sandbox import reach as reach_module
from ppio_agent.sandbox.backends.base import AgentStatus
from ppio_agent.sandbox.edge.addressing import (
    ENVD_PORT,
    ControlPlane,
    SandboxPort,
    Target,
)
from ppio_agent.sandbox.edge.upstreams import Admission, EdgeRefusal
from ppio_agent.sandbox.keys import KeyRing
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import State
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.reach import Reach
from ppio_agent.sandbox.supervisor.envd.signatures import sign
from tests.sandbox.rig import PlatformRig
from tests.support import SLOW, wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PlatformRig]:
    made = PlatformRig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def reach(rig: PlatformRig, tmp_path: Path) -> Reach:
    return Reach(rig.sandboxes, KeyRing(rig.config.keys), tmp_path / "none.sock")


def _make(rig: PlatformRig, **options: Any) -> LiveSandbox:
    made = rig.sandboxes.create(CreateOptions(template="echo", **options), tenant="red")
    rig.backend.last.on_dial = lambda _port: socket.socket()
    return made


def _agent(sandbox: LiveSandbox) -> SandboxPort:
    return SandboxPort(sandbox.id, 8080)


def _refusal(ask: Callable[[], object]) -> tuple[int, dict[str, Any]]:
    with pytest.raises(EdgeRefusal) as info:
        ask()
    return info.value.status, dict(info.value.body)


def _admitted(
    reach: Reach, target: Target, asked: str = "GET /", **headers: str
) -> Admission:
    """Let a request with these headers begin and end."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    with reach.admit(target, fields.get, asked) as admission:
        return admission


def _connects(
    reach: Reach, target: SandboxPort, *, wait: bool, wakes: bool = False
) -> bool:
    sock = reach.connect(
        target, wakes=wakes, still_wanted=(lambda: True) if wait else None
    )
    if sock is None:
        return False
    sock.close()
    return True


def _waiting(sandbox: LiveSandbox, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what is set once somebody waits for a change of the sandbox."""
    waiting = threading.Event()
    wait_for = sandbox.wait_for

    def noted(condition: Callable[[], bool], timeout: float) -> bool:
        def asked() -> bool:
            # Under the lock of the waiter: what comes after this finds it waiting.
            holds = condition()
            if not holds:
                waiting.set()
            return holds

        return wait_for(asked, timeout)

    monkeypatch.setattr(sandbox, "wait_for", noted)
    return waiting


def test_a_ready_agent_is_reached_at_once(rig: PlatformRig, reach: Reach) -> None:
    target = _agent(_make(rig))

    assert _admitted(reach, target) == Admission(reuse=True, wakes=False)
    assert _connects(reach, target, wait=False)


def test_an_unknown_or_killed_sandbox_is_not_found(
    rig: PlatformRig, reach: Reach
) -> None:
    sandbox = _make(rig)
    rig.sandboxes.kill(sandbox.id)
    expected = {
        "sandboxId": sandbox.id,
        "message": "The sandbox was not found",
        "code": 502,
    }

    target = _agent(sandbox)
    assert _refusal(lambda: _admitted(reach, target)) == (502, expected)
    assert _refusal(lambda: _connects(reach, target, wait=False)) == (502, expected)


def test_a_paused_sandbox_is_not_found(rig: PlatformRig, reach: Reach) -> None:
    sandbox = _make(rig)
    sandbox.pause()
    target = _agent(sandbox)

    for ask in (
        lambda: _admitted(reach, target),
        lambda: _connects(reach, target, wait=True),
    ):
        assert _refusal(ask)[1]["message"] == "The sandbox was not found"


def test_a_paused_sandbox_that_wants_it_is_resumed(
    rig: PlatformRig, reach: Reach
) -> None:
    sandbox = _make(rig, auto_resume=True)
    sandbox.pause()
    target = _agent(sandbox)

    assert _admitted(reach, target) == Admission(reuse=False, wakes=True)
    assert not _connects(reach, target, wait=False, wakes=True)
    assert _connects(reach, target, wait=True, wakes=True)
    assert rig.backend.last.log == ["pause", "resume"]


def test_only_callers_that_envd_knows_wake_a_sandbox(
    rig: PlatformRig, reach: Reach
) -> None:
    """Nor does one that came while it fell asleep."""
    sandbox = _make(rig, auto_resume=True)
    token = str(sandbox.identity.access_token)
    sandbox.pause()
    envd = SandboxPort(sandbox.id, ENVD_PORT)

    assert _admitted(reach, envd, x_access_token=token).wakes
    for headers in ({}, {"x_access_token": "wrong"}):
        with pytest.raises(EdgeRefusal, match="502"):
            _admitted(reach, envd, **headers)
    assert _refusal(lambda: _connects(reach, envd, wait=True))[0] == 502


def test_who_has_a_signed_url_wakes_a_sandbox(rig: PlatformRig, reach: Reach) -> None:
    """Such a request is authorised as one with the token is; no other is."""
    sandbox = _make(rig, auto_resume=True)
    token = str(sandbox.identity.access_token)
    sandbox.pause()
    envd = SandboxPort(sandbox.id, ENVD_PORT)
    right = sign("a b", "read", "user", token, None)
    query = f"path=a+b&username=user&signature={quote(right, safe='')}"

    assert _admitted(reach, envd, f"GET /files?{query}").wakes
    for asked in (
        f"POST /files?{query}",
        f"HEAD /files?{query}",
        f"GET /metrics?{query}",
        f"GET /files?{query}x",
        f"GET /files?{query}&path=%ff",
        "GET /files?path=a+b",
    ):
        with pytest.raises(EdgeRefusal, match="502"):
            _admitted(reach, envd, asked)
    assert sandbox.life.state is State.PAUSED


def test_a_sandbox_that_cannot_be_woken_is_409(rig: PlatformRig, reach: Reach) -> None:
    sandbox = _make(rig, auto_resume=True)
    sandbox.pause()
    rig.backend.last.alive = False
    target = _agent(sandbox)

    status, body = _refusal(lambda: _connects(reach, target, wait=True, wakes=True))
    assert (status, body) == (
        409,
        {
            "sandboxId": sandbox.id,
            "message": "the sandbox is changing state",
            "code": 409,
        },
    )


def test_a_wake_that_is_not_answered_is_409_for_those_behind_it(
    rig: PlatformRig, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever is first is served once it is."""
    monkeypatch.setattr(reach_module, "TURN_TIMEOUT", 0.3)
    sandbox = _make(rig, auto_resume=True)
    sandbox.pause()
    answered = threading.Event()
    rig.backend.last.during["resume"] = lambda: answered.wait(20)
    target = _agent(sandbox)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_connects, reach, target, wait=True, wakes=True)
        wait_until(lambda: sandbox.changing)
        second = _refusal(lambda: _connects(reach, target, wait=True, wakes=True))
        answered.set()
        assert first.result(5)

    assert second[0] == 409


@pytest.mark.parametrize("name", ["e2b", "ppio"])
def test_a_closed_sandbox_takes_requests_with_its_token_only(
    rig: PlatformRig, reach: Reach, name: str
) -> None:
    """In the words that clients know; a token that is missing is not invalid."""
    sandbox = _make(rig, public_traffic=False)
    token = str(sandbox.identity.traffic_token)
    header = f"{name}_traffic_access_token"
    text = (
        "Sandbox is secured with traffic access token."
        " Token header 'e2b-traffic-access-token' is "
    )

    for target in (_agent(sandbox), SandboxPort(sandbox.id, 3000)):
        assert _admitted(reach, target, **{header: token}).reuse
        for headers, fault in (
            ({}, "missing"),
            ({header: "wrong"}, "invalid"),
            ({header: f"{token}\u00ff"}, "invalid"),
            ({header: ""}, "invalid"),
        ):
            asked = partial(_admitted, reach, target, **headers)
            assert _refusal(asked) == (
                403,
                {"sandboxId": sandbox.id, "message": text + fault, "code": 403},
            )
    assert _admitted(reach, SandboxPort(sandbox.id, ENVD_PORT)).reuse


def test_a_token_is_asked_for_before_a_sandbox_is_woken(
    rig: PlatformRig, reach: Reach
) -> None:
    sandbox = _make(rig, public_traffic=False, auto_resume=True)
    token = str(sandbox.identity.traffic_token)
    sandbox.pause()
    target = _agent(sandbox)

    assert _refusal(lambda: _admitted(reach, target))[0] == 403
    assert _admitted(reach, target, ppio_traffic_access_token=token).wakes


def test_a_sandbox_is_told_of_its_traffic(
    rig: PlatformRig, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once at its begin and once at its end, however it ends; not of refusals."""
    told: list[str] = []
    monkeypatch.setattr(LiveSandbox, "traffic_began", lambda _: told.append("began"))
    monkeypatch.setattr(LiveSandbox, "traffic_ended", lambda _: told.append("ended"))
    sandbox = _make(rig, public_traffic=False)
    token = str(sandbox.identity.traffic_token)
    headers = {"ppio-traffic-access-token": token}
    target = _agent(sandbox)

    with reach.admit(target, headers.get, "GET /"):
        assert told == ["began"]
    admitted = reach.admit(target, headers.get, "GET /")
    with pytest.raises(ValueError, match="x"), admitted:
        raise ValueError("x")
    with pytest.raises(EdgeRefusal):
        _admitted(reach, target)
    assert told == ["began", "ended"] * 2


def test_a_request_is_held_until_the_agent_is_ready(
    rig: PlatformRig, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = _make(rig)
    rig.backend.last.report(AgentStatus(phase="starting"))
    waiting = _waiting(sandbox, monkeypatch)
    target = _agent(sandbox)

    assert not _connects(reach, target, wait=False)
    assert _connects(reach, SandboxPort(sandbox.id, 49983), wait=False)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(_connects, reach, target, wait=True)
        assert waiting.wait(5)
        assert not held.done()
        rig.backend.last.report(AgentStatus(phase="ready"))
        assert held.result(5 * SLOW)


def test_a_held_request_hears_of_an_agent_that_exits(
    rig: PlatformRig, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = _make(rig)
    rig.backend.last.report(AgentStatus(phase="starting"))
    waiting = _waiting(sandbox, monkeypatch)
    rig.backend.last.on_dial = None
    target = _agent(sandbox)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(_refusal, lambda: _connects(reach, target, wait=True))
        assert waiting.wait(5)
        rig.backend.last.report(
            AgentStatus(phase="exited", exit_code=1, log_tail="secret output")
        )
        status, body = held.result(5 * SLOW)

    assert (status, body) == (
        502,
        {
            "sandboxId": sandbox.id,
            "message": "The sandbox is running but port is not open",
            "port": 8080,
            "exitCode": 1,
            "signal": None,
            "code": 502,
        },
    )


def test_a_closed_port_says_nothing_of_the_agent(
    rig: PlatformRig, reach: Reach
) -> None:
    sandbox = _make(rig)
    rig.backend.last.on_dial = None
    target = SandboxPort(sandbox.id, 9999)

    _, body = _refusal(lambda: _connects(reach, target, wait=False))
    assert set(body) == {"sandboxId", "message", "port", "code"}


def test_an_agent_that_takes_no_connection_is_waited_for(
    rig: PlatformRig, reach: Reach
) -> None:
    """First it is asked for at once, with threads that others need; then for longer."""
    sandbox = _make(rig)
    limits: list[float] = []

    def dial(_port: int, timeout: float) -> socket.socket:
        limits.append(timeout)
        raise TimeoutError

    rig.backend.last.dial = dial  # type: ignore[method-assign] # its queue is full
    target = _agent(sandbox)

    assert reach.connect(target, wakes=False, still_wanted=None) is None
    with pytest.raises(EdgeRefusal) as refused:
        reach.connect(target, wakes=False, still_wanted=lambda: True)
    assert refused.value.status == 503
    assert refused.value.headers == {"Retry-After": "1"}
    assert limits == [1.0, 5.0]


def test_a_held_request_ends_when_the_sandbox_is_paused(
    rig: PlatformRig, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = _make(rig)
    rig.backend.last.report(AgentStatus(phase="starting"))
    waiting = _waiting(sandbox, monkeypatch)
    target = _agent(sandbox)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(_refusal, lambda: _connects(reach, target, wait=True))
        assert waiting.wait(5)
        sandbox.pause()
        status, body = held.result(5 * SLOW)

    assert (status, body["message"]) == (502, "The sandbox was not found")


def test_a_held_request_ends_when_nobody_wants_it(
    rig: PlatformRig, reach: Reach
) -> None:
    sandbox = _make(rig)
    rig.backend.last.report(AgentStatus(phase="starting"))
    asked: list[int] = []

    def still_wanted() -> bool:
        asked.append(1)
        return len(asked) < 3

    target = _agent(sandbox)
    assert reach.connect(target, wakes=False, still_wanted=still_wanted) is None


def test_a_request_waits_for_a_change_of_state_and_then_is_told(
    rig: PlatformRig, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach_module, "TURN_TIMEOUT", 0.3)
    sandbox = _make(rig)
    go_on = threading.Event()
    rig.backend.last.during["pause"] = lambda: go_on.wait(5)
    target = _agent(sandbox)
    with ThreadPoolExecutor(1) as pool:
        pausing = pool.submit(sandbox.pause)
        wait_until(lambda: sandbox.changing)
        assert not _admitted(reach, target).reuse
        status, body = _refusal(lambda: _connects(reach, target, wait=True))
        go_on.set()
        pausing.result(5)

    assert status == 409
    assert body["message"] == "the sandbox is changing state"


def test_credentials_of_the_platform_go_no_further(reach: Reach) -> None:
    assert reach.strip("x-api-key", "sk_red")
    assert reach.strip("authorization", "Bearer sk_blue")
    assert reach.strip("e2b-traffic-access-token", "any")
    assert not reach.strip("authorization", "Bearer the-agents-own")
    assert not reach.strip("x-ppio-key", "sk_red")


def test_an_access_token_names_its_sandbox(rig: PlatformRig, reach: Reach) -> None:
    sandbox = _make(rig)
    token = sandbox.identity.access_token

    assert token is not None
    assert reach.sandbox_of(token) == sandbox.id
    assert reach.sandbox_of("other") is None
    assert _make(rig, secure=False).identity.access_token is None


@pytest.mark.parametrize("framing", ["content_length", "transfer_encoding"])
def test_a_body_without_a_key_is_refused_before_it_comes(
    rig: PlatformRig, reach: Reach, framing: str
) -> None:
    """What has none is for the control plane to judge: health needs no key."""
    key = next(iter(rig.config.keys))
    body = {framing: "100" if framing == "content_length" else "chunked"}
    for headers in ({}, {"x_api_key": "unknown-key"}, {"authorization": "Basic x"}):
        status, found = _refusal(
            lambda headers=headers: _admitted(reach, ControlPlane(), **body, **headers)
        )
        assert (status, found["code"]) == (401, 401)
        assert found["message"] == "invalid or missing API key"

    assert _admitted(reach, ControlPlane(), **body, x_api_key=key).reuse
    assert _admitted(reach, ControlPlane(), **body, authorization=f"Bearer {key}").reuse
    assert _admitted(reach, ControlPlane(), content_length="0").reuse


def test_a_control_plane_that_is_gone_is_503(reach: Reach) -> None:
    target = ControlPlane()
    assert _admitted(reach, target).reuse

    status, body = _refusal(
        lambda: reach.connect(target, wakes=False, still_wanted=None)
    )
    assert (status, body["code"]) == (503, 503)
