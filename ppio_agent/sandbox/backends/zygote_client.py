"""The platform's hold on its zygote: started, asked for forks, started again."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import random
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from typing import Final

from ppio_agent._util.backoff import Backoff
from ppio_agent._util.fork import no_fork
from ppio_agent._util.threads import NoThreadError, start_thread
from ppio_agent.sandbox.supervisor.channel import (
    ChannelError,
    Message,
    encode_message,
    receive_one,
)
from ppio_agent.sandbox.supervisor.forked import BASE_ENVIRONMENT
from ppio_agent.sandbox.supervisor.tree import MARKER
from ppio_agent.sandbox.zygote import BLANK_ID

from .handles import ForeignProcess, ProcessHandle
from .layout import Layout
from .line import hang_up
from .startup import supervisor_command

__all__ = ["ZygoteClient"]

_log = logging.getLogger(__name__)

_START_LIMIT: Final = 20.0
_ANSWER_LIMIT: Final = 2.0
# Of one that has been asked; its end takes the reaper from all that it has forked.
_HANG_LIMIT: Final = 20.0
_END_LIMIT: Final = 2.0
_STEADY: Final = 60.0
_TAIL: Final = 1000
_BACKOFF: Final = Backoff(base=0.5, cap=60.0)

_Answer = tuple[Message, int | None]

_numbers = itertools.count(1)


class ZygoteClient:
    """Keeps a zygote running, and asks it for supervisors.

    It is started when it is first asked for something, beside whatever goes on, and
    again, with growing delays, whenever it has ended. As long as there is none the
    caller starts supervisors by exec.

    Thread safety: thread-safe. In a forked child of the process it does nothing.
    """

    def __init__(self) -> None:
        # Guards all below but _closing, and is held while a request is written.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._requests = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[_Answer]] = {}
        # Since when there is no answer, of whatever was asked.
        self._waits_since: float | None = None
        self._closing = threading.Event()
        self._ready = threading.Event()
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        """The zygote's process; None while there is none to fork."""
        with self._lock:
            return self._process.pid if self._process and self._line else None

    def begin(self) -> None:
        """See to it that there will be a zygote. Idempotent; waits for nothing."""
        if not hasattr(os, "pidfd_open") or os.getpid() != self._owner:
            return
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                name = f"ppio-zygote-{next(_numbers)}"
                with suppress(NoThreadError):  # at the next occasion, perhaps
                    self._thread = start_thread(name, self._keep)

    def wait_ready(self, timeout: float) -> bool:
        """Return whether there is a zygote, after at most `timeout` seconds."""
        self.begin()
        return self._ready.wait(timeout)

    def fork(
        self, listener: socket.socket, sandbox_id: str, layout: Layout
    ) -> ProcessHandle | None:
        """Have a supervisor forked.

        Args:
            listener: Where it is to listen.
            sandbox_id: Its sandbox.
            layout: The folders of that.

        Returns:
            Its process; None if there is none. In that case there may be one all the
            same, which ends as soon as the platform hangs up on its listener.

        Blocking: 2 seconds at most, many callers at the same time. As long as the
        zygote owes an answer for longer than that the others do not wait at all.
        """
        self.begin()
        if os.getpid() != self._owner or len(sandbox_id) != len(BLANK_ID):
            return None  # not its zygote, or a mark that could not be written
        request = {
            "id": next(self._requests),
            "sandbox_id": sandbox_id,
            "cwd": str(layout.root),
            "log": str(layout.supervisor_log),
        }
        message, handle = self._ask(request, listener.fileno())
        if "error" in message:
            _log.warning("the zygote did not fork: %s", message["error"])
        return None if handle is None else ForeignProcess(handle)

    def close(self) -> None:
        """Let the zygote end when its last supervisor has. Idempotent.

        Blocking: some seconds at most.
        """
        if os.getpid() != self._owner:
            return
        self._closing.set()
        with self._lock:
            thread, process = self._thread, self._process
            if self._line is None and process is not None:
                process.kill()  # it is starting, or lost
            self._drop_locked()
        if thread is None:
            return
        thread.join(_END_LIMIT)
        if thread.is_alive() and process is not None:
            process.kill()
            thread.join(_END_LIMIT)

    def _ask(self, request: Message, listener: int) -> _Answer:
        answer: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        with self._lock:
            line = self._line
            if line is None or not self._answers_in_time_locked():
                return {}, None
            self._answers[request["id"]] = answer
            if self._waits_since is None:
                self._waits_since = time.monotonic()
            try:
                socket.send_fds(line, [encode_message(request)], [listener])
            except OSError as exc:  # it may have been written in part
                self._drop_locked()
                return {"error": str(exc)}, None
        with suppress(queue.Empty):
            return answer.get(timeout=_ANSWER_LIMIT)
        with self._lock:
            untaken = self._answers.pop(request["id"], None)
        if untaken is not None:
            return {"error": "it has not answered in time"}, None
        return answer.get()  # whoever took it from the table fills it at once

    def _answers_in_time_locked(self) -> bool:
        """Return whether it does; kill one that has not for long."""
        if self._waits_since is None:
            return True
        silence = time.monotonic() - self._waits_since
        if silence > _HANG_LIMIT and self._process is not None:
            self._process.kill()
        return silence < _ANSWER_LIMIT

    def _drop_locked(self) -> None:
        line, self._line = self._line, None
        self._ready.clear()
        if line is not None:
            with suppress(OSError):  # the other end is gone
                line.shutdown(socket.SHUT_RDWR)  # who reads it closes it

    # The thread that keeps it

    def _keep(self) -> None:
        attempt = 0
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                ended = self._run_one()
            except OSError as exc:
                ended = f"could not be started: {exc}"
            if not self._closing.is_set():
                # Where it never comes up, as on a system that it is not made for, the
                # first time says it all.
                level = logging.WARNING if attempt == 0 else logging.DEBUG
                _log.log(level, "the zygote %s; sandboxes start more slowly", ended)
            attempt = 0 if time.monotonic() - began > _STEADY else attempt + 1
            self._closing.wait(_BACKOFF.delay(attempt, random.random))

    def _run_one(self) -> str:
        """Start a zygote and stay with it; return how it ended."""
        with no_fork():
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    process = _start(theirs.fileno())
            except OSError:
                ours.close()
                raise
        with process:
            with self._lock:
                self._process = process
                if self._closing.is_set():
                    process.kill()
            self._attend(ours)
            # What it forks has errors of its own: this ends when it has ended.
            said = process.stderr.read() if process.stderr else b""
        with self._lock:
            self._process = None
            self._drop_locked()
        tail = said[-_TAIL:].decode("utf-8", "replace").strip()
        return f"has ended with {process.returncode}: {tail or 'it said nothing'}"

    def _attend(self, line: socket.socket) -> None:
        """Let callers have the zygote once it is ready, and bring them its answers."""
        # What ends the line is an end that the zygote sees, or has said the reason of.
        with suppress(OSError, ChannelError):
            _limit(line, socket.SO_RCVTIMEO, _START_LIMIT)
            _limit(line, socket.SO_SNDTIMEO, _ANSWER_LIMIT)
            receive_one(line)
            _limit(line, socket.SO_RCVTIMEO, 0.0)
            with self._lock:
                self._line = line
                self._ready.set()
                if self._closing.is_set():
                    self._drop_locked()
            while True:
                self._take(*receive_one(line))
        with self._lock:
            self._drop_locked()
            self._waits_since = None
            answers = list(self._answers.values())
            self._answers.clear()
        hang_up(line)
        for answer in answers:
            answer.put(({"error": "it has ended"}, None))

    def _take(self, message: Message, handle: int | None) -> None:
        """Hand an answer to who has asked, who may have given up."""
        with self._lock:
            answer = self._answers.pop(message.get("reply", 0), None)
            self._waits_since = time.monotonic() if self._answers else None
        if answer is not None:
            answer.put((message, handle))
        elif handle is not None:
            os.close(handle)


def _start(line: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        supervisor_command("ppio_agent.sandbox.zygote", line, os.getpid(), warm=True),
        cwd="/",
        # No home, in which packages of the user of this machine might be.
        env={**BASE_ENVIRONMENT, "HOME": os.devnull, MARKER: BLANK_ID},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(line,),
        start_new_session=True,
    )


def _limit(line: socket.socket, what: int, seconds: float) -> None:
    # Not `settimeout`, with which messages would be read in parts.
    pair = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    line.setsockopt(socket.SOL_SOCKET, what, pair)
