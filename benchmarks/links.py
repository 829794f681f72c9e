"""Simulated links against what they should be: `python -m benchmarks.links [--json] [--quick] [--part X] [--way X]`.

For each rate, number of members and way of enforcement, members as processes of their own get an endless payload from
each other at once, over the channels and servers of real runs. Every line is limited in both directions. Reported are
the payload bytes that went over a line in the window, against its limit: of the worst line and of the best. IP packets
count against a limit, so a payload can reach 96.5 % of it at most: of 1500 bytes 52 are headers, and HTTP/2 and
acknowledgements take their part.

Latency is the time from a small request to its small answer on idle links, less what it is where nothing is simulated
(in the kernel's way: in the namespaces, without latency), against twice the one-way latency that was asked for; the
least of 40 of both, because a busy machine only adds.

`rounds` are of a real run at 20 Mbit/s: dense.toml, its model twice as wide, under DiLoCo with fp32 values, so that
payloads are large; each member's line while payloads move.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comms import network
from comms.channel import listen, new_server, open_channel
from comms.security import Loopback
from dist_train.config import Config, parse
from launcher.simulate import open_network
from launcher.star import NETWORK
from protos import payload_pb2 as pb
from protos import payload_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import grpc

    from launcher.network import SimulatedNetwork

ROOT = Path(__file__).parent.parent
RATES_MBIT = (5, 20, 50, 200)
MEMBERS = (2, 3, 4)
WAYS = ("kernel", "token-bucket")
LATENCIES_MS = (10, 40, 100)
PARTS = ("goodput", "latency", "rounds")
WINDOW_S, WARM_UP_S = 10.0, 2.0
QUICK_WINDOW_S = 3.0
PINGS = 40
CHUNK = pb.Chunk(data=os.urandom(64 * 1024))
PING_OFFSET = 1


def main() -> None:
    """Measures all, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="shorter windows, two rates, 2 and 4 members")
    parser.add_argument("--way", choices=WAYS, action="append", help="may be repeated; both")
    parser.add_argument("--part", choices=PARTS, action="append", help="may be repeated; all")
    parser.add_argument("--member", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        name, window_s, mode = options.member
        asyncio.run(_be_member(name, float(window_s), mode))
        return
    window_s = QUICK_WINDOW_S if options.quick else WINDOW_S
    rates, members = ((20, 200), (2, 4)) if options.quick else (RATES_MBIT, MEMBERS)
    results: dict[str, list[dict[str, Any]]] = {part: [] for part in options.part or PARTS}
    for way in options.way or WAYS:
        work: dict[str, list[Callable[[], dict[str, Any]]]] = {
            "goodput": [partial(goodput, way, rate, number, window_s) for rate in rates for number in members],
            "latency": [partial(latency_of, way, latency) for latency in LATENCIES_MS],
            "rounds": [partial(real_round, way)],
        }
        for part in results:
            for measure in work[part]:
                _add(results, part, measure(), as_json=options.json)
    if options.json:
        print(json.dumps(results, indent=1))


def goodput(way: str, rate_mbit: int, members: int, window_s: float) -> dict[str, Any]:
    """Payload bits a second on each line, all members getting from all others at once."""
    config = _config(way, members, {"line": f"{rate_mbit}mbit"})
    received = _measure(config, window_s, "transfer")
    limit = rate_mbit * 1e6
    down = [8 * sum(by_peer.values()) / window_s / limit for by_peer in received.values()]
    up = [8 * sum(by_peer.get(name, 0) for by_peer in received.values()) / window_s / limit for name in received]
    return {
        "enforced_by": way, "rate_mbit": rate_mbit, "members": members, "window_s": window_s,
        "least_share": min(down + up), "most_share": max(down + up), "median_share": statistics.median(down + up),
    }  # fmt: skip


def latency_of(way: str, latency_ms: int) -> dict[str, Any]:
    """Seconds from request to answer, with latency and without."""
    there = _config(way, 2, {"latency": f"{latency_ms}ms", "line": "50mbit"})
    nothing = _config("kernel", 2, {"line": "50mbit"}) if way == "kernel" else None
    with_it, without = (
        min(seconds for by_peer in _measure(config, 0, "ping").values() for seconds in by_peer.values())
        for config in (there, nothing)
    )
    return {
        "enforced_by": way, "latency_ms": latency_ms, "answer_ms": 1e3 * with_it, "without_ms": 1e3 * without,
        "share": (with_it - without) / (2e-3 * latency_ms),
    }  # fmt: skip


def real_round(way: str) -> dict[str, Any]:
    """What the lines of a real run reach while payloads move."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [
            "outer.method=diloco", "outer.rounds=2", "model.hidden_size=256", "inner.steps=2", "inner.batch_tokens=512",
            "data.validation_tokens=512", f"run.directory={folder}/run", f"simulate.enforce={way}",
        ]  # fmt: skip
        command = [sys.executable, "-m", "launcher", "simulate", "examples/dense.toml", *keys, "--link", "20mbit"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        shown = [sys.executable, "-m", "launcher", "report", f"{folder}/run", "--json"]
        links = json.loads(subprocess.run(shown, cwd=ROOT, check=True, capture_output=True).stdout)["links"]
    shares = [
        link["goodput_bits_per_second"] / link["limit_bits_per_second"]
        for link in links
        if "*" in (link["from"], link["to"])
    ]
    return {"enforced_by": way, "rate_mbit": 20, "least_share": min(shares), "median_share": statistics.median(shares)}


def _config(way: str, members: int, simulate: dict[str, str]) -> Config:
    replicas = [{"id": name} for name in "abcdefgh"[:members]]
    return parse({"replica": replicas, "simulate": {"enforce": way, **simulate}})


def _measure(config: Config | None, window_s: float, mode: str) -> dict[str, dict[str, float]]:
    """What every member says that it got from each other one: bytes in the window, or seconds to an answer.

    Without a config: two members, and nothing simulated.
    """
    names = ["a", "b"] if config is None else [replica.id for replica in config.replica]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "simulation.json"
        simulated = None if config is None else stack.enter_context(open_network(config, file))
        processes = {name: _start(simulated, file, name, window_s, mode) for name in names}
        for process in processes.values():
            stack.callback(process.kill)
        addresses = {name: _pipe(process.stdout).readline().strip() for name, process in processes.items()}
        for process in processes.values():
            print(json.dumps(addresses), file=_pipe(process.stdin), flush=True)
        results = {name: json.loads(_pipe(process.stdout).readline()) for name, process in processes.items()}
        for process in processes.values():  # until all are done, everybody answers
            _pipe(process.stdin).close()
            process.wait()
            _pipe(process.stdout).close()
        return results


def _start(
    simulated: SimulatedNetwork | None, file: Path, name: str, window_s: float, mode: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.links", "--member", name, str(window_s), mode]
    environment = os.environ | ({} if simulated is None else {network.SIMULATION_VARIABLE: str(file)})
    with nullcontext() if simulated is None else simulated.entered(name):
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise AssertionError("a process without its pipes")
    return stream


# ---- one member, in its own process ----


class Endless(pb_grpc.PayloadsServicer):
    """Sends the same chunk for as long as anybody takes it; or once, to a ping."""

    async def Get(
        self, request: pb.GetRequest, context: grpc.aio.ServicerContext[pb.GetRequest, pb.Chunk]
    ) -> AsyncIterator[pb.Chunk]:
        """The payload, or a ping's answer."""
        del context
        if request.offset == PING_OFFSET:
            yield pb.Chunk(data=b"pong")
            return
        while True:
            yield CHUNK

    async def Put(
        self,
        request_iterator: AsyncIterator[pb.PutRequest],
        context: grpc.aio.ServicerContext[pb.PutRequest, pb.PutReply],
    ) -> pb.PutReply:
        """Nothing is taken in."""
        del request_iterator
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server only sends")


async def _be_member(name: str, window_s: float, mode: str) -> None:
    network.join(name)
    host = _own_host()
    server = new_server()
    pb_grpc.add_PayloadsServicer_to_server(Endless(), server)
    address = listen(server, f"{host}:0", Loopback())
    await server.start()
    print(address, flush=True)
    peers = json.loads(await asyncio.to_thread(sys.stdin.readline))
    async with asyncio.TaskGroup() as group:
        work = {
            peer: group.create_task(_pings(peer, at) if mode == "ping" else _transfer(peer, at, window_s))
            for peer, at in peers.items()
            if peer != name
        }
    got = {peer: task.result() for peer, task in work.items()}
    print(json.dumps(got), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(grace=None)


def _own_host() -> str:
    """The address on the simulated network, where there is one; the kernel says which."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((str(NETWORK[-2]), 9))
        own = str(probe.getsockname()[0])
    return own if network.is_enclosed(own) else "127.0.0.1"


async def _transfer(peer: str, address: str, window_s: float) -> float:
    """Bytes that came within the window; a chunk counts evenly over the time since the one before it."""
    loop = asyncio.get_running_loop()
    begin_s = loop.time() + WARM_UP_S
    end_s, before_s, total = begin_s + window_s, loop.time(), 0.0
    async with open_channel(address, peer, Loopback()) as channel:
        async for chunk in pb_grpc.PayloadsStub(channel).Get(pb.GetRequest()):
            now_s = loop.time()
            within_s = max(0.0, min(now_s, end_s) - max(before_s, begin_s))
            total += len(chunk.data) * within_s / max(now_s - before_s, 1e-9)
            before_s = now_s
            if now_s >= end_s:
                break
    return total


async def _pings(peer: str, address: str) -> float:
    """Seconds from request to answer, of the quickest."""
    taken = []
    async with open_channel(address, peer, Loopback()) as channel:
        stub = pb_grpc.PayloadsStub(channel)
        for _ in range(PINGS + 1):
            begun_s = time.perf_counter()
            async for _ in stub.Get(pb.GetRequest(offset=PING_OFFSET)):
                pass
            taken.append(time.perf_counter() - begun_s)
    return min(taken[1:])  # the first one connects


def _add(results: dict[str, list[dict[str, Any]]], kind: str, row: dict[str, Any], *, as_json: bool) -> None:
    results[kind].append(row)
    if not as_json:
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(kind, *shown, flush=True)


if __name__ == "__main__":
    main()
