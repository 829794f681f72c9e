"""The command line: what a person types, and how it ends.

Commands import what they run when they run, so that `--help` and a typing error need neither torch nor gRPC.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from dist_train.config import ConfigError, load, load_kept
from dist_train.run_directory import RunDirectory
from launcher import member_commands
from launcher.failures import PREFIX, exit_code, one_line
from launcher.member_commands import run_member
from launcher.options import Address, AsJson, Bootstrap, Certificates, Insecure, Overrides, RunDir, RunFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


# Click's, which newer versions of typer carry inside themselves.
CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
REPORT_COLUMNS = 100

app = typer.Typer(
    help="Pre-train a language model on machines that are joined by ordinary internet links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(member_commands.app)


def main() -> NoReturn:
    """Runs one command and exits: 0 success, 2 usage or config, 1 anything else, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command; its exit code. Expected errors become one line on stderr, bugs keep their traceback."""
    try:
        code = app(arguments, standalone_mode=False, prog_name="dist-train")
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read our output has read enough. Python must not find the pipe broken again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CLICK_ERROR as error:
        return _usage_error(error)
    except Exception as error:
        expected = exit_code(error)
        if expected is None:
            raise
        typer.echo(PREFIX + one_line(error), err=True)
        return expected
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"dist-train {_version()}")
        raise typer.Exit


@app.command()
def launch(
    run_file: RunFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run, or go on with it: the coordinator and every replica that the file names.

    Example: dist-train launch demo.toml outer.rounds=12 run.directory=runs/short

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
    name: Annotated[str | None, typer.Option("--id", help="The replica's name; this machine's when left out.")] = None,
    directory: Annotated[Path | None, typer.Option("--directory", help="Where it is kept; runs/RUN-ID if not.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")] = "auto",
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
    link: Annotated[
        str | None,
        typer.Option("--link", metavar="RATE,LATENCY", help='Every member\'s: "50mbit,40ms", "10mbit/50mbit".'),
    ] = None,
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

    Example: dist-train simulate demo.toml --link 50mbit,40ms --replica a=10mbit/50mbit

    The same processes as `launch` starts, and the same results. With --virtual as many replicas as you like in one
    process, as fast as it computes:

    Example: dist-train simulate demo.toml --virtual --replicas 16 --tokens-per-s 5000 --link 20mbit,40ms

    With --what-if nothing is trained: a run's measured seconds and bytes, with other links and more replicas:

    Example: dist-train simulate runs/demo --what-if --replicas 10000 --link 20mbit/100mbit,40ms

    See docs/simulate.md for schedules, and for what enforces the limits.
    """
    if what_if:
        _what_if(run_file, replicas, link, lines or (), as_json=as_json)
        return
    if not virtual and (replicas or compute_s or tokens_per_s or like):
        raise ConfigError("--replicas, --compute-s, --tokens-per-s and --like are for --virtual; say that too")
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
    console = _console()
    console.print(table_of(answer))
    for problem in answer.problems:
        console.print(f"problem: {problem}", markup=False)


