"""A store gives back what was put into it, or nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.store import PayloadStore, digest_of

contents = st.binary(max_size=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@given(payload=contents)
def test_what_was_put_is_there_by_its_digest(folder: Path, payload: bytes) -> None:
    store = PayloadStore(folder)
    assert store.put(payload) == store.put(payload) == digest_of(payload)
    assert store.get(digest_of(payload)) == PayloadStore(folder).get(digest_of(payload)) == payload


@given(payload=contents, changed=contents)
def test_a_torn_or_changed_file_is_noticed_dropped_and_can_be_put_again(
    folder: Path, payload: bytes, changed: bytes
) -> None:
    store = PayloadStore(folder)
    digest = store.put(payload)
    (folder / digest).write_bytes(changed)
    assert store.get(digest) == (payload if changed == payload else None)
    (folder / digest).write_bytes(changed)
    assert store.put(payload) == digest
    assert store.get(digest) == payload, "also when it was put over the torn file"


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert PayloadStore(tmp_path).get("0" * 64) is None


@pytest.mark.parametrize("digest", ["", "../x", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "/etc/passwd"])
def test_only_a_digest_is_a_name(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        PayloadStore(tmp_path).get(digest)


def test_a_payload_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    store = PayloadStore(tmp_path)
    (tmp_path / digest_of(b"x")).mkdir()
    with pytest.raises(OSError, match="directory"):
        store.put(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [digest_of(b"x")]


def test_many_threads_may_put_the_same(tmp_path: Path) -> None:
    store, payload = PayloadStore(tmp_path), b"x" * 100_000
    threads = [threading.Thread(target=store.put, args=(payload,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == [digest_of(payload)]
    assert store.get(digest_of(payload)) == payload
