"""JSON in and out, strictly: what has no JSON form is an error, never a repr.

A value is encoded the same wherever it leaves: envelope, chunk, record, request.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any, TypeAlias

import attrs

from ppio_agent.exceptions import SerializationError, WireError

from .times import format_time

__all__ = [
    "MAX_DEPTH",
    "Json",
    "decode_body",
    "decode_json",
    "decode_json_text",
    "decode_own",
    "encode_json",
    "well_formed",
]

Json: TypeAlias = Any
"""A JSON value: None, bool, int, float, str, list or dict with str keys."""

MAX_DEPTH = 100
"""Deepest nesting of arrays and objects, in and out."""

_MAX_PATH = 120  # characters that an error shows of where it is

_PLAIN = frozenset({str, int, float, bool, type(None)})


def _encoder_of_plain() -> Callable[[Any, int], Iterable[str]]:
    """Return what makes text of plain JSON types, by the interpreter's C encoder.

    `json.JSONEncoder.encode` makes that anew for each value, in twice the time that a
    small one takes.
    """
    standard = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
    )
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without it
        return lambda value, _level: (standard.encode(value),)
    return make(  # type: ignore[no-any-return]
        markers=None,
        default=standard.default,
        encoder=json.encoder.encode_basestring,
        indent=None,
        key_separator=":",
        item_separator=",",
        sort_keys=False,
        skipkeys=False,
        allow_nan=False,
    )


_pieces = _encoder_of_plain()


def encode_json(value: object) -> bytes:
    """Return `value` as compact UTF-8 JSON, key order kept.

    Beyond the JSON types it takes tuples, sets (sorted if their items compare), attrs
    objects and dataclasses, objects with ``model_dump()``, enums (by value), aware
    datetimes (RFC 3339), dates, times, UUIDs, decimals and paths (as text).

    Raises:
        SerializationError: NaN, infinity, bytes, a key that is no str, a cycle, more
            than 100 levels, a naive datetime, a lone surrogate, any other object;
            `path` says where.

    Example:
        >>> encode_json({"when": dt.date(2026, 1, 2), "ids": {3, 1, 2}})
        b'{"when":"2026-01-02","ids":[1,2,3]}'
    """
    if _is_plain(value, MAX_DEPTH):
        try:
            return "".join(_pieces(value, 0)).encode()
        except ValueError:
            pass  # a number or text that does not go: the slow way finds where
    return "".join(_pieces(_convert(value, "$", ()), 0)).encode()


def _is_plain(value: Any, depth: int) -> bool:
    """Whether the C encoder may have it as it is, but for the content of scalars."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    items = value
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        items = value.values()
    elif kind is not list and kind is not tuple:
        return False
    for item in items:
        # Scalars are passed over here, not in a call each: every answer comes by.
        if type(item) not in _PLAIN and not (depth > 1 and _is_plain(item, depth - 1)):
            return False
    return True


def _convert(value: object, path: str, parents: tuple[int, ...]) -> Json:
    """Return `value` made of plain JSON types; `parents` are the ids above it."""
    if value is None or value is True or value is False:
        return value
    scalar = _SCALARS.get(type(value)) or _scalar_of_base(value)
    if scalar is not None:
        return scalar(value, path)
    if isinstance(value, enum.Enum):
        return _convert(value.value, path, parents)
    if id(value) in parents:
        raise _refusal(path, value, "refers to itself")
    if len(parents) >= MAX_DEPTH:
        raise _refusal(path, value, f"is nested deeper than {MAX_DEPTH} levels")
    return _convert_container(value, path, (*parents, id(value)))


def _convert_container(value: object, path: str, inside: tuple[int, ...]) -> Json:
    if isinstance(value, Mapping):
        return {
            _key(key, path, value): _convert(item, _member(path, key), inside)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return _array(value, path, inside)
    if isinstance(value, Set):
        return _array(_ordered(value), path, inside)
    return _convert_object(value, path, inside)


def _convert_object(value: object, path: str, inside: tuple[int, ...]) -> Json:
    try:
        members = _members(value)
    except Exception as error:  # whatever a foreign object does when it is asked
        why = f"cannot be read ({type(error).__name__})"
        raise _refusal(path, value, why) from error
    if isinstance(members, dict):
        return _convert_container(members, path, inside)
    if members is value:
        raise _refusal(path, value, "is not JSON")
    return _convert(members, path, inside)


def _members(value: Any) -> object:
    """Return what stands for an object, mostly a dict; itself if nothing does."""
    if isinstance(value, type):
        return value
    if _is_ours(value) and hasattr(value, "public_dict"):
        return value.public_dict()
    if attrs.has(type(value)) or is_dataclass(value):
        return {name: getattr(value, name) for name in _field_names(value)}
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) else value


def _field_names(value: Any) -> list[str]:
    if is_dataclass(value):
        return [field.name for field in dataclass_fields(value)]
    ours = _is_ours(value)
    # A field of our own models that is kept out of the repr holds a secret.
    return [f.name for f in attrs.fields(type(value)) if not ours or f.repr is True]


def _is_ours(value: object) -> bool:
    return type(value).__module__.startswith("ppio_agent.")


def _array(items: Iterable[object], path: str, inside: tuple[int, ...]) -> list[Json]:
    return [_convert(item, f"{path}[{i}]", inside) for i, item in enumerate(items)]


def _ordered(items: Iterable[Any]) -> list[Any]:
    try:
        return sorted(items)
    except (TypeError, ArithmeticError):  # the latter from decimals that are NaN
        return list(items)


