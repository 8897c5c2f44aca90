"""Routes of sandboxes."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import attrs
from attrs import frozen
from flask import Blueprint, Response, request

from ppio_agent.exceptions import ValidationError
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.options import not_supported, parse_create
from ppio_agent.sandbox.life.values import Asked, Identity
from ppio_agent.wire.headers import (
    IDEMPOTENCY_KEY,
    IDEMPOTENCY_REPLAYED,
    sandbox_key,
    valid_idempotency_key,
)
from ppio_agent.wire.model import CamelModel

from .kit import Control, answer, body_as, decoded, positive, raw_body, tenant
from .listing import page, whole_number
from .metadata_filter import matches, parse_filter

__all__ = ["sandbox_routes"]

_STATES: Final = ("running", "paused")


@frozen(kw_only=True)
class _Pause(CamelModel):
    sync: bool | None = None
    memory: bool | None = None


@frozen(kw_only=True)
class _Resume(CamelModel):
    timeout: int | None = None
    auto_pause: bool | None = None


@frozen(kw_only=True)
class _Timeout(CamelModel):
    timeout: int


@frozen(kw_only=True)
class _Refresh(CamelModel):
    duration: int | None = None


def sandbox_routes(control: Control) -> Blueprint:
    """Return the routes of sandboxes."""
    routes = Blueprint("sandboxes", __name__)
    handlers = _SandboxRoutes(control)
    for rule, method, handler in (
        ("/sandboxes", "POST", handlers.create),
        ("/v2/sandboxes", "POST", handlers.create),
        ("/sandboxes", "GET", handlers.list_running),
        ("/v2/sandboxes", "GET", handlers.list_page),
        ("/sandboxes/<sandbox_id>", "GET", handlers.get),
        ("/sandboxes/<sandbox_id>", "DELETE", handlers.delete),
        ("/sandboxes/<sandbox_id>/pause", "POST", handlers.pause),
        ("/sandboxes/<sandbox_id>/connect", "POST", handlers.connect),
        ("/v2/sandboxes/<sandbox_id>/connect", "POST", handlers.connect),
        ("/sandboxes/<sandbox_id>/resume", "POST", handlers.resume),
        ("/sandboxes/<sandbox_id>/timeout", "POST", handlers.set_timeout),
        ("/sandboxes/<sandbox_id>/refreshes", "POST", handlers.refresh),
    ):
        name = f"{handler.__name__}_{rule.count('v2')}"
        routes.add_url_rule(rule, name, handler, methods=[method])
    return routes


class _SandboxRoutes:
    """One method a route; each reads the request and returns the answer."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def _sandbox(self, sandbox_id: str) -> LiveSandbox:
        key = sandbox_key(sandbox_id)
        return self._control.sandboxes.get(key, tenant=tenant())

    def create(self) -> Response:
        control, owner, body = self._control, tenant(), raw_body()
        options = parse_create(
            decoded(body),
            default_timeout=control.config.default_timeout,
            max_timeout=control.config.max_timeout,
        )

        def make(asked: Asked | None = None) -> Identity:
            create = control.sandboxes.create
            made = create(options, tenant=owner, asked=asked).identity
            # Its environment is large, and a secret.
            return attrs.evolve(made, options=attrs.evolve(options, env={}))

        key = request.headers.get(IDEMPOTENCY_KEY)
        if key is None:
            return answer(control.viewer.created(make()), 201)
        if not valid_idempotency_key(key):
            raise ValidationError(
                f"{IDEMPOTENCY_KEY}: expected 1 to 255 visible ASCII characters"
            )
        asked = Asked(key=key, digest=sha256(body).hexdigest())
        made, replayed = control.creates.run(
            (owner, key), asked.digest, lambda: make(asked)
        )
        headers = {IDEMPOTENCY_REPLAYED: "true"} if replayed else None
        return answer(control.viewer.created(made), 201, headers)

    def list_running(self) -> Response:
        wanted = parse_filter(request.args.get("metadata"))
        found = [
            sandbox
            for sandbox in self._control.sandboxes.list_sandboxes(tenant=tenant())
            if _word(sandbox) == "running"
            and matches(wanted, sandbox.identity.options.metadata)
        ]
        found.sort(key=_place, reverse=True)
        return answer([self._control.viewer.listed(sandbox) for sandbox in found])

    def list_page(self) -> Response:
        args = request.args
        wanted = parse_filter(args.get("metadata"))
        states = [w for w in args.get("state", "").split(",") if w] or _STATES
        order = args.get("order", "desc")
        if order not in ("asc", "desc") or not set(states) <= set(_STATES):
            raise ValidationError(
                "query: expected order asc or desc, and state running or paused"
            )
        limit = whole_number(args.get("limit"), "limit", default=100, low=1, high=100)
        template = args.get("template")
        fitting = [
            sandbox
            for sandbox in self._control.sandboxes.list_sandboxes(tenant=tenant())
            if matches(wanted, sandbox.identity.options.metadata)
            and template in (None, sandbox.identity.build.template_id, _alias(sandbox))
        ]
        shown, token = page(
            [sandbox for sandbox in fitting if _word(sandbox) in states],
            key=_place,
            limit=limit,
            token=args.get("nextToken"),
            newest_first=order == "desc",
        )
        running = sum(_word(sandbox) == "running" for sandbox in fitting)
        headers = {"x-total-running": str(running)}
        if token is not None:
            headers["x-next-token"] = token
        listed = [self._control.viewer.listed(sandbox) for sandbox in shown]
        return answer(listed, headers=headers)

    def get(self, sandbox_id: str) -> Response:
        return answer(self._control.viewer.detail(self._sandbox(sandbox_id)))

    def delete(self, sandbox_id: str) -> Response:
        self._control.sandboxes.kill(sandbox_key(sandbox_id), tenant=tenant())
        return answer(status=204)

    def pause(self, sandbox_id: str) -> Response:
        if body_as(_Pause).memory is False:
            raise not_supported("pause with memory=false")
        self._sandbox(sandbox_id).pause()
        return answer(status=204)

    def connect(self, sandbox_id: str) -> Response:
        asked = body_as(_Resume)
        sandbox = self._sandbox(sandbox_id)
        was_paused = sandbox.connect(self._seconds(asked), pauses=asked.auto_pause)
        status = 201 if was_paused else 200
        return answer(self._control.viewer.created(sandbox.identity), status)

    def resume(self, sandbox_id: str) -> Response:
        asked = body_as(_Resume)
        sandbox = self._sandbox(sandbox_id)
        sandbox.resume(self._seconds(asked), pauses=asked.auto_pause)
        return answer(self._control.viewer.created(sandbox.identity), 201)

    def _seconds(self, asked: _Resume) -> int:
        config = self._control.config
        return positive(
            asked.timeout,
            default=config.default_timeout,
            most=config.max_timeout,
            path="$.timeout",
        )

    def set_timeout(self, sandbox_id: str) -> Response:
        seconds = body_as(_Timeout).timeout
        most = self._control.config.max_timeout
        if not 0 <= seconds <= most:
            raise ValidationError(f"$.timeout: expected from 0 to {most} seconds")
        self._sandbox(sandbox_id).set_timeout(seconds)
        return answer(status=204)

    def refresh(self, sandbox_id: str) -> Response:
        seconds = positive(
            body_as(_Refresh).duration,
            default=60,
            most=self._control.config.max_timeout,
            path="$.duration",
        )
        self._sandbox(sandbox_id).extend(seconds)
        return answer(status=204)


def _word(sandbox: LiveSandbox) -> str:
    return sandbox.life.state.wire


def _alias(sandbox: LiveSandbox) -> str:
    return sandbox.identity.alias


def _place(sandbox: LiveSandbox) -> tuple[int, str]:
    """Return where a sandbox is in lists: by its start, in milliseconds, then its id."""
    return int(sandbox.life.started_at.timestamp() * 1000), sandbox.id
