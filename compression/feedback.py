"""What was wanted and not sent, kept for the next round.

    a   = beta e + delta           beta is `decay`; decay first, two roundings        (2)
    sent = decode(encode(a))       what every receiver saw, our own payload decoded   (3)
    e   = a - sent                                                                    (4)

One buffer a fragment holds e between rounds and a within one. `accumulate` makes a of e; `settle` makes e of a, and is
called only when the round committed with our payload in it. If the round failed or left us out, a simply stays, and is
the e of the next round: nothing that was wanted is lost.

Paper: Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", arXiv 2508.15706.
Differs: transactional, (4) waits for the commit; alpha is applied by the outer step alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from compression.codec import Update


class ErrorFeedback:
    """The residual of every fragment that this rank sends, each as large as the fragment's flat buffer."""

    def __init__(self, decay: float) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay = {decay:g} is not between 0 and 1")
        self.decay = decay
        self._buffers: dict[str, Tensor] = {}
        self._open: set[str] = set()
        self._squares: dict[str, tuple[float, float]] = {}

    @property
    def quantizer_error(self) -> float | None:
        """||a - sent|| / ||a|| over the places that were sent last, of all fragments; None before the first."""
        missed, kept = (
            (sum(squares) for squares in zip(*self._squares.values(), strict=True)) if self._squares else (0, 0)
        )
        return (missed / kept) ** 0.5 if kept else None

    def accumulate(self, fragment: str, flat_delta: Tensor) -> Tensor:
        """a of `fragment`, (num_values,) fp32: the buffer itself, to be encoded and not changed.

        `flat_delta`, (num_values,) fp32, is only read.
        """
        residual = self._buffers.get(fragment)
        if residual is None:
            self._buffers[fragment] = flat_delta.detach().clone()
        elif residual.shape != flat_delta.shape or residual.device != flat_delta.device:
            raise ValueError(
                f"{fragment}: the residual is {tuple(residual.shape)} on {residual.device}, the change is "
                f"{tuple(flat_delta.shape)} on {flat_delta.device}; a fragment keeps its shape and its device"
            )
        else:
            residual.mul_(self.decay).add_(flat_delta.detach())  # (2)
        self._open.add(fragment)
        return self._buffers[fragment]

    def settle(self, fragment: str, update: Update) -> None:
        """Takes what was sent out of the residual: the round that holds `update` has committed."""
        if fragment not in self._open:
            raise ValueError(
                f"{fragment}: nothing was accumulated since it was last settled; settle once a committed round"
            )
        residual = self._buffers[fragment]
        kept = residual if update.positions is None else residual[update.positions]
        missed = kept - update.values  # (4)
        if update.positions is None:
            residual.copy_(missed)
        else:
            residual[update.positions] = missed
        self._squares[fragment] = (float(missed.square().sum()), float(kept.square().sum()))
        self._open.remove(fragment)

    def state_dict(self) -> dict[str, Tensor]:
        """Fragment to its buffer, not copied: what a checkpoint stores. A round still open counts as not committed."""
        return dict(self._buffers)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces all buffers by those of `state`, which are taken over, not copied."""
        self._buffers = dict(state)
        self._open.clear()
