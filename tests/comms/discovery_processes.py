"""Members of a run that find each other, each in a process of its own: BOOTSTRAP CERTIFICATES NAME...

They are forked after hivemind has been imported once, which costs more than all they do. Each writes a line whenever
what it has found is something new, {"member": ..., "found": {name: address}}; SIGUSR1 makes a member move.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from comms.dht import DhtSettings, import_hivemind
from comms.discovery import Discovery
from comms.multiaddress import LOOPBACK_PORT
from comms.security import Tls
from tests.comms.strangers import RUN

LIFETIME_S = 20.0


def live(name: str, number: int, bootstrap: str, certificates: Path) -> None:
    security = Tls(RUN, name, certificates, certificates / "run.token")
    settings = DhtSettings((bootstrap,), LOOPBACK_PORT)
    moves = list[int]()
    signal.signal(signal.SIGUSR1, lambda *_: moves.append(1))
    with Discovery(RUN, name, security, settings, LIFETIME_S) as discovery:
        discovery.announce(f"127.0.0.1:{7000 + number}")
        last: dict[str, str] = {}
        while True:
            if moves:
                moves.clear()
                discovery.announce(f"127.0.0.1:{8000 + number}")
            found = {member: record.address for member, record in discovery.members().items()}
            if found != last:
                os.write(1, f"{json.dumps({'member': name, 'pid': os.getpid(), 'found': found})}\n".encode())
                last = found
            time.sleep(0.3)


def main() -> None:
    bootstrap, certificates, *names = sys.argv[1:]
    import_hivemind()
    for number, name in enumerate(names):
        if os.fork() == 0:
            live(name, number, bootstrap, Path(certificates))
    for _ in names:
        os.wait()


if __name__ == "__main__":
    main()
