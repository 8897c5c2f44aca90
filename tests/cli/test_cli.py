"""The command line: what it prints, and the status it ends with."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ppio_agent import cli
from ppio_agent.cli.invoke import parse_input
from tests.cli.clikit import AGENT, Command, line, start
from tests.support import SLOW, wait_until, write_agent


def test_a_new_agent_is_written_deployed_and_asked(command: Command) -> None:
    """init, deploy and invoke need nothing from each other but the folder."""
    assert command("init", "hello").status == 0
    deployed = command("deploy", "hello")
    assert (deployed.status, deployed.err) == (0, "")
    assert "deployed hello 0.1.0 as " in deployed.out
    asked = command("invoke", "hello", "good morning")
    assert (asked.status, asked.out) == (0, "you said: good morning\n")
    assert asked.err.startswith("sandbox ")


def test_init_overwrites_nothing(command: Command) -> None:
    """A folder that holds an agent is left alone."""
    Path("hello").mkdir()
    Path("hello/app.py").write_text("precious")
    refused = command("init", "hello")
    assert refused.status == 2
    assert "hello/app.py exists; choose another folder" in refused.err
    assert Path("hello/app.py").read_text() == "precious"
    assert command("init", "x", "--name", "Not A Name").status == 2


def test_the_folder_remembers_where_it_was_deployed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the agent's folder, its name need not be said."""
    write_agent(Path("mine"), AGENT, name="mine")
    assert command("deploy", "mine", "--json").status == 0
    assert "template_id:" in Path("mine/.ppio-agent.yaml").read_text()
    monkeypatch.chdir("mine")
    assert command("invoke", "hi").out == "you said hi\n"


def test_pieces_are_printed_as_they_come(command: Command) -> None:
    """--stream prints each chunk on a line of its own."""
    write_agent(Path("s"), AGENT, name="streamer")
    command("deploy", "s")
    assert command("invoke", "streamer", "stream", "--stream").out == "one\ntwo\n"


def test_templates_are_listed_shown_and_deleted(command: Command) -> None:
    """Templates by table, as JSON, by name, and gone."""
    write_agent(Path("t"), AGENT, name="short-lived")
    command("deploy", "t")
    assert "short-lived" in command("templates", "list").out
    listed = json.loads(command("templates", "list", "--json").out)
    assert "short-lived" in {name for item in listed for name in item["names"]}
    shown = json.loads(command("templates", "get", "short-lived").out)
    assert shown["version"] == "1.0.0"
    refused = command("templates", "delete", "short-lived:1.0.0")
    assert refused.status == 2
    assert "ppio-agent templates delete short-lived" in refused.err
    assert command("templates", "delete", "short-lived").status == 0
    missing = command("templates", "get", "short-lived")
    assert missing.status == 4
    assert "short-lived" in missing.err


def test_a_kept_sandbox_is_listed_logged_paused_and_killed(command: Command) -> None:
    """--keep leaves a sandbox for the other commands."""
    write_agent(Path("k"), AGENT, name="keeper")
    command("deploy", "k")
    kept = command("invoke", "keeper", "hi", "--keep")
    sandbox = kept.err.split()[1].rstrip(",")
    listed = command("sandboxes", "list").out
    assert sandbox in listed
    assert "created_by=ppio-agent/" in listed
    assert "ppio_create_id" not in listed
    assert "ppio_create_id" in command("sandboxes", "list", "--json").out
    wait_until(lambda: "asked hi" in command("logs", sandbox).out, what="the log")
    assert command("sandboxes", "pause", sandbox).status == 0
    shown = json.loads(command("sandboxes", "get", sandbox).out)
    assert shown["state"] == "paused"
    again = command("sandboxes", "pause", sandbox)
    assert (again.status, again.out) == (2, "")
    assert command("sandboxes", "resume", sandbox).status == 0
    assert command("sandboxes", "kill", sandbox).status == 0
    assert command("sandboxes", "get", sandbox).status == 4


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["invoke", "nobody", "hi"], 4, "nobody"),
        (["invoke", "asked", "fail"], 1, "the agent is not amused"),
        (["invoke", "asked", "bytes"], 1, "bytes is not JSON"),
        (["invoke"], 2, "give the input"),
        (["invoke", "hi"], 2, "name the agent"),
        (["invoke", "asked", "hi", "--env", "sk-secret-value"], 2, "NAME=VALUE"),
        (["templates", "get", "nobody"], 4, "nobody"),
        (["templates", "delete", "base"], 2, "it cannot be deleted"),
        (["sandboxes", "kill"], 2, "--all"),
        (["sandboxes", "kill", "a" * 20], 4, "a" * 20),
        (["logs", "b" * 20], 4, "b" * 20),
        (["logs", "c" * 20, "--since", "soon"], 2, "such as 30s"),
        (["deploy", "missing"], 2, "missing"),
        (["deploy", "."], 2, ".ppio-agent.yaml"),
        (["deploy"], 2, ".ppio-agent.yaml"),
        (["deploy", "asked", "--config", "x.yaml"], 2, "give DIR or --config"),
        (["run", "missing.py"], 2, "there is no file missing.py"),
        (["run", "broken.py"], 2, "(line 2)"),
        (["run", "empty.py"], 2, "app = PPIOAgentRuntimeApp()"),
        (["run", "entry.py"], 2, "entrypoint"),
        (["invoke", "asked", '{"prompt": NaN}'], 2, "is not finite"),
        (["frobnicate"], 2, "frobnicate"),
        (["up", "--key", "sk-abc"], 2, "at least 8 characters"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    command: Command, argv: list[str], status: int, words: str
) -> None:
    """What is wrong, what to do, a status, and no traceback."""
    write_agent(Path("asked"), AGENT, name="asked")
    Path("broken.py").write_text("import sys\n1 / 0\n")
    Path("empty.py").write_text("")
    Path("entry.py").write_text(
        "from ppio_agent import PPIOAgentRuntimeApp\napp = PPIOAgentRuntimeApp()\n"
    )
    if argv[:2] == ["invoke", "asked"]:
        assert command("deploy", "asked").status == 0
    done = command(*argv)
    assert (done.status, done.out) == (status, "")
    assert words in done.err
    assert "sk-secret-value" not in done.err


