"""From the config to the links of a simulated run, and what its schedule makes of them: pure functions.

A change begins when its round does, or so long after the start; it ends when it has lasted. `begun` keeps when each one
began, in seconds since the start, because a round's moment is only known when it has come.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from comms.link_plan import Line, LinkPlan, Path
from dist_train.rates import bits_per_second, latency_s, line_of, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dist_train.config import ChangeConfig, Config

COORDINATOR = "coordinator"
Begun = dict[int, float]
"""By a change's place in the config."""


def members_of(config: Config) -> tuple[str, ...]:
    """Everybody who has a line: the coordinator, then the replicas, each stage of a pipeline by its own name."""
    return (COORDINATOR, *(name for replica in config.replica for name in (replica.pipeline or (replica.id,))))


def link_plan(config: Config) -> LinkPlan:
    """The links that the config asks for, before any change."""
    simulate, members = config.simulate, members_of(config)
    texts = {member: simulate.lines.get(member, simulate.line) for member in members}
    plan = LinkPlan(lines={member: _line(text) for member, text in texts.items() if text is not None})
    default = _changed(Path(), None, simulate.latency, simulate.jitter)
    if default != Path():
        for sender in members:
            for receiver in members:
                if sender != receiver:
                    plan = plan.with_path(sender, receiver, default)
    for link in config.link:
        for sender, receiver in _directions(link.between, one_way=link.one_way):
            before = plan.path(sender, receiver)
            plan = plan.with_path(sender, receiver, _changed(before, link.rate, link.latency, link.jitter))
    return plan


def begin(config: Config, begun: Mapping[int, float], now_s: float, open_round: int) -> Begun:
    """`begun`, with the changes whose time has come `now_s` after the start, while `open_round` is open."""
    due = {
        number: now_s
        for number, change in enumerate(config.simulate.change)
        if number not in begun and _is_due(change, now_s, open_round)
    }
    return {**begun, **due}


def plan_at(config: Config, begun: Mapping[int, float], now_s: float) -> LinkPlan:
    """The links `now_s` after the start: the config's, with the changes that have begun and not ended, in order."""
    plan = link_plan(config)
    for number, change in enumerate(config.simulate.change):
        if number in begun and (change.lasts is None or now_s < begun[number] + seconds(change.lasts)):
            plan = _apply(plan, change, members_of(config))
    return plan


def _is_due(change: ChangeConfig, now_s: float, open_round: int) -> bool:
    if change.round is not None:
        return open_round >= change.round
    return change.after is not None and now_s >= seconds(change.after)


def _apply(plan: LinkPlan, change: ChangeConfig, members: tuple[str, ...]) -> LinkPlan:
    if change.member is not None and change.line is not None:
        plan = plan.with_line(change.member, _line(change.line))
    for sender, receiver in _touched(change, members):
        path = _changed(plan.path(sender, receiver), change.rate, change.latency, change.jitter)
        plan = plan.with_path(sender, receiver, replace(path, is_cut=path.is_cut or change.partition))
    return plan


def _touched(change: ChangeConfig, members: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if change.between is not None:
        yield from _directions(change.between, one_way=change.one_way)
    elif change.partition or change.latency or change.jitter:
        for other in members:
            if change.member is not None and other != change.member:
                yield from _directions((change.member, other), one_way=False)


def _directions(between: tuple[str, str], *, one_way: bool) -> Iterator[tuple[str, str]]:
    yield between
    if not one_way:
        yield between[1], between[0]


def _line(text: str) -> Line:
    line = line_of(text)
    return Line(line.up_bits_per_second, line.down_bits_per_second)


def _changed(path: Path, rate: str | None, latency: str | None, jitter: str | None) -> Path:
    return replace(
        path,
        bits_per_second=path.bits_per_second if rate is None else bits_per_second(rate),
        latency_s=path.latency_s if latency is None else latency_s(latency),
        jitter_s=path.jitter_s if jitter is None else latency_s(jitter),
    )


def differences(before: LinkPlan, after: LinkPlan, members: tuple[str, ...]) -> list[str]:
    """What has changed from one moment to another, a line for a person each."""
    said = []
    for member in members:
        if before.line(member) != after.line(member):
            said.append(f"{member}'s line is now {line_text(after.line(member))}")
        changed = (other for other in members if before.path(member, other) != after.path(member, other))
        said += [f"{member} → {other} is now {path_text(after.path(member, other))}" for other in changed]
    return said


def line_text(line: Line) -> str:
    """A line for a person."""
    return f"{rate_text(line.up_bits_per_second)} up, {rate_text(line.down_bits_per_second)} down"


def path_text(path: Path) -> str:
    """A path for a person."""
    if path.is_cut:
        return "cut"
    jitter = f" and up to {1e3 * path.jitter_s:g} ms more" if path.jitter_s else ""
    return f"{rate_text(path.bits_per_second)}, {1e3 * path.latency_s:g} ms{jitter}"


def rate_text(rate: float | None) -> str:
    """A rate for a person."""
    if rate is None:
        return "unlimited"
    divisor, unit = (1e9, "Gbit/s") if rate >= 1e9 else (1e6, "Mbit/s") if rate >= 1e6 else (1e3, "kbit/s")
    return f"{rate / divisor:.4g} {unit}"
