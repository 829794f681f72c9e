"""`dist-train join`: a machine that is told an address, and nothing else, becomes a replica of the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from comms.certificates import OPERATOR, issue
from comms.invitation import Invitation
from dist_train.checkpoint import read_checkpoint
from dist_train.config import ConfigError
from dist_train.report import collect
from launcher.join import Newcomer, config_of, newcomer
from tests.processes import COORDINATOR, Processes, processes
from tests.running import metrics, tiny, write_corpus

LOOPBACK = Newcomer("127.0.0.1:7000", "x", "cpu", {"mode": "loopback"})


def invitation(tmp_path: Path, **exchange: int) -> Invitation:
    config = tiny(tmp_path, "text:nothing", exchange={"most_replicas": 3, "min_replicas": 2} | exchange)
    return Invitation("run", config.to_shared_json(), config.digest(), (), is_over=False)


def test_the_config_is_the_runs_and_the_rest_is_our_own(tmp_path: Path) -> None:
    config = config_of(invitation(tmp_path), LOOPBACK, tmp_path / "mine")
    assert [replica.id for replica in config.replica] == ["a", "b", "x"]
    assert config.run.directory == str(tmp_path / "mine")
    assert config.digest() == invitation(tmp_path).config_digest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"config": "[]"}, "sends no config that this version understands"),
        ({"config": "{"}, "sends no config that this version understands"),
        ({"config": "x" * 2_000_000}, "a config of 2000000 characters"),
        ({"config_digest": "00" * 32}, "another version of dist-train"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config_of(replace(invitation(tmp_path), **change), LOOPBACK, tmp_path)


def test_a_run_without_room_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no room: exchange\.most_replicas = 0"):
        config_of(invitation(tmp_path, most_replicas=0), LOOPBACK, tmp_path)


@pytest.mark.parametrize(
    ("address", "certificates", "token", "insecure", "complaint"),
    [
        ("10.0.0.1:7000", None, None, False, "is another machine"),
        ("127.0.0.1:7000", None, Path("t"), False, "--token does nothing"),
        ("127.0.0.1:7000", Path("c"), None, True, "exclude each other"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    address: str, certificates: Path | None, token: Path | None, insecure: bool, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        newcomer(address, "x", "cpu", certificates, token, insecure=insecure)


def join(
    members: Processes, name: str, folder: Path, *options: str, address: str | None = None
) -> subprocess.Popen[str]:
    command = [
        "join",
        address or members.address,
        "--id",
        name,
        "--directory",
        str(folder),
        "--device",
        "cpu",
        *options,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


ROUNDS, CHECKPOINT_EVERY = 30, 10


@pytest.mark.timeout(400)
@pytest.mark.parametrize("security", ["loopback", "tls"])
def test_a_machine_joins_in_the_middle_catches_up_takes_part_and_another_leaves(tmp_path: Path, security: str) -> None:
    """With two contributions needed and one machine held, the run gets on only with the newcomer."""
    source = write_corpus(tmp_path / "corpus")
    certificates = tmp_path / "certs"
    options: tuple[str, ...] = ()
    secured: dict[str, str] = {"mode": security}
    if security == "tls":
        issue(certificates, [COORDINATOR, OPERATOR, "a", "b"], 1)
        issue(certificates, ["x"], 1)  # later, for one more
        secured["certificates"] = str(certificates)
        options = ("--certificates", str(certificates))
    config = tiny(
        tmp_path / "run", source, outer={"rounds": ROUNDS}, security=secured,
        checkpoint={"every_rounds": CHECKPOINT_EVERY},
        exchange={
            "min_replicas": 2, "most_replicas": 3, "most_replayed_rounds": 0, "liveness_deadline_s": 60.0,
            "heartbeat_s": 1.0, "gather_deadline_s": 300.0,
        },
    )  # fmt: skip
    mine = tmp_path / "mine"
    with processes(config) as members:
        members.start()
        members.wait_for("a", f"round {CHECKPOINT_EVERY + 1}: applied")  # both have said what they held in the snapshot
        leaver = members.members.pop("b")
        leaver.send_signal(signal.SIGTERM)  # the run now lacks a replica, and waits
        members.members["x"] = join(members, "x", mine, *options)
        members.wait_for("x", "beginning after round")
        assert leaver.communicate(timeout=90)
        assert leaver.returncode == 128 + signal.SIGTERM
        assert set(members.finish().values()) == {0}
    rows = metrics(members.directory)
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    assert rows[0]["contributors"] == ["a", "b"]
    assert rows[-1]["contributors"] == ["a", "x"]
    assert all(row["agreed"] for row in rows)
    held = [
        read_checkpoint(folder / f"checkpoints/round-{ROUNDS}/outer.safetensors")[0]
        for folder in (tmp_path / "run", mine)
    ]
    assert held[0] == held[1]
    rows_of_x = [json.loads(line) for line in (mine / "ledger/x.jsonl").read_text().splitlines()]
    received = sum(row["bytes"] for row in rows_of_x if row["kind"] == "state_transfer")
    (lent,) = (part for part in collect(members.directory).traffic if part.kind == "state_transfer")
    assert lent.sent_bytes == received > 0
    assert lent.sent_bytes == pytest.approx(lent.predicted_bytes, rel=0.05)


def test_a_name_that_is_taken_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "corpus")
    config = tiny(tmp_path / "run", source, outer={"rounds": 500}, exchange={"most_replicas": 3, "min_replicas": 2})
    with processes(config) as members:
        members.start()
        members.wait_for("a", "round 1: trained")
        process = join(members, "b", tmp_path / "mine")
        _, said = process.communicate(timeout=90)
        assert process.returncode == 2
        assert said.splitlines()[-1].endswith("a replica 'b' takes part already; choose another name: --id NAME")
        assert not (tmp_path / "mine").exists()


@contextmanager
def bootstrap_peer(folder: Path) -> Iterator[str]:
    """`dist-train bootstrap`, as anybody can run it; the address that it prints."""
    options = ["--listen", "/ip4/127.0.0.1/tcp/0", "--identity", str(folder / "bootstrap.key")]
    command = [sys.executable, "-m", "launcher", "bootstrap", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as peer:
        try:
            assert peer.stdout is not None
            yield peer.stdout.readline().strip()
        finally:
            peer.send_signal(signal.SIGINT)
    assert peer.returncode == 0


def listening(pid: int) -> list[str]:
    """Where a process and its children accept connections of the internet."""
    root = psutil.Process(pid)
    found = [(each.name(), c) for each in [root, *root.children(recursive=True)] for c in each.net_connections("inet")]
    return [f"{name} at {c.laddr}" for name, c in found if c.status == psutil.CONN_LISTEN]


@pytest.mark.full_matrix  # five processes that import torch, and three daemons
@pytest.mark.timeout(400)
def test_a_machine_that_only_dials_out_joins_by_the_runs_name(tmp_path: Path) -> None:
    """Behind a firewall: under "relay" it listens nowhere, finds the coordinator, catches up and takes part."""
    certificates, mine = tmp_path / "certs", tmp_path / "mine"
    issue(certificates, [COORDINATOR, OPERATOR, "a", "x"], 1)
    with bootstrap_peer(tmp_path) as peer:
        config = tiny(
            tmp_path / "run", write_corpus(tmp_path / "corpus"), run={"name": "hidden"}, outer={"rounds": 4},
            security={"mode": "tls", "certificates": str(certificates)},
            discovery={"bootstrap": [peer], "listen": "/ip4/127.0.0.1/tcp/0"}, replicas=1,
            exchange={
                "route": "relay", "min_replicas": 2, "most_replicas": 2, "liveness_deadline_s": 60.0,
                "heartbeat_s": 1.0, "gather_deadline_s": 300.0,
            },
        )  # fmt: skip
        with processes(config) as members:
            members.start()
            members.members["x"] = join(
                members, "x", mine, "--certificates", str(certificates), address=f"hidden@{peer}"
            )
            members.wait_for("x", "round 1: trained")
            assert listening(members.members["x"].pid) == []
            assert any(found.startswith("p2pd") for found in listening(members.members[COORDINATOR].pid))
            assert set(members.finish().values()) == {0}
    rows = metrics(members.directory)
    assert [row["contributors"] for row in rows] == [["a", "x"]] * 4
    assert all(row["agreed"] for row in rows)


@pytest.mark.full_matrix  # six processes that import torch, and five daemons
@pytest.mark.timeout(400)
def test_a_run_goes_on_by_its_name_when_a_bootstrap_peer_is_gone_and_the_coordinator_has_moved(tmp_path: Path) -> None:
    """[discovery] in the config: one machine joined by name. One of two peers dies, then the coordinator moves."""
    mine, rounds = tmp_path / "mine", 100
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack, ExitStack() as dying:
        peers = [
            dying.enter_context(bootstrap_peer(tmp_path / "first")),
            stack.enter_context(bootstrap_peer(tmp_path / "second")),
        ]
        config = tiny(
            tmp_path / "run", write_corpus(tmp_path / "corpus"), run={"name": "moving"}, outer={"rounds": rounds},
            discovery={"bootstrap": peers, "listen": "/ip4/127.0.0.1/tcp/0", "record_s": 9.0}, replicas=1,
            exchange={
                "min_replicas": 2, "most_replicas": 2, "liveness_deadline_s": 60.0, "heartbeat_s": 1.0,
                "gather_deadline_s": 300.0,
            },
        )  # fmt: skip
        members = stack.enter_context(processes(config))
        members.start()
        members.members["x"] = join(members, "x", mine, address=f"moving@{peers[0]},{peers[1]}")
        members.wait_for("x", "round 2: applied")
        dying.close()
        before = members.address
        members.members[COORDINATOR].kill()
        members.members.pop(COORDINATOR).communicate(timeout=60)
        members.address = ""  # anywhere
        members.start_coordinator()
        assert members.address != before
        members.wait_for("x", rf"round {rounds}: applied")
        assert set(members.finish().values()) == {0}
    rows = metrics(members.directory)
    assert [row["round"] for row in rows] == list(range(1, rounds + 1))
    assert all(row["agreed"] and row["contributors"] == ["a", "x"] for row in rows)


def test_a_name_without_a_bootstrap_peer_is_no_address() -> None:
    with pytest.raises(ConfigError, match="give the run's name, not an address"):
        newcomer("10.0.0.1:7000", "x", "cpu", None, None, insecure=True, bootstrap=["/ip4/10.0.0.1/tcp/1/p2p/x"])
    with pytest.raises(ConfigError, match="is another machine: give --certificates"):
        newcomer("demo@/ip4/10.0.0.1/tcp/1/p2p/x", "x", "cpu", None, None, insecure=False)
