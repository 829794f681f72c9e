"""The command line: what a person types, and how it ends.

    run_commands       launch, join, simulate, stop, bootstrap
    fact_commands      plan, report, export, certs, doctor, keys, plan-sequences
    member_commands    what a launch starts, hidden from people

Commands import what they run when they run, so that `--help` and a typing error need neither torch nor gRPC.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from dist_train.config import ConfigError
from dist_train.config.section import nearest
from launcher import fact_commands, member_commands, run_commands
from launcher.failures import PREFIX, exit_code, one_line

# Click's, which newer versions of typer carry inside themselves.
CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


class Commands(typer.core.TyperGroup):
    """The commands; who has mistyped one is told of those that people type."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; ConfigError when there is none."""
        if (command := super().get_command(ctx, cmd_name)) is None:
            typed_by_people = [name for name, known in self.commands.items() if not known.hidden]
            raise ConfigError(f"No such command {cmd_name!r}: {nearest(cmd_name, typed_by_people)}")
        return command


app = typer.Typer(
    cls=Commands,
    help="Pre-train a language model on machines that are joined by ordinary internet links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (run_commands.app, fact_commands.app, member_commands.app):
    app.add_typer(commands)


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


def _usage_error(error: Exception) -> int:
    message = getattr(error, "format_message", lambda: str(error))()
    if message:  # empty when the help has just been printed
        command = getattr(getattr(error, "ctx", None), "command_path", "dist-train")
        typer.echo(f"{PREFIX}{' '.join(message.split()).rstrip('.')} (see {command} --help)", err=True)
    return 2


def _version() -> str:
    try:
        return importlib.metadata.version("dist-train")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed; running from its sources)"
