"""The ledger against the kernel: a whole run in a network namespace of its own, whose loopback counts every byte."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_train.report import collect
from dist_train.run_directory import RunDirectory
from tests.running import tiny, write_corpus

NAMESPACE = f"dist-train-{os.getpid()}"


def _why_not() -> str:
    """Why this machine cannot have a namespace, or nothing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux, for a network namespace"
    try:
        with namespace():
            return ""
    except (OSError, RuntimeError, ImportError) as error:
        return f"no network namespace: {error}"


@contextmanager
def namespace() -> Iterator[None]:
    """A network namespace with a loopback and nothing else."""
    from pyroute2 import NetNS, netns  # noqa: PLC0415 - Linux alone

    netns.create(NAMESPACE)
    try:
        with NetNS(NAMESPACE) as inside:
            inside.link("set", index=inside.link_lookup(ifname="lo")[0], state="up")
        yield
    finally:
        netns.remove(NAMESPACE)


def loopback_bytes() -> int:
    """What the kernel has sent over the namespace's loopback: TCP and IP headers and acknowledgements included."""
    from pyroute2 import NetNS  # noqa: PLC0415

    with NetNS(NAMESPACE) as inside:
        (link,) = inside.link("get", index=inside.link_lookup(ifname="lo")[0])
        return int(link.get_attr("IFLA_STATS64")["tx_bytes"])


def launch_inside(config: Path) -> int:
    """Runs `dist-train launch` in the namespace; its exit code."""
    from pyroute2 import NSPopen  # noqa: PLC0415

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launcher", "launch", str(config)]
    process = NSPopen(NAMESPACE, command, env=environment, stdout=subprocess.DEVNULL)
    try:
        return int(process.wait())
    finally:
        process.release()


@pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "-")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("route", ["direct", "relay"])
def test_the_ledger_holds_what_went_over_the_sockets(tmp_path: Path, route: str) -> None:
    config = tiny(
        tmp_path / "run",
        write_corpus(tmp_path / "corpus"),
        model={"hidden_size": 128, "layers": 4, "intermediate_size": 512},
        outer={"method": "diloco", "rounds": 3},
        inner={"steps": 1},
        exchange={"route": route},
    )
    run_file = tmp_path / "run.toml"
    run_file.write_text(config.to_toml())
    with namespace():
        assert launch_inside(run_file) == 0
        counted_bytes = loopback_bytes()
    report = collect(RunDirectory(tmp_path / "run"))
    assert report.sent_bytes == report.received_bytes
    assert report.sent_bytes == pytest.approx(counted_bytes, rel=0.03)
    assert report.sent_bytes < counted_bytes
    exchanged = next(part for part in report.traffic if part.kind == "pseudo_gradient")
    assert exchanged.sent_bytes == exchanged.predicted_bytes, "dense payloads are as long as predicted"
    assert exchanged.sent_bytes > 0.99 * report.sent_bytes
