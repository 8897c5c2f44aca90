"""Calling a deployed agent once from the command line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppio_agent.exceptions import ValidationError
from ppio_agent.wire.json import Json, encode_json

from .target import find_or_embed, find_target

if TYPE_CHECKING:
    from ppio_agent.client import SandboxSession

__all__ = ["invoke", "parse_input"]


def parse_input(text: str) -> dict[str, Json]:
    """Return the request that a text on the command line means.

    A JSON object is taken as it is; any other text is the question. Agents of the
    field read `query`, ours `prompt`: whichever is given alone stands for both.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return {"query": text, "prompt": text}
    if "query" in value and "prompt" not in value:
        return {**value, "prompt": value["query"]}
    return value


def _pairs(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    pairs = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            # Not the text itself: it may be a secret.
            raise click.BadParameter("expected NAME=VALUE")
        pairs[name] = value
    return pairs


@click.command()
@click.argument("words", nargs=-1, metavar="[REF] [INPUT | -]")
@click.option("--template-id", "--agent-id", "ref", help="The agent, as REF.")
@click.option("--input", "text", help="The question, as INPUT.")
@click.option(
    "--stream", is_flag=True, help="Print the pieces of the answer as they come."
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0,
              show_default=True, help="Seconds, the start of the sandbox included.")  # fmt: skip
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", callback=_pairs,
              help="Variable for the sandbox; may be repeated.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave the sandbox running.")
def invoke(
    words: tuple[str, ...],
    *,
    ref: str | None,
    text: str | None,
    stream: bool,
    timeout: float,
    env: dict[str, str],
    keep: bool,
) -> None:
    """Ask the agent REF and print its answer.

    REF is an id, a name or name:version. INPUT is a JSON object or a text; - reads it from standard input. Without REF the
    agent is the one that was last deployed from this folder.
    """
    ref, text, manifest_env = _what(words, ref, text)
    request = parse_input(_read_stdin() if text == "-" else text)
    encode_json(request)  # refused here, before it costs a sandbox
    # A platform of this command's own would end with it, and its sandbox, too.
    found = find_target() if keep else find_or_embed()
    with found as target, target.client() as client:
        begun = time.monotonic()
        session = client.create_session(
            ref, env_vars={**manifest_env, **env} or None, deadline=timeout
        )
        try:
            left = begun + timeout - time.monotonic()
            _ask(session, request, stream=stream, timeout=max(left, 0.001))
        finally:
            took = time.monotonic() - begun
            if keep:
                session.detach()
            else:
                session.close()
            kept = ", kept" if keep else ""
            click.echo(f"sandbox {session.sandbox_id}{kept}, {took:.2f} s", err=True)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise ValidationError("standard input is not UTF-8") from None


def _ask(
    session: SandboxSession, request: dict[str, Json], *, stream: bool, timeout: float
) -> None:
    if not stream:
        response = session.invoke(request, timeout=timeout)
        click.echo(str(response))
        return
    with session.invoke_stream(request, deadline=timeout) as pieces:
        for piece in pieces:
            click.echo(piece if isinstance(piece, str) else encode_json(piece).decode())


def _what(
    words: tuple[str, ...], ref: str | None, text: str | None
) -> tuple[str, str, dict[str, str]]:
    """Return agent, input and the manifest's variables for `invoke`."""
    left = list(words)
    if text is None and left:
        text = left.pop()
    if ref is None and left:
        ref = left.pop()
    if left:
        raise click.UsageError("too many words; quote the input")
    if text is None:
        raise click.UsageError("give the input: a text, a JSON object, or - to read it")
    env: dict[str, str] = {}
    if ref is None:
        ref, env = _deployed_here()
    return ref, text, env


def _deployed_here() -> tuple[str, dict[str, str]]:
    manifest = Path(".ppio-agent.yaml")
    found: tuple[Any, dict[str, str]] = (None, {})
    if manifest.is_file():
        from ppio_agent.sandbox.templates.manifest import parse_manifest
        from ppio_agent.sandbox.templates.sources import FolderSource

        read = parse_manifest(FolderSource.of(manifest).manifest_text())
        found = (read.status.get("template_id"), dict(read.env_vars))
    if not found[0]:
        raise click.UsageError(
            "name the agent: ppio-agent invoke REF INPUT, or deploy this folder first"
        )
    return found
