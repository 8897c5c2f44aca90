"""The plug-ins and the typed facade over them."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ppio_agent.exceptions import AuthenticationError, ConfigurationError
from ppio_agent.hooks import ClientHooks, Hooks, hookimpl, manager, specs
from ppio_agent.wire.models import Principal

HOOKS = sorted(name for name in specs.__all__ if name.startswith("ppio_"))
BUILT_IN = "tests_hooks_built_in"
HOMES = dict(manager._BUILT_IN)


@pytest.fixture(autouse=True)
def built_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An empty module in the place of the built-in plug-ins."""
    module = ModuleType(BUILT_IN)
    monkeypatch.setitem(sys.modules, BUILT_IN, module)
    monkeypatch.setattr(manager, "_BUILT_IN", dict.fromkeys(HOOKS, BUILT_IN))
    return module


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What is installed: names and plug-ins; an exception fails to load."""
    plugins: dict[str, object] = {}

    def entry_points(*, group: str) -> list[object]:
        assert group == "ppio_agent"
        return [SimpleNamespace(name=n, load=lambda p=p: _loaded(p)) for n, p in
                plugins.items()]  # fmt: skip

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    manager._installed.cache_clear()
    yield plugins
    manager._installed.cache_clear()


def _loaded(plugin: object) -> object:
    if isinstance(plugin, Exception):
        raise plugin
    return plugin


class Named:
    """Takes part in every hook, under its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def ppio_authenticate(self, request: Any) -> Principal | None:
        return Principal(self.name) if request == self.name else None

    @hookimpl
    def ppio_middleware(self) -> list[Any]:
        return [f"{self.name} 1", f"{self.name} 2"]

    @hookimpl
    def ppio_client_headers(self) -> dict[str, str]:
        return {"X-Last": self.name, f"X-{self.name}": "1"}

    @hookimpl
    def ppio_client_auth(self, config: Any) -> Any:
        return self if config == self.name else None

    def headers(self, request: Any, *, refresh: bool = False) -> dict[str, str]:
        return {"X-Auth": self.name, "X-Refresh": str(refresh)}

    @hookimpl
    def ppio_client_middleware(self, call_next: Any, request: Any) -> Any:
        return f"{self.name}({call_next(request)})"

    @hookimpl
    def ppio_client_request(self, record: Any) -> None:
        record.append(f"{self.name} request")

    @hookimpl
    def ppio_client_response(self, record: Any) -> None:
        record.append(f"{self.name} response")

    @hookimpl
    def ppio_client_retry(self, record: Any) -> None:
        record.append(f"{self.name} retry")

    @hookimpl
    def ppio_client_stream_event(self, record: Any) -> None:
        record.append(f"{self.name} stream_event")

    @hookimpl
    def ppio_client_session_changed(self, record: Any) -> None:
        record.append(f"{self.name} session_changed")

    @hookimpl
    def ppio_find_template(self, ref: str) -> str | None:
        return f"/{self.name}" if ref in {self.name, "any"} else None

    @hookimpl
    def ppio_adapt_agent(self, obj: Any) -> Any:
        return self.headers if obj == self.name else None

    @hookimpl
    def ppio_model_provider(self, name: str) -> Any:
        return self.headers if name == self.name else None

    @hookimpl
    def ppio_actor_escalation(self, type_name: str, stopped: int) -> None:
        self.told = (type_name, stopped)

    @hookimpl
    def ppio_open_store(self, kind: str, url: str) -> Any:
        return f"{self.name}'s {kind}" if url == f"{self.name}://" else None

    @hookimpl
    def ppio_default_platform(self) -> tuple[str, str] | None:
        return (f"http://{self.name}", "key")


