"""The bond of a compressed replica: which of its weights stay in S, and how it meets replicas that are free.

U (d, k), P = U U'. W any attention output or MLP down projection (d, in) before the last boundary, T the embedding
(vocabulary, d), theta the outer parameters, A = theta's T as committed (the anchor).

    start       W <- P theta_W,   T <- theta_T                                    after each sync          (1)
    tangent     g_W <- P g_W,     g_T <- g_T P                                    before clipping          (2)
    retract     W <- P W,         T <- A + (T - A) P                              after each inner step    (3)
    result      Delta_W = P theta_W - W,   Delta_T = theta_T - T                  pseudo-gradient          (4)

Dense replicas are unbound, so theta_W leaves S. (4) is measured from the projected start (1): measured from theta_W
it would hold (I - P) theta_W, and every sync would erase what the dense replicas learnt outside S. theta itself is
never projected, or replicas would no longer hold equal bits; what an update adds outside S is simply not part of the
next start. For the same reason the error feedback is left alone, in the ambient space, where what was sent plus what
is kept equals what was wanted, and a compressed replica's payloads are like any other's: nobody needs U to read them.

T needs no second part: with A the anchor, A <- theta_T after a sync *is* the absorption of the trained part (the
function does not change: stream minus A still lies in S), and a replica may only leave A inside S (3).

(2) makes the gradient the constrained model's own, which pipelines of any depth share: without it, the part outside S
would survive in all layers but the last of a stage, enter the clipping norm and Adam's second moment.

Paper:   Obeidi et al., "Heterogeneous Low-Bandwidth Pre-Training of LLMs" (arXiv 2601.02360).
Differs: T_perp and T_S are not stored apart; (2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dist_train.config import ConfigError
from dist_train.outer import LocalStart
from dist_train.pipeline.health import Health

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dist_train.pipeline.basis import Basis

EMBEDDING = "model.embed_tokens.weight"
BRANCH_OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


class Bond(LocalStart):
    """Holds the weights of `layers` (numbers) in S, and the embedding where `binds_embedding`; moves the anchor.

    `anchor` (vocabulary, d) is changed at each sync, in place; None where the stage's own embedding is the anchor.
    """

    def __init__(
        self, model: nn.Module, basis: Basis, layers: Iterable[int], anchor: Tensor | None, *, binds_embedding: bool
    ) -> None:
        self.health = Health()
        self._anchor = anchor
        parameters = dict(model.named_parameters())
        names = [f"model.layers.{layer}.{output}.weight" for layer in layers for output in BRANCH_OUTPUTS]
        self._outputs = {name: parameters[name] for name in names}
        self._embedding = parameters[EMBEDDING] if binds_embedding else None
        self.rebase(basis)

    def rebase(self, basis: Basis) -> None:
        """Binds to another basis from the next start on: call it between `apply` and inner steps, then restart."""
        self._u = basis.columns

    @torch.no_grad()
    def project_gradients(self) -> None:
        """(2)"""
        for parameter in self._outputs.values():
            if parameter.grad is not None:
                parameter.grad.copy_(self._columns_in_s(parameter.grad))
        if self._embedding is not None and self._embedding.grad is not None:
            self._embedding.grad.copy_(self._rows_in_s(self._embedding.grad))

    @torch.no_grad()
    def project_weights(self) -> None:
        """(3)"""
        for parameter in self._outputs.values():
            parameter.copy_(self._columns_in_s(parameter))
        if self._embedding is not None and self._anchor is not None:
            self._embedding.copy_(self._anchor + self._rows_in_s(self._embedding - self._anchor))

    def begin(self, name: str, theta: Tensor) -> Tensor:
        """(1), with the health of what was committed."""
        start = self.start(name, theta)
        if name in self._outputs:
            self.health.off_subspace += float((theta - start).square().sum())
            self.health.bound_weights += float(theta.square().sum())
        if name == EMBEDDING and self._anchor is not None:
            change = theta.to(self._anchor) - self._anchor
            self.health.drift += float((change - self._rows_in_s(change)).square().sum())
            self.health.anchor += float(theta.square().sum())
            self._anchor.copy_(theta)
        return start

    def start(self, name: str, theta: Tensor) -> Tensor:
        """(1)"""
        return self._columns_in_s(theta) if name in self._outputs else theta

    def figures(self) -> dict[str, float]:
        """The shares since they were last asked for."""
        health, self.health = self.health, Health()
        return health.figures()

    def _columns_in_s(self, weight: Tensor) -> Tensor:
        u = self._u.to(weight)
        return u @ (u.T @ weight)

    def _rows_in_s(self, weight: Tensor) -> Tensor:
        u = self._u.to(weight)
        return (weight @ u) @ u.T


def check_branches(model: nn.Module, layers: Iterable[int]) -> None:
    """ConfigError unless each branch of `layers` ends in its output projection, without a bias: else it leaves S."""
    for layer in layers:
        block = model.get_submodule(f"model.layers.{layer}")
        for output in BRANCH_OUTPUTS:
            try:
                linear = block.get_submodule(output)
            except AttributeError:
                linear = nn.Identity()
            if not isinstance(linear, nn.Linear) or linear.bias is not None:
                raise ConfigError(
                    f"layer {layer} of the model has no bias-free {output}, which compression = "
                    f'"subspace" binds; choose "projected-stream" or "none"'
                )
        extra = [n for n, _ in block.named_children() if "norm" in n and n not in PRE_NORMS]
        if extra:
            raise ConfigError(
                f"layer {layer} of the model has {extra[0]} behind a branch, which leaves the subspace of compression "
                f'= "subspace"; choose "projected-stream" or "none"'
            )


# The norms in front of the two branches, as Llama names them. Others (pre_/post_feedforward_layernorm) follow one.
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
