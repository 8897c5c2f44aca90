"""Agents as actors: conversations, chunks, failures, and turns that are interrupted."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.actors import (
    ActorId,
    AgentActor,
    AgentThread,
    EchoAgent,
    InProcessActorRuntime,
    MockAIAgent,
    RequestStatus,
    RuntimeOptions,
)
from ppio_agent.actors.agent_actor import agent_handler
from ppio_agent.agent import Chunk, RequestContext, as_handler
from ppio_agent.exceptions import ActorFailedError, RateLimitError
from ppio_agent.hooks import Hooks, hookimpl
from tests.support import SLOW

HERE = ActorId("agent", "c-1")


@pytest.fixture
def runtime(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[InProcessActorRuntime]:
    """A runtime; in memory, or on a file."""
    sqlite = f"sqlite:///{tmp_path}/actors.db"
    url = sqlite if getattr(request, "param", "") == "sqlite" else "memory://"
    with InProcessActorRuntime(url) as found:
        yield found
        assert found.stop(drain=5.0) == 0


_STORES = pytest.mark.parametrize("runtime", ["memory", "sqlite"], indirect=True)


def _params(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text, **more} for text in texts]}


def _say(runtime: InProcessActorRuntime, text: str, to: ActorId = HERE) -> Any:
    """Ask an agent; return the text of its answer."""
    response = runtime.client().ask(to, "run", _params(text))
    assert response.status is RequestStatus.COMPLETED, response.data
    return response.data["messages"][0]["content"]


def _said(runtime: InProcessActorRuntime, who: ActorId = HERE) -> list[tuple[str, str]]:
    """Return what the thread of a conversation holds."""
    thread = AgentThread.from_state(runtime.store.read_state(who))
    return [(message["role"], message["content"]) for message in thread.messages]


def _contents(request: dict[str, Any]) -> str:
    return "|".join(message["content"] for message in request["messages"])


# The request and the answer.


def test_a_run_is_answered_with_messages(runtime: InProcessActorRuntime) -> None:
    """Each with a role, a text and an id."""
    runtime.register_agent("agent", EchoAgent())
    response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.status is RequestStatus.COMPLETED
    (answer,) = response.data.pop("messages")
    assert response.data == {"status": "completed"}
    assert len(answer.pop("message_id")) == 32
    assert answer == {"role": "assistant", "content": "Echo: hi"}


def test_an_agent_is_told_the_conversation(runtime: InProcessActorRuntime) -> None:
    """And knows its request by a context like everywhere else."""
    seen: list[tuple[dict[str, Any], RequestContext]] = []

    def agent(request: dict[str, Any], context: RequestContext) -> str:
        seen.append((request, context))
        return "yes"

    runtime.register_agent("agent", agent)
    client = runtime.client()
    client.ask(HERE, "run", _params("one", message_id="m1"))
    client.ask(HERE, "run", _params("two", name="ann"), "r-2", deadline=20.0)
    request, context = seen[1]
    assert (request["prompt"], request["conversation_id"]) == ("two", "c-1")
    first, answer, second = request["messages"]
    assert (first["content"], first["message_id"]) == ("one", "m1")
    assert (answer["role"], answer["content"]) == ("assistant", "yes")
    assert (second["content"], second["name"]) == ("two", "ann")
    assert all(m["timestamp"].endswith("Z") for m in request["messages"])
    assert (context.invocation_id, context.session_id) == ("r-2", "c-1")
    assert context.attempt == 1
    assert 15.0 < (context.time_left() or 0.0) <= 20.0
    assert seen[0][1].deadline is None


async def _asynchronous(request: dict[str, Any]) -> str:
    return request["prompt"].upper()  # type: ignore[no-any-return]


async def _asynchronous_stream(request: dict[str, Any]) -> AsyncIterator[str]:
    yield request["prompt"]
    yield "!"


class _Object:
    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "text": request["prompt"].upper()}


@pytest.mark.parametrize(
    ("agent", "answer"),
    [
        (_asynchronous, "HI"),
        (_asynchronous_stream, "hi!"),
        (_Object(), "HI"),
        (as_handler(lambda: ["HI"]), "HI"),
        (lambda request: {"messages": [{"content": request["prompt"]}]}, "hi"),
    ],
)
def test_agents_of_every_shape_answer(
    runtime: InProcessActorRuntime, agent: Any, answer: str
) -> None:
    """As everywhere else."""
    runtime.register_agent("agent", agent)
    assert _say(runtime, "hi") == answer


def test_an_answer_may_be_none(runtime: InProcessActorRuntime) -> None:
    """There is nothing to say, and that is no failure."""
    runtime.register_agent("agent", lambda: None)
    response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.data == {"messages": [], "status": "completed"}
    assert _said(runtime) == [("user", "hi")]


def test_an_agent_may_change_what_it_gets(runtime: InProcessActorRuntime) -> None:
    """The conversation is not changed by that."""

    def agent(request: dict[str, Any]) -> str:
        for message in request["messages"]:
            message.clear()
        return "done"

    runtime.register_agent("agent", agent)
    _say(runtime, "one")
    _say(runtime, "two")
    texts = ["one", "done", "two", "done"]
    assert [content for _, content in _said(runtime)] == texts


def test_an_agent_may_give_the_whole_conversation_back(
    runtime: InProcessActorRuntime,
) -> None:
    """Its answer is what is new in it."""

    def agent(request: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [*request["messages"], {"content": "new"}]}

    runtime.register_agent("agent", agent)
    assert [_say(runtime, text) for text in ("one", "two")] == ["new", "new"]
    assert [content for _, content in _said(runtime)] == ["one", "new", "two", "new"]


# Conversations.


def test_a_long_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The agent gets all of it, in order."""
    url = f"sqlite:///{tmp_path}/actors.db"
    expected: list[str] = []
    for turns in (range(10), range(10, 20)):
        with InProcessActorRuntime(url) as runtime:
            runtime.register_agent("agent", lambda r: f"{len(r['messages'])} seen")
            for turn in turns:
                answer = _say(runtime, f"question {turn}")
                assert answer == f"{2 * turn + 1} seen"
                expected += [f"question {turn}", answer]
            thread = AgentThread.from_state(runtime.store.read_state(HERE))
    assert [message["content"] for message in thread.messages] == expected
    assert thread.thread_id == "c-1"


