"""Authentication by request signatures."""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import (
    ConfigurationError,
)
from ppio_agent.serving import ApiKeyAuth, HmacAuth
from ppio_agent.serving.testing import AgentTestClient
from ppio_agent.web.exchange import Exchange
from ppio_agent.wire import signing
from ppio_agent.wire.signing import MemoryNonceStore, nonces_unavailable
from tests.serving.conftest import Serve
from tests.serving.support import JSON
from tests.serving.support_auth import (
    KEY,
    SECRET,
    app_with,
    bearer,
    client_of,
    signed,
)
from tests.support import wait_until

NOW = 1_700_000_000
BODY = b'{"prompt":"hi"}'
TARGET = "/invocations?x=1"
VECTOR = {
    "X-PPIO-Key": "test",
    "X-PPIO-Timestamp": "1700000000",
    "X-PPIO-Nonce": "0123456789abcdef",
    "X-PPIO-Signature": "v1="
    "e39a1b2d55c2665aea48e37ec29d3d628abdcde8714766ba7a787a90d368700e",
}
ANYTHING = client_of(HmacAuth({"test": SECRET}))
ODD_TARGETS = [
    "/invocations?x=1&x=%31&y=%C3%BC&z=a+b%20c",
    "/invocations?",
    "/invocations/",
    "/%69nvocations?a=/b?c",
    "/invocations?entrypoint=agent&%00=%2f%2F",
]


def then(now: float = NOW, **options: Any) -> HmacAuth:
    """Return what knows the key of the vector, at that time."""
    return HmacAuth({"test": SECRET}, clock=lambda: now, **options)


def send(
    client: AgentTestClient,
    headers: Mapping[str, str] = VECTOR,
    *,
    method: str = "POST",
    target: str = TARGET,
    body: bytes = BODY,
) -> tuple[int, str]:
    """Return the answer's status, and the code in it."""
    answer = client.request(method, target, data=body, headers=headers)
    return answer.status_code, answer.json.get("code", "")


def test_the_vector_of_the_specification_is_admitted(through_flask: bool) -> None:
    """Its key is the principal, and what proved it is kept from the handler."""
    client = client_of(then(), through_flask=through_flask)
    headers = {**VECTOR, "X-API-Key": "for another service"}
    answer = client.request("POST", TARGET, data=BODY, headers=headers)
    name, scheme, seen = answer.json["result"]
    assert (name, scheme) == ("test", "hmac")
    assert not [header for header in seen if header.startswith("x-ppio-")]
    assert seen["x-api-key"] == "for another service"


@pytest.mark.parametrize(
    "change",
    [
        {"body": b'{"prompt":"ho"}'}, {"body": b""}, {"target": "/invocations?x=2"},
        {"target": "/invocations?x=%31"}, {"target": "/invocations/?x=1"},
        {"target": "/invocations"}, {"method": "GET", "target": TARGET},
        {"headers": {**VECTOR, "X-PPIO-Nonce": "0123456789abcdeg"}},
        {"headers": {**VECTOR, "X-PPIO-Timestamp": "1700000001"}},
        {"headers": {**VECTOR, "X-PPIO-Key": "tess"}},
        {"headers": {**VECTOR, "X-PPIO-Signature": "v1=" + "0" * 64}},
    ],
)  # fmt: skip
def test_a_changed_request_is_not_admitted(
    change: dict[str, Any], through_flask: bool
) -> None:
    """One byte of anything that is signed; and its nonce is not used up by that."""
    client = client_of(then(), through_flask=through_flask)
    assert send(client, **change) == (401, "invalid_credentials")
    assert send(client) == (200, "")


@pytest.mark.parametrize("distance", [-301, -300.5, 300.5, 301, 10**9])
def test_a_signature_of_another_time_has_expired(
    distance: float, through_flask: bool
) -> None:
    """Before as after; the edges are in time, and the window can be set."""
    late = client_of(then(NOW + distance), through_flask=through_flask)
    assert send(late) == (401, "signature_expired")
    on_time = client_of(then(NOW + (300 if distance > 0 else -300)))
    assert send(on_time) == (200, "")
    short = client_of(then(NOW + 11, window=10.0))
    assert send(short) == (401, "signature_expired")


