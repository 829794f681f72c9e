"""What the work of a virtual replica takes, and where that is let pass.

An inner step and an evaluation take their seconds in `PacedEngine`, a fragment's encoding, a payload's decoding and the
outer step in `VirtualClock.did`. Without a pace they take what they really take on this machine; a payload that another
replica has decoded already is decoded by remembering, and takes what it took the first time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_train.clock import Clock
from dist_train.virtual.pace import Pace

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from comms.virtual_time import Actor
    from compression.codec import Codec, Layout, Shapes, Update
    from dist_train.data.batches import Batch
    from dist_train.engine import Engine
    from dist_train.virtual.machines import Machines

_MOST_REMEMBERED = 4096


class VirtualClock(Clock):
    """The time of one actor."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.pace: Pace | None = None
        """Of the round that is open; None: what is done is measured."""

    def now_s(self) -> float:
        """The actor's own time."""
        return self._actor.now_s

    def did(self, phase: str) -> None:
        """Lets the phase's seconds pass, unless its parts have done so."""
        if self.pace is not None:
            self._actor.spend({"encode": self.pace.encode_s, "apply": self.pace.apply_s}.get(phase, 0.0))

    def decoded(self, first_time_s: float | None) -> None:
        """A payload was decoded; `first_time_s` when it was only remembered."""
        if self.pace is not None:
            self._actor.spend(self.pace.decode_s)
        elif first_time_s is not None:
            self._actor.spend(first_time_s)

    def computed(self, num_tokens: int, begun_s: float, machines: Machines) -> None:
        """An inner step was taken by this process, which stands for `machines`."""
        if self.pace is None:
            done_s = begun_s + machines.measured_s(self.now_s() - begun_s)
            self._actor.go_back(done_s)
            self._actor.be_at(done_s)
        else:
            told_s = num_tokens * self.pace.compute_s_per_token
            self._actor.spend(told_s if self.pace.has_boundaries else machines.told_s(told_s))
        machines.count()

    def validated(self) -> None:
        """The validation documents were evaluated."""
        if self.pace is not None:
            self._actor.spend(self.pace.validate_s)


class PacedEngine:
    """An engine that takes its time."""

    def __init__(self, engine: Engine, clock: VirtualClock, machines: Machines) -> None:
        self._engine = engine
        self._clock = clock
        self._machines = machines

    def expect(self, lengths: Sequence[int] | None) -> None:
        """The engine's."""
        self._engine.expect(lengths)

    def gradient(self, batch: Batch) -> float:
        """The engine's."""
        begun_s = self._clock.now_s()
        loss = self._engine.gradient(batch)
        self._clock.computed(batch.num_tokens, begun_s, self._machines)
        return loss

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """The engine's."""
        found = self._engine.evaluate(batches)
        self._machines.count_evaluation(batches)
        self._clock.validated()
        return found

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The engine's."""
        return self._engine.total_norm(gradients)

    def figures(self) -> dict[str, float]:
        """The engine's."""
        return self._engine.figures()


class Decoded:
    """What payloads say, kept for the other replicas that get them in the same round."""

    def __init__(self) -> None:
        self._updates: dict[tuple[bytes, str], tuple[Update, float]] = {}

    def get(self, payload: bytes, fragment: str) -> tuple[Update, float] | None:
        """The update, and the seconds that it took to decode."""
        return self._updates.get((payload, fragment))

    def keep(self, payload: bytes, fragment: str, update: Update, seconds: float) -> None:
        """Notes it; forgets the oldest."""
        if len(self._updates) >= _MOST_REMEMBERED:
            del self._updates[next(iter(self._updates))]
        self._updates[payload, fragment] = update, seconds


class RememberingCodec:
    """`codec`, which decodes a payload once for all replicas; updates are read, never changed."""

    def __init__(self, codec: Codec, decoded: Decoded, clock: VirtualClock) -> None:
        self._codec, self._decoded, self._clock = codec, decoded, clock
        self.name = codec.name

    def layout(self, shapes: Shapes) -> Layout:
        """The codec's."""
        return self._codec.layout(shapes)

    def encode(self, flat: Tensor, layout: Layout) -> bytes:
        """The codec's."""
        return self._codec.encode(flat, layout)

    def decode(self, payload: bytes, layout: Layout, device: torch.device | str = "cpu") -> Update:
        """The codec's, or what it was for another replica."""
        fragment = next(iter(layout.shapes))
        if (known := self._decoded.get(payload, fragment)) is not None:
            update, first_time_s = known
            self._clock.decoded(first_time_s)
            return update
        started_s = time.perf_counter()
        update = self._codec.decode(payload, layout, device)
        self._decoded.keep(payload, fragment, update, time.perf_counter() - started_s)
        self._clock.decoded(None)
        return update

    def num_values(self, layout: Layout) -> int:
        """The codec's."""
        return self._codec.num_values(layout)

    def num_bytes(self, layout: Layout, round_number: int | None = None) -> int:
        """The codec's."""
        return self._codec.num_bytes(layout, round_number)
