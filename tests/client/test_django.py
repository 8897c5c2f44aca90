"""A Django site that asks agents, in process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from ppio_agent.client import django as ours
from ppio_agent.exceptions import ConfigurationError, RateLimitError
from tests.client.support_web import TalkingAgent
from tests.support import wait_until
from tests.support_platform import KEY, FakePlatform

if not settings.configured:
    settings.configure()
    django.setup()


def chat(request: HttpRequest, format: str) -> Any:
    stream = ours.get_client().invoke_agent_stream("tpl1", request.GET["prompt"])
    return ours.stream_response(stream, format=format, heartbeat=0.05)  # type: ignore[arg-type]  # of the URL


def limited(_request: HttpRequest) -> HttpResponse:
    return ours.error_response(RateLimitError("too many", request_id="r1"))


class Urls:
    urlpatterns = (
        path("chat/<format>", chat),
        path("limited", limited),
        path("ask", ours.agent_view("tpl1")),
        path("talk", ours.agent_view("tpl1", session_id=lambda r: r.GET.get("who"))),
    )


@pytest.fixture
def agent(platform: FakePlatform) -> TalkingAgent:
    platform.agent = TalkingAgent()
    return platform.agent


@pytest.fixture
def site(platform: FakePlatform, agent: TalkingAgent) -> Iterator[Client]:
    del agent
    with override_settings(
        ROOT_URLCONF=Urls,
        ALLOWED_HOSTS=["testserver"],
        PPIO_AGENT={"base_url": platform.url, "api_key": KEY, "max_retries": 0},
    ):
        yield Client()


SSE = {"Accept": "text/event-stream"}


def _body(response: Any) -> bytes:
    return b"".join(response.streaming_content)


def test_a_stream_has_its_chunks_and_headers(site: Client) -> None:
    """In each format; nothing on the way may hold it back."""
    response = site.get("/chat/sse?prompt=one two")
    assert response["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response["Cache-Control"] == "no-cache, no-transform"
    assert response["X-Accel-Buffering"] == "no"
    expected = b': open\n\ndata: "one"\n\ndata: "two"\n\nevent: end\ndata: {}\n\n'
    assert _body(response) == expected
    assert _body(site.get("/chat/ndjson?prompt=one two")) == b'\n"one"\n"two"\n'
    response = site.get("/chat/text?prompt=one two")
    assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert _body(response) == b"onetwo"


def test_a_visitor_who_leaves_ends_the_run_and_its_sandbox(
    site: Client, agent: TalkingAgent, platform: FakePlatform
) -> None:
    """Also while the agent says nothing."""
    response = site.get("/chat/sse?prompt=quiet")
    pieces = iter(response.streaming_content)
    assert [next(pieces), next(pieces), next(pieces)][2] == b": hb\n\n"
    response.close()
    wait_until(lambda: agent.cancelled.is_set() and not platform.alive)


def test_an_agent_that_fails_in_its_stream_is_one_event(site: Client) -> None:
    """Without the agent's words."""
    events = _body(site.get("/chat/sse?prompt=fail")).split(b"\n\n")
    assert events[1] == b'data: "a"'
    assert events[2].startswith(b"event: error\ndata: {")
    assert events[3] == b""
    assert b"sesame" not in b"".join(events)


def test_an_error_is_a_problem(site: Client) -> None:
    """Of which a visitor sees the status, the code and the ids."""
    response = site.get("/limited")
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert response["Content-Type"] == "application/problem+json"
    body = json.loads(response.content)
    assert (body["code"], body["request_id"]) == ("rate_limited", "r1")


def test_the_view_takes_json_and_forms(site: Client, agent: TalkingAgent) -> None:
    """And gives JSON or a stream, as it is accepted."""
    response = site.post("/ask", {"prompt": "hi", "n": [1, 2]}, "application/json")
    assert response.json() == {"result": {"prompt": "hi", "n": [1, 2]}}
    response = site.post("/ask", {"prompt": "hi", "csrfmiddlewaretoken": "t"})
    assert response.json() == {"result": {"prompt": "hi"}}
    response = site.post("/ask", '"one two"', "application/json", headers=SSE)
    assert b'data: "two"' in _body(response)
    assert agent.asked[-1] == {"prompt": "one two"}


