"""Processes that run actors on a SQLite file, and are killed.

Usage: ``python -m tests.actors.support_killed``. For each line ``JOB URL`` of its standard
input it forks a process for the job, and says its id and, once it is dead, ``dead``. The
processes say what they do on the same standard output.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppio_agent.actors import (
    ActorId,
    ActorOptions,
    InProcessActorRuntime,
    RuntimeOptions,
)
from ppio_agent.exceptions import MailboxFullError

from .support import Made

__all__ = ["ACTORS", "POISON", "runtime_of", "say"]

ACTORS = 8
POISON = ActorId("poison", "1")
_SENDERS = 3


def say(*words: object) -> None:
    """Write a line to the standard output in one piece."""
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


def count(context: Any, message: Any) -> Any:
    """Count in the state, note the request, and tell another actor of it."""
    message_id = message.message_id
    total = (context.read_state("n") or 0) + 1
    context.write_state("n", total)
    context.write_state(
        f"did/{message_id}", (context.read_state(f"did/{message_id}") or 0) + 1
    )
    context.tell(
        ActorId("sink", context.actor_id.instance_id), "note", {"of": message_id}
    )
    return total


def note(context: Any, message: Any) -> Any:
    """Count how often one was told of a request."""
    key = f"got/{message.params['of']}"
    context.write_state(key, (context.read_state(key) or 0) + 1)
    return True


def poison(context: Any, message: Any) -> Any:
    """End the process, as a crash of the interpreter does."""
    say("attempt", context.attempt)
    os.kill(os.getpid(), signal.SIGKILL)


def pause(context: Any, message: Any) -> Any:
    """Wait for a file, so that the process can be stopped meanwhile."""
    say("begun", context.attempt)
    if context.attempt == 1:
        tick = threading.Event()
        while not Path(message.params["until"]).exists():
            tick.wait(0.01)
    context.write_state("by", context.attempt)
    return context.attempt


def clock(context: Any, message: Any) -> Any:
    """Set a reminder of one second; note its ticks."""
    if message.method == "set":
        context.set_reminder("r", 0.0, "tick", period=1.0)
        return True
    ticks = context.read_state("ticks") or []
    context.write_state("ticks", [*ticks, message.params])
    return True


def runtime_of(url: str, **options: Any) -> InProcessActorRuntime:
    """Return a runtime of these actors."""
    runtime = InProcessActorRuntime(
        url, options=RuntimeOptions(**({"sweep_every": 0.1} | options))
    )
    for name, receive in (
        ("count", count),
        ("sink", note),
        ("poison", poison),
        ("pause", pause),
        ("clock", clock),
    ):
        runtime.register_actor_type(
            name,
            lambda _, receive=receive: Made(receive),
            options=ActorOptions(mailbox_limit=1000 if name == "sink" else 30),
        )
    return runtime


def _send(runtime: InProcessActorRuntime, sender: int) -> None:
    """Send requests without end, and say of which it is known that they are taken."""
    client = runtime.client()
    tick = threading.Event()
    number = 0
    while True:
        number += 1
        message_id = f"{os.getpid()}-{sender}-{number}"
        key = f"{number % ACTORS}"
        try:
            client.send_request(ActorId("count", key), "count", message_id=message_id)
        except MailboxFullError:
            tick.wait(0.005)
            continue
        say("taken", key, message_id)


def _run(job: str, url: str, parent: int) -> None:
    if job == "load":
        runtime = runtime_of(url).start()
        for sender in range(_SENDERS):
            threading.Thread(target=_send, args=(runtime, sender), daemon=True).start()
    elif job == "poison":
        runtime = runtime_of(url).start()
        runtime.client().send_request(POISON, "die", message_id="poison")
    elif job == "clock":
        runtime = runtime_of(url).start()
        runtime.client().ask(ActorId("clock", "1"), "set")
        say("set")
    else:
        runtime = runtime_of(url, lease_ttl=0.6).start()
        until = {"until": f"{url.removeprefix('sqlite:///')}.go"}
        handle = runtime.client().send_request(
            ActorId("pause", "1"), "go", until, message_id="pause"
        )
        say("answer", handle.result(20.0))
    tick = threading.Event()
    while os.getppid() == parent:  # it ends with whoever started it
        tick.wait(0.2)


def main() -> None:
    me = os.getpid()
    for line in sys.stdin:
        job, url = line.split()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                _run(job, url, me)
            os._exit(1)
        say("pid", child)
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
