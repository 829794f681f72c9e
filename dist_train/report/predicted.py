"""What a run should have sent, of every kind, in closed form: from its config, its model and its committed rounds.

    pseudo_gradient   for each fragment f, of predicted size s_f:  gets_f get(s_f) + puts_f put(s_f)                 (1)
                      gets_f = sum over members m of ranks of m that need f, times contributors other than m;
                      of the embedding, which every stage needs, also the stages of each contributor that are on
                      another machine than its first stage: these get its own from there
    activation, …     what the replicas' engines worked out for the steps that they ran (`predicted_traffic`)        (2)
    intra_replica     (2), and of each replica of N > 1 ranks in a round
                      what rank 0 hears, to all:   3 broadcasts,  broadcast(n) = (N - 1) (8 + n)                     (3)
                      what the ranks say:          4 gatherings,  gather(n) = N (N - 1) (8 + n)                      (4)
                      the new parameters, where every rank has all of them:   (N - 1) 4 P                            (5)
    state_transfer    snapshots taken, times the size of one, for each rank that takes it                            (6)
    control           the round's messages (`comms.round_messages`); a heartbeat for each heartbeat_s of silence;
                      a request for each get of (1); a receipt for each tensor of (2) to (4) over our channels       (7)

Over our channels (3) and (4) are as many messages, with headers of their own. No figure comes from the ledger. Rounds
that were not committed, and what is done again after a fault, are not in it: a run with faults sends more than this.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from comms.crew import SIGN_BYTES
from comms.ledger import MESSAGE_HEADER_BYTES
from comms.payloads import stream_bytes
from comms.round_messages import (
    ADDRESS_BYTES,
    FINISH_BYTES,
    HEARTBEAT_BYTES,
    MessageBytes,
    RoundShape,
    applied_bytes,
    get_bytes,
    join_bytes,
    message_bytes,
    offer_bytes,
    put_bytes,
    rank_report_bytes,
)
from comms.snapshots import index_bytes, parts_bytes
from comms.tensor_header import COLLECTIVE_TAG, ITEM_BYTES, TensorHeader
from comms.tensor_stream import RECEIPT_BYTES, tensor_bytes
from dist_train.pipeline.traffic import FITS, LANE, TERMS_BYTES, basis_bytes, directions_bytes
from dist_train.rank_messages import NUMBER_BYTES, SLOT_BYTES
from dist_train.report.members import EMBED, Member, members_of, stranger
from dist_train.report.metrics import SNAPSHOTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dist_train.config import Config
    from dist_train.report.facts import RunFacts
    from dist_train.report.metrics import RoundRow

LENGTH_BYTES = ITEM_BYTES["int64"]
"""Goes before what ranks tell each other."""
VALUE_BYTES = ITEM_BYTES["float32"]
REPORTED = ("compute", "encode", "publish")
TOLD = ("activation", "activation_gradient", "sequence_all_to_all")


@dataclass(frozen=True)
class _Among:
    """Bytes among the ranks of a replica, and how many tensors of our own channels they are."""

    num_bytes: int = 0
    tensors: int = 0

    def __add__(self, other: _Among) -> _Among:
        return _Among(self.num_bytes + other.num_bytes, self.tensors + other.tensors)


@dataclass(frozen=True)
class _Gets:
    """How often payloads are got in a round: one of each fragment, and one of the embedding besides."""

    of_each: int = 0
    of_embed: int = 0

    def __add__(self, other: _Gets) -> _Gets:
        return _Gets(self.of_each + other.of_each, self.of_embed + other.of_embed)


class Predictor:
    """The prediction of one run, round by round."""

    def __init__(self, config: Config, facts: RunFacts) -> None:
        self._config = config
        self._facts = facts
        self._fragments = {name: fragment.parameters for name, fragment in facts.fragments.items()}
        self._members = members_of(config, self._fragments)
        self._relays = config.exchange.route == "relay"
        self._messages_like: dict[tuple[int, ...], MessageBytes] = {}

    def pseudo_gradient(self, row: RoundRow) -> int | None:
        """(1), for one round; None where the codec says nothing of its payloads."""
        sizes = self._sizes(row.round)
        if sizes is None:
            return None
        gets = sum((self._gets(row, name) for name in row.listeners), _Gets())
        puts = len(row.contributors) if self._relays else 0
        of_each = gets.of_each * sum(_stream(size, "get") for size in sizes.values())
        return (
            of_each
            + gets.of_embed * _stream(sizes.get(EMBED, 0), "get")
            + puts * sum(_stream(n, "put") for n in sizes.values())
        )

    def of_all(self, rows: Sequence[RoundRow]) -> dict[str, int | None]:
        """Bytes of every kind, all rounds together; None where something that they depend on is unknown."""
        told = self._told(rows)
        found: dict[str, int | None] = {kind: told[kind] or self._nothing(kind) for kind in TOLD}
        exchanged = [self.pseudo_gradient(row) for row in rows]
        found["pseudo_gradient"] = None if None in exchanged else sum(n for n in exchanged if n is not None)
        found["state_transfer"] = self._state_transfer(rows)
        found["intra_replica"] = found["control"] = None
        if rows and self._sizes(1) is not None:
            among = self._among_ranks(rows)
            found["intra_replica"] = told["intra_replica"] + among.num_bytes
            found["control"] = told["control"] + among.tensors * RECEIPT_BYTES + self._control(rows)
        return found

    def _nothing(self, kind: str) -> int | None:
        """What is known when nothing was told: none is sent, where no replica is of the form that sends such."""
        is_all_to_all = kind == "sequence_all_to_all"
        senders = (m for m in self._members.values() if m.ranks > 1 and m.is_pipeline != is_all_to_all)
        return None if any(senders) else 0

    # ---- the exchange ----

    def _sizes(self, round_number: int) -> dict[str, int] | None:
        sizes = self._facts.predicted_payloads_bytes(round_number)
        return None if sizes is None else dict(zip(self._fragments, sizes, strict=True))

    def _member(self, name: str) -> Member:
        return self._members.get(name) or stranger(name, self._fragments)

    def _gets(self, row: RoundRow, name: str) -> _Gets:
        """How often one member gets the payloads of a round."""
        member, present = self._member(name), name in row.contributors
        others = len(row.contributors) - present
        return _Gets(others, others * member.more_embeds + present * member.stages_elsewhere)

    # ---- what members told ----

    def _told(self, rows: Iterable[RoundRow]) -> Counter[str]:
        """(2)"""
        told = Counter[str]()
        for row in rows:
            told.update(row.predicted_bytes)
        return told

    def _state_transfer(self, rows: Iterable[RoundRow]) -> int | None:
        """(6)"""
        taken, told = Counter[str](), dict[str, int]()
        for row in rows:
            for name, figures in row.health.items():
                now, before = int(figures.get(SNAPSHOTS, 0)), told.get(name, 0)
                taken[name] += now - before if now >= before else now  # a process that was started again counts anew
                told[name] = now
        if not (times := sum(n * self._member(name).ranks for name, n in taken.items())):
            return 0
        file_bytes = self._facts.snapshot_bytes
        if file_bytes is None:
            return None
        return times * sum(stream_bytes(n) for n in (*parts_bytes(file_bytes), index_bytes(file_bytes)))

    # ---- control ----

    def _control(self, rows: Sequence[RoundRow]) -> int:
        """(7), but for receipts."""
        names = {name for row in rows for name in row.listeners}
        total = sum(join_bytes(name, self._member(name).ranks) for name in names)
        every, last = self._config.checkpoint.every_rounds, rows[-1].round
        for row in rows:
            messages = self._messages(row)
            total += messages.control_bytes(len(row.contributors), len(row.listeners))
            total += sum(self._applied(row, name) + MESSAGE_HEADER_BYTES for name in row.listeners)
            total += self._requests(row)
            if row.round % every == 0 and row.round < last:
                total += sum(offer_bytes(row.round) for name in row.listeners if self._member(name).ranks == 1)
        return total + HEARTBEAT_BYTES * self._heartbeats(rows)

    def _requests(self, row: RoundRow) -> int:
        total = 0
        for name in row.listeners:
            gets = self._gets(row, name)
            requests = gets.of_each * len(self._fragments) + gets.of_embed
            total += requests * _request_bytes(len(name), row.round.bit_length())
        if self._relays:
            sizes = self._sizes(row.round) or {}
            total += sum(put_bytes(name, row.round, size) for name in row.contributors for size in sizes.values())
        return total

    def _heartbeats(self, rows: Sequence[RoundRow]) -> int:
        """One for each heartbeat_s in which a member had nothing else to say, by the coordinator's marks."""
        beats, heard_s = 0, dict[str, float]()
        for row in rows:
            for name in row.listeners:
                marks = (row.reported_at_s, row.acknowledged_at_s, row.applied_at_s)
                for at_s in (mark[name] for mark in marks if name in mark):
                    silent_s = at_s - heard_s.get(name, at_s if row.opened_at_s is None else row.opened_at_s)
                    beats += max(0, int(silent_s / self._config.exchange.heartbeat_s))
                    heard_s[name] = at_s
        return beats

    def _messages(self, row: RoundRow) -> MessageBytes:
        """The messages of a round, worked out once for all that are alike."""
        alike = (len(row.contributors), len(row.listeners), row.round.bit_length())
        if alike not in self._messages_like:
            self._messages_like[alike] = message_bytes(self._shape(row))
        return self._messages_like[alike]

    def _shape(self, row: RoundRow) -> RoundShape:
        ranks = {name: 1 if self._relays else self._member(name).ranks for name in row.listeners}
        return RoundShape(
            round=row.round,
            contributors=row.contributors,
            holders=() if self._relays else tuple(name for name in row.listeners for _ in range(ranks[name])),
            payloads_bytes=tuple((self._sizes(row.round) or {}).items()),
            lease_tokens=self._config.steps_per_round * self._config.inner.batch_tokens,
            reported=REPORTED,
        )

    def _applied(self, row: RoundRow, name: str) -> int:
        figures = [*(phase for phase in row.phase_s.get(name, {}) if phase not in REPORTED), *row.told.get(name, {})]
        return applied_bytes(len(figures), sum(map(len, figures)))

    # ---- among the ranks of a replica ----

    def _among_ranks(self, rows: Sequence[RoundRow]) -> _Among:
        """(3) to (5), and what the ranks compare at the start."""
        total, fitted = _Among(), Counter[str]()
        for name in sorted({name for row in rows for name in row.listeners}):
            if (member := self._member(name)).ranks > 1:
                total += self._start_and_end(member)
        for row in rows:
            for member in map(self._member, row.listeners):
                if member.ranks > 1:
                    total += self._round_among(member, row)
                    if self._fits(member) and fitted[member.id] < FITS:
                        fitted[member.id] += 1
                        total += self._fit(member)
        return total

    def _round_among(self, member: Member, row: RoundRow) -> _Among:
        messages, shape = self._messages(row), self._shape(row)
        heard = sum(
            (_broadcast(member, SIGN_BYTES + n) for n in (messages.plan, messages.proposal, messages.commit)), _Among()
        )
        report = max(rank_report_bytes(shape, owned) for owned in member.owned)
        lengths = (report, messages.acknowledge, self._applied(row, member.id))
        said = sum((_gathered(member, n) for n in lengths), _Among())
        parameters = 0 if member.is_pipeline else (member.ranks - 1) * VALUE_BYTES * sum(self._fragments.values())
        return heard + said + self._digests(member) + _Among(parameters)

    def _start_and_end(self, member: Member) -> _Among:
        """Where all resume and are to be found, whether they agree; that the run is over."""
        resume = _gathered(member, NUMBER_BYTES)
        addresses = _gathered(member, 0 if self._relays else ADDRESS_BYTES)
        over = _broadcast(member, SIGN_BYTES + FINISH_BYTES)
        terms = _compared(member, TERMS_BYTES) if member.is_pipeline and member.over_grpc else _Among()
        return resume + addresses + terms + self._digests(member) + over

    def _digests(self, member: Member) -> _Among:
        most = max(len(owned) for owned in member.owned)
        return _gathered(member, SLOT_BYTES * most)

    def _fits(self, member: Member) -> bool:
        return any(replica.id == member.id and replica.basis == "fitted" for replica in self._config.replica)

    def _fit(self, member: Member) -> _Among:
        """A basis that is fitted after a round: what each stage saw, the basis, and that all have the same."""
        replica = next(one for one in self._config.replica if one.id == member.id)
        rank_k = replica.rank_k or self._facts.model.default_rank_k or 0
        hidden_size = self._facts.model.hidden_size or 0
        told = _gathered(member, directions_bytes(rank_k, hidden_size))
        return told + _broadcast(member, basis_bytes(rank_k, hidden_size)) + _compared(member, TERMS_BYTES)


