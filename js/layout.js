// Layout Scene on the node: the editor writes the node's own `layout` widget, and so travels in every workflow.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { LayoutEditor } from "./editor.js";
import { chain, changedByHand, mount, nodeOf } from "./mount.js";

const NODE = "LikenessLayoutScene";
const SHOWN = "likeness_shown"; // a property: what the last run drew, and of whom; saved with the workflow
const TEXT = "customtext";
const [WIDTH, HEIGHT] = [420, 380];
const SEEDS = 2 ** 31;

const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);
const shownOn = (node) => node.properties[SHOWN] ?? { layout: "", cast: [] };

function isLinked(node) {
  return node.inputs?.some((input) => input.name === "layout" && input.link !== null && input.link !== undefined) ?? false;
}

// Width / height of the canvas that the layout is composed on; square as long as nothing says so.
function aspectOf(node) {
  const graph = node.graph ?? app.graph;
  for (const id of node.outputs?.[0]?.links ?? []) {
    const composer = graph.getNodeById(graph.links[id]?.target_id ?? graph.links.get?.(id)?.target_id);
    const [width, height] = [widgetOf(composer, "width")?.value, widgetOf(composer, "height")?.value];
    if (width > 0 && height > 0) return width / height;
  }
  return 1;
}

function sourceOf(picture) {
  return picture ? api.apiURL(`/view?${new URLSearchParams(picture)}`) : null;
}

function sync(node, fresh = false) {
  const { layout, cast } = shownOn(node);
  const text = String(widgetOf(node, "layout").value ?? "").trim();
  node.likenessEditor.frame(aspectOf(node));
  node.likenessEditor.dress(cast.map((thing) => ({ ...thing, src: sourceOf(thing.picture) })));
  node.likenessEditor.show({ text, drawn: layout, redraw: widgetOf(node, "redraw").value === true, fixed: isLinked(node), fresh });
}

// The node's text box says the same in JSON: out of the way until it is asked for. LiteGraph leaves no gap for a
// widget of the type "hidden", the Vue renderer looks at its options.
function showText(node, shown) {
  const widget = widgetOf(node, "layout");
  widget.hidden = !shown;
  widget.type = shown ? TEXT : "hidden";
  widget.options.hidden = !shown;
  node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], node.computeSize()[1])]);
  app.graph?.setDirtyCanvas(true, true);
}

async function drawn(node, layout) {
  const body = JSON.stringify({ layout: JSON.stringify(layout), things: shownOn(node).cast, seed: Math.floor(Math.random() * SEEDS) });
  const answer = await api.fetchApi("/likeness/layout", { method: "POST", body });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error ?? answer.statusText);
  return said.layout;
}

function attach(node) {
  const widget = widgetOf(node, "layout");
  const editor = new LayoutEditor({
    save: (text) => {
      widget.value = text;
      widgetOf(node, "redraw").value = false;
      changedByHand();
    },
    draw: (layout) => drawn(node, layout),
    code: () => showText(node, widget.hidden),
  });
  node.likenessEditor = editor;
  mount(node, { name: "likeness_layout", element: editor.element, height: () => HEIGHT });
  for (const name of ["layout", "redraw"]) chain(widgetOf(node, name), "callback", () => sync(node));
  chain(node, "onRemoved", () => editor.dispose());
  chain(node, "onConfigure", () => sync(node, true));
  chain(node, "onConnectionsChange", () => sync(node));
  showText(node, false);
}

app.registerExtension({
  name: "likeness.layout",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const node = nodeOf(detail.display_node ?? detail.node);
      const { likeness_layout: layout, likeness_cast: cast } = detail.output ?? {};
      if (!node?.likenessEditor || !layout) return;
      node.properties[SHOWN] = { layout: layout[0], cast };
      changedByHand();
      sync(node);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) attach(node);
  },
});
