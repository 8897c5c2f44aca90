"""Sandboxes that are alive: looking at them, pausing, resuming and ending them."""

from __future__ import annotations

import click

from ppio_agent.exceptions import (
    AuthenticationError,
    NetworkError,
    NotFoundError,
    PPIOAgentError,
)
from ppio_agent.wire.json import Json

from .output import json_option, print_json, print_table
from .target import Target, find_target

__all__ = ["sandboxes"]


@click.group()
def sandboxes() -> None:
    """Sandboxes that are alive."""


@sandboxes.command("list")
@json_option
def list_sandboxes(*, as_json: bool) -> None:
    """List them, paused ones included."""
    with find_target() as target:
        found = target.pages("v2", "sandboxes")
    if as_json:
        print_json(found)
        return
    columns = ["sandboxID", "alias", "state", "startedAt", "endAt", "metadata"]
    print_table(columns, ({**item, "metadata": _said(item)} for item in found))


def _said(sandbox: dict[str, Json]) -> dict[str, Json]:
    """Return the metadata of a sandbox without what clients note for themselves."""
    metadata = sandbox.get("metadata")
    items = metadata.items() if isinstance(metadata, dict) else ()
    return {name: text for name, text in items if not name.startswith("ppio_")}


@sandboxes.command("get")
@click.argument("sandbox_id", metavar="ID")
def get_sandbox(sandbox_id: str) -> None:
    """Show one as JSON."""
    with find_target() as target:
        print_json(target.call("GET", "sandboxes", sandbox_id))


@sandboxes.command("pause")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def pause_sandboxes(ids: tuple[str, ...]) -> None:
    """Freeze them: memory is kept, no CPU is used."""
    with find_target() as target:
        _each(target, ids, "POST", "pause")


@sandboxes.command("resume")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def resume_sandboxes(ids: tuple[str, ...]) -> None:
    """Let paused ones go on."""
    with find_target() as target:
        _each(target, ids, "POST", "connect", body={})


@sandboxes.command("kill")
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
def kill_sandboxes(ids: tuple[str, ...], *, everything: bool) -> None:
    """End them and all their processes."""
    if bool(ids) == everything:
        raise click.UsageError("name the sandboxes to end, or give --all")
    with find_target() as target:
        if everything:
            found = target.pages("v2", "sandboxes")
            ids = tuple(str(item["sandboxID"]) for item in found)
        _each(target, ids, "DELETE", may_be_gone=everything)


def _each(
    target: Target,
    ids: tuple[str, ...],
    method: str,
    *action: str,
    body: Json = None,
    may_be_gone: bool = False,
) -> None:
    """Do the same with each; one with which that fails does not keep the others."""
    failed: PPIOAgentError | None = None
    for sandbox_id in ids:
        try:
            target.call(method, "sandboxes", sandbox_id, *action, body=body)
        except (AuthenticationError, NetworkError):
            raise  # so would the next
        except PPIOAgentError as error:
            if may_be_gone and isinstance(error, NotFoundError):
                continue
            if failed is not None:
                click.echo(f"error: {failed}", err=True)
            failed = error
        else:
            click.echo(sandbox_id)
    if failed is not None:
        raise failed
