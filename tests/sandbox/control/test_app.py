"""The control plane's wire, on a fake backend and without a server."""

from __future__ import annotations

import errno
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Event, Semaphore
from typing import Any
from urllib.parse import quote

import pytest

from ppio_agent.exceptions import TemplateNotFoundError
from ppio_agent.sandbox.backends.base import AgentStatus
from ppio_agent.sandbox.control import lane_of
from ppio_agent.sandbox.templates.packing import check
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.web import Lane
from ppio_agent.wire.models import (
    AgentTemplate,
    ListedSandbox,
    Sandbox,
    SandboxDetail,
    Template,
)
from tests.sandbox.agents import write_agent
from tests.sandbox.control.wirekit import BLUE, RED, Wire, assert_refused
from tests.sandbox.rig import PlatformRig


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    rig = PlatformRig(tmp_path, max_sandboxes_per_tenant=5)
    yield Wire(rig)
    rig.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/sandboxes", b"{", 400),
        ("POST", "/sandboxes", b'{"timeout":"5"}', 400),
        ("POST", "/sandboxes", b"[]", 400),
        ("POST", "/sandboxes", b"\xff", 400),
        ("POST", "/sandboxes", b" " * (1024 * 1024 + 1), 413),
        ("POST", "/sandboxes", b'{"templateID":"none"}', 404),
        ("POST", "/sandboxes", b'{"allow_internet_access":false}', 501),
        ("GET", "/no/such/path", b"", 404),
        ("GET", "/sandboxes/", b"", 404),
        ("GET", "//sandboxes", b"", 404),
        ("PUT", "/sandboxes", b"", 405),
        ("GET", "/v2/sandboxes?limit=0", b"", 400),
        ("GET", "/v2/sandboxes?state=dead", b"", 400),
        ("GET", "/v2/sandboxes?nextToken=x", b"", 400),
        ("GET", "/sandboxes?metadata=x", b"", 400),
        ("GET", "/v2/templates?page=0", b"", 400),
        ("POST", "/sandboxes/" + "0" * 20 + "/pause", b"", 404),
        ("POST", "/platform/v1/templates", b"", 400),
        ("POST", "/platform/v1/templates", b"no tar", 400),
        ("POST", "/sandboxes/x/snapshots", b"", 501),
        ("POST", "/v3/templates", b"", 501),
        ("GET", "/templates/tags", b"", 501),
        ("GET", "/templates/x/builds/y/status", b"", 501),
        ("DELETE", "/volumes/x", b"", 501),
        ("GET", "/secrets", b"", 501),
    ],
)
def test_every_refusal_is_json_with_code_and_message(
    wire: Wire, method: str, path: str, body: bytes, status: int
) -> None:
    response = wire.app.test_client().open(path, method=method, data=body, headers=RED)

    assert_refused(response, status)
    assert ("is not supported by the local platform" in response.text) == (
        status == 501 and b"internet" not in body
    )


def test_an_unknown_path_is_named(wire: Wire) -> None:
    """But not all of it, if it is long."""
    found = wire.ask("GET", "/no/such/path").get_json()
    assert found["message"] == "there is nothing at /no/such/path"

    refused = wire.ask("PUT", "/sandboxes")
    assert refused.get_json()["message"] == "/sandboxes takes no PUT"
    assert {"GET", "POST"} <= set(refused.headers["Allow"].split(", "))

    found = wire.ask("GET", "/" + "x" * 500).get_json()
    assert len(found["message"]) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-KEY": "wrong"},
        {"X-API-KEY": "sk_red", "Authorization": "Bearer sk_blue"},
    ],
)
def test_a_wrong_key_is_401_on_every_path(wire: Wire, headers: dict[str, str]) -> None:
    for path in ("/sandboxes", "/templates", "/no/such", "/platform/v1/status"):
        response = wire.ask("GET", path, headers=headers)
        assert_refused(response, 401, "invalid or missing API key")


def test_a_web_page_is_refused_even_with_a_key(wire: Wire) -> None:
    for path in ("/sandboxes", "/platform/v1/healthz"):
        headers = {**RED, "Origin": "http://evil.example"}
        assert_refused(wire.ask("GET", path, headers=headers), 403)


def test_health_needs_no_key_and_never_waits(wire: Wire) -> None:
    response = wire.ask("GET", "/platform/v1/healthz", headers={})

    assert (response.status_code, response.data) == (204, b"")
    assert lane_of("GET", "/platform/v1/healthz", {}) is Lane.EXPRESS
    assert lane_of("GET", "/sandboxes", {}) is Lane.INVOKE


