"""What the pack costs ComfyUI's page: opening a large graph, drawing a long history, listening to a training.

A graph of 60 nodes, five of them trainers with finished runs of 10,000 steps, is opened in turns with the
pack's scripts and with empty ones in their place: the nodes are the same, so the difference is the scripts'.
Histories are drawn to their last pixel. Then the page trains in a small graph, and after 54 other nodes: with
each step ComfyUI tells the state of all that have run. 10 minutes on a quiet machine; quick: everything once.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..headless.comfyui import Install
from . import bar
from .comfyui import ComfyServer, Event, Graph, event_of
from .host_graphs import monitored, node, training
from .page import VIEW_PX, Page, chromium

NODES, RUNS, STEPS = 60, 5, 10_000
ROUNDS, QUICK_ROUNDS = 9, 1
TRAINER_PX = 440  # wide, with some room
REPEATS = 20  # of a drawing
WINDOW_MS = 6000  # from opening to the last look, alike for both: the page's own idling counts on both sides
TRAFFIC_WINDOW_S = 10.0
OPEN_BAR_MS, DRAW_BAR_MS, TRAFFIC_BAR = 100.0, 50.0, 20_000.0
BUSIEST = f"busiest {TRAFFIC_WINDOW_S:.0f} s, bytes/s"
QUIET_S = 3600.0

SCRIPTS = "**/extensions/likeness/*.js"
VIEWS = "app.graph._nodes.map((node) => node.likenessView).filter((view) => view?.name)"
ALL_DRAWN = f"(num) => {VIEWS}.filter((view) => view.run && view.loss.area).length === num"
DRAW_VIEW = f"""(repeats) => {{
    const [view] = {VIEWS};
    return Array.from({{ length: repeats }}, () => {{
        const start = performance.now();
        view.draw();
        for (const chart of [view.loss, view.score]) {{
            chart.draw();
            chart.canvas.getContext('2d').getImageData(0, 0, 1, 1);
        }}
        return performance.now() - start;
    }});
}}"""
# Every step by itself, as no server gives them: it thins a history to what a chart can show.
DRAW_CHART = """async ([steps, repeats]) => {
    const { Chart, smooth } = await import('/extensions/likeness/chart.js');
    const loss = (i) => Math.exp(-i / 2000) + (i * 7919 % 101) / 300;
    const points = Array.from({ length: steps }, (_, i) => [i + 1, loss(i)]);
    const chart = new Chart({ title: 'Loss' });
    chart.element.style.width = '380px';
    document.body.append(chart.element);
    const times = Array.from({ length: repeats }, () => {
        const start = performance.now();
        chart.set([{ name: 'a', color: 'loss', points, style: 'faint' },
                   { name: 'b', color: 'loss', points: smooth(points) }]);
        chart.draw();
        chart.canvas.getContext('2d').getImageData(0, 0, 1, 1);
        return performance.now() - start;
    });
    chart.dispose();
    chart.element.remove();
    return times;
}"""


def run(quick: bool) -> dict[str, Any]:
    rounds, steps, every = (QUICK_ROUNDS, 20, 10) if quick else (ROUNDS, 300, 100)
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as browser,
        ComfyServer(Install.find(), Path(folder)) as server,
    ):
        graph = large_graph(browser, server, finished_runs(server))
        opened, drawn = openings(browser, server, graph, rounds)
        small = monitored(steps, every)
        traffic = {
            "6 nodes": heard(browser, server, small),
            f"{NODES} nodes": heard(browser, server, after_others(monitored(steps, every, seed=1))),
        }
    over_ms = statistics.median(opened["with scripts, ms"]) - statistics.median(opened["without, ms"])
    return {
        "numbers": {"opening, script time": opened, "drawing, median ms": drawn, "traffic": traffic},
        "bars": [
            bar(f"ms of script to open {NODES} nodes", value=over_ms, op="<", bar=OPEN_BAR_MS),
            *(bar(f"ms to draw {what}", value=ms, op="<", bar=DRAW_BAR_MS) for what, ms in drawn.items()),
            *(
                bar(
                    f"bytes a second to the page, training in {what}",
                    value=numbers[BUSIEST],
                    op="<",
                    bar=TRAFFIC_BAR,
                )
                for what, numbers in traffic.items()
            ),
        ],
        "seeds": [0, 1],
    }


# --- what is opened -------------------------------------------------------------------------------


def finished_runs(server: ComfyServer) -> list[Path]:
    """Finished runs with long histories, scores and samples: copies of one that was trained."""
    assert server.run(training(), quiet_s=QUIET_S).ok
    runs = server.base / "output" / "likeness" / "runs"
    [trained] = (path.parent for path in runs.glob("*/done.json"))
    return [_long(trained, runs / f"{trained.name[:-2]}{number:02}") for number in range(RUNS)]


def _long(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained, folder)
    losses = (math.exp(-step / 2000) + step * 7919 % 101 / 300 for step in range(1, STEPS + 1))
    history = [{"step": step, "loss": loss, "lr": 1e-4} for step, loss in enumerate(losses, start=1)]
    scores = [
        {"step": step, "train_dino": step / STEPS, "held_out_dino": 0.8 * step / STEPS, "clip_t": 0.3}
        for step in range(0, STEPS + 1, 100)
    ]
    for name, records in (("history", history), ("scores", scores)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "samples").mkdir(exist_ok=True)
    for step, place in itertools.product(range(0, STEPS + 1, 1000), range(2)):
        picture = Image.new("RGB", (64, 64), (step // 40, 90 * place, 60))
        picture.save(folder / "samples" / f"step-{step:06}-{place}.png")
    return folder


def large_graph(browser: Any, server: ComfyServer, runs: Sequence[Path]) -> dict[str, Any]:
    """In the page's format; each of its trainers shows one of the runs, all in view."""
    prompt = {key: entry for number in range(len(runs)) for key, entry in chain(number).items()}
    assert len(prompt) == NODES
    with Page.opened(browser, server) as page:
        graph = page.open_prompt(prompt)
    trainers = [entry for entry in graph["nodes"] if entry["type"].startswith("LikenessTrain")]
    for place, (trainer, run) in enumerate(zip(trainers, runs, strict=True)):
        trainer["properties"]["likeness_run"] = run.name
        trainer["pos"] = [place * TRAINER_PX, 0]
    graph["extra"]["ds"] = {"scale": VIEW_PX["width"] / (RUNS * TRAINER_PX), "offset": [0, 100]}
    return graph


