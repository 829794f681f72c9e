"""What compressed boundaries of weak replicas cost, at equal tokens. `python -m benchmarks.heterogeneous [--json]`.

Four replicas train a small Llama on Python's standard library under SparseLoCo, in this process: a pipeline replica is
its model with boundaries, wire format included, between the layers (`pipeline.rehearsal`). Payloads are encoded and
decoded by the real codec. Each arm's row is written to the results file as soon as it is there, and rows that are there
are not computed again: a run that was killed goes on.

Losses and bytes are deterministic for a seed; the wall-clock is computed, by `seconds`, for machines of a given speed
on links of a given rate, and so are its assumptions in each row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comms.leases import LeaseBook
from compression.feedback import ErrorFeedback
from compression.registry import codec_for
from dist_train.config import Config, parse
from dist_train.data.batches import Batch, batches_of, validation_batches
from dist_train.data.corpus import open_corpus
from dist_train.data.stream import Stream
from dist_train.engine import evaluate
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model, loss_sum
from dist_train.outer import LocalStart, PseudoGradientMethod, outer_method
from dist_train.pipeline.basis import Basis, StreamCovariance
from dist_train.pipeline.rehearsal import Rehearsal
from dist_train.pipeline.subspace import BRANCH_OUTPUTS, EMBEDDING
from dist_train.pipeline.terms import terms_of

REPLICAS = 4
HIDDEN, LAYERS = 128, 4
FIT_AFTER_ROUNDS = (1, 2, 4)
VALIDATE_EVERY = 7
LINKS_BITS_PER_SECOND = (20e6, 80e6, 1e9)
# A device of 4 TFLOP/s would run a model of d = 2048; scaled to d = 128, compute and boundary bytes keep their ratio.
DEVICE_FLOPS = 4e12 * HIDDEN / 2048


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    compressed: int = 0
    """Of the four replicas."""
    compression: str = "none"
    k_divisor: int = 8
    """k = d / this."""
    basis: str = "seeded"
    start: str = "projected"
    """`unprojected`: the pseudo-gradient is measured from the weights before they were projected."""
    absorb: bool = True
    """False: anchors stay where they were at first, whatever a sync adds to the embedding."""
    wire: str = "bf16"
    stages: int = 4

    @property
    def name(self) -> str:
        """For people."""
        if not self.compressed:
            return "all dense"
        bugs = ("" if self.start == "projected" else " unprojected-start") + ("" if self.absorb else " no-absorption")
        kind = "none" if self.compression == "none" else f"{self.compression} d/{self.k_divisor} {self.basis}"
        share = 100 * self.compressed // REPLICAS
        return f"{share} % {kind} {self.wire}{'' if self.stages == 4 else f' {self.stages} stages'}{bugs}"


MAIN = (Arm(), *(Arm(n, mode) for n in (1, 2, 4) for mode in ("subspace", "projected-stream")))
GRID = tuple(
    Arm(n, mode, divisor, basis)
    for divisor in (8, 32, 4)
    for basis in ("seeded", "fitted")
    for n in (2, 1, 4)
    for mode in ("subspace", "projected-stream")
)
ABLATIONS = (
    Arm(2, "subspace", start="unprojected"),
    Arm(2, "subspace", absorb=False),
    Arm(2, "projected-stream", absorb=False),
    Arm(4, "subspace", start="unprojected"),
    Arm(2, "subspace", wire="int8"),
    Arm(2, "projected-stream", wire="int8"),
    Arm(2, "projected-stream", wire="fp32"),
    Arm(4, "none"),
    Arm(2, "subspace", stages=2),
    Arm(2, "projected-stream", stages=2),
)


class _Broken(LocalStart):
    """A bond without the projected start, or without the absorption: what each is worth."""

    def __init__(self, bond: LocalStart, arm: Arm) -> None:
        self._bond, self._arm = bond, arm

    def begin(self, name: str, theta: Tensor) -> Tensor:
        if name == EMBEDDING and not self._arm.absorb:
            return theta
        return self._bond.begin(name, theta)

    def start(self, name: str, theta: Tensor) -> Tensor:
        return theta if self._arm.start == "unprojected" else self._bond.start(name, theta)


def config_of(arm: Arm, seed: int, rounds: int) -> Config:
    """The run of an arm, as its file would say it."""
    pipeline = {
        "compression": arm.compression,
        "rank_k": HIDDEN // arm.k_divisor,
        "wire_dtype": arm.wire,
    }
    replicas: list[dict[str, Any]] = [{"id": f"r{i}"} for i in range(REPLICAS)]
    for replica in replicas[: arm.compressed]:
        replica.update(pipeline, pipeline=[f"{replica['id']}s{stage}" for stage in range(arm.stages)])
    return parse(
        {
            "run": {"seed": seed},
            "model": {"hidden_size": HIDDEN, "layers": LAYERS, "heads": 4},
            "data": {"sequence_tokens": 256, "validation_tokens": 16_384},
            "inner": {"lr": 3e-3, "steps": 15, "batch_tokens": 1024, "warmup_steps": 30},
            "outer": {"rounds": rounds},
            "replica": replicas,
        }
    )


def measure(arm: Arm, seed: int, rounds: int, corpus_folder: Path) -> dict[str, Any]:
    """Trains one arm to its end."""
    started_s = time.monotonic()
    config = config_of(arm, seed, rounds)
    corpus = open_corpus(config.data, vocab_size=config.model.vocab_size, seed=seed, directory=corpus_folder)
    stream, book = Stream(corpus, seed), LeaseBook(corpus.tokens_per_epoch)
    held_out = validation_batches(corpus, config.data.validation_tokens, 8 * config.inner.batch_tokens)
    inners = [_inner(config, i) for i in range(REPLICAS)]
    outers = [_outer(config, arm, inner) for inner in inners]
    curve, tokens, payload_bytes = list[float](), 0, 0
    figures = dict[str, float]()
    for round_number in range(1, rounds + 1):
        weights = []
        for inner in inners:
            book, lease = book.grant(config.inner.steps * config.inner.batch_tokens)
            inner.global_step = (round_number - 1) * config.inner.steps
            weights.append(0)
            for batch in batches_of(stream, lease, config.inner.steps):
                inner.accumulate(batch)
                inner.step()
                weights[-1] += batch.num_tokens
        tokens += sum(weights)
        payload_bytes += _exchange(outers, weights)
        figures = outers[0].figures()
        if arm.compressed and arm.basis == "fitted" and round_number in FIT_AFTER_ROUNDS:
            _refit(config, inners, outers, held_out[0], FIT_AFTER_ROUNDS.index(round_number) + 1)
        if round_number % VALIDATE_EVERY == 0 or round_number == rounds:
            curve.append(_loss_of_theta(config, outers[-1], held_out))
    if len({outer.digest() for outer in outers}) != 1:
        raise ArithmeticError(f"{arm.name}: the replicas do not agree")
    activation_bytes = sum(inner.sent_bytes for inner in inners if isinstance(inner, Rehearsal))
    as_trained = [_mean(evaluate(inner.model, held_out)) for inner in inners if isinstance(inner, Rehearsal)]
    return {
        "arm": arm.name,
        **asdict(arm),
        "seed": seed,
        "rounds": rounds,
        "inner_steps": rounds * config.inner.steps,
        "tokens": tokens,
        "validation_loss": curve[-1],
        "validation_loss_through_boundaries": as_trained[0] if as_trained else None,
        "validation_curve": [round(loss, 4) for loss in curve],
        "payload_bytes": payload_bytes,
        "activation_bytes": activation_bytes,
        "figures": figures,
        "simulated": [
            seconds(arm, config, inners[0], payload_bytes, activation_bytes, r) for r in LINKS_BITS_PER_SECOND
        ],
        "measured_s": round(time.monotonic() - started_s, 1),
    }


def seconds(  # noqa: PLR0917 - the formula has six symbols
    arm: Arm, config: Config, inner: InnerOptimizer, payload_bytes: int, activation_bytes: int, bits_per_second: float
) -> dict[str, float]:
    """Computed seconds of the whole run, on links of one rate.

    A dense replica's machine has the speed of a pipeline's stages together (DEVICE_FLOPS). In a pipeline, compute and
    messages overlap, so its step takes as long as its slower part. A round waits for the slowest replica, then for the
    payloads of all, which come in over the same rate.
    """
    parameters = sum(p.numel() for p in inner.model.parameters())
    compute_s = 6 * parameters * config.inner.batch_tokens / DEVICE_FLOPS
    steps = config.total_steps
    boundaries = max(1, (arm.stages - 1) * arm.compressed)
    boundary_s = activation_bytes / 2 / boundaries / steps * 8 / bits_per_second  # both directions at once
    exchange_s = payload_bytes / config.rounds * 8 / bits_per_second
    return {
        "bits_per_second": bits_per_second,
        "compute_s": round(compute_s * steps, 3),
        "boundaries_s": round(boundary_s * steps, 3) if arm.compressed else 0.0,
        "exchange_s": round(exchange_s * config.rounds, 3),
        "run_s": round(max(compute_s, boundary_s if arm.compressed else 0.0) * steps + exchange_s * config.rounds, 3),
    }


def _inner(config: Config, index: int) -> InnerOptimizer:
    model, replica = build_model(config.model, config.run.seed), config.replica[index]
    if not replica.pipeline:
        return InnerOptimizer(model, config.inner, config.total_steps)
    return Rehearsal(model, config.inner, config.total_steps, terms_of(config, replica))


def _outer(config: Config, arm: Arm, inner: InnerOptimizer) -> PseudoGradientMethod:
    start: LocalStart | None = inner.bond if isinstance(inner, Rehearsal) else None
    if start is not None and (arm.start != "projected" or not arm.absorb):
        start = _Broken(start, arm)
    outer = outer_method(config, inner.model, inner, start=start)
    if not isinstance(outer, PseudoGradientMethod):
        raise TypeError("the arms are runs of sparseloco")
    return outer


def _exchange(outers: list[PseudoGradientMethod], weights: list[int]) -> int:
    """One outer round over encoded payloads; returns their bytes, each replica's once."""
    sent_bytes = 0
    for fragment, layout in outers[0].layouts.items():
        payloads = [outer.codec.encode(outer.contribution(fragment), layout) for outer in outers]
        updates = [outers[0].codec.decode(payload, layout) for payload in payloads]
        sent_bytes += sum(map(len, payloads))
        for outer, update in zip(outers, updates, strict=True):
            outer.apply(fragment, updates, weights, update)
    return sent_bytes


