"""The outer methods: what a replica contributes to a round, and what all replicas make of the contributions.

Symbols: theta the outer parameters (equal on all replicas), theta_r the replica's own after its inner steps, H inner
steps a round, alpha = outer.lr, beta = sparseloco.error_decay, mu = outer.momentum.

    SparseLoCo   Delta_r = theta - theta_r                          (1) pseudo-gradient
                 a_r = beta e_r + Delta_r                           (2) error feedback, decay first
                 sent_r = Q(TopK_chunk(a_r))                        (3) the codec
                 e_r = a_r - sent_r                                 (4) once the round has committed
                 Delta = aggregate_r(sent_r)                        (5) the rule of sparseloco.aggregate
                 theta <- theta - alpha Delta                       (6) plain SGD
    DiLoCo       sent_r = Delta_r, dense; Delta = mean_r
                 m <- mu m + Delta;  theta <- theta - alpha (Delta + mu m)          (7) Nesterov
    DDP          sent_r = gradient of one batch, dense; g = mean_r by tokens;  theta <- inner step with g     (8)

Every replica must reach the same bits on whatever machine it runs, so the outer step is done on the CPU in fp32 with
operations that round once each: a product, then a difference, never a fused one.

Paper: Sarfi et al. 2025 (arXiv 2508.15706) for SparseLoCo; Douillard et al. 2023 (arXiv 2311.08105) for DiLoCo.
Differs: alpha is applied once (the reference applies it in the buffer as well); e_r changes only with a commit.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from compression.aggregate import Rule, aggregate
from compression.codec import Codec, Layout, Update
from compression.feedback import ErrorFeedback
from dist_train.codec import codec_of
from dist_train.config import Config
from dist_train.crew import Duties, alone
from dist_train.inner import InnerOptimizer
from dist_train.model import fragments
from dist_train.shards import is_scattered, put, whole

Parameters = Mapping[str, nn.Parameter]
# Before the names of what a start keeps, in a replica's own state; no fragment has a slash in its name.
START = "start/"


class OuterMethod(ABC):
    """theta, and how a round changes it. Holds one copy of the model (theta, on the CPU) beside the model itself."""

    remembers: bool
    """Whether a replica carries something of its own from round to round, so that to resume it must redo its work."""

    def __init__(self, model: nn.Module, codec: Codec, rule: Rule, guard: bool, duties: Duties | None = None) -> None:
        self.codec = codec
        self.fragments: dict[str, dict[str, nn.Parameter]] = fragments(model)
        """Those that this rank hosts."""
        self.duties = duties or alone(tuple(self.fragments))
        self.owned = tuple(name for name in self.fragments if self.duties.owns(name))
        """Those that this rank encodes."""
        self.needed = tuple(name for name in self.fragments if self.duties.needs(name))
        """Those that this rank decodes and applies; its theta is of these."""
        self.layouts: dict[str, Layout] = {
            name: codec.layout({key: tuple(p.shape) for key, p in self.fragments[name].items()}) for name in self.needed
        }
        self._rule: Rule = rule
        self._guard = guard

    def has(self, fragment: str) -> bool:
        """Whether the model has it, on whichever rank."""
        return fragment in self.duties.owners

    @abstractmethod
    def contribution(self, fragment: str) -> Tensor:
        """What this replica adds to the round with a fragment that this rank owns.

        The flat buffer (num_values,) fp32 on the CPU that is to be encoded. Asked for once a round: it is kept until
        `apply` knows what became of it (2), where the method keeps anything.
        """

    def accumulate(self) -> None:
        """Keeps what this replica adds to the round (2) without handing it out: to redo a round. All ranks call it."""

    @abstractmethod
    def apply(self, fragment: str, updates: Sequence[Update], weights: Sequence[int], own: Update | None) -> None:
        """Takes the outer step of one fragment with the committed updates, in the manifest's order; `own` is ours."""

    def finish_round(self) -> None:
        """Called when every fragment of a committed round has been applied."""

    @abstractmethod
    def theta(self) -> dict[str, Tensor]:
        """The outer parameters by name, in the order of the fragments; not copied."""

    def shared_state(self) -> dict[str, Tensor]:
        """What else all replicas hold alike, by name; not copied."""
        return {}

    def own_state(self) -> dict[str, Tensor]:
        """What this replica alone holds, by name; not copied."""
        return {}

    def load(self, theta: Mapping[str, Tensor], shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Goes back to what `theta`, `shared_state` and `own_state` returned; the model becomes theta."""
        with torch.no_grad():
            for name, tensor in self.theta().items():
                tensor.copy_(theta[name])
        self._load(shared, own)
        self.restart_from_theta()

    def _load(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Goes back to those parts of a state that this method has."""
        del shared, own

    def restart_from_theta(self) -> None:
        """The model becomes theta: where inner steps begin."""

    def figures(self) -> dict[str, float]:
        """Health of the exchange, for the metrics."""
        return {}

    def _combined(self, fragment: str, updates: Sequence[Update], weights: Sequence[int]) -> dict[str, Tensor]:
        layout = self.layouts[fragment]
        return layout.unpack(aggregate(updates, weights, self._rule, layout.num_values, self._guard))  # (5)

    def digest(self, theta: Mapping[str, Tensor] | None = None, shared: Mapping[str, Tensor] | None = None) -> str:
        """SHA-256 (hex) over the bytes of theta and of the outer momentum: equal on all replicas after every round.

        Of these `theta` and `shared`, or of what the replica has. All ranks call it.
        """
        theta = self.theta() if theta is None else theta
        shared = self.shared_state() if shared is None else shared
        digests = dict[str, bytes]()
        for fragment, named in ((fragment, self.fragments[fragment]) for fragment in self.needed):
            momenta = [shared[name] for name in named if name in shared]
            digests[fragment] = _digest_of([*(theta[name] for name in named), *momenta])
        return self.duties.agreed_digest(digests)

    def gather(self) -> None:
        """Puts together what is scattered over the ranks, before `contribution` is asked for it. All ranks call it."""

    def _share(self, tensors: Mapping[str, Mapping[str, Tensor]], sources: Mapping[str, Tensor]) -> None:
        """Makes the tensors of each fragment what `sources` has at its owner, where every rank hosts all of them."""
        if not self.duties.is_replicated:
            return
        for fragment, named in tensors.items():
            is_mine = self.duties.owns(fragment)
            for name, tensor in named.items():
                value = (
                    sources[name].detach().cpu().contiguous()
                    if is_mine
                    else torch.empty(tensor.shape, dtype=tensor.dtype)
                )
                self.duties.crew.share(value, self.duties.owners[fragment])
                if not is_mine or is_scattered(tensor):
                    put(tensor, value)


class LocalStart:
    """Where a replica's inner steps begin after a sync: at theta. One that is bound to a subspace begins elsewhere."""

    def begin(self, name: str, theta: Tensor) -> Tensor:
        """The weight called `name` to begin with, now that theta is committed; may be theta itself."""
        return self.start(name, theta)

    def start(self, name: str, theta: Tensor) -> Tensor:
        """The same, asked once more when the round is over: what the pseudo-gradient is measured from."""
        del name
        return theta

    def figures(self) -> dict[str, float]:
        """Health of the bond, for the metrics."""
        return {}

    def finish_round(self) -> None:
        """Called when every fragment of a committed round has been applied."""

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps from round to round that does not follow from theta, by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to what `state_dict` returned, or to the beginning where that is nothing."""


def _digest_of(tensors: Iterable[Tensor]) -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


class PseudoGradientMethod(OuterMethod):
    """SparseLoCo and DiLoCo: H inner steps from theta, and the way they went is what is exchanged."""

    remembers = True

    def __init__(
        self,
        model: nn.Module,
        codec: Codec,
        rule: Rule,
        guard: bool,
        *,
        alpha: float,
        momentum: float,
        error_decay: float | None,
        duties: Duties | None = None,
        start: LocalStart | None = None,
    ) -> None:
        super().__init__(model, codec, rule, guard, duties)
        self._start = LocalStart() if start is None else start
        self._alpha = alpha
        self._momentum = momentum
        self._feedback = None if error_decay is None else ErrorFeedback(error_decay)
        self._theta = {name: value.clone() for name, value in self._put_together()}
        self._gathered = dict[str, Tensor]()
        self._velocity = {name: torch.zeros_like(t) for name, t in self._theta.items()} if momentum else {}
        if start is not None:
            self.restart_from_theta()

    def _put_together(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters that this rank answers for, on the CPU, one by one; those that are scattered, by all ranks."""
        for fragment, named in self.fragments.items():
            for name, parameter in named.items():
                if fragment in self.needed or is_scattered(parameter):
                    value = whole(parameter)
                    if fragment in self.needed:
                        yield name, value

    def gather(self) -> None:
        """Takes in what is scattered of the fragments that this rank owns: their whole values, until they are sent."""
        scattered = any(is_scattered(p) for named in self.fragments.values() for p in named.values())
        self._gathered = dict(self._put_together()) if scattered else {}

    def contribution(self, fragment: str) -> Tensor:
        """Delta_r (1), through the error feedback (2) where there is one."""
        delta = self._pseudo_gradient(fragment)
        return delta if self._feedback is None else self._feedback.accumulate(fragment, delta)  # (2)

    def accumulate(self) -> None:
        """(1) and (2); without error feedback nothing is kept."""
        if self._feedback is None:
            return
        self.gather()
        for fragment in self.owned:
            self._feedback.accumulate(fragment, self._pseudo_gradient(fragment))

    def _pseudo_gradient(self, fragment: str) -> Tensor:
        values = {name: self._gathered.pop(name, p) for name, p in self.fragments[fragment].items()}
        return self.layouts[fragment].pack(
            {name: self._start.start(name, self._theta[name]) - p.detach().cpu() for name, p in values.items()}  # (1)
        )

    def apply(self, fragment: str, updates: Sequence[Update], weights: Sequence[int], own: Update | None) -> None:
        """(4) to (7); the model's fragment becomes theta's."""
        if own is not None and self._feedback is not None and self.duties.owns(fragment):
            self._feedback.settle(fragment, own)  # (4)
        with torch.no_grad():
            for name, delta in self._combined(fragment, updates, weights).items():
                theta = self._theta[name]
                if self._momentum:
                    velocity = self._velocity[name].mul_(self._momentum).add_(delta)  # (7)
                    delta.add_(velocity.mul(self._momentum))
                theta.sub_(delta.mul_(self._alpha))  # (6), (7)
                self._begin(fragment, name)

    def _begin(self, fragment: str, name: str) -> None:
        """The parameter becomes what inner steps begin with; one that is scattered does when the ranks share it."""
        parameter = self.fragments[fragment][name]
        if not is_scattered(parameter):
            parameter.copy_(self._start.begin(name, self._theta[name]))

    def finish_round(self) -> None:
        """The ranks get from each other what they did not apply themselves."""
        self._share(self.fragments, self._theta)
        self._start.finish_round()

    def theta(self) -> dict[str, Tensor]:
        """The outer parameters, where the inner steps of the next round begin."""
        return self._theta

    def shared_state(self) -> dict[str, Tensor]:
        """The outer momentum."""
        return self._velocity

    def own_state(self) -> dict[str, Tensor]:
        """The error feedback, and what the start keeps."""
        start = {f"{START}{name}": tensor for name, tensor in self._start.state_dict().items()}
        return start if self._feedback is None else self._feedback.state_dict() | start

    def _load(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        for name, velocity in self._velocity.items():
            velocity.copy_(shared[name])
        start = {name.removeprefix(START): tensor for name, tensor in own.items() if name.startswith(START)}
        self._start.load_state_dict(start)
        if self._feedback is not None:
            self._feedback.load_state_dict({name: t for name, t in own.items() if not name.startswith(START)})

    def restart_from_theta(self) -> None:
        """The model becomes theta, or what its bond makes of it."""
        with torch.no_grad():
            for fragment in self.needed:
                for name in self.fragments[fragment]:
                    self._begin(fragment, name)
        self._share(self.fragments, self._theta)

    def figures(self) -> dict[str, float]:
        """What error feedback holds back, how far sent values are from what they stand for, the health of the bond."""
        if self._feedback is None:
            return self._start.figures()
        buffers = self._feedback.state_dict().values()
        figures = {"error_feedback_norm": float(sum(float(b.square().sum()) for b in buffers)) ** 0.5}
        if (error := self._feedback.quantizer_error) is not None:
            figures["quantizer_error"] = error
        return figures | self._start.figures()


class GradientMethod(OuterMethod):
    """DDP: every inner step is a round; theta is the model itself."""

    remembers = False

    def __init__(
        self, model: nn.Module, codec: Codec, guard: bool, inner: InnerOptimizer, duties: Duties | None = None
    ) -> None:
        super().__init__(model, codec, "weighted", guard, duties)
        self._inner = inner

    def contribution(self, fragment: str) -> Tensor:
        """The gradient of this replica's batch (8); zero where a parameter has none."""
        parameters = self.fragments[fragment]
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
        return self.layouts[fragment].pack({name: gradient.cpu() for name, gradient in gradients.items()})

    def apply(self, fragment: str, updates: Sequence[Update], weights: Sequence[int], own: Update | None) -> None:
        """Puts the mean gradient in place of this replica's; the step follows in `finish_round`."""
        del own
        parameters = self.fragments[fragment]
        for name, gradient in self._combined(fragment, updates, weights).items():
            parameters[name].grad = gradient.to(parameters[name].device, copy=True)

    def finish_round(self) -> None:
        """The inner step with the mean gradient (8)."""
        for parameters in self.fragments.values():
            for parameter in parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients = {f: {n: p.grad for n, p in ps.items() if p.grad is not None} for f, ps in self.fragments.items()}
        self._share(gradients, {name: gradient for named in gradients.values() for name, gradient in named.items()})
        self._inner.step()

    def shared_state(self) -> dict[str, Tensor]:
        """The inner optimizer's: all take the same steps."""
        return self._inner.state_tensors()

    def _load(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        del own
        self._inner.load_state_tensors(shared)

    def theta(self) -> dict[str, Tensor]:
        """The model's parameters."""
        return {name: p.detach() for fragment in self.needed for name, p in self.fragments[fragment].items()}

    def restart_from_theta(self) -> None:
        """The ranks get from each other what they did not load themselves."""
        self._share(self.fragments, self.theta())


def outer_method(
    config: Config,
    model: nn.Module,
    inner: InnerOptimizer,
    duties: Duties | None = None,
    start: LocalStart | None = None,
) -> OuterMethod:
    """The method that `outer.method` names, for `model` and the inner optimizer that trains it.

    `duties` are this rank's; those of a replica of one when left out. `start` is the replica's own under sparseloco
    and diloco; ddp has none.
    """
    sparse, outer = config.sparseloco, config.outer
    codec = codec_of(config)
    guard = outer.guard == "median-norm"
    if outer.method == "ddp":
        return GradientMethod(model, codec, guard, inner, duties)
    if outer.method == "diloco":
        rule: Rule = "mean" if config.inner.seconds is None else "weighted"
        return PseudoGradientMethod(
            model, codec, rule, guard,
            alpha=config.outer_lr, momentum=outer.momentum, error_decay=None, duties=duties, start=start,
        )  # fmt: skip
    return PseudoGradientMethod(
        model, codec, sparse.aggregate, guard,
        alpha=config.outer_lr, momentum=0.0, error_decay=sparse.error_decay, duties=duties, start=start,
    )  # fmt: skip
