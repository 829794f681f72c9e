"""What a launch would start, said without starting it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from launcher.standing import committed_rounds, standing

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory
    from launcher.backend import Rendering


def describe(config: Config, directory: RunDirectory, rendering: Rendering, *, as_json: bool) -> str:
    """The processes and files of a launch, as JSON or as text; ConfigError where the launch would be refused.

    A backend that makes one file has it printed as it is, with what else there is to say in its comments: a script
    that can be handed to sbatch, manifests for kubectl.
    """
    plan = _plan(config, directory, rendering)
    if as_json:
        return json.dumps(plan, indent=2)
    return _as_file(plan) if plan["files"] else _as_text(plan)


def _plan(config: Config, directory: RunDirectory, rendering: Rendering) -> dict[str, Any]:
    processes = [
        {
            "member": command.member,
            "command": list(command.arguments),
            "environment": dict(command.environment),
            "log": str(command.log),
        }
        for command in rendering.commands
    ]
    return {
        "run": config.run.name,
        "directory": str(directory.path),
        "backend": config.backend,
        "standing": standing(config, directory).value,
        "config_digest": config.digest(),
        "rounds": config.rounds,
        "rounds_committed": committed_rounds(directory),
        "processes": processes,
        "files": dict(rendering.files),
    }


def _as_text(plan: dict[str, Any]) -> str:
    lines = [f"{plan['run']} in {plan['directory']}: {plan['standing']}, {plan['rounds']} rounds"]
    for process in plan["processes"]:
        lines += ["", f"{process['member']}  (log: {process['log']})", f"  {_shell_line(process)}"]
    return "\n".join(lines)


def _as_file(plan: dict[str, Any]) -> str:
    contents = list(plan["files"].values())
    said = [f"# {plan['run']} in {plan['directory']}: {plan['standing']}, {plan['rounds']} rounds"]
    said += [f"# {_shell_line(process)}" for process in plan["processes"]]
    first, _, rest = contents[0].partition("\n")
    # A script's first line names its interpreter, and stays the first.
    head = [first, *said, rest] if first.startswith("#!") else [*said, contents[0]]
    return "\n".join([*head, *contents[1:]]).rstrip("\n")


def _shell_line(process: dict[str, Any]) -> str:
    environment = [f"{key}={value}" for key, value in process["environment"].items()]
    return " ".join([*environment, shlex.join(process["command"])])