def _refit(
    config: Config, inners: list[InnerOptimizer], outers: list[PseudoGradientMethod], batch: Batch, version: int
) -> None:
    """A new basis for all compressed replicas, from what theta's stream adds to the embedding on one batch."""
    basis = _fitted(config, outers[-1], batch, version)
    for inner, outer, replica in zip(inners, outers, config.replica, strict=True):
        if isinstance(inner, Rehearsal):
            inner.follow(terms_of(config, replica, basis))
            outer.restart_from_theta()


def _fitted(config: Config, outer: PseudoGradientMethod, batch: Batch, version: int) -> Basis:
    model = _dense_model(config, outer)
    covariance, embedded = StreamCovariance(HIDDEN), model.get_parameter(EMBEDDING).detach()[batch.tokens]
    for layer in range(LAYERS - 1):
        model.get_submodule(f"model.layers.{layer}").register_forward_hook(
            lambda _module, _inputs, stream: covariance.add(stream[0] - embedded)
        )
    with torch.no_grad():
        loss_sum(model, batch)
    rank_k = next(replica.rank_k for replica in config.replica if replica.rank_k is not None)
    return covariance.basis(rank_k, version)


def _dense_model(config: Config, outer: PseudoGradientMethod) -> torch.nn.Module:
    model = build_model(config.model, config.run.seed)
    model.load_state_dict(outer.theta(), strict=False)
    return model


