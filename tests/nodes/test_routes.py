"""What the page reads: run folders as JSON, whatever state they are in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.core.lock import run_lock
from likeness.nodes import routes
from likeness.nodes.live import WORKFLOW_FILE, Live, keep_workflow
from likeness.trainers.events import Checkpoint, Phase, Started, Step

NAME = "dreambooth-finn-0123456789ab"
SCORES = [(0, 0.2, 0.2, 0.3), (100, 0.6, 0.5, 0.3), (200, 0.7, 0.4, 0.29), (300, 0.8, 0.3, 0.28)]
KEYS = ("step", "train_dino", "held_out_dino", "clip_t")


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)


def history(first: int, last: int) -> str:
    return lines([{"step": n, "loss": 1 / n, "lr": 1e-4} for n in range(first, last + 1)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of runs with one of 300 steps of 500, scored, sampled and not finished."""
    folder = tmp_path / "likeness" / "runs" / NAME
    (folder / "samples").mkdir(parents=True)
    config = {"class": "DreamBoothConfig", "fields": {"steps": 500, "rank": 4}}
    monitor = {"class": "HeldOutMonitor", "fields": {"patience": 2, "tolerance": 0.01, "clip_t_floor": 0.9}}
    fields = {"method": "dreambooth", "subject": "finn", "config": config, "monitor": monitor}
    record = {
        "key": "0123",
        "settings": {"class": "Settings", "fields": fields},
        "provenance": {"torch": "2"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "history.jsonl").write_text(history(1, 300))
    (folder / "scores.jsonl").write_text(lines([dict(zip(KEYS, row, strict=True)) for row in SCORES]))
    for step in (0, 100):
        for i in range(2):
            (folder / "samples" / f"step-{step:06d}-{i}.png").touch()
    return folder.parent


def finish(root: Path, **more: Any) -> None:
    done = {
        "best_step": 100,
        "concept": "concept/finn.safetensors",
        "sha256": "",
        "rule": "",
        "verdict": "ok",
    }
    (root / NAME / "done.json").write_text(json.dumps(done | more))


def test_a_run_at_rest_shows_its_whole_history(root: Path) -> None:
    run = routes.one_run(root, NAME)
    assert (run["state"], run["step"], run["total"]) == ("paused", 300, 500)
    assert [run["points"][0], run["points"][-1]] == [(1, 1.0, 1e-4), (300, 1 / 300, 1e-4)]
    assert [row[0] for row in run["scores"]] == [0, 100, 200, 300]
    assert run["samples"][1] == [100, ["step-000100-0.png", "step-000100-1.png"]]
    assert run["settings"]["rank"] == "4"
    assert json.loads(json.dumps(run, allow_nan=False))


def test_the_monitors_rule_marks_best_step_and_overfitting_before_the_end(root: Path) -> None:
    run = routes.one_run(root, NAME)
    assert (run["best_step"], run["turning_step"]) == (100, 100)
    assert run["verdict"].startswith("overfitting since step 100")


def test_an_increment_holds_only_what_is_new(root: Path) -> None:
    assert [p[0] for p in routes.one_run(root, NAME, after=297)["points"]] == [298, 299, 300]
    last = routes.one_run(root, NAME, after=300)
    assert (last["points"], last["step"]) == ([], 300)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(0, 420), st.integers(1, 300), st.text("x{\n", max_size=4))
def test_reading_backwards_finds_every_whole_line(num: int, after: int, block: int, torn: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "BLOCK_BYTES", block)
        path = Path(folder) / "history.jsonl"
        path.write_text(history(1, num) + torn)
        assert [p[0] for p in routes.curve(path, after)] == list(range(after + 1, num + 1))
        assert routes.last_step(path) == num


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), max_size=300), st.integers(8, 60))
def test_a_thinned_curve_keeps_ends_and_extremes(losses: list[float], limit: int) -> None:
    points = [(n, loss, 0.0) for n, loss in enumerate(losses)]
    thinned = routes.thin(points, limit)
    assert len(thinned) <= limit and thinned == sorted(set(thinned))
    assert thinned[:1] == points[:1] and thinned[-1:] == points[-1:]
    assert {min(losses), max(losses)} <= {loss for _, loss, _ in thinned} if losses else not thinned


def test_ten_thousand_steps_are_read_quickly_and_sent_thinned(root: Path) -> None:
    (root / NAME / "history.jsonl").write_text(history(1, 10_000))
    start = time.process_time()
    run = routes.one_run(root, NAME)
    assert time.process_time() - start < 2
    assert len(run["points"]) <= routes.MAX_POINTS and run["step"] == 10_000


