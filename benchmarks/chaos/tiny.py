"""The run that is hurt: as small a model as shows everything, with deadlines as short as one machine allows."""

from __future__ import annotations

from pathlib import Path

from compression.registry import codec_for, prepare
from dist_train.config import Config, parse

STEPS = 2
MOST_ROUNDS = 100_000
"""More than any of these runs comes to: they end when they have been watched long enough."""


def tiny_run(directory: Path, source: str, *, replicas: int, most_replicas: int, security: str = "loopback") -> Config:
    """The config of a run of so many replicas, r0, r1, …, that goes on until it is ended."""
    return parse(
        {
            "run": {"name": "chaos", "directory": str(directory), "seed": 7},
            "model": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64},
            "data": {"source": source, "sequence_tokens": 64, "validation_tokens": 512, "validation_fraction": 0.1},
            "inner": {"steps": STEPS, "batch_tokens": 256, "lr": 1e-3},
            "outer": {"rounds": MOST_ROUNDS},
            "sparseloco": {"chunk": 256, "k": 16},
            "exchange": {
                "min_replicas": 1,
                "most_replicas": most_replicas,
                "most_faults": 1000,
                "heartbeat_s": 0.15,
                "liveness_deadline_s": 0.75,
                "reconnect_deadline_s": 0.3,
                "publish_deadline_s": 5.0,
                "fetch_deadline_s": 2.0,
                "gather_deadline_s": 60.0,
                "outage_deadline_s": 60.0,
            },
            "security": {"mode": security},
            "watch": {"log_format": "json"},
            "replica": [{"id": f"r{number}", "device": "cpu"} for number in range(replicas)],
        }
    )


def compile_codec(config: Config) -> None:
    """Compiles what the members need, once, before any deadline runs."""
    rule = config.sparseloco
    method = config.outer.method
    prepare(codec_for(method, chunk=rule.chunk, k=rule.k, value_bits=rule.value_bits, quantizer=rule.quantizer))


def write_corpus(folder: Path, documents: int = 400) -> str:
    """Text files of many lengths; returns their data.source."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        words = (f"word{(i * 31 + j * j) % 97} " for j in range(1 + (i * 17) % 60))
        (folder / f"{i:03}.txt").write_text("".join(words), encoding="utf-8")
    return f"text:{folder}/*.txt"
