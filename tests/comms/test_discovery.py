"""Finding members by the run's name, through real DHT nodes: each has a daemon and a port of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from comms.agreement import COORDINATOR
from comms.certificates import issue
from comms.dht import DhtNode, DhtSettings, NoHivemind, require_hivemind
from comms.discovery import Discovery, locate
from comms.errors import Unreachable
from comms.multiaddress import LOOPBACK_PORT, NOWHERE
from comms.record import Record, sealed
from comms.security import Loopback, Security
from tests.comms.members import CoordinatorThread, Member, rules
from tests.comms.strangers import MEMBERS, RUN, tls

ROOT = Path(__file__).parents[2]
NAMES = ["coordinator", *"bcdefgh"]
PATIENCE_S = 60.0
NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/QmVWh8YcAP5Vaja3RoxRu5CUvAd8JAM4pyAzavyL3E3DPm"


@pytest.fixture(scope="module")
def node() -> Iterator[DhtNode]:
    """A bootstrap peer for the tests that leave it alone."""
    opened = DhtNode(DhtSettings((), LOOPBACK_PORT))
    yield opened
    opened.close()


def joining(node: DhtNode, listen: str = LOOPBACK_PORT) -> DhtSettings:
    return DhtSettings(tuple(node.addresses), listen)


def read_until(lines: Iterator[str], expected: dict[str, str]) -> dict[str, int]:
    """Reads what the members say until all of them have found just this; their process ids."""
    views, pids = dict[str, dict[str, str]](), dict[str, int]()
    for line in lines:
        said = json.loads(line)
        views[said["member"]], pids[said["member"]] = said["found"], said["pid"]
        if len(views) == len(expected) and all(view == expected for view in views.values()):
            return pids
    pytest.fail(f"they ended: {views}")


def test_8_processes_find_each_other_and_the_bootstrap_peers_death_changes_nothing(tmp_path: Path) -> None:
    """A member that moves after that death is found where it is then, and the others where they are."""
    issue(tmp_path / "certs", NAMES, days=1)
    first = DhtNode(DhtSettings((), LOOPBACK_PORT))
    command = [
        sys.executable,
        "-m",
        "tests.comms.discovery_processes",
        first.addresses[0],
        str(tmp_path / "certs"),
        *NAMES,
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as processes:
        try:
            assert processes.stdout is not None
            addresses = {name: f"127.0.0.1:{7000 + number}" for number, name in enumerate(NAMES)}
            pids = read_until(processes.stdout, addresses)
            assert len(set(pids.values())) == 8
            first.close()
            os.kill(pids["coordinator"], signal.SIGUSR1)
            read_until(processes.stdout, addresses | {"coordinator": "127.0.0.1:8000"})
        finally:
            os.killpg(processes.pid, signal.SIGKILL)


def test_records_that_strangers_leave_there_are_passed_over(node: DhtNode, tmp_path: Path) -> None:
    issue(tmp_path / "certs", MEMBERS, days=1)
    issue(tmp_path / "foreign", MEMBERS, days=1)
    now_s = time.time()
    false = Record(RUN, COORDINATOR, "203.0.113.66:7000", now_s + 30, now_s + 60)
    old = Record(RUN, COORDINATOR, "203.0.113.66:7000", now_s - 60, now_s - 1)
    left = [
        (sealed(false, Loopback()), "is not signed"),
        (sealed(false, tls(tmp_path / "foreign")(COORDINATOR)), "of another authority"),
        (sealed(false, tls(tmp_path / "certs")("a")), "bears the certificate of ['a."),
        (sealed(old, tls(tmp_path / "certs")(COORDINATOR)), "expired"),
    ]
    with Discovery(RUN, COORDINATOR, tls(tmp_path / "certs")(COORDINATOR), joining(node), 60.0) as coordinator:
        assert coordinator.is_up(PATIENCE_S)
        coordinator.announce("127.0.0.1:7000")
        for number, (forged, complaint) in enumerate(left):
            assert node.store(f"dist-train/1/{RUN}", forged, now_s + 600.0 + number)  # a node keeps one value: the last
            assert coordinator.find(COORDINATOR, PATIENCE_S) == "127.0.0.1:7000"
            assert complaint in coordinator.last_words


def test_a_record_of_another_node_can_not_be_replaced(node: DhtNode) -> None:
    settings = joining(node)
    honest, other = DhtNode(settings), DhtNode(settings)
    try:
        assert honest.store("key", b"mine", time.time() + 60)
        subkey = honest._node.protocol.record_validator.local_public_key
        other._call(other._node.store("key", b"yours", time.time() + 90, subkey=subkey), or_else=None)
        assert honest.values("key") == node.values("key") == [b"mine"]
    finally:
        honest.close()
        other.close()


def test_a_member_that_only_dials_out_finds_and_is_found(node: DhtNode) -> None:
    with (
        Discovery("quiet", "a", Loopback(), joining(node, NOWHERE), 60.0) as quiet,
        Discovery("quiet", COORDINATOR, Loopback(), joining(node), 60.0) as coordinator,
    ):
        coordinator.announce("127.0.0.1:7000")
        quiet.announce("127.0.0.1:7001")
        assert quiet.find(COORDINATOR, PATIENCE_S) == "127.0.0.1:7000"
        assert coordinator.find("a", PATIENCE_S) == "127.0.0.1:7001"


def test_replicas_go_where_the_coordinator_has_gone(node: DhtNode, tmp_path: Path) -> None:
    """It is killed in a round, and resumes from its journal at another port."""
    moved = list[CoordinatorThread]()
    first = CoordinatorThread(tmp_path, rules("ab"))

    def move(round_number: int) -> None:
        if round_number == 2 and not moved:
            first.stop()
            moved.append(CoordinatorThread(tmp_path, rules("ab")))
            coordinator.announce(moved[0].address)

    with (
        Discovery("moving", COORDINATOR, Loopback(), joining(node), 60.0) as coordinator,
        Discovery("moving", "a", Loopback(), joining(node), 60.0) as seeker,
    ):
        coordinator.announce(first.address)
        assert seeker.find(COORDINATOR, PATIENCE_S) == first.address
        whereabouts = partial(seeker.find, COORDINATOR, 2.0)
        a = Member(tmp_path, "a", first.address, before_report=move, whereabouts=whereabouts)
        b = Member(tmp_path, "b", first.address, whereabouts=whereabouts)
        a.join()
        b.join()
        moved[0].join()
    assert moved[0].error is None
    assert moved[0].address != first.address
    assert len(a.applied) == 3
    assert a.contents == b.contents


@pytest.mark.parametrize(
    ("security", "peers", "complaint"),
    [(Loopback(), (), "know no such run"), (Loopback(), (NOBODY,), "can be dialled: is one up?")],
)
def test_a_run_that_nobody_knows_is_an_error_with_a_remedy(
    node: DhtNode, security: Security, peers: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(Unreachable, match=complaint):
        locate("nobodys", security, DhtSettings(peers or tuple(node.addresses), LOOPBACK_PORT), 3.0)


def test_one_bootstrap_peer_of_several_is_enough(node: DhtNode) -> None:
    several = DhtSettings((NOBODY, *node.addresses), LOOPBACK_PORT)
    with Discovery("several", "a", Loopback(), several, 60.0) as discovery:
        discovery.announce("127.0.0.1:7000")
        assert discovery.find("a", PATIENCE_S) == "127.0.0.1:7000"


def test_without_hivemind_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NoHivemind, match=r"pip install -c constraints.txt '\.\[dht\]'"):
        require_hivemind()
