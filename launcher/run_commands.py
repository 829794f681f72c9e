"""The commands that start a run, join it, rehearse it or end it, and the node by which its members find each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.config import load, load_kept
from dist_train.run_directory import RunDirectory
from launcher.console import console
from launcher.member_commands import run_member
from launcher.options import (
    Address,
    AsJson,
    Bootstrap,
    Certificates,
    Insecure,
    Link,
    Overrides,
    RunDir,
    RunFile,
    goes_with,
    goes_without,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer()


@app.command()
def launch(
    run_file: RunFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run, or go on with it: the coordinator and every replica that the file names.

    Example: dist-train launch examples/demo.toml outer.rounds=12 run.directory=runs/short

    On this machine, over ssh, in Slurm or in Kubernetes: see docs/launch.md. Ctrl-C ends all processes and leaves a run
    that the same command resumes.
    """
    from launcher import preflight
    from launcher.backend import backend_of, run_to_its_end
    from launcher.view import PlainView, choose_view

    config = load(run_file, overrides or ())
    directory = RunDirectory(Path(config.run.directory))
    preflight.check(config)
    if dry_run:
        from launcher.dry_run import describe

        rendering = backend_of(config, directory, PlainView()).render()
        typer.echo(describe(config, directory, rendering, as_json=as_json))
        return
    with choose_view(as_json=as_json) as view:
        code = run_to_its_end(backend_of(config, directory, view))
    raise typer.Exit(code)


@app.command()
def join(
    address: Address,
    *,
    bootstrap: Bootstrap = None,
    name: Annotated[
        str | None, typer.Option("--id", metavar="NAME", help="The replica's name; this machine's when left out.")
    ] = None,
    directory: Annotated[Path | None, typer.Option("--directory", help="Where it is kept; runs/RUN-ID if not.")] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1.")] = "auto",
    certificates: Certificates = None,
    token: Annotated[
        Path | None, typer.Option("--token", help="The run's token; CERTIFICATES/run.token if not.")
    ] = None,
    insecure: Insecure = False,
) -> None:
    """Add this machine to a running run, as one more replica. Ctrl-C leaves it.

    Example: dist-train join 10.0.0.1:7000 --id garage --certificates certs

    Or by its name, wherever it is: dist-train join demo@/ip4/192.0.2.1/tcp/7100/p2p/Qm... --certificates certs

    The run must have room: exchange.most_replicas. Joining again with the same directory goes on where it stopped.
    """
    from launcher import join as joining

    who = joining.newcomer(address, name, device, certificates, token, insecure=insecure, bootstrap=bootstrap or ())
    config, run_directory = joining.prepare(who, directory)
    typer.echo(f"joining {config.run.name} at {who.address} as {who.id}, in {run_directory.path}")

    def body() -> None:
        from dist_train.replica import run_replica

        run_replica(config, run_directory, who.id, who.address)

    run_member(who.id, body, lifeline=False)
    typer.echo(f"{config.run.name} is complete")


