// The layout editor: a scene's boxes, to be dragged, resized, put before each other, locked and drawn anew, by
// mouse, touch and keyboard. It knows no graph: layout.js puts it on the node.

import { History, changed, moved, parse, problems, reordered, resized, write } from "./boxes.js";
import { el, loadStyle } from "./view.js";

const [STEP, LONG_STEP] = [0.01, 0.05]; // of the canvas, for a key, and with Shift
const CORNERS = ["nw", "ne", "sw", "se"];
const HUES = [210, 30, 140, 280, 0, 180, 60, 320];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = "Arrow keys move, with Shift farther; + and - resize; [ and ] put behind and before; F flips, L locks; Ctrl+Z undoes.";
const EMPTY = "Run this node once. Its boxes appear here, to be moved.";

const percent = (value) => `${Math.round(value * 100)} %`;

export class LayoutEditor {
  // save(text): the layout was changed, or cleared (""). draw(layout): another layout's text, from the server.
  // code(): show or hide the text itself.
  constructor({ save, draw, code }) {
    Object.assign(this, { save, draw, code });
    this.history = new History();
    this.aspect = 1;
    this.drawn = "";
    this.layout = null;
    this.cast = new Map();
    this.boxes = [];
    this.selected = null; // a subject
    this.build();
    loadStyle();
  }

  build() {
    const button = (icon, words, act) => el("button", { type: "button", title: words, ariaLabel: words, onclick: act }, el("i", { className: `pi pi-${icon}`, ariaHidden: "true" }));
    this.tools = {
      undo: button("undo", "Undo", () => this.travel("undo")),
      redo: button("replay", "Redo", () => this.travel("redo")),
      back: button("angle-double-down", "Put one behind", () => this.reorder(-1)),
      front: button("angle-double-up", "Put one before", () => this.reorder(1)),
      flip: button("arrows-h", "Flip left to right", () => this.toggle("flip")),
      lock: button("lock", "Lock: a new draw leaves it where it is", () => this.toggle("locked")),
      roll: button("refresh", "Draw anew all that is not locked", () => this.roll()),
      clear: button("trash", "Clear: the next run draws a layout", () => this.clear()),
      code: button("code", "Show the layout as text", () => this.code()),
    };
    this.toolbar = el("div", { className: "lk-row lk-tools", role: "toolbar", ariaLabel: "Layout" }, ...Object.values(this.tools));
    this.stage = el("div", { className: "lk-stage", role: "group", ariaLabel: "Boxes of the subjects", title: KEYS });
    this.empty = el("p", { className: "lk-muted lk-empty" }, EMPTY);
    this.room = el("div", { className: "lk-place" }, this.stage, this.empty);
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.room);
    this.say = el("p", { className: "lk-say", role: "status" });
    this.element = el("div", { className: "lk-view lk-layout" }, this.toolbar, this.room, this.say);
    for (const kind of ["pointerdown", "dblclick", "contextmenu"]) this.element.addEventListener(kind, (event) => event.stopPropagation());
    this.stage.addEventListener("pointerdown", (event) => event.target === this.stage && this.select(null));
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  // --- what is shown ---

  // text: the node's own layout, or "". drawn: what its last run drew. redraw: the run draws it anew from the text.
  // fixed: it comes over a link. fresh: another graph, so that nothing can be undone.
  show({ text, drawn = "", redraw = false, fixed = false, fresh = false }) {
    const same = text === this.history.now && drawn === this.drawn && redraw === this.redraw && fixed === this.fixed;
    Object.assign(this, { drawn, redraw, fixed });
    if (fresh) this.history.reset(text);
    else if (same) return;
    else this.history.push(text);
    this.read();
  }

  // things: [{ subject, noun, aspect, src }], of the node's last run.
  dress(things) {
    this.cast = new Map(things.map((thing) => [thing.subject, thing]));
    this.render();
  }

  // aspect: width / height of the canvas.
  frame(aspect) {
    this.aspect = aspect;
    this.fit();
  }

  // The canvas as large as its place allows.
  fit() {
    const { clientWidth, clientHeight } = this.room;
    const width = Math.min(clientWidth, clientHeight * this.aspect);
    Object.assign(this.stage.style, { width: `${width}px`, height: `${width / this.aspect}px` });
    this.refresh();
  }

  dispose() {
    this.observer.disconnect();
  }

  read() {
    const text = this.history.now;
    this.pinned = text !== "" && !this.redraw;
    this.layout = null;
    this.trouble = "";
    try {
      const shown = this.pinned ? text : this.drawn || text;
      if (shown) this.layout = parse(shown);
    } catch (error) {
      this.trouble = error.message;
    }
    this.render();
  }

