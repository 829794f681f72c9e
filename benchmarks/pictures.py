"""The README's pictures, from real runs: `python -m benchmarks.pictures [--runs FOLDER]`.

Runs examples/dense.toml under each method (twelve rounds of it, some minutes each) and writes, into docs/pictures/:
round.svg, one round of three replicas as a timeline, its exchange enlarged; loss.svg, validation loss against bytes
for the methods. With --runs, run directories named after the methods are used where they are there already.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from dist_train.report.plots import PHASE_COLOURS
from dist_train.report.quantities import bytes_text

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
METHODS = {"sparseloco": "#3b7dd8", "diloco": "#e07b39", "ddp": "#2f9e6e"}
NAMES = {"sparseloco": "SparseLoCo", "diloco": "DiLoCo, fp32", "ddp": "DDP, fp32"}
ROUNDS = 12
WIDTH = 820
STYLE = """
 text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; } .dim { fill: #59636e; }
 .title { font-weight: 600; font-size: 15px; } .grid { stroke: #d1d9e0; } .frame { stroke: #59636e; fill: none; }
 @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .dim { fill: #9198a1; } .grid { stroke: #3d444d; } }
"""


def main() -> None:
    """Runs the methods and writes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="where run directories are, or are put")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reports = {method: run(method, (options.runs or Path(folder)) / method) for method in METHODS}
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, picture in (("round", timeline(reports["sparseloco"])), ("loss", loss(reports))):
        (PICTURES / f"{name}.svg").write_text(picture, encoding="utf-8")
        print(PICTURES / f"{name}.svg")


def run(method: str, directory: Path) -> dict[str, Any]:
    """The report of a run under a method; launching a complete run again does nothing."""
    changes = [f"outer.method={method}", f"outer.rounds={ROUNDS}", f"run.directory={directory}"]
    launcher = [sys.executable, "-m", "launcher"]
    subprocess.run([*launcher, "launch", "examples/dense.toml", *changes], cwd=ROOT, check=True, stdout=sys.stderr)
    said = subprocess.run([*launcher, "report", str(directory), "--json"], cwd=ROOT, check=True, capture_output=True)
    report: dict[str, Any] = json.loads(said.stdout)
    return report


def timeline(report: dict[str, Any]) -> str:
    """The round with the median waiting, whole above and its exchange below."""
    by_round: dict[int, list[dict[str, Any]]] = {}
    for part in report["timeline"]:
        by_round.setdefault(part["round"], []).append(part)
    waits = {
        n: sum(seconds for part in parts for phase, _, seconds in part["spans"] if phase == "wait")
        for n, parts in by_round.items()
    }
    number = sorted(waits, key=lambda n: waits[n])[len(waits) // 2]
    parts = by_round[number]
    end_s = max(start + seconds for part in parts for _, start, seconds in part["spans"])
    work_end_s = min(s + d for part in parts for phase, s, d in part["spans"] if phase == "compute")
    zoom_s = work_end_s - 0.04 * (end_s - work_end_s)
    sent = sum(d["pseudo_gradient_bytes"] for d in report["rounds_detail"] if d["round"] == number)
    title = f"Round {number} of examples/dense.toml: {len(parts)} replicas, {bytes_text(sent)} of pseudo-gradients"
    lines = [
        _text(16, 24, title, "title"),
        *_bars(parts, 0.0, end_s, 44),
    ]
    below = 44 + 26 * len(parts) + 48
    left, right = _x(zoom_s, 0.0, end_s), _x(end_s, 0.0, end_s)
    middle = 44 + 26 * len(parts) + 24
    lines += [
        f'<path class="grid" fill="none" d="M{left:.1f} {44 + 26 * len(parts)} L{_x(0, 0, 1):.1f} {below - 6}"/>',
        f'<path class="grid" fill="none" d="M{right:.1f} {44 + 26 * len(parts)} L{_x(1, 0, 1):.1f} {below - 6}"/>',
        _text(right - 10, middle + 8, f"the last {1000 * (end_s - zoom_s):.0f} ms, enlarged", "dim", "end"),
        *_bars(parts, zoom_s, end_s, below),
    ]
    legend = below + 26 * len(parts) + 42
    x = 16.0
    for phase in PHASE_COLOURS:
        colour = PHASE_COLOURS[phase]
        lines.append(f'<rect x="{x:.0f}" y="{legend - 11}" width="12" height="12" rx="2" fill="{colour}"/>')
        lines.append(_text(x + 17, legend, phase))
        x += 38 + 8.0 * len(phase)
    return _svg(legend + 16, lines, f"One round of {len(parts)} replicas as a timeline")


def _x(at: float, begin: float, end: float) -> float:
    return 50 + (WIDTH - 50 - 16) * (at - begin) / (end - begin)


def _bars(parts: list[dict[str, Any]], begin_s: float, end_s: float, top: int) -> list[str]:
    lines = []
    for row, part in enumerate(parts):
        lines.append(_text(40, top + 26 * row + 15, part["replica"], anchor="end"))
        for phase, start, seconds in part["spans"]:
            left, right = max(start, begin_s), min(start + seconds, end_s)
            if right > left:
                x, wide = _x(left, begin_s, end_s), _x(right, begin_s, end_s) - _x(left, begin_s, end_s)
                at = f'x="{x:.2f}" y="{top + 26 * row}" width="{max(wide, 0.4):.2f}" height="20"'
                said = f"<title>{escape(phase)} {seconds:.3f} s</title>"
                lines.append(f'<rect {at} fill="{PHASE_COLOURS.get(phase, "#777777")}">{said}</rect>')
    below = top + 26 * len(parts)
    for tick in _ticks(begin_s, end_s):
        x = _x(tick, begin_s, end_s)
        lines.append(f'<path class="grid" d="M{x:.1f} {below - 4} v6"/>')
        lines.append(_text(x, below + 16, f"{tick:g} s", "dim", "middle"))
    return lines


def _ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / wanted))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= wanted)
    return [round(step * n, 6) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def loss(reports: dict[str, dict[str, Any]]) -> str:
    """Validation loss against the bytes that all members had sent, on a logarithmic axis."""
    curves = {
        method: [(p["sent_bytes"], p["validation_loss"]) for p in report["curve"] if p["validation_loss"] is not None]
        for method, report in reports.items()
    }
    points = [point for curve in curves.values() for point in curve]
    low_x, high_x = (math.log10(f(x for x, _ in points)) for f in (min, max))
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    low_y -= 0.18 * (high_y - low_y)  # names stand below the ends of their curves
    top, bottom, left, right = 50, 350, 56, WIDTH - 60

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low_x) / (high_x - low_x)
        return left + (right - left) * across, bottom - (bottom - top) * (y - low_y) / (high_y - low_y)

    lines = [_text(16, 24, "Validation loss (nats a token) against bytes sent: the same tokens, three ways", "title")]
    for exponent in range(math.ceil(low_x), math.floor(high_x) + 1):
        x, _ = place(10**exponent, low_y)
        lines.append(f'<path class="grid" d="M{x:.1f} {top} V{bottom + 6}"/>')
        lines.append(_text(x, bottom + 22, bytes_text(10**exponent).replace(".0", ""), "dim", "middle"))
    for tick in _ticks(low_y, high_y):
        _, y = place(10**low_x, tick)
        lines.append(f'<path class="grid" d="M{left} {y:.1f} H{right}"/>')
        lines.append(_text(left - 8, y + 4, f"{tick:g}", "dim", "end"))
    for method, curve in curves.items():
        placed = [place(x, y) for x, y in curve]
        path = "".join(f"L{x:.1f} {y:.1f}" for x, y in placed)
        lines.append(f'<path d="M{path[1:]}" fill="none" stroke="{METHODS[method]}" stroke-width="2.5"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{METHODS[method]}"/>' for x, y in placed]
    lines += _labels({method: (place(*curve[-1]), curve[-1]) for method, curve in curves.items()})
    lines.append(_text((left + right) / 2, bottom + 46, "bytes sent by all members (logarithmic)", "dim", "middle"))
    return _svg(bottom + 60, lines, "Validation loss against bytes sent, for SparseLoCo, DiLoCo and DDP")


def _labels(ends: dict[str, tuple[tuple[float, float], tuple[float, float]]]) -> list[str]:
    """A name below the end of each curve."""
    return [
        f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle" style="fill:{METHODS[method]};font-weight:600">'
        + NAMES[method]
        + "</text>"
        + _text(x, y + 36, f"{bytes_text(num_bytes)}, {value:.2f}", "dim", "middle")
        for method, ((x, y), (num_bytes, value)) in ends.items()
    ]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, lines: list[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    return "\n".join([head, f"<title>{title}</title><style>{STYLE}</style>", *lines, "</svg>", ""])


if __name__ == "__main__":
    main()
