"""The ranks of a replica as a torch.distributed backend, "grpc": the one file of this package that knows torch.

`grpc_group` makes the default process group of this process, as `init_process_group` does with gloo; `dist.send`,
`dist.recv` and the collectives then go over our channels, encrypted, counted and bounded. See docs/process-group.md.

What torch asks of a backend (a group, the works it returns, a store) stays together here: it is torch's one interface,
each part of which only forwards to `RankGroup`, and the import rules let no second file of this package know torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, reduce
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, Work

from comms.errors import CommsError, RankLost
from comms.inbox import Received
from comms.ledger import Ledger
from comms.place import Bounds, Place
from comms.rank_group import RankGroup
from comms.rendezvous import KeyNotThere
from comms.security import Security
from comms.tensor_header import COLLECTIVE_TAG, ITEM_BYTES, KindOf, TensorHeader, kind_by_direction

BACKEND = "grpc"
SMALL_BYTES = 4096
"""What is cheaper to send N times than to wait for twice."""
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_REDUCTIONS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.AVG: torch.add,
    dist.ReduceOp.PRODUCT: torch.mul,
    dist.ReduceOp.MIN: torch.minimum,
    dist.ReduceOp.MAX: torch.maximum,
}


@contextmanager
def grpc_group(
    place: Place,
    security: Security,
    ledger: Ledger,
    *,
    listen_address: str,
    rendezvous_address: Callable[[], str] = str,
    on_listening: Callable[[str], None] = lambda _: None,
    bounds: Bounds | None = None,
    kind_of: KindOf = kind_by_direction,
) -> Iterator[RankGroup]:
    """Makes the default process group of this process, and ends it.

    `on_listening` is told where this rank listens as soon as it does; then the other ranks ask `rendezvous_address`
    where rank 0 does. Blocks until all ranks are there, at most deadline_s. At the end it waits until the others have
    received what was sent to them; after an exception it tells them why and does not wait.
    """
    ranks = RankGroup(place, security, ledger, listen_address=listen_address, bounds=bounds, kind_of=kind_of)
    try:
        on_listening(ranks.address)
        ranks.form(rendezvous_address() if place.rank else ranks.address)
        store = RendezvousStore(ranks)  # torch keeps the C++ half of it; the Python half lives as long as this frame
        _initialise(ranks, store)
        try:
            yield ranks
        finally:
            dist.destroy_process_group()
    except BaseException as error:
        ranks.close(str(error) or type(error).__name__)
        raise
    ranks.close()


def _initialise(ranks: RankGroup, store: Store) -> None:
    dist.init_process_group(
        BACKEND,
        store=store,
        rank=ranks.place.rank,
        world_size=ranks.place.ranks,
        timeout=timedelta(seconds=ranks.bounds.deadline_s),
        pg_options=_Options(ranks),
    )


@dataclass(frozen=True)
class _Options:
    """What the default group is made with; groups within it find the ranks through it."""

    ranks: RankGroup


def _new_group(backend: Any, options: _Options | None) -> GrpcProcessGroup:
    """What torch calls to make a group."""
    if options is None:
        whole = dist.distributed_c10d._get_default_group()
        ranks = whole.ranks if isinstance(whole, GrpcProcessGroup) else None
    else:
        ranks = options.ranks
    if ranks is None:
        raise CommsError('a group with backend "grpc" is made by comms.process_group.grpc_group, or within one')
    members = list(backend.global_ranks_in_group) or list(range(ranks.place.ranks))  # none: the default group
    return GrpcProcessGroup(ranks, members, backend.group_id, backend.timeout)


with warnings.catch_warnings():
    dist.Backend.register_backend(BACKEND, _new_group, extended_api=True, devices=["cpu", "cuda"])


# ---- tensors and bytes ----


def _content(tensor: Tensor) -> memoryview:
    """A tensor's bytes, in one dimension: its own memory, where that is dense and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(cast("Any", flat.view(torch.uint8).numpy())) if len(flat) else memoryview(b"")


def _tensor(received: Received) -> Tensor:
    """The tensor that has come."""
    dtype = _DTYPES[received.header.dtype]
    if not received.content:
        return torch.empty(received.header.shape, dtype=dtype)
    if dtype is torch.bool:  # whatever came for true
        return torch.frombuffer(received.content, dtype=torch.uint8).ne(0).reshape(received.header.shape)
    return torch.frombuffer(received.content, dtype=dtype).reshape(received.header.shape)