def test_a_request_is_admitted_once(through_flask: bool) -> None:
    """A retry has to be signed anew; then it joins by its idempotency key."""
    client = client_of(then(), through_flask=through_flask)
    assert send(client) == (200, "")
    assert send(client) == (401, "nonce_replayed")
    for replayed in (None, "true"):
        again = signed("POST", TARGET, BODY, now=NOW)
        headers = {**again, "Idempotency-Key": "k"}
        answer = client.request("POST", TARGET, data=BODY, headers=headers)
        assert answer.headers.get("idempotency-replayed") == replayed


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"X-PPIO-Key": "test"}, "X-PPIO-Timestamp: missing"),
        ({**VECTOR, "X-PPIO-Nonce": "short"}, "X-PPIO-Nonce: has to be"),
        ({**VECTOR, "X-PPIO-Timestamp": "now"}, "X-PPIO-Timestamp: has to be"),
        ({**VECTOR, "X-PPIO-Signature": "v0=" + "0" * 64}, "X-PPIO-Signature: has to"),
    ],
)
def test_headers_of_another_form_are_a_mistake(
    headers: dict[str, str], word: str, through_flask: bool
) -> None:
    """Told as such, before any key is looked at."""
    client = client_of([then(), ApiKeyAuth([KEY])], through_flask=through_flask)
    answer = client.invoke({}, headers={**headers, **bearer(KEY)})
    assert (answer.status_code, answer.json["code"]) == (
        400,
        "invalid_signature_headers",
    )
    assert word in answer.json["detail"]


def test_the_order_of_the_checks() -> None:
    """Form, key and signature, time, nonce: the first that fails is told."""
    client = client_of(then(NOW + 301, nonces=MemoryNonceStore(limit=1)))
    old_and_false = {**VECTOR, "X-PPIO-Key": "nobody"}
    assert send(client, old_and_false) == (401, "invalid_credentials")
    malformed = {**old_and_false, "X-PPIO-Nonce": "n"}
    assert send(client, malformed) == (400, "invalid_signature_headers")
    # None of these, nor one that is too old, has used up the only place for a nonce.
    assert send(client) == (401, "signature_expired")
    now = signed("POST", TARGET, BODY, now=NOW + 301)
    assert send(client, now) == (200, "")


