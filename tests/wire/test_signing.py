"""Request signatures, and the nonces that make each of them count once."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import WireError
from ppio_agent.wire.signing import (
    SIGNATURE_HEADERS,
    MemoryNonceStore,
    Signature,
    sign,
    valid_key_id,
)

BODY = hashlib.sha256(b'{"prompt":"hi"}').hexdigest()
ONE: dict[str, Any] = {
    "method": "POST",
    "target": "/invocations?x=1",
    "body_sha256": BODY,
    "key_id": "test",
    "secret": "sk_test_secret",
    "now": 1_700_000_000.0,
    "nonce": "0123456789abcdef",
}


def signed(**changes: object) -> dict[str, str]:
    values = {**ONE, **changes}
    first = [values.pop(name) for name in ("method", "target", "body_sha256")]
    return sign(*first, **values)


def test_the_vector_of_the_specification() -> None:
    """Client, app and cluster compute the same."""
    assert BODY == "14479f4e87d340fe0ca0d522d87a5b3a028ebb1af24fbb8d3ef4553044fc6db6"
    assert signed() == {
        "X-PPIO-Key": "test",
        "X-PPIO-Timestamp": "1700000000",
        "X-PPIO-Nonce": "0123456789abcdef",
        "X-PPIO-Signature": "v1="
        "e39a1b2d55c2665aea48e37ec29d3d628abdcde8714766ba7a787a90d368700e",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "PUT"),
        ("target", "/invocations?x=2"),
        ("target", "/invocations?x=%31"),
        ("body_sha256", hashlib.sha256().hexdigest()),
        ("secret", "sk_test_secres"),
        ("now", 1_700_000_001.0),
        ("nonce", "0123456789abcdeg"),
    ],
)
def test_every_part_is_signed(name: str, value: object) -> None:
    """A change of any of them gives another signature."""
    changed = signed(**{name: value})
    assert changed["X-PPIO-Signature"] != signed()["X-PPIO-Signature"]


def test_what_may_differ_between_the_sides_does_not_matter() -> None:
    """The case of the method, and the fraction of a second."""
    assert signed(method="post", now=1_700_000_000.9) == signed()


@settings(deadline=None)
@given(secret=st.text(st.characters(codec="utf-8"), min_size=20, max_size=60))
def test_the_secret_is_never_sent(secret: str) -> None:
    """It proves; it does not travel."""
    assert secret not in "\n".join(signed(secret=secret).values())


SECRET = "sk_test_secret"
# What a header of a WSGI server may hold.
HEADER_TEXT = st.text(st.characters(max_codepoint=255), max_size=140)
TARGETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


def lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def read(headers: dict[str, str]) -> Signature | WireError | None:
    try:
        return Signature.read(headers)
    except WireError as error:
        return error


def accepted(headers: dict[str, str], **changes: str) -> bool:
    """Whether a request with these headers is believed, with one key known."""
    signature = read(headers)
    if isinstance(signature, WireError):
        return False
    assert signature is not None
    one = {"method": "POST", "target": ONE["target"], "body_sha256": BODY, **changes}
    known = {"test": SECRET}.get(signature.key_id, "nobody has it")
    return signature.proves(*one.values(), secrets=[known])


def test_what_was_signed_is_proved() -> None:
    """With any of the key's secrets, so that they can be rotated."""
    signature = Signature.read(lowered(signed()))
    assert signature is not None
    assert (signature.key_id, signature.timestamp) == ("test", "1700000000")
    for secrets in ([SECRET], ["new", SECRET], [SECRET, "old"]):
        assert signature.proves("POST", ONE["target"], BODY, secrets=secrets)
    assert not signature.proves("POST", ONE["target"], BODY, secrets=["new", "old"])
    assert not signature.proves("POST", ONE["target"], BODY, secrets=[])


@settings(max_examples=100)
@given(
    values=st.fixed_dictionaries({
        "key_id": st.text(st.characters(min_codepoint=33, max_codepoint=126),
                          min_size=1, max_size=255),
        "secret": st.text(st.characters(codec="utf-8"), min_size=1),
        "now": st.floats(0, 1e14),
        "nonce": st.text("abz059AZ_-", min_size=16, max_size=128),
    }),
    method=st.sampled_from(["GET", "POST", "post", "HEAD"]),
    target=TARGETS,
    body=st.binary(max_size=40),
)  # fmt: skip
def test_any_request_that_is_signed_is_proved(
    values: dict[str, Any], method: str, target: str, body: bytes
) -> None:
    """`read` takes what `sign` gives."""
    digest = hashlib.sha256(body).hexdigest()
    signature = Signature.read(lowered(sign(method, target, digest, **values)))
    assert signature is not None
    secrets = [values["secret"]]
    assert signature.proves(method.upper(), target, digest, secrets=secrets)
    assert signature.is_timely(values["now"], 1.0)


@settings(max_examples=100)
@given(
    name=st.sampled_from([name.lower() for name in SIGNATURE_HEADERS]),
    data=st.data(),
    new=st.characters(max_codepoint=255),
)
def test_one_changed_character_of_a_header_is_enough(
    name: str, data: st.DataObject, new: str
) -> None:
    """Then it has the wrong form, or proves nothing."""
    headers = lowered(signed())
    value = headers[name]
    at = data.draw(st.integers(0, len(value) - 1))
    headers[name] = value[:at] + new + value[at + 1 :]
    assert accepted(headers) == (headers[name] == value)