def _fill(tensor: Tensor, received: Received, source: str) -> None:
    """Copies what has come into `tensor`, which may require grad."""
    header = received.header
    if _NAMES.get(tensor.dtype) != header.dtype or tensor.numel() * tensor.element_size() != header.num_bytes:
        wanted = f"{_NAMES.get(tensor.dtype, tensor.dtype)}{list(tensor.shape)}"
        raise CommsError(f"{source} sent {header} where {wanted} is received: do both ranks run the same program?")
    tensor.data.copy_(_tensor(received).reshape(tensor.shape))


# ---- works ----


class GrpcWork(Work):
    """Something under way; `finish` is done once, by whoever first sees that it has come."""

    def __init__(self, wait: Callable[[float | None], None], future: Future[Any], tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._wait = wait
        self._future = future
        self._tensors = list(tensors)
        self._is_finished = False
        self._problem: BaseException | None = None

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Blocks until it is done; RankLost after `timeout`, or after the group's where that is 0."""
        if not self._is_finished:
            try:
                self._wait(timeout.total_seconds() or None)
            except CommsError as error:
                self._problem = error
                raise
            self._is_finished = True
        return True

    def is_completed(self) -> bool:
        """Whether it is done, well or not; what was received is in its tensor then."""
        if self._future.done() and not self._is_finished and self._problem is None:
            try:
                self.wait()
            except CommsError:
                return True
        return self._future.done()

    def is_success(self) -> bool:
        """Whether it is done well."""
        return self.is_completed() and self._problem is None

    def exception(self) -> Any:
        """What went wrong, or None."""
        self.is_completed()
        return self._problem

    def result(self) -> list[Tensor]:
        """Its tensors, when it is done."""
        self.wait()
        return self._tensors

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """The same as a torch future."""
        future = torch.futures.Future[list[Tensor]]()

        def finish(_: Future[Any]) -> None:
            try:
                future.set_result(self.result())
            except Exception as error:  # noqa: BLE001 - the future carries it to who waits
                future.set_exception(cast("Any", error))

        self._future.add_done_callback(finish)
        return future


# ---- the group ----


class GrpcProcessGroup(dist.ProcessGroup):
    """Some of the ranks. A send is done when its tensor may be changed, a receive when its tensor is filled.

    Collectives are for small things, and done in the order in which they were begun. What all ranks need of all goes
    from everybody to everybody, in one latency; the reduction of what is larger than SMALL_BYTES by way of rank 0, in
    two, for less bytes.
    """

    def __init__(self, ranks: RankGroup, members: Sequence[int], lane: str, timeout: timedelta) -> None:
        """`members`: the ranks of the group, as the replica counts them; `lane`: its name."""
        # torch's stubs know no constructor of the class that backends derive from.
        super().__init__(list(members).index(ranks.place.rank), len(members))  # type: ignore[call-arg]
        self.ranks = ranks
        self._members = list(members)
        self._lane = lane
        self._timeout_s = min(timeout.total_seconds(), ranks.bounds.deadline_s)
        self._collector = ThreadPoolExecutor(1, thread_name_prefix=f"collectives of {lane}")

    def getBackendName(self) -> str:
        """The backend's name."""
        return BACKEND

    def getGroupName(self) -> str:
        """The group's name."""
        return self._lane

    def setGroupName(self, name: str) -> None:
        """Takes the name that torch gives; it is the same."""

    def shutdown(self) -> None:
        """Takes no more collectives. The ranks stay connected until `grpc_group` ends."""
        self._collector.shutdown(wait=False, cancel_futures=True)

    # ---- from one rank to another ----

    def send(self, tensors: list[Tensor], dstRank: int, tag: int) -> Work:  # noqa: N803 - torch's name
        """Begins to send one tensor to a rank of the group."""
        _require_tag(tag)
        [tensor] = tensors
        peer = self._members[dstRank]
        future = self._post(tensor, peer, tag, self.ranks.kind_of(peer, _name_of(tensor)))
        what = f"a tensor{list(tensor.shape)} with tag {tag}"

        def wait(timeout_s: float | None) -> None:
            self.ranks.wait(future, what, peer, "send", timeout_s or self._timeout_s)

        return GrpcWork(wait, future, tensors)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int) -> Work:  # noqa: N803 - torch's name
        """Begins to receive one tensor from a rank of the group."""
        _require_tag(tag)
        [tensor] = tensors
        peer = self._members[srcRank]
        future = self.ranks.receive(peer, self._lane, tag)
        what = f"a tensor{list(tensor.shape)} with tag {tag}"

        def wait(timeout_s: float | None) -> None:
            received = self.ranks.wait(future, what, peer, "recv", timeout_s or self._timeout_s)
            _fill(tensor, received, self.ranks.place.peer(peer))

        return GrpcWork(wait, future, tensors)

    def recv_anysource(self, tensors: list[Tensor], tag: int) -> Work:
        """Nothing: order is kept for each source, and there is none across them."""
        raise CommsError(f"a receive of {len(tensors)} tensors with tag {tag} must name its source")

    # ---- collectives ----

    def barrier(self, opts: Any = None) -> Work:  # noqa: ARG002 - nothing in it concerns us
        """Done when every rank has begun it."""
        nothing = torch.empty(0, dtype=torch.uint8)
        return self._collect("barrier", [], partial(self._allreduce, "barrier", nothing, dist.ReduceOp.SUM))

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Work:  # type: ignore[override]
        """Fills `tensors` with those of one rank."""
        root = opts.rootRank

        def work() -> None:
            for tensor in tensors:
                self._broadcast("broadcast", tensor, root)

        return self._collect("broadcast", tensors, work)

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        """Fills `tensors` with their reductions over the ranks, taken in the ranks' order: equal bits everywhere."""
        operation = dist.ReduceOp.SUM if opts is None else opts.reduceOp

        def work() -> None:
            for tensor in tensors:
                self._allreduce("allreduce", tensor, operation)

        return self._collect("allreduce", tensors, work)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """The same for several tensors at once."""
        return self.allreduce(tensors, opts)

    def allgather(  # type: ignore[override]
        self,
        output_tensors: list[list[Tensor]],
        input_tensors: list[Tensor],
        opts: Any = None,  # noqa: ARG002 - nothing in it concerns us
    ) -> Work:
        """Fills each list of `output_tensors` with the ranks' tensors."""

        def work() -> None:
            for outputs, tensor in zip(output_tensors, input_tensors, strict=True):
                self._exchange("all_gather", outputs, tensor)

        return self._collect("all_gather", [t for outputs in output_tensors for t in outputs], work)

    def gather(self, output_tensors: list[list[Tensor]], input_tensors: list[Tensor], opts: Any) -> Work:  # type: ignore[override]
        """Fills the root's list with the ranks' tensors."""
        root = opts.rootRank
        outputs = output_tensors[0] if output_tensors else []
        return self._collect("gather", outputs, partial(self._gather, "gather", outputs, input_tensors[0], root))

    def _collect(self, phase: str, tensors: Sequence[Tensor], work: Callable[[], None]) -> Work:
        """Does a collective after those begun before it."""
        future = self._collector.submit(work)

        def wait(timeout_s: float | None) -> None:
            # Its parts are bounded, each by the group's timeout; together they take at most so many of them.
            self.ranks.wait(future, phase, self._members[0], phase, timeout_s or self._timeout_s * 2 * self.size())

        return GrpcWork(wait, future, tensors)

    def _allreduce(self, phase: str, tensor: Tensor, operation: Any) -> None:
        combine = _REDUCTIONS.get(operation if isinstance(operation, dist.ReduceOp.RedOpType) else operation.op)
        if combine is None:
            raise CommsError(f"{operation} is none of sum, avg, product, min and max")
        everyone = [torch.empty_like(tensor, device="cpu", requires_grad=False) for _ in self._members]
        is_small = tensor.nbytes <= SMALL_BYTES
        if is_small:
            self._exchange(phase, everyone, tensor)
        else:
            self._gather(phase, everyone, tensor, 0)
        if is_small or self.rank() == 0:
            total = reduce(combine, everyone)
            tensor.data.copy_(total / self.size() if operation == dist.ReduceOp.AVG else total)
        if not is_small:
            self._broadcast(phase, tensor, 0)

    def _exchange(self, phase: str, outputs: Sequence[Tensor], tensor: Tensor) -> None:
        """Fills `outputs` with the ranks' tensors, each sent to all others by the rank that has it."""
        futures = [(self._post(tensor, peer, COLLECTIVE_TAG, "intra_replica"), peer) for peer in self._others()]
        for rank, output in enumerate(outputs):
            if rank == self.rank():
                output.data.copy_(tensor.detach())
            else:
                self._receive_into(phase, output, rank)
        for future, peer in futures:
            self.ranks.wait(future, phase, peer, phase, self._timeout_s)

    def _broadcast(self, phase: str, tensor: Tensor, root: int) -> None:
        if self.rank() != root:
            self._receive_into(phase, tensor, root)
            return
        futures = [(self._post(tensor, peer, COLLECTIVE_TAG, "intra_replica"), peer) for peer in self._others()]
        for future, peer in futures:
            self.ranks.wait(future, phase, peer, phase, self._timeout_s)

    def _gather(self, phase: str, outputs: Sequence[Tensor], tensor: Tensor, root: int) -> None:
        if self.rank() != root:
            future = self._post(tensor, self._members[root], COLLECTIVE_TAG, "intra_replica")
            self.ranks.wait(future, phase, self._members[root], phase, self._timeout_s)
            return
        for rank, output in enumerate(outputs):
            if rank == root:
                output.data.copy_(tensor.detach())
            else:
                self._receive_into(phase, output, rank)

    def _receive_into(self, phase: str, tensor: Tensor, rank: int) -> None:
        peer = self._members[rank]
        future = self.ranks.receive(peer, self._lane, COLLECTIVE_TAG)
        _fill(tensor, self.ranks.wait(future, phase, peer, phase, self._timeout_s), self.ranks.place.peer(peer))

    def _others(self) -> list[int]:
        return [member for member in self._members if member != self.ranks.place.rank]

    def _post(self, tensor: Tensor, peer: int, tag: int, kind: Any) -> Future[None]:
        header = TensorHeader(self._lane, tag, _name_of(tensor), tuple(tensor.shape), kind)
        if header.num_bytes > self.ranks.bounds.most_tensor_bytes:
            raise CommsError(f"{header} has more than {self.ranks.bounds.most_tensor_bytes} bytes; send it in parts")
        return self.ranks.send(peer, header, _content(tensor))


