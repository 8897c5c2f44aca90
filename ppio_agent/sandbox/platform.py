"""The local sandbox platform: everything put together, started and closed."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import string
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from ppio_agent import __version__
from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import SandboxUnavailableError
from ppio_agent.hooks import Hooks
from ppio_agent.storage import open_store
from ppio_agent.web import Lanes, Server, ServerConfig
from ppio_agent.wire.json import Json
from ppio_agent.wire.models import Template

from .backends.base import Backend
from .backends.process import ProcessBackend
from .blobs import BlobStore
from .config import PlatformConfig
from .control import Control, create_app, lane_of
from .datadir import DataDir, Running
from .edge import Edge
from .keys import DEFAULT_TENANT, KeyRing
from .packing import host_limits, write_status
from .plugin import TemplateFolder
from .reach import Reach
from .sandboxes import Folders, Sandboxes
from .snapshot import MAX_BYTES
from .sources import FolderSource
from .templates import Templates
from .views import Viewer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SandboxPlatform"]

_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_LONGEST_SOCKET_PATH: Final = 100


def _new_id() -> str:
    # Ids are parts of public host names behind which no key is asked for.
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(20))


class SandboxPlatform:
    """Control plane, templates and sandboxes on this machine, at one address.

    A context manager. It also closes when the process ends.

    Args:
        config: Settings; None reads the environment.
        backend: What runs sandboxes; None: as `config.backend` says. Closed with it.
        hooks: Plug-ins that find templates; None loads the installed ones.
        clock: The monotonic clock of all time-outs.
        id_factory: Makes ids: 20 of a-z and 0-9, not to be guessed.

    Thread safety: thread-safe. In a forked child all methods but `close`, which does
    nothing, are undefined.

    Example:
        ```python
        with SandboxPlatform() as platform:
            template = platform.deploy("my_agent")
        ```
    """

    def __init__(
        self,
        config: PlatformConfig | None = None,
        *,
        backend: Backend | None = None,
        hooks: Hooks | None = None,
        clock: Callable[[], float] = time.monotonic,
        id_factory: Callable[[], str] = _new_id,
    ) -> None:
        self._config = PlatformConfig.from_env(os.environ) if config is None else config
        self._given_backend = backend
        self._given_hooks = hooks
        self._clock = clock
        self._id_factory = id_factory
        # Guards start and close, which take turns.
        self._lock = threading.Lock()
        self._pid = 0
        self._resources: ExitStack | None = None
        self._closing = Deadline.after(None)

    def start(self) -> Self:
        """Listen and serve.

        Raises:
            PlatformAlreadyRunningError: Another one uses the data directory.
            SandboxUnavailableError: This machine cannot run local sandboxes.
            OSError: The address is taken, or the data directory cannot be written.
        """
        if sys.platform == "win32":
            raise SandboxUnavailableError(
                "local sandboxes need Linux or macOS: set PPIO_API_URL to use others"
            )
        with self._lock:
            if self._resources is not None:
                return self
            with ExitStack() as stack:
                self._start(stack)
                self._resources = stack.pop_all()
            self._pid = os.getpid()
            atexit.register(self.close)
        return self

    def _start(self, stack: ExitStack) -> None:
        config, data = self._config, DataDir(self._config.data_dir)
        data.acquire()
        stack.callback(data.release)
        keys = dict(config.keys) or {data.key(): DEFAULT_TENANT}
        self._api_key = next(iter(keys))
        self._tenant = keys[self._api_key]
        self._keys = KeyRing(keys, any_key=config.any_key)

        store = open_store(f"sqlite:///{data.database}")
        stack.callback(store.close)
        self._backend = self._given_backend or ProcessBackend()
        stack.callback(self._backend.close)
        self._templates = Templates(
            store,
            BlobStore(data.blobs),
            host=host_limits(),
            id_factory=self._id_factory,
            find=self._find_template,
            in_use=self._builds_in_use,
        )
        self._sandboxes = Sandboxes(
            config,
            store=store,
            templates=self._templates,
            backend=self._backend,
            folders=Folders(live=data.sandboxes, ended=data.logs),
            id_factory=self._id_factory,
            monotonic=self._clock,
        )
        self._sandboxes.recover()
        self._templates.collect()
        self._listen(stack, data)
        # Closed first: agents end while their last answers still get through.
        stack.callback(lambda: self._sandboxes.close(self._left()))
        data.announce(Running(url=self.url, pid=os.getpid(), api_key=self._api_key))
        stack.callback(data.withdraw)

    def _listen(self, stack: ExitStack, data: DataDir) -> None:
        config = self._config
        folder = _socket_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        socket_path = folder / "control.sock"
        reach = Reach(self._sandboxes, self._keys, socket_path)
        self._edge = Edge(
            reach, host=config.host, port=config.port, domain=config.domain
        )
        stack.callback(lambda: self._edge.close(self._left()))
        self._edge.start()
        self._started = self._clock()
        self._viewer = Viewer(domain=config.domain, url=self.url)
        control = Control(
            config=config,
            keys=self._keys,
            templates=self._templates,
            sandboxes=self._sandboxes,
            viewer=self._viewer,
            status=self._status,
            uploads=data.uploads,
        )
        server = Server(
            create_app(control),
            unix_socket=str(socket_path),
            config=ServerConfig(max_request_size=MAX_BYTES),
            lanes=Lanes(classify=lane_of),
        )
        stack.callback(lambda: server.close(self._left()))
        server.start()

    @cached_property
    def _hooks(self) -> Hooks:
        if self._given_hooks is not None:
            return self._given_hooks
        folder = self._config.templates_dir
        return Hooks.load([TemplateFolder(folder)] if folder else ())

    def _find_template(self, ref: str) -> Path | None:
        return self._hooks.find_template(ref)

    def _builds_in_use(self) -> frozenset[str]:
        return self._sandboxes.builds_in_use()

    def _left(self) -> float:
        return self._closing.left() or 0.0

    def close(self, timeout: float = 10.0) -> None:
        """End all sandboxes, then stop. Idempotent.

        Args:
            timeout: Seconds within which sandboxes may end by themselves; after that
                they are killed.

        Blocking: about `timeout` seconds at most.
        """
        with self._lock:
            if self._resources is None or self._pid != os.getpid():
                return
            resources, self._resources = self._resources, None
            self._closing = Deadline.after(timeout)
            resources.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether it was started in this process and not closed."""
        return self._resources is not None and self._pid == os.getpid()

    @property
    def url(self) -> str:
        """Where clients of this machine reach it, without a slash at the end."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(
            self._config.host, self._config.host
        )
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self._edge.port}"

    @property
    def domain(self) -> str:
        """The domain that host names of sandboxes are built from."""
        return self._config.domain

    @property
    def api_key(self) -> str:
        """A key that it accepts: the first of the configured, or the generated one."""
        return self._api_key

    @property
    def templates(self) -> Templates:
        """The templates, without a detour over HTTP."""
        return self._templates

    @property
    def sandboxes(self) -> Sandboxes:
        """The live sandboxes, without a detour over HTTP."""
        return self._sandboxes

    def env(self) -> dict[str, str]:
        """Return the environment that points clients at it: ours, PPIO's and E2B's."""
        return {
            "PPIO_API_KEY": self.api_key,
            "PPIO_API_URL": self.url,
            "PPIO_SANDBOX_URL": self.url,
            "E2B_API_KEY": self.api_key,
            "E2B_API_URL": self.url,
            "E2B_SANDBOX_URL": self.url,
        }

    def deploy(self, path: str | Path, *, api_key: str | None = None) -> Template:
        """Make the agent in a folder a template, and note that in its manifest.

        Args:
            path: The folder, or the manifest in it.
            api_key: Whose template it is; None: that of `api_key` of the platform.

        Raises:
            TemplateManifestError: With everything that is wrong; nothing was kept.
            ConflictError: The manifest names another template.
            AuthenticationError: The key is not known.
        """
        tenant = (
            self._tenant if api_key is None else self._keys.tenant_of(api_key, None)
        )
        source = FolderSource.of(Path(path))
        record, _ = self._templates.deploy(source, tenant=tenant)
        template = self._viewer.template(record)
        write_status(source.manifest, template.to_dict())
        return template

    def _status(self) -> Mapping[str, Json]:
        config = self._config
        return {
            "version": __version__,
            "backend": self._backend.name,
            "sandboxes": self._sandboxes.counts(),
            "limits": {
                "maxSandboxesPerTenant": config.max_sandboxes_per_tenant,
                "maxSandboxes": config.max_sandboxes,
                "maxTimeout": config.max_timeout,
            },
            "uptime": round(self._clock() - self._started, 3),
        }


def _socket_folder() -> Path:
    """Return a new private folder whose path is short enough for a socket's."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()):
        usable = base and os.access(base, os.W_OK)
        if base and usable and len(base) < _LONGEST_SOCKET_PATH - 32:
            return Path(tempfile.mkdtemp(prefix="ppio-", dir=base))
    raise SandboxUnavailableError(
        "there is no folder with a short path for sockets: set TMPDIR to one"
    )
