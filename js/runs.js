// The sidebar of runs: what was trained and how well, side by side, and the way back to each graph.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Chart, number, smooth } from "./chart.js";
import { RunView, Runs, STATES, el, loadStyle, methodName } from "./view.js";

const LOOK_MS = 4000;
const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3], [1, 4], [10, 4]]; // runs are told apart without colour, too
const runs = new Runs(api);

const labelOf = (run) => `${run.subject}, ${methodName(run.method)}`;

function tell(severity, summary, detail) {
  app.extensionManager?.toast?.add?.({ severity, summary, detail, life: 6000 });
}

// The node that trains so, with the run's settings in its widgets. Photos and model are linked by hand.
function addToGraph(run) {
  const wanted = `likenesstrain${run.method.replaceAll("_", "")}`;
  const type = Object.keys(LiteGraph.registered_node_types).find((name) => name.toLowerCase() === wanted);
  if (!type) throw new Error(`This version has no node for ${methodName(run.method)}.`);
  const node = LiteGraph.createNode(type);
  for (const widget of node.widgets ?? []) {
    const value = run.settings[widget.name];
    if (value === undefined || widget.name === "likeness_run") continue;
    if (typeof widget.value === "number") widget.value = Number(value);
    else if (typeof widget.value === "boolean") widget.value = value === "yes";
    else widget.value = value;
  }
  const [x, y, width, height] = app.canvas.visible_area;
  node.pos = [x + width / 3, y + height / 4];
  app.graph.add(node);
}

async function openWorkflow(run) {
  await app.loadGraphData(await runs.workflow(run.name), true, true, run.name);
}

export class RunsTab {
  constructor(host) {
    loadStyle();
    this.list = [];
    this.chosen = new Set();
    this.opened = null;
    this.cards = el("ul", { className: "lk-cards" });
    this.note = el("p", { className: "lk-muted" }, "Looking…");
    this.comparison = el("section", { hidden: true, ariaLabel: "Comparison" });
    this.clear = el("button", { type: "button", hidden: true, onclick: () => { this.chosen.clear(); this.draw(); } }, "Clear selection");
    this.element = el("div", { className: "lk-runs" },
      el("header", { className: "lk-row" }, el("h2", {}, "Training runs"), this.clear), this.note, this.comparison, this.cards);
    this.host = host;
    host.replaceChildren(this.element);
    host.style.height = "100%";
    this.look();
  }

  dispose() {
    this.gone = true;
    clearTimeout(this.timer);
    this.view?.dispose();
    for (const chart of this.charts ?? []) chart.dispose();
  }

  async look() {
    clearTimeout(this.timer);
    try {
      const list = await runs.list();
      if (this.gone) return;
      const text = JSON.stringify(list.map(({ live, ...rest }) => rest));
      if (text !== this.text) {
        this.text = text;
        this.list = list;
        this.draw();
      }
      this.note.hidden = list.length > 0;
      this.note.textContent = "No runs yet. Train something, and it is kept here.";
    } catch (error) {
      this.note.hidden = false;
      this.note.textContent = `The runs cannot be read: ${error.message}`;
    }
    if (!this.gone) this.timer = setTimeout(() => this.look(), LOOK_MS);
  }

  draw() {
    const focused = document.activeElement?.dataset?.key;
    const names = new Set(this.list.map((run) => run.name));
    for (const name of this.chosen) if (!names.has(name)) this.chosen.delete(name);
    if (!names.has(this.opened)) this.open(null);
    this.cards.replaceChildren(...this.list.map((run) => this.card(run)));
    this.clear.hidden = !this.chosen.size;
    if (focused) this.cards.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    this.compare();
  }

