"""Keys: found, checked, exchanged, never shown; signatures: one for each attempt."""

from __future__ import annotations

import hashlib
import pickle
import threading
from typing import Any

import pytest

from ppio_agent.client import AgentRuntimeClient, AuthManager, ClientConfig
from ppio_agent.client.auth import PluginAuth, attempt_auth
from ppio_agent.exceptions import AuthenticationError, ConfigurationError
from ppio_agent.hooks import hookimpl
from ppio_agent.transport import Kind, Request
from ppio_agent.wire.signing import Signature
from tests.support_platform import KEY as PLATFORM_KEY
from tests.support_platform import Exchange, FakePlatform

KEY = "sk-0123456789-abcdef"
SECRET = "sk_test_secret"
SIGNED = {"X-PPIO-Key", "X-PPIO-Timestamp", "X-PPIO-Nonce", "X-PPIO-Signature"}


def ask(
    kind: Kind, method: str = "GET", body: bytes | None = None, path: str = "/a?b=%2f"
) -> Request:
    return Request(method=method, url=f"https://h.example{path}", kind=kind, body=body)


def test_argument_wins_over_environment() -> None:
    """And both are stripped of what copying left around them."""
    environ = {"PPIO_API_KEY": " from-env \n", "PPIO_API_SECRET": "env-secret"}

    assert AuthManager(environ=environ).api_key == "from-env"
    assert AuthManager(f" {KEY}\n", environ=environ).api_key == KEY
    assert AuthManager(environ=environ).signs is True
    assert AuthManager(KEY, environ={}).signs is False


@pytest.mark.parametrize("key", [None, "", "  ", "schlüssel", "a\nb", "a\x00b"])
def test_what_cannot_be_a_key_is_refused(key: str | None) -> None:
    """The error says what to set and never shows what was given."""
    with pytest.raises(AuthenticationError) as caught:
        AuthManager(key, environ={})

    if key and key.strip():
        assert key not in str(caught.value)
    else:
        assert "PPIO_API_KEY" in str(caught.value)


class TestHeaders:
    def test_of_each_plane(self) -> None:
        """Templates want a Bearer token, and the key header if that is refused."""
        auth = AuthManager(KEY, environ={})
        key, bearer = {"X-API-KEY": KEY}, {"Authorization": f"Bearer {KEY}"}

        assert auth.headers(ask("template")) == bearer
        assert auth.headers(ask("template"), refresh=True) == key
        assert auth.headers(ask("template", "POST")) == key  # creates a sandbox
        assert auth.headers(ask("sandbox")) == key
        assert auth.headers(ask("other")) == key
        assert auth.headers(ask("envd", "POST")) == {}
        assert auth.headers(ask("agent")) == {}

    def test_forwarding_is_asked_for(self) -> None:
        """Then the agent gets the key, and envd still does not."""
        auth = AuthManager(KEY, environ={}, forward_api_key=True)

        assert auth.headers(ask("agent")) == {"Authorization": f"Bearer {KEY}"}
        assert auth.headers(ask("envd")) == {}

    @pytest.mark.parametrize(
        ("kind", "besides"),
        [
            ("template", {"Authorization"}),
            ("sandbox", {"X-API-KEY"}),
            ("agent", set()),
        ],
    )
    def test_with_a_secret(self, kind: Kind, besides: set[str]) -> None:
        """All but envd get a signature besides what they get anyway."""
        auth = AuthManager(KEY, SECRET, environ={})

        assert set(auth.headers(ask(kind))) == SIGNED | besides
        assert auth.headers(ask("envd")) == {}

    @pytest.mark.parametrize("body", [None, b"", b'{"prompt":"hi"}'])
    def test_a_signature_proves_what_is_sent(self, body: bytes | None) -> None:
        """Method, raw path and query, time, and the bytes of the body."""
        auth = AuthManager(KEY, SECRET, environ={}, clock=lambda: 1_700_000_000.9)
        headers = auth.headers(ask("agent", "POST", body))

        read = Signature.read({k.lower(): v for k, v in headers.items()})
        digest = hashlib.sha256(body or b"").hexdigest()
        assert read is not None
        assert read.proves("POST", "/a?b=%2f", digest, secrets=[SECRET])
        assert read.timestamp == "1700000000"
        assert SECRET not in str(headers)
        assert KEY not in str(headers)

    def test_a_nonce_serves_once(self) -> None:
        """Each attempt is signed afresh."""
        auth = AuthManager(KEY, SECRET, environ={})
        nonces = {auth.headers(ask("agent"))["X-PPIO-Nonce"] for _ in range(50)}

        assert len(nonces) == 50

    def test_tokens_of_a_sandbox_come_along(self) -> None:
        """They are the sandbox's own, whoever proves the rest."""
        give = attempt_auth(AuthManager(KEY, SECRET, environ={}), {"X-Token": "t"})

        assert set(give(ask("agent"), False)) == SIGNED | {"X-Token"}
        assert give(ask("envd"), False) == {"X-Token": "t"}


