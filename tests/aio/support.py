"""What the tests of the awaitable client share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support import SLOW

__all__ = ["until"]


async def until(condition: Callable[[], object], *, timeout: float = 5.0) -> None:
    """Let the loop run until `condition()` is true; fail after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout * SLOW
    while not condition():
        assert loop.time() < end, f"not within {timeout} s"
        await asyncio.sleep(0.005)
