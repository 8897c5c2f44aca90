"""Which templates there are: cached, fetched once for many, found by many names."""

from __future__ import annotations

import fnmatch
import logging
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable

from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Unshared
from ppio_agent._util.redact import escaped
from ppio_agent.exceptions import (
    TemplateNotFoundError,
    ValidationError,
)
from ppio_agent.wire.json import Json
from ppio_agent.wire.models import AgentTemplate, Template

from .control import ControlPlane, readable
from .flight import SingleFlight
from .limits import check_name

__all__ = ["TemplateManager", "find_template", "matches"]

_log = logging.getLogger(__name__)

# A ref that is not found forces a new list, so that a fresh deployment is seen; a
# loop over unknown refs must not become a loop of requests.
_FORCED_EVERY = 1.0


@frozen
class _Listing:
    templates: tuple[AgentTemplate, ...]
    account: Hashable
    fetched_at: float


class TemplateManager(Unshared):
    """The templates of one platform, as its control plane lists them.

    Args:
        control: Gives the control plane; asked when a list is fetched.
        enable_cache: Whether a list is kept; without it N threads that ask at once
            still make one request.
        cache_ttl: Seconds for which a list is kept.
        clock: Monotonic clock.

    Thread safety: thread-safe.

    Blocking: a method that has no list at hand waits for one request, at most
    `ClientConfig.request_timeout`.
    """

    _instead = "pass on its client, or what it lists"

    def __init__(
        self,
        control: Callable[[], ControlPlane],
        *,
        enable_cache: bool = True,
        cache_ttl: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._ttl = cache_ttl if enable_cache else 0.0
        self._clock = clock
        self._skipped = 0
        self.reset()

    def reset(self) -> None:
        """Forget all, as a forked child does, whose locks may be held for ever."""
        # Guards _listing and _forced_at.
        self._lock = threading.Lock()
        self._flights: SingleFlight[Hashable, _Listing] = SingleFlight()
        self._listing: _Listing | None = None
        self._forced_at = float("-inf")

    @property
    def skipped(self) -> int:
        """How many records of the newest list could not be read."""
        return self._skipped

    def list_templates(
        self,
        *,
        tags: Collection[str] | None = None,
        name: str | None = None,
        refresh: bool = False,
    ) -> list[AgentTemplate]:
        """Return the templates there are.

        Args:
            tags: Only those that have all of these.
            name: Only those whose name or an alias matches this pattern, as in
                ``chat-*``; case does not matter.
            refresh: Ask the platform even if a list is cached.

        Raises:
            ValidationError: `tags` is no list of texts, or `name` no text.
        """
        if isinstance(tags, str) or not isinstance(tags, Iterable | None):
            raise ValidationError(f"tags has to be a list, as in tags=[{tags!r}]")
        wanted = list(tags or ())
        if not all(isinstance(tag, str) for tag in wanted):
            raise ValidationError("tags has to be a list of texts")
        if not isinstance(name, str | None):
            raise ValidationError(f"name has to be a text, not {name!r}")
        if refresh:
            self.invalidate()
        found = self._current(Deadline.after(None)).templates
        return [t for t in found if matches(t, tags=wanted, name=name)]

    def get_template(
        self, ref: str, *, deadline: Deadline | None = None
    ) -> AgentTemplate:
        """Return the template that `ref` means.

        Args:
            ref: Its id, an alias, its name, ``name:version``, or an agent id that ends
                in ``-<template id>``; tried in this order. ``:latest`` is any version.
            deadline: Bounds the waiting.

        Raises:
            TemplateNotFoundError: There is none.
            ValidationError: An alias or name belongs to several; the message names
                them. Or `ref` is no text.
        """
        check_name("a template is named by its id, an alias or its name", ref)
        deadline = deadline or Deadline.after(None)
        asked_at = self._clock()
        listing = self._current(deadline)
        found = find_template(ref, listing.templates)
        if found is None and listing.fetched_at < asked_at and self._may_force():
            self.invalidate()
            listing = self._current(deadline)
            found = find_template(ref, listing.templates)
        if found is not None:
            return found
        where = self._control().endpoint.where
        names = sorted(t.name for t in listing.templates)[:10]
        known = ", ".join(map(escaped, names)) or "none"
        raise TemplateNotFoundError(
            f"no template {ref!r} on {where} (there: {known}); list_templates() shows"
            " all, `ppio-agent deploy` adds one"
        )

    def template_exists(self, ref: str) -> bool:
        """Tell whether `ref` means a template; see `get_template`."""
        try:
            self.get_template(ref)
        except TemplateNotFoundError:
            return False
        return True

    def invalidate(self) -> None:
        """Drop the cached list."""
        with self._lock:
            self._listing = None

    def _may_force(self) -> bool:
        now = self._clock()
        with self._lock:
            if now - self._forced_at < _FORCED_EVERY:
                return False
            self._forced_at = now
            return True

    def _current(self, deadline: Deadline) -> _Listing:
        control = self._control()
        account = (control.endpoint.url, control.auth.account)
        with self._lock:
            listing = self._listing
        if (
            listing is not None
            and listing.account == account
            and self._clock() - listing.fetched_at < self._ttl
        ):
            return listing
        return self._flights.run(
            account, lambda: self._fetch(control, account, deadline), deadline
        )

    def _fetch(
        self, control: ControlPlane, account: Hashable, deadline: Deadline
    ) -> _Listing:
        records = control.list_templates(deadline)
        templates = tuple(readable("template", records, _read))
        listing = _Listing(templates, account, self._clock())
        with self._lock:
            self._skipped = len(records) - len(templates)
            self._listing = listing
        return listing


def _read(record: Json) -> AgentTemplate:
    return AgentTemplate.from_template(Template.from_dict(record))


def matches(
    template: AgentTemplate, *, tags: Collection[str] = (), name: str | None = None
) -> bool:
    """Tell whether a template has all of `tags` and a name or alias like `name`."""
    if not set(tags) <= set(template.tags):
        return False
    if name is None:
        return True
    pattern = name.lower()
    names = (template.name, *template.aliases)
    return any(fnmatch.fnmatchcase(n.lower(), pattern) for n in names)


def find_template(ref: str, templates: Iterable[AgentTemplate]) -> AgentTemplate | None:
    """Return the template that `ref` means; see `TemplateManager.get_template`.

    Raises:
        ValidationError: Several have it as alias or as name.
    """
    templates = tuple(templates)
    found = _by_name(ref, templates)
    base, _, tag = ref.rpartition(":")
    if found is None and base:
        tagged = tuple(t for t in templates if tag in {"latest", t.version})
        found = _by_name(base, tagged) or _by_agent_id(base, tagged)
    return found or _by_agent_id(ref, templates)


def _by_agent_id(
    ref: str, templates: tuple[AgentTemplate, ...]
) -> AgentTemplate | None:
    name, _, template_id = ref.rpartition("-")
    if not name:
        return None
    return next((t for t in templates if t.template_id == template_id), None)


def _by_name(ref: str, templates: tuple[AgentTemplate, ...]) -> AgentTemplate | None:
    levels: tuple[Callable[[AgentTemplate], bool], ...] = (
        lambda t: t.template_id == ref,
        lambda t: ref in t.aliases,
        lambda t: t.name == ref,
    )
    for level in levels:
        found = {t.template_id: t for t in templates if level(t)}
        if len(found) > 1:
            ids = " and ".join(sorted(found))
            raise ValidationError(
                f"the name {ref!r} belongs to several templates, {ids}; use the id"
            )
        if found:
            return next(iter(found.values()))
    return None
