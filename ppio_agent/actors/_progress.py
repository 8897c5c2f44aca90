"""Steps of a request: how its turn tells them, and how others watch them.

A store that is not durable is told of each step at once. A durable one is told of them
in batches, and of the last with the commit; who watches in this process gets them
before. So when a process dies, steps were seen that no store knows: at most `_AHEAD` of
them, and by so many numbers a turn that is run again begins later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ppio_agent.exceptions import (
    InvalidMessageError,
    LeaseLostError,
    StateTooLargeError,
)
from ppio_agent.storage.actors.records import ProgressItem
from ppio_agent.wire.actors import ActorResponseMessage, RequestStatus
from ppio_agent.wire.json import decode_own, encode_json

from ._call import Call
from ._outage import OUTAGES
from ._waiting import wait

if TYPE_CHECKING:
    from ._engine import Engine
    from ._turn import Turn

__all__ = [
    "MAX_STEP",
    "flush",
    "last_seen",
    "read",
    "rest",
    "restart",
    "tell",
    "watch",
]

MAX_STEP = 1024 * 1024
"""Most bytes of one step's JSON."""
_BATCH = 32
_LARGE = 32 * 1024  # bytes of a step for which no others are waited for
_EVERY = 0.1
_AHEAD = 8 * _BATCH  # most steps that are seen and not stored
_MOST, _MOST_BYTES = 1024, 1024 * 1024
_PAGE = 256
_RETRY = 0.1


def tell(
    engine: Engine,
    turn: Turn,
    data: Any,
    sequence: int,
    message_id: str | None = None,
) -> None:
    """Log a step of a turn; one whose number is not above the last is dropped.

    Waits while the store is so far behind that no more may be seen.

    Raises:
        InvalidMessageError: It is another request's, or one that was completed.
        SerializationError: It has no JSON form.
        StateTooLargeError: It is larger than 1 MiB.
        InvocationCancelledError: The store is behind, or the lease of the actor was
            lost, and the turn is to end.
        InvocationTimeoutError: So, since its deadline has passed.
    """
    record = turn.record
    if message_id is not None and message_id != record.message_id:
        raise InvalidMessageError(
            f"request {message_id} is not the one of this turn, which is"
            f" {record.message_id}"
        )
    if sequence <= turn.sequence:
        return
    step = b'{"sequence":%d,"progress":%b}' % (sequence, encode_json(data))
    if len(step) > MAX_STEP:
        actor_id = str(turn.cell.actor_id)
        raise StateTooLargeError(
            f"a step of request {record.message_id} to {actor_id} is {len(step)} bytes"
            f" of JSON, more than {MAX_STEP}: tell it in several",
            actor_id=actor_id,
        )
    turn.sequence = sequence
    _log(engine, turn, step)
    while turn.lost or (turn.flushing is not None and _is_ahead(turn.steps)):
        if turn.cancelled.wait(_RETRY):
            turn.context.check()
        flush(engine, turn)


def restart(engine: Engine, turn: Turn) -> None:
    """Log that what came before is void, as the turn begins anew."""
    if turn.runs == 1 and engine.store.durable:
        # Each of those who ran it before may have shown so many that are not stored.
        turn.position += _AHEAD * (turn.record.attempt - 1)
    _log(engine, turn, b'{"restart":%d}' % turn.record.attempt)


def _log(engine: Engine, turn: Turn, data: bytes) -> None:
    turn.position += 1
    item = ProgressItem(turn.position, data)
    if not turn.accepted:  # nobody can watch it: it all goes with the commit
        turn.steps = _last_of([*turn.steps, item])
        return
    if turn.flushing is None:
        turn.flushing, turn.steps = threading.Lock(), []
    steps = cast("list[ProgressItem]", turn.steps)
    steps.append(item)
    batch = _BATCH if engine.store.durable else 1
    if len(steps) % batch == 0 or len(data) >= _LARGE:
        flush(engine, turn)
    elif len(steps) == 1:
        _flush_later(engine, turn)
    engine.calls.moved(turn.cell.actor_id, turn.record.message_id)


