"""Whatever happens to replicas and coordinator, in whatever order: what must hold holds, and the run gets to its end.

DIST_TRAIN_STEPS sets how many random steps are tried. They are the same ones in every run of the tests.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comms.run_state import Phase
from tests.comms.world import Replica, World, rules

STEPS = int(os.environ.get("DIST_TRAIN_STEPS", "4000"))
STEPS_IN_A_STORY = 50

indices = st.integers(0, 7)


class AnythingHappens(RuleBasedStateMachine):
    """Random faults, in between random progress; at the end all behave, and the run must come to its end."""

    world: World
    refusals = 0

    @initialize(
        replicas=st.integers(2, 4),
        min_replicas=st.integers(1, 3),
        lease_tokens=st.sampled_from([1, 130, 999, 2500]),
        save_every=st.integers(1, 3),
    )
    def begin(self, replicas: int, min_replicas: int, lease_tokens: int, save_every: int) -> None:
        names = "abcd"[:replicas]
        self.world = World(rules(names, rounds=6, min_replicas=min(replicas, min_replicas), lease_tokens=lease_tokens))
        for replica in self.world.replicas.values():
            replica.save_every = save_every

    def _some(self, index: int, candidates: list[Replica]) -> str | None:
        return candidates[index % len(candidates)].name if candidates else None

    def _running(self) -> list[Replica]:
        return [replica for replica in self.world.replicas.values() if replica.is_running]

    # ---- progress ----

    @rule(index=indices)
    def start(self, index: int) -> None:
        if name := self._some(index, [r for r in self.world.replicas.values() if r.mode == "dead"]):
            self.world.start(name)

    @rule(index=indices)
    def connect(self, index: int) -> None:
        if name := self._some(index, [r for r in self._running() if not r.connected]):
            self.world.connect(name)

    @rule(index=indices)
    def say(self, index: int) -> None:
        if name := self._some(index, [r for r in self._running() if r.awake and r.connected and r.outbox]):
            self.world.say(name)

    @rule(index=indices)
    def hear(self, index: int) -> None:
        if name := self._some(index, [r for r in self._running() if r.awake and r.inbox and r.mode != "work"]):
            self.world.hear(name)

    @rule(index=indices)
    def work(self, index: int) -> None:
        if name := self._some(index, [r for r in self._running() if r.awake and r.mode == "work"]):
            self.world.work(name)

    @rule(trains=st.sampled_from(["", "ab", "abc", "abcd"]))
    def everybody_acts(self, trains: str) -> None:
        self.world.act(work=trains)

    @rule(seconds=st.sampled_from([0.5, 3.0, 5.0, 10.0, 21.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # ---- faults ----

    @rule(index=indices)
    def crash(self, index: int) -> None:
        if name := self._some(index, self._running()):
            self.world.crash(name)

    @rule(index=indices, lost_inbound=st.integers(0, 3), lost_outbound=st.integers(0, 1))
    def cut(self, index: int, lost_inbound: int, lost_outbound: int) -> None:
        if name := self._some(index, [r for r in self._running() if r.connected]):
            self.world.cut(name, lost_inbound, lost_outbound)

    @rule(index=indices)
    def fall_asleep_or_wake(self, index: int) -> None:
        if name := self._some(index, self._running()):
            self.world[name].awake ^= True

    @rule(index=indices)
    def leave(self, index: int) -> None:
        if name := self._some(index, [r for r in self._running() if r.connected]):
            self.world.leave(name)

    @rule(index=indices, of=indices)
    def refuse(self, index: int, of: int) -> None:
        reporters = sorted(self.world.state.reports)
        name = self._some(index, self._running())
        if name and reporters:
            report = self.world.state.reports[reporters[of % len(reporters)]]
            self.world[name].refuses.add(report.payloads[0].digest)
            self.refusals += 1

    @rule(now_s=st.sampled_from([0.0, 5.0, 1000.0, 1e6]))
    def restart_coordinator(self, now_s: float) -> None:
        self.world.restart(now_s)

    @precondition(lambda self: self.world.state.phase is Phase.FAILED)
    @rule()
    def run_again(self) -> None:
        self.world.crash(*self.world.replicas)
        self.world.restart()

    # ---- what must hold ----

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        if world.state.phase is not Phase.FAILED:
            world.run_to_the_end()
        if world.state.phase is Phase.FAILED:  # with too few replicas for too long: then it is started again
            self.run_again()
            world.run_to_the_end()
        assert world.state.phase is Phase.DONE, world.state.failure
        assert [replica.round for replica in world.replicas.values()] == [6] * len(world.replicas)
        assert [summary.round for summary in world.summaries] == list(range(1, 7))


TestAnythingHappens = AnythingHappens.TestCase
TestAnythingHappens.settings = settings(
    max_examples=max(1, STEPS // STEPS_IN_A_STORY),
    stateful_step_count=STEPS_IN_A_STORY,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
