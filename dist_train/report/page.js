"use strict";
// Draws the figures that the page carries, in the page's own colours, and again when the theme changes.
const carried = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = carried("figures");
const timeline = carried("timeline");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isNarrow = () => window.innerWidth < 600;

function themed(layout) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
  const ours = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--text"), size: isNarrow() ? 11 : 12, family: "system-ui, sans-serif" },
    margin: { l: 56, r: 12, t: 8, b: 40 },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, traceorder: "normal" },
    hoverlabel: { namelength: -1 }, bargap: 0.15,
  };
  const merged = Object.assign(ours, layout);
  for (const name of ["xaxis", "yaxis"]) merged[name] = Object.assign({}, axis, layout[name] || {});
  return merged;
}
const options = { responsive: true, displaylogo: false, displayModeBar: false };
const draw = (id, data, layout) => Plotly.react(document.getElementById(id), data, themed(layout), options);

// The timeline: as many rounds at a time as can be told apart.
const rounds = [...new Set(timeline.parts.map((part) => part.round))];
const replicas = [...new Set(timeline.parts.map((part) => part.replica))];
const step = Math.max(1, Math.min(3, Math.floor(600 / Math.max(1, 8 * replicas.length))));
const isZoomed = () => document.getElementById("exchange").checked;
let first = Math.max(0, rounds.length - step);

function drawTimeline() {
  const place = document.getElementById("plot-timeline");
  if (!place) return;
  const shown = isZoomed() ? [rounds[Math.min(first + step, rounds.length) - 1]] : rounds.slice(first, first + step);
  const zero = timeline.started[shown[0]] || 0;
  const byPhase = new Map(timeline.phases.map((phase) => [phase, { x: [], base: [], y: [], text: [] }]));
  for (const part of timeline.parts) {
    if (!shown.includes(part.round)) continue;
    for (const [phase, start, seconds] of part.spans) {
      const bars = byPhase.get(phase);
      bars.x.push(seconds);
      bars.base.push(timeline.started[part.round] - zero + start);
      bars.y.push(part.replica);
      bars.text.push(`round ${part.round}, ${phase}: ${seconds.toFixed(3)} s`);
    }
  }
  const data = [...byPhase].filter(([, bars]) => bars.x.length).map(([phase, bars]) => ({
    type: "bar", orientation: "h", name: phase, x: bars.x, base: bars.base, y: bars.y, hovertext: bars.text,
    hovertemplate: "%{y}, %{hovertext}<extra></extra>", marker: { color: timeline.colours[phase] },
  }));
  const ends = shown.slice(1).map((round) => timeline.started[round] - zero);
  const ofShown = timeline.parts.filter((part) => part.round === shown[0]).flatMap((part) => part.spans);
  const workEnds = ofShown.filter(([phase]) => phase === "compute").map(([, start, seconds]) => start + seconds);
  const end = Math.max(...ofShown.map(([, start, seconds]) => start + seconds));
  const range = isZoomed() && workEnds.length ? [Math.min(...workEnds) - 0.05 * (end - Math.min(...workEnds)), end] : undefined;
  place.style.height = `${140 + 34 * replicas.length}px`;
  draw("plot-timeline", data, {
    barmode: "overlay", height: 140 + 34 * replicas.length,
    xaxis: range ? { title: { text: "seconds" }, range } : { title: { text: "seconds" }, autorange: true }, yaxis: { type: "category", autorange: "reversed" },
    shapes: ends.map((x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour("--dim"), width: 1, dash: "dot" } })),
  });
  document.getElementById("rounds-shown").textContent =
    shown.length > 1 ? `rounds ${shown[0]} to ${shown[shown.length - 1]}` : `round ${shown[0]}`;
  document.getElementById("earlier").disabled = first === 0;
  document.getElementById("later").disabled = first + step >= rounds.length;
}
function turn(by) {
  const move = isZoomed() ? Math.sign(by) : by;
  first = Math.max(0, Math.min(rounds.length - step, first + move));
  drawTimeline();
}
function drawAll() {
  for (const figure of figures) draw(`plot-${figure.id}`, figure.data, figure.layout);
  drawTimeline();
}
if (document.getElementById("plot-timeline")) {
  document.getElementById("earlier").addEventListener("click", () => turn(-step));
  document.getElementById("later").addEventListener("click", () => turn(step));
  document.getElementById("exchange").addEventListener("change", drawTimeline);
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
document.documentElement.dataset.drawn = "yes";
