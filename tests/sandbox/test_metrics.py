"""What sandboxes use: rates, ranges, folders, and the round over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.exceptions import SandboxStateError
from ppio_agent.sandbox.backends.base import Usage
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.metrics import Metrics, Series, as_milliseconds, folder_size
from tests.sandbox.fakes import FakeClock
from tests.sandbox.rig import PlatformRig
from tests.support import new_threads, wait_until


def _usage(cpu_seconds: float = 0.0, rss: int = 0) -> Usage:
    return Usage(cpu_seconds=cpu_seconds, rss_bytes=rss, processes=1)


def test_a_share_is_of_all_processors_and_of_the_time_since_the_last_sample() -> None:
    """100 is all of them; the first sample counts from the birth."""
    series = Series(cpus=2, born=0.0)
    series.add(_usage(10.0), now=10.0, at=1, disk=0)
    series.add(_usage(12.0), now=11.0, at=2, disk=0)

    assert [s.cpu_percent for s in series.between(None, None)] == [50.0, 100.0]


def test_the_time_of_a_pause_is_left_out() -> None:
    """What ran before and after it counts for the time that it could run."""
    series = Series(cpus=1, born=0.0)
    series.add(_usage(1.0), now=1.0, at=1, disk=0)
    series.skip(101.0)
    series.add(_usage(2.0), now=102.0, at=2, disk=0)

    assert [s.cpu_percent for s in series.between(None, None)] == [100.0, 100.0]


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=30),
    st.integers(1, 5),
)
def test_shares_are_never_negative_and_samples_never_too_many(
    steps: list[tuple[float, float]], kept: int
) -> None:
    """Whatever a backend says, and however little time has passed."""
    series, now = Series(cpus=1, born=0.0, kept=kept), 0.0
    for number, (passed, cpu_seconds) in enumerate(steps):
        now += passed
        series.add(_usage(cpu_seconds), now=now, at=number, disk=0)
    found = series.between(None, None)

    assert all(sample.cpu_percent >= 0.0 for sample in found)
    assert [s.at for s in found] == list(range(len(steps)))[-kept:]


@given(
    st.lists(st.integers(0, 20), max_size=20).map(sorted),
    st.none() | st.integers(0, 20),
    st.none() | st.integers(0, 20),
)
def test_a_range_has_both_its_ends(
    instants: list[int], start: int | None, end: int | None
) -> None:
    """None is no limit."""
    series = Series(cpus=1, born=0.0)
    for at in instants:
        series.add(_usage(), now=1.0, at=at, disk=0)

    expected = [
        at
        for at in instants
        if (start is None or at >= start) and (end is None or at <= end)
    ]
    assert [sample.at for sample in series.between(start, end)] == expected


@given(st.integers(0, 10**11 - 1))
def test_seconds_and_milliseconds_are_told_apart_by_their_size(seconds: int) -> None:
    """Seconds until the year 5138, milliseconds from 1973 on."""
    assert as_milliseconds(seconds) == seconds * 1000
    assert as_milliseconds(seconds + 10**11) == seconds + 10**11


def test_a_folders_size_follows_no_link_and_is_bounded(tmp_path: Path) -> None:
    """Blocks count, not lengths; a folder that is not there is empty."""
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"x" * 1_000_000)
    (root / "deep" / "link").symlink_to(tmp_path)
    (root / "deep" / "file").write_bytes(b"x" * 50_000)

    assert 50_000 <= folder_size(root) < 200_000
    assert folder_size(root, most=1) < 50_000
    assert folder_size(tmp_path / "none") == 0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PlatformRig]:
    rig = PlatformRig(tmp_path)
    yield rig
    rig.close()


def _make(rig: PlatformRig) -> LiveSandbox:
    return rig.sandboxes.create(CreateOptions(template="echo"), tenant="red")


def test_running_sandboxes_are_sampled_and_paused_ones_are_not(
    rig: PlatformRig,
) -> None:
    """Samples of a paused one stay; those of an ended one are forgotten."""
    metrics = Metrics(rig.sandboxes.list_sandboxes)
    sandbox = _make(rig)
    assert metrics.series(sandbox.id) is None
    rig.backend.last.load = _usage(rss=4096)
    metrics.sample()
    sandbox.pause()
    metrics.sample()

    series = metrics.series(sandbox.id)
    assert series is not None
    (sample,) = series.between(None, None)
    assert sample.memory == 4096
    assert sample.disk == folder_size(sandbox.identity.root)
    rig.sandboxes.kill(sandbox.id)
    metrics.sample()
    assert metrics.series(sandbox.id) is None


def test_one_that_does_not_answer_is_left_alone_for_a_while(rig: PlatformRig) -> None:
    """It would delay all others each time."""
    clock = FakeClock()
    metrics = Metrics(rig.sandboxes.list_sandboxes, monotonic=clock)
    silent, _ = _make(rig), _make(rig)
    asked: list[float] = []

    def fail() -> None:
        asked.append(clock.now)
        raise SandboxStateError("it does not answer")

    rig.backend.started[0].during["usage"] = fail
    for now in (0.0, 5.0, 59.0, 61.0):
        clock.now = 1000.0 + now
        metrics.sample()

    assert asked == [1000.0, 1061.0]
    series = metrics.series(silent.id)
    assert series is not None
    assert series.between(None, None) == []


def test_folders_are_looked_at_rarely(rig: PlatformRig) -> None:
    """Once a minute at most; between that the last size counts."""
    clock = FakeClock()
    metrics = Metrics(rig.sandboxes.list_sandboxes, monotonic=clock)
    sandbox = _make(rig)
    metrics.sample()
    (sandbox.identity.root / "big").write_bytes(b"x" * 1_000_000)
    clock.now += 59
    metrics.sample()
    clock.now += 1
    metrics.sample()

    series = metrics.series(sandbox.id)
    assert series is not None
    first, second, third = (sample.disk for sample in series.between(None, None))
    assert first == second < 1_000_000 < third


def test_a_folder_that_takes_long_is_made_up_for(
    rig: PlatformRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All together take a hundredth of the time, however many files there are."""
    clock = FakeClock()
    looked: list[float] = []

    def size(_: Path) -> int:
        looked.append(clock.now)
        clock.now += 0.25
        return 7

    monkeypatch.setattr("ppio_agent.sandbox.metrics.folder_size", size)
    metrics = Metrics(rig.sandboxes.list_sandboxes, monotonic=clock)
    for _ in range(3):
        _make(rig)
    for _ in range(60):
        metrics.sample()
        clock.now += 5

    assert 0.008 < 0.25 * len(looked) / (clock.now - looked[0]) < 0.012
    assert all(later - sooner > 15 for sooner, later in pairwise(looked))


def test_its_thread_ends_with_it(rig: PlatformRig) -> None:
    """And so does one that was never started."""
    threads = new_threads("ppio-metrics")
    metrics = Metrics(rig.sandboxes.list_sandboxes)
    metrics.close()
    metrics = Metrics(rig.sandboxes.list_sandboxes)
    metrics.start()
    assert threads() == ["ppio-metrics-1"]
    metrics.close()
    metrics.close()
    wait_until(lambda: threads() == [])
