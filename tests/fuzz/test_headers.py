"""Request headers: whatever text they hold, the answer is one of the table."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.serving.testing import AgentTestClient
from tests.fuzz.support import fuzz, header_values, split
from tests.serving.support import make_app

VISIBLE = frozenset(map(chr, range(0x21, 0x7F)))
ID = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
WORDS = st.text(sorted(ID), min_size=1, max_size=10)


@pytest.fixture(scope="module", params=[False, True], ids=["table", "flask"])
def client(request: pytest.FixtureRequest) -> Iterator[AgentTestClient]:
    app = make_app(through_flask=request.param, retention=1.0, timeout=None)
    app.entrypoint(lambda request: "done")
    app.entrypoint(name="stream")(lambda request: iter("abc"))
    with app.test_client() as client:
        yield client


def ask(client: AgentTestClient, payload: Any = None, **headers: str) -> Any:
    """Call the agent; whatever comes back is an answer of ours."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = client.invoke({} if payload is None else payload, headers=named)
    assert_ours(answer)
    return answer


def assert_ours(answer: Any) -> None:
    assert 200 <= answer.status_code < 600
    assert answer.status_code != 500
    assert answer.headers["x-request-id"]
    kind = answer.headers["content-type"]
    if kind == "application/problem+json":
        assert answer.json["status"] == answer.status_code >= 400
    elif kind == "application/json":
        assert answer.json
    else:
        assert answer.text.startswith(": open\n")


@fuzz(100, share=0.2)
@given(value=WORDS | header_values)
def test_ids_and_keys_are_words_or_refused(client: Any, value: str) -> None:
    """400 for every text that is none; the answer has the id that was chosen."""
    is_id = 0 < len(value) <= 128 and ID.issuperset(value)
    answer = ask(client, X_Invocation_Id=value)
    assert answer.status_code == (200 if is_id else 400)
    assert not is_id or answer.headers["x-invocation-id"] == value
    is_key = 0 < len(value) <= 255 and VISIBLE.issuperset(value)
    answer = ask(client, Idempotency_Key=value)
    assert answer.status_code == (200 if is_key else 400)
    answer = ask(client, X_Request_Id=value)
    assert (answer.headers["x-request-id"] == value) == is_id


@fuzz(100, share=0.2)
@given(value=WORDS | header_values | st.none() | st.integers() | st.just([]))
def test_session_ids_are_words_or_refused(client: Any, value: Any) -> None:
    """By two headers, or a member of the body."""
    is_id = isinstance(value, str) and 0 < len(value) <= 256 and ID.issuperset(value)
    answer = ask(client, {"session_id": value})
    assert answer.status_code == (200 if is_id or value is None else 400)
    if not isinstance(value, str):
        return
    for name in ("X_PPIO_Session_Id", "X_Amzn_Bedrock_AgentCore_Runtime_Session_Id"):
        answer = ask(client, {"session_id": "other"}, **{name: value})
        assert answer.status_code == (200 if is_id else 400)
        assert not is_id or answer.headers["x-ppio-session-id"] == value


NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 1e308, 5e-324, True, "1", None, [1]])
)


@fuzz(100, share=0.2)
@given(header=header_values | NUMBERS.map(str), member=NUMBERS)
def test_a_timeout_is_a_number_above_0_or_refused(
    client: Any, header: str, member: Any
) -> None:
    """A tiny one is 504, a large one is lowered; the header is a plain decimal."""
    try:
        valid = set(header) <= set("0123456789.") and 0 < float(header) < float("inf")
    except ValueError:
        valid = False
    answer = ask(client, X_PPIO_Timeout=header)
    assert answer.status_code in ((200, 504) if valid else (400,))
    if isinstance(member, float) and not 0 < member < float("inf"):
        return  # what is no JSON is no timeout either
    number = isinstance(member, int | float) and not isinstance(member, bool)
    valid = member is None or (number and 0 < member <= sys.float_info.max)
    answer = ask(client, {"timeout": member})
    assert answer.status_code in ((200, 504) if valid else (400,))


PREFERENCES = st.sampled_from([
    "respond-async", "Respond-Async", "wait=10", "respond-async;a=b", 'x="respond-async"',
    'x=", respond-async,"', "respond-asynchronous", " respond-async ; a", "", '"',
    "return=minimal; foo=\"some parameter\"",
])  # fmt: skip


