"""Parameters that FSDP2 has scattered over the ranks of a replica, beside those that every rank has whole.

whole(p)       the parameter on the CPU, put together: all ranks call it
put(p, value)  the parameter, or this rank's shard of it, becomes that of the whole `value`
local(t)       what of a tensor lies on this rank
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def is_scattered(tensor: Tensor) -> bool:
    """Whether this rank has a shard only."""
    return isinstance(tensor, DTensor)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on the CPU; its own memory where it lies there whole. Of a shard, all ranks call it."""
    detached = tensor.detach()
    return (_gathered(detached) if isinstance(detached, DTensor) else detached).cpu()


def _gathered(tensor: DTensor) -> Tensor:
    # DTensor gathers by a functional collective, whose long name torch 2.13's gloo keeps in memory that its two
    # worker threads free and write without a lock (docs/experiments.md). The plain all-gather has a short one.
    if tensor.placements != (Shard(0),):
        return tensor.full_tensor()  # a sum over ranks, as of a norm: an all-reduce
    group, own = tensor.device_mesh.get_group(), tensor.to_local()
    rows = -(-tensor.shape[0] // group.size())  # of all shards but the last ones, which have fewer or none
    padded = own.new_zeros(rows, *tensor.shape[1:])
    padded[: len(own)] = own
    everybodys = own.new_empty(rows * group.size(), *tensor.shape[1:])
    dist.all_gather_single(everybodys, padded, group=group)
    return everybodys[: tensor.shape[0]]


@torch.no_grad()
def put(tensor: Tensor, value: Tensor) -> None:
    """Copies `value`, which every rank has whole, into the tensor or into this rank's shard of it."""
    if isinstance(tensor, DTensor):
        shard = distribute_tensor(
            value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
        )  # without a source every rank cuts its own part
        tensor.to_local().copy_(shard.to_local())
    else:
        tensor.detach().copy_(value)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, or the tensor itself; not copied."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """`value`, a rank's part, as a shard where `tensor` is one; on its device, copied."""
    copied = value.to(tensor.device, copy=True)
    if not isinstance(tensor, DTensor) or copied.dim() == 0:
        return copied
    mesh, placements = tensor.device_mesh, tensor.placements
    shape, stride = tensor.shape, tensor.stride()
    return DTensor.from_local(copied, mesh, placements, run_check=False, shape=shape, stride=stride)
