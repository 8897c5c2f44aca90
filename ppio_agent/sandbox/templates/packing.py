"""What deploying needs on the caller's side: check, pack, and note how it went."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Callable, Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Final

import psutil
from attrs import field, frozen

from ppio_agent._util.clock import utc_now
from ppio_agent._util.files import replace_file
from ppio_agent.wire.json import Json
from ppio_agent.wire.times import format_time

from .builds import check_source
from .manifest import MANIFEST_NAME, Host, with_status
from .snapshot import Candidate
from .sources import FolderSource

__all__ = ["Package", "agent_id", "check", "host_limits", "write_status"]

_log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024


@frozen(kw_only=True)
class Package:
    """A folder that can be deployed.

    Attributes:
        name: Name of the agent.
        version: Its version.
        source: The folder, with its manifest.
        chosen: What of it is deployed, the manifest left out.
    """

    name: str
    version: str
    source: FolderSource
    chosen: tuple[Candidate, ...] = field(repr=False)

    def archive(self) -> bytes:
        """Return it as an upload takes it: a gzipped tar archive.

        Nothing but names, modes and contents is in it: neither who has the files, nor
        which of them are one on the disk.

        Raises:
            TemplateManifestError: The manifest cannot be read any more.
            OSError: Nor can a file.
        """
        out = BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            text = self.source.manifest_text().encode()
            manifest = Candidate(
                path=MANIFEST_NAME,
                kind="file",
                size=len(text),
                open=lambda: BytesIO(text),
            )
            for candidate in (manifest, *self.chosen):
                _add(tar, candidate)
        return out.getvalue()


def _add(tar: tarfile.TarFile, candidate: Candidate) -> None:
    member = tarfile.TarInfo(candidate.path)
    if candidate.open is None:
        member.type, member.linkname = tarfile.SYMTYPE, candidate.link
        tar.addfile(member)
        return
    member.size = candidate.size
    member.mode = 0o755 if candidate.executable else 0o644
    with candidate.open() as content:
        tar.addfile(member, content)


def host_limits() -> Host:
    """Return what this machine has."""
    memory = psutil.virtual_memory().total // _MIB
    return Host(memory_mb=memory, cpus=float(os.cpu_count() or 1))


def check(path: Path) -> Package:
    """Check a folder (or the folder of a manifest).

    Raises:
        TemplateManifestError: With everything that is wrong.
    """
    source = FolderSource.of(path)
    manifest, chosen = check_source(source, host=host_limits())
    return Package(
        name=manifest.name,
        version=manifest.version,
        source=source,
        chosen=tuple(chosen),
    )


def agent_id(name: str, template_id: str) -> str:
    """Return the id under which clients of the agent runtime know an agent.

    Example:
        >>> agent_id("sales-agent", "abc")
        'sales_agent-abc'
    """
    return f"{name.replace('-', '_')}-{template_id}"


def write_status(
    manifest: Path,
    record: Mapping[str, Json],
    *,
    clock: Callable[[], datetime] = utc_now,
) -> None:
    """Write into a manifest where it was deployed to.

    Comments, order and all else in it stay; the file is replaced in one step. One that
    cannot be written is only logged, since the deploy itself is done.

    Args:
        manifest: The file.
        record: The template, as the control plane shows it.
        clock: The present instant.
    """
    template_id = str(record["templateID"])
    status = {
        "phase": "deployed",
        "agent_id": agent_id(str(record["names"][0]), template_id),
        "template_id": template_id,
        "build_id": str(record["buildID"]),
        "last_deployed": format_time(clock()),
    }
    target = manifest.resolve()
    try:
        text = with_status(target.read_bytes().decode(), status)
        mode = target.stat().st_mode & 0o777
        replace_file(target, text.encode(), mode=mode)
    except OSError as error:
        _log.warning("the status could not be written to %s: %s", manifest, error)