  render() {
    const items = this.layout?.items ?? [];
    this.stage.hidden = !items.length;
    this.empty.hidden = items.length > 0;
    const focused = this.boxes.findIndex((box) => box.contains(document.activeElement));
    const subject = focused < 0 ? null : this.boxes[focused].dataset.subject;
    if (!items.some((item) => item.subject === this.selected)) this.selected = null;
    this.boxes = items.map((item, index) => this.box(item, index));
    this.stage.replaceChildren(...this.boxes);
    if (subject) this.boxOf(subject)?.focus();
    this.refresh();
  }

  boxOf(subject) {
    return this.boxes.find((box) => box.dataset.subject === subject);
  }

  box(item, index) {
    const thing = this.cast.get(item.subject);
    const picture = thing?.src && el("img", { src: thing.src, alt: "", draggable: false, onerror: (event) => event.target.remove() });
    if (picture) picture.dataset.aspect = thing.aspect;
    const label = el("span", { className: "lk-name" }, item.subject);
    const corners = this.fixed ? [] : CORNERS.map((corner) => el("i", { className: `lk-corner lk-${corner}`, onpointerdown: (event) => this.grab(event, index, corner) }));
    const box = el("div", { className: "lk-box", tabIndex: 0, role: "group", onpointerdown: (event) => this.grab(event, index, null), onfocus: () => this.select(item.subject) }, picture, label, ...corners);
    box.type = "textarea"; // the graph's own undo keeps away from keys in text fields
    box.dataset.subject = item.subject;
    box.style.setProperty("--hue", HUES[[...this.names()].indexOf(item.subject) % HUES.length]);
    return box;
  }

  // In an order that painting does not change, so that colours stay.
  names() {
    return (this.layout?.items ?? []).map((item) => item.subject).sort();
  }

  // Places, words and buttons, of the boxes that are there.
  refresh() {
    const items = this.layout?.items ?? [];
    const wrong = this.layout ? problems(this.layout) : [];
    items.forEach((item, index) => this.place(this.boxes[index], item, wrong));
    const chosen = items.find((item) => item.subject === this.selected);
    const words = this.trouble || wrong.map(([text]) => text).join("; ");
    this.say.classList.toggle("lk-warn", words !== "");
    this.say.textContent = words || (chosen ? describe(chosen) : this.summary());
    this.enable(chosen, items);
  }

  place(box, item, wrong) {
    const [x, y, width, height] = item.box;
    Object.assign(box.style, { left: `${x * 100}%`, top: `${y * 100}%`, width: `${width * 100}%`, height: `${height * 100}%` });
    box.dataset.selected = item.subject === this.selected;
    box.dataset.wrong = wrong.some(([, subjects]) => subjects.includes(item.subject));
    box.dataset.locked = Boolean(item.locked);
    stand(box.querySelector("img"), item, this.stage.clientWidth, this.stage.clientHeight);
    box.setAttribute("aria-label", `${item.subject}, ${describe(item)}`);
  }

  summary() {
    if (!this.layout) return "";
    if (this.fixed) return "This layout comes over a link.";
    return this.pinned ? `${this.layout.scene}. Used as it stands.` : `${this.layout.scene}. Drawn by the last run; change it to keep it.`;
  }

  enable(chosen, items) {
    const place = items.indexOf(chosen);
    const off = {
      undo: this.history.past.length < 2, redo: !this.history.future.length,
      back: place < 1, front: !chosen || place === items.length - 1,
      flip: !chosen, lock: !chosen, roll: !items.length, clear: !this.pinned, code: false,
    };
    for (const [name, tool] of Object.entries(this.tools)) tool.disabled = off[name] || (this.fixed && name !== "code");
    this.tools.lock.ariaPressed = String(Boolean(chosen?.locked));
    this.tools.flip.ariaPressed = String(Boolean(chosen?.flip));
  }

  select(subject) {
    if (this.selected === subject) return;
    this.selected = subject;
    this.refresh();
  }

  // --- changing it ---

  get index() {
    return this.layout?.items.findIndex((item) => item.subject === this.selected) ?? -1;
  }

  commit(layout) {
    this.history.push(write(layout));
    this.put();
  }

  // What history says now is the node's.
  put() {
    this.redraw = false;
    this.read();
    this.save(this.history.now);
  }

  travel(way) {
    this.history[way]();
    this.put();
  }

