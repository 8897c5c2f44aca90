"""Dead letters over HTTP."""

from __future__ import annotations

from ppio_agent.actors import ActorOptions, InProcessActorRuntime
from ppio_agent.serving import ApiKeyAuth
from tests.actors.http.conftest import Serve
from tests.actors.http.support import Gate, said

BODY = {"method": "run", "params": said()}


def test_a_letter_is_listed_sent_again_and_removed(serve: Serve, gate: Gate) -> None:
    """By its own id."""
    runtime = InProcessActorRuntime()
    http = serve(runtime)
    options = ActorOptions(mailbox_limit=2, mailbox_policy="drop_oldest")
    runtime.register_agent(
        "tight", lambda request: gate.stand() or "ok", options=options
    )
    for name in ("m-1", "m-2", "m-3"):
        http.post(f"/actors/v1/tight/a/{name}", BODY)
        if name == "m-1":
            gate.wait_reached()
    (letter,) = http.get("/dead-letters").json
    letter_id = letter.pop("id")
    assert letter.pop("at")
    assert letter == {
        "actor_id": "tight/a", "message_id": "m-2", "method": "run",
        "reason": "dropped", "attempts": 0,
    }  # fmt: skip
    dropped = http.get("/actors/v1/tight/a/m-2").json
    assert (dropped["status"], dropped["error"]["code"]) == ("rejected", "dropped")
    gate.open()
    http.get("/actors/v1/tight/a/m-3?blocking=true")
    again = http.post(f"/dead-letters/{letter_id}:redrive")
    assert (again.status, again.json["status"]) == (202, "pending")
    ended = http.get(f"{again.headers['location']}?blocking=true").json
    assert ended["status"] == "completed"
    assert http.delete(f"/dead-letters/{letter_id}").status in (204, 404)
    assert http.delete(f"/dead-letters/{letter_id}").status == 404
    assert http.post(f"/dead-letters/{letter_id}:redrive").status == 404
    assert http.get("/dead-letters").json == []


def test_letters_are_not_for_strangers(serve: Serve) -> None:
    """They are those of all callers."""
    assert serve().get("/dead-letters").json == []
    assert serve(allow_unauthenticated=True).get("/dead-letters").status == 403
    http = serve(auth=ApiKeyAuth(["a-key"]))
    assert http.get("/dead-letters").status == 401
    assert http.get("/dead-letters", Authorization="Bearer a-key").status == 200


def test_letters_are_those_of_the_owner(serve: Serve, gate: Gate) -> None:
    """Of the actor; others neither see nor touch them."""
    runtime = InProcessActorRuntime()
    http = serve(runtime, auth=ApiKeyAuth({"ann": "key-of-ann", "bob": "key-of-bob"}))
    ann, bob = ({"Authorization": f"Bearer key-of-{name}"} for name in ("ann", "bob"))
    options = ActorOptions(mailbox_limit=2, mailbox_policy="drop_oldest")
    runtime.register_agent("tight", lambda request: gate.stand(), options=options)
    for who, key in ((bob, "b"), (ann, "a")):
        for name in ("m-1", "m-2", "m-3"):
            http.post(f"/actors/v1/tight/{key}/{name}", BODY, **who)
            if name == "m-1":
                gate.wait_reached()
    for who, key in ((ann, "a"), (bob, "b")):
        (letter,) = http.get("/dead-letters?limit=1", **who).json
        assert letter["actor_id"] == f"tight/{key}"
        other = bob if who is ann else ann
        place = f"/dead-letters/{letter['id']}"
        for refused in (
            http.post(f"{place}:redrive", **other),
            http.delete(place, **other),
        ):
            assert (refused.status, refused.json["code"]) == (
                404,
                "dead_letter_not_found",
            )
        assert http.delete(place, **who).status == 204


def test_a_number_of_letters_has_to_be_one(serve: Serve) -> None:
    """From 1 to 1,000."""
    http = serve()
    for limit in ("0", "1001", "x", "-1"):
        assert http.get(f"/dead-letters?limit={limit}").status == 422
    assert http.get("/dead-letters?limit=1000").status == 200
