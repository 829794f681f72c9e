"""Who joins shows that it knows the run's token, now, and not once more what somebody showed before."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

import grpc
import pytest

from comms.agreement import RoundPlan
from comms.certificates import TOKEN_FILE, CertificateError
from comms.errors import BadProof, Refused, Unreachable
from comms.join_token import CLOCK_SKEW_S, Doorkeeper, prove, read_token
from tests.comms.members import PATIENCE_S, CoordinatorThread, join_of, rules, transport_of
from tests.comms.strangers import (
    RUN,
    assert_refused,
    assert_still_serves,
    attend,
    call,
    coordinator,
    join,
    proved,
    tls,
)

Code = grpc.StatusCode


def test_replayed_token(tmp_path: Path, certs: Path) -> None:
    recorded = proved(certs, "a")
    with coordinator(tmp_path, certs) as running:
        refused = call(running.address, tls(certs)("a"), attend(recorded, recorded))
        assert_refused(refused, Code.UNAUTHENTICATED, "BadProof", "used before")
        assert_still_serves(running, certs)


def test_a_join_without_the_token(tmp_path: Path, certs: Path) -> None:
    unproved = proved(certs, "a")
    unproved.proof = b""
    with coordinator(tmp_path, certs) as running:
        for said in (unproved, join("a", b"a token of sixteen"), join("a", read_token(certs / TOKEN_FILE), run="x")):
            refused = call(running.address, tls(certs)("a"), attend(said))
            assert_refused(refused, Code.UNAUTHENTICATED, "BadProof", "does not know")


def test_a_replica_with_an_old_token_is_told_so_at_once(tmp_path: Path, certs: Path) -> None:
    mine = copy_of(certs, tmp_path / "mine")
    token_in(mine, "the token of last month")
    with (
        coordinator(tmp_path, certs) as running,
        transport_of(tmp_path, "a", running.address, security=tls(mine)) as a,
    ):
        a.join(join_of("a", a))
        with pytest.raises(Refused, match="BadProof"):
            a.receive()


def test_a_replica_whose_token_is_gone_names_the_file(tmp_path: Path, certs: Path) -> None:
    """It can't say its first word; nobody has to wait until the coordinator has lost its patience with it."""
    mine = copy_of(certs, tmp_path / "mine")
    with (
        coordinator(tmp_path, certs) as running,
        transport_of(tmp_path, "a", running.address, security=tls(mine)) as a,
    ):
        (mine / TOKEN_FILE).unlink()
        a.join(join_of("a", a))
        with pytest.raises(CertificateError, match=r"run\.token: No such file"):
            a.receive()


class Heard(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self._said = said
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._said in record.getMessage():
            self.event.set()


@pytest.mark.parametrize("arrives", [True, False])
def test_a_member_of_the_run_waits_for_the_new_token_but_not_for_ever(
    tmp_path: Path, certs: Path, *, arrives: bool
) -> None:
    """The token is replaced at the coordinator first; a replica's stream breaks before it has the new one."""
    mine, theirs = (copy_of(certs, tmp_path / name) for name in ("mine", "theirs"))
    refused = Heard("does not know this run's join token")
    logging.getLogger("comms.coordinator").addHandler(refused)
    try:
        with coordinator(tmp_path, theirs, rules("a")) as running:
            address = running.address
            with transport_of(
                tmp_path, "a", address, outage_deadline_s=10.0 if arrives else 1.5, security=tls(mine)
            ) as a:
                a.join(join_of("a", a))
                assert isinstance(a.receive(), RoundPlan)
                running.stop()
                token_in(theirs, "the token after it")
                again = CoordinatorThread(tmp_path, rules("a"), address, security=tls(theirs))
                assert refused.event.wait(PATIENCE_S)
                if arrives:
                    token_in(mine, "the token after it")
                    assert isinstance(a.receive(), RoundPlan)
                else:
                    with pytest.raises(Unreachable, match="BadProof"):
                        a.receive()
                again.stop()
    finally:
        logging.getLogger("comms.coordinator").removeHandler(refused)


def copy_of(certs: Path, folder: Path) -> Path:
    shutil.copytree(certs, folder)
    return folder


@pytest.mark.parametrize(
    ("proved_at_s", "taken"),
    [
        (1000.0 - CLOCK_SKEW_S, True),
        (1000.0 + CLOCK_SKEW_S, True),
        (999.0 - CLOCK_SKEW_S, False),
        (1001.0 + CLOCK_SKEW_S, False),
        (float("nan"), False),
        (float("inf"), False),
    ],
)
def test_a_proof_counts_for_minutes(tmp_path: Path, proved_at_s: float, *, taken: bool) -> None:
    path = token_in(tmp_path, "a token of sixteen")
    proof = prove(read_token(path), RUN, "a", "1", proved_at_s)
    doorkeeper = Doorkeeper(RUN, path, clock=lambda: 1000.0)
    if taken:
        doorkeeper.admit("a", "1", proof, proved_at_s)
    else:
        with pytest.raises(BadProof, match="set its clock"):
            doorkeeper.admit("a", "1", proof, proved_at_s)


def test_an_incarnation_comes_back_with_a_later_proof_only_and_others_do_not_mind(tmp_path: Path) -> None:
    path = token_in(tmp_path, "a token of sixteen")
    doorkeeper = Doorkeeper(RUN, path, clock=lambda: 1000.0)

    def admit(replica: str, incarnation: str, at_s: float) -> None:
        doorkeeper.admit(replica, incarnation, prove(read_token(path), RUN, replica, incarnation, at_s), at_s)

    admit("a", "1", 990.0)
    admit("a", "1", 991.0)
    for earlier in (991.0, 990.5):
        with pytest.raises(BadProof, match="used before"):
            admit("a", "1", earlier)
    admit("a", "2", 980.0)  # started again, on a machine whose clock is behind
    admit("b", "1", 990.0)
    with pytest.raises(BadProof, match="used before"):
        admit("a", "1", 991.0)


def test_a_token_can_be_replaced_while_the_run_goes_on(tmp_path: Path) -> None:
    path = token_in(tmp_path, "a token of sixteen")
    doorkeeper = Doorkeeper(RUN, path, clock=lambda: 1000.0)
    token_in(tmp_path, "the token after it")
    doorkeeper.admit("a", "1", prove(b"the token after it", RUN, "a", "1", 1000.0), 1000.0)
    path.unlink()
    doorkeeper.admit("a", "1", prove(b"the token after it", RUN, "a", "1", 1001.0), 1001.0)
    with pytest.raises(BadProof, match="does not know"):
        doorkeeper.admit("a", "1", prove(b"a token of sixteen", RUN, "a", "1", 1002.0), 1002.0)


def token_in(folder: Path, token: str) -> Path:
    (folder / TOKEN_FILE).write_text(token + "\n")
    return folder / TOKEN_FILE


@pytest.mark.parametrize("content", [None, "", "short", "x" * 5000])
def test_a_file_without_a_token_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        token_in(tmp_path, content)
    with pytest.raises(CertificateError, match=TOKEN_FILE):
        read_token(tmp_path / TOKEN_FILE)
