"""Serving actors: `actors serve`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ppio_agent.exceptions import ConfigurationError

from .agent import load_module

if TYPE_CHECKING:
    import flask

__all__ = ["actors"]


@click.group()
def actors() -> None:
    """Run actors: conversations with agents, one turn at a time."""


@actors.command()
@click.argument("file", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port; 0 takes any free one.",
)
@click.option(
    "--store",
    envvar="PPIO_STATE_URL",
    help="Where conversations are kept: sqlite:///<path>, postgresql+psycopg://…,"
    " redis://….  [env PPIO_STATE_URL; default: in memory]",
)
@click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Serve callers from other machines without authentication.",
)
def serve(
    file: str | None,
    host: str,
    port: int,
    store: str | None,
    *,
    allow_unauthenticated: bool,
) -> None:
    """Serve agents over HTTP, from the program FILE or FILE:NAME.

    NAME, `app` or `runtime` if it is not said, is an app of create_app or an
    InProcessActorRuntime. Without FILE sample agents are served: mock-ai, helpful and
    echo, and openai or azure if the environment has their keys.
    """
    from ppio_agent.actors.http_api import serve

    app = _app_of(file, store, allow_unauthenticated=allow_unauthenticated)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    serve(app, host=host, port=port)


def _app_of(
    file: str | None, store: str | None, *, allow_unauthenticated: bool
) -> flask.Flask:
    import flask

    from ppio_agent.actors import InProcessActorRuntime
    from ppio_agent.actors.http_api import create_app, register_samples

    if file is None:
        runtime = InProcessActorRuntime(store)
        register_samples(runtime)
        return create_app(runtime, allow_unauthenticated=allow_unauthenticated)
    source = click.get_current_context().get_parameter_source("store")
    if source is ParameterSource.COMMANDLINE:
        raise click.UsageError(
            "a program of one's own says itself where actors are kept"
        )
    path, _, name = file.partition(":")
    module = load_module(Path(path))
    names = (name,) if name else ("app", "runtime")
    found = next((vars(module)[n] for n in names if n in vars(module)), None)
    if isinstance(found, InProcessActorRuntime):
        return create_app(found, allow_unauthenticated=allow_unauthenticated)
    if not isinstance(found, flask.Flask):
        raise ConfigurationError(
            f"{path} has no {' or '.join(map(repr, names))} that can be served; assign"
            " app = create_app(…) or runtime = InProcessActorRuntime(…)"
        )
    if allow_unauthenticated:
        raise click.UsageError("say allow_unauthenticated=True to create_app")
    return found
