// The way from a report's node to its page: a button, there once the page was written, over a reload too.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const PROPERTY = "likeness_report"; // the page's file name, saved with the workflow

function offer(node) {
  if (!node.properties?.[PROPERTY] || node.likenessReport) return;
  const open = () => window.open(node.likenessReport.href, "_blank", "noopener");
  node.likenessReport = node.addWidget("button", "Open the report", "", open, { serialize: false });
  node.likenessReport.serialize = false; // widgets_values stay those of the schema
  Object.defineProperty(node.likenessReport, "href", {
    get: () => api.apiURL(`/likeness/reports/${encodeURIComponent(node.properties[PROPERTY])}`),
  });
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}

function written(output) {
  const made = (output?.likeness ?? []).find(({ kind }) => kind === "report");
  return made?.path.split(/[\\/]/).pop();
}

app.registerExtension({
  name: "likeness.report",
  nodeCreated(node) {
    if (node.comfyClass !== "LikenessReport") return;
    const { onExecuted, onConfigure } = node;
    node.onExecuted = function (output) {
      onExecuted?.call(this, output);
      const page = written(output);
      if (page) this.properties[PROPERTY] = page;
      offer(this);
    };
    node.onConfigure = function (...args) {
      onConfigure?.apply(this, args);
      offer(this);
    };
  },
});
