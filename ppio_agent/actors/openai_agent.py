"""An agent that asks a model of OpenAI, of Azure, or of a server that speaks alike.

Needs the extra `openai`, which is imported when the first question is asked. Keys are
in no repr, log or error: what the provider says of a failure is not told on, as it may
quote them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from ppio_agent._util.fork import renew_in_child
from ppio_agent.agent import RequestContext
from ppio_agent.exceptions import ConfigurationError, InvocationError
from ppio_agent.hooks import Hooks

from .messages import Message

__all__ = ["PROVIDERS_VARIABLE", "OpenAIAgent", "agents_from_env"]

_log = logging.getLogger(__name__)

PROVIDERS_VARIABLE = "PPIO_MODEL_PROVIDERS"

_LONGEST = 60.0  # seconds without a sign of life from the provider
_OPENAI_URL = "https://api.openai.com/v1"
_AZURE_VERSION = "2024-10-21"
_SENT = ("role", "content", "name", "tool_calls", "tool_call_id")


class OpenAIAgent:
    """Asks a model for the next message of a conversation, and streams its text.

    Args:
        client: An `openai.OpenAI` or `openai.AzureOpenAI`, or a function that makes
            one when it is first needed.
        model: The model, or the deployment.
        instructions: What the model is told in front of every conversation, or None.

    Thread safety: thread-safe.
    """

    def __init__(
        self, client: Any, model: str, *, instructions: str | None = None
    ) -> None:
        self._model = model
        self._instructions = instructions
        self._make: Callable[[], Any] | None = client if callable(client) else None
        self._client: Any = None if callable(client) else client
        self._renew()
        renew_in_child(self, OpenAIAgent._renew)

    def _renew(self) -> None:
        # Guards _client, whose connections a forked child must not share.
        self._lock = threading.Lock()
        if self._make is not None:
            self._client = None

    def __repr__(self) -> str:
        return f"OpenAIAgent(model={self._model!r})"

    def run(self, request: dict[str, Any], context: RequestContext) -> Iterator[str]:
        """Yield the answer's text as it comes.

        A cancel hangs up. Before the provider has begun to answer it is heard once it
        has, or after a minute of silence, or at the deadline. Nothing is tried twice.

        Raises:
            InvocationError: The model cannot be asked, or gives no answer: code
                `model_rate_limited`, `model_timeout`, `model_unreachable`,
                `model_failed` (these are retryable) or `model_refused`.
            ConfigurationError: The extra `openai` is not installed.
        """
        client = self._connected()
        with self._errors(context):
            stream = client.with_options(**_limits(context)).chat.completions.create(
                model=self._model, messages=self._messages(request), stream=True
            )
        forget = context.on_cancel(partial(_hang_up, stream))
        try:
            yield from self._texts(stream, context)
        finally:
            forget()
            stream.close()

    def _texts(self, stream: Any, context: RequestContext) -> Iterator[str]:
        pieces, said, finish = iter(stream), False, None
        while True:
            with self._errors(context):
                piece = next(pieces, None)
            if piece is None:
                break
            context.check()
            for choice in piece.choices[:1]:  # Azure's first piece has none
                finish = choice.finish_reason or finish
                text = choice.delta.content
                if text:
                    said = True
                    yield text
        if finish is None:
            raise self._failed("model_failed", "its answer was cut", retryable=True)
        if not said:
            raise self._failed("model_refused", f"it said nothing ({finish})")

    def _messages(self, request: dict[str, Any]) -> list[Message]:
        messages = [
            {key: message[key] for key in _SENT if key in message}
            for message in request["messages"]
        ]
        if self._instructions is not None:
            messages.insert(0, {"role": "system", "content": self._instructions})
        return messages

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None and self._make is not None:
                self._client = self._make()
            return self._client

    def close(self) -> None:
        """Close the connections of a client that it made; the next question opens new."""
        if self._make is None:
            return
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def _errors(self, context: RequestContext) -> Iterator[None]:
        """Turn what the library raises, or lets through of its own, into our errors."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - its versions differ in what they raise
            context.check()  # it was hung up on, or its time is over
            raise self._translated(error) from None  # its text may quote the key

    def _translated(self, error: Exception) -> InvocationError:
        import openai

        status = getattr(error, "status_code", None)
        if status is not None:
            said = f"the provider answered {status}"
            if status == 429:
                return self._failed("model_rate_limited", said, retryable=True)
            if status >= 500:
                return self._failed("model_failed", said, retryable=True)
            return self._failed("model_refused", f"{said}: check key and model")
        if isinstance(error, openai.APITimeoutError):
            said = "the provider did not answer in time"
            return self._failed("model_timeout", said, retryable=True)
        if isinstance(error, openai.APIConnectionError):
            said = "the provider cannot be reached"
            return self._failed("model_unreachable", said, retryable=True)
        return self._failed("model_failed", type(error).__name__, retryable=True)

    def _failed(
        self, code: str, why: str, *, retryable: bool = False
    ) -> InvocationError:
        return InvocationError(
            f"the model {self._model} gave no answer: {why}",
            code=code,
            http_status=503 if retryable else 502,
            retryable=retryable,
        )


