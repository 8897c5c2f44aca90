"""What is done with actors that crash."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType
from typing import Any

import pytest

from ppio_agent.actors import ActorOptions, InProcessActorRuntime, RuntimeOptions
from ppio_agent.actors.options import Supervision
from ppio_agent.exceptions import ActorStoppedError
from ppio_agent.hooks import hookimpl
from ppio_agent.wire.actors import ActorId, RequestStatus
from tests.support import SLOW, wait_until

from .support import Gate, Made, actor, running

QUICK = Supervision(backoff=0.0)


def crash(context: Any, message: Any) -> Any:
    if message.method == "crash":
        raise LookupError("crash")
    return "ok"


def test_a_crash_ends_its_request_and_what_its_turn_did() -> None:
    """The next message is answered by another instance, from the state before."""

    def receive(context: Any, message: Any) -> Any:
        count = (context.read_state("n") or 0) + 1
        context.write_state("n", count)
        if context.actor_id == actor():
            context.tell(actor("2"), "told")
        return crash(context, message)

    with running(receive, supervision=QUICK) as runtime:
        client = runtime.client()
        assert client.ask(actor(), "crash").status is RequestStatus.FAILED
        assert client.ask(actor(), "go").data == "ok"
        assert runtime.store.read_state(actor()) == {"n": 1}
        wait_until(lambda: runtime.store.read_state(actor("2")) == {"n": 1})


@pytest.mark.parametrize(("strategy", "instances"), [("restart", 2), ("resume", 1)])
def test_who_answers_after_a_crash(strategy: Any, instances: int) -> None:
    """Another instance, or with `resume` the same one."""
    made: list[Made] = []
    disposed: list[Made] = []

    class Watched(Made):
        def dispose(self) -> None:
            disposed.append(self)

    def factory(_context: Any) -> Watched:
        made.append(Watched(crash))
        return made[-1]

    supervision = Supervision(strategy=strategy, backoff=0.0)
    with running(crash, supervision=supervision) as runtime:
        runtime.register_actor_type(
            "t", factory, options=runtime.types.find("t").options
        )
        client = runtime.client()
        for method in ("go", "crash", "go"):
            client.ask(actor(), method)
        assert len(made) == instances
        assert disposed == made[:-1]


def test_before_a_restart_messages_wait_and_no_thread_does() -> None:
    """They are answered in their order once the wait is over; others go on."""
    turns: list[tuple[float, Any]] = []

    def receive(context: Any, message: Any) -> Any:
        turns.append((time.monotonic(), message.params))
        return crash(context, message)

    with running(receive, supervision=Supervision(backoff=0.3)) as runtime:
        client = runtime.client()
        client.ask(actor(), "crash")
        handles = [client.send_request(actor(), "go", {"n": n}) for n in range(3)]
        wait_until(lambda: runtime.stats()["busy"] == 0)
        assert [handle.result(5.0 * SLOW) for handle in handles] == ["ok"] * 3
        (crashed, _), *later = turns
        assert [params for _, params in later] == [{"n": n} for n in range(3)]
        assert later[0][0] - crashed >= 0.3 * 0.8


def test_stop_does_not_wait_for_a_restart() -> None:
    """What waited for it ends as all else does."""
    with running(crash, supervision=Supervision(backoff=30.0)) as runtime:
        client = runtime.client()
        client.ask(actor(), "crash")
        handle = client.send_request(actor(), "go")
        began = time.monotonic()
        assert runtime.stop(drain=10.0) == 0
        assert time.monotonic() - began < 5.0 * SLOW
        assert handle.get_response().status is RequestStatus.CANCELLED


def test_too_many_crashes_stop_an_actor() -> None:
    """The sixth does: what waits becomes dead letters, and no more is taken."""
    supervision = Supervision(backoff=0.0, quarantine=0.5)
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "last":
            gate()
            raise LookupError("last")
        return crash(context, message)

    with running(receive, supervision=supervision) as runtime:
        client = runtime.client()
        for _ in range(5):
            assert client.ask(actor(), "crash").status is RequestStatus.FAILED
        last = client.send_request(actor(), "last")
        gate.wait()
        waiting = [client.send_request(actor(), "go", {"n": n}) for n in range(3)]
        gate.opened.set()
        assert last.get_response(5.0 * SLOW).data["code"] == "actor_failed"
        for handle in waiting:
            response = handle.get_response(5.0 * SLOW)
            assert response.status is RequestStatus.FAILED
            assert response.data["code"] == "actor_stopped"
        for send in (client.send_request, client.ask):
            with pytest.raises(ActorStoppedError) as caught:
                send(actor(), "go")
            assert 0.0 < (caught.value.retry_after or 0.0) <= 0.5
        assert client.ask(actor("2"), "go").data == "ok"

        letters = runtime.dead_letters()
        assert [letter.reason for letter in letters] == ["actor_stopped"] * 3
        with pytest.raises(ActorStoppedError):
            runtime.redrive(letters[0].id)
        assert len(runtime.dead_letters()) == 3

        wait_until(lambda: runtime.engine.supervisor.stopped_for(actor()) == 0.0)
        answers = [runtime.redrive(letter.id).result(5.0 * SLOW) for letter in letters]
        assert answers == ["ok"] * 3
        assert runtime.dead_letters() == []
        assert client.ask(actor(), "go").data == "ok"


def test_what_comes_to_a_stopped_actor_by_other_ways_is_a_dead_letter() -> None:
    """It is told by another actor, or was accepted just before."""

    def receive(context: Any, message: Any) -> Any:
        if message.method == "tell":
            return context.tell(actor(), "go")
        return crash(context, message)

    supervision = Supervision(strategy="stop")
    with running(receive, supervision=supervision) as runtime:
        client = runtime.client()
        client.ask(actor(), "crash")
        told = client.ask(actor("2"), "tell").data
        wait_until(runtime.dead_letters)
        response = client.get_request(actor(), told).get_response(5.0 * SLOW)
        assert response.data["code"] == "actor_stopped"


def test_a_factory_that_raises_crashes_too() -> None:
    """Each request is answered, until the actor is stopped."""

    def factory(_context: Any) -> Any:
        raise LookupError("no actor")

    supervision = Supervision(backoff=0.0, max_restarts=1)
    with running(crash, supervision=supervision) as runtime:
        options = runtime.types.find("t").options
        runtime.register_actor_type("t", factory, options=options)
        client = runtime.client()
        codes = [client.ask(actor(), "go").data["code"] for _ in range(2)]
        assert codes == ["actor_failed"] * 2
        with pytest.raises(ActorStoppedError):
            client.ask(actor(), "go")


def test_a_type_whose_actors_are_stopped_is_degraded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told to plug-ins once, and clears after a window without a stop."""
    told: list[tuple[str, int]] = []
    plugin = ModuleType("escalation_plugin")

    @hookimpl
    def ppio_actor_escalation(type_name: str, stopped: int) -> None:
        told.append((type_name, stopped))

    plugin.ppio_actor_escalation = ppio_actor_escalation  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "escalation_plugin", plugin)
    monkeypatch.setenv("PPIO_PLUGINS", "escalation_plugin")
    supervision = Supervision(strategy="stop", escalate_after=3, window=0.3)
    with running(crash, supervision=supervision) as runtime:
        for key in "12345":
            runtime.client().ask(actor(key), "crash")
        assert told == [("t", 3)]
        assert runtime.degraded == ["t"]
        assert runtime.stats()["degraded"] == ["t"]
        wait_until(lambda: runtime.degraded == [])