def test_an_error_that_nobody_foresaw_tells_nothing(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("s3cret detail")

    monkeypatch.setattr(wire.rig.templates, "list_templates", fail)
    response = wire.ask("GET", "/templates")

    assert_refused(response, 500, "internal error")
    assert "s3cret" not in response.text
    assert "s3cret detail" in caplog.text


def test_a_sandbox_is_created_in_every_spelling(wire: Wire) -> None:
    for path, body in (
        ("/sandboxes", {}),
        ("/v2/sandboxes", {"templateID": "echo", "allow_internet_access": True}),
        ("/sandboxes", {"templateID": wire.rig.echo.id, "allowInternetAccess": True}),
    ):
        response = wire.ask("POST", path, body)
        assert response.status_code == 201
        sandbox = Sandbox.from_dict(response.json)
        assert (sandbox.client_id, sandbox.envd_version) == ("local", "0.5.7")
        assert sandbox.domain == "sandbox.test"
        assert sandbox.edge_url == "http://127.0.0.1:1"
        assert sandbox.envd_access_token
    insecure = wire.ask("POST", "/sandboxes", {"secure": False}).json
    assert insecure is not None
    assert "envdAccessToken" not in insecure


def test_a_composite_id_works_on_every_path(wire: Wire) -> None:
    path = f"/sandboxes/{wire.create()}-local"

    for method, action, body, status in (
        ("GET", "", None, 200),
        ("POST", "/timeout", {"timeout": 100}, 204),
        ("POST", "/refreshes", None, 204),
        ("POST", "/pause", {"sync": False}, 204),
        ("POST", "/pause", None, 409),
        ("POST", "/timeout", {"timeout": 100}, 409),
        ("POST", "/connect", {"timeout": 100, "autoPause": True}, 201),
        ("POST", "/connect", None, 200),
        ("POST", "/resume", None, 409),
        ("GET", "/logs", None, 200),
        ("DELETE", "", None, 204),
        ("DELETE", "", None, 404),
        ("GET", "", None, 404),
        ("GET", "/logs", None, 200),
    ):
        response = wire.ask(method, path + action, body)
        assert response.status_code == status, (method, action, response.text)
        typed = "Content-Type" in response.headers
        assert typed == (status != 204), "no content has no type"


@pytest.mark.parametrize(
    ("action", "body", "message"),
    [
        ("timeout", {}, "$.timeout: is missing"),
        ("timeout", {"timeout": -1}, "$.timeout: expected from 0"),
        ("timeout", {"timeout": 1.5}, "$.timeout: expected int"),
        ("refreshes", {"duration": 0}, "$.duration: expected from 1"),
        ("connect", {"timeout": 0}, "$.timeout: expected from 1"),
        ("connect", {"timeout": 86401}, "$.timeout: expected from 1"),
        ("pause", {"sync": "no"}, "$.sync: expected bool"),
    ],
)
def test_bodies_are_strict(
    wire: Wire, action: str, body: dict[str, Any], message: str
) -> None:
    response = wire.ask("POST", f"/sandboxes/{wire.create()}/{action}", body)

    assert_refused(response, 400, message)


def test_pausing_to_disk_is_not_supported(wire: Wire) -> None:
    path = f"/sandboxes/{wire.create()}/pause"

    assert_refused(wire.ask("POST", path, {"memory": False}), 501)
    assert wire.ask("POST", path, {"memory": True}).status_code == 204


def test_another_tenants_sandbox_is_404_and_in_no_list(wire: Wire) -> None:
    sandbox_id = wire.create()

    for method, action in (("GET", ""), ("DELETE", ""), ("POST", "/pause")):
        path = f"/sandboxes/{sandbox_id}{action}"
        assert_refused(wire.ask(method, path, headers=BLUE), 404)
    assert wire.ask("GET", "/sandboxes", headers=BLUE).json == []
    listed = wire.ask("GET", "/v2/sandboxes", headers=BLUE)
    assert (listed.json, listed.headers["x-total-running"]) == ([], "0")


def test_the_detail_tells_of_the_agent(wire: Wire) -> None:
    sandbox_id = wire.create(metadata={"a": "b"}, autoPause=True)
    wire.rig.backend.last.report(
        AgentStatus(phase="exited", exit_code=1, log_tail="Traceback")
    )
    response = wire.ask("GET", f"/sandboxes/{sandbox_id}")
    detail = SandboxDetail.from_dict(response.json)

    assert detail.metadata == {"a": "b"}
    assert detail.lifecycle == {"onTimeout": "pause", "autoResume": False}
    assert detail.agent is not None
    assert (detail.agent["phase"], detail.agent["exitCode"]) == ("exited", 1)
    assert detail.agent["logTail"] == "Traceback"
    assert detail.envd_access_token


def test_lists_are_filtered_paged_and_counted(wire: Wire) -> None:
    ids = [wire.create(metadata={"n": str(n), "g h": "v w"}) for n in range(4)]
    wire.ask("POST", f"/sandboxes/{ids[0]}/pause")

    def listed(query: str) -> tuple[list[str], str | None]:
        response = wire.ask("GET", f"/v2/sandboxes?{query}")
        assert response.status_code == 200, response.text
        found = [ListedSandbox.from_dict(item) for item in response.json or ()]
        assert response.headers["x-total-running"] == "3"
        return [s.sandbox_id for s in found], response.headers.get("x-next-token")

    newest_first = ids[::-1]
    first, token = listed("limit=3")
    second, end = listed(f"limit=3&nextToken={quote(token or '')}")
    assert (first + second, end) == (newest_first, None)
    assert listed("state=paused")[0] == ids[:1]
    assert listed("state=running&order=asc")[0] == ids[1:]
    assert listed(f"template={wire.rig.echo.id}")[0] == newest_first
    twice_encoded = quote(f"{quote('g h')}={quote('v w')}", safe="")
    assert listed(f"metadata={twice_encoded}")[0] == newest_first
    running = wire.ask("GET", "/sandboxes?metadata=n%3D1").json or ()
    assert [item["sandboxID"] for item in running] == [ids[1]]
    assert len(wire.ask("GET", "/sandboxes").json or ()) == 3


def test_the_limit_of_a_key_is_429_with_a_hint(wire: Wire) -> None:
    ids = [wire.create() for _ in range(5)]
    response = wire.ask("POST", "/sandboxes", {})

    assert_refused(response, 429)
    assert response.headers["Retry-After"] == "60"
    assert wire.ask("POST", "/sandboxes", {}, headers=BLUE).status_code == 201
    wire.ask("DELETE", f"/sandboxes/{ids[0]}")
    wire.create()


def test_a_create_that_was_made_before_says_so(wire: Wire) -> None:
    headers = {**RED, "Idempotency-Key": "twice"}
    first, again = (
        wire.ask("POST", "/sandboxes", {}, headers=headers) for _ in range(2)
    )

    assert again.json == first.json
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (rb'{"metadata": {"a": "\ud800"}}', "$.metadata.a"),
        (rb'{"envVars": {"A": "\ud800"}}', "$.envVars.A"),
        (rb'{"templateID": "\ud800"}', "$.templateID"),
    ],
)
def test_half_a_character_is_400(wire: Wire, body: bytes, path: str) -> None:
    """It could be neither kept nor shown."""
    refused = wire.ask("POST", "/sandboxes", data=body)
    assert_refused(refused, 400, f"{path}: ")
    assert wire.rig.backend.started == []


