// ComfyUI runs what it can of a graph, and of a node that it refused it shows a red frame alone: here are the words.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const LIFE_MS = 20000;

// "input - what is wrong": once, though ComfyUI says it for every input that the check looked at.
function words({ errors }) {
  const told = new Map();
  for (const { details, message } of errors) {
    const text = details || message;
    const wrong = text.slice(text.indexOf(" - ") + 1);
    if (!told.has(wrong)) told.set(wrong, text);
  }
  return [...told.values()].join("\n");
}

api.addEventListener("promptQueued", () => {
  if (document.querySelector("[role=dialog]")) return; // all outputs were refused: ComfyUI says so itself
  for (const [id, problem] of Object.entries(app.lastNodeErrors ?? {})) {
    if (!problem.class_type?.startsWith("Likeness") || !problem.errors?.length) continue;
    const title = app.graph.getNodeById(id)?.title ?? problem.class_type;
    app.extensionManager.toast.add({ severity: "error", summary: title, detail: words(problem), life: LIFE_MS });
  }
});
