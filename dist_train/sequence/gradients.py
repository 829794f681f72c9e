"""The sum of the gradients over the ranks of a replica, for whole models and for sharded ones.

Every rank has the gradient of its own targets' losses, already divided by the targets of the whole step, so that the
gradient of the step is their sum, never their mean:

    whole (each rank holds all parameters):   after the last micro-batch, all-reduce in buckets        `sum_gradients`
    sharded (FSDP2):                          in each backward, reduce-scatter, module after module    `shard`
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from dist_train.coalescing import coalesced
from dist_train.model import every_gradient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.sequence.groups import RankGroups
    from dist_train.sequence.traffic import RankTraffic


def shard(model: nn.Module, ranks: RankGroups) -> nn.Module:
    """Shards the parameters of `model`, in place, over all of `ranks` with FSDP2: each decoder layer, then the rest.

    Its gradients are summed, not averaged, and come sharded. Then every rank must run forward and backward equally
    often, as a plan makes them do.
    """
    mesh = DeviceMesh.from_group(ranks.everybody, ranks.device.type)
    layers = [module for name, module in model.named_modules() if name.rpartition(".")[0] == "model.layers"]
    for module in (*layers, model):
        sharded = fully_shard(module, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(enable=True)  # gloo can do no other
        sharded.set_custom_all_gather(_AllGather(ranks.traffic))
        sharded.set_custom_reduce_scatter(_ReduceScatter(ranks.traffic))
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was here."""
    return isinstance(model, FSDPModule)


def release(model: nn.Module) -> None:
    """Forgets what a forward pass has gathered for a backward pass that does not come.

    FSDP2 would use it in the next forward pass, though the parameters may have changed meanwhile.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


@torch.no_grad()
def sum_gradients(model: nn.Module, ranks: RankGroups) -> None:
    """Replaces each gradient by its sum over all ranks, unless the model is sharded: then it is that sum already.

    A rank without a gradient counts as zeros, and has the sum afterwards. All ranks get the same bits.
    """
    if is_sharded(model) or ranks.count == 1:
        return

    def reduce(flat: Tensor) -> None:
        started_s = time.monotonic()
        ranks.sum(flat)
        seconds = 0.0 if flat.is_cuda else time.monotonic() - started_s
        ranks.traffic.record_ring("intra_replica", flat.nbytes, ranks.count, halves=2, seconds=seconds)

    coalesced(every_gradient(model), reduce)


def step_bytes(model: nn.Module, ranks: int, micro_batches: int) -> int:
    """What all ranks together send in a step of `micro_batches`, beside their all-to-alls; P the bytes of parameters,
    in shards those of their padding, too.

    whole      2 (N - 1) P                    the sum of the gradients, in a ring
    sharded    m (N - 1) (2 P + P_layers)     in each micro-batch all parameters are gathered, those of the layers
                                              again in the backward pass, and all gradients are scattered
    """
    whole_bytes, layers_bytes = _parameter_bytes(model, ranks)
    if is_sharded(model):
        return micro_batches * (ranks - 1) * (2 * whole_bytes + layers_bytes)
    return 2 * (ranks - 1) * whole_bytes


def evaluation_bytes(model: nn.Module, ranks: int, micro_batches: int) -> int:
    """The same for a batch that is only evaluated: what is outside the layers is gathered once for all of it.

    sharded    (N - 1) (P + (m - 1) P_layers)
    """
    whole_bytes, layers_bytes = _parameter_bytes(model, ranks)
    return (ranks - 1) * (whole_bytes + (micro_batches - 1) * layers_bytes) if is_sharded(model) else 0


def _parameter_bytes(model: nn.Module, ranks: int) -> tuple[int, int]:
    """Of all parameters, and of those in layers; of shards as they travel, all of one size."""
    pieces = ranks if is_sharded(model) else 1
    sizes = {
        name: -(-p.shape[0] // pieces) * pieces * math.prod(p.shape[1:]) * p.element_size()
        for name, p in model.named_parameters()
    }
    return sum(sizes.values()), sum(size for name, size in sizes.items() if ".layers." in name)


class _Metered:
    """What FSDP2 asks of a collective, but the collective."""

    def __init__(self, traffic: RankTraffic) -> None:
        self._traffic = traffic

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def _count(self, whole: Tensor, group: dist.ProcessGroup) -> None:
        self._traffic.record_ring("intra_replica", whole.nbytes, group.size(), halves=1, seconds=0.0)


class _AllGather(_Metered):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, *, async_op: bool = False
    ) -> dist.Work | None:
        self._count(output_tensor, group)
        work: dist.Work | None = dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
        return work


class _ReduceScatter(_Metered):
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        *,
        async_op: bool = False,
    ) -> dist.Work | None:
        self._count(input_tensor, group)
        work: dist.Work | None = dist.reduce_scatter_single(
            output_tensor, input_tensor, op=op, group=group, async_op=async_op
        )
        return work
