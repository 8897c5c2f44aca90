"""What a replay ring costs that nobody reads: appends a second, memory it comes to."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence

from ppio_agent.agent import ReplayRing
from tests.bench.memory import resident_mib

__all__ = ["main"]

_FILLED = 2048
_PIECE = b'{"piece":"%d"}'


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--appends", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    ring = ReplayRing()
    for number in range(_FILLED):
        ring.append(_PIECE % number)
    filled = resident_mib(os.getpid())
    began = time.perf_counter()
    for number in range(_FILLED, options.appends):
        ring.append(_PIECE % number)
    took = time.perf_counter() - began
    grown = resident_mib(os.getpid()) - filled
    print(json.dumps({"rate": (options.appends - _FILLED) / took, "grown_mib": grown}))


if __name__ == "__main__":
    main()
