"""The commands that start no run: they tell facts of runs, machines and configs, or write them to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dist_train.config import load, load_kept
from dist_train.run_directory import RunDirectory
from launcher.console import console
from launcher.options import (
    AsJson,
    Bootstrap,
    Certificates,
    Insecure,
    Link,
    Overrides,
    RunDir,
    RunFile,
    goes_with,
    require_folder,
)

app = typer.Typer()


@app.command()
def plan(  # noqa: PLR0917 - a parameter is an option here
    run_file: RunFile,
    overrides: Overrides = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time one layer and the codec on this machine.")] = False,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, metavar="N", help="N replicas like the first one.")
    ] = None,
    link: Link = None,
    bits_per_value: Annotated[
        float | None,
        typer.Option("--bits-per-value", metavar="BITS", min=0.01, help="Instead of our codec's; 14 as published."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run will send, hold and take, before anything starts; and which machines should share a replica.

    Example: dist-train plan examples/dense.toml --measure --replicas 8 --link 50mbit,40ms

    Exit code 1 when something does not fit. See docs/plan.md for the formulas and the JSON.
    """
    from launcher.plan import make, show

    config = load(run_file, overrides or ())
    found = make(config, replicas=replicas, link=link, bits_per_value=bits_per_value, measured=measure)
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

    goes_with("--html", as_html, {"--output": output})
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
    require_folder(out_dir, "OUT_DIR")
    from dist_train.export import export as export_model

    exported_round = export_model(config, RunDirectory(run_dir), out_dir)
    typer.echo(f"round {exported_round} of {run_dir} written to {out_dir}")


@app.command()
def certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where they are kept (security.certificates).")],
    run_file: Annotated[Path | None, typer.Option("--run", metavar="RUN.toml", help="For every member of it.")] = None,
    members: Annotated[list[str] | None, typer.Option("--member", metavar="NAME", help="For these only.")] = None,
    days: Annotated[int, typer.Option("--days", metavar="N", help="How long they are good.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Make or renew what mutual TLS needs: an authority, a join token, a certificate for each member.

    Example: dist-train certs certs --run examples/demo.toml

    Running members take renewed files up by themselves. See docs/security.md.
    """
    from launcher.certs import make, members_of

    require_folder(directory, "DIR")
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
    name: Annotated[
        str | None, typer.Option("--id", metavar="NAME", help="The replica that this machine would be.")
    ] = None,
    certificates: Certificates = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Look whether a run would work on this machine, and between it and a coordinator.

    Example: dist-train doctor 10.0.0.1:7000 --id garage --certificates certs

    Exit code 0 when it would, 1 when something would keep it from working. Measures with at most 16 MiB and 5 s each
    way. See docs/doctor.md.
    """
    goes_with("ADDRESS", address is not None, {"--bootstrap": bootstrap})
    from launcher import doctor as practice
    from launcher.doctor import finding, terminal

    config = load(run_file) if run_file is not None else None
    who = practice.patient(address, bootstrap or (), config, name, certificates, insecure=insecure)
    findings = list(practice.examine(who))
    facts = finding.document(who.address or "", findings)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        screen = console()
        screen.print(terminal.table(findings))
        screen.print(terminal.summary(findings))
    raise typer.Exit(0 if facts["ok"] else 1)


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
        reference.print_keys(console(), shown)


@app.command("plan-sequences")
def plan_sequences(  # noqa: PLR0917 - as many as there are options
    lengths: Annotated[
        Path, typer.Argument(metavar="LENGTHS", help="One sequence's length in tokens a line; - for stdin.")
    ],
    ranks: Annotated[int, typer.Option("--ranks", metavar="N", min=1, help="Ranks of the replica.")],
    capacity: Annotated[
        list[int] | None,
        typer.Option(
            "--capacity", metavar="TOKENS", show_default="6449", help="Tokens a rank holds: once, or for each."
        ),
    ] = None,
    speed: Annotated[
        list[float] | None,
        typer.Option("--speed", metavar="X", show_default="1", help="Relative speed: once, or for each rank."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="JSON", show_default="7B on 64 A100-40GB", help="Fitted coefficients."),
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
