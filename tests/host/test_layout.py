"""The layout editor in the real page: mouse, keys and touch, both renderers; saved, opened again and run."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from likeness.composing import editing
from likeness.composing.layout import Layout
from likeness.core.errors import LikenessError
from likeness.headless import runner
from likeness.headless.graph import parse
from likeness.nodes import host
from PIL import Image

TEMPLATE = "layout_editor_demo"
OPEN = """async (path) => {
    const graph = await (await fetch(path)).json();
    await app.loadGraphData(graph, true, true, 'layout_editor_demo');
    const node = app.graph._nodes.find((one) => one.likenessEditor);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [300 - node.pos[0], 160 - node.pos[1]];
    app.graph.setDirtyCanvas(true, true);
}"""
NODE = "app.graph._nodes.find((one) => one.likenessEditor)"
WIDGET = f"() => {NODE}.widgets.find((one) => one.name === 'layout').value"
SET_VUE = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
SAVED = "/api/userdata/workflows%2Flayout_editor_demo.json"


@pytest.fixture
def demo(page: Any, server: Any) -> Iterator[Any]:
    open_graph(page, f"/api/workflow_templates/likeness/{TEMPLATE}.json")
    yield page
    page.request.delete(f"{server.url}{SAVED}")


def open_graph(page: Any, path: str) -> None:
    page.evaluate(OPEN, path)
    page.wait_for_selector(".lk-box")
    page.wait_for_timeout(500)  # the canvas puts its elements in place with its next frames


def layout_of(page: Any) -> Layout:
    return editing.read_edited(page.evaluate(WIDGET))


def box_of(page: Any, subject: str) -> Any:
    return page.locator(f'.lk-box[data-subject="{subject}"]')


def drag(page: Any, x: float, y: float, dx: float, dy: float, *, drop: bool = True) -> None:
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    if drop:
        page.mouse.up()


def middle(page: Any, subject: str) -> tuple[float, float]:
    seen = box_of(page, subject).bounding_box()
    return seen["x"] + seen["width"] * 0.75, seen["y"] + seen["height"] / 4


def move(page: Any, subject: str, dx: float, dy: float) -> None:
    """By shares of the canvas."""
    stage = page.locator(".lk-stage").bounding_box()
    drag(page, *middle(page, subject), dx * stage["width"], dy * stage["height"])


def moved_by(after: Layout, before: Layout, subject: str) -> Any:
    pairs = zip(after.item(subject).box, before.item(subject).box, strict=True)
    return pytest.approx([a - b for a, b in pairs], abs=0.01)


# --- the bar: drag, resize, undo, save, reload, run ------------------------------------------------------


def test_an_edited_layout_is_saved_opened_again_and_composes_the_same_bits(
    demo: Any, server: Any, tmp_path: Path
) -> None:
    page, before = demo, layout_of(demo)
    move(page, "toy-car", 0.1, -0.05)
    dragged = layout_of(page)
    assert moved_by(dragged, before, "toy-car") == [0.1, -0.05, 0, 0]

    corner = box_of(page, "toy-rabbit")
    corner.focus()
    seen = corner.bounding_box()
    drag(page, seen["x"], seen["y"], seen["width"] / 3, seen["height"] / 3)
    sized = layout_of(page)
    old, new = before.item("toy-rabbit").box, sized.item("toy-rabbit").box
    assert new[2] < 0.8 * old[2] and new[2] / new[3] == pytest.approx(old[2] / old[3], rel=1e-3)
    assert new[0] + new[2] == pytest.approx(old[0] + old[2], abs=1e-4)  # the corner across stays

    move(page, "toy-cup", 0.3, 0)
    assert layout_of(page) != sized
    page.get_by_role("button", name="Undo", exact=True).click()
    assert layout_of(page) == sized

    saved = save(page)
    page.goto(server.url)
    page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
    open_graph(page, saved)
    assert layout_of(page) == sized
    picture = run(page, server)
    api = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert np.array_equal(picture, headless(api, tmp_path))
    assert not np.array_equal(picture, headless(unedited(server), tmp_path))
    assert page.problems == []


def save(page: Any) -> str:
    """By the page's own command; where the file is then."""
    page.keyboard.press("Control+s")
    name = page.locator(".p-dialog input")
    name.wait_for()
    name.press("Enter")
    page.wait_for_function(f"async () => (await fetch('{SAVED}')).ok")
    return SAVED