@settings(max_examples=100)
@given(
    name=st.sampled_from(["method", "target", "body_sha256"]),
    data=st.data(),
    new=st.characters(max_codepoint=126),
)
def test_one_changed_character_of_the_request_is_enough(
    name: str, data: st.DataObject, new: str
) -> None:
    """The method's case alone says nothing."""
    value = {"method": "POST", "target": ONE["target"], "body_sha256": BODY}[name]
    at = data.draw(st.integers(0, len(value) - 1))
    changed = value[:at] + new + value[at + 1 :]
    same = changed == value or (name == "method" and changed.upper() == value)
    assert accepted(lowered(signed()), **{name: changed}) == same


@settings(max_examples=100)
@given(
    headers=st.fixed_dictionaries(
        {}, optional={name.lower(): HEADER_TEXT for name in SIGNATURE_HEADERS}
    )
)
def test_whatever_the_headers_hold_is_read_or_refused(headers: dict[str, str]) -> None:
    """No other exception, and the refusal names the header, not what is in it."""
    found = read(headers)
    assert (found is None) == (not headers)
    if isinstance(found, WireError):
        assert found.path in SIGNATURE_HEADERS
        value = headers.get(found.path.lower(), "")
        assert len(value) < 20 or value not in str(found)


@pytest.mark.parametrize("name", SIGNATURE_HEADERS)
def test_one_of_the_headers_needs_the_others(name: str) -> None:
    """Half a signature is a mistake, not an unsigned request."""
    headers = lowered(signed())
    del headers[name.lower()]
    with pytest.raises(WireError, match=f"{name}: missing"):
        Signature.read(headers)
    assert Signature.read({"authorization": "Bearer x"}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-ppio-key", ""), ("x-ppio-key", "a b"), ("x-ppio-key", "k" * 256),
        ("x-ppio-timestamp", "1700000000.0"), ("x-ppio-timestamp", "-1"),
        ("x-ppio-timestamp", "٣"), ("x-ppio-timestamp", "1" * 16),
        ("x-ppio-nonce", "0123456789abcde"), ("x-ppio-nonce", "n" * 129),
        ("x-ppio-nonce", "0123456789abcde+"), ("x-ppio-nonce", "0123456789abcdef\n"),
        ("x-ppio-signature", "e3" * 32), ("x-ppio-signature", "v2=" + "e3" * 32),
        ("x-ppio-signature", "v1=" + "E3" * 32), ("x-ppio-signature", "v1=e3"),
    ],
)  # fmt: skip
def test_a_header_of_another_form_is_refused(name: str, value: str) -> None:
    """The refusal says which, and what it has to be."""
    with pytest.raises(WireError, match="has to be") as caught:
        Signature.read({**lowered(signed()), name: value})
    assert caught.value.path.lower() == name


def test_a_signature_holds_for_a_while_before_and_after() -> None:
    """Clocks differ, in both directions; the edge belongs to it."""
    signature = Signature.read(lowered(signed()))
    assert signature is not None
    for now, timely in ((-300, True), (300, True), (-300.5, False), (301, False)):
        assert signature.is_timely(1_700_000_000 + now, 300.0) is timely


def test_a_target_of_other_bytes_is_signed_as_those_bytes() -> None:
    """What a server got as bytes outside UTF-8 is neither refused nor changed."""
    raw = b"/\xff\xc3\xbc"
    text = raw.decode("utf-8", "surrogateescape")
    headers = signed(target=text)
    signature = Signature.read(lowered(headers))
    assert signature is not None
    assert signature.proves("POST", text, BODY, secrets=[SECRET])
    assert not signature.proves("POST", "/\udcfeü", BODY, secrets=[SECRET])


def test_a_key_id_has_to_fit_into_a_header() -> None:
    """Else nobody could ever name it."""
    assert valid_key_id("team-a/2024")
    assert not any(map(valid_key_id, ("", "a b", "ä", "a\n", "k" * 256)))


def test_nonces_that_expired_leave_nothing_behind() -> None:
    """Nor do keys that are no longer used."""
    now = [0.0]
    store = MemoryNonceStore(clock=lambda: now[0])
    for key_id in ("a", "b"):
        assert store.claim(key_id, "n1", keep=600.0)
    now[0] = 601.0
    assert store.claim("c", "n1", keep=600.0)
    assert list(store._expiry) == ["c"]
    assert len(store._queue) == 1


def test_a_forked_child_knows_the_nonces_and_not_the_lock_of_its_parent() -> None:
    """Whoever held it at the fork does not live there to let go of it."""
    store = MemoryNonceStore()
    assert store.claim("a", "n1", keep=600.0)
    with store._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends a child that waits
            claimed = [store.claim("a", nonce, keep=600.0) for nonce in ("n1", "n2")]
            os._exit(0 if claimed == [False, True] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.claim("a", "n2", keep=600.0)
