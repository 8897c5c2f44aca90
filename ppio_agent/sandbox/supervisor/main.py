"""The supervisor: one process that starts, watches and ends all of one sandbox.

It is given a listening socket and nothing else: what the sandbox is comes in messages
of the platform that calls there first, so that no secret is ever in an argument, in an
environment or in the memory of a forked agent. When the platform is gone, the sandbox
is kept for a grace in which another one may take it over; then it kills everything and
ends.

Messages to it: ``hello``, ``boot``, ``secrets``, ``dial``, ``pause``, ``resume``,
``usage``, ``kill``. From it: ``ready``, ``agent``, ``idle`` (what the sandbox uses until it
says ``busy``), ``over`` (it ends the sandbox itself, and why), ``empty`` (no process is
left but itself), and replies by number.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ppio_agent.sandbox.logs import AgentLog
from ppio_agent.sandbox.supervisor import tree

from .agent import Agent
from .boot import OWN_MEMORY, Boot, Secrets, choose_cpus
from .channel import ChannelError
from .dial import Dial
from .gauge import Gauge
from .line import Line, PlatformLine, accept_first, read_boot
from .loop import Loop, Timer, show
from .ports import AGENT_PORT, ENVD_PORT, Ports, open_hosts
from .program import Program
from .spawn import (
    READY_FD,
    Child,
    Command,
    Forked,
    Limits,
    become_subreaper,
    spawn,
)

if TYPE_CHECKING:
    from .forked import Warm
    from .marker import Marker

__all__ = ["Supervisor", "main"]

_SAMPLE = 0.5
_IDLE_SAMPLE = 2.0
_MAX_PROCESSES = 256
# Ended ones after which these are counted at once: some programs fork on and on.
_MANY_ORPHANS = 64
_KILL_AGAIN = 0.02
_GIVE_UP = 5.0
_HANG = 15.0
# For how long ended children are taken note of before all else has its turn.
_REAP_LIMIT = 0.05
# Descriptors of a supervisor; half of them are not for what callers ask for.
_FILES = 4096


class Supervisor:
    """Owns the processes of one sandbox.

    Args:
        loop: The one loop of the process.
        listener: Where platforms call, at the place of `READY_FD`: it stays open, so
            that no other descriptor of this process is there.
        line: The line to the first platform.
        boot: What the sandbox is.
        warm: What this process has loaded for agents; None if nothing.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        line: Line,
        boot: Boot,
        *,
        warm: Warm | None = None,
    ) -> None:
        self._loop = loop
        self._warm = warm
        self._boot = boot
        # Only taken from the loop: no fork of `start` may know them.
        self._secrets: Secrets | None = None
        self._pid = os.getpid()
        self._limits = Limits(cpus=choose_cpus(boot.cpus) if boot.pinned else ())
        self._programs: dict[int, Program] = {}
        own = Ports(partial(tree.walk, self._pid))
        self._hosts = own.hosts if boot.confined else open_hosts
        self._log = AgentLog(boot.log)
        self._serve_envd: Callable[[socket.socket], object] | None = None
        self._gauge = Gauge(self._pid)
        self._sampled: tree.Load | None = None
        self._own_memory = self._gauge.own_bytes + OWN_MEMORY
        self._most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._sample_timer: Timer | None = None
        self._sample_delay = _SAMPLE
        self._called_idle = False
        self._paused = False
        self._orphans = 0
        self._kill_at = math.inf
        self._finish_timer: Timer | None = None
        self._seems_empty = False
        self._orphan_timer: Timer | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "secrets": self._take_secrets,
            "dial": self._dial,
            "pause": self._pause,
            "resume": self._resume,
            "usage": lambda message: self._reply(message, **self._load()._asdict()),
            "kill": lambda message: self._kill(float(message["grace"])),
        }
        self._line = PlatformLine(
            loop,
            listener,
            line,
            on_message=self._on_message,
            on_lost=self._on_orphaned,
            on_taken=self._on_taken_over,
        )
        self._agent = self._make_agent(boot.entrypoint)

    def start(self) -> None:
        """Start the agent, if there is one, and keep watch."""
        signums = {signal.SIGCHLD}
        if self._boot.confined:
            # Else it is a first process, which gets no signal from inside unless it
            # handles it, and is ended from outside without one.
            signums |= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        self._loop.watch_signals(signums, self._on_signal)
        self._say_ready()
        if self._agent is not None:
            # A failure is reported as the agent's exit; the sandbox goes on.
            with suppress(OSError):
                self._agent.start()
        self._sample_in(_SAMPLE)

    def abandon(self) -> None:
        """Kill what is left, without the loop."""
        tree.sweep(self._members, timeout=_GIVE_UP)

    # Programs

    def _make_agent(self, entrypoint: str | None) -> Agent | None:
        if entrypoint is None:
            return None
        argv = [self._boot.python, entrypoint]
        return Agent(
            self._loop,
            command=Command(argv, self._boot.env, self._boot.app),
            spawn=self._spawn_agent,
            adopt=self._adopt,
            listens=lambda: next(self._ways(AGENT_PORT), None) is not None,
            report=self._line.send,
            log=self._log,
            start_timeout=self._boot.start_timeout,
        )

    def _spawn_agent(self, command: Command) -> Child:
        # Only the first is forked, from `start` of this: a later one is begun deep in
        # callbacks, of which a fork would have to get out.
        warm, self._warm = self._warm, None
        fork = warm is not None and warm.suits(command)
        return self._spawn(command, ready=True, fork=fork)

    def _spawn(
        self,
        command: Command,
        *,
        stdin: bool = False,
        ready: bool = False,
        fork: bool = False,
    ) -> Child:
        if self._ending:
            raise OSError(errno.ECANCELED, "the sandbox is ending")
        if self._paused:  # asked for before, but understood only now
            raise OSError(errno.ECANCELED, "the sandbox is paused")
        self._refuse_crowd()
        # What a caller sets must not make a process invisible to a sweep.
        env = {**command.env, tree.MARKER: self._boot.sandbox_id}
        command = command._replace(env=env)
        return spawn(command, self._limits, stdin=stdin, ready=ready, fork=fork)

    def _adopt(self, child: Child) -> Program:
        program = self._programs[child.pid] = Program(self._loop, child)
        self._gauge.forget()
        self._sample_soon()
        return program

    def _on_signal(self, signum: int) -> None:
        if signum != signal.SIGCHLD:
            self._kill(0.0)
        elif not self._reap() and self._ending:
            self._finish()

    def _reap(self) -> bool:
        """Take note of ended children; return whether any are left."""
        end = self._loop.now() + _REAP_LIMIT
        while self._loop.now() < end:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            program = self._programs.pop(pid, None)
            if program is None:  # an orphan that came to the sub-reaper
                self._orphans += 1
                if self._orphans == _MANY_ORPHANS:
                    self._loop.call_later(0, self._sample)
            else:
                try:
                    program.reaped(wait_status)
                except Exception as exc:  # noqa: BLE001 - others have ended with it
                    show(exc)
        # Some end as fast as they are taken note of: all else has its turn first.
        self._loop.call_later(0, partial(self._on_signal, signal.SIGCHLD))
        return True

    def _refuse_crowd(self) -> None:
        """Keep descriptors for what the supervisor does by itself.

        Raises:
            OSError: So many are in use that callers get no more.
        """
        free = os.dup(READY_FD)  # the lowest that is free
        os.close(free)
        if free >= self._most_files:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    # The platform

    def _say_ready(self) -> None:
        """Say that the sandbox is there, and hand over a handle of this process."""
        try:
            handle = os.pidfd_open(self._pid)
        except (AttributeError, OSError):
            handle = None
        facts = {"event": "ready", "pid": self._pid, "paused": self._paused}
        self._line.send(facts, handle)

    def _on_orphaned(self) -> None:
        if not self._ending:
            kill = partial(self._kill, 0.0)
            self._orphan_timer = self._loop.call_later(self._boot.orphan_grace, kill)

    def _on_taken_over(self) -> None:
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
        self._called_idle = False
        if self._agent is not None:
            self._agent.tell_again()
        self._say_ready()

    def _take_secrets(self, message: dict[str, Any]) -> None:
        self._secrets = Secrets(message["adoption"], message["access_token"])
        self._line.secret = self._secrets.adoption
        if self._agent is None:
            self._load_envd()  # what it is for; else loaded when first used

    def _on_message(self, message: dict[str, Any]) -> None:
        try:
            self._handlers[message["op"]](message)
        except Exception as exc:  # noqa: BLE001 - no request ends the sandbox
            if not isinstance(exc, OSError):  # else callers could fill the log
                show(exc)
            if "id" in message:
                self._reply(message, error=f"it failed: {type(exc).__name__}")

    def _reply(self, message: Mapping[str, Any], **answer: Any) -> None:
        self._line.send({"reply": message["id"], **answer})

    def _dial(self, message: dict[str, Any]) -> None:
        port = int(message["port"])
        self._sample_soon()
        if port == ENVD_PORT:
            self._refuse_crowd()
            ours, theirs = socket.socketpair()
            self._load_envd()(ours)
            self._line.send({"reply": message["id"]}, theirs.detach())
            return

        def done(result: socket.socket | str) -> None:
            if isinstance(result, str):
                self._reply(message, error=result)
                return
            if port == AGENT_PORT and self._agent is not None:
                self._agent.confirm_ready()
            self._line.send({"reply": message["id"]}, result.detach())

        timeout = float(message["timeout"])
        Dial(self._loop, self._ways(port), timeout=timeout, done=done).begin()

    def _ways(self, port: int) -> Iterator[tuple[str, int]]:
        """Yield where a logical port is reached, as far as it is the sandbox's own."""
        real = (self._boot.port, AGENT_PORT) if port == AGENT_PORT else (port,)
        for candidate in real:
            for host in self._hosts(candidate):
                yield host, candidate

    def _load_envd(self) -> Callable[[socket.socket], object]:
        """Return what serves a connection to envd."""
        if self._secrets is None:
            raise ChannelError("envd is asked for before its token is known")
        if self._serve_envd is None:
            from .envd.budget import Budget
            from .envd.http import Connection
            from .envd.process_service import ProcessService
            from .envd.roots import Roots
            from .envd.router import Envd

            boot, agent = self._boot, self._agent
            roots = Roots.of(
                home=boot.home, app=boot.app, tmp=boot.tmp, confined=boot.confined
            )
            budget = Budget()
            processes = ProcessService(
                self._loop,
                env=boot.env,
                roots=roots,
                agent=None if agent is None else (agent, boot.entrypoint or ""),
                spawn=lambda command, stdin: self._spawn(command, stdin=stdin),
                adopt=self._adopt,
                budget=budget,
                enforce_deadline=boot.command_deadline == "enforce",
                note=self._log.note,
            )
            envd = Envd(
                self._loop,
                boot,
                access_token=self._secrets.access_token,
                processes=processes,
                roots=roots,
                usage=self._load,
            )
            self._serve_envd = lambda sock: Connection(self._loop, sock, envd, budget)
        return self._serve_envd

    # All processes at once

    def _members(self) -> set[tree.Process]:
        return tree.members(self._pid, self._boot.sandbox_id)

    def _pause(self, message: dict[str, Any]) -> None:
        if tree.freeze(self._members):
            self._paused = True
            self._reply(message)
        else:
            self._reply(message, error="processes are made faster than stopped")

    def _resume(self, message: dict[str, Any]) -> None:
        tree.thaw(self._members)
        self._paused = False
        self._reply(message)

    def _load(self) -> tree.Load:
        """Measure the sandbox; of processes that have ended the CPU time counts."""
        load = self._gauge.read()
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = load.cpu_seconds + ended.ru_utime + ended.ru_stime
        return load._replace(cpu_seconds=seconds)

    def _sample(self) -> None:
        if self._ending:
            return
        self._orphans = 0
        delay = min(2 * self._sample_delay, _IDLE_SAMPLE)
        self._sample_in(_SAMPLE)  # first, for a look that fails is not the last one
        before, load = self._sampled, self._load()
        self._sampled = load
        self._call_idle(load if load == before else None)
        own = max(0, self._gauge.own_bytes - self._own_memory)
        memory, most = load.rss_bytes + own, self._boot.memory_bytes
        if memory > most:
            self._over(f"{memory} bytes of memory, the limit is {most}")
        elif load.processes > _MAX_PROCESSES:
            self._over(
                f"at least {load.processes} processes, the limit is {_MAX_PROCESSES}"
            )
        elif load == before:
            self._sample_in(delay)

    def _call_idle(self, load: tree.Load | None) -> None:
        """Say what the sandbox uses while that stays the same; None if it does not."""
        idle = load is not None
        if idle is not self._called_idle:
            self._called_idle = idle
            facts = {} if load is None else load._asdict()
            self._line.send({"event": "idle" if idle else "busy", **facts})

    def _sample_soon(self) -> None:
        """Look often again, for what was idle has something to do."""
        self._call_idle(None)  # so that it is noticed from outside if this hangs
        if self._sample_delay > _SAMPLE:
            self._sample_in(_SAMPLE)

    def _sample_in(self, delay: float) -> None:
        if self._sample_timer is not None:
            self._sample_timer.cancel()
        self._sample_delay = delay
        self._sample_timer = self._loop.call_later(delay, self._sample)

    def _over(self, what: str) -> None:
        self._log.note(f"the sandbox is killed: it has {what}")
        self._line.send({"event": "over", "reason": "memory", "detail": what})
        self._kill(0.0)

    # The end

    @property
    def _ending(self) -> bool:
        return self._kill_at < math.inf

    def _kill(self, grace: float) -> None:
        first = not self._ending
        self._kill_at = min(self._kill_at, self._loop.now() + grace)
        if first and grace > 0:
            for process in self._members():
                tree.send(process, signal.SIGTERM)
                tree.send(process, signal.SIGCONT)  # a stopped one could not obey
        self._finish()

    def _finish(self) -> None:
        """End when nothing is left; kill what is left when its time is over."""
        if self._finish_timer is not None:
            self._finish_timer.cancel()
        left = self._kill_at - self._loop.now()
        if left < -_GIVE_UP:
            raise SystemExit("processes of the sandbox could not be killed")
        # First, for a look that fails is not the last one.
        delay = max(left, _KILL_AGAIN)
        self._finish_timer = self._loop.call_later(delay, self._finish)
        if left <= 0:
            # Before a look at all processes: who forks on and on gets ahead of that.
            tree.kill_groups(self._pid)
        remaining = self._members()
        if not remaining:
            tree.kill_session(self._pid)
        if not remaining and not self._seems_empty:
            # What a look may miss shows at the second one, or has just been killed.
            self._seems_empty = True
            self._finish_timer.cancel()
            self._finish_timer = self._loop.call_later(0, self._finish)
            return
        if not remaining:
            self._finish_timer.cancel()
            self._log.close()
            self._line.send({"event": "empty"})
            self._loop.stop()
            return
        if left <= 0:
            for process in remaining:
                tree.send(process, signal.SIGKILL)


def main(fd: int, warm: Warm | None = None, marker: Marker | None = None) -> None:
    """Supervise one sandbox until it has ended.

    Args:
        fd: The listening socket at which the platform has called.
        warm: What this process has loaded for agents, which then are forks of it.
        marker: Of this process, if it was started before it was known for what.

    Raises:
        Forked: In such a fork.
    """
    become_subreaper()
    if fd != READY_FD:
        os.dup2(fd, READY_FD)
        os.close(fd)
    os.set_inheritable(READY_FD, False)  # noqa: FBT003 - its only form
    listener = socket.socket(fileno=READY_FD)
    line = accept_first(listener)
    boot = read_boot(line)
    if marker is not None:
        marker.write(boot.sandbox_id)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES if most == resource.RLIM_INFINITY else min(most, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    supervisor = Supervisor(loop := Loop(), listener, line, boot, warm=warm)
    try:
        supervisor.start()
        loop.watch_itself(_HANG)
        loop.run()
    except Forked:  # this is the agent, which has nothing to abandon
        raise
    except BaseException:
        supervisor.abandon()
        raise
