"""JSON Schemas of type hints, as OpenAPI 3.1 has them. Pure.

What a hint says of a payload is what the wire's converter takes, and of a result what
the encoder makes. A hint that cannot be said as a schema is `{}`: any JSON.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import pathlib
import re
import types
import typing
import uuid
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import attrs
from attrs import frozen

from ppio_agent.wire.model import WireModel

from .chunk import Chunk

__all__ = ["Schema", "Schemas", "item_of_stream", "summary_of"]

Schema = dict[str, Any]

_SCALARS: Mapping[Any, Schema] = {
    None: {"type": "null"},
    type(None): {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    dt.datetime: {"type": "string", "format": "date-time"},
    dt.date: {"type": "string", "format": "date"},
    dt.time: {"type": "string", "format": "time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    decimal.Decimal: {"type": "string"},
}
_STREAMS = (abc.Iterator, abc.Generator, abc.AsyncIterator, abc.AsyncGenerator)
_ARRAYS = (list, tuple, set, frozenset, abc.Sequence, abc.Set)
_JSON_SCALARS = (str, int, float, bool, type(None))
# Of a TypedDict's member; compared by name, since older Pythons have them elsewhere.
_QUALIFIERS = frozenset({"Required", "NotRequired", "ReadOnly", "Final"})


def item_of_stream(hint: Any) -> tuple[bool, Any]:
    """Return whether a result's hint says that it is a stream, and the items' hint."""
    if (get_origin(hint) or hint) not in _STREAMS:
        return False, None
    return True, (get_args(hint) or (Any,))[0]


def summary_of(doc: str | None) -> str:
    """Return the first line of a docstring, or an empty text."""
    return (doc or "").strip().partition("\n")[0].strip()


@frozen
class _Member:
    """One member of an object."""

    key: str
    hint: Any
    required: bool
    default: Any = None


class Schemas:
    """Makes schemas; each class becomes a definition, to which its uses refer.

    Args:
        refs: Where the definitions are going to be.

    Attributes:
        definitions: Schema by name.

    Thread safety: one thread at a time.

    Example:
        >>> Schemas().of(list[int | None], inbound=False)
        {'type': 'array', 'items': {'anyOf': [{'type': 'integer'}, {'type': 'null'}]}}
    """

    def __init__(self, refs: str = "#/components/schemas/") -> None:
        self.definitions: dict[str, Schema] = {}
        self._refs = refs
        self._names: dict[tuple[type, bool], str] = {}

    def of(self, hint: Any, *, inbound: bool) -> Schema:
        """Return the schema of a type hint.

        Args:
            hint: Any; a class should be at hand, not its name in quotes.
            inbound: Whether it is what callers send; otherwise what they get.
        """
        hint = _unwrapped(hint)
        for known, scalar in _SCALARS.items():
            if hint is known:
                return dict(scalar)
        origin = get_origin(hint) or hint
        if origin is Literal:
            return _words(get_args(hint))
        if origin is Union or origin is types.UnionType:
            return self._union(get_args(hint), inbound=inbound)
        if not isinstance(origin, type):
            return {}
        return self._of_class(origin, get_args(hint), inbound=inbound)

    def _of_class(self, cls: type, args: tuple[Any, ...], *, inbound: bool) -> Schema:
        if issubclass(cls, enum.Enum):
            return _words([member.value for member in cls])
        if issubclass(cls, pathlib.PurePath):
            return {"type": "string"}
        members = _members_of(cls, inbound=inbound)
        if members is not None:
            return self._definition(cls, members, inbound=inbound)
        if issubclass(cls, abc.Mapping):
            return self._mapping(args, inbound=inbound)
        if issubclass(cls, _ARRAYS) and not issubclass(cls, (str, bytes, bytearray)):
            return self._array(cls, args, inbound=inbound)
        return {}

    def _union(self, choices: Iterable[Any], *, inbound: bool) -> Schema:
        found = [self.of(choice, inbound=inbound) for choice in choices]
        return {} if {} in found else {"anyOf": found}

    def _mapping(self, args: tuple[Any, ...], *, inbound: bool) -> Schema:
        item = self.of(args[1], inbound=inbound) if len(args) == 2 else {}
        return {"type": "object", "additionalProperties": item or True}

    def _array(self, cls: type, args: tuple[Any, ...], *, inbound: bool) -> Schema:
        fixed = issubclass(cls, tuple) and Ellipsis not in args
        # The converter reads every item of a tuple as the first.
        if fixed and args and not inbound:
            items = [self.of(arg, inbound=inbound) for arg in args]
            size = len(items)
            return {
                "type": "array",
                "prefixItems": items,
                "minItems": size,
                "maxItems": size,
            }
        item = self.of(args[0], inbound=inbound) if args else {}
        return {"type": "array", "items": item} if item else {"type": "array"}

    def _definition(
        self, cls: type, members: Callable[[], list[_Member]], *, inbound: bool
    ) -> Schema:
        name = self._names.get((cls, inbound))
        if name is None:
            name = self._names[cls, inbound] = self._free_name(cls.__name__)
            # Entered before its members are looked at: one may be of the same class.
            schema = self.definitions[name] = {"type": "object", "title": cls.__name__}
            about = summary_of(cls.__dict__.get("__doc__"))
            if about and not about.startswith(f"{cls.__name__}("):
                schema["description"] = about
            found = members()
            schema["properties"] = {
                m.key: self._member(m, inbound=inbound) for m in found
            }
            required = [m.key for m in found if m.required]
            if required:
                schema["required"] = required
        return {"$ref": self._refs + name}

    def _member(self, member: _Member, *, inbound: bool) -> Schema:
        schema = self.of(member.hint, inbound=inbound)
        default = member.default
        endless = isinstance(default, float) and not math.isfinite(default)
        if inbound and isinstance(default, (str, int, float)) and not endless:
            schema["default"] = default
        return schema

    def _free_name(self, wanted: str) -> str:
        wanted = re.sub(r"[^A-Za-z0-9._-]", "_", wanted)
        name, number = wanted, 1
        while name in self.definitions:
            number += 1
            name = f"{wanted}_{number}"
        return name


def _unwrapped(hint: Any) -> Any:
    """Return what an `Annotated`, a `Required` or a `NewType` is about."""
    while True:
        if get_origin(hint) is Annotated or _qualifier(hint):
            hint = get_args(hint)[0]
        elif isinstance(hint, NewType):
            hint = hint.__supertype__
        else:
            return hint


def _qualifier(hint: Any) -> str | None:
    name = getattr(get_origin(hint), "_name", None)
    return name if name in _QUALIFIERS else None


def _words(values: Iterable[Any]) -> Schema:
    plain = [v.value if isinstance(v, enum.Enum) else v for v in values]
    if not all(isinstance(value, _JSON_SCALARS) for value in plain):
        return {}
    schema: Schema = {"enum": plain}
    if all(isinstance(value, str) for value in plain):
        schema["type"] = "string"
    return schema


def _members_of(cls: Any, *, inbound: bool) -> Callable[[], list[_Member]] | None:
    """Return what lists the members of a class of objects; None if it is none."""
    if cls is Chunk:
        return None  # travels as its data, which may be anything
    if attrs.has(cls):
        return lambda: _attrs_members(cls, inbound=inbound)
    if dataclasses.is_dataclass(cls):
        return lambda: _dataclass_members(cls, inbound=inbound)
    if hasattr(cls, "__required_keys__"):
        return lambda: _typed_dict_members(cls)
    return None


def _attrs_members(cls: Any, *, inbound: bool) -> list[_Member]:
    hints = _hints_of(cls)
    ours = issubclass(cls, WireModel)
    respelled = inbound or ours
    spelling = getattr(cls, "spelling", str)
    found = []
    for f in attrs.fields(cls):
        hidden = f.metadata.get("local") or (f.name == "extra" and ours)
        if hidden or (inbound and not f.init) or (ours and f.repr is not True):
            continue
        key = (f.metadata.get("wire") or spelling(f.name)) if respelled else f.name
        required = f.default is attrs.NOTHING if inbound else not ours
        found.append(_Member(key, hints.get(f.name, Any), required, f.default))
    return found


def _dataclass_members(cls: Any, *, inbound: bool) -> list[_Member]:
    hints = _hints_of(cls)
    missing = dataclasses.MISSING
    return [
        _Member(
            f.name,
            hints.get(f.name, Any),
            not inbound or (f.default is missing and f.default_factory is missing),
            f.default,
        )
        for f in dataclasses.fields(cls)
        if f.init or not inbound
    ]


def _typed_dict_members(cls: Any) -> list[_Member]:
    required = cls.__required_keys__
    return [
        _Member(
            key,
            hint,
            # In quotes, as after `from __future__ import annotations`, it is not seen
            # when the class is made.
            key in required and _qualifier(hint) != "NotRequired",
        )
        for key, hint in _hints_of(cls).items()
    ]


def _hints_of(cls: Any) -> dict[str, Any]:
    """Return the evaluated annotations of a class, as many as can be."""
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # noqa: BLE001 - it evaluates the author's code, names may lack
        known = getattr(cls, "__annotations__", {})
        return {k: v for k, v in known.items() if not isinstance(v, (str, TypeVar))}
