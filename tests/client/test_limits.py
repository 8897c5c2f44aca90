"""Times that a caller gives: refused before anything is sent, and kept to."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from ppio_agent.client import AgentRuntimeClient
from ppio_agent.client.limits import seconds
from ppio_agent.exceptions import (
    PPIOAgentError,
    RequestTimeoutError,
    SandboxCreationError,
    ValidationError,
)
from tests.support import SLOW
from tests.support_platform import FakePlatform

BAD: list[Any] = [float("inf"), float("nan"), 1e300, 10**5000, "3", 0, -1, True, []]


@pytest.mark.parametrize("value", BAD, ids=[*"abcdefghi"])
def test_what_is_no_time_is_refused_by_name(value: object) -> None:
    """The message says what it has to be, and what None does."""
    with pytest.raises(ValidationError, match=r"^limit has to be.*None means no limit"):
        seconds("limit", value)


@pytest.mark.parametrize(("value", "expected"), [(None, None), (3, 3.0), (0.5, 0.5)])
def test_a_time_is_seconds(value: object, expected: float | None) -> None:
    """None stays none."""
    assert seconds("limit", value) == expected


ENTRANCES: dict[str, Callable[[AgentRuntimeClient, Any], object]] = {
    "timeout": lambda c, v: c.invoke_agent("tpl1", "x", timeout=v),
    "deadline": lambda c, v: c.invoke_agent_stream("tpl1", "x", deadline=v),
    "timeout_seconds": lambda c, v: c.create_session("tpl1", v),
    "start_timeout": lambda c, v: c.invoke_agent("tpl1", "x", start_timeout=v),
    "deadline ": lambda c, v: c.create_session("tpl1", deadline=v),
    "deadline  ": lambda c, v: c.invoke_many("tpl1", ["x"], deadline=v),
    "timeout ": lambda c, v: c.invoke_many("tpl1", ["x"], timeout=v),
    "max_workers": lambda c, v: c.invoke_many("tpl1", ["x"], max_workers=v),
}


@pytest.mark.parametrize("entrance", list(ENTRANCES))
@pytest.mark.parametrize("value", [float("nan"), "5", 0])
def test_every_entrance_refuses_before_a_request(
    client: AgentRuntimeClient, platform: FakePlatform, entrance: str, value: object
) -> None:
    """With the name of the argument."""
    with pytest.raises(ValidationError, match=f"^{entrance.strip()} has to be"):
        ENTRANCES[entrance](client, value)
    assert platform.seen("POST", "/sandboxes") == []


def test_a_session_refuses_before_a_request(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """Its invocations, and what changes its time to live."""
    session = client.create_session("tpl1")
    with pytest.raises(ValidationError, match=r"^timeout has to be"):
        session.invoke("x", timeout=float("inf"))
    with pytest.raises(ValidationError, match=r"^deadline has to be"):
        session.invoke_stream("x", deadline=-1)
    with pytest.raises(ValidationError, match=r"^timeout_seconds has to be"):
        session.refresh(float("nan"))
    with pytest.raises(ValidationError, match=r"^timeout has to be"):
        session.resume(0)
    assert platform.seen("POST", "/inv") == []


NAMES: dict[str, Callable[[AgentRuntimeClient, Any], object]] = {
    "a session is closed by": lambda c, v: c.close_session(v),
    "a session is attached by": lambda c, v: c.attach_session(v),
    "a template is named by": lambda c, v: c.get_template(v),
}


@pytest.mark.parametrize("entrance", list(NAMES))
@pytest.mark.parametrize("value", [None, 5, b"", b"s", "", "a\ud800", "a\r\nb"])
def test_names_are_texts(
    client: AgentRuntimeClient, platform: FakePlatform, entrance: str, value: object
) -> None:
    """All else is refused before anything is asked, in a message of one line."""
    with pytest.raises(ValidationError, match=f"^{entrance} .*not by") as caught:
        NAMES[entrance](client, value)
    assert str(caught.value).isprintable()
    assert platform.seen("GET", "/") == []


WRONG: dict[str, tuple[str, Callable[[AgentRuntimeClient], object]]] = {
    "tags": ("tags has to be a list", lambda c: c.list_templates(tags=cast("Any", 5))),
    "a tag": ("list of texts", lambda c: c.list_templates(tags=[cast("Any", [])])),
    "name": ("name has to be", lambda c: c.list_templates(name=cast("Any", 5))),
    "headers": (
        "headers has to be",
        lambda c: c.with_options(headers=cast("Any", None)),
    ),
    "journal": ("journal has", lambda c: c.invoke_many("tpl1", [], journal="é\0")),
    "path": ("journal", lambda c: c.invoke_many("tpl1", [], journal=cast("Any", 5))),
    "on_progress": (
        "on_progress has to be",
        lambda c: c.invoke_many("tpl1", [], on_progress=cast("Any", 5)),
    ),
    "key": ("API key has", lambda _: AgentRuntimeClient(cast("Any", b"k"))),
    "secret": ("API secret", lambda _: AgentRuntimeClient("key", cast("Any", 5))),
}


@pytest.mark.parametrize("argument", list(WRONG))
def test_arguments_of_other_types_are_refused_by_name(
    client: AgentRuntimeClient, platform: FakePlatform, argument: str
) -> None:
    """With an error of the package, before anything is asked."""
    message, call = WRONG[argument]
    with pytest.raises(PPIOAgentError, match=message):
        call(client)
    assert platform.seen("GET", "/") == []


@pytest.mark.parametrize("ref", [None, 3, ""])
def test_a_template_is_named_by_a_text(client: AgentRuntimeClient, ref: Any) -> None:
    """Nothing is looked for otherwise."""
    with pytest.raises(ValidationError, match="a template is named by"):
        client.invoke_agent(ref, "x")


@pytest.mark.parametrize("session_id", [None, "talk-1"])
@pytest.mark.parametrize("way", ["whole", "stream"])
def test_the_time_of_a_call_includes_the_start_of_its_agent(
    client: AgentRuntimeClient,
    platform: FakePlatform,
    way: str,
    session_id: str | None,
) -> None:
    """An agent that never listens costs no more than that, and its sandbox goes."""
    platform.on("GET", "/ping", lambda e: e.reply(503, {"message": "starting"}))
    started = time.monotonic()
    invoke: Callable[..., object] = {
        "whole": partial(client.invoke_agent, timeout=0.4),
        "stream": partial(client.invoke_agent_stream, deadline=0.4),
    }[way]
    with pytest.raises((RequestTimeoutError, SandboxCreationError)):
        invoke("tpl1", "x", session_id=session_id)

    assert time.monotonic() - started < 0.8 * SLOW
    assert platform.alive == []
