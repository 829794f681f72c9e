"""What sections must not contradict each other in, each rule a generator of complaints: value, rule and remedy."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from comms.multiaddress import NOWHERE, all_loopback
from dist_train.config.budget import sharing_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dist_train.config.replicas import ReplicaConfig
    from dist_train.config.whole import Config

CERTIFIED_NAMES = ("ca", "operator")


def problems_of(config: Config) -> Iterator[str]:
    """All contradictions, in words, the plainest first."""
    for rule in RULES:
        yield from rule(config)


def _names(config: Config) -> Iterator[str]:
    ids = [replica.id for replica in config.replica]
    for name in _twice(ids):
        yield f'replica.id = "{name}" is given twice; ids are unique'
    for name in CERTIFIED_NAMES:
        if name in ids:
            yield f'replica.id = "{name}" is a name that certificates need for another; choose another'


def _security(config: Config) -> Iterator[str]:
    if config.security.token_file is not None and config.security.mode != "tls":
        yield (
            f'security.token_file does nothing under security.mode = "{config.security.mode}"; '
            'say "tls", or leave it out'
        )


def _discovery(config: Config) -> Iterator[str]:
    discovery = config.discovery
    if config.security.mode == "loopback" and not all_loopback(discovery.bootstrap, discovery.listen):
        yield (
            'security.mode = "loopback" never leaves this machine, and [discovery] names another: say '
            '/ip4/127.0.0.1/..., or security.mode = "tls"'
        )
    if not discovery.bootstrap and discovery.listen == NOWHERE:
        yield 'discovery.listen = "none" has nobody to ask: name bootstrap peers, or leave it out'


def _members(config: Config) -> Iterator[str]:
    for name in _twice(name for replica in config.replica for name in replica.processes):
        yield f'"{name}" is the name of two machines in [[replica]]; give each its own'
    named, exchange = len(config.replica), config.exchange
    if exchange.min_replicas > max(named, exchange.most_replicas):
        yield f"exchange.min_replicas = {exchange.min_replicas} is more than the {named} [[replica]] sections"
    if 0 < exchange.most_replicas < named:
        yield (
            f"exchange.most_replicas = {exchange.most_replicas} is less than the {named} [[replica]] sections; "
            "raise it, or leave it out"
        )


def _windows(config: Config) -> Iterator[str]:
    seconds = config.inner.seconds
    if seconds is None:
        return
    if config.outer.method == "ddp":
        yield f"inner.seconds = {seconds:g} does nothing under ddp, which exchanges after every step"
    if config.outer.method == "sparseloco" and config.sparseloco.aggregate != "weighted":
        yield (
            f"inner.seconds = {seconds:g} makes contributions of unequal tokens; "
            'weigh them: sparseloco.aggregate = "weighted"'
        )
    if seconds >= config.exchange.work_deadline_s:
        yield (
            f"inner.seconds = {seconds:g} must be less than exchange.work_deadline_s = "
            f"{config.exchange.work_deadline_s:g}"
        )


def _batches(config: Config) -> Iterator[str]:
    for key in ("batch_tokens", "micro_batch_tokens"):
        tokens = getattr(config.inner, key)
        if tokens is not None and tokens < config.data.sequence_tokens:
            yield (
                f"inner.{key} = {tokens} is less than one sequence "
                f"(data.sequence_tokens = {config.data.sequence_tokens}); raise it or shorten the sequences"
            )


def _replicas(config: Config) -> Iterator[str]:
    for replica in config.replica:
        place = f'replica "{replica.id}"'
        if replica.pipeline:
            yield from (f"{place}: {problem}" for problem in _pipeline(config, replica))
        if replica.shard:
            yield from (f"{place}: {problem}" for problem in _shards(config, replica))
        heads = config.model.heads if config.model.path is None else None  # else known once its config has been read
        yield from (f"{place}: {problem}" for problem in sharing_problems(config, replica, heads))


def _pipeline(config: Config, replica: ReplicaConfig) -> Iterator[str]:
    if replica.compression != "none" and config.outer.method == "ddp":
        yield (
            f'compression = "{replica.compression}" cannot be trained with outer.method = "ddp", whose '
            f'replicas have equal weights after every step; choose "sparseloco", "diloco" or compression = "none"'
        )
    if config.model.path is not None:
        return  # the layers and the width are known once the model's own config has been read
    layers, stages = config.model.layers, len(replica.pipeline)
    if replica.split is None and stages > layers:
        yield f"pipeline has {stages} stages for {layers} layers, and a stage must have one; name fewer"
    if replica.split is not None and sum(replica.split) != layers:
        yield f"split = {list(replica.split)} adds up to {sum(replica.split)}, not to model.layers = {layers}"
    if replica.rank_k is not None and replica.rank_k > config.model.hidden_size:
        yield f"rank_k = {replica.rank_k} is above model.hidden_size = {config.model.hidden_size}; lower it"


def _shards(config: Config, replica: ReplicaConfig) -> Iterator[str]:
    method, optimizer, planner = config.outer.method, config.inner.optimizer, config.sequence.planner
    if replica.ranks == 1:
        yield "shard = true needs ranks above 1; one rank has all there is"
    if method == "ddp" or optimizer == "muon" or planner == "off":
        yield (
            'shard = true goes with outer.method = "sparseloco" or "diloco", '
            'inner.optimizer = "adamw" and a sequence.planner; '
            f'leave it out with "{method}", "{optimizer}", "{planner}"'
        )


def _links(config: Config) -> Iterator[str]:
    known = {"coordinator"}.union(*(replica.processes for replica in config.replica))
    changes = config.simulate.change
    pairs = [link.between for link in config.link] + [c.between for c in changes if c.between is not None]
    members = [*config.simulate.lines, *(c.member for c in changes if c.member)]
    for name in [*members, *(name for pair in pairs for name in pair)]:
        if name not in known:
            yield f'a link names "{name}", which is none of {", ".join(sorted(known))}'
    for one, other in pairs:
        if one == other:
            yield f'a link joins two members, and this one joins "{one}" with itself'


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


RULES = (_names, _security, _discovery, _members, _windows, _batches, _replicas, _links)