def flush(engine: Engine, turn: Turn) -> None:
    """Tell the store of the steps that it does not know, unless somebody does.

    What it cannot take now is told with the next steps, or with the commit.
    """
    flushing = turn.flushing
    if flushing is None or turn.over or not flushing.acquire(blocking=False):
        return
    try:
        steps = cast("list[ProgressItem]", turn.steps)
        known = tuple(steps)
        if known:
            lease, message_id = turn.activation.lease, turn.record.message_id
            engine.store.append_progress(lease, message_id, known)
            del steps[: len(known)]
    except LeaseLostError:  # the next owner runs it again
        turn.lost = True
        turn.cancel("shutdown")
    except OUTAGES:  # the sweep tells of it
        pass
    finally:
        flushing.release()


def _flush_later(engine: Engine, turn: Turn) -> None:
    def run() -> None:
        flush(engine, turn)
        if turn.steps and not turn.over:
            _flush_later(engine, turn)

    engine.timers.at(time.monotonic() + _EVERY, run, always=True)


def _is_ahead(steps: Sequence[ProgressItem]) -> bool:
    """Whether so many steps, or bytes of them, are not stored that no more may be."""
    return len(steps) >= _AHEAD or sum([len(item.data) for item in steps]) > _MOST_BYTES


def rest(turn: Turn) -> tuple[ProgressItem, ...]:
    """Return the steps that go with the commit."""
    if turn.flushing is None:
        return tuple(turn.steps)
    with turn.flushing:  # what is on its way to the store is not sent twice
        return tuple(turn.steps)


def _last_of(steps: list[ProgressItem]) -> list[ProgressItem]:
    """Return the last steps, as many as stores keep."""
    size, first = 0, len(steps)
    for item in reversed(steps[-_MOST:]):
        size += len(item.data)
        if size > _MOST_BYTES:
            break
        first -= 1
    return steps[first:]


def watch(engine: Engine, call: Call, after: int) -> Iterator[ActorResponseMessage]:
    """Yield each step after number `after`, then the final response, once."""
    while True:
        for update in read(engine, call, after, None):
            yield update
            if update.status is not RequestStatus.PENDING:
                return
            after = update.position


def read(
    engine: Engine, call: Call, after: int, timeout: float | None
) -> list[ActorResponseMessage]:
    """Return steps after number `after`, or the final response if there are none.

    Args:
        engine: Of the request.
        call: The request.
        after: Number of the last step that is known.
        timeout: Seconds to wait for one; None: as long as it takes.

    Returns:
        None of them if none came in time.
    """
    # Whether it is over first: what is read then is all there is.
    over = call.over
    items = _steps_after(engine, call, after)
    if not items and not over:
        found = partial(_steps_after, engine, call, after)
        wait(engine, call, timeout, steps=found)
        over = call.over
        items = found()
    if items:
        return _told(call, items, after)
    return [call.response()] if over else []


def last_seen(engine: Engine, call: Call) -> int:
    """Return a number above which nobody can have seen a step, by the store."""
    record = engine.store.get_request(call.actor_id, call.message_id)
    if record is None:
        return 0
    return record.position + _AHEAD * record.attempt * engine.store.durable


def _told(
    call: Call, items: list[ProgressItem], after: int
) -> list[ActorResponseMessage]:
    steps = [_step(call, item.position, decode_own(item.data)) for item in items]
    first = items[0].position
    if first > after + 1 and "restart" not in steps[0].data:  # that one begins later
        steps.insert(0, _step(call, first - 1, {"gap": first - after - 1}))
    return steps


def _steps_after(engine: Engine, call: Call, after: int) -> list[ProgressItem]:
    cell = engine.cells.find(call.actor_id)
    turn = None if cell is None else cell.turn
    ours = turn is not None and turn.record.message_id == call.message_id
    # First these: what is moved to the store meanwhile is found there.
    fresh = list(turn.steps) if turn is not None and ours else []
    stored = engine.store.read_progress(call.actor_id, call.message_id, after, _PAGE)
    if len(stored) == _PAGE:
        return stored
    last = stored[-1].position if stored else after
    return [*stored, *(item for item in fresh if item.position > last)]


def _step(call: Call, position: int, data: Any) -> ActorResponseMessage:
    return ActorResponseMessage(
        call.message_id,
        sender_id=call.actor_id,
        status=RequestStatus.PENDING,
        data=data,
        position=position,
    )
