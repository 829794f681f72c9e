"""A plan's figures: the published runs, the report's own closed forms, any number of replicas, what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comms.payloads import CALL_BYTES, stream_bytes
from comms.virtual_network import framed_bytes
from compression.codec import Layout
from compression.registry import codec_for
from dist_train import baselines
from dist_train.config import Config, ConfigError, load, parse
from dist_train.planning.assumptions import Assumptions, Measured
from dist_train.planning.contents import Plan
from dist_train.planning.crossover import aggregate_bytes, all_gather_bytes, crossover_replicas
from dist_train.planning.predict import predict
from dist_train.report.traffic import predicted_exchange_bytes

EXAMPLES = Path(__file__).parents[3] / "examples"


def planned(**sections: Any) -> Plan:
    return predict(config_of(**sections))


def config_of(**sections: Any) -> Config:
    small = {"model": {"hidden_size": 64, "layers": 4, "heads": 4}, "inner": {"micro_batch_tokens": 1024}}
    return parse(small | sections)


def test_the_512m_recipe_has_the_published_payload() -> None:
    plan = predict(load(EXAMPLES / "plan-512m.toml"))
    # 128 of 4096 values at 14 bits: 0.4375 bits a parameter.
    assert plan.payload.payload_bytes == pytest.approx(512e6 * 128 / 4096 * 14 / 8, rel=0.1)
    assert plan.payload.codec_bytes < 0.65 * plan.payload.payload_bytes
    assert plan.replicas == 8
    assert plan.tokens_per_round * plan.rounds == pytest.approx(10.26e9, rel=0.01)


def test_the_72b_run_has_the_published_payload_and_utilisation() -> None:
    plan = predict(load(EXAMPLES / "plan-72b.toml"))
    assert plan.model.parameters == pytest.approx(72.7e9, rel=0.01)
    assert plan.payload.ratio_vs_fp32 == pytest.approx(146, rel=0.1)
    assert plan.payload.payload_bytes == pytest.approx(72.7e9 * 0.21875 / 8, rel=0.01)
    (group,) = plan.groups
    assert group.phases.compute_s == pytest.approx(1200, rel=0.01)
    assert plan.utilisation == pytest.approx(0.945, rel=0.1)
    assert not [problem for problem in plan.problems if problem.severity == "error"]
    ours = predict(load(EXAMPLES / "plan-72b.toml").model_copy(update={"plan": plan_section(bits_per_value=None)}))
    assert ours.utilisation is not None
    assert ours.utilisation > (plan.utilisation or 1)
    assert ours.payload.payload_bytes == plan.payload.codec_bytes


def plan_section(**changes: Any) -> Any:
    return load(EXAMPLES / "plan-72b.toml").plan.model_copy(update=changes)


def test_one_line_for_each_replica_would_not_give_the_published_utilisation() -> None:
    """Said in docs/plan.md: 19 payloads of 2 GB, in packets, take ten minutes at 500 Mbit/s."""
    plan = predict(load(EXAMPLES / "plan-72b.toml"), Assumptions(line="110mbit/500mbit"))
    assert plan.groups[0].phases.fetch_s == pytest.approx(19 * framed_bytes(1_990_000_000) * 8 / 500e6, rel=0.01)
    assert plan.utilisation is not None
    assert plan.utilisation < 0.65
    assert any("exchange.fetch_deadline_s" in problem.remedy for problem in plan.problems)


def layouts_of(config: Config) -> list[Layout]:
    from dist_train.model import build_model, fragments  # noqa: PLC0415 - torch's models are slow to import

    return [
        codec_for("sparseloco").layout({n: tuple(p.shape) for n, p in ps.items()})
        for ps in fragments(build_model(config.model, 0)).values()
    ]


@pytest.mark.parametrize("route", ["direct", "relay"])
def test_bytes_are_the_report_s_own_prediction(route: str) -> None:
    config = config_of(exchange={"route": route}, replica=[{"id": "a"}, {"id": "b"}, {"id": "c"}])
    plan = predict(config)
    codec, layouts = codec_for("sparseloco"), layouts_of(config)
    sizes = [codec.num_bytes(layout) for layout in layouts]
    assert plan.payload.payload_bytes == sum(sizes)
    assert plan.payload.first_round_bytes == sum(codec.num_bytes(layout, 1) for layout in layouts)
    assert plan.payload.values == sum(codec.num_values(layout) for layout in layouts)
    exchanged = predicted_exchange_bytes([3], sizes, route, stream_bytes)
    assert plan.traffic[0].sent_bytes == exchanged
    (group,) = plan.groups
    relayed_by_coordinator = exchanged - 3 * group.sent_bytes if route == "relay" else 0
    assert 3 * group.sent_bytes + relayed_by_coordinator == exchanged
    assert 3 * group.received_bytes == 3 * 2 * sum(stream_bytes(size, "get") for size in sizes)
    assert plan.baselines.ddp_fp32_bytes == baselines.ddp_bytes([3], 15, plan.model.parameters, 4)


def test_a_link_takes_the_seconds_of_its_phase() -> None:
    """Both count what a line carries; a phase has its questions' latency besides."""
    relayed = predict(load(EXAMPLES / "plan-72b.toml")).groups[0]
    up, down = relayed.links
    assert up.seconds_per_round + 2 * 0.05 == pytest.approx(relayed.phases.publish_s)
    assert down.seconds_per_round + 4 * 0.05 == pytest.approx(relayed.phases.fetch_s)
    assert up.seconds_per_round == pytest.approx(8 * framed_bytes(up.bytes_per_round) / 880e6, rel=0.001)
    direct = predict(config_of(), Assumptions(replicas=3, line="1mbit", latency="50ms")).groups[0]
    for link in direct.links:
        assert link.seconds_per_round + 4 * 0.05 == pytest.approx(direct.phases.fetch_s)


