"""Golden: reports of run directories that were written by hand, with figures worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config, ConfigError, parse
from dist_train.report import Report, collect
from dist_train.report.metrics import MetricsTail, read_rounds
from dist_train.report.traffic import KINDS
from dist_train.run_directory import RunDirectory

# Three replicas, 1000 parameters of which 16 are sent, two rounds of three inner steps; c misses the second.
DOCUMENT: dict[str, Any] = {
    "run": {"name": "golden"},
    "inner": {"steps": 3},
    "outer": {"rounds": 2},
    "replica": [{"id": "a"}, {"id": "b"}, {"id": "c"}],
}
FACTS = {
    "model": {"name": "llama", "parameters": 1000},
    "fragments": {
        "embed": {"parameters": 600, "values": 10, "payload_bytes": 20},
        "head": {"parameters": 400, "values": 6, "payload_bytes": 12},
    },
    "tokens_per_epoch": 5000,
}
ROUNDS = (
    {
        "round": 1,
        "contributors": ["a", "b", "c"],
        "theta_digest": "11" * 32,
        "agreed": True,
        "loss": 5.5,
        "validation_loss": 5.25,
        "tokens": {"a": 100, "b": 100, "c": 50},
        # a computes 8 of 10 seconds, b 6 of 10.
        "phase_s": {"a": {"compute": 8.0, "wait": 2.0}, "b": {"compute": 6.0, "fetch": 3.0, "validate": 1.0}},
        "payload_bytes": {"a": 32, "b": 32, "c": 40},
        "absent": [],
        "round_s": 10.0,
    },
    {
        "round": 2,
        "contributors": ["a", "b"],
        "theta_digest": "22" * 32,
        "agreed": True,
        "loss": 4.5,
        "validation_loss": None,
        "tokens": {"a": 100, "b": 100},
        "phase_s": {},
        "payload_bytes": {"a": 32, "b": 24},
        "absent": [{"replica": "c", "reason": "no heartbeat"}],
        "round_s": 12.0,
    },
)


def transfer(member: str, direction: str, num_bytes: int, kind: str = "pseudo_gradient") -> dict[str, Any]:
    return {"member": member, "direction": direction, "bytes": num_bytes, "kind": kind, "round": 1}


LEDGERS = {
    "a": [transfer("a", "sent", 200), transfer("a", "received", 150), transfer("a", "sent", 7, "control")],
    "b": [transfer("b", "sent", 150), transfer("b", "received", 200), transfer("b", "received", 7, "control")],
}


def write_lines(path: Path, documents: Any, torn: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents) + torn)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A complete run."""
    written = RunDirectory(tmp_path)
    written.config.write_text(parse(DOCUMENT).to_toml())
    written.facts.write_text(json.dumps(FACTS))
    write_lines(written.metrics, ROUNDS)
    for member, rows in LEDGERS.items():
        write_lines(written.ledger(member), rows)
    return written


def config(**sections: dict[str, Any]) -> Config:
    return parse(DOCUMENT | {name: DOCUMENT.get(name, {}) | keys for name, keys in sections.items()})


def traffic(report: Report) -> dict[str, tuple[int, int, int | None]]:
    return {part.kind: (part.sent_bytes, part.received_bytes, part.predicted_bytes) for part in report.traffic}


def test_all_keys_of_the_contract_are_there(directory: RunDirectory) -> None:
    document = json.loads(collect(directory).to_json())
    top = {"run", "status", "rounds", "config_digest", "model", "replicas", "rounds_detail", "traffic"}
    top |= {"pseudo_gradient", "links", "baselines", "loss"}
    assert top <= document.keys()
    assert document["model"].keys() == {"name", "parameters"}
    replica = {"id", "kind", "ranks", "stages", "rank_k", "tokens", "rounds_committed"}
    assert replica <= document["replicas"][0].keys()
    detail = {"round", "contributors", "theta_digest", "loss", "compute_s", "exchange_s"}
    assert detail <= document["rounds_detail"][0].keys()
    assert document["traffic"][0].keys() == {"kind", "sent_bytes", "received_bytes", "predicted_bytes"}
    assert [part["kind"] for part in document["traffic"]] == list(KINDS)
    ratios = {"density", "bits_per_value", "bits_per_parameter", "ratio_vs_fp32"}
    assert document["pseudo_gradient"].keys() == ratios
    totals = {"ddp_fp32_bytes", "ddp_bf16_bytes", "diloco_fp32_bytes", "sparseloco_reference_wire_bytes"}
    assert totals <= document["baselines"].keys()
    promised = {"train_first", "train_last", "validation_first", "validation_last"}
    assert document["loss"].keys() == promised | {"unigram_entropy"}
    assert document["links"] == []


def test_headline_facts(directory: RunDirectory) -> None:
    report = collect(directory)
    assert (report.run, report.status, report.rounds, report.rounds_planned) == ("golden", "complete", 2, 2)
    assert report.config_digest == parse(DOCUMENT).digest()
    assert [(r.id, r.tokens, r.rounds_committed) for r in report.replicas] == [
        ("a", 200, 2),
        ("b", 200, 2),
        ("c", 50, 1),
    ]
    assert report.tokens == 450
    assert (report.loss.train_first, report.loss.train_last) == (5.5, 4.5)
    assert (report.loss.validation_first, report.loss.validation_last) == (5.25, 5.25)
    assert report.utilisation == pytest.approx(14 / 20)