@app.command()
def simulate(  # noqa: PLR0917 - a parameter is an option here
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run's config; RUN_DIR with --what-if.")],
    overrides: Overrides = None,
    link: Link = None,
    lines: Annotated[
        list[str] | None, typer.Option("--replica", metavar="NAME=RATE", help="One member's line: a=10mbit/50mbit.")
    ] = None,
    virtual: Annotated[bool, typer.Option("--virtual", help="One process, and simulated seconds.")] = False,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="A run that was made, on other links; no training.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, metavar="N", help="So many, with --virtual or --what-if.")
    ] = None,
    compute_s: Annotated[
        list[str] | None, typer.Option("--compute-s", metavar="[NAME=]S", help="Virtual: seconds of a round's steps.")
    ] = None,
    tokens_per_s: Annotated[
        list[str] | None, typer.Option("--tokens-per-s", metavar="[NAME=]T", help="Virtual: a replica's speed.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="RUN_DIR", help="Virtual: as fast as that run's replicas were.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rehearse a run on this machine, over links as slow as those that it is meant for.

    Example: dist-train simulate examples/demo.toml --link 50mbit,40ms --replica a=10mbit/50mbit

    The same processes as `launch` starts, and the same results. With --virtual as many replicas as you like in one
    process, as fast as it computes:

    Example: dist-train simulate examples/demo.toml --virtual --replicas 16 --tokens-per-s 5000 --link 20mbit,40ms

    With --what-if nothing is trained: a run's measured seconds and bytes, with other links and more replicas:

    Example: dist-train simulate runs/demo --what-if --replicas 10000 --link 20mbit/100mbit,40ms

    See docs/simulate.md for schedules, and for what enforces the limits.
    """
    speeds = {"--compute-s": compute_s, "--tokens-per-s": tokens_per_s, "--like": like}
    if what_if:
        goes_without("--what-if", {"--virtual": virtual, **speeds, "section.key=value": overrides})
        _what_if(run_file, replicas, link, lines or (), as_json=as_json)
        return
    goes_with("--virtual", virtual, speeds)
    goes_with("--virtual or --what-if", virtual, {"--replicas": replicas})
    from launcher import preflight
    from launcher.simulate import simulate as run_simulated
    from launcher.simulate import with_options
    from launcher.view import choose_view

    config = load(run_file, overrides or ())
    if virtual:
        from launcher.virtual import paces_of, simulate_virtual, with_replicas

        config = with_replicas(config, replicas)
    config = with_options(config, link, lines or ())
    directory = RunDirectory(Path(config.run.directory))
    preflight.check(config)
    with choose_view(as_json=as_json) as view:
        if virtual:
            paces = paces_of(config, compute_s or (), tokens_per_s or (), like)
            code = simulate_virtual(config, directory, view, paces)
        else:
            code = run_simulated(config, directory, view)
    raise typer.Exit(code)


def _what_if(run_dir: Path, replicas: int | None, link: str | None, lines: Sequence[str], *, as_json: bool) -> None:
    from dist_train.what_if import what_if as answer_of
    from launcher.what_if import links_of, table_of

    answer = answer_of(RunDirectory(run_dir), replicas, links_of(link, lines))
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
        return
    screen = console()
    screen.print(table_of(answer))
    for problem in answer.problems:
        screen.print(f"problem: {problem}", markup=False)


@app.command()
def stop(
    run_dir: RunDir,
    coordinator: Annotated[str | None, typer.Option("--coordinator", metavar="HOST:PORT", help="Where it is.")] = None,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="What the others are told.")
    ] = "no reason was given",
) -> None:
    """End a run for all its members, as its operator; launching it again resumes it.

    Example: dist-train stop runs/demo --coordinator 10.0.0.1:7000 --reason "disk is full"
    """
    from launcher.stop import stop as stop_run

    config = load_kept(run_dir)
    typer.echo(f"the coordinator at {stop_run(config, coordinator, reason)} ends {config.run.name}")


@app.command()
def bootstrap(
    listen: Annotated[
        str, typer.Option("--listen", metavar="MULTIADDRESS", help="Where others reach it.")
    ] = "/ip4/0.0.0.0/tcp/7100",
    identity: Annotated[
        Path, typer.Option("--identity", metavar="FILE", help="Its key, made when missing: keeps its address the same.")
    ] = Path("bootstrap.key"),
    peers: Annotated[
        list[str] | None, typer.Option("--peer", metavar="MULTIADDRESS", help="Another bootstrap peer, to be one DHT.")
    ] = None,
) -> None:
    """Run a node by which members of runs find each other. It knows no secrets and trains nothing; Ctrl-C ends it.

    Example: dist-train bootstrap --listen /ip4/0.0.0.0/tcp/7100

    Its first lines are the addresses to put into discovery.bootstrap. See docs/discovery.md.
    """
    from launcher import bootstrap_peer as node

    node.serve(listen, identity, peers or [], say=typer.echo)
