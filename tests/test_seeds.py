"""The code of the documents the project was created from, minus async and await.

Each test is one block of them, with the import root renamed and nothing else changed
but what a document leaves out (a request, an agent to call). With `ppio_agent.aio` the
blocks that await run as they are: `TestAsTheyAre`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ppio_agent import (
    AgentRuntimeClient,
    AuthManager,
    NetworkError,
    PlatformConfig,
    SandboxPlatform,
    aio,
)
from tests.support import write_agent

ECHO = """
    from ppio_agent import PPIOAgentRuntimeApp

    app = PPIOAgentRuntimeApp()

    @app.entrypoint
    def agent(request):
        return "answer to " + str(request.get("prompt") or request.get("query"))

    if __name__ == "__main__":
        app.run()
"""
WRITER = """
    from ppio_agent import PPIOAgentRuntimeApp

    app = PPIOAgentRuntimeApp()

    @app.entrypoint
    def agent(request):
        yield from ("Once ", "upon ", "a time")

    if __name__ == "__main__":
        app.run()
"""
NAMES = (
    "your-agent-template-id", "template-id", "your-template-id", "chat-agent-v1",
    "data-processor", "batch-agent", "customer-service", "default-agent",
)  # fmt: skip


@pytest.fixture(scope="module")
def deployed(platform: SandboxPlatform, tmp_path_factory: Any) -> SandboxPlatform:
    """The platform, with every agent that the documents call."""
    folder = Path(tmp_path_factory.mktemp("seeds"))
    for name in NAMES:
        platform.deploy(write_agent(folder / name, ECHO, name=name, tags="[ai, chat]"))
    platform.deploy(write_agent(folder / "w", WRITER, name="writing-agent"))
    return platform


@pytest.fixture(autouse=True)
def environment(
    deployed: SandboxPlatform, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What the documents ask for: a key in the environment, and where to go."""
    monkeypatch.setenv("PPIO_API_KEY", deployed.api_key)
    monkeypatch.setenv("PPIO_API_URL", deployed.url)
    yield
    assert deployed.sandboxes.list_sandboxes() == []


def test_one_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Client, 1: a call is two lines."""
    with AgentRuntimeClient() as client:
        # Invoke Agent
        response = client.invoke_agent(
            template_id="your-agent-template-id",
            request="Hello, world!",
        )
        print(response.result)
    assert capsys.readouterr().out == "answer to Hello, world!\n"


def test_a_session() -> None:
    """Client, 2: a session is created, used and closed."""
    with AgentRuntimeClient() as client:
        # Create session
        session = client.create_session("template-id")

        # Multi-turn conversation
        response1 = session.invoke("First question")
        response2 = session.invoke("Follow-up question")

        # Close session
        session.close()
    assert str(response1) == "answer to First question"
    assert str(response2) == "answer to Follow-up question"


def test_authentication() -> None:
    """Client, 3: a key from the environment, or given."""
    from ppio_agent.client import AuthManager

    # Read from environment variable
    auth = AuthManager()
    assert auth.api_key

    # Or provide directly
    auth = AuthManager(api_key="your-api-key")
    assert auth.api_key == "your-api-key"


def test_templates() -> None:
    """Client, 4: templates are listed, filtered and looked up."""
    with AgentRuntimeClient() as client:
        # List all templates
        templates = client.list_templates()
        assert {*NAMES, "writing-agent"} <= {t.name for t in templates}

        # Filter by tags
        ai_templates = client.list_templates(tags=["ai", "chat"])
        assert set(NAMES) <= {t.name for t in ai_templates}
        assert "writing-agent" not in {t.name for t in ai_templates}

        # Get specific template
        template = client.get_template("template-id")
        assert template.name == "template-id"


def test_basic_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Client, basic usage: custom fields are kept, a text will do."""
    with AgentRuntimeClient() as client:
        # List available templates
        client.list_templates()

        # Create session
        session = client.create_session(template_id="your-template-id")

        # Invoke Agent with dict (preserves all custom fields)
        response = session.invoke(
            {
                "query": "Analyze this data",
                "max_tokens": 1000,
                "temperature": 0.7,
                "dataset": "sales_data.csv",
                "custom_param": "any value",  # Any custom fields are preserved
            }
        )

        # Or invoke with simple string
        response = session.invoke("Analyze this data")

        print(f"Result: {response}")
    assert capsys.readouterr().out == "Result: answer to Analyze this data\n"