@fuzz(100, share=0.2)
@given(value=st.lists(PREFERENCES, max_size=4).map(",".join) | header_values)
def test_an_early_answer_is_given_to_who_prefers_it(client: Any, value: str) -> None:
    """Whoever does not name it waits for the result."""
    items = [split(item, ";")[0] for item in split(value, ",")]
    early = "respond-async" in [item.lower() for item in items]
    answer = ask(client, Prefer=value)
    assert answer.status_code == (202 if early else 200)
    assert ("location" in answer.headers) == early


EVENT_IDS = st.integers(-1, 6).map(str) | st.sampled_from([
    "٣", "\xb2", "1_0", "+1", " 2", "2.0", "9" * 18, "9" * 19, "9" * 5000, "", "0x1",
])  # fmt: skip


@fuzz(100, share=0.2)
@given(value=EVENT_IDS | header_values)
def test_events_go_on_after_a_number_or_are_refused(client: Any, value: str) -> None:
    """By header; and by query, where it has no spaces. Nothing means from the first."""
    client.post(
        "/invocations?entrypoint=stream",
        json={},
        headers={"X-Invocation-Id": "a-finished-stream"},
    )
    digits = value.isascii() and value.isdigit()
    after = int(value) if digits and len(value) < 19 else None
    after = 0 if value == "" else after
    valid = after is not None and after <= 4
    answers = [
        client.get(
            "/invocations/a-finished-stream/events", headers={"Last-Event-ID": value}
        )
    ]
    if re.fullmatch("[0-9A-Za-z_.-]*", value):
        answers.append(
            client.get(f"/invocations/a-finished-stream/events?after={value}")
        )
    for answer in answers:
        assert_ours(answer)
        assert answer.status_code == (200 if valid else 400)
        if valid:
            assert answer.text.count("id: ") == 4 - (after or 0)


MEDIA_TYPES = st.sampled_from([
    "application/json", "text/plain", "application/x-www-form-urlencoded",
    "Multipart/Form-Data; boundary=x", "application/json; charset=utf-16", "", ";",
])  # fmt: skip
ENCODINGS = st.sampled_from(
    ["", "identity", "Identity", "gzip", "br", "identity, gzip"]
)


@fuzz(100, share=0.2)
@given(media=MEDIA_TYPES | header_values, encoding=ENCODINGS | header_values)
def test_a_body_is_json_whatever_its_type_says_unless_it_cannot_be(
    client: Any, media: str, encoding: str
) -> None:
    """Forms and compressed bodies are 415."""
    answer = ask(client, Content_Type=media, Content_Encoding=encoding)
    kind = media.partition(";")[0].strip().lower()
    is_form = kind in ("application/x-www-form-urlencoded", "multipart/form-data")
    is_plain = encoding.strip().lower() in ("", "identity")
    assert answer.status_code == (415 if is_form or not is_plain else 200)


ANY_HEADERS = st.dictionaries(
    st.sampled_from([
        "Accept", "Prefer", "Last-Event-ID", "Idempotency-Key", "X-Invocation-Id",
        "X-PPIO-Timeout", "X-PPIO-Session-Id", "Content-Type", "Content-Encoding",
        "Content-Length", "Host", "Origin", "Access-Control-Request-Method",
        "Access-Control-Request-Headers", "X-Request-Id", "Authorization", "Cookie",
    ]),
    header_values | st.sampled_from(["1", "x", "respond-async", "text/event-stream"]),
    max_size=5,
)  # fmt: skip
PATHS = st.sampled_from([
    "/", "/ping", "/invocations", "/invocations/x", "/invocations/x/events",
    "/invocations/x/cancel", "/invocations?entrypoint=stream", "//", "/%ff%00", "",
    "/invocations?entrypoint=%ff", "/invocations/%0d%0a", "*", "/ping/", "/invocations//",
])  # fmt: skip
METHODS = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "X", "get"])


@fuzz(300, share=0.5)
@given(METHODS, PATHS, ANY_HEADERS, st.sampled_from([b"{}", b"[", b""]))
def test_no_request_is_an_internal_error(
    client: Any, method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    """Whatever its method, path, headers and body."""
    answer = client.request(method, path, data=body, headers=headers)
    assert answer.status_code != 500, answer.text
    assert answer.headers["x-request-id"]
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.json
