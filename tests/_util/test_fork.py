"""What begins anew in a forked child."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

from ppio_agent._util.fork import hold_at_fork, renew_in_child


class Owner:
    def __init__(self) -> None:
        self.pid = os.getpid()
        renew_in_child(self, Owner.renew)

    def renew(self) -> None:
        self.pid = os.getpid()


def test_owners_are_renewed_in_the_child_only() -> None:
    """Each of them, before anything else runs there."""
    owners = [Owner(), Owner()]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(owner.pid == os.getpid() for owner in owners) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [owner.pid for owner in owners] == [os.getpid()] * 2


def test_an_owner_is_not_kept_alive() -> None:
    """It goes when its user lets go of it."""
    ref = weakref.ref(Owner())
    gc.collect()
    assert ref() is None


def test_one_that_fails_does_not_keep_the_others_from_it() -> None:
    """Their locks would stay held for ever."""

    class Broken(Owner):
        def renew(self) -> None:
            raise LookupError("broken")

    broken, other = Broken(), Owner()
    renew_in_child(broken, Broken.renew)
    child = os.fork()
    if child == 0:
        os._exit(0 if other.pid == os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Held:
    """Somebody whose calls a fork waits for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        hold_at_fork(self, lambda held: (held.lock,))


def test_a_fork_waits_for_what_is_done_under_a_lock() -> None:
    """And the lock is free afterwards, here and in the child."""
    held = Held()
    done: list[int] = []
    with held.lock:
        end = threading.Timer(0.1, lambda: (done.append(1), held.lock.release()))
        end.start()
        child = os.fork()
        if child == 0:
            os._exit(0 if done and held.lock.acquire(blocking=False) else 1)
        assert done
        assert held.lock.acquire(blocking=False)
    end.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_by_who_has_the_lock_waits_no_longer_than_a_moment() -> None:
    """By a signal's handler, say."""
    held = Held()
    with held.lock:
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert held.lock.locked()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


_WAITING_FORK = """
import os, threading
from ppio_agent._util.fork import no_fork

codes = []

def fork():
    child = os.fork()
    if child == 0:
        with no_fork():  # nobody has it there
            os._exit(7)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

forking = threading.Thread(target=fork)
with no_fork():
    forking.start()
    forking.join(0.1)
    assert forking.is_alive() and codes == []
    child = os.fork()  # as a signal handler might
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
forking.join(20)
assert codes == [7]
"""


def test_forks_by_other_threads_wait() -> None:
    """So that no child has a descriptor that is open for a moment only."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WAITING_FORK], check=True, timeout=60
    )