def agents_from_env(
    environ: Mapping[str, str] | None = None, *, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Return the agents that ask models, by name, as the environment names them.

    `azure` needs AZURE_OPENAI_API_KEY, AZURE_OPENAI_CHAT_DEPLOYMENT_NAME and one of
    AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_BASE_URL; AZURE_OPENAI_API_VERSION may say
    another version. `openai` needs OPENAI_API_KEY and OPENAI_MODEL; OPENAI_BASE_URL may
    name another server. Empty counts as unset. Plug-ins are asked for these two and for
    each name in PPIO_MODEL_PROVIDERS, separated by commas, first.

    Without the extra `openai` one line is logged, and the two are left out.

    Args:
        environ: The environment; None: the process's.
        hooks: The plug-ins; None: none.

    Raises:
        ConfigurationError: A name in PPIO_MODEL_PROVIDERS is not known.
    """
    environ = os.environ if environ is None else environ
    named = [n.strip() for n in environ.get(PROVIDERS_VARIABLE, "").split(",")]
    built_in = {"azure": _azure(environ), "openai": _openai(environ)}
    found: dict[str, Any] = {}
    for name in dict.fromkeys([*built_in, *filter(None, named)]):
        agent = None if hooks is None else hooks.model_provider(name)
        if agent is not None:
            found[name] = agent
        elif name not in built_in:
            raise ConfigurationError(
                f"no plug-in knows the model provider {name!r}, which the variable"
                f" {PROVIDERS_VARIABLE} names"
            )
    ours = {
        name: agent
        for name, agent in built_in.items()
        if agent is not None and name not in found
    }
    if ours and importlib.util.find_spec("openai") is None:
        _log.warning(
            "no agent %s without the extra openai: pip install 'ppio-agent[openai]'",
            " and ".join(ours),
        )
        return found
    return {**found, **ours}


def _azure(environ: Mapping[str, str]) -> OpenAIAgent | None:
    key = environ.get("AZURE_OPENAI_API_KEY")
    deployment = environ.get("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME")
    endpoint = environ.get("AZURE_OPENAI_ENDPOINT")
    base_url = environ.get("AZURE_OPENAI_BASE_URL")
    if not (key and deployment and (endpoint or base_url)):
        return None
    where = {"azure_endpoint": endpoint} if endpoint else {"base_url": base_url}
    version = environ.get("AZURE_OPENAI_API_VERSION") or _AZURE_VERSION

    def client() -> Any:  # no partial, whose repr has its arguments
        kind = _library().AzureOpenAI
        return kind(api_key=key, api_version=version, **where)

    return OpenAIAgent(client, deployment)


def _openai(environ: Mapping[str, str]) -> OpenAIAgent | None:
    key, model = environ.get("OPENAI_API_KEY"), environ.get("OPENAI_MODEL")
    if not (key and model):
        return None
    url = environ.get("OPENAI_BASE_URL") or _OPENAI_URL
    return OpenAIAgent(lambda: _library().OpenAI(api_key=key, base_url=url), model)


def _library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ConfigurationError(
            "agents that ask OpenAI or Azure need the extra openai:"
            " pip install 'ppio-agent[openai]'"
        ) from error
    return openai


def _limits(context: RequestContext) -> dict[str, Any]:
    left = context.time_left()
    # No second try: it would take its time once more, and hear of no cancel.
    timeout = _LONGEST if left is None else min(left, _LONGEST)
    return {"timeout": timeout, "max_retries": 0}


def _hang_up(stream: Any) -> None:
    """End a stream that another thread reads; that one closes it."""
    network = stream.response.extensions.get("network_stream")
    connection = None if network is None else network.get_extra_info("socket")
    if connection is not None:
        # To close a socket does not wake its reader. Past TLS, whose state is not ours.
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
