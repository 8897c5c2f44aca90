"""Agents in a Django site: its one client, streams and errors as responses, a view.

Written for views that block, under any WSGI server. The setting ``PPIO_AGENT`` is a
dict of the settings of `ClientConfig`, ``api_key`` and ``api_secret``; what it leaves
out is read from the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ppio_agent.exceptions import PPIOAgentError

from .client import AgentRuntimeClient
from .sites.visitor import (
    SharedClient,
    SiteSettings,
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

try:
    from django.conf import settings  # type: ignore[import-untyped]  # has no types
    from django.core.signals import (  # type: ignore[import-untyped]  # has no types
        setting_changed,
    )
    from django.http import (  # type: ignore[import-untyped]  # has no types
        HttpRequest,
        HttpResponse,
        StreamingHttpResponse,
    )
except ImportError as error:
    raise ImportError(
        "ppio_agent.client.django needs Django: pip install django"
    ) from error

if TYPE_CHECKING:
    from .stream import StreamingResponse

__all__ = ["agent_view", "error_response", "get_client", "stream_response"]


def _settings() -> SiteSettings:
    return parse_settings(getattr(settings, "PPIO_AGENT", None))


_shared = SharedClient(_settings)


def _on_setting_changed(*, setting: str, **_: object) -> None:
    if setting == "PPIO_AGENT":
        _shared.close()


# So that `override_settings` of a test has an effect, and its client an end.
setting_changed.connect(_on_setting_changed)


def get_client() -> AgentRuntimeClient:
    """Return the client of this process; it is made on first use, closed at exit.

    Making it reaches nobody, so it may be called at start, in `wsgi.py`, for the
    sake of the errors below. A forked worker may go on with what its parent made.

    Raises:
        ConfigurationError: ``PPIO_AGENT``, or the environment, has a setting that is
            unknown or cannot be used.
        AuthenticationError: There is an address but no key.

    Thread safety: thread-safe.
    """
    return _shared.get()


def stream_response(
    stream: StreamingResponse,
    *,
    format: Literal["sse", "ndjson", "text"] = "sse",
    heartbeat: float | None = 5.0,
) -> StreamingHttpResponse:
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
    return StreamingHttpResponse(body, headers=stream_headers(form))


def error_response(error: BaseException) -> HttpResponse:
    """Return the problem that an error is to a visitor, as JSON.

    Of its status see the page on frameworks. The words of the platform and of the
    agent are not in it, whatever `error` is; log that for the site.
    """
    status, headers, body = problem(error)
    return HttpResponse(body, status=status, headers=headers)


def agent_view(
    template_id: str, *, session_id: Callable[[HttpRequest], str | None] | None = None
) -> Callable[[HttpRequest], HttpResponse]:
    """Return a view that asks an agent: POST of JSON or a form, JSON or a stream back.

    A visitor who accepts ``text/event-stream`` rather than JSON gets the stream,
    others ``{"result": …}``. The site's protection against forgery, its limits and
    its other middleware apply.

    Args:
        template_id: Id, alias or name of the agent's template.
        session_id: Gives the conversation of a visitor's request, or None for a
            sandbox that lives for this request only, which is the default. Take a
            random id that the visitor's session keeps, never the session's key: the
            agent reads it.

    Raises:
        ConfigurationError: ``PPIO_AGENT`` has a setting that cannot be used.
    """
    _settings()

    def view(request: HttpRequest, **_: Any) -> HttpResponse:
        try:
            check_method(request.method)
            asked = read_request(
                request.content_type,
                body=lambda: bytes(request.body),
                form=lambda: (dict(request.POST.lists()), request.FILES),
            )
            answer = ask(
                get_client(),
                template_id,
                asked,
                session_id=session_id(request) if session_id else None,
                accept=request.headers.get("Accept"),
            )
        except PPIOAgentError as error:
            log_failure(f"the agent {template_id} gave a visitor no answer", error)
            return error_response(error)
        if isinstance(answer, bytes):
            return HttpResponse(answer, content_type="application/json")
        return stream_response(answer)

    return view
