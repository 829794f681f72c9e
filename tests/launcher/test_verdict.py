"""What the ends of processes mean for a run."""

import pytest

from launcher.verdict import exit_text, is_finishing, judge

REPLICAS = ("a", "b", "c")


def code(exits: dict[str, int], min_replicas: int = 2) -> int | None:
    verdict = judge(exits, REPLICAS, min_replicas)
    return None if verdict is None else verdict.exit_code


@pytest.mark.parametrize(
    ("exits", "expected"),
    [
        pytest.param({}, None, id="all are running"),
        pytest.param({"a": 1}, None, id="enough are left"),
        pytest.param({"a": 1, "b": -9}, 1, id="too few are left"),
        pytest.param({"a": 2, "b": 1}, 2, id="a config error is one here too"),
        pytest.param({"coordinator": 1}, 1, id="nothing goes on without the coordinator"),
        pytest.param({"coordinator": -9}, 1, id="however it ended"),
        pytest.param({"coordinator": 2}, 2, id="a config error of the coordinator"),
        pytest.param({"coordinator": 0}, None, id="replicas have to finish"),
        pytest.param({"coordinator": 0, "a": 0, "b": 0}, None, id="each of them"),
        pytest.param({"a": 0, "b": 0, "c": 0}, None, id="and the coordinator"),
        pytest.param({"coordinator": 0, "a": 0, "b": 0, "c": 0}, 0, id="complete"),
        pytest.param({"coordinator": 0, "a": 0, "b": 0, "c": 1}, 0, id="complete with a loss on the way"),
    ],
)
def test_judge(exits: dict[str, int], expected: int | None) -> None:
    assert code(exits) == expected


def test_the_reason_names_the_key() -> None:
    verdict = judge({"a": 1, "b": 1}, REPLICAS, 2)
    assert verdict is not None
    assert verdict.reason == "1 of 3 replicas are left, and exchange.min_replicas = 2"


def test_a_config_error_is_mended_and_all_else_resumed() -> None:
    for code, said in ((2, "Mend what is said above"), (1, "to resume")):
        verdict = judge({"coordinator": code}, REPLICAS, 2)
        assert verdict is not None
        assert said in verdict.remedy


def test_the_rest_has_only_to_finish_when_the_work_is_done() -> None:
    assert is_finishing({"coordinator": 0}, REPLICAS)
    assert is_finishing({"a": 0, "b": 1, "c": 0}, REPLICAS)
    assert not is_finishing({"a": 0}, REPLICAS)


def test_ends_in_words() -> None:
    assert exit_text(3) == "ended with exit code 3"
    assert exit_text(-15) == "was killed by SIGTERM"
    assert exit_text(-9) == "was killed by SIGKILL (was memory short?)"
    assert exit_text(-250) == "was killed by signal 250"
