"""What begins anew in a forked child."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

from ppio_agent._util.fork import renew_in_child


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
