"""What is trained, on what, and how: [run], [model], [data], [inner], [outer], [sparseloco]."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dist_train.config.section import SharedSection
from dist_train.config.texts import Fraction, Identifier, Seconds

Method = Literal["sparseloco", "diloco", "ddp"]


class RunConfig(SharedSection):
    """[run]: which run this is."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"directory"})

    name: Identifier = "run"
    """Name of the run; members of one run agree on it."""
    directory: str = "runs/run"
    """Where the run keeps its config, checkpoints, ledger and logs."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds the initial parameters, the shuffle and the validation split."""


class ModelConfig(SharedSection):
    """[model]: a Llama built from these numbers, or any causal Hugging Face config under `path`."""

    path: str | None = None
    """A local Hugging Face directory; its config.json decides the architecture and the keys below are not read."""
    hidden_size: int = Field(default=256, ge=1)
    """d: numbers a token has between layers."""
    layers: int = Field(default=6, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=8, ge=1)
    """Attention heads; they divide `hidden_size` into even sizes."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads; as many as `heads` when left out."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width of the gated MLP; 8/3 of `hidden_size`, rounded up to a multiple of 32, when left out."""
    vocab_size: int = Field(default=256, ge=2)
    """Tokens that there are; the tokenizer's at least."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position embedding."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.path is None:
            if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
                raise ValueError(
                    f"heads = {self.heads} does not cut hidden_size = {self.hidden_size} into heads of an even size; "
                    f"try heads = {_nearest_heads(self.hidden_size, self.heads)}"
                )
            if self.heads % (self.kv_heads or self.heads):
                raise ValueError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        return self


def _nearest_heads(hidden_size: int, heads: int) -> int:
    fitting = [n for n in range(1, hidden_size // 2 + 1) if hidden_size % n == 0 and (hidden_size // n) % 2 == 0]
    return min(fitting or [1], key=lambda n: abs(n - heads))


class DataConfig(SharedSection):
    """[data]: which documents, how they become tokens, and what is held back for validation."""

    source: str = "python-stdlib"
    """`python-stdlib`, or `text:GLOB`, `jsonl:GLOB`, `parquet:GLOB`, `bin:GLOB`, `npy:GLOB`."""
    tokenizer: str = "bytes"
    """`bytes` (256 tokens), or a local Hugging Face tokenizer directory."""
    sequence_tokens: int = Field(default=512, ge=2)
    """Longest sequence that is trained as a whole; longer documents are cut in pieces of this many tokens."""
    text_field: str = "text"
    """The field of a JSONL object, or the Parquet column, that holds a document's text."""
    token_dtype: Literal["uint8", "uint16", "uint32"] = "uint16"
    """The type of one token in `bin:` shards (little-endian)."""
    document_separator: int | None = Field(default=None, ge=0)
    """The token that ends each document in `bin:` and `npy:` shards; a shard is one document when left out."""
    validation_fraction: float = Field(default=0.02, gt=0.0, lt=1.0)
    """Share of the documents that is never trained on."""
    validation_tokens: int = Field(default=65_536, ge=2)
    """At most so many tokens of the validation documents are evaluated each time."""


class InnerConfig(SharedSection):
    """[inner]: what a replica does by itself between two exchanges."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` trains matrices inside the layers with Muon and everything else with AdamW."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate at its highest, after the warm-up."""
    steps: int = Field(default=15, ge=1)
    """H: inner steps in an outer round (`outer.method = "ddp"` exchanges after every one)."""
    seconds: Seconds | None = None
    """A replica takes as many inner steps as fit in so many seconds, at least one and at most `steps`, and weighs as
    much as the tokens that it got through. All take `steps` when left out."""
    batch_tokens: int = Field(default=8192, ge=2)
    """Tokens of one inner step of one replica."""
    micro_batch_tokens: int | None = Field(default=None, ge=2)
    """Most tokens in one forward pass, to fit the device's memory; the whole batch when left out."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW: decay of the gradient's mean."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW: decay of the squared gradient's mean."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW: added to the root of the squared gradient's mean."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled; matrices only."""
    muon_lr: float = Field(default=0.02, gt=0)
    """Learning rate of the matrices under `optimizer = "muon"`."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of Muon."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""
    warmup_steps: int = Field(default=0, ge=0)
    """Inner steps of linear warm-up, counted over the whole run."""
    final_lr_fraction: Fraction = 0.1
    """Where the cosine ends, as a share of `lr`."""


class OuterConfig(SharedSection):
    """[outer]: how the replicas' work becomes one model."""

    method: Method = "sparseloco"
    """`sparseloco`: a few values of the pseudo-gradient. `diloco`: all of it. `ddp`: the gradient of every step."""
    lr: float | None = Field(default=None, gt=0)
    """alpha. When left out: 1.0 for sparseloco, 0.7 for diloco. ddp has none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum of diloco's outer step; the others have none."""
    dense_values: Literal["fp32", "bf16", "int8"] = "fp32"
    """How diloco and ddp send a value."""
    rounds: int = Field(default=40, ge=1)
    """Outer rounds of H inner steps. ddp takes as many inner steps in all, and exchanges after each."""
    guard: Literal["median-norm", "off"] = "median-norm"
    """`median-norm` scales a contribution above the round's median norm down to it before it is averaged."""
    validate_every: int = Field(default=1, ge=1)
    """Outer rounds between two evaluations on the validation documents; the last round is always evaluated."""


class SparseLoCoConfig(SharedSection):
    """[sparseloco]: what of the pseudo-gradient is sent."""

    chunk: int = Field(default=4096, ge=4, le=65_536)
    """C: a matrix is cut in square blocks of so many values, a vector in runs of so many."""
    k: int = Field(default=64, ge=1)
    """Values sent of each chunk."""
    value_bits: Literal[1, 2, 32] = 2
    """Bits of one sent value: sign, sign and magnitude, or fp32."""
    quantizer: Literal["sign-magnitude", "statistical"] = "sign-magnitude"
    """`statistical` is the published reference's codebook, for parity."""
    chunking: Literal["padded", "divisor"] = "padded"
    """`divisor` shrinks blocks to divisors of a tensor's dimensions, like the published reference, for parity."""
    error_decay: Fraction = 0.95
    """beta: what the error feedback keeps from round to round."""
    aggregate: Literal["mean", "contributors", "weighted"] = "contributors"
    """Divide by the replicas, by those that sent the coordinate, or weight by the tokens trained."""

    @model_validator(mode="after")
    def _fits(self) -> SparseLoCoConfig:
        if math.isqrt(self.chunk) ** 2 != self.chunk:
            raise ValueError(f"chunk = {self.chunk} is no square, and matrices are cut in square blocks; try 4096")
        if self.k > self.chunk:
            raise ValueError(f"k = {self.k} is more than a chunk holds ({self.chunk}); lower k")
        if self.quantizer == "statistical" and self.value_bits != 2:
            raise ValueError(f'quantizer = "statistical" has two bits, not value_bits = {self.value_bits}')
        return self
