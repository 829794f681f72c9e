"""Every key of the config with its meaning, as the sections say it: for `dist-train keys` and docs/config.md."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from dist_train.config.section import ConfigError, nearest
from dist_train.config.whole import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
MARKDOWN_HEAD = """# Every key of a run's TOML file

Written by `dist-train keys --markdown`, from the sections in `dist_train/config/`. An unknown key is an error
that names the nearest one. `section.key=value` after the file changes a key for one command."""
MARKDOWN_COLUMNS = ("| Key | Takes | Default | Meaning |", "|---|---|---|---|")
_FAR = 2**53
"""Bounds beyond it say nothing to anybody."""


@dataclass(frozen=True)
class Key:
    """One key of a section."""

    name: str
    values: str
    """What may be given, in words."""
    default: str
    """As TOML writes it; empty where there is none, or where leaving the key out means something of its own."""
    meaning: str


@dataclass(frozen=True)
class SectionKeys:
    """One table of the TOML file."""

    name: str
    """As TOML writes it: "[inner]", "[[replica]]"."""
    meaning: str
    keys: tuple[Key, ...]


def sections() -> tuple[SectionKeys, ...]:
    """All tables and their keys, in the order of the config."""
    schema = Config.model_json_schema()
    known = schema["$defs"]
    found = list[SectionKeys]()
    for of_config in schema["properties"].values():
        found += _tables(of_config, known)
    return tuple(found)


def section(name: str) -> SectionKeys:
    """The table called `name`, with or without brackets; ConfigError when there is none."""
    wanted, known = name.strip("[]"), {one.name.strip("[]"): one for one in sections()}
    if wanted not in known:
        raise ConfigError(f"there is no section [{wanted}]: {nearest(wanted, list(known))}")
    return known[wanted]


def _tables(of_config: dict[str, Any], known: dict[str, Any]) -> Iterator[SectionKeys]:
    """A section, and those that it holds lists of."""
    definition = known[_reference(of_config)]
    name, _, meaning = definition["description"].partition(": ")
    properties = definition["properties"].items()
    nested = {key: held for key, held in properties if _reference(held)}
    required = definition.get("required", [])
    plain = tuple(_key(key, held, key in required) for key, held in properties if key not in nested)
    yield SectionKeys(name, _sentence(meaning), plain)
    for held in nested.values():
        yield from _tables(held, known)


def _reference(held: dict[str, Any]) -> str:
    """The section that a field is, or is a list of; empty when neither."""
    pointer: str = held.get("$ref", "") or held.get("items", {}).get("$ref", "")
    return pointer.removeprefix("#/$defs/")


def _key(name: str, held: dict[str, Any], required: bool) -> Key:
    default = held.get("default")
    shown = "" if default is None else json.dumps(default, ensure_ascii=False)
    meaning = " ".join(held.get("description", "").split())
    return Key(name, _values(held), "(required)" if required else shown, meaning)


def _values(held: dict[str, Any]) -> str:
    """What a field takes, of its JSON schema."""
    if "anyOf" in held:
        return " or ".join(_values(one) for one in held["anyOf"] if one.get("type") != "null")
    if "enum" in held:
        return " | ".join(json.dumps(value) for value in held["enum"])
    if "const" in held:
        return json.dumps(held["const"])
    if held.get("type") == "array":
        items = held.get("prefixItems")
        return f"[{', '.join(map(_values, items))}]" if items else f"[{_values(held['items'])}, …]"
    if held.get("type") == "object":
        return f"{{ NAME = {_values(held['additionalProperties'])}, … }}"
    bounds = [how.format(_number(held[key])) for key, how in _BOUNDS.items() if key in held and abs(held[key]) < _FAR]
    return " ".join([_TYPES[held["type"]], ", ".join(bounds)]).strip()


def _number(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


def print_keys(console: Console, shown: tuple[SectionKeys, ...]) -> None:
    """Prints the tables for people."""
    for one in shown:
        console.print(f"[bold]{escape(one.name)}[/bold]  {escape(one.meaning)}", highlight=False)
        table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
        for style in ("cyan", "", ""):
            table.add_column(style=style, overflow="fold")
        for key in one.keys:
            what = f"{escape(key.values)}\n[dim]{escape(key.default)}[/dim]" if key.default else escape(key.values)
            table.add_row(key.name, what, escape(key.meaning))
        console.print(table)
        console.print()


def to_json(shown: tuple[SectionKeys, ...]) -> str:
    """The same for programs."""
    return json.dumps([asdict(one) for one in shown], indent=2, ensure_ascii=False)


def to_markdown(shown: tuple[SectionKeys, ...]) -> str:
    """The same as a page."""
    parts = [MARKDOWN_HEAD]
    for one in shown:
        rows = [" | ".join(_cells(key)).join(("| ", " |")) for key in one.keys]
        parts += [f"## {one.name}", one.meaning, "\n".join([*MARKDOWN_COLUMNS, *rows])]
    return "\n\n".join(parts)


def _cells(key: Key) -> Iterator[str]:
    default = f"`{key.default}`" if key.default else ""
    for text in (f"`{key.name}`", key.values, default, key.meaning):
        yield text.replace("|", "\\|")


def _sentence(text: str) -> str:
    plain = " ".join(text.split())
    return plain[:1].upper() + plain[1:]
