"""What slow links between the stages cost a pipeline: `python -m benchmarks.pipeline [--json] [--quick]`.

The stages are processes on the members' links of `dist-train simulate`, joined by our "grpc" backend as in a run, and
take whole inner steps: 1F1B, clipping over all stages, AdamW, projection. They are started once for each number of
stages; all modes then take turns, each at one rate after the other, so that a busy machine disturbs all alike. A row
has medians over all turns:

    step_s                                   the slowest stage's seconds for an inner step
    activation_bytes, gradient_bytes         a token and boundary, by the ledgers, messages' headers included
    of_unlimited                             tokens/s against the same mode on links without limit, of the same turn
    of_uncompressed                          tokens/s against mode `none` in bf16 on links without limit, of that turn

The processors of one small machine are so slow beside 80 Mbit/s that no usual model would feel the link. So this
model's branches are thin beside its stream (16 of 1024): what a token costs to compute, over what its stream costs to
send, is then what a wide model on accelerators has. `compute_flops_per_sent_byte` says how much that is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from comms import network
from comms.channel import own_host
from comms.ledger import Kind, Ledger
from comms.place import Place
from comms.process_group import grpc_group
from comms.security import Loopback
from dist_train.config import Config, parse
from dist_train.data.batches import Batch
from dist_train.inner import InnerOptimizer
from dist_train.links import link_plan
from dist_train.pipeline.engine import PipelineEngine
from dist_train.pipeline.terms import make_bond, make_stage, terms_of
from launcher.simulate import open_network
from launcher.star import NETWORK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from launcher.network import SimulatedNetwork

ROOT = Path(__file__).parent.parent
HIDDEN, BRANCH, VOCABULARY = 1024, 16, 64
BATCH_TOKENS, DOCUMENT_TOKENS = 4096, 128
RATES_MBIT = (1000, 80, 20)
STAGES = (2, 4)
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class Mode:
    """What crosses a boundary."""

    compression: str
    k_divisor: int
    """k = d / this; 1: the whole stream."""
    wire: str

    @property
    def name(self) -> str:
        """For people."""
        kind = self.compression if self.k_divisor == 1 else f"{self.compression} d/{self.k_divisor}"
        return f"{kind} {self.wire}"


MODES = tuple(
    Mode(c, k, wire) for c, k in (("none", 1), ("subspace", 8), ("subspace", 32)) for wire in ("bf16", "int8")
)


def config_of(mode: Mode, stages: int, model: Path, rate_mbit: int | None, enforce: str) -> Config:
    """The run of a mode on links of one rate, as its file would say it."""
    names = [f"s{i}" for i in range(stages)]
    simulate: dict[str, Any] = {"enforce": enforce}
    if rate_mbit is not None:
        simulate["line"] = f"{rate_mbit}mbit"
    replica = {
        "id": "p", "pipeline": names, "compression": mode.compression,
        "rank_k": HIDDEN // mode.k_divisor, "wire_dtype": mode.wire,
    }  # fmt: skip
    return parse(
        {"run": {"name": "benchmark"}, "model": {"path": str(model)}, "simulate": simulate, "replica": [replica]}
    )


def write_model(folder: Path, layers: int) -> None:
    """A Llama of thin branches, as Hugging Face describes one."""
    architecture = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "num_hidden_layers": layers, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": BRANCH,
        "intermediate_size": BRANCH, "tie_word_embeddings": False, "max_position_embeddings": 4 * DOCUMENT_TOKENS,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(architecture), encoding="utf-8")


# ---- the one who measures ----


def measure(stages: int, turns: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each mode and rate."""
    rates, enforce = (None, *options.rates), options.enforce
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder)
        write_model(model, layers=stages)
        config = config_of(MODES[0], stages, model, None, enforce)
        # A token bucket is laid in its members' way when they start; without a limit it is one that nobody feels.
        limits = {rate: link_plan(config_of(MODES[0], stages, model, rate or 100_000, enforce)) for rate in rates}
        joined = stack.enter_context(open_network(config, model / "simulation.json"))
        joined.become(limits[None])
        members = [_start(joined, name, model) for name in config.replica[0].pipeline]
        for member in members:
            stack.callback(member.kill)
        addresses = [_told(member) for member in members]
        _tell(members, addresses[0])
        found: dict[tuple[int | None, Mode], list[list[dict[str, Any]]]] = {}
        for _ in range(turns):
            for number, mode in enumerate(MODES):
                for rate in rates if mode is MODES[0] or mode.name in options.modes else ():
                    joined.become(limits[rate])
                    _tell(members, {"mode": number, "steps": options.steps})
                    found.setdefault((rate, mode), []).append([_told(member) for member in members])
        _tell(members, None)
        for member in members:
            member.wait(60)
        return list(_rows(found, stages, joined.simulation.rates_by))


def _rows(found: dict[Any, list[list[dict[str, Any]]]], stages: int, rates_by: str) -> Iterator[dict[str, Any]]:
    step_s = {key: [_step_s(told) for told in turns] for key, turns in found.items()}
    for (rate, mode), turns in found.items():
        took_s, free_s = step_s[rate, mode], step_s[None, mode]
        sent = {kind: [_sent(told, kind) for told in turns] for kind in ("activation", "activation_gradient")}
        yield {
            "stages": stages, "enforced_by": rates_by, "rate_mbit": rate, "mode": mode.name, **asdict(mode),
            "step_s": statistics.median(took_s), "tokens_per_s": BATCH_TOKENS / statistics.median(took_s),
            "activation_bytes": statistics.median(sent["activation"]) / BATCH_TOKENS / (stages - 1),
            "gradient_bytes": statistics.median(sent["activation_gradient"]) / BATCH_TOKENS / (stages - 1),
            "of_unlimited": statistics.median(f / t for f, t in zip(free_s, took_s, strict=True)),
            "of_uncompressed": statistics.median(f / t for f, t in zip(step_s[None, MODES[0]], took_s, strict=True)),
            "compute_flops_per_sent_byte": _flops_per_byte(mode), "turns": len(turns),
        }  # fmt: skip


