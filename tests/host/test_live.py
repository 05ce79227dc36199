"""Live training in the page: a node shows its run, over a reload too, ends it early; the sidebar lists it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

BUILD = """(steps) => {
    const make = (name, values, links = {}) => {
        const node = LiteGraph.createNode(name);
        app.graph.add(node);
        for (const w of node.widgets ?? []) if (w.name in values) w.value = values[w.name];
        for (const [input, from] of Object.entries(links)) from.connect(0, node, node.findInputSlot(input));
        return node;
    };
    const photos = make('LikenessLoadSubject', { folder: 'example:star-turtle', class_noun: 'turtle' });
    const subject = make('LikenessSplitHeldOut', { count: 1 }, { subject: photos });
    const base = make('LikenessLoadBaseModel', { model: 'toybox' });
    const monitor = make('LikenessHeldOutMonitor', { every: 4, steps: 1, batch_size: 4 });
    const widgets = { steps, batch_size: 1, sample_every: 0, num_vectors: 1 };
    const train = make('LikenessTrainTextualInversion', widgets, { base, subject, monitor });
    train.pos = [500, 60];
    return train.id;
}"""
RUN = "(id) => app.graph.getNodeById(id).likenessView.run"
RENDERERS = {"LiteGraph": ".lk-view .lk-empty", "Vue": "[data-node-id] .lk-view .lk-empty"}
SET_VUE = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"


MAX_BYTES_PER_S = 20_000  # of websocket traffic while training


@pytest.fixture
def training(page: Any) -> Iterator[tuple[Any, int]]:
    """A run of more steps than the test waits for, at its second step. ``page.received`` counts bytes."""
    page.received = 0

    def count(frame: Any) -> None:
        page.received += len(frame)

    page.on("websocket", lambda socket: socket.on("framereceived", count))
    page.reload()
    page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
    page.evaluate("() => window.app.graph.clear()")
    node = page.evaluate(BUILD, 5000)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(f"(id) => ({RUN})(id)?.step >= 2", arg=node, timeout=300_000)
    yield page, node
    page.evaluate("() => fetch('/interrupt', { method: 'POST' })")


def test_the_node_draws_its_run_and_ends_it_early(training: tuple[Any, int], server: Any) -> None:
    page, node = training
    run = page.evaluate(RUN, node)
    assert run["state"] == "training" and run["scores"]
    before, seconds = page.received, 4
    page.wait_for_timeout(1000 * seconds)
    assert 0 < page.received - before < MAX_BYTES_PER_S * seconds
    assert page.locator(".lk-view canvas").first.is_visible()
    name = page.evaluate("(id) => app.graph.getNodeById(id).properties.likeness_run", node)
    assert name == run["name"] and name.startswith("textual_inversion-star-turtle-")

    page.evaluate("(id) => app.graph.getNodeById(id).likenessView.askToStop()", node)
    page.get_by_role("button", name="Finish, may go on later").dispatch_event("click")
    page.wait_for_function(f"(id) => ({RUN})(id)?.state === 'ended early'", arg=node, timeout=120_000)
    [listed] = [r for r in server.get("/likeness/runs") if r["name"] == name]
    assert listed["ended_early"]["step"] < 5000 and not listed["settled"] and listed["workflow"]

    graph = page.evaluate("() => app.graph.serialize()")  # saved, opened in another page: all is there
    page.goto(server.url)
    page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.wait_for_function(f"(id) => ({RUN})(id)?.state === 'ended early'", arg=node, timeout=30_000)
    again = page.evaluate("(id) => app.graph.getNodeById(id).likenessView.points.length", node)
    assert again == min(listed["step"], 2000)

    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('likeness.runs')")
    page.get_by_title(name).click()
    page.locator(".lk-runs .lk-view canvas").first.wait_for(state="visible")
    page.get_by_role("button", name="Delete\u2026").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_title(name).wait_for(state="detached")  # other tests' runs may stay
    assert name not in [run["name"] for run in server.get("/likeness/runs")]
    assert page.problems == []


def test_widgets_of_the_schema_keep_their_places(page: Any) -> None:
    """The live view is no input: it is neither in the prompt nor in the saved widgets."""
    page.evaluate(BUILD, 7)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    [train] = [n for n in prompt.values() if n["class_type"] == "LikenessTrainTextualInversion"]
    assert train["inputs"]["steps"] == 7 and "likeness_run" not in train["inputs"]
    saved = page.evaluate("() => app.graph.serialize().nodes.at(-1).widgets_values")
    assert "" not in saved[-1:] and json.dumps(saved)


@pytest.mark.parametrize("place", RENDERERS.values(), ids=RENDERERS)
def test_both_renderers_show_the_view(page: Any, server: Any, place: str) -> None:
    page.evaluate(BUILD, 7)
    page.evaluate(SET_VUE, place == RENDERERS["Vue"])
    try:
        page.wait_for_selector(place, timeout=60_000)
        assert page.locator(place).first.bounding_box()["width"] > 100
        assert page.problems == []
    finally:
        page.evaluate(SET_VUE, False)


def test_names_from_outside_lead_nowhere(page: Any, server: Any) -> None:
    for name in ("..%2F..%2Fuser", "nothing", "%2Fetc"):
        answer = page.request.get(f"{server.url}/likeness/runs/{name}")
        assert answer.status == 404
        assert page.request.delete(f"{server.url}/likeness/runs/{name}").status == 404
