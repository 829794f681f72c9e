"""A replica of several ranks is, to the others, a replica of one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from comms.errors import CommsError
from dist_train.crew import Crew, Duties, GroupCrew, Solo, spread, staged
from tests.running import gloo_group, metrics, run, theta, tiny, write_corpus

T = TypeVar("T")
THREE = ("embed", "layer.0", "head")


def test_what_rank_0_says_all_hear_and_what_each_says_all_gather(tmp_path: Path) -> None:
    def talk(crew: Crew) -> list[object]:
        heard = [crew.broadcast(message if crew.rank == 0 else None) for message in (b"hello", b"")]
        return [*heard, crew.all_gather(b"x" * crew.rank), crew.least(7 - crew.rank)]

    assert together(tmp_path, 3, talk) == 3 * [[b"hello", b"", [b"", b"x", b"xx"], 5]]
    assert [Solo().broadcast(b"a"), Solo().all_gather(b"b"), Solo().least(3)] == [b"a", [b"b"], 3]


def test_sums_are_the_same_bits_on_all_ranks_whatever_the_types(tmp_path: Path) -> None:
    def drawn(rank: int) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(rank)
        shapes: list[tuple[int, ...]] = [(5,), (3, 2), (1,)]
        types = [torch.float32, torch.float64, torch.float32]
        return [torch.randn(shape, generator=draw, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True)]

    def add(crew: Crew) -> list[torch.Tensor]:
        tensors = drawn(crew.rank)
        crew.add(tensors)
        return tensors

    first, second, third = together(tmp_path, 3, add)
    for i, (a, b, c) in enumerate(zip(first, second, third, strict=True)):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        torch.testing.assert_close(a, sum((drawn(rank)[i] for rank in range(3)), torch.zeros_like(a)))


def test_every_fragment_is_owned_once_and_the_work_is_even() -> None:
    sizes = {"embed": 50, "layer.0": 40, "layer.1": 40, "layer.2": 40, "head": 50}
    duties = [spread(_Rank(rank, 3), sizes) for rank in range(3)]
    owned = [[name for name in sizes if duty.owns(name)] for duty in duties]
    assert sorted(name for names in owned for name in names) == sorted(sizes)
    assert max(sum(sizes[name] for name in names) for names in owned) == 90
    assert duties[0].owners == duties[1].owners == duties[2].owners
    assert list(duties[0].owners) == list(sizes)


def test_stages_own_their_span_and_all_take_the_embedding() -> None:
    stages = [["embed", "layer.0"], ["embed", "layer.1"], ["embed", "layer.2", "head"]]
    last = staged(_Rank(2, 3), stages)
    assert last.owners == {"embed": 0, "layer.0": 0, "layer.1": 1, "layer.2": 2, "head": 2}
    assert [name for name in last.owners if last.needs(name)] == ["embed", "layer.2", "head"]
    assert not last.owns("embed")


def test_ranks_that_hold_different_values_of_one_fragment_find_out(tmp_path: Path) -> None:
    def digest(crew: Crew) -> str:
        duties = Duties(crew, dict.fromkeys(THREE, 0), everybodys=frozenset({"embed"}))
        mine = {"embed": bytes([crew.rank]) * 32} | (
            {"layer.0": b"l" * 32, "head": b"h" * 32} if crew.rank == 0 else {}
        )
        return duties.agreed_digest(mine)

    with pytest.raises(CommsError, match="rank 1 holds another embed"):
        together(tmp_path, 2, digest)


@pytest.mark.parametrize("method", ["sparseloco", "diloco", "ddp"])
def test_a_replica_of_three_ranks_trains_like_a_replica_of_one(tmp_path: Path, method: str) -> None:
    source = write_corpus(tmp_path / "corpus")
    outer = {"method": method, "rounds": 2}
    one = run(tiny(tmp_path / "one", source, outer=outer))
    three = run(tiny(tmp_path / "three", source, ranks={"b": 3}, outer=outer))
    assert [row["contributors"] for row in metrics(three)] == [row["contributors"] for row in metrics(one)]
    for row_of_one, row in zip(metrics(one), metrics(three), strict=True):
        assert row["agreed"]
        assert row["tokens"] == row_of_one["tokens"]
        assert row["loss"] == pytest.approx(row_of_one["loss"], rel=1e-3)
        expected = row_of_one["validation_loss"]
        assert row["validation_loss"] == (expected and pytest.approx(expected, rel=1e-2))
        assert row["payload_bytes"].keys() == row_of_one["payload_bytes"].keys()
    assert theta(three)[0].theta_digest == metrics(three)[-1]["theta_digest"]


class _Rank(Solo):
    """A rank of a crew, as far as dealing out goes."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks


def together(folder: Path, ranks: int, work: Callable[[Crew], T]) -> list[T]:
    """What `work` returns on each rank of a group of threads; raises what it raised on any."""
    results, errors = dict[int, T](), list[BaseException]()

    def one(rank: int) -> None:
        try:
            results[rank] = work(GroupCrew(gloo_group(folder / "store", rank, ranks)))
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=partial(one, rank), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(ranks)]
