"""Templates: found by many names, listed once for many callers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppio_agent.client import AgentRuntimeClient, AgentTemplate
from ppio_agent.client.template import find_template, matches
from ppio_agent.exceptions import (
    AuthenticationError,
    NetworkError,
    TemplateNotFoundError,
    ValidationError,
)
from tests.support_platform import KEY, FakePlatform, template_record

Make = Callable[..., AgentRuntimeClient]


class TestFinding:
    TEMPLATES = (
        AgentTemplate(template_id="t1", name="chat", aliases=("talk",), version="1.2"),
        AgentTemplate(template_id="t2", name="talk", aliases=("t1", "x"), version="2"),
        AgentTemplate(template_id="t3", name="twin", aliases=("x",)),
        AgentTemplate(template_id="t4", name="twin"),
    )

    @pytest.mark.parametrize(
        ("ref", "template_id"),
        [
            ("t1", "t1"),  # an id wins over an alias
            ("talk", "t1"),  # an alias wins over a name
            ("chat", "t1"),
            ("chat:1.2", "t1"),
            ("chat:latest", "t1"),
            ("chat:9", None),
            ("my_agent-t3", "t3"),
            ("arn:ppio:agent:eu:1:runtime/my_agent-t3", "t3"),
            ("x:2", "t2"),  # the version tells namesakes apart
            ("x:3", None),
            ("my_agent-t2:2", "t2"),
            ("my_agent-t2:3", None),
            ("nope", None),
            (":1.2", None),
            ("-t1", None),
        ],
    )
    def test_order(self, ref: str, template_id: str | None) -> None:
        """Id, alias, name, name:version, agent id."""
        found = find_template(ref, self.TEMPLATES)

        assert (found and found.template_id) == template_id

    @pytest.mark.parametrize(
        ("ref", "ids"),
        [("x", "t2 and t3"), ("twin", "t3 and t4"), ("twin:latest", "t3 and t4")],
    )
    def test_several_are_refused(self, ref: str, ids: str) -> None:
        """Nobody guesses; both ids are named."""
        with pytest.raises(ValidationError, match=ids):
            find_template(ref, self.TEMPLATES)

    def test_filters(self) -> None:
        """Every tag is needed; the pattern is for name and aliases, in any case."""
        template = AgentTemplate(
            template_id="t", name="Chat-Pro", aliases=("talk",), tags=("ai", "chat")
        )

        assert matches(template, tags=["ai", "chat"])
        assert not matches(template, tags=["ai", "x"])
        assert matches(template, name="chat-*")
        assert matches(template, name="TALK")
        assert not matches(template, name="pro")


class TestList:
    def test_both_tags_are_needed(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """As the seed's tags=[…] says."""
        platform.templates = [
            template_record("t1", tags=["ai"]),
            template_record("t2", tags=["ai", "chat"]),
        ]

        found = client.list_templates(tags=["ai", "chat"])

        assert [t.template_id for t in found] == ["t2"]
        assert found[0].agent is not None
        assert found[0].agent.entrypoint == "app.py"
        with pytest.raises(ValidationError, match="tags="):
            client.list_templates(tags="ai")

    def test_metadata_is_always_asked_for(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A list without it in the cache would hide how agents are started."""
        client.list_templates()

        sent = platform.requests[0]
        assert sent.path == "/templates?metadata=true"
        assert sent.headers["authorization"] == f"Bearer {KEY}"

    def test_the_wrapped_form_is_read(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Some servers put the array into an object."""
        records = {"templates": platform.templates, "total": 1}
        platform.on("GET", "/templates", lambda e: e.reply(200, records))

        assert [t.template_id for t in client.list_templates()] == ["tpl1"]

    def test_one_bad_record_hides_no_other(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is skipped, counted, and logged with its place."""
        platform.templates = [{"aliases": 7}, template_record("t1"), "what?"]
        with caplog.at_level(logging.WARNING):
            found = client.list_templates()

        assert [t.template_id for t in found] == ["t1"]
        assert client.templates.skipped == 2
        assert "template 0" in caplog.text

    def test_one_bad_sandbox_hides_no_other(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A conversation is begun whatever else the platform lists."""
        platform.on("GET", "/v2/sandboxes", lambda e: e.reply(200, [{"sandboxID": 7}]))
        with caplog.at_level(logging.WARNING):
            client.invoke_agent("tpl1", "Hi", session_id="s")

        assert "sandbox 0 of the list cannot be read: $.sandboxID" in caplog.text

    def test_key_header_is_tried_after_a_401(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Some platforms want the key in the other header here, too."""
        platform.on(
            "GET",
            "/templates",
            lambda e: (
                None
                if "x-api-key" in e.request.headers
                else e.reply(401, {"message": "who?"})
            ),
        )

        assert len(client.list_templates()) == 1

    def test_refused_key(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Both forms refused is an authentication error."""
        platform.on("GET", "/templates", lambda e: e.reply(401, {"message": "who?"}))
        with pytest.raises(AuthenticationError):
            client.list_templates()


class TestCache:
    def test_fifty_threads_cause_one_request(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """An empty cache is filled once."""
        barrier = threading.Barrier(50)

        def ask(_: int) -> bool:
            barrier.wait()
            return client.template_exists("tpl1")

        with ThreadPoolExecutor(50) as threads:
            found = list(threads.map(ask, range(50)))

        assert all(found)
        assert len(platform.seen("GET", "/templates")) == 1

    def test_a_fresh_deployment_is_seen(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A name that is not in the list asks for a new one, once a second."""
        client.list_templates()
        platform.templates.append(template_record("t2"))
        found = client.get_template("t2")
        for _ in range(10):
            with pytest.raises(TemplateNotFoundError):
                client.get_template("nope")

        assert found.template_id == "t2"
        assert len(platform.seen("GET", "/templates")) == 2

    def test_errors_are_not_kept(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The next caller asks again."""
        with (
            platform.overriding("GET", "/templates", lambda e: e.cut()),
            pytest.raises(NetworkError),
        ):
            client.list_templates()

        assert len(client.list_templates()) == 1

    def test_it_can_be_dropped_and_switched_off(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """invalidate, refresh=True, enable_cache=False, another key."""
        client = make_client()
        client.list_templates()
        client.list_templates()
        client.templates.invalidate()
        client.list_templates()
        client.list_templates(refresh=True)
        client.auth.rotate(api_key="sk-another-key-0123456789")
        client.list_templates()
        cached = len(platform.seen("GET", "/templates"))
        other = make_client(enable_cache=False)
        other.list_templates()
        other.get_template("tpl1")

        assert cached == 4
        assert len(platform.seen("GET", "/templates")) == 6

    def test_error_names_what_there_is(self, client: AgentRuntimeClient) -> None:
        """Whoever mistyped sees the right name."""
        with pytest.raises(TemplateNotFoundError, match=r"'agnt'.*agent-tpl1"):
            client.get_template("agnt")