def _broadcast(member: Member, num_bytes: int) -> _Among:
    """(3)"""
    others = member.ranks - 1
    if not member.over_grpc:
        return _Among(others * (LENGTH_BYTES + num_bytes))
    return _Among(others * (_tensor(1, "int64") + _tensor(num_bytes, "uint8")), 2 * others)


def _gathered(member: Member, num_bytes: int) -> _Among:
    """(4); who has nothing to say says a zero."""
    others, num_bytes = member.ranks - 1, max(1, num_bytes)
    if not member.over_grpc:
        return _Among(member.ranks * others * (LENGTH_BYTES + num_bytes))
    lengths, contents = (_compared(member, n) for n in (LENGTH_BYTES, num_bytes))
    return lengths + contents


def _compared(member: Member, num_bytes: int) -> _Among:
    """As much from each rank to all, of one length: gloo does not count it."""
    times = member.ranks * (member.ranks - 1)
    return _Among(times * _tensor(num_bytes, "uint8"), times) if member.over_grpc else _Among()


def _tensor(count: int, dtype: str) -> int:
    return tensor_bytes(TensorHeader(LANE, COLLECTIVE_TAG, dtype, (count,)))


@lru_cache(maxsize=1024)
def _request_bytes(name_letters: int, round_bits: int) -> int:
    return get_bytes("r" * name_letters, (1 << round_bits) - 1)


_stream = lru_cache(maxsize=4096)(stream_bytes)