def test_an_unknown_key_looks_like_a_bad_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same answer, after the same work, however many secrets a key has."""
    work: list[bytes] = []
    real = signing._digest

    def counted(secret: str, text: bytes) -> str:
        work.append(text)
        return real(secret, text)

    client = client_of(HmacAuth({"test": SECRET, "two": ["a", "b"]}))
    answers = []
    for key_id in ("test", "two", "nobody"):
        headers = signed("POST", "/invocations", b"{}", key_id=key_id, secret="wrong")
        monkeypatch.setattr(signing, "_digest", counted)
        answer = client.invoke({}, headers={**headers, "X-Request-Id": "r"})
        monkeypatch.undo()
        answers.append((answer.status_code, answer.headers, answer.json, len(work)))
        work.clear()
    assert answers[0] == answers[1] == answers[2]
    status, headers, _, tried = answers[0]
    assert (status, tried) == (401, 2)
    assert headers["www-authenticate"] == "Bearer, PPIO-HMAC"


def test_secrets_are_exchanged_without_a_gap() -> None:
    """Both are accepted for a while; or a function knows which."""
    rotating = client_of(HmacAuth({"test": ["sk_new", SECRET]}))
    for secret in ("sk_new", SECRET):
        headers = signed("POST", "/invocations", b"{}", secret=secret)
        assert rotating.invoke({}, headers=headers).status_code == 200
    known: dict[str, Any] = {"test": SECRET}
    asked = client_of(HmacAuth(lambda: known))
    for secret in (SECRET, "sk_new"):
        known["test"] = secret
        headers = signed("POST", "/invocations", b"{}", secret=secret)
        assert asked.invoke({}, headers=headers).status_code == 200
        assert asked.invoke({}, headers=signed(
            "POST", "/invocations", b"{}", secret="sk_old"
        )).status_code == 401  # fmt: skip


def test_a_request_that_is_not_signed_is_left_to_the_others() -> None:
    """In whichever order they stand; alone, nobody knows the sender."""
    for auth in ([ApiKeyAuth({"anna": KEY}), then()], [then(), ApiKeyAuth([KEY])]):
        client = client_of(auth)
        assert client.invoke({}, headers=bearer(KEY)).result[1] == "api-key"
        assert send(client) == (200, "")
    nobody = client_of(then()).invoke({}, headers=bearer(KEY))
    assert nobody.json["code"] == "authentication_required"


def test_a_flood_of_one_key_is_refused() -> None:
    """429, and when to come back; other keys are admitted."""
    auth = HmacAuth({"test": SECRET, "b": "sk_b"}, nonces=MemoryNonceStore(limit=1))
    client = client_of(auth)
    first, second = (signed("POST", "/invocations", b"{}") for _ in range(2))
    assert client.invoke({}, headers=first).status_code == 200
    refused = client.invoke({}, headers=second)
    assert (refused.status_code, refused.json["code"]) == (429, "rate_limited")
    assert 590 < int(refused.headers["retry-after"]) <= 600
    other = signed("POST", "/invocations", b"{}", key_id="b", secret="sk_b")
    assert client.invoke({}, headers=other).status_code == 200


class DownStore:
    def claim(self, key_id: str, nonce: str, *, keep: float) -> bool:
        raise nonces_unavailable() from OSError("disk is gone")

    def close(self) -> None:
        pass


def test_without_its_nonces_nobody_is_admitted(
    caplog: pytest.LogCaptureFixture, through_flask: bool
) -> None:
    """503 for the client, the reason for the log."""
    client = client_of(then(nonces=DownStore()), through_flask=through_flask)
    with caplog.at_level(logging.WARNING, "ppio_agent"):
        answer = client.request("POST", TARGET, data=BODY, headers=VECTOR)
    assert (answer.status_code, answer.json["code"]) == (503, "nonces_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert answer.json["retryable"] is True
    assert "disk" not in answer.text
    assert "disk is gone" in caplog.text


@pytest.mark.parametrize(
    "secrets",
    [
        {}, [SECRET], SECRET, {"test": ""}, {"test": []}, {"test": [SECRET, ""]},
        {"test": 5.0}, {"test": [5]}, {"": SECRET}, {"a b": SECRET}, {"é": SECRET},
        {"k" * 256: SECRET}, {5: SECRET}, {"test": "\ud800"}, None,
    ],
    ids=repr,
)  # fmt: skip
def test_secrets_that_cannot_be_used_are_refused(secrets: Any) -> None:
    """When the app is made, and without showing them."""
    with pytest.raises(ConfigurationError) as caught:
        HmacAuth(secrets)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("window", [0, -1.0, float("inf"), float("nan")])
def test_a_window_has_to_be_one(window: float) -> None:
    """Else all or nothing would be on time."""
    with pytest.raises(ConfigurationError, match="above 0"):
        HmacAuth({"test": SECRET}, window=window)


def test_an_app_without_signatures_does_not_load_them() -> None:
    """Nor one without API keys those."""
    code = (
        "import sys; from ppio_agent import PPIOAgentRuntimeApp as A;"
        " A().test_client().get('/ping'); print([m for m in sys.modules if m in"
        " ('ppio_agent.wire.signing', 'ppio_agent.web.api_key',"
        " 'ppio_agent.web.hmac_auth', 'ppio_agent.storage')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


HEADER = st.text(st.characters(max_codepoint=255), max_size=70)


@settings(max_examples=100)
@given(
    headers=st.fixed_dictionaries({
        "X-PPIO-Key": st.sampled_from(["test", "tess"]) | HEADER,
        "X-PPIO-Timestamp": st.just("1700000000") | st.from_regex(r"\d+") | HEADER,
        "X-PPIO-Nonce": st.text("aZ0_-", min_size=15, max_size=130) | HEADER,
        "X-PPIO-Signature": st.from_regex(r"v1=[0-9a-f]{64}", fullmatch=True) | HEADER,
    }),
    target=st.text(st.characters(codec="utf-8"), max_size=20).map(lambda text: f"/invocations?{text}"),
    body=st.binary(max_size=20),
)  # fmt: skip
def test_whatever_is_sent_is_refused_in_order(
    headers: dict[str, str], target: str, body: bytes
) -> None:
    """With 400 or 401, whatever the bytes of headers, target and body."""
    answer = ANYTHING.request("POST", target, data=body, headers=headers)
    assert (answer.status_code, answer.json["code"]) in {
        (400, "invalid_signature_headers"),
        (401, "invalid_credentials"),
    }


# Over sockets.


@pytest.mark.parametrize("target", ODD_TARGETS)
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_what_was_sent_is_what_was_signed(
    serve: Serve, target: str, chunked: bool, through_flask: bool
) -> None:
    """The target with its percent-encoding, and the body without its chunks."""
    http = serve(app_with(HmacAuth({"test": SECRET}), through_flask=through_flask))
    headers = {**JSON, **signed("POST", target, BODY)}
    body = iter([BODY[:5], BODY[5:]]) if chunked else BODY
    answer = http.request("POST", target, body, headers)
    assert answer.status == 200, answer
    wrong = {**JSON, **signed("POST", target.replace("i", "%69"), BODY)}
    assert http.request("POST", target, BODY, wrong).status == 401


def test_look_up_events_and_cancel_are_signed_without_a_body(
    serve: Serve, through_flask: bool
) -> None:
    """The hash is that of nothing; HEAD is signed as HEAD."""
    http = serve(app_with(HmacAuth({"test": SECRET}), through_flask=through_flask))
    head = {**signed("POST", "/invocations", b"{}"), "X-Invocation-Id": "i1", **JSON}
    assert http.request("POST", "/invocations", b"{}", head).status == 200
    for method, target in (
        ("GET", "/invocations/i1"),
        ("HEAD", "/invocations/i1"),
        ("GET", "/invocations/i1/events?after=1"),
        ("POST", "/invocations/i1/cancel"),
    ):
        answer = http.request(method, target, None, signed(method, target))
        assert answer.status == 200, (method, target)
        unsigned = http.request(method, target)
        assert unsigned.status == 401
        assert unsigned.headers["www-authenticate"] == "Bearer, PPIO-HMAC"
    other = signed("GET", "/invocations/i1")
    assert http.request("HEAD", "/invocations/i1", None, other).status == 401


def test_the_absolute_form_is_signed_by_its_path(serve: Serve) -> None:
    """As a proxy sends it."""
    http = serve(app_with(HmacAuth({"test": SECRET})))
    for target in ("/invocations?x=%31", "/invocations?"):
        headers = {**JSON, **signed("POST", target, BODY)}
        url = f"http://agent.example:80{target}"
        assert http.request("POST", url, BODY, headers).status == 200


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({"REQUEST_URI": "/a%2fb?x=%31#f"}, "/a%2fb?x=%31#f"),
        ({"REQUEST_URI": "http://h:1/a?x=http://g/b"}, "/a?x=http://g/b"),
        ({"REQUEST_URI": "http://h/?"}, "/?"),
        ({"REQUEST_URI": "http://h?x"}, "/?x"),
        ({"REQUEST_URI": "https://h"}, "/"),
        ({"REQUEST_URI": "//a//b"}, "//a//b"),
        ({"REQUEST_URI": "*"}, "*"),
        ({"REQUEST_URI": "", "RAW_URI": "/raw?x"}, "/raw?x"),
        ({"RAW_URI": "http://h/raw%20?x"}, "/raw%20?x"),
        ({"REQUEST_URI": "/site/a", "SCRIPT_NAME": "/site"}, "/site/a"),
        ({"SCRIPT_NAME": "/s t", "QUERY_STRING": "x=%31"}, "/s%20t/a%20%C3%BC?x=%31"),
        ({}, "/a%20%C3%BC"),
    ],
)  # fmt: skip
def test_the_target_is_found_under_each_server(
    environ: dict[str, str], target: str
) -> None:
    """As it was sent if the server tells, else built from what it tells."""
    basic = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a ü".encode().decode("latin-1")}
    assert Exchange({**basic, **environ}, max_body=1).target == target


def test_a_body_that_is_too_large_is_refused_before_its_signature(
    serve: Serve,
) -> None:
    """Whoever sent it; and it does not use up the nonce."""
    http = serve(app_with(HmacAuth({"test": SECRET}), max_request_size=100))
    big = b'{"prompt":"%s"}' % (b"x" * 100)
    for body in (big, iter([big[:50], big[50:]])):
        answer = http.request("POST", "/invocations", body, {**JSON, **VECTOR})
        assert (answer.status, answer.json["code"]) == (413, "request_too_large")


def test_of_parallel_copies_of_a_request_one_is_admitted(serve: Serve) -> None:
    """Whoever has seen it on its way gains nothing by being quick."""
    http = serve(app_with(HmacAuth({"test": SECRET})))
    headers = {**JSON, **signed("POST", "/invocations", b"{}")}
    start = threading.Barrier(8)

    def call(_: int) -> int:
        start.wait(10)
        return http.request("POST", "/invocations", b"{}", headers).status

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(call, range(8))) == [200] + [401] * 7


SITE = """
import os
from ppio_agent import HmacAuth, PPIOAgentRuntimeApp
from ppio_agent.storage import open_nonces

