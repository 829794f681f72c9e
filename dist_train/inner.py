"""The inner optimizer: what a replica does with one batch by itself.

A step has two halves, so that whoever shares a batch can exchange gradients between them:

    accumulate(batch):   g = d/dw  (1/T) sum over micro-batches of loss_sum,   T = targets of the whole batch       (1)
    step():              g <- g * min(1, clip_norm / |g|),   |g| over all parameters                                (2)
                         AdamW or Muon with the rate of global inner step t; then t <- t + 1                        (3)

The rate is a function of t alone (`learning_rate`), so that a run that stops and resumes takes the same steps.
With `muon`, matrices inside the layers take Muon's steps, everything else AdamW's. Vectors (norms, biases) do not
decay. Per step each matrix decays by rate * weight_decay with the *AdamW* rate under both optimizers, so that
`weight_decay` means the same beside either.

Paper:   Loshchilov & Hutter, Decoupled Weight Decay Regularization (2019); Jordan, Muon (2024).
Differs: Muon's decay, as said above.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from dist_train.engine import LocalEngine
from dist_train.model import fragments
from dist_train.shards import like, local

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dist_train.config import InnerConfig
    from dist_train.data.batches import Batch
    from dist_train.engine import Engine

# A parameter's name may hold dots, never a slash.
STATE_SEPARATOR = "/"
GLOBAL_STEP = "global_step"


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_steps: int = 0, final_fraction: float = 0.1
) -> float:
    """The rate of inner step `step` of the run (from 0): linear warm-up to `peak`, then a cosine.

    Warm-up step t has peak * (t + 1) / warmup_steps. The cosine starts from `peak` and would be at peak *
    final_fraction in step `total_steps`; later steps stay there.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


class InnerOptimizer:
    """Trains `model`, of which this rank may host a part, in place. `total_steps` are the run's, over all rounds.

    `engine` computes the gradients; that of a replica of one rank when left out. `settle` is called after each step:
    it brings weights back to where they are bound to stay.
    """

    def __init__(
        self,
        model: nn.Module,
        config: InnerConfig,
        total_steps: int,
        engine: Engine | None = None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self.engine = engine or LocalEngine(model, config.micro_batch_tokens)
        self._settle = settle
        self.global_step = 0
        """t: the inner step of the run that `step` takes next. Whoever joins late, or skips steps, sets it."""
        self._config = config
        self._total_steps = total_steps
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizers = _optimizers(model, config)

    def accumulate(self, batch: Batch) -> float:
        """Puts the gradient of the mean loss of `batch` in place of any gradient there was; returns that loss (nats).

        A batch without targets has zero gradients and loss 0. Blocks until the device is done.
        """
        return self.engine.gradient(batch)  # (1)

    def step(self) -> float:
        """Clips the gradients, updates the parameters, frees the gradients; returns the norm before clipping.

        ArithmeticError when the norm is not finite: the parameters are as before.
        """
        parameters = self._parameters.values()
        norm = self.engine.total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(norm_value := norm.item()):
            raise ArithmeticError(
                f"The gradient of inner step {self.global_step} has norm {norm_value}; "
                f"lower inner.lr or inner.clip_norm"
            )
        if self._config.clip_norm:
            clip_grads_with_norm_(parameters, self._config.clip_norm, norm)  # (2)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    self.global_step,
                    peak=group["peak_lr"],
                    total_steps=self._total_steps,
                    warmup_steps=self._config.warmup_steps,
                    final_fraction=self._config.final_lr_fraction,
                )
            optimizer.step()  # (3)
        if self._settle is not None:
            self._settle()
        self.model.zero_grad(set_to_none=True)
        self.global_step += 1
        return norm_value

    def forget(self) -> None:
        """Goes back to the state before the first step, but for `global_step`."""
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state, for a checkpoint: `PARAMETER/KEY` -> tensor, and `global_step`. Not copied."""
        states = {p: state for optimizer in self._optimizers for p, state in optimizer.state.items()}
        tensors = {
            f"{name}{STATE_SEPARATOR}{key}": local(value)
            for name, parameter in self._parameters.items()
            for key, value in states.get(parameter, {}).items()
        }
        return {GLOBAL_STEP: torch.tensor(self.global_step), **tensors}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies what `state_tensors` gave: the next steps are bit-equal. ValueError when it does not fit."""
        states = dict[str, dict[str, Tensor]]()
        for tensor_name, tensor in tensors.items():
            name, _, key = tensor_name.rpartition(STATE_SEPARATOR)
            if tensor_name != GLOBAL_STEP:
                states.setdefault(name, {})[key] = tensor
        if unknown := states.keys() - self._parameters.keys():
            raise ValueError(f"The model has no parameter {min(unknown)}: the state is of another model")
        for optimizer in self._optimizers:
            optimizer.state.clear()
            for name, parameter in self._parameters.items():
                if name in states and _trains(optimizer, parameter):
                    optimizer.state[parameter] = _state_for(optimizer, name, parameter, states[name])
        self.global_step = int(tensors[GLOBAL_STEP])


def _optimizers(model: nn.Module, config: InnerConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon before it where there is something for it."""
    muon, matrices, vectors = list[nn.Parameter](), list[nn.Parameter](), list[nn.Parameter]()
    for fragment, parameters in fragments(model).items():
        for parameter in parameters.values():
            if config.optimizer == "muon" and fragment.startswith("layer.") and parameter.dim() == 2:
                muon.append(parameter)
            else:
                (matrices if parameter.dim() > 1 else vectors).append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": matrices, "peak_lr": config.lr, "weight_decay": config.weight_decay},
            {"params": vectors, "peak_lr": config.lr, "weight_decay": 0.0},
        ],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    if not muon:
        return [adamw]
    group = {"params": muon, "peak_lr": config.muon_lr}
    decay = config.weight_decay * config.lr / config.muon_lr
    return [torch.optim.Muon([group], weight_decay=decay, momentum=config.muon_momentum), adamw]


def _trains(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    return any(parameter is p for group in optimizer.param_groups for p in group["params"])


def _state_for(
    optimizer: torch.optim.Optimizer, name: str, parameter: nn.Parameter, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`state` on the parameter's device, copied, once it is what `optimizer` keeps of such a parameter."""
    shape, scalar = local(parameter).shape, torch.Size()
    muon = isinstance(optimizer, torch.optim.Muon)
    wanted = {"momentum_buffer": shape} if muon else {"step": scalar, "exp_avg": shape, "exp_avg_sq": shape}
    if (found := {key: tensor.shape for key, tensor in state.items()}) != wanted:
        raise ValueError(
            f"The state of {name} is {found}, not {wanted}: it is of another model, or of another inner.optimizer"
        )
    return {key: like(parameter.detach(), tensor) for key, tensor in state.items()}
