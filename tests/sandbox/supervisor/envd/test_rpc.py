"""Messages as protojson, and how errors are told."""

from __future__ import annotations

import base64
import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.envd.rpc import (
    Message,
    RpcError,
    as_rpc_error,
    end_frame,
    parse_message,
)
from ppio_agent.wire.connect import HTTP_STATUS

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.binary(max_size=40), st.booleans(), st.booleans())
def test_bytes_are_base64_of_either_alphabet(
    data: bytes,
    url: bool,
    padded: bool,
) -> None:
    """Padded or not, as writers of protojson like it."""
    text = (base64.urlsafe_b64encode if url else base64.b64encode)(data).decode()
    message = Message({"x": text if padded else text.rstrip("=")})

    assert message.data("x") == data


@pytest.mark.parametrize(
    "text", ["a", "QQ=Q", "Q=QQ", "QQ==QQ", "QQ!Q", "QQ Q", "QUJD!", "ß"]
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    """Nothing of it is skipped."""
    with pytest.raises(RpcError, match="base64"):
        Message({"x": text}).data("x")


@given(st.integers(0, 2**32 - 1))
def test_numbers_come_as_numbers_or_text(number: int) -> None:
    """Also as a float that is whole."""
    for value in (number, str(number), float(number)):
        assert Message({"x": value}).number("x") == number


def test_what_is_absent_or_null_has_its_default() -> None:
    """As every field of such messages may be."""
    for message in (Message({}), Message(dict.fromkeys("abcdef"))):
        assert not message.has("a")
        assert message.text("a") == ""
        assert message.number("b") == 0
        assert message.flag("c", default=True)
        assert message.data("d") == b""
        assert (message.texts("e"), message.mapping("f")) == ([], {})
        assert not message.child("a").has("b")


@pytest.mark.parametrize(
    ("value", "expected"), [(9, 9), ("NINE", 9), (None, 0), ("ZERO", 0)]
)
def test_an_enum_is_given_by_name_or_number(value: object, expected: int) -> None:
    """Absent is its first."""
    assert Message({"x": value}).one_of("x", {"ZERO": 0, "NINE": 9}) == expected


@given(json_values)
def test_any_value_is_read_or_refused(value: object) -> None:
    """With the path of the field, and nothing else can come of it."""
    message = Message({"x": value})
    for read in (
        message.text,
        message.flag,
        message.number,
        message.data,
        message.texts,
        message.mapping,
        message.child,
        lambda name: message.one_of(name, {"A": 1}),
    ):
        refused = ("invalid_argument", "$.x")
        try:
            read("x")
        except RpcError as exc:
            refused = (exc.code, exc.message[:3])
        assert refused == ("invalid_argument", "$.x")


@pytest.mark.parametrize("text", ["a\0", "\ud800"])
def test_text_that_names_nothing_is_refused(text: str) -> None:
    """No system call would take it."""
    with pytest.raises(RpcError):
        Message({"x": text}).text("x")


def test_what_no_program_could_take_is_refused() -> None:
    """It is not looked at, for all else would wait for that."""
    many = [str(number) for number in range(65_537)]
    for read in (
        Message({"x": many}).texts,
        Message({"x": dict.fromkeys(many)}).mapping,
    ):
        with pytest.raises(RpcError, match="at most 65536"):
            read("x")
    assert len(Message({"x": many[:-1]}).texts("x")) == 65_536


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(RpcError) as caught:
        parse_message(payload)
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, "not_found"),
        (errno.ENOTDIR, "not_found"),
        (errno.EEXIST, "already_exists"),
        (errno.EACCES, "permission_denied"),
        (errno.ENOSPC, "resource_exhausted"),
        (errno.EIO, "internal"),
    ],
)
def test_what_the_system_refuses_has_a_code(number: int, code: str) -> None:
    """And the code a status; the message names what failed."""
    error = as_rpc_error(OSError(number, "Why Not"), "a/b")

    assert (error.code, error.message) == (code, "a/b: why not")
    assert error.code in HTTP_STATUS


def test_an_unforeseen_error_says_nothing_of_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is in the log of the supervisor."""
    error = as_rpc_error(LookupError("inner"))

    assert error.code == "internal"
    assert "inner" not in error.message
    assert "inner" in caplog.text


def test_the_last_frame_may_carry_an_error() -> None:
    """Its flag is 2."""
    assert end_frame() == b"\x02\x00\x00\x00\x02{}"
    frame = end_frame(RpcError("not_found", "gone"))
    assert json.loads(frame[5:]) == {"error": {"code": "not_found", "message": "gone"}}
