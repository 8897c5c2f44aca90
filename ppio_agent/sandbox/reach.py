"""How the edge reaches what lies behind it: the control plane and live sandboxes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import AuthenticationError, NotFoundError, SandboxStateError
from ppio_agent.sandbox.backends.base import AGENT_PORT, ENVD_PORT
from ppio_agent.sandbox.edge.addressing import SandboxPort, Target
from ppio_agent.sandbox.edge.upstreams import Admission, EdgeRefusal
from ppio_agent.sandbox.supervisor.envd.signatures import is_signed
from ppio_agent.wire.headers import RETRY_AFTER
from ppio_agent.wire.json import Json

from .keys import KeyRing, same_secret
from .life.live import LiveSandbox
from .life.machine import State
from .life.sandboxes import Sandboxes
from .life.turns import TURN_TIMEOUT

__all__ = ["Reach"]

_LOOK_EVERY: Final = 0.25
_DIAL_TIMEOUT: Final = 1.0
# A connection that finds the queue of an agent full is tried again by the kernel after
# 1 s, then after 2 s more.
_PATIENT_DIAL_TIMEOUT: Final = 5.0
_TRAFFIC_TOKENS: Final = ("e2b-traffic-access-token", "ppio-traffic-access-token")

# Gives a request's header by its name in lower case.
_Header = Callable[[str], "str | None"]


class Reach:
    """The platform as the edge's `Upstreams`.

    Args:
        sandboxes: The live sandboxes.
        keys: Tells credentials of the platform from others.
        control_socket: Where the control plane listens.

    Thread safety: thread-safe.
    """

    def __init__(
        self, sandboxes: Sandboxes, keys: KeyRing, control_socket: Path
    ) -> None:
        self._sandboxes = sandboxes
        self._keys = keys
        self._control_socket = str(control_socket)

    @contextmanager
    def admit(self, target: Target, header: _Header, asked: str) -> Iterator[Admission]:
        """Let a request go to `target`; see `Upstreams.admit`."""
        if not isinstance(target, SandboxPort):
            self._check_key(header)
            yield Admission()
            return
        sandbox = self._find(target)
        _check_traffic(sandbox, target, header)
        state = sandbox.life.state
        wakes = _may_wake(sandbox, target, header, asked)
        if state is State.PAUSED and not wakes and not sandbox.changing:
            raise _gone(target)
        reuse = state is State.RUNNING and not sandbox.changing
        sandbox.traffic_began()
        try:
            yield Admission(reuse=reuse, wakes=wakes)
        finally:
            sandbox.traffic_ended()

    def connect(
        self,
        target: Target,
        *,
        wakes: bool,
        still_wanted: Callable[[], bool] | None,
    ) -> socket.socket | None:
        """Return a new connection to `target`; see `Upstreams.connect`."""
        if not isinstance(target, SandboxPort):
            return self._connect_control()
        sandbox = self._find(target)
        coming = self._is_coming(sandbox, target)
        if still_wanted is None:
            return None if coming else self._dial(sandbox, target, _DIAL_TIMEOUT)
        if coming:
            if not self._settled(sandbox, target, still_wanted):
                return None
            self._wake(sandbox, target, wakes=wakes)
            if not self._there(sandbox, target, still_wanted):
                return None
        sock = self._dial(sandbox, target, _PATIENT_DIAL_TIMEOUT)
        if sock is None:
            raise _busy(target)
        return sock

    def strip(self, name: str, value: str) -> bool:
        """Say whether a header is a platform credential; see `Upstreams.strip`."""
        return name in _TRAFFIC_TOKENS or self._keys.is_credential(name, value)

    def is_short_key(self, text: str) -> bool:
        """Say whether a text is the short form of a key; see `Upstreams`."""
        return self._keys.tenant_of_short(text) is not None

    def sandbox_of(self, access_token: str) -> str | None:
        """Return the sandbox an envd token is of; see `Upstreams.sandbox_of`."""
        return self._sandboxes.owner_of(access_token)

    def _check_key(self, header: _Header) -> None:
        """Refuse a body of someone unknown, for which nobody should wait.

        All other requests are for the control plane to judge.
        """
        if not (header("transfer-encoding") or int(header("content-length") or 0)):
            return
        try:
            self._keys.tenant_of(header("x-api-key"), header("authorization"))
        except AuthenticationError as error:
            raise EdgeRefusal.of(401, error.message) from None

    def _find(self, target: SandboxPort) -> LiveSandbox:
        sandbox = self._sandboxes.find(target.sandbox_id)
        if sandbox is None:
            raise _gone(target)
        return sandbox

    def _is_coming(self, sandbox: LiveSandbox, target: SandboxPort) -> bool:
        """Whether the target is not there yet, but will be."""
        if sandbox.changing or sandbox.life.state is not State.RUNNING:
            return True
        return target.port == AGENT_PORT and sandbox.agent.phase == "starting"

    def _settled(
        self,
        sandbox: LiveSandbox,
        target: SandboxPort,
        still_wanted: Callable[[], bool],
    ) -> bool:
        """Wait until the sandbox changes no more; False: no longer wanted."""

        def settled() -> bool:
            return sandbox.doomed or not sandbox.changing

        turn = Deadline.after(TURN_TIMEOUT)
        while not sandbox.wait_for(settled, _LOOK_EVERY):
            if turn.expired:
                raise _changing(target)
            if not still_wanted():
                return False
        return True

    def _there(
        self,
        sandbox: LiveSandbox,
        target: SandboxPort,
        still_wanted: Callable[[], bool],
    ) -> bool:
        """Wait until the target is there, or cannot be; False: no longer wanted."""

        def there() -> bool:
            paused = sandbox.life.state is State.PAUSED
            return sandbox.doomed or paused or not self._is_coming(sandbox, target)

        agent = Deadline.after(float(sandbox.identity.build.start_timeout))
        while not sandbox.wait_for(there, _LOOK_EVERY) and not agent.expired:
            if not still_wanted():
                return False
        if sandbox.life.state is State.PAUSED:
            raise _gone(target)
        return True  # or its time is over: the dial tells how it is

    def _wake(self, sandbox: LiveSandbox, target: SandboxPort, *, wakes: bool) -> None:
        if sandbox.life.state is not State.PAUSED:
            return
        if not wakes:
            raise _gone(target)
        try:
            sandbox.wake()
        except NotFoundError:
            raise _gone(target) from None
        except SandboxStateError:
            raise _changing(target) from None

    def _connect_control(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_DIAL_TIMEOUT)
        try:
            sock.connect(self._control_socket)
        except OSError:
            sock.close()
            raise EdgeRefusal.stopping() from None
        sock.settimeout(None)
        return sock

    def _dial(
        self, sandbox: LiveSandbox, target: SandboxPort, timeout: float
    ) -> socket.socket | None:
        """Connect to the target; None: it listens, and takes nobody in time."""
        try:
            return sandbox.processes().dial(target.port, timeout)
        except NotFoundError:
            raise _gone(target) from None
        except OSError as error:
            if sandbox.doomed:
                raise _gone(target) from None
            if isinstance(error, TimeoutError):
                return None
            raise _closed_port(sandbox, target) from None


def _check_traffic(sandbox: LiveSandbox, target: SandboxPort, header: _Header) -> None:
    """Refuse a request without the traffic token, where one is needed."""
    token = sandbox.identity.traffic_token
    if token is None or target.port == ENVD_PORT:
        return
    given = [value for name in _TRAFFIC_TOKENS if (value := header(name)) is not None]
    if not any(same_secret(value, token) for value in given):
        # Clients tell the two cases by these very words.
        fault = "is invalid" if given else "is missing"
        message = (
            "Sandbox is secured with traffic access token."
            f" Token header '{_TRAFFIC_TOKENS[0]}' {fault}"
        )
        raise _refusal(403, target, message)


def _may_wake(
    sandbox: LiveSandbox, target: SandboxPort, header: _Header, asked: str
) -> bool:
    """Whether a request that may pass may wake the sandbox, too.

    Envd checks its callers itself, so what it will refuse is let pass: not that.
    """
    if not sandbox.identity.options.auto_resume:
        return False
    token = sandbox.identity.access_token
    if target.port != ENVD_PORT or token is None:
        return True
    if same_secret(header("x-access-token") or "", token):
        return True
    method, _, location = asked.partition(" ")
    path, _, query = location.partition("?")
    return is_signed(method, path, query, token=token, now=time.time())


def _gone(target: SandboxPort) -> EdgeRefusal:
    return _refusal(502, target, "The sandbox was not found")


def _changing(target: SandboxPort) -> EdgeRefusal:
    return _refusal(409, target, "the sandbox is changing state")


def _busy(target: SandboxPort) -> EdgeRefusal:
    message = "The sandbox is running but the port takes no connection: try again"
    refusal = _refusal(503, target, message, port=target.port)
    refusal.headers[RETRY_AFTER] = "1"
    return refusal


def _closed_port(sandbox: LiveSandbox, target: SandboxPort) -> EdgeRefusal:
    facts: dict[str, Json] = {"port": target.port}
    agent = sandbox.agent
    if target.port == AGENT_PORT and agent.phase == "exited":
        # No output of the agent: the edge is public.
        facts |= {"exitCode": agent.exit_code, "signal": agent.signal}
    message = "The sandbox is running but port is not open"
    return _refusal(502, target, message, **facts)


def _refusal(
    status: int, target: SandboxPort, message: str, **facts: Json
) -> EdgeRefusal:
    body = {"sandboxId": target.sandbox_id, "message": message, **facts}
    return EdgeRefusal(status, {**body, "code": status})
