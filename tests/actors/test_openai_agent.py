"""Agents that ask a model, against a server that speaks the provider's wire."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from ppio_agent.actors import ActorId, InProcessActorRuntime, RequestStatus
from ppio_agent.actors.http_api import create_app, register_samples
from ppio_agent.actors.openai_agent import OpenAIAgent, agents_from_env
from ppio_agent.agent import RequestContext
from ppio_agent.exceptions import (
    ConfigurationError,
    InvocationCancelledError,
    InvocationError,
    InvocationTimeoutError,
)
from ppio_agent.hooks import Hooks, hookimpl
from tests.support import SLOW
from tests.support_net import free_port

from .support_model import ModelServer, Reply, model_server
from .support_traced import Traced

KEY = "sk-secret-key-of-the-tests"
ASKED = {"messages": [{"role": "user", "content": "hi", "message_id": "m1"}]}


@pytest.fixture
def model() -> Iterator[ModelServer]:
    """A provider."""
    with model_server() as server:
        yield server


@pytest.fixture
def agent(model: ModelServer) -> Iterator[OpenAIAgent]:
    """An agent that asks it."""
    environ = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_MODEL": "small",
        "OPENAI_BASE_URL": f"{model.url}/v1",
    }
    found: OpenAIAgent = agents_from_env(environ)["openai"]
    yield found
    found.close()


def _context(seconds: float | None = 20.0 * SLOW) -> RequestContext:
    deadline = None if seconds is None else time.monotonic() + seconds
    return RequestContext(invocation_id="i", request_id="r", deadline=deadline)


def test_the_text_comes_piece_by_piece(model: ModelServer, agent: OpenAIAgent) -> None:
    """The model gets the conversation, without what is ours alone in it."""
    model.answer = lambda reply: reply.say("Hel", "lo")
    past = {"role": "assistant", "content": "yes", "message_id": "m0", "name": "bob"}
    request = {"messages": [{**past, "timestamp": "t"}, *ASKED["messages"]]}
    assert list(agent.run(request, _context(None))) == ["Hel", "lo"]
    asked = model.asked[0]
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "small",
        "stream": True,
        "messages": [
            {"role": "assistant", "content": "yes", "name": "bob"},
            {"role": "user", "content": "hi"},
        ],
    }


def test_instructions_stand_in_front(model: ModelServer) -> None:
    """And a client of the user's own is used as it is, and not closed."""
    import openai

    with openai.OpenAI(api_key=KEY, base_url=f"{model.url}/v1") as client:
        agent = OpenAIAgent(client, "small", instructions="Be kind.")
        assert list(agent.run(ASKED, _context())) == ["Hi"]
        agent.close()
        assert list(agent.run(ASKED, _context())) == ["Hi"]
    first = model.asked[0].body["messages"][0]
    assert first == {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize("where", ["AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_BASE_URL"])
def test_azure_is_asked_by_its_deployment(model: ModelServer, where: str) -> None:
    """By either address, with the version that the environment names."""
    environ = {
        "AZURE_OPENAI_API_KEY": KEY,
        "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "chat",
        "AZURE_OPENAI_API_VERSION": "2025-01-01",
        where: model.url if where.endswith("ENDPOINT") else f"{model.url}/openai",
    }
    agent = agents_from_env(environ)["azure"]
    assert list(agent.run(ASKED, _context())) == ["Hi"]
    agent.close()
    path = "/openai/deployments/chat/chat/completions?api-version=2025-01-01"
    assert model.asked[0].path == path
    assert model.asked[0].headers["api-key"] == KEY


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (429, "model_rate_limited", True),
        (500, "model_failed", True),
        (401, "model_refused", False),
        (404, "model_refused", False),
    ],
)
def test_a_refusal_is_told_by_its_kind(
    model: ModelServer, agent: OpenAIAgent, status: int, code: str, *, retryable: bool
) -> None:
    """Not by its text, which may quote the key."""
    model.answer = lambda reply: reply.refuse(status, f"bad key {KEY}")
    with pytest.raises(InvocationError, match=f"answered {status}") as caught:
        list(agent.run(ASKED, _context()))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_no_key_is_in_spans_and_metrics(model: ModelServer, agent: OpenAIAgent) -> None:
    """Neither of a run that is answered nor of one whose refusal quotes the key."""
    traced = Traced()
    with traced.running(lambda *_: None) as runtime:
        runtime.register_agent("openai", agent)
        ask = partial(runtime.client().ask, ActorId("openai", "1"), "run")
        assert ask(ASKED).status is RequestStatus.COMPLETED
        model.answer = lambda reply: reply.refuse(401, f"bad key {KEY}")
        assert ask(ASKED).status is RequestStatus.FAILED
        told = traced.told()
    assert KEY not in told
    assert traced.counted("actor.requests", "request.status") == {
        ("completed",): 1,
        ("failed",): 1,
    }


