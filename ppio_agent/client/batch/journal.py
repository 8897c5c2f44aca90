"""What a batch's journal says: its lines, and what a later run makes of them. Pure.

One JSON object a line. The first names the batch; then, for each item, `start` (it is
about to be sent), `done` (with the answer) or `failed`. A line is written at once and
ends in a line feed, so a program that died left at most the last one without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from attrs import evolve, frozen

from ppio_agent.exceptions import BatchJournalError
from ppio_agent.wire.json import Json
from ppio_agent.wire.models import InvocationResponse

__all__ = [
    "JournalEntry",
    "JournalState",
    "Outcome",
    "digest",
    "format_done",
    "format_failed",
    "format_header",
    "format_start",
    "parse_done",
    "parse_journal",
]

_VERSION = 1
_MAGIC = f'{{"journal":"ppio-batch","version":{_VERSION},'.encode()

_MEMBERS = tuple(attribute.name for attribute in attrs.fields(InvocationResponse))


@frozen(kw_only=True)
class JournalEntry:
    """What a journal knows of one item.

    Attributes:
        digest: SHA-256 of its request.
        key: The idempotency key it was last sent with.
        sandbox_id: Where it was sent, if its end is not known; else None.
        done: Where the line with its answer is: offset and length in bytes.
    """

    digest: str
    key: str
    sandbox_id: str | None
    done: tuple[int, int] | None = None


@frozen(kw_only=True)
class JournalState:
    """What a journal amounts to.

    Attributes:
        template_id: Template of the batch.
        batch_id: Its id.
        entries: Its items, by index.
        size: Bytes of its whole lines; what follows is torn.
    """

    template_id: str
    batch_id: str
    entries: Mapping[int, JournalEntry]
    size: int


@frozen(kw_only=True)
class Outcome:
    """How an item went well.

    Attributes:
        response: The answer.
        attempts: How often it was tried.
        elapsed: Seconds it took.
    """

    response: InvocationResponse
    attempts: int
    elapsed: float


def digest(body: bytes) -> str:
    """Return what tells one request's body from another."""
    return hashlib.sha256(body).hexdigest()


def format_header(template_id: str, batch_id: str) -> bytes:
    """Return the first line."""
    return _MAGIC + _line({"template": template_id, "batch": batch_id})[1:]


def format_start(index: int, entry: JournalEntry) -> bytes:
    """Return the line of an item that is about to be sent."""
    return _line({
        "start": index,
        "sha256": entry.digest,
        "key": entry.key,
        "sandbox": entry.sandbox_id,
    })  # fmt: skip


def format_done(index: int, outcome: Outcome, redact: Callable[[str], str]) -> bytes:
    """Return the line of an item that went well.

    Args:
        index: The item's.
        outcome: Its answer.
        redact: Hides secrets in texts of the answer.
    """
    answer = {name: getattr(outcome.response, name) for name in _MEMBERS}
    return _line({
        "done": index,
        "attempts": outcome.attempts,
        "elapsed": outcome.elapsed,
        "response": {name: _redacted(v, redact) for name, v in answer.items()},
    })  # fmt: skip


def format_failed(index: int) -> bytes:
    """Return the line of an item that failed: it is to be run again."""
    return _line({"failed": index})


def _line(record: Mapping[str, Json]) -> bytes:
    # Plainer than `encode_json`: what came as JSON goes back as JSON, however deep.
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _redacted(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(k): _redacted(v, redact) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item, redact) for item in value]
    return value


def parse_done(line: bytes) -> Outcome:
    """Return what a line of `format_done` holds.

    Raises:
        BatchJournalError: It is no such line.
    """
    record = _record(line)
    try:
        return _outcome(record)
    except (KeyError, TypeError, ValueError) as error:
        raise BatchJournalError("an answer cannot be read") from error


def _outcome(record: Mapping[str, Any]) -> Outcome:
    members = {**record["response"]}
    if members["chunks"] is not None:
        members["chunks"] = tuple(members["chunks"])
    return Outcome(
        response=InvocationResponse(**members),
        attempts=int(record["attempts"]),
        elapsed=float(record["elapsed"]),
    )


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BatchJournalError("a line is not JSON") from error
    if not isinstance(record, dict):
        raise BatchJournalError("a line is no object")
    return record


def parse_journal(lines: Iterable[bytes]) -> JournalState | None:
    """Return what the lines of a journal amount to; None if none is whole.

    Args:
        lines: The lines with their ends; the last one may have none, and is passed
            over then.

    Raises:
        BatchJournalError: They are not a journal's; the message says which and why.
    """
    reader: _Reader | None = None
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            # Nothing but a torn header may be written over.
            if reader is None and not _MAGIC.startswith(line[: len(_MAGIC)]):
                raise BatchJournalError("line 1: it is no batch journal")
            break
        try:
            if reader is None:
                reader = _Reader(line)
            else:
                reader.take(line)
        except BatchJournalError as error:
            raise BatchJournalError(f"line {number}: {error.message}") from error
    return None if reader is None else reader.state()


class _Reader:
    """Takes the lines of a journal one by one."""

    def __init__(self, header: bytes) -> None:
        if not header.startswith(_MAGIC):
            raise BatchJournalError("it is no batch journal of this version")
        record = _record(header)
        self._template_id = _text(record, "template")
        self._batch_id = _text(record, "batch")
        self._entries: dict[int, JournalEntry] = {}
        self._size = len(header)

    def take(self, line: bytes) -> None:
        record = _record(line)
        if "start" in record:
            self._entries[_index(record["start"])] = JournalEntry(
                digest=_text(record, "sha256"),
                key=_text(record, "key"),
                sandbox_id=_text(record, "sandbox"),
            )
        elif "done" in record:
            where = (self._size, len(line))
            self._end(_index(record["done"]), done=where)
        elif "failed" in record:
            self._end(_index(record["failed"]), done=None)
        else:
            raise BatchJournalError("it is no line of a batch journal")
        self._size += len(line)

    def _end(self, index: int, *, done: tuple[int, int] | None) -> None:
        entry = self._entries.get(index)
        if entry is None:
            raise BatchJournalError(f"item {index} ends without a start")
        self._entries[index] = evolve(entry, sandbox_id=None, done=done)

    def state(self) -> JournalState:
        return JournalState(
            template_id=self._template_id,
            batch_id=self._batch_id,
            entries=self._entries,
            size=self._size,
        )


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise BatchJournalError(f"{name} has to be a text")
    return value


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BatchJournalError("the index of an item has to be a whole number")
    return value