def test_every_hook_has_its_place_in_the_facade() -> None:
    """No caller needs pluggy; no hook is forgotten."""
    for name in HOOKS:
        short = name.removeprefix("ppio_")
        if hasattr(ClientHooks, short.removeprefix("client_")):
            continue  # a call of the client asks for it without a look-up
        spec = inspect.signature(getattr(specs, name))
        method = inspect.signature(getattr(Hooks, short))
        assert [*method.parameters][1:] == [*spec.parameters], name
    assert set(HOMES) <= set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_what_it_is_for(name: str) -> None:
    """When it is called, and on which thread."""
    doc = inspect.getdoc(getattr(specs, name)) or ""
    assert "\nCalled " in doc
    assert "thread" in doc or "Called once" in doc


def test_without_plugins_nobody_answers() -> None:
    """None, or nothing, of each hook."""
    hooks = Hooks()
    assert hooks.authenticate("r") is None
    assert hooks.middleware("app") == []
    assert hooks.client_headers("r") == {}
    assert hooks.find_template("any") is None
    assert hooks.adapt_agent("o") is None
    assert hooks.model_provider("n") is None
    assert hooks.open_store("actor", "n://") is None
    hooks.actor_escalation("chat", 20)
    assert hooks.default_platform("c") is None
    assert [name for name in HOOKS if hooks.implemented(name)] == []


def test_every_hook_reaches_its_plugins() -> None:
    """Through the facade, with typed results."""
    plugin = Named("a")
    hooks = Hooks.load([plugin], entry_points=False)
    assert hooks.adapt_agent("a") == plugin.headers
    assert hooks.model_provider("a") == plugin.headers
    assert hooks.open_store("nonce", "a://") == "a's nonce"
    hooks.actor_escalation("chat", 20)
    assert plugin.told == ("chat", 20)
    assert hooks.authenticate("a") == Principal("a")
    assert hooks.middleware("app") == ["a 1", "a 2"]
    assert hooks.client_headers("r") == {"X-Last": "a", "X-a": "1"}
    assert hooks.find_template("a") == Path("/a")
    assert hooks.default_platform("c") == ("http://a", "key")
    assert all(hooks.implemented(name) for name in HOOKS)


def test_for_a_decision_the_latest_plugin_is_asked_first() -> None:
    """And the next one if it has no answer."""
    hooks = Hooks.load([Named("a"), Named("b")], entry_points=False)
    assert hooks.find_template("any") == Path("/b")
    assert hooks.find_template("a") == Path("/a")
    assert hooks.find_template("neither") is None
    assert hooks.default_platform("c") == ("http://b", "key")


def test_contributions_come_in_the_order_of_registration() -> None:
    """The first plug-in's middleware is outermost; the last word on a header wins."""
    hooks = Hooks.load([Named("a"), Named("b")], entry_points=False)
    assert hooks.middleware("app") == ["a 1", "a 2", "b 1", "b 2"]
    assert hooks.client_headers("r") == {"X-Last": "b", "X-a": "1", "X-b": "1"}


def test_who_contributes_nothing_may_say_none() -> None:
    """It is passed over."""

    class Silent:
        @hookimpl
        def ppio_middleware(self) -> None:
            return None

        @hookimpl
        def ppio_client_headers(self) -> None:
            return None

    hooks = Hooks.load([Silent()], entry_points=False)
    assert hooks.middleware("app") == []
    assert hooks.client_headers("r") == {}


@pytest.mark.parametrize("given", [1, "x", {"A": 1}, {1: "a"}, [("A", "a")]])
def test_headers_that_are_none_are_refused_by_name(given: object) -> None:
    """The plug-in is named, not the place where they would be sent."""

    class Wrong:
        @hookimpl
        def ppio_client_headers(self) -> object:
            return given

    hooks = Hooks.load([Named("a"), Wrong()], entry_points=False)
    headers = hooks.for_client().headers
    assert headers is not None
    for ask in (headers, hooks.client_headers):
        with pytest.raises(ConfigurationError, match=r"plug-in .*Wrong has to give"):
            ask("r")


