"""The shapes that travel between client, platform and agent."""

from __future__ import annotations

import json
import pickle
from datetime import datetime, timezone
from typing import Any

import attrs
import pytest

from ppio_agent.exceptions import WireError
from ppio_agent.wire import models
from ppio_agent.wire.model import WireModel
from ppio_agent.wire.models import (
    AgentMetadata,
    AgentTemplate,
    InvocationRequest,
    InvocationResponse,
    ListedSandbox,
    NewSandbox,
    PingResponse,
    PingStatus,
    Principal,
    Sandbox,
    SandboxDetail,
    SandboxMetric,
    SandboxState,
    Template,
)

WHEN = "2026-01-02T03:04:05.678Z"
INSTANT = datetime(2026, 1, 2, 3, 4, 5, 678_000, timezone.utc)
LISTED = {
    "sandboxID": "s-c", "templateID": "t", "clientID": "c", "envdVersion": "0.2.0",
    "state": "running", "startedAt": WHEN, "endAt": WHEN,
    "metadata": {"deep": {"er": [1]}}, "alias": "a", "cpuCount": 2, "memoryMB": 512,
    "diskSizeMB": 1024,
}  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Agent",
    "metadata": {
        "name": "n", "version": "1.2", "author": "me", "description": "d",
        "tags": ["x", "y"],
    },
    "spec": {
        "entrypoint": "app.py",
        "runtime": {"timeout": 30, "memory_limit": "1Gi"},
        "envVars": {"A": "1"},
    },
}  # fmt: skip

WIRE: list[tuple[type[WireModel], dict[str, Any]]] = [
    (PingResponse, {"status": "Healthy", "message": "m", "timestamp": WHEN,
        "time_of_last_update": 1.5}),
    (InvocationRequest, {"prompt": "p", "data": {"a": 1}, "sandbox_id": "s",
        "session_id": "c", "timeout": 3.0, "stream": True, "metadata": {"k": None}}),
    (InvocationResponse, {"result": [1], "status": "success", "duration": 0.5,
        "metadata": {"request_id": "r"}, "error": "e"}),
    (NewSandbox, {"templateID": "t", "timeout": 300, "metadata": {"a": "b"},
        "envVars": {"K": "v"}, "allow_internet_access": False, "secure": True,
        "autoPause": False}),
    (Sandbox, {"sandboxID": "s", "templateID": "t", "clientID": "c",
        "envdVersion": "0.5.7", "domain": "d", "alias": "a", "envdAccessToken": "x",
        "trafficAccessToken": "y", "edgeURL": "http://h"}),
    (ListedSandbox, LISTED),
    (SandboxDetail, {**LISTED, "domain": "d", "envdAccessToken": "x",
        "trafficAccessToken": "y", "edgeURL": "http://h", "allowInternetAccess": True,
        "network": {"a": 1}, "lifecycle": {}, "agent": {"phase": "ready"}}),
    (SandboxMetric, {"timestamp": WHEN, "timestampUnix": 1, "cpuCount": 2,
        "cpuUsedPct": 0.5, "memTotal": 4, "memUsed": 3, "memCache": 2, "diskTotal": 9,
        "diskUsed": 8}),
    (Template, {"templateID": "t", "aliases": ["a"], "names": ["n"], "version": "1",
        "description": "d", "tags": ["x"], "metadata": {"a": 1}, "createdAt": WHEN,
        "updatedAt": WHEN, "createdBy": {"id": "u"}, "buildID": "b", "buildCount": 1,
        "buildStatus": "ready", "cpuCount": 2, "memoryMB": 512, "diskSizeMB": 1,
        "envdVersion": "0.5.7", "public": True, "spawnCount": 3,
        "lastSpawnedAt": WHEN}),
]  # fmt: skip
NAMES = [cls.__name__ for cls, _ in WIRE]


