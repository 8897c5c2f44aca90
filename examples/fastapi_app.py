"""A FastAPI site whose visitors talk to an agent.

    pip install ppio-agent fastapi uvicorn itsdangerous
    ppio-agent up                     # in a terminal of its own: the local platform
    export PPIO_API_URL=… PPIO_API_KEY=…          # as it prints them
    ppio-agent deploy agent_runtime/sales_agent
    export SITE_SECRET_KEY=…          # random, the same in all processes of the site
    CHAT_AGENT=sales-agent uvicorn fastapi_app:app

    curl -b jar -c jar localhost:8000/chat -H 'Content-Type: application/json' \
        -d '{"message": "total revenue in 2025"}'
    curl -b jar -c jar -N localhost:8000/chat/stream \
        -H 'Content-Type: application/json' -d '{"message": "and in 2024?"}'
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

from ppio_agent import PPIOAgentError, aio
from ppio_agent.client.sites import error_event, problem, stream_format, stream_headers

AGENT = os.environ.get("CHAT_AGENT", "chat-agent")
SSE = stream_format("sse")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one client for the whole site, and close it with its sandboxes."""
    async with aio.AgentRuntimeClient() as client:
        app.state.agents = client
        yield


app = FastAPI(lifespan=lifespan)
# A signed cookie that no script reads; behind HTTPS add https_only=True.
app.add_middleware(SessionMiddleware, secret_key=os.environ["SITE_SECRET_KEY"])


class Question(BaseModel):
    """What a visitor asks."""

    message: str = Field(min_length=1)


def conversation(request: Request) -> str:
    """Return the id of the visitor's conversation, which has a sandbox of its own.

    A visitor must not choose it: whoever knows it reads the conversation.
    """
    found: str = request.session.setdefault("conversation", uuid.uuid4().hex)
    return found


@app.post("/chat")
async def chat(question: Question, request: Request) -> dict[str, object]:
    """Answer in one piece."""
    agents: aio.AgentRuntimeClient = request.app.state.agents
    answer = await agents.invoke_agent(
        AGENT, question.message, session_id=conversation(request)
    )
    return {"response": answer.result}


@app.post("/chat/stream")
async def chat_stream(question: Question, request: Request) -> StreamingResponse:
    """Answer piece by piece; a visitor who leaves ends the agent's work."""
    agents: aio.AgentRuntimeClient = request.app.state.agents
    stream = await agents.invoke_agent_stream(
        AGENT, question.message, session_id=conversation(request)
    )
    return StreamingResponse(_events(stream), headers=stream_headers(SSE))


async def _events(stream: aio.StreamingResponse) -> AsyncIterator[bytes]:
    try:
        yield SSE.opening
        async for event in stream.events():
            yield SSE.chunk(event)
        yield SSE.end
    except PPIOAgentError as error:
        yield error_event(error)
    except (asyncio.CancelledError, GeneratorExit):  # the visitor left
        with suppress(PPIOAgentError):
            await stream.cancel()
        raise


@app.exception_handler(PPIOAgentError)
async def tell_visitor(_: Request, error: PPIOAgentError) -> Response:
    """Say what a visitor may know of an error, with the status that it means."""
    status, headers, body = problem(error)
    return Response(body, status, headers)
