"""Long work on the loop."""

from __future__ import annotations

import threading

from ppio_agent.sandbox.supervisor.envd.slices import Steps, run_in_slices
from ppio_agent.sandbox.supervisor.loop import Loop


def test_other_work_goes_on_between_slices() -> None:
    """A call that was due meanwhile is made before the work is done."""
    loop = Loop()
    seen: list[str] = []

    def steps() -> Steps[str]:
        for _ in range(20):
            threading.Event().wait(0.001)
            yield
        return "done"

    def done(result: str) -> None:
        seen.append(result)
        loop.stop()

    loop.call_later(0.005, lambda: seen.append("other"))
    run_in_slices(loop, steps(), done=done, failed=seen.append)  # type: ignore[arg-type]
    loop.run()

    assert seen == ["other", "done"]


def test_what_the_work_raises_is_told() -> None:
    """And ends nothing else."""
    error = LookupError("x")
    seen: list[object] = []

    def steps() -> Steps[None]:
        yield
        raise error

    run_in_slices(Loop(), steps(), done=seen.append, failed=seen.append)

    assert seen == [error]
