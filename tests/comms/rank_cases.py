"""What any torch.distributed backend must do for a pipeline: cases that every rank runs, and that know no backend.

Each is a function of rank and ranks that uses the default process group and asserts. `run_all` is what a test's
process runs; it writes down for each case that it held, or why not.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
Case = Callable[[int, int], None]


def after(rank: int, ranks: int) -> int:
    return (rank + 1) % ranks


def before(rank: int, ranks: int) -> int:
    return (rank - 1) % ranks


def sample(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 50
    return values > 0 if dtype is torch.bool else values.abs().to(dtype)


def tensors_of_every_dtype_come_as_they_went(rank: int, ranks: int) -> None:
    for dtype in DTYPES:
        sent, received = sample(dtype, (3, 5, 7), rank), torch.zeros(3, 5, 7, dtype=dtype)
        work = dist.isend(sent, after(rank, ranks))
        dist.recv(received, before(rank, ranks))
        assert work is not None
        work.wait()
        assert torch.equal(received, sample(dtype, (3, 5, 7), before(rank, ranks))), dtype


def no_values_one_value_and_many(rank: int, ranks: int) -> None:
    for shape in [(0,), (4, 0, 3), (), (1,), (131_072,), (131_073,), (3, 1_048_577)]:
        sent, received = sample(torch.float32, shape, rank), torch.zeros(shape)
        work = dist.isend(sent, after(rank, ranks))
        dist.recv(received, before(rank, ranks))
        assert work is not None
        work.wait()
        assert torch.equal(received, sample(torch.float32, shape, before(rank, ranks))), shape


def tensors_of_one_source_and_tag_come_in_order(rank: int, ranks: int) -> None:
    """Sent with the tags 0, 1, 2, 0, 1, 2, …; received tag by tag, the last tag first."""
    sent = [torch.tensor([100 * rank + i]) for i in range(12)]
    works = [dist.isend(tensor, after(rank, ranks), tag=i % 3) for i, tensor in enumerate(sent)]
    for tag in (2, 1, 0):
        for i in range(tag, 12, 3):
            received = torch.zeros(1, dtype=torch.int64)
            dist.recv(received, before(rank, ranks), tag=tag)
            assert received.item() == 100 * before(rank, ranks) + i
    for work in works:
        assert work is not None
        work.wait()


def large_tensors_may_be_received_in_another_order(rank: int, ranks: int) -> None:
    """More than a buffer of them, the first tag received last: nobody waits for ever."""
    if rank == 0:
        works = [dist.isend(torch.full((2**20,), float(tag)), 1, tag=tag) for tag in range(5)]
        for work in works:
            assert work is not None
            work.wait()
    elif rank == 1:
        for tag in reversed(range(5)):
            received = torch.zeros(2**20)
            dist.recv(received, 0, tag=tag)
            assert bool((received == tag).all())


def receives_may_be_posted_first(rank: int, ranks: int) -> None:
    received = [torch.zeros(4) for _ in range(3)]
    works = [dist.irecv(tensor, before(rank, ranks), tag=7) for tensor in received]
    for i in range(3):
        dist.send(torch.full((4,), 10.0 * rank + i), after(rank, ranks), tag=7)
    for i, (tensor, work) in enumerate(zip(received, works, strict=True)):
        assert work is not None
        assert work.wait(timedelta(seconds=20))
        assert work.is_completed()
        assert tensor.tolist() == [10.0 * before(rank, ranks) + i] * 4


def a_sent_tensor_may_be_changed_and_a_received_one_may_require_grad(rank: int, ranks: int) -> None:
    sent, received = torch.full((9,), float(rank), requires_grad=True), torch.zeros(9, requires_grad=True)
    work = dist.isend(sent.detach(), after(rank, ranks))
    receiving = dist.irecv(received, before(rank, ranks))
    assert work is not None
    assert receiving is not None
    work.wait()
    sent.data.fill_(-1.0)
    receiving.wait()
    assert received.tolist() == [float(before(rank, ranks))] * 9


def tensors_that_are_not_dense_travel(rank: int, ranks: int) -> None:
    sent, received = torch.arange(12.0).reshape(3, 4).t() + rank, torch.zeros(4, 3)
    work = dist.isend(sent.contiguous(), after(rank, ranks))
    dist.recv(received, before(rank, ranks))
    assert work is not None
    work.wait()
    assert torch.equal(received, torch.arange(12.0).reshape(3, 4).t() + before(rank, ranks))


def batches_of_sends_and_receives(rank: int, ranks: int) -> None:
    there, here = torch.full((5,), float(rank)), torch.zeros(5)
    ops = [dist.P2POp(dist.irecv, here, before(rank, ranks)), dist.P2POp(dist.isend, there, after(rank, ranks))]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert here.tolist() == [float(before(rank, ranks))] * 5


def a_barrier_waits_for_the_last(rank: int, ranks: int) -> None:
    """What is on its way, and received only after the barrier, does not hold the barrier up."""
    sent, received = torch.full((3,), float(rank)), torch.zeros(3)
    sending = dist.isend(sent, after(rank, ranks), tag=3)
    work = dist.barrier(async_op=True)
    assert work is not None
    work.wait()
    dist.recv(received, before(rank, ranks), tag=3)
    assert sending is not None
    sending.wait()
    assert received.tolist() == [float(before(rank, ranks))] * 3


def broadcast_from_each(rank: int, ranks: int) -> None:
    for root in range(ranks):
        tensor = torch.arange(6.0).reshape(2, 3) * (root + 1) if rank == root else torch.zeros(2, 3)
        dist.broadcast(tensor, root)
        assert torch.equal(tensor, torch.arange(6.0).reshape(2, 3) * (root + 1))


def all_reduce(rank: int, ranks: int) -> None:
    expected = {
        dist.ReduceOp.SUM: sum(range(1, ranks + 1)),
        dist.ReduceOp.MAX: ranks,
        dist.ReduceOp.MIN: 1,
        dist.ReduceOp.PRODUCT: torch.arange(1, ranks + 1).prod().item(),
    }
    for operation, value in expected.items():
        for tensor in (torch.full((3,), float(rank + 1)), torch.tensor(rank + 1)):
            dist.all_reduce(tensor, op=operation)
            assert tensor.tolist() == torch.full_like(tensor, value).tolist(), operation


def collectives_in_flight_keep_their_order(rank: int, ranks: int) -> None:
    tensors = [torch.tensor([float(i + rank)]) for i in range(4)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for i, (tensor, work) in enumerate(zip(tensors, works, strict=True)):
        assert work is not None
        work.wait()
        assert tensor.item() == sum(i + r for r in range(ranks))


def all_gather_and_gather(rank: int, ranks: int) -> None:
    outputs = [torch.zeros(2, dtype=torch.int64) for _ in range(ranks)]
    dist.all_gather(outputs, torch.tensor([rank, 10 * rank]))
    assert [o.tolist() for o in outputs] == [[r, 10 * r] for r in range(ranks)]
    gathered = [torch.zeros(1) for _ in range(ranks)] if rank == 1 else None
    dist.gather(torch.tensor([float(rank)]), gathered, dst=1)
    assert gathered is None or [t.item() for t in gathered] == [float(r) for r in range(ranks)]


def groups_within_the_group(rank: int, ranks: int) -> None:
    """The last two ranks by themselves, who use the tags of the whole without meeting them."""
    group = dist.new_group([ranks - 2, ranks - 1])
    if rank >= ranks - 2:
        tensor = torch.tensor([float(rank)])
        dist.all_reduce(tensor, group=group)
        assert tensor.item() == 2 * ranks - 3
        work = dist.isend(torch.tensor([1.0]), 2 * ranks - 3 - rank)
        inner = torch.zeros(1)
        other = dist.isend(torch.tensor([2.0]), 2 * ranks - 3 - rank, group=group)
        dist.recv(inner, 2 * ranks - 3 - rank, group=group)
        assert inner.item() == 2.0
        dist.recv(inner, 2 * ranks - 3 - rank)
        assert inner.item() == 1.0
        assert work is not None
        assert other is not None
        work.wait()
        other.wait()


# ---- pipelines ----


def layer(number: int, width: int) -> nn.Module:
    torch.manual_seed(number)
    return nn.Sequential(nn.Linear(width, width, dtype=torch.float64), nn.Tanh())


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().sum()


def a_pipeline(rank: int, ranks: int, stages_each: int, schedule: type[Any]) -> None:
    """A pipeline's loss and gradients are those of one process; and nothing is pickled."""
    width, rows, microbatches, stages = 6, 8, 8, ranks * stages_each
    torch.manual_seed(1)
    inputs = torch.randn(rows * microbatches, width, dtype=torch.float64)
    targets = torch.randn(rows * microbatches, width, dtype=torch.float64)
    mine = list(range(rank, stages, ranks))
    # Whether they require grad is part of what the stages must know of each other: no gradient is sent without it.
    example = torch.empty(rows, width, dtype=torch.float64, requires_grad=True)
    modules = {number: layer(number, width) for number in mine}
    built = [
        PipelineStage(
            modules[n], n, stages, torch.device("cpu"), output_args=example,
            input_args=example if n else example.detach(),
        )
        for n in mine
    ]  # fmt: skip
    pipeline: PipelineScheduleSingle | PipelineScheduleMulti = schedule(
        built if stages_each > 1 else built[0], n_microbatches=microbatches, loss_fn=squared_error, scale_grads=False
    )
    pickle = dist.distributed_c10d._object_to_tensor
    dist.distributed_c10d._object_to_tensor = _refuse_to_pickle
    losses = list[torch.Tensor]()
    try:
        for _ in range(2):  # the second step begins with nothing to find out
            for module in modules.values():
                module.zero_grad()
            losses.clear()
            arguments = (inputs,) if rank == 0 else ()
            if mine[-1] == stages - 1:
                pipeline.step(*arguments, target=targets, losses=losses)
            else:
                pipeline.step(*arguments)
    finally:
        dist.distributed_c10d._object_to_tensor = pickle
    whole = [layer(number, width) for number in range(stages)]
    loss = squared_error(nn.Sequential(*whole)(inputs), targets)
    torch.autograd.backward(loss)
    for number, module in modules.items():
        for parameter, expected in zip(module.parameters(), whole[number].parameters(), strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, expected.grad, rtol=1e-12, atol=1e-13)  # type: ignore[arg-type]
    if losses:
        assert torch.allclose(torch.stack(losses).sum(), loss, rtol=1e-12)


