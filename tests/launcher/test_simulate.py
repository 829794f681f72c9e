"""Stories: whole runs on limited links end as unlimited ones do, and leave nothing behind. `kernel` needs root."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_train.config import ConfigError, parse
from launcher.namespaces import Namespace
from launcher.simulate import open_network, with_options
from tests import running
from tests.launcher.test_launch import read_until, wait_until_all_are_gone

COMMAND = (sys.executable, "-m", "launcher", "simulate")
BOUND_S = 30.0
pytestmark = pytest.mark.timeout(115)


def skip_unless_permitted(way: str) -> None:
    if way == "kernel":
        try:
            Namespace().close()
        except OSError as error:
            pytest.skip(f"the kernel lets us make no network namespaces: {error}")


def namespaces_in_use() -> set[str]:
    """Every network namespace that a process, a thread or a descriptor holds, or that has a name."""
    found = set()
    for pattern in ("[0-9]*/ns/net", "[0-9]*/task/*/ns/net", "[0-9]*/fd/*"):
        for link in Path("/proc").glob(pattern):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("net:["):
                found.add(target)
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    return found | {line for line in mounts.splitlines() if " nsfs " in line}


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A config file, and the digests of its run without limits. A contribution is 1.2 Mbit: all values, in fp32."""
    folder = tmp_path_factory.mktemp("unlimited")
    source = running.write_corpus(folder / "texts")
    config = running.tiny(folder / "run", source, outer={"method": "diloco", "rounds": 4})
    (folder / "run.toml").write_text(config.to_toml(), encoding="utf-8")
    return folder / "run.toml", [row["theta_digest"] for row in running.metrics(running.run(config))]


SCHEDULE = """
[[simulate.change]]
round = 2
between = ["a", "b"]
partition = true
lasts = "3s"
[[simulate.change]]
round = 3
member = "b"
line = "5mbit"
"""


@pytest.mark.parametrize("way", ["kernel", "token-bucket"])
def test_limits_and_a_partition_change_no_bit(tmp_path: Path, unlimited: tuple[Path, list[str]], way: str) -> None:
    skip_unless_permitted(way)
    before = namespaces_in_use()
    file, digests = unlimited
    scheduled = tmp_path / "run.toml"
    text = file.read_text(encoding="utf-8").replace("change = []", "")
    scheduled.write_text(text + SCHEDULE, encoding="utf-8")
    directory = tmp_path / "run"
    keys = [f"run.directory={directory}", f"simulate.enforce={way}"]
    limits = ["--link", "20mbit,5ms", "--replica", "a=1mbit/20mbit"]
    done = subprocess.run(
        [*COMMAND, str(scheduled), *keys, *limits], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rates are enforced by: {way}" in done.stdout
    assert "a → b is now cut" in done.stdout
    assert "b's line is now 5 Mbit/s up, 5 Mbit/s down" in done.stdout
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["theta_digest"] for row in rows] == digests
    # a's contribution takes a second, so that the cut, which comes within 0.1 s, finds it on its way.
    assert rows[1]["round_s"] > 2.0, "round 2 waited for the partition to end"

    shown = subprocess.run(
        [sys.executable, "-m", "launcher", "report", str(directory), "--json"], capture_output=True, check=True
    )
    links = {(link["from"], link["to"]): link for link in json.loads(shown.stdout)["links"]}
    assert links["a", "*"]["limit_bits_per_second"] == 1e6
    assert links["a", "b"]["enforced_by"] == way
    assert links["a", "b"]["latency_s"] == 0.005
    assert all(link["goodput_bits_per_second"] <= link["limit_bits_per_second"] * 1.05 for link in links.values())
    assert namespaces_in_use() <= before


@contextmanager
def simulated(file: Path, *keys: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*COMMAND, str(file), *keys], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_nothing_is_left_of_a_launcher_that_was_killed_or_interrupted(
    tmp_path: Path, unlimited: tuple[Path, list[str]]
) -> None:
    skip_unless_permitted("kernel")
    before = namespaces_in_use()
    text = unlimited[0].read_text(encoding="utf-8").replace("rounds = 4", "rounds = 1000000")
    file = tmp_path / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    keys = (f"run.directory={tmp_path / 'run'}", "simulate.enforce=kernel")
    with simulated(file, *keys) as launcher:
        read_until(launcher, "round 1/")
        assert len(namespaces_in_use() - before) == 4, "the hub, the coordinator and two replicas"
        launcher.kill()
    wait_until_all_are_gone(file)
    wait_until_left_as(before)
    with simulated(file, *keys) as launcher:
        read_until(launcher, "resuming")
        read_until(launcher, "replicas started")
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(BOUND_S) == 130
    wait_until_left_as(before)


def wait_until_left_as(before: set[str]) -> None:
    """A killed process holds what it held until the kernel has taken it apart."""
    until_s = time.monotonic() + BOUND_S
    while not namespaces_in_use() <= before:
        assert time.monotonic() < until_s, "a namespace is left behind"
        time.sleep(0.05)


def test_a_token_bucket_is_not_shared_by_ranks(tmp_path: Path) -> None:
    config = parse({"replica": [{"id": "a", "ranks": 2}], "simulate": {"enforce": "token-bucket", "line": "1mbit"}})
    with pytest.raises(ConfigError, match="replica a has several ranks"):
        open_network(config, tmp_path / "simulation.json")


def test_options_go_before_the_file() -> None:
    config = parse({"replica": [{"id": "a"}, {"id": "b"}], "simulate": {"line": "1mbit", "jitter": "1ms"}})
    limited = with_options(config, "50mbit,40ms", ["a=10mbit/20mbit", "coordinator=unlimited"])
    assert (limited.simulate.line, limited.simulate.latency, limited.simulate.jitter) == ("50mbit", "40ms", "1ms")
    assert limited.simulate.lines == {"a": "10mbit/20mbit", "coordinator": "unlimited"}
    for link, replicas, said in (("50", [], "--link"), (None, ["a"], "NAME=10mbit"), (None, ["z=1mbit"], '"z"')):
        with pytest.raises(ConfigError, match=said):
            with_options(config, link, replicas)