def test_nothing_is_tried_twice(model: ModelServer) -> None:
    """Also without a deadline, and if the client would: who asked may ask again."""
    import openai

    model.answer = lambda reply: reply.refuse(500, "down")
    client = openai.OpenAI(api_key=KEY, base_url=f"{model.url}/v1", max_retries=1)
    with client, pytest.raises(InvocationError) as caught:
        list(OpenAIAgent(client, "small").run(ASKED, _context(None)))
    assert caught.value.retryable
    assert len(model.asked) == 1


def _silent(reply: Reply) -> None:
    reply.say()


def _filtered(reply: Reply) -> None:
    reply.say(finish="content_filter")


def _cut(reply: Reply) -> None:
    reply.say("Hel", finish=None)


def _broken(reply: Reply) -> None:
    reply.open()
    reply.piece({"content": "Hel"})
    reply.connection.shutdown(socket.SHUT_RDWR)
    reply.close_connection = True


def _failing(reply: Reply) -> None:
    reply.open()
    reply.event(f'{{"error": {{"message": "{KEY}"}}}}')


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (_silent, "model_refused"),
        (_filtered, "model_refused"),
        (_cut, "model_failed"),
        (_broken, "model_unreachable"),
        (_failing, "model_failed"),
    ],
)
def test_half_an_answer_is_none(
    model: ModelServer, agent: OpenAIAgent, answer: Any, code: str
) -> None:
    """Whatever breaks it off, and one without a word neither."""
    model.answer = answer
    with pytest.raises(InvocationError) as caught:
        list(agent.run(ASKED, _context()))
    assert caught.value.code == code
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_nobody_there_is_an_error_that_may_pass() -> None:
    """Nothing listens on the port."""
    url = f"http://127.0.0.1:{free_port()}"
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "s", "OPENAI_BASE_URL": url}
    agent = agents_from_env(environ)["openai"]
    with pytest.raises(InvocationError) as caught:
        list(agent.run(ASKED, _context()))
    agent.close()
    assert (caught.value.code, caught.value.retryable) == ("model_unreachable", True)


def test_a_cancel_hangs_up(model: ModelServer, agent: OpenAIAgent) -> None:
    """Also while nothing comes: the reader wakes up, and the provider may stop."""

    def answer(reply: Reply) -> None:
        reply.open()
        reply.piece({"content": "Hel"})
        reply.wait_for_the_end()

    model.answer = answer
    context = _context()
    texts = agent.run(ASKED, context)
    assert next(texts) == "Hel"
    cancel = threading.Timer(0.05, context.cancelled.fire, ["client"])
    cancel.start()
    with pytest.raises(InvocationCancelledError):
        next(texts)
    cancel.join()
    assert model.hung_up.wait(20)


def test_the_deadline_ends_the_wait(model: ModelServer, agent: OpenAIAgent) -> None:
    """For the first word, too; and nothing is tried again past it."""
    model.answer = Reply.wait_for_the_end
    with pytest.raises(InvocationTimeoutError):
        list(agent.run(ASKED, _context(0.2 * SLOW)))
    assert len(model.asked) == 1
    assert model.hung_up.wait(20)


def test_a_forked_child_asks_by_connections_of_its_own(
    model: ModelServer, agent: OpenAIAgent
) -> None:
    """Of two processes on one connection each would read the other's answer."""
    assert list(agent.run(ASKED, _context())) == ["Hi"]
    parents = agent._client
    agent._renew()  # as in a child
    assert list(agent.run(ASKED, _context())) == ["Hi"]
    assert agent._client is not parents
    parents.close()


