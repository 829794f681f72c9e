"""How many bytes the messages of a round take, from what decides their length: members, contributors, fragments.

    M members listen, C of them contribute, F fragments each; a message is counted with gRPC's header h:

    the coordinator says     M (plan + proposal + commit + 3 h)             the last two hold a manifest of C F entries
    the members say          C (report + h) + M (acknowledge + applied + 2 h)         applied holds each one's figures
    one that is silent       a heartbeat every heartbeat_s
    for each payload         a request of whoever gets it; under `relay` a header and a reply where it is put

Lengths are those of real messages with made-up digests: these have one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from comms import agreement as a
from comms import wire
from comms.leases import Segment
from comms.ledger import MESSAGE_HEADER_BYTES
from protos import payload_pb2, round_pb2

_DIGEST = "0" * 2 * wire.DIGEST_BYTES
_DIGEST_BYTES = bytes(wire.DIGEST_BYTES)
_ADDRESS = "192.0.2.1:40000"
ADDRESS_BYTES = len(_ADDRESS)
"""Of one that ranks tell each other: where they serve payloads."""
FINISH_BYTES = int(wire.coordinator_message_to_pb(a.Finish()).ByteSize())
HEARTBEAT_BYTES = MESSAGE_HEADER_BYTES + wire.member_message_to_pb(a.Heartbeat()).ByteSize()


@dataclass(frozen=True)
class RoundShape:
    """What decides how long the messages of a round are."""

    round: int
    contributors: tuple[str, ...]
    holders: tuple[str, ...]
    """Who serves payloads, a name for each rank that does; nobody where the coordinator relays."""
    payloads_bytes: tuple[tuple[str, int], ...]
    """Of one contribution: fragment, size."""
    lease_tokens: int
    reported: tuple[str, ...]
    """Phases that a report has."""


@dataclass(frozen=True)
class MessageBytes:
    """Each message of a round but the last, whose length is the member's own, without gRPC's header."""

    plan: int
    report: int
    proposal: int
    acknowledge: int
    commit: int

    def control_bytes(self, contributors: int, listeners: int) -> int:
        """What all say to each other in a round until it is committed, headers included."""
        each = self.plan + self.proposal + self.acknowledge + self.commit + 4 * MESSAGE_HEADER_BYTES
        return listeners * each + contributors * (self.report + MESSAGE_HEADER_BYTES)


def message_bytes(shape: RoundShape) -> MessageBytes:
    """The messages of a round of that shape."""
    number, tokens = shape.round, shape.lease_tokens
    until = tokens * len(shape.contributors) * number
    lease = (Segment(0, max(0, until - tokens), until),)
    manifest = tuple(
        a.Entry(replica, fragment, _DIGEST, size, tokens)
        for replica in shape.contributors
        for fragment, size in shape.payloads_bytes
    )
    holders = tuple(a.Holder(name, _ADDRESS) for name in shape.holders)
    return MessageBytes(
        plan=_said(a.RoundPlan(number, lease)),
        report=_heard(report_of(shape, tuple(fragment for fragment, _ in shape.payloads_bytes))),
        proposal=_said(a.Proposal(number, 1, manifest, holders)),
        acknowledge=_heard(a.Acknowledge(number, 1)),
        commit=_said(a.CommittedRound(number, manifest, dict.fromkeys(shape.contributors, lease), holders)),
    )


@lru_cache(maxsize=1024)
def applied_bytes(figures: int, names_bytes: int) -> int:
    """What telling that a round was applied takes, with so many phases and figures, of so many letters together."""
    names = [str(n) for n in range(figures)]
    told = dict.fromkeys(names, 1.0)
    return _heard(a.Applied(1000, _DIGEST, 1.0, 1000, told)) + names_bytes - sum(map(len, names))


def rank_report_bytes(shape: RoundShape, fragments: tuple[str, ...]) -> int:
    """The report of a rank that owns `fragments`, as it tells it to the others of its replica."""
    return _heard(report_of(shape, fragments))


def report_of(shape: RoundShape, fragments: tuple[str, ...]) -> a.Report:
    """What is reported of `fragments`."""
    payloads = tuple(a.Payload(name, _DIGEST, size) for name, size in shape.payloads_bytes if name in fragments)
    return a.Report(shape.round, payloads, shape.lease_tokens, 1.0, dict.fromkeys(shape.reported, 1.0))


def get_bytes(replica: str, round_number: int) -> int:
    """What asking for a payload takes."""
    request = payload_pb2.GetRequest(digest=_DIGEST_BYTES, replica=replica, round=round_number, kind="pseudo_gradient")
    return request.ByteSize() + MESSAGE_HEADER_BYTES


def put_bytes(replica: str, round_number: int, num_bytes: int) -> int:
    """What announcing a payload to a relay takes, and its reply."""
    header = payload_pb2.PutHeader(
        digest=_DIGEST_BYTES, num_bytes=num_bytes, replica=replica, round=round_number, kind="pseudo_gradient"
    )
    reply = payload_pb2.PutReply().ByteSize()
    return payload_pb2.PutRequest(header=header).ByteSize() + reply + 2 * MESSAGE_HEADER_BYTES


def offer_bytes(round_number: int) -> int:
    """What saying that a snapshot can be had takes."""
    return _heard(a.Offer(round_number, _DIGEST, _DIGEST, 40)) + MESSAGE_HEADER_BYTES


def join_bytes(replica: str, ranks: int) -> int:
    """What joining takes, and being told that the run is over."""
    join = a.Join(replica, "0" * 16, _ADDRESS, _DIGEST, _DIGEST, 10**7, 0, _DIGEST, (_ADDRESS,) * (ranks - 1))
    return _heard(join) + FINISH_BYTES + 2 * MESSAGE_HEADER_BYTES


def _heard(message: a.MemberMessage) -> int:
    return int(wire.member_message_to_pb(message).ByteSize())


def _said(message: a.CoordinatorMessage) -> int:
    encoded: round_pb2.CoordinatorMessage = wire.coordinator_message_to_pb(message)
    return encoded.ByteSize()
