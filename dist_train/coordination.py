"""The coordinator of a run, as its config wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from comms.agreement import COORDINATOR
from comms.coordinator import coordinate
from comms.ledger import Ledger
from comms.run_state import RoundRules
from comms.store import PayloadStore
from dist_train.config import Config
from dist_train.discovery import advertised, discovery_of
from dist_train.run_directory import RunDirectory
from dist_train.security import security_of
from dist_train.watch.watching import watching_coordinator


def run_coordinator(config: Config, directory: RunDirectory, on_listening: Callable[[str], None]) -> None:
    """Serves the run until it is over; calls `on_listening` with host:port. CommsError when it ends early."""
    exchange, security, rules = config.exchange, security_of(config, COORDINATOR), rules_of(config)
    with (
        Ledger(directory.ledger(COORDINATOR), COORDINATOR) as ledger,
        discovery_of(config, COORDINATOR, security) as discovery,
    ):

        def tell(bound: str) -> None:
            if discovery is not None:
                discovery.announce(advertised(config, bound))
            on_listening(bound)

        asyncio.run(
            coordinate(
                run=config.run.name,
                rules=rules,
                address=exchange.address,
                security=security,
                journal_path=directory.journal,
                ledger=ledger,
                metrics=directory.metrics,
                relay_store=PayloadStore(directory.payloads(COORDINATOR)) if exchange.route == "relay" else None,
                shared_config=config.to_shared_json(),
                on_listening=tell,
                watching=partial(watching_coordinator, config, directory, ledger),
            )
        )


def rules_of(config: Config) -> RoundRules:
    """What the round machine goes by."""
    exchange = config.exchange
    return RoundRules(
        replicas=tuple(sorted(replica.id for replica in config.replica)),
        config_digest=config.digest(),
        rounds=config.rounds,
        lease_tokens=config.steps_per_round * config.inner.batch_tokens,
        min_replicas=exchange.min_replicas,
        gather_deadline_s=exchange.gather_deadline_s,
        publish_deadline_s=exchange.publish_deadline_s,
        fetch_deadline_s=exchange.fetch_deadline_s,
        liveness_deadline_s=exchange.liveness_deadline_s,
        most_payload_bytes=exchange.most_payload_bytes,
        reconnect_deadline_s=exchange.reconnect_deadline_s,
        work_deadline_s=exchange.work_deadline_s,
        ending_deadline_s=exchange.outage_deadline_s,
        most_replicas=exchange.most_replicas,
        most_faults=exchange.most_faults,
        most_replayed_rounds=exchange.most_replayed_rounds,
    )
