"""The pages say what is there: commands that parse, files, modules, make targets and anchors that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from dist_train.config import load
from launcher.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]
GROUP = typer.main.get_command(app)
CONFIGURED = ("launch", "simulate", "plan")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each dist-train command of each page, in words: those of console blocks, and those in the middle of a line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        typed = re.findall(r"^\$ (.*\bdist-train .*)$", text, re.MULTILINE)
        said = re.findall(r"`(dist-train [a-z][^`]*)`", text)
        for line in (*typed, *(" ".join(one.split()) for one in said)):
            words = shlex.split(line, comments=True)
            yield page.name, words[words.index("dist-train") + 1 :]


COMMANDS = sorted({(page, shlex.join(words)) for page, words in commands()})


def helps() -> Iterator[str]:
    """Each example that a command's own help gives."""
    for command in GROUP.commands.values():  # type: ignore[attr-defined]
        yield from re.findall(r"dist-train ([^\n]*)", command.help or "")


@pytest.mark.parametrize(("page", "line"), COMMANDS + [("--help", line) for line in sorted(set(helps()))])
def test_a_command_parses_and_its_example_loads(page: str, line: str) -> None:
    name, *arguments = shlex.split(line)
    command = GROUP.get_command(None, name)  # type: ignore[attr-defined]
    assert command is not None, page
    if not arguments and page != "README.md":
        return  # its name alone, in the middle of a sentence
    if any("…" in word for word in arguments) and name not in {"join", "doctor"}:
        return
    parsed = command.make_context(name, arguments).params
    file = parsed.get("run_file")
    if name in CONFIGURED and file is not None and str(file).startswith("examples/"):
        load(ROOT / file, parsed["overrides"] or ())


def test_what_pages_point_to_is_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path, anchor in LINK.findall(text):
            if path.startswith("http"):
                continue
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {path}"
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def anchors(page: Path) -> set[str]:
    """As a forge makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_modules_and_targets_that_pages_name_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for module in re.findall(r"python -m (benchmarks\.\w+)", text):
            assert importlib.util.find_spec(module) is not None, f"{page.name}: {module}"
        for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", text):
            assert target in targets, f"{page.name}: make {target}"
        for file in re.findall(
            r"`((?:comms|compression|dist_train|launcher|benchmarks|tests|examples)/[\w/.-]+)`", text
        ):
            assert (ROOT / file).exists(), f"{page.name}: {file}"
