"""Requests that have ended, in as few bytes as will do. Pure.

Most of what a store keeps in memory are these, and few of them are looked at again.
"""

from __future__ import annotations

import marshal

from ppio_agent.wire.actors import ActorId, RequestStatus

from .records import Cancellation, RequestRecord

__all__ = ["pack", "unpack"]

_STATUSES = (
    RequestStatus.COMPLETED,
    *(status for status in RequestStatus if status is not RequestStatus.COMPLETED),
)
_WITHOUT_REFERENCES = (
    2  # a format of `marshal` that is quicker to write than later ones
)
_UNUSUAL = (b"", "", (), "", None, None)


def pack(record: RequestRecord) -> bytes:
    """Return all that is to be known of a request but its address, id and params."""
    cancel = record.cancel
    unusual = (
        record.digest,
        record.sender,
        record.chain,
        record.traceparent,
        record.deadline,
        None if cancel is None else cancel.value,
    )
    return marshal.dumps(
        (
            record.method,
            record.created_at,
            _STATUSES.index(record.status),
            record.attempt,
            record.started_at,
            record.finished_at,
            record.data,
            record.evicted,
            record.position,
            None if unusual == _UNUSUAL else unusual,
        ),
        _WITHOUT_REFERENCES,
    )


def unpack(actor_id: ActorId, message_id: str, packed: bytes) -> RequestRecord:
    """Return the request of which `pack` made this."""
    fields = marshal.loads(packed)  # noqa: S302 - `pack` made it
    method, created_at, status, attempt, started_at, finished_at = fields[:6]
    data, evicted, position, unusual = fields[6:]
    digest, sender, chain, traceparent, deadline, cancel = unusual or _UNUSUAL
    return RequestRecord(
        actor_id,
        message_id,
        method,
        b"",
        digest,
        sender,
        chain,
        traceparent,
        created_at,
        deadline,
        _STATUSES[status],
        attempt,
        started_at,
        finished_at,
        data,
        evicted,
        position,
        None if cancel is None else Cancellation(cancel),
    )
