"""The shapes that travel between client, platform and agent.

Of an answer only what its reader uses is required: a server that knows more, or says
less, is no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ppio_agent.exceptions import WireError

from .headers import valid_entrypoint
from .json import Json, decode_json, encode_json
from .model import CamelModel, OpenEnum, WireModel, structure, visible

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AgentMetadata",
    "AgentTemplate",
    "InvocationRequest",
    "InvocationResponse",
    "ListedSandbox",
    "NewSandbox",
    "PingResponse",
    "PingStatus",
    "Principal",
    "Sandbox",
    "SandboxDetail",
    "SandboxMetric",
    "SandboxState",
    "Template",
]


@frozen
class Principal:
    """Who sent a request, as an authentication plug-in found out.

    Attributes:
        id: Name of the key or account; no secret.
        scheme: How it was proved, such as `api-key` or `hmac`.
        scopes: What it may do; empty where the scheme knows no scopes.
    """

    id: str
    scheme: str = ""
    scopes: frozenset[str] = frozenset()


class PingStatus(OpenEnum):
    """What an agent says of itself."""

    HEALTHY = "Healthy"
    HEALTHY_BUSY = "HealthyBusy"
    UNHEALTHY = "Unhealthy"


class SandboxState(OpenEnum):
    """States of a sandbox as the control plane shows them."""

    RUNNING = "running"
    PAUSED = "paused"


@frozen(kw_only=True)
class PingResponse(WireModel):
    """Answer of ``GET /ping``.

    Attributes:
        status: `Healthy`, `HealthyBusy`, `Unhealthy`, or another word of the agent's.
        message: For a person.
        timestamp: When the agent answered.
        time_of_last_update: Unix seconds of the last change of status.
    """

    status: PingStatus
    message: str | None = None
    timestamp: Json = None
    time_of_last_update: float | None = None


@frozen(kw_only=True)
class InvocationRequest(WireModel):
    """What an agent is asked; every member is optional and free ones are kept.

    Attributes:
        prompt: The question, as text.
        data: Structured input.
        sandbox_id: The sandbox the caller believes to talk to.
        session_id: The conversation.
        timeout: Seconds the run may take; it can only lower the server's limit.
        stream: Whether the caller would like a stream.
        metadata: For middleware and the agent.
    """

    prompt: str | None = None
    data: Mapping[str, Json] | None = None
    sandbox_id: str | None = None
    session_id: str | None = None
    timeout: float | None = None
    stream: bool | None = None
    metadata: Mapping[str, Json] = field(factory=dict)

    def _dump(self, *, with_hidden: bool) -> dict[str, Json]:
        found = super()._dump(with_hidden=with_hidden)
        if not self.metadata:
            found.pop("metadata", None)
        return found


@frozen(kw_only=True)
class InvocationResponse(WireModel, Mapping[str, Any]):
    """An agent's answer, also a read-only mapping of the envelope's members.

    ``response.result`` and ``response["result"]`` are the same, members that the shape
    does not name are found as ``response["name"]``, ``str(response)`` is the result.

    Attributes:
        result: What the agent returned; of a stream all its pieces.
        status: `success` or `error`.
        duration: Seconds the run took, as the server says.
        metadata: What the server says of the run.
        error: Text of the failure, or None.
        request_id: Id of the HTTP request.
        invocation_id: Id of the run.
        session_id: The conversation.
        sandbox_id: The sandbox that answered.
        replayed: Whether the answer is a stored one of an earlier attempt.
        chunks: The pieces, if the agent streamed.
    """

    result: Json = None
    status: str = "success"
    duration: float | None = None
    metadata: Mapping[str, Json] = field(factory=dict)
    error: str | None = None
    request_id: str | None = field(default=None, metadata={"local": True})
    invocation_id: str | None = field(default=None, metadata={"local": True})
    session_id: str | None = field(default=None, metadata={"local": True})
    sandbox_id: str | None = field(default=None, metadata={"local": True})
    replayed: bool = field(default=False, metadata={"local": True})
    chunks: tuple[Json, ...] | None = field(default=None, metadata={"local": True})

    def _members(self) -> dict[str, Json]:
        known = ("result", "status", "duration", "metadata", "error")
        return {**{name: getattr(self, name) for name in known}, **self.extra}

    def __getitem__(self, key: str) -> Json:
        return self._members()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members())

    def __len__(self) -> int:
        return len(self._members())

    def __str__(self) -> str:
        if isinstance(self.result, str):
            return self.result
        return encode_json(self.result).decode()


@frozen(kw_only=True)
class NewSandbox(CamelModel):
    """Body of ``POST /sandboxes``, in the modern spelling."""

    template_id: str = field(metadata={"wire": "templateID"})
    timeout: int | None = None
    metadata: Mapping[str, str] | None = None
    env_vars: Mapping[str, str] | None = field(default=None, repr=False)
    allow_internet_access: bool | None = field(
        default=None, metadata={"wire": "allow_internet_access"}
    )
    secure: bool | None = None
    auto_pause: bool | None = None


@frozen(kw_only=True)
class Sandbox(CamelModel):
    """Answer of create, connect and resume."""

    sandbox_id: str = field(validator=visible)
    template_id: str
    client_id: str = field(default="", validator=visible)
    envd_version: str = "0.5.7"
    domain: str | None = None
    alias: str | None = None
    envd_access_token: str | None = field(default=None, repr=False)
    traffic_access_token: str | None = field(default=None, repr=False)
    edge_url: str | None = None


@frozen(kw_only=True)
class ListedSandbox(CamelModel):
    """One sandbox in a list."""

    sandbox_id: str = field(validator=visible)
    template_id: str
    client_id: str = field(default="", validator=visible)
    envd_version: str = "0.5.7"
    state: SandboxState
    started_at: datetime
    end_at: datetime
    metadata: Mapping[str, Json] | None = None
    alias: str | None = None
    cpu_count: int | None = None
    memory_mb: int | None = None
    disk_size_mb: int | None = None


@frozen(kw_only=True)
class SandboxDetail(ListedSandbox):
    """One sandbox, asked for by its id."""

    domain: str | None = None
    envd_access_token: str | None = field(default=None, repr=False)
    traffic_access_token: str | None = field(default=None, repr=False)
    edge_url: str | None = None
    allow_internet_access: bool | None = None
    network: Json = None
    lifecycle: Json = None
    agent: Mapping[str, Json] | None = None


@frozen(kw_only=True)
class SandboxMetric(CamelModel):
    """What a sandbox used at one instant.

    Attributes:
        cpu_used_pct: In percent; 100 is all of `cpu_count`.
        mem_total: Bytes, as all below.
    """

    timestamp: datetime
    timestamp_unix: int
    cpu_count: int
    cpu_used_pct: float
    mem_total: int
    mem_used: int
    mem_cache: int = 0
    disk_total: int
    disk_used: int


@frozen(kw_only=True)
class Template(CamelModel):
    """A template as the control plane shows it."""

    template_id: str
    aliases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    version: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Json] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    created_by: Json = None
    build_id: str | None = None
    build_count: int | None = None
    build_status: str | None = None
    cpu_count: int | None = None
    memory_mb: int | None = None
    disk_size_mb: int | None = None
    envd_version: str | None = None
    public: bool | None = None
    spawn_count: int | None = None
    last_spawned_at: datetime | None = None

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return the template; some servers call its id `id`."""
        if isinstance(data, dict) and "templateID" not in data and "id" in data:
            data = {**data, "templateID": data["id"]}
        return structure(cls, data)


