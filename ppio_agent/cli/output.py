"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ppio_agent.wire.json import Json

__all__ = ["drop_output", "json_option", "print_json", "print_table", "unheard"]


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json`` to a command, as its argument `as_json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
    )(command)


def print_json(value: Json) -> None:
    """Print a JSON value, indented, as it is."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows under the names of their columns; nothing is cut off or wrapped."""
    lines = [list(columns), *([_cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@contextmanager
def unheard() -> Iterator[None]:
    """Go on where what the block prints cannot be printed, as on a closed terminal."""
    try:
        yield
    except OSError:
        drop_output()


def drop_output() -> None:
    """Forget what could not be printed: at exit it would fail again, as the status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
