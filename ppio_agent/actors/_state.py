"""What a turn reads and writes of its actor's state.

Reads come from the store, once a key, and see the turn's own writes; the etag of the
first read goes with the commit, which fails if somebody else wrote meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppio_agent.exceptions import StateTooLargeError, ValidationError
from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import StateRead
from ppio_agent.wire.actors import ActorId, is_storable
from ppio_agent.wire.json import decode_own, encode_json

from ._outage import OUTAGES
from ._turn import Turn

__all__ = [
    "MAX_STATE",
    "MAX_VALUE",
    "list_keys",
    "read",
    "read_many",
    "remove",
    "write",
]

MAX_VALUE = 1024 * 1024
"""Most bytes of one value's JSON."""
MAX_STATE = 16 * 1024 * 1024
"""Most bytes of all keys and values of an actor."""
_MAX_KEY = 1024
_PAGE = 1000


def read(store: IActorStore, actor_id: ActorId, turn: Turn | None, key: str) -> Any:
    """Return a copy of a value, as the turn left it; None if there is none."""
    if turn is not None and turn.writes is not None and key in turn.writes:
        written = turn.writes[key]
        return None if written is None else decode_own(written)
    found = _ask(store, actor_id, turn, (_key(key),))
    if turn is not None and turn.etag is None:
        turn.etag = found.etag
    value = found.values.get(key)
    return None if value is None else decode_own(value)


def read_many(
    store: IActorStore, actor_id: ActorId, turn: Turn | None, keys: Sequence[str]
) -> dict[str, Any]:
    """Return copies of the values that there are, as the turn left them."""
    writes = (turn and turn.writes) or {}
    texts: dict[str, bytes | None] = {}
    asked = [_key(key) for key in keys if key not in writes]
    for start in range(0, len(asked), _PAGE):
        found = _ask(store, actor_id, turn, asked[start : start + _PAGE])
        if turn is not None and turn.etag is None:
            turn.etag = found.etag
        texts.update(found.values)
    texts.update((key, writes[key]) for key in keys if key in writes)
    return {
        key: decode_own(text) for key in keys if (text := texts.get(key)) is not None
    }


def write(store: IActorStore, turn: Turn, key: str, value: Any) -> None:
    """Set a value with the turn's commit.

    Raises:
        SerializationError: It has no JSON form.
        StateTooLargeError: It, or with it the whole state, is too large.
    """
    data = encode_json(value)
    if len(data) > MAX_VALUE:
        actor_id = turn.cell.actor_id
        raise StateTooLargeError(
            f"the value of {key!r:.120} of actor {actor_id} is {len(data)} bytes of JSON,"
            f" more than {MAX_VALUE}: split it into several keys",
            actor_id=str(actor_id),
        )
    growth = len(_key(key)) + len(data)
    size = turn.activation.size
    # What was written over is counted too, so the bound is above the truth: measured
    # anew when it is reached, and so rarely.
    if size is None or size + growth > MAX_STATE:
        size = _size_with_room(store, turn, growth)
    turn.activation.size = size + growth
    if turn.writes is None:
        turn.writes = {}
    turn.writes[key] = data


def _size_with_room(store: IActorStore, turn: Turn, growth: int) -> int:
    actor_id = turn.cell.actor_id
    size = _measured(store, actor_id, turn)
    if size + growth > MAX_STATE:
        raise StateTooLargeError(
            f"the state of actor {actor_id} would be more than {MAX_STATE} bytes of"
            " JSON: remove what it does not need",
            actor_id=str(actor_id),
        )
    return size


def _measured(store: IActorStore, actor_id: ActorId, turn: Turn) -> int:
    writes = turn.writes or {}
    size = sum(len(key) + len(data or b"") for key, data in writes.items())
    after = None
    while True:
        page = _ask(store, actor_id, turn, after=after)
        for key, data in page.values.items():
            if key not in writes:
                size += len(key) + len(data)
        after = page.next_key
        if after is None:
            return size


def remove(store: IActorStore, turn: Turn, key: str) -> bool:
    """Remove a value with the turn's commit; return whether there is one."""
    known = turn.writes is not None and key in turn.writes
    if known:
        there = turn.writes is not None and turn.writes[key] is not None
    else:
        found = _ask(store, turn.cell.actor_id, turn, (_key(key),))
        turn.etag = turn.etag or found.etag
        there = key in found.values
    if there:
        if turn.writes is None:
            turn.writes = {}
        turn.writes[key] = None
    return there


def list_keys(
    store: IActorStore, actor_id: ActorId, turn: Turn | None, prefix: str
) -> list[str]:
    """Return the keys that begin with `prefix`, sorted, as the turn left them."""
    keys: set[str] = set()
    after = None
    while True:
        page = _ask(store, actor_id, turn, prefix=prefix, after=after)
        if turn is not None and turn.etag is None:
            turn.etag = page.etag
        keys.update(page.values)
        after = page.next_key
        if after is None:
            break
    for key, data in ((turn and turn.writes) or {}).items():
        if key.startswith(prefix):
            (keys.discard if data is None else keys.add)(key)
    return sorted(keys)


def _ask(
    store: IActorStore,
    actor_id: ActorId,
    turn: Turn | None,
    keys: Sequence[str] | None = None,
    *,
    prefix: str = "",
    after: str | None = None,
) -> StateRead:
    """Read a page of the state; note on the turn if the store cannot be reached."""
    try:
        return store.read(actor_id, keys, prefix=prefix, after=after, limit=_PAGE)
    except OUTAGES as error:
        if turn is not None:
            turn.failed_by(error)
        raise


def _key(key: str) -> str:
    if not is_storable(key) or not 0 < len(key) <= _MAX_KEY:
        raise ValidationError(
            f"the state key {key!r:.120} is not a text of 1 to {_MAX_KEY} characters"
            " without NUL and lone surrogates"
        )
    return key
