"""Virtual replicas: the bits of a real run, the same every time, and what a report makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from comms.link_plan import Line, LinkPlan
from comms.link_plan import Path as Way
from dist_train.config import Config, ConfigError, parse
from dist_train.planning.round_seconds import line_bytes
from dist_train.report import collect
from dist_train.report.facts import read_facts
from dist_train.report.metrics import read_rounds
from dist_train.run_directory import RunDirectory
from dist_train.virtual.machines import Ranks, together
from dist_train.virtual.pace import measured_paces, told_paces
from dist_train.virtual.run import check, run_virtual
from dist_train.what_if import Links, what_if
from launcher.cli import run as command
from launcher.virtual import with_replicas
from tests.running import metrics, run, tiny, write_corpus

LINKS = {"line": "2mbit", "latency": "20ms"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    ("compute_s", "tokens_per_s", "complaint"),
    [
        (("3",), ("5000",), "both say the speed of all"),
        (("3", "a=3"), ("a=5000",), "both say the speed of a"),
        (("a=3", "a=4", "b=1"), (), "given already"),
        (("z=3",), (), "no replica of this run"),
        (("a=3",), (), "no speed is given for b"),
    ],
)
def test_a_speed_is_said_once(
    tmp_path: Path, compute_s: tuple[str, ...], tokens_per_s: tuple[str, ...], complaint: str
) -> None:
    config = tiny(tmp_path, "text:nothing")
    with pytest.raises(ConfigError, match=complaint):
        told_paces(config, compute_s, tokens_per_s)
    paces = told_paces(config, ("3",), ("a=1000",))
    assert paces is not None
    assert paces("a", 1).compute_s_per_token == 1 / 1000
    assert paces("b", 1).compute_s_per_token != 1 / 1000


def virtual(config: Config, compute_s: tuple[str, ...] = ("1.5",)) -> RunDirectory:
    directory = RunDirectory(Path(config.run.directory))
    run_virtual(config, directory, told_paces(config, compute_s, ()))
    return directory


@pytest.mark.parametrize(("method", "route"), [("sparseloco", "direct"), ("diloco", "relay"), ("ddp", "direct")])
def test_the_bits_and_bytes_are_those_of_real_replicas(tmp_path: Path, source: str, method: str, route: str) -> None:
    sections: dict[str, Any] = {"outer": {"method": method, "rounds": 2}, "exchange": {"route": route}}
    config = tiny(tmp_path / "real", source, replicas=3, **sections)
    real = run(config)
    real.config.write_text(config.to_toml(), encoding="utf-8")
    simulated = virtual(tiny(tmp_path / "virtual", source, replicas=3, simulate=LINKS, **sections))
    wanted, found = metrics(real), metrics(simulated)
    assert all(row["agreed"] for row in found)
    for key in ("loss", "validation_loss"):  # sums over replicas in the order of their messages
        assert [row[key] or 0 for row in found] == pytest.approx([row[key] or 0 for row in wanted], rel=1e-12), key
    for key in ("theta_digest", "tokens", "payload_bytes", "contributors"):
        assert [row[key] for row in found] == [row[key] for row in wanted], key
    [wanted_bytes], [found_bytes] = (
        [part for part in collect(one).traffic if part.kind == "pseudo_gradient"] for one in (real, simulated)
    )
    assert found_bytes == wanted_bytes
    assert found_bytes.sent_bytes == found_bytes.received_bytes


def test_a_virtual_run_is_the_same_every_time_and_its_report_says_what_it_is(tmp_path: Path, source: str) -> None:
    configs = [tiny(tmp_path / name, source, replicas=3, simulate=LINKS) for name in "xy"]
    one, two = (virtual(config, ("1.5", "b=4")) for config in configs)
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    for ledger in one.ledgers.iterdir():
        ours, theirs = (
            [json.loads(line) for line in path.read_text().splitlines()] for path in (ledger, two.ledger(ledger.stem))
        )
        assert ours == theirs
    report = collect(one)
    assert (report.status, report.seconds) == ("complete", "simulated")
    assert {link.enforced_by for link in report.links} == {"virtual"}
    assert all(0 < (link.goodput_bits_per_second or 0) <= 2e6 for link in report.links if "*" in (link.from_, link.to))
    rows = metrics(one)
    assert all(4 < row["round_s"] < 4.6 for row in rows), "the slowest decides"
    # A lease's last document may reach beyond it.
    assert all(1.4 < row["phase_s"]["a"]["compute"] < 1.6 and row["phase_s"]["a"]["wait"] > 2 for row in rows)
    again = measured_paces(one)
    assert again("a", 2).compute_s_per_token == pytest.approx(1.5 / (3 * 256))


PIPELINE = {"id": "c", "pipeline": ["old1", "old2"], "rank_k": 4, "micro_batches": 4}


def with_pipeline(folder: Path, source: str, **changed: Any) -> Config:
    document = tiny(folder, source).model_dump(exclude_none=True)
    return parse({**document, "replica": [{"id": "a"}, PIPELINE], **changed})


def activation_bytes(directory: RunDirectory) -> dict[str, tuple[int, int]]:
    return {
        part.kind: (part.sent_bytes, part.received_bytes)
        for part in collect(directory).traffic
        if part.kind.startswith("activation") and part.sent_bytes
    }


@pytest.mark.full_matrix  # five processes that import torch
@pytest.mark.timeout(300)
@pytest.mark.parametrize("compression", ["projected-stream", "subspace", "none"])
def test_a_virtual_pipeline_has_the_bits_of_a_real_one(tmp_path: Path, source: str, compression: str) -> None:
    pipeline = {**PIPELINE, "compression": compression} | ({"rank_k": None} if compression == "none" else {})
    configs = [with_pipeline(tmp_path / name, source, replica=[{"id": "a"}, pipeline]) for name in ("real", "virtual")]
    file = tmp_path / "run.toml"
    file.write_text(configs[0].to_toml(), encoding="utf-8")
    assert command(["launch", str(file)]) == 0
    simulated = virtual(configs[1])
    wanted, found = metrics(RunDirectory(Path(configs[0].run.directory))), metrics(simulated)
    for key in ("theta_digest", "tokens", "payload_bytes", "contributors"):
        assert [row[key] for row in found] == [row[key] for row in wanted], key
    # The real stages also tell each other shapes, once for each.
    real_bytes, virtual_bytes = (activation_bytes(RunDirectory(Path(config.run.directory))) for config in configs)
    for kind in ("activation", "activation_gradient"):
        assert virtual_bytes[kind][0] == pytest.approx(real_bytes[kind][0], rel=0.1)


def test_a_virtual_pipeline_waits_for_its_links(tmp_path: Path, source: str) -> None:
    """A slower link between its stages is felt; all that one of them sends the other gets."""
    seconds = list[float]()
    for name, rate in (("fast", "1gbit"), ("slow", "20kbit")):
        config = with_pipeline(tmp_path / name, source, link=[{"between": ["old1", "old2"], "rate": rate}])
        directory = virtual(config)
        seconds += [row["phase_s"]["c"]["compute"] for row in metrics(directory)[:1]]
        assert all(sent == received > 0 for sent, received in activation_bytes(directory).values())
        assert set(activation_bytes(directory)) == {"activation", "activation_gradient"}
    step_bits = 8 * activation_bytes(directory)["activation"][0] / 3 / 3  # rounds, steps
    assert seconds[0] < 1.7
    assert seconds[1] > 3 * step_bits / 20e3, "the link is slower than the machines, and busy all the time"


def test_the_machines_of_a_replica_share_its_work(tmp_path: Path, source: str) -> None:
    """Mathematically the same; sums over two ranks are rounded elsewhere than those of one."""
    assert Ranks(4).measured_s(2.0) == 0.5
    assert Ranks(4).told_s(2.0) == 2.0
    real, simulated = (tiny(tmp_path / name, source, ranks={"a": 2}) for name in ("real", "virtual"))
    wanted, found = metrics(run(real)), metrics(virtual(simulated))
    for key in ("tokens", "contributors"):
        assert [row[key] for row in found] == [row[key] for row in wanted], key
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-3)
    num_bytes = [sum(row["payload_bytes"]["a"] for row in rows) for rows in (wanted, found)]
    assert num_bytes[1] == pytest.approx(num_bytes[0], rel=0.02)


def test_a_pipelines_line_is_that_of_its_stages_side_by_side() -> None:
    plan = LinkPlan(
        lines={"x": Line(8e6, None), "y": Line(1e6, 4e6), "a": Line(1e6, 1e6)},
        paths={"x": {"a": Way(2e6, 0.05)}, "a": {"x": Way(latency_s=0.02)}},
    )
    joined = together(plan, {"c": {"x": 0.75, "y": 0.25}})
    assert joined.line("c") == Line(4e6, 16e6)
    assert joined.path("c", "a") == Way(2e6 / 0.75, 0.05)
    assert joined.path("a", "c") == Way(latency_s=0.02)
    assert joined.line("x") == plan.line("x")
    assert together(LinkPlan(), {"c": {"x": 0.5, "y": 0.5}}) == LinkPlan()


def test_64_replicas_of_a_tiny_model(tmp_path: Path, source: str) -> None:
    config = tiny(tmp_path / "run", source, outer={"rounds": 1}, simulate={"line": "5mbit/20mbit", "latency": "20ms"})
    directory = virtual(with_replicas(config, 64))
    [row] = metrics(directory)
    assert len(row["contributors"]) == 64
    assert row["agreed"]
    # Each sends its payload to 63 others over 5 Mbit/s, beside the work.
    assert row["round_s"] > 1.5 + 63 * 8 * row["payload_bytes"]["a"] / 5e6


def test_a_line_that_changes_and_a_window(tmp_path: Path, source: str) -> None:
    change = [{"round": 2, "member": "b", "line": "20kbit"}]
    config = tiny(tmp_path / "run", source, simulate={**LINKS, "change": change})
    first, second, third = metrics(virtual(config))
    assert second["round_s"] > first["round_s"] + 0.3
    assert third["round_s"] == pytest.approx(second["round_s"], rel=0.1)
    windows = tiny(
        tmp_path / "windows", source, inner={"seconds": 10.0, "steps": 40, "batch_tokens": 64},
        sparseloco={"aggregate": "weighted"},
    )  # fmt: skip
    rows = metrics(virtual(windows, ("a=20", "b=40")))
    assert all(1.7 < row["tokens"]["a"] / row["tokens"]["b"] < 2.3 for row in rows)
    assert all(row["phase_s"]["a"]["compute"] <= 10 for row in rows)


def test_what_virtual_replicas_cannot_do_is_said() -> None:
    fitted = {"id": "a", "pipeline": ["x", "y"], "basis": "fitted", "compression": "projected-stream"}
    with pytest.raises(ConfigError, match='has basis = "fitted"'):
        check(parse({"replica": [fitted]}))
    partition = {"round": 1, "member": "a", "partition": True}
    with pytest.raises(ConfigError, match="real processes"):
        check(parse({"simulate": {"change": [partition]}}))
    config = parse({"replica": [{"id": "a"}, {"id": "b"}]})
    for compute_s, said in (["z=1"], '"z"'), (["a=1"], "no speed is given for b"), (["fast"], "a number"):
        with pytest.raises(ConfigError, match=said):
            told_paces(config, compute_s, ())
    assert [replica.id for replica in with_replicas(config, 4).replica] == ["a", "b", "v000", "v001"]
    assert with_replicas(config, 4).digest() == config.digest()
    pipelines = with_replicas(parse({"replica": [{"id": "a"}, PIPELINE]}), 3).replica
    assert [replica.pipeline for replica in pipelines] == [(), ("old1", "old2"), ("v000-0", "v000-1")]


def test_what_if_agrees_with_virtual_replicas_and_more_bandwidth_is_never_slower(tmp_path: Path, source: str) -> None:
    config = tiny(tmp_path / "run", source, replicas=4, outer={"method": "diloco"}, simulate=LINKS)
    directory = virtual(config)
    links = Links(2e6, 2e6, 0.02, 2e6, 2e6)
    answer = what_if(directory, None, links)
    later = metrics(directory)[1:]
    assert answer.routes["direct"].round_s == pytest.approx(sum(row["round_s"] for row in later) / len(later), rel=0.1)
    before = dict.fromkeys(answer.routes, float("inf"))
    for rate in (1e6, 2e6, 1e7, 1e8, 1e9):
        for route, part in what_if(directory, 100, Links(rate, 5 * rate, 0.02, rate, rate)).routes.items():
            assert part.round_s <= before[route]
            assert 0 < part.utilisation <= 1
            before[route] = part.round_s
    assert answer.routes["direct"].sent_bytes_per_replica == answer.routes["direct"].received_bytes_per_replica
    sent_bytes = answer.routes["direct"].sent_bytes_per_replica
    large = what_if(directory, 10_000, links)
    assert large.routes["direct"].received_bytes_per_replica == 9_999 * sent_bytes / 3
    assert any("exchange.fetch_deadline_s" in problem for problem in large.problems)
    facts = read_facts(directory.facts)
    fragments = len(facts.fragments)
    payloads = [round(sum(row.payload_bytes.values()) / 4) for row in read_rounds(directory.metrics)]
    lines = [line_bytes((-(-payload // fragments),) * fragments, "get") for payload in payloads]  # as a plan has them
    slow = what_if(directory, 2, Links(1e6, 1e6, 0.02))
    assert slow.routes["direct"].fetch_s == pytest.approx(8 * sum(lines) / len(lines) / 1e6 + 4 * 0.02)


def test_the_commands(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, file = tiny(tmp_path / "run", source, outer={"rounds": 1}), tmp_path / "run.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    for _ in range(2):  # the second replaces the first
        assert command(["simulate", str(file), "--virtual", "--replicas", "3", "--compute-s", "2"]) == 0
        assert "1 rounds, " in capsys.readouterr().out
    assert (
        command(["simulate", str(tmp_path / "run"), "--what-if", "--replicas", "9", "--link", "5mbit", "--json"]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert (answer["replicas"], answer["measured"]["replicas"]) == (9, 3)
    assert command(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    assert command(["simulate", str(file), "--replicas", "3"]) == 2
    assert "--virtual" in capsys.readouterr().err