@pytest.mark.parametrize("replicas", [1, 10_000])
def test_one_or_ten_thousand_replicas_are_one_group(replicas: int) -> None:
    plan = predict(config_of(), Assumptions(replicas=replicas))
    assert plan.replicas == replicas
    assert [group.count for group in plan.groups] == [replicas]
    per_replica = plan.groups[0].received_bytes
    assert per_replica == pytest.approx((replicas - 1) * plan.payload.payload_bytes, rel=0.01)
    assert plan.crossover is not None
    assert (plan.crossover.replicas or 10**9) > 1
    if replicas > (plan.crossover.replicas or 10**9):
        assert plan.crossover.aggregate_bytes < plan.crossover.all_gather_bytes


@pytest.mark.parametrize("share", [1 / 64, 1 / 32, 0.25])
def test_the_crossover_is_where_the_sum_becomes_smaller(share: float) -> None:
    parameters, payload_bytes = 1_000_000, 1_000_000 * share * 9 / 8
    crossing = crossover_replicas(parameters, payload_bytes, share)
    wins = [aggregate_bytes(r, parameters, share) < all_gather_bytes(r, payload_bytes) for r in range(1, 300)]
    assert crossing is not None
    assert wins == [r >= crossing for r in range(1, 300)]


def test_seconds_follow_from_rates_and_measured_figures() -> None:
    measured = Measured("cpu", 0.01, 0.005, 8e9, 1e8, 2e8)
    config = config_of(inner={"steps": 10, "batch_tokens": 2048, "micro_batch_tokens": 1024})
    plan = predict(config, Assumptions(replicas=3, line="1mbit/2mbit", latency="50ms", measured=measured))
    (group,) = plan.groups
    phases = group.phases
    assert phases.compute_s == pytest.approx(10 * 2 * (4 * 0.01 + 0.005))
    line_bytes = sum(
        framed_bytes(stream_bytes(size, "get")) + CALL_BYTES
        for size in map(codec_for("sparseloco").num_bytes, layouts_of(config))
    )
    assert phases.fetch_s == pytest.approx(8 * 2 * line_bytes / 1e6 + 0.2)  # the others' way up is the slower
    assert phases.encode_s == plan.model.parameters / 1e8
    assert phases.decode_s == 3 * plan.model.parameters / 2e8
    assert phases.compute_s is not None
    assert plan.round_s is not None
    assert plan.round_s == pytest.approx(phases.compute_s + phases.exchange_s)
    assert plan.utilisation == pytest.approx(phases.compute_s / (phases.compute_s + phases.exchange_s))
    assert plan.tokens_per_day == pytest.approx(3 * 10 * 2048 / plan.round_s * 86_400)


def test_a_measurement_that_was_disturbed_says_so() -> None:
    quiet = Measured("cpu", 0.01, 0.005, 8e9, 1e8, 2e8)
    said = [
        predict(config_of(), Assumptions(measured=one)).calibration
        for one in (quiet, replace(quiet, is_disturbed=True))
    ]
    assert said[0] == "measured on this machine (cpu)"
    assert said[1].startswith(f"{said[0]} while it was busy")


def test_the_suggested_number_of_inner_steps_brings_the_wanted_utilisation() -> None:
    measured = Measured("cpu", 0.001, 0.0, 8e9, 1e9, 1e9)
    inner = {"steps": 15, "batch_tokens": 1024, "micro_batch_tokens": 1024}
    plan = predict(config_of(inner=inner), Assumptions(replicas=2, line="100kbit", measured=measured))
    (advice,) = [p for p in plan.problems if p.what.startswith("computing fills")]
    steps = int(advice.remedy.removeprefix("inner.steps = ").split()[0])
    again = predict(config_of(inner=inner | {"steps": steps}), Assumptions(2, "100kbit", measured=measured))
    assert again.utilisation == pytest.approx(0.9, abs=0.005)


