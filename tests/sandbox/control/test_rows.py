"""The wire's tables, row by row: what each object has, and who sees what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.exceptions import ServerBusyError
from ppio_agent.sandbox.control import refusal_of
from ppio_agent.sandbox.templates.sources import FolderSource
from tests.sandbox.agents import write_agent
from tests.sandbox.control.wirekit import BLUE, RED, Wire, assert_refused
from tests.sandbox.rig import PlatformRig

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

LISTED = {
    "clientID", "cpuCount", "diskSizeMB", "endAt", "envdVersion", "memoryMB",
    "sandboxID", "startedAt", "state", "templateID", "alias", "metadata",
}  # fmt: skip
CREATED = {
    "templateID", "sandboxID", "clientID", "envdVersion", "domain", "alias",
    "envdAccessToken", "edgeURL",
}  # fmt: skip
DETAIL = LISTED | {
    "domain", "envdAccessToken", "edgeURL", "allowInternetAccess", "network",
    "lifecycle", "agent",
}  # fmt: skip
TEMPLATE = {
    "templateID", "aliases", "names", "buildID", "buildCount", "buildStatus",
    "cpuCount", "memoryMB", "diskSizeMB", "createdAt", "updatedAt", "createdBy",
    "envdVersion", "public", "spawnCount", "lastSpawnedAt", "metadata",
}  # fmt: skip


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    rig = PlatformRig(tmp_path)
    yield Wire(rig)
    rig.close()


def test_sandboxes_have_all_that_clients_expect(wire: Wire) -> None:
    """As create, connect, a list and the detail show them; times in one form."""
    made: Any = wire.ask("POST", "/sandboxes", {"templateID": "echo"}).json
    path = f"/sandboxes/{made['sandboxID']}"
    connected: Any = wire.ask("POST", f"{path}/connect", {}).json
    listed: Any = wire.ask("GET", "/v2/sandboxes").json
    old: Any = wire.ask("GET", "/sandboxes").json
    detail: Any = wire.ask("GET", path).json

    assert set(made) == set(connected) == CREATED
    assert set(listed[0]) == LISTED
    assert old == listed
    assert set(detail) == DETAIL
    assert re.fullmatch(r"[a-z0-9]{20}", made["sandboxID"])
    assert (made["clientID"], made["envdVersion"]) == ("local", "0.5.7")
    assert (detail["state"], detail["metadata"]) == ("running", {})
    assert detail["lifecycle"] == {"onTimeout": "kill", "autoResume": False}
    assert set(detail["agent"]) == {
        "phase", "exitCode", "signal", "startedAt", "readyAt", "logTail",
    }  # fmt: skip
    assert TIME.fullmatch(detail["startedAt"])
    assert TIME.fullmatch(detail["endAt"])


def test_a_sandbox_that_is_not_public_has_a_token_for_its_callers(wire: Wire) -> None:
    """Only its creator is told, as of the token for its controller."""
    body = {"network": {"allowPublicTraffic": False}}
    made: Any = wire.ask("POST", "/sandboxes", body).json
    path = f"/sandboxes/{made['sandboxID']}"
    detail: Any = wire.ask("GET", path).json

    assert made["trafficAccessToken"] == detail["trafficAccessToken"]
    assert detail["network"] == {"allowPublicTraffic": False}
    assert "trafficAccessToken" not in (wire.ask("GET", "/sandboxes").json or [{}])[0]
    assert len(made["trafficAccessToken"]) >= 32


def test_templates_have_all_that_clients_expect(wire: Wire) -> None:
    """In both lists and alone; the metadata's values are texts."""
    wire.create()
    listed: Any = wire.ask("GET", "/templates").json
    page: Any = wire.ask("GET", "/v2/templates").json
    by_name = {item["names"][0]: item for item in listed}

    assert page["templates"] == listed
    assert set(by_name["base"]) >= TEMPLATE
    assert set(by_name["echo"]) - TEMPLATE <= {"version", "description", "tags"}
    echo = by_name["echo"]
    assert (echo["buildStatus"], echo["public"]) == ("ready", False)
    assert (echo["spawnCount"], by_name["base"]["public"]) == (1, True)
    assert set(echo["createdBy"]) == {"id", "email"}
    for name in ("createdAt", "updatedAt", "lastSpawnedAt"):
        assert TIME.fullmatch(echo[name]), name
    assert all(isinstance(v, str) for v in echo["metadata"].values())


@pytest.mark.parametrize(
    ("query", "count"),
    [("", 2), ("?template_type=template_build", 2), ("?template_type=other", 0)],
)
def test_templates_are_all_of_one_type(wire: Wire, query: str, count: int) -> None:
    """The one that clients ask for without being told to."""
    page: Any = wire.ask("GET", f"/v2/templates{query}").json
    assert len(page["templates"]) == page["total"] == count
    assert set(page) == {"templates", "total", "page", "limit", "totalPages"}


