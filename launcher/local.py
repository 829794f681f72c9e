"""A run from this machine: the coordinator and all replicas as its child processes, watched until the run is over.

Under `launch.backend = "ssh"` some of the children stand for processes on other machines: see `ssh`.

1. Start the coordinator and wait until it announces its address.
2. Start the replicas with it.
3. Take events as they come (exits, signals, the coordinator's status) until `verdict.judge` says that the run is over.
4. End and reap whatever is left, however 1 to 3 went.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from dist_train.config import ConfigError
from dist_train.report.metrics import MetricsTail
from dist_train.report.quantities import loss_text
from launcher import members
from launcher.backend import Rendering, run_to_its_end
from launcher.failures import LaunchError
from launcher.lock import hold_lock
from launcher.logs import last_error
from launcher.members import COORDINATOR
from launcher.network import RealNetwork, SimulatedNetwork
from launcher.progress import Progress, RunStatus
from launcher.restarts import LOST_HOST, Restarts
from launcher.standing import Standing, settle
from launcher.supervisor import Announced, Exited, Interrupted, Supervisor, Told
from launcher.verdict import Verdict, exit_text, is_finishing, judge

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory
    from launcher.network import Network
    from launcher.status import StatusPoller
    from launcher.supervisor import Command, Event
    from launcher.view import View

LOOK_EVERY_S = 1.0
# From starting the coordinator to its announcement: imports from a cold disk take most of it.
STARTUP_DEADLINE_S = 120.0
# From the end of the work to the end of the last process: a checkpoint of a large model may be on its way to the disk.
FINISH_DEADLINE_S = 300.0
STOP_GRACE_S = 10.0
INTERRUPTED_CODE = 130
# The coordinator's name of the phase in which it waits for all replicas.
GATHERING = "gather"
# What the view's sparkline and estimate look back on.
ROUNDS_SHOWN = 64


def launch(config: Config, directory: RunDirectory, view: View, network: Network | None = None) -> int:
    """Runs, or goes on with, the run of `config` in `directory`; the exit code. Expected errors: see `failures`."""
    return run_to_its_end(LocalBackend(config, directory, view, network))


class LocalBackend:
    """Runs, or goes on with, a run by child processes."""

    def __init__(self, config: Config, directory: RunDirectory, view: View, network: Network | None = None) -> None:
        self.config, self.directory, self.view = config, directory, view
        self.network = network or RealNetwork()
        self._stack = ExitStack()
        self._run: _LocalRun | None = None
        members.replica_ids(config)

    def render(self) -> Rendering:
        """The coordinator, and each process of a replica; the coordinator's address is known only when it is up."""
        commands = [members.coordinator_command(self.config, self.directory)]
        for replica in members.replica_ids(self.config):
            commands += members.replica_commands(self.config, self.directory, replica, "HOST:PORT")
        return Rendering(tuple(self.network.equip(command) for command in commands))

    def start(self) -> None:
        """Starts everything, unless the run is complete."""
        config, directory = self.config, self.directory
        lock = self._stack.enter_context(hold_lock(directory.path))
        found = settle(config, directory, self.view.say)
        if found is Standing.COMPLETE:
            return
        self.begin(is_new=found is not Standing.RESUMED)
        if not isinstance(self.network, SimulatedNetwork):
            directory.simulation.unlink(missing_ok=True)  # what was reached on those links is no longer all there is
        supervisor = Supervisor(grace_s=STOP_GRACE_S)
        # Signals stay events until the last child is reaped.
        self._stack.enter_context(supervisor.interrupts())
        self._stack.enter_context(supervisor)
        self._run = _LocalRun(config, directory, self.view, supervisor, lock=lock, network=self.network)
        self._run.start()

    def begin(self, *, is_new: bool) -> None:
        """What else is to be done before the first process of a run, or of its resumption."""

    def watch(self) -> int:
        """Waits until the run is over; the exit code."""
        return self._run.watch() if self._run is not None else 0

    def stop(self) -> None:
        """Ends and reaps whatever is left."""
        self._stack.close()


