"""A run directory is new, resumed, complete or another run's; the difference is named."""

from pathlib import Path
from typing import Any

import pytest

from comms.link_plan import LinkPlan, Simulation
from dist_train.config import Config, ConfigError, parse
from dist_train.run_directory import RunDirectory
from launcher.standing import Standing, committed_rounds, differences, standing

DOCUMENT: dict[str, Any] = {"outer": {"rounds": 2}, "replica": [{"id": "a"}, {"id": "b"}]}


def config(**sections: Any) -> Config:
    return parse(DOCUMENT | sections)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    kept = RunDirectory(tmp_path)
    kept.config.write_text(config().to_toml())
    return kept


def commit(directory: RunDirectory, rounds: int) -> None:
    directory.metrics.write_text("".join(f'{{"round": {number}}}\n' for number in range(1, rounds + 1)))


def test_an_empty_directory_is_new(tmp_path: Path) -> None:
    assert standing(config(), RunDirectory(tmp_path / "new")) is Standing.NEW


def test_the_same_run_is_resumed(directory: RunDirectory) -> None:
    commit(directory, 1)
    assert standing(config(), directory) is Standing.RESUMED
    assert committed_rounds(directory) == 1


def test_what_was_only_simulated_is_not_resumed_by_real_processes(directory: RunDirectory) -> None:
    commit(directory, 1)
    directory.simulation.write_bytes(Simulation(LinkPlan(), "virtual", "virtual").to_json())
    with pytest.raises(ConfigError, match="keeps a virtual run: give this one another run.directory"):
        standing(config(), directory)


def test_where_it_runs_makes_no_other_run(directory: RunDirectory) -> None:
    moved = config(
        run={"directory": "elsewhere"},
        exchange={"address": "127.0.0.1:5000"},
        replica=[{"id": "b", "device": "cpu"}, {"id": "c"}],
    )
    assert standing(moved, directory) is Standing.RESUMED


def test_it_is_complete_when_the_last_round_is_committed_and_kept(directory: RunDirectory) -> None:
    commit(directory, 2)
    assert standing(config(), directory) is Standing.RESUMED
    (directory.checkpoints / "round-2").mkdir(parents=True)
    assert standing(config(), directory) is Standing.COMPLETE


def test_another_run_is_refused_naming_key_and_remedy(directory: RunDirectory) -> None:
    commit(directory, 1)
    other = config(outer={"rounds": 3})
    with pytest.raises(ConfigError) as raised:
        standing(other, directory)
    message = str(raised.value)
    assert "outer.rounds is 2 there and 3 here" in message
    assert "run.directory" in message
    assert "\n" not in message


def test_what_never_began_makes_room_for_another_config(directory: RunDirectory) -> None:
    directory.journal.touch()
    directory.ledger("a").parent.mkdir()
    directory.ledger("a").touch()
    assert standing(config(outer={"rounds": 3}), directory) is Standing.FALSE_START
    directory.forget_progress()
    assert not directory.journal.exists()
    assert not directory.ledgers.exists()
    assert directory.config.exists()


def test_no_more_than_a_few_keys_are_named() -> None:
    inner = {"lr": 0.1, "beta1": 0.5, "beta2": 0.5, "eps": 1e-6, "steps": 3, "micro_batch_tokens": 4096}
    other = config(inner=inner)
    named = differences(config(), other)
    assert len(named) == 5
    assert named[-1] == "and 2 more"


def test_a_key_that_was_unset_is_called_so() -> None:
    assert differences(config(), config(outer={"rounds": 2, "lr": 0.5})) == ["outer.lr is unset there and 0.5 here"]
