// A small line chart on a canvas: a few series, marks on the x axis, a cursor for mouse and keyboard.
// It knows nothing of ComfyUI. Colours follow the text colour around it: light text means a dark theme.

const PALETTES = {
  // Contrast against the usual backgrounds is at least 4.5:1; dashes and names tell series apart without colour.
  dark: {
    loss: "#8ab4ff", rate: "#a3a9b3", held: "#4fd1c5", train: "#f6ad55", text: "#c9a7ff", warn: "#ff9a9a",
    runs: ["#8ab4ff", "#f6ad55", "#4fd1c5", "#c9a7ff", "#f7e07a", "#ff9ec4"],
  },
  light: {
    loss: "#1d5fd1", rate: "#5c636e", held: "#0b7169", train: "#9a4c07", text: "#6d35b8", warn: "#b91c1c",
    runs: ["#1d5fd1", "#9a4c07", "#0b7169", "#6d35b8", "#6b5b00", "#b0206a"],
  },
};
const DASHES = { line: [], faint: [], dash: [5, 4] };
const MARGIN = { left: 44, right: 10, top: 8, bottom: 20 };
const FONT = "11px system-ui, sans-serif";

export function paletteOf(element) {
  const [r, g, b] = (getComputedStyle(element).color.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
  return PALETTES[0.299 * r + 0.587 * g + 0.114 * b > 128 ? "dark" : "light"];
}

// Exponential mean over about `window` points, corrected for its start.
export function smooth(points, window = Math.max(5, points.length / 30)) {
  const keep = 1 - 1 / window;
  let mean = 0;
  let weight = 0;
  return points.map(([x, y]) => {
    mean = keep * mean + (1 - keep) * y;
    weight = keep * weight + (1 - keep);
    return [x, mean / weight];
  });
}

// At most two points for each pixel column, its lowest and highest: what a dense curve looks like.
export function decimate(points, x0, x1, columns) {
  if (points.length <= 2 * columns) return points;
  const kept = [];
  let column = -1;
  let low, high;
  const flush = () => {
    if (low) kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  };
  for (const point of points) {
    const at = Math.floor(((point[0] - x0) / (x1 - x0 || 1)) * columns);
    if (at !== column) {
      flush();
      column = at;
      low = high = point;
    }
    if (point[1] < low[1]) low = point;
    if (point[1] > high[1]) high = point;
  }
  flush();
  return kept;
}

export function number(value) {
  if (value === undefined || !Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 3)));
}

// About `count` round numbers from `low` to `high`.
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// The lowest and highest value, with a little room. Of a faint series only what most points reach counts: one
// spike must not flatten a whole curve.
function bounds(series, percentile) {
  let [low, high] = [Infinity, -Infinity];
  for (const { style, points } of series) {
    const [from, to] = style === "faint" ? most(points, percentile) : extremes(points);
    low = Math.min(low, from);
    high = Math.max(high, to);
  }
  if (low > high) return [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - pad, high + pad];
}

function extremes(points) {
  let [low, high] = [Infinity, -Infinity];
  for (const point of points) {
    if (point[1] < low) low = point[1];
    if (point[1] > high) high = point[1];
  }
  return [low, high];
}

function most(points, percentile) {
  const every = Math.ceil(points.length / 2000); // a sample of them tells
  const sorted = Float64Array.from({ length: Math.ceil(points.length / every) }, (_, i) => points[i * every][1]).sort();
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  return [at(percentile), at(1 - percentile)];
}

