"""What the tests of authentication share: an agent that tells its caller, signatures."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

from ppio_agent.serving import PPIOAgentRuntimeApp
from ppio_agent.serving.testing import AgentTestClient
from ppio_agent.wire.signing import sign
from tests.serving.support import make_app

KEY = "sk-0123456789abcdef"
SECRET = "sk_test_secret"


def app_with(auth: Any, **options: Any) -> PPIOAgentRuntimeApp:
    """Return an app whose agent answers who has called it, and with which headers."""
    app = make_app(auth=auth, **options)

    @app.entrypoint
    def agent(request: Any, context: Any) -> Any:
        return [context.principal.id, context.principal.scheme, dict(context.headers)]

    return app


def client_of(auth: Any, **options: Any) -> AgentTestClient:
    """Return a test client of such an app."""
    return app_with(auth, **options).test_client()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def signed(
    method: str, target: str, body: bytes = b"", **changes: Any
) -> dict[str, str]:
    """Return the headers of a request that is signed now, with a new nonce."""
    values = {
        "key_id": "test",
        "secret": SECRET,
        "now": time.time(),
        "nonce": secrets.token_urlsafe(16),
        **changes,
    }
    return sign(method, target, hashlib.sha256(body).hexdigest(), **values)