def test_a_round_says_its_mean_seconds_and_who_was_missing(directory: RunDirectory) -> None:
    first, second = collect(directory).rounds_detail
    assert (first.compute_s, first.exchange_s) == (7.0, 2.5)  # validation is neither
    assert (second.compute_s, second.exchange_s) == (None, None)
    assert second.absent == {"c": "no heartbeat"}


def test_traffic_sums_both_directions_and_stands_beside_the_prediction(directory: RunDirectory) -> None:
    counted = traffic(collect(directory))
    # A stream of 20 or 12 bytes is one chunk: 5 bytes of gRPC, 2 of protobuf. 46 bytes a contribution;
    # round 1 sends three to two others each, round 2 two to one other each.
    assert counted["pseudo_gradient"] == (350, 350, 46 * (3 * 2 + 2 * 1))
    assert counted["control"][:2] == (7, 7)
    assert counted["activation"] == counted["sequence_all_to_all"] == counted["state_transfer"] == (0, 0, 0)


def test_a_relay_takes_each_payload_up_once_and_down_to_each_other(directory: RunDirectory) -> None:
    directory.config.write_text(config(exchange={"route": "relay"}).to_toml())
    # Down as above; up, each chunk is a message in a message and has 2 bytes more: 50 a contribution.
    assert traffic(collect(directory))["pseudo_gradient"][2] == 3 * (46 * 2 + 50) + 2 * (46 * 1 + 50)


def test_pseudo_gradients_by_the_bytes_that_were_counted(directory: RunDirectory) -> None:
    # 160 payload bytes in 5 contributions of 16 values of 1000 parameters: 256 bits a contribution.
    part = collect(directory).pseudo_gradient
    assert part.density == pytest.approx(0.016)
    assert part.bits_per_value == pytest.approx(16.0)
    assert part.bits_per_parameter == pytest.approx(0.256)
    assert part.ratio_vs_fp32 == pytest.approx(125.0)


def test_baselines_have_the_replicas_that_each_round_had(directory: RunDirectory) -> None:
    part = collect(directory).baselines
    assert part.diloco_fp32_bytes == (4 + 2) * 1000 * 4
    assert part.ddp_fp32_bytes == 3 * (4 + 2) * 1000 * 4
    assert part.ddp_bf16_bytes == 3 * (4 + 2) * 1000 * 2
    assert part.sparseloco_reference_wire_bytes == (6 + 2) * 16 * 9


def test_a_ddp_run_is_held_against_diloco_at_every_hth_of_its_rounds(directory: RunDirectory) -> None:
    directory.config.write_text(config(outer={"method": "ddp"}).to_toml())
    write_lines(directory.metrics, [{"round": n, "contributors": ["a", "b"]} for n in range(1, 7)])
    report = collect(directory)
    assert report.status == "complete"
    assert report.baselines.ddp_fp32_bytes == 6 * 2 * 1000 * 4
    assert report.baselines.diloco_fp32_bytes == 2 * 2 * 1000 * 4
    assert report.baselines.sparseloco_reference_wire_bytes is None


def test_the_last_row_of_a_round_counts(directory: RunDirectory) -> None:
    write_lines(directory.metrics, [*ROUNDS, ROUNDS[1] | {"loss": 4.25}])
    report = collect(directory)
    assert report.rounds == 2
    assert report.loss.train_last == 4.25


def test_a_line_torn_by_a_crash_is_passed_over(directory: RunDirectory) -> None:
    write_lines(directory.metrics, ROUNDS[:1], torn='{"round": 2, "contrib')
    write_lines(directory.ledger("a"), LEDGERS["a"], torn='{"member": "a", "bytes": 10')
    report = collect(directory)
    assert (report.status, report.rounds) == ("interrupted", 1)
    assert traffic(report)["pseudo_gradient"][:2] == (350, 350)


def test_a_loss_that_is_not_a_number_is_null_in_json(directory: RunDirectory) -> None:
    write_lines(directory.metrics, [ROUNDS[0] | {"loss": float("nan")}])
    assert json.loads(collect(directory).to_json())["loss"]["train_last"] is None


def test_a_run_that_died_in_its_first_round_has_a_report(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.config.write_text(parse(DOCUMENT).to_toml())
    report = collect(directory)
    assert (report.status, report.rounds, report.rounds_detail, report.traffic) == ("interrupted", 0, (), ())
    assert report.baselines.ddp_fp32_bytes is None
    assert report.pseudo_gradient.bits_per_value is None
    assert report.loss.train_first is None
    assert report.utilisation is None


def test_a_run_that_is_going_on_says_so(directory: RunDirectory) -> None:
    assert collect(directory, is_running=True).status == "running"


def test_a_replica_that_joined_later_has_its_line(directory: RunDirectory) -> None:
    write_lines(directory.metrics, [ROUNDS[0] | {"contributors": ["a", "z"], "tokens": {"a": 1, "z": 2}}])
    assert [replica.id for replica in collect(directory).replicas] == ["a", "b", "c", "z"]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_no_run_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no run is kept here") as raised:
        collect(RunDirectory(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_tail_gives_each_row_once_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.new_rows() == []
    line = json.dumps(ROUNDS[0]) + "\n"
    path.write_text(line + line[:40])
    assert [row.round for row in tail.new_rows()] == [1]
    assert tail.new_rows() == []
    path.write_text(line + json.dumps(ROUNDS[1]) + "\n")
    assert [row.round for row in tail.new_rows()] == [2]
    assert [row.round for row in read_rounds(path)] == [1, 2]
