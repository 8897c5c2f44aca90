"""Batches with a journal: what a later run yields, joins, runs again and refuses."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppio_agent.client import AgentRuntimeClient, ClientConfig, pool
from ppio_agent.exceptions import (
    BatchJournalError,
    InvocationError,
    RequestTimeoutError,
    SessionNotFoundError,
)
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.support import SLOW, wait_until, write_agent
from tests.support_platform import (
    KEY,
    LIKE_A_DEAD_SANDBOX,
    Exchange,
    FakePlatform,
    template_record,
)

PROMPTS = [str(n) for n in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batch.jsonl"


def _prompts(platform: FakePlatform) -> list[str]:
    return [r.json()["prompt"] for r in platform.seen("POST", "/invocations$")]


class TestRerun:
    def test_yields_what_was_done_and_runs_the_rest(
        self, client: AgentRuntimeClient, platform: FakePlatform, path: Path
    ) -> None:
        """No sandbox is made for what is done; a finished batch needs none."""
        with client.invoke_many("tpl1", PROMPTS[:3], journal=path) as batch:
            first = batch.results()
        items = list(client.invoke_many("tpl1", PROMPTS, journal=path))
        again = list(client.invoke_many("tpl1", iter(PROMPTS), journal=path))

        assert [i.from_journal for i in items] == [True] * 3 + [False] * 3
        assert [i.response for i in items[:3]] == first
        assert [i.from_journal for i in again] == [True] * 6
        assert [i.response for i in again] == [i.response for i in items]
        assert sorted(_prompts(platform)) == PROMPTS
        assert len(platform.sandboxes) == 6
        assert platform.alive == []

    def test_runs_what_failed_again(
        self, client: AgentRuntimeClient, platform: FakePlatform, path: Path
    ) -> None:
        """Under another key, as the agent keeps the failure."""

        def answer(exchange: Exchange) -> None:
            exchange.reply(500, {"result": None, "status": "error", "error": "no"})

        with (
            platform.overriding("POST", "/invocations$", answer),
            pytest.raises(InvocationError),
        ):
            client.invoke_many("tpl1", PROMPTS[:1], journal=path).results()
        items = list(client.invoke_many("tpl1", PROMPTS[:1], journal=path))

        assert [i.from_journal for i in items] == [False]
        sent = platform.seen("POST", "/invocations$")
        assert len({r.headers["idempotency-key"] for r in sent}) == 2

    def test_joins_what_was_under_way_in_its_sandbox(
        self,
        make_client: Callable[..., AgentRuntimeClient],
        platform: FakePlatform,
        path: Path,
    ) -> None:
        """With its key; what else the dead run has left is killed."""
        dead, key, sandbox_id, idle = _left_behind(make_client, platform, path)
        items = list(make_client().invoke_many("tpl1", PROMPTS[:2], journal=dead))

        joined = platform.seen("POST", "/invocations$")[-2:]
        assert key in {r.headers["idempotency-key"] for r in joined}
        assert [i.error for i in items] == [None, None]
        assert items[0].response is not None
        assert items[0].response.sandbox_id == sandbox_id
        assert {sandbox_id, *idle} <= set(platform.killed)

    def test_waits_for_a_platform_no_longer_than_its_deadline(
        self,
        make_client: Callable[..., AgentRuntimeClient],
        platform: FakePlatform,
        path: Path,
    ) -> None:
        """When it asks for the sandbox that it is to join."""
        dead, _, sandbox_id, _ = _left_behind(make_client, platform, path)
        asked = threading.Event()
        platform.on("GET", f"/sandboxes/{sandbox_id}", lambda _: asked.wait(5) and None)
        batch = make_client().invoke_many(
            "tpl1", PROMPTS[:1], journal=dead, deadline=0.2, return_exceptions=True
        )
        started = time.monotonic()
        (error,) = batch.results()
        took = time.monotonic() - started
        asked.set()

        assert isinstance(error, RequestTimeoutError)
        assert took < 3 * SLOW

    def test_runs_again_what_was_under_way_in_a_sandbox_that_is_gone(
        self,
        make_client: Callable[..., AgentRuntimeClient],
        platform: FakePlatform,
        path: Path,
    ) -> None:
        """What it did there is lost."""
        dead, _, sandbox_id, _ = _left_behind(make_client, platform, path)
        platform.killed.append(sandbox_id)
        platform.sandboxes[sandbox_id].state = "killed"
        items = list(make_client().invoke_many("tpl1", PROMPTS[:2], journal=dead))

        assert [i.error for i in items] == [None, None]
        assert items[0].response is not None
        assert items[0].response.sandbox_id != sandbox_id

    def test_fails_with_what_the_agent_says_to_being_joined(
        self,
        make_client: Callable[..., AgentRuntimeClient],
        platform: FakePlatform,
        path: Path,
    ) -> None:
        """Also if that looks as if its sandbox had gone: nothing runs again."""
        dead, key, _, _ = _left_behind(make_client, platform, path)
        status, body = LIKE_A_DEAD_SANDBOX[0]

        def answer(exchange: Exchange) -> None:
            if exchange.request.headers["idempotency-key"] == key:
                exchange.reply(status, body)

        platform.on("POST", "/invocations$", answer)
        before = len(platform.seen("POST", "/invocations$"))
        items = list(
            make_client().invoke_many(
                "tpl1", PROMPTS[:2], journal=dead, return_exceptions=True
            )
        )

        assert [type(i.error) for i in items] == [SessionNotFoundError, type(None)]
        assert len(platform.seen("POST", "/invocations$")) == before + 2

    def test_with_another_request_or_template_is_refused_before_anything_runs(
        self, client: AgentRuntimeClient, platform: FakePlatform, path: Path
    ) -> None:
        """The journal stays as it was."""
        client.invoke_many("tpl1", PROMPTS, journal=path).results()
        platform.templates.append(template_record("tpl2"))
        client.list_templates(refresh=True)
        before = path.read_bytes(), len(platform.sandboxes)
        changed = [*PROMPTS[:3], "changed", *PROMPTS[4:], "new"]

        with pytest.raises(BatchJournalError, match="item 3 is another request"):
            client.invoke_many("tpl1", changed, journal=path)
        with pytest.raises(BatchJournalError, match="of template tpl1, not tpl2"):
            client.invoke_many("tpl2", PROMPTS, journal=path)
        with pytest.raises(BatchJournalError, match="item 3 is another request"):
            client.invoke_many("tpl1", [*PROMPTS[:3], 3.5], journal=path)
        assert (path.read_bytes(), len(platform.sandboxes)) == before

    def test_with_an_input_that_cannot_be_looked_ahead_is_refused_when_it_shows(
        self, client: AgentRuntimeClient, path: Path
    ) -> None:
        """Also if errors are returned: it is none of an item's."""
        client.invoke_many("tpl1", PROMPTS, journal=path).results()
        changed = itertools.chain(PROMPTS[:3], itertools.repeat("changed"))

        with pytest.raises(BatchJournalError, match="item 3 is another request"):
            list(
                client.invoke_many(
                    "tpl1", changed, journal=path, return_exceptions=True
                )
            )