def test_session_management(capsys: pytest.CaptureFixture[str]) -> None:
    """Client, session management: several turns, closed in any case."""
    with AgentRuntimeClient() as client:
        # Create long-term session
        session = client.create_session("chat-agent-v1")

        try:
            # Multi-turn conversation
            questions = ["Hello", "What can you do?", "Help me write code"]

            for question in questions:
                response = session.invoke(question)
                print(f"Q: {question}")
                print(f"A: {response['result']}")

        finally:
            session.close()
    assert "A: answer to What can you do?\n" in capsys.readouterr().out


def test_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    """Client, streaming response: the pieces as they come."""
    with AgentRuntimeClient() as client:
        # Streaming invocation
        stream = client.invoke_agent_stream(
            template_id="writing-agent",
            request="Write a science fiction story",
        )

        for chunk in stream:
            print(chunk, end="", flush=True)
    assert capsys.readouterr().out == "Once upon a time"


def test_lifecycle() -> None:
    """Client, lifecycle: pause, resume, go on."""
    with AgentRuntimeClient() as client:
        session = client.create_session("data-processor")

        # Process task
        session.invoke("Start processing data")

        # Pause to save resources
        session.pause()

        # Resume later
        session.resume()

        # Continue processing
        session.invoke("Continue processing")

        session.close()


def test_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    """Client and SDK, exception handling: the names, from both places."""
    from ppio_agent import (
        AuthenticationError,
        InvocationError,
        PPIOAgentRuntimeError,
        SessionNotFoundError,
        TemplateNotFoundError,
    )
    from ppio_agent.client import InvocationError as SameError
    from ppio_agent.client import SandboxCreationError

    assert SameError is InvocationError
    assert issubclass(SandboxCreationError, PPIOAgentRuntimeError)
    assert issubclass(SessionNotFoundError, PPIOAgentRuntimeError)
    with AgentRuntimeClient() as client:
        try:
            client.invoke_agent("no-such-template", "hello")
        except AuthenticationError:
            print("Authentication failed, please check API Key")
        except TemplateNotFoundError:
            print("Template does not exist")
        except InvocationError as e:
            print(f"Invocation failed: {e}")
    assert capsys.readouterr().out == "Template does not exist\n"


def test_connection_pool() -> None:
    """Client, connection pool: the settings have these names."""
    from ppio_agent.client import ClientConfig

    config = ClientConfig(
        max_connections=200,
        max_keepalive_connections=50,
        timeout=300,
    )

    client = AgentRuntimeClient(config=config)
    client.close()


def test_batch() -> None:
    """Client, batch processing: sessions side by side, in threads for coroutines."""

    def batch_process(requests: list[str]) -> list[Any]:
        with AgentRuntimeClient() as client, ThreadPoolExecutor() as pool:
            # Create sessions concurrently
            sessions = list(
                pool.map(
                    lambda _: client.create_session("batch-agent"),
                    range(len(requests)),
                )
            )

            try:
                # Concurrent invocation
                return list(
                    pool.map(
                        lambda pair: pair[0].invoke(pair[1]),
                        zip(sessions, requests, strict=True),
                    )
                )
            finally:
                # Concurrent close
                list(pool.map(lambda session: session.close(), sessions))

    results = batch_process(["a", "b", "c"])
    assert [str(r) for r in results] == ["answer to a", "answer to b", "answer to c"]


def test_error_retry() -> None:
    """Client, error retry: what the document does by hand still works."""

    def robust_call(template_id: str, request: str, max_retries: int = 3) -> Any:
        for attempt in range(max_retries):
            try:
                with AgentRuntimeClient() as client:
                    return client.invoke_agent(template_id, request)
            except NetworkError:
                if attempt < max_retries - 1:
                    continue
                raise
        return None

    assert robust_call("chat-agent-v1", "hi").result == "answer to hi"


def test_django() -> None:
    """Client, Django: a class-based view that blocks."""
    import django
    from django.conf import settings
    from django.http import JsonResponse
    from django.test import RequestFactory
    from django.views import View

    if not settings.configured:
        settings.configure(DEBUG=True)
        django.setup()

    class AgentView(View):
        def __init__(self) -> None:
            self.client = AgentRuntimeClient()

        def post(self, request: Any) -> Any:
            try:
                response = self.client.invoke_agent(
                    template_id="customer-service",
                    request=request.POST.get("query"),
                )
                return JsonResponse({"result": response.result})
            except Exception as e:
                return JsonResponse({"error": str(e)}, status=500)

    request = RequestFactory().post("/", {"query": "where is my order?"})
    view = AgentView.as_view()
    assert view(request).content == b'{"result": "answer to where is my order?"}'


