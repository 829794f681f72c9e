"""A contract: what gloo does for a pipeline, "grpc" does too. Real processes; every case in one start of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.comms.rank_cases import CASES, run_all
from tests.comms.rank_processes import Backend, running

Outcome = dict[tuple[Backend, int], list[dict[str, str]]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What became of each case on each rank, by backend and number of ranks."""
    found: Outcome = {}
    kinds: list[tuple[Backend, int]] = [("gloo", 2), ("grpc", 2), ("gloo", 4), ("grpc", 4)]
    for backend, ranks in kinds:
        folder = tmp_path_factory.mktemp(f"{backend}-{ranks}")
        with running(folder, backend, ranks, write_outcomes, folder) as started:
            codes = started.finish()
        files = [folder / f"outcome-{rank}.json" for rank in range(ranks)]
        said = [json.loads(file.read_text(encoding="utf-8")) if file.exists() else {} for file in files]
        said[0]["exit codes"] = str(codes)
        found[backend, ranks] = said
    return found


def write_outcomes(rank: int, ranks: int, folder: Path) -> None:
    run_all(rank, ranks, folder / f"outcome-{rank}.json")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("backend", ["gloo", "grpc"])
@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_contract(outcomes: Outcome, backend: Backend, ranks: int, case: str) -> None:
    for rank, became in enumerate(outcomes[backend, ranks]):
        assert became.get(case, "was not reached") == "held", f"rank {rank}: {became}"


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_end_well(outcomes: Outcome, ranks: int) -> None:
    assert outcomes["grpc", ranks][0]["exit codes"] == str([0] * ranks)