@frozen(kw_only=True)
class AgentMetadata:
    """What a template says of the agent in it.

    Attributes:
        name: Name of the agent.
        version: Its version.
        entrypoint: Script that serves it, relative to its folder; None: no script.
        start_timeout: Seconds it may take to become ready, or None.
        env_vars: Variables it asks to be started with.
        author: Who made it.
        description: What it does.
        tags: Words to find it by.
    """

    name: str = ""
    version: str = ""
    entrypoint: str | None = None
    start_timeout: float | None = None
    env_vars: Mapping[str, str] = field(factory=dict, repr=False)
    author: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, document: object) -> AgentMetadata:
        """Return what an agent document says: a JSON text, or the object itself.

        Raises:
            WireError: It is neither, or a member has the wrong type.
        """
        if isinstance(document, str):
            document = decode_json(document.encode("utf-8", "replace"))
        read = structure(_AgentDocument, document)
        about, spec = read.metadata, read.spec
        if spec.entrypoint is not None and not valid_entrypoint(spec.entrypoint):
            raise WireError(
                "$.spec.entrypoint", "expected a relative path to a .py file"
            )
        return cls(
            name=about.name,
            version=about.version,
            author=about.author,
            description=about.description,
            tags=about.tags,
            entrypoint=spec.entrypoint,
            start_timeout=spec.runtime.timeout,
            env_vars=spec.env_vars,
        )


@frozen(kw_only=True)
class _About(WireModel):
    name: str = ""
    version: str = ""
    author: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()


@frozen(kw_only=True)
class _Runtime(WireModel):
    timeout: float | None = None


@frozen(kw_only=True)
class _Spec(CamelModel):
    entrypoint: str | None = None
    env_vars: Mapping[str, str] = field(factory=dict)
    runtime: _Runtime = field(factory=_Runtime)


@frozen(kw_only=True)
class _AgentDocument(WireModel):
    metadata: _About = field(factory=_About)
    spec: _Spec = field(factory=_Spec)


@frozen(kw_only=True)
class AgentTemplate:
    """A template, as a caller of agents sees it.

    Attributes:
        template_id: Id by which sandboxes are made from it.
        name: Its name: that of the agent, else its first alias or name.
        version: Version of the agent.
        description: What it does.
        author: Who made it.
        tags: Words to find it by.
        aliases: Other names that it is found by.
        created_at: When it was first deployed.
        updated_at: When it was last deployed.
        status: State of its build, such as `ready`.
        metadata: All that the server keeps with it.
        agent: What it says of its agent; None without one, or if it is unreadable.
    """

    template_id: str
    name: str
    version: str = ""
    description: str = ""
    author: str = ""
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    status: str = ""
    metadata: Mapping[str, Json] = field(factory=dict)
    agent: AgentMetadata | None = None

    @classmethod
    def from_template(cls, template: Template) -> AgentTemplate:
        """Return the caller's view of a record of the control plane."""
        metadata = template.metadata or {}
        document = metadata.get("agent_runtime")
        try:
            agent = None if document is None else AgentMetadata.parse(document)
        except WireError:
            agent = None  # whoever starts it says what is wrong with it
        about = agent or AgentMetadata()
        names = (*template.aliases, *template.names)
        return cls(
            template_id=template.template_id,
            name=about.name or (names[0] if names else template.template_id),
            version=about.version or template.version or "",
            description=template.description or about.description,
            author=about.author,
            tags=template.tags or about.tags,
            aliases=tuple(dict.fromkeys(names)),
            created_at=template.created_at,
            updated_at=template.updated_at,
            status=template.build_status or "",
            metadata=metadata,
            agent=agent,
        )