def test_agent_development() -> None:
    """SDK, quick start: an async agent and its health check."""
    from ppio_agent import PPIOAgentRuntimeApp, RequestContext

    app = PPIOAgentRuntimeApp(debug=True)

    @app.entrypoint
    async def my_agent(request: dict, context: RequestContext) -> dict:
        query = request.get("query", "")

        # Your AI/ML logic here
        result = f"Processed: {query}"

        return {
            "response": result,
            "session_id": context.session_id,
            "timestamp": context.timestamp.isoformat(),
        }

    @app.ping
    def health_check() -> dict:
        return {"status": "healthy", "service": "My Agent"}

    with app.test_client() as client:
        answer = client.invoke({"query": "x", "session_id": "s-1"}).result
        assert (answer["response"], answer["session_id"]) == ("Processed: x", "s-1")
        assert client.get("/ping").json["service"] == "My Agent"


def test_agent_client() -> None:
    """SDK, agent client: a request object."""
    from ppio_agent import InvocationRequest

    with AgentRuntimeClient() as client:
        # Simple invocation
        response = client.invoke_agent(
            template_id="your-template-id",
            request=InvocationRequest(
                prompt="Hello, world!",
                data={"user_id": "123"},
            ),
        )
        assert f"Response: {response.result}" == "Response: answer to Hello, world!"


def test_streaming_agent() -> None:
    """SDK, streaming responses: an async generator is a stream."""
    import asyncio

    from ppio_agent import PPIOAgentRuntimeApp, RequestContext

    app = PPIOAgentRuntimeApp()

    @app.entrypoint
    async def streaming_agent(request: dict, context: RequestContext) -> Any:
        for i in range(10):
            await asyncio.sleep(0.01)
            yield f"Chunk {i + 1}"

    with app.test_client() as client:
        events = list(client.stream({}))
    chunks = [event.data for event in events if event.event == "message"]
    assert chunks == [f'"Chunk {i + 1}"' for i in range(10)]


def test_session_with_timeout() -> None:
    """SDK, session management: the life of a session is given in seconds."""
    with AgentRuntimeClient() as client:
        # Create and manage sessions manually
        session = client.create_session(
            template_id="your-template-id",
            timeout_seconds=600,
        )

        try:
            response = session.invoke({"prompt": "x"})
            assert response.result == "answer to x"
        finally:
            session.close()


def test_hmac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDK, custom authentication: with a secret the agent's requests are signed."""
    keys = {"your-access-key": "team"}
    config = PlatformConfig(data_dir=tmp_path / "platform", keys=keys)
    with SandboxPlatform(config) as platform:
        key_id = AuthManager("your-access-key", "your-secret-key").key_id
        checks = ECHO.replace("import PPIO", "import HmacAuth, PPIO").replace(
            "App()", f"App(auth=HmacAuth({{'{key_id}': 'your-secret-key'}}))"
        )
        platform.deploy(write_agent(tmp_path / "agent", checks, name="template-id"))
        monkeypatch.setenv("PPIO_API_URL", platform.url)

        # Using HMAC authentication
        client = AgentRuntimeClient(
            api_key="your-access-key",
            api_secret="your-secret-key",
        )
        with client:
            answer = client.invoke_agent("template-id", "hi").result
        assert answer == "answer to hi"


def test_bearer_token() -> None:
    """SDK, custom authentication: a bearer token is an API key."""
    # Using Bearer token
    client = AgentRuntimeClient(api_key="your-bearer-token")
    client.close()


def test_middleware() -> None:
    """SDK, middleware: it may refuse before the agent runs."""
    from ppio_agent import (
        InvocationRequest,
        PPIOAgentRuntimeApp,
        RequestContext,
        ValidationError,
    )

    app = PPIOAgentRuntimeApp()

    @app.entrypoint
    def agent(request: dict) -> str:
        return "reached"

    @app.middleware
    async def auth_middleware(
        context: RequestContext, request: InvocationRequest
    ) -> None:
        # Custom authentication/validation logic
        if not request.metadata.get("user_id"):
            raise ValidationError("User ID required")

    with app.test_client() as client:
        assert client.invoke({"prompt": "x"}).status_code == 400
        admitted = client.invoke({"prompt": "x", "metadata": {"user_id": "1"}})
        assert admitted.result == "reached"


def test_agent_configuration() -> None:
    """SDK, agent configuration: the settings have these names."""
    from ppio_agent import AgentConfig, PPIOAgentRuntimeApp

    config = AgentConfig(
        host="0.0.0.0",
        port=8080,
        timeout=300,
        max_request_size=1024 * 1024,  # 1MB
        cors_origins=["*"],
        debug=False,
        log_level="INFO",
    )

    app = PPIOAgentRuntimeApp(config=config)
    app.close()