@pytest.mark.parametrize(("cls", "data"), WIRE, ids=NAMES)
def test_every_member_has_its_name_on_the_wire(
    cls: type[WireModel], data: dict[str, Any]
) -> None:
    """All of them are read and sent back under the same keys; none is left over."""
    model = cls.from_dict(data)
    assert model.extra == {}
    assert model.to_dict() == data
    travelling = [
        f.name
        for f in attrs.fields(cls)
        if f.name != "extra" and not f.metadata.get("local")
    ]
    assert len(travelling) == len(data)


@pytest.mark.parametrize(("cls", "data"), WIRE, ids=NAMES)
def test_every_model_keeps_what_it_does_not_know(
    cls: type[WireModel], data: dict[str, Any]
) -> None:
    """And survives pickle with it."""
    model = cls.from_dict({**data, "x-new": {"a": [1]}})
    assert pickle.loads(pickle.dumps(model)) == model
    assert model.to_dict()["x-new"] == {"a": [1]}


@pytest.mark.parametrize(
    ("cls", "least"),
    [
        (PingResponse, {"status": "Odd"}),
        (InvocationRequest, {}),
        (InvocationResponse, {}),
        (Sandbox, {"sandboxID": "s", "templateID": "t"}),
        (ListedSandbox, {"sandboxID": "s", "templateID": "t", "state": "odd",
            "startedAt": WHEN, "endAt": WHEN, "metadata": None}),
        (Template, {"templateID": "t"}),
        (Template, {"id": "t"}),
    ],
)  # fmt: skip
def test_only_what_is_used_is_required(
    cls: type[WireModel], least: dict[str, Any]
) -> None:
    """A server may say less; each of these alone is missed."""
    cls.from_dict(least)
    needed = [f for f in attrs.fields(cls) if f.default is attrs.NOTHING]
    for key in [*least][: len(needed)]:
        with pytest.raises(WireError, match="is missing"):
            cls.from_dict({k: v for k, v in least.items() if k != key})


def test_every_public_shape_is_known_here() -> None:
    """A new one takes its place in the table above."""
    shapes = {
        name for name in models.__all__ if issubclass(getattr(models, name), WireModel)
    }
    assert shapes == set(NAMES)


@pytest.mark.parametrize("secret", ["envVars", "envdAccessToken", "trafficAccessToken"])
def test_secrets_are_sent_and_never_shown(secret: str) -> None:
    """They are in no repr."""
    for cls, data in WIRE:
        if secret in data:
            value = {"K": "hush-hush"} if secret == "envVars" else "hush-hush"
            model = cls.from_dict({**data, secret: value})
            assert "hush-hush" not in repr(model)
            assert model.to_dict()[secret] == value
            assert secret not in model.public_dict()


def test_words_of_servers_are_open() -> None:
    """A state that is new to this client is a state."""
    assert SandboxState("running") is SandboxState.RUNNING
    state = ListedSandbox.from_dict({**LISTED, "state": "thawing"}).state
    assert state == SandboxState("thawing")
    assert PingResponse.from_dict({"status": "HealthyBusy"}).status is (
        PingStatus.HEALTHY_BUSY
    )


def test_a_principal_shows_who_it_is() -> None:
    """It is a value: equal by content, usable as a key."""
    assert Principal("k", "api-key", frozenset({"a"})) == Principal(
        id="k", scheme="api-key", scopes=frozenset({"a"})
    )
    assert len({Principal("k"), Principal("k")}) == 1


def test_an_empty_request_is_an_empty_object() -> None:
    """What was not set is not sent, free members are."""
    assert InvocationRequest().to_dict() == {}
    request = InvocationRequest(prompt="hi", metadata={}, extra={"model": "m"})
    assert request.to_dict() == {"prompt": "hi", "model": "m"}


def test_an_answer_is_a_mapping_of_its_envelope() -> None:
    """Attributes and members are the same; local facts are attributes only."""
    data = {"result": {"a": 1}, "status": "success", "model": "m"}
    answer = attrs.evolve(InvocationResponse.from_dict(data), request_id="r")
    assert answer["result"] is answer.result
    assert answer["model"] == "m"
    assert dict(answer) == {
        "result": {"a": 1}, "status": "success", "duration": None, "metadata": {},
        "error": None, "model": "m",
    }  # fmt: skip
    assert len(answer) == 6
    assert "request_id" not in answer
    assert answer.get("nothing") is None
    with pytest.raises(KeyError):
        answer["request_id"]
    assert "request_id" not in answer.to_dict()