def _loss_of_theta(config: Config, outer: PseudoGradientMethod, held_out: list[Batch]) -> float:
    return _mean(evaluate(_dense_model(config, outer), held_out))


def _mean(total_and_targets: tuple[float, int]) -> float:
    return total_and_targets[0] / total_and_targets[1]


# ---- in which form bound weights should travel ----


def wire_forms(seed: int, rounds: int, corpus_folder: Path) -> list[dict[str, Any]]:
    """A bound replica's pseudo-gradients through both forms: what has arrived after all rounds, and for how many bytes.

    `ambient`: top-k of the (d, in) matrix. `coordinates`: top-k of Z = U' Delta (k, in), expanded by U, at the same
    density of a chunk, and at one larger by d / k.
    """
    arm = Arm(1, "subspace")
    config = config_of(arm, seed, rounds)
    deltas, basis = _recorded(arm, config, corpus_folder)
    u = basis.columns.float()
    forms = {"ambient": (None, 64), "coordinates": (u, 64), "coordinates, k 512": (u, 64 * arm.k_divisor)}
    return [{"form": form, "seed": seed, **_through(deltas, *how)} for form, how in forms.items()]


def _recorded(arm: Arm, config: Config, corpus_folder: Path) -> tuple[list[dict[str, Tensor]], Basis]:
    """The bound matrices' pseudo-gradients, round after round, of a replica that trains alone."""
    corpus = open_corpus(config.data, vocab_size=256, seed=config.run.seed, directory=corpus_folder)
    stream, book = Stream(corpus, config.run.seed), LeaseBook(corpus.tokens_per_epoch)
    inner = _inner(config, 0)
    outer = _outer(config, arm, inner)
    bound = [n for n in outer.theta() if any(o in n for o in BRANCH_OUTPUTS) and f"layers.{LAYERS - 1}" not in n]
    deltas = []
    for _ in range(config.rounds):
        before = {name: inner.model.get_parameter(name).detach().clone() for name in bound}
        book, lease = book.grant(config.inner.steps * config.inner.batch_tokens)
        for batch in batches_of(stream, lease, config.inner.steps):
            inner.accumulate(batch)
            inner.step()
        deltas.append({name: before[name] - inner.model.get_parameter(name).detach() for name in bound})
    basis = terms_of(config, config.replica[0]).basis
    if basis is None:
        raise TypeError("this arm has a basis")
    return deltas, basis