def test_client_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDK, client configuration: the settings have these names."""
    from ppio_agent import ClientConfig

    config = ClientConfig(
        base_url="https://api.ppio.com",
        timeout=300,
        max_retries=3,
        enable_cache=True,
        cache_ttl=300,
    )

    client = AgentRuntimeClient(
        api_key="your-key",
        config=config,
    )
    client.close()


class TestAsTheyAre:
    """The client's blocks, word for word, with the client of `ppio_agent.aio`."""

    @pytest.fixture(autouse=True)
    def _names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(globals(), "AgentRuntimeClient", aio.AgentRuntimeClient)

    def test_streaming(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Client, streaming response."""

        async def streaming_example():
            async with AgentRuntimeClient() as client:
                # Streaming invocation
                stream = await client.invoke_agent_stream(
                    template_id="writing-agent",
                    request="Write a science fiction story",
                )

                async for chunk in stream:
                    print(chunk, end="", flush=True)

        asyncio.run(streaming_example())
        assert capsys.readouterr().out == "Once upon a time"

    def test_batch(self) -> None:
        """Client, batch processing."""

        async def batch_process(requests):
            async with AgentRuntimeClient() as client:
                # Create sessions concurrently
                sessions = await asyncio.gather(*[
                    client.create_session("batch-agent")
                    for _ in range(len(requests))
                ])  # fmt: skip

                try:
                    # Concurrent invocation
                    results = await asyncio.gather(*[
                        session.invoke(req)
                        for session, req in zip(sessions, requests)  # noqa: B905 - as there
                    ])  # fmt: skip
                    return results  # noqa: RET504 - as there
                finally:
                    # Concurrent close
                    await asyncio.gather(*[
                        session.close() for session in sessions
                    ])  # fmt: skip

        results = asyncio.run(batch_process(["a", "b", "c"]))
        assert [str(r) for r in results] == [f"answer to {r}" for r in "abc"]

    def test_error_retry(self) -> None:
        """Client, error retry."""

        async def robust_call(template_id, request, max_retries=3):  # noqa: RET503 - as there
            for attempt in range(max_retries):
                try:
                    async with AgentRuntimeClient() as client:
                        return await client.invoke_agent(template_id, request)
                except NetworkError:
                    if attempt < max_retries - 1:
                        await asyncio.sleep(2**attempt)  # Exponential backoff
                        continue
                    raise

        assert str(asyncio.run(robust_call("chat-agent-v1", "hi"))) == "answer to hi"

    def test_django(self) -> None:
        """Client, Django integration: an asynchronous view."""
        import django
        from django.conf import settings
        from django.http import JsonResponse
        from django.test import RequestFactory
        from django.views import View

        if not settings.configured:
            settings.configure(DEBUG=True)
            django.setup()

        class AgentView(View):
            def __init__(self):
                self.client = AgentRuntimeClient()

            async def post(self, request):
                try:
                    response = await self.client.invoke_agent(
                        template_id="customer-service",
                        request=request.POST.get("query"),
                    )
                    return JsonResponse({"result": response.result})
                except Exception as e:
                    return JsonResponse({"error": str(e)}, status=500)

        request = RequestFactory().post("/", {"query": "where is my order?"})
        answer = asyncio.run(AgentView.as_view()(request))
        assert answer.content == b'{"result": "answer to where is my order?"}'

    def test_fastapi(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Client, FastAPI integration: the app answers over ASGI."""
        from fastapi import FastAPI, HTTPException
        from pydantic import BaseModel

        app = FastAPI()
        client = AgentRuntimeClient()

        class ChatRequest(BaseModel):
            message: str
            template_id: str = "default-agent"

        # What the annotation names is looked up in the module.
        monkeypatch.setitem(globals(), "ChatRequest", ChatRequest)

        @app.post("/chat")
        async def chat(request: ChatRequest):
            try:
                response = await client.invoke_agent(
                    template_id=request.template_id,
                    request=request.message,
                )
                return {"response": response.result}  # noqa: TRY300 - as there
            except Exception as e:
                raise HTTPException(status_code=500, detail=str(e))  # noqa: B904 - as there

        async def story() -> list[Any]:
            bodies = {"message": "hi"}, {"message": "hi", "template_id": "none"}
            answers = [await _asgi_post(app, "/chat", body) for body in bodies]
            await client.close()
            return answers

        good, bad = asyncio.run(story())
        assert good == (200, {"response": "answer to hi"})
        assert bad[0] == 500
        assert "no template 'none'" in bad[1]["detail"]


async def _asgi_post(app: Any, path: str, body: object) -> tuple[int, Any]:
    """Ask an ASGI app as a server does; return status and JSON."""
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "query_string": b"", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await app(scope, receive, send)
    return said[0]["status"], json.loads(b"".join(m["body"] for m in said[1:]))
