"""A run whose replicas are on other machines, each reached by OpenSSH from this one, which has the coordinator.

    launcher ── reach ──(1) ssh HOST: bootstrap, which unpacks the parcel and says what is there
                     └─(2) becomes ssh HOST: attend ── the replica's process

One child of the launcher for each process on a host. What that writes comes back as the child's output, into its log
here. The child's stdin is the process's lifeline: ssh carries a byte over every few seconds, and `attend` ends the
process when they stop coming. ssh itself ends when its host is lost, and then all of this is tried again (`restarts`).

Keys, agents, ports and jump hosts are ssh's own business (ssh_config). Nobody is asked for a password, an unknown host
key is refused, and nothing secret is on a command line.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from comms.address import host_and_port, is_loopback
from comms.errors import CommsError
from dist_train.config import ConfigError
from launcher import members
from launcher.backend import Rendering
from launcher.bring_home import bring_home
from launcher.failures import LaunchError
from launcher.local import LocalBackend
from launcher.network import RealNetwork
from launcher.parcel import code_digest, code_folder, make_parcel, new_run_key, run_folder
from launcher.restarts import LOST_HOST
from launcher.supervisor import Command

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory
    from launcher.view import View

CONNECT_DEADLINE_S = 10
# From the first byte sent to the facts: the code, over a slow link, to a slow disk.
PREPARE_DEADLINE_S = 600.0
# Of the time after which a process without a word from its launcher ends.
BEATS = 6
BOOTSTRAP = "import sys; exec(sys.stdin.buffer.read({length}))"
COMMAND_NOT_FOUND = (126, 127)
logger = logging.getLogger(__name__)


class SshBackend(LocalBackend):
    """Child processes, some of which stand for processes on other machines."""

    def __init__(self, config: Config, directory: RunDirectory, view: View) -> None:
        check(config)
        super().__init__(config, directory, view, Hosts(config))

    def render(self) -> Rendering:
        """As `LocalBackend` does; and below each child that reaches for a host, what that runs there."""
        commands = list[Command]()
        for command in super().render().commands:
            commands.append(command)
            commands += _run_by(self.config, self.directory, command)
        return Rendering(tuple(commands))

    def begin(self, *, is_new: bool) -> None:
        """Makes a new run new on its hosts, too; and has what they keep for a report brought home at the end."""
        if is_new:
            new_run_key(self.directory)
        self._stack.callback(self._bring_home)

    def _bring_home(self) -> None:
        for host in dict.fromkeys(machine for replica in self.config.replica for machine in replica.machines):
            if host is not None:
                command = ssh(self.config, host, f"cd {_there(self.config)}/{run_folder(self.config, self.directory)}")
                if problem := bring_home(self.config, self.directory, host, command):
                    self.view.say(f"{host}: {problem}")


def check(config: Config) -> None:
    """ConfigError, naming the key, when what is said can't be reached from other machines."""
    hosts = [(replica.id, host) for replica in config.replica for host in replica.machines if host is not None]
    if not hosts:
        raise ConfigError('launch.backend = "ssh", and no [[replica]] has a host = "user@machine"')
    replica, host = hosts[0]
    if config.security.mode == "loopback":
        raise ConfigError(
            f'replica {replica} is on {host}, and security.mode = "loopback" never leaves this machine: '
            'use "tls" (dist-train certs makes what it needs), or "insecure" on a network that you trust'
        )
    address = config.exchange.address
    try:
        own, _ = host_and_port(address)
    except CommsError as error:
        raise ConfigError(f"exchange.address: {error}") from None
    if is_loopback(own) or own in {"0.0.0.0", "::"}:  # noqa: S104 - refused
        raise ConfigError(
            f'replica {replica} is on {host}, which can\'t dial exchange.address = "{address}": '
            'say where the hosts reach this machine, such as "192.0.2.10:7000"'
        )


class Hosts(RealNetwork):
    """The network of a run whose replicas are on hosts: what would run there is reached for from here."""

    def __init__(self, config: Config) -> None:
        self._hosts = host_of(config)
        self._beat_s = config.ssh.silence_s / BEATS

    def equip(self, command: Command) -> Command:
        """The same for processes of this machine; for others, `reach` with what `replica` would get."""
        if self._hosts.get(command.member) is None:
            return command
        told = command.arguments[command.arguments.index("replica") + 1 :]
        arguments = (*members.launcher(), "reach", *(part for part in told if part != "--lifeline"))
        return replace(command, arguments=arguments, environment={"PYTHONUNBUFFERED": "1"}, beat_s=self._beat_s)


def host_of(config: Config) -> dict[str, str | None]:
    """The host of each process; None: the launcher's machine."""
    return {
        process: machine
        for replica in config.replica
        for process, machine in zip(replica.processes, replica.machines, strict=True)
    }


def reach(config: Config, directory: RunDirectory, replica: str, process: str, address: str) -> NoReturn:
    """Prepares the host of a replica's process, and becomes the ssh that runs it. ConfigError or LaunchError."""
    host = host_of(config).get(process)
    if host is None:
        raise ConfigError(f"{process} has no host: nothing is to be reached")
    facts = _prepare(config, directory, host, replica)
    _check_facts(config, host, facts)
    logger.info("%s has Python %s; the process begins there", host, ".".join(map(str, facts["python"])))
    arguments = ssh(config, host, attend_line(config, directory, replica, process, address))
    sys.stderr.flush()
    os.execvp(arguments[0], arguments)  # noqa: S606 - no shell is wanted


