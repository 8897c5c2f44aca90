"""Manifests: sound ones become values, others list everything that is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import TemplateManifestError
from ppio_agent.sandbox.templates.manifest import (
    AgentManifest,
    Host,
    parse_manifest,
    with_status,
)
from ppio_agent.wire.models import AgentMetadata
from ppio_agent.wire.times import parse_time

HOST = Host(memory_mb=4096, cpus=2.0)

LEAST = """\
apiVersion: v1
kind: Agent
metadata:
  name: my-agent
  version: 1.10.0
  author: me@example.com
spec:
  entrypoint: app.py
"""

WHOLE = """\
apiVersion: v1
kind: Agent
metadata:
  name: my-agent
  version: 1.0.0-rc.1+b2
  author: me@example.com
  description: "answers: all"
  tags: [a, no, 10]
  created: 2026-01-02T03:04:05Z
spec:
  entrypoint: ./src/main.py
  envVars:
    TOKEN: s3cret
    EMPTY:
    N: 1.50
  runtime:
    timeout: 30
    memory_limit: 1Gi
    cpu_limit: 500m
  sandbox:
    template_id: aaaaaaaaaabbbbbbbbbb
status:
  phase: deployed
  template_id: aaaaaaaaaabbbbbbbbbb
  mine: 1