class TestKeyId:
    def test_is_made_of_the_key_and_does_not_tell_it(self) -> None:
        """The same for the same key, so that agents can be told once."""
        made = AuthManager(KEY, SECRET, environ={}).key_id

        assert made == AuthManager(KEY, environ={}).key_id
        assert made != AuthManager(KEY + "x", environ={}).key_id
        assert KEY not in made

    def test_may_be_chosen(self) -> None:
        """As the agent's `HmacAuth` names it."""
        auth = AuthManager(KEY, SECRET, environ={}, key_id="team-a")

        assert auth.key_id == "team-a"
        assert auth.headers(ask("agent"))["X-PPIO-Key"] == "team-a"

    @pytest.mark.parametrize("key_id", ["", "a b", "ü", KEY, "x" * 256])
    def test_what_cannot_be_one(self, key_id: str) -> None:
        """Nor may it be the key itself, which agents would see."""
        with pytest.raises(ConfigurationError, match="key_id") as caught:
            AuthManager(KEY, environ={}, key_id=key_id)

        assert KEY not in str(caught.value)

    def test_the_key_may_be_it_where_agents_get_it_anyway(self) -> None:
        """That was asked for."""
        auth = AuthManager(KEY, environ={}, key_id=KEY, forward_api_key=True)

        assert auth.key_id == KEY


class TestRotation:
    def test_is_complete_or_not_at_all(self) -> None:
        """A bad new key leaves the old one in use; a good one hides both."""
        auth = AuthManager(KEY, "secret-of-old", environ={})
        with pytest.raises(AuthenticationError):
            auth.rotate(api_key="ü")
        kept = auth.api_key
        auth.rotate(api_key="sk-new-9876543210")

        assert kept == KEY
        assert auth.api_key == "sk-new-9876543210"
        assert auth.signs is True
        assert auth.redactor.text(f"{KEY} sk-new-9876543210") == "*** ***"

    def test_no_request_sees_half_of_it(self) -> None:
        """The key of one pair never goes with the signature of another."""
        pairs = {f"sk-key-number-{n}": f"secret-number-{n}" for n in range(2)}
        auth = AuthManager(*next(iter(pairs.items())), environ={})
        over = threading.Event()

        def rotate() -> None:
            while not over.is_set():
                for key, secret in pairs.items():
                    auth.rotate(api_key=key, api_secret=secret)

        thread = threading.Thread(target=rotate)
        thread.start()
        try:
            for _ in range(500):
                headers = auth.headers(ask("sandbox"))
                read = Signature.read({k.lower(): v for k, v in headers.items()})
                assert read is not None
                assert read.proves(
                    "GET",
                    "/a?b=%2f",
                    hashlib.sha256(b"").hexdigest(),
                    secrets=[pairs[headers["X-API-KEY"]]],
                )
        finally:
            over.set()
            thread.join()


def test_repr_shows_four_characters_at_most() -> None:
    """Enough to tell keys apart."""
    shown = repr(AuthManager(KEY, "another-secret-value", environ={}))

    assert KEY[:-4] not in shown
    assert "another-secret" not in shown
    assert "cdef" in shown


