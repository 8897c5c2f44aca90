"""Create bodies: every spelling accepted, everything else refused with its path."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import SandboxPlatformError, ValidationError
from ppio_agent.sandbox.life.options import CreateOptions, parse_create
from ppio_agent.wire.json import Json


def _parse(body: Json) -> CreateOptions:
    return parse_create(body, default_timeout=300, max_timeout=1000)


def test_an_empty_body_asks_for_the_base_template() -> None:
    assert _parse({}) == CreateOptions(template="base", timeout=300)


@pytest.mark.parametrize(
    "body",
    [
        {"templateID": "t", "timeout": 15, "allowInternetAccess": True},
        {"templateID": "t", "timeout": 15, "allow_internet_access": True},
        {"templateID": "t", "timeout": 15, "secure": True, "autoPause": False},
        {"templateID": "t", "timeout": 15, "nodeID": "n", "brandNew": [1]},
        {"templateID": "t", "timeout": 15, "network": {}, "mcp": None, "secrets": []},
        {"templateID": "t", "timeout": 15, "lifecycle": {"onTimeout": "kill"}},
    ],
)
def test_the_spellings_of_all_clients_mean_the_same(body: Json) -> None:
    assert _parse(body) == CreateOptions(template="t", timeout=15)


def test_everything_that_can_be_asked_for() -> None:
    options = _parse({
        "templateID": "t",
        "timeout": 1000,
        "metadata": {"a": "b", "idle_timeout": "60"},
        "envVars": {"K": "v"},
        "secure": False,
        "autoPause": True,
        "autoResume": {"enabled": True},
        "allow_internet_access": False,
        "allowInternetAccess": False,
    })  # fmt: skip

    assert options == CreateOptions(
        template="t",
        timeout=1000,
        metadata={"a": "b", "idle_timeout": "60"},
        env={"K": "v"},
        secure=False,
        pauses=True,
        auto_resume=True,
        allow_internet=False,
        idle_timeout=60.0,
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], r"\$: expected object"),
        ({"timeout": "5"}, r"\$\.timeout: expected int"),
        ({"timeout": True}, r"\$\.timeout: expected int"),
        ({"timeout": 0}, r"\$\.timeout: expected from 1 to 1000 seconds"),
        ({"timeout": 1001}, r"\$\.timeout: expected from 1 to 1000 seconds"),
        ({"metadata": {"a": 1}}, r"\$\.metadata\.a: expected str"),
        ({"metadata": {str(i): "" for i in range(65)}}, r"\$\.metadata: expected at"),
        ({"metadata": {"idle_timeout": "soon"}}, r"idle_timeout: expected seconds"),
        ({"metadata": {"idle_timeout": "-1"}}, r"idle_timeout: expected seconds"),
        ({"metadata": {"idle_timeout": "1" * 10}}, r"idle_timeout: expected seconds"),
        ({"envVars": {"A=B": ""}}, r"\$\.envVars: 'A=B' is not a name"),
        ({"envVars": {"": ""}}, r"\$\.envVars: '' is not a name"),
        ({"envVars": {"1A": ""}}, r"\$\.envVars: '1A' is not a name"),
        ({"envVars": {"A\n": ""}}, r"\$\.envVars: 'A.n' is not a name"),
        ({"envVars": {"A": "\0"}}, r"\$\.envVars\.A: has a NUL character"),
        ({"envVars": {"A": "x" * 65536}}, r"\$\.envVars: larger than 65536 bytes"),
        ({"envVars": {str(i): "" for i in range(129)}}, r"\$\.envVars: expected at"),
        ({"autoPause": True, "lifecycle": {"onTimeout": "kill"}}, "contradicts"),
        ({"lifecycle": {"onTimeout": "stop"}}, "expected kill or pause"),
        ({"lifecycle": {"autoResume": "yes"}}, r"lifecycle\.autoResume: expected bool"),
        (
            {"lifecycle": {"autoResume": True}, "autoResume": {"enabled": False}},
            r"lifecycle\.autoResume: contradicts \$\.autoResume",
        ),
        (
            {"allowInternetAccess": True, "allow_internet_access": False},
            "contradicts",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(body: Json, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _parse(body)


@pytest.mark.parametrize(
    "body",
    [
        {"lifecycle": {"autoResume": True}},
        {"autoResume": {"enabled": True}},
        {"lifecycle": {"autoResume": True}, "autoResume": {"enabled": True}},
    ],
)
def test_what_answers_say_of_a_life_can_be_asked_for(body: Json) -> None:
    """With other words beside it or not."""
    assert _parse(body).auto_resume


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("00", 0.0), ("060", 60.0)])
def test_an_idle_timeout_is_a_number_in_digits(text: str, seconds: float) -> None:
    """Zero, however it is written, is none."""
    assert _parse({"metadata": {"idle_timeout": text}}).idle_timeout == seconds


def test_traffic_is_public_unless_told_otherwise() -> None:
    assert _parse({"network": None}).public_traffic
    assert _parse({"network": {}}).public_traffic
    assert not _parse({"network": {"allowPublicTraffic": False}}).public_traffic


@pytest.mark.parametrize(
    "body",
    [
        {"volumeMounts": [{}]},
        {"secrets": ["s"]},
        {"mcp": {"x": 1}},
        {"network": {"allowOut": ["x"]}},
        {"network": {"denyOut": ["x"]}},
        {"network": {"maskRequestHost": "x"}},
    ],
)
def test_what_the_platform_does_not_have_is_501(body: Json) -> None:
    with pytest.raises(
        SandboxPlatformError, match="is not supported by the local platform"
    ) as info:
        _parse(body)

    assert info.value.http_status == 501


def test_variables_are_in_no_repr() -> None:
    assert "s3cret" not in repr(_parse({"envVars": {"K": "s3cret"}}))
