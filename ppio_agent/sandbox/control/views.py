"""What the control plane shows of templates and sandboxes. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Final

import attrs
from attrs import frozen

from ppio_agent.sandbox.backends.base import AgentStatus
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.values import Identity
from ppio_agent.sandbox.logview import LogEntry
from ppio_agent.sandbox.metrics import Sample
from ppio_agent.sandbox.templates.records import BuildInfo, TemplateRecord
from ppio_agent.wire.json import Json, encode_json
from ppio_agent.wire.models import (
    ListedSandbox,
    Sandbox,
    SandboxDetail,
    SandboxMetric,
    SandboxState,
    Template,
)
from ppio_agent.wire.times import format_time

__all__ = ["Viewer", "agent_view", "log_lines", "metric_view"]

_CLIENT: Final = "local"
_ENVD_VERSION: Final = "0.5.7"
_DISK_MB: Final = 1024
_MIB: Final = 1024 * 1024
_PUBLIC: Final = ""


@frozen(kw_only=True)
class Viewer:
    """Makes wire shapes of what the platform holds.

    Attributes:
        domain: What clients of a tenant build host names from.
        url: Gives where routing by header works for the client that asks.
    """

    domain: Callable[[str], str]
    url: Callable[[], str]

    def created(self, identity: Identity) -> dict[str, Json]:
        """Return a sandbox as create, connect and resume answer it."""
        return Sandbox(
            sandbox_id=identity.id,
            template_id=identity.build.template_id,
            client_id=_CLIENT,
            envd_version=_ENVD_VERSION,
            domain=self.domain(identity.tenant),
            alias=identity.alias,
            envd_access_token=identity.access_token,
            traffic_access_token=identity.traffic_token,
            edge_url=self.url(),
        ).to_dict()

    def listed(self, sandbox: LiveSandbox) -> dict[str, Json]:
        """Return a sandbox as one item of a list."""
        return _listed(sandbox).to_dict()

    def detail(self, sandbox: LiveSandbox) -> dict[str, Json]:
        """Return all there is to know of a sandbox."""
        identity, life, agent = sandbox.identity, sandbox.life, sandbox.agent
        on_timeout = "pause" if life.pauses else "kill"
        listed = attrs.asdict(_listed(sandbox), recurse=False)
        return SandboxDetail(
            **listed,
            domain=self.domain(identity.tenant),
            envd_access_token=identity.access_token,
            traffic_access_token=identity.traffic_token,
            edge_url=self.url(),
            allow_internet_access=identity.options.allow_internet,
            network={"allowPublicTraffic": identity.options.public_traffic},
            lifecycle={
                "onTimeout": on_timeout,
                "autoResume": identity.options.auto_resume,
            },
            agent=agent_view(agent),
        ).to_dict()

    def template(self, record: TemplateRecord) -> Template:
        """Return a template."""
        about = (record.document or {}).get("metadata", {})
        metadata: dict[str, Json] = {}
        if record.document is not None:
            # A text: clients in the field drop a template with a nested object here.
            metadata["agent_runtime"] = encode_json(record.document).decode()
        author = about.get("author", "")
        return Template(
            template_id=record.id,
            aliases=(record.name,),
            names=(record.name,),
            version=record.latest.version,
            description=about.get("description"),
            tags=tuple(about.get("tags", ())),
            metadata=metadata,
            created_at=record.created_at,
            updated_at=record.updated_at,
            created_by={"id": author, "email": author},
            build_id=record.latest.id,
            build_count=len(record.builds),
            build_status="ready",
            cpu_count=math.ceil(record.cpus),
            memory_mb=record.memory_mb,
            disk_size_mb=_DISK_MB,
            envd_version=_ENVD_VERSION,
            public=record.tenant == _PUBLIC,
            spawn_count=record.spawn_count,
            last_spawned_at=record.last_spawned_at,
        )

    def template_object(self, record: TemplateRecord) -> dict[str, Json]:
        """Return a template as JSON."""
        found = self.template(record).to_dict()
        # Clients want this member to be there.
        found.setdefault("lastSpawnedAt", None)
        return found

    def template_detail(
        self, record: TemplateRecord, builds: Iterable[BuildInfo]
    ) -> dict[str, Json]:
        """Return a template with some of its builds."""
        listed = [
            {
                "buildID": build.id,
                "status": "ready",
                "version": build.version,
                "digest": build.digest,
                "createdAt": format_time(build.created_at),
                # Builds do not change; clients want these members to be there.
                "updatedAt": format_time(build.created_at),
                "cpuCount": math.ceil(record.cpus),
                "memoryMB": record.memory_mb,
            }
            for build in builds
        ]
        return {**self.template_object(record), "builds": listed}


def _listed(sandbox: LiveSandbox) -> ListedSandbox:
    identity, life = sandbox.identity, sandbox.life
    return ListedSandbox(
        sandbox_id=sandbox.id,
        template_id=identity.build.template_id,
        client_id=_CLIENT,
        envd_version=_ENVD_VERSION,
        # One that starts already counts as running.
        state=SandboxState(life.state.wire),
        started_at=life.started_at,
        end_at=life.end_at,
        metadata=dict(identity.options.metadata),
        alias=identity.alias,
        cpu_count=math.ceil(identity.build.cpus),
        memory_mb=identity.build.memory_mb,
        disk_size_mb=_DISK_MB,
    )


def agent_view(agent: AgentStatus) -> dict[str, Json]:
    """Return how the agent of a sandbox is."""
    return {
        "phase": agent.phase,
        "exitCode": agent.exit_code,
        "signal": agent.signal,
        "startedAt": agent.started_at and format_time(agent.started_at),
        "readyAt": agent.ready_at and format_time(agent.ready_at),
        "logTail": agent.log_tail,
    }


def metric_view(sandbox: LiveSandbox, sample: Sample) -> dict[str, Json]:
    """Return what a sandbox used at one instant."""
    build = sandbox.identity.build
    metric = SandboxMetric(
        timestamp=datetime.fromtimestamp(sample.at / 1000, timezone.utc),
        timestamp_unix=sample.at // 1000,
        cpu_count=math.ceil(build.cpus),
        cpu_used_pct=sample.cpu_percent,
        mem_total=build.memory_mb * _MIB,
        mem_used=sample.memory,
        disk_total=_DISK_MB * _MIB,
        disk_used=sample.disk,
    )
    # Clients of the API's first version know no bytes.
    in_mib = {
        "memTotalMiB": build.memory_mb,
        "memUsedMiB": math.ceil(sample.memory / _MIB),
    }
    return {**metric.to_dict(), **in_mib}


def log_lines(entries: list[LogEntry]) -> dict[str, Json]:
    """Return log entries in the shape of the first version of the route."""
    return {
        "logs": [{"timestamp": e.timestamp, "line": e.line} for e in entries],
        "logEntries": [e.to_dict() for e in entries],
    }
