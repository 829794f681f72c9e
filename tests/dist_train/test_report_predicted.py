"""Predicted bytes, by hand and against what the parts really say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from comms import agreement as a
from comms import wire
from comms.ledger import MESSAGE_HEADER_BYTES
from comms.payloads import stream_bytes
from comms.round_messages import RoundShape, get_bytes, message_bytes
from comms.snapshots import PART_BYTES, Part, encode_index, index_bytes, parts_bytes
from dist_train.checkpoint import CheckpointInfo, Checkpoints, Snapshot, shared_file_bytes
from dist_train.config import parse
from dist_train.pipeline.terms import terms_of
from dist_train.pipeline.traffic import TERMS_BYTES, basis_bytes
from dist_train.predicted_traffic import PREFIX
from dist_train.rank_messages import (
    NUMBER_BYTES,
    SLOT_BYTES,
    number_from_bytes,
    number_to_bytes,
    slot,
    slots_of,
)  # fmt: skip
from dist_train.report.facts import FragmentFacts, RunFacts
from dist_train.report.members import members_of
from dist_train.report.metrics import RoundRow
from dist_train.report.predicted import Predictor

FRAGMENTS = {"embed": 40, "layer.0": 100, "layer.1": 100, "layer.2": 100, "head": 50}


def predictor(replicas: list[dict[str, Any]], **sections: Any) -> Predictor:
    facts = RunFacts(
        fragments={name: FragmentFacts(parameters=n, values=n, payload_bytes=n) for name, n in FRAGMENTS.items()},
        snapshot_bytes=1000,
    )
    return Predictor(parse({"replica": replicas} | sections), facts)


def row(*contributors: str, number: int = 1, **others: Any) -> RoundRow:
    return RoundRow.model_validate({"round": number, "contributors": contributors} | others)


def test_every_stage_gets_the_embedding_and_one_of_them_the_rest() -> None:
    pipeline = {"id": "c", "pipeline": ["s0", "s1", "s2"]}
    sizes = {name: stream_bytes(n) for name, n in FRAGMENTS.items()}
    # a and b get two of each; c's stages two of each that they own, and all three of them two embeddings.
    expected = 6 * sum(sizes.values()) + 2 * 2 * sizes["embed"]
    assert predictor([{"id": "a"}, {"id": "b"}, pipeline]).pseudo_gradient(row("a", "b", "c")) == expected
    # On machines of their own, the other two stages get c's own embedding from the first.
    apart = pipeline | {"hosts": ["h0", "h1", "h2"]}
    predicted = predictor([{"id": "a"}, {"id": "b"}, apart]).pseudo_gradient(row("a", "b", "c"))
    assert predicted == expected + 2 * sizes["embed"]


@pytest.mark.parametrize("hosts", [(), ("h0", "h0", "h2")])
def test_each_get_is_asked_for(hosts: tuple[str, ...]) -> None:
    """Of (1), a request: one more for each stage elsewhere, which gets the embedding of its own replica."""
    pipeline: dict[str, Any] = {"id": "c", "pipeline": ["s0", "s1", "s2"], "channel": "gloo"}
    alone, apart = (
        predictor([{"id": "a"}, pipeline | more]).of_all([row("a", "c")]) for more in ({}, {"hosts": list(hosts)})
    )
    assert alone["control"] is not None
    assert apart["control"] is not None
    assert apart["control"] - alone["control"] == len(set(hosts[1:]) - {"h0"}) * get_bytes("c", 1)


@pytest.mark.parametrize("num_bytes", [1, 1000, PART_BYTES, 3 * PART_BYTES + 5])
def test_an_index_is_as_long_as_a_real_one(num_bytes: int) -> None:
    sizes = [PART_BYTES] * (num_bytes // PART_BYTES) + ([num_bytes % PART_BYTES] if num_bytes % PART_BYTES else [])
    assert list(parts_bytes(num_bytes)) == sizes
    index = encode_index(tuple(Part("cd" * 32, size, 0) for size in sizes))
    assert index_bytes(num_bytes) == len(index)


def test_what_stages_agree_on_is_as_long_as_counted() -> None:
    config = parse({"replica": [{"id": "c", "pipeline": ["x", "y"]}]})
    terms = terms_of(config, config.replica[0])
    assert terms.basis is not None
    assert len(terms.digests()) == TERMS_BYTES
    assert len(terms.basis.to_bytes()) == basis_bytes(terms.basis.rank_k, terms.hidden_size)


def test_what_ranks_tell_each_other_comes_back() -> None:
    slots = [(3, b"a" * 32), (70_000, b"b" * 32)]
    packed = b"".join(slot(place, digest) for place, digest in slots)
    assert len(packed) == 2 * SLOT_BYTES
    assert list(slots_of(packed)) == slots
    assert number_from_bytes(number_to_bytes(2**40)) == 2**40
    assert len(number_to_bytes(2**40)) == NUMBER_BYTES


def test_who_only_listens_gets_all() -> None:
    watched = row("a", "b", applied_at_s={"a": 1.0, "b": 1.0, "late": 1.0})
    assert predictor([{"id": "a"}, {"id": "b"}]).pseudo_gradient(watched) == 4 * sum(
        map(stream_bytes, FRAGMENTS.values())
    )


def test_ranks_own_what_the_duties_say() -> None:
    replicas = [{"id": "a", "ranks": 2}, {"id": "b", "pipeline": ["x", "y"], "split": [2, 1]}]
    config = parse({"model": {"layers": 3}, "replica": replicas})
    members = members_of(config, FRAGMENTS)
    assert members["a"].owned == (("layer.0", "layer.2"), ("embed", "layer.1", "head"))
    assert members["b"].owned == (("embed", "layer.0", "layer.1"), ("layer.2", "head"))


def test_what_engines_told_is_added_up_and_kept_from_health() -> None:
    told = {"a": {f"{PREFIX}sequence_all_to_all": 100.0, "error_feedback_norm": 1.0}}
    rows = [row("a", "b", number=n, health=told) for n in (1, 2)]
    replicas: list[dict[str, Any]] = [{"id": "a", "ranks": 2}, {"id": "b"}]
    assert predictor(replicas).of_all(rows)["sequence_all_to_all"] == 200
    assert rows[0].health == {"a": {"error_feedback_norm": 1.0}}


def test_what_nobody_told_is_unknown_where_somebody_may_have_sent_it() -> None:
    rows = [row("a", "b")]
    pipeline: dict[str, Any] = {"id": "b", "pipeline": ["x", "y"]}
    assert predictor([{"id": "a"}, {"id": "b"}]).of_all(rows)["activation"] == 0
    assert predictor([{"id": "a"}, pipeline]).of_all(rows)["activation"] is None


def test_each_snapshot_that_was_taken_counts() -> None:
    """A process tells how often it has taken one, in every round; one that was started again begins at nothing."""
    told = (1.0, 1.0, 2.0, None, 1.0)
    health = [{"b": {} if taken is None else {"snapshots_taken": taken}} for taken in told]
    rows = [row("a", "b", number=number, health=figures) for number, figures in enumerate(health, start=1)]
    index = encode_index((Part("ab" * 32, 1000, 0),))
    whole = stream_bytes(1000) + stream_bytes(len(index))
    assert predictor([{"id": "a"}, {"id": "b"}]).of_all(rows)["state_transfer"] == 3 * whole


def test_silence_is_filled_with_heartbeats() -> None:
    marks: dict[str, Any] = {"opened_at_s": 0.0, "reported_at_s": {"a": 10.5}, "applied_at_s": {"a": 12.6}}
    exchanges = ({"heartbeat_s": s, "liveness_deadline_s": 100.0, "min_replicas": 1} for s in (40.0, 2.0))
    quick, slow = (
        predictor([{"id": "a"}], exchange=exchange).of_all([row("a", **marks)])["control"] for exchange in exchanges
    )
    assert quick is not None
    assert slow is not None
    assert slow - quick == (5 + 1) * (MESSAGE_HEADER_BYTES + 2)


@pytest.mark.parametrize("contributors", [("a",), ("a", "bb", "c")])
def test_messages_are_as_long_as_real_ones(contributors: tuple[str, ...]) -> None:
    sizes = (("embed", 700), ("layer.0", 70_000))
    shape = RoundShape(3, contributors, contributors, sizes, 30_000, ("compute",))
    entries = tuple(a.Entry(r, f, "ab" * 32, n, 31_000) for r in contributors for f, n in sizes)
    holders = tuple(a.Holder(r, "127.0.0.1:40001") for r in contributors)
    proposal = wire.coordinator_message_to_pb(a.Proposal(3, 1, entries, holders)).ByteSize()
    assert message_bytes(shape).proposal == proposal
    payloads = tuple(a.Payload(f, "ab" * 32, n) for f, n in sizes)
    report = wire.member_message_to_pb(a.Report(3, payloads, 31_000, 2.5, {"compute": 1.5})).ByteSize()
    assert message_bytes(shape).report == report


@pytest.mark.parametrize("copies", [0, 1])
def test_a_snapshot_is_as_long_as_predicted(tmp_path: Path, copies: int) -> None:
    shapes = {"model.embed_tokens.weight": (256, 16), "model.layers.0.mlp.down_proj.weight": (16, 48)}
    theta = {name: torch.zeros(shape) for name, shape in shapes.items()}
    info = CheckpointInfo(120, "ab" * 32, "cd" * 32)
    checkpoints = Checkpoints(tmp_path, "a", 2)
    shared = {name: tensor.clone() for name, tensor in theta.items()} if copies else {}
    checkpoints.write(Snapshot(info, theta, shared, {}, {}))
    written = checkpoints.shared_file(info)
    assert written is not None
    assert shared_file_bytes(shapes, copies) == pytest.approx(written.stat().st_size, abs=16)
