"""The page in a real browser: it asks for nothing, has no error, draws all, and shows the values of the JSON."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from comms.link_plan import LinkPlan, Simulation
from comms.link_plan import Path as LinkPath
from dist_train.config import parse
from dist_train.report import collect
from dist_train.report.page import render_page
from dist_train.report.quantities import bytes_text
from dist_train.run_directory import RunDirectory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *sandbox])
        yield launched
        launched.close()


def write_run(folder: Path, rounds: int = 5, method: str = "sparseloco") -> RunDirectory:
    """A run of two replicas with everything that a report can show; c was left out with a hostile reason."""
    directory = RunDirectory(folder)
    folder.mkdir(exist_ok=True)
    replicas = [{"id": name} for name in "abc"]
    document = {"outer": {"rounds": rounds, "method": method}, "replica": replicas}
    directory.config.write_text(parse(document).to_toml())
    fragment = {"parameters": 1000, "values": 16, "payload_bytes": 30}
    facts = {"model": {"name": HOSTILE, "parameters": 1000}, "fragments": {"embed": fragment}}
    directory.facts.write_text(json.dumps(facts))
    rows, ledger = [], []
    for number in range(1, rounds + 1):
        opened_s = 1000.0 + 10 * number
        phase_s = {"compute": 6.0, "encode": 0.5, "publish": 0.25, "wait": 1.25, "fetch": 1.0, "decode": 0.5}
        rows.append(
            {
                "round": number, "contributors": ["a", "b"], "theta_digest": "ab" * 32, "loss": 5.0 / number,
                "validation_loss": 5.5 / number, "tokens": {"a": 100, "b": 120},
                "phase_s": {name: phase_s | {HOSTILE: 0.1} for name in ("a", "b", HOSTILE)},
                "health": {"a": {"error_feedback_norm": 1.0 * number, HOSTILE: 2.0, "sequence_planning_s": 0.2}},
                "payload_bytes": {"a": 28, "b": 28}, "absent": [{"replica": "c", "reason": HOSTILE}], "round_s": 10.0,
                "opened_at_s": opened_s, "reported_at_s": {"a": opened_s + 7, "b": opened_s + 7.5},
                "acknowledged_at_s": {"a": opened_s + 9, "b": opened_s + 9.5},
                "applied_at_s": {"a": opened_s + 10, "b": opened_s + 10.5},
            }
        )  # fmt: skip
        for member, peer in (("a", "b"), ("b", "a")):
            for direction in ("sent", "received"):
                known = {"member": member, "peer": peer, "direction": direction, "round": number}
                times = {"at_s": opened_s + 9, "seconds": 0.5}
                ledger.append(known | times | {"kind": "pseudo_gradient", "bytes": 37})
                ledger.append(known | times | {"kind": HOSTILE, "bytes": 5})
    directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    directory.ledgers.mkdir(exist_ok=True)
    directory.ledger("a").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    step = {"planner": "adaptive", "late": 0, "planning_s": 0.2, "waiting_s": 0.0001, "reduce_s": 0.05, "gap": 0.02}
    steps = [step | {"predicted_s": 0.4, "measured_s": 0.4 + 0.01 * n, "degrees": "4 2 1 1"} for n in range(3 * rounds)]
    (folder / "steps-a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    asked = LinkPlan().with_path("a", "b", LinkPath(bits_per_second=5e3, latency_s=0.04))
    directory.simulation.write_bytes(Simulation(asked, "kernel", "in-process").to_json())
    return directory


def opened(browser: Browser, path: Path, **context: Any) -> tuple[Page, list[str]]:
    """The page, drawn, and everything that it should not have done until then."""
    page = browser.new_context(**context).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn=yes]", state="attached")
    return page, complaints


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("page")
    report = collect(write_run(folder / "run"))
    path = folder / "report.html"
    path.write_text(render_page(report))
    return path, json.loads(report.to_json())


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_all_is_drawn_inside_the_window_and_nothing_is_asked_for(
    browser: Browser, written: tuple[Path, dict[str, Any]], scheme: Any, width: int
) -> None:
    page, complaints = opened(browser, written[0], color_scheme=scheme, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.evaluate(
        """[...document.querySelectorAll(".plot")].map((plot) => {
             const box = plot.getBoundingClientRect();
             const marks = plot.querySelectorAll(".point, .points path, .js-line, .hm image, image, .fills path");
             const isDrawn = plot.querySelectorAll(".main-svg").length > 0;
             return [plot.id, isDrawn, marks.length, box.left, box.right, box.height]; })"""
    )
    expected = {"loss-tokens", "loss-sent-bytes", "loss-elapsed-s", "traffic-members", "matrix", "bytes-rounds"}
    expected |= {"baselines", "timeline", "seconds-rounds", "links", "health-0", "health-1"}
    expected |= {"sequence-steps-0", "sequence-groups"}
    assert {name for name, *_ in plots} == {f"plot-{name}" for name in expected}
    for name, is_drawn, marks, left, right, height in plots:
        assert is_drawn, name
        assert marks > 0, name
        assert left >= 0, name
        assert right <= width, name
        assert height > 100, name
    tiles = page.evaluate(
        """[...document.querySelectorAll(".card, .plots > figure, #plot-timeline, .scroll")].map((part) => {
             const box = part.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; })"""
    )
    for n, one in enumerate(tiles):
        assert one[2] <= width
        for other in tiles[n + 1 :]:
            is_apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert is_apart, f"{one} and {other} overlap"
    assert complaints == []


def test_the_plots_and_the_tables_show_what_the_json_says(
    browser: Browser, written: tuple[Path, dict[str, Any]]
) -> None:
    path, report = written
    page, complaints = opened(browser, path)
    carried = page.evaluate("JSON.parse(document.getElementById('report').textContent)")
    assert carried == report
    data = page.evaluate(
        """Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) =>
             [plot.id, plot.data.map(({name, x, y, z, base}) => ({name, x, y, z, base}))]))"""
    )
    assert data["plot-loss-tokens"][0]["x"] == [point["tokens"] for point in report["curve"]]
    assert data["plot-loss-sent-bytes"][1]["y"] == [point["validation_loss"] for point in report["curve"]]
    sent = sum(sum(trace["y"]) for trace in data["plot-traffic-members"] if not trace["name"].endswith(", received"))
    assert sent == report["sent_bytes"]
    assert sum(n for line in data["plot-matrix"][0]["z"] for n in line if n) == report["sent_bytes"]
    assert data["plot-links"][0]["y"] == [link["goodput_bits_per_second"] for link in report["links"]]
    assert data["plot-links"][1]["y"] == [link["limit_bits_per_second"] for link in report["links"]]
    (planned,) = report["sequences"]
    assert (planned["replica"], planned["steps"], planned["gap"]) == ("a", 15, pytest.approx(0.02))
    assert planned["groups"] == {"1": 30, "2": 15, "4": 15}
    measured, predicted = data["plot-sequence-steps-0"][:2]
    assert measured["y"] == [point["measured_s"] for point in planned["curve"]]
    assert predicted["y"] == [point["predicted_s"] for point in planned["curve"]]
    assert [trace["y"] for trace in data["plot-sequence-groups"]] == [[0.5], [0.25], [0.25]]
    # The timeline shows the last rounds; `earlier` shows the first.
    shown = {part["round"] for part in report["timeline"][-9:]}
    spans = [span for part in report["timeline"] if part["round"] in shown for span in part["spans"]]
    assert sorted(s for trace in data["plot-timeline"] for s in trace["x"]) == pytest.approx(
        sorted(s for *_, s in spans)
    )
    page.click("#earlier")
    assert page.inner_text("#rounds-shown").startswith("rounds 1 ")
    page.check("#exchange")
    assert page.inner_text("#rounds-shown") == "round 3"
    text = page.inner_text("body")
    assert "50% of 1, 25% of 2, 25% of 4" in text
    assert "sequence planning s" not in text.lower(), "what has a section of its own is not shown as health"
    assert bytes_text(report["sent_bytes"]) in text
    assert f"{report['ratios']['ddp_fp32']:,.0f}x" in text
    assert HOSTILE in text, "what a member sent is shown as the text that it is"
    assert page.query_selector("img") is None
    assert complaints == []


def test_runs_lie_over_each_other(browser: Browser, tmp_path: Path) -> None:
    reports = [collect(write_run(tmp_path / method, n, method)) for method, n in (("sparseloco", 5), ("diloco", 70))]
    path = tmp_path / "compared.html"
    path.write_text(render_page(reports[0], reports[1:]))
    page, complaints = opened(browser, path)
    traces = page.evaluate("document.getElementById('plot-loss-tokens').data.map(({name}) => name)")
    assert [name.split("(")[1] for name in traces] == [
        "sparseloco) train", "sparseloco) validation", "diloco) train", "diloco) validation",
    ]  # fmt: skip
    assert complaints == []


def test_a_run_that_died_in_its_first_round_has_a_page(browser: Browser, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.config.write_text(parse({}).to_toml())
    path = tmp_path / "report.html"
    path.write_text(render_page(collect(directory)))
    page, complaints = opened(browser, path)
    assert "no round was committed" in page.inner_text("body")
    assert complaints == []
