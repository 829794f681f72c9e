"""What is done to a run, and how one knows that it was done.

Each fault injects itself, waits until there is evidence that it fired, lasts a while, and is lifted; it returns the
record of all that. Evidence comes from the kernel, from a failpoint's log or from how the others react, never from our
having called something.

    kill         SIGKILL, and started again                exit code -9
    pause        SIGSTOP, SIGCONT                          the kernel says stopped; rounds are committed without it
    coordinator  SIGKILL, started again where it was       exit code -9
    partition    its cable pulled, and plugged in          the link is down; rounds are committed without it
    corrupt      a bit of its next payload flips           the failpoint's log; the coordinator refuses it by name
    disk-full    its files may not grow; started again     it ended by itself, and not well
    join, leave  somebody the config does not name         the coordinator lets it in; it ends by SIGTERM
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.chaos.history import Record
from benchmarks.chaos.members import COORDINATOR, Members

PATIENCE_S = 20.0
NEWCOMER = "newcomer"


@dataclass
class Attack:
    """One fault on its way: whom it hits, how long it lasts, and what is known of it so far."""

    members: Members
    fault: str
    victim: str
    lasts_s: float
    began: int = field(init=False)
    at: float = field(init=False)
    evidence: str = ""

    def __post_init__(self) -> None:
        self.began, self.at = len(self.members.history.records), time.time()

    def hears(self, member: str, *words: str) -> bool:
        """Waits until a member has said all of these words in one line since the fault began."""

        def matches(record: Record) -> bool:
            said = record["kind"] == "log" and record["member"] == member and record["at"] >= self.at
            return said and all(word in record["message"] for word in words)

        return self.members.history.wait(matches, PATIENCE_S, self.began) is not None

    def sees_commit_without(self) -> bool:
        """Waits until a round is committed without the victim."""

        def matches(record: Record) -> bool:
            if record["kind"] != "log" or record["member"] != COORDINATOR or record["at"] < self.at:
                return False
            _, is_commit, contributors = record["message"].partition(": committed with ")
            return bool(is_commit) and self.victim not in contributors.split(", ")

        return self.members.history.wait(matches, PATIENCE_S, self.began) is not None

    def lifted(self, *, well: bool = True) -> None:
        """Writes the fault down; `well` says whether it could be lifted."""
        self.members.history.add(
            "fault", fault=self.fault, victim=self.victim, at=self.at, evidence=self.evidence,
            lifted_at=time.time() if well else None,
        )  # fmt: skip


def kill(attack: Attack) -> None:
    """Kills a replica and starts it again."""
    attack.members.signal(attack.victim, signal.SIGKILL)
    if attack.members.exit_code(attack.victim, PATIENCE_S) == -signal.SIGKILL:
        attack.evidence = "exit code -9"
    time.sleep(attack.lasts_s / 2)
    attack.members.start_replica(attack.victim)
    attack.lifted(well=attack.hears(COORDINATOR, f"{attack.victim} joins from"))


def pause(attack: Attack) -> None:
    """Stops a replica for a while."""
    attack.members.signal(attack.victim, signal.SIGSTOP)
    stopped = _until(lambda: attack.members.is_stopped(attack.victim))
    if stopped and attack.sees_commit_without():
        attack.evidence = "stopped, by the kernel; a round was committed without it"
    time.sleep(max(0.0, attack.at + attack.lasts_s - time.time()))
    attack.members.signal(attack.victim, signal.SIGCONT)
    attack.lifted()


def coordinator(attack: Attack) -> None:
    """Kills the coordinator and starts it again at its address."""
    attack.members.signal(COORDINATOR, signal.SIGKILL)
    if attack.members.exit_code(COORDINATOR, PATIENCE_S) == -signal.SIGKILL:
        attack.evidence = "exit code -9"
    attack.members.start_coordinator()
    attack.lifted(well=attack.hears(COORDINATOR, "resuming after round"))


def partition(attack: Attack) -> None:
    """Cuts a replica off from everybody."""
    cables = attack.members.cables
    if cables is None:
        raise AssertionError("there is no cable to pull")
    is_down = not cables.plug(attack.victim, into_hub=False)
    if is_down and attack.sees_commit_without():
        attack.evidence = "cut off; a round was committed without it"
    time.sleep(max(0.0, attack.at + attack.lasts_s - time.time()))
    attack.lifted(well=cables.plug(attack.victim, into_hub=True))


def corrupt(attack: Attack) -> None:
    """Flips a bit of a payload before it gets its digest."""
    before = len(attack.members.failpoints_fired(attack.victim))
    attack.members.signal(attack.victim, signal.SIGUSR1)
    fired = _until(lambda: len(attack.members.failpoints_fired(attack.victim)) > before)
    if fired and attack.hears(COORDINATOR, f"{attack.victim} is at fault"):
        attack.evidence = f"{attack.members.failpoints_fired(attack.victim)[-1]}; refused by name"
    attack.lifted()


def disk_full(attack: Attack) -> None:
    """Lets no file of a replica grow; when that has ended it, starts it again with room."""
    attack.members.limit_files(attack.victim, 1)
    code = attack.members.exit_code(attack.victim, PATIENCE_S)
    if code is not None and code > 0:
        attack.evidence = f"exit code {code}"
    if code is None:
        attack.lifted(well=False)
        return
    time.sleep(attack.lasts_s / 2)
    attack.members.start_replica(attack.victim)
    attack.lifted(well=attack.hears(COORDINATOR, f"{attack.victim} joins from"))


def join(attack: Attack) -> None:
    """Lets a newcomer join."""
    attack.members.start_newcomer(attack.victim)
    if attack.hears(COORDINATOR, f"{attack.victim} joins from"):
        attack.evidence = "the coordinator let it in"
    attack.lifted()


def leave(attack: Attack) -> None:
    """Lets the newcomer leave again."""
    attack.members.signal(attack.victim, signal.SIGTERM)
    code = attack.members.exit_code(attack.victim, PATIENCE_S)
    if code is not None:
        attack.evidence = f"exit code {code}"
    attack.lifted(well=code is not None)


FAULTS: dict[str, Callable[[Attack], None]] = {
    "kill": kill,
    "pause": pause,
    "coordinator": coordinator,
    "partition": partition,
    "corrupt": corrupt,
    "disk-full": disk_full,
    "join": join,
    "leave": leave,
}


def schedule(seed: int, replicas: list[str], count: int) -> list[tuple[str, str, float]]:
    """`count` faults: kind, victim, seconds. Every kind once before any comes again; join and leave take turns."""
    rng = random.Random(seed)  # noqa: S311 - a seeded schedule
    kinds = [kind for kind in FAULTS if kind not in ("join", "leave")]
    planned: list[tuple[str, str, float]] = []
    is_there = False
    while len(planned) < count:
        for kind in rng.sample([*kinds, "member"], len(kinds) + 1):
            victim = COORDINATOR if kind == "coordinator" else rng.choice(replicas)
            lasts_s = round(rng.uniform(2.0, 5.0), 1)
            if kind == "member":
                planned.append(("leave" if is_there else "join", NEWCOMER, lasts_s))
                is_there = not is_there
            else:
                planned.append((kind, victim, lasts_s))
    return planned[:count]


def _until(holds: Callable[[], bool]) -> bool:
    """Asks again and again; False when it does not hold in time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.02)
    return True