def test_what_cannot_be_asked_is_refused(
    site: Client, platform: FakePlatform, agent: TalkingAgent
) -> None:
    """As a problem, before there is a sandbox; the framework's limit is its own."""
    found = [
        site.get("/ask"),
        site.post("/ask", "{", "application/json"),
        site.post("/ask", "[1]", "application/json"),
        site.post("/ask", "hi", "text/plain"),
    ]
    assert [r.status_code for r in found] == [405, 400, 400, 415]
    assert all(r["Content-Type"] == "application/problem+json" for r in found)
    assert found[0]["Allow"] == "POST"
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=10):
        assert site.post("/ask", {"a": "b" * 20}, "application/json").status_code == 400
    assert (platform.sandboxes, agent.asked) == ({}, [])


def test_a_failed_agent_is_a_bad_gateway(site: Client, caplog: Any) -> None:
    """What it said is in the site's log only; asked for a stream, it is no stream."""
    for headers in ({}, SSE):
        response = site.post("/ask", {"prompt": "refuse"}, headers=headers)
        assert response.status_code == 502
        assert response.json()["detail"] == "the agent could not answer"
    assert "the password is sesame" in caplog.text


def test_a_visitor_keeps_a_session(site: Client, platform: FakePlatform) -> None:
    """Of visitors who have none, each request has a sandbox of its own."""
    for who in ("ann", "bob", "ann"):
        site.post(f"/talk?who={who}", {"prompt": "hi"})
    assert len(platform.sandboxes) == len(platform.alive) == 2
    site.post("/talk", {"prompt": "hi"})
    assert (len(platform.sandboxes), len(platform.alive)) == (3, 2)


def test_protection_against_forgery_stays(site: Client) -> None:
    """The view takes part in what the site has."""
    with override_settings(MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"]):
        strict = Client(enforce_csrf_checks=True)
        assert strict.post("/ask", {"prompt": "hi"}).status_code == 403
    assert site.post("/ask", {"prompt": "hi"}).status_code == 200


def test_compression_passes_streams_by(site: Client) -> None:
    """It would hold chunks back until it has enough of them."""
    with override_settings(MIDDLEWARE=["django.middleware.gzip.GZipMiddleware"]):
        headers = {"Accept-Encoding": "gzip"}
        response = Client(headers=headers).get("/chat/sse?prompt=one")
        assert _body(response).startswith(b": open\n\ndata")
    del site


async def _ask_async(prompt: str) -> bytes:
    client = AsyncClient()
    response: Any = await client.get(f"/chat/sse?prompt={prompt}")
    with pytest.warns(Warning, match="must consume synchronous iterators"):
        return b"".join([piece async for piece in response])


def test_an_async_handler_gives_the_stream_as_a_whole(site: Client) -> None:
    """With Django's own warning: it can only collect what a view that blocks gives."""
    import asyncio

    del site
    body = asyncio.run(_ask_async("one"))
    assert body == b': open\n\ndata: "one"\n\nevent: end\ndata: {}\n\n'


def test_a_process_has_one_client_and_settings_are_checked(site: Client) -> None:
    """Another setting is another client; a wrong one is told where it is used."""
    del site
    first = ours.get_client()
    assert ours.get_client() is first
    with override_settings(PPIO_AGENT={"bse_url": "local"}):
        for use in (ours.get_client, lambda: ours.agent_view("tpl1")):
            with pytest.raises(ConfigurationError, match="did you mean 'base_url'"):
                use()
    with override_settings(PPIO_AGENT={"base_url": "local"}):
        assert ours.get_client() is not first


def test_without_django_the_error_names_it() -> None:
    """Nobody else needs it: the client does not import it."""
    code = (
        "import sys; sys.modules['django'] = None\n"
        "import ppio_agent.client\n"
        "try:\n    import ppio_agent.client.django\n"
        "except ImportError as error:\n    print(error, 'flask' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    said = "ppio_agent.client.django needs Django: pip install django False\n"
    assert done.stdout == said