FULL = {
    "AZURE_OPENAI_API_KEY": KEY,
    "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "chat",
    "AZURE_OPENAI_ENDPOINT": "https://x.example",
    "OPENAI_API_KEY": KEY,
    "OPENAI_MODEL": "small",
}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["azure", "openai"]),
        ({"OPENAI_MODEL": ""}, ["azure"]),
        ({"OPENAI_API_KEY": ""}, ["azure"]),
        ({"AZURE_OPENAI_ENDPOINT": ""}, ["openai"]),
        ({"AZURE_OPENAI_API_KEY": ""}, ["openai"]),
        ({"AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": ""}, ["openai"]),
    ],
)
def test_an_agent_is_there_if_all_it_needs_is(
    changes: dict[str, str], names: list[str]
) -> None:
    """Empty is as good as unset."""
    found = agents_from_env({**FULL, **changes})
    assert sorted(found) == names
    assert KEY not in repr(found)


def test_an_empty_environment_gives_none() -> None:
    """And loads nothing."""
    assert agents_from_env({}) == {}


def test_the_process_s_environment_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As everywhere."""
    for name in [name for name in os.environ if "OPENAI" in name]:
        monkeypatch.delenv(name)
    assert agents_from_env() == {}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_MODEL", "small")
    assert list(agents_from_env()) == ["openai"]


def test_without_the_extra_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No agent, no error, and no key in the line."""
    agent = agents_from_env(FULL)["openai"]
    monkeypatch.setitem(sys.modules, "openai", None)
    with caplog.at_level(logging.INFO):
        assert agents_from_env(FULL) == {}
    (record,) = caplog.records
    assert "ppio-agent[openai]" in record.getMessage()
    assert "azure and openai" in record.getMessage()
    assert KEY not in caplog.text
    with pytest.raises(ConfigurationError, match=r"ppio-agent\[openai\]"):
        list(agent.run(ASKED, _context()))


class Providers:
    """A plug-in that knows `openai` better, and `own`."""

    @hookimpl
    def ppio_model_provider(self, name: str) -> Any:
        return (lambda: name) if name in {"openai", "own"} else None


def test_plugins_give_agents_of_their_own() -> None:
    """Under the names that are listed, and in the place of what is built in."""
    hooks = Hooks.load([Providers()], entry_points=False)
    found = agents_from_env({**FULL, "PPIO_MODEL_PROVIDERS": "own, "}, hooks=hooks)
    assert list(found) == ["openai", "own", "azure"]
    assert found["openai"]() == "openai"
    assert found["own"]() == "own"


def test_a_provider_that_nobody_knows_is_named() -> None:
    """It was asked for, so its absence is a mistake."""
    with pytest.raises(ConfigurationError, match="'acme'"):
        agents_from_env({"PPIO_MODEL_PROVIDERS": "acme"}, hooks=Hooks())


# Behind HTTP.


@pytest.fixture
def keys(model: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a provider, in the process's environment."""
    for name, text in {**FULL, "OPENAI_BASE_URL": model.url}.items():
        monkeypatch.setenv(name, text)


@pytest.mark.usefixtures("keys")
def test_a_server_without_the_extra_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lists no such agent, says so in one line, and shows no key anywhere."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with InProcessActorRuntime() as runtime, caplog.at_level(logging.INFO):
        register_samples(runtime)
        http = create_app(runtime).test_client()
        names = [agent["name"] for agent in http.get("/agents").json or ()]
        described = http.get("/openapi.json").text
    assert names == ["echo", "helpful", "mock-ai"]
    assert len(re.findall(r"ppio-agent\[openai\]", caplog.text)) == 1
    assert KEY not in described + caplog.text


def _refusing(reply: Reply) -> None:
    reply.refuse(401, f"bad key {KEY}")


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [(_refusing, "model_refused", 500), (_failing, "model_failed", 503)],
)
def test_no_key_is_told_over_http(
    model: ModelServer,
    caplog: pytest.LogCaptureFixture,
    answer: Any,
    code: str,
    status: int,
) -> None:
    """Not in an answer and not in the log, also if the provider quotes it."""
    model.answer = answer
    with InProcessActorRuntime() as runtime, caplog.at_level(logging.DEBUG):
        register_samples(runtime)
        http = create_app(runtime).test_client()
        told = http.post("/agents/openai/run", json=ASKED)
        listed = http.get("/agents").text + http.get("/openapi.json").text
    assert told.status_code == status
    assert told.json is not None
    assert told.json["code"] == code
    assert told.json["detail"].startswith("the model small gave no answer")
    assert '"openai"' in listed
    assert KEY not in told.text + listed + caplog.text
