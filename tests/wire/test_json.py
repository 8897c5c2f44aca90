"""JSON in and out, strictly."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import SerializationError, WireError
from ppio_agent.wire.json import MAX_DEPTH, decode_body, decode_json, encode_json
from ppio_agent.wire.models import AgentMetadata, InvocationRequest, Sandbox
from tests.wire.support import json_values, texts

UTC = dt.timezone.utc


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Colour(enum.Enum):
    RED = "red"
    NESTED = (1, 2)


class Word(str, enum.Enum):
    YES = "yes"


class Number(enum.IntEnum):
    ONE = 1


class Name(str):
    """A str that says otherwise when it is asked."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not the text"


class Count(int):
    pass


class Share(float):
    pass


Pair = namedtuple("Pair", "left right")


@attrs.define
class Thing:
    """An object of a user's own; what its repr hides is no secret of ours."""

    name: str
    inner: Any = None
    hidden: int = attrs.field(default=1, repr=False)


@dataclass
class Record:
    name: str
    inner: Any = None


class Dumping:
    """Looks like a pydantic model."""

    def __init__(self, dumped: object) -> None:
        self._dumped = dumped

    def model_dump(self) -> object:
        return self._dumped


class Failing:
    """A model that cannot be dumped."""

    def model_dump(self) -> object:
        raise KeyError("inner")


class Unset:
    pass


@attrs.define
class Partial:
    """A slot that was never filled."""

    name: str = attrs.field(init=False)


@settings(deadline=None)
@given(value=json_values)
def test_a_plain_value_is_what_the_standard_library_writes(value: object) -> None:
    """Compact, UTF-8, key order kept; and it can be read again."""
    encoded = encode_json(value)
    assert encoded == compact(value)
    assert json.loads(encoded) == value
    assert decode_json(encoded) == value


@settings(deadline=None)
@given(value=json_values)
def test_the_slow_way_writes_the_same(value: object) -> None:
    """One rich member sends the whole value the slow way; nothing else changes."""
    rich = encode_json([value, uuid.UUID(int=0)])
    assert rich == compact([value, "00000000-0000-0000-0000-000000000000"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        ({Name("key"): Name("value")}, {"key": "value"}),
        ([Count(3), Share(0.5), True], [3, 0.5, True]),
        (Pair(1, "r"), [1, "r"]),
        (Thing("t", Thing("u")), {"name": "t", "inner": {"name": "u", "inner": None,
            "hidden": 1}, "hidden": 1}),
        (Record("r", [Record("s")]), {"name": "r", "inner": [{"name": "s",
            "inner": None}]}),
        (Dumping({"a": uuid.UUID(int=1)}),
            {"a": "00000000-0000-0000-0000-000000000001"}),
        (Dumping([Dumping(None)]), [None]),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), "2026-01-02T03:04:05.678Z"),
        (dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
            "2026-01-01T22:00:00.000Z"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.time(3, 4, 5), "03:04:05"),
        ([Colour.RED, Colour.NESTED, Word.YES, Number.ONE], ["red", [1, 2], "yes", 1]),
        (decimal.Decimal("1.10"), "1.10"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (pathlib.Path("/a"), "/a"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({1: 2}.keys(), [1]),
        (decimal.Decimal(10) ** 400, str(decimal.Decimal(10) ** 400)),
    ],
)  # fmt: skip
def test_rich_values_have_one_form(value: object, expected: object) -> None:
    """The table of agent-app.md 1.8."""
    assert encode_json(value) == compact(expected)


def test_a_set_that_cannot_be_sorted_keeps_its_order() -> None:
    """Mixed types, or numbers that do not compare, are no error of the set's."""
    assert sorted(json.loads(encode_json({1, "a"})), key=str) == [1, "a"]
    with pytest.raises(SerializationError, match="Decimal is not finite"):
        encode_json({decimal.Decimal("NaN"), decimal.Decimal(1)})


def test_a_secret_of_our_own_models_stays_out() -> None:
    """What a repr hides is in no result, chunk or record."""
    sandbox = Sandbox(
        sandbox_id="s", template_id="t", envd_access_token="hush", extra={"x": 1}
    )
    assert json.loads(encode_json({"made": [sandbox]})) == {
        "made": [
            {
                "sandboxID": "s", "templateID": "t", "clientID": "",
                "envdVersion": "0.5.7", "x": 1,
            }
        ]
    }  # fmt: skip
    agent = AgentMetadata(name="a", env_vars={"KEY": "hush"})
    assert b"hush" not in encode_json(agent)
    assert json.loads(encode_json(agent))["name"] == "a"


