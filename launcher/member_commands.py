"""The commands that `launch` starts in processes of their own: a member of a run each. Hidden from people's help."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.config.reading import load_kept
from dist_train.run_directory import RunDirectory
from launcher.failures import PREFIX, exit_code, one_line
from launcher.options import Coordinator, RunDir

if TYPE_CHECKING:
    from collections.abc import Callable

    from dist_train.config import Config

logger = logging.getLogger(__name__)
app = typer.Typer()
ReplicaId = Annotated[str, typer.Option("--id", metavar="NAME", help="Which replica of the config this is.")]
Lifeline = Annotated[bool, typer.Option("--lifeline", help="End when stdin closes.")]


@app.command(hidden=True)
def coordinate(
    run_dir: RunDir,
    ready_fd: Annotated[int | None, typer.Option("--ready-fd", help="Where the address is announced.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="In place of exchange.address.")] = None,
    lifeline: Lifeline = False,
) -> None:
    """Run a run's coordinator. `launch` starts it.

    Example: dist-train coordinate runs/demo
    """

    def body() -> None:
        from dist_train.coordination import run_coordinator

        config = load_kept(run_dir, () if address is None else [f"exchange.address={address}"])
        _speak_as(config, "coordinator")
        run_coordinator(config, RunDirectory(run_dir), lambda bound: _announce(bound, ready_fd))

    run_member("coordinator", body, lifeline=lifeline)


@app.command(hidden=True)
def replica(
    run_dir: RunDir,
    replica_id: ReplicaId,
    coordinator: Coordinator,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Which stage of it, by name or number, when it is a pipeline.")
    ] = None,
    lifeline: Lifeline = False,
) -> None:
    """Run one replica. `launch` starts it.

    Example: dist-train replica runs/demo --id a --coordinator 127.0.0.1:5000
    """

    def body() -> None:
        from dist_train.enlist import rank_of, stage_of
        from dist_train.replica import replica_of, run_replica

        config = load_kept(run_dir)
        section = replica_of(config, replica_id)
        named = stage_of(section, stage)
        _speak_as(config, named or replica_id)
        run_replica(config, RunDirectory(run_dir), replica_id, coordinator, rank=rank_of(section, named))

    run_member(stage or replica_id, body, lifeline=lifeline)


@app.command(hidden=True)
def reach(
    run_dir: RunDir,
    replica_id: ReplicaId,
    coordinator: Coordinator,
    stage: Annotated[str | None, typer.Option("--stage", help="Which stage of it, when it is a pipeline.")] = None,
) -> None:
    """Prepare a replica's host over ssh and become the ssh that runs the replica there. `launch` starts it.

    Example: dist-train reach runs/two --id b --coordinator 192.0.2.10:7000
    """

    def body() -> None:
        from launcher.ssh import reach as reach_host

        config = load_kept(run_dir)
        reach_host(config, RunDirectory(run_dir), replica_id, stage or replica_id, coordinator)

    run_member(stage or replica_id, body, lifeline=False)


@app.command(hidden=True)
def attend(
    run_dir: RunDir,
    replica_id: ReplicaId,
    coordinator: Coordinator,
    process: Annotated[str, typer.Option("--process", help="Which stage of it, or the replica itself.")],
    config_digest: Annotated[str, typer.Option("--config-digest", help="Of the config that the launcher has.")],
) -> None:
    """Run a replica on this host for a launcher on another, and end it when that is gone. `reach` starts it.

    Example: dist-train attend two-1a2b --id b --process b --coordinator 192.0.2.10:7000 --config-digest …
    """

    def body() -> None:
        from launcher.attend import attend as attend_member

        config = load_kept(run_dir)
        told = {"coordinator": coordinator, "config_digest": config_digest}
        raise typer.Exit(attend_member(config, RunDirectory(run_dir), replica_id, process, **told))

    run_member(process, body, lifeline=False)


@app.command(hidden=True)
def task(run_dir: RunDir) -> None:
    """Run one task of a Slurm job: a process of a replica, and in the first task the coordinator, too.

    Example: srun dist-train task runs/four
    """

    def body() -> None:
        from launcher.task import run_task

        config = load_kept(run_dir)
        raise typer.Exit(run_task(config, RunDirectory(run_dir)))

    run_member("task", body, lifeline=False)


def run_member(member: str, body: Callable[[], None], *, lifeline: bool) -> None:
    """Runs a member of a run in this process; its errors go to its log, which is stderr."""
    from comms import network
    from launcher import lifeline as ties
    from launcher import logs

    logs.configure(member)
    ties.unwind_on_sigterm()
    if lifeline:
        ties.hold()
    try:
        network.join(member)
        body()
    except typer.Exit:
        raise
    except Exception as error:
        code = exit_code(error)
        if code is None:
            logger.exception("this is a bug in dist-train:")
        else:
            logger.error("%s%s", PREFIX, one_line(error))  # noqa: TRY400 - its line is all there is to say
        raise typer.Exit(code or 1) from None


def _speak_as(config: Config, member: str) -> None:
    from launcher.logs import speak_json

    if config.watch.log_format == "json":
        speak_json(member, config.run.name)


def _announce(address: str, ready_fd: int | None) -> None:
    from launcher.lifeline import announce

    logger.info("listening at %s", address)
    if ready_fd is not None:
        announce(ready_fd, address)