def test_pickle_holds_only_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the environment is read again where the pickle is loaded."""
    monkeypatch.setenv("PPIO_API_KEY", "from-env-0123456789")
    of_environment = pickle.dumps(AuthManager())
    given = pickle.dumps(AuthManager(KEY, key_id="team-a", forward_api_key=True))
    monkeypatch.setenv("PPIO_API_KEY", "from-another-env")
    loaded = pickle.loads(given)

    assert b"from-env-0123456789" not in of_environment
    assert pickle.loads(of_environment).api_key == "from-another-env"
    assert (loaded.api_key, loaded.key_id) == (KEY, "team-a")
    assert "Authorization" in loaded.headers(ask("agent"))


class TestClient:
    def test_agents_of_the_embedded_platform_get_signatures(
        self, platform: FakePlatform
    ) -> None:
        """Its key comes with it; the secret is the caller's."""

        class Embedded:
            @hookimpl
            def ppio_default_platform(self, config: ClientConfig) -> tuple[str, str]:
                return platform.url, PLATFORM_KEY

        config = ClientConfig(base_url="local", key_id="team-a")
        with AgentRuntimeClient(
            api_secret=SECRET, config=config, plugins=[Embedded()]
        ) as client:
            client.invoke_agent("tpl1", "Hi")

        (request,) = platform.seen("POST", "/invocations")
        assert request.headers["x-ppio-key"] == "team-a"
        assert "authorization" not in request.headers

    def test_a_refused_signature_is_not_made_anew(self, platform: FakePlatform) -> None:
        """It would be refused again: that the nonce is another one proves nothing."""
        platform.on("POST", "/invocations", lambda e: e.reply(401, {"detail": "no"}))
        config = ClientConfig(base_url=platform.url, max_retries=3)
        with (
            AgentRuntimeClient(PLATFORM_KEY, SECRET, config=config) as client,
            pytest.raises(AuthenticationError, match="no"),
        ):
            client.invoke_agent("tpl1", "Hi")

        assert len(platform.seen("POST", "/invocations")) == 1

    def test_the_other_form_of_the_key_is_kept_to(self, platform: FakePlatform) -> None:
        """By the later attempts at the templates, signed or not."""
        answers = iter([401, 503, 503])

        def answer(exchange: Exchange) -> None:
            exchange.reply(next(answers, 200), [], {"Retry-After": "0"})

        platform.on("GET", "/templates", answer)
        config = ClientConfig(base_url=platform.url, max_retries=3)
        with AgentRuntimeClient(PLATFORM_KEY, SECRET, config=config) as client:
            client.list_templates()

        keys = ["x-api-key" in request.headers for request in platform.requests]
        assert keys == [False, True, True, True]