def test_conversations_share_nothing(runtime: InProcessActorRuntime) -> None:
    """Nor do two agents with the same conversation."""
    runtime.register_agent("agent", _contents)
    runtime.register_agent("other", _contents)
    assert _say(runtime, "one") == "one"
    assert _say(runtime, "two", ActorId("agent", "c-2")) == "two"
    assert _say(runtime, "two", ActorId("other", "c-1")) == "two"


@_STORES
def test_what_is_known_is_not_added_again(runtime: InProcessActorRuntime) -> None:
    """A client may send the whole conversation each time."""
    runtime.register_agent("agent", _contents, history=1)
    client = runtime.client()
    old = [{"role": "user", "content": f"q{n}", "message_id": f"m{n}"} for n in "012"]
    client.ask(HERE, "run", {"messages": old})
    new = {"role": "user", "content": "q3", "message_id": "m3"}
    client.ask(HERE, "run", {"messages": [*old, new, new]})
    users = [content for role, content in _said(runtime) if role == "user"]
    assert users == ["q0", "q1", "q2", "q3"]


@_STORES
def test_history_bounds_what_the_agent_gets(runtime: InProcessActorRuntime) -> None:
    """The latest earlier messages and the new one; all are kept."""
    runtime.register_agent("agent", lambda r: f"<{_contents(r)}>", history=2)
    assert _say(runtime, "a") == "<a>"
    assert _say(runtime, "b") == "<a|<a>|b>"
    assert _say(runtime, "c") == "<b|<a|<a>|b>|c>"
    assert len(_said(runtime)) == 6
    runtime.register_agent("forgetful", _contents, history=0)
    other = ActorId("forgetful", "c-1")
    assert [_say(runtime, text, other) for text in "ab"] == ["a", "b"]


def test_history_is_a_number_of_messages() -> None:
    """Or None for all."""
    with pytest.raises(ValueError, match="history"):
        AgentActor(EchoAgent(), history=-1)


