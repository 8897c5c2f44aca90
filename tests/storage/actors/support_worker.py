"""A process that runs turns of actors in a shared store, without a runtime.

Usage: ``python -m tests.storage.actors.support_worker URL NAME TTL [pause]``. It ends with its
standard input. Nobody wakes it: what there is to do it finds in the store alone. With
`pause` it begins one turn, says so, and commits it when it is told to go on.
"""

from __future__ import annotations

import sys
import threading

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors import open_actor_store
from ppio_agent.storage.actors.port import IActorStore
from ppio_agent.storage.actors.records import (
    CommitOutcome,
    Outgoing,
    RequestRecord,
    SetValue,
    TurnCommit,
)
from ppio_agent.wire.actors import ActorId, RequestStatus

__all__ = ["count_turn"]


def count_turn(store: IActorStore, record: RequestRecord) -> TurnCommit:
    """Return a turn that counts in the state, and of `forward` tells the next actor."""
    state = store.read(record.actor_id, ["count"])
    count = int(state.values.get("count", b"0"))
    outbox = []
    if record.method == "forward":
        target = ActorId("sink", record.actor_id.instance_id)
        outbox.append(Outgoing(RequestRecord(target, f"f-{record.message_id}")))
    return TurnCommit(
        message_id=record.message_id,
        status=RequestStatus.COMPLETED,
        data=b"%d" % (count + 1),
        etag=state.etag,
        state=[SetValue("count", b"%d" % (count + 1))],
        outbox=outbox,
    )


def _drain(store: IActorStore, worker: str, actor_id: ActorId) -> None:
    lease = store.claim(worker, actor_id)
    if lease is None:
        return
    record = store.take(lease).record
    while record is not None:
        done = store.commit(lease, count_turn(store, record))
        if done.outcome is not CommitOutcome.CONFLICT:
            assert done.taken is not None
            record = done.taken.record
    store.release(lease)


def _work(store: IActorStore, worker: str, ttl: float) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
    while not ended.wait(0.02):
        store.heartbeat(worker, ttl)
        store.relay(store.now(), 100)
        for actor_id in store.ready(worker, 100):
            try:
                _drain(store, worker, actor_id)
            except LeaseLostError as error:
                print(error, flush=True)
    store.retire(worker)


def _pause(store: IActorStore, worker: str, ttl: float) -> None:
    store.heartbeat(worker, ttl)
    (actor_id,) = store.ready(worker, 1)
    lease = store.claim(worker, actor_id)
    assert lease is not None
    record = store.take(lease).record
    assert record is not None
    turn = count_turn(store, record)
    print("taken", flush=True)
    sys.stdin.readline()
    try:
        print(store.commit(lease, turn).outcome, flush=True)
    except LeaseLostError:
        print("lost", flush=True)


if __name__ == "__main__":
    url, name, seconds, *mode = sys.argv[1:]
    opened = open_actor_store(url)
    assert isinstance(opened, IActorStore)
    (_pause if mode else _work)(opened, name, float(seconds))
    opened.close()
