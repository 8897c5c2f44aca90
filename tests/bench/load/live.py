"""Many slow streams that stay open: how many live, what they cost in memory."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from tests.bench.memory import resident_mib

from .streams import open_streams, receive

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one measurement and print it.

    A stream lives if it has a further chunk in the second half of the time.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("pid", type=int)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--body", required=True)
    parser.add_argument("--settle", type=float, default=3.0)
    options = parser.parse_args(arguments)
    warm = open_streams(options.port, 1, b'{"chunks":1,"pause":0}', stamped=False)
    receive(warm, options.settle)
    idle = resident_mib(options.pid)
    streams = open_streams(
        options.port, options.streams, options.body.encode(), stamped=False
    )
    receive(streams, options.settle)
    before = [one.chunks for one in streams]
    above = resident_mib(options.pid) - idle
    receive(streams, options.settle)
    alive = [
        one.chunks > chunks and not one.ended and not one.failed
        for one, chunks in zip(streams, before, strict=True)
    ]
    print(json.dumps({"alive": sum(alive), "above_idle_mib": above}))


if __name__ == "__main__":
    main()
