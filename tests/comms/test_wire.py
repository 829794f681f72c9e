"""What is said arrives as it was meant, and what means nothing is refused by the name of its field."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from comms import agreement as a
from comms import wire
from comms.leases import Lease, Segment
from protos import round_pb2 as pb

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
texts = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=60)
rounds = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**64 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
figures = st.dictionaries(names, finite, max_size=4)
segments = st.tuples(rounds, counts, counts).filter(lambda s: s[1] < s[2]).map(lambda s: Segment(*s))
leases: st.SearchStrategy[Lease] = st.lists(segments, max_size=4).map(tuple)
payloads = st.lists(st.builds(a.Payload, names, digests, counts), max_size=4).map(tuple)
problems = st.lists(st.builds(a.Problem, digests, texts, st.booleans()), max_size=4).map(tuple)
manifests = st.lists(st.builds(a.Entry, names, names, digests, counts, counts), max_size=4).map(tuple)
holders = st.lists(st.builds(a.Holder, names, texts), max_size=4).map(tuple)
offers = st.builds(a.Offer, rounds, digests, digests, counts)
sources = st.lists(st.builds(a.SnapshotSource, offers, holders), max_size=3).map(tuple)

member_messages: st.SearchStrategy[a.MemberMessage] = st.one_of(
    st.builds(a.Join, names, texts, texts, digests, digests, counts, rounds, digests),
    st.just(a.Heartbeat()),
    st.builds(a.Report, rounds, payloads, counts, st.floats(allow_nan=False), figures, leases),
    st.builds(a.Acknowledge, rounds, rounds, problems),
    st.builds(a.Applied, rounds, digests, finite, counts, figures, figures),
    st.builds(a.Leave, texts),
    offers,
)
coordinator_messages: st.SearchStrategy[a.CoordinatorMessage] = st.one_of(
    st.builds(a.Refusal, texts),
    st.builds(a.RoundPlan, rounds, leases),
    st.builds(a.Proposal, rounds, rounds, manifests, holders),
    st.builds(a.CommittedRound, rounds, manifests, st.dictionaries(names, leases, max_size=3), holders),
    st.builds(a.CatchUp, rounds, sources, st.one_of(st.just(""), digests)),
    st.builds(a.Finish, texts),
)


@given(member_messages)
def test_what_a_replica_says_arrives_as_it_was_meant(message: a.MemberMessage) -> None:
    encoded = wire.member_message_to_pb(message).SerializeToString()
    assert wire.member_message_from_pb(pb.MemberMessage.FromString(encoded)) == message


@given(coordinator_messages)
def test_what_the_coordinator_says_arrives_as_it_was_meant(message: a.CoordinatorMessage) -> None:
    encoded = wire.coordinator_message_to_pb(message).SerializeToString()
    assert wire.coordinator_message_from_pb(pb.CoordinatorMessage.FromString(encoded)) == message


PARSERS: list[tuple[Callable[[bytes], Any], Callable[[Any], object], Callable[[bytes], bytes]]] = [
    (pb.MemberMessage.FromString, wire.member_message_from_pb, bytes),
    (pb.CoordinatorMessage.FromString, wire.coordinator_message_from_pb, bytes),
    (pb.CommittedRound.FromString, wire.committed_from_pb, bytes),
]


@given(st.sampled_from(PARSERS), st.data())
def test_no_bytes_do_worse_than_to_be_refused(
    parser: tuple[Callable[[bytes], Any], Callable[[Any], object], object], data: st.DataObject
) -> None:
    """Random bytes, and sound messages with some of their bytes changed, which get further."""
    parse, check, _ = parser
    sound = data.draw(
        st.one_of(
            st.binary(max_size=200),
            member_messages.map(lambda m: wire.member_message_to_pb(m).SerializeToString()),
            coordinator_messages.map(lambda m: wire.coordinator_message_to_pb(m).SerializeToString()),
        )
    )
    changed = bytearray(sound)
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with suppress(wire.WireError, DecodeError):
        check(parse(bytes(changed)))


# ---- each check, by the name of its field ----

DIGEST = bytes(32)
BAD_NAMES = ["", "../etc", ".hidden", "-x", "a/b", "a b", "é", "a\n", "x" * 65]


def joined(**fields: Any) -> pb.MemberMessage:
    sound: dict[str, Any] = {
        "replica": "a", "config_digest": DIGEST, "corpus_digest": DIGEST, "theta_digest": DIGEST
    }  # fmt: skip
    return pb.MemberMessage(join=pb.Join(**(sound | fields)))


def reported(fragment: str = "f", digest: bytes = DIGEST, **fields: Any) -> pb.MemberMessage:
    return pb.MemberMessage(report=pb.Report(payloads=[pb.Payload(fragment=fragment, digest=digest)], **fields))


def applied(**fields: Any) -> pb.MemberMessage:
    return pb.MemberMessage(applied=pb.Applied(**({"theta_digest": DIGEST} | fields)))


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    ("message", "field"),
    [
        (lambda name: joined(replica=name), "join.replica"),
        (lambda name: reported(fragment=name), "report.fragment"),
        (lambda name: reported(phase_s={name: 1.0}), "report.phase_s"),
        (lambda name: applied(phase_s={name: 1.0}), "applied.phase_s"),
        (lambda name: applied(health={name: 1.0}), "applied.health"),
    ],
)
def test_a_replicas_names_can_not_be_paths(message: Callable[[str], pb.MemberMessage], field: str, name: str) -> None:
    with pytest.raises(wire.WireError, match=f"^{field} = .* is not a name"):
        wire.member_message_from_pb(message(name))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
@pytest.mark.parametrize(
    ("message", "field"),
    [
        (lambda digest: joined(config_digest=digest), "join.config_digest"),
        (lambda digest: joined(corpus_digest=digest), "join.corpus_digest"),
        (lambda digest: joined(theta_digest=digest), "join.theta_digest"),
        (lambda digest: reported(digest=digest), "report.digest"),
        (lambda digest: applied(theta_digest=digest), "applied.theta_digest"),
        (
            lambda digest: pb.MemberMessage(acknowledge=pb.Acknowledge(problems=[pb.Problem(digest=digest)])),
            "acknowledge.digest",
        ),
    ],
)
def test_a_replicas_digests_are_sha256(message: Callable[[bytes], pb.MemberMessage], field: str, length: int) -> None:
    with pytest.raises(wire.WireError, match=f"^{field} has {length} bytes; a SHA-256 has 32"):
        wire.member_message_from_pb(message(bytes(length)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("message", "field"),
    [
        (lambda value: reported(phase_s={"compute": value}), "report.phase_s.compute"),
        (lambda value: applied(validation_loss_sum=value), "applied.validation_loss_sum"),
        (lambda value: applied(phase_s={"fetch": value}), "applied.phase_s.fetch"),
        (lambda value: applied(health={"norm": value}), "applied.health.norm"),
    ],
)
def test_a_replicas_figures_are_finite(message: Callable[[float], pb.MemberMessage], field: str, value: float) -> None:
    with pytest.raises(wire.WireError, match=f"^{field} is "):
        wire.member_message_from_pb(message(value))


def test_a_loss_that_is_not_finite_arrives_for_the_round_to_go_on_without_it() -> None:
    message = wire.member_message_from_pb(reported(loss=math.nan))
    assert isinstance(message, a.Report)
    assert math.isnan(message.loss)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (reported(phase_s={f"p{i}": 1.0 for i in range(101)}), "report.phase_s has 101 items; at most 100"),
        (applied(health={f"p{i}": 1.0 for i in range(101)}), "applied.health has 101 items; at most 100"),
        (
            pb.MemberMessage(report=pb.Report(payloads=[pb.Payload()] * (wire.MOST_FRAGMENTS + 1))),
            "report.payloads has 100001 items",
        ),
        (
            pb.MemberMessage(acknowledge=pb.Acknowledge(problems=[pb.Problem()] * (wire.MOST_FRAGMENTS + 1))),
            "acknowledge.problems has 100001 items",
        ),
        (pb.MemberMessage(), "nothing in it"),
    ],
)
def test_a_replicas_lists_are_bounded(message: pb.MemberMessage, field: str) -> None:
    with pytest.raises(wire.WireError, match=field):
        wire.member_message_from_pb(message)


def entry(replica: str = "a", fragment: str = "f", digest: bytes = DIGEST) -> pb.Entry:
    return pb.Entry(replica=replica, fragment=fragment, digest=digest)


def committed(**fields: Any) -> pb.CoordinatorMessage:
    return pb.CoordinatorMessage(commit=pb.CommittedRound(**fields))


def proposed(**fields: Any) -> pb.CoordinatorMessage:
    return pb.CoordinatorMessage(proposal=pb.Proposal(**fields))


EMPTY = pb.Segment(epoch=0, start=5, stop=5)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (proposed(manifest=[entry(replica="../a")]), "manifest.replica"),
        (proposed(manifest=[entry(fragment="../f")]), "manifest.fragment"),
        (proposed(manifest=[entry(digest=b"short")]), "manifest.digest"),
        (committed(manifest=[entry(replica="../a")]), "manifest.replica"),
        (committed(manifest=[entry()] * (wire.MOST_FRAGMENTS + 1)), "manifest has 100001 items"),
        (proposed(holders=[pb.Holder(replica="../a")]), "holder.replica"),
        (proposed(holders=[pb.Holder()] * (wire.MOST_REPLICAS + 1)), "holders has 100001 items"),
        (committed(holders=[pb.Holder(replica="")]), "holder.replica"),
        (committed(leases=[pb.ReplicaLease(replica="../a")]), "commit.lease"),
        (committed(leases=[pb.ReplicaLease()] * (wire.MOST_REPLICAS + 1)), "commit.leases has 100001 items"),
        (committed(leases=[pb.ReplicaLease(replica="a", lease=[EMPTY])]), r"lease segment \[5, 5\) is empty"),
        (pb.CoordinatorMessage(plan=pb.RoundPlan(lease=[EMPTY])), r"lease segment \[5, 5\) is empty"),
        (pb.CoordinatorMessage(plan=pb.RoundPlan(lease=[EMPTY] * 100_001)), "lease has 100001 items"),
        (pb.CoordinatorMessage(), "nothing in it"),
    ],
)
def test_what_the_coordinator_says_is_checked_by_name(message: pb.CoordinatorMessage, field: str) -> None:
    with pytest.raises(wire.WireError, match=field):
        wire.coordinator_message_from_pb(message)


@given(st.text(max_size=2000))
def test_text_is_short_and_can_not_write_over_a_terminal(reason: str) -> None:
    message = wire.member_message_from_pb(
        pb.MemberMessage(leave=pb.Leave(reason=reason.encode(errors="ignore").decode()))
    )
    assert isinstance(message, a.Leave)
    assert len(message.reason) <= wire.MOST_TEXT
    assert message.reason.isprintable()
