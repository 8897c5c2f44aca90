"""The platform as a plug-in: the default for clients, and templates from a folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import PlatformAlreadyRunningError, TemplateManifestError
from ppio_agent.hooks import hookimpl

if TYPE_CHECKING:
    from .datadir import Running
    from .platform import SandboxPlatform

__all__ = ["TemplateFolder", "ppio_default_platform"]


class _Embedded:
    """The platform that is started here, if one is: one a process is the point."""

    def __init__(self) -> None:
        self.platform: SandboxPlatform | None = None
        self._renew()
        renew_in_child(self, _Embedded._renew)

    def _renew(self) -> None:
        # Guards platform; held while it starts.
        self.lock = threading.Lock()


_embedded = _Embedded()


@hookimpl(trylast=True)
def ppio_default_platform(config: Any) -> tuple[str, str] | None:
    """Return the platform on the default data directory, started here if need be.

    It lives until the process ends, and its sandboxes with it. Who is no client, and
    so has no `config`, is only told of one that runs.
    """
    from .config import PlatformConfig
    from .datadir import read_running
    from .platform import SandboxPlatform

    with _embedded.lock:
        own = _embedded.platform
        if own is not None and own.running:
            return own.url, own.api_key
        settings = PlatformConfig.from_env(os.environ)
        if config is None:
            return _address(read_running(settings.data_dir))
        platform = SandboxPlatform(settings)
        try:
            platform.start()
        except PlatformAlreadyRunningError:
            running = read_running(settings.data_dir)
            if running is None:
                raise
            return _address(running)
        _embedded.platform = platform
        return platform.url, platform.api_key


def _address(running: Running | None) -> tuple[str, str] | None:
    return None if running is None else (running.url, running.api_key)


class TemplateFolder:
    """Finds agents by their names in the subfolders of one folder.

    Args:
        folder: Its subfolders that have a manifest are agents.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @hookimpl(trylast=True)
    def ppio_find_template(self, ref: str) -> Path | None:
        """Return the subfolder whose manifest has the name `ref`, or None."""
        from ppio_agent.sandbox.templates.manifest import MANIFEST_NAME, parse_manifest

        for manifest in sorted(self._folder.glob(f"*/{MANIFEST_NAME}")):
            try:
                found = parse_manifest(manifest.read_text())
            except (OSError, UnicodeDecodeError, TemplateManifestError):
                continue  # deploying it by its path says what is wrong with it
            if found.name == ref:
                return manifest.parent
        return None