export class Chart {
  constructor({ title, height = 130 }) {
    this.title = title;
    this.series = [];
    this.marks = [];
    this.cursor = null; // an x value, or null
    this.element = document.createElement("figure");
    this.element.className = "lk-chart";
    this.legend = document.createElement("figcaption");
    this.canvas = document.createElement("canvas");
    this.canvas.style.height = `${height}px`;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "slider");
    this.canvas.setAttribute("aria-label", `${title}. Arrow keys move through the steps.`);
    this.element.append(this.legend, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.moveTo(null));
    this.canvas.addEventListener("blur", () => this.moveTo(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("transitionend", () => this.later()); // of the text colour: another theme
    this.observer = new ResizeObserver(() => this.later());
    this.observer.observe(this.canvas);
  }

  dispose() {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
  }

  // series: [{name, color: palette key or number of a run, points: [[x, y]], style, right}]; right: its own scale.
  // marks: [{x, text, color, shade}]; shade: what lies behind is tinted. total: the x axis' end.
  set(series, { marks = [], total = 0 } = {}) {
    this.series = series.filter((s) => s.points.length);
    this.marks = marks;
    let high = total;
    let low = Infinity;
    for (const { points } of this.series) {
      high = Math.max(high, points[points.length - 1][0]);
      low = Math.min(low, points[0][0]);
    }
    this.x = [Number.isFinite(low) ? Math.min(low, high) : 0, high || 1];
    this.y = bounds(this.series.filter((s) => !s.right), 0.01);
    this.yRight = bounds(this.series.filter((s) => s.right), 0);
    this.later();
  }

  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  colorOf(series) {
    return typeof series.color === "number" ? this.palette.runs[series.color % 6] : this.palette[series.color];
  }

  draw() {
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    if (!width || !height || !this.x) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.palette = paletteOf(this.element);
    this.area = { x: MARGIN.left, y: MARGIN.top, w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
    const ctx = this.canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.font = FONT;
    this.drawAxes(ctx);
    ctx.save();
    ctx.beginPath();
    ctx.rect(this.area.x, this.area.y - 2, this.area.w + 2, this.area.h + 4);
    ctx.clip();
    this.drawMarks(ctx);
    for (const series of this.series) this.drawSeries(ctx, series);
    this.drawCursor(ctx);
    ctx.restore();
    this.drawLegend();
  }

  px(x) {
    return this.area.x + ((x - this.x[0]) / (this.x[1] - this.x[0] || 1)) * this.area.w;
  }

  py(y, right) {
    const [low, high] = right ? this.yRight : this.y;
    return this.area.y + (1 - (y - low) / (high - low || 1)) * this.area.h;
  }

  drawAxes(ctx) {
    const { x, y, w, h } = this.area;
    ctx.fillStyle = ctx.strokeStyle = getComputedStyle(this.element).color;
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    for (const tick of ticks(...this.y, 4)) {
      ctx.globalAlpha = 0.13;
      ctx.fillRect(x, Math.round(this.py(tick)), w, 1);
      ctx.globalAlpha = 0.75;
      ctx.fillText(number(tick), x - 6, this.py(tick));
    }
    ctx.textAlign = "center";
    ctx.textBaseline = "alphabetic";
    for (const tick of ticks(...this.x, Math.max(2, Math.floor(w / 80)))) {
      const half = ctx.measureText(number(tick)).width / 2;
      ctx.fillText(number(tick), Math.min(this.px(tick), x + w + MARGIN.right - half - 1), y + h + 15);
    }
    ctx.globalAlpha = 1;
  }

  drawMarks(ctx) {
    const { x, y, w, h } = this.area;
    ctx.textBaseline = "top";
    this.marks.forEach((mark, row) => {
      const at = this.px(mark.x);
      ctx.fillStyle = ctx.strokeStyle = this.palette[mark.color] ?? mark.color;
      if (mark.shade) {
        ctx.globalAlpha = 0.12;
        ctx.fillRect(at, y, x + w - at, h);
        ctx.globalAlpha = 1;
      }
      ctx.setLineDash([2, 3]);
      line(ctx, [[at, y], [at, y + h]], 1);
      ctx.setLineDash([]);
      const room = x + w - at > ctx.measureText(mark.text).width + 8;
      ctx.textAlign = room ? "left" : "right";
      ctx.fillText(mark.text, at + (room ? 4 : -4), y + h - 14 - 13 * row);
    });
  }

  drawSeries(ctx, series) {
    const dense = decimate(series.points, ...this.x, Math.max(1, Math.floor(this.area.w)));
    const points = dense.map(([x, y]) => [this.px(x), this.py(y, series.right)]);
    ctx.strokeStyle = ctx.fillStyle = this.colorOf(series);
    ctx.globalAlpha = series.style === "faint" ? 0.28 : 1;
    ctx.setLineDash(series.dashes ?? DASHES[series.style ?? "line"]);
    line(ctx, points, series.style === "line" || !series.style ? 2 : 1.2);
    ctx.setLineDash([]);
    if (series.points.length < 40 && series.style !== "faint" && !series.right) {
      for (const [x, y] of points) dot(ctx, x, y, 2.5);
    }
    ctx.globalAlpha = 1;
  }

  drawCursor(ctx) {
    if (this.cursor === null) return;
    const { y, h } = this.area;
    ctx.strokeStyle = getComputedStyle(this.element).color;
    ctx.globalAlpha = 0.5;
    line(ctx, [[this.px(this.cursor), y], [this.px(this.cursor), y + h]], 1);
    ctx.globalAlpha = 1;
    for (const series of this.series.filter((s) => s.style !== "faint")) {
      const point = nearest(series.points, this.cursor);
      ctx.fillStyle = this.colorOf(series);
      dot(ctx, this.px(point[0]), this.py(point[1], series.right), 3.5);
    }
  }

  // Names and values, at the cursor or at the end.
  drawLegend() {
    const named = this.series.filter((s) => s.style !== "faint");
    const at = this.cursor ?? Infinity;
    const items = named.map((series) => {
      const item = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.style.borderTop = `2px ${series.style === "dash" || series.dashes?.length ? "dashed" : "solid"} ${this.colorOf(series)}`;
      const value = document.createElement("b");
      value.textContent = number(nearest(series.points, at)[1]);
      item.append(swatch, `${series.name} `, value);
      return item;
    });
    if (this.cursor !== null) items.unshift(`step ${number(this.cursor)}`);
    this.legend.replaceChildren(...items);
    this.canvas.setAttribute("aria-valuetext", this.legend.textContent);
    this.canvas.setAttribute("aria-valuenow", this.cursor ?? this.x[1]);
    this.canvas.setAttribute("aria-valuemin", this.x[0]);
    this.canvas.setAttribute("aria-valuemax", this.x[1]);
  }

  moveTo(x) {
    if (x === this.cursor) return;
    this.cursor = x;
    this.later();
  }

  point(event) {
    const main = this.main();
    if (!main || !this.area) return;
    const share = (event.offsetX - this.area.x) / this.area.w; // in the canvas' own pixels, whatever the zoom
    this.moveTo(nearest(main.points, this.x[0] + share * (this.x[1] - this.x[0]))[0]);
  }

  key(event) {
    const main = this.main();
    const jump = { ArrowLeft: -1, ArrowRight: 1, PageUp: 20, PageDown: -20, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.moveTo(null);
    if (jump === undefined || !main) return;
    event.preventDefault();
    event.stopPropagation(); // the graph has shortcuts of its own
    const last = main.points.length - 1;
    const here = this.cursor === null ? last : main.points.indexOf(nearest(main.points, this.cursor));
    this.moveTo(main.points[Math.max(0, Math.min(last, here + jump))][0]);
  }

  main() {
    return this.series.reduce((a, b) => (a && a.points.length >= b.points.length ? a : b), null);
  }
}

function line(ctx, points, width) {
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.beginPath();
  for (const [x, y] of points) ctx.lineTo(x, y);
  ctx.stroke();
}

function dot(ctx, x, y, radius) {
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  ctx.fill();
}

// The point whose x is nearest, by bisection.
export function nearest(points, x) {
  let [low, high] = [0, points.length - 1];
  if (x >= points[high][0]) return points[high];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  const before = points[Math.max(0, low - 1)];
  return Math.abs(before[0] - x) <= Math.abs(points[low][0] - x) ? before : points[low];
}
