"""The platform's parts on a fake backend, without a listener."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from ppio_agent._util.clock import utc_now
from ppio_agent.sandbox.config import PlatformConfig
from ppio_agent.sandbox.life.sandboxes import Folders, Sandboxes
from ppio_agent.sandbox.templates.blobs import BlobStore
from ppio_agent.sandbox.templates.environments import Environments
from ppio_agent.sandbox.templates.manifest import Host
from ppio_agent.sandbox.templates.sources import FolderSource
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.storage import DocumentStore, open_store
from tests.sandbox.agents import write_agent
from tests.sandbox.fakes import FakeBackend, FakeSandbox
from tests.support import wait_until

__all__ = ["PlatformRig"]


_NUMBERS = itertools.count()


class PlatformRig:
    """Templates and sandboxes; a template `echo` is deployed for tenant `red`.

    Args:
        folder: Its data directory.
        store: Its store; None: one of its own, in memory.
        agent: Whether `echo` is deployed, which takes a while.
        left: What a rig that crashed on this folder and store has left.
        monotonic: Its clock.
        utc: The present instant.
        settings: Of the platform.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: DocumentStore | None = None,
        agent: bool = True,
        left: Iterable[FakeSandbox] = (),
        monotonic: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = utc_now,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.config = PlatformConfig(
            data_dir=folder, keys={"sk_red": "red", "sk_blue": "blue"}, **settings
        )
        self.backend = FakeBackend()
        self.store = store or open_store("memory://")
        self.templates = Templates(
            self.store,
            BlobStore(folder / "blobs"),
            Environments(folder / "environments"),
            host=Host(memory_mb=4096, cpus=2.0),
            id_factory=lambda: f"t{next(_NUMBERS):019d}",
        )
        self.sandboxes = Sandboxes(
            self.config,
            store=self.store,
            templates=self.templates,
            backend=self.backend,
            folders=Folders(
                live=folder / "sandboxes",
                sockets=folder / "sockets",
                ended=folder / "logs",
            ),
            id_factory=lambda: f"s{next(_NUMBERS):019d}",
            monotonic=monotonic,
            utc=utc,
        )
        self.monotonic = monotonic
        self.backend.left = list(left)
        self.sandboxes.recover()
        if agent:
            source = FolderSource.of(write_agent(folder / "src"))
            self.echo = self.templates.deploy(source, tenant="red")[0]

    def settle(self) -> None:
        """Return when all that is due by its clock has been done."""
        done = threading.Event()
        # The first wakes the thread: it may sleep since before the clock was moved.
        self.sandboxes._timers.at(0.0, lambda: None)
        self.sandboxes._timers.at(self.monotonic(), done.set)
        assert done.wait(5)
        pool = self.sandboxes._background
        wait_until(lambda: pool.busy == pool.waiting == 0)

    def crash(self) -> list[FakeSandbox]:
        """Stop as if killed; return what lives on."""
        self.sandboxes._timers.close()
        self.sandboxes._background.close()
        return [sandbox for sandbox in self.backend.started if sandbox.alive]

    def close(self) -> None:
        self.sandboxes.close(5.0)
        self.store.close()
