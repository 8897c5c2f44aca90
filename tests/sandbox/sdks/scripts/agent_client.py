"""What `AgentRuntimeClient` of `ppio-sandbox` 1.1.3 does, step by step.

One client is kept from call to call, so that a test can look at its sandboxes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ppio_sandbox.agent_runtime.client import AgentRuntimeClient

LOOP = asyncio.new_event_loop()
CLIENT = AgentRuntimeClient()


def list_templates() -> list[dict[str, Any]]:
    found = LOOP.run_until_complete(CLIENT.list_templates(with_metadata=True))
    return [
        {"id": one.template_id, "name": one.name, "metadata": one.metadata}
        for one in found
    ]


def invoke(
    agent: str,
    request: dict[str, Any],
    conversation: str | None = None,
    envs: dict[str, str] | None = None,
) -> dict[str, Any]:
    answer = LOOP.run_until_complete(
        CLIENT.invoke_agent_runtime(
            agentId=agent,
            payload=json.dumps(request).encode(),
            runtimeSessionId=conversation,
            timeout=120,
            envVars=envs,
        )
    )
    assert isinstance(answer, dict)
    return answer


def stream(agent: str, request: dict[str, Any], conversation: str) -> list[str]:
    async def story() -> list[str]:
        answer = await CLIENT.invoke_agent_runtime(
            agentId=agent,
            payload=json.dumps(request).encode(),
            runtimeSessionId=conversation,
        )
        return [piece["chunk"] async for piece in answer]

    return LOOP.run_until_complete(story())


def look(conversation: str) -> dict[str, str]:
    async def story() -> dict[str, str]:
        session = await CLIENT.get_session_by_runtime_id(conversation)
        ping = await session.ping()
        status = await session.get_status()
        return {
            "sandbox": session.sandbox_id,
            "ping": str(ping.status.value),
            "status": str(status.value),
        }

    return LOOP.run_until_complete(story())


def missing(agent: str) -> str:
    try:
        invoke(agent, {})
    except Exception as error:
        return type(error).__name__
    return ""


def close_session(conversation: str) -> None:
    LOOP.run_until_complete(CLIENT.close_session(conversation))


def close() -> None:
    LOOP.run_until_complete(CLIENT.close())
