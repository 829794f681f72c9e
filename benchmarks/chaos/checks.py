"""What a history must not contain, found from the history alone. Each check yields a sentence for each violation.

agreement        whoever applied a round held the same parameters after it, and applied the same contributions
applied_once     within one process a replica goes from a round to the next: none left out, none twice
commits          rounds 1, 2, 3 … are committed, each once, at rising times
leases           what rounds consumed, what came back and what is still held make up the stream: no gap, no overlap
faults           every fault fired, and was lifted
recovery         after a fault the run commits again, and the victim contributes again, within the bounds
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from benchmarks.chaos.history import Record

Check = Callable[[Sequence[Record]], Iterator[str]]
APPLIED = re.compile(r"round (\d+): applied (.+), parameters ([0-9a-f]+)")
STANDS_AT = re.compile(r"(?:resuming from the checkpoint of|beginning after) round (\d+)")
COORDINATOR = "coordinator"


def violations(records: Sequence[Record]) -> list[str]:
    """Everything that is wrong with a history, each as "check: what"."""
    return [f"{name}: {what}" for name, check in CHECKS.items() for what in check(records)]


def agreement(records: Sequence[Record]) -> Iterator[str]:
    """Violations of: the same parameters and the same contributions at everybody who applied a round."""
    digests, lists = defaultdict[int, dict[str, str]](dict), defaultdict[int, dict[str, str]](dict)
    committed = {r["round"]: ", ".join(r["contributors"]) for r in _kind(records, "round")}
    for record in _kind(records, "log"):
        if (said := APPLIED.match(record["message"])) is not None:
            number, member = int(said[1]), _who(record)
            digests[number][member] = said[3]
            lists[number][member] = said[2]
    for number, held in sorted(digests.items()):
        if len(set(held.values())) > 1:
            yield f"after round {number} they hold {held}"
    for number, applied in sorted(lists.items()):
        for member, contributors in applied.items():
            if contributors != committed.get(number):
                yield f"{member} applied round {number} of {contributors}, committed is {committed.get(number)}"
    for record in _kind(records, "round"):
        if record["agreed"] is False and len(set(digests[record["round"]].values())) == 1:
            yield f"the coordinator heard of different parameters after round {record['round']}"


def applied_once(records: Sequence[Record]) -> Iterator[str]:
    """Violations of: a process applies the round after the one at which it stands, and no other."""
    stands_at: dict[str, int] = {}
    for record in _kind(records, "log"):
        member = _who(record)
        if (said := STANDS_AT.match(record["message"])) is not None:
            stands_at[member] = int(said[1])
        elif (said := APPLIED.match(record["message"])) is not None:
            before, number = stands_at.get(member, 0), int(said[1])
            if number != before + 1:
                yield f"{member} applied round {number} after round {before}"
            stands_at[member] = number


def commits(records: Sequence[Record]) -> Iterator[str]:
    """Violations of: rounds are committed in order, each once, and time does not run backwards."""
    rounds = _kind(records, "round")
    numbers = [record["round"] for record in rounds]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the committed rounds are {numbers}"
    for before, after in pairwise([record for record in rounds if record["at"] is not None]):
        if after["at"] < before["at"]:
            yield f"round {after['round']} was committed before round {before['round']}"
    for record in rounds:
        if sorted(record["leases"]) != sorted(record["contributors"]):
            yield f"round {record['round']} of {record['contributors']} consumes leases of {sorted(record['leases'])}"


def leases(records: Sequence[Record]) -> Iterator[str]:
    """Violations of: every token that was handed out was consumed once, came back, or is still held."""
    streams = _kind(records, "stream")
    if len(streams) != 1:
        yield f"{len(streams)} records say how far the corpus was handed out"
        return
    (stream,) = streams
    per_epoch, (epoch, position) = stream["tokens_per_epoch"], stream["position"]
    owned = [(*segment, "what came back") for segment in stream["returned"]]
    owned += [(*segment, "what is held") for segment in stream["held"]]
    for record in _kind(records, "round"):
        for replica, lease in record["leases"].items():
            owned += [(*segment, f"{replica} in round {record['round']}") for segment in lease]
    at = 0
    for number, start, stop, owner in sorted(owned):
        begins, ends = number * per_epoch + start, number * per_epoch + stop
        if begins != at:
            what = "lost" if begins > at else "consumed twice"
            yield f"{abs(begins - at)} tokens {what} before {number}:{start}, {owner}"
        at = max(at, ends)
    if at != epoch * per_epoch + position:
        yield f"the last owner ends at token {at}, and {epoch}:{position} was reached"


def faults(records: Sequence[Record]) -> Iterator[str]:
    """Violations of: every fault fired and was lifted."""
    for record in _kind(records, "fault"):
        name = f"{record['fault']} of {record['victim']}"
        if not record["evidence"]:
            yield f"{name} did not fire"
        if record["lifted_at"] is None:
            yield f"{name} could not be lifted"


def recovery(records: Sequence[Record]) -> Iterator[str]:
    """Violations of: the run commits within a bound of each fault, and the victim contributes within another."""
    header = records[0]
    rounds = [record for record in _kind(records, "round") if record["at"] is not None]
    over_at = max((record["at"] for record in _kind(records, "phase") if record["phase"] == "end"), default=None)
    for record in _kind(records, "fault"):
        name = f"{record['fault']} of {record['victim']}"
        again = [r["at"] for r in rounds if r["at"] > record["at"]]
        if _too_late(again, record["at"], header["commit_bound_s"], over_at):
            yield f"no round was committed within {header['commit_bound_s']:g} s of the {name}"
        if record["lifted_at"] is None or record["fault"] in ("leave", "coordinator"):
            continue
        back = [r["at"] for r in rounds if r["at"] > record["lifted_at"] and record["victim"] in r["contributors"]]
        if _too_late(back, record["lifted_at"], header["return_bound_s"], over_at):
            bound_s = header["return_bound_s"]
            yield f"{record['victim']} did not contribute within {bound_s:g} s of the end of its {record['fault']}"


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (agreement, applied_once, commits, leases, faults, recovery)
}


def recovery_times_s(records: Sequence[Record]) -> dict[str, list[float]]:
    """For each kind of fault, the seconds from its injection to the next commit."""
    rounds = [record["at"] for record in _kind(records, "round") if record["at"] is not None]
    taken = defaultdict[str, list[float]](list)
    for record in _kind(records, "fault"):
        later = [at - record["at"] for at in rounds if at > record["at"]]
        if later:
            taken[record["fault"]].append(min(later))
    return dict(taken)


def _too_late(moments: Sequence[float], since: float, bound_s: float, over_at: float | None) -> bool:
    """Whether the first moment came later than the bound; none at all is too late unless the run was over before."""
    if moments:
        return min(moments) > since + bound_s
    return over_at is None or over_at > since + bound_s


def _kind(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _who(record: Record) -> str:
    return f"{record['member']}#{record['number']}"
