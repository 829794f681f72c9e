"""Every key has a meaning, the page in docs/ is what the sections say, and a section can be asked for alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_train.config import ConfigError, parse, reference

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_every_key_and_section_says_what_it_means() -> None:
    silent = [f"{s.name}.{k.name}" for s in reference.sections() for k in s.keys if not k.meaning]
    assert not silent
    assert all(section.meaning for section in reference.sections())


def test_the_page_is_current() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written.strip() == reference.to_markdown(reference.sections()).strip(), (
        "dist-train keys --markdown > docs/config.md"
    )


def test_no_key_of_the_config_is_missing() -> None:
    tables = {section.name.strip("[]"): {key.name for key in section.keys} for section in reference.sections()}
    for name, section in parse({"device": [{"name": "a"}]}).model_dump(exclude={"link"}).items():
        fields = section[0] if isinstance(section, tuple) else section
        nested = {"change"} if name == "simulate" else set()
        assert tables[name] == set(fields) - nested, name


def test_defaults_are_given_as_toml_writes_them() -> None:
    inner = {key.name: key for key in reference.section("[inner]").keys}
    assert (inner["optimizer"].values, inner["optimizer"].default) == ('"adamw" | "muon"', '"adamw"')
    assert (inner["beta1"].values, inner["beta1"].default) == ("number ≥ 0, < 1", "0.9")
    assert (inner["seconds"].values, inner["seconds"].default) == ("number > 0, ≤ 86,400", "")
    assert json.loads(reference.to_json((reference.section("link"),)))[0]["name"] == "[[link]]"


def test_an_unknown_section_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no section \[iner\]: did you mean inner\?"):
        reference.section("iner")
    with pytest.raises(ConfigError, match=r"no section \[zzz\]: known here: run, model"):
        reference.section("zzz")