def test_a_refusal_reaches_the_caller() -> None:
    """Exceptions of plug-ins are not swallowed, and no other plug-in is asked."""

    class Refusing:
        @hookimpl
        def ppio_authenticate(self) -> None:
            raise AuthenticationError("no")

    hooks = Hooks.load([Named("a"), Refusing()], entry_points=False)
    with pytest.raises(AuthenticationError, match="no"):
        hooks.authenticate("a")


def test_built_in_plugins_come_last(built_in: ModuleType) -> None:
    """They answer where no other plug-in does, also if they are loaded later."""

    @hookimpl(trylast=True)
    def ppio_find_template(ref: str) -> str | None:
        return "/built-in"

    built_in.__dict__["ppio_find_template"] = ppio_find_template
    hooks = Hooks()
    assert hooks.find_template("a") == Path("/built-in")
    hooks.register(Named("a"))
    assert hooks.find_template("a") == Path("/a")
    assert hooks.find_template("x") == Path("/built-in")


def test_a_built_in_plugin_is_imported_when_its_hook_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however many threads ask first, and not before."""
    name = "tests_hooks_lazy"
    (tmp_path / f"{name}.py").write_text(
        "from ppio_agent.hooks import hookimpl\n"
        "@hookimpl(trylast=True)\n"
        "def ppio_find_template(ref):\n"
        "    return '/lazy'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(manager, "_BUILT_IN", {"ppio_find_template": name})
    hooks = Hooks()
    assert name not in sys.modules
    together = threading.Barrier(8)
    found: list[object] = []

    def ask() -> None:
        together.wait()
        found.append(hooks.find_template("x"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.delitem(sys.modules, name)
    assert found == [Path("/lazy")] * 8


def test_a_client_finds_out_once_who_takes_part() -> None:
    """In the order of registration; what nobody takes part in is None."""
    hooks = Hooks.load([Named("a"), Named("b")], entry_points=False).for_client()
    assert [m.run(lambda r: r, "r") for m in hooks.middleware] == ["a(r)", "b(r)"]
    assert [m.name for m in hooks.middleware] == ["Named", "Named"]
    record: Any = []
    for name in ("request", "response", "retry", "stream_event", "session_changed"):
        tell = getattr(hooks, name)
        assert tell is not None
        tell(record)
        assert record == [f"a {name}", f"b {name}"]
        record.clear()
    assert hooks.headers is not None
    assert hooks.headers("r")["X-Last"] == "b"
    assert hooks.observed
    assert Hooks().for_client() == ClientHooks()
    assert not ClientHooks().observed


def test_plugins_may_say_that_they_come_first_or_last() -> None:
    """Wherever they were registered; first is outermost."""

    class First(Named):
        @hookimpl(tryfirst=True)
        def ppio_client_middleware(self) -> str:
            return "first"

    class Last(Named):
        @hookimpl(trylast=True)
        def ppio_client_middleware(self) -> str:
            return "last"

    plugins = [Last("l"), Named("n"), First("f")]
    hooks = Hooks.load(plugins, entry_points=False).for_client()
    ran = [m.run(lambda r: r, "r") for m in hooks.middleware]
    assert ran == ["first", "n(r)", "last"]


@pytest.mark.parametrize("old", [True, False])
def test_hooks_that_are_called_one_by_one_take_no_wrapper(*, old: bool) -> None:
    """It would never be called; middleware is what wraps a call."""
    how = {"hookwrapper": True} if old else {"wrapper": True}

    class Wrapping(Named):
        @hookimpl(**how)
        def ppio_client_request(self) -> Iterator[None]:
            yield

    hooks = Hooks()
    with pytest.raises(
        ConfigurationError, match="ppio_client_request takes no wrapper"
    ):
        hooks.register(Wrapping("w"))
    assert hooks.for_client() == ClientHooks()


def test_a_plugin_that_authenticates_gives_headers() -> None:
    """The latest is asked first, and what it gives is looked at."""
    hooks = Hooks.load([Named("a"), Named("b")], entry_points=False)
    auth = hooks.client_auth("a")
    assert auth is not None
    assert auth.headers("r", refresh=True) == {"X-Auth": "a", "X-Refresh": "True"}
    assert hooks.client_auth("neither") is None

    class Wrong:
        @hookimpl
        def ppio_client_auth(self) -> dict[str, str]:
            return {"Authorization": "x"}

    hooks.register(Wrong())
    with pytest.raises(ConfigurationError, match=r"method headers.*not dict"):
        hooks.client_auth("a")


def test_failures_of_notifications_are_told_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each hook of each plug-in is logged once, with its traceback, and then at DEBUG."""

    class Broken(Named):
        @hookimpl
        def ppio_client_retry(self) -> None:
            raise ValueError(f"broken {self.name}")

    hooks = Hooks.load([Broken("a"), Broken("b")], entry_points=False).for_client()
    assert hooks.retry is not None
    with caplog.at_level("DEBUG"):
        for _ in range(2):
            hooks.retry(None)  # type: ignore[arg-type]
    assert [r.levelname for r in caplog.records] == ["ERROR"] * 2 + ["DEBUG"] * 2
    assert "broken b" in caplog.text
    assert "ppio_client_retry of the plug-in test_failures" in caplog.text
    assert all(r.exc_info for r in caplog.records)


