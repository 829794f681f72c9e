"""This machine: versions, devices, memory, open files, and where it would keep a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from packaging.specifiers import SpecifierSet

from dist_train.report.quantities import bytes_text
from launcher.doctor.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = ">=3.11,<3.14"
KNOWN_GOOD = {
    "torch": ">=2.13,<3",
    "transformers": ">=5.20,<6",
    "grpcio": ">=1.80,<2",
    "protobuf": ">=7.35,<8",
    "numpy": ">=2.1,<3",
}
"""The ranges of pyproject.toml, for those whose versions have mattered."""
HIVEMIND = {"hivemind": ">=1.1.12,<2"}
LEAST_MEMORY_BYTES = 2 * 2**30
LEAST_DISK_BYTES, COMFORTABLE_DISK_BYTES = 512 * 2**20, 10 * 2**30
SLOW_DISK_BYTES_PER_S = 20e6
LEAST_FILES, COMFORTABLE_FILES = 256, 4096
_WRITTEN_BYTES = 32 * 2**20


def versions(*, discovers: bool) -> Iterator[Finding]:
    """Python and the packages that matter, each against the range that it is known to work in."""
    yield _version("python", platform.python_version(), PYTHON)
    try:
        ours = importlib.metadata.version("dist-train")
    except importlib.metadata.PackageNotFoundError:
        ours = "running from its sources"
    yield ok("version.dist-train", f"dist-train {ours}", version=ours)
    for name, known_good in (KNOWN_GOOD | (HIVEMIND if discovers else {})).items():
        try:
            yield _version(name, importlib.metadata.version(name), known_good)
        except importlib.metadata.PackageNotFoundError:
            extra = ".[dht]" if name in HIVEMIND else "."
            yield problem(
                f"version.{name}",
                f"{name} is not installed",
                f"in a clone of dist-train: pip install -c constraints.txt '{extra}'",
                known_good=known_good,
            )


def _version(name: str, version: str, known_good: str) -> Finding:
    if SpecifierSet(known_good).contains(version, prereleases=True):
        return ok(f"version.{name}", f"{name} {version}", version=version, known_good=known_good)
    return warning(
        f"version.{name}", f"{name} {version} is outside {known_good}, where it is known to work",
        f"install one of {known_good}", version=version, known_good=known_good,
    )  # fmt: skip


def devices() -> Iterator[Finding]:
    """Accelerators, cores and memory."""
    import torch  # seconds, which nothing else here takes

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = [f"{each.name} with {bytes_text(each.total_memory)}" for each in found]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fact = f"{', '.join(names) or 'no GPU'}; {cores} CPU cores"
    memory = [{"name": each.name, "memory_bytes": each.total_memory} for each in found]
    yield ok("devices", fact, cuda=memory, cpu_cores=cores)
    free = psutil.virtual_memory()
    fact = f"{bytes_text(free.available)} of {bytes_text(free.total)} memory free"
    values = {"free_bytes": free.available, "total_bytes": free.total}
    if free.available < LEAST_MEMORY_BYTES:
        yield warning("memory", fact, "end other programs, or train a smaller model here", **values)
    else:
        yield ok("memory", fact, **values)


def open_files() -> Finding:
    """How many files, and so connections, a process may have open at most."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY or most >= COMFORTABLE_FILES:
        return ok("open-files", "connections enough", most_files=None if most == resource.RLIM_INFINITY else most)
    fact = f"a process may open {most} files, connections among them"
    remedy = f"raise the hard limit: ulimit -Hn {COMFORTABLE_FILES}, or LimitNOFILE in the service's unit"
    return (problem if most < LEAST_FILES else warning)("open-files", fact, remedy, most_files=most)


def disk(directory: Path) -> Finding:
    """Whether a run can be kept in `directory`, with how much room and how fast; leaves nothing there."""
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    where = {"directory": str(directory)}
    if not place.is_dir():
        return problem("disk", f"{directory} can't be made: {place} is a file", "choose another run.directory", **where)
    try:
        free_bytes = shutil.disk_usage(place).free
        if free_bytes < LEAST_DISK_BYTES:
            return problem(
                "disk",
                f"{directory} has {bytes_text(free_bytes)} free; a small run needs {bytes_text(LEAST_DISK_BYTES)}",
                "free some, or choose another run.directory", free_bytes=free_bytes, **where,
            )  # fmt: skip
        bytes_per_s = _write_speed(place)
    except OSError as error:
        return problem(
            "disk",
            f"{directory} can't be written: {error.strerror}",
            "choose another run.directory, or its rights",
            **where,
        )
    fact = f"{directory}: {bytes_text(free_bytes)} free, written at {bytes_text(bytes_per_s)}/s"
    values = where | {"free_bytes": free_bytes, "write_bytes_per_second": bytes_per_s}
    if free_bytes < COMFORTABLE_DISK_BYTES:
        return warning("disk", fact, "checkpoints of a larger model fill it: see checkpoint.keep", **values)
    if bytes_per_s < SLOW_DISK_BYTES_PER_S:
        return warning("disk", fact, "checkpoints will take long: raise checkpoint.every_rounds", **values)
    return ok("disk", fact, **values)


def _write_speed(folder: Path) -> float:
    """Bytes a second that reach the disk."""
    content = os.urandom(_WRITTEN_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        started_s = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN_BYTES / (time.perf_counter() - started_s)