@pytest.mark.parametrize("of", [cli.main, cli.sandbox_main])
def test_no_summary_of_a_command_is_cut(
    command: Command, of: Callable[[list[str]], None]
) -> None:
    """On a terminal of the usual width."""
    groups = (
        ("agent",) if of is cli.sandbox_main else ("actors", "sandboxes", "templates")
    )
    for argv in ([], *([name] for name in groups)):
        listed = command(*argv, "--help", of=of).out.partition("\nCommands:\n")[2]
        assert listed
        assert [row for row in listed.splitlines() if row.endswith("...")] == []


def test_an_agent_that_exits_at_once_is_explained(command: Command) -> None:
    """Its last output is shown: that is where the reason stands."""
    write_agent(Path("d"), "raise SystemExit('no model configured')", name="dying")
    command("deploy", "d")
    done = command("invoke", "dying", "hi")
    assert done.status == 1
    assert "no model configured" in done.err


def test_the_time_of_a_call_includes_the_start_of_its_agent(command: Command) -> None:
    """--timeout is that of the whole call, as it is of the client's calls."""
    write_agent(Path("n"), "import threading; threading.Event().wait(60)", name="never")
    command("deploy", "n")
    started = time.monotonic()
    done = command("invoke", "never", "hi", "--timeout", "0.5")
    assert time.monotonic() - started < 10 * SLOW
    assert done.status == 5
    assert "the time ran out" in done.err


def test_every_mistake_in_a_manifest_is_listed(command: Command) -> None:
    """One run shows all that has to be mended, with lines."""
    folder = write_agent(Path("m"), AGENT)
    manifest = folder / ".ppio-agent.yaml"
    text = manifest.read_text().replace("1.0.0", "one").replace("app.py", "nowhere.py")
    manifest.write_text(text)
    for argv in (["deploy", "m", "--dry-run"], ["deploy", "m"]):
        done = command(*argv)
        assert done.status == 2
        assert "(line 5)" in done.err
        assert "spec.entrypoint" in done.err
        assert "there is no file nowhere.py" in done.err


def test_mistakes_in_a_manifest_are_json_if_asked_for(command: Command) -> None:
    """For programs, with the status that they have as text."""
    manifest = write_agent(Path("m"), AGENT) / ".ppio-agent.yaml"
    manifest.write_text(manifest.read_text().replace("app.py", "nowhere.py"))
    for argv in (["deploy", "m", "--dry-run", "--json"], ["deploy", "m", "--json"]):
        done = command(*argv)
        assert (done.status, done.err) == (2, "")
        (problem,) = json.loads(done.out)["problems"]
        assert problem["path"] == "spec.entrypoint"
        assert problem["message"] == "there is no file nowhere.py in the folder"
        assert (
            manifest.read_text()
            .splitlines()[problem["line"] - 1]
            .endswith("nowhere.py")
        )


def test_a_manifest_that_is_no_text_is_explained(command: Command) -> None:
    """Also to who asks the agent that was deployed from here."""
    Path(".ppio-agent.yaml").write_bytes(b"name: x\n# \xff\n")
    done = command("invoke", "hi")
    assert done.status == 2
    assert ".ppio-agent.yaml (line 2): is not UTF-8" in done.err