def test_a_model_without_secrets_is_what_it_sends() -> None:
    """Absent members are left out, unknown ones kept."""
    request = InvocationRequest(prompt="hi", extra={"free": [1]})
    assert encode_json(request) == compact({"prompt": "hi", "free": [1]})


def _cycle() -> object:
    ring: list[object] = [1]
    ring.append({"again": ring})
    return ring


def _thing_cycle() -> object:
    thing = Thing("t")
    thing.inner = thing
    return thing


def _endless() -> object:
    class Endless:
        def model_dump(self) -> object:
            return Endless()

    return Endless()


@pytest.mark.parametrize(
    ("value", "text", "type_name"),
    [
        (math.nan, "$: float is not finite", "float"),
        ([1, {"a": -math.inf}], "$[1].a: float is not finite", "float"),
        ({"a": [b"x"]}, "$.a[0]: bytes is not JSON", "bytes"),
        ({"message": {"content": [1, 2, 3, bytearray()]}},
            "$.message.content[3]: bytearray is not JSON", "bytearray"),
        ({1: 2}, "$: int is not a str key in a dict", "int"),
        ({"a": {None: 2}}, "$.a: NoneType is not a str key in a dict", "NoneType"),
        ({Word.YES: 2}, "$: Word is not a str key in a dict", "Word"),
        ({"a b": {"1": object()}}, "$['a b']['1']: object is not JSON", "object"),
        (_cycle(), "$[1].again: list refers to itself", "list"),
        (_thing_cycle(), "$.inner: Thing refers to itself", "Thing"),
        (_endless(), "$: Endless is nested deeper than 100 levels", "Endless"),
        (["\ud800"], "$[0]: str has a lone surrogate", "str"),
        ({"\ud800": 1}, "$: str has a lone surrogate", "str"),
        (pathlib.PurePosixPath("\udcff"), "$: str has a lone surrogate", "str"),
        (dt.datetime(2026, 1, 2),  # noqa: DTZ001 - naive on purpose
            "$: datetime is a naive datetime: give it a time zone", "datetime"),
        (dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
            "$: datetime is out of range in UTC", "datetime"),
        ([10**5000], "$[0]: int has too many digits", "int"),
        (decimal.Decimal("Infinity"), "$: Decimal is not finite", "Decimal"),
        ({"a": Failing()}, "$.a: Failing cannot be read (KeyError)", "Failing"),
        (Partial(), "$: Partial cannot be read (AttributeError)", "Partial"),
        ([Thing], "$[0]: type is not JSON", "type"),
        ([Dumping], "$[0]: type is not JSON", "type"),
        (Dumping({"x": Unset()}), "$.x: Unset is not JSON", "Unset"),
        (Record("r", {1}.__iter__()), "$.inner: set_iterator is not JSON",
            "set_iterator"),
        (1j, "$: complex is not JSON", "complex"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_has_no_json_form_is_refused(
    value: object, text: str, type_name: str
) -> None:
    """The error names place and type, and never the value; nothing is repr()-ed."""
    with pytest.raises(SerializationError) as caught:
        encode_json(value)
    assert str(caught.value) == text
    assert caught.value.path == text.partition(": ")[0]
    assert caught.value.type_name == type_name


def _wrap(value: object, levels: int, kind: str) -> object:
    for _ in range(levels):
        if kind == "list":
            value = [value]
        elif kind == "tuple":
            value = (value,)
        elif kind == "dict":
            value = {"a": value}
        else:
            value = Thing("t", value)
    return value


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "object"])
@pytest.mark.parametrize("innermost", ["", uuid.UUID(int=0), [], {}])
def test_a_hundred_levels_are_written_and_no_more(kind: str, innermost: object) -> None:
    """The same in both ways of encoding, for arrays and objects, empty ones too."""
    own = 1 if innermost in ([], {}) else 0
    assert encode_json(_wrap(innermost, MAX_DEPTH - own, kind))
    with pytest.raises(SerializationError, match="nested deeper than 100 levels"):
        encode_json(_wrap(innermost, MAX_DEPTH + 1 - own, kind))


BAD = st.sampled_from([
    math.nan, math.inf, b"x", bytearray(), object(), {2: 1}, "\udfff", 1j,
    dt.datetime(2026, 1, 2),  # noqa: DTZ001 - naive on purpose
])  # fmt: skip
STEPS = st.lists(st.integers(0, 3) | texts, max_size=6)


@settings(deadline=None)
@given(bad=BAD, steps=STEPS, filler=json_values, rich=st.booleans())
def test_the_path_leads_to_what_is_wrong(
    bad: object, steps: list[int | str], filler: object, rich: bool
) -> None:
    """Whatever surrounds it, and by both ways of encoding."""
    value, path = bad, ""
    beside = uuid.UUID(int=0) if rich else filler
    for step in steps:
        if isinstance(step, int):
            value = [*[beside] * step, value, filler]
            path = f"[{step}]{path}"
        else:
            value = {"other": beside, step: value}
            name = f".{step}" if step.isidentifier() else f"[{step!r}]"
            path = f"{name}{path}"
    with pytest.raises(SerializationError) as caught:
        encode_json(value)
    assert caught.value.path == f"${path}"


class _Unreadable(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        return {"a": 1, "b": b""}[key]

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


def test_any_mapping_is_an_object() -> None:
    """Its members are looked into as those of a dict."""
    with pytest.raises(SerializationError, match=r"^\$\.b: bytes is not JSON$"):
        encode_json(_Unreadable())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Invalid JSON: the body is empty"),
        (b" \r\n", "Invalid JSON: the body is empty"),
        (b"\xef\xbb\xbf", "Invalid JSON: the body is empty"),
        (b"\x80\x81", "Invalid encoding: the body is not UTF-8"),
        (b'{"a":NaN}', "Invalid JSON: NaN is not a JSON number"),
        (b"[-Infinity]", "Invalid JSON: -Infinity is not a JSON number"),
        (b"[1e999]", "Invalid JSON: a number is too large"),
        (b"[-1e999]", "Invalid JSON: a number is too large"),
        (b"[" * 200 + b"]" * 200, "Invalid JSON: nested deeper than 100 levels"),
        (b"[" * 100_000, "Invalid JSON: nested deeper than 100 levels"),
    ],
)
def test_what_is_not_json_is_refused(data: bytes, message: str) -> None:
    """The message says why, in words for who sent it, and shows nothing of it."""
    with pytest.raises(WireError) as caught:
        decode_json(data)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "data", [b"{", b"{'a':1}", b"[1] 2", b"sk-secret", b"1" * 5000]
)
def test_a_refusal_says_where_and_not_what(data: bytes) -> None:
    """A body may hold a secret."""
    with pytest.raises(WireError, match=r"^Invalid JSON: ") as caught:
        decode_json(data)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    """Editors of one platform still write it."""
    assert decode_json(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: [1, [v], 2][1]]
)
def test_depth_is_counted_alike_in_and_out(wrap: Callable[[object], object]) -> None:
    """What may be written may be read, and the other way round."""
    for innermost in ([], {}, [1]):
        value: object = innermost
        for _ in range(MAX_DEPTH - 1):
            value = wrap(value)
        assert decode_json(encode_json(value)) == value
        with pytest.raises(WireError, match="nested deeper"):
            decode_json(compact(wrap(value)))