  change(change) {
    if (this.index >= 0) this.commit(changed(this.layout, this.index, change));
  }

  toggle(flag) {
    this.change({ [flag]: !this.layout.items[this.index]?.[flag] });
  }

  reorder(by) {
    if (this.index >= 0) this.commit(reordered(this.layout, this.index, by));
  }

  clear() {
    this.history.push("");
    this.put();
  }

  async roll() {
    this.tools.roll.disabled = true;
    const before = this.history.now;
    try {
      const text = await this.draw(this.layout);
      if (before === this.history.now) this.commit(parse(text));
    } catch (error) {
      this.trouble = error.message;
    }
    this.refresh();
    this.trouble = "";
  }

  // --- mouse and touch ---

  grab(event, index, corner) {
    if (event.button !== 0 || this.fixed) return;
    event.stopPropagation();
    const box = this.boxes[index];
    box.focus();
    box.setPointerCapture(event.pointerId);
    const before = this.layout;
    const start = before.items[index].box;
    const seen = this.stage.getBoundingClientRect(); // as zoomed
    const follow = (now) => {
      const [dx, dy] = [(now.clientX - event.clientX) / seen.width, (now.clientY - event.clientY) / seen.height];
      this.layout = changed(before, index, { box: corner ? resized(start, corner, dx, dy) : moved(start, dx, dy) });
      this.refresh();
    };
    const end = (kept) => {
      release.abort();
      const after = this.layout;
      this.layout = before;
      if (kept && after !== before) this.commit(after);
      else this.refresh();
    };
    const release = new AbortController();
    const on = (target, kind, act) => target.addEventListener(kind, act, { signal: release.signal, capture: true });
    on(box, "pointermove", follow);
    on(box, "pointerup", () => end(true));
    on(box, "pointercancel", () => end(false));
    on(box, "keydown", (key) => key.key === "Escape" && (key.stopPropagation(), end(false)));
  }

  // --- keyboard ---

  key(event) {
    const graph = event.ctrlKey || event.metaKey;
    const word = event.key.toLowerCase();
    const travel = graph && { z: event.shiftKey ? "redo" : "undo", y: "redo" }[word];
    const done = travel ? (this.travel(travel), true) : !graph && this.press(event);
    if (done) event.preventDefault();
    if (done || !graph) event.stopPropagation(); // or Delete would remove the node
  }

  // One key on a box. Whether it meant something.
  press({ key, shiftKey, target }) {
    if (this.fixed || this.index < 0 || !target.closest(".lk-box")) return false;
    const { box } = this.layout.items[this.index];
    const arrow = ARROWS[key];
    const step = shiftKey ? LONG_STEP : STEP;
    const acts = {
      "+": () => this.change({ box: resized(box, "se", step, step) }), "-": () => this.change({ box: resized(box, "se", -step, -step) }),
      "[": () => this.reorder(-1), "]": () => this.reorder(1), f: () => this.toggle("flip"), l: () => this.toggle("locked"),
    };
    const act = arrow ? () => this.change({ box: moved(box, arrow[0] * step, arrow[1] * step) }) : acts[key === "=" ? "+" : key === "_" ? "-" : key.toLowerCase()];
    act?.();
    return Boolean(act);
  }
}

// The cut-out in its box as it will be composed: turned, as large as the box allows, its foot on the box's foot.
function stand(picture, { box: [, , wide, high], angle = 0, flip }, canvasWidth, canvasHeight) {
  if (!picture) return;
  const aspect = Number(picture.dataset.aspect);
  const [width, height] = [wide * canvasWidth, high * canvasHeight];
  const [cos, sin] = [Math.cos, Math.sin].map((of) => Math.abs(of((angle * Math.PI) / 180)));
  const [spreadWidth, spreadHeight] = [aspect * cos + sin, aspect * sin + cos]; // of a height of 1
  const scale = Math.min(width / spreadWidth, height / spreadHeight);
  Object.assign(picture.style, {
    width: `${aspect * scale}px`, height: `${scale}px`,
    left: `${(width - aspect * scale) / 2}px`, top: `${height - (spreadHeight * scale + scale) / 2}px`,
    transform: `rotate(${-angle}deg) scaleX(${flip ? -1 : 1})`,
  });
}

function describe({ box: [x, y, width, height], locked, flip }) {
  const marks = [flip && "flipped", locked && "locked"].filter(Boolean);
  return [`${percent(width)} × ${percent(height)} at ${percent(x)}, ${percent(y)}`, ...marks].join(", ");
}
