"""Agents in a Flask site: its one client, streams and errors as responses, a view.

Written for views that block, under any WSGI server. The config key ``PPIO_AGENT`` is a
dict of the settings of `ClientConfig`, ``api_key`` and ``api_secret``; what it leaves
out is read from the environment.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from flask import Flask, Request, Response, current_app, request
from werkzeug.local import LocalProxy

from ppio_agent.exceptions import ConfigurationError, PPIOAgentError

from .client import AgentRuntimeClient
from .sites.visitor import (
    SharedClient,
    VisitorStream,
    ask,
    log_failure,
    parse_settings,
)
from .sites.web import (
    check_method,
    problem,
    read_request,
    stream_format,
    stream_headers,
)

if TYPE_CHECKING:
    from .stream import StreamingResponse

__all__ = [
    "PPIOAgents",
    "agent_view",
    "current_client",
    "error_response",
    "stream_response",
]

_EXTENSION = "ppio_agent"
_numbers = itertools.count(1)


class PPIOAgents:
    """The Flask extension: gives each app one client a process.

    The client is made on first use, begins anew in a forked worker and is closed at
    exit.

    Args:
        app: The app; None if `init_app` follows.

    Raises:
        ConfigurationError: As `init_app`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give an app its client.

        Raises:
            ConfigurationError: ``PPIO_AGENT``, or the environment, has a setting that
                is unknown or cannot be used.
        """
        settings = parse_settings(app.config.get("PPIO_AGENT"))
        app.extensions[_EXTENSION] = SharedClient(lambda: settings)


def _current() -> AgentRuntimeClient:
    shared: SharedClient | None = current_app.extensions.get(_EXTENSION)
    if shared is None:
        raise ConfigurationError(
            f"the app {current_app.name} has no client; call PPIOAgents(app) first"
        )
    return shared.get()


current_client: AgentRuntimeClient = LocalProxy(_current)  # type: ignore[assignment]  # stands for it
"""The client of the current app; made when it is first used."""


def stream_response(
    stream: StreamingResponse,
    *,
    format: Literal["sse", "ndjson", "text"] = "sse",
    heartbeat: float | None = 5.0,
) -> Response:
    """Return an agent's stream as the response of a view.

    Sent to the end, an event stream has a last event ``end`` or, if the agent failed,
    ``error``. A visitor who leaves ends the agent's run, and the stream with its
    sandbox; that is noticed when something is written, so at the next but one chunk
    or heartbeat.

    Args:
        stream: What `invoke_agent_stream` gave. The response closes it.
        format: ``sse``: an event a chunk. ``ndjson``: a line of JSON a chunk, empty
            lines at first and in silence. ``text``: what the chunks say, nothing in
            silence, so that the head comes with the first chunk; after an error the
            response is cut off.
        heartbeat: Seconds of silence after which something is written all the same;
            None: never.

    Raises:
        ConfigurationError: There is no such format.
        ValidationError: `heartbeat` is no number of seconds.
    """
    form = stream_format(format)
    body = VisitorStream(stream, form, heartbeat=heartbeat)
    return Response(body, headers=stream_headers(form))


def error_response(error: BaseException) -> Response:
    """Return the problem that an error is to a visitor, as JSON.

    Of its status see the page on frameworks. The words of the platform and of the
    agent are not in it, whatever `error` is; log that for the site.
    """
    status, headers, body = problem(error)
    return Response(body, status=status, headers=headers)


def agent_view(
    template_id: str, *, session_id: Callable[[Request], str | None] | None = None
) -> Callable[..., Response]:
    """Return a view that asks an agent: POST of JSON or a form, JSON or a stream back.

    A visitor who accepts ``text/event-stream`` rather than JSON gets the stream,
    others ``{"result": …}``. The app's limits of sizes apply:

        app.add_url_rule("/ask", view_func=agent_view("my-agent"))

    Give the rule an `endpoint` if you need its name.

    Args:
        template_id: Id, alias or name of the agent's template.
        session_id: Gives the conversation of a visitor's request, or None for a
            sandbox that lives for this request only, which is the default. Take a
            random id that the visitor's session keeps.
    """

    def view(**_: Any) -> Response:
        try:
            check_method(request.method)
            asked = read_request(
                request.mimetype,
                body=request.get_data,
                form=lambda: (dict(request.form.lists()), request.files),
            )
            answer = ask(
                current_client,
                template_id,
                asked,
                session_id=session_id(request) if session_id else None,
                accept=request.headers.get("Accept"),
            )
        except PPIOAgentError as error:
            log_failure(f"the agent {template_id} gave a visitor no answer", error)
            return error_response(error)
        if isinstance(answer, bytes):
            return Response(answer, content_type="application/json")
        return stream_response(answer)

    # Flask names a route by its view, and takes the methods from it. Two views of one
    # agent may differ in their conversations.
    word = re.sub(r"\W", "_", template_id)
    view.__name__ = f"ask_{word}_{next(_numbers)}"
    view.methods = ["POST"]  # type: ignore[attr-defined]  # Flask looks for it there
    return view
