"""A snapshot is fetched from all who lend it, is what its index says, and comes whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from comms import snapshots
from comms.agreement import Holder, Offer, SnapshotSource
from comms.errors import CommsError
from comms.grpc_transport import GrpcTransport
from comms.snapshots import Lender, Part, decode_index, encode_index
from comms.store import digest_of
from comms.wire import WireError
from tests.comms.members import transport_of

NOBODY = "127.0.0.1:9"
CONTENT = b"".join(bytes([i % 251]) * 999 for i in range(400))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PART_BYTES", 10_000)


@contextmanager
def members(folder: Path, names: str) -> Iterator[dict[str, GrpcTransport]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(transport_of(folder, name, NOBODY, outage_deadline_s=5.0)) for name in names}


def lend(transport: GrpcTransport, content: bytes, folder: Path) -> Offer:
    file = folder / f"snapshot-{digest_of(content)[:8]}"
    file.write_bytes(content)
    digest, num_bytes = transport._lender.lend(file)
    return Offer(7, "ab" * 32, digest, num_bytes)


def test_parts_come_from_several_holders_and_a_dead_one_is_done_without(tmp_path: Path) -> None:
    with members(tmp_path, "abx") as at:
        offers = {lend(at[name], CONTENT, tmp_path) for name in "ab"}
        [offer] = offers
        holders = (Holder("a", at["a"].address), Holder("b", at["b"].address), Holder("c", NOBODY))
        at["x"].fetch_snapshot(SnapshotSource(offer, holders), tmp_path / "got", len(CONTENT))
    assert (tmp_path / "got").read_bytes() == CONTENT
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    parts = [row for row in rows if row["kind"] == "state_transfer"]
    assert {row["peer"] for row in parts} == {"a", "b"}
    assert sum(row["bytes"] for row in parts) >= len(CONTENT)
    assert not list((tmp_path / "x").iterdir()), "no part is kept twice"


def test_a_snapshot_that_nobody_gives_is_an_error_and_what_came_of_it_is_kept(tmp_path: Path) -> None:
    with members(tmp_path, "abx") as at:
        offer = lend(at["a"], CONTENT, tmp_path)
        lent = at["a"]._lender._lent[offer.index_digest]
        missing = list(lent.parts)[-1]
        part = lent.parts.pop(missing)
        source = SnapshotSource(offer, (Holder("a", at["a"].address),))
        with pytest.raises(CommsError, match="nobody gives 1 parts of the snapshot of round 7"):
            at["x"].fetch_snapshot(source, tmp_path / "got", len(CONTENT))
        assert len(list((tmp_path / "x").iterdir())) > 30, "so that the next try has less to fetch"
        lent.parts[missing] = part
        at["x"].fetch_snapshot(source, tmp_path / "got", len(CONTENT))
    assert (tmp_path / "got").read_bytes() == CONTENT


def test_a_lent_file_outlives_its_deletion_for_those_who_read_it(tmp_path: Path) -> None:
    now_s = 0.0
    lender = Lender(lambda: now_s)
    digests = []
    for number in range(4):
        file = tmp_path / str(number)
        file.write_bytes(CONTENT + bytes([number]))
        digests.append(lender.lend(file)[0])
        file.unlink()
    assert all(lender.get(digest) is not None for digest in digests)
    now_s = 1000.0
    (tmp_path / "last").write_bytes(b"x")
    lender.lend(tmp_path / "last")
    assert [lender.get(digest) is not None for digest in digests] == [False, False, False, True]
    lender.close()


def test_a_file_that_nobody_asks_for_is_dropped_sooner_than_one_that_is_read(tmp_path: Path) -> None:
    now_s = 0.0
    lender = Lender(lambda: now_s)
    digests = []
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes([number]))
        digests.append(lender.lend(tmp_path / str(number))[0])
    assert lender.get(digests[1]) is not None
    now_s = 60.0
    (tmp_path / "last").write_bytes(b"x")
    lender.lend(tmp_path / "last")
    assert [lender.get(digest) is not None for digest in digests] == [False, True, False, False, True]
    lender.close()


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        (b"\xff\xff", "cannot be read"),
        (encode_index((Part("ab" * 32, 0, 0),)), "has 0 bytes"),
        (encode_index((Part("ab" * 32, 10_001, 0),)), "has 10001 bytes"),
        (encode_index((Part("ab" * 31, 5, 0),)), "index.digest has 31 bytes"),
        (encode_index((Part("ab" * 32, 9000, 0),) * 3), "comes to more than the 20000 bytes"),
    ],
)
def test_an_index_that_means_nothing_is_refused(index: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        decode_index(index, 20_000)