def test_what_does_not_fit_is_an_error_with_a_remedy_that_helps() -> None:
    device = {"name": "a", "tflops": 1, "memory_bytes": 30e6}
    config: dict[str, Any] = {"inner": {"batch_tokens": 16384}, "data": {"sequence_tokens": 512}, "device": [device]}
    (problem,) = planned(**config).problems
    assert problem.severity == "error"
    tokens = int(problem.remedy.removeprefix("set inner.micro_batch_tokens = ").split()[0])
    config["inner"]["micro_batch_tokens"] = tokens
    plan = planned(**config)
    assert not plan.problems
    assert plan.groups[0].stages[0].fits


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_example_can_be_planned(example: Path) -> None:
    assert predict(load(example)).groups


def test_machines_that_nothing_describes_are_unknown_or_as_fast_as_this_one() -> None:
    replicas: list[dict[str, Any]] = [{"id": "a"}, {"id": "c", "pipeline": ["x", "y"]}]
    unknown = planned(replica=replicas)
    assert unknown.round_s is None
    assert unknown.traffic[1].sent_bytes > 0, "bytes need no machine"
    measured = Measured("cpu", 0.01, 0.005, 8e9, 1e8, 2e8)
    known = predict(config_of(replica=replicas), Assumptions(line="10mbit", measured=measured))
    assert known.round_s is not None
    assert sorted(stage.device for group in known.groups for stage in group.stages) == ["this machine", "x", "y"]


def test_machines_that_no_replica_names_are_placed() -> None:
    weak = {"name": "weak", "count": 4, "tflops": 1e-3, "memory_bytes": 2e6, "line": "1gbit", "latency": "1ms"}
    strong = {"name": "strong", "tflops": 4e-3, "memory_bytes": 1e9}
    sections: dict[str, Any] = {
        "inner": {"batch_tokens": 1024, "micro_batch_tokens": 64},
        "data": {"sequence_tokens": 64},
        "device": [weak, strong],
    }
    plan = planned(**sections)
    assert plan.placed
    pipelines = [group for group in plan.groups if group.kind == "pipeline"]
    assert pipelines
    assert all(stage.fits for group in plan.groups for stage in group.stages)
    assert sum(stage.layers for stage in pipelines[0].stages) == 4
    boundary = next(part for part in plan.traffic if part.kind == "activation_gradient")
    assert boundary.sent_bytes > 0
    tiny = [weak | {"memory_bytes": 1000.0}]
    with pytest.raises(ConfigError, match="weak-1 has .* GB, and one layer alone takes"):
        planned(**(sections | {"device": tiny}))


def test_costs_count_machines_and_bytes() -> None:
    device = {"name": "a", "tflops": 1e-3}
    plan = planned(device=[device], prices={"device_hour": 2.0, "sent_gigabyte": 0.0, "currency": "EUR"})
    assert plan.cost is not None
    assert plan.run_s is not None
    assert plan.cost.total == pytest.approx(plan.run_s / 3600 * 2.0)
    assert plan.cost.currency == "EUR"


def test_unknown_figures_are_null_and_infinity_never_reaches_the_json() -> None:
    document = json.loads(planned().to_json())
    assert document["round_s"] is None
    assert document["groups"][0]["phases"]["compute_s"] is None
    assert document["groups"][0]["links"][0]["limit_bits_per_second"] is None
    assert "--measure" in document["calibration"]


def test_what_is_only_foretold_does_not_change_the_run() -> None:
    assert config_of(plan={"replicas": 7}, prices={"device_hour": 1}).digest() == config_of().digest()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"plan": {"device": "x"}}, 'plan.device = "x" is none of the'),
        ({"device": [{"name": "x"}, {"name": "a"}]}, "device x has no tflops"),
        ({"device": [{"name": "x", "tflops": 1}, {"name": "x", "tflops": 1}]}, "given twice"),
        ({"device": [{"name": "x", "line": "fast"}]}, "is no rate"),
    ],
)
def test_bad_figures_are_one_line(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        planned(**sections)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["diloco", "ddp"])
def test_dense_methods_have_plans_too(method: str) -> None:
    plan = planned(outer={"method": method}, replica=[{"id": "a"}, {"id": "b"}])
    assert plan.payload.payload_bytes == pytest.approx(4 * plan.model.parameters, rel=0.05)
    assert plan.payload.first_round_bytes == plan.payload.payload_bytes
    assert plan.crossover is None