def test_many_brackets_are_not_depth() -> None:
    """A wide value is read, as are brackets in a text."""
    wide = [{"a": [i]} for i in range(200)]
    assert decode_json(compact(wide)) == wide
    assert decode_json(compact("[" * 500)) == "[" * 500
    assert decode_json(compact({"a": "{" * 500})) == {"a": "{" * 500}


def test_a_long_path_is_told_by_its_ends() -> None:
    """An error of a value that is nested deeply fits into a line of a log."""
    value: object = b"no JSON"
    for _ in range(90):
        value = [value]
    with pytest.raises(SerializationError) as caught:
        encode_json({"first": value})
    assert len(str(caught.value)) < 200
    assert str(caught.value).startswith("$.first[0][0]")
    assert caught.value.path == "$.first" + "[0]" * 90


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (rb'{"metadata": {"a": "\ud800"}}', "$.metadata.a"),
        (rb'{"metadata": {"\udfff": "a"}}', "$.metadata"),
        (rb'["a", "\udc00\ud800"]', "$[1]"),
    ],
)
def test_half_a_character_in_a_body_is_refused_with_its_place(
    body: bytes, path: str
) -> None:
    """What cannot be told again is not taken; whole characters are."""
    with pytest.raises(WireError, match="lone surrogate") as refused:
        decode_body(body)

    assert refused.value.path == path
    assert decode_body(rb'"\ud83d\ude00"') == "\U0001f600"
