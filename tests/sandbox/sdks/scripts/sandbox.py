"""What `Sandbox` of `ppio-sandbox` 2.1.0 and of `e2b` does; each function is a test.

The same calls, and the same answers as the cloud gives: where the two packages differ is
said beside it.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta, timezone
from typing import Any

try:
    sdk = importlib.import_module("e2b")
    E2B = True
except ImportError:
    sdk = importlib.import_module("ppio_sandbox.core")
    E2B = False

Sandbox = sdk.Sandbox
URL = os.environ["E2B_API_URL"]
# Its domain decides how `ppio-sandbox` spells: these are of its first version.
LEGACY = not E2B and "PPIO_DOMAIN" not in os.environ


@contextmanager
def sandbox(**options: Any) -> Iterator[Any]:
    """A sandbox that is killed afterwards."""
    made = Sandbox.create(**{"timeout": 60, "secure": True, **options})
    try:
        yield made
    finally:
        made.kill()


def refused(name: str, call: Callable[[], object], text: str = "") -> Any:
    """Check that a call raises exactly this class, and return what it raised."""
    raised: Exception | None = None
    try:
        call()
    except Exception as error:
        raised = error
    found = f"{type(raised).__name__}: {raised}"
    assert type(raised).__name__ == name, found
    assert text in str(raised), found
    return raised


def get(url: str, **headers: str) -> tuple[int, bytes]:
    """Fetch a URL by the standard library, without the package."""
    return send(urllib.request.Request(url, headers=headers))


def send(request: urllib.request.Request) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def public_calls() -> list[str]:
    """Name all that users may call."""
    package = f"{sdk.__name__}.sandbox_sync"
    classes = [Sandbox] + [
        getattr(importlib.import_module(f"{package}.{module}"), name)
        for module, name in (
            ("commands.command", "Commands"),
            ("commands.command_handle", "CommandHandle"),
            ("commands.pty", "Pty"),
            ("filesystem.filesystem", "Filesystem"),
        )
    ]
    return [
        f"{cls.__name__}.{name}"
        for cls in classes
        for name in dir(cls)
        if not name.startswith("_") and callable(getattr(cls, name))
    ]


def created_with_what_was_asked_for() -> None:
    asked = {"project": "a b/c=ü&d", "n": "1"}
    with sandbox(timeout=100, metadata=asked, envs={"GREETING": "hello"}) as it:
        assert it.is_running() is True
        assert it.commands.run("echo $GREETING").stdout == "hello\n"
        info = it.get_info()
        assert info.sandbox_id == it.sandbox_id
        assert info.metadata == asked
        assert info.name == "base"
        assert info.state.value == "running"
        assert info.envd_version == "0.5.7"
        assert info.cpu_count >= 1
        assert info.memory_mb >= 64
        assert 99 < (info.end_at - info.started_at).total_seconds() < 102
        assert Sandbox.get_info(it.sandbox_id).template_id == info.template_id


def listed_page_by_page() -> None:
    with (
        sandbox(metadata={"of": "list me", "n": "1"}) as first,
        sandbox(metadata={"of": "list me", "n": "2"}) as second,
        sandbox(metadata={"of": "other"}),
    ):
        query = sdk.SandboxQuery(metadata={"of": "list me"})
        pages = Sandbox.list(query=query, limit=1)
        found = []
        while pages.has_next:
            found.append([plain_id(info.sandbox_id) for info in pages.next_items()])
        assert sorted(found) == sorted(
            [[plain_id(first.sandbox_id)], [plain_id(second.sandbox_id)]]
        )
        refused("Exception", pages.next_items, "No more items")
        first.pause()
        paused = Sandbox.list(
            query=sdk.SandboxQuery(
                metadata={"of": "list me"}, state=[sdk.SandboxState.PAUSED]
            )
        ).next_items()
        assert [info.metadata["n"] for info in paused] == ["1"]
        assert paused[0].state == sdk.SandboxState.PAUSED


def plain_id(sandbox_id: str) -> str:
    """Return an id without the client's, which is a part of it in the old spelling."""
    return sandbox_id.partition("-")[0]


def open_to_everybody() -> None:
    """Without a token, which `e2b` cannot ask for any more."""
    with sandbox(secure=False) as it:
        assert it.commands.run("echo hi").stdout == "hi\n"
        it.files.write("x.txt", "text")
        assert it.files.read("x.txt") == "text"
        assert ("signature" in it.download_url("x.txt")) is E2B


