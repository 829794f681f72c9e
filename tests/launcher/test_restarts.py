"""Who is started again, how often, and when: decided without a process."""

from launcher.restarts import LOST_HOST, Restarts

PROCESSES = {"a": ("a",), "b": ("old1", "old2")}


def test_a_replica_that_died_is_started_again_a_little_later_each_time() -> None:
    restarts = Restarts(PROCESSES, allowed=2)
    now_s = 100.0
    for pause_s in (1.0, 2.0):
        restarts.plan({"a": -9}, now_s)
        assert restarts.final({"a": -9}) == {}
        assert restarts.take_due(now_s + pause_s - 0.1) == []
        assert restarts.take_due(now_s + pause_s) == ["a"]
        assert restarts.take_due(now_s + pause_s) == []
    restarts.plan({"a": -9}, now_s)
    assert restarts.take_due(now_s + 1000) == []
    assert restarts.final({"a": -9}) == {"a": -9}


def test_a_pipeline_is_started_again_as_a_whole() -> None:
    restarts = Restarts(PROCESSES, allowed=3)
    assert restarts.left_behind("old2", frozenset({"coordinator", "a", "old1"})) == ("old1",)
    restarts.plan({"old2": -9}, 0.0)
    assert restarts.take_due(60.0) == []  # its first stage has not ended yet
    restarts.plan({"old2": -9, "old1": -15}, 60.0)
    assert restarts.take_due(61.0) == ["b"]


def test_nobody_is_started_again_who_ended_well_or_made_a_config_error() -> None:
    restarts = Restarts(PROCESSES, allowed=3)
    exits = {"a": 0, "old1": 2, "old2": -15, "coordinator": 1}
    restarts.plan(exits, 0.0)
    assert restarts.take_due(1000.0) == []
    assert restarts.final(exits) == {"coordinator": 1, "a": 0, "b": 2}


def test_with_no_restarts_allowed_an_end_is_final() -> None:
    restarts = Restarts(PROCESSES, allowed=0)
    restarts.plan({"a": 1}, 0.0)
    assert restarts.final({"a": 1}) == {"a": 1}
    assert restarts.replica_of("coordinator") is None
    assert restarts.left_behind("coordinator", frozenset({"a"})) == ()


def test_a_lost_host_is_awaited_and_uses_up_no_restart() -> None:
    restarts = Restarts(PROCESSES, allowed=1, lost_host_deadline_s=100.0)
    now_s = 0.0
    for pause_s in (1.0, 2.0, 4.0):
        restarts.plan({"a": LOST_HOST}, now_s)
        assert restarts.final({"a": LOST_HOST}) == {}
        assert restarts.take_due(now_s + pause_s - 0.1) == []
        now_s += pause_s
        assert restarts.take_due(now_s) == ["a"]
    assert restarts.used == {}
    assert restarts.started_again == {"a"}
    # It was back for longer than a try takes, and is lost again: this is another loss, with a time of its own.
    now_s += 90.0
    restarts.plan({"a": LOST_HOST}, now_s)
    assert restarts.take_due(now_s + 1.0) == ["a"]


def test_a_host_that_stays_lost_is_given_up() -> None:
    restarts = Restarts(PROCESSES, allowed=1, lost_host_deadline_s=50.0)
    lost = {"old1": LOST_HOST, "old2": 128 + 15}  # the launcher ended the other stage
    now_s = 0.0
    while True:
        restarts.plan(lost, now_s)
        if not restarts.due_s:
            break
        now_s = restarts.due_s["b"]
        assert restarts.take_due(now_s) == ["b"]
    assert 50.0 <= now_s < 70.0
    restarts.plan(lost, now_s + 1000.0)
    assert restarts.final(lost) == {"b": LOST_HOST}


def test_nobody_is_awaited_when_the_run_is_over() -> None:
    restarts = Restarts(PROCESSES, allowed=1, lost_host_deadline_s=50.0)
    restarts.plan({"a": LOST_HOST}, 0.0)
    assert restarts.final({"a": LOST_HOST}) == {}
    restarts.give_up()
    assert restarts.final({"a": LOST_HOST}) == {"a": LOST_HOST}
