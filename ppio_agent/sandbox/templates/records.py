"""What the platform keeps about templates and their builds. Values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from ppio_agent.wire.json import Json

__all__ = ["Build", "BuildInfo", "TemplateFile", "TemplateRecord"]


@frozen(kw_only=True)
class TemplateFile:
    """One file or link of a build; `digest` is empty for a link, `link` for a file."""

    path: str
    digest: str = ""
    size: int = 0
    executable: bool = False
    link: str = ""


@frozen(kw_only=True)
class BuildInfo:
    """What a template says of one of its builds."""

    id: str
    version: str
    digest: str
    created_at: datetime


@frozen(kw_only=True)
class Build:
    """What sandboxes are made from; it never changes.

    Attributes:
        id: Its id.
        template_id: The template it is a build of.
        entrypoint: The agent's program; None without an agent.
        start_timeout: Seconds within which the agent has to be ready.
        memory_mb: Memory limit in MiB.
        cpus: CPU limit.
        files: Its files and links.
        compiled: Path and digest of compiled modules; they are not part of the digest.
        environment: Key of the environment that the agent runs in; None: the platform's.
    """

    id: str
    template_id: str
    entrypoint: str | None = None
    start_timeout: int = 60
    memory_mb: int = 1024
    cpus: float = 1.0
    files: tuple[TemplateFile, ...] = field(default=(), repr=False)
    compiled: Mapping[str, str] = field(factory=dict, repr=False)
    environment: str | None = None


@frozen(kw_only=True)
class TemplateRecord:
    """A template: a name of one tenant, and its builds.

    Attributes:
        id: Its id.
        tenant: Whose it is; "" is everybody's.
        name: Its name, unique for the tenant.
        created_at: When it was first deployed.
        updated_at: When it was last deployed with a change.
        builds: Oldest first; the last one is `latest`.
        document: The agent document of the last build; None without an agent.
        memory_mb: Memory limit of the last build, in MiB.
        cpus: CPU limit of the last build.
        spawn_count: How many sandboxes were made from it.
        last_spawned_at: When the last one was.
    """

    id: str
    tenant: str
    name: str
    created_at: datetime
    updated_at: datetime
    builds: tuple[BuildInfo, ...]
    document: Mapping[str, Json] | None = None
    memory_mb: int = 1024
    cpus: float = 1.0
    spawn_count: int = 0
    last_spawned_at: datetime | None = None

    @property
    def latest(self) -> BuildInfo:
        """The build that a reference without a version means."""
        return self.builds[-1]