def test_a_plugin_counts_once() -> None:
    """Whoever registers it twice does not double its work."""
    plugin = Named("a")
    hooks = Hooks.load([plugin, plugin], entry_points=False)
    hooks.register(plugin)
    assert hooks.middleware("app") == ["a 1", "a 2"]


def test_registration_closes() -> None:
    """What comes after the first request would have missed it."""
    hooks = Hooks()
    hooks.register(Named("a"))
    hooks.close_registration()
    hooks.close_registration()
    with pytest.raises(RuntimeError, match="before the first request"):
        hooks.register(Named("b"))
    assert hooks.find_template("any") == Path("/a")


class WrongArgument:
    @hookimpl
    def ppio_find_template(self, name: str) -> None:
        """Ask for what the hook does not give."""


class WrongName:
    @hookimpl
    def ppio_find_templates(self, ref: str) -> str:
        return "/wrong"


def _same_name(answer: str) -> ModuleType:
    module = ModuleType("tests_hooks_twin")

    @hookimpl
    def ppio_find_template() -> str:
        return answer

    module.__dict__["ppio_find_template"] = ppio_find_template
    return module


class Unmarked:
    def ppio_find_template(self, ref: str) -> str:
        return f"/{ref}"


@pytest.mark.parametrize(
    "plugin",
    [
        *(WrongArgument(), WrongName(), _same_name("/other"), Unmarked()),
        *(5, None, "x", inspect, Named, type("Empty", (), {})),
    ],
)
def test_a_plugin_that_does_not_fit_is_refused_as_a_whole(plugin: object) -> None:
    """The error names it; the hooks go on as if it had not been there."""
    hooks = Hooks.load([Named("a"), _same_name("/one")], entry_points=False)
    with pytest.raises(ConfigurationError, match="does not fit its hooks") as caught:
        hooks.register(plugin)
    assert repr(plugin) in str(caught.value)
    hooks.register(Named("b"))
    assert hooks.find_template("x") == Path("/one")
    assert hooks.middleware("app") == ["a 1", "a 2", "b 1", "b 2"]


@pytest.mark.parametrize(
    ("plugin", "why"), [(Named, "give an object of the class"), (inspect, "hookimpl")]
)
def test_what_is_no_plugin_lacks_something(plugin: object, why: str) -> None:
    """The error says what."""
    with pytest.raises(ConfigurationError, match=why):
        Hooks.load([plugin], entry_points=False)


def test_a_class_may_be_a_plugin_by_itself() -> None:
    """With functions that need no object."""

    class Static:
        @staticmethod
        @hookimpl
        def ppio_find_template(ref: str) -> str:
            return f"/{ref}"

    assert Hooks.load([Static], entry_points=False).find_template("a") == Path("/a")