def _key(key: object, path: str, owner: object) -> str:
    if not isinstance(key, str) or isinstance(key, enum.Enum):
        raise _refusal(path, key, "is not a str key", of=owner)
    return _text(key, path)


def _member(path: str, key: object) -> str:
    return (
        f"{path}.{key}"
        if isinstance(key, str) and key.isidentifier()
        else (f"{path}[{key!r}]")
    )


def _text(value: str, path: str) -> str:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refusal(path, value, "has a lone surrogate") from None
    return text


def _integer(value: int, path: str) -> int:
    try:
        int.__repr__(value)
    except ValueError:  # the interpreter's limit on the digits of an int
        raise _refusal(path, value, "has too many digits") from None
    return int(value)


def _number(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise _refusal(path, value, "is not finite")
    return float(value)


def _decimal(value: decimal.Decimal, path: str) -> str:
    if not value.is_finite():
        raise _refusal(path, value, "is not finite")
    return str(value)


def _instant(value: dt.datetime, path: str) -> str:
    if value.utcoffset() is None:
        raise _refusal(path, value, "is a naive datetime: give it a time zone")
    try:
        return format_time(value)
    except OverflowError:
        raise _refusal(path, value, "is out of range in UTC") from None


_SCALARS: dict[type, Callable[[Any, str], Json]] = {
    str: _text,
    int: _integer,
    float: _number,
    dt.datetime: _instant,
    dt.date: lambda value, _path: value.isoformat(),
    dt.time: lambda value, _path: value.isoformat(),
    uuid.UUID: lambda value, _path: str(value),
    decimal.Decimal: _decimal,
    pathlib.PurePath: lambda value, path: _text(str(value), path),
}
_NO_SCALARS = (dict, list, tuple, enum.Enum)  # an enum may be an int or a str, too


def _scalar_of_base(value: object) -> Callable[[Any, str], Json] | None:
    if isinstance(value, _NO_SCALARS):
        return None
    for base, scalar in _SCALARS.items():
        if isinstance(value, base):
            return scalar
    return None


def _refusal(
    path: str, value: object, why: str, *, of: object = None
) -> SerializationError:
    name = type(value).__name__
    where = f" in a {type(of).__name__}" if of is not None else ""
    text = f"{_shown(path)}: {name} {why}{where}"
    return SerializationError(text, path=path, type_name=name)


def _shown(path: str) -> str:
    """Return a path as messages show it: of a very long one the two ends."""
    half = _MAX_PATH // 2
    return path if len(path) <= _MAX_PATH else f"{path[:half]}…{path[-half:]}"


def well_formed(text: str) -> str:
    """Return a text that can be encoded: with `?` for each lone surrogate.

    For texts of others that have to be told whatever they hold, such as file names in
    the messages of errors.
    """
    return text.encode("utf-8", "replace").decode()


def decode_json(data: bytes) -> Json:
    """Return the value of a UTF-8 JSON text; a byte order mark is allowed.

    Raises:
        WireError: Not UTF-8 ("Invalid encoding"), empty, not JSON, NaN or infinity,
            nested deeper than 100 levels ("Invalid JSON: <why>").
    """
    try:
        text = data.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError:
        raise WireError("", "Invalid encoding: the body is not UTF-8") from None
    return decode_json_text(text)


def decode_own(data: bytes) -> Json:
    """Return the value of a text that `encode_json` made, in a third of the time.

    Raises:
        ValueError: It is no JSON text.
    """
    try:
        return _scan(data.decode(), 0)[0]
    except StopIteration:
        raise ValueError("no JSON text that was made here") from None


def decode_body(data: bytes) -> Json:
    """Return the value of a body whose texts are kept, and told again.

    Raises:
        WireError: As `decode_json`; or a text is half a character, which UTF-8 cannot
            tell; `path` says where.
    """
    value = decode_json(data)
    try:
        encode_json(value)
    except SerializationError as error:
        why = error.message.removeprefix(f"{_shown(error.path)}: ")
        raise WireError(error.path, why) from None
    return value


def decode_json_text(text: str) -> Json:
    """Return the value of a JSON text that is decoded already.

    Raises:
        WireError: As `decode_json`.
    """
    try:
        value = _value_of(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        why = "the body is empty" if not text.strip() else str(error)
        raise WireError("", f"Invalid JSON: {why}") from None
    # Cheaper than a walk: without that many brackets it cannot be that deep.
    boxed = type(value) is dict or type(value) is list
    deep = boxed and text.count("[") + text.count("{") > MAX_DEPTH
    if deep and _depth_over(value):
        raise _too_deep()
    return value


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # of the C scanner


def _value_of(text: str) -> Json:
    if not text[:1].isspace():
        # Without a search for the blanks around the value: mostly there are none.
        value, end = _decoder.raw_decode(text)
        if end == len(text):
            return value
    return _decoder.decode(text)


def _too_deep() -> WireError:
    return WireError("", f"Invalid JSON: nested deeper than {MAX_DEPTH} levels")


def _depth_over(value: Json) -> bool:
    boxes: list[Json] = [[value]]  # not of the value's own levels
    for _ in range(MAX_DEPTH + 1):
        boxes = [
            item
            for box in boxes
            for item in (box.values() if type(box) is dict else box)
            if type(item) is dict or type(item) is list
        ]
        if not boxes:
            return False
    return True
