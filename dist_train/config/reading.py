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

    from pydantic_core import ErrorDetails


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The config in the TOML file `path`, with `section.key=value` overrides applied; ConfigError in one line."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, and a run's TOML file is wanted{_config_in(path)}") from None
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


def _config_in(folder: Path) -> str:
    file = RunDirectory(folder).config
    return f": {file} for the run that is kept here" if file.is_file() else ""


def parse(document: Mapping[str, Any], origin: str = "config") -> Config:
    """The config of a parsed TOML document; ConfigError names the first offending key."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error, document)}") from None


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


def _first_problem(error: ValidationError, document: Mapping[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    section, key = _place(problem["loc"], document)
    return section + _complaint(problem, key)


def _place(location: tuple[int | str, ...], document: Mapping[str, Any]) -> tuple[str, str]:
    """Which one it is of the sections that there are several of, as its reader knows it, and the key in it."""
    names = [str(part) for part in location]
    if not (numbers := [depth for depth, part in enumerate(location) if isinstance(part, int)]):
        return "", ".".join(names)
    at = numbers[0]
    table: Any = document
    for part in location[: at + 1]:
        table = table[part]
    if not isinstance(table, dict):
        return "", ".".join(names)
    section, name = ".".join(names[:at]), table.get("id", table.get("name"))
    is_named = isinstance(name, str) and name.isprintable()
    said = f'{section} "{name}"' if is_named else f"[[{section}]] number {int(names[at]) + 1}"
    return f"{said}: ", ".".join(names[at + 1 :])


def _complaint(problem: ErrorDetails, key: str) -> str:
    message, given = problem["msg"].removeprefix("Value error, "), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key {key}; {nearest(str(problem['loc'][-1]), _keys_beside(problem['loc']))}"
        case "tuple_type" if isinstance(given, dict):
            return f"there can be several of [{key}], so write [[{key}]], for one as well"
        case "model_type":
            brackets = "in single brackets" if isinstance(given, list) else "and its keys beneath"
            return f"{key} is a section: write [{key}], {brackets}"
        case "value_error":
            return f"{key}: {message}" if key else message
        case "missing":
            return f"{key} is missing; give it a value"
        case kind if kind.endswith(("_parsing", "_type")):
            message = message.partition(",")[0].replace("tuple", "list")  # the rest says how pydantic tried
    return f"{key or 'config'} = {given!r}: {message[:1].lower()}{message[1:]}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(
                t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
            )
    return list(model.model_fields)