def _left_behind(
    make_client: Callable[..., AgentRuntimeClient], platform: FakePlatform, path: Path
) -> tuple[Path, str, str, list[str]]:
    """Return the journal of a run that dies while item 0 is under way, with its key,
    its sandbox, and sandboxes of the batch that are of no use any more."""
    arrived, release = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        if exchange.request.json()["prompt"] == "0":
            arrived.set()
            release.wait(10)
            exchange.cut()

    copy = path.with_name("copy.jsonl")
    with platform.overriding("POST", "/invocations$", answer):
        batch = make_client().invoke_many("tpl1", ["0"], journal=path)
        assert arrived.wait(10)
        copy.write_bytes(path.read_bytes())
        body = platform.sandboxes["sb1"].body
        batch.close()
        release.set()
    platform.killed.clear()  # as if it had not come to that
    platform.sandboxes["sb1"].state = "running"
    idle = platform.sandboxes["sb1"].__class__("sb99", "tpl1", body)
    platform.sandboxes["sb99"] = idle
    start = json.loads(copy.read_text().splitlines()[1])
    return copy, start["key"], start["sandbox"], ["sb99"]


class TestFile:
    def test_holds_no_secret_and_no_request(
        self, client: AgentRuntimeClient, platform: FakePlatform, path: Path
    ) -> None:
        """Even if the agent says what it was told."""

        def answer(exchange: Exchange) -> None:
            exchange.reply(200, {
                "result": {"heard": f"X-API-KEY: {KEY}", KEY: [KEY]},
                "status": "success",
            })  # fmt: skip

        platform.on("POST", "/invocations$", answer)
        with client.invoke_many("tpl1", ["my question"], journal=path) as batch:
            fresh = batch.results()
        kept = client.invoke_many("tpl1", ["my question"], journal=path).results()

        text = path.read_text()
        assert KEY not in text
        assert "my question" not in text
        assert fresh[0].result["heard"] == f"X-API-KEY: {KEY}"
        assert kept[0].result == {"heard": "X-API-KEY: ***", "***": ["***"]}

    def test_says_what_is_sent_before_it_is_sent(
        self, client: AgentRuntimeClient, platform: FakePlatform, path: Path
    ) -> None:
        """And what came back before anybody is told."""
        seen: list[str] = []

        def answer(_: Exchange) -> None:
            seen.append(path.read_text().splitlines()[-1])

        platform.on("POST", "/invocations$", answer)
        batch = client.invoke_many("tpl1", PROMPTS[:1], journal=path)
        next(batch)
        last = json.loads(path.read_text().splitlines()[-1])
        batch.close()

        sent = platform.seen("POST", "/invocations$")[0]
        start = json.loads(seen[0])
        assert start["start"] == 0
        assert start["key"] == sent.headers["idempotency-key"]
        assert start["sandbox"] == sent.headers["ppio-sandbox-id"] == "sb1"
        assert last["done"] == 0

    def test_is_free_when_the_batch_is_over(
        self, client: AgentRuntimeClient, path: Path
    ) -> None:
        """Not before, and also after an error or when it was left early."""
        with client.invoke_many("tpl1", PROMPTS, journal=path) as batch:
            next(batch)
            with pytest.raises(BatchJournalError, match="another batch uses it"):
                client.invoke_many("tpl1", PROMPTS, journal=path)
        with pytest.warns(ResourceWarning, match="let go of before its end"):
            client.invoke_many("tpl1", PROMPTS, journal=path)

        def free() -> bool:
            try:
                return len(list(client.invoke_many("tpl1", PROMPTS, journal=path))) == 6
            except BatchJournalError:
                return False

        wait_until(free)

    def test_that_cannot_be_written_ends_the_batch(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What was done before is kept for a later run; no sandbox is left."""
        write = os.write
        room = 2000

        def full(fd: int, data: bytes) -> int:
            nonlocal room
            room -= len(data)
            if room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(fd, data)

        monkeypatch.setattr("ppio_agent.client.batch.journal_file.os.write", full)
        with pytest.raises(BatchJournalError, match="No space left"):
            list(
                client.invoke_many(
                    "tpl1", ["Hi"] * 50, journal=path, return_exceptions=True
                )
            )
        monkeypatch.undo()

        assert platform.alive == []
        items = list(client.invoke_many("tpl1", ["Hi"] * 50, journal=path))
        assert sum(i.from_journal for i in items) >= 1
        assert len(items) == 50

    def test_that_cannot_be_opened_is_told_at_once(
        self, client: AgentRuntimeClient, platform: FakePlatform, tmp_path: Path
    ) -> None:
        """Nothing has run, and a file that is no journal is left alone."""
        notes = tmp_path / "notes"
        notes.write_text("mine\n")
        for bad in (notes, tmp_path, tmp_path / "nowhere" / "batch.jsonl"):
            with pytest.raises(BatchJournalError, match="cannot be used"):
                client.invoke_many("tpl1", PROMPTS, journal=bad)

        assert notes.read_text() == "mine\n"
        assert platform.sandboxes == {}


AGENT = """
import os, threading
from ppio_agent import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp()


@app.entrypoint
def agent(request):
    number = int(request["prompt"])
    with open(request["log"], "a") as log:
        log.write(f"{number}\\n")
    if number in request["slow"]:
        threading.Event().wait(0.5)
    return number


if __name__ == "__main__":
    app.run()
"""

RUN = """
import json, sys
from ppio_agent.client import AgentRuntimeClient, ClientConfig, pool

url, key, journal, requests, sessions = json.loads(sys.argv[1])
sessions = pool(sessions) if sessions else "per-request"
client = AgentRuntimeClient(key, config=ClientConfig(base_url=url))
for item in client.invoke_many(
    "runs", requests, sessions=sessions, max_workers=4, journal=journal
):
    print(item.index, flush=True)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxPlatform]:
    folder = tmp_path_factory.mktemp("platform")
    config = PlatformConfig(data_dir=folder / "data", port=0, backend="process")
    with SandboxPlatform(config) as platform:
        platform.deploy(write_agent(folder / "runs", AGENT, name="runs"))
        yield platform


