"""Ranks over real gRPC: counted, encrypted, repaired; and what becomes of a peer that forges, dawdles or dies."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from comms import failpoints
from comms.certificates import issue
from comms.channel import open_blocking_channel
from comms.errors import CommsError, RankLost
from comms.ledger import Ledger
from comms.place import Bounds, Place
from comms.process_group import RendezvousStore
from comms.rank_group import RankGroup
from comms.rendezvous import MOST_KEYS, MOST_VALUE_BYTES
from comms.security import Loopback, Security
from comms.tensor_header import ITEM_BYTES, TensorHeader, header_from_pb, header_to_pb, kind_by_direction
from comms.tensor_stream import CHUNK_BYTES
from comms.wire import WireError
from protos import rendezvous_pb2 as store
from protos import rendezvous_pb2_grpc, tensors_pb2_grpc
from protos import tensors_pb2 as pb
from tests.comms.rank_processes import BOUNDS, PATIENCE_S, running
from tests.comms.strangers import tls

Code = grpc.StatusCode
QUICK = Bounds(deadline_s=20.0, outage_deadline_s=1.0, buffer_bytes=4 * 2**20, most_tensor_bytes=16 * 2**20)


def place(rank: int, ranks: int = 2) -> Place:
    return Place("test", "b", rank, ranks, generation=3)


def plain(_: str) -> Security:
    return Loopback()


@contextmanager
def formed(
    folder: Path, ranks: int = 2, security: Callable[[str], Security] = plain, bounds: Bounds = QUICK
) -> Iterator[list[RankGroup]]:
    """So many ranks in one process, formed; what is still open at the end is left as after a failure."""
    with ExitStack() as stack:
        groups = list[RankGroup]()
        for rank in range(ranks):
            ledger = stack.enter_context(Ledger(folder / f"rank-{rank}.jsonl", f"b.{rank}"))
            group = RankGroup(place(rank, ranks), security("b"), ledger, listen_address="127.0.0.1:0", bounds=bounds)
            stack.callback(group.close, "the test is over")
            groups.append(group)
        together(*(lambda group=group: group.form(groups[0].address) for group in groups))
        yield groups


def together(*work: Callable[[], Any]) -> list[Any]:
    """Does several things at once."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result(PATIENCE_S) for future in [pool.submit(each) for each in work]]


def header_of(content: bytes, tag: int = 0) -> TensorHeader:
    return TensorHeader("0", tag, "uint8", (len(content),), "activation")


def send(group: RankGroup, destination: int, content: bytes, tag: int = 0) -> Any:
    return group.send(destination, header_of(content, tag), memoryview(content))


def receive(group: RankGroup, source: int, tag: int = 0) -> bytes:
    future = group.receive(source, "0", tag)
    return bytes(group.wait(future, "a tensor", source, "recv").content)


def pattern(num_bytes: int) -> bytes:
    return (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * 2**20, 9 * 2**20]


