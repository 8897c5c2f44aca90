"""Which backend a platform gets: the one asked for, or the best that works here."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ppio_agent._util.ids import new_id, secret_token
from ppio_agent.exceptions import (
    BackendUnavailableError,
    SandboxPlatformError,
    SandboxStartError,
)

from .base import ENVD_PORT, Backend, LineAddress, SandboxSpec
from .bubblewrap import BubblewrapBackend, Grounds
from .contained import Bwrap
from .control_group import ControlGroups
from .diagnosis import explain, find_bwrap, keeps_namespaces, refuse_setuid
from .process import ProcessBackend
from .uplink import TUN, find_helpers, refuse_device

__all__ = ["choose_backend"]

_log = logging.getLogger(__name__)

_DIAL_LIMIT: Final = 2.0
_NO_HELPER: Final = (
    "neither pasta nor slirp4netns is installed, one of which connects sandboxes to the"
    " network: install one"
)


def choose_backend(
    name: str,
    place: Grounds,
    *,
    hidden: Path,
    warm: int,
    groups: ControlGroups | None = None,
    environ: Mapping[str, str] = os.environ,
    tun: str = TUN,
) -> Backend:
    """Return the backend that runs sandboxes.

    Args:
        name: `process`, `bubblewrap`, or `auto` for bubblewrap where that works with
            everything, and otherwise processes.
        place: Where it may put what it makes.
        hidden: The platform's data directory, which no sandbox may see.
        warm: How many blank sandboxes bubblewrap keeps ready; 0 also lets the zygote of
            processes wait for the first sandbox.
        groups: Makes sandboxes their control groups; None: they do without.
        environ: Whose `PATH` is searched for programs.
        tun: The device by which a helper connects sandboxes to the network.

    Raises:
        BackendUnavailableError: `bubblewrap` was asked for and does not work.

    Blocking: where bubblewrap is tried, the life of one sandbox, some 0.2 s.
    """
    if name == "process":
        return _processes(warm, groups)
    reason = ""
    helpers = find_helpers(environ.get("PATH", os.defpath))
    offline = refuse_device(tun) if helpers else _NO_HELPER
    if name == "auto" and offline:
        reason = offline
    elif (path := find_bwrap(environ)) is None:
        reason = "bwrap is not installed, or this is not Linux"
    elif not (reason := refuse_setuid(path)):
        bwrap = Bwrap(
            path=path,
            helpers=() if offline else helpers,
            offline=offline,
            no_namespaces=keeps_namespaces(path),
            hidden=(str(hidden),),
        )
        backend = BubblewrapBackend(bwrap, place, warm=warm, groups=groups)
        try:
            _probe(backend, place, internet=name == "auto")
        except (OSError, SandboxPlatformError) as exc:
            backend.close()
            said = exc.said if isinstance(exc, SandboxStartError) else ""
            reason = explain(said or str(exc))
        else:
            backend.begin()
            return backend
    if name == "bubblewrap":
        raise BackendUnavailableError(f"the bubblewrap backend does not work: {reason}")
    _log.warning(
        "sandboxes are plain processes and not protected from one another: %s;"
        " ppio-agent doctor tells what is missing",
        reason,
    )
    return _processes(warm, groups)


def _processes(warm: int, groups: ControlGroups | None) -> ProcessBackend:
    backend = ProcessBackend(groups=groups)
    if warm:
        backend.zygote.begin()
    return backend


def _probe(backend: BubblewrapBackend, place: Grounds, *, internet: bool) -> None:
    """Make a sandbox, reach into it, and end it."""
    sandbox_id = new_id()[:20]
    spec = SandboxSpec(
        sandbox_id=sandbox_id,
        template_id="probe",
        root=place.blank / sandbox_id,
        line=LineAddress(path=str(place.sockets / sandbox_id), secret=secret_token()),
        allow_internet=internet,
    )
    try:
        sandbox = backend.start(spec, on_agent=lambda _: None, on_lost=lambda _: None)
        try:
            sandbox.dial(ENVD_PORT, _DIAL_LIMIT).close()
        finally:
            sandbox.kill(0.0)
    finally:
        shutil.rmtree(spec.root, ignore_errors=True)
