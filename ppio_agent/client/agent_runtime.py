"""`invoke_agent_runtime`: the call of an agent as Amazon's AgentCore runtime spells it.

There an agent is named by an ARN or id, and a `qualifier` picks one of its endpoints: a
version, or the name of one that points to a version; `DEFAULT` is the newest. Here the
endpoint is the version of a template, as in ``name:version``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import ValidationError, WireError
from ppio_agent.wire.json import Json, decode_json

from .config import UNSET
from .conversation import check_session_id
from .invocation import AgentRequest
from .runner import Runner
from .session import SandboxSession
from .stream import StreamingResponse

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RuntimeStream", "invoke_agent_runtime", "read_payload"]

_DEFAULT_ENDPOINT = "DEFAULT"


class RuntimeStream(Closing):
    """The answer of a streaming agent, piece by piece.

    Each piece is ``{"chunk": str, "runtimeSessionId": str, "agentId": str}``; the chunk
    is the text of the agent's event as it came. The ids are known at once, by
    subscript, as in an answer that is no stream: ``stream["runtimeSessionId"]``.

    Thread safety: one thread reads; `close` may come from any other.
    """

    def __init__(
        self, stream: StreamingResponse, *, session_id: str, agent_id: str
    ) -> None:
        self._stream = stream
        self._events = stream.events()
        self._ids = {"runtimeSessionId": session_id, "agentId": agent_id}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, str]:
        return {"chunk": next(self._events).data, **self._ids}

    def __getitem__(self, key: str) -> Self | str:
        if key == "response":
            return self
        return "streaming" if key == "status" else self._ids[key]

    def close(self) -> None:
        """Read no more and let go of the connection; the session stays. Idempotent."""
        self._stream.close()


def read_payload(payload: object) -> AgentRequest:
    """Return the request that a payload stands for.

    A JSON object is sent as it is, a JSON string is the prompt, and so is all other
    text.

    Raises:
        ValidationError: It is no text, not UTF-8, a JSON array, or looks like a JSON
            object and is none.
    """
    if isinstance(payload, str):
        text = payload
    elif isinstance(payload, (bytes, bytearray, memoryview)):
        try:
            text = bytes(payload).decode()
        except UnicodeDecodeError as error:
            raise ValidationError(
                f"the payload is not UTF-8, at byte {error.start}"
            ) from error
    else:
        raise ValidationError(
            "a payload has to be bytes or str, such as json.dumps(request), not"
            f" {type(payload).__name__}"
        )
    try:
        value = decode_json(text.encode())
    except (WireError, UnicodeEncodeError) as error:
        if text.strip().startswith("{") and text.strip().endswith("}"):
            raise ValidationError(f"the payload is no JSON object: {error}") from error
        return text
    if isinstance(value, list):
        raise ValidationError("the payload is a JSON array; send an object or a text")
    return value if isinstance(value, (dict, str)) else text


def invoke_agent_runtime(
    run: Runner,
    agent_id: str,
    payload: bytes | str,
    *,
    session_id: str | None,
    timeout: float | None,
    endpoint: str | None,
) -> dict[str, Json] | RuntimeStream:
    """Run an agent once; see `AgentRuntimeClient.invoke_agent_runtime`."""
    request = read_payload(payload)
    session_id = new_id() if session_id is None else session_id
    check_session_id(session_id)
    limit = Deadline.after(run.total(UNSET if timeout is None else timeout))
    call = run.call(request, limit)
    default = endpoint is None or endpoint == _DEFAULT_ENDPOINT
    template = agent_id if default else f"{agent_id}:{endpoint}"
    answer = run.converse(template, session_id, call, {}, SandboxSession.open_either)
    if isinstance(answer, StreamingResponse):
        return RuntimeStream(answer, session_id=session_id, agent_id=agent_id)
    return {
        "response": dict(answer),
        "runtimeSessionId": session_id,
        "status": answer.status,
        "agentId": agent_id,
    }
