"""The plug-in manager, behind one typed facade.

Which plug-ins there are: the built-in ones (modules named here as text and imported
when one of their hooks is first asked for), the installed ones (entry points of the
group ``ppio_agent``, all of them or those that ``PPIO_PLUGINS`` selects), and those
that the program passes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import ConfigurationError

from . import specs
from .client import ClientHooks, ClientMiddleware

if TYPE_CHECKING:
    from ppio_agent.wire.models import Principal

__all__ = ["ENTRY_POINT_GROUP", "PLUGINS_VARIABLE", "Hooks"]

_log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "ppio_agent"
PLUGINS_VARIABLE = "PPIO_PLUGINS"

_BUILT_IN: Mapping[str, str] = {
    "ppio_authenticate": "ppio_agent.serving.plugin",
    "ppio_middleware": "ppio_agent.serving.plugin",
    "ppio_default_platform": "ppio_agent.sandbox.plugin",
    "ppio_find_template": "ppio_agent.sandbox.plugin",
}

# Hooks whose plug-ins are called one by one, not by pluggy: a wrapper would be lost.
_ONE_BY_ONE = frozenset({
    "ppio_actor_escalation",
    "ppio_client_headers",
    "ppio_client_middleware",
    "ppio_client_request",
    "ppio_client_response",
    "ppio_client_retry",
    "ppio_client_session_changed",
    "ppio_client_stream_event",
})  # fmt: skip


class Hooks:
    """The plug-ins of one app, client or platform, with one typed method a hook.

    A plug-in registered later is asked first, so the program's own come before the
    installed ones; the built-in ones are marked ``trylast`` and come at the end.

    Thread safety: calls are thread-safe; register before the first of them.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        self._closed = False
        self._renew()
        renew_in_child(self, Hooks._renew)
        # (hook, plug-in) of the notifications that failed: each is logged once.
        self._failed: set[tuple[str, str]] = set()

    def _renew(self) -> None:
        # Guards the import of built-in plug-ins.
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        plugins: Iterable[object] = (),
        *,
        environ: Mapping[str, str] | None = None,
        entry_points: bool = True,
    ) -> Hooks:
        """Return hooks with the installed plug-ins, then `plugins`.

        Args:
            plugins: Modules or objects with hook functions.
            environ: Where ``PPIO_PLUGINS`` is read: names of entry points, modules or
                ``module:attribute``, separated by commas. Unset takes every installed
                plug-in, empty none. Default: the process's environment.
            entry_points: Whether installed plug-ins are taken at all.

        Raises:
            ConfigurationError: ``PPIO_PLUGINS`` names what is neither installed nor
                importable, or a plug-in does not fit its hooks.
        """
        hooks = cls()
        if entry_points:
            chosen = (os.environ if environ is None else environ).get(PLUGINS_VARIABLE)
            for plugin in _installed(chosen):
                hooks.register(plugin)
        for plugin in plugins:
            hooks.register(plugin)
        return hooks

    def register(self, plugin: object) -> None:
        """Add a plug-in; the same one twice counts once.

        Raises:
            RuntimeError: The first request has been served.
            ConfigurationError: One of its functions does not fit the hook of its name.
        """
        if self._closed:
            raise RuntimeError(
                "plug-ins are registered before the first request, not after it"
            )
        self._add(plugin)

    def _add(self, plugin: object) -> None:
        if self._manager.is_registered(plugin):
            return
        try:
            self._manager.register(plugin)
            self._manager.check_pending()
            self._check(plugin)
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise ConfigurationError(
                f"the plug-in {plugin!r} does not fit its hooks: {error}"
            ) from error

    def _check(self, plugin: object) -> None:
        callers = self._manager.get_hookcallers(plugin)
        if not callers:
            raise ValueError(
                "it has no function that is named as a hook and marked with hookimpl"
            )
        for caller in callers:
            for found in caller.get_hookimpls():
                wraps = found.wrapper or found.hookwrapper
                if caller.name in _ONE_BY_ONE and wraps:
                    raise ValueError(f"{caller.name} takes no wrapper")
                if found.plugin is plugin and _lacks_self(found):
                    raise ValueError(
                        f"{caller.name} is a method, so give an object of the class"
                    )

    def close_registration(self) -> None:
        """Refuse further plug-ins from now on."""
        self._closed = True

    def _hook(self, name: str) -> pluggy.HookCaller:
        module = _BUILT_IN.get(name)
        if module is not None and not self._manager.has_plugin(module):
            with self._lock:
                if not self._manager.has_plugin(module):
                    self._manager.register(importlib.import_module(module), module)
        caller: pluggy.HookCaller = getattr(self._manager.hook, name)
        return caller

    def implemented(self, name: str) -> bool:
        """Whether any plug-in takes part in the hook `name`; the hot path asks once."""
        return bool(self._hook(name).get_hookimpls())

    def plugins_with(self, name: str) -> list[object]:
        """Return the plug-ins that take part in the hook `name`, first asked first."""
        return [found.plugin for found in reversed(self._hook(name).get_hookimpls())]

    def _parts(self, name: str) -> list[pluggy.HookImpl]:
        """Return what plug-ins have for the hook `name`, first registered first."""
        found = self._hook(name).get_hookimpls()
        return sorted(found, key=lambda part: part.trylast - part.tryfirst)

    def for_client(self) -> ClientHooks:
        """Return what plug-ins take part in at a client, to be asked once."""
        parts = self._hook("ppio_client_headers").get_hookimpls()
        return ClientHooks(
            headers=functools.partial(_client_headers, parts) if parts else None,
            middleware=tuple(
                ClientMiddleware(
                    _name(part.plugin), functools.partial(_middleware, part)
                )
                for part in self._parts("ppio_client_middleware")
            ),
            request=self._notifier("ppio_client_request"),
            response=self._notifier("ppio_client_response"),
            retry=self._notifier("ppio_client_retry"),
            stream_event=self._notifier("ppio_client_stream_event"),
            session_changed=self._notifier("ppio_client_session_changed"),
        )

    def _notifier(self, name: str) -> Callable[[Any], None] | None:
        """Return what tells the plug-ins of the hook `name`; None if there are none."""
        parts = self._parts(name)
        return functools.partial(self._notify, name, parts) if parts else None

    def _notify(self, name: str, parts: list[pluggy.HookImpl], record: object) -> None:
        self._tell(name, parts, {"record": record})

    def _tell(
        self, name: str, parts: list[pluggy.HookImpl], arguments: Mapping[str, object]
    ) -> None:
        for part in parts:
            try:
                _call(part, arguments)
            except Exception:  # noqa: BLE001 - logged with its traceback, once
                self._note_failure(name, part)

    def _note_failure(self, name: str, part: pluggy.HookImpl) -> None:
        """Log what a notification raised: with the next ones nothing new is said."""
        known = (name, part.plugin_name) in self._failed
        self._failed.add((name, part.plugin_name))
        _log.log(
            logging.DEBUG if known else logging.ERROR,
            "%s of the plug-in %s failed, which is ignored%s",
            name,
            _name(part.plugin),
            "" if known else "; further failures are logged at level DEBUG",
            exc_info=True,
        )

    def client_auth(self, config: object) -> specs.ClientAuth | None:
        """Return what authenticates a client's requests, or None for its API key.

        Raises:
            ConfigurationError: A plug-in gave what has no method `headers`.
        """
        found: specs.ClientAuth | None = self._hook("ppio_client_auth")(config=config)
        if found is not None and not callable(getattr(found, "headers", None)):
            raise ConfigurationError(
                "ppio_client_auth of a plug-in has to give an object with a method"
                f" headers(request, *, refresh=False), not {type(found).__name__}"
            )
        return found

    def authenticate(self, request: object) -> Principal | None:
        """Ask who sent `request`; see `specs.ppio_authenticate`."""
        principal: Principal | None = self._hook("ppio_authenticate")(request=request)
        return principal

    def middleware(self, app: object) -> list[Callable[..., Any]]:
        """Return the middleware that plug-ins contribute to `app`, outermost first."""
        contributions = self._hook("ppio_middleware")(app=app)
        return [item for items in reversed(contributions) for item in items]

    def client_headers(self, request: object) -> dict[str, str]:
        """Return the headers that plug-ins add to a client's `request`."""
        parts = self._hook("ppio_client_headers").get_hookimpls()
        return _client_headers(parts, request)

    def find_template(self, ref: str) -> Path | None:
        """Return the folder of the agent that `ref` means, or None."""
        found = self._hook("ppio_find_template")(ref=ref)
        return None if found is None else Path(found)

    def adapt_agent(self, obj: object) -> Callable[..., Any] | None:
        """Return `obj` as an agent, if a plug-in knows what it is; else None."""
        found: Callable[..., Any] | None = self._hook("ppio_adapt_agent")(obj=obj)
        return found

    def model_provider(self, name: str) -> Any:
        """Return the agent that asks the model provider `name`; None: no plug-in has."""
        return self._hook("ppio_model_provider")(name=name)

    def actor_escalation(self, type_name: str, stopped: int) -> None:
        """Tell that actors of a type crash again and again."""
        name = "ppio_actor_escalation"
        arguments = {"type_name": type_name, "stopped": stopped}
        self._tell(name, self._parts(name), arguments)

    def open_store(self, kind: str, url: str) -> Any:
        """Return the store of a `kind` that `url` names; None: no plug-in knows it."""
        return self._hook("ppio_open_store")(kind=kind, url=url)

    def default_platform(self, config: object) -> tuple[str, str] | None:
        """Return URL and API key of the platform to use where none was named."""
        found: tuple[str, str] | None = self._hook("ppio_default_platform")(
            config=config
        )
        return found


