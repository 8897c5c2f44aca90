"""Start an agent through the controller in its sandbox, and hear if it ends at once.

The controller (envd) speaks the Connect protocol: one message in, a stream of events
out. The first part reads and writes these and is pure; the second does the I/O.
Source: client.md section 3.5; the Connect protocol (connectrpc.com/docs/protocol).
"""

from __future__ import annotations

import binascii
import itertools
import logging
import re
import shlex
import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import (
    AgentUnreachableError,
    AuthenticationError,
    ConflictError,
    NetworkError,
    PPIOAgentError,
    ProtocolError,
    RateLimitError,
    SandboxCreationError,
    ServiceUnavailableError,
    SessionNotFoundError,
    WireError,
)
from ppio_agent.transport import CallHandle, RawStream, Request, Transport, waiting
from ppio_agent.wire.connect import (
    HTTP_STATUS,
    STREAM_CONTENT_TYPE,
    Frame,
    FrameReader,
    encode_frame,
)
from ppio_agent.wire.headers import SANDBOX_ID, SANDBOX_PORT
from ppio_agent.wire.json import Json, decode_json, encode_json

from .auth import Authenticator, attempt_auth
from .endpoint import ENVD_PORT, Route

__all__ = [
    "AgentStart",
    "Ended",
    "Envd",
    "Failed",
    "Output",
    "Started",
    "envd_tokens",
    "parse_event",
    "start_message",
]

_log = logging.getLogger(__name__)

_TAIL_BYTES = 4096
_MOST_TEXT = 200
_ERROR_BYTES = 64 * 1024
_THREAD_LIMIT = 1.0
# From this version on a controller needs no user name.
_NO_USER_SINCE = (0, 4, 0)
_numbers = itertools.count(1)


@frozen
class Started:
    """The program runs."""


@frozen
class Output:
    """Something that the program wrote."""

    data: bytes


@frozen
class Ended:
    """The program is over.

    Attributes:
        exit_code: Its exit status; negative if a signal ended it.
        status: The same in words, such as ``exit status 1``.
    """

    exit_code: int
    status: str


@frozen
class Failed:
    """The call failed, which says nothing of a program that has been started.

    Attributes:
        code: Word of the Connect protocol.
        message: Why.
    """

    code: str
    message: str


Event: TypeAlias = Started | Output | Ended | Failed


def start_message(entrypoint: str, env: Mapping[str, str]) -> bytes:
    """Return the body of a `Start`, as one frame.

    Args:
        entrypoint: The agent's script, relative to ``/app``.
        env: Variables set over those of the sandbox.
    """
    command = f"cd /app && sudo -E python {shlex.quote(entrypoint)}"
    process: dict[str, Json] = {"cmd": "/bin/bash", "args": ["-l", "-c", command]}
    if env:
        process["envs"] = dict(env)
    return encode_frame(encode_json({"process": process, "stdin": False}))


def parse_event(frame: Frame) -> Event | None:
    """Return what a frame says.

    Returns:
        None for a sign of life, an end without a failure, and what later versions add.

    Raises:
        WireError: It is no message of this stream.
    """
    message = _object(decode_json(frame.payload), "$")
    if frame.end:
        error = message.get("error")
        if error is None:
            return None
        read = _object(error, "$.error")
        return Failed(str(read.get("code", "unknown")), str(read.get("message", "")))
    event = _object(message.get("event"), "$.event")
    if "start" in event:
        return Started()
    if "data" in event:
        return Output(_output(_object(event["data"], "$.event.data")))
    if "end" in event:
        end = _object(event["end"], "$.event.end")
        code = end.get("exitCode", 0)  # in protojson a 0 may be absent
        if isinstance(code, bool) or not isinstance(code, int):
            raise WireError("$.event.end.exitCode", "expected int")
        return Ended(code, str(end.get("status") or f"exit status {code}"))
    return None


