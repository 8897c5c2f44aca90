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
from .sources import FolderSource

__all__ = ["Package", "agent_id", "host_limits", "pack", "write_status"]

_log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024


@frozen(kw_only=True)
class Package:
    """A folder that can be deployed, as an upload takes it.

    Attributes:
        name: Name of the agent.
        version: Its version.
        files: How many files it has, the manifest left out.
        manifest_path: Where the manifest is.
        archive: The gzipped tar archive.
    """

    name: str
    version: str
    files: int
    manifest_path: Path
    archive: bytes = field(repr=False)


def host_limits() -> Host:
    """Return what this machine has."""
    memory = psutil.virtual_memory().total // _MIB
    return Host(memory_mb=memory, cpus=float(os.cpu_count() or 1))


def pack(path: Path) -> Package:
    """Check a folder (or the folder of a manifest) and pack it.

    Raises:
        TemplateManifestError: With everything that is wrong.
    """
    source = FolderSource.of(path)
    manifest, chosen = check_source(source, host=host_limits())
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        text = source.manifest_text().encode()
        member = tarfile.TarInfo(MANIFEST_NAME)
        member.size = len(text)
        tar.addfile(member, BytesIO(text))
        for found in chosen:
            tar.add(source.folder / found.path, found.path, recursive=False)
    return Package(
        name=manifest.name,
        version=manifest.version,
        files=len(chosen),
        manifest_path=source.manifest,
        archive=out.getvalue(),
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
