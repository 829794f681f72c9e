"""The largest values are chosen, ties are decided, padding never is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.layout import ChunkLayout
from compression.quota import Quota
from compression.topk import select, select_rows

pytestmark = pytest.mark.timeout(60)


def oracle(flat: torch.Tensor, quota: Quota) -> list[int]:
    """Places by sorting every chunk in Python: largest magnitude first, then lowest place, padding left out."""
    layout, chosen = quota.layout, []
    for c, values in enumerate(flat.view(-1, layout.chunk).tolist()):
        real = layout.is_real(np.array([c]), np.arange(layout.chunk))
        places = sorted((p for p in range(layout.chunk) if real[p]), key=lambda p: (-abs(values[p]), p))
        chosen += sorted(places[: quota.counts[c]])
    return chosen


def select_there(flat: torch.Tensor, quota: Quota) -> tuple[np.ndarray, np.ndarray]:
    """What a GPU does, as `select` has it."""
    places, values = select_rows(flat, quota)
    return quota.flat(places.cpu().numpy()), quota.flat(values.cpu().numpy())


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    rows=st.integers(1, 11),
    cols=st.integers(1, 11),
    vector=st.integers(1, 40),
    chunk=st.sampled_from([4, 16]),
    k=st.integers(1, 16),
    distinct=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_oracle_any_shape_with_many_ties(
    *, rows: int, cols: int, vector: int, chunk: int, k: int, distinct: int, seed: int
) -> None:
    layout = ChunkLayout({"w": (rows, cols), "b": (vector,)}, chunk)
    quota = Quota(layout, min(k, chunk))
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randint(-distinct, distinct, s, generator=generator).float() for n, s in layout.shapes.items()}
    flat = layout.pack(tensors)
    places, values = select(flat, quota)
    assert places.tolist() == oracle(flat, quota)
    there, same = select_there(flat, quota)
    np.testing.assert_array_equal(there, places)
    np.testing.assert_array_equal(same, values)
    positions = quota.spread(np.arange(0, layout.num_values, chunk)) + places
    np.testing.assert_array_equal(values, flat.numpy()[positions])


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-45])
def test_of_equal_values_the_lowest_places_are_taken(value: float) -> None:
    layout = ChunkLayout({"w": (128, 128)}, 4096)
    places, values = select(torch.full((layout.num_values,), value), Quota(layout, 64))
    assert places.reshape(4, 64).tolist() == [list(range(64))] * 4
    assert (values == np.float32(value)).all()


def test_tied_values_are_the_same_however_many_chunks_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = ChunkLayout({"w": (320, 256)}, 4096)
    flat = layout.pack({"w": torch.randn(320, 256, generator=torch.Generator().manual_seed(0)).bfloat16()})
    whole, _ = select(flat, Quota(layout, 100))
    monkeypatch.setattr("compression.topk.SLAB_VALUES", 3 * 4096)
    parts, _ = select_there(flat, Quota(layout, 100))
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("kind", ["normal", "spread", "few", "huge"])
@pytest.mark.parametrize("threads", [1, 3])
def test_agreement_with_torch_on_many_chunks(kind: str, threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1024, 896, generator=generator)
    if kind == "spread":
        values = values.sign() * torch.exp2(values * 20)
    elif kind == "few":
        values = values * (torch.rand(1024, 896, generator=generator) < 0.01)
    elif kind == "huge":
        values[::64, ::64] = 3e38
    layout = ChunkLayout({"w": (1024, 896)}, 4096)
    quota, flat = Quota(layout, 64), layout.pack({"w": values})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        places, kept = select(flat, quota)
    finally:
        torch.set_num_threads(before)
    there, same = select_there(flat, quota)
    np.testing.assert_array_equal(places, there)
    np.testing.assert_array_equal(kept, same)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_agreement_of_the_gpu_with_the_cpu() -> None:
    layout = ChunkLayout({"w": (320, 250), "b": (333,)}, 4096)
    generator = torch.Generator().manual_seed(0)
    flat = layout.pack({name: torch.randn(shape, generator=generator) for name, shape in layout.shapes.items()})
    for k in (1, 64, 4096):
        for here, there in zip(
            select(flat, Quota(layout, k)), select_there(flat.cuda(), Quota(layout, k)), strict=True
        ):
            np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_a_value_that_is_not_finite_is_named(bad: float, k: int) -> None:
    layout = ChunkLayout({"a": (2, 2), "b": (3, 3)}, 4)
    flat = layout.pack({"a": torch.ones(2, 2), "b": torch.ones(3, 3)})
    flat[8] = bad  # the third chunk, which is the second of b
    for choose in (select, select_rows):
        with pytest.raises(ValueError, match=r"'b' holds -?(nan|inf) \(place 8 of"):
            choose(flat, Quota(layout, k))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_buffer_with_something_in_its_padding_is_refused(k: int) -> None:
    layout = ChunkLayout({"a": (3,)}, 4)
    for choose in (select, select_rows):
        with pytest.raises(ValueError, match="not zero in its padding"):
            choose(torch.tensor([1.0, 2, 3, 9]), Quota(layout, k))


def test_k_must_fit_the_chunk() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k = {k} is not between 1 and the chunk"):
            Quota(ChunkLayout({"a": (3,)}, 4), k)
