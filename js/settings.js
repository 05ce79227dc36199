// What a user sets once for all graphs. Nothing here is sent anywhere: this pack has no telemetry.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const RUN_FOLDER = "Likeness.RunFolder"; // read by nodes/host.py, from ComfyUI's own settings file
const SAMPLE_EVERY = "Likeness.SampleEvery";
const TOASTS = "Likeness.Toasts";
const DEFAULTS = { [RUN_FOLDER]: "likeness/runs", [SAMPLE_EVERY]: 100, [TOASTS]: true };

const setting = (id) => app.extensionManager?.setting?.get(id) ?? DEFAULTS[id];

app.registerExtension({
  name: "likeness.settings",
  settings: [
    {
      id: RUN_FOLDER,
      category: ["Likeness", "Training", "Run folder"],
      name: "Run folder",
      tooltip: "Where training runs are kept, below ComfyUI's output folder. Runs in another folder stay there and are not listed.",
      type: "text",
      defaultValue: DEFAULTS[RUN_FOLDER],
    },
    {
      id: SAMPLE_EVERY,
      category: ["Likeness", "Training", "Sampling"],
      name: "Steps between sample pictures",
      tooltip: "What a new trainer starts with. 0 draws none. Nodes that are there keep their own value.",
      type: "number",
      attrs: { min: 0, max: 100000, step: 10 },
      defaultValue: DEFAULTS[SAMPLE_EVERY],
    },
    {
      id: TOASTS,
      category: ["Likeness", "Training", "Toasts"],
      name: "Say when a training ends",
      type: "boolean",
      defaultValue: DEFAULTS[TOASTS],
    },
  ],
  setup() {
    api.addEventListener("likeness.run", ({ detail }) => {
      if (detail.phase !== "done" || !setting(TOASTS)) return;
      app.extensionManager?.toast?.add?.({ severity: "success", summary: "Training has ended", detail: detail.run, life: 6000 });
    });
  },
  // A node of a saved graph is filled with its own values after this.
  nodeCreated(node) {
    const widget = node.comfyClass?.startsWith("Likeness") && node.widgets?.find((one) => one.name === "sample_every");
    if (widget && setting(SAMPLE_EVERY) !== DEFAULTS[SAMPLE_EVERY]) widget.value = setting(SAMPLE_EVERY);
  },
});