def test_the_list_tells_state_scores_and_thumbnail(root: Path) -> None:
    (root / "class images").mkdir()  # no run
    [run] = routes.all_runs(root)
    assert (run["method"], run["subject"], run["state"]) == ("dreambooth", "finn", "paused")
    assert run["best"]["held_out_dino"] == 0.5 and run["base"]["held_out_dino"] == 0.2
    assert run["thumbnail"] == "step-000100-0.png"
    with run_lock(root / NAME):
        assert routes.all_runs(root)[0]["state"] == "training"
    finish(root)
    assert routes.all_runs(root)[0]["state"] == "finished"
    assert routes.all_runs(root / "nowhere") == []


@pytest.mark.parametrize("damage", ["run.json", "scores.jsonl", "history.jsonl", "done.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null\n", b"1\n"])
def test_damaged_files_are_no_reason_to_show_nothing(root: Path, damage: str, content: bytes) -> None:
    (root / NAME / damage).write_bytes(content)
    assert routes.all_runs(root)[0]["name"] == NAME
    assert json.dumps(routes.one_run(root, NAME), allow_nan=False)


@pytest.mark.parametrize(
    "name", ["", "..", "../runs", f"../runs/{NAME}", "/etc", "nothing", f"{NAME}/samples", "CON"]
)
def test_names_lead_to_runs_alone(root: Path, name: str) -> None:
    for ask in (routes.one_run, routes.delete, routes.report, routes.workflow):
        with pytest.raises(LikenessError):
            ask(root, name)
    assert (root / NAME / "run.json").exists()


def test_a_link_is_no_run(root: Path) -> None:
    (root / "link").symlink_to(root / NAME, target_is_directory=True)
    with pytest.raises(LikenessError):
        routes.delete(root, "link")


def test_delete_removes_a_run_at_rest_only(root: Path) -> None:
    with run_lock(root / NAME), pytest.raises(LikenessError, match="at work"):
        routes.delete(root, NAME)
    routes.delete(root, NAME)
    assert list(root.iterdir()) == []


def test_stop_asks_a_run_at_work_and_settles_one_that_was_ended(root: Path) -> None:
    with run_lock(root / NAME):
        routes.stop(root, NAME, settle=True)
    assert json.loads((root / NAME / "stop.json").read_text()) == {"settle": True}
    finish(root)
    with pytest.raises(LikenessError, match="not ended early"):
        routes.stop(root, NAME, settle=True)
    finish(root, ended_early={"step": 300, "of": 500}, settled=False)
    routes.stop(root, NAME, settle=True)
    run = routes.one_run(root, NAME)
    assert (run["state"], run["settled"]) == ("ended early", True)


def test_the_report_is_one_page(root: Path) -> None:
    assert "<html" in routes.report(root, NAME)


def test_a_written_report_is_found_by_its_file_name_alone(root: Path) -> None:
    reports = root.parent / "reports"
    reports.mkdir()
    (reports / "mine.html").write_text("<h1>here</h1>")
    (reports / "mine.json").write_text("{}")
    (reports / "link.html").symlink_to(root / NAME / "run.json")
    assert routes.written_report(root, "mine.html") == "<h1>here</h1>"
    for name in ("none.html", "mine.json", "../runs/x.html", "link.html", "..", "", "a\x00.html"):
        with pytest.raises(LikenessError):
            routes.written_report(root, name)


def test_the_workflow_is_kept_beside_the_run(root: Path) -> None:
    class Queue:
        def get_current_queue(self) -> Any:
            return [(0, "id", {}, {"extra_pnginfo": {"workflow": {"nodes": [1]}}}, [])], []

    with pytest.raises(LikenessError):
        routes.workflow(root, NAME)
    keep_workflow(root / NAME, None)  # a prompt of a program's: nothing to keep, nothing in the way
    assert not (root / NAME / WORKFLOW_FILE).exists()
    keep_workflow(root / NAME, Queue())
    assert routes.workflow(root, NAME) == {"nodes": [1]}


def test_messages_are_small_and_know_their_run() -> None:
    now_s = 0.0
    live = Live(lambda: now_s)
    assert live.message("7", Phase("loading", 0, 2)) is None
    live.message("7", Started(Path(NAME)))
    assert live.message("8", Phase("sampling", 0, 2)) is None  # another node, after the training
    for number in range(1, 11):
        now_s = 2.0 * number
        message = live.message("7", Step(number, 50, 0.5, {"a": 1.0}, 1e-4, 0.1, 2.0))
    assert message == {"node": "7", "run": NAME, "phase": "training", "step": 10, "total": 50, "left_s": 80.0}
    assert len(json.dumps(message)) * 4 < 1000  # of the 20,000 bytes a second that a page may get
    assert live.message("7", Checkpoint(10, Path("x")))
    assert live.of(NAME)["left_s"] == 80.0 and live.of("another") == {}
