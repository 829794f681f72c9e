"""Arguments and options that several commands have, each with its words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.config import ConfigError
from dist_train.rates import LinkText, link_of

if TYPE_CHECKING:
    from collections.abc import Mapping

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run's config.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory (run.directory of its config).")]
Address = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS", help="Where the run's coordinator is: HOST:PORT, or NAME@PEER (docs/discovery.md)."
    ),
]
Bootstrap = Annotated[
    list[str] | None,
    typer.Option("--bootstrap", metavar="PEER", help="ADDRESS is a name; this peer knows where it is."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="Changes to the config.")]
Certificates = Annotated[Path | None, typer.Option("--certificates", help="This member's, for a tls run.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="The run says security.mode = insecure.")]
Coordinator = Annotated[str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where the run is.")]
Link = Annotated[
    str | None,
    typer.Option("--link", metavar="RATE,LATENCY", help='Everybody\'s: "50mbit", "10mbit/50mbit", "50mbit,40ms".'),
]


def link_text(link: str, *, has_jitter: bool = True) -> LinkText:
    """What --link says, in its parts; ConfigError when it says nothing, or a jitter where there can be none."""
    try:
        said = link_of(link)
    except ValueError as error:
        raise ConfigError(f"--link: {error}") from None
    if said.jitter is not None and not has_jitter:
        raise ConfigError(f"--link: {link!r} ends with a jitter, which only a simulation can have; leave it out")
    return said


def require_folder(path: Path, said: str) -> None:
    """ConfigError when `path`, which was `said` to be a folder, can be none; it need not be there yet."""
    if file := next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None):
        raise ConfigError(f"{said} {path}: {file} is a file; name a folder")


def goes_with(option: str, is_given: bool, others: Mapping[str, object]) -> None:
    """ConfigError when one of `others`, by their names, is given without `option`, where it does nothing."""
    if not is_given and (other := _given(others)):
        raise ConfigError(f"{other} does nothing without {option}; give both, or neither")


def goes_without(option: str, others: Mapping[str, object]) -> None:
    """ConfigError when one of `others`, by their names, is given beside `option`, where it does nothing."""
    if other := _given(others):
        raise ConfigError(f"{other} does nothing beside {option}; give one of the two")


def _given(options: Mapping[str, object]) -> str | None:
    return next((name for name, value in options.items() if value), None)
