"""The local sandbox platform: everything put together, started and closed."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from ppio_agent import __version__
from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import SandboxPlatformError, SandboxUnavailableError
from ppio_agent.hooks import Hooks
from ppio_agent.sandbox.backends.base import Backend
from ppio_agent.sandbox.backends.bubblewrap import Grounds
from ppio_agent.sandbox.backends.choice import choose_backend
from ppio_agent.sandbox.backends.control_group import ControlGroups, open_groups
from ppio_agent.sandbox.control.kit import asked_host
from ppio_agent.sandbox.control.places import Places
from ppio_agent.sandbox.control.views import Viewer
from ppio_agent.sandbox.edge.server import Edge
from ppio_agent.sandbox.templates.packing import write_status
from ppio_agent.sandbox.templates.snapshot import MAX_BYTES
from ppio_agent.sandbox.templates.sources import FolderSource
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.storage import DocumentStore
from ppio_agent.web import Lanes, Server, ServerConfig
from ppio_agent.wire.json import Json
from ppio_agent.wire.models import Template

from .config import PlatformConfig
from .control import Control, create_app, lane_of, refusal_of
from .datadir import DataDir, Running
from .edge.tls import TLS, open_tls
from .holdings import make_id, open_data, open_templates
from .keys import DEFAULT_TENANT, KeyRing
from .life.sandboxes import Folders, Sandboxes
from .metrics import Metrics
from .plugin import TemplateFolder
from .reach import Reach

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SandboxPlatform"]


@frozen(kw_only=True)
class _Parts:
    """What there is while the platform runs."""

    data: DataDir
    keys: KeyRing
    templates: Templates
    sandboxes: Sandboxes
    viewer: Viewer
    backend: Backend
    groups: ControlGroups | None
    places: Places
    url: str
    bundle: Path | None
    api_key: str = field(repr=False)
    tenant: str
    started: float


class SandboxPlatform(Closing):
    """Control plane, templates and sandboxes on this machine, at one address.

    A context manager. It also closes when the process ends.

    Args:
        config: Settings; None reads the environment.
        backend: What runs sandboxes; None: as `config.backend` says. Closed with it.
        hooks: Plug-ins that find templates; None loads the installed ones.
        stays: Whether it takes up the sandboxes of a platform that crashed, tidies up
            after it, and lets other processes find it. One for a single call leaves
            that to the next that stays.
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
        stays: bool = True,
        clock: Callable[[], float] = time.monotonic,
        id_factory: Callable[[], str] = make_id,
    ) -> None:
        self._config = PlatformConfig.from_env(os.environ) if config is None else config
        self._given_backend = backend
        self._given_hooks = hooks
        self._stays = stays
        self._clock = clock
        self._id_factory = id_factory
        self._renew()
        renew_in_child(self, SandboxPlatform._renew)
        self._pid = 0
        self._parts: _Parts | None = None
        self._resources = ExitStack()
        self._closing = Deadline.after(None)

    def _renew(self) -> None:
        # Guards start and close, which take turns.
        self._lock = threading.Lock()

    def start(self) -> Self:
        """Listen and serve.

        Raises:
            PlatformAlreadyRunningError: Something else uses the data directory.
            BackendUnavailableError: The backend that is asked for does not work here.
            TLSUnavailableError: `tls_port` is set, and the extra `tls` not installed.
            SandboxUnavailableError: This machine cannot run local sandboxes.
            ConfigurationError: There can be no data directory where it is to be.
            OSError: The address is taken, or the data directory cannot be written.
        """
        if sys.platform == "win32":
            raise SandboxUnavailableError(
                "local sandboxes need Linux or macOS: set PPIO_API_URL to use others"
            )
        with self._lock:
            if self._parts is not None:
                return self
            with ExitStack() as stack:
                self._parts = self._start(stack)
                self._resources = stack.pop_all()
            self._pid = os.getpid()
            atexit.register(self.close)
        return self

    def _start(self, stack: ExitStack) -> _Parts:
        config, data = self._config, DataDir(self._config.data_dir)
        store = stack.enter_context(open_data(data))
        keys = dict(config.keys) or {data.key(): DEFAULT_TENANT}
        ring = KeyRing(keys, any_key=config.any_key)
        sockets, left = _open_sockets(stack, data)
        groups = None if self._given_backend else open_groups(data.path)
        if groups is not None:
            stack.callback(groups.close)
        backend = self._given_backend or choose_backend(
            config.backend,
            Grounds(blank=data.blank, sockets=sockets),
            hidden=data.path,
            warm=config.warm,
            groups=groups,
        )
        stack.callback(backend.close)
        templates, sandboxes = self._make_sandboxes(data, store, backend, sockets)
        socket_path = sockets / "control.sock"
        tls = _open_tls(data, config)
        edge = Edge(
            Reach(sandboxes, ring, socket_path),
            host=config.host,
            port=config.port,
            domain=config.domain,
            tls=tls.context if tls else None,
            tls_port=config.tls_port or 0,
        )
        stack.callback(lambda: edge.close(self._left()))
        edge.listen()
        stack.callback(lambda: sandboxes.close(self._left()))
        if self._stays:
            templates.collect()
        places = Places(
            domain=config.domain, url=edge.url, tls_authority=edge.tls_authority
        )
        api_key, tenant = next(iter(keys.items()))
        parts = _Parts(
            data=data,
            keys=ring,
            templates=templates,
            sandboxes=sandboxes,
            viewer=_viewer(places, ring),
            backend=backend,
            groups=groups,
            places=places,
            url=edge.url,
            bundle=tls.bundle if tls else None,
            api_key=api_key,
            tenant=tenant,
            started=self._clock(),
        )
        control = self._serve(stack, parts, socket_path, uploads=data.uploads)
        if self._stays:
            data.announce(Running(url=edge.url, pid=os.getpid(), api_key=api_key))
            stack.callback(data.withdraw)
            # After all that may fail, for a platform that fails could only end them.
            # Who calls meanwhile is answered when they are there.
            sandboxes.recover()
            if groups is not None:
                groups.sweep({each.id for each in sandboxes.list_sandboxes()})
            left.callback(data.remove_socket_folder)
            control.remember_creates()
        edge.start()
        return parts

    def _make_sandboxes(
        self, data: DataDir, store: DocumentStore, backend: Backend, sockets: Path
    ) -> tuple[Templates, Sandboxes]:
        folders = Folders(live=data.sandboxes, sockets=sockets, ended=data.logs)
        templates = open_templates(
            data,
            store,
            wheels_only=backend.name != "process",
            id_factory=self._id_factory,
            find=self._find_template,
        )
        sandboxes = Sandboxes(
            self._config,
            store=store,
            templates=templates,
            backend=backend,
            folders=folders,
            id_factory=self._id_factory,
            monotonic=self._clock,
        )
        return templates, sandboxes

    def _serve(
        self, stack: ExitStack, parts: _Parts, socket_path: Path, *, uploads: Path
    ) -> Control:
        """Have the control plane answer what the edge will give it."""
        sandboxes = parts.sandboxes
        metrics = Metrics(sandboxes.list_sandboxes, monotonic=self._clock)
        control = Control(
            config=self._config,
            keys=parts.keys,
            templates=parts.templates,
            sandboxes=sandboxes,
            metrics=metrics,
            viewer=parts.viewer,
            status=self._status,
            uploads=uploads,
        )
        server = Server(
            create_app(control),
            unix_socket=str(socket_path),
            config=ServerConfig(max_request_size=MAX_BYTES, problem=refusal_of),
            lanes=Lanes(classify=lane_of),
        )
        stack.callback(lambda: server.close(self._left()))
        server.start()
        # Closed before it: agents end while their last answers still get through.
        stack.callback(lambda: sandboxes.close(self._left()))
        metrics.start()
        stack.callback(metrics.close)
        # Whoever waits for it is told, too, while answers get through.
        stack.callback(lambda: parts.templates.close(self._left()))
        # First of all: who listens is told that the platform ends, not its sandbox.
        stack.callback(control.streams.close)
        return control

    @cached_property
    def _hooks(self) -> Hooks:
        if self._given_hooks is not None:
            return self._given_hooks
        folder = self._config.templates_dir
        return Hooks.load([TemplateFolder(folder)] if folder else ())

    def _find_template(self, ref: str) -> Path | None:
        return self._hooks.find_template(ref)

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
            if not self.running:
                return
            self._closing = Deadline.after(timeout)
            self._resources.close()
            self._parts = None
        atexit.unregister(self.close)

    def abort(self) -> None:
        """Kill all sandboxes without grace, also while `close` waits for them.

        Their end is `close`'s to see to. From any thread; not from a signal handler.
        """
        parts = self._parts
        if parts is not None and self.running:
            parts.backend.close()

    def __enter__(self) -> Self:
        return self.start()

    @property
    def running(self) -> bool:
        """Whether it was started in this process and not closed."""
        return self._parts is not None and self._pid == os.getpid()

    def check(self) -> None:
        """See to it that the folders it needs are still there; from time to time.

        Raises:
            SandboxUnavailableError: One was removed or replaced, so that it keeps
                nothing, or nobody reaches it, any more: close it.
        """
        self._up.data.check()

    @property
    def _up(self) -> _Parts:
        if self._parts is None:
            raise RuntimeError(
                "the platform does not run: call start(), or use it in a with block"
            )
        return self._parts

    @property
    def url(self) -> str:
        """Where clients of this machine reach it, without a slash at the end."""
        return self._up.url

    @property
    def tls_url(self) -> str | None:
        """Where clients of this machine reach it over TLS; None if `tls_port` is."""
        authority = self._up.places.tls_authority
        return authority and f"https://{authority}"

    @property
    def domain(self) -> str:
        """What clients with `api_key` build host names of sandboxes from.

        With TLS it begins with a user name that stands for the key, and is not for
        others to see.
        """
        up = self._up
        return up.places.domain_for("", up.keys.short_of(up.tenant))

    @property
    def backend_name(self) -> str:
        """How sandboxes run: the name of the backend that was chosen."""
        return self._up.backend.name

    @property
    def has_control_groups(self) -> bool:
        """Whether the kernel keeps sandboxes to their limits; else they are sampled."""
        return self._up.groups is not None

    @property
    def api_key(self) -> str:
        """A key that it accepts: the first of the configured, or the generated one."""
        return self._up.api_key

    @property
    def templates(self) -> Templates:
        """The templates, without a detour over HTTP."""
        return self._up.templates

    @property
    def sandboxes(self) -> Sandboxes:
        """The live sandboxes, without a detour over HTTP."""
        return self._up.sandboxes

    def env(self) -> dict[str, str]:
        """Return the environment that points clients at it: ours, PPIO's and E2B's.

        With TLS it has also what the older of PPIO's need, which know https only.
        """
        bundle = self._up.bundle
        secure = {"PPIO_DOMAIN": self.domain, "SSL_CERT_FILE": str(bundle)}
        return {
            **(secure if bundle else {}),
            "PPIO_API_KEY": self.api_key,
            "PPIO_API_URL": self.url,
            "PPIO_SANDBOX_URL": self.url,
            "E2B_API_KEY": self.api_key,
            "E2B_API_URL": self.url,
            "E2B_SANDBOX_URL": self.url,
        }

    def deploy(
        self, path: str | Path, *, api_key: str | None = None, install: bool = False
    ) -> Template:
        """Make the agent in a folder a template, and note that in its manifest.

        Args:
            path: The folder, or the manifest in it.
            api_key: Whose template it is; None: that of `api_key` of the platform.
            install: Whether to install its `requirements.txt` into an environment that
                the agent then runs in; otherwise it runs in the platform's own.

        Raises:
            TemplateManifestError: With everything that is wrong; nothing was kept.
            ConflictError: The manifest names another template.
            AuthenticationError: The key is not known.
            SandboxPlatformError: A file cannot be read, or not be kept.
            RateLimitError: Other requirements of this key are being installed.
            ServiceUnavailableError: Those of others are, or the platform is closed.

        Blocking: with `install`, as long as pip takes, 10 minutes at most.
        """
        up = self._up
        tenant = up.tenant if api_key is None else up.keys.tenant_of(api_key, None)
        source = FolderSource.of(Path(path))
        try:
            record, _ = up.templates.deploy(source, tenant=tenant, install=install)
        except OSError as error:
            raise SandboxPlatformError(f"{path} was not deployed: {error}") from error
        template = up.viewer.template(record)
        write_status(source.manifest, template.to_dict())
        return template

    def _status(self, tenant: str) -> Mapping[str, Json]:
        config, up = self._config, self._up
        return {
            "version": __version__,
            "backend": up.backend.name,
            "controlGroups": self.has_control_groups,
            "sandboxes": up.sandboxes.counts(tenant=tenant),
            "limits": {
                "maxSandboxesPerTenant": config.max_sandboxes_per_tenant,
                "maxSandboxes": config.max_sandboxes,
                "maxTimeout": config.max_timeout,
            },
            "uptime": round(self._clock() - up.started, 3),
        }


def _viewer(places: Places, ring: KeyRing) -> Viewer:
    return Viewer(
        domain=lambda tenant: places.domain_for(asked_host(), ring.short_of(tenant)),
        url=lambda: places.url_for(asked_host()),
    )


def _open_sockets(stack: ExitStack, data: DataDir) -> tuple[Path, ExitStack]:
    """Return the folder for sockets, and what is done at its turn in `stack`.

    A new folder is removed then. What a platform that crashed has left is reached in
    an old one, which is kept until that is taken over.
    """
    folder = data.make_socket_folder()
    left = stack.enter_context(ExitStack())
    if not data.has_sockets:
        left.callback(data.remove_socket_folder)
    return folder, left


def _open_tls(data: DataDir, config: PlatformConfig) -> TLS | None:
    if config.tls_port is None:
        return None
    return open_tls(data.tls, domain=config.domain, host=config.host)
