"""The kernel in a forked child: nothing of the parent's work, all of its own."""

from __future__ import annotations

import subprocess
import sys

from tests.support import SLOW

SCRIPT = """
import asyncio, json, os, threading, time
from ppio_agent.agent import Invocation, InvocationRegistry, RequestContext, as_handler
from ppio_agent._util.alarm import alarms
from ppio_agent.agent.loop import AsyncCall, shared_loop
from ppio_agent._util.ids import new_id
from ppio_agent._util.threads import WorkerPool

pool = WorkerPool("ppio-invoke", max_threads=2, max_waiting=2)
registry = InvocationRegistry()

def start(function, timeout=None):
    deadline = None if timeout is None else time.monotonic() + timeout
    context = RequestContext(invocation_id=new_id(), request_id="r", deadline=deadline)
    invocation = Invocation(as_handler(function), {}, context)
    registry.admit(invocation)
    invocation.start(pool)
    return invocation

async def asynchronous(request):
    await asyncio.sleep(0.01)
    return "async"

async def items(request):
    yield "a"
    yield "b"

def all_kinds():
    assert start(lambda: "plain").result(5) == "plain"
    assert start(asynchronous).result(5) == "async"
    assert start(items).result(5) == "ab"
    try:
        start(lambda: threading.Event().wait(1), timeout=0.05).result(5)
    except TimeoutError:
        return start(lambda: None).id
    raise AssertionError("no deadline")

def talk(pipe):
    os.write(pipe, all_kinds().encode() + b" ")

gate = threading.Event()
all_kinds()
running = start(lambda: gate.wait(20))
read, write = os.pipe()
# As other threads of the parent may hold them at that moment.
locks = [registry._lock, alarms()._sooner, pool._lock]
for lock in locks:
    lock.acquire()
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        assert registry.live == 0
        talk(write)
        os._exit(0)
    children.append(child)
for lock in locks:
    lock.release()
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
gate.set()
assert running.result(5) is True
talk(write)
ids = os.read(read, 1000).split()
assert len(set(ids)) == 3, ids
"""


def test_each_process_has_threads_loop_and_alarm_of_its_own() -> None:
    """After invocations ran before the fork, and while one runs; ids differ."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
