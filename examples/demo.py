"""The main job, end to end: deploy an agent, run it in a sandbox, call it.

    make demo

Everything runs on this machine, in a folder that is removed again; no account and no
network service is needed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ppio_agent import (
    AgentRuntimeClient,
    InvocationError,
    PlatformConfig,
    SandboxPlatform,
    SandboxSession,
    TemplateNotFoundError,
)
from ppio_agent.client import pool

AGENT = Path(__file__).parent / "agent_runtime" / "sales_agent"
QUESTIONS = [
    f"{topic} in the {region} in {month} {year}"
    for topic in ("total", "best sellers")
    for region in ("north", "south", "east", "west")
    for month in ("March", "July", "December")
    for year in (2024, 2025)
] + ["total", "sales by month"]


@contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Print one line: what was done, how long it took, what came of it."""
    notes: list[str] = []
    begun = time.perf_counter()
    yield notes
    took = time.perf_counter() - begun
    print(f"{took:7.3f} s  {what}: {'; '.join(notes)}", flush=True)


def sandbox_processes(folder: str) -> list[psutil.Process]:
    """Return every process on this machine that belongs to a sandbox in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME", "").startswith(folder):
                found.append(process)
        except psutil.Error:
            continue  # another user's, or gone
    return found


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def talk(session: SandboxSession) -> int:
    """Two turns, the second of which needs the first; return the agent's process."""
    with step("asked") as notes:
        first = session.invoke("best sellers in the north in 2025")
        notes.append(f"best sellers in the north: {first.result['answer']}")
    with step("asked again") as notes:
        second = session.invoke("and in the south?")
        notes.append(f"and in the south: {second.result['answer']}")
    return int(second.result["pid"])


def stream(session: SandboxSession) -> None:
    """A report, line by line, with the time of each line."""
    with step("streamed a report") as notes:
        begun = last = time.perf_counter()
        with session.invoke_stream("write the report") as lines:
            for line in lines:
                now = time.perf_counter()
                print(f"{'':11}+{now - last:5.3f} s  {line}", flush=True)
                last = now
        notes.append(f"{last - begun:.1f} s, each line as it came")


def pause_and_resume(session: SandboxSession, pid: int) -> None:
    """Freeze the sandbox, see that nothing runs and nothing is lost."""
    agent = psutil.Process(pid)
    with step("paused") as notes:
        session.pause()
        notes.append(f"the session is {session.state.value}")
    with step("looked at it for half a second") as notes:
        before, memory = cpu_of(agent), agent.memory_info().rss
        agent_waits = psutil.wait_procs([agent], timeout=0.5)[1]
        used = cpu_of(agent) - before
        notes.append(f"state {session.get_status().sandbox_state}")
        notes.append(f"CPU {used:.2f} s, {memory / 2**20:.0f} MiB kept")
        assert agent_waits
        assert used == 0
    with step("resumed and asked on") as notes:
        session.resume()
        answer = session.invoke("and in the west?").result
        assert answer["pid"] == pid
        notes.append(f"and in the west: {answer['answer']}")


def batch(client: AgentRuntimeClient, template: str) -> None:
    """Fifty questions over eight threads."""
    with step(f"asked {len(QUESTIONS)} questions over 8 threads") as notes:
        run = client.invoke_many(template, QUESTIONS, sessions=pool(8), progress=True)
        with run:
            answers = [item.response for item in run]
        notes.append(f"the last: {str(answers[-1])[:60]}…")


def errors(client: AgentRuntimeClient, template: str) -> None:
    """Two things that go wrong, each a typed error that says what to do."""
    with step("asked for a template that does not exist") as notes:
        try:
            client.invoke_agent("no-such-agent", "hello")
        except TemplateNotFoundError as error:
            notes.append(f"{type(error).__name__}: {error.message}")
    with step("asked what makes the agent raise") as notes:
        try:
            client.invoke_agent(template, "total in 1999")
        except InvocationError as error:
            notes.append(f"{type(error).__name__}: {error.message}")


def main() -> None:
    """Run the demo in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ppio-demo-") as folder:
        begun = time.perf_counter()
        platform = SandboxPlatform(PlatformConfig(data_dir=Path(folder)))
        with step("started the local platform") as notes:
            platform.start()
            notes.append(platform.url)
        with platform:
            with step("deployed examples/agent_runtime/sales_agent") as notes:
                # A copy, since deploying writes into the manifest where it went.
                agent = shutil.copytree(AGENT, Path(folder, "sales_agent"))
                template = platform.deploy(agent).template_id
                notes.append(f"template {template}")
            with AgentRuntimeClient(
                base_url=platform.url, api_key=platform.api_key
            ) as client:
                use(client, template)
        with step("closed everything") as notes:
            left = sandbox_processes(folder)
            notes.append(f"{len(left)} processes of sandboxes are left")
            assert not left, left
        print(f"{time.perf_counter() - begun:7.3f} s  in all")
    print(
        "\ntry next:\n"
        "  .venv/bin/ppio-agent init my-agent          write an agent of your own\n"
        "  .venv/bin/ppio-agent dev my-agent/app.py    serve it, reload on change\n"
        "  .venv/bin/ppio-agent deploy my-agent        make it a template\n"
        '  .venv/bin/ppio-agent invoke my-agent "hi"   run it in a sandbox\n'
        "  docs/quickstart.md                          the same from Python"
    )


def use(client: AgentRuntimeClient, template: str) -> None:
    """Call the deployed agent in every way there is."""
    with step("listed the templates") as notes:
        notes += [f"{t.name} {t.version}".strip() for t in client.list_templates()]
    with step("created a session") as notes:
        session = client.create_session(template)
        notes.append(f"sandbox {session.sandbox_id}")
    with session:
        pid = talk(session)
        stream(session)
        pause_and_resume(session, pid)
    batch(client, template)
    errors(client, template)


if __name__ == "__main__":
    main()