@pytest.mark.parametrize("security", ["plain", "tls"])
def test_tensors_arrive_both_ends_count_the_same_and_the_framing_is_small(tmp_path: Path, security: str) -> None:
    if security == "tls":
        issue(tmp_path / "certs", ["b"], days=30)
    how = tls(tmp_path / "certs") if security == "tls" else plain
    with formed(tmp_path, security=how) as (low, high):
        sending = [send(low, 1, pattern(size)) for size in SIZES]
        for size in SIZES:
            assert receive(high, 0) == pattern(size)
        for each in sending:
            each.result(PATIENCE_S)
        together(low.close, high.close)
    counted = Counter[tuple[str, str, str]]()
    for rank in (0, 1):
        for line in (tmp_path / f"rank-{rank}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            counted[row["member"], row["direction"], row["kind"]] += row["bytes"]
    assert counted["b.0", "sent", "activation"] == counted["b.1", "received", "activation"]
    assert (
        sum(SIZES) < counted["b.0", "sent", "activation"] < sum(SIZES) + 60 * (len(SIZES) + sum(SIZES) // CHUNK_BYTES)
    )
    assert counted["b.0", "sent", "control"] >= counted["b.1", "received", "control"] - 100 > 0


def test_a_broken_connection_is_repaired_and_nothing_comes_twice(tmp_path: Path) -> None:
    with formed(tmp_path) as (low, high):
        for number in range(3):
            sending = [send(low, 1, pattern(3 * 2**20) + bytes([number, i])) for i in range(4)]
            assert receive(high, 0)[-2:] == bytes([number, 0])
            failpoints._cut_connections()
            for i in (1, 2, 3):
                assert receive(high, 0) == pattern(3 * 2**20) + bytes([number, i])
            send(high, 0, b"back").result(PATIENCE_S)
            assert receive(low, 1) == b"back"
            for each in sending:
                each.result(PATIENCE_S)
        together(low.close, high.close)


def test_nobody_holds_more_than_the_buffer_and_the_sender_waits(tmp_path: Path) -> None:
    """Sixteen megabytes for a buffer of four: the fifth is accepted when the first has been received."""
    megabyte = pattern(2**20)
    with formed(tmp_path) as (low, high):
        sending = [send(low, 1, megabyte) for _ in range(16)]
        send(low, 1, b"after them", tag=9)
        assert receive(high, 0, tag=9) == b"after them", "announced after all of them, so they have been said, too"
        assert [each.done() for each in sending] == [True] * 4 + [False] * 12
        assert low._outboxes[1].held_bytes == 4 * 2**20
        assert high._inboxes[0].held_bytes <= 4 * 2**20
        assert receive(high, 0) == megabyte
        sending[4].result(PATIENCE_S)
        assert not sending[5].done()
        for _ in range(15):
            assert receive(high, 0) == megabyte
        together(low.close, high.close)
        assert all(each.done() for each in sending)


def test_a_rank_that_leaves_is_missed_at_once_but_what_it_sent_is_had(tmp_path: Path) -> None:
    with formed(tmp_path, ranks=3) as (low, middle, high):
        send(low, 1, b"last words")
        waiting = high.receive(0, "0", 0)
        assert receive(middle, 0) == b"last words"
        low.close()
        with pytest.raises(RankLost, match="b.0 has left the group"):
            waiting.result(PATIENCE_S)
        with pytest.raises(RankLost, match="b.0 has left the group"):
            receive(middle, 0)
        send(middle, 2, b"we go on")
        assert receive(high, 1) == b"we go on"
        together(middle.close, high.close)


def test_a_rank_that_gives_up_says_why_to_all(tmp_path: Path) -> None:
    with formed(tmp_path, ranks=3) as (low, middle, high):
        waiting = [group.receive(0, "0", 0) for group in (middle, high)]
        low.close("its disk is full")
        for future in waiting:
            with pytest.raises(RankLost, match="b.0 has left the group: its disk is full"):
                future.result(PATIENCE_S)


def test_waits_are_bounded_and_name_rank_phase_and_key(tmp_path: Path) -> None:
    with formed(tmp_path) as (low, high):
        future = high.receive(0, "0", 0)
        with pytest.raises(RankLost, match=r"b.0 .* within 0.05 s \(recv\).*pipeline.transfer_deadline_s"):
            high.wait(future, "a tensor", 0, "recv", 0.05)
        assert not low.receive(1, "0", 0).done()


def test_a_group_that_cannot_form_says_who_is_missing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.jsonl", "b.0") as ledger:
        bounds = replace(QUICK, deadline_s=0.3)
        alone = RankGroup(place(0), Loopback(), ledger, listen_address="127.0.0.1:0", bounds=bounds)
        with pytest.raises(RankLost, match=r"b.0 waits in vain \(rendezvous: nobody has set 'address/1'\)"):
            alone.form()
        alone.close("in vain")
        lost = RankGroup(place(1), Loopback(), ledger, listen_address="127.0.0.1:0", bounds=bounds)
        with pytest.raises(RankLost, match=r"b.0 at 127.0.0.1:9 does not answer within 0.3 s \(rendezvous"):
            lost.form("127.0.0.1:9")
        lost.close("in vain")


def test_the_store_is_what_torch_wants_also_from_within(tmp_path: Path) -> None:
    """As torch's own stores, asked directly and through a PrefixStore, whose calls come from C++."""
    with formed(tmp_path) as (low, high):
        direct = [RendezvousStore(group) for group in (low, high)]
        for here, there in (direct, [PrefixStore("inner", store) for store in direct]):
            here.set("a", "1")
            assert (there.get("a"), there.multi_get(["a", "a"])) == (b"1", [b"1", b"1"])
            assert [here.add("n", 2), there.add("n", 3)] == [2, 5]
            assert (there.check(["a", "n"]), there.check(["a", "b"])) == (True, False)
            assert here.compare_set("a", "2", "3") == b"1"
            assert here.compare_set("a", "1", "3") == b"3"
            assert here.compare_set("new", "", "first") == there.compare_set("new", "", "second") == b"first"
            together(partial(there.wait, ["late"]), partial(here.set, "late", "x"))
            with pytest.raises(dist.DistStoreError, match="nobody has set"):
                there.wait(["never"], timedelta(seconds=0.05))
            assert (here.delete_key("a"), there.delete_key("a")) == (True, False)
        assert direct[0].num_keys() == 2 + 2 * len(["n", "new", "late"])
        together(low.close, high.close)


# ---- who has no business here, or breaks the rules ----

OPENING: dict[str, Any] = {"group": "test/b", "generation": 3, "source": 1, "destination": 0, "ranks": 2}


def opening(**changes: Any) -> pb.TensorPart:
    return pb.TensorPart(opening=pb.Opening(**OPENING | {"buffer_bytes": QUICK.buffer_bytes} | changes))


def tensor(sequence: int = 1, **changes: Any) -> pb.TensorPart:
    fields: dict[str, Any] = {
        "sequence": sequence,
        "lane": "0",
        "dtype": "uint8",
        "shape": [1],
        "kind": "activation",
        "data": b"x",
    }
    return pb.TensorPart(tensor=pb.Tensor(**fields | changes))


def deliver(address: str, parts: Sequence[pb.TensorPart], security: Security | None = None) -> grpc.RpcError | None:
    """Says `parts` to a rank as somebody from outside; how it was refused, or None when it was not."""
    with open_blocking_channel(address, "b", security or Loopback()) as channel:
        try:
            list(tensors_pb2_grpc.TensorsStub(channel).Deliver(iter(parts), timeout=PATIENCE_S))
        except grpc.RpcError as error:
            return error
    return None


def assert_refused(error: Any, code: Code, says: str) -> None:
    assert error is not None, "it was let in"
    assert (error.code(), says in error.details()) == (code, True), error.details()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[RankGroup]:
    """Rank 0 of a group whose other rank is whoever comes."""
    with Ledger(tmp_path / "x.jsonl", "b.0") as ledger:
        group = RankGroup(place(0), Loopback(), ledger, listen_address="127.0.0.1:0", bounds=QUICK)
        yield group
        group.close("the tests are over")


@pytest.mark.parametrize(
    ("parts", "code", "says"),
    [
        ([], Code.INVALID_ARGUMENT, "no opening came"),
        ([tensor()], Code.FAILED_PRECONDITION, "StaleGroup"),
        ([opening(generation=2)], Code.FAILED_PRECONDITION, "generation 2"),
        ([opening(group="test/c")], Code.FAILED_PRECONDITION, "StaleGroup"),
        ([opening(source=7)], Code.INVALID_ARGUMENT, "rank 7 is none of 2"),
        ([opening(source=0)], Code.INVALID_ARGUMENT, "from rank 0 to 0"),
        ([opening(destination=1)], Code.INVALID_ARGUMENT, "came to 0"),
        ([opening(ranks=3)], Code.INVALID_ARGUMENT, "say the same at both"),
        ([opening(buffer_bytes=2**40)], Code.INVALID_ARGUMENT, "pipeline.buffer_bytes"),
        ([opening(), opening()], Code.INVALID_ARGUMENT, "a part with nothing in it"),
        ([opening(), tensor(sequence=5)], Code.INVALID_ARGUMENT, "tensor 5 came after tensor 0"),
        ([opening(), tensor(dtype="object")], Code.INVALID_ARGUMENT, "tensor.dtype = 'object'"),
        ([opening(), tensor(kind="control")], Code.INVALID_ARGUMENT, "tensor.kind = 'control'"),
        ([opening(), tensor(lane="\x00")], Code.INVALID_ARGUMENT, "tensor.lane"),
        ([opening(), tensor(shape=[1] * 17)], Code.INVALID_ARGUMENT, "tensor.shape has 17 dims"),
        ([opening(), tensor(shape=[2**63])], Code.INVALID_ARGUMENT, "tensor.shape"),
        ([opening(), tensor(shape=[2**40, 2**40])], Code.INVALID_ARGUMENT, "more than 16777216 bytes"),
        ([opening(), tensor(shape=[16 * 2**20])], Code.INVALID_ARGUMENT, "came unasked, and there is no room"),
        ([opening(), tensor(data=b"xyz")], Code.INVALID_ARGUMENT, "more than the 1 bytes"),
        ([opening(), pb.TensorPart(more=b"x")], Code.INVALID_ARGUMENT, "bytes of no tensor"),
    ],
)
def test_forged_streams_are_refused(listener: RankGroup, parts: list[pb.TensorPart], code: Code, says: str) -> None:
    assert_refused(deliver(listener.address, parts), code, says)
    assert listener._inboxes[1].held_bytes <= QUICK.buffer_bytes


def test_only_the_ranks_of_a_replica_may_send_to_each_other(tmp_path: Path) -> None:
    issue(tmp_path / "certs", ["a", "b"], days=30)
    how = tls(tmp_path / "certs")
    with formed(tmp_path, security=how) as (low, high):
        error = deliver(low.address, [opening()], how("a"))
        assert_refused(error, Code.PERMISSION_DENIED, "WrongName")
        caller = store.RankCaller(group="test/b", generation=3, rank=1)
        request = store.SetKeyRequest(caller=caller, key="address/1", value=b"evil:1")
        with open_blocking_channel(low.address, "b", how("a")) as channel:
            stub = rendezvous_pb2_grpc.RendezvousStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                stub.SetKey(request, timeout=PATIENCE_S)
        assert_refused(refused.value, Code.PERMISSION_DENIED, "WrongName")
        send(low, 1, b"undisturbed")
        assert receive(high, 0) == b"undisturbed"
        together(low.close, high.close)


def test_a_rank_needs_the_certificate_of_its_replica(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.jsonl", "b.0") as ledger, pytest.raises(CommsError, match="cannot show the certificate"):
        RankGroup(place(0), tls(tmp_path)("a"), ledger, listen_address="127.0.0.1:0")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"caller": store.RankCaller(group="test/b", generation=2, rank=1)}, Code.FAILED_PRECONDITION),
        ({"caller": store.RankCaller(group="test/b", generation=3, rank=2)}, Code.INVALID_ARGUMENT),
        ({"key": "k" * 2000}, Code.OUT_OF_RANGE),
        ({"value": bytes(MOST_VALUE_BYTES + 1)}, Code.OUT_OF_RANGE),
    ],
)
def test_the_store_takes_keys_of_its_ranks_only_and_so_many(listener: RankGroup, change: Any, code: Code) -> None:
    caller = store.RankCaller(group="test/b", generation=3, rank=1)
    with open_blocking_channel(listener.address, "b", Loopback()) as channel:
        stub = rendezvous_pb2_grpc.RendezvousStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.SetKey(store.SetKeyRequest(**{"caller": caller, "key": "k", "value": b"v"} | change))
        assert_refused(refused.value, code, "")
        if code is Code.OUT_OF_RANGE:
            keys = [f"{number}" for number in range(MOST_KEYS + 1)]
            with pytest.raises(grpc.RpcError) as refused:
                stub.ReadKeys(store.ReadKeysRequest(caller=caller, keys=keys))
            assert_refused(refused.value, code, "TooLarge")