nonces = open_nonces({url!r})
app = PPIOAgentRuntimeApp(auth=HmacAuth({{"test": {secret!r}}}, nonces=nonces))
app.on_shutdown(nonces.close)

@app.entrypoint
def agent(request):
    return os.getpid()
"""


class OverUnix(http.client.HTTPConnection):
    """A connection to a server on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent.example", timeout=20)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Path]:
    """The socket of two worker processes, forked from one that has made the app."""
    url = f"sqlite:///{tmp_path}/nonces.db"
    script = tmp_path / "signed_site.py"
    script.write_text(SITE.format(url=url, secret=SECRET))
    path = tmp_path / "s"
    command = [
        sys.executable, "-m", "gunicorn", "--worker-class", "gthread",
        "--workers", "2", "--threads", "4", "--preload", "--bind", f"unix:{path}",
        "--chdir", str(tmp_path), "signed_site:app",
    ]  # fmt: skip
    # Its control socket, too, is kept in the folder of the test.
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(command, env=environ) as process:
        try:
            wait_until(path.exists, timeout=20, what="gunicorn listens")
            yield path
        finally:
            process.terminate()


def test_several_processes_share_their_nonces(gunicorn: Path) -> None:
    """A copy that reaches another worker is a copy; targets are those that were sent."""

    def call(
        url: str, headers: Mapping[str, str], *, chunked: bool = False
    ) -> tuple[int, Any]:
        connection = OverUnix(gunicorn)
        try:
            body = iter([BODY[:5], BODY[5:]]) if chunked else BODY
            head = {**JSON, **headers}
            connection.request("POST", url, body, head, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    for target in ODD_TARGETS:
        for prefix in ("", "http://agent.example"):
            for chunked in (False, True):
                headers = signed("POST", target, BODY)
                status, said = call(prefix + target, headers, chunked=chunked)
                assert status == 200, (target, said)
    workers: set[int] = set()
    with ThreadPoolExecutor(8) as pool:

        def both_have_answered() -> bool:
            headers = signed("POST", TARGET, BODY)
            answers = list(pool.map(lambda _: call(TARGET, headers), range(8)))
            assert sorted(status for status, _ in answers) == [200] + [401] * 7
            workers.update(said["result"] for status, said in answers if status == 200)
            return len(workers) == 2

        wait_until(both_have_answered, timeout=20)
