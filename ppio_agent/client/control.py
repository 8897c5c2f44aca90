"""The control plane's calls, one method each: values in, wire models out.

Nothing is decided here: who retries, who kills and what a state means is said by the
modules above.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from attrs import evolve, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    ConflictError,
    NotFoundError,
    ProtocolError,
    SessionNotFoundError,
    ValidationError,
    WireError,
)
from ppio_agent.transport import Request, Response, RetryPolicy, Transport
from ppio_agent.wire.headers import IDEMPOTENCY_KEY
from ppio_agent.wire.json import Json, encode_json
from ppio_agent.wire.model import structure
from ppio_agent.wire.models import ListedSandbox, NewSandbox, Sandbox, SandboxDetail

from .auth import Authenticator, attempt_auth
from .endpoint import Endpoint

__all__ = ["ControlPlane", "readable"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_JSON = {"Content-Type": "application/json"}


@frozen(kw_only=True)
class ControlPlane:
    """The control plane of one platform, for one key.

    Every method raises the typed errors of the transport, `ProtocolError` for an
    answer of the wrong shape, and is bounded by its deadline and by
    `request_timeout`, whichever is first.

    Thread safety: immutable.
    """

    transport: Transport
    endpoint: Endpoint
    auth: Authenticator
    request_timeout: float

    def list_templates(self, deadline: Deadline) -> list[Json]:
        """Return the records of all templates, unread.

        Raises:
            NotFoundError: It is no platform that answers.
        """
        try:
            response = self._call(
                "GET", "/templates?metadata=true", deadline=deadline, kind="template"
            )
        except NotFoundError as error:
            error.message += (
                f"; there is no platform at {self.endpoint.url}: base_url is the"
                " control plane of one, an agent app is called by any HTTP client"
            )
            error.args = (error.message,)
            raise
        found = response.json()
        if isinstance(found, Mapping):
            found = found.get("templates")
        if not isinstance(found, list):
            raise ProtocolError(
                "the platform's list of templates is neither an array nor an object"
                " with templates",
                request_id=response.request_id,
            )
        return found

    def create_sandbox(
        self,
        new: NewSandbox,
        *,
        idempotency_key: str,
        deadline: Deadline,
        retry: RetryPolicy | None = None,
    ) -> Sandbox:
        """Create a sandbox; the same key gives the same sandbox.

        Args:
            new: What is asked for.
            idempotency_key: Made for this sandbox.
            deadline: Bounds all of it.
            retry: None follows the transport's policy.
        """
        body = new.to_dict()
        if self.endpoint.composite and "allow_internet_access" in body:
            body["allowInternetAccess"] = body.pop("allow_internet_access")
        response = self._call(
            "POST",
            "/sandboxes",
            body=body,
            headers={IDEMPOTENCY_KEY: idempotency_key},
            deadline=deadline,
            retry=retry,
            kind="template",
            subject=new.template_id,
        )
        return _read(Sandbox, response)

    def find_sandboxes(
        self, metadata: Mapping[str, str], deadline: Deadline
    ) -> list[ListedSandbox]:
        """Return the live sandboxes that carry all of `metadata` and can be read."""
        # The platform decodes once as a parameter, once as a query string and once
        # more each key and value.
        pairs = {quote(key): quote(value) for key, value in metadata.items()}
        query = urlencode({"metadata": urlencode(pairs)}, quote_via=quote)
        response = self._call("GET", f"/v2/sandboxes?{query}", deadline=deadline)
        found = response.json()
        if not isinstance(found, list):
            raise ProtocolError(
                "the platform's list of sandboxes is no array",
                request_id=response.request_id,
            )
        return list(readable("sandbox", found, ListedSandbox.from_dict))

    def get_sandbox(self, ref: str, deadline: Deadline) -> SandboxDetail:
        """Return what the platform knows of a sandbox."""
        response = self._sandbox_call("GET", ref, "", deadline=deadline)
        return _read(SandboxDetail, response)

    def adopt_sandbox(self, ref: str, deadline: Deadline) -> Sandbox:
        """Return an existing sandbox as if it had just been created."""
        detail = self.get_sandbox(ref, deadline)
        return Sandbox(
            sandbox_id=detail.sandbox_id,
            template_id=detail.template_id,
            client_id=detail.client_id,
            envd_version=detail.envd_version,
            domain=detail.domain,
            alias=detail.alias,
            envd_access_token=detail.envd_access_token,
            traffic_access_token=detail.traffic_access_token,
            edge_url=detail.edge_url,
        )

    def kill_sandbox(self, ref: str, deadline: Deadline) -> None:
        """End a sandbox, with two tries at least; one that is gone is no error."""
        policy = self.transport.config.retry
        twice = evolve(policy, max_retries=max(1, policy.max_retries))
        try:
            self._sandbox_call("DELETE", ref, "", deadline=deadline, retry=twice)
        except SessionNotFoundError:
            return

    def pause_sandbox(self, ref: str, deadline: Deadline) -> None:
        """Freeze a sandbox; one that is frozen already is a `ConflictError`."""
        body = {"sync": False} if self.endpoint.composite else None
        self._sandbox_call("POST", ref, "/pause", body=body, deadline=deadline)

    def connect_sandbox(
        self, ref: str, timeout: float, *, auto_pause: bool, deadline: Deadline
    ) -> None:
        """Thaw a sandbox if it is frozen, and extend its time to live.

        Args:
            ref: The sandbox.
            timeout: Its time to live from now on, unless it is longer already.
            auto_pause: Whether it is paused when that is over, for platforms that want
                to be told again.
            deadline: Bounds the call.
        """
        asked: dict[str, Json] = {"timeout": math.ceil(timeout)}
        older = {**asked, "autoPause": auto_pause}
        body = older if self.endpoint.composite else asked
        try:
            self._sandbox_call("POST", ref, "/connect", body=body, deadline=deadline)
        except (NotFoundError, ValidationError) as error:
            if error.http_status not in {404, 405}:
                raise
            # Either the sandbox or the route is unknown; the older call tells which.
            self._resume_sandbox(ref, older, deadline)

    def _resume_sandbox(
        self, ref: str, body: Mapping[str, Json], deadline: Deadline
    ) -> None:
        try:
            self._sandbox_call("POST", ref, "/resume", body=body, deadline=deadline)
        except ConflictError:
            return  # it runs already

    def set_timeout(self, ref: str, timeout: float, deadline: Deadline) -> None:
        """Let a sandbox live for `timeout` seconds from now."""
        body = {"timeout": math.ceil(timeout)}
        self._sandbox_call("POST", ref, "/timeout", body=body, deadline=deadline)

    def _sandbox_call(
        self,
        method: str,
        ref: str,
        action: str,
        *,
        deadline: Deadline,
        body: Mapping[str, Json] | None = None,
        retry: RetryPolicy | None = None,
    ) -> Response:
        return self._call(
            method,
            f"/sandboxes/{quote(ref, safe='')}{action}",
            body=body,
            deadline=deadline,
            kind="sandbox",
            subject=ref,
            retry=retry,
        )

    def _call(
        self,
        method: str,
        path: str,
        *,
        deadline: Deadline,
        body: Mapping[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
        **about: Any,
    ) -> Response:
        request = Request(
            method=method,
            url=f"{self.endpoint.url}{path}",
            headers={**(headers or {}), **(_JSON if body is not None else {})},
            body=None if body is None else encode_json(body),
            deadline=deadline.earlier(self.request_timeout),
            auth=attempt_auth(self.auth),
            **about,
        )
        return self.transport.send(request)


def readable(
    what: str, records: Iterable[Json], read: Callable[[Json], _T]
) -> Iterator[_T]:
    """Yield what the records of a list say; one that cannot be read is only logged.

    Args:
        what: Is listed.
        records: The list.
        read: Reads one of them; raises `WireError` if it cannot be.
    """
    for index, record in enumerate(records):
        try:
            yield read(record)
        except WireError as error:
            _log.warning("%s %d of the list cannot be read: %s", what, index, error)


def _read(cls: type[_T], response: Response) -> _T:
    return _structured(cls, response.json(), response)


def _structured(cls: type[_T], data: Json, response: Response) -> _T:
    try:
        return structure(cls, data)
    except WireError as error:
        raise ProtocolError(
            f"the platform's answer cannot be read: {error}",
            request_id=response.request_id,
        ) from error
