"""How a launch finds its run directory: new, to be resumed, complete, or another run's."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from dist_train.config import ConfigError, load
from dist_train.report.metrics import read_rounds
from dist_train.run_directory import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory

MOST_NAMED_KEYS = 4
ABSENT = object()


class Standing(Enum):
    """What is left to do."""

    NEW = "new"
    FALSE_START = "false start"
    """Another config was tried here and nothing came of it: no round has left anything to lose."""
    RESUMED = "resumed"
    COMPLETE = "complete"


def standing(config: Config, directory: RunDirectory) -> Standing:
    """Where the run of `config` stands in `directory`; ConfigError, naming keys, when another run is kept there."""
    if not directory.config.is_file():
        return Standing.NEW
    from dist_train.report.links import are_seconds_simulated  # Arrow, which a new run does not wait for

    if are_seconds_simulated(directory):
        raise ConfigError(
            f"{directory.path} keeps a virtual run: give this one another run.directory, or remove that one"
        )
    kept = load(directory.config)
    if kept.digest() != config.digest():
        if not directory.checkpoints.exists() and not committed_rounds(directory):
            return Standing.FALSE_START
        keys = "; ".join(differences(kept, config)) or "made by another version of dist-train"
        raise ConfigError(
            f"{directory.path} keeps another run: {keys}. Give this one another run.directory, or remove that one"
        )
    return Standing.COMPLETE if is_complete(config, directory) else Standing.RESUMED


def settle(config: Config, directory: RunDirectory, say: Callable[[str], None]) -> Standing:
    """Makes the directory ready for this launch, unless its run is complete; how it was found. ConfigError as above."""
    found = standing(config, directory)
    if found is Standing.COMPLETE:
        say(f"{config.run.name} is complete: all {config.rounds} rounds are committed")
        say(f"next: dist-train report {directory.path}   |   dist-train export {directory.path} OUT_DIR")
        return found
    if found is Standing.FALSE_START:
        directory.forget_progress()
    write_atomically(directory.config, config.to_toml().encode())
    if found is Standing.RESUMED:
        say(f"resuming {config.run.name} after round {committed_rounds(directory)} of {config.rounds}")
    return found


def committed_rounds(directory: RunDirectory) -> int:
    """The last round that was committed in `directory`; 0 before the first."""
    rows = read_rounds(directory.metrics)
    return rows[-1].round if rows else 0


def differences(kept: Config, given: Config) -> list[str]:
    """The keys in which two runs differ, as `key = kept there, given here`; the first few."""
    before, after = dict(_shared_keys(kept)), dict(_shared_keys(given))
    differing = [key for key in before | after if before.get(key, ABSENT) != after.get(key, ABSENT)]
    named = [f"{key} is {_shown(before, key)} there and {_shown(after, key)} here" for key in differing]
    more = len(named) - MOST_NAMED_KEYS
    return named[:MOST_NAMED_KEYS] + ([f"and {more} more"] if more > 0 else [])


def is_complete(config: Config, directory: RunDirectory) -> bool:
    """Every round committed, and the last one kept: without its checkpoint, replicas still have to apply it."""
    return committed_rounds(directory) >= config.rounds and (directory.checkpoints / f"round-{config.rounds}").exists()


def _shared_keys(config: Config) -> Iterator[tuple[str, Any]]:
    """What `Config.digest` covers, by dotted key."""
    for section, value in config.shared().items():
        if isinstance(value, dict):
            yield from ((f"{section}.{key}", inner) for key, inner in value.items())
        else:
            yield section, value


def _shown(keys: Mapping[str, Any], key: str) -> str:
    value = keys.get(key)
    return "unset" if value is None else repr(value)