def _name(plugin: object) -> str:
    """Return what messages call a plug-in: a module's name, else a class's."""
    return getattr(plugin, "__name__", None) or type(plugin).__qualname__


def _call(part: pluggy.HookImpl, arguments: Mapping[str, object]) -> Any:
    """Call one plug-in's part with the arguments that it takes."""
    return part.function(*[arguments[name] for name in part.argnames])


def _lacks_self(part: pluggy.HookImpl) -> bool:
    """Return whether it is a method of a class that stands in for its object."""
    name = part.function.__name__
    return isinstance(part.plugin, type) and inspect.isfunction(
        inspect.getattr_static(part.plugin, name, None)
    )


def _client_headers(parts: list[pluggy.HookImpl], request: object) -> dict[str, str]:
    headers: dict[str, str] = {}
    for part in parts:
        added = _call(part, {"request": request})
        if added is None:
            continue
        if not isinstance(added, Mapping) or not all(
            isinstance(text, str) for pair in added.items() for text in pair
        ):
            raise ConfigurationError(
                f"ppio_client_headers of the plug-in {_name(part.plugin)} has to give a"
                " mapping of header names to texts"
            )
        headers.update(added)
    return headers


def _middleware(
    part: pluggy.HookImpl, call_next: Callable[[Any], Any], request: object
) -> Any:
    return _call(part, {"call_next": call_next, "request": request})


@functools.lru_cache(maxsize=16)
def _installed(chosen: str | None) -> tuple[object, ...]:
    """Return the plug-ins that `chosen`, the value of ``PPIO_PLUGINS``, selects.

    Looked for once: reading the metadata of all packages takes longer than making a
    client.
    """
    if chosen is not None and not chosen.strip():
        return ()
    points = {p.name: p for p in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if chosen is None:
        return tuple(_load(point.name, point.load) for point in points.values())
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return tuple(
        _load(
            name,
            points[name].load if name in points else functools.partial(_import, name),
        )
        for name in names
    )


def _load(name: str, load: Callable[[], object]) -> object:
    try:
        return load()
    except Exception as error:
        raise ConfigurationError(
            f"the plug-in {name!r} cannot be loaded ({type(error).__name__}: {error});"
            f" install it, or leave it out by the variable {PLUGINS_VARIABLE}"
        ) from error


def _import(name: str) -> object:
    module, _, attribute = name.partition(":")
    found: object = importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        found = getattr(found, part)
    return found
