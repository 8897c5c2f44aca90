"""The base of every wire shape, and the one converter that reads and writes them.

A shape is a frozen attrs class. How its keys are spelled is said once, by its base
class (`WireModel`: as the attribute; `CamelModel`: ``templateID``, ``memoryMB``), and
by ``metadata={"wire": …}`` for the exceptions. Nothing is coerced: ``"3"`` is no int.
"""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import attrs
from attrs import field, frozen
from cattrs import BaseConverter

from ppio_agent._util.redact import escaped
from ppio_agent.exceptions import WireError

from .json import Json
from .times import format_time, parse_time

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CamelModel",
    "OpenEnum",
    "WireModel",
    "make_converter",
    "structure",
    "visible",
]

_T = TypeVar("_T")
_VISIBLE = re.compile("[!-~]+")
_SCALARS = (int, str, bool)
_ACRONYMS = {"id": "ID", "mb": "MB", "url": "URL"}


class OpenEnum(enum.Enum):
    """Words of a server's own: one that is unknown here is kept as it came.

    Example:
        >>> class State(OpenEnum):
        ...     RUNNING = "running"
        >>> State("running") is State.RUNNING, State("frozen").value
        (True, 'frozen')
    """

    @classmethod
    def _missing_(cls, value: object) -> OpenEnum | None:
        if not isinstance(value, str):
            return None
        member = object.__new__(cls)
        member._name_ = value
        member._value_ = value
        return member

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and bool(other.value == self.value)

    def __hash__(self) -> int:
        return hash(self._value_)

    def __reduce_ex__(self, proto: object) -> tuple[Any, ...]:
        return type(self), (self._value_,)


@frozen(kw_only=True)
class WireModel:
    """A JSON object of the wire.

    Attributes:
        extra: Members that the shape does not name; they are kept and sent back.

    Thread safety: immutable.
    """

    spelling: ClassVar[Callable[[str], str]] = staticmethod(lambda name: name)

    extra: Mapping[str, Json] = field(factory=dict, repr=False)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return the model that a decoded JSON object stands for.

        Raises:
            WireError: A member is missing or of the wrong type; the path is in wire
                names and the value itself is not shown.
        """
        return structure(cls, data)

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON object; members that are None are left out."""
        return self._dump(with_hidden=True)

    def public_dict(self) -> dict[str, Json]:
        """Return `to_dict()` without what the repr hides: what `encode_json` shows."""
        return self._dump(with_hidden=False)

    def _dump(self, *, with_hidden: bool) -> dict[str, Json]:
        found: dict[str, Json] = {}
        kind: Any = type(self)
        for name, key, shown in _wire_names(kind):
            value = _plain(getattr(self, name), with_hidden=with_hidden)
            if value is not None and (shown or with_hidden):
                found[key] = value
        found.update(self.extra)
        return found


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(_ACRONYMS.get(part, part.capitalize()) for part in rest)


@frozen(kw_only=True)
class CamelModel(WireModel):
    """A wire shape of the control plane, whose keys are like ``sandboxID``."""

    spelling: ClassVar[Callable[[str], str]] = staticmethod(_camel)


def visible(model: WireModel, member: attrs.Attribute[Any], value: str) -> None:
    """Refuse an id that would say something else in a log, a header or a host's name.

    A validator. Only one that may be left out may be empty.

    Raises:
        WireError: It has others than visible ASCII characters.
    """
    empty = not value and member.default is not attrs.NOTHING
    if not empty and _VISIBLE.fullmatch(value) is None:
        path = f".{type(model).spelling(member.name)}"
        raise WireError(path, "expected an id of visible ASCII characters")


@lru_cache(maxsize=512)
def _wire_names(cls: type[WireModel]) -> tuple[tuple[str, str, bool], ...]:
    """Return (attribute, key, whether the repr shows it) of each member that travels.

    Fields marked local do not.
    """
    return tuple(
        (f.name, f.metadata.get("wire") or cls.spelling(f.name), f.repr is True)
        for f in attrs.fields(cls)
        if f.name != "extra" and not f.metadata.get("local")
    )


def _plain(value: object, *, with_hidden: bool) -> Json:
    if isinstance(value, WireModel):
        return value.to_dict() if with_hidden else value.public_dict()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, with_hidden=with_hidden) for item in value]
    if isinstance(value, Mapping):
        return {
            key: _plain(item, with_hidden=with_hidden) for key, item in value.items()
        }
    return value


def _strict(kind: type) -> Callable[[object, type], Any]:
    def check(value: object, _: type) -> object:
        if type(value) is not kind:
            raise _mismatch(kind.__name__, value)
        return value

    return check


def _float(value: object, _: type) -> float:
    if type(value) is not float and type(value) is not int:
        raise _mismatch("number", value)
    try:
        return float(value)
    except OverflowError:
        raise WireError("", "expected a number in the range of a float") from None


def _time(value: object, _: type) -> datetime:
    if not isinstance(value, str):
        raise _mismatch("RFC 3339 time", value)
    return parse_time(value)


