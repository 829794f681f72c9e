"""Every example loads, can be rendered by its backend, and has a page."""

from pathlib import Path

import pytest

from dist_train.config import load
from dist_train.run_directory import RunDirectory
from launcher.backend import backend_of
from launcher.view import PlainView

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.toml"))
BACKENDS = {"demo": "local", "two-workstations": "ssh", "slurm": "slurm", "kubernetes": "kubernetes"}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_can_be_launched(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config = load(file)
    rendering = backend_of(config, RunDirectory(tmp_path / "run"), PlainView()).render()
    assert rendering.commands
    assert config.backend == BACKENDS.get(file.stem, config.backend)
    assert not (tmp_path / "run").exists()
    pages = [file.with_suffix(".md"), *(FOLDER.parent / "docs").glob("*.md")]
    assert any(page.is_file() and file.name in page.read_text(encoding="utf-8") for page in pages)


def test_the_five_kinds_are_there() -> None:
    names = {file.stem for file in EXAMPLES}
    assert names >= {"demo", "two-workstations", "slurm", "kubernetes", "strong-and-weak"}
