"""What the end of a process means for the run: a pure decision over who has ended and how."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.members import COORDINATOR
from launcher.restarts import CONFIG_ERROR

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Verdict:
    """The run is over, for `exit_code`; `reason` is empty when it is complete."""

    exit_code: int
    reason: str = ""

    @property
    def remedy(self) -> str:
        """What to do now that it is over too early."""
        return (
            "Mend what is said above, and launch it again"
            if self.exit_code == CONFIG_ERROR
            else "Launch it again to resume"
        )


def judge(exits: Mapping[str, int], replicas: tuple[str, ...], min_replicas: int) -> Verdict | None:
    """Whether the run is over by the exit codes so far; None while it goes on."""
    everybody_ended = COORDINATOR in exits and all(replica in exits for replica in replicas)
    if exits.get(COORDINATOR) == 0 and any(exits.get(replica) == 0 for replica in replicas):
        return Verdict(exit_code=0) if everybody_ended else None  # the work is done, whoever fell behind
    if exits.get(COORDINATOR, 0) != 0:
        return Verdict(exit_code=_own_code([exits[COORDINATOR]]), reason="its coordinator has ended")
    failed = [replica for replica in replicas if exits.get(replica, 0) != 0]
    if len(replicas) - len(failed) < min_replicas:
        return Verdict(
            exit_code=_own_code([exits[replica] for replica in failed]), reason=_too_few(failed, replicas, min_replicas)
        )
    return Verdict(exit_code=0) if everybody_ended else None


def is_finishing(exits: Mapping[str, int], replicas: tuple[str, ...]) -> bool:
    """Whether the run's work is done, and the rest has only to close its files."""
    return COORDINATOR in exits or all(replica in exits for replica in replicas)


def exit_text(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (was memory short?)" if -code == signal.SIGKILL else "")


def _too_few(failed: list[str], replicas: tuple[str, ...], min_replicas: int) -> str:
    left = len(replicas) - len(failed)
    return f"{left} of {len(replicas)} replicas are left, and exchange.min_replicas = {min_replicas}"


def _own_code(child_codes: list[int]) -> int:
    """A config error found by a child is a config error of the launch; everything else is 1."""
    return CONFIG_ERROR if CONFIG_ERROR in child_codes else 1
