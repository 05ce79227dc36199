"""Every example workflow, in the browser's own list of templates: it opens whole, in both renderers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from likeness.benchmarks.comfyui import PACK
from likeness.benchmarks.page import (
    DRAWN_BY_VUE,
    MISSING,
    OPEN_GRAPH,
    OPEN_TEMPLATE,
    READY,
    SAVED,
    SET_VUE,
)
from likeness.headless import runner
from likeness.headless.graph import parse, to_api

WORKFLOWS = PACK / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
DIALOGS = ".comfy-missing-nodes, .comfy-missing-models, .p-dialog:has-text('missing')"
# What a node needs more than it has, and which nodes lie on each other once the page has laid them out.
CRAMPED = """() => app.graph._nodes
    .map((node) => [node.title, node.computeSize()[1] - node.size[1], node.computeSize()[0] - node.size[0]])
    .filter(([, high, wide]) => high > 1 || wide > 1)"""
OVERLAPS = """() => {
    const boxes = app.graph._nodes.map((node) => [node.title, ...node.boundingRect]);
    return boxes.flatMap(([a, x, y, w, h], i) => boxes.slice(i + 1)
        .filter(([, x2, y2, w2, h2]) => x < x2 + w2 && x2 < x + w && y < y2 + h2 && y2 < y + h)
        .map(([b]) => [a, b]));
}"""
OUTSIDE = """() => {
    const ends = ([x, y, w, h]) => [x, y, x + w, y + h];
    const within = ([x, y, r, f], [x2, y2, r2, f2]) => x <= x2 && y <= y2 && r2 <= r && f2 <= f;
    const meets = ([x, y, r, f], [x2, y2, r2, f2]) => x < r2 && x2 < r && y < f2 && y2 < f;
    return app.graph._groups.flatMap((group) => app.graph._nodes
        .map((node) => [node.title, ends(group._bounding), ends(node.boundingRect)])
        .filter(([, around, inner]) => meets(around, inner) && !within(around, inner))
        .map(([title]) => [group.title, title]));
}"""
NODES = "() => app.graph._nodes.map((node) => [node.id, node.type, node.title]).sort()"
LAYOUT = "app.graph._nodes.find((n) => n.likenessEditor)?.widgets.find((w) => w.name === 'layout')"
PNGS = "Object.values(app.nodeOutputs).flatMap((o) => o.images ?? []).filter((i) => /png$/.test(i.filename))"
UNKNOWN_INSIDE = """() => app.graph._nodes[0].subgraph._nodes.map((node) => node.type)
    .filter((type) => !(type in LiteGraph.registered_node_types))"""
# Two subjects before the only node of the graph, and a preview behind it.
SURROUND = """() => {
    const [{ graph }, [scene]] = [app, app.graph._nodes];
    for (const [place, noun] of ['rabbit', 'car'].entries()) {
        const subject = LiteGraph.createNode('LikenessLoadSubject');
        graph.add(subject);
        subject.widgets.find((widget) => widget.name === 'folder').value = `example:toy-${noun}`;
        subject.widgets.find((widget) => widget.name === 'class_noun').value = noun;
        subject.connect(0, scene, place);
    }
    const preview = LiteGraph.createNode('PreviewImage');
    graph.add(preview);
    scene.connect(scene.outputs.findIndex((output) => output.name === 'IMAGE'), preview, 0);
}"""
DROP = """async (query) => {
    const bytes = await (await fetch(`/view?${new URLSearchParams(query)}`)).blob();
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], 'scene.png', { type: 'image/png' }));
    const drop = { bubbles: true, cancelable: true, dataTransfer, clientX: 800, clientY: 500 };
    document.querySelector('#graph-canvas').dispatchEvent(new DragEvent('drop', drop));
}"""


def test_the_browser_lists_every_workflow(page: Any, server: Any) -> None:
    assert sorted(server.get("/workflow_templates")["likeness"]) == NAMES
    for name in NAMES:
        picture = page.request.get(f"{server.url}/api/workflow_templates/likeness/{name}.jpg")
        assert picture.ok and picture.headers["content-type"] == "image/jpeg", name


@pytest.fixture(scope="module", params=[False, True], ids=["LiteGraph", "Vue"])
def renderer(request: pytest.FixtureRequest, browser: Any, server: Any) -> Any:
    """The page in one renderer, for all templates. ``page.problems``: errors of this pack's scripts."""
    server.post("/api/settings", {"Comfy.TutorialCompleted": True})
    tab = browser.new_page(viewport={"width": 1600, "height": 1000})
    tab.vue, tab.problems = request.param, []
    tab.on("pageerror", lambda error: tab.problems.append(f"{error}\n{error.stack}"))
    tab.on("console", lambda message: _note(tab.problems, message))
    tab.set_default_timeout(180_000)  # a busy machine is slow, not broken
    tab.goto(server.url)
    tab.wait_for_function(READY)
    yield tab
    tab.evaluate(SET_VUE, False)
    tab.close()


