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
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

__all__ = ["no_fork", "renew_in_child"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = (
    weakref.WeakKeyDictionary()
)
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


def _renew_all() -> None:
    for owner, renew in list(_renewals.items()):
        try:
            renew(owner)
        except Exception:  # noqa: BLE001 - the locks of the others must not stay held
            _log.exception("%s was not renewed in a forked child", owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forking.acquire,
        after_in_parent=_forking.release,
        after_in_child=_forking.release,
    )
    os.register_at_fork(after_in_child=_renew_all)