def test_a_hook_of_a_later_version_may_be_optional() -> None:
    """A plug-in can say that it fits older versions, too."""

    class Newer(Named):
        @hookimpl(optionalhook=True)
        def ppio_of_next_year(self) -> None:
            """Take part where there is such a hook."""

    assert Hooks.load([Newer("a")], entry_points=False).find_template("a") == Path("/a")


Load = Callable[[str | None], Hooks]


@pytest.fixture
def load() -> Iterator[Load]:
    """Load hooks with a value of ``PPIO_PLUGINS``."""

    def load(chosen: str | None) -> Hooks:
        environ = {} if chosen is None else {"PPIO_PLUGINS": chosen}
        return Hooks.load(environ=environ)

    return load


def test_every_installed_plugin_takes_part(
    installed: dict[str, object], load: Load
) -> None:
    """Unless the variable selects; those of the program come after them."""
    installed.update(one=Named("one"), two=Named("two"))
    assert load(None).middleware("app") == ["one 1", "one 2", "two 1", "two 2"]
    hooks = Hooks.load([Named("own")], environ={})
    assert hooks.find_template("any") == Path("/own")
    hooks = Hooks.load([Named("own")], environ={}, entry_points=False)
    assert hooks.middleware("app") == ["own 1", "own 2"]


@pytest.mark.parametrize(
    ("chosen", "headers"),
    [
        ("", set()),
        ("  ", set()),
        ("two", {"X-Last", "X-two"}),
        (" two , , one ", {"X-Last", "X-one", "X-two"}),
    ],
)
def test_the_variable_selects_plugins(
    installed: dict[str, object], load: Load, chosen: str, headers: set[str]
) -> None:
    """By name; empty takes none."""
    installed.update(one=Named("one"), two=Named("two"), bad=ImportError("broken"))
    assert set(load(chosen).client_headers("r")) == headers


def test_the_variable_is_read_from_the_process(
    installed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no other environment is given."""
    installed.update(one=Named("one"), two=Named("two"))
    monkeypatch.setenv("PPIO_PLUGINS", "one")
    assert Hooks.load().middleware("app") == ["one 1", "one 2"]


def test_the_variable_may_name_modules_and_attributes(
    installed: dict[str, object], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever can be imported."""
    module = _same_name("/module")
    module.__dict__["inner"] = SimpleNamespace(plugin=Named("inner"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert load(module.__name__).find_template("x") == Path("/module")
    assert load(f"{module.__name__}:inner.plugin").find_template("any") == Path(
        "/inner"
    )


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ("absent_plugin", "ModuleNotFoundError"),
        ("sys:nothing", "AttributeError"),
        (":", "ValueError"),
        ("bad", "ImportError: broken"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named(
    installed: dict[str, object], load: Load, chosen: str, why: str
) -> None:
    """With the reason, and how to go on without it."""
    installed["bad"] = ImportError("broken")
    with pytest.raises(ConfigurationError) as caught:
        load(chosen)
    text = str(caught.value)
    assert text.startswith(f"the plug-in {chosen!r} cannot be loaded ({why}")
    assert "PPIO_PLUGINS" in text
    assert caught.value.__cause__ is not None


def test_an_installed_plugin_that_is_broken_is_named(
    installed: dict[str, object], load: Load
) -> None:
    """Also if the variable selects nothing."""
    installed["bad"] = RuntimeError("half installed")
    with pytest.raises(ConfigurationError, match=r"'bad' .*half installed"):
        load(None)


def test_what_is_installed_is_looked_for_once(
    installed: dict[str, object], load: Load
) -> None:
    """For each value of the variable; what could not be loaded is tried again."""
    installed["a"] = RuntimeError("half installed")
    with pytest.raises(ConfigurationError):
        load(None)
    installed["a"] = Named("a")
    assert load(None).find_template("any") == Path("/a")
    installed["a"] = Named("b")
    assert load(None).find_template("any") == Path("/a")
    assert load("a").find_template("any") == Path("/b")
    assert load("").find_template("any") is None