def test_requirements_are_installed_when_asked_to(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip says is shown when it cannot."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = write_agent(Path("r"), AGENT)
    (folder / "requirements.txt").write_text("no-such-thing==1\n")
    assert command("deploy", "r").status == 0
    done = command("deploy", "r", "--install")
    assert done.status == 2
    assert "requirements.txt: cannot be installed: pip ended with 1; " in done.err
    assert "no-such-thing==1" in done.err


def test_a_wrong_key_is_explained(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A platform that refuses the key is status 5, one without a key status 2."""
    monkeypatch.setenv("PPIO_API_KEY", "sk-wrong-key-0123456789")
    done = command("templates", "list")
    assert done.status == 5
    assert "API key" in done.err
    assert "0123456789" not in done.err
    monkeypatch.delenv("PPIO_API_KEY")
    done = command("templates", "list")
    assert done.status == 2
    assert "PPIO_API_KEY" in done.err


def test_a_setting_that_cannot_be_read_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the platform's is named, and no traceback shown."""
    monkeypatch.delenv("PPIO_API_URL")
    monkeypatch.setenv("PPIO_PLATFORM_MAX_SANDBOXES", "abc")
    done = command("templates", "list")
    assert done.status == 2
    assert "PPIO_PLATFORM_MAX_SANDBOXES" in done.err


def test_no_platform_is_explained(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address where nobody listens is named."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # ours, and nobody listens on it
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("PPIO_API_URL", f"http://{address}")
        done = command("templates", "list")
    assert done.status == 5
    assert address in done.err


def test_the_names_of_the_field_work(command: Command) -> None:
    """`ppio-sandbox-cli agent deploy|invoke|list` are the same commands."""
    write_agent(Path("f"), AGENT, name="field")
    config = "f/.ppio-agent.yaml"
    field = cli.sandbox_main
    deployed = command("agent", "deploy", "--config", config, "--json", of=field)
    template = json.loads(deployed.out)["templateID"]
    asked = command(
        "agent", "invoke", "--template-id", template, "--input", "test query", of=field
    )
    assert asked.out == "you said test query\n"
    assert "field" in command("agent", "list", of=field).out


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("hi", {"query": "hi", "prompt": "hi"}),
        ('{"query": "q"}', {"query": "q", "prompt": "q"}),
        ('{"prompt": "p"}', {"prompt": "p"}),
        ('{"query": "q", "prompt": "p"}', {"query": "q", "prompt": "p"}),
        ("[1]", {"query": "[1]", "prompt": "[1]"}),
        ("{broken", {"query": "{broken", "prompt": "{broken"}),
    ],
)
def test_input_is_json_or_a_question(text: str, request_: dict[str, str]) -> None:
    """An object is taken as it is, anything else is the question."""
    assert parse_input(text) == request_


def test_a_taken_port_is_explained(tmp_path: Path) -> None:
    """Neither `run` nor `up` shows a traceback when another program listens."""
    (tmp_path / "app.py").write_text("def agent(request): return 1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for argv in (
            ["run", str(tmp_path / "app.py"), "--port", port],
            ["up", "--port", port, "--backend", "process"],
        ):
            with start(*argv, data_dir=tmp_path) as process:
                error = process.communicate(timeout=30)[1]
            assert process.returncode == 5, error
            assert port in error
            assert "Traceback" not in error
            assert len(error.strip().splitlines()) == 1


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    """As head does in a pipeline: status 0, and no word of it."""
    with start("init", str(tmp_path / "a"), data_dir=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.close()
        error = process.communicate(timeout=30)[1]
    assert (process.returncode, error) == (0, "")


def test_run_says_where_it_serves(tmp_path: Path) -> None:
    """The address stands on standard error; SIGTERM ends it with status 0."""
    (tmp_path / "app.py").write_text("def agent(request): return 1")
    with start(
        "run", str(tmp_path / "app.py"), "--port", "0", data_dir=tmp_path
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("listening on http://127.0.0.1:")
        assert process.stderr.readline().startswith(
            "playground: open http://127.0.0.1:"
        )
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_dev_serves_again_after_a_change(tmp_path: Path) -> None:
    """A saved file is served without a word from the user."""
    script = tmp_path / "app.py"
    script.write_text("print('first', flush=True)\ndef agent(request): return 1\n")
    with start("dev", str(script), "--port", "0", data_dir=tmp_path) as process:
        line(process, "first")
        script.write_text(
            "print('second one', flush=True)\ndef agent(request): return 2\n"
        )
        line(process, "second one")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
