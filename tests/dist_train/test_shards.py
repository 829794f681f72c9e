"""Shards of unlike sizes are put together, by collectives that gloo survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from dist_train.sequence.groups import RankGroups
from dist_train.shards import whole
from tests.ranks import run_on_ranks


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of the functional collectives that DTensor has called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = set[str]()

    def __torch_dispatch__(self, operation: Any, _types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Does it, and writes down whose it is."""
        if operation.namespace == "_c10d_functional":
            self.names.add(str(operation.name()))
        return operation(*arguments, **(keywords or {}))


def put_together(ranks: RankGroups) -> None:
    mesh = DeviceMesh.from_group(ranks.everybody, "cpu")
    for shape in [(7, 3), (6,), (2, 5, 2), (1, 1), (3, 2)]:
        expected = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).view(shape)
        shards = distribute_tensor(expected.clone(), mesh, [Shard(0)], src_data_rank=None)
        with Collectives() as called:
            found, norm = whole(shards), whole(get_total_norm([shards]))
        assert torch.equal(found, expected)
        assert norm.item() == pytest.approx(expected.norm().item())
        assert not any("gather" in name for name in called.names), "its name corrupts the memory of gloo's threads"


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shards_become_the_whole(count: int, tmp_path: Path) -> None:
    run_on_ranks(count, tmp_path, put_together)
