"""Signed requests: genuine ones are admitted, and no change of one is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import evolve, field, frozen
from hypothesis import assume, given
from hypothesis import strategies as st

from ppio_agent.serving import HmacAuth
from ppio_agent.serving.testing import AgentTestClient, TestResponse
from ppio_agent.wire.signing import SIGNATURE_HEADERS
from tests.fuzz.support import fuzz, header_values, spoiled
from tests.serving.support_auth import KEY, SECRET, client_of, signed

NOW = 1_700_000_000.0
REFUSALS = {(400, "invalid_signature_headers"), (401, "invalid_credentials")}


@frozen
class Request:
    """One request, as it is sent."""

    method: str
    target: str
    body: bytes
    headers: dict[str, str] = field(factory=dict)

    def signed(self) -> Request:
        headers = signed(self.method, self.target, self.body, now=NOW)
        return evolve(self, headers=headers)

    def send(self, client: AgentTestClient) -> TestResponse:
        return client.request(
            self.method, self.target, data=self.body, headers=self.headers
        )


REQUESTS = st.builds(
    Request,
    st.just("POST"),
    st.text("ab=&%2F/?;é", max_size=8).map(lambda text: f"/invocations?{text}"),
    st.dictionaries(st.text(max_size=5), st.integers()).map(
        lambda value: json.dumps(value).encode()
    ),
)


@pytest.fixture(scope="module", params=[False, True], ids=["table", "flask"])
def client(request: pytest.FixtureRequest) -> Iterator[AgentTestClient]:
    auth = HmacAuth({"test": SECRET, "other": KEY}, clock=lambda: NOW)
    with client_of(auth, through_flask=request.param, retention=1.0) as client:
        yield client


@st.composite
def changed(draw: Callable[[Any], Any], genuine: Request) -> Request:
    """Give a signed request of which one thing is not as it was signed."""
    part = draw(st.sampled_from(["method", "target", "body", *SIGNATURE_HEADERS]))
    if part == "method":
        return evolve(genuine, method=draw(st.sampled_from(["GET", "PUT", "X"])))
    if part == "target":
        target = draw(spoiled(st.just(genuine.target.encode())))
        return evolve(genuine, target="/invocations" + target.decode("latin-1")[12:])
    if part == "body":
        return evolve(genuine, body=draw(spoiled(st.just(genuine.body))))
    value = genuine.headers[part]
    near = spoiled(st.just(value.encode())).map(lambda data: data.decode("latin-1"))
    other = draw(near | header_values | st.sampled_from(["other", "", value.upper()]))
    return evolve(genuine, headers={**genuine.headers, part: other})


@fuzz(150, share=0.2)
@given(request=REQUESTS, data=st.data())
def test_no_change_of_a_signed_request_is_admitted(
    client: AgentTestClient, request: Request, data: st.DataObject
) -> None:
    """A typed refusal, whatever was changed; unchanged it is admitted, and once."""
    genuine = request.signed()
    other = data.draw(changed(genuine))
    assume(other != genuine)
    refused = other.send(client)
    assert (refused.status_code, refused.json["code"]) in REFUSALS
    assert genuine.send(client).status_code in (200, 404)  # perhaps no entrypoint
    again = genuine.send(client)
    assert (again.status_code, again.json["code"]) == (401, "nonce_replayed")


@fuzz(100, share=0.2)
@given(
    request=REQUESTS,
    name=st.sampled_from([*SIGNATURE_HEADERS, "Content-Length", "Authorization"]),
    value=header_values | st.sampled_from(["\xb2", "Bearer", "1" * 5000]),
)
def test_one_odd_header_is_a_typed_refusal(
    client: AgentTestClient, request: Request, name: str, value: str
) -> None:
    """Of a request that is not signed, or not wholly."""
    answer = evolve(request, headers={name: value}).send(client)
    assert 400 <= answer.status_code < 500
    assert answer.json["code"]
