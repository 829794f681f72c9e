"""How fast virtual replicas work: as they were told, or as those of an earlier run did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_train.config import ConfigError
from dist_train.report.facts import read_facts
from dist_train.report.metrics import read_rounds

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.report.metrics import RoundRow
    from dist_train.run_directory import RunDirectory


@dataclass(frozen=True)
class Pace:
    """What the work of one replica takes in one round."""

    compute_s_per_token: float
    encode_s: float = 0.0
    """A fragment; and so on."""
    decode_s: float = 0.0
    """A payload."""
    apply_s: float = 0.0
    """A round."""
    validate_s: float = 0.0
    """Its share of the validation documents."""
    has_boundaries: bool = False
    """Whether `compute_s_per_token` holds what a pipeline's stages waited for their links."""


Paces = Callable[[str, int], Pace]
"""By the name of a replica, and the number of a round."""


def told_paces(config: Config, compute_s: Sequence[str], tokens_per_s: Sequence[str]) -> Paces | None:
    """What --compute-s and --tokens-per-s say: `S` for all, `NAME=S` for one. None when they say nothing.

    ConfigError when they name nobody, no number, one replica twice, or not all of them.
    """
    if not compute_s and not tokens_per_s:
        return None
    tokens = config.steps_per_round * config.inner.batch_tokens
    by_seconds, by_speed = _numbers("--compute-s", compute_s), _numbers("--tokens-per-s", tokens_per_s)
    if both := sorted(by_seconds.keys() & by_speed.keys()):
        raise ConfigError(f"--compute-s and --tokens-per-s both say the speed of {both[0] or 'all'}; leave one out")
    by_name = {name: seconds / tokens for name, seconds in by_seconds.items()}
    by_name |= {name: 1 / speed for name, speed in by_speed.items()}
    replicas = [replica.id for replica in config.replica]
    if strangers := sorted(by_name.keys() - {"", *replicas}):
        raise ConfigError(f'a speed is given for "{strangers[0]}", which is no replica of this run')
    if silent := [name for name in replicas if name not in by_name and "" not in by_name]:
        raise ConfigError(f"no speed is given for {silent[0]}: say one for all, --tokens-per-s 5000 or --compute-s 3")
    paces = {name: Pace(by_name.get(name, by_name.get("", 0.0))) for name in replicas}
    return lambda replica, _round: paces[replica]


def _numbers(option: str, given: Sequence[str]) -> dict[str, float]:
    """By replica's name; that of all is empty."""
    numbers = dict[str, float]()
    for text in given:
        name, _, number = text.rpartition("=")
        if name in numbers:
            raise ConfigError(f"{option} {text}: that speed has been given already; give each once")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise ConfigError(f"{option} {text}: write a number, or NAME=number") from None
        if not 0 < numbers[name] < 1e12:
            raise ConfigError(f"{option} {text}: the number is above 0 and below 1e12")
    return numbers


def measured_paces(directory: RunDirectory) -> Paces:
    """Those of a run that was made, round by round; of more replicas or rounds than it had, from its first again.

    ConfigError when it has committed no round, or has not told its phases.
    """
    rows = [row for row in read_rounds(directory.metrics) if row.phase_s and row.total_tokens]
    if not rows:
        raise ConfigError(f"{directory.path}: no committed round tells how long its phases took; name a run that has")
    fragments = max(1, len(read_facts(directory.facts).fragments))
    table = [{name: _pace(row, name, fragments) for name in sorted(row.phase_s)} for row in rows]
    return lambda replica, number: _like(table[(number - 1) % len(table)], replica)


def _pace(row: RoundRow, replica: str, fragments: int) -> Pace:
    phase_s = row.phase_s[replica]
    return Pace(
        compute_s_per_token=phase_s.get("compute", 0.0) / max(1, row.tokens.get(replica, 0)),
        encode_s=phase_s.get("encode", 0.0) / fragments,
        decode_s=phase_s.get("decode", 0.0) / (fragments * max(1, len(row.contributors))),
        apply_s=phase_s.get("apply", 0.0),
        validate_s=phase_s.get("validate", 0.0),
        has_boundaries=True,
    )


def _like(measured: Mapping[str, Pace], replica: str) -> Pace:
    """Its own pace, or that of one of the measured ones, always the same for the same name."""
    if replica in measured:
        return measured[replica]
    return list(measured.values())[sum(replica.encode()) % len(measured)]
