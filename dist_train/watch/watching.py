"""What a member of a run shows while it runs, as [watch] of the config wants it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from comms.address import host_and_port
from comms.agreement import COORDINATOR
from comms.coordinator import Coordinator
from comms.ledger import Ledger
from dist_train.config import Config
from dist_train.run_directory import RunDirectory
from dist_train.watch.pages import Pages, serving
from dist_train.watch.prometheus import LedgerFigures, ReplicaFigures, RunFigures, metrics_page
from dist_train.watch.status_page import status_page

_log = logging.getLogger(__name__)


@contextmanager
def watching_coordinator(
    config: Config, directory: RunDirectory, ledger: Ledger, coordinator: Coordinator
) -> Iterator[None]:
    """Serves the coordinator's pages while inside, and writes its rounds for TensorBoard."""
    watch = config.watch
    with ExitStack() as stack:
        if watch.status_address is not None:
            page = {"/": lambda: status_page(coordinator.status(), coordinator.last_summary)}
            _serve(stack, "the status page", watch.status_address, page)
        if watch.metrics_address is not None:
            run = RunFigures((r.id for r in config.replica), coordinator.status, lambda: coordinator.last_summary)
            figures = metrics_page(run, LedgerFigures(COORDINATOR, ledger))
            _serve(stack, "Prometheus metrics", watch.metrics_address, {"/metrics": figures})
        if watch.tensorboard is not None:
            from dist_train.report.tensorboard import following  # noqa: PLC0415 - brings in torch

            stack.enter_context(following(directory.metrics, Path(watch.tensorboard)))
        yield


@contextmanager
def watching_replica(
    config: Config, replica: str, rank: int, ledger: Ledger, applied_round: Callable[[], int]
) -> Iterator[None]:
    """Serves the metrics of one rank of a replica while inside."""
    with ExitStack() as stack:
        if config.watch.metrics_address is not None:
            figures = metrics_page(ReplicaFigures(replica, applied_round), LedgerFigures(replica, ledger))
            address = rank_metrics_address(config, replica, rank)
            _serve(stack, "Prometheus metrics", address, {"/metrics": figures})
        yield


def rank_metrics_address(config: Config, replica: str, rank: int) -> str:
    """The coordinator's, its port raised by the rank's place among all of the config, from 1; port 0 stays 0."""
    host, port = host_and_port(config.watch.metrics_address or "")
    before = config.replica[: [r.id for r in config.replica].index(replica)]
    place = 1 + sum(r.ranks for r in before) + rank
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port + place if port else 0}"


def _serve(stack: ExitStack, what: str, address: str, pages: Pages) -> None:
    bound = stack.enter_context(serving(address, pages))
    _log.info("%s: http://%s%s", what, bound, next(iter(pages)))
