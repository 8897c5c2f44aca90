"""The base of every wire shape and its strict converter."""

from __future__ import annotations

import copy
import enum
import pickle
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Optional

import attrs
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import WireError
from ppio_agent.wire.json import Json, decode_json, encode_json
from ppio_agent.wire.model import (
    CamelModel,
    OpenEnum,
    WireModel,
    make_converter,
    structure,
)
from tests.wire.support import json_values, texts


class Phase(OpenEnum):
    RUNNING = "running"
    PAUSED = "paused"


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


@frozen(kw_only=True)
class Item(CamelModel):
    item_id: str
    memory_mb: int
    docs_url: str | None = None
    odd_name: str | None = field(default=None, metadata={"wire": "ODD-name"})
    note: str = field(default="", metadata={"local": True})
    token: str | None = field(default=None, repr=False)


@frozen(kw_only=True)
class Box(WireModel):
    items: tuple[Item, ...] = ()
    named: Mapping[str, Item] = field(factory=dict)
    phase: Phase | None = None
    level: Level | None = None
    made_at: datetime | None = None
    share: float | None = None
    open: bool = False
    free: Json = None
    words: list[str] | None = None
    either: int | str | None = None
    best: Item | None = None
    bare_list: list = field(factory=list)  # type: ignore[type-arg]
    bare_map: Mapping = field(factory=dict)  # type: ignore[type-arg]
    old: Optional[int] = None  # noqa: UP045 - the older spelling reads alike


@frozen
class Plain:
    """Any attrs class can be read, whatever its arguments are called."""

    name: str = field()
    _inner: int = field(default=0)
    count: int = field(default=1, validator=attrs.validators.gt(0))
    untyped = field(default=None)
    made = field(init=False, default=3)


WHEN = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=timezone.utc)
FULL = Box(
    items=(Item(item_id="i", memory_mb=1, docs_url="u", odd_name="o", token="t"),),
    named={"a": Item(item_id="j", memory_mb=2, extra={"more": [1]})},
    phase=Phase("frozen"),
    level=Level.HIGH,
    made_at=WHEN,
    share=0.5,
    open=True,
    free={"a": [None]},
    words=["w"],
    either="text",
    best=Item(item_id="k", memory_mb=3),
    bare_list=[1],
    bare_map={"m": None},
    old=1,
    extra={"later": {"x": 1}},
)


def test_keys_are_spelt_by_the_class() -> None:
    """Camel case with its acronyms, an exception by metadata, local ones not at all."""
    item = Item(
        item_id="i", memory_mb=1, docs_url="u", odd_name="o", note="here", token="t"
    )
    assert item.to_dict() == {
        "itemID": "i",
        "memoryMB": 1,
        "docsURL": "u",
        "ODD-name": "o",
        "token": "t",
    }
    assert Item.from_dict({**item.to_dict(), "note": 7}) == attrs.evolve(
        item, note="", extra={"note": 7}
    )


def test_a_model_comes_back_whole() -> None:
    """Nested models, words, times, free members and unknown ones."""
    sent = decode_json(encode_json(FULL.to_dict()))
    assert sent["items"] == [
        {"itemID": "i", "memoryMB": 1, "docsURL": "u", "ODD-name": "o", "token": "t"}
    ]
    assert (sent["phase"], sent["level"]) == ("frozen", "high")
    assert sent["made_at"] == "2026-01-02T03:04:05.678Z"
    assert Box.from_dict(sent) == FULL


def test_absent_members_are_left_out() -> None:
    """None is never sent for a member that was not set; inside free data it stays."""
    assert Box(free={"a": None}).to_dict() == {
        "items": [], "named": {}, "open": False, "free": {"a": None},
        "bare_list": [], "bare_map": {},
    }  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(unknown=st.dictionaries(texts.filter(lambda k: k != "items"), json_values))
def test_unknown_members_are_kept_and_sent_back(unknown: dict[str, Json]) -> None:
    """A server may know more; nothing of it is lost on the way through."""
    known = {f.name for f in attrs.fields(Box)}
    unknown = {k: v for k, v in unknown.items() if k not in known}
    box = Box.from_dict({"open": True, **unknown})
    assert box.extra == unknown
    sent = box.to_dict()
    assert {k: v for k, v in sent.items() if k not in known} == unknown


