"""What begins anew in a forked child.

Of its parent's threads only the forking one lives on there, and a lock that another
one held stays locked for ever. So whatever has threads, or a lock and knows of work
under way, replaces them before anything else runs in the child.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

__all__ = ["hold_at_fork", "no_fork", "renew_in_child"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = (
    weakref.WeakKeyDictionary()
)
_Locks = Iterable[threading.Lock]
_holds: weakref.WeakKeyDictionary[Any, Callable[[Any], _Locks]] = (
    weakref.WeakKeyDictionary()
)
_PATIENCE = 1.0  # seconds for each lock: a thread that has one may fork, by a signal
# What each fork under way has: one of a signal handler may be within another one.
_taken: list[list[threading.Lock]] = []
# Held while the process forks. Of one thread again and again, for a signal handler may
# fork while its thread has it.
_forking = threading.RLock()


def no_fork() -> AbstractContextManager[object]:
    """Let forks by other threads wait, for some milliseconds at most.

    For the moments in which a descriptor is open whose end somebody waits for, as the
    other end of a pipe while a program is started that is to have it: a forked child
    would keep it open for as long as it lives.
    """
    return _forking


def renew_in_child(owner: _T, renew: Callable[[_T], object]) -> None:
    """Call ``renew(owner)`` in every forked child, as long as `owner` lives.

    Args:
        owner: What is to be renewed; it is not kept alive. Once for each.
        renew: Makes its locks anew and forgets its threads; must take no old lock.
    """
    _renewals[owner] = renew


def hold_at_fork(owner: _T, locks_of: Callable[[_T], _Locks]) -> None:
    """Let forks wait for what is done under locks, as long as `owner` lives.

    For calls of a library that has locks of its own, which nobody can replace in the
    child. It costs these calls nothing.

    Args:
        owner: Whose locks they are; it is not kept alive.
        locks_of: Gives them; each is held for less than a second.
    """
    _holds[owner] = locks_of


def _begin() -> None:
    _forking.acquire()
    taken: list[threading.Lock] = []
    _taken.append(taken)
    for owner, locks_of in list(_holds.items()):
        taken += [lock for lock in locks_of(owner) if lock.acquire(timeout=_PATIENCE)]


def _end() -> None:
    for lock in _taken.pop():
        lock.release()
    _forking.release()


def _renew_all() -> None:
    for owner, renew in list(_renewals.items()):
        try:
            renew(owner)
        except Exception:  # noqa: BLE001 - the locks of the others must not stay held
            _log.exception("%s was not renewed in a forked child", owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_begin, after_in_parent=_end, after_in_child=_end)
    os.register_at_fork(after_in_child=_renew_all)