def test_an_actor_that_crashes_beside_a_worker_of_an_engine() -> None:
    """`run_actor` ends, and the actor rests here before it is run again."""
    woken: list[Any] = []

    class Placement:
        def wake(self, actor_id: Any, not_before: float | None) -> None:
            woken.append(actor_id)

    runtime = InProcessActorRuntime(
        placement=Placement(), options=RuntimeOptions(sweep_every=60.0)
    )
    options = ActorOptions(supervision=Supervision(backoff=0.1))
    runtime.register_actor_type("t", lambda _: Made(crash), options=options)
    with runtime:
        client = runtime.client()
        client.send_request(actor(), "crash")
        handle = client.send_request(actor(), "go")
        assert runtime.run_actor(actor())
        assert handle.result(5.0 * SLOW) == "ok"
    assert woken[0] == actor()


def test_threads_crash_one_actor_as_one() -> None:
    """However many ask it at once, each request ends, and the actor stops once."""
    supervision = Supervision(backoff=0.001, max_restarts=3)
    ends: list[str] = []

    def ask(runtime: Any) -> None:
        for _ in range(5):
            try:
                ends.append(runtime.client().ask(actor(), "crash").data["code"])
            except ActorStoppedError:
                ends.append("refused")

    with running(crash, supervision=supervision) as runtime:
        threads = [threading.Thread(target=ask, args=(runtime,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0 * SLOW)
        assert len(ends) == 40
        assert ends.count("actor_failed") == 4
        assert set(ends) <= {"actor_failed", "actor_stopped", "refused"}


def test_an_agent_that_fails_stops_nothing() -> None:
    """What it raises is an answer: an outage of a model ends no conversation."""

    def agent(request: Any) -> Any:
        raise LookupError("the model is down")

    with running(crash) as runtime:
        runtime.register_agent("agent", agent)
        params = {"messages": [{"role": "user", "content": "hi"}]}
        client = runtime.client()
        ends = {
            client.ask(ActorId("agent", "1"), "run", params).status for _ in "x" * 100
        }
        assert ends == {RequestStatus.FAILED}
        assert runtime.dead_letters() == []
