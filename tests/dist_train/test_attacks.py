"""Whole runs while somebody attacks them: round by round they hold the parameters of a run that nobody attacked."""

from __future__ import annotations

import logging
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import google_crc32c
import pytest

from comms.agreement import COORDINATOR, Payload
from comms.certificates import OPERATOR, TOKEN_FILE, issue
from comms.grpc_transport import GrpcTransport
from comms.join_token import read_token
from comms.security import Insecure
from comms.store import digest_of
from compression.layout import ChunkLayout
from compression.quota import Quota
from compression.sparse import SparseCodec
from dist_train.config import ConfigError, parse
from dist_train.coordination import run_coordinator
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model
from dist_train.outer import outer_method
from dist_train.run_directory import RunDirectory
from dist_train.security import security_of
from tests.comms.strangers import attend, call, connect, expired, join, put, status, stop, tls
from tests.running import metrics, run, tiny, write_corpus

SPARSE = {"chunk": 36, "k": 4, "value_bits": 32}
MALLORY = "mallory"
"""Has a certificate of the run's own authority and knows its token, but is none of its replicas."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "certs"
    issue(folder, [COORDINATOR, OPERATOR, "a", "b", MALLORY], days=30)
    return folder


def course(directory: RunDirectory) -> list[tuple[str, float, list[str]]]:
    """Parameters, loss and contributors, round by round."""
    return [(row["theta_digest"], row["loss"], row["contributors"]) for row in metrics(directory)]


# ---- from outside ----


class Attackers:
    """Try everything that they can think of, again and again, until the run is over."""

    def __init__(self, certificates: Path, folder: Path, run_name: str) -> None:
        foreign = folder / "foreign"
        issue(foreign, [COORDINATOR, OPERATOR, "a"], days=30)
        member, stranger = tls(certificates, run_name), tls(foreign, run_name)
        old = tls(expired(certificates, folder / "old"), run_name)
        token = read_token(certificates / TOKEN_FILE)
        payload, digest = b"poison", bytes.fromhex(digest_of(b"poison"))
        as_a = join("a", token, run=run_name)
        self.attacks: dict[str, tuple[str, Callable[[str], object]]] = {
            "plain text": ("", lambda to: call(to, Insecure(), attend(as_a))),
            "wrong authority": ("VERIFY_FAILED", lambda to: call(to, stranger("a"), attend(as_a))),
            "expired": ("", lambda to: expect_certificate_error(to, old("a"))),
            "another name": ("WrongName", lambda to: call(to, member(MALLORY), attend(as_a))),
            "another's payload": ("WrongName", lambda to: call(to, member(MALLORY), put(payload, digest=digest))),
            "own payload": (
                "WrongName", lambda to: call(to, member(MALLORY), put(payload, digest=digest, replica=MALLORY)),
            ),
            "no token": ("BadProof", lambda to: call(to, member(MALLORY), attend(join(MALLORY, b"guess" * 4)))),
            "not on the roster": (
                "", lambda to: call(to, member(MALLORY), attend(join(MALLORY, token, run=run_name))),
            ),
            "stop": ("NotTheOperator", lambda to: call(to, member(MALLORY), stop)),
        }  # fmt: skip
        self.refused = Counter[str]()

    def hammer(self, address: str, over: threading.Event) -> None:
        half_open = connect(address, 1000)
        while not over.is_set():
            for name, (said, attack) in self.attacks.items():
                error = attack(address)
                if error is not None and said in str(error):
                    self.refused[name] += 1
        for connection in half_open:
            connection.close()


def expect_certificate_error(address: str, security: object) -> str:
    """Our own client won't even try; its refusal, in words."""
    with pytest.raises(Exception, match="renew it") as caught:
        call(address, security, status)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_run_under_attack_is_the_run_without_it(
    tmp_path: Path, source: str, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outer, relay = {"rounds": 5}, {"route": "relay"}
    undisturbed = run(tiny(tmp_path / "quiet", source, outer=outer, exchange=relay))
    config = tiny(
        tmp_path / "loud", source, outer=outer, exchange=relay, security={"mode": "tls", "certificates": str(certs)}
    )
    attackers = Attackers(certs, tmp_path, config.run.name)
    with caplog.at_level(logging.INFO):
        attacked = run(config, beside=attackers.hammer)
    assert course(attacked) == course(undisturbed)
    missing = attackers.attacks.keys() - attackers.refused.keys() - {"not on the roster"}
    assert not missing, "each of them was tried, and refused by its name"
    assert_no_secret_in(attacked.path, caplog.text, certs)


def assert_no_secret_in(directory: Path, log: str, certificates: Path) -> None:
    secrets = [read_token(certificates / TOKEN_FILE)]
    secrets += [line for key in certificates.glob("*.key") for line in key.read_bytes().splitlines()[1:-1]]
    written = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    for secret in secrets:
        assert secret.decode() not in log
        assert not any(secret in content for content in written)


# ---- from inside: a member whose payloads are weapons ----


def sealed(body: bytes) -> bytes:
    """A payload whose checksum is right."""
    return body + struct.pack("<I", google_crc32c.value(body))


def bomb(payload: bytes) -> bytes:
    """Claims that its first stream has a tebibyte."""
    codec, quota = embedding()
    frame = codec._frame(quota.layout)
    lengths = [len(stream) for stream in frame.unseal(payload, codec.coder.limits(quota, codec.quantizer))]
    body = payload[len(frame._header(lengths)) : -4]
    return sealed(frame._header([2**40, *lengths[1:]]) + body)


def out_of_range(payload: bytes) -> bytes:
    """The last place of its first chunk is 40, in chunks of 36."""
    codec, quota = embedding()
    frame = codec._frame(quota.layout)
    streams = frame.unseal(payload, codec.coder.limits(quota, codec.quantizer))
    symbols = codec.coder.decode(streams, quota, codec.quantizer)
    places = symbols.places.copy()
    places[SPARSE["k"] - 1] = 40
    return frame.seal(codec.coder.encode(replace(symbols, places=places), quota, codec.quantizer))


@cache
def embedding() -> tuple[SparseCodec, Quota]:
    """What the runs below encode their embedding with."""
    config = tiny(Path("unused"), "unused", sparseloco=SPARSE)
    model = build_model(config.model, 0)
    outer = outer_method(config, model, InnerOptimizer(model, config.inner, 1))
    codec, layout = outer.codec, outer.layouts["embed"]
    assert isinstance(codec, SparseCodec)
    assert isinstance(layout, ChunkLayout)
    return codec, Quota(layout, SPARSE["k"])


def not_a_number(payload: bytes) -> bytes:
    """Its last value is NaN."""
    return sealed(payload[:-8] + struct.pack("<f", float("nan")))


class Hostile(GrpcTransport):
    """An honest transport in all replicas but c, which does something else in each round."""

    def publish(self, round_number: int, fragment: str, payload: bytes) -> Payload:
        if self._settings.replica != "c" or fragment != "embed":
            return super().publish(round_number, fragment, payload)
        if round_number == 4:
            return Payload(fragment, digest_of(b"what I do not have"), len(payload))
        attack = {1: bomb, 2: out_of_range, 3: not_a_number}[round_number]
        return super().publish(round_number, fragment, attack(payload))


def test_a_hostile_members_payloads_are_refused_by_name_and_the_round_goes_on(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"rounds": 4}
    honest = run(tiny(tmp_path / "honest", source, outer=outer, sparseloco=SPARSE))
    monkeypatch.setattr("dist_train.replica.GrpcTransport", Hostile)
    exchange = {"min_replicas": 2, "fetch_deadline_s": 3.0, "most_faults": 9}  # it is not to be expelled yet
    attacked = run(tiny(tmp_path / "attacked", source, replicas=3, outer=outer, sparseloco=SPARSE, exchange=exchange))
    assert course(attacked) == course(honest)
    reasons = [{who["replica"]: who["reason"] for who in row["absent"]} for row in metrics(attacked)]
    said = [": 1099511627776 bytes, expected", "places: 40 is not below the chunk (36)", "not finite"]
    for reason, expected in zip(reasons, [*said, "no payload embed of replica c"], strict=True):
        assert expected in reason["c"]


# ---- before anything starts ----


def test_what_a_member_lacks_is_said_before_it_starts(tmp_path: Path, source: str, certs: Path) -> None:
    config = tiny(tmp_path / "run", source, security={"mode": "tls", "certificates": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=r"nowhere/ca\.pem: No such file.*dist-train certs"):
        run_coordinator(config, RunDirectory(tmp_path / "run"), lambda _: None)
    assert not (tmp_path / "run").exists()
    for name in ("ca.pem", "a.pem", "a.key"):
        (tmp_path / name).write_bytes((certs / name).read_bytes())
    config = tiny(tmp_path / "run", source, security={"mode": "tls", "certificates": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"run\.token: No such file"):
        security_of(config, "a")
    with pytest.raises(ConfigError, match=r"operator\.pem: No such file"):
        security_of(config, OPERATOR)
    old = expired(certs, tmp_path / "old")
    with pytest.raises(ConfigError, match="renew it"):
        security_of(tiny(tmp_path / "run", source, security={"mode": "tls", "certificates": str(old)}), "a")


def test_a_certificate_near_its_end_is_warned_of(tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture) -> None:
    issue(tmp_path, "ab", days=3)
    issue(tmp_path, "b", days=30)
    config = tiny(tmp_path / "run", source, security={"mode": "tls", "certificates": str(tmp_path)})
    security_of(config, "b")
    assert not caplog.records
    security_of(config, "a")
    assert "the certificate of a expires on" in caplog.text


@pytest.mark.parametrize("mode", ["loopback", "insecure"])
def test_a_token_that_would_do_nothing_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match="does nothing"):
        parse({"security": {"mode": mode, "token_file": "run.token"}})


@pytest.mark.parametrize("name", ["ca", "operator"])
def test_a_replica_can_not_have_a_name_that_certificates_need(name: str) -> None:
    with pytest.raises(ConfigError, match="choose another"):
        parse({"replica": [{"id": name}]})
