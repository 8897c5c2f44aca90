"""The HTTP API of actors: conversations with agents, and requests to any actor.

``python -m ppio_agent.actors.http_api`` serves two mock agents and an echo on
``127.0.0.1:8000``, and agents of OpenAI and Azure where the environment has their keys.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppio_agent.exceptions import ConfigurationError, PPIOAgentError
from ppio_agent.hooks import Hooks

from .agent_actor import EchoAgent, MockAIAgent, agent_handler
from .http.api import Api
from .http.server import ActorServer
from .runtime import InProcessActorRuntime

if TYPE_CHECKING:
    import flask

    from ppio_agent.storage.actors import IActorStateStorage

__all__ = ["create_app", "main", "register_samples", "serve", "server_of"]

_EXTENSION = "ppio_actors"
_SWITCH_INTERVAL = 0.001


def create_app(
    runtime: InProcessActorRuntime | None = None,
    *,
    agents: Mapping[str, Any] | None = None,
    store: IActorStateStorage | str | None = None,
    auth: Any = (),
    plugins: Iterable[object] = (),
    cors_origins: Iterable[str] = (),
    allow_unauthenticated: bool = False,
    max_request_size: int = 1 << 20,
) -> flask.Flask:
    """Return a Flask app that serves the actors of a runtime.

    The runtime is started with the first request unless it runs; one that was started
    so is stopped with the server, or when the interpreter ends.

    Args:
        runtime: The runtime; None makes one.
        agents: Agents to register, by name; see `InProcessActorRuntime.register_agent`.
        store: Where a runtime that is made here keeps its actors; None: in memory.
        auth: Who may call: one or several of `ApiKeyAuth`, `HmacAuth`, another plug-in
            or a function ``(request) -> Principal | None``; asked in order. Then a
            conversation is that of the principal who began it.
        plugins: Further plug-ins: `ppio_authenticate`, and `ppio_adapt_agent` for
            `agents`, are the hooks in which they take part.
        cors_origins: Origins whose pages may call; exact ones, or `*`.
        allow_unauthenticated: Serve anybody, under any name and address, without `auth`.
        max_request_size: Most bytes of a body; more than 1 MiB of messages is refused
            all the same.

    Raises:
        ConfigurationError: There is a store for a runtime that has its own.
        TypeError: An agent cannot be called, or `auth` cannot be asked.

    Example:
        >>> said = {"messages": [{"role": "user", "content": "hi"}]}
        >>> with InProcessActorRuntime() as runtime:
        ...     app = create_app(runtime, agents={"parrot": lambda r: r["prompt"]})
        ...     answer = app.test_client().post("/agents/parrot/run", json=said)
        ...     answer.json["messages"][0]["content"]
        'hi'
    """
    import flask

    if runtime is None:
        runtime = InProcessActorRuntime(store)
    elif store is not None:
        raise ConfigurationError("the runtime has a store: give it to the runtime")
    hooks = Hooks.load(plugins)
    for name, agent in (agents or {}).items():
        runtime.register_agent(name, agent_handler(agent, hooks))
    several = isinstance(auth, Sequence) and not isinstance(auth, str)
    api = Api(
        runtime,
        auth=auth if several else (auth,),
        hooks=hooks,
        cors_origins=tuple(cors_origins),
        allow_unauthenticated=allow_unauthenticated,
        max_request_size=max_request_size,
    )
    app = flask.Flask(__name__, static_folder=None)
    api.front.install(app, beside=True)
    app.extensions[_EXTENSION] = api
    app.wsgi_app = api.wsgi_app  # type: ignore[method-assign] # as Flask says it is done
    return app


def server_of(
    app: flask.Flask, *, host: str = "127.0.0.1", port: int = 8000
) -> ActorServer:
    """Return a server for an app of `create_app`, to be started.

    Args:
        app: The app.
        host: Address to listen on.
        port: Port to listen on, 0 for a free one.

    Raises:
        ConfigurationError: It is another app, or others could reach it without
            authentication.
    """
    api = app.extensions.get(_EXTENSION)
    if not isinstance(api, Api):
        raise ConfigurationError("this Flask app was not made by create_app")
    return ActorServer(api, wsgi_app=app.wsgi_app, host=host, port=port)


def register_samples(runtime: InProcessActorRuntime) -> None:
    """Register two mock agents, an echo, and those that the environment has keys for."""
    from .openai_agent import agents_from_env

    runtime.register_agent(
        "mock-ai", MockAIAgent(), kind="mock", description="Answers with fixed lines."
    )
    runtime.register_agent(
        "helpful",
        MockAIAgent(delay=0.05),
        kind="mock",
        description="Answers with fixed lines, in half the time.",
    )
    runtime.register_agent(
        "echo",
        EchoAgent(),
        history=0,
        kind="test",
        description="Answers what it was told.",
    )
    for name, agent in agents_from_env(hooks=Hooks.load()).items():
        runtime.register_agent(
            name, agent, kind=name, description="Asks a language model."
        )


def serve(app: flask.Flask, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve an app of `create_app` until SIGTERM or SIGINT, then stop in order.

    Blocking: until a signal, and then for up to 30 s while turns end.

    Raises:
        ConfigurationError: Others could reach it without authentication.
        OSError: The address is taken.
        SystemExit: Code of an actor ignored that it was cancelled (status 1).
    """
    from ppio_agent.web.run import run

    # Many short turns beside ones that compute: the latter give way sooner.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    if not run(server_of(app, host=host, port=port)):
        raise SystemExit(1)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the sample agents; see `register_samples`.

    Args:
        argv: Arguments; None takes those of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ppio_agent.actors.http_api",
        description="Serve conversations with agents over HTTP.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    parser.add_argument(
        "--store",
        default=os.environ.get("PPIO_STATE_URL"),
        help="where conversations are kept: sqlite:///<path>, postgresql+psycopg://…,"
        " redis://… [PPIO_STATE_URL; default: in memory]",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        runtime = InProcessActorRuntime(options.store)
        register_samples(runtime)
        serve(create_app(runtime), host=options.host, port=options.port)
    except (PPIOAgentError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
