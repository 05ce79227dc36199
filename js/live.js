// Live training on the node: every node that gives a run shows it, while it trains and whenever the page opens.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chain, changedByHand, mount, nodeOf } from "./mount.js";
import { RunView, Runs } from "./view.js";

const RUN_TYPE = "LIKENESS_RUN";
const PROPERTY = "likeness_run"; // saved with the workflow
const WIDTH = 380;
const runs = new Runs(api);

function fit(node, view) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, view.run ? WIDTH : 0), Math.max(node.size[1], height)]);
  app.graph?.setDirtyCanvas(true, true);
}

function attach(node) {
  const view = new RunView(runs, { changed: () => fit(node, view) });
  mount(node, { name: "likeness_run", element: view.element, height: () => view.height() });
  node.likenessView = view;
  chain(node, "onConfigure", () => node.properties?.[PROPERTY] && view.show(node.properties[PROPERTY]));
  chain(node, "onRemoved", () => view.dispose());
}

function remember(node, run) {
  if (node.properties[PROPERTY] === run) return;
  node.properties[PROPERTY] = run;
  changedByHand();
}

app.registerExtension({
  name: "likeness.live",
  setup() {
    api.addEventListener("likeness.run", ({ detail }) => {
      const node = nodeOf(detail.node);
      if (!node?.likenessView) return;
      remember(node, detail.run);
      node.likenessView.hear(detail);
    });
    api.addEventListener("executed", ({ detail }) => {
      const node = nodeOf(detail.display_node ?? detail.node);
      const run = detail.output?.likeness?.[0]?.run;
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
