"""The awaitable client and the blocking one have the same names and signatures.

What is different is listed here, each with its reason; anything else fails.
"""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppio_agent import aio
from ppio_agent import client as blocking
from ppio_agent.aio.mirror import Mirror
from ppio_agent.transport import CallScope
from tests.support_platform import FakePlatform

_TASK = "asyncio.create_task(client.invoke_agent(…)) is the same, and can be cancelled"
_OWN = "the client itself calls it, and that is the blocking one"

LEFT_OUT = {
    "AgentRuntimeClient.submit": _TASK,
    "InvocationFuture": _TASK,
    "SandboxSession.abort": _OWN,
    "SandboxSession.ask": _OWN,
    "SandboxSession.began": _OWN,
    "SandboxSession.disown": _OWN,
    "SandboxSession.dispose": _OWN,
    "SandboxSession.extend": _OWN,
    "SandboxSession.extend_at": _OWN,
    "SandboxSession.gone": _OWN,
    "SandboxSession.lost": _OWN,
    "SandboxSession.open_either": _OWN,
    "SandboxSession.open_stream": _OWN,
    "SandboxSession.owned": _OWN,
    "SandboxSession.release": _OWN,
    "SandboxSession.run": _OWN,
    "SandboxSession.wait_ready": _OWN,
    "TemplateManager.reset": _OWN,
}
"""Names of the blocking client that the awaitable one does without."""

ADDED = {
    "RuntimeStream.aclose": "contextlib.aclosing() asks for this name",
    "StreamingResponse.aclose": "contextlib.aclosing() asks for this name",
}
"""Names of the awaitable client alone."""

PLAIN = {
    "AgentRuntimeClient.list_sessions": "tells what is known, without asking",
    "AgentRuntimeClient.with_options": "makes an object, and no request",
    "SandboxSession.snapshot": "tells what is known, without asking",
    "StreamingResponse.events": "gives what async for takes",
    "TemplateManager.invalidate": "forgets, and makes no request",
}
"""Methods that are not awaited, since they wait for nothing."""

AWAITED_DUNDERS = {
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "__iter__": "__aiter__",
    "__next__": "__anext__",
}


def _mirrors() -> dict[str, tuple[Any, Any]]:
    """Return, by name, the classes that are not the same in both."""
    return {
        name: (getattr(blocking, name), getattr(aio, name))
        for name in blocking.__all__
        if name in aio.__all__ and getattr(aio, name) is not getattr(blocking, name)
    }


def _public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_modules_have_the_same_names() -> None:
    """All of one is in the other; what does not block is the very same object."""
    assert set(blocking.__all__) - LEFT_OUT.keys() == set(aio.__all__)
    mirrors = _mirrors()
    assert sorted(mirrors) == [
        "AgentRuntimeClient",
        "Batch",
        "RuntimeStream",
        "SandboxSession",
        "StreamingResponse",
        "TemplateManager",
    ]
    assert all(issubclass(mirror, Mirror) for _, mirror in mirrors.values())


@pytest.fixture
def objects(
    platform: FakePlatform, make_client: Callable[..., Any]
) -> Iterator[dict[str, Any]]:
    """One object of each mirrored class, by its name."""

    async def make() -> dict[str, Any]:
        client = make_client()
        session = await client.create_session("tpl1")
        stream = await session.invoke_stream("x")
        runtime = blocking.RuntimeStream(
            stream._blocking, session_id="s", agent_id="tpl1"
        )
        return {
            "AgentRuntimeClient": client,
            "Batch": await client.invoke_many("tpl1", ["x"]),
            "RuntimeStream": aio.RuntimeStream(client._bridge, runtime, CallScope()),
            "SandboxSession": session,
            "StreamingResponse": stream,
            "TemplateManager": client.templates,
        }

    made = asyncio.run(make())
    yield made
    asyncio.run(made["StreamingResponse"].close())
    asyncio.run(made["Batch"].close())
    asyncio.run(made["AgentRuntimeClient"].close())


def test_the_classes_have_the_same_names(objects: dict[str, Any]) -> None:
    """Methods, properties and attributes, both ways."""
    for name in _mirrors():
        mirror = objects[name]
        theirs = {f"{name}.{n}" for n in _public(mirror._blocking)}
        ours = {f"{name}.{n}" for n in _public(mirror)}
        assert theirs - LEFT_OUT.keys() == ours - ADDED.keys()
        known = {x for x in (*LEFT_OUT, *ADDED, *PLAIN) if x.startswith(f"{name}.")}
        for dunder, awaited in AWAITED_DUNDERS.items():
            assert hasattr(mirror._blocking, dunder) == hasattr(mirror, awaited), dunder
        assert known <= theirs | ours | {"AgentRuntimeClient.submit"}, "no longer there"


def _methods() -> Iterator[Any]:
    for name, (original, mirror) in _mirrors().items():
        for method in sorted(_public(original) & _public(mirror)):
            pair = getattr(original, method), getattr(mirror, method)
            if callable(pair[0]):
                yield pytest.param(*pair, id=f"{name}.{method}")


def _parameters(function: Callable[..., object]) -> list[tuple[str, Any, Any]]:
    signature = inspect.signature(function)
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize(("original", "mirror"), list(_methods()))
def test_methods_take_the_same_arguments(
    original: Any, mirror: Any, request: pytest.FixtureRequest
) -> None:
    """Names, order, kinds and defaults; what may block is a coroutine function."""
    name = request.node.callspec.id
    assert _parameters(mirror) == _parameters(original)
    assert inspect.iscoroutinefunction(mirror) == (name not in PLAIN)
    assert mirror.__doc__


def test_the_client_is_made_alike() -> None:
    """The constructors take the same arguments, those of the others are not called."""
    original, mirror = blocking.AgentRuntimeClient, aio.AgentRuntimeClient
    assert _parameters(mirror) == _parameters(original)


def test_the_import_is_light() -> None:
    """It loads no web framework, and neither requests nor a terminal library."""
    heavy = "{'flask', 'django', 'fastapi', 'requests', 'rich', 'click', 'waitress'}"
    code = f"import sys, ppio_agent.aio; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
