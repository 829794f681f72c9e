"""A TOML file, and overrides of it, to a config; problems in one line."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from dist_train.config.section import ConfigError, nearest
from dist_train.config.whole import Config
from dist_train.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The config in the TOML file `path`, with `section.key=value` overrides applied; ConfigError in one line."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    for override in overrides:
        _apply_override(document, override)
    return parse(document, origin=str(path))


def load_kept(run_dir: Path, overrides: Iterable[str] = ()) -> Config:
    """The config of the run that is kept in `run_dir`; ConfigError when none is."""
    file = RunDirectory(run_dir).config
    if not file.is_file():
        raise ConfigError(f"{run_dir}: no run is kept here (no {file.name} in it)")
    return load(file, overrides)


def parse(document: Mapping[str, Any], origin: str = "config") -> Config:
    """The config of a parsed TOML document; ConfigError names the first offending key."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error)}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    table = document.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"override {override!r}: [[{section}]] is a list; edit it in the file")
    try:
        table[name] = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        table[name] = text  # a bare word is a string: outer.method=ddp


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "config"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        return f"unknown key {place}; {nearest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "value_error":
        return f"{place}: {message}" if problem["loc"] else message
    if problem["type"] == "missing":
        return f"{place} is missing; give it a value"
    return f"{place} = {problem['input']!r}: {message[:1].lower()}{message[1:]}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(
                t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
            )
    return list(model.model_fields)
