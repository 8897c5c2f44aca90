"""The local platform: running it, deploying to it, looking at what it holds."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import click

from ppio_agent.wire.json import Json

from .output import json_option, print_json, print_table
from .target import Target, find_target

__all__ = ["deploy", "logs", "sandboxes", "templates", "up"]

_LOOK_EVERY = 0.5  # seconds between two looks at a log, or for a signal
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@click.option("--host", help="Address to bind.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port.  [default: 3900]")
@click.option(
    "--backend", type=click.Choice(["auto", "process"]), help="How sandboxes run."
)
@click.option("--key", help="API key to accept.  [default: one is generated and kept]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where all is kept.")
def up(**options: Any) -> None:
    """Run the local sandbox platform until Ctrl-C.

    Prints the variables that point clients at it. Ctrl-C ends all sandboxes; a second
    one ends them at once.
    """
    from ppio_agent.sandbox import PlatformConfig, SandboxPlatform

    given = {name: value for name, value in options.items() if value is not None}
    key = given.pop("key", None)
    if key:
        given["keys"] = {key: "default"}
    if "PPIO_PLATFORM_PORT" not in os.environ:
        given.setdefault("port", 3900)
    config = PlatformConfig.from_env(os.environ, **given)
    stop = threading.Event()
    platform = SandboxPlatform(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stop(stop))
    with platform:
        click.echo(f"the local sandbox platform is at {platform.url}")
        click.echo(
            "sandboxes are processes of yours: a convenience, not a security boundary"
        )
        for name, value in platform.env().items():
            click.echo(f"export {name}={value}")
        click.echo("Ctrl-C ends it and all its sandboxes", err=True)
        # In steps: a signal that meets the main thread in a long wait may be handled
        # on another thread, and then does not wake it.
        while not stop.wait(_LOOK_EVERY):
            pass
        click.echo("ending all sandboxes ...", err=True)


def _stop(stop: threading.Event) -> None:
    if stop.is_set():
        # Supervisors see that the platform is gone and end their sandboxes.
        os._exit(130)
    stop.set()


@click.command()
@click.argument(
    "folder", type=click.Path(exists=True, path_type=Path), default=".", metavar="[DIR]"
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="The manifest, if not in DIR."
)
@click.option("--dry-run", is_flag=True, help="Check only; change nothing.")
@json_option
def deploy(folder: Path, config: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Deploy the agent in DIR, as its .ppio-agent.yaml says."""
    from ppio_agent.sandbox.templates import packing

    package = packing.pack(config or folder)
    if dry_run:
        click.echo(f"{package.name} {package.version}: {package.files} files, valid")
        return
    with find_target() as target:
        record = target.call(
            "POST", "platform", "v1", "templates",
            body=package.archive, kind="template", timeout=300.0,
        )  # fmt: skip
    packing.write_status(package.manifest_path, record)
    if as_json:
        print_json(record)
        return
    click.echo(f"deployed {package.name} {package.version} as {record['templateID']}")
    click.echo(f'next: ppio-agent invoke {package.name} "a question"')


@click.group()
def templates() -> None:
    """Templates that the platform holds."""


@templates.command("list")
@json_option
def list_templates(*, as_json: bool) -> None:
    """List them."""
    with find_target() as target:
        found = target.call(
            "GET", "templates", query={"metadata": "true"}, kind="other"
        )
    if as_json:
        print_json(found)
        return
    rows = [{**item, "name": (item.get("names") or [""])[0]} for item in found]
    print_table(["templateID", "name", "version", "tags", "description"], rows)


@templates.command("get")
@click.argument("ref")
def get_template(ref: str) -> None:
    """Show the template REF (id, name or name:version) as JSON."""
    with find_target() as target:
        print_json(target.call("GET", "templates", ref, kind="template"))


@templates.command("delete")
@click.argument("ref")
def delete_template(ref: str) -> None:
    """Delete the template REF; sandboxes made from it stay."""
    with find_target() as target:
        found = target.call("GET", "templates", ref, kind="template")
        target.call("DELETE", "templates", found["templateID"], kind="template")
    click.echo(f"deleted {found['templateID']}")


@click.group()
def sandboxes() -> None:
    """Sandboxes that are alive."""


@sandboxes.command("list")
@json_option
def list_sandboxes(*, as_json: bool) -> None:
    """List them, paused ones included."""
    with find_target() as target:
        found = _all_sandboxes(target)
    if as_json:
        print_json(found)
        return
    columns = ["sandboxID", "alias", "state", "startedAt", "endAt", "metadata"]
    print_table(columns, found)


def _all_sandboxes(target: Target) -> list[dict[str, Json]]:
    # The platform holds 100 sandboxes at most unless configured otherwise; the
    # listing is cut into pages of 100 by its token.
    found: list[dict[str, Json]] = target.call("GET", "v2", "sandboxes", kind="other")
    return found


@sandboxes.command("get")
@click.argument("sandbox_id", metavar="ID")
def get_sandbox(sandbox_id: str) -> None:
    """Show one as JSON."""
    with find_target() as target:
        print_json(target.call("GET", "sandboxes", sandbox_id))


def _each(ids: tuple[str, ...], method: str, *action: str, body: Json = None) -> None:
    with find_target() as target:
        for sandbox_id in ids:
            target.call(method, "sandboxes", sandbox_id, *action, body=body)
            click.echo(sandbox_id)


@sandboxes.command("pause")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def pause_sandboxes(ids: tuple[str, ...]) -> None:
    """Freeze them: memory is kept, no CPU is used."""
    _each(ids, "POST", "pause")


@sandboxes.command("resume")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def resume_sandboxes(ids: tuple[str, ...]) -> None:
    """Let paused ones go on."""
    _each(ids, "POST", "connect", body={})


@sandboxes.command("kill")
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
def kill_sandboxes(ids: tuple[str, ...], *, everything: bool) -> None:
    """End them and all their processes."""
    if bool(ids) == everything:
        raise click.UsageError("name the sandboxes to end, or give --all")
    if everything:
        with find_target() as target:
            ids = tuple(str(item["sandboxID"]) for item in _all_sandboxes(target))
    _each(ids, "DELETE")


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
@click.option("--tail", type=click.IntRange(1, 1000), help="Only the last lines.")
def logs(
    sandbox_id: str, *, follow: bool, since: float | None, tail: int | None
) -> None:
    """Print what the agent in the sandbox ID wrote."""
    start = 0 if since is None else int((time.time() - since) * 1000)
    with find_target() as target:
        query = {"start": start, "limit": 1000}
        lines = target.call("GET", "sandboxes", sandbox_id, "logs", query=query)["logs"]
        for line in lines[-tail:] if tail else lines:
            click.echo(line["line"])
        if follow:
            _follow(target, sandbox_id, lines)


def _follow(target: Target, sandbox_id: str, seen: list[dict[str, Any]]) -> None:
    wait = threading.Event()
    while not wait.wait(_LOOK_EVERY):
        query = {"start": 0, "limit": 1000}
        lines = target.call("GET", "sandboxes", sandbox_id, "logs", query=query)["logs"]
        for line in lines[len(seen) :]:
            click.echo(line["line"])
        seen = lines
