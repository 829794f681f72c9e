"""A coordinator as a process: `python -m tests.comms.coordinator_process FOLDER REPLICAS ADDRESS`; says its address."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.comms.members import CoordinatorThread, rules

if __name__ == "__main__":
    folder, replicas, address = sys.argv[1:]
    coordinator = CoordinatorThread(Path(folder), rules(replicas), address)
    print(coordinator.address, flush=True)
    coordinator.join()
    if coordinator.error is not None:
        raise coordinator.error