class _LocalRun:
    """The course of one launch, from its first process to its verdict."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        view: View,
        supervisor: Supervisor,
        *,
        lock: int,
        network: Network,
    ) -> None:
        self.config, self.directory, self.view, self.supervisor = config, directory, view, supervisor
        self.network = network
        self.replicas = members.replica_ids(config)
        processes = {replica.id: replica.processes for replica in config.replica}
        self.restarts = Restarts(
            processes, config.launch.restarts, lost_host_deadline_s=config.launch.lost_host_deadline_s
        )
        self.addresses: tuple[str, str] | None = None
        self.kept_descriptors = (lock,)
        self.log_starts: dict[str, int] = {}
        self.tail = MetricsTail(directory.metrics)
        self.rounds = tuple(self.tail.new_rows())[-ROUNDS_SHOWN:]
        self.status = RunStatus()
        self.finish_by_s: float | None = None
        self.has_said_that_it_waits = False

    def start(self) -> None:
        """Starts everything; after a signal nothing more."""
        with suppress(KeyboardInterrupt):
            address = self._start_coordinator()
            for replica in self.replicas:
                self._start_replica(replica, address)
            way_in = self.network.way_in(address)
            self.view.say(f"{self.config.run.name}: {len(self.replicas)} replicas started, coordinator at {way_in}")
            self.addresses = (way_in, address)

    def watch(self) -> int:
        """Watches to the end; the exit code."""
        if self.addresses is None:
            return self._interrupted()
        try:
            verdict = self._watch(*self.addresses)
        except KeyboardInterrupt:
            return self._interrupted()
        if verdict.exit_code != 0:
            message = f"{self.config.run.name} was stopped: {verdict.reason}. {verdict.remedy}"
            raise ConfigError(message) if verdict.exit_code == 2 else LaunchError(message)
        self.view.say(_complete(self.config))
        for last in self.rounds[-1:]:
            self.view.say(f"last round: loss {loss_text(last.loss)}, validation {loss_text(last.validation_loss)}")
        self.view.say(_what_next(self.directory))
        return 0

    @property
    def progress(self) -> Progress:
        """What the view shows now."""
        return Progress(self.config.run.name, self.config.rounds, self.replicas, self.rounds, self.status)

    def _start_coordinator(self) -> str:
        """Starts the coordinator; the address that it announces."""
        self._start(members.coordinator_command(self.config, self.directory, self.kept_descriptors))
        give_up_s = time.monotonic() + STARTUP_DEADLINE_S
        while (left_s := give_up_s - time.monotonic()) > 0:
            match self.supervisor.next_event(left_s):
                case Announced(text=address):
                    return address
                case Exited(code=code):
                    message = f"the coordinator did not start: {self._last_words(COORDINATOR, code)}"
                    raise ConfigError(message) if code == 2 else LaunchError(message)
                case Interrupted():
                    raise KeyboardInterrupt
        raise LaunchError(
            f"the coordinator announced no address within {STARTUP_DEADLINE_S:g} s; "
            f"see {self.directory.log(COORDINATOR)}"
        )

    def _start_replica(self, replica: str, address: str) -> None:
        for command in members.replica_commands(self.config, self.directory, replica, address, self.kept_descriptors):
            self._start(command)

    def _start(self, command: Command) -> None:
        with self.network.entered(command.member):
            self.log_starts[command.member] = self.supervisor.start(self.network.equip(command))

    def _watch(self, way_in: str, address: str) -> Verdict:
        """Takes events until the run is over. KeyboardInterrupt when a signal ends it.

        The coordinator is at `way_in` for this process, and at `address` for the replicas.
        """
        # gRPC starts threads; the children come first.
        from comms.certificates import OPERATOR
        from dist_train.security import security_of
        from launcher.status import StatusPoller

        with StatusPoller(way_in, security_of(self.config, OPERATOR), self.supervisor.tell) as poller:
            look_at_s = time.monotonic()
            while (verdict := self._verdict()) is None:
                if time.monotonic() >= look_at_s:
                    look_at_s = time.monotonic() + LOOK_EVERY_S
                    self._look(poller)
                    self._start_again(address)
                self._take(self.supervisor.next_event(look_at_s - time.monotonic()))
            self._show_new_rounds()
            return verdict

    def _start_again(self, address: str) -> None:
        """Starts the replicas whose time has come; while the run's work goes on."""
        if COORDINATOR in self.supervisor.exits:
            return
        self.restarts.plan(self.supervisor.exits, time.monotonic())
        for replica in self.restarts.take_due(time.monotonic()):
            self.view.say(f"replica {replica} is {self.restarts.told(replica)}")
            self._start_replica(replica, address)

    def _verdict(self) -> Verdict | None:
        if COORDINATOR not in self.supervisor.exits:
            self.restarts.plan(self.supervisor.exits, time.monotonic())
        exits = self.restarts.final(self.supervisor.exits)
        verdict = judge(exits, self.replicas, self.config.exchange.min_replicas)
        if verdict is None and is_finishing(exits, self.replicas):
            self.finish_by_s = self.finish_by_s or time.monotonic() + FINISH_DEADLINE_S
            if time.monotonic() >= self.finish_by_s:
                late = ", ".join(sorted(self.supervisor.running))
                return Verdict(1, f"{late} did not end within {FINISH_DEADLINE_S:g} s after the others")
        return verdict

    def _take(self, event: Event | None) -> None:
        match event:
            case Exited(member=member, code=0) if member == COORDINATOR:
                # Who was started again and is not through by now has nobody left to ask.
                self.restarts.give_up()
                again = self.restarts.started_again
                late = {process for replica in again for process in self.restarts.processes[replica]}
                self.supervisor.end(late & self.supervisor.running)
            case Exited(member=member, code=code) if code != 0:
                self.view.say(f"{self._name(member)} {self._last_words(member, code)}")
                self._say_who_is_waited_for()
                self.supervisor.end(self.restarts.left_behind(member, self.supervisor.running))
            case Interrupted():
                raise KeyboardInterrupt
            case Told(news=RunStatus() as status):
                self.status = status.naming(self.replicas, self.restarts.final(self.supervisor.exits))

    def _say_who_is_waited_for(self) -> None:
        """Once: a run that begins, or resumes, waits for everybody for a while."""
        if self.status.phase == GATHERING and not self.has_said_that_it_waits:
            self.has_said_that_it_waits = True
            deadline_s = self.config.exchange.gather_deadline_s
            self.view.say(
                f"rounds begin when all replicas are there, or after exchange.gather_deadline_s = {deadline_s:g} s"
            )

    def _name(self, member: str) -> str:
        replica = self.restarts.replica_of(member)
        if replica is None:
            return "the coordinator"
        return f"replica {replica}" if replica == member else f"stage {member} of replica {replica}"

    def _look(self, poller: StatusPoller) -> None:
        poller.ask()
        self._show_new_rounds()
        self.view.show(self.progress)

    def _show_new_rounds(self) -> None:
        for row in self.tail.new_rows():
            # A restarted coordinator may write a round's row again.
            if row.round > self.progress.committed:
                self.rounds = (*self.rounds, row)[-ROUNDS_SHOWN:]
                self.view.committed(self.progress, row)

    def _last_words(self, member: str, code: int) -> str:
        """How a process ended, what it said last, and where to read on; one line."""
        log = self.directory.log(member)
        error = last_error(log, self.log_starts[member])
        how = "lost its host" if code == LOST_HOST else exit_text(code)
        return f"{how}: {error} (log: {log})" if error else f"{how} (log: {log})"

    def _interrupted(self) -> int:
        self.view.say(f"ending {len(self.supervisor.running)} processes; once more to end them at once")
        self.supervisor.stop()
        self._show_new_rounds()
        self.view.say(f"stopped after round {self.progress.committed}; launch it again to resume")
        return INTERRUPTED_CODE


def _complete(config: Config) -> str:
    return f"{config.run.name} is complete: all {config.rounds} rounds are committed"


def _what_next(directory: RunDirectory) -> str:
    return f"next: dist-train report {directory.path}   |   dist-train export {directory.path} OUT_DIR"
