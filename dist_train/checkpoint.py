"""Checkpoints: all that a replica needs to go on as if it had never stopped.

    checkpoints/round-N/outer.safetensors   theta after round N, and what else all replicas hold alike; written once
    checkpoints/round-N/<replica>.safetensors   that replica's error feedback, inner optimizer and random state

    of a replica of several ranks:
    checkpoints/round-N/outer-<replica>.<rank>.safetensors   as the first, of the fragments that the rank answers for
    checkpoints/round-N/<replica>.<rank>.safetensors         as the second, of that rank

A file appears whole or not at all. A replica resumes from its newest round of which both files are there; rounds that
were committed since are redone from the coordinator's history.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from comms import failpoints
from dist_train.run_directory import replacing

OUTER = "outer"
_ROUND = re.compile(r"round-(\d+)")


class CheckpointError(Exception):
    """A checkpoint cannot be written or read. The message is one line."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is of."""

    round: int
    config_digest: str
    theta_digest: str


_DIGEST = "0" * 64


@dataclass(frozen=True)
class Snapshot:
    """The tensors of one replica after one round, by name. They are read, not kept."""

    info: CheckpointInfo
    theta: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    inner: Mapping[str, Tensor]


class Checkpoints:
    """One replica's (or rank's) checkpoints in a folder that it may share with others of this machine.

    A rank of several answers for a part of the outer parameters; a replica of one for all.
    """

    def __init__(self, folder: Path, replica: str, keep: int, *, ranks: int = 1) -> None:
        self._folder = folder
        self._replica = replica
        self._keep = keep
        self._ranks = ranks
        self._outer = OUTER if ranks == 1 else f"{OUTER}-{replica}"

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return self._folder

    def write(self, snapshot: Snapshot) -> None:
        """Writes it, then deletes this replica's oldest beyond `keep`. After CheckpointError nothing is gone."""
        folder = self._folder / f"round-{snapshot.info.round}"
        outer = _prefixed(theta=snapshot.theta, shared=snapshot.shared)
        own = _prefixed(own=snapshot.own, inner=snapshot.inner, random={"cpu": torch.get_rng_state()})
        try:
            if not (folder / f"{self._outer}.safetensors").exists():
                _write(folder / f"{self._outer}.safetensors", outer, snapshot.info, self._ranks)
            _write(folder / f"{self._replica}.safetensors", own, snapshot.info, self._ranks)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write the checkpoint of round {snapshot.info.round} to {folder}: {error}; "
                "earlier checkpoints are untouched. Make room and launch again: the run resumes"
            ) from error
        self._prune()

    def shared_file(self, info: CheckpointInfo) -> Path | None:
        """The file of what all replicas hold alike after a round; None when it is not there, or is something else."""
        path = self._folder / f"round-{info.round}" / f"{self._outer}.safetensors"
        with suppress(SafetensorError, OSError, KeyError, TypeError, ValueError):
            return path if _info_of(path) == info else None
        return None

    def discard(self, theta_digest: str) -> None:
        """Deletes all of this replica's checkpoints, and what was shared of them if it has `theta_digest`."""
        for number in self._rounds(self._replica):
            folder = self._folder / f"round-{number}"
            with suppress(OSError, SafetensorError):
                (folder / f"{self._replica}.safetensors").unlink(missing_ok=True)
                if _info_of(folder / f"{self._outer}.safetensors").theta_digest == theta_digest:
                    (folder / f"{self._outer}.safetensors").unlink()

    def newest(self, config_digest: str, not_after: float = math.inf) -> Snapshot | None:
        """The newest checkpoint of this replica that is whole, or None. CheckpointError when it is another run's."""
        for number in sorted((n for n in self._rounds(self._replica) if n <= not_after), reverse=True):
            with suppress(SafetensorError, OSError, KeyError, ValueError):
                snapshot = self._read(number)
                if snapshot.info.config_digest != config_digest:
                    raise CheckpointError(
                        f"{self._folder}/round-{number} is of a run with config {snapshot.info.config_digest[:12]}, "
                        f"not {config_digest[:12]}: choose another run.directory"
                    )
                return snapshot
        return None

    def _read(self, number: int) -> Snapshot:
        folder = self._folder / f"round-{number}"
        info, outer = read_checkpoint(folder / f"{self._outer}.safetensors")
        own_info, own = read_checkpoint(folder / f"{self._replica}.safetensors")
        if own_info != info:
            raise ValueError("two replicas wrote it, and held different parameters")
        torch.set_rng_state(own["random"]["cpu"])
        return Snapshot(info, outer["theta"], outer.get("shared", {}), own.get("own", {}), own.get("inner", {}))

    def _rounds(self, name: str) -> list[int]:
        folders = [folder for folder in self._folder.glob("round-*") if (folder / f"{name}.safetensors").exists()]
        return [int(match[1]) for folder in folders if (match := _ROUND.fullmatch(folder.name))]

    def _prune(self) -> None:
        """Deletes this replica's old files, and with the last replica's what they shared."""
        for number in sorted(self._rounds(self._replica))[: -self._keep]:
            folder = self._folder / f"round-{number}"
            with suppress(OSError):  # another replica deletes the same, or writes its own here, right now
                (folder / f"{self._replica}.safetensors").unlink(missing_ok=True)
                if self._outer != OUTER:
                    (folder / f"{self._outer}.safetensors").unlink(missing_ok=True)
                if {file.name for file in folder.glob("*.safetensors")} <= {f"{OUTER}.safetensors"}:
                    (folder / f"{OUTER}.safetensors").unlink(missing_ok=True)
                    folder.rmdir()