class Tickets:
    """A plug-in whose tokens are exchanged when they are refused."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bool]] = []
        self.current = "ticket-1"

    def headers(self, request: Request, *, refresh: bool = False) -> dict[str, str]:
        self.asked.append((request.kind, request.method, refresh))
        if refresh:
            self.current = "ticket-2"
        return {"Authorization": f"Ticket {self.current}"}

    @hookimpl
    def ppio_client_auth(self, config: ClientConfig) -> Tickets:
        assert isinstance(config, ClientConfig)
        return self


class TestPlugin:
    def test_replaces_the_keys_everywhere(self, platform: FakePlatform) -> None:
        """No API key is needed then, nor sent; each attempt asks anew."""
        tickets = Tickets()
        config = ClientConfig(base_url=platform.url, max_retries=0)
        with AgentRuntimeClient(config=config, plugins=[tickets]) as client:
            client.invoke_agent("tpl1", "Hi")
            with pytest.raises(ConfigurationError, match="plug-in"):
                _ = client.auth

        assert {kind for kind, *_ in tickets.asked} == {"template", "sandbox", "agent"}
        for request in platform.requests:
            assert request.headers["authorization"] == "Ticket ticket-1"
            assert "x-api-key" not in request.headers

    def test_is_asked_once_more_when_refused(self, platform: FakePlatform) -> None:
        """With `refresh`, and what it then gives is what is sent."""

        def refuse(exchange: Exchange) -> None:
            if exchange.request.headers["authorization"] == "Ticket ticket-1":
                exchange.reply(401, {"code": 401, "message": "expired"})

        platform.on("GET", "/templates", refuse)
        tickets = Tickets()
        config = ClientConfig(base_url=platform.url, max_retries=0)
        with AgentRuntimeClient(config=config, plugins=[tickets]) as client:
            client.list_templates()

        assert [refresh for *_, refresh in tickets.asked] == [False, True]

    def test_the_same_headers_are_not_tried_twice(self, platform: FakePlatform) -> None:
        """The refusal is then what the caller gets."""
        platform.on("GET", "/templates", lambda e: e.reply(401, {"message": "no"}))

        class Fixed(Tickets):
            def headers(self, request: Request, **_: Any) -> dict[str, str]:
                return {"Authorization": "Ticket always"}

        config = ClientConfig(base_url=platform.url, max_retries=0)
        with (
            AgentRuntimeClient(config=config, plugins=[Fixed()]) as client,
            pytest.raises(AuthenticationError),
        ):
            client.list_templates()

        assert len(platform.requests) == 1

    def test_may_leave_it_to_the_keys(self, platform: FakePlatform) -> None:
        """None is no answer; without a key that is an error that says so."""

        class Undecided:
            @hookimpl
            def ppio_client_auth(self, config: ClientConfig) -> None:
                return None

        config = ClientConfig(base_url=platform.url)
        with AgentRuntimeClient(
            PLATFORM_KEY, config=config, plugins=[Undecided()]
        ) as client:
            client.list_templates()
        with (
            AgentRuntimeClient(config=config, plugins=[Undecided()]) as client,
            pytest.raises(AuthenticationError, match="PPIO_API_KEY"),
        ):
            client.list_templates()

        assert platform.requests[0].headers["authorization"].endswith(PLATFORM_KEY)

    def test_may_leave_the_embedded_platform_alone(
        self, platform: FakePlatform
    ) -> None:
        """Being installed does not mean that there is another platform."""

        class Plugins:
            @hookimpl
            def ppio_client_auth(self, config: ClientConfig) -> None:
                return None

            @hookimpl
            def ppio_default_platform(self) -> tuple[str, str]:
                return platform.url, PLATFORM_KEY

        with AgentRuntimeClient(config=ClientConfig(), plugins=[Plugins()]) as client:
            assert "local platform" in repr(client)
            assert client.list_templates()

    def test_is_asked_once_a_client(self) -> None:
        """Also where its answer says which platform it is."""
        asked: list[ClientConfig] = []

        class Asked(Tickets):
            @hookimpl
            def ppio_client_auth(self, config: ClientConfig) -> Asked:
                asked.append(config)
                return self

        with AgentRuntimeClient(plugins=[Asked()]) as client:
            client._run.core.backend()

        assert len(asked) == 1

    def test_is_not_asked_for_the_controller(self) -> None:
        """It knows the sandbox's own token alone, as with keys."""
        tickets = Tickets()

        assert PluginAuth(tickets).headers(ask("envd")) == {}
        assert tickets.asked == []

    def test_its_last_tokens_are_hidden(self) -> None:
        """In any header that is named like a secret; those used last the longest."""
        made = iter(range(1000))

        class Many:
            def headers(self, request: Request, **_: Any) -> dict[str, str]:
                number = next(made)
                return {
                    "X-Corp-Token": "token-of-all",
                    "Authorization": f"Bearer token-{number:03}",
                    "X-PPIO-Signature": f"v1={number:03}-signature",
                    "X-Corp-Team": "search-team",
                }

        auth = PluginAuth(Many())
        for _ in range(100):
            auth.headers(ask("agent"))
        text = auth.redactor.text

        assert text("token-of-all token-099 token-037") == "*** *** ***"
        assert text("token-036") == "token-036"
        assert text("search-team 099-signature") == "search-team 099-signature"

    def test_stands_for_a_key_where_no_address_is_given(self) -> None:
        """It is meant for the cloud, then, not for the platform of this machine."""
        with AgentRuntimeClient(plugins=[Tickets()]) as client:
            assert "https://api.sandbox.ppio.cn" in repr(client)

    @pytest.mark.parametrize("given", [None, ["a"], {"a": 1}, {b"a": "b"}])
    def test_what_are_no_headers(self, given: Any) -> None:
        """The error names the plug-in."""

        class Bad:
            def headers(self, request: Request, *, refresh: bool = False) -> Any:
                return given

        with pytest.raises(ConfigurationError, match="Bad"):
            PluginAuth(Bad()).headers(ask("agent"))
