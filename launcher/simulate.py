"""`dist-train simulate`: a launch on this machine, on links that are limited; and which of the two ways limits them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dist_train.config import Config, ConfigError, parse
from dist_train.links import line_text, link_plan, members_of, path_text, rate_text
from dist_train.report.links import EVERYBODY, collect_links
from launcher import local
from launcher.director import Director
from launcher.failures import LaunchError
from launcher.lock import is_locked
from launcher.network import KernelNetwork, ShapedNetwork, SimulatedNetwork
from launcher.options import link_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from comms.link_plan import LinkPlan, Simulation
    from dist_train.run_directory import RunDirectory
    from launcher.star import Star
    from launcher.view import View

# Members alike are one line of what is said.
MOST_SAID = 12


def with_options(config: Config, link: str | None, replicas: Sequence[str]) -> Config:
    """`config`, with what --link and --replica say; they go before the file. ConfigError names the option."""
    document: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    simulate = document["simulate"]
    if link is not None:
        said = link_text(link)
        given = {"line": said.line, "latency": said.latency, "jitter": said.jitter}
        simulate |= {key: text for key, text in given.items() if text is not None}
    for replica in replicas:
        name, equals, line = replica.partition("=")
        if not equals:
            raise ConfigError(f"--replica {replica}: write NAME=10mbit, or NAME=10mbit/50mbit for up/down")
        simulate["lines"][name] = line
    return parse(document, origin="simulate")


def simulate(config: Config, directory: RunDirectory, view: View) -> int:
    """Runs, or goes on with, the run of `config` on the links that it asks for; the exit code. Errors as in `local`."""
    if is_locked(directory.path):
        raise LaunchError(f"{directory.path}: another launch is running here; give this one another run.directory=…")
    with open_network(config, directory.simulation) as network:
        for said in announcement(network.simulation, members_of(config)):
            view.say(said)
        with Director(config, directory, network, view.say):
            code = local.launch(config, directory, view, network)
        for said in reached(directory, network.simulation.asked):
            view.say(said)
        return code


def open_network(config: Config, file: Path) -> SimulatedNetwork:
    """The network that `simulate.enforce` wants, with the config's links in force. LaunchError when it can't be had."""
    asked = link_plan(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    if config.simulate.enforce == "token-bucket":
        return _shaped(config, file, asked)
    refusals: tuple[type[Exception], ...] = (OSError, ImportError, *_netlink_errors())
    try:
        delayed = asked.has_latency or any(change.latency or change.jitter for change in config.simulate.change)
        return KernelNetwork(file, asked, _star(members_of(config)), may_delay=delayed)
    except refusals as error:
        if config.simulate.enforce == "auto":
            return _shaped(config, file, asked)
        raise LaunchError(
            f'simulate.enforce = "kernel", but the kernel does not: {error}. It takes Linux and root; '
            '"token-bucket" works everywhere'
        ) from None


def _shaped(config: Config, file: Path, asked: LinkPlan) -> ShapedNetwork:
    """Token buckets; ConfigError where they would not hold: processes of one member know nothing of each other's."""
    if several := [replica.id for replica in config.replica if replica.ranks > 1]:
        raise ConfigError(
            f"replica {several[0]} has several ranks, and a token bucket holds in one process only: "
            'simulate with simulate.enforce = "kernel", on Linux and as root, or with ranks = 1'
        )
    return ShapedNetwork(file, asked)


def announcement(simulation: Simulation, members: Sequence[str]) -> Iterator[str]:
    """What is limited, and who enforces it; a line each."""
    asked = simulation.asked
    is_virtual = simulation.rates_by == "virtual"
    yield (
        "rates and latency are simulated, with time" if is_virtual else f"rates are enforced by: {simulation.rates_by}"
    )
    if asked.has_latency and not is_virtual:
        yield f"latency is added by: {'the kernel (netem)' if simulation.latency_by == 'kernel' else 'our processes'}"
    yield from _grouped((line_text(asked.line(member)), member) for member in members)
    pairs = [(a, b) for a in members for b in members if a != b and b in asked.paths.get(a, {})]
    if len(pairs) == len(members) * (len(members) - 1) and len({asked.path(a, b) for a, b in pairs}) == 1:
        yield f"  from each to each other: {path_text(asked.path(*pairs[0]))}"
    else:
        yield from _grouped((path_text(asked.path(a, b)), f"{a} → {b}") for a, b in pairs)


def _grouped(described: Iterable[tuple[str, str]]) -> Iterator[str]:
    by_text: dict[str, list[str]] = {}
    for text, name in described:
        by_text.setdefault(text, []).append(name)
    for text, names in by_text.items():
        more = f" and {len(names) - MOST_SAID} more" if len(names) > MOST_SAID else ""
        yield f"  {', '.join(names[:MOST_SAID])}{more}: {text}"


def reached(directory: RunDirectory, asked: LinkPlan) -> Iterator[str]:
    """What went over each line, and each path with a rate of its own, against its limit."""
    for link in collect_links(directory):
        is_limited = EVERYBODY in (link.from_, link.to) or asked.path(link.from_, link.to).bits_per_second is not None
        if is_limited and link.goodput_bits_per_second is not None and link.limit_bits_per_second is not None:
            share = link.goodput_bits_per_second / link.limit_bits_per_second
            reached = f"{rate_text(link.goodput_bits_per_second)} of {rate_text(link.limit_bits_per_second)}"
            yield f"{link.from_} → {link.to}: {reached} ({share:.0%}) while payloads moved, by {link.enforced_by}"


def _star(members: Sequence[str]) -> Star:
    from launcher.star import Star  # pyroute2, which is there on Linux only

    return Star(members)


def _netlink_errors() -> tuple[type[Exception], ...]:
    try:
        from pyroute2 import NetlinkError
    except ImportError:
        return ()
    return (NetlinkError,)