  card(run) {
    const open = run.name === this.opened;
    const picture = run.thumbnail ? el("img", { src: runs.picture(run, run.thumbnail), alt: "", loading: "lazy" }) : el("span", { className: "lk-blank" });
    const state = el("span", { className: "lk-state" }, STATES[run.state]);
    state.dataset.state = run.state;
    const words = el("span", { className: "lk-words" }, el("span", {}, el("b", {}, run.subject)), el("span", {}, methodName(run.method)), state,
      el("span", { className: "lk-muted" }, scoreWords(run)));
    const opener = el("button", { type: "button", className: "lk-open", ariaExpanded: String(open), title: run.name, onclick: () => { this.open(open ? null : run.name); this.draw(); } }, picture, words);
    opener.dataset.key = `open ${run.name}`;
    const tick = el("input", { type: "checkbox", checked: this.chosen.has(run.name), ariaLabel: `Compare ${labelOf(run)}`, title: "Compare", onchange: () => this.choose(run.name) });
    tick.dataset.key = `compare ${run.name}`;
    const card = el("li", { className: "lk-card" }, el("div", { className: "lk-row" }, opener, tick));
    card.dataset.open = String(open);
    if (open) card.append(this.detail(run));
    return card;
  }

  open(name) {
    if (name === this.opened) return;
    this.view?.dispose();
    this.view = name ? new RunView(runs) : null;
    this.opened = name;
    this.view?.show(name);
  }

  choose(name) {
    if (!this.chosen.delete(name)) this.chosen.add(name);
    this.draw();
  }

  detail(run) {
    const box = el("div", { className: "lk-detail" }, this.view.element);
    this.view.refresh();
    const buttons = el("div", { className: "lk-row" });
    const offer = () => buttons.replaceChildren(...this.buttons(run, buttons, offer));
    offer();
    box.append(buttons);
    return box;
  }

  buttons(run, box, back) {
    const act = (text, work, done = "") => el("button", { type: "button", onclick: async () => {
      try {
        await work();
        if (done) tell("success", done, labelOf(run));
      } catch (error) {
        tell("error", "That did not work", error.message);
      }
    } }, text);
    const unfinished = run.state === "paused" || (run.state === "ended early" && !run.settled);
    return [
      run.workflow && unfinished ? act("Resume", async () => { await openWorkflow(run); await app.queuePrompt(0, 1); }, "Goes on from its last checkpoint") : null,
      run.workflow ? act("Open workflow", () => openWorkflow(run)) : null,
      act("Add to graph", async () => addToGraph(await runs.one(run.name, run.step)), "Added with this run's settings"),
      el("a", { className: "lk-button", href: runs.report(run.name), target: "_blank", rel: "noopener" }, "Report"),
      run.state === "training" ? null : el("button", { type: "button", onclick: () => this.askToDelete(run, box, back) }, "Delete…"),
    ].filter(Boolean);
  }

  askToDelete(run, box, back) {
    const keep = el("button", { type: "button", onclick: back }, "Keep it");
    const remove = el("button", { type: "button", className: "lk-warn", onclick: async () => {
      try {
        await runs.remove(run.name);
      } catch (error) {
        tell("error", "It was not deleted", error.message);
      }
      this.look();
    } }, "Delete");
    box.replaceChildren(el("span", { role: "alert" }, "Delete this run, its checkpoints and what it learned? There is no way back."), remove, keep);
    keep.focus();
  }

  // --- two or more side by side ---
  async compare() {
    const names = [...this.chosen];
    this.comparison.hidden = names.length < 2;
    if (names.length < 2) return this.comparison.replaceChildren();
    const whole = await Promise.all(names.map((name) => runs.one(name).catch(() => null)));
    if (names.join() !== [...this.chosen].join()) return; // another choice meanwhile
    this.drawComparison(whole.filter(Boolean));
  }

