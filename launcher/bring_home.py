"""What a host keeps of a run that a report and an export need here: ledgers, facts, steps, the newest parameters.

It comes as a tar file over ssh, and the host may be anybody's: only plain files are taken, and only those with the
names that its own processes may write.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from typing import IO, TYPE_CHECKING

from dist_train.run_directory import replacing
from launcher.restarts import LOST_HOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory

DEADLINE_S = 600.0
NEWEST = "$(ls -d checkpoints/round-*/outer.safetensors 2>/dev/null | sort -V | tail -n 1)"
STEPS = "$(ls steps-*.jsonl 2>/dev/null)"
OUTER = re.compile(r"checkpoints/round-[0-9]{1,9}/outer\.safetensors")


def bring_home(config: Config, directory: RunDirectory, host: str, into: Sequence[str]) -> str:
    """Copies what `host` has into the run directory; what went wrong, in words, if anything.

    `into` is the ssh command that enters the run directory there, still without what is done in it.
    """
    wants_outer = not any(directory.checkpoints.glob("round-*/outer.safetensors"))
    line = f"{into[-1]} && exec tar -cf - ledger run.json {STEPS} {NEWEST if wants_outer else ''} 2>/dev/null"
    try:
        with subprocess.Popen(
            [*into[:-1], line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as ssh:
            if ssh.stdout is None:
                return ""
            try:
                taken = _take(directory, ssh.stdout, _names(config, host))
            finally:
                ssh.stdout.close()
            if ssh.wait(DEADLINE_S) == LOST_HOST:
                return "can't be reached: what it counted is missing in the report until the run is launched again"
    except (OSError, tarfile.TarError, subprocess.TimeoutExpired) as error:
        return f"what it counted could not be brought here: {error}"
    return "" if taken else "has nothing of this run"


def _names(config: Config, host: str) -> frozenset[str]:
    """The files that processes on `host` write, beside checkpoints."""
    names = {"run.json"}
    for replica in config.replica:
        is_alone = replica.ranks == 1 and not replica.pipeline
        ranks = range(len(replica.pipeline) or replica.ranks)
        if host in replica.machines:
            names |= {f"ledger/{replica.id}.jsonl"} if is_alone else {f"ledger/{replica.id}.{r}.jsonl" for r in ranks}
            names |= set() if is_alone else {f"steps-{replica.id}.jsonl"}
    return frozenset(names)


def _take(directory: RunDirectory, stream: IO[bytes], names: frozenset[str]) -> int:
    """Unpacks what may be taken; how many files."""
    taken = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isreg() else None
                if content is not None and (entry.name in names or OUTER.fullmatch(entry.name)):
                    with replacing(directory.path / entry.name) as temporary, temporary.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    taken += 1
    except tarfile.ReadError:
        if not taken:
            return 0  # nothing came: the folder is not there, or the host is not
        raise
    return taken