@pytest.mark.parametrize(
    ("result", "text"), [("hi", "hi"), ({"a": "é"}, '{"a":"é"}'), (None, "null")]
)
def test_an_answer_as_text_is_its_result(result: object, text: str) -> None:
    """A str as it is, anything else as JSON."""
    assert str(InvocationResponse(result=result)) == text


@pytest.mark.parametrize("document", [DOCUMENT, json.dumps(DOCUMENT)])
def test_an_agent_document_is_read_as_text_or_object(document: object) -> None:
    """Members that this reader does not use are passed over."""
    assert AgentMetadata.parse(document) == AgentMetadata(
        name="n",
        version="1.2",
        author="me",
        description="d",
        tags=("x", "y"),
        entrypoint="app.py",
        start_timeout=30.0,
        env_vars={"A": "1"},
    )


def test_an_agent_document_may_say_nothing() -> None:
    """Everything has a default."""
    assert AgentMetadata.parse({}) == AgentMetadata()
    assert AgentMetadata.parse("{}") == AgentMetadata()


def test_variables_of_an_agent_are_not_shown() -> None:
    """They may be keys."""
    assert "hush" not in repr(AgentMetadata(env_vars={"KEY": "hush"}))


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("{", "Invalid JSON: "),
        ("\ud800", "Invalid JSON: "),
        (3, "$: expected object, got int"),
        ({"spec": []}, "$.spec: expected object, got array"),
        ({"spec": {"runtime": {"timeout": "30"}}},
            "$.spec.runtime.timeout: expected number, got str"),
        ({"spec": {"envVars": {"A": 1}}}, "$.spec.envVars.A: expected str, got int"),
        ({"spec": {"entrypoint": "../x.py"}},
            "$.spec.entrypoint: expected a relative path to a .py file"),
        ({"metadata": {"tags": "abc"}}, "$.metadata.tags: expected array, got str"),
    ],
)  # fmt: skip
def test_a_bad_agent_document_is_refused_with_its_place(
    document: object, text: str
) -> None:
    """Who starts the agent shows it to a person."""
    with pytest.raises(WireError) as caught:
        AgentMetadata.parse(document)
    assert str(caught.value).startswith(text)


def test_a_template_is_seen_through_its_agent() -> None:
    """What the agent says of itself names it; the template's own words fill in."""
    template = Template.from_dict(
        {
            "templateID": "t", "aliases": ["al"], "names": ["al", "na"], "version": "9",
            "metadata": {"agent_runtime": json.dumps(DOCUMENT), "more": 1},
            "createdAt": WHEN, "updatedAt": WHEN, "buildStatus": "ready",
        }
    )  # fmt: skip
    assert AgentTemplate.from_template(template) == AgentTemplate(
        template_id="t",
        name="n",
        version="1.2",
        description="d",
        author="me",
        tags=("x", "y"),
        aliases=("al", "na"),
        created_at=INSTANT,
        updated_at=INSTANT,
        status="ready",
        metadata={"agent_runtime": json.dumps(DOCUMENT), "more": 1},
        agent=AgentMetadata.parse(DOCUMENT),
    )


@pytest.mark.parametrize("metadata", [None, {}, {"agent_runtime": "{"}])
def test_a_template_without_a_readable_agent_is_still_one(metadata: object) -> None:
    """One malformed record hides nothing."""
    data = {"templateID": "t", "names": ["na"], "version": "9", "tags": ["x"],
            "description": "d", "metadata": metadata}  # fmt: skip
    seen = AgentTemplate.from_template(Template.from_dict(data))
    assert seen.agent is None
    assert (seen.name, seen.version, seen.tags) == ("na", "9", ("x",))
    assert (seen.description, seen.status, seen.author) == ("d", "", "")
    bare = AgentTemplate.from_template(Template(template_id="t"))
    assert (bare.name, bare.version, bare.metadata) == ("t", "", {})