def test_a_batch_survives_the_end_of_its_program(
    real: SandboxPlatform, tmp_path: Path
) -> None:
    """SIGKILL after 40 of 100: the rerun yields 100, runs none of the 40 again, joins
    what was under way, and leaves no sandbox."""
    path, log = tmp_path / "batch.jsonl", tmp_path / "log"
    requests = [
        {"prompt": str(n), "log": str(log), "slow": [41, 42, 43, 44]}
        for n in range(100)
    ]
    told = _run_until(40, real, path, requests)
    left = {s.id for s in real.sandboxes.list_sandboxes()}
    ran_before = log.read_text().split()
    with path.open("ab") as file:
        file.write(b'{"done":77,"respo')  # as a torn write leaves it

    config = ClientConfig(base_url=real.url)
    with AgentRuntimeClient(real.api_key, config=config) as client:
        with client.invoke_many(
            "runs", requests, sessions=pool(4), journal=path
        ) as batch:
            items = list(batch)
        alive = {s.id for s in real.sandboxes.list_sandboxes()}
        with pytest.raises(BatchJournalError, match="item 7 is another request"):
            client.invoke_many("runs", [*requests[:7], {"prompt": "7"}], journal=path)

    assert left
    assert alive == set()
    assert [i.index for i in items] == list(range(100))
    assert [i.response and i.response.result for i in items] == list(range(100))
    done = {i.index for i in items if i.from_journal}
    assert len(told) == 40
    assert set(told) <= done
    ran = [int(n) for n in log.read_text().split()]
    assert all(ran.count(n) == 1 for n in done)
    # What was under way was joined: begun once, by the run that died.
    assert len(ran_before) > len(done)
    assert sorted(ran) == list(range(100))


def _run_until(
    count: int, real: SandboxPlatform, path: Path, requests: list[dict[str, object]]
) -> list[int]:
    """Run a batch in a process of its own; kill it when it has told of `count`."""
    arguments = json.dumps([real.url, real.api_key, str(path), requests, 4])
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, arguments], stdout=subprocess.PIPE, text=True
    )
    alarm = threading.Timer(60 * SLOW, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(count)]
        wait_until(lambda: path.read_text().count('"start"') > count + 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    finally:
        alarm.cancel()
    return told