# Chunks.


def _texts(runtime: InProcessActorRuntime, name: str = "agent") -> tuple[Any, Any]:
    """Return the progress of one run, and its answer."""
    handle = runtime.client().send_request(ActorId(name, "c"), "run", _params("x y"))
    *steps, last = handle.watch_updates()
    assert [step.data["sequence"] for step in steps] == [*range(1, len(steps) + 1)]
    assert last.status is RequestStatus.COMPLETED, last.data
    answer = [message["content"] for message in last.data["messages"]]
    return [step.data["progress"] for step in steps], answer


@_STORES
def test_chunks_are_progress_and_texts_the_answer(
    runtime: InProcessActorRuntime,
) -> None:
    """What is no text is told, and not part of it."""

    def agent(request: dict[str, Any]) -> Iterator[Any]:
        yield Chunk({"tool": "search"}, event="tool")
        yield from request["prompt"].split()

    runtime.register_agent("agent", agent)
    assert _texts(runtime) == ([{"tool": "search"}, "x", "y"], ["xy"])


def test_what_a_generator_returns_is_its_answer(
    runtime: InProcessActorRuntime,
) -> None:
    """In the place of the texts."""

    def agent() -> Iterator[str]:
        yield "thinking"
        return ["a", {"content": "b"}]

    runtime.register_agent("agent", agent)
    assert _texts(runtime) == (["thinking"], ["a", "b"])


def test_an_endless_answer_fails(runtime: InProcessActorRuntime) -> None:
    """It is not collected without end, and nothing of it is kept."""

    def agent() -> Iterator[str]:
        while True:
            yield "x" * 200_000

    runtime.register_agent("agent", agent)
    response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.data["code"] == "state_too_large"
    assert _said(runtime) == []


# Failures.


def test_an_interrupt_is_an_answer_but_on_the_main_thread(
    runtime: InProcessActorRuntime,
) -> None:
    """There it is the person at the keyboard, and goes on to who asked."""

    def agent(_request: dict[str, Any]) -> str:
        raise KeyboardInterrupt

    runtime.register_agent("agent", agent)
    client = runtime.client()
    for _ in range(8):  # more crashes than an actor may have
        hold = client.send_request(HERE, "run", _params("hi"))
        response = hold.get_response(10.0 * SLOW)
        assert response.status is RequestStatus.FAILED
        assert response.data["code"] == "invocation_failed"
    with pytest.raises(KeyboardInterrupt):
        client.ask(HERE, "run", _params("hi"))


