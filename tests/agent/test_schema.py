"""JSON Schemas of type hints, against what the encoder writes and the converter reads."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import typing
import uuid
from collections import abc
from typing import Any, Literal, NewType, Optional, TypedDict

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ppio_agent import Chunk, InvocationRequest
from ppio_agent.agent.schema import Schema, Schemas, item_of_stream, summary_of
from ppio_agent.exceptions import WireError
from ppio_agent.wire.json import decode_json, encode_json
from ppio_agent.wire.model import structure


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.define
class Point:
    """A place.

    Not shown.
    """

    x: int
    y: float = 0.5
    label: str | None = None
    children: list[Point] = attrs.field(factory=list)
    colour: Colour = Colour.RED
    length: float = attrs.field(init=False, default=1.0)


@attrs.define
class Renamed:
    template_id: str = attrs.field(metadata={"wire": "templateID"})


@dataclasses.dataclass
class Data:
    a: int
    b: Literal["x", "y"] = "x"
    tags: list[str] = dataclasses.field(default_factory=list)


class Typed(TypedDict, total=False):
    """Typed."""

    q: typing.Annotated[int, "a note"]
    r: dict[str, float]


UserId = NewType("UserId", str)

HINTS: list[tuple[Any, Schema]] = [
    (Any, {}),
    ("Unknown", {}),
    (object, {}),
    (bytes, {}),
    (Chunk, {}),
    (typing.TypeVar("T"), {}),
    (None, {"type": "null"}),
    (bool, {"type": "boolean"}),
    (int, {"type": "integer"}),
    (float, {"type": "number"}),
    (str, {"type": "string"}),
    (UserId, {"type": "string"}),
    (typing.Annotated[int, "note"], {"type": "integer"}),
    (pathlib.Path, {"type": "string"}),
    (decimal.Decimal, {"type": "string"}),
    (dt.datetime, {"type": "string", "format": "date-time"}),
    (dt.date, {"type": "string", "format": "date"}),
    (uuid.UUID, {"type": "string", "format": "uuid"}),
    (Colour, {"type": "string", "enum": ["red", "blue"]}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
    (Literal["a", 1, None], {"enum": ["a", 1, None]}),
    (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045 - the old form is meant
    (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
    (int | Any, {}),
    (list, {"type": "array"}),
    (list[int], {"type": "array", "items": {"type": "integer"}}),
    (set[str], {"type": "array", "items": {"type": "string"}}),
    (abc.Sequence[str], {"type": "array", "items": {"type": "string"}}),
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
    (
        tuple[int, str],
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "minItems": 2,
            "maxItems": 2,
        },
    ),
    (dict, {"type": "object", "additionalProperties": True}),
    (dict[str, Any], {"type": "object", "additionalProperties": True}),
    (
        abc.Mapping[str, int],
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ),
]


@pytest.mark.parametrize(("hint", "schema"), HINTS, ids=lambda value: str(value)[:40])
def test_a_hint_has_a_schema(hint: Any, schema: Schema) -> None:
    """What cannot be said is any JSON."""
    schemas = Schemas()
    assert schemas.of(hint, inbound=False) == schema
    assert schemas.definitions == {}


def test_a_class_is_a_definition() -> None:
    """Made once, with what has to be sent; it may be about itself."""
    schemas = Schemas()
    for _ in range(2):
        found = schemas.of(list[Point], inbound=True)
        assert found["items"] == {"$ref": "#/components/schemas/Point"}
    assert schemas.definitions == {
        "Point": {
            "type": "object",
            "title": "Point",
            "description": "A place.",
            "properties": {
                "x": {"type": "integer"},
                "y": {"type": "number", "default": 0.5},
                "label": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "children": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Point"},
                },
                "colour": {"type": "string", "enum": ["red", "blue"]},
            },
            "required": ["x"],
        }
    }


def test_what_is_sent_and_what_is_got_differ() -> None:
    """By names on the wire, by what is always there, and by what is made."""
    schemas = Schemas()
    schemas.of(Renamed, inbound=True)
    schemas.of(Renamed, inbound=False)
    assert list(schemas.definitions) == ["Renamed", "Renamed_2"]
    assert list(schemas.definitions["Renamed"]["properties"]) == ["templateID"]
    assert list(schemas.definitions["Renamed_2"]["properties"]) == ["template_id"]
    schemas.of(Point, inbound=False)
    point = schemas.definitions["Point"]
    assert point["required"] == ["x", "y", "label", "children", "colour", "length"]


def test_our_own_shapes_are_as_on_the_wire() -> None:
    """Every member of a request is optional, and further ones are welcome."""
    schemas = Schemas()
    schemas.of(InvocationRequest, inbound=True)
    request = schemas.definitions["InvocationRequest"]
    assert set(request["properties"]) >= {"prompt", "data", "metadata"}
    assert "extra" not in request["properties"]
    assert "required" not in request


def test_a_typed_dict_may_lack_members() -> None:
    """As its class, or one member, says."""
    typed = Schemas()
    typed.of(Typed, inbound=True)
    assert typed.definitions["Typed"] == {
        "type": "object",
        "title": "Typed",
        "description": "Typed.",
        "properties": {
            "q": {"type": "integer"},
            "r": {"type": "object", "additionalProperties": {"type": "number"}},
        },
    }


def test_names_are_fit_for_references() -> None:
    """Whatever a class is called, and however many are called so."""
    schemas = Schemas("#/$defs/")
    first = attrs.make_class("Größe", {"a": attrs.field(type=int)})
    second = attrs.make_class("Größe", {"b": attrs.field(type=int)})
    assert schemas.of(first, inbound=True) == {"$ref": "#/$defs/Gr__e"}
    assert schemas.of(second, inbound=True) == {"$ref": "#/$defs/Gr__e_2"}


def test_a_class_whose_hints_cannot_be_read_is_an_object() -> None:
    """With those members that can."""

    @attrs.define
    class Half:
        known: int
        unknown: Missing  # noqa: F821 - that is the point

    schemas = Schemas()
    schemas.of(Half, inbound=True)
    assert schemas.definitions["Half"]["properties"] == {"known": {}, "unknown": {}}


def test_a_default_that_is_no_json_is_not_told() -> None:
    """The rest of the member is."""

    @attrs.define
    class Limited:
        most: float = float("inf")

    schemas = Schemas()
    schemas.of(Limited, inbound=True)
    members = schemas.definitions["Limited"]["properties"]
    assert members == {"most": {"type": "number"}}


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (abc.Iterator[str], (True, str)),
        (abc.Generator[int, None, str], (True, int)),
        (abc.AsyncIterator[str], (True, str)),
        (typing.AsyncGenerator[str, None], (True, str)),
        (abc.Iterator, (True, Any)),
        (list[str], (False, None)),
        (str, (False, None)),
        (None, (False, None)),
    ],
)
def test_a_stream_is_known_by_its_hint(hint: Any, expected: Any) -> None:
    """And so are its chunks."""
    assert item_of_stream(hint) == expected


@pytest.mark.parametrize(
    ("doc", "summary"), [(None, ""), ("", ""), ("\n  One.\n\nTwo.", "One.")]
)
def test_a_summary_is_one_line(doc: str | None, summary: str) -> None:
    """The first."""
    assert summary_of(doc) == summary


_points = st.builds(
    Point,
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.text(),
    colour=st.sampled_from(Colour),
)
_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    str: st.text(),
    bool: st.booleans(),
    None: st.none(),
    Colour: st.sampled_from(Colour),
    Point: st.builds(
        lambda a, b: attrs.evolve(a, children=b), _points, st.lists(_points, max_size=2)
    ),
    Data: st.builds(Data, st.integers(), st.sampled_from("xy"), st.lists(st.text())),
}


def _hints(depth: int = 2) -> st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]:
    """Give hints, each with a strategy of values that it describes."""
    plain = st.sampled_from(list(_VALUES.items()))
    if depth == 0:
        return plain
    inner = _hints(depth - 1)
    return st.one_of(
        plain,
        inner.map(lambda it: (list[it[0]], st.lists(it[1], max_size=3))),
        inner.map(
            lambda it: (dict[str, it[0]], st.dictionaries(st.text(), it[1], max_size=3))
        ),
        inner.map(lambda it: (Optional[it[0]], st.none() | it[1])),  # noqa: UP045 - None | None is none
        st.tuples(inner, inner).map(
            lambda two: (tuple[two[0][0], two[1][0]], st.tuples(two[0][1], two[1][1]))
        ),
    )


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_the_encoder_writes_fits_the_schema(data: st.DataObject) -> None:
    """Of any value that the hint describes."""
    hint, values = data.draw(_hints())
    schemas = Schemas("#/$defs/")
    schema = schemas.of(hint, inbound=False)
    written = decode_json(encode_json(data.draw(values)))
    Draft202012Validator({**schema, "$defs": schemas.definitions}).validate(written)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "x": st.integers() | _json,
            "y": st.floats(allow_nan=False) | _json,
            "label": st.text() | _json,
            "colour": st.sampled_from(["red", "blue", "x"]) | _json,
            "more": _json,
        },
    )
)
def test_what_fits_the_schema_is_read_by_the_converter(payload: dict[str, Any]) -> None:
    """And what does not is refused, but for null where there is a default."""
    schemas = Schemas("#/$defs/")
    schema = schemas.of(Point, inbound=True)
    validator = Draft202012Validator({**schema, "$defs": schemas.definitions})
    given_ = {k: v for k, v in payload.items() if v is not None or k == "x"}
    try:
        structure(Point, given_)
    except WireError:
        assert not validator.is_valid(given_)
    else:
        assert validator.is_valid(given_)
