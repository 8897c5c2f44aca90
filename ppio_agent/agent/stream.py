"""A handler's chunks: into the ring on its thread, out of it on another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ppio_agent.exceptions import SerializationError
from ppio_agent.wire.json import decode_json, encode_json

from .chunk import Chunk, ChunkCollector
from .context import CancelToken
from .ring import ReplayRing, RingReader

__all__ = ["pump", "read_chunks"]


def pump(
    items: Iterator[Any],
    ring: ReplayRing,
    *,
    collector: ChunkCollector | None,
    cancelled: CancelToken,
) -> bool:
    """Move a stream into the ring, encoding each item; close the stream at the end.

    Blocking: as the stream does, and while the ring's readers are too far behind.

    Returns:
        Whether the stream came to its own end; False if it was stopped.

    Raises:
        SerializationError: An item has no JSON form; the message has its number.
        BaseException: Whatever the stream raises.
    """
    forget = cancelled.subscribe(ring.interrupt, quick=True)
    try:
        for item in items:
            data, taken = _append(ring, item, cancelled)
            if not taken:
                return False
            if collector is not None:
                collector.add(data, is_text=data[:1] == b'"')
        return True
    finally:
        forget()
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _append(ring: ReplayRing, item: Any, cancelled: CancelToken) -> tuple[bytes, int]:
    chunk = item if isinstance(item, Chunk) else None
    try:
        data = encode_json(item if chunk is None else chunk.data)
    except SerializationError as error:
        raise SerializationError(
            f"chunk {ring.last + 1}: {error.message}",
            path=error.path,
            type_name=error.type_name,
        ) from error
    if cancelled:
        return data, 0
    if chunk is None:
        return data, ring.append(data)
    retry_ms = None if chunk.retry is None else round(chunk.retry * 1000)
    return data, ring.append(
        data, event=chunk.event, retry_ms=retry_ms, handler_id=chunk.id
    )


def read_chunks(reader: RingReader) -> Iterator[Chunk]:
    """Yield the chunks a reader has not taken, as they come, to the end; close it."""
    after = reader.position
    with reader:
        while True:
            entries = reader.read(after)
            for entry in entries:
                if entry.kind != "chunk":
                    continue
                yield Chunk(
                    decode_json(entry.data),
                    event=entry.event,
                    id=entry.handler_id,
                    retry=None if entry.retry_ms is None else entry.retry_ms / 1000,
                    seq=entry.seq,
                )
            if not entries or entries[-1].kind == "end":
                return
            after = entries[-1].seq