def run(page: Any, server: Any) -> Any:
    """Run the graph in the page; the composed picture as the page got it."""
    composed = "() => { const n = app.graph._nodes.find((one) => one.title === 'The scene'); return %s; }"
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(composed % "app.nodeOutputs[n.id]?.images?.length", timeout=300_000)
    [shown] = page.evaluate(composed % "app.nodeOutputs[n.id].images")
    answer = page.request.get(f"{server.url}/view", params=shown)
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"))


def unedited(server: Any) -> dict[str, Any]:
    return dict(json.loads((Path(host.PACK) / "workflows" / "api" / f"{TEMPLATE}.json").read_text("utf-8")))


def headless(api: dict[str, Any], folder: Path) -> Any:
    """What the embedded runner composes of the API form."""
    classes = runner.known_classes()
    graph = parse(api, runner.schemas_of(classes))
    before, plain = host.current, host.Plain()
    plain.place(output=folder)
    host.use(plain)
    try:
        results = runner.run(graph, classes)
    finally:
        host.use(before)
    [composer] = [key for key, node in graph.items() if node.class_type == "LikenessComposeScene"]
    return (results[composer].args[1][0] * 255).round().byte().numpy()


# --- every way to edit ------------------------------------------------------------------------------------


def test_keys_do_all_that_a_mouse_does(demo: Any) -> None:
    page, before = demo, layout_of(demo)
    names = [item.subject for item in before.items]
    box_of(page, "toy-car").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    assert moved_by(layout_of(page), before, "toy-car") == [0.01, -0.05, 0, 0]
    page.keyboard.press("-")
    assert layout_of(page).item("toy-car").box[2] < before.item("toy-car").box[2]
    page.keyboard.press("]")
    assert [item.subject for item in layout_of(page).items] == [names[1], names[0], names[2]]
    page.keyboard.press("f")
    page.keyboard.press("l")
    car = layout_of(page).item("toy-car")
    assert car.flip and car.locked
    page.keyboard.press("Delete")  # meant for no node
    assert page.evaluate(f"() => Boolean({NODE})")
    for _ in range(6):
        page.keyboard.press("Control+z")
    assert layout_of(page) == before
    page.keyboard.press("Control+Shift+z")
    assert layout_of(page) != before
    page.wait_for_timeout(300)
    assert page.evaluate("() => app.graph._nodes.length") == 11  # the graph's own undo kept out of it


def test_a_box_stays_on_the_canvas_and_escape_takes_a_drag_back(demo: Any) -> None:
    page, before = demo, layout_of(demo)
    drag(page, *middle(page, "toy-car"), 2000, 10, drop=False)
    page.keyboard.press("Escape")
    page.mouse.up()
    assert layout_of(page) == before
    move(page, "toy-car", 3, -3)  # the upper corner is free
    x, y, width, _ = layout_of(page).item("toy-car").box
    assert (x + width, y) == pytest.approx((1, 0))


def test_a_new_draw_leaves_what_is_locked_and_clear_gives_it_back(demo: Any) -> None:
    page, before = demo, layout_of(demo)  # the cup is locked in the template
    text = page.evaluate(WIDGET)
    page.get_by_role("button", name="Draw anew").click()
    page.wait_for_function(f"(old) => ({WIDGET})() !== old", arg=text)
    after = layout_of(page)
    assert after.item("toy-cup") == before.item("toy-cup")
    assert after.item("toy-car").box != before.item("toy-car").box
    page.get_by_role("button", name="Clear: the next run draws a layout").click()
    assert page.evaluate(WIDGET) == ""
    page.get_by_role("button", name="Undo", exact=True).click()
    assert layout_of(page) == after