"""


def _problems(text: str, **more: object) -> list[tuple[str, int, str]]:
    with pytest.raises(TemplateManifestError) as info:
        parse_manifest(text, host=HOST, **more)  # type: ignore[arg-type]
    return list(info.value.problems)


def test_the_least_manifest_gets_the_defaults() -> None:
    assert parse_manifest(LEAST, host=HOST) == AgentManifest(
        name="my-agent",
        version="1.10.0",
        author="me@example.com",
        entrypoint="app.py",
        start_timeout=60,
        memory_mb=1024,
        cpus=1.0,
    )


def test_a_whole_manifest_is_read() -> None:
    assert parse_manifest(WHOLE, host=HOST, files={"src/main.py"}) == AgentManifest(
        name="my-agent",
        version="1.0.0-rc.1+b2",
        author="me@example.com",
        description="answers: all",
        tags=("a", "no", "10"),
        created=parse_time("2026-01-02T03:04:05Z"),
        entrypoint="src/main.py",
        env_vars={"TOKEN": "s3cret", "EMPTY": "", "N": "1.50"},
        start_timeout=30,
        memory_mb=1024,
        cpus=0.5,
        template_id="aaaaaaaaaabbbbbbbbbb",
        status={
            "phase": "deployed",
            "template_id": "aaaaaaaaaabbbbbbbbbb",
            "mine": "1",
        },
    )


def test_the_document_tells_clients_all_but_secrets_target_and_status() -> None:
    document = parse_manifest(WHOLE, host=HOST).document()
    read = AgentMetadata.parse(json.dumps(document))

    assert (
        read.name,
        read.entrypoint,
        read.start_timeout,
    ) == ("my-agent", "src/main.py", 30.0)
    assert not {"s3cret", "deployed", "aaaaaaaaaabbbbbbbbbb"} & set(
        json.dumps(document).replace('"', " ").split()
    )


def test_five_mistakes_are_five_problems_with_their_lines() -> None:
    text = (
        LEAST.replace("v1", "v2")
        .replace("my-agent", "My_Agent")
        .replace("1.10.0", "1.10")
        .replace("me@example.com", "me")
        .replace("entrypoint", "entrypiont")
    )

    assert _problems(text) == [
        ("apiVersion", 1, "expected v1"),
        (
            "metadata.name",
            4,
            "expected 1 to 63 of a-z, 0-9 and -, not beginning or ending with -",
        ),
        ("metadata.version", 5, "expected a semantic version such as 1.0.0"),
        ("metadata.author", 6, "expected an e-mail address"),
        ("spec.entrypiont", 8, "unknown key: did you mean entrypoint?"),
        ("spec.entrypoint", 8, "is required"),
    ]


def test_the_message_lists_every_problem() -> None:
    with pytest.raises(TemplateManifestError, match=r"kind \(line 2\): expected Agent"):
        parse_manifest(LEAST.replace("kind: Agent", "kind: Job"), host=HOST)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("app.py", "'a.py; rm -rf x'", ("spec.entrypoint", 8, "expected a .py file")),
        ("app.py", "../app.py", ("spec.entrypoint", 8, "expected a .py file")),
        ("app.py", "/app.py", ("spec.entrypoint", 8, "expected a .py file")),
        ("app.py", "main.py", ("spec.entrypoint", 8, "there is no file main.py")),
        ("app.py", "[a]", ("spec.entrypoint", 8, "expected one value")),
        ("1.10.0", "1.10.0\n  tags: x", ("metadata.tags", 6, "expected a list")),
        ("1.10.0", "1\n  tags: [A b]", ("metadata.tags[0]", 6, "expected 1 to 32")),
        ("1.10.0", "1\n  created: x", ("metadata.created", 6, "expected an RFC 3339")),
        (
            "1.10.0",
            "1.1.1\n  description: " + "x" * 1025,
            ("metadata.description", 6, "expected at most 1024"),
        ),
        ("spec:", "spec:\n  envVars: {1A: b}", ("spec.envVars.1A", 8, "not a name")),
        ("spec:", "spec:\n  envVars: x", ("spec.envVars", 8, "expected a mapping")),
        ("kind: Agent", "status: 5", ("status", 2, "expected a mapping")),
    ],
)
def test_each_rule_names_its_field(
    old: str, new: str, problem: tuple[str, int, str]
) -> None:
    found = _problems(LEAST.replace(old, new), files={"app.py"})

    assert [p for p in found if p[:2] == problem[:2] and p[2].startswith(problem[2])]


@pytest.mark.parametrize(
    ("field", "value", "ok"),
    [
        ("timeout", "1", True),
        ("timeout", "3600", True),
        ("timeout", "0", False),
        ("timeout", "3601", False),
        ("timeout", "1.5", False),
        ("memory_limit", "64Mi", True),
        ("memory_limit", "4Gi", True),
        ("memory_limit", "63Mi", False),
        ("memory_limit", "5Gi", False),
        ("memory_limit", "1G", False),
        ("cpu_limit", "100m", True),
        ("cpu_limit", "2", True),
        ("cpu_limit", "0.25", True),
        ("cpu_limit", "99m", False),
        ("cpu_limit", "2.1", False),
        ("cpu_limit", "one", False),
        ("cpus", "1", False),
    ],
)
def test_limits_are_within_the_machine(field: str, value: str, *, ok: bool) -> None:
    text = f"{LEAST}  runtime:\n    {field}: {value}\n"
    if ok:
        parse_manifest(text, host=HOST)
    else:
        assert _problems(text)[0][:2] == (f"spec.runtime.{field}", 10)


@pytest.mark.parametrize("text", ["", "- a\n", "{apiVersion: v1}", "x" * 262145])
def test_what_is_no_manifest_at_all_is_one_problem(text: str) -> None:
    assert len(_problems(text)) == 1


def test_a_missing_section_is_required_once() -> None:
    assert _problems("apiVersion: v1\nkind: Agent\n") == [
        ("metadata", 1, "is required"),
        ("spec", 1, "is required"),
    ]


@pytest.mark.parametrize("text", ["- a", "a: [", "x" * 300_000])
def test_a_problem_of_the_whole_document_names_the_file(text: str) -> None:
    with pytest.raises(TemplateManifestError, match=r": \.ppio-agent\.yaml") as caught:
        parse_manifest(text)

    assert [path for path, _, _ in caught.value.problems] == [".ppio-agent.yaml"]


def test_status_is_written_and_the_rest_stays() -> None:
    written = with_status("\ufeff" + WHOLE, {"phase": "deployed", "build_id": "b1"})

    assert written == "\ufeff" + WHOLE + '  build_id: "b1"\n'


def test_variables_are_in_no_repr() -> None:
    assert "s3cret" not in repr(parse_manifest(WHOLE, host=HOST))


@given(text=st.text("apiVersion: v1\nkind Agent{}[]&*!-#'\"\t", max_size=80))
@settings(max_examples=100)
def test_any_text_is_a_manifest_or_a_manifest_error(text: str) -> None:
    with pytest.raises(TemplateManifestError):
        parse_manifest(text, host=HOST)
