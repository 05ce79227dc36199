// The geometry of a layout, and its past: plain values, no page. A box is [x, y, width, height] in shares of the
// canvas. The limits and their words are those of composing/editing.py; a test holds the two together.

export const LIMITS = { overlap: 0.6, edge: 0.05, items: 8 };
const SLACK = 1e-3;
const DIGITS = 1e5;
const share = (value) => Math.round(value * DIGITS) / DIGITS;
const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(high, low));

// A layout from its text, or an Error that says why it is none. The server looks closer.
export function parse(text) {
  let record;
  try {
    record = JSON.parse(text);
  } catch {
    throw new Error("This is not a layout: it is no JSON.");
  }
  const { version, scene, items } = record ?? {};
  if (version !== 1 || typeof scene !== "string" || !Array.isArray(items)) throw new Error("This is not a layout.");
  if (!items.length || items.length > LIMITS.items) throw new Error(`A layout has 1 to ${LIMITS.items} items.`);
  for (const item of items) {
    const whole = typeof item?.subject === "string" && Array.isArray(item.box) && item.box.length === 4 && item.box.every(Number.isFinite);
    if (!whole || item.box[2] <= 0 || item.box[3] <= 0) throw new Error("This is not a layout: an item has no subject or box.");
  }
  if (new Set(items.map((item) => item.subject)).size < items.length) throw new Error("Two items name the same subject.");
  return record;
}

export const write = (layout) => JSON.stringify(layout, null, 1);

// A layout in which one item has changed.
export function changed(layout, index, change) {
  return { ...layout, items: layout.items.map((item, i) => (i === index ? { ...item, ...change } : item)) };
}

// A box moved, as far as the canvas goes.
export function moved([x, y, width, height], dx, dy) {
  return [clamp(x + dx, 0, 1 - width), clamp(y + dy, 0, 1 - height), width, height].map(share);
}

// A box drawn larger or smaller by one corner ("nw", "ne", "sw", "se"): its shape and the corner across stay.
export function resized([x, y, width, height], corner, dx, dy) {
  const [west, north] = [corner.includes("w"), corner.includes("n")];
  const room = Math.min((west ? x + width : 1 - x) / width, (north ? y + height : 1 - y) / height);
  const least = LIMITS.edge / Math.max(width, height);
  const pulled = 1 + ((west ? -dx : dx) * width + (north ? -dy : dy) * height) / (width * width + height * height);
  const scale = clamp(pulled, least, room);
  const [w, h] = [width * scale, height * scale];
  return [west ? x + width - w : x, north ? y + height - h : y, w, h].map(share);
}

// The share of the smaller box that two have in common.
export function overlap(a, b) {
  const wide = Math.max(0, Math.min(a[0] + a[2], b[0] + b[2]) - Math.max(a[0], b[0]));
  const high = Math.max(0, Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]));
  return (wide * high) / Math.max(Math.min(a[2] * a[3], b[2] * b[3]), 1e-9);
}

const percent = (value) => `${Math.round(value * 100)}%`;

// What keeps the layout from being composed: [words, the subjects it is about].
export function problems({ items }) {
  const found = [];
  for (const { subject, box: [x, y, width, height] } of items) {
    if (Math.min(x, y) < -SLACK || Math.max(x + width, y + height) > 1 + SLACK) found.push([`${subject} leaves the canvas`, [subject]]);
    if (Math.max(width, height) < LIMITS.edge - SLACK) found.push([`${subject} is smaller than ${percent(LIMITS.edge)} of the canvas`, [subject]]);
  }
  items.forEach((one, i) => items.slice(i + 1).forEach((two) => {
    const common = overlap(one.box, two.box);
    if (common > LIMITS.overlap + SLACK) found.push([`${one.subject} and ${two.subject} overlap by ${percent(common)}, more than ${percent(LIMITS.overlap)}`, [one.subject, two.subject]]);
  }));
  return found;
}

// Paints an item one place later (by 1: nearer) or earlier (-1: farther). The layout itself at either end.
export function reordered(layout, index, by) {
  const to = index + by;
  if (to < 0 || to >= layout.items.length) return layout;
  const items = [...layout.items];
  items.splice(to, 0, ...items.splice(index, 1));
  return { ...layout, items };
}

// What was, in texts. The present is the last of the past.
export class History {
  constructor(text = "") {
    this.reset(text);
  }

  reset(text) {
    this.past = [text];
    this.future = [];
  }

  get now() {
    return this.past[this.past.length - 1];
  }

  push(text) {
    if (text === this.now) return;
    this.past.push(text);
    this.future = [];
  }

  undo() {
    if (this.past.length > 1) this.future.push(this.past.pop());
    return this.now;
  }

  redo() {
    if (this.future.length) this.past.push(this.future.pop());
    return this.now;
  }
}
