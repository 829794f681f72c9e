"""Real pseudo-gradients to measure codecs with: a short SparseLoCo run, no network, its accumulated buffers kept.

    R replicas of a Llama on the text of Python's standard library, by turns on this machine:
    H inner AdamW steps -> a_r = beta e_r + Delta_r, what the codec is given
    -> encode, decode -> aggregate -> outer step

Of the last rounds every a_r is written to FOLDER/round-N.replica-R.safetensors, a tensor each, called
FRAGMENT/PARAMETER, in the parameter's own shape; the settings stand in the file's metadata.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from comms.leases import LeaseBook
from dist_train.config import Config, parse
from dist_train.data.batches import batches_of
from dist_train.data.corpus import open_corpus
from dist_train.data.stream import Stream
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model
from dist_train.outer import OuterMethod, outer_method

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Captured:
    """What one replica wanted to send in one round."""

    round: int
    replica: int
    fragments: dict[str, dict[str, Tensor]]
    """Fragment to parameter name to a_r, fp32."""

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return sum(t.numel() for tensors in self.fragments.values() for t in tensors.values())


@dataclass
class _Member:
    inner: InnerOptimizer
    outer: OuterMethod


def read(folder: Path) -> list[Captured]:
    """The captured buffers of `folder`, round after round, replica after replica."""
    return [_read_file(path) for path in sorted(folder.glob("round-*.replica-*.safetensors"))]


def capture(folder: Path, config: Config, kept: range) -> Iterator[str]:
    """Runs `config` up to the last of the `kept` rounds, writes their a_r to `folder`; yields a line for each round."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = open_corpus(config.data, vocab_size=config.model.vocab_size, seed=config.run.seed, directory=folder)
    stream, book = Stream(corpus, config.run.seed), LeaseBook(corpus.tokens_per_epoch)
    members = [_member(config) for _ in config.replica]
    round_tokens = config.inner.batch_tokens * config.inner.steps
    for number in range(1, kept.stop):
        started_s, losses = time.monotonic(), list[float]()
        for member in members:
            book, lease = book.grant(round_tokens)
            for batch in batches_of(stream, lease, config.inner.steps):
                losses.append(member.inner.accumulate(batch))
                member.inner.step()
        _exchange(members, number, folder if number in kept else None, config)
        mean = sum(losses) / len(losses)
        yield f"round {number}: training loss {mean:.4f}, {time.monotonic() - started_s:.1f} s"


def _exchange(members: Sequence[_Member], number: int, folder: Path | None, config: Config) -> None:
    """One round's payloads, in memory: encode, decode, aggregate, outer step on every member."""
    kept: list[dict[str, Tensor]] = [{} for _ in members]
    for fragment in members[0].outer.fragments:
        updates = []
        for member, tensors in zip(members, kept, strict=True):
            layout, codec = member.outer.layouts[fragment], member.outer.codec
            accumulated = member.outer.contribution(fragment)
            tensors |= {f"{fragment}/{name}": t.clone() for name, t in layout.unpack(accumulated).items()}
            updates.append(codec.decode(codec.encode(accumulated, layout), layout))
        for member, own in zip(members, updates, strict=True):
            member.outer.apply(fragment, updates, [1] * len(updates), own)
    if folder is not None:
        for replica, tensors in enumerate(kept):
            path = folder / f"round-{number:02}.replica-{replica}.safetensors"
            save_file(tensors, path, {"round": str(number), "replica": str(replica), "config": config.to_toml()})


def _member(config: Config) -> _Member:
    model = build_model(config.model, config.run.seed)
    inner = InnerOptimizer(model, config.inner, config.total_steps)
    return _Member(inner, outer_method(config, model, inner))


def _read_file(path: Path) -> Captured:
    fragments: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 - not a mapping
            fragment, _, name = key.partition("/")
            fragments.setdefault(fragment, {})[name] = file.get_tensor(key)
    return Captured(int(metadata["round"]), int(metadata["replica"]), fragments)


def settings(arguments: argparse.Namespace) -> Config:
    """The run that the command line asks for."""
    a = arguments
    return parse(
        {
            "run": {"name": "capture", "directory": str(a.folder), "seed": a.seed},
            "model": {"hidden_size": a.hidden_size, "layers": a.layers, "heads": max(1, a.hidden_size // 64)},
            "data": {"sequence_tokens": 256, "validation_tokens": 256},
            "inner": {"lr": a.lr, "steps": a.steps, "batch_tokens": a.batch_tokens, "warmup_steps": a.steps},
            "outer": {"rounds": a.schedule_rounds},
            "sparseloco": {"k": a.k, "value_bits": a.value_bits},
            "replica": [{"id": str(replica)} for replica in range(a.replicas)],
        }
    )


def arguments_parser() -> argparse.ArgumentParser:
    """The command line, with what `benchmarks.codec` captures by itself as defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/capture-256"))
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15, help="H, inner steps in a round (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=8, help="last round that is run, and written (default %(default)s)"
    )
    parser.add_argument("--first-kept", type=int, default=5, help="first round written (default %(default)s)")
    parser.add_argument(
        "--schedule-rounds", type=int, default=40, help="where the learning rate's cosine ends (default %(default)s)"
    )
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--value-bits", type=int, default=2, choices=(1, 2, 32))
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Captures."""
    arguments = arguments_parser().parse_args()
    config = settings(arguments)
    print(f"seed {arguments.seed}, {torch.get_num_threads()} threads; writing to {arguments.folder}", flush=True)
    for line in capture(arguments.folder, config, range(arguments.first_kept, arguments.rounds + 1)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
