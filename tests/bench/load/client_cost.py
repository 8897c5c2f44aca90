"""What one call costs a client in processor time, on a kept connection.

Prints one JSON object. Each way runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

__all__ = ["main"]

_BODY = b'{"prompt":"hello"}'
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


def _transport(url: str) -> Callable[[], int]:
    from ppio_agent._util.clock import Deadline
    from ppio_agent.transport import Request, Transport

    transport = Transport()

    def call() -> int:
        request = Request(
            method="POST",
            url=url,
            headers=_HEADERS,
            body=_BODY,
            deadline=Deadline.after(30.0),
        )
        return transport.send(request).status

    return call


def _requests(url: str) -> Callable[[], int]:
    import requests

    session = requests.Session()
    return lambda: (
        session.post(url, data=_BODY, headers=_HEADERS, timeout=30).status_code
    )


_WAYS = {"requests": _requests, "transport": _transport}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one way and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=sorted(_WAYS))
    parser.add_argument("port", type=int)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args(arguments)
    call = _WAYS[options.way](f"http://127.0.0.1:{options.port}/invocations")
    for _ in range(max(20, options.calls // 10)):
        if call() != 200:
            raise SystemExit("the server did not answer 200")
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(options.calls):
        call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(
        json.dumps(
            {
                "cpu_us": cpu / options.calls * 1e6,
                "wall_us": wall / options.calls * 1e6,
            }
        )
    )


if __name__ == "__main__":
    main()