def closed_to_who_has_no_traffic_token() -> None:
    if LEGACY:
        refused("SandboxException", lambda: Sandbox.create(network=NO_TRAFFIC))
        return
    with sandbox(network=NO_TRAFFIC) as it:
        assert it.commands.run("echo hi").stdout == "hi\n"
        token, host = it.traffic_access_token, it.get_host(8123)
        status, body = get(f"{URL}/", Host=host)
        assert (status, b"is missing" in body) == (403, True)
        wrong = {"Host": host, "e2b-traffic-access-token": "x"}
        status, body = get(f"{URL}/", **wrong)
        assert (status, b"is invalid" in body) == (403, True)
        right = {"Host": host, "e2b-traffic-access-token": token}
        assert get(f"{URL}/", **right)[0] == 502
        assert Sandbox.connect(it.sandbox_id).traffic_access_token == token


NO_TRAFFIC = {"allow_public_traffic": False}


def paused_when_its_time_is_over() -> None:
    options: dict[str, Any] = {
        "lifecycle": {"on_timeout": "pause", "auto_resume": True}
    }
    if LEGACY:
        options = {"auto_pause": True}
    create = Sandbox.beta_create if LEGACY else Sandbox.create
    it = create(timeout=1, secure=True, **options)
    try:
        deadline = time.monotonic() + 10
        while it.get_info().state.value != "paused":
            assert time.monotonic() < deadline
        if LEGACY:
            gone(it)
            it.connect(timeout=60)
        # What comes in wakes it up.
        assert it.commands.run("echo hi").stdout == "hi\n"
        assert it.get_info().state.value == "running"
    finally:
        it.kill()


def cut_off_from_the_internet() -> None:
    """Which plain processes cannot be: it is said, and nothing is made."""
    if os.environ["BACKEND"] == "process":
        refused(
            "SandboxException",
            lambda: Sandbox.create(allow_internet_access=False),
            "cannot block network access",
        )
        assert len(Sandbox.list().next_items()) == len(KEPT)
        return
    dial = "import socket; socket.create_connection(('192.0.2.1', 9), 5)"
    with sandbox(allow_internet_access=False) as it:
        error = refused(
            "CommandExitException", lambda: it.commands.run(f'python3 -c "{dial}"')
        )
        assert "unreachable" in error.stderr


def killed_twice() -> None:
    it = Sandbox.create(timeout=60)
    assert it.kill() is True
    assert it.kill() is False
    assert Sandbox.kill(it.sandbox_id) is False


def paused_twice_and_connected() -> None:
    with sandbox() as it:
        it.commands.run("sleep 300 & echo $! > pid")
        first, again = it.pause(), it.pause()
        # The one says whether it was paused by this call.
        assert (first, again) == ((True, False) if E2B else (None, None))
        assert it.get_info().state.value == "paused"
        gone(it)
        assert it.connect(timeout=60) is it
        assert it.is_running() is True
        assert it.commands.run("kill -0 $(cat pid)").exit_code == 0
        Sandbox.pause(it.sandbox_id)
        other = Sandbox.connect(it.sandbox_id)
        it.beta_pause()
        assert it.get_info().state.value == "paused"
        other = Sandbox.connect(it.sandbox_id)
        assert other.sandbox_id == it.sandbox_id
        assert other.commands.run("kill -0 $(cat pid)").exit_code == 0
        assert other.files.exists("pid") is True


def gone(it: Any) -> None:
    """Check what calls say of a sandbox that does not run."""
    assert it.is_running() is False
    error = "SandboxNotRunningException" if E2B else "TimeoutException"
    refused(error, lambda: it.commands.run("true"), "The sandbox was not found")
    refused(error, it.commands.list, "The sandbox was not found")
    refused(error, lambda: it.files.list("."), "The sandbox was not found")
    refused(error, lambda: it.files.read("x"), "The sandbox was not found")
    refused(error, lambda: it.files.write("x", "x"), "The sandbox was not found")


def not_found_after_its_end() -> None:
    it = Sandbox.create(timeout=60, secure=True)
    joined = Sandbox.connect(it.sandbox_id)
    it.kill()
    gone(it)
    gone(joined)
    missing = "SandboxNotFoundException"
    refused(missing, it.get_info)
    refused(missing, lambda: it.set_timeout(10))
    refused(missing, it.pause)
    refused(missing, lambda: Sandbox.connect(it.sandbox_id))
    # The one asks whether the sandbox is there, the other takes any error as such.
    error = missing if E2B else "SandboxException"
    refused(error, it.get_metrics, "ound")


