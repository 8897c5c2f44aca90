"""A FastAPI site whose visitors talk to an agent.

    pip install ppio-agent fastapi uvicorn
    ppio-agent up                     # in a terminal of its own: the local platform
    export PPIO_API_URL=… PPIO_API_KEY=…          # as it prints them
    ppio-agent deploy agent_runtime/sales_agent
    CHAT_AGENT=sales-agent uvicorn fastapi_app:app

    curl localhost:8000/chat -H 'Content-Type: application/json' \
        -d '{"message": "total revenue in 2025"}'
    curl -N localhost:8000/chat/stream -H 'Content-Type: application/json' \
        -d '{"message": "total revenue in 2025"}'
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from ppio_agent import PPIOAgentError, aio
from ppio_agent.client.web import error_event, problem, stream_format, stream_headers

AGENT = os.environ.get("CHAT_AGENT", "chat-agent")
SSE = stream_format("sse")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one client for the whole site, and close it with its sandboxes."""
    async with aio.AgentRuntimeClient() as client:
        app.state.agents = client
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    """What a visitor asks; questions of one conversation share a sandbox."""

    message: str = Field(min_length=1)
    conversation: str | None = None


@app.post("/chat")
async def chat(question: Question, request: Request) -> dict[str, object]:
    """Answer in one piece."""
    agents: aio.AgentRuntimeClient = request.app.state.agents
    answer = await agents.invoke_agent(
        AGENT, question.message, session_id=question.conversation
    )
    return {"response": answer.result}


@app.post("/chat/stream")
async def chat_stream(question: Question, request: Request) -> StreamingResponse:
    """Answer piece by piece; a visitor who leaves ends the agent's work."""
    agents: aio.AgentRuntimeClient = request.app.state.agents
    stream = await agents.invoke_agent_stream(
        AGENT, question.message, session_id=question.conversation
    )
    return StreamingResponse(_events(stream), headers=stream_headers(SSE))


async def _events(stream: aio.StreamingResponse) -> AsyncIterator[bytes]:
    yield SSE.opening
    try:
        async with stream:
            async for event in stream.events():
                yield SSE.chunk(event)
    except PPIOAgentError as error:
        yield error_event(error)
    else:
        yield SSE.end


@app.exception_handler(PPIOAgentError)
async def tell_visitor(_: Request, error: PPIOAgentError) -> Response:
    """Say what a visitor may know of an error, with the status that it means."""
    status, headers, body = problem(error)
    return Response(body, status, headers)
