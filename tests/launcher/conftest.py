"""A run that is small enough to be trained in a test."""

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """
[run]
name = "tiny"
directory = "{directory}"
[model]
hidden_size = 16
layers = 1
heads = 2
[data]
source = "text:{texts}/*.txt"
sequence_tokens = 32
validation_fraction = 0.2
validation_tokens = 256
[inner]
steps = 2
batch_tokens = 128
[outer]
rounds = {rounds}
[exchange]
heartbeat_s = 0.5
liveness_deadline_s = 2.0
reconnect_deadline_s = 1.0
fetch_deadline_s = 5.0
[[replica]]
id = "a"
[[replica]]
id = "b"
"""


@pytest.fixture
def tiny_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes the config of a run of so many rounds, in `tmp_path / "run"`; where the file is."""

    def write(rounds: int = 2) -> Path:
        texts = tmp_path / "texts"
        texts.mkdir(exist_ok=True)
        for number in range(20):
            (texts / f"{number}.txt").write_text(f"{number} is a number; {number + 1} comes after it. " * 20)
        path = tmp_path / "tiny.toml"
        path.write_text(TINY.format(directory=tmp_path / "run", texts=texts, rounds=rounds))
        return path

    return write
