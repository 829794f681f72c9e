"""What a launch would start, said without starting it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from launcher.members import commands
from launcher.standing import committed_rounds, standing

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory


def describe(config: Config, directory: RunDirectory, *, as_json: bool) -> str:
    """The processes of a launch, as JSON or as shell lines; ConfigError where the launch would be refused."""
    plan = _plan(config, directory)
    return json.dumps(plan, indent=2) if as_json else _as_text(plan)


def _plan(config: Config, directory: RunDirectory) -> dict[str, Any]:
    processes = [
        {
            "member": command.member,
            "command": list(command.arguments),
            "environment": dict(command.environment),
            "log": str(command.log),
        }
        for command in commands(config, directory)
    ]
    return {
        "run": config.run.name,
        "directory": str(directory.path),
        "standing": standing(config, directory).value,
        "config_digest": config.digest(),
        "rounds": config.rounds,
        "rounds_committed": committed_rounds(directory),
        "processes": processes,
    }


def _as_text(plan: dict[str, Any]) -> str:
    lines = [f"{plan['run']} in {plan['directory']}: {plan['standing']}, {plan['rounds']} rounds"]
    for process in plan["processes"]:
        environment = [f"{key}={value}" for key, value in process["environment"].items()]
        lines += ["", f"{process['member']}  (log: {process['log']})"]
        lines.append("  " + " ".join([*environment, shlex.join(process["command"])]))
    return "\n".join(lines)
