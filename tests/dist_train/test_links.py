"""Links from the config: how they are read, what a schedule makes of them, and that they decide nothing of the run."""

from __future__ import annotations

from typing import Any

import pytest

from comms.link_plan import Line, Path
from dist_train.config import ConfigError, parse
from dist_train.links import begin, differences, link_plan, members_of, plan_at
from dist_train.rates import bits_per_second, line_of, link_of, seconds

REPLICAS = [{"id": "a"}, {"id": "b"}, {"id": "c"}]


def config(**sections: Any) -> Any:
    return parse({"replica": REPLICAS, **sections})


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50mbit", 50e6),
        ("1.5 gbit", 1.5e9),
        ("800kbit", 8e5),
        ("20Mbit", 2e7),
        ("9600bit", 9600.0),
        ("unlimited", None),
    ],
)
def test_rates(text: str, rate: float | None) -> None:
    assert bits_per_second(text) == rate


@pytest.mark.parametrize("text", ["", "50", "50mb", "mbit", "-1mbit", "1bit", "1e3mbit", "900gbit", "50mbit/s"])
def test_what_is_no_rate_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match='such as "50mbit"|8kbit to 100gbit'):
        bits_per_second(text)


def test_times_lines_and_links() -> None:
    assert [seconds(text) for text in ("40ms", "2s", "1.5min", "500us")] == [0.04, 2.0, 90.0, 0.0005]
    assert (line_of("10mbit/50mbit").up_bits_per_second, line_of("10mbit/50mbit").down_bits_per_second) == (1e7, 5e7)
    assert line_of("10mbit").down_bits_per_second == 1e7
    assert (link_of("50mbit,40ms").line, link_of("50mbit,40ms").latency) == ("50mbit", "40ms")
    assert (link_of(",40ms").line, link_of("1mbit/2mbit,4ms,1ms").jitter) == (None, "1ms")
    with pytest.raises(ValueError, match='such as "40ms"'):
        link_of("50mbit,40")


def test_defaults_single_lines_and_single_paths() -> None:
    plan = link_plan(
        config(
            simulate={"line": "20mbit", "latency": "10ms", "lines": {"a": "5mbit/unlimited"}},
            link=[
                {"between": ["a", "b"], "rate": "2mbit"},
                {"between": ["b", "c"], "latency": "90ms", "one_way": True},
            ],
        )
    )
    assert plan.line("coordinator") == plan.line("b") == Line(20e6, 20e6)
    assert plan.line("a") == Line(5e6, None)
    assert plan.path("a", "b") == plan.path("b", "a") == Path(2e6, 0.01)
    assert (plan.path("b", "c").latency_s, plan.path("c", "b").latency_s) == (0.09, 0.01)
    assert plan.limit_bits_per_second("a", "b") == 2e6
    assert plan.limit_bits_per_second("a", "c") == 5e6
    assert plan.limit_bits_per_second("c", "a") == 20e6


def test_a_schedule_by_round_and_by_the_clock() -> None:
    changes = [
        {"round": 3, "between": ["a", "b"], "rate": "5mbit"},
        {"after": "60s", "member": "c", "partition": True, "lasts": "20s"},
    ]
    run = config(simulate={"line": "20mbit", "change": changes})
    begun = begin(run, {}, 10.0, open_round=2)
    assert (begun, plan_at(run, begun, 10.0)) == ({}, link_plan(run))
    begun = begin(run, begun, 30.0, open_round=3)
    assert plan_at(run, begun, 30.0).path("b", "a") == Path(5e6)
    begun = begin(run, begun, 61.0, open_round=4)
    assert begun == {0: 30.0, 1: 61.0}, "each begins once, when it was seen to be due"
    cut = plan_at(run, begun, 61.0)
    assert all(cut.path("c", other).is_cut and cut.path(other, "c").is_cut for other in ("a", "b", "coordinator"))
    assert not cut.path("a", "b").is_cut
    after = plan_at(run, begun, 81.0)
    assert [path.is_cut for path in after.every_path] == [False, False]
    assert differences(link_plan(run), after, members_of(run)) == [
        "a → b is now 5 Mbit/s, 0 ms",
        "b → a is now 5 Mbit/s, 0 ms",
    ]


def test_links_do_not_change_what_run_it_is() -> None:
    limited = config(simulate={"line": "1mbit", "latency": "1s"}, link=[{"between": ["a", "b"], "rate": "1mbit"}])
    assert limited.digest() == config().digest()


def change(**keys: Any) -> dict[str, Any]:
    return {"simulate": {"change": [keys]}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"simulate": {"line": "20"}}, 'simulate.line: "20" is no rate'),
        ({"simulate": {"lines": {"z": "1mbit"}}}, 'names "z", which is none of a, b, c, coordinator'),
        ({"link": [{"between": ["a", "a"]}]}, 'joins "a" with itself'),
        ({"link": [{"between": ["a", "b"], "rat": "1mbit"}]}, "did you mean rate?"),
        (change(between=["a", "b"], rate="1mbit"), "either round = 3 or after"),
        (change(round=1, rate="1mbit"), "either between"),
        (change(round=1, member="a", rate="1mbit"), "a member has a line"),
        (change(round=1, member="a"), "a change changes something"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")) as error:
        config(**sections)
    assert "\n" not in str(error.value)