def test_options_is_a_method_like_any_other_that_is_not_taken(wire: Wire) -> None:
    for path, methods in (
        ("/sandboxes", "GET, HEAD, POST"),
        ("/platform/v1/status", "GET, HEAD"),
        ("/volumes", "DELETE, GET, HEAD, PATCH, POST, PUT"),
    ):
        refused = wire.ask("OPTIONS", path)
        assert_refused(refused, 405, f"{path} takes no OPTIONS")
        assert ", ".join(sorted(refused.allow)) == methods


def test_a_full_disk_is_507_and_named(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the store as of files."""

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.db")

    monkeypatch.setattr(wire.rig.store, "write", write)
    response = wire.ask("POST", "/sandboxes", {"templateID": "echo"})

    assert_refused(
        response, 507, f"no space left on device: make room in {wire.rig.folder}"
    )


def test_an_offer_of_another_protocol_is_not_taken_up(wire: Wire) -> None:
    """The request is answered as it is without it."""
    offer = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert wire.ask("GET", "/sandboxes", headers={**RED, **offer}).json == []


def test_ten_creates_with_one_key_make_one_sandbox(wire: Wire) -> None:
    headers = {**RED, "Idempotency-Key": "once"}

    def create(_: int) -> Any:
        response = wire.ask("POST", "/sandboxes", {"timeout": 60}, headers=headers)
        return response.json["sandboxID"] if response.json else None

    with ThreadPoolExecutor(10) as pool:
        assert len(set(pool.map(create, range(10)))) == 1
    assert len(wire.rig.backend.started) == 1
    other = wire.ask("POST", "/sandboxes", {"timeout": 61}, headers=headers)
    assert_refused(other, 409, "idempotency key")
    theirs = wire.ask(
        "POST",
        "/sandboxes",
        {"timeout": 60},
        headers={**BLUE, "Idempotency-Key": "once"},
    )
    assert theirs.status_code == 201
    bad = wire.ask("POST", "/sandboxes", {}, headers={**RED, "Idempotency-Key": "a b"})
    assert_refused(bad, 400, "Idempotency-Key")


def test_a_start_that_fails_is_500_with_the_supervisors_words(wire: Wire) -> None:
    wire.rig.backend.fails = True

    assert_refused(wire.ask("POST", "/sandboxes", {}), 500, "did not come up: no room")


def test_templates_always_have_metadata_of_texts(wire: Wire) -> None:
    """Clients in the field drop a template whose metadata is anything else."""
    listed = wire.ask("GET", "/templates").json or ()
    by_name = {item["names"][0]: item for item in listed}

    assert by_name["base"]["metadata"] == {}
    assert set(by_name) == {"base", "echo"}
    assert isinstance(by_name["echo"]["metadata"]["agent_runtime"], str)
    assert by_name["echo"]["lastSpawnedAt"] is None
    assert next(iter(by_name["echo"])) == "templateID"
    read = AgentTemplate.from_template(Template.from_dict(by_name["echo"]))
    assert read.agent is not None
    assert (read.agent.entrypoint, read.agent.start_timeout) == ("app.py", 20.0)


def test_templates_are_found_listed_and_deleted(wire: Wire) -> None:
    template_id = wire.rig.echo.id
    page = wire.ask("GET", "/v2/templates?page=2&limit=1").json
    assert page is not None
    assert (page["total"], page["totalPages"], len(page["templates"])) == (2, 2, 1)
    detail = wire.ask("GET", "/templates/echo:latest").json
    assert detail is not None
    assert [b["version"] for b in detail["builds"]] == ["1.0.0"]
    assert wire.ask("GET", "/templates/aliases/echo").json == {
        "templateID": template_id,
        "public": False,
    }
    assert_refused(wire.ask("GET", "/templates/echo", headers=BLUE), 404)
    assert_refused(wire.ask("DELETE", "/templates/echo", headers=BLUE), 404)
    assert_refused(wire.ask("DELETE", "/templates/base"), 403)
    assert wire.ask("DELETE", f"/templates/{template_id}").status_code == 204
    assert_refused(wire.ask("GET", "/templates/echo"), 404)


def test_an_upload_is_201_when_new_and_200_when_not(wire: Wire, tmp_path: Path) -> None:
    archive = check(write_agent(tmp_path, "sent")).archive()
    answers = [
        wire.ask("POST", "/platform/v1/templates", data=archive) for _ in range(2)
    ]

    assert [a.status_code for a in answers] == [201, 200]
    assert answers[0].json == answers[1].json
    assert list((wire.rig.folder / "uploads").iterdir()) == []
    assert wire.ask("POST", "/sandboxes", {"templateID": "sent"}).status_code == 201


def test_uploads_of_one_key_leave_threads_to_the_others(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than it may have at once are refused at once, with a hint."""
    data = check(write_agent(tmp_path, "sent")).archive()
    inside, go_on = Semaphore(0), Event()

    def deploy(*_: object, **__: object) -> None:
        inside.release()
        go_on.wait(20)
        raise TemplateNotFoundError

    monkeypatch.setattr(Templates, "deploy", deploy)

    def upload() -> int:
        return wire.ask("POST", "/platform/v1/templates", data=data).status_code

    with ThreadPoolExecutor(16) as pool:
        try:
            answers = [pool.submit(upload) for _ in range(16)]
            assert all(inside.acquire(timeout=20) for _ in answers)
            refused = wire.ask("POST", "/platform/v1/templates", data=data)
        finally:
            go_on.set()
    assert_refused(refused, 429, "16 uploads of this key")
    assert refused.headers["Retry-After"] == "1"
    assert [answer.result() for answer in answers] == [404] * 16


def test_an_upload_with_faults_lists_them(wire: Wire, tmp_path: Path) -> None:
    manifest = write_agent(tmp_path, "sent", version="one") / ".ppio-agent.yaml"
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(manifest, ".ppio-agent.yaml")
        tar.addfile(tarfile.TarInfo("../x"))
    response = wire.ask("POST", "/platform/v1/templates", data=out.getvalue())

    assert_refused(response, 400)
    assert response.json is not None
    assert [(p["path"], p["line"]) for p in response.json["problems"]] == [
        ("metadata.version", 5),
        ("../x", 0),
    ]
    assert not (wire.rig.folder / "x").exists()


def test_status(wire: Wire) -> None:
    assert wire.ask("GET", "/platform/v1/status").json == {"version": "1"}