def _output(data: Mapping[str, Any]) -> bytes:
    found = b""
    for name in ("stdout", "stderr", "pty"):
        text = data.get(name, "")
        if not isinstance(text, str):
            raise WireError(f"$.event.data.{name}", "expected str")
        try:
            found += binascii.a2b_base64(text)
        except ValueError:
            raise WireError(f"$.event.data.{name}", "expected base64") from None
    return found


def _object(value: Json, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WireError(path, "expected object")
    return value


def envd_tokens(*, access_token: str | None, version: str) -> dict[str, str]:
    """Return the headers that open a sandbox's controller.

    Args:
        access_token: The sandbox's; None if it was made without.
        version: The controller's; old ones want a user name.
    """
    tokens = {} if access_token is None else {"X-Access-Token": access_token}
    known = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if known and tuple(int(n or 0) for n in known.groups()) < _NO_USER_SINCE:
        tokens["Authorization"] = "Basic dXNlcjo="  # of "user:"
    return tokens


@frozen(kw_only=True)
class Envd:
    """Speaks to the controller of one sandbox.

    Thread safety: immutable.
    """

    transport: Transport
    route: Route
    auth: Authenticator
    tokens: Mapping[str, str]
    sandbox_id: str

    def start(
        self, entrypoint: str, env: Mapping[str, str], deadline: Deadline
    ) -> AgentStart:
        """Start the agent; returns once the controller says that it runs.

        Args:
            entrypoint: The agent's script.
            env: Variables set over those of the sandbox.
            deadline: Until when the agent is watched.

        Raises:
            SandboxCreationError: It cannot be started.
            AuthenticationError, RateLimitError, NetworkError: As the controller said.
            ProtocolError: What answers is no controller.
        """
        request = Request(
            method="POST",
            url=f"{self.route.origin}/process.Process/Start",
            # No Connect-Timeout-Ms: at its end the agent itself would be killed.
            headers={
                "Content-Type": STREAM_CONTENT_TYPE,
                "Connect-Protocol-Version": "1",
                "Keepalive-Ping-Interval": "50",
                **self.route.headers,
                SANDBOX_ID: self.sandbox_id,
                SANDBOX_PORT: str(ENVD_PORT),
            },
            body=start_message(entrypoint, env),
            deadline=deadline,
            kind="envd",
            subject=self.sandbox_id,
            auth=attempt_auth(self.auth, self.tokens),
            raise_for_status=False,
        )
        raw = self.transport.stream(request)
        try:
            if raw.status != 200:
                raise self._refusal(request, raw)
            kind = raw.headers.get("content-type") or ""
            if not kind.startswith(STREAM_CONTENT_TYPE):
                raise ProtocolError(
                    f"what answers for the controller of sandbox {self.sandbox_id}"
                    " is none",
                    request_id=raw.request_id,
                )
            return AgentStart(raw, self)
        except BaseException:
            raw.close()
            raise

    def _refusal(self, request: Request, raw: RawStream) -> PPIOAgentError:
        response = raw.response(_ERROR_BYTES)
        try:
            body = _object(decode_json(response.body), "$")
        except WireError:
            body = {}
        if body.get("code") in HTTP_STATUS:
            return self.error(Failed(body["code"], str(body.get("message", ""))))
        error = self.transport.error_for(request, response)
        kept = (
            AgentUnreachableError,
            AuthenticationError,
            ConflictError,
            NetworkError,
            RateLimitError,
            ServiceUnavailableError,
            SessionNotFoundError,
        )
        if isinstance(error, kept):
            return error
        found = self._creation_error(error.message)
        found.__cause__ = error
        return found

    def error(self, failed: Failed) -> PPIOAgentError:
        """Return what the failure of a call means."""
        shown = self.transport.redactor.start(failed.message, _MOST_TEXT)
        text = (
            f"the agent in sandbox {self.sandbox_id} cannot be started:"
            f" {failed.code}: {shown}"
        )
        if failed.code == "unauthenticated":
            return AuthenticationError(text)
        if failed.code == "resource_exhausted":
            return RateLimitError(text)
        if failed.code == "unavailable":
            return NetworkError(text)
        return self._creation_error(text)

    def _creation_error(self, text: str) -> SandboxCreationError:
        return SandboxCreationError(text, sandbox_id=self.sandbox_id, stage="start")


class AgentStart(Closing):
    """An agent that was started, watched by a thread until `close`; it lives on then.

    Args:
        raw: The events of the start.
        envd: Who sends them.

    Attributes:
        sandbox_id: Where it runs.
        ended: How it ended; None as long as it is not known to have.
        failure: What the stream of events broke with, if that means anything.

    Thread safety: one thread waits; the one that watches is its own.
    """

    def __init__(self, raw: RawStream, envd: Envd) -> None:
        self.sandbox_id = envd.sandbox_id
        self.ended: Ended | None = None
        self.failure: PPIOAgentError | None = None
        self._raw = raw
        self._envd = envd
        self._frames = FrameReader()
        self._tail = bytearray()
        self._waiter: CallHandle | None = None
        # Guards _waiter.
        self._lock = threading.Lock()
        self._await_start()
        name = f"ppio-client-start-{next(_numbers)}"
        self._thread = start_thread(name, self._watch)

    @property
    def over(self) -> bool:
        """Whether it has ended, or the controller gave it up."""
        return self.ended is not None or self.failure is not None

    @property
    def log_tail(self) -> str:
        """The last 4 KiB of what it wrote."""
        return bytes(self._tail).decode("utf-8", "replace")

    def pause(self, until: Deadline) -> None:
        """Wait until then, or until the agent is known to be over."""
        with waiting() as handle:
            with self._lock:
                self._waiter = handle
            try:
                while not (self.over or until.expired):
                    handle.wait(until.left())
            finally:
                with self._lock:
                    self._waiter = None

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._raw.close()
        self._thread.join(_THREAD_LIMIT)

    def _await_start(self) -> None:
        """Read until something is said; raise unless that is that it runs."""
        while True:
            events = self._read()
            if events is None:
                raise NetworkError(
                    f"the controller of sandbox {self.sandbox_id} closed the"
                    " connection before it said that the agent runs"
                )
            if events:
                break
        first, *others = events
        if isinstance(first, Failed):
            raise self._envd.error(first)
        if not isinstance(first, Started):
            raise ProtocolError(
                f"the controller of sandbox {self.sandbox_id} did not begin by saying"
                " that the agent runs"
            )
        self._note(others)

    def _read(self) -> list[Event] | None:
        """Return the next events, maybe none; None at the end."""
        data = self._raw.read()
        if not data:
            return None
        try:
            found = [parse_event(frame) for frame in self._frames.feed(data)]
        except WireError as error:
            raise ProtocolError(
                f"the controller of sandbox {self.sandbox_id} sends what cannot be"
                f" read: {error}"
            ) from error
        return [event for event in found if event is not None]

    def _watch(self) -> None:
        try:
            while not self.over:
                events = self._read()
                if events is None:
                    return
                self._note(events)
        except ProtocolError as error:
            self.failure = error
        except PPIOAgentError as error:
            # Closed, or cut: the agent lives on, and a ping will tell how it is.
            _log.debug("the start of sandbox %s is unseen: %s", self.sandbox_id, error)
        except Exception:  # noqa: BLE001 - a thread's outermost frame
            _log.exception("watching the start of sandbox %s failed", self.sandbox_id)
        finally:
            self._wake()

    def _note(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Output):
                self._tail += event.data
                del self._tail[:-_TAIL_BYTES]
            elif isinstance(event, Ended):
                self.ended = self.ended or event
            elif isinstance(event, Failed) and self.ended is None:
                self.failure = self._envd.error(event)

    def _wake(self) -> None:
        with self._lock:
            if self._waiter is not None:
                self._waiter.wake()