def _mismatch(expected: str, value: object) -> WireError:
    got = (
        "null" if value is None else _JSON_NAMES.get(type(value), type(value).__name__)
    )
    return WireError("", f"expected {expected}, got {got}")


_JSON_NAMES: dict[type, str] = {dict: "object", list: "array"}


def make_converter() -> BaseConverter:
    """Return a converter with the strict rules of the wire.

    The package builds one for itself; `structure` uses that.

    Thread safety: thread-safe.
    """
    converter = BaseConverter(detailed_validation=False)
    for kind in _SCALARS:
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook(float, _float)
    converter.register_structure_hook(datetime, _time)
    # By its class: an older cattrs asks no predicate about an enum.
    converter.register_structure_hook(enum.Enum, _enum)
    # The last that fits wins: a model may be a Mapping, too.
    rules: tuple[tuple[Callable[[Any], bool], Callable[..., Any]], ...] = (
        (lambda kind: kind is Any, lambda value, _: value),
        (_is_array, lambda value, kind: _array(converter, value, kind)),
        (_is_mapping, lambda value, kind: _mapping(converter, value, kind)),
        (_is_optional, lambda value, kind: _optional(converter, value, kind)),
        (attrs.has, lambda value, cls: _object(converter, value, cls)),
    )
    for predicate, hook in rules:
        converter.register_structure_hook_func(predicate, hook)
    return converter


def _object(converter: BaseConverter, value: object, cls: Any) -> Any:
    if not isinstance(value, dict):
        raise _mismatch("object", value)
    given: dict[str, Any] = {}
    keys = set()
    for name, key, kind, required, nullable, scalar in _members(cls):
        keys.add(key)
        if key not in value:
            if required:
                raise WireError(f".{key}", "is missing")
            continue
        item = value[key]
        if type(item) is scalar:
            given[name] = item  # as it is, without a look at the rules
        elif item is None and not required and not nullable:
            continue  # servers write null where they mean absent
        else:
            given[name] = _at(f".{key}", converter, item, kind)
    if issubclass(cls, WireModel):
        given["extra"] = {k: v for k, v in value.items() if k not in keys}
    return cls(**given)


@lru_cache(maxsize=512)
def _members(cls: Any) -> tuple[tuple[str, str, Any, bool, bool, type | None], ...]:
    """Return (argument, key, type, required, nullable, scalar) of each member.

    The last is a type whose values need no look, if it takes one: str, int or bool.
    """
    attrs.resolve_types(cls)
    spelling = getattr(cls, "spelling", str)
    return tuple(
        (
            f.alias or f.name,
            f.metadata.get("wire") or spelling(f.name),
            f.type if f.type is not None else Any,
            f.default is attrs.NOTHING,
            _is_optional(f.type),
            _scalar_of(f.type),
        )
        for f in attrs.fields(cls)
        if f.init and not f.metadata.get("local")
        if not (f.name == "extra" and issubclass(cls, WireModel))
    )


def _scalar_of(kind: Any) -> type | None:
    choices = get_args(kind) if _is_optional(kind) else (kind,)
    return next((one for one in choices if one in _SCALARS), None)


def _at(path: str, converter: BaseConverter, value: object, kind: Any) -> Any:
    try:
        return converter.structure(value, kind)
    except WireError as error:
        raise WireError(path + error.path, error.message) from None
    except (TypeError, ValueError) as error:  # from a validator of the class itself
        raise WireError(path, str(error)) from error


def _enum(value: object, kind: type[enum.Enum]) -> enum.Enum:
    if not isinstance(value, str):
        raise _mismatch("str", value)
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(str(member.value) for member in kind)
        raise WireError("", f"expected one of {words}") from None


def _is_array(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list) or kind in (tuple, list)


def _array(converter: BaseConverter, value: object, kind: Any) -> Any:
    if not isinstance(value, list):
        raise _mismatch("array", value)
    item_kind = (get_args(kind) or (Any,))[0]
    items = [_at(f"[{i}]", converter, item, item_kind) for i, item in enumerate(value)]
    return items if (get_origin(kind) or kind) is list else tuple(items)


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _mapping(converter: BaseConverter, value: object, kind: Any) -> Any:
    if not isinstance(value, dict):
        raise _mismatch("object", value)
    item_kind = (get_args(kind) or (str, Any))[1]
    return {
        k: _at(f".{escaped(k)}", converter, item, item_kind)
        for k, item in value.items()
    }


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _optional(converter: BaseConverter, value: object, kind: Any) -> Any:
    choices = get_args(kind)
    if value is None and type(None) in choices:
        return None
    refusal: WireError | None = None
    for choice in choices:
        if choice is not type(None):
            try:
                return converter.structure(value, choice)
            except WireError as error:
                refusal = refusal or error
    raise refusal or _mismatch("null", value)


_converter = make_converter()


def structure(cls: type[_T], data: object) -> _T:
    """Return `data`, decoded JSON, as an instance of `cls`: a model, or any attrs class.

    Raises:
        WireError: With the path from the root, as in ``$.items[0].memoryMB``.
    """
    return _at("$", _converter, data, cls)  # type: ignore[no-any-return]
