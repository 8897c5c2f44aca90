"""Agents called by Celery tasks.

pip install ppio-agent 'celery[redis]'
export PPIO_API_KEY=…                             # and PPIO_API_URL, if it is local
celery -A celery_worker worker --concurrency 2    # with Redis on this machine

from celery_worker import ask, ask_many
ask.delay("total revenue in 2025").get()
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from celery import Celery, Task
from celery.signals import worker_process_shutdown

from ppio_agent import (
    AgentRuntimeClient,
    ClientConfig,
    RateLimitError,
    ServiceUnavailableError,
)
from ppio_agent.client import pool

AGENT = os.environ.get("CHAT_AGENT", "chat-agent")
REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

app = Celery("agents", broker=REDIS, backend=REDIS)
app.conf.task_track_started = True
app.conf.result_extended = True


@cache
def agents() -> AgentRuntimeClient:
    """Return the client of this process, made by its first task.

    After the fork, then; one that the parent had made would do as well, since a child
    begins without its connections and sessions. It does not wait out a rate limit
    itself: the queue does, and the process goes on with another task.
    """
    return AgentRuntimeClient(config=ClientConfig(max_retries=0))


@worker_process_shutdown.connect
def close_agents(**_: object) -> None:
    """End the sandboxes of this process with it."""
    if agents.cache_info().currsize:
        agents().close()


@app.task(bind=True, max_retries=10)
def ask(self: Task, question: str, conversation: str | None = None) -> Any:
    """Return an agent's answer; its result has to be JSON, as every task's has.

    A task that the queue gives out twice has one id, under which the agent of a
    conversation runs once.
    """
    try:
        answer = agents().invoke_agent(
            AGENT,
            question,
            session_id=conversation,
            idempotency_key=self.request.id,
        )
    except (RateLimitError, ServiceUnavailableError) as error:
        if not error.retryable:
            raise
        wait = error.retry_after or 0.5 * 2**self.request.retries
        raise self.retry(exc=error, countdown=wait) from error
    return answer.result


@app.task
def ask_many(questions: list[str]) -> list[dict[str, Any]]:
    """Return the answers to many questions, and the errors of those that failed."""
    with agents().invoke_many(
        AGENT, questions, sessions=pool(2), return_exceptions=True
    ) as batch:
        return [
            {"error": str(item.error)}
            if item.response is None
            else {"answer": item.response.result}
            for item in batch
        ]