def _note(problems: list[str], message: Any) -> None:
    if message.type == "error":
        problems.append(f"{message.text} {message.location.get('url', '')}")


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_whole(renderer: Any, name: str) -> None:
    page = renderer
    page.problems.clear()
    page.evaluate(SET_VUE, False)  # old frontends draw no graph in Vue that comes later
    page.evaluate(OPEN_TEMPLATE, name)
    page.wait_for_timeout(1000)
    saved = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    assert page.evaluate("() => app.graph._nodes.length") == len(saved["nodes"])
    assert page.evaluate("() => Object.keys(app.graph.links).length || app.graph.links.size") == len(
        saved["links"]
    )
    assert page.evaluate(MISSING) == []
    assert page.locator(DIALOGS).count() == 0
    if page.vue:  # whose nodes have other sizes than the file's, and differ from version to version
        page.evaluate(SET_VUE, True)
        page.wait_for_function(DRAWN_BY_VUE, timeout=30_000)
    else:
        assert page.evaluate(CRAMPED) == []
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate(OUTSIDE) == []
    assert [problem for problem in page.problems if "extensions/likeness" in problem] == []


def test_a_workflow_comes_out_of_a_picture_that_it_made(page: Any) -> None:
    """Dropped onto the canvas, as a user does."""
    page.evaluate(OPEN_TEMPLATE, "layout_editor_demo")
    before = page.evaluate(NODES)
    edited = json.dumps(json.loads(page.evaluate(f"() => {LAYOUT}.value")) | {"scene": "on a beach"})
    page.evaluate(f"(text) => {{ const widget = {LAYOUT}; widget.value = text; }}", edited)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(f"() => {PNGS}.length", timeout=300_000)
    made = page.evaluate(f"() => {PNGS}[0]")
    page.evaluate("() => app.graph.clear()")
    page.evaluate(DROP, made)
    page.wait_for_function("() => app.graph._nodes.length > 0", timeout=30_000)
    assert page.evaluate(NODES) == before
    assert page.evaluate(f"() => {LAYOUT}.value") == edited


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_opens_whole(page: Any, path: Any) -> None:
    page.evaluate(OPEN_GRAPH, json.loads(path.read_text(encoding="utf-8")))
    assert page.evaluate("() => app.graph._nodes.map((node) => node.title)") == [path.stem]
    assert page.evaluate(UNKNOWN_INSIDE) == [] and page.locator(DIALOGS).count() == 0


def test_a_blueprint_runs_where_it_is_put(page: Any) -> None:
    """In the page, and read by ``likeness run`` as the page reads it."""
    path = next(one for one in BLUEPRINTS if one.stem == "Compose a Scene")
    page.evaluate(OPEN_GRAPH, json.loads(path.read_text(encoding="utf-8")))
    page.evaluate(SURROUND)
    told = page.evaluate("async () => (await app.graphToPrompt()).output")
    ours = to_api(parse(page.evaluate(SAVED), runner.schemas_of(runner.known_classes())))
    assert {key: node["inputs"] for key, node in ours.items()} == {
        key: node["inputs"] for key, node in told.items()
    }
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(f"() => {PNGS}.length", timeout=300_000)