def test_a_failure_is_an_answer(
    runtime: InProcessActorRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    """However many come, the conversation goes on as if nothing had been."""
    moods: list[BaseException | None] = [ValueError("secret"), SystemExit(3), None]

    def agent(request: dict[str, Any]) -> str:
        mood = moods.pop(0) if moods else ValueError()
        if mood is not None:
            raise mood
        return _contents(request)

    runtime.register_agent("agent", agent)
    client = runtime.client()
    for _ in range(2):
        response = client.ask(HERE, "run", _params("bad"))
        assert response.status is RequestStatus.FAILED
        assert response.data == {
            "error": "agent failed",
            "code": "invocation_failed",
            "retryable": False,
        }
    assert _say(runtime, "good") == "good"
    assert "ValueError: secret" in caplog.text  # in the log, for whoever runs it
    caplog.set_level(logging.CRITICAL, "ppio_agent.actors.agent_actor")
    for _ in range(100):
        assert client.ask(HERE, "run", _params("bad")).status is RequestStatus.FAILED
    assert [content for _, content in _said(runtime)] == ["good", "good"]


def test_errors_of_ours_say_what_they_are(runtime: InProcessActorRuntime) -> None:
    """With their code, and whether to try again."""

    def agent() -> str:
        raise RateLimitError("the model has no time")

    runtime.register_agent("agent", agent)
    response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.data == {
        "error": "the model has no time",
        "code": "rate_limited",
        "retryable": True,
    }
    with pytest.raises(ActorFailedError, match="no time"):
        runtime.client().send_request(HERE, "run", _params("hi")).result(20)


def test_debug_tells_callers_more() -> None:
    """Type and text of any exception."""
    with InProcessActorRuntime(options=RuntimeOptions(debug=True)) as runtime:
        runtime.register_agent("agent", lambda: {}["x"])
        response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.data["error"] == "KeyError: 'x'"


def _bare(value: Any) -> Callable[[], Any]:
    return lambda: value


@pytest.mark.parametrize("value", [42, {"answer": 42}, [1], object()])
def test_what_is_no_answer_is_a_failure(
    runtime: InProcessActorRuntime, value: Any
) -> None:
    """And leaves nothing behind."""
    runtime.register_agent("agent", _bare(value))
    response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.status is RequestStatus.FAILED
    assert response.data["code"] in {"invalid_result", "not_serializable"}
    assert _said(runtime) == []


@_STORES
def test_an_answer_that_cannot_be_kept_leaves_nothing(
    runtime: InProcessActorRuntime,
) -> None:
    """Not even the part of it that fits."""
    answers = [["short", "x" * (1024 * 1024)], "ok"]
    runtime.register_agent("agent", lambda: answers.pop(0))
    response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.data["code"] == "state_too_large"
    assert runtime.store.read_state(HERE) == {}
    assert _say(runtime, "again") == "ok"


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("walk", _params("hi"), "Unsupported method: walk"),
        ("run", None, "$.messages: expected a list of messages"),
        ("run", {"messages": []}, "$.messages: expected 1 to 1000 messages"),
        (
            "run",
            _params("hi", role="cat"),
            "$.messages[0].role: expected one of user, ",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    runtime: InProcessActorRuntime, method: str, params: Any, error: str
) -> None:
    """With what is wrong, and where."""
    runtime.register_agent("agent", EchoAgent())
    response = runtime.client().ask(HERE, method, params)
    assert response.status is RequestStatus.FAILED
    assert response.data["code"] == "invalid_request"
    assert response.data["error"].startswith(error)


# Turns that are interrupted.


class _Slow:
    """Says two words, and waits; then a third, unless it is told to stop."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def run(self, request: dict[str, Any], context: RequestContext) -> Iterator[str]:
        if request["prompt"] != "slow":
            yield _contents(request)
            return
        try:
            yield "one "
            yield "two "
            self.begun.set()
            context.sleep(20.0 * SLOW)
            yield "three"
        finally:
            self.ended.set()


@pytest.fixture
def slow(runtime: InProcessActorRuntime) -> _Slow:
    """An agent whose turn takes long, if it is asked slowly."""
    agent = _Slow()
    runtime.register_agent("agent", agent)
    return agent


def _ask_slowly(runtime: InProcessActorRuntime, slow: _Slow) -> Future[Any]:
    """Begin a turn on a thread that asks; return what becomes of the response."""
    future: Future[Any] = Future()
    client = runtime.client()

    def ask() -> None:
        future.set_result(client.ask(HERE, "run", _params("slow")))

    threading.Thread(target=ask).start()
    assert slow.begun.wait(20)
    return future


def _send_slowly(runtime: InProcessActorRuntime, slow: _Slow) -> Future[Any]:
    """Begin a turn on a thread of the runtime."""
    handle = runtime.client().send_request(HERE, "run", _params("slow"))
    assert slow.begun.wait(20)
    future: Future[Any] = Future()
    handle.future().add_done_callback(
        lambda _: future.set_result(handle.try_get_response())
    )
    return future


_WAYS = pytest.mark.parametrize("begin", [_ask_slowly, _send_slowly])


@_STORES
@_WAYS
def test_an_interrupted_turn_keeps_its_part(
    runtime: InProcessActorRuntime, slow: _Slow, begin: Any
) -> None:
    """The question and what was said, which is marked; on whatever thread it ran."""
    first = begin(runtime, slow)
    client = runtime.client()
    second = client.send_request(HERE, "run", _params("next"), on_busy="interrupt")
    answer = second.result(20)["messages"][0]["content"]
    assert answer == "slow|one two |next"
    response = first.result(20)
    assert response.status is RequestStatus.CANCELLED
    assert response.data["code"] == "superseded"
    thread = AgentThread.from_state(runtime.store.read_state(HERE))
    marks = [message.get("interrupted", False) for message in thread.messages]
    assert marks == [False, True, False, False]


@_STORES
@_WAYS
def test_a_turn_that_is_rolled_back_leaves_no_trace(
    runtime: InProcessActorRuntime, slow: _Slow, begin: Any
) -> None:
    """Neither question nor answer."""
    first = begin(runtime, slow)
    client = runtime.client()
    second = client.send_request(HERE, "run", _params("next"), on_busy="rollback")
    assert second.result(20)["messages"][0]["content"] == "next"
    assert first.result(20).data["code"] == "superseded"
    assert _said(runtime) == [("user", "next"), ("assistant", "next")]


@_STORES
def test_a_cancel_ends_the_agent(runtime: InProcessActorRuntime, slow: _Slow) -> None:
    """And the conversation is as it was before the question."""
    handle = runtime.client().send_request(HERE, "run", _params("slow"))
    assert slow.begun.wait(20)
    assert handle.cancel(wait=20.0) == "cancelled"
    assert slow.ended.is_set()
    assert handle.get_response(20).status is RequestStatus.CANCELLED
    assert _said(runtime) == []


@_STORES
def test_a_deadline_ends_the_agent(runtime: InProcessActorRuntime, slow: _Slow) -> None:
    """The caller knows at once, and nothing of the turn is kept."""
    response = runtime.client().ask(HERE, "run", _params("slow"), deadline=0.2)
    assert response.status is RequestStatus.EXPIRED
    assert slow.ended.wait(20)
    assert _say(runtime, "next") == "next"


def test_an_agent_that_gives_up_by_itself_has_failed(
    runtime: InProcessActorRuntime,
) -> None:
    """Nobody asked it to stop."""

    def agent(request: dict[str, Any], context: RequestContext) -> str:
        del request
        from ppio_agent.exceptions import InvocationCancelledError

        raise InvocationCancelledError("another service was cancelled")

    runtime.register_agent("agent", agent)
    response = runtime.client().ask(HERE, "run", _params("hi"))
    assert response.status is RequestStatus.FAILED
    assert response.data["code"] == "cancelled"


# What may be an agent.


class _Frame:
    def invoke(self, text: str) -> str:
        return text.upper()


class _FramePlugin:
    @hookimpl
    def ppio_adapt_agent(self, obj: Any) -> Any:
        return (lambda r: obj.invoke(r["prompt"])) if isinstance(obj, _Frame) else None


def test_plugins_adapt_what_is_no_agent() -> None:
    """Other objects are left as they are."""
    hooks = Hooks.load([_FramePlugin()], entry_points=False)
    context = RequestContext(invocation_id="i", request_id="r")
    assert agent_handler(_Frame(), hooks).call({"prompt": "hi"}, context) == "HI"
    echo = agent_handler(EchoAgent(), hooks)
    assert echo.name == "EchoAgent"
    assert agent_handler(echo, hooks) is echo


def test_what_cannot_be_called_is_refused_when_it_is_registered(
    runtime: InProcessActorRuntime,
) -> None:
    """Not when the first question comes."""
    with pytest.raises(TypeError, match="an agent is a function"):
        runtime.register_agent("agent", _Frame())


def test_the_mock_takes_its_time_and_says_its_lines_in_turn(
    runtime: InProcessActorRuntime,
) -> None:
    """Each conversation from the first on."""
    runtime.register_agent("agent", MockAIAgent(delay=0.0))
    lines = [_say(runtime, "hi") for _ in range(6)]
    assert len(set(lines)) == 5
    assert lines[5] == lines[0] == _say(runtime, "hi", ActorId("agent", "c-2"))
    with pytest.raises(ValueError, match="delay"):
        MockAIAgent(delay=-1.0)


def test_of_two_messages_with_one_id_the_first_counts(
    runtime: InProcessActorRuntime,
) -> None:
    """In one request as in two."""
    runtime.register_agent("agent", lambda request: request["prompt"])
    params = _params("one", "two", message_id="m1")
    answer = runtime.client().ask(HERE, "run", params).data
    assert [one["content"] for one in answer["messages"]] == ["one"]