def _step_s(told: Sequence[dict[str, Any]]) -> float:
    """The median over the steps of a turn, of the slowest stage."""
    slowest: list[float] = [max(times) for times in zip(*(member["step_s"] for member in told), strict=True)]
    return statistics.median(slowest)


def _sent(told: Sequence[dict[str, Any]], kind: str) -> float:
    """Bytes of a step, all stages together."""
    return float(sum(member["sent_bytes"][kind] for member in told)) / len(told[0]["step_s"])


def _flops_per_byte(mode: Mode) -> float:
    """Of one layer's forward and backward (6 a parameter), over what a token's stream takes one way."""
    return 6 * 7 * BRANCH * HIDDEN / (HIDDEN / mode.k_divisor * (2 if mode.wire == "bf16" else 1))


def _start(joined: SimulatedNetwork, name: str, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--stage", name, str(model)]
    environment = {"OMP_NUM_THREADS": "1", network.SIMULATION_VARIABLE: str(model / "simulation.json")}
    with joined.entered(name):
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | environment,
        )  # fmt: skip


def _told(member: subprocess.Popen[str]) -> Any:
    if not (line := member.stdout.readline() if member.stdout else ""):
        raise RuntimeError(f"a stage ended with exit code {member.wait()}")
    return json.loads(line)


def _tell(members: Sequence[subprocess.Popen[str]], message: object) -> None:
    for member in members:
        if member.stdin is not None:
            print(json.dumps(message), file=member.stdin, flush=True)


# ---- a stage, in its own process ----


def be_stage(name: str, model: Path) -> None:
    """Joins the others, and takes steps when told to."""
    network.join(name)
    torch.set_num_threads(1)
    stages = json.loads((model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    place = Place("benchmark", "p", int(name[1:]), stages)
    with Ledger(model / f"{name}.jsonl", name) as ledger, grpc_group(
        place, Loopback(), ledger, listen_address=f"{own_host(f'{NETWORK[-2]}:9')}:0",
        on_listening=lambda address: print(json.dumps(address), flush=True),
        rendezvous_address=lambda: str(_asked()),
    ):  # fmt: skip
        if place.rank == 0:
            _asked()  # its own address
        trainers = [_trainer(config_of(mode, stages, model, None, "auto"), place.rank) for mode in MODES]
        while (order := _asked()) is not None:
            print(json.dumps(_steps(trainers[order["mode"]], order["steps"], ledger)), flush=True)


def _asked() -> Any:
    return json.loads(sys.stdin.readline())


def _trainer(config: Config, rank: int) -> InnerOptimizer:
    terms = terms_of(config, config.replica[0])
    stage = make_stage(config, terms, rank)
    bond = make_bond(terms, stage)
    engine = PipelineEngine(stage, bond, terms.micro_batches)
    return InnerOptimizer(stage.model, config.inner, 1000, engine, bond.project_weights if bond else None)


def _steps(trainer: InnerOptimizer, steps: int, ledger: Ledger) -> dict[str, Any]:
    """What `steps` steps took and sent, after one that warms up what has changed."""
    times = []
    before: dict[Kind, int] = {}
    for step in range(WARM_UP_STEPS + steps):
        if step == WARM_UP_STEPS:
            before = _sent_bytes(ledger)
        began_s = time.perf_counter()
        trainer.accumulate(_batch(step))
        trainer.step()
        times.append(time.perf_counter() - began_s)
    sent = {kind: num_bytes - before[kind] for kind, num_bytes in _sent_bytes(ledger).items()}
    return {"step_s": times[WARM_UP_STEPS:], "sent_bytes": sent}


def _sent_bytes(ledger: Ledger) -> dict[Kind, int]:
    kinds: tuple[Kind, ...] = ("activation", "activation_gradient", "intra_replica", "control")
    totals = ledger.totals()
    return {kind: totals[kind, "sent"].bytes if (kind, "sent") in totals else 0 for kind in kinds}


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (BATCH_TOKENS,), generator=generator)
    return Batch(tokens, (DOCUMENT_TOKENS,) * (BATCH_TOKENS // DOCUMENT_TOKENS))


# ---- the command ----


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="2 stages, one turn")
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES)
    parser.add_argument("--rates", type=int, nargs="+", default=RATES_MBIT, help="Mbit/s, beside no limit")
    parser.add_argument("--modes", nargs="+", default=[mode.name for mode in MODES], help='beside "none bf16"')
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each mode and rate in a turn")
    parser.add_argument("--enforce", choices=("auto", "kernel", "token-bucket"), default="auto")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        be_stage(options.stage[0], Path(options.stage[1]))
        return
    for stages in options.stages[:1] if options.quick else options.stages:
        turns = 1 if options.quick else options.turns
        for row in measure(stages, turns, options):
            print(json.dumps(row) if options.json else _line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    rate = "unlimited" if row["rate_mbit"] is None else f"{row['rate_mbit']} Mbit/s"
    return (
        f"{row['stages']} stages  {rate:>11}  {row['mode']:18} step {row['step_s']:6.2f} s  "
        f"{row['tokens_per_s']:6.0f} tokens/s  "
        f"{row['activation_bytes']:6.1f} + {row['gradient_bytes']:6.1f} bytes a token  "
        f"{row['of_unlimited']:.2f} of unlimited, {row['of_uncompressed']:.2f} of uncompressed"
    )


if __name__ == "__main__":
    main()
