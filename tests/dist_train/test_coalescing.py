"""Equality: a change of many tensors at once is the change of each; nothing is lost at the edges of a bucket."""

from __future__ import annotations

import pytest
import torch

from dist_train import coalescing
from dist_train.coalescing import coalesced

SHAPES = ((3, 4), (), (7,), (0,), (2, 1, 2), (5,))


def tensors(dtypes: tuple[torch.dtype, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtypes[i % len(dtypes)]) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("bucket_bytes", [1, 32, 1 << 20])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float64)])
def test_each_tensor_is_changed_once(
    monkeypatch: pytest.MonkeyPatch, bucket_bytes: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    monkeypatch.setattr(coalescing, "BUCKET_BYTES", bucket_bytes)
    before, after, seen = tensors(dtypes), tensors(dtypes), []

    def change(flat: torch.Tensor) -> None:
        seen.append(flat.nbytes)
        flat.mul_(2).add_(1)

    coalesced(after, change)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, old * 2 + 1)
        assert new.dtype == old.dtype
    assert sum(seen) == sum(tensor.nbytes for tensor in before)
    assert max(seen) <= max(bucket_bytes, *(tensor.nbytes for tensor in before))


def test_a_tensor_that_does_not_lie_in_one_piece_is_changed_in_place() -> None:
    whole = torch.zeros(4, 4)

    def change(flat: torch.Tensor) -> None:
        flat += 1

    coalesced([whole.T[1], whole[2, 2:]], change)
    assert whole.sum() == 6
    assert whole[:, 1].tolist() == [1.0] * 4