@app.command()
def plan(  # noqa: PLR0917 - a parameter is an option here
    run_file: RunFile,
    overrides: Overrides = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time one layer and the codec on this machine.")] = False,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, metavar="N", help="N replicas like the first one.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="RATE", help="Everybody's line: 50mbit, 10mbit/50mbit, 50mbit,40ms.")
    ] = None,
    bits_per_value: Annotated[
        float | None, typer.Option("--bits-per-value", min=0.01, help="Instead of our codec's; 14 as published.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run will send, hold and take, before anything starts; and which machines should share a replica.

    Example: dist-train plan examples/dense.toml --measure --replicas 8 --rate 50mbit

    Exit code 1 when something does not fit. See docs/plan.md for the formulas and the JSON.
    """
    from launcher.plan import make, show

    config = load(run_file, overrides or ())
    found = make(config, replicas=replicas, rate=rate, bits_per_value=bits_per_value, measured=measure)
    if as_json:
        typer.echo(found.to_json())
    else:
        show(found)
    raise typer.Exit(1 if any(problem.severity == "error" for problem in found.problems) else 0)


@app.command()
def report(
    run_dir: RunDir,
    *,
    as_json: AsJson = False,
    as_html: Annotated[bool, typer.Option("--html", help="Write one page that holds all it needs.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where the page goes; RUN_DIR/report.html.")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", metavar="RUN_DIR", help="Another run to lay over it; repeatable.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", metavar="FILE", help="Write every transfer as .csv or .parquet.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", metavar="DIR", help="Write the rounds as TensorBoard scalars.")
    ] = None,
) -> None:
    """Show what a run did and what it sent: loss, rounds, traffic by kind against prediction and baselines.

    Example: dist-train report runs/demo --html --compare runs/diloco
    """
    from launcher.report import Wanted
    from launcher.report import report as report_run

    wanted = Wanted(as_json=as_json, as_html=as_html, output=output, ledger=ledger, tensorboard=tensorboard)
    typer.echo(report_run(run_dir, compare or [], wanted))


@app.command()
def export(
    run_dir: RunDir,
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Where the model is written.")],
) -> None:
    """Write a run's model as a Hugging Face directory, for AutoModelForCausalLM.from_pretrained.

    Example: dist-train export runs/demo models/demo
    """
    config = load_kept(run_dir)
    from dist_train.export import export as export_model

    exported_round = export_model(config, RunDirectory(run_dir), out_dir)
    typer.echo(f"round {exported_round} of {run_dir} written to {out_dir}")


@app.command()
def certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where they are kept (security.certificates).")],
    run_file: Annotated[Path | None, typer.Option("--run", metavar="RUN.toml", help="For every member of it.")] = None,
    members: Annotated[list[str] | None, typer.Option("--member", metavar="NAME", help="For these only.")] = None,
    days: Annotated[int, typer.Option("--days", help="How long they are good.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Make or renew what mutual TLS needs: an authority, a join token, a certificate for each member.

    Example: dist-train certs certs --run demo.toml

    Running members take renewed files up by themselves. See docs/security.md.
    """
    from launcher.certs import make, members_of

    wanted = members_of(load(run_file) if run_file is not None else None, members or ())
    typer.echo(make(directory, wanted, days, as_json=as_json))


@app.command()
def doctor(
    address: Annotated[
        str | None,
        typer.Argument(metavar="[ADDRESS]", help="The coordinator's HOST:PORT, or NAME@PEER; none: no network."),
    ] = None,
    *,
    run_file: Annotated[Path | None, typer.Option("--run", metavar="RUN.toml", help="Look for this run.")] = None,
    bootstrap: Bootstrap = None,
    name: Annotated[str | None, typer.Option("--id", help="The replica that this machine would be.")] = None,
    certificates: Certificates = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Look whether a run would work on this machine, and between it and a coordinator.

    Example: dist-train doctor 10.0.0.1:7000 --id garage --certificates certs

    Exit code 0 when it would, 1 when something would keep it from working. Measures with at most 16 MiB and 5 s each
    way. See docs/doctor.md.
    """
    from launcher import doctor as practice
    from launcher.doctor import finding, terminal

    config = load(run_file) if run_file is not None else None
    who = practice.patient(address, bootstrap or (), config, name, certificates, insecure=insecure)
    findings = list(practice.examine(who))
    facts = finding.document(who.address or "", findings)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        console = _console()
        console.print(terminal.table(findings))
        console.print(terminal.summary(findings))
    raise typer.Exit(0 if facts["ok"] else 1)


@app.command()
def bootstrap(
    listen: Annotated[str, typer.Option("--listen", help="Where others reach it.")] = "/ip4/0.0.0.0/tcp/7100",
    identity: Annotated[
        Path, typer.Option("--identity", metavar="FILE", help="Its key, made when missing: keeps its address the same.")
    ] = Path("bootstrap.key"),
    peers: Annotated[list[str] | None, typer.Option("--peer", help="Another bootstrap peer, to be one DHT.")] = None,
) -> None:
    """Run a node by which members of runs find each other. It knows no secrets and trains nothing; Ctrl-C ends it.

    Example: dist-train bootstrap --listen /ip4/0.0.0.0/tcp/7100

    Its first lines are the addresses to put into discovery.bootstrap. See docs/discovery.md.
    """
    from launcher import bootstrap_peer as node

    node.serve(listen, identity, peers or [], say=typer.echo)


@app.command()
def stop(
    run_dir: RunDir,
    coordinator: Annotated[str | None, typer.Option("--coordinator", metavar="HOST:PORT", help="Where it is.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="What the others are told.")] = "no reason was given",
) -> None:
    """End a run for all its members, as its operator; launching it again resumes it.

    Example: dist-train stop runs/demo --coordinator 10.0.0.1:7000 --reason "disk is full"
    """
    from launcher.stop import stop as stop_run

    config = load_kept(run_dir)
    typer.echo(f"the coordinator at {stop_run(config, coordinator, reason)} ends {config.run.name}")


@app.command()
def keys(
    section: Annotated[str | None, typer.Argument(metavar="[SECTION]", help="Only this one's: inner, replica.")] = None,
    *,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/config.md.")] = False,
) -> None:
    """Show the keys that a run's file may have: what each takes, its default and its meaning.

    Example: dist-train keys exchange
    """
    from dist_train.config import reference

    shown = reference.sections() if section is None else (reference.section(section),)
    if as_json or as_markdown:
        typer.echo(reference.to_json(shown) if as_json else reference.to_markdown(shown))
    else:
        reference.print_keys(_console(), shown)


@app.command("plan-sequences")
def plan_sequences(  # noqa: PLR0917 - as many as there are options
    lengths: Annotated[
        Path, typer.Argument(metavar="LENGTHS", help="One sequence's length in tokens a line; - for stdin.")
    ],
    ranks: Annotated[int, typer.Option("--ranks", metavar="N", min=1, help="Ranks of the replica.")],
    capacity: Annotated[
        list[int] | None,
        typer.Option("--capacity", metavar="TOKENS", help="Tokens a rank holds; once, or once a rank. [default: 6449]"),
    ] = None,
    speed: Annotated[
        list[float] | None, typer.Option("--speed", help="A rank's relative speed; once, or once a rank. [default: 1]")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="JSON", help="Fitted coefficients. [default: 7B on 64 A100-40GB]"),
    ] = None,
    planner: Annotated[
        str, typer.Option("--planner", metavar="MODE", help="adaptive, best-homogeneous, or static:D.")
    ] = "adaptive",
    as_json: AsJson = False,
) -> None:
    """Plan one step of sequence parallelism: groups of ranks, what each holds, and how close to the best it is.

    Example: dist-train plan-sequences lengths.txt --ranks 64 --json

    See docs/sequence-planner.md.
    """
    from launcher import sequence_plan

    made = sequence_plan.plan(lengths, calibration, ranks, capacity or [6449], speed or [1.0], planner)
    typer.echo(sequence_plan.as_json(*made) if as_json else sequence_plan.as_text(*made))


def _console() -> Console:
    """A terminal as wide as it is, or a file in which tables keep together."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=REPORT_COLUMNS)


def _usage_error(error: Exception) -> int:
    message = getattr(error, "format_message", lambda: str(error))()
    if message:  # empty when the help has just been printed
        typer.echo(f"{PREFIX}{' '.join(message.split()).rstrip('.')} (see dist-train --help)", err=True)
    return 2


def _version() -> str:
    try:
        return importlib.metadata.version("dist-train")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed; running from its sources)"