def ends_when_its_time_is_over() -> None:
    with sandbox(timeout=60) as it:
        before = it.get_info().end_at
        it.set_timeout(300)
        assert (it.get_info().end_at - before).total_seconds() > 200
        it.set_timeout(100)
        assert (it.get_info().end_at - before).total_seconds() < 60
        it.connect(timeout=5)
        assert (it.get_info().end_at - before).total_seconds() > 30
        Sandbox.set_timeout(it.sandbox_id, 0)
        deadline = time.monotonic() + 10
        while it.is_running():
            assert time.monotonic() < deadline


def begin() -> None:
    """Start a sandbox that is there until `end`."""
    KEPT.append(Sandbox.create(timeout=600, secure=True))
    KEPT[0].commands.run("sleep 600", background=True)


def end() -> None:
    assert KEPT.pop().kill() is True


KEPT: list[Any] = []


def measured() -> None:
    """Each 5 s: of the sandbox that was there all the time."""
    (it,) = KEPT
    deadline = time.monotonic() + 15
    while not (metrics := it.get_metrics()):
        assert time.monotonic() < deadline
    newest = metrics[-1]
    assert newest.cpu_count >= 1
    assert newest.cpu_used_pct >= 0
    assert 0 < newest.mem_used <= newest.mem_total
    assert 0 <= newest.disk_used <= newest.disk_total
    instant = newest.timestamp.replace(microsecond=0)
    assert Sandbox.get_metrics(it.sandbox_id, start=instant)[-1] == newest
    assert it.get_metrics(end=instant - timedelta(hours=1)) == []


def refused_by_the_control_plane() -> None:
    refused("SandboxException", lambda: Sandbox.create("nope-nope"), "404: template")
    refused(
        "AuthenticationException",
        lambda: Sandbox.create(api_key="e2b_" + 40 * "0"),
        "401",
    )
    refused("SandboxException", lambda: Sandbox.create(timeout=10**9), "400")


def reached_by_its_host_name(template: str) -> None:
    with sandbox(template=template) as it:
        host = it.get_host(8080)
        assert host.startswith(f"8080-{it.sandbox_id}.")
        status, body = get(f"{URL}/ping", Host=host)
        assert (status, b"Healthy" in body) == (200, True)
        host = it.get_host(8123)
        status, body = get(f"{URL}/", Host=host)
        assert (status, b"port is not open" in body) == (502, True)


def runs_commands() -> None:
    with sandbox() as it:
        said: list[tuple[int, str]] = []
        done = it.commands.run(
            "echo out; echo err >&2; pwd; echo $ONE; id -un > /dev/null",
            cwd="/tmp",
            envs={"ONE": "1"},
            user="root",
            on_stdout=lambda text: said.append((1, text)),
            on_stderr=lambda text: said.append((2, text)),
        )
        assert (done.exit_code, done.stderr) == (0, "err\n")
        assert done.stdout.startswith("out\n/")
        assert done.stdout.endswith("tmp\n1\n")
        assert "".join(text for stream, text in said if stream == 1) == done.stdout
        assert "".join(text for stream, text in said if stream == 2) == "err\n"
        error = refused(
            "CommandExitException", lambda: it.commands.run("echo no >&2; exit 3")
        )
        assert (error.exit_code, error.stderr, error.stdout) == (3, "no\n", "")
        refused(
            "InvalidArgumentException",
            lambda: it.commands.run("true", cwd="/tmp/not-there"),
        )
        refused("AuthenticationException", lambda: it.commands.run("true", user="eve"))
        big = it.commands.run("head -c 300000 /dev/zero | tr '\\0' x").stdout
        assert big == "x" * 300_000


def gives_up_a_command_in_time() -> None:
    with sandbox() as it:
        begun = time.monotonic()
        refused(
            "TimeoutException", lambda: it.commands.run("sleep 30 & wait", timeout=0.3)
        )
        assert time.monotonic() - begun < 10


