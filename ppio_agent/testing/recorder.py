"""Record what a client exchanges into a file, and replay it without anybody there."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from attrs import evolve

from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import (
    ConfigurationError,
    PPIOAgentError,
    StreamClosedError,
    UnrecordedRequestError,
)
from ppio_agent.hooks import hookimpl
from ppio_agent.transport import RawStream, Request, Response

from .cassette import Asked, Cassette, Exchange, hide_named, hide_pieces

__all__ = ["Recorder"]

# Bodies are recorded decoded and piece by piece, so these are not true any more.
_OF_THE_CONNECTION = frozenset({
    "connection", "content-encoding", "content-length", "date", "keep-alive", "server",
    "transfer-encoding",
})  # fmt: skip
_REPLAYED = ("http://127.0.0.1:1", "replayed-without-a-platform")

_Answer = Response | RawStream


class Recorder:
    """A plug-in that records the calls of a client, or answers them from a recording.

    A request finds its answer by method, path with query, and body. Not compared are
    the address, headers, ids of 32 hexadecimal digits and UUIDs. Secrets are not
    recorded: of a request no header at all, and ``***`` for keys, tokens and what
    `secrets` names, wherever they occur. An answer replays with the pieces it came in,
    at once, and asks no plug-in how to authenticate.

    Args:
        path: The file, JSON lines; its folder is made.
        mode: ``"once"`` replays if there is the file and records otherwise.
            ``"record"`` writes it anew, ``"replay"`` never records.
        secrets: Further texts to hide.

    Attributes:
        replays: Whether it answers instead of recording.

    Raises:
        ConfigurationError: The file is missing, is no recording, or cannot be written.

    Thread safety: thread-safe. It may serve several clients.

    Example:
        ```python
        client = AgentRuntimeClient(plugins=[Recorder("tests/cassettes/chat.jsonl")])
        ```
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mode: Literal["once", "record", "replay"] = "once",
        secrets: Iterable[str] = (),
    ) -> None:
        self._path = Path(path)
        if self._path.exists() and not self._path.is_file():
            raise ConfigurationError(f"the recording {self._path} is no file")
        self._redactor = Redactor(secrets)
        self.replays = mode == "replay" or (mode == "once" and self._path.exists())
        self._renew()
        renew_in_child(self, Recorder._renew)
        if not self.replays:
            self._started = False
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unwritable(error) from error
            return
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"the recording {self._path} cannot be read ({error.strerror}); record"
                " it by mode='once' where the platform can be reached"
            ) from error
        self._cassette = Cassette.parse(data, name=str(self._path))

    def _renew(self) -> None:
        self._lock = threading.Lock()  # guards the file, or what is left to replay

    @hookimpl
    def ppio_default_platform(self, config: Any) -> tuple[str, str] | None:
        """Let no local platform be started for a replay."""
        del config
        return _REPLAYED if self.replays else None

    @hookimpl
    def ppio_client_middleware(
        self, call_next: Callable[[Request], _Answer], request: Request
    ) -> _Answer:
        """Answer a call from the recording, or record how it goes.

        Raises:
            UnrecordedRequestError: It is not in the recording.
        """
        named = request.kind != "agent"
        # Asking may mean to fetch a token, which a replay has no use for.
        if request.auth is not None and not self.replays:
            headers = request.auth(request, False)  # noqa: FBT003 - the form of Auth
            self._learn(headers)
        asked = Asked.of(
            request.method,
            request.url,
            request.body or b"",
            self._redactor,
            named=named,
        )
        if self.replays:
            return self._replay(asked)
        return self._record(call_next, request, Exchange(asked=asked))

    def _learn(self, headers: Any) -> None:
        for name, shown in self._redactor.headers(headers).items():
            if shown == "***":
                self._redactor.add(headers[name].removeprefix("Bearer "))

    def _replay(self, asked: Asked) -> _Answer:
        with self._lock:
            found = self._cassette.find(asked)
        if found.status is None and found.error is not None:
            raise copy.copy(found.error)
        head = Response.make(found.status or 200, found.headers)
        return RawStream.of(head, _replayed(found))

    def _record(
        self,
        call_next: Callable[[Request], _Answer],
        request: Request,
        exchange: Exchange,
    ) -> _Answer:
        try:
            answer = call_next(request)
        except PPIOAgentError as error:
            self._write(evolve(exchange, error=error))
            raise
        headers = {
            name: value
            for name, value in self._redactor.headers(answer.headers).items()
            if name.lower() not in _OF_THE_CONNECTION
        }
        exchange = evolve(exchange, status=answer.status, headers=headers)
        if isinstance(answer, RawStream):
            return RawStream.of(answer.head, _Pieces(answer, exchange, self._write))
        named = request.kind != "agent"
        body = hide_named(answer.body, self._redactor) if named else answer.body
        self._write(evolve(exchange, pieces=(body,) if body else ()))
        return answer

    def _write(self, exchange: Exchange) -> None:
        pieces = hide_pieces(exchange.pieces, self._redactor)
        line = evolve(exchange, pieces=pieces).to_line(self._redactor.text)
        began = False
        with self._lock:
            try:
                with self._path.open("ab" if self._started else "wb") as file:
                    began = not self._started
                    file.write(line if self._started else Cassette.header() + line)
            except OSError as error:
                if began:  # or the next run would replay what is empty
                    with contextlib.suppress(OSError):
                        self._path.unlink()
                raise self._unwritable(error) from error
            self._started = True

    def _unwritable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"the recording {self._path} cannot be written ({error.strerror})"
        )

    def __repr__(self) -> str:
        return f"Recorder({str(self._path)!r}, replays={self.replays})"


def _replayed(found: Exchange) -> Iterator[bytes]:
    yield from found.pieces
    if found.error is not None:
        raise copy.copy(found.error)
    if found.left:
        asked = f"{found.asked.method} {found.asked.path}"
        raise UnrecordedRequestError(
            f"the client left the answer to {asked} here when it was recorded; delete"
            " the recording to record more of it"
        )


class _Pieces:
    """The pieces of a stream, which are written down when it is over."""

    def __init__(
        self, stream: RawStream, exchange: Exchange, write: Callable[[Exchange], None]
    ) -> None:
        self._stream = stream
        self._exchange = exchange
        self._write: Callable[[Exchange], None] | None = write
        self._pieces: list[bytes] = []

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        try:
            piece = self._stream.read()
        except StreamClosedError:
            self._finish(left=True)
            raise
        except PPIOAgentError as error:
            self._finish(error=error)
            raise
        if not piece:
            self._finish()
            raise StopIteration
        self._pieces.append(piece)
        return piece

    def close(self) -> None:
        self._finish(left=True)
        self._stream.close()

    def _finish(self, **end: Any) -> None:
        write, self._write = self._write, None
        if write is not None:
            write(evolve(self._exchange, pieces=tuple(self._pieces), **end))
