"""The encoder and the decoder against `json` and the table of what has a JSON form."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.exceptions import SerializationError, WireError
from ppio_agent.wire.json import MAX_DEPTH, decode_json, encode_json
from ppio_agent.wire.times import format_time
from tests.fuzz.support import fuzz, spoiled
from tests.wire.support import json_values

UTC = dt.timezone.utc


class Colour(enum.Enum):
    RED = "red"
    NESTED = (1, 2)
    BYTES = b"x"


@attrs.define
class Thing:
    name: Any
    hidden: Any = attrs.field(repr=False)


@dataclass
class Record:
    name: Any


class Dumping:
    """Looks like a pydantic model."""

    def __init__(self, dumped: Any) -> None:
        self.dumped = dumped

    def model_dump(self) -> Any:
        return self.dumped


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.decimals() | st.dates() | st.times() | st.uuids() | st.complex_numbers()
    | st.datetimes(timezones=st.sampled_from([None, UTC]))
    | st.sampled_from([
        *Colour, bytearray(), object(), Thing, pathlib.PurePosixPath("a/\udcff"),
        pathlib.PurePosixPath("a/é"), "\ud800", b"".__iter__(), math.nan,
        dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
    ])
)  # fmt: skip
KEYS = st.text() | st.integers() | st.none() | st.sampled_from(["\udfff", Colour.RED])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(KEYS, inner, max_size=2)
        | st.builds(Thing, inner, inner)
        | st.builds(Record, inner)
        | st.builds(Dumping, inner)
    ),
    max_leaves=12,
) | st.frozensets(st.integers() | st.text() | st.decimals(allow_nan=False))


class Refused(Exception):
    """What the table has no form for."""


@singledispatch
def form_of(value: Any) -> Any:
    """Return the JSON form of a value as the table has it, slowly and obviously."""
    raise Refused(type(value))


@form_of.register(type(None))
@form_of.register(int)
def _(value: Any) -> Any:
    return value


@form_of.register(dt.date)
@form_of.register(dt.time)
def _(value: Any) -> Any:
    return value.isoformat()


@form_of.register(uuid.UUID)
def _(value: Any) -> Any:
    return str(value)


@form_of.register(pathlib.PurePath)
def _(value: Any) -> Any:
    return form_of(str(value))


@form_of.register(enum.Enum)
def _(value: Any) -> Any:
    return form_of(value.value)


@form_of.register(str)
def _(value: str) -> Any:
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Refused(value)
    return value


@form_of.register(float)
def _(value: float) -> Any:
    if not math.isfinite(value):
        raise Refused(value)
    return value


@form_of.register(decimal.Decimal)
def _(value: decimal.Decimal) -> Any:
    if not value.is_finite():
        raise Refused(value)
    return str(value)


@form_of.register(dt.datetime)
def _(value: dt.datetime) -> Any:
    if value.tzinfo is None:
        raise Refused(value)
    try:
        return format_time(value)
    except OverflowError:
        raise Refused(value) from None


@form_of.register(dict)
def _(value: dict[Any, Any]) -> Any:
    if not all(type(key) is str for key in value):
        raise Refused(value)
    return {form_of(key): form_of(item) for key, item in value.items()}


@form_of.register(list)
@form_of.register(tuple)
def _(value: Any) -> Any:
    return [form_of(item) for item in value]


@form_of.register(frozenset)
def _(value: frozenset[Any]) -> Any:
    try:
        return form_of(sorted(value))
    except TypeError:
        return form_of(list(value))


@form_of.register(Thing)
def _(value: Thing) -> Any:
    return form_of({"name": value.name, "hidden": value.hidden})


@form_of.register(Record)
def _(value: Record) -> Any:
    return form_of({"name": value.name})


@form_of.register(Dumping)
def _(value: Dumping) -> Any:
    return form_of(value.dumped)


@fuzz()
@given(value=VALUES)
def test_a_value_is_written_as_the_table_says_or_refused(value: Any) -> None:
    """Strict JSON, which `json` reads back, or one error; nothing in between."""
    try:
        expected = form_of(value)
    except Refused:
        with pytest.raises(SerializationError):
            encode_json(value)
        return
    written = encode_json(value)
    assert json.loads(written, parse_constant=_refuse) == expected
    assert b"\n" not in written  # each chunk of a stream is one line
    assert decode_json(written) == expected


NEARLY = st.text('[]{}",:\\ -+.0123456789eEunltrfasNI', max_size=30)
TEXTS = (
    spoiled(json_values.map(lambda value: json.dumps(value).encode()))
    | st.binary(max_size=40)
    | NEARLY.map(str.encode)
    | st.integers(90, 110).map(lambda n: b"[" * n + b"]" * n)
    | st.integers(90, 110).map(lambda n: b'{"a":[' * (n // 2) + b"1" + b"]}" * (n // 2))
)


@fuzz()
@given(data=TEXTS)
def test_a_text_is_read_as_json_reads_it_or_refused(data: bytes) -> None:
    """But for what is no JSON number, and what is nested too deep."""
    try:
        text = data.decode("utf-8-sig")
        expected = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except ValueError:
        expected = Refused
    if expected is Refused or _depth(expected) > MAX_DEPTH:
        with pytest.raises(WireError, match=r"^Invalid (JSON|encoding): "):
            decode_json(data)
    else:
        assert decode_json(data) == expected


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        _refuse(text)
    return float(text)


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, items), default=0)
