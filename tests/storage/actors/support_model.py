"""What a store of actors does, in the simplest form: lists, dictionaries, no speed."""

from __future__ import annotations

from attrs import define, field

from ppio_agent.storage.actors.records import Cancellation, Limits
from ppio_agent.wire.actors import ActorId

PENDING = ("pending", "")


@define(eq=False)
class Known:
    """A request: its end as status and code, and what its turns were."""

    id: str
    deadline: float | None = None
    mailbox: int = 9
    end: tuple[str, str] = PENDING
    attempt: int = 0
    begun: int = 0
    cancel: Cancellation | None = None

    def seen(self) -> tuple[object, ...]:
        return self.end, self.attempt, self.cancel


@define(eq=False)
class Actor:
    """One actor; requests in the order of their acceptance."""

    requests: dict[str, Known] = field(factory=dict)
    queue: list[Known] = field(factory=list)
    state: dict[str, bytes] = field(factory=dict)
    worker: str | None = None
    token: int = 0

    @property
    def running(self) -> Known | None:
        return next((one for one in self.queue if one.attempt), None)

    @property
    def waiting(self) -> list[Known]:
        return [one for one in self.queue if not one.attempt]


@define(eq=False)
class Model:
    """All actors; what methods return is what a store returns, by ids."""

    actors: dict[ActorId, Actor]
    workers: set[str] = field(factory=set)
    outbox: list[tuple[ActorId, Known]] = field(factory=list)
    dead: list[tuple[str, str]] = field(factory=list)

    def pending(self) -> int:
        return sum(len(actor.queue) for actor in self.actors.values())

    def end(self, actor: Actor, one: Known, status: str, code: str = "") -> str:
        actor.queue.remove(one)
        one.end = (status, code)
        if code in {"dropped", "crashed"}:
            self.dead.append((one.id, code))
        return one.id

    def accept(
        self, actor: Actor, one: Known, limits: Limits
    ) -> tuple[str, list[str], str | None]:
        if one.id in actor.requests:
            return "duplicate", [], None
        instead = limits.on_busy in {"interrupt", "rollback"}
        leave: list[Known] = []
        if actor.queue and limits.on_busy == "reject":
            return "busy", [], None
        if instead:
            leave = actor.waiting
        elif limits.drop_oldest and len(actor.queue) >= limits.mailbox:
            leave = actor.waiting[:1]
        if len(actor.queue) - len(leave) >= limits.mailbox:
            return "full", [], None
        end = ("cancelled", "superseded") if instead else ("rejected", "dropped")
        ended = [self.end(actor, gone, *end) for gone in leave]
        running = actor.running if instead else None
        if running is not None:
            self.note(running, Cancellation(limits.on_busy))
        self.put(actor, one)
        return "new", ended, None if running is None else running.id

    def put(self, actor: Actor, one: Known) -> None:
        actor.requests[one.id] = one
        actor.queue.append(one)

    def note(self, one: Known, how: Cancellation) -> None:
        if one.cancel in (None, Cancellation.INTERRUPT):
            one.cancel = how

    def cancel(self, actor: Actor, id: str, how: Cancellation) -> str:
        one = actor.requests.get(id)
        if one is None:
            return "not_found"
        if one.end != PENDING:
            return "terminal"
        if one.attempt:
            self.note(one, how)
            return "requested"
        self.end(actor, one, "cancelled", "cancelled")
        return "cancelled"

    def claim(self, actor: Actor, worker: str) -> bool:
        if actor.worker not in (None, worker) and actor.worker in self.workers:
            return False
        actor.worker = worker
        return True

    def retire(self, worker: str) -> None:
        self.workers.discard(worker)
        for actor in self.actors.values():
            if actor.worker == worker:
                actor.worker = None

    def take(self, actor: Actor, crash_attempts: int) -> tuple[str | None, list[str]]:
        ended = []
        while actor.queue:
            one = actor.queue[0]
            again = one.attempt and one.begun == actor.token
            if one.cancel is not None:
                ended.append(self.end(actor, one, *_cancelled(one.cancel)))
            elif one.attempt >= crash_attempts and not again:
                ended.append(self.end(actor, one, "failed", "crashed"))
            else:
                one.attempt += not again
                one.begun = actor.token
                return one.id, ended
        return None, ended

    def commit(
        self,
        actor: Actor,
        id: str,
        *,
        fresh: bool,
        sent: Known | None,
        state: dict[str, bytes],
        keep: bool,
        outbox: list[tuple[ActorId, Known]],
    ) -> str:
        one = actor.requests.get(id)
        if one.end != PENDING if one is not None else sent is None:
            return "ended"
        if one is not None and one.cancel is not None:
            kept = keep and one.cancel is Cancellation.INTERRUPT
            if kept and fresh:
                actor.state.update(state)
            self.end(actor, one, *_cancelled(one.cancel))
            return "cancelled"
        if not fresh:
            return "conflict"
        if one is None and sent is not None:
            self.put(actor, sent)
            one = sent
        assert one is not None
        self.end(actor, one, "completed")
        actor.state.update(state)
        self.outbox += outbox
        return "committed"

    def expire(self, now: float) -> set[str]:
        ended = set()
        for actor in self.actors.values():
            for one in list(actor.queue):
                if one.deadline is not None and one.deadline <= now:
                    ended.add(self.end(actor, one, "expired", "invocation_timeout"))
        return ended

    def relay(self) -> set[ActorId]:
        left, got = [], set()
        for target, one in self.outbox:
            actor = self.actors[target]
            if one.id in actor.requests:
                continue
            if len(actor.queue) >= one.mailbox:
                left.append((target, one))
            else:
                self.put(actor, one)
                got.add(target)
        self.outbox = left
        return got


def _cancelled(how: Cancellation) -> tuple[str, str]:
    return "cancelled", "cancelled" if how is Cancellation.CANCEL else "superseded"