def test_a_member_called_extra_is_an_unknown_one() -> None:
    """It does not replace the others."""
    box = Box.from_dict({"extra": {"a": 1}, "b": 2})
    assert box.extra == {"extra": {"a": 1}, "b": 2}


def test_what_the_repr_hides_is_not_shown() -> None:
    """It is sent by `to_dict` alone; nested models obey, too."""
    item = Item(item_id="i", memory_mb=1, token="hush", extra={"x": 1})
    shown = Box(items=(item,), best=item).public_dict()
    visible = {"itemID": "i", "memoryMB": 1, "x": 1}
    assert (shown["items"], shown["best"]) == ([visible], visible)
    assert item.to_dict() == {**visible, "token": "hush"}
    assert "hush" not in repr(item)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "$: expected object, got array"),
        (None, "$: expected object, got null"),
        ("{}", "$: expected object, got str"),
        ({"items": "abc"}, "$.items: expected array, got str"),
        ({"items": {}}, "$.items: expected array, got object"),
        ({"items": [{"itemID": "i"}]}, "$.items[0].memoryMB: is missing"),
        ({"items": [{"itemID": "i", "memoryMB": 1}, 7]},
            "$.items[1]: expected object, got int"),
        ({"items": [{"itemID": "i", "memoryMB": "1"}]},
            "$.items[0].memoryMB: expected int, got str"),
        ({"items": [{"itemID": "i", "memoryMB": True}]},
            "$.items[0].memoryMB: expected int, got bool"),
        ({"items": [{"itemID": "i", "memoryMB": 1.0}]},
            "$.items[0].memoryMB: expected int, got float"),
        ({"items": [{"itemID": None, "memoryMB": 1}]},
            "$.items[0].itemID: expected str, got null"),
        ({"items": [{"itemID": 3, "memoryMB": 1}]},
            "$.items[0].itemID: expected str, got int"),
        ({"best": {"itemID": "i", "memoryMB": 1, "ODD-name": []}},
            "$.best.ODD-name: expected str, got array"),
        ({"named": {"x": {}}}, "$.named.x.itemID: is missing"),
        ({"named": []}, "$.named: expected object, got array"),
        ({"phase": 3}, "$.phase: expected str, got int"),
        ({"level": "middle"}, "$.level: expected one of low, high"),
        ({"made_at": 5}, "$.made_at: expected RFC 3339 time, got int"),
        ({"made_at": "noon"}, "$.made_at: expected an RFC 3339 time"),
        ({"share": "0.5"}, "$.share: expected number, got str"),
        ({"share": True}, "$.share: expected number, got bool"),
        ({"share": 10**400}, "$.share: expected a number in the range of a float"),
        ({"open": 1}, "$.open: expected bool, got int"),
        ({"words": ["a", None]}, "$.words[1]: expected str, got null"),
        ({"either": []}, "$.either: expected int, got array"),
    ],
)  # fmt: skip
def test_nothing_is_coerced(data: object, text: str) -> None:
    """The error leads there in wire names, and does not show the value."""
    with pytest.raises(WireError) as caught:
        Box.from_dict(data)
    assert str(caught.value) == text


def test_an_int_is_a_float() -> None:
    """JSON does not tell 1 from 1.0; the model does."""
    share = Box.from_dict({"share": 1}).share
    assert (share, type(share)) == (1.0, float)


def test_null_means_absent_where_a_default_stands() -> None:
    """Servers write null where they mean nothing."""
    null = dict.fromkeys(f.name for f in attrs.fields(Box) if f.name != "extra")
    assert Box.from_dict(null) == Box()


def test_a_union_takes_the_first_kind_that_fits() -> None:
    """Without turning one into the other."""
    assert Box.from_dict({"either": 3}).either == 3
    assert Box.from_dict({"either": "3"}).either == "3"


