"""What begins anew in a forked child.

Of its parent's threads only the forking one lives on there, and a lock that another
one held stays locked for ever. So whatever has threads, or a lock and knows of work
under way, replaces them before anything else runs in the child.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["renew_in_child"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = (
    weakref.WeakKeyDictionary()
)


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
    os.register_at_fork(after_in_child=_renew_all)