def test_every_dtype_is_torchs_and_as_large() -> None:
    for name, num_bytes in ITEM_BYTES.items():
        assert getattr(torch, name).itemsize == num_bytes
        header = TensorHeader("0", 2**31 - 1, name, (2, 3), "activation")
        part = header_to_pb(header, 7)
        assert header_from_pb(pb.Tensor.FromString(part.tensor.SerializeToString()), 1000) == header
        with pytest.raises(WireError, match="more than"):
            header_from_pb(part.tensor, 6 * num_bytes - 1)


def test_the_kind_of_a_tensor_follows_its_direction() -> None:
    assert kind_by_direction(0, 1, "bfloat16") == "activation"
    assert kind_by_direction(1, 0, "int8") == "activation_gradient"
    assert kind_by_direction(0, 1, "int64") == kind_by_direction(1, 0, "bool") == "intra_replica"


# ---- a rank that dies ----


def send_until_killed(rank: int, ranks: int, said: Any) -> None:
    """Rank 0 sends megabytes to rank 1 for ever; rank 1 says when some have come, and then how it ended."""
    del ranks
    if rank == 0:
        while True:
            dist.send(torch.zeros(2**20), 1)
    received, count, began_s = torch.zeros(2**20), 0, 0.0
    try:
        while True:
            dist.recv(received, 0)
            count, began_s = count + 1, time.monotonic()
            if count == 3:
                said.put("they come")
    except CommsError as error:
        said.put((type(error).__name__, str(error), time.monotonic() - began_s))