def test_builds_come_in_pages(wire: Wire, tmp_path: Path) -> None:
    """The newest first, of whichever spelling of the template."""
    for number in range(2, 4):
        folder = write_agent(tmp_path / "more", version=f"{number}.0.0")
        wire.rig.templates.deploy(FolderSource.of(folder), tenant="red")
    first = wire.ask("GET", "/templates/echo?limit=2")
    token = first.headers["x-next-token"]
    second = wire.ask(
        "GET", f"/templates/{wire.rig.echo.id}:latest?limit=2&nextToken={token}"
    )
    builds = [*first.get_json()["builds"], *second.get_json()["builds"]]

    assert "x-next-token" not in second.headers
    assert sorted(b["version"] for b in builds) == ["1.0.0", "2.0.0", "3.0.0"]
    assert set(builds[0]) == {
        "buildID", "status", "version", "digest", "createdAt", "updatedAt",
        "cpuCount", "memoryMB",
    }  # fmt: skip
    assert_refused(wire.ask("GET", "/templates/echo?nextToken=x"), 400)
    assert_refused(wire.ask("GET", "/templates/echo?limit=0"), 400)
    assert_refused(wire.ask("DELETE", "/templates/echo:1.0.0"), 400, "delete echo")
    assert wire.ask("GET", "/templates/echo").status_code == 200


def test_every_route_of_a_sandbox_is_404_for_others(wire: Wire) -> None:
    """With any method: whether it is there is its owner's to know."""
    sandbox_id = wire.create()
    tried = 0
    for rule in wire.app.url_map.iter_rules():
        if "<sandbox_id>" not in rule.rule:
            continue
        for method in (rule.methods or set()) & {"GET", "POST", "DELETE"}:
            path = rule.rule.replace("<sandbox_id>", sandbox_id)
            body = {"timeout": 9} if path.endswith("/timeout") else None
            response = wire.ask(method, path, body, headers=BLUE)
            assert_refused(response, 404, f"sandbox {sandbox_id} was not found")
            tried += 1
    assert tried >= 13
    assert wire.ask("GET", f"/sandboxes/{sandbox_id}").status_code == 200


def test_every_route_wants_a_key(wire: Wire) -> None:
    """Those that the platform does not have, too; only health does without."""
    for rule in wire.app.url_map.iter_rules():
        path = re.sub("<[^>]*>", "x", rule.rule)
        for method in (rule.methods or set()) & {"GET", "POST", "DELETE"}:
            response = wire.ask(method, path, headers={})
            if path == "/platform/v1/healthz":
                assert response.status_code == 204
            else:
                assert_refused(response, 401, "invalid or missing API key")


def test_what_it_does_not_have_is_named(wire: Wire) -> None:
    """By the one sentence that clients can look for."""
    for path, what in (
        ("/sandboxes/x/snapshots", "the use of snapshots"),
        ("/sandboxes/x/quota", "quota"),
        ("/templates/tags", "the use of tags"),
        ("/v3/templates", "building templates by the API"),
    ):
        message = f"{what} is not supported by the local platform"
        assert wire.ask("POST", path).json == {"code": 501, "message": message}


def test_a_platform_that_stops_says_when_to_try_again(wire: Wire) -> None:
    """503 with a whole number of seconds."""
    wire.rig.sandboxes.close(1.0)
    response = wire.ask("POST", "/sandboxes", {})

    assert_refused(response, 503, "stopping")
    assert response.headers["Retry-After"] == "1"


def test_what_the_server_refuses_itself_has_the_same_form() -> None:
    """Too busy, or an error that nobody foresaw: code, message, when to try again."""
    busy = refusal_of(ServerBusyError("all slots are taken", retry_after=2.4), "id")
    broken = refusal_of(RuntimeError("s3cret"), None, headers=[("X-Own", "1")])

    assert (busy.status, busy.body) == (
        503,
        b'{"code":503,"message":"all slots are taken"}',
    )
    assert ("Retry-After", "3") in busy.headers
    assert (broken.status, broken.body) == (
        500,
        b'{"code":500,"message":"internal error"}',
    )
    assert ("X-Own", "1") in broken.headers


def test_a_time_of_zero_ends_a_sandbox_now(wire: Wire) -> None:
    """It need not be known how to kill one."""
    sandbox = wire.rig.sandboxes.get(wire.create())
    path = f"/sandboxes/{sandbox.id}/timeout"
    assert wire.ask("POST", path, {"timeout": 0}).status_code == 204
    assert sandbox.ended.wait(5)
    assert_refused(wire.ask("POST", path, {"timeout": 9}, headers=RED), 404)
