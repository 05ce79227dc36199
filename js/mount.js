// Elements on nodes, in both of the page's renderers.

import { app } from "../../scripts/app.js";

const LOOK_MS = 1000;
const mounted = new Set();

export function chain(node, name, then) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    then(...args);
    return result;
  };
}

// A node by its execution id, which names the subgraphs on the way: "12:3".
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

// Put an element on a node. It is no input: it has no value, neither saved nor sent. height(): what it needs.
export function mount(node, { name, element, height }) {
  const widget = node.addDOMWidget(name, `${name}_view`, element, {
    getMinHeight: height,
    getValue: () => "",
    setValue: () => {},
    serialize: false,
    hideOnZoom: false,
  });
  widget.serialize = false; // widgets_values stay those of the schema
  const place = { node, element, home: null };
  mounted.add(place);
  chain(node, "onRemoved", () => mounted.delete(place));
}

// Tell the page that a change is one, or a reload would forget it.
export function changedByHand() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}

// Frontends before 1.29 draw no DOM widgets in their Vue nodes: there the element is put into the node's own, and
// goes home when the other renderer is back.
function adopt(place) {
  const { node, element } = place;
  if (element.offsetWidth) return;
  if (LiteGraph.vueNodesMode) {
    const drawn = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
    if (!drawn || drawn.contains(element)) return;
    place.home ??= element.parentElement;
    drawn.append(element);
  } else if (!element.isConnected && place.home) {
    place.home.append(element);
    place.home = null;
  }
}

app.registerExtension({
  name: "likeness.mount",
  setup() {
    setInterval(() => mounted.forEach(adopt), LOOK_MS);
  },
});
