"""Who starts a run's processes: one small interface, and an implementation for each engine.

local        child processes on this machine                                  launcher.local
ssh          the same, some of which stand for processes on other machines    launcher.ssh
slurm        a job of Slurm, or srun inside of one                            launcher.slurm
kubernetes   Jobs of Kubernetes                                               launcher.kubernetes
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory
    from launcher.supervisor import Command
    from launcher.view import View


@dataclass(frozen=True)
class Rendering:
    """What a start would run: exactly that, but for secrets, and for addresses that are known only then."""

    commands: tuple[Command, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """Name and content of what is made for the engine: a script, manifests."""


class Backend(Protocol):
    """One run on one engine. `stop` follows whatever came before, and may come twice."""

    def render(self) -> Rendering:
        """What `start` would run. ConfigError where it would be refused."""
        ...

    def start(self) -> None:
        """Starts the run, or goes on with it."""
        ...

    def watch(self) -> int:
        """Waits until the run is over, and shows it meanwhile; the exit code."""
        ...

    def stop(self) -> None:
        """Ends whatever is left."""
        ...


def run_to_its_end(backend: Backend) -> int:
    """Starts, watches and stops; the exit code. Expected errors: see `failures`."""
    try:
        backend.start()
        return backend.watch()
    finally:
        backend.stop()


def backend_of(config: Config, directory: RunDirectory, view: View) -> Backend:
    """The backend that the config asks for. ConfigError when it can't be used with it."""
    module = importlib.import_module(f"launcher.{config.backend}")
    made: Backend = getattr(module, f"{config.backend.capitalize()}Backend")(config, directory, view)
    return made
