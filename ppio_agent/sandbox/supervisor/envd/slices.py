"""Run long work piece by piece on the loop, so that nothing else waits for it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from ppio_agent.sandbox.supervisor.loop import Loop

__all__ = ["Steps", "run_in_slices"]

_SLICE = 0.004

_T = TypeVar("_T")

Steps = Generator[None, None, _T]
"""Work that yields wherever it may be interrupted, and returns its result."""


def run_in_slices(
    loop: Loop,
    steps: Steps[_T],
    *,
    done: Callable[[_T], object],
    failed: Callable[[Exception], object],
) -> None:
    """Do the first slice now and the others from the loop; then call back once.

    Args:
        loop: What goes on between two slices.
        steps: The work.
        done: Told the result.
        failed: Told what the work raised.
    """
    until = loop.now() + _SLICE
    try:
        while loop.now() < until:
            next(steps)
    except StopIteration as end:
        done(end.value)
    except Exception as exc:  # noqa: BLE001 - nobody else would answer for it
        failed(exc)
    else:
        loop.call_later(0, lambda: run_in_slices(loop, steps, done=done, failed=failed))
