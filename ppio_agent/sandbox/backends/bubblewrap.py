"""Sandboxes in namespaces of their own, made by bubblewrap: a security boundary.

docs/security.md says what it protects from what, and by which test that is known.
"""

from __future__ import annotations

import os
import shutil
import socket
from functools import partial
from pathlib import Path

from attrs import frozen

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import SandboxPlatformError

from .base import AGENT_PORT, LineAddress, OnAgent, OnLost, SandboxSpec
from .bwrap_args import APP, BIN, HOME, LOGS, TMP
from .contained import Bwrap, ContainedProcess, supervisor_log
from .control_group import ControlGroups
from .diagnosis import Check, diagnose
from .holds import Blank, Holds
from .layout import environment, search_path
from .startup import boot_message
from .supervised import SupervisedSandbox
from .warm import WarmPool

__all__ = ["BubblewrapBackend", "Check", "Grounds", "diagnose"]


@frozen(kw_only=True)
class Grounds:
    """Where a backend may put what it makes.

    Attributes:
        blank: Folder for sandboxes that are nobody's yet, on the file system of those
            of the others; the backend's own, and emptied when it begins and ends.
        sockets: Folder with a short path for their sockets.
    """

    blank: Path
    sockets: Path


@frozen(kw_only=True)
class _Spare:
    """A blank sandbox that is kept ready."""

    id: str
    root: Path
    line: LineAddress
    sock: socket.socket
    process: ContainedProcess

    def is_good(self) -> bool:
        """Whether its supervisor and its way to the network, if any, are there."""
        uplink = self.process.uplink
        return not (self.process.wait(0.0) or (uplink is not None and uplink.lost))

    def discard(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.close()
        Path(self.line.path).unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def move_in(self, root: Path, line: LineAddress) -> None:
        """Become the sandbox whose folder, with nothing but its files, is `root`.

        Raises:
            OSError: It could not.
        """
        app = root / "app"
        for entry in os.listdir(app):
            os.rename(app / entry, self.root / "app" / entry)
        app.rmdir()
        root.rmdir()
        os.rename(self.root, root)
        os.rename(self.line.path, line.path)


def _clear(place: Grounds) -> None:
    """Remove blank sandboxes that a platform that was killed has left."""
    for root in place.blank.glob("*"):
        (place.sockets / root.name).unlink(missing_ok=True)
    shutil.rmtree(place.blank, ignore_errors=True)


class BubblewrapBackend:
    """Starts sandboxes in namespaces of their own; a `Backend`.

    Args:
        bwrap: How they are made.
        place: Where it may put what it makes.
        warm: How many blank sandboxes it keeps ready: with a way to the network, as
            most are wanted, if there is a helper for that.
        groups: Makes sandboxes their control groups; None: they do without.

    Thread safety: thread-safe.
    """

    name = "bubblewrap"

    def __init__(
        self,
        bwrap: Bwrap,
        place: Grounds,
        *,
        warm: int = 0,
        groups: ControlGroups | None = None,
    ) -> None:
        self._bwrap = bwrap
        self._place = place
        self._holds = Holds(groups)
        self._closed = False
        self._making: ContainedProcess | None = None
        self._spares = WarmPool(
            "ppio-sandbox-warm-1",
            warm,
            make=self._make_spare,
            discard=_Spare.discard,
            usable=_Spare.is_good,
        )
        _clear(place)
        place.blank.mkdir(mode=0o700, parents=True)

    @property
    def ready(self) -> int:
        """How many blank sandboxes are ready."""
        return self._spares.ready

    def begin(self) -> None:
        """Begin to keep blank sandboxes ready. Idempotent."""
        self._spares.begin()

    def check(self, *, allow_internet: bool) -> None:
        """Refuse what this backend cannot do; see `Backend.check`."""
        if allow_internet and not self._bwrap.helpers:
            raise SandboxPlatformError(
                f"{self._bwrap.offline}; or use allow_internet_access=false",
                code="not_supported",
                http_status=501,
            )

    def start(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> SupervisedSandbox:
        """Start a sandbox and its agent; see `Backend.start`."""
        root = spec.root.absolute()
        return self._holds.start(
            spec,
            partial(self._make, spec, root),
            boot=boot_message(
                spec,
                env=environment(
                    spec, path=search_path(BIN), home=HOME, tmp=TMP, port=AGENT_PORT
                ),
                home=HOME,
                app=APP,
                tmp=TMP,
                log=f"{LOGS}/agent.log",
                port=AGENT_PORT,
                confined=False,
            ),
            on_agent=on_agent,
            on_lost=on_lost,
            complaints=supervisor_log(root),
        )

    def adopt(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> SupervisedSandbox:
        """Take over a sandbox of another platform; see `Backend.adopt`."""
        return self._holds.adopt(spec, on_agent=on_agent, on_lost=on_lost)

    def close(self) -> None:
        """Kill, without grace, whatever still runs. Idempotent."""
        self._closed = True
        if self._making is not None:
            self._making.kill()
        self._spares.close()
        self._holds.close()
        shutil.rmtree(self._place.blank, ignore_errors=True)

    def _make(self, spec: SandboxSpec, root: Path) -> Blank:
        fits = spec.allow_internet is self._connected and spec.python is None
        spare = self._spares.take() if fits else None
        if spare is None:
            sock, process = self._bwrap.make(
                spec.sandbox_id,
                root,
                spec.line,
                internet=spec.allow_internet,
                python=spec.python,
            )
            return Blank(sock, process, process.uplink)
        try:
            spare.move_in(root, spec.line)
        except OSError:
            spare.discard()
            raise
        return Blank(spare.sock, spare.process, spare.process.uplink)

    @property
    def _connected(self) -> bool:
        """Whether blank sandboxes are connected to the network."""
        return bool(self._bwrap.helpers)

    def _make_spare(self) -> _Spare:
        # An id in the form of all others, which marks its processes until it has one.
        spare_id = new_id()[:20]
        root = self._place.blank / spare_id
        line = LineAddress(path=str(self._place.sockets / spare_id), secret="")
        try:
            sock, process = self._bwrap.make(
                spare_id,
                root,
                line,
                internet=self._connected,
                warm=True,
                on_begun=self._note_making,
            )
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        self._making = None
        return _Spare(id=spare_id, root=root, line=line, sock=sock, process=process)

    def _note_making(self, process: ContainedProcess) -> None:
        self._making = process
        if self._closed:
            process.kill()