def _through(deltas: list[dict[str, Tensor]], u: Tensor | None, kept: int) -> dict[str, Any]:
    """What arrived against what was meant, over all rounds, with error feedback."""
    codec = codec_for("sparseloco", chunk=4096, k=kept)
    first = {name: delta if u is None else u.T @ delta for name, delta in deltas[0].items()}
    layout = codec.layout({name: tuple(t.shape) for name, t in first.items()})
    feedback, arrived, sent_bytes = ErrorFeedback(0.95), torch.zeros(layout.num_values), 0
    for round_deltas in deltas:
        coded = {name: delta if u is None else u.T @ delta for name, delta in round_deltas.items()}
        payload = codec.encode(feedback.accumulate("bound", layout.pack(coded)), layout)
        update = codec.decode(payload, layout)
        update.add_to(arrived)
        feedback.settle("bound", update)
        sent_bytes += len(payload)
    found = torch.cat([(t if u is None else u @ t).flatten() for t in layout.unpack(arrived).values()])
    meant = torch.cat([torch.stack([d[name] for d in deltas]).sum(dim=0).flatten() for name in deltas[0]])
    cosine = float(torch.cosine_similarity(found, meant, dim=0))
    return {"sent_bytes": sent_bytes, "cosine": cosine, "missing": float((found - meant).norm() / meant.norm())}


# ---- the command ----


def wanted(which: str, seeds: int) -> Iterator[tuple[Arm, int]]:
    """Arms and seeds in the order of their importance."""
    arms = {"main": MAIN, "grid": GRID, "ablations": ABLATIONS}
    if which in ("main", "all"):
        yield from ((arm, seed) for seed in range(seeds) for arm in MAIN)
    for name in ("ablations", "grid"):
        if which in (name, "all"):
            yield from ((arm, 0) for arm in arms[name])


def main() -> None:
    """Runs the arms that the results file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", default="all", choices=["main", "ablations", "grid", "wire-forms", "all"])
    parser.add_argument("--seeds", type=int, default=3, help="of the main arms; the others have one")
    parser.add_argument("--rounds", type=int, default=14, help="of 15 inner steps")
    parser.add_argument("--results", type=Path, help="JSONL to go on from; a temporary one when left out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results: Path = options.results or Path(folder) / "results.jsonl"
        if options.arms == "wire-forms":
            _print([row for s in range(options.seeds) for row in wire_forms(s, options.rounds, Path(folder))], True)
            return
        rows = [json.loads(row) for row in results.read_text("utf-8").splitlines()] if results.exists() else []
        done = {(row["arm"], row["seed"], row["rounds"]): row for row in rows}
        chosen = []
        for arm, seed in wanted(options.arms, options.seeds):
            key = (arm.name, seed, options.rounds)
            if key not in done:
                done[key] = measure(arm, seed, options.rounds, Path(folder))
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[key]) + "\n")
                print(line(done[key]), file=sys.stderr if options.json else sys.stdout, flush=True)
            chosen.append(done[key])
        if options.json:
            _print(chosen, True)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    print(json.dumps(rows, indent=1) if as_json else "\n".join(map(line, rows)))


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    through = row["validation_loss_through_boundaries"]
    return (
        f"{row['arm']:58} seed {row['seed']}  validation {row['validation_loss']:.4f}  "
        f"through boundaries {'-' if through is None else f'{through:.4f}'}  "
        f"payloads {row['payload_bytes'] / 1e6:.2f} MB  "
        f"activations {row['activation_bytes'] / 1e6:.1f} MB  ({row['measured_s']:.0f} s)"
    )


if __name__ == "__main__":
    main()
