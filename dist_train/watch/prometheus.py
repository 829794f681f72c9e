"""The figures of a run for Prometheus, read when they are asked for.

Their labels are bounded: replicas are those of the config, phases, kinds and health figures those that we know.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from comms.agreement import RoundSummary
from comms.ledger import Ledger
from dist_train.report.timeline import PHASES
from dist_train.watch.pages import Page
from protos import round_pb2 as pb

HEALTH = ("error_feedback_norm", "quantizer_error", "off_subspace_share")


class LedgerFigures(Collector):
    """What one member has sent and received, by its own count."""

    def __init__(self, member: str, ledger: Ledger) -> None:
        self._member = member
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """Three counters for each kind and direction that occurred."""
        labels = ("member", "kind", "direction")
        num_bytes = CounterMetricFamily(
            "dist_train_transfer_bytes", "Bytes counted at the socket layer.", labels=labels
        )
        seconds = CounterMetricFamily("dist_train_transfer_seconds", "Seconds of all transfers.", labels=labels)
        transfers = CounterMetricFamily("dist_train_transfers", "Transfers; control: messages.", labels=labels)
        for (kind, direction), total in sorted(self._ledger.totals().items()):
            num_bytes.add_metric((self._member, kind, direction), total.bytes)
            seconds.add_metric((self._member, kind, direction), total.seconds)
            transfers.add_metric((self._member, kind, direction), total.transfers)
        yield from (num_bytes, seconds, transfers)


class ReplicaFigures(Collector):
    """How far one replica is."""

    def __init__(self, replica: str, applied_round: Callable[[], int]) -> None:
        self._replica = replica
        self._applied_round = applied_round

    def collect(self) -> Iterator[Metric]:
        """The last round that it has applied."""
        applied = GaugeMetricFamily("dist_train_replica_round", "Last round applied by itself.", labels=("replica",))
        applied.add_metric((self._replica,), self._applied_round())
        yield applied


class RunFigures(Collector):
    """How the run stands, as the coordinator sees it."""

    def __init__(
        self, replicas: Iterable[str], status: Callable[[], pb.StatusReply], summary: Callable[[], RoundSummary | None]
    ) -> None:
        self._replicas = frozenset(replicas)
        self._status = status
        self._summary = summary

    def collect(self) -> Iterator[Metric]:
        """The run's, the members', and those of the last round."""
        status, summary = self._status(), self._summary()
        yield GaugeMetricFamily("dist_train_round", "The open round.", value=status.round)
        yield GaugeMetricFamily("dist_train_rounds_planned", "Rounds of the whole run.", value=status.total_rounds)
        yield CounterMetricFamily("dist_train_tokens", "Tokens of all committed rounds.", value=status.tokens)
        yield GaugeMetricFamily("dist_train_uptime_seconds", "Since the coordinator started.", value=status.uptime_s)
        yield from self._members(status)
        if summary is not None:
            yield from self._last_round(summary)

    def _members(self, status: pb.StatusReply) -> Iterator[Metric]:
        states = GaugeMetricFamily("dist_train_members", "Replicas in each state.", labels=("state",))
        for state, number in sorted(Counter(member.state for member in status.members).items()):
            states.add_metric((state,), number)
        applied = GaugeMetricFamily("dist_train_member_applied_round", "Last round applied.", labels=("replica",))
        for member in status.members:
            if member.replica in self._replicas:
                applied.add_metric((member.replica,), member.applied_round)
        yield from (states, applied)

    def _last_round(self, summary: RoundSummary) -> Iterator[Metric]:
        yield CounterMetricFamily("dist_train_rounds_committed", "Rounds committed so far.", value=summary.round)
        yield GaugeMetricFamily("dist_train_round_seconds", "The last round, opening to commit.", value=summary.round_s)
        yield GaugeMetricFamily("dist_train_round_absent", "Replicas left out of it.", value=len(summary.absent))
        loss = GaugeMetricFamily("dist_train_loss", "Nats a token.", labels=("split",))
        for split, value in (("train", summary.loss), ("validation", summary.validation_loss)):
            if value is not None and math.isfinite(value):
                loss.add_metric((split,), value)
        phases = GaugeMetricFamily("dist_train_phase_seconds", "Of the last round.", labels=("replica", "phase"))
        payloads = GaugeMetricFamily("dist_train_payload_bytes", "Of the last round.", labels=("replica",))
        health = GaugeMetricFamily("dist_train_health", "Of the last round.", labels=("replica", "figure"))
        for replica in sorted(self._replicas):
            for phase in PHASES:
                if (seconds := summary.phase_s.get(replica, {}).get(phase)) is not None:
                    phases.add_metric((replica, phase), seconds)
            if replica in summary.payload_bytes:
                payloads.add_metric((replica,), summary.payload_bytes[replica])
            for figure in HEALTH:
                if (value := summary.health.get(replica, {}).get(figure)) is not None:
                    health.add_metric((replica, figure), value)
        yield from (loss, phases, payloads, health)


def metrics_page(*collectors: Collector) -> Callable[[], Page]:
    """What makes the page that Prometheus reads, with the process's own figures beside `collectors`."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return lambda: Page(CONTENT_TYPE_LATEST, generate_latest(registry))
