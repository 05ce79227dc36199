// Live training on the node: every node that gives a run shows it, while it trains and whenever the page opens.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { RunView, Runs } from "./view.js";

const RUN_TYPE = "LIKENESS_RUN";
const PROPERTY = "likeness_run"; // saved with the workflow
const WIDTH = 380;
const LOOK_MS = 1000;
const runs = new Runs(api);

// A node by its execution id, which names the subgraphs on the way: "12:3".
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

function fit(node, view) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, view.run ? WIDTH : 0), Math.max(node.size[1], height)]);
  app.graph?.setDirtyCanvas(true, true);
}

function attach(node) {
  const view = new RunView(runs, { changed: () => fit(node, view) });
  const widget = node.addDOMWidget("likeness_run", "likeness_run_view", view.element, {
    getMinHeight: () => view.height(),
    getValue: () => "",
    setValue: () => {},
    serialize: false,
    hideOnZoom: false,
  });
  widget.serialize = false; // widgets_values stay those of the schema
  node.likenessView = view;
  chain(node, "onConfigure", () => node.properties?.[PROPERTY] && view.show(node.properties[PROPERTY]));
  chain(node, "onRemoved", () => view.dispose());
}

// Frontends before 1.29 draw no DOM widgets in their Vue nodes: there the view is put into the node's element, and
// goes home when the other renderer is back.
function adopt(node) {
  const { element } = node.likenessView;
  if (element.offsetWidth) return;
  if (LiteGraph.vueNodesMode) {
    const place = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
    if (!place || place.contains(element)) return;
    node.likenessHome ??= element.parentElement;
    place.append(element);
  } else if (!element.isConnected && node.likenessHome) {
    node.likenessHome.append(element);
    node.likenessHome = null;
  }
}

function chain(node, name, then) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    then();
    return result;
  };
}

function remember(node, run) {
  if (node.properties[PROPERTY] === run) return;
  node.properties[PROPERTY] = run;
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.(); // or a reload would forget it
}

// The run's name is in the path of what the node made.
function runIn(output) {
  const path = output?.likeness?.[0]?.path ?? "";
  return /[\\/]likeness[\\/]runs[\\/]([^\\/]+)[\\/]/.exec(path)?.[1];
}

app.registerExtension({
  name: "likeness.live",
  setup() {
    setInterval(() => {
      for (const node of app.graph?._nodes ?? []) if (node.likenessView) adopt(node);
    }, LOOK_MS);
    api.addEventListener("likeness.run", ({ detail }) => {
      const node = nodeOf(detail.node);
      if (!node?.likenessView) return;
      remember(node, detail.run);
      node.likenessView.hear(detail);
    });
    api.addEventListener("executed", ({ detail }) => {
      const node = nodeOf(detail.display_node ?? detail.node);
      const run = runIn(detail.output);
      if (!run || !node?.likenessView) return;
      remember(node, run);
      node.likenessView.show(run);
    });
    for (const end of ["execution_error", "execution_interrupted"]) {
      api.addEventListener(end, ({ detail }) => nodeOf(detail.node_id)?.likenessView?.again(300));
    }
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("Likeness") && node.outputs?.some((output) => output.type === RUN_TYPE)) attach(node);
  },
});
