// One run as a person looks at it: state, curves, samples, and what can be done. The node and the sidebar use it.
// The run folder is the truth: everything drawn here was read from it over /likeness/runs.

import { Chart, smooth } from "./chart.js";

const POLL_MS = 5000; // without news over the websocket: another tab, a run of the command line
const NEWS_MS = 1000; // at most one look a second while news arrive
const [EMPTY_PX, GUESS_PX, PADDING_PX] = [44, 340, 12];

export const STATES = { training: "Training", finished: "Finished", "ended early": "Ended early", paused: "Paused" };

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "role" && key !== "list") node[key] = value;
    else if (value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function loadStyle() {
  if (document.getElementById("likeness-style")) return;
  const href = new URL("./likeness.css", import.meta.url).href;
  document.head.append(el("link", { id: "likeness-style", rel: "stylesheet", href }));
}

export function inTime(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

export const methodName = (method) => method.replaceAll("_", " ").replace(/\b\w/g, (c) => c.toUpperCase()).replace("Dreambooth", "DreamBooth");

// Requests about runs. `api` is ComfyUI's, or a test's.
export class Runs {
  constructor(api) {
    this.api = api;
  }

  async ask(path = "", options = {}) {
    const answer = await this.api.fetchApi(`/likeness/runs${path}`, options);
    const body = await answer.json();
    if (!answer.ok) throw new Error(body?.error ?? answer.statusText);
    return body;
  }

  list() {
    return this.ask();
  }

  one(name, after = 0) {
    return this.ask(`/${encodeURIComponent(name)}?after=${after}`);
  }

  workflow(name) {
    return this.ask(`/${encodeURIComponent(name)}/workflow`);
  }

  remove(name) {
    return this.ask(`/${encodeURIComponent(name)}`, { method: "DELETE" });
  }

  stop(name, settle) {
    return this.ask(`/${encodeURIComponent(name)}/stop`, { method: "POST", body: JSON.stringify({ settle }) });
  }

  report(name) {
    return this.api.apiURL(`/likeness/runs/${encodeURIComponent(name)}/report`);
  }

  picture({ folder }, file) {
    const query = new URLSearchParams({ filename: file, type: "output", subfolder: `${folder}/samples` });
    return this.api.apiURL(`/view?${query}`);
  }
}

// Old points and an increment, as one curve; a run that went back to a checkpoint starts over.
export function merged(points, increment, step) {
  const last = points.length ? points[points.length - 1][0] : 0;
  if (step < last) return null;
  return increment.length ? points.concat(increment.filter((point) => point[0] > last)) : points;
}

export class RunView {
  // changed: called when what is shown needs another height.
  constructor(runs, { changed = () => {} } = {}) {
    this.runs = runs;
    this.changed = changed;
    this.run = null;
    this.points = [];
    this.news = {};
    this.film = { index: null, before: false };
    this.loss = new Chart({ title: "Loss and learning rate", height: 118 });
    this.score = new Chart({ title: "Identity on training and held-out photos", height: 118 });
    this.build();
    loadStyle();
  }

  build() {
    this.state = el("span", { className: "lk-state" });
    this.detail = el("span", { className: "lk-muted" });
    this.bar = el("progress", { max: 1, value: 0, ariaLabel: "Training progress" });
    this.verdict = el("p", { className: "lk-verdict", role: "status", hidden: true });
    this.strip = el("div", { className: "lk-strip" });
    this.slider = el("input", { type: "range", min: 0, step: 1, ariaLabel: "Step of the samples", oninput: () => this.slide() });
    this.stepText = el("span", { className: "lk-muted" });
    this.compare = el("button", { type: "button", ariaPressed: "false", onclick: () => this.toggleBefore() }, "Before / after");
    this.filmBox = el("section", { className: "lk-film", hidden: true }, this.strip, el("div", { className: "lk-row" }, this.slider, this.stepText, this.compare));
    this.actions = el("div", { className: "lk-row lk-actions" });
    this.body = el("div", { className: "lk-body", hidden: true },
      el("header", { className: "lk-row" }, this.state, this.detail), this.bar,
      this.loss.element, this.score.element, this.verdict, this.filmBox, this.actions);
    this.empty = el("p", { className: "lk-muted lk-empty" }, "Curves and samples appear here while it trains.");
    this.element = el("div", { className: "lk-view" }, this.empty, this.body);
    this.element.addEventListener("pointerdown", (event) => event.stopPropagation()); // the graph would drag the node
    this.tall = 0;
    this.observer = new ResizeObserver(([entry]) => this.measure(entry.contentRect.height));
    this.observer.observe(this.body);
  }

  dispose() {
    clearTimeout(this.timer);
    this.name = null;
    this.observer.disconnect();
    this.loss.dispose();
    this.score.dispose();
  }

  // Show a run by its name; the same again only looks for news.
  show(name) {
    if (name !== this.name) {
      Object.assign(this, { name, points: [], run: null, news: {}, asking: null });
      this.film = { index: null, before: false };
    }
    return this.refresh();
  }

  // A message of the websocket: redraw the header at once, look at the folder at most once a second.
  hear(message) {
    const ended = message.phase === "done";
    if (message.run !== this.name) this.show(message.run);
    this.news = message;
    if (this.run) this.drawHeader();
    if (ended) this.again(300);
    else if (performance.now() - (this.asked ?? 0) > NEWS_MS) this.refresh();
  }

  async refresh() {
    const name = this.name;
    if (!name || this.busy === name) return;
    this.busy = name;
    this.asked = performance.now();
    clearTimeout(this.timer);
    try {
      const after = this.points.length ? this.points[this.points.length - 1][0] : 0;
      let run = await this.runs.one(name, after);
      let points = merged(this.points, run.points, run.step);
      if (points === null) {
        run = await this.runs.one(name);
        points = run.points;
      }
      if (name !== this.name) return;
      this.take(run, points);
    } catch (error) {
      if (name === this.name) this.missing(error);
    } finally {
      if (this.busy === name) this.busy = null;
    }
  }

  again(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), ms);
  }

  take(run, points) {
    this.run = run;
    this.points = points;
    if (run.state === "training" && !this.news.step) this.news = run.live ?? {};
    if (run.state === "training") this.again(POLL_MS);
    else this.news = {};
    this.body.hidden = false;
    this.empty.hidden = true;
    this.draw();
  }

  missing(error) {
    this.body.hidden = true;
    this.empty.hidden = false;
    this.empty.textContent = this.run ? `${this.name}: ${error.message}` : "Its run is not on this server any more. Run again to make it anew.";
    this.changed();
  }

  // The content's own height; 0 while the page does not show it, which says nothing.
  measure(tall) {
    if (!tall || Math.abs(tall - this.tall) < 2) return;
    this.tall = tall;
    this.changed();
  }

  // What a node must leave free, in graph pixels.
  height() {
    return this.body.hidden ? EMPTY_PX : (this.tall || GUESS_PX) + PADDING_PX;
  }

  draw() {
    this.drawHeader();
    this.drawCurves();
    this.drawFilm();
    this.drawActions();
  }

  drawHeader() {
    const { run, news } = this;
    const step = Math.max(run.step, news.step ?? 0);
    const working = run.state === "training";
    this.state.textContent = run.stopping ? "Finishing" : STATES[run.state];
    this.state.dataset.state = run.state;
    const phase = working && news.phase && news.phase !== "training" ? `, ${news.phase}` : "";
    const left = working ? inTime(news.left_s) : "";
    this.detail.textContent = `step ${step.toLocaleString()} of ${run.total.toLocaleString()}${phase}${left && ` · ${left} left`}`;
    this.bar.max = run.total || 1;
    this.bar.value = step;
    this.bar.hidden = !working;
  }

  drawCurves() {
    const { run, points } = this;
    const raw = points.map(([step, loss]) => [step, loss]);
    this.loss.set([
      { name: "loss", color: "loss", points: raw, style: "faint" },
      { name: "loss", color: "loss", points: smooth(raw) },
      { name: "rate", color: "rate", points: points.map(([step, , rate]) => [step, rate]), style: "dash", right: true },
    ], { total: run.total });
    this.score.element.hidden = !run.scores.length;
    const marks = run.best_step ? [{ x: run.best_step, text: `best ${run.best_step}`, color: "held" }] : [];
    if (run.turning_step !== null) marks.push({ x: run.turning_step, text: "overfitting", color: "warn", shade: true });
    this.score.set([
      { name: "training photos", color: "train", points: run.scores.map((s) => [s[0], s[1]]), style: "dash" },
      { name: "held-out", color: "held", points: run.scores.map((s) => [s[0], s[2]]) },
    ], { marks, total: run.total });
    this.verdict.hidden = run.turning_step === null;
    this.verdict.textContent = run.verdict;
  }

  drawFilm() {
    const { samples } = this.run;
    this.filmBox.hidden = !samples.length;
    if (!samples.length) return;
    const last = samples.length - 1;
    this.slider.max = last;
    const index = Math.min(this.film.index ?? last, last);
    this.slider.value = index;
    this.slider.setAttribute("aria-valuetext", `step ${samples[index][0]}`);
    this.stepText.textContent = `step ${samples[index][0]}`;
    const rows = [this.pictures(samples[index])];
    if (this.film.before) rows.unshift(this.pictures(samples[0]));
    const now = rows.flat().join("\n");
    if (now === this.shownPictures) return;
    this.shownPictures = now;
    this.strip.replaceChildren(...rows.map((row, i) => {
      const label = rows.length === 2 ? (i ? "After" : "Before") : `Samples at step ${samples[index][0]}`;
      return el("div", { className: "lk-pictures", role: "group", ariaLabel: label }, ...row.map((src, n) => el("img", { src, alt: `${label}, ${n + 1}`, loading: "lazy", draggable: false })));
    }));
  }

  pictures([, files]) {
    return files.map((file) => this.runs.picture(this.run, file));
  }

  slide() {
    const index = Number(this.slider.value);
    this.film.index = index === this.run.samples.length - 1 ? null : index; // at the end: follow the newest
    this.drawFilm();
  }

  toggleBefore() {
    this.film.before = !this.film.before;
    this.compare.ariaPressed = String(this.film.before);
    this.drawFilm();
  }

  drawActions() {
    const { run } = this;
    const kind = `${run.state} ${run.stopping} ${run.settled}`;
    if (kind === this.actionsOf && this.actions.dataset.run === this.name) return; // leave an open question open
    this.actionsOf = kind;
    this.actions.dataset.run = this.name;
    this.actions.replaceChildren(...this.actionsFor(run));
  }

  actionsFor(run) {
    if (run.state === "training" && run.stopping) return [el("span", { className: "lk-muted" }, "Keeping the best so far…")];
    if (run.state === "training") return [el("button", { type: "button", onclick: () => this.askToStop() }, "Finish now…")];
    if (run.state !== "ended early") return [];
    const words = run.settled ? "This result stands." : "Run again after a restart, or with an input changed and back, and it goes on from here.";
    const button = run.settled ? "Let it go on instead" : "Keep this result instead";
    return [el("span", { className: "lk-muted" }, words), el("button", { type: "button", onclick: () => this.stop(!run.settled) }, button)];
  }

  askToStop() {
    const choices = [
      ["Finish, may go on later", () => this.stop(false)],
      ["Finish for good", () => this.stop(true)],
      ["Keep training", () => { this.actionsOf = null; this.drawActions(); }],
    ].map(([text, act]) => el("button", { type: "button", onclick: act }, text));
    this.actions.replaceChildren(el("span", {}, "End now with the best so far?"), ...choices);
    choices[2].focus();
  }

  async stop(settle) {
    try {
      await this.runs.stop(this.name, settle);
    } catch (error) {
      this.actions.replaceChildren(el("span", { className: "lk-warn", role: "alert" }, error.message));
    }
    this.again(200);
  }
}
