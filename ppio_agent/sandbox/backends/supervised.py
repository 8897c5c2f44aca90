"""The platform's hold on one sandbox, whatever its backend.

It speaks with the supervisor over a line, and when that ends, however it came to that,
it sees to it that no process of the sandbox stays behind.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from attrs import define, field

from ppio_agent._util.threads import NoThreadError, start_thread
from ppio_agent.exceptions import SandboxStateError
from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.channel import (
    ChannelError,
    Message,
    MessageReader,
    encode_message,
    receive,
)

from .base import AgentStatus, LostReason, OnAgent, OnLost, SandboxSpec, Usage
from .control_group import ControlGroup
from .handles import ForeignProcess, PidProcess, ProcessHandle
from .line import hang_up
from .reports import parse_agent, parse_error, parse_over, parse_ready, parse_usage
from .startup import secrets_message
from .uplink import Uplink

__all__ = ["SupervisedSandbox"]

_log = logging.getLogger(__name__)

_ANSWER_LIMIT = 10.0
# After a request that was not answered in time; the next such one is then the last.
_SILENCE_LIMIT = 10.0
_KILL_SLACK = 5.0
# How much longer than its grace a supervisor may take before all is killed from here.
_KILL_LATE = 2.0
_EXIT_LIMIT = 1.0
_LOOKS = 40
_MAX_FDS = 64


@define(eq=False)
class _Call:
    """A request to the supervisor that waits for its reply."""

    done: threading.Event = field(init=False, factory=threading.Event)
    message: Message | None = field(init=False, default=None)
    fd: int | None = field(init=False, default=None)

    def finish(self, message: Message | None, fd: int | None = None) -> None:
        """Hand the reply over; None if there will be none."""
        self.message, self.fd = message, fd
        self.done.set()


class SupervisedSandbox:
    """A sandbox behind a supervisor; a `RunningSandbox`.

    Args:
        spec: What it is.
        process: Its supervisor; None until that hands a handle of itself over, as when
            another platform has started it. Owned from now on.
        sock: The line to it, as `call` returns it; owned from now on.
        on_agent: Told each change of the agent.
        on_lost: Told once if it ends unasked.
        on_gone: Told once when no process of it is left, however it ended.
        uplink: Its way to the network, if it has one that can be lost.
        group: Its control group, if it has one; removed with it.

    Attributes:
        group: That group.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        spec: SandboxSpec,
        process: ProcessHandle | None,
        sock: socket.socket,
        *,
        on_agent: OnAgent,
        on_lost: OnLost,
        on_gone: Callable[[SupervisedSandbox], None],
        uplink: Uplink | None = None,
        group: ControlGroup | None = None,
    ) -> None:
        self.group = group
        # Guards _calls, _ended, _asked_to_end and _silent_since.
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._ended = False
        self._asked_to_end = False
        # When a request was not answered, and nothing has come since.
        self._silent_since: float | None = None
        # Held while a message is written, so that messages stay whole, and while the
        # socket is closed, so that its number is not another's under a writer.
        self._send_lock = threading.Lock()
        self._sock = sock
        self._id = spec.sandbox_id
        self._path = spec.line.path
        self._secrets = secrets_message(spec)
        self._process = process
        self._on_agent = on_agent
        self._on_lost = on_lost
        self._on_gone = on_gone
        self._uplink = uplink
        self._owner = os.getpid()
        self._numbers = itertools.count(1)
        self._agent = AgentStatus(phase="starting" if spec.entrypoint else "none")
        self._idle: Usage | None = None  # what it uses, as long as that stays the same
        self._paused = False
        self._reason: LostReason = "crashed"
        self._empty = False
        self._fds: deque[int] = deque()
        self._up = threading.Event()
        self._ready = False
        self._gone = threading.Event()

    @property
    def pid(self) -> int:
        """The supervisor's process; 0 while it is not known."""
        return self._process.pid if self._process is not None else 0

    @property
    def agent(self) -> AgentStatus:
        """The agent as last reported."""
        return self._agent

    @property
    def paused(self) -> bool:
        """Whether its processes are frozen."""
        return self._paused

    def start(
        self,
        boot: Mapping[str, Any] | None,
        *,
        timeout: float,
        thread_name: str,
    ) -> bool:
        """Begin to listen to the supervisor; return whether it says that it is up.

        Raises:
            NoThreadError: There is none to listen; nothing of it is left.

        Args:
            boot: What the sandbox is; None if the supervisor knows.
            timeout: Most seconds.
            thread_name: Of the thread that listens.
        """
        try:
            start_thread(thread_name, self._run)
        except NoThreadError:
            self.begin_kill(0.0)
            self._end()
            raise
        if boot is not None:
            with suppress(SandboxStateError):  # it has ended already
                self._send({"boot": boot})
                self._send(self._secrets)
        self._up.wait(timeout)
        return self._ready

    def dial(self, port: int, timeout: float) -> socket.socket:
        """Connect to a logical port; see `RunningSandbox.dial`."""
        where = f"port {port} of sandbox {self._id}"
        late = f"{where} did not answer within {timeout:g} s"
        try:
            call = self._call("dial", timeout, port=port, timeout=timeout)
        except SandboxStateError as exc:
            raise ConnectionRefusedError(f"{where}: {exc.message}") from exc
        except TimeoutError as exc:
            raise TimeoutError(late) from exc
        if call.fd is not None:
            sock = socket.socket(fileno=call.fd)
            sock.settimeout(None)
            return sock
        if call.message and call.message.get("error") == "timeout":
            raise TimeoutError(late)
        raise ConnectionRefusedError(f"nothing of the sandbox listens on {where}")

    def pause(self) -> None:
        """Freeze every process; see `RunningSandbox.pause`."""
        try:
            self._ask("pause")
        except SandboxStateError:
            with suppress(SandboxStateError):  # else it may still come about
                self._send({"op": "resume", "id": 0})
            raise
        self._paused = True

    def resume(self) -> None:
        """Let every process go on; see `RunningSandbox.resume`."""
        try:
            self._ask("resume")
        except SandboxStateError:
            with suppress(SandboxStateError):  # else it may still come about
                self._send({"op": "pause", "id": 0})
            raise
        self._paused = False

    def usage(self, *, fresh: bool = True) -> Usage:
        """Measure the sandbox; see `RunningSandbox.usage`."""
        idle = self._idle
        if idle is not None and not fresh:
            return idle
        try:
            return parse_usage(self._ask("usage"))
        except ChannelError as exc:
            raise SandboxStateError(f"sandbox {self._id}: bad usage: {exc}") from exc

    def kill(self, grace: float) -> None:
        """End the sandbox and wait for it; see `RunningSandbox.kill`."""
        if os.getpid() != self._owner:
            return  # a fork of the platform owns no sandbox
        self.begin_kill(grace)
        if not self._gone.wait(grace + _KILL_LATE):
            _log.warning(
                "a supervisor does not end", extra={"ppio_sandbox_id": self._id}
            )
            self._destroy()
            self._gone.wait(_KILL_SLACK)

    def begin_kill(self, grace: float) -> None:
        """Ask for the end without waiting for it."""
        with self._lock:
            self._asked_to_end = True
        if self.group is not None:
            self.group.lift()
        with suppress(SandboxStateError):  # it is going already
            self._send({"op": "kill", "grace": grace})

    # Requests

    def _ask(self, op: str) -> Message:
        try:
            message = self._call(op, _ANSWER_LIMIT).message or {}
        except TimeoutError as exc:
            self._rouse()
            raise SandboxStateError(f"sandbox {self._id} does not answer") from exc
        if "error" in message:
            raise SandboxStateError(
                f"sandbox {self._id}: {op} failed: {message['error']}"
            )
        return message

    def _rouse(self) -> None:
        """Let a supervisor go on, which a program may have stopped; end a silent one.

        It is asked again and again as long as it has not said that the sandbox idles.
        """
        process = self._process
        if process is None:
            return
        with self._lock:
            since = self._silent_since
            if since is None:
                self._silent_since = time.monotonic()
        named = tree.named(process.pid)
        if named is None or process.wait(0.0):  # its pid may have been another's
            return
        if since is None or time.monotonic() - since < _SILENCE_LIMIT:
            tree.send(named, signal.SIGCONT)
            return
        _log.warning("the supervisor of sandbox %s does not answer", self._id)
        process.kill()  # the end of its line ends the rest

    def _call(self, op: str, limit: float, **arguments: Any) -> _Call:
        """Send a request and wait for its reply.

        Raises:
            SandboxStateError: The sandbox is gone.
            TimeoutError: There is no reply in time.
        """
        number, call = next(self._numbers), _Call()
        with self._lock:
            if self._ended:
                raise SandboxStateError(f"sandbox {self._id} is gone")
            self._calls[number] = call
        try:
            self._send({"op": op, "id": number, **arguments})
            call.done.wait(limit)
        finally:
            with self._lock:
                untaken = self._calls.pop(number, None)
        if untaken is not None:
            raise TimeoutError(f"sandbox {self._id} did not answer to {op} in time")
        call.done.wait()  # whoever took it from the table finishes it at once
        if call.message is None:
            raise SandboxStateError(f"sandbox {self._id} is gone")
        return call

    def _send(self, message: Mapping[str, Any]) -> None:
        if os.getpid() != self._owner:
            raise SandboxStateError(f"sandbox {self._id} is another process's")
        data = encode_message(message)
        try:
            with self._send_lock:
                self._sock.sendall(data)
        except OSError as exc:
            raise SandboxStateError(f"sandbox {self._id} is gone") from exc

    # The thread that reads, and ends what has ended

    def _run(self) -> None:
        reader = MessageReader()
        try:
            while True:
                self._watch_uplink()
                data, fds = receive(self._sock)
                self._fds.extend(fds)
                if not data:
                    break
                with self._lock:
                    self._silent_since = None
                for message in reader.feed(data):
                    self._on_message(message)
                if len(self._fds) > _MAX_FDS:
                    raise ChannelError("descriptors without messages")
        except OSError:
            pass  # reset, for it ended with a message of ours unread
        except ChannelError:
            _log.warning(
                "a supervisor is not understood",
                extra={"ppio_sandbox_id": self._id},
                exc_info=True,
            )
        finally:
            self._end()

    def _watch_uplink(self) -> None:
        """Tell of the end of the way to the network, until there is a message."""
        if self._uplink is not None and self._uplink.lost_before(self._sock):
            self._uplink = None
            _log.warning(
                "a sandbox has no network any more: what connects it has failed again"
                " and again",
                extra={"ppio_sandbox_id": self._id},
            )

    def _on_message(self, message: Message) -> None:
        fd = self._fds.popleft() if message.get("fd") is True and self._fds else None
        event = message.get("event")
        if "reply" in message:
            parse_error(message)
            self._finish_call(message, fd)
            return
        if event == "ready":
            self._take_ready(message, fd)
            return
        if fd is not None:
            os.close(fd)
        if event == "agent":
            self._agent = parse_agent(message)
            self._tell(partial(self._on_agent, self._agent))
        elif event == "idle":
            self._idle = parse_usage(message)
        elif event == "busy":
            self._idle = None
        elif event == "over":
            self._reason = "memory"
            _log.warning(
                "sandbox %s is killed: it has %s", self._id, parse_over(message)
            )
        elif event == "empty":
            self._empty = True
        else:
            raise ChannelError("unknown event")

    def _take_ready(self, message: Message, fd: int | None) -> None:
        """Take note that it is up, and hold on to its process if nobody does yet."""
        pid, self._paused = parse_ready(message)
        if self._process is not None:
            if fd is not None:
                os.close(fd)
        else:
            try:
                self._process = PidProcess(pid) if fd is None else ForeignProcess(fd)
            except Exception as exc:
                raise ChannelError("the supervisor cannot be held") from exc
        self._ready = True
        self._up.set()

    def _finish_call(self, message: Message, fd: int | None) -> None:
        number = message["reply"]
        with self._lock:
            call = self._calls.pop(number, None) if isinstance(number, int) else None
        if call is not None:
            call.finish(message, fd)
        elif fd is not None:  # its caller has given up
            os.close(fd)

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - the platform answers for its own
            _log.exception(
                "a callback of a sandbox failed", extra={"ppio_sandbox_id": self._id}
            )

    def _end(self) -> None:
        with self._send_lock:
            hang_up(self._sock)
        while self._fds:
            os.close(self._fds.popleft())
        self._bury()
        with self._lock:
            self._ended = True
            self._idle = None
            calls = list(self._calls.values())
            self._calls.clear()
            asked = self._asked_to_end
        for call in calls:
            call.finish(None)
        self._on_gone(self)
        self._gone.set()
        self._up.set()
        if self._ready and not asked:
            self._tell(partial(self._on_lost, self._reason))

    def _bury(self) -> None:
        """Wait for the supervisor's end; kill what it may have left."""
        process = self._process
        if process is not None and not process.wait(_EXIT_LIMIT):
            self._empty = False
            self._destroy()
            process.wait(_KILL_SLACK)
        self._end_group()
        if process is not None:
            if not self._empty:
                # A session keeps its number for as long as anybody is in it.
                tree.kill_session(process.pid, looks=_LOOKS)
            process.close()
        with suppress(OSError):
            os.unlink(self._path)
        if self._empty:
            return
        left = tree.sweep(partial(tree.marked, self._id), timeout=_KILL_SLACK)
        if left:
            _log.error(
                "processes of a sandbox cannot be killed",
                extra={"ppio_sandbox_id": self._id, "pids": [p.pid for p in left]},
            )

    def _end_group(self) -> None:
        """End its control group, if it has one, and all that has not left it."""
        group = self.group
        if group is None:
            return
        if group.was_full():
            self._reason = "memory"
        if not group.end():
            _log.error(
                "a control group cannot be removed",
                extra={"ppio_sandbox_id": self._id, "path": str(group.path)},
            )

    def _destroy(self) -> None:
        """Kill all of it from here, for the supervisor does not."""
        if self.group is not None:
            self.group.kill()
        process = self._process
        if process is None:
            tree.sweep(partial(tree.marked, self._id), timeout=_KILL_SLACK)
            return

        def find() -> set[tree.Process]:
            found = tree.members(process.pid, self._id)
            # If it has ended its pid may have been another's.
            return tree.marked(self._id) if process.wait(0.0) else found

        tree.sweep(find, timeout=_KILL_SLACK)
        process.kill()
