"""A schedule that is played: what is put in force when, and what happens when it can't be."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from comms.link_plan import LinkPlan
from dist_train.config import Config, parse
from dist_train.run_directory import RunDirectory
from launcher.director import Director
from launcher.failures import LaunchError
from launcher.network import ShapedNetwork

PATIENCE_S = 20.0


def config(*changes: dict[str, object]) -> Config:
    return parse({"replica": [{"id": "a"}, {"id": "b"}], "simulate": {"line": "20mbit", "change": list(changes)}})


def test_a_change_by_round_is_put_in_force_said_and_taken_back(tmp_path: Path) -> None:
    scheduled = config({"round": 3, "member": "a", "line": "5mbit", "lasts": "300ms"})
    directory, said = RunDirectory(tmp_path), list[str]()
    network = ShapedNetwork(directory.simulation, LinkPlan())
    over = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            over.set()

    with Director(scheduled, directory, network, say):
        directory.metrics.write_text('{"round": 1}\n{"round": 2}\n', encoding="utf-8")
        assert over.wait(PATIENCE_S)
    assert ["a's line is now 5 Mbit/s up" in said[0], "a's line is now 20 Mbit/s up" in said[1]] == [True, True]
    assert said[0].startswith("round 3, ")
    shaped = network.simulation.shaped
    assert shaped is not None
    assert shaped.line("a").up_bits_per_second == 20e6


def test_a_change_that_cannot_be_enforced_ends_the_launch(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    network = ShapedNetwork(directory.simulation, LinkPlan())
    directory.simulation.unlink()
    directory.path.rmdir()
    directory.path.write_text("no folder any more", encoding="utf-8")
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        with (
            pytest.raises(LaunchError, match="the links could not be changed"),
            Director(config({"after": "0s", "member": "a", "line": "5mbit"}), directory, network, lambda _: None),
        ):
            assert interrupted.wait(PATIENCE_S)
    finally:
        signal.signal(signal.SIGINT, before)