  drawComparison(all) {
    for (const chart of this.charts ?? []) chart.dispose();
    const total = Math.max(...all.map((run) => run.step));
    const series = (pointsOf) => all.map((run, i) => ({ name: `${i + 1}`, color: i, dashes: DASHES[i % 6], points: pointsOf(run) }));
    const held = new Chart({ title: "Held-out identity of the chosen runs", height: 130 });
    const loss = new Chart({ title: "Smoothed loss of the chosen runs", height: 130 });
    this.charts = [held, loss];
    this.comparison.replaceChildren(
      el("h3", {}, "Compared"), ...all.map((run, i) => el("div", {}, el("b", {}, `${i + 1} `), labelOf(run))), this.scoreTable(all),
      el("h3", {}, "Held-out identity"), held.element,
      el("h3", {}, "Loss, smoothed"), loss.element,
      el("h3", {}, "Last samples"), ...all.map((run, i) => sampleRow(run, i)),
      el("h3", {}, "Settings that differ"), settingsTable(all));
    held.set(series((run) => run.scores.map((s) => [s[0], s[2]])), { total });
    loss.set(series((run) => smooth(run.points.map(([step, value]) => [step, value]))), { total });
  }

  // A column for each run: the bar is narrow, and runs are few.
  scoreTable(all) {
    const best = all.map((run) => run.scores.find((s) => s[0] === run.best_step) ?? []);
    const rows = [
      ["best step", all.map((run) => String(run.best_step ?? "–"))],
      ["held-out", best.map((s) => number(s[2]) || "–")],
      ["training", best.map((s) => number(s[1]) || "–")],
      ["CLIP-T", best.map((s) => number(s[3]) || "–")],
    ];
    return tableOf(all, rows);
  }
}

function tableOf(all, rows) {
  const short = (value) => (value.length > 24 ? `${value.slice(0, 12)}…` : value); // hashes
  const head = ["", ...all.map((_, i) => `${i + 1}`)].map((text) => el("th", { scope: "col" }, text));
  const body = rows.map(([name, values]) => el("tr", {}, el("th", { scope: "row" }, name.replaceAll("_", " ")), ...values.map((value) => el("td", { title: value }, short(value)))));
  return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
}

function scoreWords(run) {
  if (!run.best) return `step ${run.step.toLocaleString()} of ${run.total.toLocaleString()}`;
  const from = run.base ? `${number(run.base.held_out_dino)} → ` : "";
  return `held-out ${from}${number(run.best.held_out_dino)}`;
}

function sampleRow(run, index) {
  const [step, files] = run.samples[run.samples.length - 1] ?? [0, []];
  if (!files.length) return el("p", { className: "lk-muted" }, `${index + 1}: no samples`);
  const pictures = files.map((file, n) => el("img", { src: runs.picture(run, file), alt: `Run ${index + 1}, step ${step}, ${n + 1}`, loading: "lazy" }));
  return el("div", {}, el("span", { className: "lk-muted" }, `${index + 1}, step ${step}`), el("div", { className: "lk-pictures" }, ...pictures));
}

// Rows of [setting, its value in each run], of the settings that are not the same in all.
export function differences(all) {
  const names = [...new Set(all.flatMap((run) => Object.keys(run.settings)))].sort();
  return names.map((name) => [name, ...all.map((run) => run.settings[name] ?? "–")]).filter(([, first, ...rest]) => rest.some((value) => value !== first));
}

function settingsTable(all) {
  const rows = differences(all).map(([name, ...values]) => [name, values]);
  return rows.length ? tableOf(all, rows) : el("p", { className: "lk-muted" }, "None.");
}

let tab = null;

app.registerExtension({
  name: "likeness.runs",
  setup() {
    api.addEventListener("likeness.run", ({ detail }) => {
      if (detail.phase === "starting" || detail.phase === "done") tab?.look();
    });
    app.extensionManager?.registerSidebarTab?.({
      id: "likeness.runs",
      icon: "pi pi-chart-line",
      title: "Likeness",
      tooltip: "Training runs",
      type: "custom",
      render: (element) => {
        tab?.dispose();
        tab = new RunsTab(element);
      },
      destroy: () => {
        tab?.dispose();
        tab = null;
      },
    });
  },
});