def newest_outer(folder: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """The newest outer parameters of which a run's checkpoint folder holds all, in one file or in its ranks' parts.

    CheckpointError when there is no checkpoint, or one that cannot be read.
    """
    numbers = (int(match[1]) for path in folder.glob("round-*") if (match := _ROUND.fullmatch(path.name)))
    for number in sorted(numbers, reverse=True):
        for files in _outer_files(folder / f"round-{number}"):
            with suppress(_Incomplete):
                return _put_together(files)
    raise CheckpointError(
        f"{folder} holds no checkpoint of the whole model: the run has not committed a round yet, "
        f"or stages of its replicas keep theirs on other machines"
    )


class _Incomplete(Exception):
    """Parts of a checkpoint do not make a whole."""


def _outer_files(folder: Path) -> Iterator[list[Path]]:
    """The files that hold the outer parameters: one for all, or those of the ranks of one replica after the other."""
    if (whole := folder / f"{OUTER}.safetensors").exists():
        yield [whole]
    by_replica: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"{OUTER}-*.safetensors")):
        by_replica.setdefault(path.name.removesuffix(".safetensors").rpartition(".")[0], []).append(path)
    yield from by_replica.values()


def _put_together(files: Sequence[Path]) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """The parameters in `files`; _Incomplete when a rank's are missing, or are of another state."""
    theta, kinds = dict[str, Tensor](), set[tuple[CheckpointInfo, int]]()
    for path in files:
        try:
            info, parts = read_checkpoint(path)
            kinds.add((info, _ranks_of(path)))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        theta |= parts["theta"]
    if len(kinds) != 1 or kinds != {(info, len(files))}:
        raise _Incomplete
    return info, theta


def read_checkpoint(path: Path) -> tuple[CheckpointInfo, dict[str, dict[str, Tensor]]]:
    """What a checkpoint file is of, and its tensors by part and name. SafetensorError or OSError when not whole."""
    parts: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        info = CheckpointInfo(**json.loads(file.metadata()["dist_train"]))
        for key in file.keys():  # noqa: SIM118 - not a mapping
            part, _, name = key.partition(":")
            parts.setdefault(part, {})[name] = file.get_tensor(key)
    return info, parts


def shared_file_bytes(shapes: Mapping[str, Sequence[int]], copies: int) -> int:
    """How long the file of what all replicas hold alike is: parameters of `shapes`, and `copies` of them beside."""
    header: dict[str, object] = {
        "__metadata__": {"dist_train": json.dumps(asdict(CheckpointInfo(100, _DIGEST, _DIGEST))), "ranks": "1"}
    }
    offset = 0
    for part in ("theta", *(f"shared{copy}" for copy in range(copies))):
        for name, shape in shapes.items():
            end = offset + 4 * math.prod(shape)
            header[f"{part}:{name}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
    header_bytes = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-header_bytes // 8) * 8 + offset


def _ranks_of(path: Path) -> int:
    """How many files make a whole."""
    with safe_open(path, framework="pt") as file:
        return int(file.metadata().get("ranks", 1))


def _info_of(path: Path) -> CheckpointInfo:
    with safe_open(path, framework="pt") as file:
        return CheckpointInfo(**json.loads(file.metadata()["dist_train"]))


def _prefixed(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}:{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _write(path: Path, tensors: Mapping[str, Tensor], info: CheckpointInfo, ranks: int) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"dist_train": json.dumps(asdict(info)), "ranks": str(ranks)})
        failpoints.reach("inside-checkpoint", info.round)
