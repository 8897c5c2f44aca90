"""Sessions given up, taken up again, and told about."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ppio_agent.client import AgentRuntimeClient, SessionRef, SessionState
from ppio_agent.exceptions import (
    AgentUnreachableError,
    ConflictError,
    InvocationError,
    SessionClosedError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.hooks import hookimpl
from tests.support_platform import KEY, FakePlatform

Make = Callable[..., AgentRuntimeClient]


def test_detached_and_attached(make_client: Make, platform: FakePlatform) -> None:
    """Another client goes on where the first one stopped."""
    first, second = make_client(), make_client()
    session = first.create_session("tpl1", 120, session_id="s")
    session.invoke("one")
    ref = session.detach()
    first.close()
    taken = second.attach_session(pickle.loads(pickle.dumps(ref)))

    assert session.state is SessionState.INACTIVE
    assert (taken.sandbox_id, taken.session_id, taken.template_id) == (
        "sb1",
        "s",
        "tpl1",
    )
    assert taken.invoke("two").result["count"] == 2
    assert ref.time_to_live == 120
    assert platform.seen("POST", "/inv")[1].headers["x-ppio-session-id"] == "s"
    taken.close()
    assert platform.alive == []


def test_detach_is_final(client: AgentRuntimeClient, platform: FakePlatform) -> None:
    """The session is of no use; asking the platform does not bring it back."""
    session = client.create_session("tpl1")
    ref = session.detach()

    assert session.detach() == ref
    assert session.get_status().state is SessionState.INACTIVE
    for use in (lambda: session.invoke("Hi"), session.ping, session.refresh):
        with pytest.raises(SessionNotFoundError, match="attach_session"):
            use()
    with pytest.raises(SessionNotFoundError):
        session.pause()
    session.close()
    client.close_all()
    assert platform.alive == ["sb1"]
    with pytest.raises(SessionClosedError):
        session.detach()


def test_a_pickled_session_is_its_reference(client: AgentRuntimeClient) -> None:
    """It names the sandbox; the session itself goes on."""
    session = client.create_session("tpl1")
    ref = pickle.loads(pickle.dumps(session))

    assert isinstance(ref, SessionRef)
    assert ref.sandbox_id == session.sandbox_id
    assert session.invoke("Hi").status == "success"


def test_detach_waits_for_nobody(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """While a stream runs it is refused."""
    platform.on("POST", "/inv", lambda e: (e.start_stream(), e.send(b"data: 1\n\n"))[1])
    session = client.create_session("tpl1")
    with session.invoke_stream("Hi"), pytest.raises(ConflictError, match="detach"):
        session.detach()


def test_who_ends_an_attached_one(make_client: Make, platform: FakePlatform) -> None:
    """Its own close and close_session do; closing the client only if it is owned."""
    creator = make_client()
    refs = [creator.create_session("tpl1").detach() for _ in range(4)]
    user = make_client()
    lent, owned = user.attach_session(refs[0]), user.attach_session(refs[1], own=True)
    closed, named = user.attach_session(refs[2]), user.attach_session("sb4")
    closed.close()

    assert [s.sandbox_id for s in user.list_sessions()] == ["sb1", "sb2", "sb4"]
    assert user.close_session(named.sandbox_id)
    assert user.close_all() == {}
    assert platform.alive == ["sb1"]
    assert (lent.state, owned.state) == (SessionState.ACTIVE, SessionState.CLOSED)
    user.close()
    assert platform.alive == ["sb1"]
    assert lent.state is SessionState.INACTIVE


def test_attaching_by_state(client: AgentRuntimeClient, platform: FakePlatform) -> None:
    """A paused one is paused; one that is gone is an error; so is nonsense."""
    ref = client.create_session("tpl1").detach()
    platform.sandboxes["sb1"].state = "paused"
    session = client.attach_session(ref)

    with pytest.raises(InvocationError, match=r"resume\(\)"):
        session.invoke("Hi")
    with pytest.raises(InvocationError, match=r"resume\(\)"):
        session.ping()
    with pytest.raises(ConflictError, match="paused"):
        session.refresh()
    session.resume()
    assert session.invoke("Hi").status == "success"
    session.close()
    for gone in (ref, "nope"):
        with pytest.raises(SessionNotFoundError):
            client.attach_session(gone)
    for nonsense in (None, "", session):
        with pytest.raises(ValidationError, match="SessionRef"):
            client.attach_session(nonsense)  # type: ignore[arg-type]  # the point
    with pytest.raises(ValidationError, match="session id"):
        client.attach_session("sb1", session_id="two words")


def test_another_conversation_in_the_same_sandbox(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """The agent is told the id that was asked for."""
    client.create_session("tpl1", session_id="s")
    client.attach_session("sb1", session_id="other").invoke("Hi")
    client.attach_session("sb1").invoke("Hi")

    sent = [r.headers["x-ppio-session-id"] for r in platform.seen("POST", "/inv")]
    assert sent == ["other", "s"]


def test_conversations_are_found_by_others(
    make_client: Make, platform: FakePlatform
) -> None:
    """A client without the session looks it up; the template is part of the key."""
    first, second = make_client(), make_client()
    first.invoke_agent("tpl1", "Hi", session_id="s")
    platform.sandboxes["sb1"].state = "paused"
    answer = second.invoke_agent("tpl1", "Hi", session_id="s")
    lists = len(platform.seen("GET", "/v2/sandboxes"))
    second.invoke_agent("tpl1", "Hi", session_id="s")

    metadata = platform.sandboxes["sb1"].body["metadata"]
    assert (metadata["ppio_session"], metadata["ppio_template"]) == ("s", "tpl1")
    assert answer.result["count"] == 2
    assert lists == 4  # before and after the creation, before and after the attach
    assert len(platform.seen("GET", "/v2/sandboxes")) == lists
    second.close()
    assert platform.alive == ["sb1"]


def test_a_dead_conversation_is_replaced_once(
    make_client: Make, platform: FakePlatform
) -> None:
    """Also if another client had begun it."""
    first, second = make_client(), make_client()
    first.invoke_agent("tpl1", "Hi", session_id="s")
    second.invoke_agent("tpl1", "Hi", session_id="s")
    platform.killed.append("sb1")
    platform.sandboxes["sb1"].state = "killed"
    answers = [c.invoke_agent("tpl1", "Hi", session_id="s") for c in (second, first)]

    assert [a.sandbox_id for a in answers] == ["sb2", "sb2"]
    assert [s.sandbox_id for s in first.list_sessions()] == ["sb2"]


def test_a_conversation_in_between_two_states(
    make_client: Make, platform: FakePlatform
) -> None:
    """Nobody ends it for a word that is not known; all wait for a better one."""
    first, second = make_client(), make_client()
    first.invoke_agent("tpl1", "Hi", session_id="s")
    (session,) = first._run.core.book.sessions()
    platform.sandboxes["sb1"].state = "pausing"
    session.get_status()
    for client in (first, second):
        with pytest.raises(ConflictError, match=r"sb1.*try again soon"):
            client.invoke_agent("tpl1", "Hi", session_id="s")
    platform.sandboxes["sb1"].state = "running"
    counts = [
        client.invoke_agent("tpl1", "Hi", session_id="s").result["count"]
        for client in (first, second)
    ]

    assert counts == [2, 3]
    assert platform.killed == []


def test_a_conversation_whose_agent_did_not_answer(
    make_client: Make, platform: FakePlatform
) -> None:
    """It is asked again; only its owner replaces it, and not under its calls."""
    first, second = make_client(), make_client()
    clients = (first, second)
    for client in clients:
        client.invoke_agent("tpl1", "Hi", session_id="s")
    sandbox = platform.sandboxes["sb1"]

    def see(*, answers: bool) -> None:
        sandbox.port_open = answers
        for client in clients:
            for session in client._run.core.book.sessions():
                session.get_status()

    see(answers=False)
    sandbox.port_open = True
    again = [c.invoke_agent("tpl1", "Hi", session_id="s").sandbox_id for c in clients]
    platform.on("POST", "/inv", lambda e: (e.start_stream(), e.send(b"data: 1\n\n"))[1])
    with first.invoke_agent_stream("tpl1", "Hi", session_id="s"):
        see(answers=False)
        for client in clients:
            with pytest.raises(AgentUnreachableError):
                client.invoke_agent("tpl1", "Hi", session_id="s")
        untouched = list(platform.killed)
    platform.fixed.clear()
    replaced = first.invoke_agent("tpl1", "Hi", session_id="s").sandbox_id

    assert again == ["sb1", "sb1"]
    assert untouched == []
    assert replaced == "sb2"
    assert platform.killed == ["sb1"]
    assert second.invoke_agent("tpl1", "Hi", session_id="s").sandbox_id == "sb2"


def test_a_caller_without_time_ends_nothing(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """That the agent did not answer within it says nothing of the agent."""
    client.invoke_agent("tpl1", "Hi", session_id="s")
    (session,) = client._run.core.book.sessions()
    platform.sandboxes["sb1"].port_open = False
    session.get_status()
    platform.sandboxes["sb1"].port_open = True
    release = threading.Event()
    with platform.overriding("GET", "/ping", lambda _: release.wait(5) and None):
        with pytest.raises(TimeoutError):
            client.invoke_agent("tpl1", "Hi", session_id="s", timeout=0.1)
        release.set()

    assert platform.killed == []
    assert client.invoke_agent("tpl1", "Hi", session_id="s").sandbox_id == "sb1"


def test_the_newest_of_a_session_id(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """Later calls go to what create_session made last; the older one lives."""
    for _ in range(2):
        client.create_session("tpl1", session_id="s")

    assert client.invoke_agent("tpl1", "Hi", session_id="s").sandbox_id == "sb2"
    assert platform.alive == ["sb1", "sb2"]
    client.close_session("s")
    assert platform.alive == []


def test_one_that_could_not_be_ended(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """It is of no use and not listed, but ended with the client."""
    session = client.create_session("tpl1")
    with (
        platform.overriding("DELETE", "/sandboxes", lambda e: e.reply(400, {})),
        pytest.raises(ValidationError),
    ):
        session.close()

    assert session.get_status().state is SessionState.CLOSED
    with pytest.raises(SessionClosedError):
        session.invoke("Hi")
    assert client.list_sessions() == ()
    client.close()
    assert platform.alive == []


class Listener:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None, str]] = []

    @hookimpl
    def ppio_client_session_changed(self, record: Any) -> None:
        self.seen.append((record.sandbox_id, record.before, record.after))
        raise RuntimeError("a listener that fails changes nothing")


def test_changes_are_told(platform: FakePlatform) -> None:
    """Each once: the beginning, every new state, the end; never a repetition."""
    listener = Listener()
    with AgentRuntimeClient(KEY, base_url=platform.url, plugins=[listener]) as client:
        session = client.create_session("tpl1")
        session.pause()
        session.resume()
        session.get_status()
        platform.sandboxes["sb1"].port_open = False
        session.get_status()
        platform.sandboxes["sb1"].port_open = True
        session.get_status()
        ref = session.detach()
        client.attach_session(ref, own=True)

    changes = ["active", "paused", "active", "error", "active", "inactive"]
    assert listener.seen == [
        *(("sb1", b, a) for b, a in zip([None, *changes], changes, strict=False)),
        ("sb1", None, "active"),
        ("sb1", "active", "closed"),
    ]
