"""The contract of every document store, and how one is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent.exceptions import ConfigurationError, ConflictError, SerializationError
from ppio_agent.storage import Delete, Document, DocumentStore, Put, open_store


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DocumentStore]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/s/x.db"
    opened = open_store(url)
    yield opened
    opened.close()


def test_a_written_document_is_read_back_with_its_version(store: DocumentStore) -> None:
    store.write(Put("fruit", "pear", {"colour": "grün", "n": [1, None]}))
    store.write(Put("fruit", "pear", {"colour": "red"}))

    assert Document("fruit", "pear", 2, {"colour": "red"}) == store.get("fruit", "pear")
    assert store.get("fruit", "fig") is None
    assert store.get("tool", "pear") is None


def test_scan_gives_one_kind_in_the_order_of_ids(store: DocumentStore) -> None:
    store.write(Put("a", "2", {}), Put("b", "1", {}), Put("a", "10", {}))

    assert [doc.id for doc in store.scan("a")] == ["10", "2"]
    assert store.scan("c") == ()


def test_a_reader_cannot_change_what_is_stored(store: DocumentStore) -> None:
    body = {"tags": ["x"]}
    store.write(Put("a", "1", body))
    body["tags"].append("y")
    doc = store.get("a", "1")
    assert doc is not None
    doc.body["tags"].append("z")

    again = store.get("a", "1")
    assert again is not None
    assert again.body == {"tags": ["x"]}


def test_expected_versions_are_demanded(store: DocumentStore) -> None:
    store.write(Put("a", "1", {"v": 1}, expect=0))
    with pytest.raises(ConflictError, match="a 1 has version 1, not 0"):
        store.write(Put("a", "1", {"v": 2}, expect=0))
    store.write(Put("a", "1", {"v": 2}, expect=1))
    with pytest.raises(ConflictError):
        store.write(Delete("a", "1", expect=1))
    store.write(Delete("a", "1", expect=2))

    assert store.get("a", "1") is None


def test_deleting_what_does_not_exist_is_no_error(store: DocumentStore) -> None:
    store.write(Delete("a", "1"))


def test_changes_are_made_all_or_none(store: DocumentStore) -> None:
    store.write(Put("a", "1", {"v": 1}))
    with pytest.raises(ConflictError):
        store.write(
            Put("a", "2", {}), Delete("a", "1"), Put("a", "1", {"v": 9}, expect=1)
        )
    with pytest.raises(SerializationError):
        store.write(Put("a", "3", {}), Put("a", "4", {"x": float("nan")}))

    assert [(d.id, d.body) for d in store.scan("a")] == [("1", {"v": 1})]


def test_a_change_sees_the_earlier_ones_of_its_write(store: DocumentStore) -> None:
    store.write(
        Put("a", "1", {"v": 1}, expect=0),
        Put("a", "1", {"v": 2}, expect=1),
        Put("a", "2", {}),
        Delete("a", "2", expect=1),
    )

    assert [(d.id, d.version) for d in store.scan("a")] == [("1", 2)]


def test_of_racing_compare_and_sets_each_version_is_won_once(
    store: DocumentStore,
) -> None:
    store.write(Put("count", "n", {"n": 0}))
    start = threading.Barrier(4)

    def add() -> None:
        start.wait()
        done = 0
        while done < 25:
            doc = store.get("count", "n")
            assert doc is not None
            try:
                store.write(
                    Put("count", "n", {"n": doc.body["n"] + 1}, expect=doc.version)
                )
            except ConflictError:
                continue
            done += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert store.get("count", "n") == Document("count", "n", 101, {"n": 100})


def test_closing_twice_is_harmless(store: DocumentStore) -> None:
    store.close()
    store.close()


@pytest.mark.parametrize("url", ["redis://host", "sqlite:///", "sqlite://x", "", "x"])
def test_an_unknown_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="use memory:// or sqlite:///<path>"):
        open_store(url)
