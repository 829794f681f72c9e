"""The basis is orthonormal, has one set of bits for a seed, and is refused when it is another."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.pipeline.basis import Basis, BasisError, StreamCovariance, basis_from_bytes, seeded_basis


@pytest.mark.parametrize(("d", "k"), [(1, 1), (8, 8), (33, 7), (96, 96), (256, 32)])
def test_columns_are_orthonormal(d: int, k: int) -> None:
    u = seeded_basis(5, d, k).columns
    torch.testing.assert_close(u.T @ u, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_bits_follow_from_the_seed() -> None:
    """Golden: computed on another kind of processor, these digests must come out the same."""
    assert seeded_basis(0, 24, 5).digest.hex() == GOLDEN
    assert seeded_basis(0, 24, 5).digest == seeded_basis(0, 24, 5).digest
    others = [seeded_basis(1, 24, 5), seeded_basis(0, 24, 6), Basis(seeded_basis(0, 24, 5).raw, version=1)]
    assert len({GOLDEN, *(other.digest.hex() for other in others)}) == 4


GOLDEN = "ae3d1fd8bf18ac8e9c1322c1cad629482bed5deb4839f321495a5d9164042937"


def test_nearly_dependent_columns_are_still_made_orthonormal() -> None:
    raw = torch.ones(16, 3) + 1e-4 * torch.arange(48, dtype=torch.float32).view(16, 3).sin()
    u = Basis(raw, 0).columns
    torch.testing.assert_close(u.T @ u, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_fitted_basis_finds_the_directions_and_travels_as_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 32, generator=generator)
    covariance = StreamCovariance(32)
    for _ in range(3):
        covariance.add(torch.randn(50, 4, generator=generator) @ hidden)
    fitted = covariance.basis(4, version=2)
    u = fitted.columns
    torch.testing.assert_close(hidden.double() @ u @ u.T, hidden.double(), rtol=0, atol=1e-5)
    received = basis_from_bytes(fitted.to_bytes())
    assert received.digest == fitted.digest
    assert received.version == 2


@pytest.mark.parametrize("k", [0, 9])
def test_k_must_fit(k: int) -> None:
    with pytest.raises(BasisError, match=f"rank_k = {k} must be 1 to the model's hidden size, 8"):
        seeded_basis(0, 8, k)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_basis_are_refused(content: bytes) -> None:
    with pytest.raises(BasisError):
        basis_from_bytes(content)


@settings(deadline=None)
@given(st.data())
def test_a_basis_that_was_tampered_with_is_refused_or_another(data: st.DataObject) -> None:
    honest = seeded_basis(0, 6, 2)
    content = bytearray(honest.to_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BasisError):
        assert basis_from_bytes(bytes(content)).digest != honest.digest or place >= 16  # a factor of a column is lost


def test_dependent_columns_are_refused() -> None:
    with pytest.raises(BasisError, match="Column 1"):
        _ = Basis(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 0).columns