def _refuse_to_pickle(*_: object, **__: object) -> Any:
    raise AssertionError("the pipeline pickles something")


def one_forward_one_backward(rank: int, ranks: int) -> None:
    a_pipeline(rank, ranks, 1, Schedule1F1B)


def interleaved_one_forward_one_backward(rank: int, ranks: int) -> None:
    a_pipeline(rank, ranks, 2, ScheduleInterleaved1F1B)


CASES: list[Case] = [
    tensors_of_every_dtype_come_as_they_went,
    no_values_one_value_and_many,
    tensors_of_one_source_and_tag_come_in_order,
    large_tensors_may_be_received_in_another_order,
    receives_may_be_posted_first,
    a_sent_tensor_may_be_changed_and_a_received_one_may_require_grad,
    tensors_that_are_not_dense_travel,
    batches_of_sends_and_receives,
    a_barrier_waits_for_the_last,
    broadcast_from_each,
    all_reduce,
    collectives_in_flight_keep_their_order,
    all_gather_and_gather,
    groups_within_the_group,
    one_forward_one_backward,
    interleaved_one_forward_one_backward,
]


def run_all(rank: int, ranks: int, result: Path) -> None:
    """Runs the cases in turn and writes what became of each; after one that fails the others are not tried."""
    became = {}
    for case in CASES:
        try:
            case(rank, ranks)
            became[case.__name__] = "held"
        except Exception:  # noqa: BLE001 - the test's own process asserts it
            became[case.__name__] = traceback.format_exc()
            break
    result.write_text(json.dumps(became), encoding="utf-8")
