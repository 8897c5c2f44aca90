"""The contract about state."""

from __future__ import annotations

from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import RemoveKey, SetValue
from ppio_agent.wire.actors import ActorId
from ppio_agent.wire.json import encode_json

from .base import A, B, ContractBase, in_threads

__all__ = ["StateContract"]

_ODD_KEYS = ["", "%", "A", "_", "a", "a%b", "a_b", "axb", "é", "\uffff", "\U0001f600"]


class StateContract(ContractBase):
    """How state is read and written outside turns."""

    def test_nothing_is_there_at_first(self, store: IActorStore) -> None:
        """An actor that nobody wrote has no keys and the etag "0"."""
        read = store.read(A)
        assert (read.etag, read.values, read.next_key) == ("0", {}, None)
        assert store.read_state(A) == {}

    def test_a_batch_is_kept_exactly(self, store: IActorStore) -> None:
        """What was written is read, byte for byte, in the order of the keys."""
        texts = {"b": b'{"n":1.5,"t":"\xc3\xa9\\u0000"}', "a": b"null", "c": b'""'}
        result = store.write(A, [SetValue(key, text) for key, text in texts.items()])
        assert result.success
        read = store.read(A)
        assert read.etag == result.etag != "0"
        assert read.values == texts
        assert list(read.values) == ["a", "b", "c"]

    def test_every_batch_changes_the_etag(self, store: IActorStore) -> None:
        """Also one that writes what was there before, or removes what was not."""
        etags = [store.write(A, [SetValue("a", b"1")]).etag for _ in range(3)]
        etags.append(store.write(A, [RemoveKey("nothing")]).etag)
        assert len({*etags, "0"}) == 5
        assert store.read(A).etag == etags[-1]

    def test_operations_are_done_in_their_order(self, store: IActorStore) -> None:
        """The last one about a key counts."""
        store.write(A, [SetValue("a", b"1"), SetValue("b", b"1"), SetValue("c", b"1")])
        again = [SetValue("b", b"2"), SetValue("b", b"3")]
        store.write(A, [SetValue("a", b"2"), RemoveKey("a"), RemoveKey("b"), *again])
        assert store.read(A).values == {"b": b"3", "c": b"1"}

    def test_with_an_etag_only_the_version_that_was_read_is_changed(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """A conflict says the etag that is in force, and nothing is changed."""
        first = store.write(A, [SetValue("a", b"1")], "0")
        assert first.success
        second = peer.write(A, [SetValue("a", b"2")], first.etag)
        assert second.success
        late = store.write(A, [SetValue("a", b"3"), SetValue("b", b"3")], first.etag)
        assert (late.success, late.etag) == (False, second.etag)
        assert not store.write(A, [SetValue("b", b"4")], "0").success
        assert store.read(A).values == {"a": b"2"}

    def test_one_of_many_conditional_writes_succeeds(self, store: IActorStore) -> None:
        """Those who write at once with one etag do not overwrite each other."""
        etag = store.write(A, [SetValue("a", b"0")]).etag
        results = in_threads(
            8, lambda n: store.write(A, [SetValue(f"k{n}", b"1")], etag)
        )
        assert [result.success for result in results].count(True) == 1
        assert len(store.read(A).values) == 2

    def test_what_was_emptied_has_another_etag_than_before(
        self, store: IActorStore
    ) -> None:
        """Nobody who read it before overwrites what came since."""
        before = store.write(A, [SetValue("a", b"1")]).etag
        assert store.delete_state(A)
        assert store.read(A).etag != before
        assert not store.write(A, [SetValue("b", b"2")], before).success
        assert store.read(A).values == {}

    def test_a_part_is_read_by_keys(self, store: IActorStore) -> None:
        """Keys that do not exist are left out."""
        store.write(A, [SetValue(key, encode_json(key)) for key in "abcd"])
        assert store.read(A, ["d", "b", "x", "b"]).values == {"b": b'"b"', "d": b'"d"'}
        assert store.read(A, []).values == {}

    def test_a_part_is_read_by_prefix_in_pages(self, store: IActorStore) -> None:
        """`next_key` is where to go on; None if nothing is left."""
        keys = [*(f"m/{n:03}" for n in range(25)), "m", "n/1", "M/1"]
        store.write(A, [SetValue(key, b"1") for key in keys])
        seen: list[str] = []
        after: str | None = None
        pages = 0
        while pages == 0 or after is not None:
            page = store.read(A, prefix="m/", after=after, limit=10)
            seen += page.values
            after = page.next_key
            pages += 1
        assert seen == keys[:25]
        assert pages == 3

    def test_a_page_that_holds_the_rest_is_the_last(self, store: IActorStore) -> None:
        """No empty page follows one that is just full."""
        store.write(A, [SetValue(key, b"1") for key in "abcd"])
        first = store.read(A, limit=2)
        assert (list(first.values), first.next_key) == (["a", "b"], "b")
        second = store.read(A, after="b", limit=2)
        assert (list(second.values), second.next_key) == (["c", "d"], None)

    def test_keys_are_any_text_in_the_order_of_code_points(
        self, store: IActorStore
    ) -> None:
        """No character means anything else than itself."""
        store.write(A, [SetValue(key, b"1") for key in reversed(_ODD_KEYS)])
        assert list(store.read(A).values) == _ODD_KEYS
        assert list(store.read(A, prefix="a_").values) == ["a_b"]
        assert list(store.read(A, prefix="%").values) == ["%"]
        assert list(store.read(A, after="é").values) == _ODD_KEYS[-2:]
        store.write(A, [RemoveKey("_"), RemoveKey("")])
        assert len(store.read(A).values) == len(_ODD_KEYS) - 2

    def test_actors_share_nothing(self, store: IActorStore) -> None:
        """Ids that look alike are different actors."""
        ids = [
            ActorId("a", "b/c"),
            ActorId("a.b", "c"),
            ActorId("a:b", "c"),
            ActorId("a", "b:c"),
            ActorId("a", "B/c"),
            ActorId("a", "b/c "),
            ActorId("a", "%{}'\"\\"),
        ]
        for number, actor_id in enumerate(ids):
            store.write(actor_id, [SetValue("n", str(number).encode())])
        for number, actor_id in enumerate(ids):
            assert store.read_state(actor_id) == {"n": number}

    def test_the_whole_state_is_a_dictionary(self, store: IActorStore) -> None:
        """`write_state` replaces all of it; what was read is a copy."""
        state = {"a": [1, 2.5, None], "b": {"ü": "é"}}
        assert store.write_state(A, {"old": 1})
        assert store.write_state(A, state)
        read = store.read_state(A)
        assert read == state
        read["a"].append(3)
        assert store.read_state(A) == state
        assert store.delete_state(A)
        assert not store.delete_state(A)
        assert store.read_state(A) == {}

    def test_a_large_state_is_read_whole(self, store: IActorStore) -> None:
        """However many pages it has."""
        state = {f"k/{n:05}": n for n in range(2100)}
        store.write_state(A, state)
        assert store.read_state(A) == state
        assert store.read_state(B) == {}