def test_any_attrs_class_can_be_read() -> None:
    """By the names of its attributes; unknown members are passed over."""
    data = {"name": "n", "_inner": 2, "untyped": [1], "x": 1, "made": 9}
    assert structure(Plain, data) == Plain("n", inner=2, untyped=[1])
    with pytest.raises(WireError, match=r"^\$: 'count' must be > 0"):
        structure(Plain, {"name": "n", "count": 0})


def test_scalars_and_containers_can_be_read_alone() -> None:
    """The path starts at what was given."""
    assert structure(int, 3) == 3
    assert structure(tuple[int, ...], [1, 2]) == (1, 2)
    with pytest.raises(WireError, match=r"^\$\[1\]: expected int, got str$"):
        structure(tuple[int, ...], [1, "2"])
    kind: Any = int | str
    with pytest.raises(WireError, match=r"^\$: expected int, got null$"):
        structure(kind, None)


@settings(deadline=None)
@given(value=json_values, key=st.sampled_from([f.name for f in attrs.fields(Box)]))
def test_any_json_is_read_or_refused(value: Json, key: str) -> None:
    """No other exception than the one that the edges translate."""
    for data in (value, {key: value}, {"items": [{"itemID": value, "memoryMB": 1}]}):
        try:
            box = Box.from_dict(data)
        except WireError as error:
            path = error.path
        else:
            path = "$"
            assert Box.from_dict(decode_json(encode_json(box.to_dict()))) == box
        assert path.startswith("$")


def test_a_word_that_is_unknown_is_kept() -> None:
    """It equals itself, and no other; known words stay what they are."""
    assert Phase("running") is Phase.RUNNING
    frozen_one, frozen_two = Phase("frozen"), Phase("frozen")
    assert frozen_one == frozen_two
    assert hash(frozen_one) == hash(frozen_two)
    assert frozen_one not in {Phase.RUNNING, Phase("thawed"), "frozen", Level.LOW}
    assert (frozen_one.value, frozen_one.name) == ("frozen", "frozen")
    assert list(Phase) == [Phase.RUNNING, Phase.PAUSED]
    with pytest.raises(ValueError, match="3 is not a valid Phase"):
        Phase(3)


@pytest.mark.parametrize("word", ["running", "frozen"])
def test_words_survive_pickle_and_copy(word: str) -> None:
    """Known or not."""
    phase = Phase(word)
    for twin in (
        pickle.loads(pickle.dumps(phase)),
        copy.copy(phase),
        copy.deepcopy(phase),
    ):
        assert twin == phase
        assert type(twin) is Phase


def test_models_survive_pickle_and_copy() -> None:
    """With everything in them."""
    for twin in (pickle.loads(pickle.dumps(FULL)), copy.deepcopy(FULL)):
        assert twin == FULL


def test_models_cannot_be_changed() -> None:
    """They are shared between threads."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        FULL.open = False  # type: ignore[misc]


def test_sixteen_threads_read_alike_at_once() -> None:
    """Also classes that no thread has read before."""

    def fresh() -> type[WireModel]:
        @frozen(kw_only=True)
        class Inner(CamelModel):
            sandbox_id: str
            made_at: datetime | None = None

        @frozen(kw_only=True)
        class Outer(WireModel):
            inner: Any = None
            words: tuple[str, ...] = ()

        # Under `from __future__ import annotations` a local class has no name there.
        Outer.__annotations__["inner"] = Inner
        return Outer

    sent = decode_json(encode_json(FULL.to_dict()))
    for _ in range(20):
        converter, outer = make_converter(), fresh()
        together = threading.Barrier(16)
        found: list[object] = []

        def read(
            converter: Any = converter,
            outer: type[WireModel] = outer,
            together: threading.Barrier = together,
            found: list[object] = found,
        ) -> None:
            together.wait()
            try:
                box = converter.structure(sent, Box)
                other = outer.from_dict({"words": ["a"]})
                found.append((box, other.to_dict()))
            except Exception as error:
                found.append(error)

        threads = [threading.Thread(target=read) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [(FULL, {"words": ["a"]})] * 16
