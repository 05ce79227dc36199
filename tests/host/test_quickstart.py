"""The quickstart in the page: found among the templates, whole, run, and its report one click away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from likeness.benchmarks.comfyui import ComfyServer
from likeness.benchmarks.host_workflow import FEW, QUICKSTART, smaller
from likeness.benchmarks.page import MISSING, OPEN_GRAPH, OPEN_TEMPLATE

FILES = "/api/workflow_templates/likeness"
NODE_OF = "(type) => app.graph._nodes.find((node) => node.type === type)"
# In the smallest part of the page around a card's title that has a picture; its address tells nothing.
PICTURE_SEEN = """(title) => {
    let card = title;
    while (card && !card.querySelector('img')) card = card.parentElement;
    return card?.querySelector('img').naturalWidth > 0;
}"""
ENDED = "() => window.ended"
WATCH = """() => {
    window.ended = '';
    window.told = new Set();
    const api = app.api;
    for (const kind of ['progress_state', 'b_preview', 'b_preview_with_metadata', 'executed'])
        api.addEventListener(kind, () => window.told.add(kind));
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        api.addEventListener(kind, ({ detail }) => { window.ended = kind; window.detail = detail; });
}"""


def test_the_template_is_listed_with_its_picture(page: Any, server: ComfyServer) -> None:
    assert "quickstart" in server.get("/workflow_templates")["likeness"]
    picture = page.request.get(f"{server.url}{FILES}/quickstart.jpg")
    assert picture.ok and picture.headers["content-type"] == "image/jpeg" and len(picture.body()) < 60_000


def test_the_browser_of_templates_opens_it(page: Any) -> None:
    """As a newcomer would: Browse Templates, this pack, the card with the picture."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("option", name="likeness", exact=True).click()
    card = page.locator(".p-dialog").get_by_text("quickstart", exact=True).first
    card.scroll_into_view_if_needed()  # pictures load when they are seen
    page.wait_for_function(PICTURE_SEEN, arg=card.element_handle())
    card.click()
    page.wait_for_function(f"() => ({NODE_OF})('LikenessReport')")
    assert page.evaluate("() => app.graph._nodes.filter((n) => n.has_errors).length") == 0
    assert page.problems == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = smaller(QUICKSTART, tmp_path_factory.mktemp("workflow") / "quickstart.json", FEW)
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_runs_and_its_report_is_one_click_away(page: Any, server: ComfyServer, small: Any) -> None:
    server.idle()  # events of another prompt would be taken for this one's
    page.evaluate(OPEN_TEMPLATE, "quickstart")
    assert page.evaluate(MISSING) == []
    page.evaluate(OPEN_GRAPH, small)
    page.evaluate(WATCH)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(ENDED, timeout=900_000)
    assert page.evaluate(ENDED) == "execution_success", page.evaluate("() => window.detail")
    assert {"progress_state", "executed"} <= set(page.evaluate("() => [...window.told]"))
    assert page.evaluate("() => Object.values(app.nodeOutputs ?? {}).some((o) => o.images?.length)")
    href = page.evaluate(f"() => ({NODE_OF})('LikenessReport').likenessReport.href")
    report = page.request.get(f"{server.url}{href}" if href.startswith("/") else href)
    assert report.ok and "One turtle, learned from five photos" in report.text()
    saved = json.loads(page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    [node] = [n for n in saved["nodes"] if n["type"] == "LikenessReport"]
    assert len(node["widgets_values"]) == 2  # the button is no input
    page.evaluate(OPEN_GRAPH, saved)
    assert page.evaluate(f"() => ({NODE_OF})('LikenessReport').likenessReport.href") == href
    assert page.problems == []


def test_every_input_has_its_tooltip_in_the_page(page: Any) -> None:
    silent = page.evaluate("""() => Object.values(LiteGraph.registered_node_types)
        .filter((type) => type.nodeData?.name?.startsWith('Likeness'))
        .flatMap(({ nodeData }) => Object.values(nodeData.inputs ?? {})
            .filter((input) => !input.tooltip).map((input) => `${nodeData.name}.${input.name}`))""")
    assert silent == []


def set_widget(page: Any, where: str, widget: str, value: str) -> str:
    """Turn a widget of the one node of its type; that node's id."""
    script = f"""([type, name, value]) => {{
        const node = ({NODE_OF})(type);
        node.widgets.find((w) => w.name === name).value = value;
        return String(node.id);
    }}"""
    return str(page.evaluate(script, [where, widget, value]))


def test_a_refused_node_is_told_though_the_rest_runs(page: Any, server: ComfyServer, small: Any) -> None:
    """ComfyUI runs the other branch, and of this one shows a red frame; the words are this pack's."""
    page.evaluate(OPEN_GRAPH, small)
    node = set_widget(page, "LikenessLoadSubject", "folder", "no-such-photos")
    page.evaluate("() => app.queuePrompt(0, 1)")
    told = page.locator(".p-toast-message", has_text="no-such-photos")
    told.wait_for()
    assert page.evaluate("() => Object.keys(app.lastNodeErrors)") == [node]
    assert "There is no folder of photos" in told.inner_text() and told.inner_text().count("There is") == 1
    assert page.problems == []
    server.idle()


def test_a_failed_node_is_told_in_plain_words(page: Any, server: ComfyServer, small: Any) -> None:
    server.idle()
    page.evaluate(OPEN_GRAPH, small)
    node = set_widget(page, "LikenessReport", "name", "../evil")
    page.evaluate(WATCH)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(ENDED, timeout=900_000)
    assert page.evaluate(ENDED) == "execution_error"
    assert page.evaluate("() => String(app.lastExecutionError.node_id)") == node
    page.get_by_text("The report name '../evil' cannot be a file name").first.wait_for()
    assert page.problems == []
