"""The config is checked at once: one readable line, naming value, rule and remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config, ConfigError, load, parse

PIPELINE = {"id": "p", "pipeline": ["x", "y"]}
RANKS = {"id": "r", "ranks": 3}


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"modle": {}}, "unknown key modle; did you mean model?"),
        ({"model": {"hiden_size": 3}}, "unknown key model.hiden_size; did you mean hidden_size?"),
        ({"replica": [{"id": "a", "devise": "cpu"}]}, 'replica "a": unknown key devise; did you mean device?'),
        (
            {"model": {"heads": 7}},
            "model: heads = 7 does not cut hidden_size = 256 into heads of an even size; try heads = 8",
        ),
        ({"model": {"kv_heads": 3}}, "model: kv_heads = 3 does not divide heads = 8"),
        ({"inner": {"lr": -1}}, "inner.lr = -1: input should be greater than 0"),
        ({"inner": {"lr": float("nan")}}, "inner.lr = nan: input should be a finite number"),
        ({"outer": {"method": "fedavg"}}, "outer.method = 'fedavg': input should be 'sparseloco', 'diloco' or 'ddp'"),
        ({"replica": [{"id": "a"}, {"id": "a"}]}, 'replica.id = "a" is given twice; ids are unique'),
        ({"replica": [{}]}, "[[replica]] number 1: id is missing; give it a value"),
        ({"replica": []}, "replica = []: tuple should have at least 1 item after validation, not 0"),
        ({"replica": [{"id": "../x"}]}, 'replica "../x": id: use 1 to 64 letters'),
        ({"replica": {"id": "a"}}, "there can be several of [replica], so write [[replica]], for one as well"),
        ({"simulate": {"change": {"round": 1}}}, "there can be several of [simulate.change], so write [[simulate."),
        ({"model": [{"layers": 2}]}, "model is a section: write [model], in single brackets"),
        ({"model": 3}, "model is a section: write [model], and its keys beneath"),
        ({"replica": [{"id": "a"}, {"id": "b", "ranks": "x"}]}, "replica \"b\": ranks = 'x': input should be a valid"),
        ({"replica": [{"id": "a", "pipeline": 3}]}, 'replica "a": pipeline = 3: input should be a valid list'),
        ({"replica": [{"id": "a", "device": "tpu"}]}, 'replica "a": device: choose "auto"'),
        ({"exchange": {"address": "foo"}}, "exchange.address: address 'foo' is not of the form host:port"),
        ({"exchange": {"address": "127.0.0.1:70000"}}, "exchange.address: address '127.0.0.1:70000' is not"),
        ({"discovery": {"advertise": "foo"}}, "discovery.advertise: address 'foo' is not of the form host:port"),
        ({"sparseloco": {"chunk": 4095}}, "sparseloco: chunk = 4095 is no square"),
        ({"sparseloco": {"chunk": 64, "k": 65}}, "sparseloco: k = 65 is more than a chunk holds (64)"),
        ({"sparseloco": {"quantizer": "statistical", "value_bits": 1}}, 'quantizer = "statistical" has two bits'),
        ({"exchange": {"min_replicas": 2}}, "exchange.min_replicas = 2 is more than the 1 [[replica]] sections"),
        ({"exchange": {"heartbeat_s": 10}}, "heartbeat_s = 10 must be less than half of liveness_deadline_s = 15"),
        ({"replica": [PIPELINE | {"split": [6, 0]}]}, 'replica "p": split = [6, 0] leaves stage y with no layers'),
        ({"replica": [PIPELINE | {"split": [6]}]}, "split = [6] has 1 numbers for the 2 stages of pipeline"),
        ({"replica": [PIPELINE | {"split": [3, 2]}]}, "split = [3, 2] adds up to 5, not to model.layers = 6"),
        ({"replica": [PIPELINE | {"pipeline": list("stuvwxyz")}]}, "8 stages for 6 layers, and a stage must have one"),
        ({"replica": [PIPELINE | {"pipeline": ["x", "x"]}]}, 'pipeline names "x" twice'),
        ({"replica": [PIPELINE | {"rank_k": 257}]}, "rank_k = 257 is above model.hidden_size = 256; lower it"),
        (
            {"replica": [PIPELINE], "outer": {"method": "ddp"}},
            'replica "p": compression = "subspace" cannot be trained with outer.method = "ddp"',
        ),
        ({"inner": {"batch_tokens": 100}}, "inner.batch_tokens = 100 is less than one sequence"),
        (
            {"replica": [RANKS], "sequence": {"max_tokens_per_rank": 100}},
            'replica "r": sequence.max_tokens_per_rank = 100 lets a group of 2 ranks, the largest, hold 200 tokens',
        ),
        (
            {"replica": [RANKS], "sequence": {"max_tokens_per_rank": 255}},
            "a document may have data.sequence_tokens = 512; raise it to 256, or shorten the sequences",
        ),
        (
            {"replica": [RANKS], "sequence": {"max_tokens_per_rank": 511, "planner": "static:1"}},
            "a group of 1 ranks, the largest, hold 511 tokens",
        ),
        (
            {"replica": [RANKS], "sequence": {"planner": "static:4"}},
            '"static:4" asks for groups that 3 ranks and a model of 8 heads cannot form; choose static:1, static:2',
        ),
        ({"replica": [RANKS], "sequence": {"planner": "static:0"}}, 'sequence.planner = "static:0" asks for groups'),
        ({"replica": [RANKS], "model": {"heads": 1}, "sequence": {"planner": "static:2"}}, "choose static:1"),
        ({"inner": {"micro_batch_tokens": 100}}, "inner.micro_batch_tokens = 100 is less than one sequence"),
    ],
)
def test_a_mistake_is_one_line(document: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(document, origin="run.toml")
    message = str(caught.value)
    assert message.startswith("run.toml: ")
    assert line in message
    assert "\n" not in message


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[run\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "broken.toml")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("inner.lr=2e-3", 2e-3),
        ("outer.method=ddp", "ddp"),
        ('outer.method="ddp"', "ddp"),
        ("sparseloco.k=3", 3),
        ("model.path=some/folder", "some/folder"),
    ],
)
def test_overrides_replace_one_key(tmp_path: Path, override: str, value: object) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[inner]\nlr = 1.0\n", encoding="utf-8")
    section, key = override.split("=", maxsplit=1)[0].split(".")
    assert getattr(getattr(load(path, [override]), section), key) == value


@pytest.mark.parametrize("override", ["inner.lr", "lr=3", "inner.lr=fast", "replica.id=a"])
def test_a_wrong_override_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[[replica]]\nid = "a"\n', encoding="utf-8")
    with pytest.raises(ConfigError):
        load(path, [override])


def test_the_resolved_config_reads_back_as_itself() -> None:
    config = parse({"inner": {"clip_norm": 0.0}, "model": {"kv_heads": 2}, "replica": [{"id": "b"}, {"id": "a"}]})
    assert parse(tomllib.loads(config.to_toml())) == config


def test_the_digest_knows_what_must_be_equal_and_nothing_else() -> None:
    base = Config()
    assert parse({"run": {"directory": "elsewhere"}, "exchange": {"address": "127.0.0.1:1"}}).digest() == base.digest()
    assert parse({"replica": [{"id": "a", "device": "cpu"}]}).digest() == base.digest()
    changes: list[dict[str, Any]] = [{"inner": {"lr": 1e-4}}, {"run": {"seed": 1}}, {"sparseloco": {"k": 65}}]
    assert len({base.digest(), *(parse(change).digest() for change in changes)}) == 4


@pytest.mark.parametrize("method", ["sparseloco", "diloco", "ddp"])
def test_every_method_takes_the_same_number_of_inner_steps(method: str) -> None:
    config = parse({"outer": {"method": method, "rounds": 6, "validate_every": 2}, "inner": {"steps": 5}})
    assert config.rounds * config.steps_per_round == config.total_steps == 30
    assert config.validate_every_rounds * config.steps_per_round == 10