def test_what_cannot_be_composed_is_said_at_once(demo: Any, server: Any) -> None:
    """In the editor, and by the server before anything runs, on the node."""
    page = demo
    cup, car = layout_of(page).item("toy-cup").box, layout_of(page).item("toy-car").box
    move(page, "toy-car", cup[0] - car[0], cup[1] + cup[3] - car[1] - car[3])
    assert "overlap by" in page.locator(".lk-say").inner_text()
    with pytest.raises(LikenessError, match="toy-car and toy-cup overlap"):
        layout_of(page)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    answer = page.request.post(f"{server.url}/prompt", data={"prompt": prompt})
    said = answer.json()["node_errors"][str(page.evaluate(f"() => {NODE}.id"))]["errors"]
    assert "overlap by" in json.dumps(said)


def test_the_text_can_be_seen_and_edited(demo: Any) -> None:
    page = demo
    shown = f"() => {NODE}.widgets.find((one) => one.name === 'layout').isVisible()"
    assert not page.evaluate(shown)
    page.get_by_role("button", name="as text").click()
    assert page.evaluate(shown)
    half = json.loads(page.evaluate(WIDGET))
    half["items"] = half["items"][:2]
    change = f"(text) => {{ {NODE}.widgets.find((one) => one.name === 'layout').value = text; }}"
    page.evaluate(change, json.dumps(half))
    page.wait_for_function("() => document.querySelectorAll('.lk-box').length === 2")
    page.evaluate(change, "{")
    page.wait_for_selector(".lk-say:text('not a layout')")


# --- both renderers, touch --------------------------------------------------------------------------------


@pytest.mark.parametrize("vue", [False, True], ids=["LiteGraph", "Vue"])
def test_both_renderers_draw_boxes_that_can_be_moved(demo: Any, vue: bool) -> None:
    page, before = demo, layout_of(demo)
    page.evaluate(SET_VUE, vue)
    try:
        inside = "[data-node-id] .lk-stage" if vue else ".lk-stage"
        page.wait_for_function(f"() => document.querySelector('{inside}')?.offsetWidth > 150", timeout=30_000)
        page.wait_for_timeout(1000)
        move(page, "toy-car", 0.1, -0.1)
        assert moved_by(layout_of(page), before, "toy-car") == [0.1, -0.1, 0, 0]
        assert page.problems == []
    finally:
        page.evaluate(SET_VUE, False)


@pytest.fixture
def finger(page: Any) -> Iterator[Any]:
    session = page.context.new_cdp_session(page)
    yield lambda kind, *points: session.send(
        "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
    )
    session.detach()


def test_a_finger_moves_a_box(demo: Any, finger: Any) -> None:
    page, before = demo, layout_of(demo)
    stage = page.locator(".lk-stage").bounding_box()
    x, y = middle(page, "toy-car")
    step = 0.05 * stage["width"]
    finger("touchStart", (x, y))
    finger("touchMove", (x + step, y))
    finger("touchMove", (x + 2 * step, y))
    finger("touchEnd")
    page.wait_for_timeout(200)
    assert moved_by(layout_of(page), before, "toy-car") == [0.1, 0, 0, 0]


# --- the page and Python agree -----------------------------------------------------------------------------

BOXES = [
    [[0.1, 0.5, 0.3, 0.3], [0.25, 0.5, 0.3, 0.3]],
    [[0.8, 0.5, 0.3, 0.3], [0.1, 0.5, 0.04, 0.03]],
    [[0.1, 0.5, 0.3, 0.3], [0.15, 0.5, 0.3, 0.3]],
    [[0.1, 0.1, 0.8, 0.8], [0.2, 0.2, 0.1, 0.1]],
]


@pytest.mark.parametrize("boxes", BOXES)
def test_the_page_says_what_python_says(page: Any, boxes: list[list[float]]) -> None:
    items = [{"subject": f"s{n}", "noun": "cup", "box": box} for n, box in enumerate(boxes)]
    text = json.dumps({"version": 1, "scene": "here", "items": items})
    module = "import('/extensions/likeness/boxes.js')"
    said = page.evaluate(
        f"async (text) => {{ const m = await {module}; return m.problems(m.parse(text)).map(([w]) => w); }}",
        text,
    )
    assert said == editing.problems(Layout.from_json(text))
    limits = page.evaluate(f"async () => (await {module}).LIMITS")
    assert limits == {"overlap": editing.MAX_OVERLAP, "edge": editing.MIN_EDGE, "items": 8}
