"""ComfyUI's page in headless Chromium: opens graphs, queues and stops them as a person does, and listens.

with chromium() as browser, Page.opened(browser, server) as page:
    page.open_template("quickstart")
    run = page.followed(page.press_run())
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..core.errors import LikenessError
from .comfyui import Client, ComfyServer, Graph, Run

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # root in a container
VIEW_PX = {"width": 1600, "height": 1000}
PATIENCE_MS = 600_000  # a busy machine is slow, not broken
LISTEN_MS, LOOK_MS = 10.0, 500.0

READY = "() => window.app?.vueAppReady && window.app.graph?._nodes.length"
CLEAR = "() => window.app.graph.clear()"
SET_VUE = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
# The Vue renderer has an element for every node, with its title.
DRAWN_BY_VUE = """() => {
    const seen = [...document.querySelectorAll('[data-node-id]')].map((element) => element.textContent);
    return app.graph._nodes.every((node) => seen.some((text) => text.includes(node.title)));
}"""
OPEN_TEMPLATE = """async (name) => {
    const graph = await (await fetch(`/api/workflow_templates/likeness/${name}.json`)).json();
    await app.loadGraphData(graph, true, true, name);
}"""
OPEN_GRAPH = "async (graph) => { await app.loadGraphData(graph); }"
OPEN_PROMPT = "async (prompt) => { await app.loadApiJson(prompt, 'prompt'); }"
SAVED = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
MISSING = """() => app.graph._nodes
    .filter((node) => node.has_errors || !(node.type in LiteGraph.registered_node_types))
    .map((node) => node.type)"""
# What the run button does; the id that the server gave, or what the page says against the graph.
PRESS_RUN = """async () => {
    const { api } = app;
    const { queuePrompt } = api;
    let answer = {};
    api.queuePrompt = async (...given) => (answer = await queuePrompt.apply(api, given));
    try {
        await app.queuePrompt(0, 1);
    } finally {
        api.queuePrompt = queuePrompt;
    }
    return { id: answer.prompt_id ?? '', problem: JSON.stringify(app.lastNodeErrors ?? {}) };
}"""
PRESS_STOP = "() => app.extensionManager.command.execute('Comfy.Interrupt')"
# Bring a node to the corner of the view at full size, as one looks at it: from afar the Vue renderer leaves
# out what is in a node.
SHOW = """(id) => {
    const [x, y] = app.graph.getNodeById(id).boundingRect;
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [100 - x, 100 - y];
    app.graph.setDirtyCanvas(true, true);
}"""
# Whether a node shows what it gave to look at. Texts of other nodes than Preview Any are for programs.
SEEN = """([id, { images, text, likeness, likeness_layout }]) => {
    const vue = app.extensionManager.setting.get('Comfy.VueNodes.Enabled');
    const node = app.graph.getNodeById(id);
    const element = vue ? document.querySelector(`[data-node-id="${id}"]`) : null;
    const pictures = vue ? [...(element?.querySelectorAll('img') ?? [])] : node.imgs ?? [];
    const written = (node.widgets ?? []).map((widget) => String(widget.value)).join(' ');
    const run = likeness?.find((made) => made.run)?.run;
    return (!images?.length || pictures.some((picture) => picture.naturalWidth > 0))
        && (node.type !== 'PreviewAny' || written.includes(String(text[0]).slice(0, 40)))
        && (!run || node.likenessView?.run?.state === 'finished')
        && (!likeness_layout || Boolean(node.likenessEditor?.drawn));
}"""


def program() -> str | None:
    """The system's Chromium."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, by playwright. Raises LikenessError where there is no Chromium."""
    from playwright.sync_api import sync_playwright

    if (path := program()) is None:
        raise LikenessError("There is no Chromium to open pages in", fix="apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Page(Client):
    """One tab with ComfyUI's page. ``tab`` is playwright's."""

    def __init__(self, tab: Any, server: ComfyServer) -> None:
        self.tab, self.server = tab, server
        self.heard: deque[str | bytes] = deque()
        tab.on("websocket", lambda socket: socket.on("framereceived", self._hear))

    @classmethod
    @contextmanager
    def opened(
        cls, browser: Any, server: ComfyServer, prepare: Callable[[Any], None] = lambda tab: None
    ) -> Iterator[Page]:
        """With an empty graph. ``prepare`` is given the tab before it loads anything."""
        server.post("/api/settings", {"Comfy.TutorialCompleted": True})  # no welcome dialog
        tab = browser.new_page(viewport=VIEW_PX)
        try:
            tab.set_default_timeout(PATIENCE_MS)
            prepare(tab)
            page = cls(tab, server)
            tab.goto(server.url, wait_until="commit")
            tab.wait_for_function(READY)
            tab.evaluate(CLEAR)
            yield page
        finally:
            tab.close()

    # --- what is open -----------------------------------------------------------------------------
    def open_template(self, name: str) -> None:
        self.tab.evaluate(OPEN_TEMPLATE, name)

    def open_graph(self, graph: Mapping[str, Any]) -> None:
        """A workflow in the page's own format."""
        self.tab.evaluate(OPEN_GRAPH, graph)

    def open_prompt(self, graph: Graph) -> dict[str, Any]:
        """A graph in the API's format; the same in the page's."""
        self.tab.evaluate(OPEN_PROMPT, graph)
        return dict(self.tab.evaluate(SAVED))

    def missing(self) -> list[str]:
        """Types of nodes that the page does not know, or finds fault with."""
        return list(self.tab.evaluate(MISSING))

    @contextmanager
    def drawn_by_vue(self) -> Iterator[None]:
        """What is open, by the Vue renderer for a while. It draws what was open when it was chosen."""
        self.tab.evaluate(SET_VUE, True)
        try:
            self.tab.wait_for_function(DRAWN_BY_VUE)
            yield
        finally:
            self.tab.evaluate(SET_VUE, False)

    def unseen(self, outputs: Mapping[str, Any], within_s: float) -> list[str]:
        """Ids of nodes that do not show, within so many seconds, what a prompt's history has of them."""
        return [key for key, output in outputs.items() if not self._sees(key, output, within_s)]

    def _sees(self, key: str, output: Any, within_s: float) -> bool:
        self.tab.evaluate(SHOW, key)
        deadline = time.monotonic() + within_s
        while not (seen := bool(self.tab.evaluate(SEEN, [key, output]))) and time.monotonic() < deadline:
            self.tab.wait_for_timeout(LOOK_MS)
        return seen

    def _hear(self, message: str | bytes) -> None:
        self.heard.append(message)

    # --- as a client ------------------------------------------------------------------------------
    def queue(self, graph: Graph) -> Run:
        self.open_prompt(graph)
        return self.press_run()

    def press_run(self) -> Run:
        """Queue what is open."""
        self.heard.clear()
        answer = self.tab.evaluate(PRESS_RUN)
        if not answer["id"]:
            raise RuntimeError(f"The page queued nothing: {answer['problem']}")
        return Run(answer["id"])

    def interrupt(self) -> None:
        self.tab.evaluate(PRESS_STOP)

    def received(self, quiet_s: float) -> str | bytes:
        deadline = time.monotonic() + quiet_s
        while not self.heard:
            if time.monotonic() > deadline:
                raise TimeoutError(f"ComfyUI told the page nothing for {quiet_s:.0f} s")
            self.tab.wait_for_timeout(LISTEN_MS)  # playwright hands over what it heard
        return self.heard.popleft()
