"""Where commands find templates: on a platform, or in the store of one that is not up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from ppio_agent.wire.json import Json

from .target import Target, find_or_open, open_target

if TYPE_CHECKING:
    from ppio_agent.sandbox import PlatformConfig
    from ppio_agent.sandbox.control.views import Viewer
    from ppio_agent.sandbox.templates.packing import Package
    from ppio_agent.sandbox.templates.store import Templates

__all__ = ["Shelf", "find_shelf"]

_DEPLOY_TIMEOUT = 300.0
# Longer than the platform gives to those who install before, and to this one.
_INSTALL_TIMEOUT = 1500.0


class Shelf(Protocol):
    """Templates of one tenant, each as the control plane shows it."""

    def every(self) -> Json:
        """Return all."""

    def get(self, ref: str) -> Json:
        """Return the one that `ref` means, with its builds."""

    def delete(self, template_id: str) -> None:
        """Delete one."""

    def deploy(self, package: Package, *, install: bool) -> Json:
        """Make a folder that was checked a template."""


@contextmanager
def find_shelf(*, install: bool = False) -> Iterator[Shelf]:
    """Find the templates to work on; without a platform they are this block's alone.

    Args:
        install: Whether requirements will be installed.

    Raises:
        PlatformAlreadyRunningError: As `find_or_open`.
    """
    with ExitStack() as stack:
        found = find_or_open(stack, lambda: _stored(install=install))
        if isinstance(found, tuple):
            yield _Remote(stack.enter_context(open_target(found)))
        else:
            yield found


@frozen
class _Remote:
    """Those of a platform that runs."""

    _target: Target

    def every(self) -> Json:
        return self._target.call(
            "GET", "templates", query={"metadata": "true"}, kind="other"
        )

    def get(self, ref: str) -> Json:
        return self._target.call("GET", "templates", ref, kind="template")

    def delete(self, template_id: str) -> None:
        self._target.call("DELETE", "templates", template_id, kind="template")

    def deploy(self, package: Package, *, install: bool) -> Json:
        return self._target.call(
            "POST", "platform", "v1", "templates",
            query={"install": "true" if install else None},
            body=package.archive(), kind="template",
            timeout=_INSTALL_TIMEOUT if install else _DEPLOY_TIMEOUT,
        )  # fmt: skip


@frozen
class _Stored:
    """Those in a data directory that nobody else uses meanwhile."""

    _templates: Templates
    _viewer: Viewer
    _tenant: str

    def every(self) -> Json:
        records = self._templates.list_templates(tenant=self._tenant)
        return [self._viewer.template_object(record) for record in records]

    def get(self, ref: str) -> Json:
        record = self._templates.get(ref, tenant=self._tenant)
        return self._viewer.template_detail(record, reversed(record.builds))

    def delete(self, template_id: str) -> None:
        self._templates.delete(template_id, tenant=self._tenant)

    def deploy(self, package: Package, *, install: bool) -> Json:
        record, _ = self._templates.deploy(
            package.source, tenant=self._tenant, install=install
        )
        return self._viewer.template_object(record)


@contextmanager
def _stored(*, install: bool) -> Iterator[Shelf]:
    from ppio_agent.sandbox import PlatformConfig
    from ppio_agent.sandbox.control.views import Viewer
    from ppio_agent.sandbox.datadir import DataDir
    from ppio_agent.sandbox.holdings import open_data, open_templates
    from ppio_agent.sandbox.keys import DEFAULT_TENANT

    config = PlatformConfig.from_env(os.environ)
    data = DataDir(config.data_dir)
    wheels_only = install and _contains(config)
    with open_data(data) as store:
        yield _Stored(
            open_templates(data, store, wheels_only=wheels_only),
            Viewer(domain=str, url=str),  # nothing of a template depends on an address
            next(iter(config.keys.values()), DEFAULT_TENANT),
        )


def _contains(config: PlatformConfig) -> bool:
    """Whether a platform on this machine would keep agents apart."""
    from ppio_agent.sandbox.backends import bubblewrap

    if config.backend != "auto":
        return config.backend != "process"
    return all(check.ok for check in bubblewrap.diagnose())