def _require_tag(tag: int) -> None:
    if not 0 <= tag < 2**31:
        raise CommsError(f"tag {tag} is none of 0 to 2**31 - 1")


def _name_of(tensor: Tensor) -> str:
    if tensor.dtype not in _NAMES:
        raise CommsError(f"{tensor.dtype} does not travel; of those that do: {', '.join(ITEM_BYTES)}")
    return _NAMES[tensor.dtype]


# ---- the store ----


class RendezvousStore(Store):
    """The key-value store at rank 0 as torch.distributed wants it. Every call is bounded by the group's deadline."""

    def __init__(self, ranks: RankGroup) -> None:
        super().__init__()
        self._ranks = ranks
        self._deadline_s = ranks.bounds.deadline_s

    def set(self, key: str, value: str | bytes) -> None:
        """Sets a key."""
        self._ranks.ask(self._ranks.rendezvous.set(key, _bytes(value), self._deadline_s))

    def get(self, key: str) -> bytes:
        """The value of a key, when it is there; DistStoreError when it is not in time."""
        return self.multi_get([key])[0]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """The values of several keys, when all are there."""
        return self._read(keys, self._deadline_s)

    def add(self, key: str, value: int) -> int:
        """Adds to a key; its new value."""
        return cast("int", self._ranks.ask(self._ranks.rendezvous.add(key, value, self._deadline_s)))

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there now."""
        try:
            self._read(keys, 0.0)
        except dist.DistStoreError:
            return False
        return True

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Waits until all keys are there; DistStoreError when they are not in time."""
        self._read(keys, self._deadline_s if timeout is None else timeout.total_seconds())

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """Sets a key that still has the expected value; what it has then."""
        expected, desired = _bytes(expected_value), _bytes(desired_value)
        return cast("bytes", self._ranks.ask(self._ranks.rendezvous.set(key, desired, self._deadline_s, expected)))

    def delete_key(self, key: str) -> bool:
        """Forgets a key; whether it was there."""
        return cast("bool", self._ranks.ask(self._ranks.rendezvous.delete(key, self._deadline_s)))

    def num_keys(self) -> int:
        """How many keys there are."""
        return cast("int", self._ranks.ask(self._ranks.rendezvous.count(self._deadline_s)))

    # By these names torch looks for them when it calls from C++.
    deleteKey = delete_key
    getNumKeys = num_keys

    def _read(self, keys: list[str], deadline_s: float) -> list[bytes]:
        try:
            return cast("list[bytes]", self._ranks.ask(self._ranks.rendezvous.read(keys, deadline_s)))
        except KeyNotThere as error:
            raise dist.DistStoreError(str(error)) from None


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


__all__ = ["BACKEND", "Bounds", "GrpcProcessGroup", "GrpcWork", "Place", "RankLost", "RendezvousStore", "grpc_group"]
