"""A whole run that is watched: its pages, metrics, scalars while it goes on, and the dashboard that is made of them."""

import json
import re
import threading
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from comms.agreement import RoundSummary
from comms.ledger import Ledger, Total
from dist_train.config import Config, ConfigError, parse
from dist_train.report.metrics import read_rounds
from dist_train.report.tensorboard import scalars, write_scalars
from dist_train.report.timeline import PHASES
from dist_train.watch.prometheus import HEALTH, LedgerFigures, ReplicaFigures, RunFigures, metrics_page
from dist_train.watch.status_page import status_page
from dist_train.watch.watching import rank_metrics_address
from protos import round_pb2 as pb
from tests.running import run, tiny, write_corpus

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana.json"
HOSTILE = "<script>alert(1)</script>"
SUMMARY = RoundSummary(
    round=3,
    contributors=("a", "b"),
    theta_digest="ab" * 32,
    agreed=True,
    loss=2.5,
    validation_loss=float("nan"),
    tokens={"a": 100, "b": 100},
    phase_s={name: {"compute": 5.0, "wait": 1.0, HOSTILE: 2.0} for name in ("a", "b", HOSTILE)},
    health={"a": {"error_feedback_norm": 1.5, HOSTILE: 1.0}},
    payload_bytes={"a": 10, HOSTILE: 20},
    absent=({"replica": HOSTILE, "reason": HOSTILE},),
    round_s=8.0,
)
STATUS = pb.StatusReply(
    run="demo",
    phase="work",
    round=4,
    total_rounds=10,
    members=[
        pb.MemberStatus(replica=r, state="working", applied_round=3, address=HOSTILE) for r in ("a", "b", HOSTILE)
    ],
    tokens=600,
    loss=2.5,
    failure=HOSTILE,
)


def exposed(body: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, and by their labels' values in the order of the labels' names."""
    families = text_string_to_metric_families(body.decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        name: {tuple(v for _, v in sorted(s.labels.items())): s.value for s in samples if s.name == name}
        for name in {sample.name for sample in samples}
    }


def all_figures(ledger: Ledger) -> bytes:
    run_figures = RunFigures(["a", "b"], lambda: STATUS, lambda: SUMMARY)
    return metrics_page(run_figures, LedgerFigures("a", ledger), ReplicaFigures("a", lambda: 3))().body


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    with Ledger(tmp_path / "a.jsonl", "a") as written:
        written.control(peer="b", direction="sent", num_bytes=5)
        for num_bytes in (70, 30):
            written.transfer(
                round_number=1, peer="b", direction="received", kind="activation", num_bytes=num_bytes, seconds=0.5
            )
        written.flush(1)
        return written


def test_a_ledger_knows_its_totals_whether_written_or_not(ledger: Ledger) -> None:
    assert ledger.totals() == {("control", "sent"): Total(10, 0.0, 1), ("activation", "received"): Total(100, 1.0, 2)}


def test_the_figures_are_the_runs_and_names_that_nobody_planned_add_none(ledger: Ledger) -> None:
    samples = exposed(all_figures(ledger))
    assert samples["dist_train_rounds_committed_total"] == {(): 3.0}
    assert samples["dist_train_tokens_total"] == {(): 600.0}
    assert samples["dist_train_loss"] == {("train",): 2.5}  # what is not a number has no sample
    assert samples["dist_train_members"] == {("working",): 3.0}
    assert samples["dist_train_member_applied_round"] == {("a",): 3.0, ("b",): 3.0}
    assert samples["dist_train_phase_seconds"][("compute", "a")] == 5.0
    assert len(samples["dist_train_phase_seconds"]) == 2 * 2
    assert samples["dist_train_payload_bytes"] == {("a",): 10.0}
    assert samples["dist_train_health"] == {("error_feedback_norm", "a"): 1.5}
    assert samples["dist_train_transfer_bytes_total"][("received", "activation", "a")] == 100.0
    assert samples["dist_train_replica_round"] == {("a",): 3.0}
    assert HOSTILE not in all_figures(ledger).decode()
    assert max(len(by_label) for by_label in samples.values()) <= 2 * max(len(PHASES), len(HEALTH))


def test_each_metric_of_the_dashboard_exists(ledger: Ledger) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in re.findall(r"\b(?:dist_train|process)_\w+", expression)}
    assert len(expressions) >= 12
    assert asked <= exposed(all_figures(ledger)).keys()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_status_page_escapes_what_members_sent_and_offers_no_action() -> None:
    text = status_page(STATUS, SUMMARY).body.decode()
    assert HOSTILE not in text
    assert text.count("&lt;script&gt;") == 7  # the failure, three addresses, a replica; and who was absent, and why
    for tag in ("<form", "<a ", "<button", "<input", "<script", "<img"):
        assert tag not in text
    assert "2.500" in text
    assert "25.0 tokens/s" in text.replace("25 tokens/s", "25.0 tokens/s")


@pytest.mark.parametrize("key", ["status_address", "metrics_address"])
def test_pages_stay_on_this_machine_unless_the_config_says_otherwise(key: str) -> None:
    with pytest.raises(ConfigError, match="beyond_loopback = true"):
        parse({"watch": {key: "0.0.0.0:9400"}})
    assert parse({"watch": {key: "0.0.0.0:9400", "beyond_loopback": True}}).watch.beyond_loopback
    with pytest.raises(ConfigError, match="host:port"):
        parse({"watch": {key: "9400"}})


def test_who_watches_changes_no_run() -> None:
    assert parse({"watch": {"metrics_address": "localhost:9400"}}).digest() == Config().digest()


def test_each_rank_has_a_port_of_its_own() -> None:
    config = parse({"watch": {"metrics_address": "[::1]:9400"}, "replica": [{"id": "x", "ranks": 2}, {"id": "y"}]})
    addresses = [rank_metrics_address(config, replica, rank) for replica, rank in (("x", 0), ("x", 1), ("y", 0))]
    assert addresses == ["[::1]:9401", "[::1]:9402", "[::1]:9403"]


def test_a_run_can_be_watched_while_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    watch = {"status_address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", "tensorboard": str(tmp_path / "tb")}
    config = tiny(tmp_path / "run", write_corpus(tmp_path / "corpus"), watch=watch)
    seen = Counter[str]()

    def look(address: str, over: threading.Event) -> None:
        while not over.is_set():
            for url in sorted(set(re.findall(r"http://\S+", caplog.text))):
                try:
                    with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 - our own server
                        body = reply.read().decode()
                except OSError:
                    continue  # it has just ended
                seen["status"] += "<h1>run</h1>" in body
                seen["coordinator"] += "dist_train_rounds_planned 3.0" in body
                seen["replica"] += "dist_train_replica_round" in body
            over.wait(0.05)

    directory = run(config, look)
    assert min(seen[what] for what in ("status", "coordinator", "replica")) > 0
    rounds = read_rounds(directory.metrics)
    assert written_losses(tmp_path / "tb") == {row.round: pytest.approx(row.loss) for row in rounds}
    assert write_scalars(directory.metrics, tmp_path / "again") == len(rounds) == 3
    assert written_losses(tmp_path / "again") == written_losses(tmp_path / "tb")
    names = dict(scalars(rounds[0]))
    assert {"phase_seconds/a/compute", "health/b/quantizer_error", "loss/validation"} <= names.keys()


def written_losses(folder: Path) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss/train")}
