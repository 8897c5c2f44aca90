"""The threads of a batch and what they share: the input, the items, the limits."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sized
from contextvars import copy_context

from ppio_agent._util.clock import Deadline
from ppio_agent._util.ids import new_id
from ppio_agent._util.threads import NoThreadError, start_thread
from ppio_agent.client.invocation import AgentRequest
from ppio_agent.exceptions import (
    BatchError,
    InvocationCancelledError,
    PPIOAgentError,
)
from ppio_agent.transport import CallHandle, shielded, waiting

from .admission import Admission
from .journal_file import BatchJournal
from .plan import BatchItem, BatchPlan
from .progress import BatchProgress, ProgressTeller
from .supply import BatchSupply
from .worker import BatchWorker, Ended, Job, Refused, SandboxDied

__all__ = ["BatchCrew"]

_log = logging.getLogger(__name__)


class BatchCrew:
    """Runs the items of a batch; outlives a batch that was let go of.

    Args:
        supply: Where sandboxes come from.
        requests: The input; read by the workers, by one at a time.
        plan: How the batch is run.
        journal: Where what happens is noted, if anywhere; closed with the batch.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        supply: BatchSupply,
        requests: Iterable[AgentRequest],
        plan: BatchPlan,
        journal: BatchJournal | None,
    ) -> None:
        self._supply = supply
        self._total = len(requests) if isinstance(requests, Sized) else None
        self._source = iter(requests)
        self._plan = plan
        self._journal = journal
        self._context = copy_context()
        self._started_at = time.monotonic()
        # Guards all below. Re-entrant, since a finaliser may stop the batch.
        self._lock = threading.RLock()
        # Three kinds of waiting on it, so that an item wakes one thread, not all: for
        # an item, for leave to go on or to have a sandbox, for workers to end.
        self._item = threading.Condition(self._lock)
        self._leave = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._consumers: set[CallHandle] = set()
        self._jobs: deque[Job] = deque()
        self._ready: dict[int, Ended] = {}
        self._taken = self._consumed = self._done = self._failed = self._replayed = 0
        self._admission = Admission(most=plan.workers)
        self._puller: BatchWorker | None = None
        self._exhausted = False
        self._failure: BaseException | None = None  # raised after the items
        self._broken: PPIOAgentError | None = None  # raised at once
        self._stopped = False
        self._idle = 0
        self._wanted = plan.workers
        self._hired: list[BatchWorker] = []
        self._running: set[BatchWorker] = set()
        self._leaving: set[BatchWorker] = set()  # those of _running without sandboxes
        self._teller: ProgressTeller | None = None

    def start(self) -> None:
        """End what a dead run has left, except where it is to be joined, and begin.

        Raises:
            NoThreadError: The system starts no thread.
            PPIOAgentError: The platform could not be asked for what was left.
        """
        if self._journal is not None and self._journal.resumed:
            entries = self._journal.entries.values()
            self._supply.kill_leftovers(but={e.sandbox_id for e in entries})
        self._hire()
        tellers = self._plan.tellers()
        if tellers:
            self._teller = ProgressTeller(tellers, self._progress)

    def _hire(self) -> None:
        """Start one more worker; each that gets an item starts the next."""
        worker = BatchWorker(self._supply, self._plan, self._journal)
        with self._lock:
            if self._stopped:
                return
            number = len(self._hired)
            self._hired.append(worker)
            self._running.add(worker)
        try:
            worker.thread = start_thread(
                f"ppio-client-batch-{number}",
                self._context.copy().run,
                self._run,
                worker,
            )
        except NoThreadError as error:
            with self._lock:
                self._running.discard(worker)
                self._wanted = len(self._running)
            if not self._wanted:
                raise
            _log.warning("a batch goes on with %d workers: %s", self._wanted, error)

    def stop(self) -> bool:
        """Drop what has not begun and abort what runs; return whether it was on."""
        with self._lock:
            if self._stopped:
                return False
            self._stopped = True
            workers = tuple(self._running)
            self._wake_all_locked()
        for worker in workers:
            worker.scope.abort(
                InvocationCancelledError(
                    "the batch was stopped before this item had ended"
                )
            )
        if not workers:
            self._let_go()
        return True

    def wait(self, timeout: float) -> None:
        """Wait until the workers have ended their sandboxes.

        One that waits for the input is not waited for: that is the caller's code, and
        may never come back.
        """
        limit = Deadline.after(timeout)
        with self._lock:
            self._ended.wait_for(lambda: self._running <= {self._puller}, limit.left())
            stuck = self._puller
        if stuck is not None:
            stuck.end()
        threads = [w.thread for w in self._hired if w is not stuck]
        if self._teller is not None:
            self._teller.change()
            threads.append(self._teller.thread)
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(limit.left())
        self._close_journal()

    def next_item(self) -> BatchItem:
        """Wait for the next item.

        Raises:
            StopIteration: There is none.
            BatchError: The batch was stopped, or its journal cannot be written.
            BaseException: What the input raised, after the items it had given.
        """
        found = self._find()
        if found is None:
            with waiting() as handle:
                found = self._wait_for_item(handle)
        if self._journal is not None:
            self._journal.sync(found.ticket)
        return found.item

    def _wait_for_item(self, handle: CallHandle) -> Ended:
        with self._lock:
            self._consumers.add(handle)
        try:
            while True:
                found = self._find()
                if found is not None:
                    return found
                # After the deadline there may be nothing to wait for but the input.
                handle.wait(self._plan.deadline.left() or None)
        finally:
            with self._lock:
                self._consumers.discard(handle)

    def _find(self) -> Ended | None:
        """Return the next item if it is there; raise if none will be."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._stopped:
                raise BatchError("the batch was closed before its end")
            index = self._consumed if self._plan.ordered else next(iter(self._ready), 0)
            found = self._ready.pop(index, None)
            if found is not None:
                self._consumed += 1
                self._item.notify()
            elif self._consumed == self._taken and self._no_more_locked():
                if self._failure is not None:
                    raise self._failure
                raise StopIteration
            return found

    def _no_more_locked(self) -> bool:
        late = self._plan.deadline.expired and self._puller is not None
        return self._exhausted or late

    def _run(self, worker: BatchWorker) -> None:
        try:
            with shielded(), worker.scope.running():
                while (job := self._take(worker)) is not None:
                    self._settle(worker, job, worker.run(job))
        except PPIOAgentError as error:
            self._break(error)
        except BaseException as error:  # noqa: BLE001 - the thread's outermost frame
            _log.exception("a worker of a batch failed")
            self._break(BatchError(f"a worker failed: {type(error).__name__}"))
        finally:
            self._dismiss(worker)

    def _take(self, worker: BatchWorker) -> Job | None:
        """Return what the worker is to run next; None if there is nothing any more."""
        while True:
            with self._lock:
                self._idle += 1
                self._await_turn_locked(worker)
                self._idle -= 1
                if self._stopped or (self._exhausted and not self._jobs):
                    return None
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    self._puller = worker
                else:
                    hire = self._begin_locked(worker)
            if job is not None:
                if hire:
                    self._hire()
                return job
            self._pull()

    def _begin_locked(self, worker: BatchWorker) -> bool:
        """Count an item in; tell whether another worker would find one to do."""
        if not worker.has_sandbox:
            self._admission = self._admission.opened()
        if self._exhausted and not self._jobs:
            self._wake_all_locked()  # nothing is left for those who wait
            return False
        more = self._jobs or self._taken != self._total
        return bool(more) and not self._idle and len(self._hired) < self._wanted

    def _await_turn_locked(self, worker: BatchWorker) -> None:
        """Wait until there is an item to run, to fetch, or none to come."""
        deadline = self._plan.deadline
        while not self._stopped and (self._jobs or not self._exhausted):
            late = deadline.expired  # what has not begun then fails at once
            pause = 0.0 if late else self._admission.pause(time.monotonic())
            if pause:
                self._leave.wait(deadline.bound(pause))
            elif not (late or worker.has_sandbox or self._admission.may_open):
                self._item.notify()  # an item that this one cannot run
                self._leave.wait(deadline.left())
            elif self._jobs or self._may_pull_locked():
                return
            else:
                self._item.wait()

    def _may_pull_locked(self) -> bool:
        ahead = self._taken - self._consumed
        return self._puller is None and ahead < self._plan.ahead

    def _pull(self) -> None:
        """Fetch the next request; one thread at a time does."""
        index = self._taken
        request: AgentRequest | None = None
        failure: BaseException | None = None
        exhausted = self._plan.deadline.expired and self._total is None
        try:
            if not exhausted:
                # The caller's code: it may block, fail, or take its time.
                request = next(self._source)
        except StopIteration:
            exhausted = True
        except BaseException as error:  # noqa: BLE001 - raised to whoever iterates
            failure, exhausted = error, True
        job, ended = None, None
        if not exhausted:
            job = Job(index=index, request=request, key=new_id())  # type: ignore[arg-type]
            ended = self._recall(job)
        with self._lock:
            self._puller = None
            self._ended.notify_all()
            if exhausted:
                self._exhausted, self._failure = True, failure
                self._wake_all_locked()
                return
            self._taken += 1
            if ended is None and job is not None:
                self._jobs.append(job)
            self._item.notify()
        if ended is not None:
            self._give(ended)

    def _recall(self, job: Job) -> Ended | None:
        """Return what an earlier run has made of an item, or let it be joined.

        Raises:
            BatchJournalError: It was another request then.
        """
        if self._journal is None:
            return None
        entry = self._journal.recall(job.index, job.request)
        if entry is None:
            return None
        job.noted = True
        if entry.done is not None:
            outcome = self._journal.answer(entry.done)
            return Ended(job.item_of_earlier_run(outcome))
        if entry.sandbox_id is not None:
            job.left, job.key = entry, entry.key
        return None

    def _settle(
        self, worker: BatchWorker, job: Job, result: Ended | Refused | SandboxDied
    ) -> None:
        """Give an item that has ended; put back one that is to be tried again."""
        with self._lock:
            if not worker.has_sandbox:
                self._admission = self._admission.ended()
                self._leave.notify()
            given_up = isinstance(result, Refused) and not self._may_retry_locked(
                result
            )
            if not isinstance(result, Ended) and not given_up:
                self._jobs.appendleft(job)
                self._item.notify()
        if isinstance(result, Ended):
            self._give(result)
        elif isinstance(result, Refused) and given_up:
            self._give(worker.failed(job, result.error))

    def _may_retry_locked(self, refused: Refused) -> bool:
        told = self._admission.refused(
            creating=refused.creating,
            retry_after=refused.error.retry_after,
            now=time.monotonic(),
            random=random.random,
        )
        if told is not None:
            self._admission = told
        return told is not None

    def _give(self, ended: Ended) -> None:
        item = ended.item
        with self._lock:
            self._ready[item.index] = ended
            self._done += 1
            self._failed += item.error is not None
            self._replayed += item.from_journal
            if item.error is None and not item.from_journal:
                limit = self._admission.limit
                self._admission = self._admission.succeeded()
                if self._admission.limit > limit:
                    self._leave.notify()
            wanted = not self._plan.ordered or item.index == self._consumed
            consumers = tuple(self._consumers) if wanted else ()
        for consumer in consumers:
            consumer.wake()
        if self._teller is not None:
            self._teller.change()

    def _break(self, error: PPIOAgentError) -> None:
        """End the batch with an error, unless it was stopped anyway."""
        with self._lock:
            if not self._stopped and self._broken is None:
                self._broken = error
        self.stop()

    def _dismiss(self, worker: BatchWorker) -> None:
        had_sandbox = worker.has_sandbox
        worker.end()
        with self._lock:
            self._leaving.add(worker)
            last = self._running <= self._leaving
        if last:
            self._sweep()
        with self._lock:
            if had_sandbox:
                self._admission = self._admission.ended()
            if self._puller is worker:
                self._puller = None
            self._running.discard(worker)
            self._leaving.discard(worker)
            self._wake_all_locked()
            close = self._stopped and not self._running
        if close:
            self._let_go()
        if self._teller is not None:
            self._teller.change()

    def _sweep(self) -> None:
        """End what the creations of a dead run have come to meanwhile."""
        if self._journal is None or not self._journal.resumed:
            return
        try:
            self._supply.kill_leftovers(but=())
        except PPIOAgentError as error:
            _log.warning("looking for a batch's leftover sandboxes failed: %s", error)

    def _let_go(self) -> None:
        """Close what the batch has taken from; no worker is left."""
        self._close_journal()
        if isinstance(self._source, Generator):
            try:
                self._source.close()
            except Exception:  # noqa: BLE001 - the caller's code; nobody waits for it
                _log.exception("closing the input of a batch failed")

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _wake_all_locked(self) -> None:
        for condition in (self._item, self._leave, self._ended):
            condition.notify_all()
        for consumer in self._consumers:
            consumer.wake()

    def _progress(self) -> BatchProgress:
        with self._lock:
            stuck = {self._puller} if self._stopped else set()
            eta = None
            worked = self._done - self._replayed
            if self._total is not None and worked:
                pace = (time.monotonic() - self._started_at) / worked
                eta = pace * (self._total - self._done)
            return BatchProgress(
                total=self._total,
                done=self._done,
                failed=self._failed,
                running=self._taken - self._done,
                eta=eta,
                ended=self._running <= stuck,
            )
