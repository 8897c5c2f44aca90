"""The templates of the platform: deployed, found, and copied into sandboxes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import attrs

from ppio_agent._util.clock import utc_now
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    ConflictError,
    PermissionDeniedError,
    SandboxPlatformError,
    TemplateNotFoundError,
    ValidationError,
)
from ppio_agent.sandbox.keys import DEFAULT_TENANT
from ppio_agent.storage import Delete, DocumentStore, Put
from ppio_agent.wire.headers import sandbox_key
from ppio_agent.wire.model import structure

from .blobs import BlobStore
from .builds import Builder, Content
from .environments import Environments
from .manifest import AgentManifest, Host
from .records import Build, BuildInfo, TemplateRecord
from .sources import FolderSource, Source

__all__ = ["BASE_ID", "Templates"]

BASE_ID: Final = "base0000000000000000"
_BASE_TIME: Final = datetime.fromisoformat("2025-01-01T00:00:00+00:00")
_TEMPLATE: Final = "template"
_BUILD: Final = "build"
_NAME: Final = "template_name"
_KEPT_BUILDS: Final = 5
_COLLECT_EVERY: Final = timedelta(hours=1)


class Templates:
    """All templates of a platform.

    Args:
        store: Where records are kept.
        blobs: Where files are kept.
        environments: Where requirements are installed.
        host: The most that a manifest may ask for.
        id_factory: Makes ids of templates: 20 of a-z and 0-9.
        find: Asked for the folder of a reference that is not held.
        in_use: Gives the builds that live sandboxes were made from, by their ids.
        clock: The present instant.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        store: DocumentStore,
        blobs: BlobStore,
        environments: Environments,
        *,
        host: Host,
        id_factory: Callable[[], str],
        find: Callable[[str], Path | None] = lambda _ref: None,
        in_use: Callable[[], Mapping[str, Build]] = dict,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._environments = environments
        self._builder = Builder(blobs, environments, host=host)
        self._id_factory = id_factory
        self._find = find
        self._in_use = in_use
        self._clock = clock
        # Orders what reads a record and then writes it, across those two steps; guards
        # _collected_at and _referred.
        self._writing = threading.Lock()
        self._referred: set[str] = set()
        self._collected_at = clock()
        if store.get(_TEMPLATE, BASE_ID) is None:
            self._add_base()

    def _add_base(self) -> None:
        # As the ids of all builds: clients take it for a UUID.
        build = BuildInfo(
            id="0" * 32, version="1.0.0", digest="", created_at=_BASE_TIME
        )
        record = TemplateRecord(
            id=BASE_ID,
            tenant="",
            name="base",
            created_at=_BASE_TIME,
            updated_at=_BASE_TIME,
            builds=(build,),
        )
        self._store.write(
            _put(_TEMPLATE, BASE_ID, record),
            _put(_BUILD, build.id, Build(id=build.id, template_id=BASE_ID)),
        )

    def _now(self) -> datetime:
        # What the store keeps of an instant, so that a record equals itself read back.
        now = self._clock()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def close(self, timeout: float) -> None:
        """Install nothing more, and give up what is being installed. Idempotent.

        Args:
            timeout: Most seconds to wait for the end of pip.
        """
        self._environments.close(timeout)

    def collect(self) -> None:
        """Remove builds and blobs that nothing refers to, such as a crash leaves.

        Only while nothing else uses the templates.
        """
        kept = {build.id for record in self._records() for build in record.builds}
        strays = [d.id for d in self._store.scan(_BUILD) if d.id not in kept]
        self._store.write(*(Delete(_BUILD, stray) for stray in strays))
        self._referred = self._digests()
        self._blobs.keep_only(self._referred)
        self._retire_environments()
        self._environments.clear_away(unfinished=True)

    def _digests(self) -> set[str]:
        """Return the blobs that builds refer to."""
        builds = (structure(Build, d.body) for d in self._store.scan(_BUILD))
        return set().union(*map(_digests_of, builds))

    def tidy(self) -> None:
        """Remove what no build needs any more; to be called from time to time.

        It looks once an hour. A deploy under way refers to nothing yet, and holds what
        it has added. A sandbox may just be made from a build that was dropped: what was
        referred to at the last look, or since, is left to the next.
        """
        # From before it is looked what is referred to: a deploy may end meanwhile.
        with self._blobs.holding():
            with self._writing:
                now = self._clock()
                if now < self._collected_at + _COLLECT_EVERY:
                    return
                self._collected_at = now
                before, self._referred = self._referred, self._digests()
                kept = before | self._referred
                self._retire_environments()
            self._blobs.keep_only(kept)
        self._environments.clear_away()

    def _retire_environments(self) -> None:
        """Give up those that neither a build nor a live sandbox refers to."""
        there = self._environments.keys()
        if not there:
            return
        builds = [structure(Build, d.body) for d in self._store.scan(_BUILD)]
        builds += self._in_use().values()
        self._environments.retire(there - {build.environment for build in builds})

    def list_templates(self, *, tenant: str | None = None) -> list[TemplateRecord]:
        """Return the tenant's templates and the public ones; None: all there are."""
        return [
            r for r in self._records() if tenant is None or r.tenant in ("", tenant)
        ]

    def get(self, ref: str, *, tenant: str = DEFAULT_TENANT) -> TemplateRecord:
        """Return the template that `ref` (id, name, either with `:version`) means.

        Raises:
            TemplateNotFoundError: The tenant sees no such template.
        """
        return self._held(tenant, ref)[0]

    def choose(
        self, ref: str, *, tenant: str = DEFAULT_TENANT
    ) -> tuple[TemplateRecord, Build]:
        """Return the template and the build for a new sandbox.

        A reference that is not held is asked of `find`; what that finds is deployed.

        Raises:
            TemplateNotFoundError: Nobody knows it.
            TemplateManifestError: What was found for it cannot be deployed.
        """
        try:
            record, info = self._held(tenant, ref)
        except TemplateNotFoundError:
            path = self._find(ref)
            if path is None:
                raise
            record, _ = self.deploy(FolderSource.of(path), tenant=tenant)
            info = record.latest
        document = self._store.get(_BUILD, info.id)
        if document is None:  # a deploy has just dropped it
            raise _not_found(ref)
        return record, structure(Build, document.body)

    def _held(self, tenant: str, ref: str) -> tuple[TemplateRecord, BuildInfo]:
        name, _, version = ref.partition(":")
        record = self._named(tenant, name) or self._named("", name)
        for id_ in (name, sandbox_key(name)):
            record = record or self._by_id(tenant, id_)
        if record is None:
            raise _not_found(ref)
        if version in ("", "latest"):
            return record, record.latest
        for build in reversed(record.builds):
            if build.version == version:
                return record, build
        raise _not_found(ref)

    def _named(self, tenant: str, name: str) -> TemplateRecord | None:
        if tenant == "" and name == "base":
            return self._by_id("", BASE_ID)
        document = self._store.get(_NAME, f"{tenant}/{name}")
        return None if document is None else self._by_id(tenant, document.body["id"])

    def _by_id(self, tenant: str, id_: str) -> TemplateRecord | None:
        document = self._store.get(_TEMPLATE, id_)
        if document is None:
            return None
        record = structure(TemplateRecord, document.body)
        return record if record.tenant in ("", tenant) else None

    def _records(self) -> list[TemplateRecord]:
        found = self._store.scan(_TEMPLATE)
        return [structure(TemplateRecord, document.body) for document in found]

    def deploy(
        self, source: Source, *, tenant: str = DEFAULT_TENANT, install: bool = False
    ) -> tuple[TemplateRecord, bool]:
        """Make what is in `source` the latest build of its template.

        The same content makes no new build.

        Args:
            source: A folder or an archive.
            tenant: Whose template it is.
            install: Whether its agent runs in an environment with its requirements.

        Returns:
            The template, and whether there is a new build.

        Raises:
            TemplateManifestError: With everything that is wrong; nothing was kept.
            ConflictError: The manifest names a template that its name is not of.
            RateLimitError: Other requirements of the tenant are being installed.
            ServiceUnavailableError: Those of others are, or this is closed.
        """
        with self._builder.keep(source, tenant=tenant, install=install) as content:
            done = self._add(tenant, content)
        self._environments.clear_away()
        return done

    def _add(self, tenant: str, content: Content) -> tuple[TemplateRecord, bool]:
        manifest = content.manifest
        like = self._latest_build(self._named(tenant, manifest.name))
        compiled = self._builder.compiled(content.files, like)
        with self._writing:
            record = self._target(tenant, manifest)
            for known in record.builds if record else ():
                if record is not None and known.digest == content.digest:
                    return self._again_latest(record, known, manifest), False
            build = Build(
                id=new_id(),
                template_id=record.id if record else self._id_factory(),
                entrypoint=manifest.entrypoint,
                start_timeout=manifest.start_timeout,
                memory_mb=manifest.memory_mb,
                cpus=manifest.cpus,
                files=content.files,
                compiled=compiled,
                environment=content.environment,
            )
            return self._add_build(tenant, manifest, build, content.digest), True

    def _latest_build(self, record: TemplateRecord | None) -> Build | None:
        if record is None:
            return None
        document = self._store.get(_BUILD, record.latest.id)
        return None if document is None else structure(Build, document.body)

    def _target(self, tenant: str, manifest: AgentManifest) -> TemplateRecord | None:
        record = self._named(tenant, manifest.name)
        if manifest.template_id not in (None, record.id if record else None):
            raise ConflictError(
                f"the manifest names template {manifest.template_id}, but the agent"
                f" {manifest.name} is {record.id if record else 'no template yet'}:"
                " correct spec.sandbox.template_id, or leave it out"
            )
        return record

    def _again_latest(
        self, record: TemplateRecord, build: BuildInfo, manifest: AgentManifest
    ) -> TemplateRecord:
        if build == record.latest:
            return record
        others = tuple(b for b in record.builds if b != build)
        record = self._described(record, (*others, build), manifest)
        self._store.write(_put(_TEMPLATE, record.id, record))
        return record

    def _add_build(
        self, tenant: str, manifest: AgentManifest, build: Build, digest: str
    ) -> TemplateRecord:
        now = self._now()
        info = BuildInfo(
            id=build.id, version=manifest.version, digest=digest, created_at=now
        )
        record = self._by_id(tenant, build.template_id) or TemplateRecord(
            id=build.template_id,
            tenant=tenant,
            name=manifest.name,
            created_at=now,
            updated_at=now,
            builds=(),
        )
        used = self._in_use()
        old = record.builds[: -(_KEPT_BUILDS - 1)]
        dropped = [b for b in old if b.id not in used]
        kept = tuple(b for b in record.builds if b not in dropped)
        record = self._described(record, (*kept, info), manifest)
        # One transaction, after all blobs: a crash before it leaves only blobs that
        # nothing refers to.
        self._store.write(
            _put(_BUILD, build.id, build),
            _put(_TEMPLATE, record.id, record),
            Put(_NAME, f"{tenant}/{record.name}", {"id": record.id}),
            *(Delete(_BUILD, b.id) for b in dropped),
        )
        self._referred |= _digests_of(build)
        if dropped:
            self._retire_environments()
        return record

    def _described(
        self,
        record: TemplateRecord,
        builds: tuple[BuildInfo, ...],
        manifest: AgentManifest,
    ) -> TemplateRecord:
        return attrs.evolve(
            record,
            builds=builds,
            updated_at=self._now(),
            document=manifest.document(),
            memory_mb=manifest.memory_mb,
            cpus=manifest.cpus,
        )

    def delete(self, ref: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a template with all its versions; sandboxes made from it stay.

        Raises:
            ValidationError: `ref` names one version.
            TemplateNotFoundError: The tenant sees no such template.
            PermissionDeniedError: It is a public one.
        """
        name, colon, _ = ref.partition(":")
        if colon:
            raise ValidationError(
                f"{ref} is one version, and templates are deleted with all of them:"
                f" delete {name}"
            )
        with self._writing:
            record = self.get(ref, tenant=tenant)
            if record.tenant != tenant:
                raise PermissionDeniedError(
                    f"template {record.id} is everybody's: it cannot be deleted"
                )
            self._store.write(
                Delete(_TEMPLATE, record.id),
                Delete(_NAME, f"{tenant}/{record.name}"),
                *(Delete(_BUILD, build.id) for build in record.builds),
            )
            self._retire_environments()
        self._environments.clear_away()

    @contextmanager
    def keep_python(self, build: Build) -> Iterator[str | None]:
        """Keep the interpreter of a build until a sandbox that uses it is known.

        Yields:
            The interpreter that its agent runs with; None: any. It is not removed
            before the block ends, even if its template is deleted.

        Raises:
            SandboxPlatformError: Its environment is gone.
        """
        if build.environment is None:
            yield None
            return
        with self._environments.keep(build.environment) as python:
            if not python.exists():
                raise SandboxPlatformError(
                    f"the environment of template {build.template_id} is gone, or the"
                    " Python it was made with: deploy it again with its requirements"
                )
            yield str(python)

    def fill(self, build: Build, folder: Path) -> None:
        """Make `folder` and write a build's files into it."""
        self._builder.fill(build, folder)

    def note_spawn(self, template_id: str) -> None:
        """Count a sandbox that was made from a template."""
        with self._writing:
            document = self._store.get(_TEMPLATE, template_id)
            if document is None:
                return
            record = structure(TemplateRecord, document.body)
            record = attrs.evolve(
                record,
                spawn_count=record.spawn_count + 1,
                last_spawned_at=self._now(),
            )
            self._store.write(_put(_TEMPLATE, template_id, record))


def _digests_of(build: Build) -> set[str]:
    return {entry.digest for entry in build.files} | set(build.compiled.values())


def _put(kind: str, id_: str, record: attrs.AttrsInstance) -> Put:
    return Put(kind, id_, attrs.asdict(record))


def _not_found(ref: str) -> TemplateNotFoundError:
    return TemplateNotFoundError(f"template {ref} was not found: deploy it first")
