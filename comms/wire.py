"""Values to messages and back. Everything that comes from the network is checked here, once, before anybody acts on it.

Raises WireError, which names the field, for digests that are no SHA-256, numbers out of range or not finite, names
that could be paths, and lists without bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from comms import agreement as a
from comms.errors import CommsError
from comms.leases import Lease, Segment
from protos import round_pb2 as pb

MOST_FRAGMENTS = 100_000
MOST_REPLICAS = 100_000
MOST_RANKS = 1_024
MOST_TEXT = 1_000
DIGEST_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class WireError(CommsError):
    """A peer sent a message that means nothing."""


# ---- checks ----


def name(value: str, field: str) -> str:
    """A replica's or fragment's name: 1 to 64 of letters, digits, '-', '_', '.', and no leading dot or dash."""
    if not _NAME.fullmatch(value):
        raise WireError(f"{field} = {value[:80]!r} is not a name of 1 to 64 letters, digits, '-', '_' and '.'")
    return value


def digest(value: bytes, field: str) -> str:
    """A SHA-256 in hex."""
    if len(value) != DIGEST_BYTES:
        raise WireError(f"{field} has {len(value)} bytes; a SHA-256 has {DIGEST_BYTES}")
    return value.hex()


def _finite(value: float, field: str) -> float:
    if not math.isfinite(value):
        raise WireError(f"{field} is {value}")
    return value


def text(value: str) -> str:
    """At most MOST_TEXT characters, all of them printable: fit for a log."""
    return "".join(c if c.isprintable() else " " for c in value[:MOST_TEXT])


def _bounded(values: Sequence[Any], most: int, field: str) -> Sequence[Any]:
    if len(values) > most:
        raise WireError(f"{field} has {len(values)} items; at most {most} are taken")
    return values


def _figures(values: Mapping[str, float], field: str) -> dict[str, float]:
    if len(values) > 100:
        raise WireError(f"{field} has {len(values)} items; at most 100 are taken")
    return {name(key, field): _finite(value, f"{field}.{key}") for key, value in values.items()}


# ---- leases ----


def lease_to_pb(lease: Lease) -> list[pb.Segment]:
    """A lease as messages."""
    return [pb.Segment(epoch=s.epoch, start=s.start, stop=s.stop) for s in lease]


def lease_from_pb(segments: Sequence[pb.Segment]) -> Lease:
    """A lease of non-empty segments."""
    for segment in _bounded(segments, MOST_FRAGMENTS, "lease"):
        if segment.start >= segment.stop:
            raise WireError(f"lease segment [{segment.start}, {segment.stop}) is empty")
    return tuple(Segment(s.epoch, s.start, s.stop) for s in segments)


# ---- from a replica ----


def member_message_to_pb(message: a.MemberMessage) -> pb.MemberMessage:
    """What a replica says, as a message."""
    match message:
        case a.Join():
            return pb.MemberMessage(
                join=pb.Join(
                    replica=message.replica,
                    incarnation=message.incarnation,
                    address=message.address,
                    config_digest=bytes.fromhex(message.config_digest),
                    corpus_digest=bytes.fromhex(message.corpus_digest),
                    tokens_per_epoch=message.tokens_per_epoch,
                    applied_round=message.applied_round,
                    theta_digest=bytes.fromhex(message.theta_digest),
                    rank_addresses=message.rank_addresses,
                )
            )
        case a.Heartbeat():
            return pb.MemberMessage(heartbeat=pb.Heartbeat())
        case a.Report():
            payloads = [
                pb.Payload(fragment=p.fragment, digest=bytes.fromhex(p.digest), num_bytes=p.num_bytes)
                for p in message.payloads
            ]
            return pb.MemberMessage(
                report=pb.Report(
                    round=message.round,
                    payloads=payloads,
                    tokens=message.tokens,
                    loss=message.loss,
                    phase_s=message.phase_s,
                    unused=lease_to_pb(message.unused),
                )
            )
        case a.Acknowledge():
            problems = [
                pb.Problem(digest=bytes.fromhex(p.digest), reason=p.reason, broken=p.broken) for p in message.problems
            ]
            return pb.MemberMessage(
                acknowledge=pb.Acknowledge(round=message.round, attempt=message.attempt, problems=problems)
            )
        case a.Applied():
            return pb.MemberMessage(
                applied=pb.Applied(
                    round=message.round,
                    theta_digest=bytes.fromhex(message.theta_digest),
                    validation_loss_sum=message.validation_loss_sum,
                    validation_targets=message.validation_targets,
                    phase_s=message.phase_s,
                    health=message.health,
                )
            )
        case a.Leave():
            return pb.MemberMessage(leave=pb.Leave(reason=message.reason))
        case a.Offer():
            return pb.MemberMessage(offer=_offer_to_pb(message))


def member_message_from_pb(message: pb.MemberMessage) -> a.MemberMessage:
    """What a replica says, checked."""
    match message.WhichOneof("message"):
        case "join":
            return _join_from_pb(message.join)
        case "heartbeat":
            return a.Heartbeat()
        case "report":
            return _report_from_pb(message.report)
        case "acknowledge":
            acknowledge = message.acknowledge
            problems = tuple(
                a.Problem(digest(p.digest, "acknowledge.digest"), text(p.reason), p.broken)
                for p in _bounded(acknowledge.problems, MOST_FRAGMENTS, "acknowledge.problems")
            )
            return a.Acknowledge(acknowledge.round, acknowledge.attempt, problems)
        case "applied":
            applied = message.applied
            return a.Applied(
                applied.round,
                digest(applied.theta_digest, "applied.theta_digest"),
                _finite(applied.validation_loss_sum, "applied.validation_loss_sum"),
                applied.validation_targets,
                _figures(applied.phase_s, "applied.phase_s"),
                _figures(applied.health, "applied.health"),
            )
        case "leave":
            return a.Leave(text(message.leave.reason))
        case "offer":
            return _offer_from_pb(message.offer)
        case _:
            raise WireError("a message with nothing in it, or of a later version")


def _join_from_pb(join: pb.Join) -> a.Join:
    return a.Join(
        replica=name(join.replica, "join.replica"),
        incarnation=text(join.incarnation),
        address=text(join.address),
        config_digest=digest(join.config_digest, "join.config_digest"),
        corpus_digest=digest(join.corpus_digest, "join.corpus_digest"),
        tokens_per_epoch=join.tokens_per_epoch,
        applied_round=join.applied_round,
        theta_digest=digest(join.theta_digest, "join.theta_digest"),
        rank_addresses=tuple(map(text, _bounded(join.rank_addresses, MOST_RANKS, "join.rank_addresses"))),
    )


def _report_from_pb(report: pb.Report) -> a.Report:
    payloads = tuple(
        a.Payload(name(p.fragment, "report.fragment"), digest(p.digest, "report.digest"), p.num_bytes)
        for p in _bounded(report.payloads, MOST_FRAGMENTS, "report.payloads")
    )
    # Any loss: the round goes on without a replica whose loss is not finite, and says so. See objections.to_report.
    phase_s = _figures(report.phase_s, "report.phase_s")
    return a.Report(report.round, payloads, report.tokens, report.loss, phase_s, lease_from_pb(report.unused))


def _offer_to_pb(offer: a.Offer) -> pb.Offer:
    return pb.Offer(
        round=offer.round,
        theta_digest=bytes.fromhex(offer.theta_digest),
        index_digest=bytes.fromhex(offer.index_digest),
        index_bytes=offer.index_bytes,
    )


def _offer_from_pb(offer: pb.Offer) -> a.Offer:
    return a.Offer(
        offer.round,
        digest(offer.theta_digest, "offer.theta_digest"),
        digest(offer.index_digest, "offer.index_digest"),
        offer.index_bytes,
    )


# ---- from the coordinator ----


def coordinator_message_to_pb(message: a.CoordinatorMessage) -> pb.CoordinatorMessage:
    """What the coordinator says, as a message."""
    match message:
        case a.Refusal():
            return pb.CoordinatorMessage(refusal=pb.Refusal(reason=message.reason))
        case a.RoundPlan():
            return pb.CoordinatorMessage(plan=pb.RoundPlan(round=message.round, lease=lease_to_pb(message.lease)))
        case a.Proposal():
            return pb.CoordinatorMessage(
                proposal=pb.Proposal(
                    round=message.round,
                    attempt=message.attempt,
                    manifest=_manifest_to_pb(message.manifest),
                    holders=_holders_to_pb(message.holders),
                )
            )
        case a.CommittedRound():
            return pb.CoordinatorMessage(commit=committed_to_pb(message))
        case a.CatchUp():
            sources = [
                pb.SnapshotSource(offer=_offer_to_pb(s.offer), holders=_holders_to_pb(s.holders))
                for s in message.snapshots
            ]
            return pb.CoordinatorMessage(
                catch_up=pb.CatchUp(
                    committed_round=message.committed_round,
                    snapshots=sources,
                    damaged_digest=bytes.fromhex(message.damaged_digest),
                )
            )
        case a.Finish():
            return pb.CoordinatorMessage(finish=pb.Finish(failure=message.failure))


def coordinator_message_from_pb(message: pb.CoordinatorMessage) -> a.CoordinatorMessage:
    """What the coordinator says, checked."""
    match message.WhichOneof("message"):
        case "refusal":
            return a.Refusal(text(message.refusal.reason))
        case "plan":
            return a.RoundPlan(message.plan.round, lease_from_pb(message.plan.lease))
        case "proposal":
            proposal = message.proposal
            return a.Proposal(
                proposal.round,
                proposal.attempt,
                _manifest_from_pb(proposal.manifest),
                _holders_from_pb(proposal.holders),
            )
        case "commit":
            return committed_from_pb(message.commit)
        case "catch_up":
            return _catch_up_from_pb(message.catch_up)
        case "finish":
            return a.Finish(text(message.finish.failure))
        case _:
            raise WireError("a message with nothing in it, or of a later version")


def _catch_up_from_pb(catch_up: pb.CatchUp) -> a.CatchUp:
    sources = tuple(
        a.SnapshotSource(_offer_from_pb(source.offer), _holders_from_pb(source.holders))
        for source in _bounded(catch_up.snapshots, MOST_REPLICAS, "catch_up.snapshots")
    )
    damaged = catch_up.damaged_digest
    return a.CatchUp(catch_up.committed_round, sources, digest(damaged, "catch_up.damaged_digest") if damaged else "")


def committed_to_pb(committed: a.CommittedRound) -> pb.CommittedRound:
    """A committed round as a message."""
    leases = [pb.ReplicaLease(replica=r, lease=lease_to_pb(lease)) for r, lease in committed.leases.items()]
    return pb.CommittedRound(
        round=committed.round,
        manifest=_manifest_to_pb(committed.manifest),
        leases=leases,
        holders=_holders_to_pb(committed.holders),
    )


def committed_from_pb(committed: pb.CommittedRound) -> a.CommittedRound:
    """A committed round, checked."""
    leases = _bounded(committed.leases, MOST_REPLICAS, "commit.leases")
    return a.CommittedRound(
        committed.round,
        _manifest_from_pb(committed.manifest),
        {name(held.replica, "commit.lease"): lease_from_pb(held.lease) for held in leases},
        _holders_from_pb(committed.holders),
    )


def _manifest_to_pb(manifest: a.Manifest) -> list[pb.Entry]:
    return [
        pb.Entry(
            replica=e.replica,
            fragment=e.fragment,
            digest=bytes.fromhex(e.digest),
            num_bytes=e.num_bytes,
            weight_tokens=e.weight_tokens,
        )
        for e in manifest
    ]


def _manifest_from_pb(entries: Sequence[pb.Entry]) -> a.Manifest:
    return tuple(
        a.Entry(
            name(e.replica, "manifest.replica"),
            name(e.fragment, "manifest.fragment"),
            digest(e.digest, "manifest.digest"),
            e.num_bytes,
            e.weight_tokens,
        )
        for e in _bounded(entries, MOST_FRAGMENTS, "manifest")
    )


def _holders_to_pb(holders: Sequence[a.Holder]) -> list[pb.Holder]:
    return [pb.Holder(replica=h.replica, address=h.address) for h in holders]


def _holders_from_pb(holders: Sequence[pb.Holder]) -> tuple[a.Holder, ...]:
    bounded = _bounded(holders, MOST_REPLICAS, "holders")
    return tuple(a.Holder(name(h.replica, "holder.replica"), text(h.address)) for h in bounded)
