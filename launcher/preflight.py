"""What can be known to be wrong before anything is started, and at little cost: files that the config names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.config import ConfigError
from dist_train.data.sources import source_files
from launcher.members import COORDINATOR, replica_ids
from launcher.options import require_folder

if TYPE_CHECKING:
    from dist_train.config import Config


def check(config: Config) -> None:
    """ConfigError, naming the key, when a file that the config needs is not there."""
    require_folder(Path(config.run.directory), "run.directory =")
    check_security(config)
    if not _has_processes_here(config):
        return  # paths are those of other machines
    source_files(config.data)
    if config.data.tokenizer != "bytes":
        _check_folder("data.tokenizer", config.data.tokenizer, "a local Hugging Face tokenizer directory")
    if config.model.path is not None:
        folder = _check_folder("model.path", config.model.path, "a local Hugging Face model directory")
        if not (folder / "config.json").is_file():
            raise ConfigError(f'model.path = "{config.model.path}" holds no config.json')
        _check_stages(config)


def _has_processes_here(config: Config) -> bool:
    if config.backend == "ssh":
        return any(machine is None for replica in config.replica for machine in replica.machines)
    return config.backend != "kubernetes"


def _check_stages(config: Config) -> None:
    """ConfigError when a pipeline cannot host the model, which only the model's own config tells."""
    if pipelines := [replica for replica in config.replica if replica.pipeline]:
        from dist_train.pipeline.terms import check_fits  # torch, which only this needs so early

        for replica in pipelines:
            check_fits(config, replica)


def check_security(config: Config) -> None:
    """ConfigError when a member that is started here could not show who it is."""
    if config.security.mode == "tls":
        from comms.certificates import OPERATOR
        from dist_train.security import security_of  # gRPC, which only this needs so early

        for member in (COORDINATOR, OPERATOR, *replica_ids(config)):
            security_of(config, member)


def _check_folder(key: str, given: str, what: str) -> Path:
    path = Path(given).expanduser()
    if not path.is_dir():
        raise ConfigError(f'{key} = "{given}" is no directory; give {what}')
    return path
