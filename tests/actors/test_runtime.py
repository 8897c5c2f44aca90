"""The runtime: its types, its life, and what people ask of it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

import ppio_agent.actors
from ppio_agent.actors import (
    ActorId,
    ActorRequestMessage,
    InMemoryStateStorage,
    InProcessActorRuntime,
    RequestStatus,
    RuntimeOptions,
)
from ppio_agent.exceptions import (
    ActorBusyError,
    ActorError,
    InvalidActorIdError,
    NotFoundError,
    UnknownActorTypeError,
)
from tests.support import SLOW, wait_until

from .support import Gate, Made, actor, running


def test_the_package_names_all_that_is_public() -> None:
    """Each name is there when it is used, and not before."""
    for name in ppio_agent.actors.__all__:
        assert getattr(ppio_agent.actors, name) is not None
    assert dir(ppio_agent.actors) == sorted(ppio_agent.actors.__all__)
    with pytest.raises(AttributeError):
        ppio_agent.actors.nothing  # noqa: B018
    code = "import sys, ppio_agent.actors; print('ppio_agent.agent' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_types_are_registered_by_name() -> None:
    """One that cannot be is refused; the later one of a name counts."""
    runtime = InProcessActorRuntime()
    with pytest.raises(InvalidActorIdError):
        runtime.register_actor_type("no name", lambda _: Made(lambda *_: 1))
    with pytest.raises(TypeError, match="called"):
        runtime.register_actor_type("t", 7)  # type: ignore[arg-type]
    runtime.register_actor_type("t", lambda _: Made(lambda *_: 1), kind="test")
    runtime.register_actor_type(
        "t", lambda _: Made(lambda *_: 2), description="The second.", expose=True
    )
    runtime.register_agent("agent", lambda request: "Hello", kind="mock")
    known = [(t.name, t.kind, t.expose, t.is_agent) for t in runtime.types.listed()]
    assert known == [("agent", "mock", True, True), ("t", "custom", True, False)]
    with pytest.raises(UnknownActorTypeError, match="No factory registered"):
        runtime.get_or_create_actor(ActorId("nope", "1"))
    with runtime:
        assert runtime.client().ask(actor(), "m").data == 2


def test_an_actor_is_a_context_that_requests_are_sent_to() -> None:
    """As the client does it."""
    with running(lambda _context, message: {"got": message.params}) as runtime:
        context = runtime.get_or_create_actor(actor())
        request = ActorRequestMessage("m-1", method="m", params={"x": 1})
        assert context.send_request(request).result(5 * SLOW) == {"got": {"x": 1}}
        context.enqueue_message(ActorRequestMessage("m-2", method="m"))
        handle = runtime.client().get_request(actor(), "m-2")
        assert handle.result(5 * SLOW) == {"got": None}
        for use in (
            lambda: context.attempt,
            lambda: context.deadline,
            lambda: context.cancelled,
            context.check,
            lambda: context.progress(1),
            lambda: next(context.watch_messages()),
        ):
            with pytest.raises(ActorError, match="in a turn only"):
                use()


def test_inspect_and_stats_say_what_is_there() -> None:
    """Also while a turn runs that the store knows nothing of."""
    gate = Gate()
    with running(lambda *_: gate()) as runtime:
        with pytest.raises(NotFoundError):
            runtime.inspect(actor())
        client = runtime.client()
        first = client.send_request(actor(), "m", None, "m-1")
        gate.wait()
        client.send_request(actor(), "m", None, "m-2")
        told = runtime.inspect(actor())
        assert told["actor_id"] == "t/1"
        assert (told["live"], told["queued"], told["running"]) == (True, 1, "m-1")
        assert told["last_turn"] is None
        stats = runtime.stats()
        assert (stats["live"], stats["pending"], stats["busy"]) == (1, 2, 1)
        gate.opened.set()
        first.get_response(5 * SLOW)
        wait_until(lambda: runtime.inspect(actor())["running"] is None)
        assert runtime.inspect(actor())["last_turn"].endswith("Z")


def test_a_deleted_actor_is_gone() -> None:
    """State, requests and instance; not while a turn runs."""
    gate = Gate()
    gate.opened.set()
    made: list[int] = []

    def receive(context: Any, message: Any) -> Any:
        made.append(id(context))
        n = (context.read_state("n") or 0) + 1
        context.write_state("n", n)
        if message.method == "slow":
            gate()
        return {"n": n}

    with running(receive) as runtime:
        client = runtime.client()
        assert runtime.delete_actor(actor()) is False
        assert client.ask(actor(), "m", None, "m-1").data == {"n": 1}
        assert runtime.delete_actor(actor()) is True
        assert runtime.store.read_state(actor()) == {}
        response = client.get_request(actor(), "m-1").get_response(1)
        assert response.status is RequestStatus.NOT_FOUND
        assert client.ask(actor(), "m").data == {"n": 1}
        gate.opened.clear()
        gate.reached.clear()
        client.send_request(actor(), "slow")
        gate.wait()
        with pytest.raises(ActorBusyError):
            runtime.delete_actor(actor())
        gate.opened.set()


class _Told:
    """A placement that notes who is ready."""

    def __init__(self) -> None:
        self.woken: list[ActorId] = []

    def wake(self, actor_id: ActorId, not_before: float | None) -> None:
        assert not_before is None
        self.woken.append(actor_id)


def test_with_a_placement_others_say_when_an_actor_runs() -> None:
    """`run_actor` runs what waits, on its own thread, and lets the actor go."""
    placement = _Told()
    runtime = InProcessActorRuntime(
        placement=placement, options=RuntimeOptions(sweep_every=0.05)
    )
    runtime.register_actor_type("t", lambda _: Made(lambda _c, m: m.method))
    with runtime:
        client = runtime.client()
        handles = [client.send_request(actor(), f"m{n}") for n in range(3)]
        assert placement.woken[0] == actor()
        assert handles[0].try_get_response() is None
        assert runtime.run_actor(actor()) is True
        assert [h.result(1) for h in handles] == ["m0", "m1", "m2"]
        assert runtime.run_actor(actor()) is False
        assert runtime.stats()["live"] == runtime.stats()["known"] == 0
        assert runtime.stats()["threads"] == 0
        # If each wake is lost the sweep tells of the actor again.
        late = client.send_request(actor(), "late")
        del placement.woken[:]
        wait_until(lambda: placement.woken)
        assert runtime.run_actor(actor(), budget=0.0) is False
        assert runtime.run_actor(actor()) is True
        assert late.result(1) == "late"


def test_run_actor_leaves_to_others_what_they_run() -> None:
    """An actor that lives here, or in another runtime."""
    store, gate = InMemoryStateStorage(), Gate()
    with running(lambda *_: gate(), storage=store) as here:
        here.client().send_request(actor(), "m")
        gate.wait()
        # Begun only now: its sweep would have been the quicker one, at times.
        with running(lambda *_: 1, storage=store) as elsewhere:
            assert here.run_actor(actor()) is False
            assert elsewhere.run_actor(actor()) is False
            gate.opened.set()


def test_a_budget_ends_the_turns_of_run_actor() -> None:
    """The rest is for the next one that is woken, not begun and not lost."""
    placement, gate = _Told(), Gate()
    gate.opened.set()
    attempts: list[int] = []
    runtime = InProcessActorRuntime(placement=placement)

    def receive(context: Any, _message: Any) -> int:
        attempts.append(context.attempt)
        context.cancelled.wait(0.05)
        return 1

    runtime.register_actor_type("t", lambda _: Made(receive))
    with runtime:
        handles = [runtime.client().send_request(actor(), "m") for _ in range(3)]
        assert runtime.run_actor(actor(), budget=0.01) is True
        assert handles[0].result(1) == 1
        assert handles[1].try_get_response() is None
        assert runtime.run_actor(actor()) is True
        assert [handle.result(1) for handle in handles] == [1] * 3
        assert attempts == [1] * 3


_FORKS = """
    import os, threading
    from ppio_agent.actors import ActorId, IActor, InProcessActorRuntime
    from ppio_agent.exceptions import RuntimeNotRunningError, RuntimeStoppedError

    held, begun = threading.Event(), threading.Event()

    class Slow(IActor):
        def receive(self, context, message):
            if message.method == "slow":
                begun.set()
                held.wait(30)
            return message.method

    runtime = InProcessActorRuntime()
    runtime.register_actor_type("t", lambda _: Slow())
    runtime.start()
    client, actor = runtime.client(), ActorId("t", "1")
    handle = client.send_request(actor, "slow")
    begun.wait()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                client.ask(actor, "quick")
            except RuntimeNotRunningError:
                print("stopped", flush=True)
            try:
                handle.get_response(5)
            except RuntimeStoppedError:
                print("abandoned", flush=True)
            runtime.start()
            print(client.ask(actor, "quick", timeout=10).data, flush=True)
            runtime.stop()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    held.set()
    print(handle.result(10), flush=True)
    runtime.stop()
"""


def test_a_forked_child_has_a_stopped_runtime() -> None:
    """Which it may start; the parent's goes on."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_FORKS)],
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
        check=False,
    )
    assert done.stdout.split() == ["stopped", "abandoned", "quick", "slow"], done.stderr
