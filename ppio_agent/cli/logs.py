"""Printing what the agent in a sandbox wrote, and writes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import click

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import NetworkError, NotFoundError, ServiceUnavailableError
from ppio_agent.wire.json import decode_json_text
from ppio_agent.wire.sse import SSEEvent

from .target import Target, find_target

__all__ = ["logs"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST = 1000
# How long a platform that was restarted is waited for, and how often it is tried.
_PATIENCE = 60.0
_RETRY_EVERY = 1.0


def _seconds(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise click.BadParameter("expected a time such as 30s, 10m, 2h")
    return float(match[1]) * _UNITS[match[2]]


@click.command()
@click.argument("sandbox_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C or its end.")
@click.option(
    "--since", callback=_seconds, metavar="TIME", help="Only the last 10m, 2h, …"
)
@click.option("--tail", type=click.IntRange(1, _MOST), help="Only the last lines.")
def logs(
    sandbox_id: str, *, follow: bool, since: float | None, tail: int | None
) -> None:
    """Print what the agent in the sandbox ID wrote."""
    start = 0 if since is None else max(0, int((time.time() - since) * 1000))
    with find_target() as target:
        for line in _read(target, sandbox_id, start, tail, follow=follow):
            click.echo(line)


def _read(
    target: Target, sandbox_id: str, start: int, tail: int | None, *, follow: bool
) -> Iterator[str]:
    """Yield the lines that are there, or those that come, until the sandbox is gone.

    A connection that breaks is made again, also to a platform that was restarted.
    """
    path = ("platform", "v1", "sandboxes", sandbox_id, "logs", "stream")
    query = {"start": start, "tail": tail, "follow": "true" if follow else "false"}
    last: str | None = None
    patience: Deadline | None = None
    wait = threading.Event()
    while True:
        try:
            with target.events(*path, query=query, after=last) as events:
                patience = None
                for event in events:
                    last = event.id or last
                    if event.event == "end":
                        return
                    yield from _lines(event)
        except NotFoundError:
            if last is None:
                raise
            return  # it was there before
        except NetworkError:
            # It begins with the break: a log may have been quiet for long before.
            patience = patience or Deadline.after(_PATIENCE)
            if patience.expired or not (follow or last):
                raise
        wait.wait(_RETRY_EVERY)


def _lines(event: SSEEvent) -> Iterator[str]:
    if event.event == "log":
        yield decode_json_text(event.data)["message"]
    elif event.event == "error":
        raise ServiceUnavailableError(decode_json_text(event.data)["message"])
