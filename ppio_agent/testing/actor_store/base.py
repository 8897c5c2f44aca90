"""What the tests of the contract share: fixtures, requests, turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import pytest

from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import (
    Acceptance,
    Accepted,
    Committed,
    Lease,
    Limits,
    RequestRecord,
    TurnCommit,
)
from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.json import decode_json

__all__ = [
    "A",
    "B",
    "ContractBase",
    "accepted",
    "begin",
    "code_of",
    "commit",
    "eventually",
    "fields_of",
    "in_threads",
    "kept",
    "request",
]

_T = TypeVar("_T")
A = ActorId("echo", "c-1")
B = ActorId("echo", "c-2")


class ContractBase:
    """The fixtures that tests of a store override."""

    @pytest.fixture
    def store(self) -> Any:
        """An empty store."""
        raise TypeError(f"{type(self).__name__} does not override the fixture `store`")

    @pytest.fixture
    def peer(self, store: IActorStore) -> Any:
        """Another object that uses the same data; the same one if there can be none."""
        return store


def request(
    message_id: str = "m-1", actor_id: ActorId = A, **fields: Any
) -> RequestRecord:
    """Return a request that was not sent yet."""
    return RequestRecord(actor_id, message_id, **{"method": "run", **fields})


def accepted(
    store: IActorStore, *requests: RequestRecord, limits: Limits | None = None
) -> None:
    """Send requests that must be taken."""
    for record in requests:
        answer: Accepted = store.accept(record, limits or Limits())
        assert answer.outcome is Acceptance.NEW, answer


def begin(store: IActorStore, actor_id: ActorId = A, worker: str = "w-1") -> Lease:
    """Claim an actor for a worker that lives."""
    store.heartbeat(worker, 600.0)
    lease = store.claim(worker, actor_id)
    assert lease is not None, f"{actor_id} is not free for {worker}"
    return lease


def commit(
    store: IActorStore, lease: Lease, message_id: str = "m-1", **fields: Any
) -> Committed:
    """Commit a turn; COMPLETED if nothing else is said."""
    said = {"status": RequestStatus.COMPLETED, "data": b'{"ok":true}', **fields}
    return store.commit(lease, TurnCommit(message_id=message_id, **said))


def kept(
    store: IActorStore, message_id: str = "m-1", actor_id: ActorId = A
) -> RequestRecord:
    """Return a request that must be known."""
    record = store.get_request(actor_id, message_id)
    assert record is not None, f"{message_id} of {actor_id} is not known"
    return record


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """Return a request as what can be compared."""
    return attrs.asdict(record, recurse=False)


def code_of(record: RequestRecord) -> str:
    """Return the code of a failure, whose form is checked."""
    data = decode_json(record.data)
    assert sorted(data) == ["code", "error", "retryable"], data
    assert isinstance(data["error"], str)
    assert isinstance(data["retryable"], bool)
    return str(data["code"])


def eventually(check: Callable[[], _T], *, timeout: float = 10.0) -> _T:
    """Return what `check` returns as soon as it is true."""
    end = time.monotonic() + timeout
    tick = threading.Event()
    while not (result := check()):
        assert time.monotonic() < end, f"not within {timeout} s"
        tick.wait(0.01)
    return result


def in_threads(count: int, work: Callable[[int], _T]) -> list[_T]:
    """Run `work(0)`, `work(1)` … at once and return the results in that order."""
    barrier = threading.Barrier(count)
    results: dict[int, _T] = {}

    def run(number: int) -> None:
        barrier.wait(10.0)
        results[number] = work(number)

    threads = [
        threading.Thread(target=run, args=(number,), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert len(results) == count, f"{count - len(results)} of {count} threads failed"
    return [results[number] for number in range(count)]