def ssh(config: Config, host: str, line: str) -> tuple[str, ...]:
    """The command that has `line` run by the shell of `host`; it ends with 255 when the host can't be reached."""
    alive_s = max(1, int(config.ssh.silence_s / BEATS))
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "ClearAllForwardings": "yes",
        "ControlPath": "none",
        "ConnectTimeout": CONNECT_DEADLINE_S,
        "ServerAliveInterval": alive_s,
        "ServerAliveCountMax": 3,
    }
    file = config.ssh.config_file
    return (
        "ssh",
        *(("-F", str(Path(file).expanduser())) if file is not None else ()),
        *("-T", "-a", "-x"),
        *(part for key, value in options.items() for part in ("-o", f"{key}={value}")),
        *("--", host, line),
    )


def prepare_line(config: Config) -> str:
    """The shell line that makes the working folder on a host and runs `bootstrap`, which it reads from stdin."""
    code = code_folder() if config.ssh.code == "send" else ""
    run = shlex.join([config.ssh.python, "-c", BOOTSTRAP.format(length=len(_bootstrap())), code])
    return f"umask 077 && mkdir -p {_there(config)} && cd {_there(config)} && exec {run}"


def attend_line(config: Config, directory: RunDirectory, replica: str, process: str, address: str) -> str:
    """The shell line that runs a replica's process on a host, for as long as the launcher lives."""
    run = [config.ssh.python, "-m", "launcher", "attend", run_folder(config, directory), "--id", replica]
    run += ["--coordinator", address, "--process", process, "--config-digest", config.digest()]
    path = f'PYTHONPATH="$PWD"/{code_folder()} ' if config.ssh.code == "send" else ""
    return f"cd {_there(config)} && {path}PYTHONUNBUFFERED=1 exec {shlex.join(run)}"


def _there(config: Config) -> str:
    return shlex.quote(config.ssh.directory.removeprefix("~/"))


def _bootstrap() -> bytes:
    return Path(__file__).with_name("bootstrap.py").read_bytes()


def _prepare(config: Config, directory: RunDirectory, host: str, replica: str) -> dict[str, Any]:
    """Sends the parcel; what the host says of itself."""
    content = _bootstrap() + make_parcel(config, directory, replica)
    try:
        done = subprocess.run(
            ssh(config, host, prepare_line(config)),
            input=content,
            capture_output=True,
            timeout=PREPARE_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{host} was not prepared within {PREPARE_DEADLINE_S:g} s; is its disk well?") from None
    said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode == LOST_HOST:
        logger.error("dist-train: %s can't be reached: %s", host, said)
        raise SystemExit(LOST_HOST)
    if done.returncode in COMMAND_NOT_FOUND:
        raise ConfigError(f'ssh.python = "{config.ssh.python}" can\'t be run on {host}: {said}')
    if done.returncode:
        raise LaunchError(f"{host} could not be prepared (exit code {done.returncode}): {said}")
    return _facts(host, done.stdout)


def _facts(host: str, printed: bytes) -> dict[str, Any]:
    lines = printed.decode(errors="replace").strip().splitlines()
    try:
        facts = json.loads(lines[-1])  # a shell's start-up files may have printed before
        version = facts["python"]
        return {**facts, "python": tuple(int(part) for part in version), "missing": [str(m) for m in facts["missing"]]}
    except (IndexError, ValueError, KeyError, TypeError):
        raise LaunchError(f"{host} did not say what it has, but: {' '.join(lines)[:200] or 'nothing'}") from None


def _check_facts(config: Config, host: str, facts: dict[str, Any]) -> None:
    """ConfigError when what the launcher found on the host is not what a process of this run needs."""
    version = ".".join(map(str, facts["python"]))
    if not (3, 11) <= facts["python"] < (3, 14):
        raise ConfigError(f"{host}: {config.ssh.python} is Python {version}; it takes 3.11 to 3.13 (ssh.python)")
    if facts["missing"]:
        raise ConfigError(
            f"{host}: {config.ssh.python} has no {', '.join(facts['missing'])}; install what dist-train needs there, "
            "or name an interpreter that has it (ssh.python)"
        )
    if config.ssh.code == "installed" and facts.get("installed_code") != code_digest():
        other = facts.get("installed_code")
        there = (
            f"other code ({str(other)[:12]}) than here ({code_digest()[:12]})" if other else "no dist-train like ours"
        )
        raise ConfigError(f'{host}: {there} is installed; install the same, or say ssh.code = "send"')


def _run_by(config: Config, directory: RunDirectory, command: Command) -> list[Command]:
    """What a child that reaches for a host runs there, for a person to read."""
    host = host_of(config).get(command.member)
    if host is None:
        return []
    (replica,) = (replica.id for replica in config.replica if command.member in replica.processes)
    attending = attend_line(config, directory, replica, command.member, "HOST:PORT")
    lines = {"prepares": prepare_line(config), "runs": attending}
    return [
        Command(f"{command.member} {verb} {host}", ssh(config, host, line), command.log) for verb, line in lines.items()
    ]