def runs_commands_in_the_background() -> None:
    with sandbox() as it:
        waited = it.commands.run(
            "echo begun; read x; echo $x", background=True, stdin=True
        )
        assert waited.pid in [one.pid for one in it.commands.list()]
        (info,) = [one for one in it.commands.list() if one.pid == waited.pid]
        assert (info.cmd, info.args[:2]) == ("/bin/bash", ["-l", "-c"])
        joined = it.commands.connect(waited.pid)
        it.commands.send_stdin(waited.pid, "hello\n")
        assert waited.wait().stdout == "begun\nhello\n"
        assert joined.wait().stdout.endswith("hello\n")
        assert waited.pid not in [one.pid for one in it.commands.list()]

        killed = it.commands.run("sleep 300", background=True)
        assert it.commands.kill(killed.pid) is True
        error = refused("CommandExitException", killed.wait)
        assert error.exit_code != 0
        assert it.commands.kill(killed.pid) is False
        assert killed.kill() is False
        refused("NotFoundException", lambda: it.commands.connect(killed.pid))
        refused("NotFoundException", lambda: it.commands.send_stdin(killed.pid, "x"))

        left = it.commands.run("echo one; sleep 300", background=True)
        assert next(iter(left)) == ("one\n", None, None)
        left.disconnect()
        assert left.pid in [one.pid for one in it.commands.list()]
        assert it.commands.kill(left.pid) is True

        if E2B:
            cat = it.commands.run("cat", background=True, stdin=True)
            cat.send_stdin("text")
            cat.close_stdin()
            assert cat.wait().stdout == "text"
            cat = it.commands.run("cat", background=True, stdin=True)
            it.commands.close_stdin(cat.pid)
            assert cat.wait().stdout == ""


def keeps_files() -> None:
    with sandbox() as it:
        files = it.files
        assert files.write("notes/today.txt", "hällo\n").name == "today.txt"
        assert files.read("notes/today.txt") == "hällo\n"
        assert files.read("notes/today.txt", format="bytes") == "hällo\n".encode()
        assert b"".join(files.read("notes/today.txt", format="stream")) == (
            "hällo\n".encode()
        )
        files.write("notes/today.txt", b"\x00\xff" * 100_000)
        assert bytes(files.read("notes/today.txt", format="bytes")) == (
            b"\x00\xff" * 100_000
        )
        files.write("io.txt", io.BytesIO(b"from a file"))
        files.write("packed.txt", "again " * 1000, gzip=True)
        assert files.read("packed.txt", gzip=True) == "again " * 1000
        written = files.write_files(
            [{"path": "one", "data": "1"}, {"path": "/home/user/two", "data": b"2"}]
        )
        assert [entry.name for entry in written] == ["one", "two"]
        assert it.commands.run("cat one two io.txt").stdout == "12from a file"
        refused("FileNotFoundException", lambda: files.read("none"))


def keeps_folders() -> None:
    with sandbox() as it:
        files = it.files
        assert files.make_dir("a/b") is True
        assert files.make_dir("a/b") is False
        files.write("a/b/c.txt", "text")
        assert (files.exists("a/b/c.txt"), files.exists("a/x")) == (True, False)
        assert [entry.name for entry in files.list("a")] == ["b"]
        deep = files.list("a", depth=2)
        assert sorted(entry.name for entry in deep) == ["b", "c.txt"]
        info = files.get_info("a/b/c.txt")
        assert (info.name, info.type.value, info.size) == ("c.txt", "file", 4)
        assert info.path.endswith("/a/b/c.txt")
        assert info.permissions == "-rw-r--r--"
        assert info.mode == 0o644
        assert abs(time.time() - stamp(info.modified_time)) < 60
        assert files.get_info("a/b").type.value == "dir"
        moved = files.rename("a/b/c.txt", "d.txt")
        assert moved.name == "d.txt"
        assert files.read("d.txt") == "text"
        it.commands.run("ln -s d.txt link")
        (link,) = [entry for entry in files.list(".") if entry.name == "link"]
        assert link.symlink_target is not None
        files.remove("a")
        assert files.exists("a") is False
        missing = "FileNotFoundException"
        refused(missing, lambda: files.list("nowhere"))
        refused(missing, lambda: files.get_info("nowhere"))
        refused(missing, lambda: files.rename("nowhere", "there"))
        refused("InvalidArgumentException", lambda: files.list("d.txt"))
        refused("InvalidArgumentException", lambda: files.list(".", depth=0))


def stamp(moment: Any) -> float:
    """Seconds since the epoch of a time that is UTC and may not say so."""
    return float(moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp())


def signs_urls_of_files() -> None:
    with sandbox() as it:
        upload = it.upload_url("up.txt", use_signature_expiration=60)
        form = (
            b"--frontier\r\n"
            b'Content-Disposition: form-data; name="file"; filename="up.txt"\r\n'
            b"\r\nuploaded\r\n--frontier--\r\n"
        )
        kind = {"Content-Type": "multipart/form-data; boundary=frontier"}
        status, _ = send(urllib.request.Request(upload, form, url_headers(it, kind)))
        assert status == 200
        assert it.files.read("up.txt") == "uploaded"
        download = it.download_url("up.txt")
        assert get(download, **url_headers(it)) == (200, b"uploaded")
        wrong = download.replace("signature=v1_", "signature=v1_x")
        assert get(wrong, **url_headers(it))[0] == 401
        elsewhere = download.replace("up.txt", "other.txt")
        assert get(elsewhere, **url_headers(it))[0] == 401
        expired = it.download_url("up.txt", use_signature_expiration=-1)
        assert get(expired, **url_headers(it))[0] == 401


