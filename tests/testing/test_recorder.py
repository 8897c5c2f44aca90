"""Traffic of a client, recorded and replayed."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.client import AgentRuntimeClient, ClientConfig
from ppio_agent.exceptions import (
    ConfigurationError,
    InvocationError,
    NetworkError,
    PPIOAgentError,
    TemplateNotFoundError,
    UnrecordedRequestError,
    ValidationError,
)
from ppio_agent.hooks import hookimpl
from ppio_agent.testing import Recorder
from tests.support_platform import KEY, Exchange, FakePlatform, echo_agent

Run = Callable[[AgentRuntimeClient], Any]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PPIO_") and name != "PPIO_TEST_SLOW":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PPIO_PLUGINS", "")


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform() as platform:
        yield platform


@pytest.fixture
def cassette(tmp_path: Path) -> Path:
    return tmp_path / "cassettes" / "it.jsonl"


def _record(
    platform: FakePlatform,
    cassette: Path,
    run: Run,
    *,
    max_retries: int = 0,
    **options: Any,
) -> Any:
    recorder = Recorder(cassette, **options)
    assert not recorder.replays
    config = ClientConfig(base_url=platform.url, max_retries=max_retries)
    with AgentRuntimeClient(KEY, config=config, plugins=[recorder]) as client:
        return run(client)


def _replay(cassette: Path, run: Run, **options: Any) -> Any:
    """Run it again without an address, a key or anybody who listens."""
    recorder = Recorder(cassette, **options)
    assert recorder.replays
    with AgentRuntimeClient(plugins=[recorder]) as client:
        return run(client)


def _caught(run: Run) -> Callable[[AgentRuntimeClient], PPIOAgentError]:
    def catch(client: AgentRuntimeClient) -> PPIOAgentError:
        with pytest.raises(PPIOAgentError) as caught:
            run(client)
        return caught.value

    return catch


def _lines(cassette: Path) -> list[Any]:
    return [json.loads(line) for line in cassette.read_text().splitlines()]


def _stream(*pieces: bytes, cut: bool = False) -> Callable[[Exchange], None]:
    def agent(exchange: Exchange) -> None:
        if exchange.request.path == "/ping":
            echo_agent(exchange)
            return
        exchange.start_stream()
        for piece in pieces:
            exchange.send(piece)
            threading.Event().wait(0.03)
        exchange.cut() if cut else exchange.end_stream()

    return agent


def test_a_whole_call_is_replayed(platform: FakePlatform, cassette: Path) -> None:
    """Sandbox, ping, invocation and kill, with the same answers and nobody there."""

    def run(client: AgentRuntimeClient) -> Any:
        return client.invoke_agent("tpl1", {"prompt": "hi"})

    first = _record(platform, cassette, run)
    second = _replay(cassette, run)
    assert first.result["echo"] == {"prompt": "hi"}
    assert (second.result, second.invocation_id, second.sandbox_id) == (
        first.result,
        first.invocation_id,
        first.sandbox_id,
    )
    header, *lines = _lines(cassette)
    assert header == {"ppio_cassette": 1}
    assert [f"{x['request']['method']} {x['request']['path']}" for x in lines] == [
        "GET /templates?metadata=true",
        "POST /sandboxes",
        "GET /ping",
        "POST /invocations",
        "DELETE /sandboxes/sb1",
    ]


def test_a_stream_keeps_its_pieces(platform: FakePlatform, cassette: Path) -> None:
    """Also those that end within a letter or an event."""
    data = 'data: "gr\u00fc\u00df"\n\ndata: 2\n\n'.encode()
    pieces = (data[:10], data[10:20], data[20:])
    platform.agent = _stream(*pieces)

    def run(client: AgentRuntimeClient) -> Any:
        with client.invoke_agent_stream("tpl1", "hi") as stream:
            return list(stream)

    assert _record(platform, cassette, run) == ["gr\u00fc\u00df", 2]
    assert _replay(cassette, run) == ["gr\u00fc\u00df", 2]
    (answer,) = [
        line["answer"]
        for line in _lines(cassette)[1:]
        if line["request"]["path"] == "/invocations"
    ]
    assert 1 < len(answer["pieces"]) <= 3
    assert any(piece.startswith("base64:") for piece in answer["pieces"])


@pytest.mark.parametrize("cut", [True, False])
def test_what_fails_fails_again(
    platform: FakePlatform, cassette: Path, cut: bool
) -> None:
    """In the middle of a stream as in an answer: same class, same words."""
    if cut:
        platform.agent = _stream(b"data: 1\n\n", cut=True)
    else:
        failed = {"result": None, "status": "error", "error": "boom"}
        platform.on("POST", "/inv", lambda e: e.reply(500, failed))
    run = _caught(lambda client: list(client.invoke_agent_stream("tpl1", "hi")))
    first, second = _record(platform, cassette, run), _replay(cassette, run)
    assert isinstance(first, InvocationError | NetworkError)
    assert type(second) is type(first)
    assert second.message == first.message
    assert second.http_status == first.http_status


def test_what_the_platform_refuses_is_refused_again(
    platform: FakePlatform, cassette: Path
) -> None:
    """With what the error says beside its words; and nobody being there, likewise."""
    refusal = {"code": 404, "message": "no such template"}
    platform.on("POST", "/sandboxes", lambda e: e.reply(404, refusal))
    run = _caught(lambda client: client.invoke_agent("tpl1", "hi"))
    first, second = _record(platform, cassette, run), _replay(cassette, run)
    assert type(first) is type(second) is TemplateNotFoundError
    assert (second.message, second.request_id) == (first.message, first.request_id)

    platform.on("GET", "/templates", lambda e: e.cut())
    run = _caught(lambda client: client.list_templates())
    first = _record(platform, cassette, run, mode="record")
    second = _replay(cassette, run, mode="replay")
    assert type(first) is type(second) is NetworkError
    assert second.message == first.message


def test_what_was_not_recorded_is_said(platform: FakePlatform, cassette: Path) -> None:
    """With the nearest there is; and when all the answers were given."""
    _record(platform, cassette, lambda client: client.invoke_agent("tpl1", "hello"))

    def other(client: AgentRuntimeClient) -> None:
        client.invoke_agent("tpl1", "hallo")

    with pytest.raises(UnrecordedRequestError) as caught:
        _replay(cassette, other)
    assert caught.value.message == (
        'POST /invocations {"prompt":"hallo"} was asked, and the recording'
        f" {cassette} does not have it; the nearest it has is"
        ' POST /invocations {"prompt":"hello"}; delete it to record anew'
    )

    def twice(client: AgentRuntimeClient) -> None:
        with client.create_session("tpl1") as session:
            session.invoke("hello")
            session.invoke("hello")

    with pytest.raises(UnrecordedRequestError, match="has no further answer to it"):
        _replay(cassette, twice)


def test_a_stream_that_was_left_ends_there(
    platform: FakePlatform, cassette: Path
) -> None:
    """A replay that reads on is told; it gets no clean end that never was."""
    platform.agent = _stream(b"data: 1\n\n", b"data: 2\n\n")
    go_on = False

    def run(client: AgentRuntimeClient) -> list[Any]:
        with client.invoke_agent_stream("tpl1", "hi") as stream:
            found = [next(stream)]
            if go_on:
                found += list(stream)
        return found

    assert _record(platform, cassette, run) == [1]
    assert _replay(cassette, run) == [1]
    go_on = True
    with pytest.raises(UnrecordedRequestError, match="left the answer to POST /inv"):
        _replay(cassette, run)


def test_a_stream_that_went_on_goes_on_again(
    platform: FakePlatform, cassette: Path
) -> None:
    """The cut is replayed, and so is what followed it on another connection."""

    def agent(exchange: Exchange) -> None:
        if exchange.request.path == "/ping":
            echo_agent(exchange)
            return
        request = exchange.request
        sent = request.headers.get("x-invocation-id") or request.path.split("/")[2]
        exchange.start_stream(invocation_id=sent)
        if exchange.request.method == "POST":
            exchange.send(b"id: 1\ndata: 1\n\n")
            exchange.cut()
        else:
            exchange.send(b"id: 2\ndata: 2\n\nid: 3\nevent: end\ndata: {}\n\n")
            exchange.end_stream()

    platform.agent = agent

    def run(client: AgentRuntimeClient) -> list[Any]:
        with client.invoke_agent_stream("tpl1", "hi") as stream:
            return list(stream)

    assert _record(platform, cassette, run, max_retries=1) == [1, 2]
    assert len([r for r in platform.requests if r.path.endswith("/events")]) == 1
    assert _replay(cassette, run) == [1, 2]


def test_calls_of_many_threads_find_their_own(
    platform: FakePlatform, cassette: Path
) -> None:
    """Whichever comes first this time."""
    words = [f"word {n}" for n in range(20)]

    def run(client: AgentRuntimeClient) -> list[Any]:
        with client.invoke_many("tpl1", words, max_workers=8) as batch:
            return [item.response.result["echo"]["prompt"] for item in batch]

    assert _record(platform, cassette, run) == words
    assert _replay(cassette, run) == words


def test_one_that_awaits_is_replayed(platform: FakePlatform, cassette: Path) -> None:
    """The client for coroutines is the same one underneath."""

    def run(client: AgentRuntimeClient) -> Any:
        return client.invoke_agent("tpl1", "hi").result

    async def again() -> Any:
        from ppio_agent import aio

        plugins = [Recorder(cassette, mode="replay")]
        async with aio.AgentRuntimeClient(plugins=plugins) as client:
            return (await client.invoke_agent("tpl1", "hi")).result

    assert _record(platform, cassette, run) == asyncio.run(again())


def test_a_start_that_took_its_time_is_not_waited_for(
    platform: FakePlatform, cassette: Path
) -> None:
    """Of several pings the one that found the agent is replayed."""
    refusals = iter([True, True, True])

    def ping(exchange: Exchange) -> None:
        if next(refusals, False):
            exchange.reply(502, {"sandboxId": "sb1", "port": 8080, "code": 502})

    platform.on("GET", "/ping", ping)

    def run(client: AgentRuntimeClient) -> Any:
        return client.invoke_agent("tpl1", "hi").result["count"]

    assert _record(platform, cassette, run) == _replay(cassette, run) == 1
    assert len(platform.seen("GET", "/ping")) == 4


def test_no_secret_is_recorded(platform: FakePlatform, cassette: Path) -> None:
    """Neither of the client nor of the platform, nor what the test names."""
    told = {"OPENAI_API_KEY": "sk-of-the-model-1234", "WORD": "plain"}
    tokens = ("envd-token-of-this-sandbox", "sk-of-the-model-1234", KEY, "hush-hush")

    def tell_all(exchange: Exchange) -> None:
        if exchange.request.path == "/ping":
            echo_agent(exchange)
            return
        text = f"{' '.join(tokens)} {exchange.request.headers}"
        exchange.reply(200, {"token": "word", "text": text}, {"X-Api-Key": KEY})

    platform.agent = tell_all

    def run(client: AgentRuntimeClient) -> Any:
        with client.create_session("tpl1", env_vars=told) as session:
            return session.invoke({"prompt": "hush-hush"}).result["token"]

    assert _record(platform, cassette, run, secrets=["hush-hush"]) == "word"
    text = cassette.read_text()
    for token in tokens:
        assert token not in text
    assert "plain" in text
    assert _replay(cassette, run, secrets=["hush-hush"]) == "word"


def test_no_secret_is_recorded_of_an_error(
    platform: FakePlatform, cassette: Path
) -> None:
    """Neither in its words nor beside them."""

    def refuse(exchange: Exchange) -> None:
        told = {"code": 400, "message": "nobody is called hush-hush"}
        exchange.reply(400, told, {"X-Request-Id": "of-hush-hush"})

    platform.on("POST", "/sandboxes$", refuse)
    run = _caught(lambda client: client.invoke_agent("tpl1", "hi"))
    assert (
        "hush-hush" in _record(platform, cassette, run, secrets=["hush-hush"]).message
    )
    assert "hush-hush" not in cassette.read_text()
    assert "nobody is called ***" in _replay(cassette, run).message


def test_a_replay_asks_no_plug_in_how_to_authenticate(
    platform: FakePlatform, cassette: Path
) -> None:
    """It may need a network for that, and there is nobody to be shown the answer."""
    asked = []

    class Tokens:
        @hookimpl
        def ppio_client_auth(self, config: object) -> Tokens:
            del config
            return self

        def headers(self, request: object, *, refresh: bool = False) -> dict[str, str]:
            asked.append((request, refresh))
            return {"Authorization": "Bearer of-the-day"}

    _record(platform, cassette, lambda client: client.list_templates())
    plugins = [Recorder(cassette), Tokens()]
    with AgentRuntimeClient(plugins=plugins) as client:
        assert client.list_templates()
    assert asked == []


def test_a_secret_in_two_pieces_is_hidden(
    platform: FakePlatform, cassette: Path
) -> None:
    """At the cost of the pieces."""
    platform.agent = _stream(
        b'data: "the key is ' + KEY[:9].encode(), KEY[9:].encode() + b'"\n\n'
    )

    def run(client: AgentRuntimeClient) -> Any:
        with client.invoke_agent_stream("tpl1", "hi") as stream:
            return list(stream)

    assert _record(platform, cassette, run) == [f"the key is {KEY}"]
    assert KEY[9:] not in cassette.read_text()
    assert _replay(cassette, run) == ["the key is ***"]


class TestModes:
    def test_record_writes_anew(self, platform: FakePlatform, cassette: Path) -> None:
        """Whatever was there."""
        for _ in range(2):
            _record(platform, cassette, lambda c: c.list_templates(), mode="record")
        assert len(_lines(cassette)) == 2

    def test_replay_never_records(self, cassette: Path) -> None:
        """A missing file says how it is made."""
        with pytest.raises(
            ConfigurationError, match=r"it\.jsonl cannot be read .*once"
        ):
            Recorder(cassette, mode="replay")
        assert not cassette.exists()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "is empty"),
            (b"{}\n", r"line 1: it does not begin as one"),
            (b'{"ppio_cassette":1}\n{"a":1}\n', r"line 2: KeyError: 'request'"),
            (b'{"ppio_cassette":1}\n{"request"', r"line 2: "),
        ],
    )
    def test_what_is_no_recording_is_refused(
        self, cassette: Path, data: bytes, message: str
    ) -> None:
        """With the line that is none."""
        cassette.parent.mkdir()
        cassette.write_bytes(data)
        with pytest.raises((ConfigurationError, UnrecordedRequestError), match=message):
            _replay(cassette, lambda client: client.list_templates())


def test_a_recording_does_not_change_errors_of_the_caller(
    platform: FakePlatform, cassette: Path
) -> None:
    """What never reaches the wire is not recorded."""
    run = _caught(lambda client: client.invoke_agent("tpl1", [1]))  # type: ignore[arg-type]
    assert isinstance(_record(platform, cassette, run), ValidationError)
    assert not cassette.exists()


def test_what_cannot_be_written_is_a_typed_error(
    platform: FakePlatform, tmp_path: Path
) -> None:
    """Whether that is seen at once or at the first exchange; nothing empty stays."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Recorder(tmp_path / "file" / "it.jsonl", mode="record")
    with pytest.raises(ConfigurationError, match="is no file"):
        Recorder("/dev/full", mode="record")

    place = tmp_path / "it.jsonl"
    recorder = Recorder(place)
    place.symlink_to("/dev/full")
    config = ClientConfig(base_url=platform.url, max_retries=0)
    with (
        AgentRuntimeClient(KEY, config=config, plugins=[recorder]) as client,
        pytest.raises(ConfigurationError, match="cannot be written"),
    ):
        client.list_templates()
    assert not place.is_symlink()
