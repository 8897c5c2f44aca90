"""The same route on FastAPI and uvicorn, with the same work for each request.

It keeps each conversation in a dictionary, checks the body's shape and answers in the
same form; it has no actors, no ids that are looked up later and no retries.
"""

from __future__ import annotations

import uuid

import uvicorn
from fastapi import FastAPI
from handlers import asked
from pydantic import BaseModel

port, _, _ = asked()
app = FastAPI()
conversations: dict[str, list[dict[str, str]]] = {}


class Message(BaseModel):
    role: str
    content: str
    message_id: str | None = None


class Run(BaseModel):
    messages: list[Message]
    conversation_id: str | None = None
    agent_name: str | None = None


class Answer(BaseModel):
    messages: list[Message]
    status: str
    conversation_id: str


@app.post("/agents/{agent_name}/run")
async def run(agent_name: str, body: Run) -> Answer:
    conversation_id = body.conversation_id or f"http-{agent_name}"
    thread = conversations.setdefault(conversation_id, [])
    asked_for = [{"role": m.role, "content": m.content} for m in body.messages]
    said = {
        "role": "assistant",
        "content": f"Echo: {asked_for[-1]['content']}",
        "message_id": uuid.uuid4().hex,
    }
    thread += [*asked_for, said]
    return Answer(
        messages=[Message(**said)],
        status="completed",
        conversation_id=conversation_id,
    )


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
