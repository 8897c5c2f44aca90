"""The session of `ppio-sandbox`, without its control plane, which is elsewhere."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator
from typing import Any

from ppio_sandbox.agent_runtime.client import AuthManager
from ppio_sandbox.agent_runtime.client.session import SandboxSession
from shapes import PROMPT, Tasks


class Client(Tasks):
    def __init__(self, url: str) -> None:
        super().__init__()
        owner = types.SimpleNamespace(auth_manager=AuthManager(api_key="sk-bench"))
        sandbox = types.SimpleNamespace(id="sb1", sandbox_id="sb1")
        self._session = SandboxSession("bench", sandbox, owner)
        self._session._host_url = url

    async def acall(self, request: dict[str, Any]) -> None:
        answer = await self._session.invoke({"prompt": PROMPT, **request})
        assert answer["result"]["prompt"] == PROMPT

    async def astream(self, request: dict[str, Any]) -> AsyncIterator[str]:
        async for piece in await self._session.invoke(request):
            yield piece