def receive_until_killed(rank: int, ranks: int, said: Any) -> None:
    """Rank 0 receives and is killed; rank 1 sends megabytes until it learns of it.

    Rank 1 alone speaks to the test: one that is killed while it speaks takes the queue's lock with it.
    """
    del ranks
    if rank == 0:
        while True:
            dist.recv(torch.zeros(2**20), 1)
    count, began_s = 0, 0.0
    try:
        while True:
            began_s = time.monotonic()
            dist.send(torch.zeros(2**20), 0)
            count += 1
            if count == 2 + BOUNDS.buffer_bytes // 2**22:  # more than the buffer takes: some have been received
                said.put("they come")
    except CommsError as error:
        said.put((type(error).__name__, str(error), time.monotonic() - began_s))


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (send_until_killed, r"b.0 (broke off and has not come back|has not been reached).*pipeline.outage_deadline_s"),
        (receive_until_killed, r"b.0 (broke off|has not been reached|.* within 30 s).*pipeline"),
    ],
)
def test_a_rank_that_is_killed_in_the_middle_is_named_in_time(tmp_path: Path, work: Any, says: str) -> None:
    with running(tmp_path, "grpc", 2, work, queue=True) as started:
        assert started.said.get(timeout=PATIENCE_S) == "they come"
        started.processes[0].kill()
        name, message, waited_s = started.said.get(timeout=PATIENCE_S)
        assert name == "RankLost"
        assert re.search(says, message), message
        assert waited_s < BOUNDS.deadline_s, "the outage was seen, not the deadline"
        started.processes[1].join(PATIENCE_S)