def url_headers(it: Any, more: dict[str, str] | None = None) -> dict[str, str]:
    """Return what leads to a sandbox where all have one URL: in the cloud its host does."""
    return {
        "E2b-Sandbox-Id": it.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        **(more or {}),
    }


def says_what_there_is_not() -> None:
    with sandbox() as it:
        text = "is not supported by the local platform"
        refused("SandboxException", lambda: it.files.watch_dir("."), text)
        refused("SandboxException", lambda: it.pty.create(sdk.PtySize(24, 80)), text)
        refused("SandboxException", lambda: it.pty.send_stdin(1, b"x"), text)
        refused("NotFoundException", lambda: it.pty.connect(1), "pid 1 not found")
        assert it.pty.kill(1) is False
        if E2B:
            refused("SandboxException", it.fork, text)
            refused("SandboxException", lambda: it.update_network(RULES), text)
        else:
            refused("SandboxException", it.get_events, text)
            refused("SandboxException", it.reset, text)
        if LEGACY:
            return
        refused("SandboxException", it.create_snapshot, text)
        refused("SandboxException", Sandbox.list_snapshots().next_items, text)
        refused("SandboxException", lambda: Sandbox.create(network=RULES), text)
        refused("VolumeException", sdk.Volume.list, text)
        refused("SecretException" if E2B else "SandboxException", secrets, text)
        template = sdk.Template
        made = template().from_image("x")
        refused("BuildException", lambda: template.build(made, "made"), text)
        refused("TemplateException", lambda: template.get_tags("base"), text)
        if not E2B:
            refused("SandboxException", it.get_quota, text)
            refused("SandboxException", lambda: it.resize(memory_mib=512), text)
            refused("SandboxException", lambda: it.set_network(RULES), text)
            refused("SandboxException", lambda: it.mount_volume("v", "/v"), text)
            refused("SandboxException", lambda: it.unmount_volume("/v"), text)


RULES = {"allow_out": ["192.0.2.1"]}


def secrets() -> Any:
    """List secrets, at once or by pages."""
    found = sdk.Secret.list()
    return found.next_items() if E2B else found


def finds_templates(alias: str) -> None:
    template = sdk.Template
    if not LEGACY:
        assert template.exists(alias) is True
        assert template.alias_exists(f"not-{alias}") is False
    if E2B:
        return
    (listed,) = [one for one in template.list().items if one.aliases == [alias]]
    if not LEGACY:
        for reference in (alias, "base"):
            (build,) = template.get(reference).builds
            assert build.memory_mb >= 64
    template.delete(listed.template_id)
    left = [one.aliases for one in template.list().items]
    assert ["base"] in left
    assert [alias] not in left


async def refused_later(call: Awaitable[object]) -> None:
    """Check that the platform says that it does not support a call."""
    (found,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(found, sdk.SandboxException), found
    assert "is not supported by the local platform" in str(found)


def serves_the_asynchronous_twin() -> None:
    async def story() -> None:
        it = await sdk.AsyncSandbox.create(timeout=60, secure=True)
        try:
            assert await it.is_running()
            assert (await it.commands.run("echo hi")).stdout == "hi\n"
            waited = await it.commands.run("sleep 300", background=True)
            assert await it.commands.kill(waited.pid)
            await it.files.write("x.txt", "text")
            assert await it.files.read("x.txt") == "text"
            assert [e.name for e in await it.files.list(".") if e.name == "x.txt"]
            shown = await it.commands.run(
                "read x; echo $x", background=True, stdin=True
            )
            joined = await it.commands.connect(shown.pid)
            await it.commands.send_stdin(shown.pid, "hello\n")
            assert (await joined.wait()).stdout == "hello\n"
            await it.set_timeout(90)
            assert isinstance(await it.get_metrics(), list)
            pages = sdk.AsyncSandbox.list(limit=1)
            assert len(await pages.next_items()) == 1
            await refused_later(it.files.watch_dir(".", lambda _: None))
            await refused_later(it.pty.create(sdk.PtySize(24, 80), lambda _: None))
            await it.pause()
            await it.connect(timeout=60)
            assert (await it.get_info()).state.value == "running"
        finally:
            assert await it.kill() is True

    asyncio.run(story())
