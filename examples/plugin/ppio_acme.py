"""What every program of ACME does when it calls agents, without a line in any of them.

Once this package is installed, a client

- shows short-lived tokens of ACME's identity service in the place of an API key,
- says for which team it calls,
- counts what its calls cost: `ppio_acme.plugin.usage.report()`.

    pip install .
    ACME_TOKEN_URL=https://id.acme.example/token ACME_TEAM=search python program.py
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping

from ppio_agent.client import ClientConfig
from ppio_agent.hooks import RequestEvent, RetryEvent, StreamEvent, hookimpl
from ppio_agent.transport import RawStream, Request, Response

__all__ = ["AcmePlugin", "Tokens", "Usage", "plugin"]

Answer = Response | RawStream


class Tokens:
    """Gets tokens from the identity service and keeps each until shortly before its end.

    Thread safety: thread-safe, as every plug-in has to be.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        # Held while a token is fetched: whoever comes meanwhile wants that one.
        self._lock = threading.Lock()
        self._token = ""
        self._good_until = 0.0

    def headers(self, request: Request, *, refresh: bool = False) -> Mapping[str, str]:
        """Return the headers of one attempt; `refresh` says that the last were refused."""
        if request.kind not in {"template", "sandbox"}:
            return {}  # an agent is somebody else's code: it need not see the token
        with self._lock:
            if refresh or time.monotonic() >= self._good_until:
                self._fetch()
            return {"Authorization": f"Bearer {self._token}"}

    def _fetch(self) -> None:
        with urllib.request.urlopen(self._url, timeout=5.0) as answer:
            found = json.load(answer)
        self._token = found["token"]
        self._good_until = time.monotonic() + 0.9 * found["expires_in"]


class Usage:
    """Adds up what calls cost.

    Thread safety: thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    def count(self, what: str) -> None:
        """Add one."""
        with self._lock:
            self._counts[what] += 1

    def took(self, kind: str, seconds: float) -> None:
        """Add the time of a call."""
        with self._lock:
            self._counts[f"calls.{kind}"] += 1
            self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds

    def report(self) -> dict[str, object]:
        """Return the counts by name, and the seconds by kind of call."""
        with self._lock:
            return {**self._counts, "seconds": dict(self._seconds)}


class AcmePlugin:
    """The plug-in: one object, one method for each hook it takes part in."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self.usage = Usage()

    @hookimpl
    def ppio_client_auth(self, config: ClientConfig) -> Tokens | None:
        """Use tokens, where there is an identity service; else the API key."""
        del config
        url = self._environ.get("ACME_TOKEN_URL")
        return Tokens(url) if url else None

    @hookimpl
    def ppio_client_headers(self) -> Mapping[str, str] | None:
        """Say for whom it is."""
        team = self._environ.get("ACME_TEAM")
        return {"X-Acme-Team": team} if team else None

    @hookimpl
    def ppio_client_middleware(
        self, call_next: Callable[[Request], Answer], request: Request
    ) -> Answer:
        """Time the call, all its attempts inside; that of a stream up to its head."""
        began = time.monotonic()
        try:
            return call_next(request)
        except Exception:
            self.usage.count(f"failures.{request.kind}")
            raise
        finally:
            self.usage.took(request.kind, time.monotonic() - began)

    @hookimpl
    def ppio_client_request(self, record: RequestEvent) -> None:
        """Count the attempts that calls took."""
        self.usage.count(f"attempts.{record.kind}")

    @hookimpl
    def ppio_client_retry(self, record: RetryEvent) -> None:
        """Count what had to be tried again, by its reason."""
        self.usage.count(f"retries.{record.status or record.error}")

    @hookimpl
    def ppio_client_stream_event(self, record: StreamEvent) -> None:
        """Count what agents streamed."""
        self.usage.count(f"events.{record.name}")


plugin = AcmePlugin()
