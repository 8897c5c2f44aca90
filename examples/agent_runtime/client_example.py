"""Calling an agent from ordinary blocking code.

Set PPIO_API_KEY to call an agent in the PPIO cloud. Without it the local platform is
started inside this process, and the sales agent beside this file is deployed to it:

    python client_example.py
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from ppio_agent import (
    AgentRuntimeClient,
    InvocationError,
    InvocationRequest,
    PlatformConfig,
    SandboxPlatform,
    TemplateNotFoundError,
)

HERE = Path(__file__).parent


def one_shot(client: AgentRuntimeClient, template: str) -> None:
    """One question, one sandbox, gone when the answer is here."""
    response = client.invoke_agent(template, "total revenue in 2025")
    print(f"one shot: {response['result']['answer']}")


def conversation(client: AgentRuntimeClient, template: str) -> None:
    """Several turns with one sandbox, which remembers."""
    with client.create_session(template, timeout_seconds=600) as session:
        for question in ("best sellers in the north", "and in the south?"):
            response = session.invoke(InvocationRequest(prompt=question))
            print(f"{question} {response.result['answer']}")


def streaming(client: AgentRuntimeClient, template: str) -> None:
    """The pieces of an answer, as they come."""
    with client.invoke_agent_stream(template, "write the report") as stream:
        for chunk in stream:
            print(f"  {chunk}", flush=True)


def errors(client: AgentRuntimeClient, template: str) -> None:
    """Every failure is a typed error."""
    try:
        client.invoke_agent("no-such-template", "hello")
    except TemplateNotFoundError as error:
        print(f"template: {error}")
    try:
        client.invoke_agent(template, "total in 1999")
    except InvocationError as error:
        print(f"agent: {error}")


def main() -> None:
    """Run all of it, in the cloud or on this machine."""
    if os.environ.get("PPIO_API_KEY"):
        run(AgentRuntimeClient(), sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        config = PlatformConfig(data_dir=Path(folder, "platform"))
        # A copy, since deploying writes into the manifest where it went.
        agent = shutil.copytree(HERE / "sales_agent", Path(folder, "sales_agent"))
        with SandboxPlatform(config) as platform:
            template = platform.deploy(agent).template_id
            run(AgentRuntimeClient(platform.api_key, base_url=platform.url), template)


def run(client: AgentRuntimeClient, template: str) -> None:
    """Call the agent in each of the four ways."""
    with client:
        one_shot(client, template)
        conversation(client, template)
        streaming(client, template)
        errors(client, template)


if __name__ == "__main__":
    main()