def chain(number: int) -> Graph:
    """One subject from its photos to a report."""
    graph = monitored()
    graph["apply"] = node("LikenessApplyConcept", model=["base", 0], concept=["train", 0])
    graph["save"] = node("LikenessSaveConcept", concept=["train", 0])
    graph["draw"] = node("LikenessGenerate", model=["apply", 0])
    graph["show"] = node("PreviewImage", images=["draw", 0])
    graph["score"] = node(
        "LikenessScoreImages", model=["apply", 0], images=["draw", 0], subject=["subject", 0]
    )
    graph["report"] = node("LikenessReport", subject=["subject", 0])
    return renamed(graph, f"{number}-")


def renamed(graph: Graph, prefix: str) -> Graph:
    """The same graph with other ids."""
    return {
        prefix + key: {
            **entry,
            "inputs": {
                name: [prefix + value[0], value[1]] if isinstance(value, list) else value
                for name, value in entry["inputs"].items()
            },
        }
        for key, entry in graph.items()
    }


# --- opening and drawing --------------------------------------------------------------------------


def openings(
    browser: Any, server: ComfyServer, graph: dict[str, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of script time of each opening, in turns; median milliseconds of drawing."""
    opened: dict[str, list[float]] = {"with scripts, ms": [], "without, ms": []}
    drawn: dict[str, float] = {}
    for number in range(rounds):
        for kind in list(opened)[:: 1 if number % 2 else -1]:
            scripts = kind.startswith("with scripts")
            with Page.opened(browser, server, _as_it_is if scripts else _without_scripts) as page:
                opened[kind].append(script_ms(page, graph, RUNS if scripts else 0))
                if scripts:
                    drawn = drawings(page)
    return opened, drawn


def _as_it_is(tab: Any) -> None:
    pass


def _without_scripts(tab: Any) -> None:
    tab.route(SCRIPTS, lambda route: route.fulfill(body="", content_type="text/javascript"))


def script_ms(page: Page, graph: dict[str, Any], views: int) -> float:
    """Script time from the opening of ``graph`` until its ``views`` of runs are drawn, and all is quiet."""
    session = page.tab.context.new_cdp_session(page.tab)
    session.send("Performance.enable")
    before_ms = _script_ms(session)
    page.open_graph(graph)
    page.tab.wait_for_timeout(WINDOW_MS)
    page.tab.wait_for_function(ALL_DRAWN, arg=views)
    return _script_ms(session) - before_ms


def _script_ms(session: Any) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(1000 * float(m["value"]) for m in metrics if m["name"] == "ScriptDuration")


def drawings(page: Page) -> dict[str, float]:
    return {
        f"a run of {STEPS:,} steps on its node": statistics.median(page.tab.evaluate(DRAW_VIEW, REPEATS)),
        f"a curve of {STEPS:,} points": statistics.median(page.tab.evaluate(DRAW_CHART, [STEPS, REPEATS])),
    }


# --- listening ------------------------------------------------------------------------------------


def after_others(graph: Graph) -> Graph:
    """In a graph of NODES, whose others have run when the training begins: it needs the last of them."""
    words = [f"word-{number}" for number in range(NODES - len(graph))]
    values: list[Any] = ["turtle", *([word, 0] for word in words)]
    others = {
        word: {"class_type": "PrimitiveString", "inputs": {"value": value}}
        for word, value in zip(words, values, strict=False)
    }
    graph["photos"]["inputs"]["class_noun"] = values[-1]
    return {**others, **graph}


def heard(browser: Any, server: ComfyServer, graph: Graph) -> dict[str, Any]:
    """Train from the page: bytes of its websocket from the first step to the last, by kind of message."""
    messages: list[tuple[float, str | bytes]] = []

    def listen(tab: Any) -> None:
        def note(message: str | bytes) -> None:
            messages.append((time.monotonic(), message))

        tab.on("websocket", lambda socket: socket.on("framereceived", note))

    with Page.opened(browser, server, listen) as page:
        run = page.followed(page.queue(graph), QUIET_S)
    assert run.ok, run.error
    events = [event_of(message) for _, message in messages]
    steps_s = [when_s for (when_s, _), event in zip(messages, events, strict=True) if is_step(event)]
    marks: list[tuple[float, int]] = []
    by_kind: Counter[str] = Counter()
    for (when_s, message), event in zip(messages, events, strict=True):
        if steps_s[0] <= when_s <= steps_s[-1]:
            size = len(message if isinstance(message, bytes) else message.encode())
            marks.append((when_s, size))
            by_kind[event["type"]] += size
    seconds = steps_s[-1] - steps_s[0]
    return {
        "seconds": seconds,
        "bytes/s": by_kind.total() / seconds,
        BUSIEST: busiest(marks, seconds),
        "bytes by kind": dict(by_kind),
    }


def busiest(marks: Sequence[tuple[float, int]], seconds: float) -> float:
    """Bytes a second of the busiest TRAFFIC_WINDOW_S of so many seconds."""
    window_s = min(TRAFFIC_WINDOW_S, seconds)
    windows = (
        sum(size for when_s, size in marks if start_s <= when_s < start_s + window_s) for start_s, _ in marks
    )
    return max(windows) / window_s


def is_step(event: Event) -> bool:
    return event["type"] == "progress_text" and str(event["data"]["text"]).startswith("step ")
