"""From a folder or an archive to a build, and from a build to a sandbox's files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Final

from attrs import field, frozen

from ppio_agent.exceptions import TemplateManifestError
from ppio_agent.wire.json import encode_json

from .blobs import BlobStore
from .bytecode import cached_path, compiled
from .environments import Environments
from .manifest import AgentManifest, Host, manifest_error, parse_manifest
from .records import Build, TemplateFile
from .requirements import REQUIREMENTS, missing_distributions
from .snapshot import Candidate, select
from .sources import Source

__all__ = ["Builder", "Content", "check_source"]

_log = logging.getLogger(__name__)

_LARGEST_READ: Final = 1024 * 1024


@frozen(kw_only=True)
class Content:
    """What a source holds, kept as blobs.

    Attributes:
        manifest: Its manifest.
        files: Its files and links.
        environment: Key of the environment with its requirements; None: not installed.
        digest: Digest of all of it; equal ones make equal sandboxes.
    """

    manifest: AgentManifest
    files: tuple[TemplateFile, ...] = field(repr=False)
    environment: str | None = None
    digest: str


def check_source(
    source: Source, *, host: Host
) -> tuple[AgentManifest, list[Candidate]]:
    """Return the manifest and the files of a source that has no fault.

    Raises:
        TemplateManifestError: With everything that is wrong.
    """
    text = source.manifest_text()
    chosen, problems = select(
        source.candidates(), source.ignore(), manifest=source.manifest_path
    )
    # With faults in it the list of files may be cut short, and proves nothing.
    paths = None if problems else {c.path for c in chosen if c.kind == "file"}
    try:
        manifest = parse_manifest(text, host=host, files=paths)
    except TemplateManifestError as error:
        raise manifest_error([*error.problems, *problems]) from None
    if problems:
        raise manifest_error(problems)
    return manifest, chosen


class Builder:
    """Makes builds, and sandboxes' files of them.

    Args:
        blobs: Where files are kept.
        environments: Where requirements are installed.
        host: The most that a manifest may ask for.

    Thread safety: thread-safe.
    """

    def __init__(
        self, blobs: BlobStore, environments: Environments, *, host: Host
    ) -> None:
        self._blobs = blobs
        self._environments = environments
        self._host = host

    @contextmanager
    def keep(self, source: Source, *, tenant: str, install: bool) -> Iterator[Content]:
        """Check what `source` holds, and keep its files.

        Args:
            source: A folder or an archive.
            tenant: Whose it is.
            install: Whether to install its requirements, too.

        Yields:
            What is kept, for as long as the block lasts, or what refers to it.

        Raises:
            TemplateManifestError: With everything that is wrong; nothing was kept.
            RateLimitError: Other requirements of the tenant are being installed.
            ServiceUnavailableError: Those of others are, or the platform is stopping.
        """
        manifest, chosen = check_source(source, host=self._host)
        requirements = _requirements(chosen)
        if not install:
            _warn_of_missing(manifest, requirements)
        with (
            self._environment(requirements if install else None, tenant) as environment,
            self._blobs.holding(),
        ):
            files = tuple(self._kept(candidate) for candidate in chosen)
            yield Content(
                manifest=manifest,
                files=files,
                environment=environment,
                digest=_digest(files, manifest, environment),
            )

    def _environment(
        self, requirements: bytes | None, tenant: str
    ) -> AbstractContextManager[str | None]:
        if requirements is None:
            return nullcontext()
        return self._environments.hold(requirements, tenant=tenant)

    def _kept(self, candidate: Candidate) -> TemplateFile:
        if candidate.open is None:
            return TemplateFile(path=candidate.path, link=candidate.link)
        with candidate.open() as content:
            digest, size = self._blobs.add(content)
        return TemplateFile(
            path=candidate.path,
            digest=digest,
            size=size,
            executable=candidate.executable,
        )

    def compiled(
        self, files: tuple[TemplateFile, ...], like: Build | None
    ) -> dict[str, str]:
        """Return path and digest of the compiled form of each module in `files`.

        Args:
            files: Files of a build to be.
            like: A build that was compiled before; what is equal is taken from it.
        """
        known = _compiled_of(like) if like else {}
        done: dict[str, str] = {}
        for entry in files:
            path = cached_path(entry.path)
            if path is None or entry.link or entry.size > _LARGEST_READ:
                continue
            digest = known.get((entry.path, entry.digest))
            if digest is None or not self._blobs.hold(digest):
                digest = self._compile(entry)
            if digest is not None:
                done[path] = digest
        return done

    def _compile(self, entry: TemplateFile) -> str | None:
        code = compiled(self._blobs.read(entry.digest), entry.path)
        return None if code is None else self._blobs.add_bytes(code)

    def fill(self, build: Build, folder: Path) -> None:
        """Make `folder` and write a build's files into it."""
        folder.mkdir(parents=True)
        made = {folder}
        copies = [(e.path, e.digest, e.executable, e.link) for e in build.files]
        copies += [(p, digest, False, "") for p, digest in build.compiled.items()]
        for path, digest, executable, link in copies:
            to = folder / path
            if to.parent not in made:
                to.parent.mkdir(parents=True, exist_ok=True)
                made.add(to.parent)
            if link:
                to.symlink_to(link)
            else:
                self._blobs.copy(digest, to, executable=executable)


def _compiled_of(build: Build) -> dict[tuple[str, str], str]:
    """Return (path, digest) of a module → digest of its compiled form."""
    paths = {entry.path: cached_path(entry.path) or "" for entry in build.files}
    return {
        (entry.path, entry.digest): build.compiled[paths[entry.path]]
        for entry in build.files
        if paths[entry.path] in build.compiled
    }


def _digest(
    files: tuple[TemplateFile, ...], manifest: AgentManifest, environment: str | None
) -> str:
    listed = [[f.path, f.executable, f.digest or f"-> {f.link}"] for f in files]
    content = {"files": listed, "document": manifest.document()}
    if environment is not None:
        content["environment"] = environment
    return sha256(encode_json(content)).hexdigest()


def _requirements(chosen: list[Candidate]) -> bytes | None:
    for candidate in chosen:
        if candidate.path == REQUIREMENTS and candidate.open is not None:
            if candidate.size > _LARGEST_READ:
                raise manifest_error([(REQUIREMENTS, 0, "is larger than 1 MiB")])
            with candidate.open() as content:
                return content.read()
    return None


def _warn_of_missing(manifest: AgentManifest, requirements: bytes | None) -> None:
    missing = missing_distributions((requirements or b"").decode("utf-8", "replace"))
    if missing:
        _log.warning(
            "requirements of agent %s are not installed: %s",
            manifest.name,
            ", ".join(missing),
        )
